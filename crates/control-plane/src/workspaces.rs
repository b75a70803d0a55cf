//! `Microsoft.OperationalInsights/workspaces`: what `az containerapp env create` makes for its logs.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use cove_arm::{ArmError, workspace};
use cove_model::ResourceId;
use cove_store::{Expect, Provisioning, PutResource, ResourceRow, SecretsChange, StoreError};
use http::Method;
use serde_json::Value;

use crate::{
    answer::{self, Answer, Refusal},
    call::Call,
    control_plane::ControlPlane,
    crud, environments,
    groups::{self, TRIES_MAX, check_same_location},
    route::Route,
};

const KIND: &str = "Microsoft.OperationalInsights/workspaces";

pub(crate) fn routes() -> Vec<Route> {
    const ALL: &str = "/subscriptions/{subscription}/providers/Microsoft.OperationalInsights/workspaces";
    const IN_GROUP: &str =
        "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.OperationalInsights/workspaces";
    let one = format!("{IN_GROUP}/{{workspace}}");
    vec![
        Route::arm(Method::GET, ALL, list_all),
        Route::arm(Method::GET, IN_GROUP, list_group),
        Route::arm(Method::PUT, one.as_str(), put),
        Route::arm(Method::GET, one.as_str(), get),
        Route::arm(Method::DELETE, one.as_str(), delete),
        Route::arm(Method::POST, format!("{one}/sharedKeys"), shared_keys),
        Route::arm(Method::POST, format!("{one}/listKeys"), shared_keys),
    ]
}

fn require(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
    let group = groups::require(plane, call)?;
    let id = call.id(KIND, "workspace")?;
    let found = plane.store().resource(&id)?;
    found.ok_or_else(|| ArmError::resource_not_found(KIND, id.name(), group.id.name()).into())
}

/// The GUID that environments and queries name a workspace by: it follows from the id, so it is the same for ever.
fn customer_id(id: &ResourceId) -> String {
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, id.key().as_bytes()).to_string()
}

fn render(row: &ResourceRow) -> Value {
    let data = environments::system_data(row);
    workspace::render(&row.id, &row.doc, &customer_id(&row.id), Some(&data))
}

async fn list_all(plane: ControlPlane, call: Call) -> Answer {
    let rows = plane.store().resources(KIND, Some(&call.subscription_id()?))?;
    crud::list(&call, &rows, |row| Ok(render(row)))
}

async fn list_group(plane: ControlPlane, call: Call) -> Answer {
    let group = groups::require(&plane, &call)?;
    let rows = plane.store().resources(KIND, Some(&group.id))?;
    crud::list(&call, &rows, |row| Ok(render(row)))
}

async fn get(plane: ControlPlane, call: Call) -> Answer {
    let row = require(&plane, &call)?;
    crud::shown(200, &row, &render(&row))
}

async fn put(plane: ControlPlane, call: Call) -> Answer {
    let body = call.object()?;
    let _structure = plane.structure().await;
    let group = groups::require_writable(&plane, &call)?;
    let id = child_of(&group, KIND, call.name("workspace"))?;
    for _ in 0..TRIES_MAX {
        let old = plane.store().resource(&id)?;
        call.precondition().check(id.as_str(), old.as_ref())?;
        let doc = workspace::parse_put(id.name(), &body)?;
        if let Some(old) = &old {
            check_same_location(&old.doc, &doc)?;
        }
        let put = PutResource {
            id: id.clone(),
            doc: stamped(doc, old.as_ref(), &call),
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

/// The id of a resource in a group, with the group's own case.
pub(crate) fn child_of(group: &ResourceRow, kind: &str, name: &str) -> Result<ResourceId, ArmError> {
    let id = ResourceId::resource(group.id.subscription(), group.id.name(), kind, name);
    id.map_err(|error| ArmError::new(400, "InvalidResourceId", error.to_string()))
}

/// A document with who made it and who wrote it last.
pub(crate) fn stamped(mut doc: Value, old: Option<&ResourceRow>, call: &Call) -> Value {
    let me = call.caller.name();
    let maker = old.and_then(|old| old.doc.pointer("/systemData/createdBy")).and_then(Value::as_str);
    let data = serde_json::json!({ "createdBy": maker.unwrap_or(&me), "lastModifiedBy": me });
    if let Some(fields) = doc.as_object_mut() {
        fields.insert("systemData".into(), data);
    }
    doc
}

/// Nothing runs for a workspace, so it is gone when the answer goes out.
async fn delete(plane: ControlPlane, call: Call) -> Answer {
    let _structure = plane.structure().await;
    let id = call.id(KIND, "workspace")?;
    let Some(row) = plane.store().resource(&id)? else { return Ok(answer::empty(204)) };
    call.precondition().check(id.as_str(), Some(&row))?;
    plane.store().remove(row.id, plane.clock().now()).await?;
    Ok(answer::empty(200))
}

/// Keys follow from the server's own key and the workspace's id; they are never stored.
async fn shared_keys(plane: ControlPlane, call: Call) -> Answer {
    let row = require(&plane, &call)?;
    let key = |which: &str| {
        let halves = ["a", "b"].map(|half| plane.token_key().fingerprint(&format!("{which}{half}:{}", row.id.key())));
        BASE64.encode(halves.concat())
    };
    Ok(answer::json(200, &workspace::render_shared_keys(&key("primary"), &key("secondary"))))
}
