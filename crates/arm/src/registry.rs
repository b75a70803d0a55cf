//! `Microsoft.ContainerRegistry/registries`: a name, `<name>.azurecr.io`, for the embedded registry.
//!
//! **Invariant:** a property that would guard the registry and does not here is refused, never stored and forgotten.

use cove_model::ResourceId;
use serde_json::{Value, json};

use crate::{ArmError, Errors, SystemData, schema::Schema};

/// Its kind in Azure's spelling.
pub const KIND: &str = "Microsoft.ContainerRegistry/registries";

static STATUS: Schema = Schema::Object(&[("status", &Schema::Text)]);

/// Properties of a registry.
pub static SCHEMA: Schema = Schema::Object(&[
    ("location", &Schema::Text),
    ("tags", &Schema::Map(&Schema::Text)),
    ("sku", &Schema::Object(&[("name", &Schema::Word(&["Basic", "Standard", "Premium", "Classic"]))])),
    ("identity", &Schema::Any),
    (
        "properties",
        &Schema::Object(&[
            ("adminUserEnabled", &Schema::Bool),
            ("anonymousPullEnabled", &Schema::Bool),
            ("publicNetworkAccess", &Schema::Word(&["Enabled", "Disabled"])),
            ("networkRuleSet", &Schema::Object(&[("defaultAction", &Schema::Word(&["Allow", "Deny"]))])),
            ("encryption", &STATUS),
            (
                "policies",
                &Schema::Object(&[
                    ("quarantinePolicy", &STATUS),
                    ("trustPolicy", &STATUS),
                    ("exportPolicy", &STATUS),
                    ("azureADAuthenticationAsArmPolicy", &STATUS),
                ]),
            ),
        ]),
    ),
]);

/// Guards that are not built: where, the value that asks for nothing, what it is.
const GUARDS: [(&str, &[&str], &str); 6] = [
    ("publicNetworkAccess", &["Enabled"], "A registry without public access"),
    ("networkRuleSet/defaultAction", &["Allow"], "A network rule of a registry"),
    ("encryption/status", &["disabled"], "Encryption of a registry with a key of one's own"),
    ("policies/quarantinePolicy/status", &["disabled"], "Quarantine of images"),
    ("policies/trustPolicy/status", &["disabled"], "Content trust"),
    ("policies/exportPolicy/status", &["enabled"], "A ban on export"),
];

/// Checks a document that has the kinds of [`SCHEMA`]; the answer is what is to be stored.
///
/// # Errors
/// Every problem of name and body at once, those in `errors` included.
pub fn parse(name: &str, body: &Value, mut errors: Errors) -> Result<Value, ArmError> {
    if !is_name(name) {
        let shown: String = name.chars().take(64).collect();
        let message = format!("The registry name '{shown}' is not valid: use 5 to 50 letters and digits.");
        errors.push(ArmError::new(400, "InvalidResourceName", message));
    }
    crate::provider::check_required_location(body, &mut errors);
    for (path, allowed, what) in GUARDS {
        let given = body.pointer(&format!("/properties/{path}")).and_then(Value::as_str).unwrap_or("");
        if !given.is_empty() && !allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(given)) {
            let target = format!("properties.{}", path.replace('/', "."));
            let instead = "leave it out; `api.clients` says who may use the embedded registry";
            errors.push(ArmError::not_implemented(&target, what, instead));
        }
    }
    if body.get("identity").is_some_and(|identity| identity.get("type").is_some_and(|kind| kind != "None")) {
        errors.push(ArmError::not_implemented("identity", "An identity of a registry", "leave it out"));
    }
    errors.into_result()?;
    let mut doc = json!({ "location": body["location"], "properties": {}, "sku": { "name": "Basic" } });
    for name in ["tags", "sku", "properties"] {
        if let Some(value) = body.get(name) {
            doc[name] = value.clone();
        }
    }
    if let Some(fields) = doc["properties"].as_object_mut() {
        for name in ["loginServer", "creationDate", "provisioningState", "status"] {
            fields.remove(name);
        }
    }
    Ok(doc)
}

/// 5 to 50 letters and digits.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (5..=50).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Host that names of its images begin with.
#[must_use]
pub fn login_server(name: &str) -> String {
    format!("{}.azurecr.io", name.to_ascii_lowercase())
}

/// The registry as Azure shows it; `push_to` is the host where the embedded registry takes images.
#[must_use]
pub fn render(id: &ResourceId, doc: &Value, push_to: &str, data: &SystemData) -> Value {
    let mut properties = json!({
        "adminUserEnabled": false,
        "anonymousPullEnabled": false,
        "publicNetworkAccess": "Enabled",
        "zoneRedundancy": "Disabled",
        "policies": {},
    });
    if let Some(stored) = doc.get("properties") {
        crate::patch::merge(&mut properties, stored);
    }
    properties["loginServer"] = json!(login_server(id.name()));
    properties["creationDate"] = json!(data.created_at.to_string());
    properties["provisioningState"] = json!("Succeeded");
    properties["status"] = json!({
        "displayStatus": "Ready",
        "message": format!("A name for the embedded registry: push to {push_to}, apps pull from {}.", login_server(id.name())),
        "timestamp": data.last_modified_at.to_string(),
    });
    let sku = doc.pointer("/sku/name").and_then(Value::as_str).unwrap_or("Basic");
    json!({
        "id": id.as_str(),
        "name": id.name(),
        "type": KIND,
        "location": doc["location"],
        "tags": doc.get("tags").cloned().unwrap_or_else(|| json!({})),
        "sku": { "name": sku, "tier": sku },
        "properties": properties,
        "systemData": data.render(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_that_does_not_guard_is_refused() {
        let body = |properties: Value| json!({ "location": "eastus", "properties": properties });
        for bad in [
            json!({ "publicNetworkAccess": "Disabled" }),
            json!({ "networkRuleSet": { "defaultAction": "Deny" } }),
            json!({ "policies": { "trustPolicy": { "status": "enabled" } } }),
        ] {
            let error = parse("myregistry", &body(bad), Errors::new()).unwrap_err();
            assert_eq!((error.status, error.code.as_str()), (501, "NotImplemented"));
        }
        let doc = parse("myregistry", &body(json!({ "adminUserEnabled": true, "loginServer": "x" })), Errors::new());
        assert_eq!(doc.unwrap()["properties"], json!({ "adminUserEnabled": true }));
        assert!(parse("my-registry", &body(json!({})), Errors::new()).is_err());
    }
}
