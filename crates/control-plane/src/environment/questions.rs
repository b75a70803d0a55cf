//! What clients ask of an environment: is a name free, can it be migrated, which private endpoints does it have.

use cove_arm::{ArmError, body, list};
use http::Method;
use serde_json::{Value, json};

use super::below;
use crate::{
    answer::{self, Answer, Refusal},
    apps,
    call::Call,
    control_plane::ControlPlane,
    environments,
    route::Route,
};

/// Modes of environments, as Azure names them.
const MODES: [&str; 4] = ["ConsumptionOnly", "WorkloadProfiles", "Express", "Archived"];

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::arm(Method::POST, below!("checkNameAvailability"), check_name),
        Route::arm(Method::POST, below!("checkMigrationEligibility"), check_migration),
        Route::arm(Method::GET, below!("privateEndpointConnections"), nothing),
        Route::arm(Method::GET, below!("privateEndpointConnections/{connection}"), no_connection),
        Route::arm(Method::GET, below!("privateLinkResources"), nothing),
        Route::arm(Method::GET, below!("privateLinkResources/{resource}"), no_link),
    ]
}

fn text(body: &Value, name: &str) -> Result<String, ArmError> {
    let fields = body.as_object().into_iter().flatten();
    let found = fields.filter(|(key, _)| key.eq_ignore_ascii_case(name)).find_map(|(_, value)| value.as_str());
    found.map(str::to_owned).ok_or_else(|| ArmError::invalid(name, format!("The property '{name}' is required.")))
}

/// Certificates of an environment; apps too, as older clients ask for them here.
async fn check_name(plane: ControlPlane, call: Call) -> Answer {
    let environment = environments::require(&plane, &call)?;
    let body = body::parse_object(&call.body, body::DEPTH_MAX)?;
    let (name, kind) = (text(&body, "name")?, text(&body, "type")?);
    let kind = kind.to_ascii_lowercase();
    let is_taken = match kind.strip_prefix("microsoft.app/").unwrap_or(&kind) {
        "containerapps" => has_app(&plane, &environment.id, &name)?,
        rest if rest.starts_with("managedenvironments/") => {
            let child = rest.rsplit('/').next().unwrap_or(rest);
            match environment.id.child(child, &name) {
                Ok(id) => plane.store().resource(&id)?.is_some(),
                Err(_) => return Ok(answer::json(200, &unavailable("Invalid", &format!("'{name}' is not a name.")))),
            }
        }
        _ => {
            let message = format!("The type '{kind}' is not one whose names an environment keeps apart.");
            return Err(ArmError::invalid("type", message).into());
        }
    };
    if is_taken {
        let message = format!("The name '{name}' is already in use in environment '{}'", environment.id.name());
        return Ok(answer::json(200, &unavailable("AlreadyExists", &message)));
    }
    Ok(answer::json(200, &json!({ "nameAvailable": true })))
}

fn unavailable(reason: &str, message: &str) -> Value {
    json!({ "nameAvailable": false, "reason": reason, "message": message })
}

fn has_app(plane: &ControlPlane, environment: &cove_model::ResourceId, name: &str) -> Result<bool, Refusal> {
    let apps = apps::in_environment(plane, environment)?;
    Ok(apps.iter().any(|app| app.id.name().eq_ignore_ascii_case(name)))
}

/// An environment here has one mode, and is in it.
async fn check_migration(plane: ControlPlane, call: Call) -> Answer {
    let environment = environments::require(&plane, &call)?;
    let body = body::parse_object(&call.body, body::DEPTH_MAX)?;
    let asked = text(&body, "targetMode")?;
    let Some(target) = MODES.iter().find(|mode| mode.eq_ignore_ascii_case(&asked)) else {
        let message = format!("'{asked}' is not a mode; expected one of {}.", MODES.join(", "));
        return Err(ArmError::invalid("targetMode", message).into());
    };
    let current = "WorkloadProfiles";
    let reasons = if *target == current {
        json!([{ "code": "AlreadyInTargetMode", "message": "The environment is in this mode already." }])
    } else {
        json!([{
            "code": "ModeNotAvailable",
            "message": format!("This server has environments with workload profiles only, not '{target}'."),
        }])
    };
    let answered = json!({
        "isEligible": false,
        "environmentName": environment.id.name(),
        "currentMode": current,
        "targetMode": target,
        "failureReasons": reasons,
    });
    Ok(answer::json(200, &answered))
}

/// There is no virtual network, so nothing is linked to it.
async fn nothing(plane: ControlPlane, call: Call) -> Answer {
    environments::require(&plane, &call)?;
    Ok(answer::json(200, &list::render(Vec::new(), None)))
}

async fn no_connection(plane: ControlPlane, call: Call) -> Answer {
    not_found(&plane, &call, "privateEndpointConnections", "connection")
}

async fn no_link(plane: ControlPlane, call: Call) -> Answer {
    not_found(&plane, &call, "privateLinkResources", "resource")
}

fn not_found(plane: &ControlPlane, call: &Call, kind: &str, segment: &str) -> Answer {
    let environment = environments::require(plane, call)?;
    let kind = format!("Microsoft.App/managedEnvironments/{kind}");
    let name: String = call.name(segment).chars().take(100).collect();
    Err(ArmError::resource_not_found(&kind, &name, environment.id.group_name()).into())
}
