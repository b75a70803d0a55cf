//! `containerApps/authConfigs`: kept and shown; the ingress enforces them. What of one cannot be had, every answer and a
//! Warning event say.

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
        app_events::warn(write.plane, &apps::model(write.parent)?, &auth_config::warnings(&doc));
        Ok(Parsed { doc, spec: None, secrets: SecretsChange::Keep })
    }

    fn render(_: &ControlPlane, _: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
        let mut value = crud::envelope(row, Self::KIND);
        child::show_state(&mut value, &auth_config::warnings(&row.doc));
        if let Some(properties) = value["properties"].as_object_mut() {
            properties.remove("provisioningState");
        }
        Ok(value)
    }
}

/// What of an app's authentication cannot be had.
pub(crate) fn warnings(plane: &ControlPlane, app: &ResourceId) -> Result<Vec<String>, Refusal> {
    let Ok(id) = app.child("authConfigs", auth_config::NAME) else { return Ok(Vec::new()) };
    Ok(plane.store().resource(&id)?.map(|row| auth_config::warnings(&row.doc)).unwrap_or_default())
}
