//! `containerApps/authConfigs`: kept and shown, not enforced, which every answer and a Warning event say.

use std::collections::BTreeSet;

use cove_arm::{Errors, auth_config, environment::child, schema::Schema};
use cove_model::ResourceId;
use cove_store::{ResourceRow, SecretsChange};
use serde_json::Value;

use crate::{
    answer::Refusal,
    app_events, apps,
    call::Call,
    control_plane::ControlPlane,
    crud::{self, Parsed, Resource, Write},
    route::Route,
};

pub(crate) fn routes() -> Vec<Route> {
    crud::routes::<AuthConfig>()
}

struct AuthConfig;

impl Resource for AuthConfig {
    const KIND: &'static str = "Microsoft.App/containerApps/authConfigs";
    const PATH: &'static str = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.App/containerApps/{app}/authConfigs/{config}";

    fn parent(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
        apps::require(plane, call)
    }

    fn schema() -> &'static Schema {
        &auth_config::SCHEMA
    }

    fn parse(write: &Write<'_>, doc: Value, errors: Errors) -> Result<Parsed, Refusal> {
        let secrets: BTreeSet<String> = write.plane.store().secrets(&write.parent.id)?.into_keys().collect();
        let doc = auth_config::parse(write.id.name(), doc, &secrets, errors)?;
        if auth_config::is_on(&doc) {
            app_events::warn(write.plane, &apps::model(write.parent)?, &[auth_config::NO_EFFECT.to_owned()]);
        }
        Ok(Parsed { doc, spec: None, secrets: SecretsChange::Keep })
    }

    fn render(_: &ControlPlane, _: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
        let mut value = crud::envelope(row, Self::KIND);
        let words = [auth_config::NO_EFFECT.to_owned()];
        child::show_state(&mut value, if auth_config::is_on(&row.doc) { &words } else { &[] });
        if let Some(properties) = value["properties"].as_object_mut() {
            properties.remove("provisioningState");
        }
        Ok(value)
    }
}

/// Whether an app has authentication configured, which is not enforced.
pub(crate) fn is_on(plane: &ControlPlane, app: &ResourceId) -> Result<bool, Refusal> {
    let Ok(id) = app.child("authConfigs", auth_config::NAME) else { return Ok(false) };
    Ok(plane.store().resource(&id)?.is_some_and(|row| auth_config::is_on(&row.doc)))
}
