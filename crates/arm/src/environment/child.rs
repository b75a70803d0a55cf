//! What the types below an environment share: a location, words about what has no effect, texts that are host names.

use serde_json::{Value, json};

use crate::{ArmError, Errors, node::Node};

/// Under which property Cove says what a stored property does not do yet; it is written anew at every write.
pub const WARNINGS: &str = "coveWarnings";

/// Reports a missing or unknown location.
pub fn check_location(doc: &Value, errors: &mut Errors) {
    match doc.get("location").and_then(Value::as_str) {
        None | Some("") => {
            errors.push(ArmError::new(400, "LocationRequired", "The location property is required.").at("location"));
        }
        Some(location) => crate::provider::check_location(location, errors),
    }
}

/// Leaves members of `properties` out: read-only ones and the words of an earlier answer.
pub fn strip(doc: &mut Value, read_only: &[&str]) {
    if let Some(fields) = doc.get_mut("properties").and_then(Value::as_object_mut) {
        for name in ["provisioningState", "deploymentErrors", WARNINGS].iter().chain(read_only) {
            fields.remove(*name);
        }
    }
}

/// Shows `Succeeded` and what has no effect.
pub fn show_state(value: &mut Value, warnings: &[String]) {
    value["properties"]["provisioningState"] = json!("Succeeded");
    if !warnings.is_empty() {
        value["properties"][WARNINGS] = json!(warnings);
    }
}

/// Whether a text is a host name: letters, digits and dashes in labels of at most 63, 253 in all, at least two labels.
#[must_use]
pub fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.contains('.') && text.split('.').all(is_label)
}

/// Reports a text that is absent or empty; gives the others.
pub(crate) fn required<'a>(node: &Node<'a>, what: &str, errors: &mut Errors) -> Option<&'a str> {
    match node.text().filter(|text| !text.is_empty()) {
        Some(text) => Some(text),
        None => {
            errors.invalid(&node.path, format!("{what} is required."));
            None
        }
    }
}
