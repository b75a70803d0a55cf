//! `Microsoft.Network/virtualNetworks` and their subnets: kept and shown, so that environments can name a subnet.
//!
//! They have no effect: replicas have networks of their own, one per environment.
//!
//! **Invariant:** a network security group or another guard is refused, never stored and forgotten.

use std::net::IpAddr;

use cove_model::ResourceId;
use serde_json::{Value, json};

use crate::{
    ArmError, Errors,
    node::Node,
    schema::{Nulls, Schema, normalise},
};

/// Its kind in Azure's spelling.
pub const KIND: &str = "Microsoft.Network/virtualNetworks";

static SUBNET_PROPERTIES: Schema = Schema::Object(&[
    ("addressPrefix", &Schema::TextOrAbsent),
    ("addressPrefixes", &Schema::List(&Schema::Text)),
    ("delegations", &Schema::List(&Schema::Any)),
    ("networkSecurityGroup", &Schema::Any),
    ("routeTable", &Schema::Any),
]);

static SUBNET: Schema = Schema::Object(&[("name", &Schema::Text), ("properties", &SUBNET_PROPERTIES)]);

/// Properties of a virtual network.
pub static SCHEMA: Schema = Schema::Object(&[
    ("location", &Schema::Text),
    ("tags", &Schema::Map(&Schema::Text)),
    (
        "properties",
        &Schema::Object(&[
            ("addressSpace", &Schema::Object(&[("addressPrefixes", &Schema::List(&Schema::Text))])),
            ("subnets", &Schema::List(&SUBNET)),
            ("enableDdosProtection", &Schema::Bool),
        ]),
    ),
]);

/// Checks a document that has the kinds of [`SCHEMA`]; the answer is what is to be stored.
///
/// # Errors
/// Every problem of name and body at once, those in `errors` included.
pub fn parse(name: &str, body: &Value, mut errors: Errors) -> Result<Value, ArmError> {
    check_name(name, &mut errors);
    crate::provider::check_required_location(body, &mut errors);
    let root = Node::root(body);
    let properties = root.get("properties");
    let spaces = properties.get("addressSpace").get("addressPrefixes");
    if spaces.items().is_empty() {
        errors.invalid(&spaces.path, "A virtual network needs an address prefix, such as '10.0.0.0/16'.");
    }
    check_prefixes(&spaces.items(), &mut errors);
    if properties.get("enableDdosProtection").flag() == Some(true) {
        let target = "properties.enableDdosProtection";
        errors.push(ArmError::not_implemented(target, "DDoS protection", "leave it out"));
    }
    let mut names: Vec<String> = Vec::new();
    for subnet in properties.get("subnets").items() {
        let name = subnet.get("name").text().unwrap_or("").to_ascii_lowercase();
        check_name(&name, &mut errors);
        if names.contains(&name) {
            errors.invalid(&subnet.path, format!("The subnet '{name}' is given twice."));
        }
        names.push(name);
        check_subnet(&subnet.get("properties"), &mut errors);
    }
    errors.into_result()?;
    let mut doc = json!({ "location": body["location"], "properties": body["properties"] });
    if let Some(tags) = body.get("tags") {
        doc["tags"] = tags.clone();
    }
    strip(&mut doc["properties"]);
    for subnet in doc["properties"].get_mut("subnets").and_then(Value::as_array_mut).into_iter().flatten() {
        let mut properties = subnet.get("properties").cloned().unwrap_or_else(|| json!({}));
        strip(&mut properties);
        *subnet = json!({ "name": subnet["name"], "properties": properties });
    }
    Ok(doc)
}

fn strip(properties: &mut Value) {
    if let Some(fields) = properties.as_object_mut() {
        fields.remove("provisioningState");
        fields.remove("resourceGuid");
    }
}

fn check_name(name: &str, errors: &mut Errors) {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let is_name = (1..=80).contains(&name.len())
        && name.bytes().all(|b| is_word(b) || matches!(b, b'-' | b'.'))
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().next_back().is_some_and(is_word);
    if !is_name {
        let shown: String = name.chars().take(100).collect();
        let message = format!("The name '{shown}' is not valid: use 1 to 80 letters, digits, '-', '_' and '.'.");
        errors.push(ArmError::new(400, "InvalidResourceName", message));
    }
}

fn check_subnet(properties: &Node<'_>, errors: &mut Errors) {
    let (one, many) = (properties.get("addressPrefix"), properties.get("addressPrefixes"));
    if !one.exists() && many.items().is_empty() {
        errors.invalid(&one.path, "A subnet needs an address prefix, such as '10.0.0.0/23'.");
    }
    if one.exists() {
        check_prefixes(&[one], errors);
    }
    check_prefixes(&many.items(), errors);
    for (name, what) in [("networkSecurityGroup", "A network security group"), ("routeTable", "A route table")] {
        let node = properties.get(name);
        if node.exists() {
            let instead = "restrict who may call an app with its ipSecurityRestrictions";
            errors.push(ArmError::not_implemented(&node.path, what, instead));
        }
    }
}

fn check_prefixes(nodes: &[Node<'_>], errors: &mut Errors) {
    for node in nodes {
        let text = node.text().unwrap_or("");
        let is_prefix = text.split_once('/').is_some_and(|(address, bits)| {
            let most = match address.parse() {
                Ok(IpAddr::V4(_)) => 32,
                Ok(IpAddr::V6(_)) => 128,
                Err(_) => return false,
            };
            bits.parse::<u8>().is_ok_and(|bits| bits <= most)
        });
        if !is_prefix {
            let shown: String = text.chars().take(64).collect();
            errors.invalid(&node.path, format!("'{shown}' is not an address prefix such as '10.0.0.0/16'."));
        }
    }
}

/// The body of a subnet's PUT, put into its network's document.
///
/// # Errors
/// Every problem of the subnet at once.
pub fn with_subnet(stored: &Value, network: &str, name: &str, body: &Value) -> Result<Value, ArmError> {
    let mut errors = Errors::new();
    let mut subnet = normalise(body, &SUBNET, Nulls::Drop, &mut errors);
    subnet["name"] = json!(name);
    let mut doc = without_subnet(stored, name);
    match doc["properties"].get_mut("subnets").and_then(Value::as_array_mut) {
        Some(subnets) => subnets.push(subnet),
        None => doc["properties"]["subnets"] = json!([subnet]),
    }
    parse(network, &doc, errors)
}

/// The network's document without a subnet.
#[must_use]
pub fn without_subnet(stored: &Value, name: &str) -> Value {
    let mut doc = stored.clone();
    if let Some(subnets) = doc["properties"].get_mut("subnets").and_then(Value::as_array_mut) {
        subnets.retain(|subnet| !is_named(subnet, name));
    }
    doc
}

fn is_named(subnet: &Value, name: &str) -> bool {
    subnet.get("name").and_then(Value::as_str).is_some_and(|given| given.eq_ignore_ascii_case(name))
}

/// The network as Azure shows it.
#[must_use]
pub fn render(id: &ResourceId, doc: &Value) -> Value {
    let mut properties = doc["properties"].clone();
    properties["provisioningState"] = json!("Succeeded");
    properties["enableDdosProtection"] = json!(false);
    properties["virtualNetworkPeerings"] = json!([]);
    properties["subnets"] = Value::Array(subnets(id, doc));
    json!({
        "id": id.as_str(),
        "name": id.name(),
        "type": KIND,
        "location": doc["location"],
        "tags": doc.get("tags").cloned().unwrap_or_else(|| json!({})),
        "properties": properties,
    })
}

/// Its subnets as Azure shows them.
#[must_use]
pub fn subnets(id: &ResourceId, doc: &Value) -> Vec<Value> {
    let stored = doc.pointer("/properties/subnets").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    stored
        .iter()
        .map(|subnet| {
            let name = subnet["name"].as_str().unwrap_or("");
            let mut properties = subnet["properties"].clone();
            properties["provisioningState"] = json!("Succeeded");
            if properties.get("delegations").is_none() {
                properties["delegations"] = json!([]);
            }
            json!({
                "id": format!("{id}/subnets/{name}"),
                "name": name,
                "type": format!("{KIND}/subnets"),
                "properties": properties,
            })
        })
        .collect()
}

/// One of its subnets as Azure shows it.
#[must_use]
pub fn subnet(id: &ResourceId, doc: &Value, name: &str) -> Option<Value> {
    subnets(id, doc).into_iter().find(|subnet| is_named(subnet, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(subnets: Value) -> Value {
        json!({ "location": "eastus", "properties": { "addressSpace": { "addressPrefixes": ["10.0.0.0/16"] }, "subnets": subnets } })
    }

    #[test]
    fn subnets_come_and_go_in_their_network() {
        let doc = parse("net", &network(json!([])), Errors::new()).unwrap();
        let body = json!({ "properties": { "AddressPrefix": "10.0.0.0/23", "provisioningState": "x" } });
        let doc = with_subnet(&doc, "net", "Apps", &body).unwrap();
        let id = ResourceId::resource("s", "g", KIND, "net").unwrap();
        let shown = subnet(&id, &doc, "apps").unwrap();
        assert_eq!(shown["id"], format!("{id}/subnets/Apps"));
        assert_eq!(shown["properties"]["provisioningState"], "Succeeded");
        assert_eq!(without_subnet(&doc, "APPS")["properties"]["subnets"], json!([]));
    }

    #[test]
    fn bad_prefixes_and_guards_are_refused() {
        let cases = [
            (json!([{ "name": "a", "properties": {} }]), "InvalidParameterValue"),
            (json!([{ "name": "a", "properties": { "addressPrefix": "10.0.0.0/40" } }]), "InvalidParameterValue"),
            (
                json!([{ "name": "a", "properties": { "addressPrefix": "10.0.0.0/24", "networkSecurityGroup": { "id": "x" } } }]),
                "NotImplemented",
            ),
        ];
        for (subnets, code) in cases {
            assert_eq!(parse("net", &network(subnets.clone()), Errors::new()).unwrap_err().code, code, "{subnets}");
        }
    }
}
