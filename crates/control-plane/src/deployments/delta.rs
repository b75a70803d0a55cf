//! Differences of two documents in the form of ARM's what-if.
//!
//! **Invariant:** equal documents have no difference, whatever the order of members; a list whose items have names is
//! compared by name.

use serde_json::{Map, Value, json};

/// Members of `properties` that only the server writes.
const READ_ONLY: &[&str] = &[
    "provisioningState",
    "runningStatus",
    "runningState",
    "healthState",
    "latestRevisionName",
    "latestReadyRevisionName",
    "latestRevisionFqdn",
    "eventStreamEndpoint",
    "outboundIpAddresses",
    "customDomainVerificationId",
    "customDomainConfiguration",
    "deploymentErrors",
    "managedEnvironmentId",
    "defaultDomain",
    "staticIp",
    "kedaConfiguration",
    "daprConfiguration",
    "createdDate",
    "modifiedDate",
    "customerId",
    "principalId",
    "clientId",
    "tenantId",
    "createdOn",
    "updatedOn",
    "createdBy",
    "updatedBy",
    "thumbprint",
    "poolManagementEndpoint",
    "mcpServerEndpoint",
    "nodeCount",
    "coveFailure",
    "coveProgress",
    "coveWarnings",
];

/// Pairs of items that are compared to find which is which; longer lists differ as a whole.
const PAIRS_MAX: usize = 250_000;

/// A resource as a GET shows it, without what nobody writes.
pub(crate) fn written(value: &Value) -> Value {
    let mut value = value.clone();
    let Some(fields) = value.as_object_mut() else { return value };
    for name in ["systemData", "etag", "managedBy"] {
        fields.remove(name);
    }
    if let Some(properties) = fields.get_mut("properties").and_then(Value::as_object_mut) {
        properties.retain(|name, _| !READ_ONLY.contains(&name.as_str()));
    }
    if let Some(ingress) = value.pointer_mut("/properties/configuration/ingress").and_then(Value::as_object_mut) {
        ingress.remove("fqdn");
    }
    if let Some(settings) = value.pointer_mut("/properties/mcpServerSettings").and_then(Value::as_object_mut) {
        settings.remove("mcpServerEndpoint");
    }
    if let Some(identity) = value.get_mut("identity").and_then(Value::as_object_mut) {
        identity.remove("principalId");
        identity.remove("tenantId");
        let users = identity.get_mut("userAssignedIdentities").and_then(Value::as_object_mut);
        for user in users.into_iter().flat_map(Map::values_mut) {
            *user = json!({});
        }
    }
    value
}

/// The changes from one document to another; paths have dots, lists have changes of their own.
pub(crate) fn between(before: &Value, after: &Value) -> Vec<Value> {
    let mut changes = Vec::new();
    compare("", before, after, &mut changes);
    changes
}

fn change(kind: &str, path: &str, before: Option<&Value>, after: Option<&Value>) -> Value {
    json!({ "path": path, "propertyChangeType": kind, "before": before, "after": after })
}

fn compare(path: &str, before: &Value, after: &Value, changes: &mut Vec<Value>) {
    match (before, after) {
        (before, after) if before == after => {}
        (Value::Object(old), Value::Object(new)) => {
            let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            for (name, old) in old {
                match new.get(name) {
                    Some(new) => compare(&below(name), old, new, changes),
                    None => changes.push(change("Delete", &below(name), Some(old), None)),
                }
            }
            for (name, new) in new.iter().filter(|(name, _)| !old.contains_key(*name)) {
                changes.push(change("Create", &below(name), None, Some(new)));
            }
        }
        (Value::Array(old), Value::Array(new)) if can_be_paired(old, new) => {
            let children = items(old, new);
            if !children.is_empty() {
                changes.push(json!({ "path": path, "propertyChangeType": "Array", "children": children }));
            }
        }
        (before, after) => changes.push(change("Modify", path, Some(before), Some(after))),
    }
}

fn can_be_paired(old: &[Value], new: &[Value]) -> bool {
    old.len().saturating_mul(new.len()) <= PAIRS_MAX
}

/// Changes of a list's items; each has the index of the item as its path.
fn items(old: &[Value], new: &[Value]) -> Vec<Value> {
    let mut changes = Vec::new();
    let mut unmatched: Vec<usize> = (0..new.len()).collect();
    for (index, before) in old.iter().enumerate() {
        let found = unmatched.iter().position(|at| is_same_item(index, before, *at, &new[*at]));
        let Some(at) = found.map(|position| unmatched.remove(position)) else {
            changes.push(change("Delete", &index.to_string(), Some(before), None));
            continue;
        };
        let after = &new[at];
        if before == after {
            continue;
        }
        let mut children = Vec::new();
        match (before, after) {
            (Value::Object(_), Value::Object(_)) => compare("", before, after, &mut children),
            (Value::Array(before), Value::Array(after)) if can_be_paired(before, after) => {
                children = items(before, after);
                changes.push(json!({ "path": index.to_string(), "propertyChangeType": "Array", "children": children }));
                continue;
            }
            _ => {
                changes.push(change("Modify", &index.to_string(), Some(before), Some(after)));
                continue;
            }
        }
        let mut modified = change("Modify", &index.to_string(), Some(before), Some(after));
        modified["children"] = Value::Array(children);
        changes.push(modified);
    }
    changes.extend(unmatched.into_iter().map(|at| change("Create", &at.to_string(), None, Some(&new[at]))));
    changes
}

/// Items are the same by name, by value, or, when they have neither in common, by place.
fn is_same_item(index: usize, before: &Value, at: usize, after: &Value) -> bool {
    let key = |item: &Value| ["name", "revisionName", "server"].iter().find_map(|key| item.get(key).cloned());
    match (key(before), key(after)) {
        (Some(before), Some(after)) => before == after,
        (None, None) if before.is_object() || before.is_array() => index == at,
        (None, None) => before == after,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(before: Value, after: Value, expected: &Expect) {
        fn lines(changes: &[Value], indent: usize, out: &mut String) {
            for change in changes {
                let text = |name: &str| change.get(name).filter(|value| !value.is_null()).map(ToString::to_string);
                out.push_str(&format!(
                    "{}{} {}: {} => {}\n",
                    " ".repeat(indent),
                    change["propertyChangeType"].as_str().unwrap(),
                    change["path"].as_str().unwrap(),
                    text("before").unwrap_or_default(),
                    text("after").unwrap_or_default()
                ));
                let children = change.get("children").and_then(Value::as_array);
                lines(children.map_or(&[][..], Vec::as_slice), indent + 2, out);
            }
        }
        let mut out = String::new();
        lines(&between(&before, &after), 0, &mut out);
        expected.assert_eq(&out);
    }

    #[test]
    fn changes_have_paths_and_lists_are_compared_by_name() {
        check(
            json!({ "a": { "b": 1, "c": 2 }, "l": [{ "name": "x", "v": 1 }, { "name": "y" }], "t": ["p", "q"] }),
            json!({ "a": { "b": 3, "d": 4 }, "l": [{ "name": "y" }, { "name": "x", "v": 2 }], "t": ["q", "r"] }),
            &expect![[r#"
                Modify a.b: 1 => 3
                Delete a.c: 2 => 
                Create a.d:  => 4
                Array l:  => 
                  Modify 0: {"name":"x","v":1} => {"name":"x","v":2}
                    Modify v: 1 => 2
                Array t:  => 
                  Delete 0: "p" => 
                  Create 1:  => "r"
            "#]],
        );
        let numbers = |from: u32| Value::from((from..from + 1000).collect::<Vec<_>>());
        assert_eq!(between(&numbers(0), &numbers(1))[0]["propertyChangeType"], "Modify", "long lists are not paired");
        check(json!({ "a": [1, { "b": 2 }] }), json!({ "a": [1, { "b": 2 }] }), &expect![""]);
    }
}
