//! `Microsoft.Authorization`: role definitions and role assignments, at a subscription, a group or any resource.
//!
//! They are stored, listed and deleted with what they are about; **they are not enforced yet**: who may log in may do
//! everything. Answers to writes say so in the header [`NOTE`].
//!
//! **Invariant:** an assignment names a role that exists; a role that is assigned cannot be deleted.

use axum::response::Response;
use cove_arm::{ArmError, list, role};
use cove_model::ResourceId;
use cove_store::{Expect, Provisioning, PutResource, ResourceRow, SecretsChange, StoreError};
use http::Method;
use serde_json::Value;

use crate::{
    answer::{self, Answer, Refusal, with_header},
    call::Call,
    control_plane::ControlPlane,
    environments::system_data,
    groups::TRIES_MAX,
    route::Route,
    workspaces::stamped,
};

/// Says in an answer what it does not do.
pub(crate) const NOTE: &str = "x-cove-note";
const NOT_ENFORCED: &str = "stored; roles are not enforced by this server yet";

/// Kinds of resources that are kept here: one that is not there does not exist.
const KEPT: [&str; 8] = [
    crate::apps::KIND,
    crate::jobs::KIND,
    crate::session_pools::KIND,
    crate::environments::KIND,
    crate::identities::KIND,
    "Microsoft.ContainerRegistry/registries",
    "Microsoft.Network/virtualNetworks",
    "Microsoft.OperationalInsights/workspaces",
];

/// Scopes that a path can have before `/providers/Microsoft.Authorization`, the widest first.
const SCOPES: [&str; 5] = [
    "/subscriptions/{subscription}",
    "/subscriptions/{subscription}/resourceGroups/{group}",
    "/subscriptions/{subscription}/resourceGroups/{group}/providers/{namespace}/{type1}/{name1}",
    "/subscriptions/{subscription}/resourceGroups/{group}/providers/{namespace}/{type1}/{name1}/{type2}/{name2}",
    "/subscriptions/{subscription}/resourceGroups/{group}/providers/{namespace}/{type1}/{name1}/{type2}/{name2}/{type3}/{name3}",
];

pub(crate) fn routes() -> Vec<Route> {
    let mut routes = Vec::new();
    for scope in SCOPES {
        let base = format!("{scope}/providers/Microsoft.Authorization");
        routes.push(Route::arm(Method::GET, format!("{base}/roleDefinitions"), list_definitions));
        routes.push(Route::arm(Method::GET, format!("{base}/roleDefinitions/{{role}}"), get_definition));
        routes.push(Route::arm(Method::PUT, format!("{base}/roleDefinitions/{{role}}"), put_definition));
        routes.push(Route::arm(Method::DELETE, format!("{base}/roleDefinitions/{{role}}"), delete_definition));
        routes.push(Route::arm(Method::GET, format!("{base}/roleAssignments"), list_assignments));
        routes.push(Route::arm(Method::GET, format!("{base}/roleAssignments/{{assignment}}"), get_assignment));
        routes.push(Route::arm(Method::PUT, format!("{base}/roleAssignments/{{assignment}}"), put_assignment));
        routes.push(Route::arm(Method::DELETE, format!("{base}/roleAssignments/{{assignment}}"), delete_assignment));
    }
    let tenant = "/providers/Microsoft.Authorization/roleDefinitions";
    routes.push(Route::arm(Method::GET, tenant, list_definitions));
    routes.push(Route::arm(Method::GET, format!("{tenant}/{{role}}"), get_definition));
    routes
}

/// The scope of the path; the subscription for a path without one.
fn scope(plane: &ControlPlane, call: &Call) -> Result<ResourceId, ArmError> {
    let path = call.path.to_ascii_lowercase();
    let at = path.rfind("/providers/microsoft.authorization").unwrap_or(0);
    let text = match call.path.get(..at) {
        None | Some("" | "/") => format!("/subscriptions/{}", plane.config().subscription),
        Some(text) => percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned(),
    };
    ResourceId::parse(&text).map_err(|error| ArmError::new(400, "InvalidResourceId", error.to_string()))
}

/// A scope to write at: its group must exist, and it must too when it is of a kind that this server keeps.
fn writable_scope(plane: &ControlPlane, call: &Call) -> Result<ResourceId, Refusal> {
    let scope = scope(plane, call)?;
    if scope.group_name().is_empty() {
        return Ok(scope);
    }
    let group = crate::groups::require_writable(plane, call)?;
    if scope == group.id {
        return Ok(group.id);
    }
    match plane.store().resource(&scope)? {
        Some(row) => Ok(row.id),
        None if KEPT.iter().any(|kind| kind.eq_ignore_ascii_case(&scope.kind())) => {
            Err(ArmError::resource_not_found(&scope.kind(), scope.name(), group.id.name()).into())
        }
        None => Ok(scope),
    }
}

// definitions

fn custom_id(plane: &ControlPlane, role: &str) -> Result<ResourceId, ArmError> {
    let id = ResourceId::parse(&role::definition_id(&plane.config().subscription, role));
    id.map_err(|error| ArmError::new(400, "InvalidResourceId", error.to_string()))
}

fn custom(plane: &ControlPlane) -> Result<Vec<ResourceRow>, Refusal> {
    Ok(plane.store().resources(role::DEFINITION_KIND, None)?)
}

fn render_custom(row: &ResourceRow) -> Value {
    role::render_definition(&row.id, &row.doc, &system_data(row))
}

/// The role of a GUID, as Azure shows it.
fn definition(plane: &ControlPlane, guid: &str) -> Result<Option<Value>, Refusal> {
    if let Some(role) = role::BUILT_IN.iter().find(|role| role.id.eq_ignore_ascii_case(guid)) {
        return Ok(Some(role::render_built_in(&plane.config().subscription, role)));
    }
    if !role::is_guid(guid) {
        return Ok(None);
    }
    Ok(plane.store().resource(&custom_id(plane, guid)?)?.as_ref().map(render_custom))
}

async fn list_definitions(plane: ControlPlane, call: Call) -> Answer {
    let filter = Filter::of(&call, &["roleName", "type"])?;
    let subscription = &plane.config().subscription;
    let mut all: Vec<Value> = role::BUILT_IN.iter().map(|role| role::render_built_in(subscription, role)).collect();
    all.extend(custom(&plane)?.iter().map(render_custom));
    all.retain(|role| {
        filter.fields.iter().all(|(name, wanted)| {
            let given = role["properties"][name].as_str().unwrap_or("");
            given.eq_ignore_ascii_case(wanted)
        })
    });
    Ok(answer::json(200, &list::render(all, None)))
}

async fn get_definition(plane: ControlPlane, call: Call) -> Answer {
    let role = call.name("role");
    match definition(&plane, role)? {
        Some(value) => Ok(answer::json(200, &value)),
        None => Err(no_role(role, 404).into()),
    }
}

fn no_role(role: &str, status: u16) -> ArmError {
    let shown: String = role.chars().take(100).collect();
    let message =
        format!("The role definition '{shown}' does not exist; 'az role definition list' shows those that do.");
    ArmError::new(status, "RoleDefinitionDoesNotExist", message)
}

async fn put_definition(plane: ControlPlane, call: Call) -> Answer {
    let body = call.object()?;
    let _structure = plane.structure().await;
    let scope = writable_scope(&plane, &call)?;
    let guid = call.name("role").to_ascii_lowercase();
    let doc = role::parse_definition(&guid, scope.as_str(), &body)?;
    let name = doc["properties"]["roleName"].as_str().unwrap_or("").to_owned();
    let id = custom_id(&plane, &guid)?;
    let is_taken = |row: &ResourceRow| {
        let other = row.doc.pointer("/properties/roleName").and_then(Value::as_str).unwrap_or("");
        row.id != id && other.eq_ignore_ascii_case(&name)
    };
    if custom(&plane)?.iter().any(is_taken) {
        return Err(role::taken(&name).into());
    }
    let (row, _) = save(&plane, &call, &id, &doc).await?;
    Ok(noted(answer::json(201, &render_custom(&row))))
}

async fn delete_definition(plane: ControlPlane, call: Call) -> Answer {
    let _structure = plane.structure().await;
    let guid = call.name("role").to_ascii_lowercase();
    if role::BUILT_IN.iter().any(|role| role.id == guid) {
        let message = "A built-in role cannot be deleted.";
        return Err(ArmError::new(400, "RoleDefinitionIsBuiltIn", message).into());
    }
    let Some(row) = plane.store().resource(&custom_id(&plane, &guid)?)? else { return Ok(answer::empty(204)) };
    let users: Vec<String> = plane
        .store()
        .resources(role::ASSIGNMENT_KIND, None)?
        .iter()
        .filter(|row| role_guid(row) == guid)
        .map(|row| row.id.to_string())
        .take(5)
        .collect();
    if !users.is_empty() {
        let message = format!("The role is assigned: delete these assignments first: {}.", users.join(", "));
        return Err(ArmError::conflict("RoleDefinitionHasAssignments", message).into());
    }
    plane.store().remove(row.id.clone(), plane.clock().now()).await?;
    Ok(answer::json(200, &render_custom(&row)))
}

// assignments

fn role_guid(row: &ResourceRow) -> String {
    let id = row.doc.pointer("/properties/roleDefinitionId").and_then(Value::as_str).unwrap_or("");
    role::role_of(id).unwrap_or_default()
}

fn render_assignment(plane: &ControlPlane, row: &ResourceRow) -> Value {
    let role_id = role::definition_id(&plane.config().subscription, &role_guid(row));
    role::render_assignment(&row.id, &row.doc, &role_id, &system_data(row))
}

fn assignment_id(scope: &ResourceId, call: &Call) -> Result<ResourceId, ArmError> {
    let id = scope.extension(role::ASSIGNMENT_KIND, call.name("assignment"));
    id.map_err(|error| ArmError::new(400, "InvalidResourceId", error.to_string()))
}

/// Assignments at the scope, above it, and (without `atScope()`) below it.
async fn list_assignments(plane: ControlPlane, call: Call) -> Answer {
    let filter = Filter::of(&call, &["principalId", "assignedTo"])?;
    let asked = scope(&plane, &call)?;
    let rows = plane.store().resources(role::ASSIGNMENT_KIND, None)?;
    let is_shown = |row: &&ResourceRow| {
        let Some(scope) = row.id.scope() else { return false };
        let is_above = scope == asked || asked.key().starts_with(&format!("{}/", scope.key()));
        let is_below = scope.key().starts_with(&format!("{}/", asked.key()));
        let principal = row.doc.pointer("/properties/principalId").and_then(Value::as_str).unwrap_or("");
        let is_asked = filter.fields.iter().all(|(_, wanted)| principal.eq_ignore_ascii_case(wanted));
        is_asked && (is_above || is_below && !filter.at_scope)
    };
    let values = rows.iter().filter(is_shown).map(|row| render_assignment(&plane, row)).collect();
    Ok(answer::json(200, &list::render(values, None)))
}

async fn get_assignment(plane: ControlPlane, call: Call) -> Answer {
    let id = assignment_id(&scope(&plane, &call)?, &call)?;
    match plane.store().resource(&id)? {
        Some(row) => Ok(answer::json(200, &render_assignment(&plane, &row))),
        None => {
            let message = format!("The role assignment '{}' is not found.", id.name());
            Err(ArmError::new(404, "RoleAssignmentNotFound", message).into())
        }
    }
}

async fn put_assignment(plane: ControlPlane, call: Call) -> Answer {
    let body = call.object()?;
    let _structure = plane.structure().await;
    let scope = writable_scope(&plane, &call)?;
    let id = assignment_id(&scope, &call)?;
    let parsed = role::parse_assignment(id.name(), &body)?;
    if definition(&plane, &parsed.role)?.is_none() {
        return Err(no_role(&parsed.role, 400).at("properties.roleDefinitionId").into());
    }
    let principal =
        |row: &ResourceRow| row.doc.pointer("/properties/principalId").and_then(Value::as_str).unwrap_or("").to_owned();
    for row in plane.store().resources(role::ASSIGNMENT_KIND, Some(&scope))? {
        let is_same = role_guid(&row) == parsed.role && principal(&row) == parsed.principal;
        if row.id == id && !is_same {
            let message =
                "Tenant, role, principal and scope of a role assignment cannot change; delete it and make another.";
            return Err(ArmError::conflict("RoleAssignmentUpdateNotPermitted", message).into());
        }
        if row.id != id && row.id.scope().as_ref() == Some(&scope) && is_same {
            let message = format!("The role assignment already exists. Its id is '{}'.", row.id.name());
            return Err(ArmError::conflict("RoleAssignmentExists", message).into());
        }
    }
    let (row, is_new) = save(&plane, &call, &id, &parsed.doc).await?;
    let status = if is_new { 201 } else { 200 };
    Ok(noted(answer::json(status, &render_assignment(&plane, &row))))
}

async fn delete_assignment(plane: ControlPlane, call: Call) -> Answer {
    let _structure = plane.structure().await;
    let id = assignment_id(&scope(&plane, &call)?, &call)?;
    let Some(row) = plane.store().resource(&id)? else { return Ok(answer::empty(204)) };
    call.precondition().check(id.as_str(), Some(&row))?;
    plane.store().remove(row.id.clone(), plane.clock().now()).await?;
    Ok(answer::json(200, &render_assignment(&plane, &row)))
}

fn noted(response: Response) -> Response {
    with_header(response, NOTE, NOT_ENFORCED)
}

async fn save(plane: &ControlPlane, call: &Call, id: &ResourceId, doc: &Value) -> Result<(ResourceRow, bool), Refusal> {
    for _ in 0..TRIES_MAX {
        let old = plane.store().resource(id)?;
        call.precondition().check(id.as_str(), old.as_ref())?;
        let put = PutResource {
            id: id.clone(),
            doc: stamped(doc.clone(), old.as_ref(), call),
            spec: None,
            secrets: SecretsChange::Keep,
            provisioning: Provisioning::Succeeded,
            operation: None,
            revision: None,
            expect: old.as_ref().map_or(Expect::Absent, |old| Expect::Generation(old.generation)),
            now: plane.clock().now(),
        };
        match plane.store().put(put).await {
            Ok(row) => return Ok((row, old.is_none())),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Conflict { id: id.clone() }.into())
}

/// `field eq 'text'`, `atScope()` and `assignedTo('id')`, joined by `and`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Filter {
    fields: Vec<(String, String)>,
    at_scope: bool,
}

impl Filter {
    fn of(call: &Call, known: &[&str]) -> Result<Self, ArmError> {
        call.query("$filter").map_or_else(|| Ok(Self::default()), |text| Self::parse(text, known))
    }

    fn parse(text: &str, known: &[&str]) -> Result<Self, ArmError> {
        let invalid = || {
            let shown: String = text.chars().take(200).collect();
            let message = format!(
                "The filter '{shown}' is not supported; expected atScope() and clauses on {}, joined by 'and'.",
                known.join(", ")
            );
            ArmError::new(400, "InvalidFilterInQueryString", message)
        };
        let quoted = |text: &str| -> Option<String> {
            Some(text.trim().strip_prefix('\'')?.strip_suffix('\'')?.replace("''", "'"))
        };
        let mut filter = Self::default();
        for clause in text.split(" and ").map(str::trim).filter(|clause| !clause.is_empty()) {
            if clause.eq_ignore_ascii_case("atScope()") || clause.eq_ignore_ascii_case("atScopeAndBelow()") {
                filter.at_scope = clause.eq_ignore_ascii_case("atScope()");
                continue;
            }
            let (field, value) = match clause.split_once(" eq ") {
                Some((field, value)) => (field.trim(), quoted(value)),
                None => match clause.strip_suffix(')').and_then(|clause| clause.split_once('(')) {
                    Some((field, value)) => (field.trim(), quoted(value)),
                    None => return Err(invalid()),
                },
            };
            let field = known.iter().find(|known| known.eq_ignore_ascii_case(field)).ok_or_else(invalid)?;
            filter.fields.push(((*field).to_owned(), value.ok_or_else(invalid)?));
        }
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_az_are_understood() {
        let known = ["roleName", "principalId", "assignedTo"];
        let fields = |text: &str| Filter::parse(text, &known).map(|filter| (filter.at_scope, filter.fields));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(fields("atScope()").unwrap(), (true, vec![]));
        assert_eq!(fields("rolename eq 'Key Vault Reader'").unwrap().1, [pair("roleName", "Key Vault Reader")]);
        assert_eq!(fields("atScope() and assignedTo('x')").unwrap(), (true, vec![pair("assignedTo", "x")]));
        for bad in ["roleName eq x", "principalId ne 'x'", "tags eq 'x'", "startswith(roleName,'x')"] {
            assert_eq!(fields(bad).unwrap_err().code, "InvalidFilterInQueryString", "{bad}");
        }
    }
}
