//! Managed identities: `Microsoft.ManagedIdentity/userAssignedIdentities`, and the `identity` block of other resources.
//!
//! **Invariant:** after [`read_block`] a document's `identity` has one spelling and no read-only property.

use cove_model::ResourceId;
use serde_json::{Map, Value, json};

use crate::{ArmError, Errors, SystemData, schema::Schema};

/// Its kind in Azure's spelling.
pub const KIND: &str = "Microsoft.ManagedIdentity/userAssignedIdentities";

/// Both kinds of identity, in the SDKs' spelling.
const BOTH: &str = "SystemAssigned,UserAssigned";

/// Properties of a user-assigned identity.
pub static SCHEMA: Schema = Schema::Object(&[
    ("location", &Schema::Text),
    ("tags", &Schema::Map(&Schema::Text)),
    (
        "properties",
        &Schema::Object(&[
            ("isolationScope", &Schema::Word(&["None", "Regional"])),
            ("assignmentRestrictions", &Schema::Object(&[("providers", &Schema::List(&Schema::Text))])),
        ]),
    ),
]);

/// Ids of an identity; they stay the same as long as it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Object id of its service principal: what roles are assigned to.
    pub principal_id: String,
    /// Application id: what programs ask tokens for.
    pub client_id: String,
}

/// What an `identity` block asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// An identity of the resource's own.
    pub is_system: bool,
    /// Identities that it shares.
    pub user: Vec<ResourceId>,
}

/// Checks a document that has the kinds of [`SCHEMA`]; the answer is what is to be stored.
///
/// # Errors
/// Every problem of name and body at once, those in `errors` included.
pub fn parse(name: &str, body: &Value, mut errors: Errors) -> Result<Value, ArmError> {
    let is_name = (3..=128).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if !is_name {
        let shown: String = name.chars().take(140).collect();
        let message = format!(
            "The identity name '{shown}' is not valid: use 3 to 128 letters, digits, '-' and '_', beginning with a letter or digit."
        );
        errors.push(ArmError::new(400, "InvalidResourceName", message));
    }
    crate::provider::check_required_location(body, &mut errors);
    refuse_restrictions(body, &mut errors);
    errors.into_result()?;
    let mut doc = body.clone();
    if doc.get("properties").is_none() {
        doc["properties"] = json!({});
    }
    if let Some(fields) = doc["properties"].as_object_mut() {
        fields.retain(|name, _| !["principalId", "clientId", "tenantId"].contains(&name.as_str()));
    }
    Ok(doc)
}

/// Restrictions guard who may use an identity: to store them without keeping them would be a false promise.
fn refuse_restrictions(body: &Value, errors: &mut Errors) {
    let providers = body.pointer("/properties/assignmentRestrictions/providers").and_then(Value::as_array);
    if providers.is_some_and(|providers| !providers.is_empty()) {
        let target = "properties.assignmentRestrictions";
        errors.push(ArmError::not_implemented(target, "A restriction of who may use an identity", "leave it out"));
    }
}

/// The identity as Azure shows it.
#[must_use]
pub fn render(id: &ResourceId, doc: &Value, ids: &Ids, tenant: &str, system_data: Option<&SystemData>) -> Value {
    let mut properties = doc.get("properties").cloned().unwrap_or_else(|| json!({}));
    properties["principalId"] = json!(ids.principal_id);
    properties["clientId"] = json!(ids.client_id);
    properties["tenantId"] = json!(tenant);
    let mut value = json!({
        "id": id.as_str(),
        "name": id.name(),
        "type": KIND,
        "location": doc["location"],
        "tags": doc.get("tags").cloned().unwrap_or_else(|| json!({})),
        "properties": properties,
    });
    if let Some(data) = system_data {
        value["systemData"] = data.render();
    }
    value
}

/// Reads the `identity` of a document and gives it one spelling; a block that asks for nothing is taken out.
///
/// `type` may come in any case and with a space after the comma; the values below the ids are read-only.
pub fn read_block(doc: &mut Value, errors: &mut Errors) -> Assigned {
    let block = match doc.get("identity") {
        None | Some(Value::Null) => return Assigned::default(),
        Some(block) => block.clone(),
    };
    let given = block.get("type").and_then(Value::as_str).unwrap_or("None");
    let words: Vec<String> = given.split(',').map(|word| word.trim().to_ascii_lowercase()).collect();
    let has = |word: &str| words.iter().any(|given| given == word);
    if words.iter().any(|word| !["", "none", "systemassigned", "userassigned"].contains(&word.as_str())) {
        let shown: String = given.chars().take(64).collect();
        let message = format!("'{shown}' is not valid; expected None, SystemAssigned, UserAssigned or {BOTH}.");
        errors.invalid("identity.type", message);
        return Assigned::default();
    }
    let mut assigned = Assigned { is_system: has("systemassigned"), user: Vec::new() };
    let keys = block.get("userAssignedIdentities").and_then(Value::as_object);
    for (key, value) in keys.into_iter().flatten().filter(|_| has("userassigned")) {
        if value.is_null() {
            continue;
        }
        match ResourceId::parse(key) {
            Ok(id) if id.kind().eq_ignore_ascii_case(KIND) && !assigned.user.contains(&id) => assigned.user.push(id),
            Ok(id) if id.kind().eq_ignore_ascii_case(KIND) => {}
            _ => {
                let shown: String = key.chars().take(300).collect();
                let message = format!(
                    "'{shown}' is not the id of an identity; expected /subscriptions/ID/resourceGroups/NAME/providers/{KIND}/NAME."
                );
                errors.invalid("identity.userAssignedIdentities", message);
            }
        }
    }
    if has("userassigned") && keys.is_none_or(Map::is_empty) {
        let message = "The type UserAssigned needs the id of an identity in identity.userAssignedIdentities.";
        errors.invalid("identity.userAssignedIdentities", message);
    }
    write_block(doc, &assigned);
    assigned
}

fn write_block(doc: &mut Value, assigned: &Assigned) {
    let Some(fields) = doc.as_object_mut() else { return };
    let kind = match (assigned.is_system, assigned.user.is_empty()) {
        (false, true) => {
            fields.remove("identity");
            return;
        }
        (true, true) => "SystemAssigned",
        (false, false) => "UserAssigned",
        (true, false) => BOTH,
    };
    let mut block = json!({ "type": kind });
    if !assigned.user.is_empty() {
        let ids = assigned.user.iter().map(|id| (id.as_str().to_owned(), json!({})));
        block["userAssignedIdentities"] = Value::Object(ids.collect());
    }
    fields.insert("identity".into(), block);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str =
        "/subscriptions/s/resourcegroups/g/providers/microsoft.managedidentity/userassignedidentities/one";

    #[test]
    fn a_block_gets_one_spelling() {
        let cases = [
            (json!(null), json!(null)),
            (json!({ "type": "none", "userAssignedIdentities": null }), json!(null)),
            (
                json!({ "type": "systemassigned", "principalId": "p", "tenantId": "t" }),
                json!({ "type": "SystemAssigned" }),
            ),
            (
                json!({ "type": "SystemAssigned, UserAssigned", "userAssignedIdentities": { ONE: { "clientId": "c" } } }),
                json!({ "type": BOTH, "userAssignedIdentities": { ResourceId::parse(ONE).unwrap().as_str(): {} } }),
            ),
        ];
        for (given, expected) in cases {
            let mut doc = json!({ "identity": given });
            let mut errors = Errors::new();
            read_block(&mut doc, &mut errors);
            errors.into_result().unwrap();
            assert_eq!(doc.get("identity").cloned().unwrap_or(Value::Null), expected);
        }
    }

    #[test]
    fn a_block_that_cannot_be_is_refused() {
        let cases = [
            (json!({ "type": "Mine" }), "identity.type"),
            (json!({ "type": "UserAssigned" }), "identity.userAssignedIdentities"),
            (
                json!({ "type": "UserAssigned", "userAssignedIdentities": { "/x": {} } }),
                "identity.userAssignedIdentities",
            ),
        ];
        for (given, target) in cases {
            let mut errors = Errors::new();
            read_block(&mut json!({ "identity": given }), &mut errors);
            assert_eq!(errors.into_result().unwrap_err().target.as_deref(), Some(target));
        }
    }

    #[test]
    fn an_identity_shows_its_ids() {
        let body = json!({ "location": "eastus", "tags": { "a": "b" }, "properties": { "principalId": "mine" } });
        let doc = parse("id-one", &body, Errors::new()).unwrap();
        let ids = Ids { principal_id: "p".into(), client_id: "c".into() };
        let shown = render(&ResourceId::parse(ONE).unwrap(), &doc, &ids, "t", None);
        assert_eq!(shown["properties"], json!({ "principalId": "p", "clientId": "c", "tenantId": "t" }));
        assert!(parse("x", &json!({}), Errors::new()).is_err());
    }
}
