//! `managedEnvironments/storages`: file shares that volumes of the environment's apps name.
//!
//! **Invariant:** an account key is a secret of the resource; no answer holds it.

use std::collections::BTreeMap;

use cove_arm::{ArmError, Errors, schema::Schema, storage};
use cove_model::{EnvironmentStorage, VolumeKind};
use cove_store::{ResourceRow, SecretsChange};
use serde_json::Value;

use crate::{
    answer::Refusal,
    apps,
    call::Call,
    control_plane::ControlPlane,
    crud::{self, Parsed, Resource, Write},
    environments, jobs,
    route::Route,
};

/// Under which name the account key is kept; the controller reads it there.
const ACCOUNT_KEY: &str = "account-key";

pub(crate) fn routes() -> Vec<Route> {
    crud::routes::<Storage>()
}

struct Storage;

impl Resource for Storage {
    const KIND: &'static str = "Microsoft.App/managedEnvironments/storages";
    const PATH: &'static str = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.App/managedEnvironments/{environment}/storages/{storage}";

    fn parent(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
        environments::require(plane, call)
    }

    fn schema() -> &'static Schema {
        &storage::SCHEMA
    }

    fn parse(write: &Write<'_>, doc: Value, errors: Errors) -> Result<Parsed, Refusal> {
        let old = write.old.map(model).transpose()?;
        let parsed = storage::parse(write.id, doc, old.as_ref(), errors)?;
        let spec = serde_json::to_value(&parsed.storage).map_err(|error| Refusal::Broken(error.to_string()))?;
        // a body without the key keeps the one that is there
        let secrets = match parsed.account_key {
            Some(key) => SecretsChange::Replace(BTreeMap::from([(ACCOUNT_KEY.to_owned(), Some(key))])),
            None => SecretsChange::Keep,
        };
        Ok(Parsed { doc: parsed.doc, spec: Some(spec), secrets })
    }

    fn check_delete(plane: &ControlPlane, row: &ResourceRow) -> Result<(), Refusal> {
        let users = users(plane, row)?;
        if users.is_empty() {
            return Ok(());
        }
        let message = format!(
            "The storage '{}' is used by volumes of {}; remove the volumes, or deactivate the revisions, first.",
            row.id.name(),
            users.join(", ")
        );
        Err(ArmError::conflict("ManagedEnvironmentStorageInUse", message).into())
    }
}

fn model(row: &ResourceRow) -> Result<EnvironmentStorage, Refusal> {
    let spec = row.spec.clone().unwrap_or(Value::Null);
    serde_json::from_value(spec).map_err(|error| Refusal::Broken(format!("stored storage `{}`: {error}", row.id)))
}

/// Names of active revisions whose volumes are on a storage, the first few.
fn users(plane: &ControlPlane, storage: &ResourceRow) -> Result<Vec<String>, Refusal> {
    const SHOWN_MAX: usize = 5;
    let mut users = Vec::new();
    let Some(environment) = storage.id.parent() else { return Ok(users) };
    let is_on = |kind: &VolumeKind| matches!(kind, VolumeKind::Storage(volume) if volume.storage.eq_ignore_ascii_case(storage.id.name()));
    for row in jobs::in_environment(plane, &environment)? {
        let template = jobs::model(&row)?.template;
        if template.volumes.iter().any(|volume| is_on(&volume.kind)) && users.len() < SHOWN_MAX {
            users.push(format!("job '{}'", row.id.name()));
        }
    }
    for app in apps::in_environment(plane, &environment)? {
        for revision in plane.store().revisions(&app.id)? {
            let uses = revision.revision.template.volumes.iter().any(|volume| is_on(&volume.kind));
            if uses && revision.revision.is_active && users.len() < SHOWN_MAX {
                users.push(format!("'{}'", revision.revision.name));
            }
        }
    }
    Ok(users)
}
