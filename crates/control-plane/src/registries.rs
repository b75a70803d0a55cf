//! `Microsoft.ContainerRegistry/registries`: names that users give the embedded registry.
//!
//! `az acr create -n myregistry` makes `myregistry.azurecr.io` a name of it: what is pushed to the server's own registry is
//! pulled under that name, without a login, with any or with an identity. All registries show the same images.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use cove_arm::{ArmError, Errors, registry, schema::Schema};
use cove_store::ResourceRow;
use http::Method;
use serde_json::{Value, json};

use crate::{
    answer::{self, Answer, Refusal, with_header},
    call::Call,
    config::Auth,
    control_plane::ControlPlane,
    crud::{self, Parsed, Resource, Write},
    environments::system_data,
    groups,
    route::Route,
};

struct Registry;

impl Resource for Registry {
    const KIND: &'static str = registry::KIND;
    const PATH: &'static str = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.ContainerRegistry/registries/{registry}";
    const CREATED: u16 = 201;
    const HAS_PATCH: bool = true;

    fn parent(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
        groups::require(plane, call)
    }

    fn schema() -> &'static Schema {
        &registry::SCHEMA
    }

    fn parse(write: &Write<'_>, doc: Value, errors: Errors) -> Result<Parsed, Refusal> {
        let others = write.plane.store().ids_named(Self::KIND, write.id.name())?;
        if let Some(other) = others.iter().find(|other| *other != write.id) {
            let message = format!(
                "The registry '{}' exists in resource group '{}' already; its name is part of a host name and must be unique.",
                write.id.name(),
                other.group_name()
            );
            return Err(ArmError::conflict("AlreadyInUse", message).into());
        }
        Ok(Parsed::doc(registry::parse(write.id.name(), &doc, errors)?))
    }

    fn render(_: &ControlPlane, call: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
        let host = call.origin.trim_start_matches("https://");
        Ok(registry::render(&row.id, &row.doc, host, &system_data(row)))
    }
}

pub(crate) fn routes() -> Vec<Route> {
    const PROVIDER: &str = "/subscriptions/{subscription}/providers/Microsoft.ContainerRegistry";
    let mut routes = crud::routes::<Registry>();
    let one = Registry::PATH;
    routes.extend([
        Route::arm(Method::GET, format!("{PROVIDER}/registries"), list_all),
        Route::arm(Method::POST, format!("{PROVIDER}/checkNameAvailability"), check_name),
        Route::arm(Method::POST, format!("{one}/listCredentials"), credentials),
        Route::arm(Method::POST, format!("{one}/regenerateCredential"), regenerate),
        Route::arm(Method::GET, format!("{one}/listUsages"), usages),
    ]);
    routes
}

async fn list_all(plane: ControlPlane, call: Call) -> Answer {
    let rows = plane.store().resources(registry::KIND, Some(&call.subscription_id()?))?;
    crud::list(&call, &rows, |row| Registry::render(&plane, &call, row))
}

async fn check_name(plane: ControlPlane, call: Call) -> Answer {
    let body = call.object()?;
    let name = body["name"].as_str().unwrap_or("");
    let is_taken = !plane.store().ids_named(registry::KIND, name)?.is_empty();
    let value = if !registry::is_name(name) {
        let message = "A registry name has 5 to 50 letters and digits.";
        json!({ "nameAvailable": false, "reason": "Invalid", "message": message })
    } else if is_taken {
        json!({ "nameAvailable": false, "reason": "AlreadyExists", "message": format!("The registry {name} is already in use.") })
    } else {
        json!({ "nameAvailable": true })
    };
    Ok(answer::json(200, &value))
}

/// The embedded registry asks nobody on a developer's machine, so that any login is good; these stay the same.
async fn credentials(plane: ControlPlane, call: Call) -> Answer {
    let row = crud::require::<Registry>(&plane, &call)?;
    if matches!(plane.config().auth, Auth::Clients(_)) {
        let instead = "log in to it with a client_id and secret of `api.clients`";
        return Err(ArmError::not_implemented("listCredentials", "An admin user of the registry", instead).into());
    }
    if row.doc.pointer("/properties/adminUserEnabled") != Some(&Value::Bool(true)) {
        let message = format!(
            "Cannot perform credential operations for '{}' as admin user is disabled; run 'az acr update -n {} --admin-enabled true'.",
            row.id,
            row.id.name()
        );
        return Err(ArmError::new(400, "UnAuthorizedForCredentialOperations", message).into());
    }
    let password = |which: &str| BASE64.encode(plane.token_key().fingerprint(&format!("{which}:{}", row.id.key())));
    let value = json!({
        "username": row.id.name(),
        "passwords": [
            { "name": "password", "value": password("password") },
            { "name": "password2", "value": password("password2") },
        ],
    });
    Ok(with_header(answer::json(200, &value), "cache-control", "no-store"))
}

async fn regenerate(plane: ControlPlane, call: Call) -> Answer {
    crud::require::<Registry>(&plane, &call)?;
    let instead = "protect the registry with `api.clients` and change a client's secret";
    Err(ArmError::not_implemented("regenerateCredential", "Changing a registry's passwords", instead).into())
}

async fn usages(plane: ControlPlane, call: Call) -> Answer {
    crud::require::<Registry>(&plane, &call)?;
    Ok(answer::json(200, &json!({ "value": [] })))
}
