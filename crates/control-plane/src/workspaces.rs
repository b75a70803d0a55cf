//! `Microsoft.OperationalInsights/workspaces`: what `az containerapp env create` makes for its logs.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use cove_arm::{ArmError, Errors, schema::Schema, workspace};
use cove_model::ResourceId;
use cove_store::ResourceRow;
use http::Method;
use serde_json::Value;

use crate::{
    answer::{self, Answer, Refusal, with_header},
    call::Call,
    control_plane::ControlPlane,
    crud::{self, Parsed, Resource, Write},
    environments, groups,
    route::Route,
};

const KIND: &str = "Microsoft.OperationalInsights/workspaces";

struct Workspace;

impl Resource for Workspace {
    const KIND: &'static str = KIND;
    const PATH: &'static str = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.OperationalInsights/workspaces/{workspace}";
    const CREATED: u16 = 201;
    const HAS_PATCH: bool = true;

    fn parent(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
        groups::require(plane, call)
    }

    fn schema() -> &'static Schema {
        &workspace::SCHEMA
    }

    fn parse(write: &Write<'_>, doc: Value, errors: Errors) -> Result<Parsed, Refusal> {
        Ok(Parsed::doc(workspace::parse(write.id.name(), &doc, errors)?))
    }

    fn render(_: &ControlPlane, _: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
        let data = environments::system_data(row);
        Ok(workspace::render(&row.id, &row.doc, &customer_id(&row.id), Some(&data)))
    }
}

pub(crate) fn routes() -> Vec<Route> {
    const ALL: &str = "/subscriptions/{subscription}/providers/Microsoft.OperationalInsights/workspaces";
    let mut routes = crud::routes::<Workspace>();
    routes.push(Route::arm(Method::GET, ALL, list_all));
    for verb in ["sharedKeys", "listKeys"] {
        routes.push(Route::arm(Method::POST, format!("{}/{verb}", Workspace::PATH), shared_keys));
    }
    routes
}

/// The GUID that environments and queries name a workspace by: it follows from the id, so it is the same for ever.
fn customer_id(id: &ResourceId) -> String {
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, id.key().as_bytes()).to_string()
}

async fn list_all(plane: ControlPlane, call: Call) -> Answer {
    let rows = plane.store().resources(KIND, Some(&call.subscription_id()?))?;
    crud::list(&call, &rows, |row| Workspace::render(&plane, &call, row))
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

/// Keys follow from the server's own key and the workspace's id; they are never stored.
async fn shared_keys(plane: ControlPlane, call: Call) -> Answer {
    let row = crud::require::<Workspace>(&plane, &call)?;
    let key = |which: &str| {
        let halves = ["a", "b"].map(|half| plane.token_key().fingerprint(&format!("{which}{half}:{}", row.id.key())));
        BASE64.encode(halves.concat())
    };
    let response = answer::json(200, &workspace::render_shared_keys(&key("primary"), &key("secondary")));
    Ok(with_header(response, "cache-control", "no-store"))
}
