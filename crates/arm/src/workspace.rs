//! `Microsoft.OperationalInsights/workspaces`: enough for `az containerapp env create` and for log queries.

use cove_model::ResourceId;
use serde_json::{Value, json};

use crate::{ArmError, Errors, SystemData, schema::Schema};

/// Properties of a workspace.
pub static SCHEMA: Schema = Schema::Object(&[
    ("location", &Schema::Text),
    ("tags", &Schema::Map(&Schema::Text)),
    (
        "properties",
        &Schema::Object(&[
            ("retentionInDays", &Schema::Int),
            ("sku", &Schema::Object(&[("name", &Schema::Text)])),
            ("publicNetworkAccessForIngestion", &Schema::Text),
            ("publicNetworkAccessForQuery", &Schema::Text),
        ]),
    ),
]);

/// Read-only properties, dropped from a body.
const READ_ONLY: [&str; 5] = ["customerId", "provisioningState", "createdDate", "modifiedDate", "features"];

/// Checks a document that has the kinds of [`SCHEMA`]; the answer is what is to be stored.
///
/// # Errors
/// Every problem of name and body at once, those in `errors` included.
pub fn parse(name: &str, body: &Value, mut errors: Errors) -> Result<Value, ArmError> {
    let is_name = (4..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if !is_name {
        let message = format!(
            "Workspace name '{name}' is not valid: use 4 to 63 letters, digits and '-', with a letter or digit at both ends."
        );
        errors.push(ArmError::new(400, "InvalidResourceName", message));
    }
    crate::provider::check_required_location(body, &mut errors);
    if let Some(days) = body.pointer("/properties/retentionInDays").and_then(Value::as_i64)
        && !(-1..=730).contains(&days)
    {
        errors.invalid(
            "properties.retentionInDays",
            format!("{days} days is not valid; expected 4 to 730, or -1 for no limit."),
        );
    }
    errors.into_result()?;
    let mut properties = body.get("properties").cloned().unwrap_or_else(|| json!({}));
    if let Some(fields) = properties.as_object_mut() {
        fields.retain(|name, _| !READ_ONLY.iter().any(|read_only| read_only.eq_ignore_ascii_case(name)));
    }
    let mut doc = json!({ "location": body["location"], "properties": properties });
    if let Some(tags) = body.get("tags") {
        doc["tags"] = tags.clone();
    }
    Ok(doc)
}

/// The workspace as Azure shows it; `customer_id` is the GUID that queries and environments name it by.
#[must_use]
pub fn render(id: &ResourceId, doc: &Value, customer_id: &str, system_data: Option<&SystemData>) -> Value {
    let mut properties = json!({
        "sku": { "name": "PerGB2018" },
        "retentionInDays": 30,
        "publicNetworkAccessForIngestion": "Enabled",
        "publicNetworkAccessForQuery": "Enabled",
    });
    if let Some(stored) = doc.get("properties") {
        crate::patch::merge(&mut properties, stored);
    }
    properties["customerId"] = json!(customer_id);
    properties["provisioningState"] = json!("Succeeded");
    if let Some(data) = system_data {
        properties["createdDate"] = json!(data.created_at.to_string());
        properties["modifiedDate"] = json!(data.last_modified_at.to_string());
    }
    let mut value = json!({
        "id": id.as_str(),
        "name": id.name(),
        "type": "Microsoft.OperationalInsights/workspaces",
        "location": doc["location"],
        "properties": properties,
    });
    if let Some(tags) = doc.get("tags") {
        value["tags"] = tags.clone();
    }
    value
}

/// The answer of `sharedKeys`.
#[must_use]
pub fn render_shared_keys(primary: &str, secondary: &str) -> Value {
    json!({ "primarySharedKey": primary, "secondarySharedKey": secondary })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_has_what_env_create_reads() {
        let body = json!({ "location": "eastus", "properties": { "retentionInDays": 31, "CustomerId": "mine" } });
        let doc = parse("workspace-abcd", &body, Errors::new()).unwrap();
        let id = ResourceId::resource("s", "g", "Microsoft.OperationalInsights/workspaces", "workspace-abcd").unwrap();
        let shown = render(&id, &doc, "c-1", None);
        assert_eq!(shown["properties"]["customerId"], "c-1");
        assert_eq!(shown["properties"]["retentionInDays"], 31);
        assert!(!shown.to_string().contains("mine"));
        assert!(parse("x", &json!({ "properties": { "retentionInDays": 9999 } }), Errors::new()).is_err());
    }
}
