//! `Microsoft.Authorization`: role definitions, Azure's own and the user's, and role assignments.
//!
//! Both are kept and shown as Azure does; what they allow is not enforced yet.
//!
//! **Invariant:** a stored document of a role or assignment has every property that a later check of access needs.

use cove_model::ResourceId;
use serde_json::{Value, json};

use crate::{
    ArmError, Errors, SystemData,
    schema::{Nulls, Schema, normalise},
};

mod built_in;

pub use built_in::{BUILT_IN, BuiltIn};

/// Kind of a role definition.
pub const DEFINITION_KIND: &str = "Microsoft.Authorization/roleDefinitions";
/// Kind of a role assignment.
pub const ASSIGNMENT_KIND: &str = "Microsoft.Authorization/roleAssignments";

/// Kinds of principals.
const PRINCIPALS: &[&str] = &["User", "Group", "ServicePrincipal", "ForeignGroup", "Device"];

static ASSIGNMENT: Schema = Schema::Object(&[(
    "properties",
    &Schema::Object(&[
        ("roleDefinitionId", &Schema::Text),
        ("principalId", &Schema::Text),
        ("principalType", &Schema::Word(PRINCIPALS)),
        ("description", &Schema::Text),
        ("condition", &Schema::Text),
        ("conditionVersion", &Schema::Text),
        ("delegatedManagedIdentityResourceId", &Schema::Text),
    ]),
)]);

static PERMISSION: Schema = Schema::Object(&[
    ("actions", &Schema::List(&Schema::Text)),
    ("notActions", &Schema::List(&Schema::Text)),
    ("dataActions", &Schema::List(&Schema::Text)),
    ("notDataActions", &Schema::List(&Schema::Text)),
]);

static DEFINITION: Schema = Schema::Object(&[(
    "properties",
    &Schema::Object(&[
        ("roleName", &Schema::Text),
        ("description", &Schema::Text),
        ("type", &Schema::Word(&["CustomRole", "BuiltInRole"])),
        ("assignableScopes", &Schema::List(&Schema::Text)),
        ("permissions", &Schema::List(&PERMISSION)),
    ]),
)]);

/// A checked assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// What is stored.
    pub doc: Value,
    /// GUID of the role, in lower case.
    pub role: String,
    /// Object id that gets it, in lower case.
    pub principal: String,
}

/// Checks the body of a role assignment; the role's existence is for the caller to check.
///
/// # Errors
/// Every problem of name and body at once.
pub fn parse_assignment(name: &str, body: &Value) -> Result<Assignment, ArmError> {
    let mut errors = Errors::new();
    check_guid("name", name, &mut errors);
    let mut doc = normalise(body, &ASSIGNMENT, Nulls::Drop, &mut errors);
    let text =
        |name: &str| doc.pointer(&format!("/properties/{name}")).and_then(Value::as_str).unwrap_or("").to_owned();
    let (principal, role_id) = (text("principalId").to_ascii_lowercase(), text("roleDefinitionId"));
    check_guid("properties.principalId", &principal, &mut errors);
    let role = role_of(&role_id);
    if role.is_none() {
        let shown: String = role_id.chars().take(200).collect();
        let message =
            format!("'{shown}' is not the id of a role; expected /subscriptions/ID/providers/{DEFINITION_KIND}/GUID.");
        errors.invalid("properties.roleDefinitionId", message);
    }
    let version = text("conditionVersion");
    if !text("condition").is_empty() && version != "2.0" {
        errors.invalid("properties.conditionVersion", format!("'{version}' is not valid; expected 2.0."));
    }
    errors.into_result()?;
    let role = role.unwrap_or_default();
    doc["properties"]["principalId"] = json!(principal);
    if doc.pointer("/properties/principalType").is_none() {
        doc["properties"]["principalType"] = json!("User");
    }
    let properties = doc["properties"].clone();
    Ok(Assignment { doc: json!({ "properties": properties }), role, principal })
}

/// The GUID in the id of a role, in lower case.
#[must_use]
pub fn role_of(id: &str) -> Option<String> {
    let key = id.trim_end_matches('/').to_ascii_lowercase();
    let (before, guid) = key.rsplit_once('/')?;
    let is_role = before.ends_with("/providers/microsoft.authorization/roledefinitions");
    (is_role && is_guid(guid)).then(|| guid.to_owned())
}

/// Whether a text is a GUID with its dashes.
#[must_use]
pub fn is_guid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|group| group.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn check_guid(target: &str, text: &str, errors: &mut Errors) {
    if !is_guid(text) {
        let shown: String = text.chars().take(64).collect();
        errors.invalid(target, format!("'{shown}' is not a GUID."));
    }
}

/// The assignment as Azure shows it; `role_id` is the full id of its role.
#[must_use]
pub fn render_assignment(id: &ResourceId, doc: &Value, role_id: &str, data: &SystemData) -> Value {
    let mut properties = doc.get("properties").cloned().unwrap_or_else(|| json!({}));
    let scope = id.scope();
    properties["scope"] = json!(scope.as_ref().map_or("/", ResourceId::as_str));
    properties["roleDefinitionId"] = json!(role_id);
    stamp(&mut properties, data);
    json!({ "id": id.as_str(), "name": id.name(), "type": ASSIGNMENT_KIND, "properties": properties })
}

fn stamp(properties: &mut Value, data: &SystemData) {
    properties["createdOn"] = json!(data.created_at.to_string());
    properties["updatedOn"] = json!(data.last_modified_at.to_string());
    properties["createdBy"] = json!(data.created_by);
    properties["updatedBy"] = json!(data.last_modified_by);
}

/// The full id of a role.
#[must_use]
pub fn definition_id(subscription: &str, role: &str) -> String {
    format!("/subscriptions/{subscription}/providers/{DEFINITION_KIND}/{role}")
}

/// Checks the body of a custom role; the answer is the document to store. `scope` stands in where none is given.
///
/// # Errors
/// Every problem of name and body at once.
pub fn parse_definition(name: &str, scope: &str, body: &Value) -> Result<Value, ArmError> {
    let mut errors = Errors::new();
    check_guid("name", name, &mut errors);
    if BUILT_IN.iter().any(|role| role.id.eq_ignore_ascii_case(name)) {
        let message = "A built-in role cannot be changed; make a role with a GUID of its own.";
        errors.push(ArmError::new(400, "RoleDefinitionIsBuiltIn", message));
    }
    let mut doc = normalise(body, &DEFINITION, Nulls::Drop, &mut errors);
    let role_name = doc.pointer("/properties/roleName").and_then(Value::as_str).unwrap_or("").to_owned();
    if role_name.is_empty() || role_name.len() > 512 {
        errors.invalid("properties.roleName", "A role needs a name of 1 to 512 characters.");
    }
    if BUILT_IN.iter().any(|role| role.name.eq_ignore_ascii_case(&role_name)) {
        errors.push(taken(&role_name));
    }
    let permissions = doc.pointer("/properties/permissions").and_then(Value::as_array);
    if permissions.is_none_or(Vec::is_empty) {
        errors.invalid("properties.permissions", "A role needs permissions: a list with one object of actions.");
    }
    let scopes = doc.pointer("/properties/assignableScopes").and_then(Value::as_array);
    let is_scope = |scope: &Value| scope.as_str().is_some_and(|scope| ResourceId::parse(scope).is_ok());
    if let Some(bad) = scopes.into_iter().flatten().find(|scope| !is_scope(scope)) {
        errors.invalid(
            "properties.assignableScopes",
            format!("{bad} is not the id of a subscription, group or resource."),
        );
    }
    errors.into_result()?;
    if doc.pointer("/properties/assignableScopes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        doc["properties"]["assignableScopes"] = json!([scope]);
    }
    for permission in doc["properties"]["permissions"].as_array_mut().into_iter().flatten() {
        for list in ["actions", "notActions", "dataActions", "notDataActions"] {
            if permission.get(list).is_none() {
                permission[list] = json!([]);
            }
        }
    }
    doc["properties"]["type"] = json!("CustomRole");
    let properties = doc["properties"].clone();
    Ok(json!({ "properties": properties }))
}

/// A role's name is taken.
#[must_use]
pub fn taken(name: &str) -> ArmError {
    let message = format!("A role is named '{name}' already; choose another name.");
    ArmError::conflict("RoleDefinitionWithSameNameExists", message).at("properties.roleName")
}

/// A built-in role as Azure shows it.
#[must_use]
pub fn render_built_in(subscription: &str, role: &BuiltIn) -> Value {
    json!({
        "id": definition_id(subscription, role.id),
        "name": role.id,
        "type": DEFINITION_KIND,
        "properties": {
            "roleName": role.name,
            "type": "BuiltInRole",
            "description": role.description,
            "assignableScopes": ["/"],
            "permissions": [{
                "actions": role.actions,
                "notActions": role.not_actions,
                "dataActions": role.data_actions,
                "notDataActions": [],
            }],
        },
    })
}

/// A custom role as Azure shows it.
#[must_use]
pub fn render_definition(id: &ResourceId, doc: &Value, data: &SystemData) -> Value {
    let mut properties = doc.get("properties").cloned().unwrap_or_else(|| json!({}));
    stamp(&mut properties, data);
    json!({ "id": id.as_str(), "name": id.name(), "type": DEFINITION_KIND, "properties": properties })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINCIPAL: &str = "11111111-2222-3333-4444-555555555555";

    #[test]
    fn built_in_roles_are_unique() {
        for (index, role) in BUILT_IN.iter().enumerate() {
            assert!(is_guid(role.id), "{}", role.name);
            assert!(!BUILT_IN[..index].iter().any(|other| other.id == role.id || other.name == role.name));
        }
    }

    #[test]
    fn an_assignment_names_a_role_and_a_principal() {
        let role = definition_id("s", BUILT_IN[0].id);
        let body = json!({ "properties": { "roleDefinitionId": role, "principalId": PRINCIPAL, "scope": "/x" } });
        let parsed = parse_assignment(PRINCIPAL, &body).unwrap();
        assert_eq!((parsed.role.as_str(), parsed.principal.as_str()), (BUILT_IN[0].id, PRINCIPAL));
        let body = json!({ "properties": { "roleDefinitionId": "Reader", "principalId": "me" } });
        let error = parse_assignment("x", &body).unwrap_err();
        let targets: Vec<_> = error.details.iter().filter_map(|error| error.target.as_deref()).collect();
        assert_eq!(targets, ["name", "properties.principalId", "properties.roleDefinitionId"]);
    }

    #[test]
    fn a_custom_role_is_complete_and_not_a_built_in_one() {
        let body = json!({ "properties": { "roleName": "Watcher", "permissions": [{ "actions": ["*/read"] }] } });
        let doc = parse_definition(PRINCIPAL, "/subscriptions/s", &body).unwrap();
        assert_eq!(doc["properties"]["assignableScopes"], json!(["/subscriptions/s"]));
        assert_eq!(doc["properties"]["permissions"][0]["notActions"], json!([]));
        let body = json!({ "properties": { "roleName": "owner", "permissions": [{}] } });
        assert_eq!(parse_definition(PRINCIPAL, "/", &body).unwrap_err().code, "RoleDefinitionWithSameNameExists");
        assert!(parse_definition(BUILT_IN[0].id, "/", &json!({})).is_err());
    }
}
