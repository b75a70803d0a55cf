//! What Azure says of a location: profiles and modes of environments, meters, quotas; and the owner's verification id.
//!
//! Every location means this machine, so the answers differ by name only.

use cove_arm::{ArmError, list, provider};
use cove_model::WORKLOAD_PROFILE_KINDS;
use http::Method;
use serde_json::{Value, json};

use crate::{
    answer::{self, Answer},
    call::Call,
    control_plane::ControlPlane,
    environments,
    route::Route,
};

pub(crate) fn routes() -> Vec<Route> {
    const PROVIDER: &str = "/subscriptions/{subscription}/providers/Microsoft.App";
    let location = format!("{PROVIDER}/locations/{{location}}");
    vec![
        Route::arm(Method::GET, format!("{location}/availableManagedEnvironmentsWorkloadProfileTypes"), profile_types),
        Route::arm(Method::GET, format!("{location}/availableManagedEnvironmentsModes"), modes),
        Route::arm(Method::GET, format!("{location}/billingMeters"), meters),
        Route::arm(Method::GET, format!("{location}/usages"), usages),
        Route::arm(Method::POST, format!("{PROVIDER}/getCustomDomainVerificationId"), verification_id),
    ]
}

/// The location of the path as Azure shows it.
fn location(call: &Call) -> Result<&'static str, ArmError> {
    let asked = call.name("location");
    provider::display_location(asked).ok_or_else(|| {
        let shown: String = asked.chars().take(64).collect();
        let message =
            format!("The location '{shown}' does not exist; use 'local' or one of Azure's, such as 'eastus'.");
        ArmError::new(400, "LocationNotAvailableForResourceType", message)
    })
}

fn item(call: &Call, kind: &str, name: &str, location: &str, properties: &Value) -> Value {
    json!({
        "id": format!("{}/{name}", call.path.trim_end_matches('/')),
        "name": name,
        "type": format!("Microsoft.App/{kind}"),
        "location": location,
        "properties": properties,
    })
}

async fn profile_types(_: ControlPlane, call: Call) -> Answer {
    let location = location(&call)?;
    let values = WORKLOAD_PROFILE_KINDS.iter().map(|kind| {
        let properties = json!({
            "category": kind.category,
            "applicability": "LocationDefault",
            "cores": kind.cores,
            "memoryGiB": kind.memory_gib,
            "gpus": kind.gpus,
            "displayName": kind.display_name,
        });
        item(&call, "availableManagedEnvironmentsWorkloadProfileTypes", kind.name, location, &properties)
    });
    Ok(answer::json(200, &list::render(values.collect(), None)))
}

/// One mode: with workload profiles.
async fn modes(_: ControlPlane, call: Call) -> Answer {
    let location = location(&call)?;
    let properties = json!({
        "displayName": "Workload profiles",
        "description": "Apps share this machine; a profile says how much of it they may use.",
    });
    let value = item(&call, "availableManagedEnvironmentsModes", "WorkloadProfiles", location, &properties);
    Ok(answer::json(200, &list::render(vec![value], None)))
}

/// Nothing is billed, so there are no meters.
async fn meters(_: ControlPlane, call: Call) -> Answer {
    location(&call)?;
    Ok(answer::json(200, &list::render(Vec::new(), None)))
}

async fn usages(plane: ControlPlane, call: Call) -> Answer {
    location(&call)?;
    let count = plane.store().resources(environments::KIND, Some(&call.subscription_id()?))?.len();
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    // no quota: the largest number that clients read as an integer
    let limit = usize::try_from(i32::MAX).unwrap_or(usize::MAX);
    let usage = environments::usage("ManagedEnvironmentCount", "Managed Environment Count", f64::from(count), limit);
    Ok(answer::json(200, &list::render(vec![usage], None)))
}

/// A JSON text, as Azure answers it.
async fn verification_id(plane: ControlPlane, _: Call) -> Answer {
    Ok(answer::json(200, &json!(plane.verification_id())))
}
