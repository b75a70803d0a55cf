//! Long-running operations as clients poll them: `…Statuses/{id}` tells the state, `…Results/{id}` becomes the outcome.

use cove_arm::{ArmError, list, operation};
use cove_store::{OperationRow, OperationStatus};
use http::Method;
use serde_json::{Value, json};

use crate::{
    answer::{self, Answer, Refusal},
    apps,
    call::Call,
    control_plane::ControlPlane,
    jobs,
    links::with_retry_after,
    route::Route,
    session_pools,
};

pub(crate) fn routes() -> Vec<Route> {
    let mut routes = vec![
        Route::arm(Method::GET, "/providers/Microsoft.App/operations", verbs),
        Route::arm(Method::GET, "/subscriptions/{subscription}/operationresults/{operation}", results),
    ];
    let base = "/subscriptions/{subscription}/providers/Microsoft.App/locations/{location}";
    let families =
        ["containerappOperation", "managedEnvironmentOperation", "containerappsjobOperation", "sessionPoolOperation"];
    for family in families {
        routes.push(Route::arm(Method::GET, format!("{base}/{family}Statuses/{{operation}}"), status));
        routes.push(Route::arm(Method::GET, format!("{base}/{family}Results/{{operation}}"), results));
    }
    routes
}

/// Actions as role definitions name them, of what this server does.
async fn verbs(plane: ControlPlane, _: Call) -> Answer {
    let values = crate::coverage::actions(plane.table()).into_iter().map(|(name, resource)| {
        let shown = name.rsplit('/').next().unwrap_or_default().to_owned();
        json!({
            "name": format!("Microsoft.App/{name}"),
            "isDataAction": false,
            "origin": "user,system",
            "display": { "provider": "Microsoft.App", "resource": resource, "operation": shown, "description": name },
        })
    });
    Ok(answer::json(200, &list::render(values.collect(), None)))
}

fn require(plane: &ControlPlane, call: &Call) -> Result<OperationRow, Refusal> {
    let id = call.name("operation").to_ascii_lowercase();
    let found = plane.store().operation(&id)?;
    found.ok_or_else(|| ArmError::operation_not_found(&id.chars().take(64).collect::<String>()).into())
}

fn failure(row: &OperationRow) -> ArmError {
    match &row.failure {
        Some(failure) => ArmError::new(409, &failure.code, failure.message.clone()),
        None => ArmError::new(409, "OperationFailed", format!("The operation on '{}' failed.", row.resource)),
    }
}

async fn status(plane: ControlPlane, call: Call) -> Answer {
    let row = require(&plane, &call)?;
    let (status, error) = match row.status {
        OperationStatus::InProgress => (operation::OperationStatus::InProgress, None),
        OperationStatus::Succeeded => (operation::OperationStatus::Succeeded, None),
        OperationStatus::Failed => (operation::OperationStatus::Failed, Some(failure(&row))),
        OperationStatus::Canceled => (operation::OperationStatus::Canceled, None),
    };
    let view = operation::OperationView {
        id: call.path.trim_end_matches('/'),
        name: &row.id,
        status,
        started_at: row.started_at,
        ended_at: row.ended_at,
        error: error.as_ref(),
    };
    let mut value = operation::render(&view);
    if row.status == OperationStatus::InProgress
        && row.resource.kind().eq_ignore_ascii_case(session_pools::KIND)
        && let Some(pool) = plane.store().resource(&row.resource)?
        && let Some(percent) = session_pools::pulled_percent(&plane, &session_pools::model(&pool)?)
    {
        value["percentComplete"] = json!(percent);
        value["properties"] = json!({ "imagesPulledPercent": percent });
    }
    Ok(with_retry_after(&plane, answer::json(200, &value)))
}

/// 202 while it goes on; then the resource, or 204 when the resource is gone; a failure is an error of its own.
async fn results(plane: ControlPlane, call: Call) -> Answer {
    let row = require(&plane, &call)?;
    match row.status {
        OperationStatus::InProgress => {
            let query: String = call.query.iter().fold(String::new(), |mut text, (name, value)| {
                text.push(if text.is_empty() { '?' } else { '&' });
                text.push_str(&format!("{}={}", crate::links::encode(name), crate::links::encode(value)));
                text
            });
            let link = format!("{}{}{query}", call.origin, call.path);
            let response = answer::with_header(answer::empty(202), "location", &link);
            Ok(with_retry_after(&plane, response))
        }
        OperationStatus::Succeeded => outcome(&plane, &call, &row),
        OperationStatus::Failed => Err(failure(&row).into()),
        OperationStatus::Canceled => {
            Err(ArmError::conflict("OperationCanceled", format!("The operation on '{}' was canceled.", row.resource))
                .into())
        }
    }
}

fn outcome(plane: &ControlPlane, call: &Call, row: &OperationRow) -> Answer {
    let found = if row.kind == "delete" { None } else { plane.store().resource(&row.resource)? };
    let Some(found) = found else { return Ok(answer::empty(204)) };
    let body: Option<Value> = match &found.kind {
        kind if kind.eq_ignore_ascii_case(apps::KIND) => Some(apps::render(plane, call, &found)?),
        kind if kind.eq_ignore_ascii_case(jobs::KIND) => Some(jobs::render(plane, call, &found)?),
        kind if kind.eq_ignore_ascii_case(session_pools::KIND) => Some(session_pools::render(plane, call, &found)?),
        _ => None,
    };
    Ok(body.map_or_else(|| answer::empty(204), |body| answer::json(200, &body)))
}
