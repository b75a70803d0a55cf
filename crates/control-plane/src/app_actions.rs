//! Verbs of a container app: delete, start, stop, secrets, stream token.

use cove_arm::secrets;
use cove_model::ContainerApp;
use cove_store::{Expect, NewOperation, Provisioning, PutResource, SecretsChange, StoreError};
use http::Method;

use crate::{
    answer::{self, Answer},
    app_write,
    apps::{self, APP, KIND},
    call::Call,
    control_plane::{ControlPlane, new_id},
    environments,
    groups::TRIES_MAX,
    links::{self, Family},
    route::Route,
};

pub(crate) fn routes() -> Vec<Route> {
    vec![
        Route::arm(Method::DELETE, APP, delete),
        Route::arm(Method::POST, format!("{APP}/start"), start),
        Route::arm(Method::POST, format!("{APP}/stop"), stop),
        Route::arm(Method::POST, format!("{APP}/listSecrets"), list_secrets),
        Route::arm(Method::POST, format!("{APP}/getAuthToken"), auth_token),
    ]
}

/// 202 with `Location`; the controller takes the app down and then removes it. 204 when there is none.
async fn delete(plane: ControlPlane, call: Call) -> Answer {
    let id = call.id(KIND, "app")?;
    let Some(row) = plane.store().resource(&id)? else { return Ok(answer::empty(204)) };
    call.precondition().check(id.as_str(), Some(&row))?;
    let operation = NewOperation { id: new_id(), kind: "delete".into() };
    let link = operation.id.clone();
    match plane.store().begin_delete(row.id, operation, plane.clock().now()).await {
        Ok(()) => {}
        Err(StoreError::NotFound { .. }) => return Ok(answer::empty(204)),
        Err(error) => return Err(error.into()),
    }
    let response = links::with_location(&plane, &call, Family::App, &link, answer::empty(202));
    Ok(links::with_status(&plane, &call, Family::App, &link, response))
}

async fn start(plane: ControlPlane, call: Call) -> Answer {
    set_stopped(&plane, &call, false).await
}

async fn stop(plane: ControlPlane, call: Call) -> Answer {
    set_stopped(&plane, &call, true).await
}

async fn set_stopped(plane: &ControlPlane, call: &Call, is_stopped: bool) -> Answer {
    let id = call.id(KIND, "app")?;
    for _ in 0..TRIES_MAX {
        let row = apps::require_writable(plane, call)?;
        let app = ContainerApp { is_stopped, ..apps::model(&row)? };
        let operation = NewOperation { id: new_id(), kind: if is_stopped { "stop" } else { "start" }.into() };
        let link = operation.id.clone();
        let put = PutResource {
            id: row.id.clone(),
            doc: row.doc.clone(),
            spec: Some(serde_json::to_value(&app).map_err(StoreError::from)?),
            secrets: SecretsChange::Keep,
            provisioning: Provisioning::InProgress,
            operation: Some(operation),
            revision: None,
            expect: Expect::Generation(row.generation),
            now: plane.clock().now(),
        };
        match plane.store().put(put).await {
            Ok(row) => return app_write::accepted(plane, call, &row, &link),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Conflict { id }.into())
}

async fn list_secrets(plane: ControlPlane, call: Call) -> Answer {
    let row = apps::require(&plane, &call)?;
    let body = secrets::render_list(&plane.store().secrets(&row.id)?);
    let response = answer::json(200, &body);
    Ok(answer::with_header(response, "cache-control", "no-store"))
}

async fn auth_token(plane: ControlPlane, call: Call) -> Answer {
    let row = apps::require(&plane, &call)?;
    Ok(answer::json(200, &environments::stream_token(&plane, &call, &row)))
}
