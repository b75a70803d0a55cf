//! Secrets of an app as `listSecrets` answers them. A `GET` of the app shows names only.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// `{"value": [{"name", "value"}]}` with the values.
#[must_use]
pub fn render_list(secrets: &BTreeMap<String, String>) -> Value {
    let list: Vec<Value> = secrets.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    json!({ "value": list })
}

/// The secrets after a request: values that came, old values for those that came without, nothing else.
///
/// [`crate::container_app::parse_put`] has refused names without any value, so a missing old value means that the secret
/// was deleted meanwhile; it is left out.
#[must_use]
pub fn apply(asked: &BTreeMap<String, Option<String>>, old: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    asked
        .iter()
        .filter_map(|(name, value)| {
            let value = value.clone().or_else(|| old.get(name).cloned())?;
            Some((name.clone(), value))
        })
        .collect()
}
