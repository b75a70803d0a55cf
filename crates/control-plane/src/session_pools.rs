//! `Microsoft.App/sessionPools`: how a pool is found, shown and deleted. Its writes are in [`crate::session_pool_write`], the
//! key of its MCP server in [`crate::session_pool_keys`].
//!
//! A pool is done when the engine reports it: its images are there and, if any are to be ready, the first session is.

use cove_arm::{ArmError, session_pool};
use cove_model::{Environment, ResourceId, SessionContainer, SessionPool};
use cove_store::{NewOperation, Provisioning, ResourceRow, StoreError};
use http::Method;
use serde::Deserialize as _;
use serde_json::Value;

use crate::{
    answer::{self, Answer, Refusal},
    call::Call,
    control_plane::{ControlPlane, new_id},
    crud, environments, groups, identities,
    links::{self, Family},
    route::Route,
    session_pool_snapshots,
};

pub(crate) const KIND: &str = cove_model::SESSION_POOL_KIND;
/// Path of a pool.
pub(crate) const POOL: &str =
    "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.App/sessionPools/{pool}";

pub(crate) fn routes() -> Vec<Route> {
    const ALL: &str = "/subscriptions/{subscription}/providers/Microsoft.App/sessionPools";
    const IN_GROUP: &str = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.App/sessionPools";
    vec![
        Route::arm(Method::GET, ALL, list_all),
        Route::arm(Method::GET, IN_GROUP, list_group),
        Route::arm(Method::GET, POOL, get),
        Route::arm(Method::PUT, POOL, crate::session_pool_write::put),
        Route::arm(Method::PATCH, POOL, crate::session_pool_write::patch),
        Route::arm(Method::DELETE, POOL, delete),
    ]
}

/// The pool of the path.
///
/// # Errors
/// 404 for it or for its group.
pub(crate) fn require(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
    let id = call.id(KIND, "pool")?;
    if let Some(row) = plane.store().resource(&id)? {
        return Ok(row);
    }
    let group = groups::require(plane, call)?;
    Err(ArmError::resource_not_found(KIND, id.name(), group.id.name()).into())
}

/// The model value of a stored pool.
pub(crate) fn model(row: &ResourceRow) -> Result<SessionPool, Refusal> {
    let spec = row.spec.as_ref().unwrap_or(&Value::Null);
    SessionPool::deserialize(spec)
        .map_err(|error| Refusal::Broken(format!("stored session pool `{}`: {error}", row.id)))
}

/// The pools that live in an environment.
pub(crate) fn in_environment(plane: &ControlPlane, environment: &ResourceId) -> Result<Vec<ResourceRow>, StoreError> {
    plane.store().resources_in(KIND, environment)
}

/// Where requests for a pool's sessions go, without a slash at the end: the pool's name below its environment's domain for
/// custom containers, where the server has a way in by host, else a path at the API's own address.
fn endpoint(plane: &ControlPlane, call: &Call, row: &ResourceRow, pool: &SessionPool) -> Result<String, Refusal> {
    if let (SessionContainer::Custom, Some(environment), Some(port)) =
        (pool.container, &pool.environment, plane.config().sessions.https_port)
        && let Some(environment) = plane.store().snapshot::<Environment>(environment)?.and_then(|found| found.spec)
    {
        let port = if port == 443 { String::new() } else { format!(":{port}") };
        return Ok(format!("https://{}.{}{port}", row.id.name(), environment.default_domain));
    }
    let id = &row.id;
    Ok(format!(
        "{}/subscriptions/{}/resourceGroups/{}/sessionPools/{}",
        call.origin,
        id.subscription(),
        id.group_name(),
        id.name()
    ))
}

/// The pool as Azure shows it.
pub(crate) fn render(plane: &ControlPlane, call: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
    let pool = model(row)?;
    let view = session_pool::View {
        id: &row.id,
        provisioning_state: row.provisioning.as_arm(),
        endpoint: &endpoint(plane, call, row, &pool)?,
        node_count: 1,
        system_data: Some(&environments::system_data(row)),
    };
    let mut value = session_pool::render(&row.doc, &pool, &view);
    identities::complete(plane, &mut value, row)?;
    if row.provisioning == Provisioning::InProgress
        && let Some(percent) = pulled_percent(plane, &pool)
    {
        value["properties"]["coveProgress"] = serde_json::json!({ "imagesPulledPercent": percent });
    }
    if let Some(failure) = &row.failure {
        value["properties"]["coveFailure"] = serde_json::json!({ "code": failure.code, "message": failure.message });
    }
    Ok(value)
}

/// How far the images of a pool are, while they are being pulled.
pub(crate) fn pulled_percent(plane: &ControlPlane, pool: &SessionPool) -> Option<u8> {
    plane.pulled().get().and_then(|percent| percent(&pool.key()))
}

async fn list_all(plane: ControlPlane, call: Call) -> Answer {
    let page = links::read_page(&plane, &call, KIND, Some(&call.subscription_id()?))?;
    crud::list_page(page, |row| render(&plane, &call, row))
}

async fn list_group(plane: ControlPlane, call: Call) -> Answer {
    let group = groups::require(&plane, &call)?;
    let page = links::read_page(&plane, &call, KIND, Some(&group.id))?;
    crud::list_page(page, |row| render(&plane, &call, row))
}

async fn get(plane: ControlPlane, call: Call) -> Answer {
    let row = require(&plane, &call)?;
    crud::shown(200, &row, &render(&plane, &call, &row)?)
}

/// 202 with `Location`; the engine ends the sessions and then removes the pool. 204 when there is none.
async fn delete(plane: ControlPlane, call: Call) -> Answer {
    let id = call.id(KIND, "pool")?;
    let Some(row) = plane.store().resource(&id)? else { return Ok(answer::empty(204)) };
    call.precondition().check(id.as_str(), Some(&row))?;
    if row.provisioning == Provisioning::Deleting {
        return Err(ArmError::operation_in_progress(row.id.as_str()).into());
    }
    session_pool_snapshots::check_unused(&plane, &row.id)?;
    let operation = NewOperation { id: new_id(), kind: "delete".into() };
    let link = operation.id.clone();
    match plane.store().begin_delete(row.id, operation, plane.clock().now()).await {
        Ok(()) => {}
        Err(StoreError::NotFound { .. }) => return Ok(answer::empty(204)),
        Err(error) => return Err(error.into()),
    }
    let response = links::with_location(&plane, &call, Family::SessionPool, &link, answer::empty(202));
    Ok(links::with_status(&plane, &call, Family::SessionPool, &link, response))
}
