//! `managedEnvironments/detectors` and `detectorProperties/rootApi`: what is wrong with an environment, as seen in the store.
//!
//! Azure's detectors look at months of telemetry. These look at the present state only, and say no more than it shows.

use cove_arm::{ArmError, list};
use cove_store::{Provisioning, ResourceRow};
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

/// A detector: its name, what it looks at.
const DETECTORS: [(&str, &str); 2] = [
    ("containerAppProvisioning", "Container apps of the environment whose last change failed"),
    ("certificateExpiry", "Certificates of the environment that have expired or expire within 30 days"),
];
/// Days before its end from which a certificate is told.
const EXPIRY_DAYS: i64 = 30;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::arm(Method::GET, below!("detectorProperties/rootApi"), root),
        Route::arm(Method::GET, below!("detectors"), all),
        Route::arm(Method::GET, below!("detectors/{detector}"), one),
    ]
}

/// The environment itself, as its GET gives it.
async fn root(plane: ControlPlane, call: Call) -> Answer {
    environments::show(&plane, &call)
}

async fn all(plane: ControlPlane, call: Call) -> Answer {
    let environment = environments::require(&plane, &call)?;
    let found: Result<Vec<Value>, Refusal> =
        DETECTORS.iter().map(|(name, _)| detect(&plane, &environment, name)).collect();
    Ok(answer::json(200, &list::render(found?, None)))
}

async fn one(plane: ControlPlane, call: Call) -> Answer {
    let environment = environments::require(&plane, &call)?;
    let asked = call.name("detector");
    let Some((name, _)) = DETECTORS.iter().find(|(name, _)| name.eq_ignore_ascii_case(asked)) else {
        let known: Vec<&str> = DETECTORS.iter().map(|(name, _)| *name).collect();
        let shown: String = asked.chars().take(100).collect();
        let message = format!("There is no detector '{shown}'; there are {}.", known.join(", "));
        return Err(ArmError::new(404, "ResourceNotFound", message).into());
    };
    Ok(answer::json(200, &detect(&plane, &environment, name)?))
}

fn detect(plane: &ControlPlane, environment: &ResourceRow, name: &str) -> Result<Value, Refusal> {
    let rows = match name {
        "certificateExpiry" => expiring(plane, environment)?,
        _ => failed_apps(plane, environment)?,
    };
    let description = DETECTORS.iter().find(|(known, _)| *known == name).map_or("", |(_, description)| description);
    let status = if rows.is_empty() {
        json!({ "message": "Nothing found", "statusId": 0 })
    } else {
        json!({ "message": format!("{} found", rows.len()), "statusId": 2 })
    };
    Ok(json!({
        "id": format!("{}/detectors/{name}", environment.id),
        "name": name,
        "type": "Microsoft.App/managedEnvironments/detectors",
        "properties": {
            "metadata": {
                "id": name,
                "name": name,
                "description": description,
                "category": "Availability",
                "type": "Detector",
            },
            "dataset": [{
                "table": {
                    "tableName": name,
                    "columns": [
                        { "columnName": "Resource", "dataType": "String" },
                        { "columnName": "Finding", "dataType": "String" },
                    ],
                    "rows": rows,
                },
                "renderingProperties": { "type": 1, "title": description, "isVisible": true },
            }],
            "status": status,
        },
    }))
}

fn failed_apps(plane: &ControlPlane, environment: &ResourceRow) -> Result<Vec<Value>, Refusal> {
    let apps = apps::in_environment(plane, &environment.id)?;
    let failed = apps.iter().filter(|app| app.provisioning == Provisioning::Failed);
    let finding = |app: &ResourceRow| {
        let failure = app.failure.as_ref();
        failure.map_or_else(|| "failed".to_owned(), |failure| format!("({}) {}", failure.code, failure.message))
    };
    Ok(failed.map(|app| json!([app.id.as_str(), finding(app)])).collect())
}

fn expiring(plane: &ControlPlane, environment: &ResourceRow) -> Result<Vec<Value>, Refusal> {
    let now = plane.clock().now();
    let mut found = Vec::new();
    for kind in ["certificates", "managedCertificates"] {
        let kind = format!("Microsoft.App/managedEnvironments/{kind}");
        for row in plane.store().resources(&kind, Some(&environment.id))? {
            let end = row.doc.pointer("/properties/expirationDate").and_then(Value::as_str);
            let Some(end) = end.and_then(|text| text.parse::<jiff::Timestamp>().ok()) else { continue };
            let days = end.duration_since(now).as_secs() / 86_400;
            if end <= now {
                found.push(json!([row.id.as_str(), format!("expired at {end}")]));
            } else if days < EXPIRY_DAYS {
                found.push(json!([row.id.as_str(), format!("expires at {end}")]));
            }
        }
    }
    Ok(found)
}
