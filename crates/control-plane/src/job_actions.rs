//! Verbs of a job: delete, start, stop, suspend, resume, secrets, stream token.
//!
//! **Invariant:** `start` answers when the execution is on disk; `stop` is over when the executions have ended.

use std::collections::BTreeSet;

use axum::response::Response;
use cove_arm::{ArmError, job, secrets};
use cove_model::{ExecutionCause, ResourceId, RevisionName, execution_name};
use cove_store::{Expect, Inserted, NewOperation, Provisioning, PutResource, ResourceRow, SecretsChange, StoreError};
use http::Method;
use serde_json::{Value, json};

use crate::{
    answer::{self, Answer, Refusal, with_etag},
    app_refs,
    call::Call,
    control_plane::{ControlPlane, new_id, random_word},
    environments, executions,
    groups::TRIES_MAX,
    jobs::{self, JOB, KIND},
    links::{self, Family},
    route::Route,
};

pub(crate) fn routes() -> Vec<Route> {
    vec![
        Route::arm(Method::DELETE, JOB, delete),
        Route::arm(Method::POST, format!("{JOB}/start"), start),
        Route::arm(Method::POST, format!("{JOB}/stop"), stop_all),
        // `az` and the SDKs ask for the same under two paths
        Route::arm(Method::POST, format!("{JOB}/stop/{{execution}}"), stop_one),
        Route::arm(Method::POST, format!("{JOB}/executions/{{execution}}/stop"), stop_one),
        Route::arm(Method::GET, format!("{JOB}/stopResults/{{which}}"), stop_result),
        Route::arm(Method::POST, format!("{JOB}/suspend"), suspend),
        Route::arm(Method::POST, format!("{JOB}/resume"), resume),
        Route::arm(Method::POST, format!("{JOB}/listSecrets"), list_secrets),
        Route::arm(Method::POST, format!("{JOB}/getAuthToken"), auth_token),
    ]
}

/// 202 with `Location`; the controller ends the executions and then removes the job. 204 when there is none.
async fn delete(plane: ControlPlane, call: Call) -> Answer {
    let id = call.id(KIND, "job")?;
    let Some(row) = plane.store().resource(&id)? else { return Ok(answer::empty(204)) };
    call.precondition().check(id.as_str(), Some(&row))?;
    let operation = NewOperation { id: new_id(), kind: "delete".into() };
    let link = operation.id.clone();
    match plane.store().begin_delete(row.id, operation, plane.clock().now()).await {
        Ok(()) => {}
        Err(StoreError::NotFound { .. }) => return Ok(answer::empty(204)),
        Err(error) => return Err(error.into()),
    }
    let response = links::with_location(&plane, &call, Family::Job, &link, answer::empty(202));
    Ok(links::with_status(&plane, &call, Family::Job, &link, response))
}

/// A new execution: 200 with its id and name, which are on disk by then. The body may bring another template.
async fn start(plane: ControlPlane, call: Call) -> Answer {
    let row = jobs::require_writable(&plane, &call)?;
    let model = jobs::model(&row)?;
    if model.is_suspended {
        let message = format!("The job '{}' is suspended and starts nothing; resume it first.", row.id.name());
        return Err(ArmError::conflict("JobSuspended", message).into());
    }
    let body = if call.body.iter().all(u8::is_ascii_whitespace) || *call.body == *b"null" {
        json!({})
    } else {
        call.object()?
    };
    let secrets: BTreeSet<String> = plane.store().secrets(&row.id)?.into_keys().collect();
    let template = job::parse_start(&model, &row.doc, &secrets, &body)?;
    if let Some(template) = &template {
        app_refs::check_started(&plane, &model, template)?;
    }
    let cause = ExecutionCause::Manual(new_id());
    for _ in 0..TRIES_MAX {
        let name = execution_name(row.id.name(), &random_word(cove_model::EXECUTION_SUFFIX_LENGTH)?)
            .map_err(|error| Refusal::Broken(error.to_string()))?;
        let execution = model.execution(name.clone(), cause.clone(), template.clone(), plane.clock().now());
        match plane.store().insert_execution(execution).await {
            Ok(Inserted::New) => return Ok(started(&row.id, &name)),
            Ok(Inserted::Known(name)) => return Ok(started(&row.id, &name)),
            Err(StoreError::ExecutionExists { .. }) => {}
            Err(StoreError::NotFound { .. }) => {
                return Err(ArmError::operation_in_progress(row.id.as_str()).into());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Conflict { id: row.id }.into())
}

fn started(job: &ResourceId, name: &RevisionName) -> Response {
    answer::json(200, &json!({ "id": format!("{job}/executions/{name}"), "name": name.as_str() }))
}

/// Stops every execution that has not ended: 202 with them and the `Location` that tells when they have.
async fn stop_all(plane: ControlPlane, call: Call) -> Answer {
    let row = jobs::require(&plane, &call)?;
    stop(&plane, &call, &row, None).await
}

/// Stops one execution; one that has ended stays as it is.
async fn stop_one(plane: ControlPlane, call: Call) -> Answer {
    let row = jobs::require(&plane, &call)?;
    let execution = executions::require(&plane, &call, &row)?;
    stop(&plane, &call, &row, Some(execution.name)).await
}

async fn stop(plane: &ControlPlane, call: &Call, row: &ResourceRow, only: Option<RevisionName>) -> Answer {
    let now = plane.clock().now();
    let which = only.as_ref().map_or_else(|| "all".to_owned(), ToString::to_string);
    let names = plane.store().stop_executions(row.id.clone(), only, now).await?;
    let stopped = plane.store().executions(&row.id)?.into_iter().filter(|found| names.contains(&found.name));
    let stopped: Vec<_> = stopped.collect();
    let body = job::render_stopped(&stopped);
    if stopped.is_empty() {
        return Ok(answer::json(200, &body));
    }
    let link = format!(
        "{}{}/stopResults/{which}?api-version={}&before={}",
        call.origin,
        row.id,
        links::encode(call.api_version()),
        now.as_millisecond()
    );
    let response = answer::with_header(answer::json(202, &body), "location", &link);
    Ok(links::with_retry_after(plane, response))
}

/// 202 while executions that were to stop go on; then 200 with them.
async fn stop_result(plane: ControlPlane, call: Call) -> Answer {
    let row = jobs::require(&plane, &call)?;
    let which = call.name("which").to_ascii_lowercase();
    let asked_at = call.query("before").and_then(|text| text.parse().ok()).unwrap_or(i64::MAX);
    let mut found = plane.store().executions(&row.id)?;
    found.retain(|execution| {
        let is_meant = which == "all" || execution.name.as_str() == which;
        is_meant && execution.stop_requested_at.is_some_and(|at| at.as_millisecond() <= asked_at)
    });
    if found.iter().any(|execution| !execution.status.is_final()) {
        let link =
            format!("{}{}?api-version={}&before={asked_at}", call.origin, call.path, links::encode(call.api_version()));
        let response = answer::with_header(answer::empty(202), "location", &link);
        return Ok(links::with_retry_after(&plane, response));
    }
    found.retain(|execution| execution.stop_requested_at.is_some_and(|at| at.as_millisecond() == asked_at));
    let values: Vec<Value> = found.iter().map(|execution| job::render_execution(execution, &[])).collect();
    Ok(answer::json(200, &json!({ "value": values })))
}

async fn suspend(plane: ControlPlane, call: Call) -> Answer {
    set_suspended(&plane, &call, true).await
}

async fn resume(plane: ControlPlane, call: Call) -> Answer {
    set_suspended(&plane, &call, false).await
}

/// A suspended job starts nothing, by hand or by its trigger; what runs goes on.
async fn set_suspended(plane: &ControlPlane, call: &Call, is_suspended: bool) -> Answer {
    let id = call.id(KIND, "job")?;
    for _ in 0..TRIES_MAX {
        let row = jobs::require_writable(plane, call)?;
        let mut model = jobs::model(&row)?;
        model.is_suspended = is_suspended;
        let put = PutResource {
            id: row.id.clone(),
            doc: row.doc.clone(),
            spec: Some(serde_json::to_value(&model).map_err(StoreError::from)?),
            secrets: SecretsChange::Keep,
            provisioning: Provisioning::Succeeded,
            operation: None,
            revision: None,
            expect: Expect::Generation(row.generation),
            now: plane.clock().now(),
        };
        match plane.store().put(put).await {
            Ok(row) => return Ok(with_etag(answer::json(200, &jobs::render(plane, call, &row)?), &row.etag)),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Conflict { id }.into())
}

async fn list_secrets(plane: ControlPlane, call: Call) -> Answer {
    let row = jobs::require(&plane, &call)?;
    let body = secrets::render_list(&plane.store().secrets(&row.id)?);
    let response = answer::json(200, &body);
    Ok(answer::with_header(response, "cache-control", "no-store"))
}

async fn auth_token(plane: ControlPlane, call: Call) -> Answer {
    let row = jobs::require(&plane, &call)?;
    Ok(answer::json(200, &environments::stream_token(&plane, &call, &row)))
}
