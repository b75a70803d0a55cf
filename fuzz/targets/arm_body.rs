//! Bodies of container apps and environments: any JSON is either accepted or refused with a status of the client's making.
#![no_main]

use std::collections::BTreeSet;

use cove_arm::{body, container_app, environment, patch};
use cove_model::ResourceId;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = body::parse_object(bytes, body::DEPTH_MAX) else { return };
    let secrets = BTreeSet::new();
    let id = |kind: &str| ResourceId::resource("s", "rg", kind, "web").expect("a good id");
    let app_id = id("Microsoft.App/containerApps");
    match container_app::parse_put(&value, &container_app::PutContext { id: &app_id, known_secrets: &secrets }) {
        Err(error) => assert!((400..=501).contains(&error.status) && error.status != 500, "{error:?}"),
        // what was accepted is accepted again
        Ok(parsed) => {
            let names = parsed.secrets.keys().cloned().collect();
            let context = container_app::PutContext { id: &app_id, known_secrets: &names };
            let again = container_app::parse_put(&parsed.doc, &context);
            assert!(again.is_ok(), "{:?} refuses {}", again.err(), parsed.doc);
        }
    }
    let environment_id = id("Microsoft.App/managedEnvironments");
    let result = environment::parse_put(&value, &environment::PutContext { id: &environment_id, default_domain: "web.localhost" });
    if let Err(error) = result {
        assert!((400..=501).contains(&error.status) && error.status != 500, "{error:?}");
    }
    let mut merged = value.clone();
    patch::merge(&mut merged, &value);
});
