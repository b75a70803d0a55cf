//! Resource groups. Deleting one deletes what is inside: the controller takes the apps down, [`crate::reaper`] the rest.

use cove_arm::{ArmError, group};
use cove_model::ResourceId;
use cove_store::{Expect, NewOperation, Provisioning, PutResource, ResourceRow, SecretsChange, StoreError};
use http::Method;
use serde_json::Value;

use crate::{
    answer::{self, Answer, Refusal},
    call::Call,
    control_plane::{ControlPlane, new_id},
    crud, links,
    route::Route,
};

/// Times a write is tried again when another one came between its read and its write.
pub(crate) const TRIES_MAX: usize = 8;

pub(crate) fn routes() -> Vec<Route> {
    const GROUP: &str = "/subscriptions/{subscription}/resourceGroups/{group}";
    vec![
        Route::arm(Method::GET, "/subscriptions/{subscription}/resourceGroups", all),
        Route::arm(Method::PUT, GROUP, put),
        Route::arm(Method::PATCH, GROUP, patch),
        Route::arm(Method::GET, GROUP, get),
        Route::arm(Method::HEAD, GROUP, head),
        Route::arm(Method::DELETE, GROUP, delete),
    ]
}

/// The group of the path.
///
/// # Errors
/// 404 `ResourceGroupNotFound`.
pub(crate) fn require(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
    let found = plane.store().resource(&call.group_id()?)?;
    found.ok_or_else(|| ArmError::group_not_found(call.name("group")).into())
}

/// The group of the path, to make or change something in it.
///
/// # Errors
/// 404 `ResourceGroupNotFound`, 409 `ResourceGroupBeingDeleted`.
pub(crate) fn require_writable(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
    let group = require(plane, call)?;
    if group.provisioning == Provisioning::Deleting {
        return Err(being_deleted(&group.id).into());
    }
    Ok(group)
}

fn being_deleted(id: &ResourceId) -> ArmError {
    let message = format!("The resource group '{}' is being deleted; wait until that has finished.", id.name());
    ArmError::conflict("ResourceGroupBeingDeleted", message)
}

fn render(row: &ResourceRow) -> Value {
    group::render(&row.id, &row.doc, row.provisioning.as_arm())
}

async fn all(plane: ControlPlane, call: Call) -> Answer {
    let rows = plane.store().resources("resourcegroups", Some(&call.subscription_id()?))?;
    crud::list(&call, &rows, |row| Ok(render(row)))
}

async fn get(plane: ControlPlane, call: Call) -> Answer {
    let row = require(&plane, &call)?;
    crud::shown(200, &row, &render(&row))
}

async fn head(plane: ControlPlane, call: Call) -> Answer {
    let exists = plane.store().resource(&call.group_id()?)?.is_some();
    Ok(answer::empty(if exists { 204 } else { 404 }))
}

async fn put(plane: ControlPlane, call: Call) -> Answer {
    let body = call.object()?;
    write(&plane, &call, |_| group::parse_put(call.name("group"), &body)).await
}

async fn patch(plane: ControlPlane, call: Call) -> Answer {
    let body = call.object()?;
    write(&plane, &call, |old| {
        let old = old.ok_or_else(|| ArmError::group_not_found(call.name("group")))?;
        group::parse_patch(call.name("group"), &old.doc, &body)
    })
    .await
}

async fn write(
    plane: &ControlPlane,
    call: &Call,
    document: impl Fn(Option<&ResourceRow>) -> Result<Value, ArmError>,
) -> Answer {
    let id = call.group_id()?;
    let _structure = plane.structure().await;
    for _ in 0..TRIES_MAX {
        let old = plane.store().resource(&id)?;
        call.precondition().check(id.as_str(), old.as_ref())?;
        let doc = document(old.as_ref())?;
        if let Some(old) = &old {
            if old.provisioning == Provisioning::Deleting {
                return Err(being_deleted(&id).into());
            }
            check_same_location(&old.doc, &doc)?;
        }
        let put = PutResource {
            id: id.clone(),
            doc,
            spec: None,
            secrets: SecretsChange::Keep,
            provisioning: Provisioning::Succeeded,
            operation: None,
            revision: None,
            expect: old.as_ref().map_or(Expect::Absent, |old| Expect::Generation(old.generation)),
            now: plane.clock().now(),
        };
        match plane.store().put(put).await {
            Ok(row) => {
                let status = if old.is_some() { 200 } else { 201 };
                return crud::shown(status, &row, &render(&row));
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Conflict { id }.into())
}

/// A resource cannot move: Azure's 409 for it.
pub(crate) fn check_same_location(old: &Value, new: &Value) -> Result<(), ArmError> {
    let key = |doc: &Value| doc.get("location").and_then(Value::as_str).map(cove_arm::provider::location_key);
    if key(old) == key(new) {
        return Ok(());
    }
    let shown = |doc: &Value| doc.get("location").and_then(Value::as_str).unwrap_or("").to_owned();
    let message = format!(
        "It exists in location '{}' already and cannot be moved to '{}'; use another name or the old location.",
        shown(old),
        shown(new)
    );
    Err(ArmError::conflict("InvalidResourceLocation", message).at("location"))
}

async fn delete(plane: ControlPlane, call: Call) -> Answer {
    let structure = plane.structure().await;
    let Some(row) = plane.store().resource(&call.group_id()?)? else {
        return Err(ArmError::group_not_found(call.name("group")).into());
    };
    call.precondition().check(row.id.as_str(), Some(&row))?;
    let operation = NewOperation { id: new_id(), kind: "delete".into() };
    let link = operation.id.clone();
    plane.store().begin_delete(row.id.clone(), operation, plane.clock().now()).await?;
    drop(structure);
    crate::reaper::sweep_group(&plane, &row.id).await?;
    Ok(links::with_group_location(&plane, &call, &link, answer::empty(202)))
}
