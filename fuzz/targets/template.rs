//! A deployment's body from its bytes to the outputs: whatever arrives, it ends soon and without a panic.
#![no_main]

use cove_template::{Evaluated, Group, Known, LookupError, Need, Runtime, Scope, Template};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// Answers everything, so that evaluation goes on behind a `reference`.
struct Answers;

impl Runtime for Answers {
    fn lookup(&self, need: &Need) -> Option<Result<Value, LookupError>> {
        if need.id().ends_with('x') {
            return Some(Err(LookupError { code: "ResourceNotFound".into(), message: "not found".into() }));
        }
        Some(Ok(json!({"properties": {"a": [1, {"b": "c"}], "outputs": {"x": {"value": 1}}}, "keys": [{"value": "k"}]})))
    }
}

fn scope(in_group: bool) -> Scope {
    Scope {
        tenant: "22222222-0000-0000-0000-000000000000".into(),
        subscription: "00000000-0000-0000-0000-000000000000".into(),
        subscription_name: "s".into(),
        group: in_group.then(|| Group { name: "rg".into(), location: "eastus".into(), tags: json!({}) }),
        deployment: "main".into(),
        location: None,
        now: jiff::Timestamp::UNIX_EPOCH,
        seed: [1; 16],
        deployer: json!({"objectId": "o"}),
        environment: json!({"name": "Cove"}),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let body = match cove_template::parse_body(bytes) {
        Ok(body) => body,
        Err(error) => {
            let _ = error.to_string();
            return;
        }
    };
    let again = cove_template::parse_body(body.to_string().as_bytes()).expect("JSON that was printed can be read");
    assert_eq!(body, again, "printing and reading gives the same value");
    let template = body.get("template").unwrap_or(&body);
    let parameters = body.get("parameters").filter(|_| body.get("template").is_some()).unwrap_or(&Value::Null);
    let parsed = match Template::parse(template, parameters, scope(bytes.len() % 8 != 0)) {
        Ok(parsed) => parsed,
        Err(errors) => {
            assert!(!errors.is_empty(), "a refusal says why");
            for error in errors.iter().take(3) {
                let _ = cove_template::locate(bytes, "template", &error.path);
            }
            return;
        }
    };
    let _ = parsed.echoed_parameters();
    let Ok(plan) = parsed.expand() else { return };
    for (index, resource) in plan.resources.iter().enumerate().take(8) {
        assert!(resource.depends_on.iter().all(|other| *other < plan.resources.len() && *other != index));
        if let Ok(Evaluated::Needs(needs)) = plan.evaluate_body(index, &Known::new()) {
            assert!(!needs.is_empty(), "what waits says what for");
        }
        let _ = plan.preview_body(index, &Known::new());
        assert!(!matches!(plan.evaluate_body(index, &Answers), Ok(Evaluated::Needs(_))), "everything was answered");
    }
    let _ = plan.evaluate_outputs(&Answers);
});
