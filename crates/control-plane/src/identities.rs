//! `Microsoft.ManagedIdentity/userAssignedIdentities`, and the ids that the identities of all resources have.
//!
//! Ids follow from the resource's id and the time of its making: they stay as long as it exists, and one that is made anew
//! under the same name is somebody else, so that old role assignments do not fall to it.
//!
//! Roles are stored and not enforced yet, and workloads get no tokens yet; what an identity is for stands in the guide.

use cove_arm::{ArmError, Errors, schema::Schema, user_identity};
use cove_model::ResourceId;
use cove_store::ResourceRow;
use http::Method;
use serde_json::{Value, json};

use crate::{
    answer::{Answer, Refusal},
    call::Call,
    control_plane::ControlPlane,
    crud::{self, Parsed, Resource, Write},
    environments::system_data,
    groups,
    route::Route,
};

pub(crate) use user_identity::{Ids, KIND};

struct UserIdentity;

impl Resource for UserIdentity {
    const KIND: &'static str = KIND;
    const PATH: &'static str = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{identity}";
    const CREATED: u16 = 201;
    const HAS_PATCH: bool = true;

    fn parent(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
        groups::require(plane, call)
    }

    fn schema() -> &'static Schema {
        &user_identity::SCHEMA
    }

    fn parse(write: &Write<'_>, doc: Value, errors: Errors) -> Result<Parsed, Refusal> {
        Ok(Parsed::doc(user_identity::parse(write.id.name(), &doc, errors)?))
    }

    fn render(plane: &ControlPlane, _: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
        let data = system_data(row);
        Ok(user_identity::render(&row.id, &row.doc, &ids(row), &plane.config().tenant, Some(&data)))
    }
}

pub(crate) fn routes() -> Vec<Route> {
    const ALL: &str = "/subscriptions/{subscription}/providers/Microsoft.ManagedIdentity/userAssignedIdentities";
    let federated = format!("{}/federatedIdentityCredentials", UserIdentity::PATH);
    let mut routes = crud::routes::<UserIdentity>();
    routes.push(Route::arm(Method::GET, ALL, list_all));
    routes.push(Route::arm(Method::GET, federated.as_str(), no_federation));
    for method in [Method::PUT, Method::GET, Method::DELETE] {
        routes.push(Route::arm(method, format!("{federated}/{{credential}}"), no_federation));
    }
    routes
}

/// Fills what the server knows of a resource's identities into its answer: `principalId`, `tenantId`, and the ids of each
/// user-assigned one. A user-assigned identity that was deleted meanwhile keeps its id only.
///
/// # Errors
/// When the store cannot be read.
pub(crate) fn complete(plane: &ControlPlane, value: &mut Value, row: &ResourceRow) -> Result<(), Refusal> {
    let Some(block) = value.get_mut("identity") else { return Ok(()) };
    let kind = block.get("type").and_then(Value::as_str).unwrap_or("None").to_ascii_lowercase();
    if kind.contains("systemassigned") {
        block["principalId"] = json!(ids(row).principal_id);
        block["tenantId"] = json!(plane.config().tenant);
    }
    let shared = block.get_mut("userAssignedIdentities").and_then(Value::as_object_mut);
    for (key, entry) in shared.into_iter().flatten() {
        let Ok(id) = ResourceId::parse(key) else { continue };
        if let Some(row) = plane.store().resource(&id)? {
            let ids = ids(&row);
            *entry = json!({ "principalId": ids.principal_id, "clientId": ids.client_id });
        }
    }
    Ok(())
}

/// Checks the `identity` block of a document and gives it one spelling; every user-assigned identity must exist.
///
/// # Errors
/// 400 with every problem; `FailedIdentityOperation` names identities that do not exist.
pub(crate) fn check(plane: &ControlPlane, doc: &mut Value) -> Result<(), Refusal> {
    let mut errors = Errors::new();
    let assigned = user_identity::read_block(doc, &mut errors);
    for id in &assigned.user {
        if plane.store().resource(id)?.is_none() {
            let message = format!(
                "The user-assigned identity '{id}' does not exist; make it with 'az identity create', or leave it out."
            );
            errors.push(ArmError::new(400, "FailedIdentityOperation", message).at("identity.userAssignedIdentities"));
        }
    }
    Ok(errors.into_result()?)
}

/// The ids of a user-assigned identity, or of the identity that a resource has of its own.
pub(crate) fn ids(row: &ResourceRow) -> Ids {
    let derived = |what: &str| {
        let name = format!("{what}:{}:{}", row.id.key(), row.created_at);
        uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, name.as_bytes()).to_string()
    };
    Ids { principal_id: derived("principal"), client_id: derived("client") }
}

/// Every identity there is: user-assigned ones, and resources that have one of their own.
///
/// # Errors
/// When the store cannot be read.
pub(crate) fn all(plane: &ControlPlane) -> Result<Vec<(ResourceRow, Ids)>, Refusal> {
    let mut found = plane.store().resources(KIND, None)?;
    for kind in [crate::apps::KIND, crate::jobs::KIND, crate::session_pools::KIND, crate::environments::KIND] {
        let rows = plane.store().resources(kind, None)?;
        found.extend(rows.into_iter().filter(|row| {
            let kind = row.doc.pointer("/identity/type").and_then(Value::as_str).unwrap_or("");
            kind.to_ascii_lowercase().contains("systemassigned")
        }));
    }
    Ok(found
        .into_iter()
        .map(|row| {
            let ids = ids(&row);
            (row, ids)
        })
        .collect())
}

async fn list_all(plane: ControlPlane, call: Call) -> Answer {
    let rows = plane.store().resources(KIND, Some(&call.subscription_id()?))?;
    crud::list(&call, &rows, |row| UserIdentity::render(&plane, &call, row))
}

async fn no_federation(plane: ControlPlane, call: Call) -> Answer {
    crud::require::<UserIdentity>(&plane, &call)?;
    let instead = "use the identity itself, or a client of `api.clients`";
    Err(ArmError::not_implemented("federatedIdentityCredentials", "Trust in tokens of other issuers", instead).into())
}
