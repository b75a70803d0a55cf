//! `Microsoft.Resources/resourceGroups`.

use cove_model::ResourceId;
use serde_json::{Value, json};

use crate::{
    ArmError, Errors,
    schema::{Nulls, Schema, normalise},
};

static SCHEMA: Schema = Schema::Object(&[
    ("location", &Schema::Text),
    ("tags", &Schema::Map(&Schema::Text)),
    ("managedBy", &Schema::TextOrAbsent),
    ("properties", &Schema::Any),
]);

/// Checks the body of a PUT; the answer is the document to store: location, tags, managedBy.
///
/// # Errors
/// Every problem of name and body at once.
pub fn parse_put(name: &str, body: &Value) -> Result<Value, ArmError> {
    let mut errors = Errors::new();
    if !is_valid_name(name) {
        errors.push(ArmError::invalid_group_name(name));
    }
    let body = normalise(body, &SCHEMA, Nulls::Drop, &mut errors);
    match body.get("location").and_then(Value::as_str) {
        None | Some("") => errors.push(
            ArmError::new(
                400,
                "LocationRequired",
                "The location property is required for this definition; 'local' always works.",
            )
            .at("location"),
        ),
        Some(location) => crate::provider::check_location(location, &mut errors),
    }
    errors.into_result()?;
    let mut doc = json!({ "location": body["location"] });
    for name in ["tags", "managedBy"] {
        if let Some(value) = body.get(name) {
            doc[name] = value.clone();
        }
    }
    Ok(doc)
}

/// Merges a PATCH body (tags, managedBy) into a stored document.
///
/// # Errors
/// As [`parse_put`].
pub fn parse_patch(name: &str, stored: &Value, patch: &Value) -> Result<Value, ArmError> {
    let mut errors = Errors::new();
    let patch = normalise(patch, &SCHEMA, Nulls::Keep, &mut errors);
    errors.into_result()?;
    let mut doc = stored.clone();
    crate::patch::merge(&mut doc, &patch);
    parse_put(name, &doc)
}

/// The group as Azure shows it.
#[must_use]
pub fn render(id: &ResourceId, doc: &Value, provisioning_state: &str) -> Value {
    let mut value = json!({
        "id": id.as_str(),
        "name": id.name(),
        "type": "Microsoft.Resources/resourceGroups",
        "location": doc["location"],
        "properties": { "provisioningState": provisioning_state },
    });
    for name in ["tags", "managedBy"] {
        if let Some(found) = doc.get(name) {
            value[name] = found.clone();
        }
    }
    value
}

/// Azure's rule for group names: 1 to 90 letters, digits and `-_.()`, no period at the end.
#[must_use]
pub fn is_valid_name(name: &str) -> bool {
    (1..=90).contains(&name.chars().count())
        && !name.ends_with('.')
        && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '(' | ')'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_put_patched_and_shown() {
        let doc = parse_put("MyRG", &json!({ "Location": "eastus", "tags": null, "properties": {} })).unwrap();
        let doc = parse_patch("MyRG", &doc, &json!({ "tags": { "a": 1 } })).unwrap();
        let id = ResourceId::group("s", "MyRG").unwrap();
        let shown = render(&id, &doc, "Succeeded");
        assert_eq!((shown["tags"]["a"].as_str(), shown["location"].as_str()), (Some("1"), Some("eastus")));
        let refused = parse_put("bad.", &json!([])).unwrap_err();
        assert_eq!(refused.details.len(), 3);
        assert!(is_valid_name("a-b_c.(d)") && !is_valid_name("") && !is_valid_name("a/b"));
    }
}
