//! What-if as text for people: a sign per resource and property, in az's order.

use serde_json::Value;

/// Kinds of changes in the order they are shown: name, sign, colour, what the count says.
const KINDS: [(&str, char, &str, &str); 7] = [
    ("Delete", '-', "31", "to delete"),
    ("Create", '+', "32", "to create"),
    ("Deploy", '!', "34", "to deploy"),
    ("Modify", '~', "35", "to modify"),
    ("NoChange", '=', "0", "no change"),
    ("Unsupported", 'x', "90", "unsupported"),
    ("Ignore", '*', "90", "to ignore"),
];

/// Signs of properties.
const PROPERTIES: [(&str, char, &str); 5] = [
    ("Create", '+', "32"),
    ("Delete", '-', "31"),
    ("Modify", '~', "35"),
    ("Array", '~', "35"),
    ("NoEffect", 'x', "90"),
];

/// The result without some kinds of changes.
pub(super) fn without(mut result: Value, kinds: &[String]) -> Value {
    let changes = if result["properties"]["changes"].is_array() {
        &mut result["properties"]["changes"]
    } else {
        &mut result["changes"]
    };
    if let Some(changes) = changes.as_array_mut() {
        changes.retain(|change| {
            let kind = change["changeType"].as_str().unwrap_or_default();
            !kinds.iter().any(|excluded| excluded.eq_ignore_ascii_case(kind))
        });
    }
    result
}

/// The text of a result.
pub(super) fn render(result: &Value, is_coloured: bool) -> String {
    let empty = Vec::new();
    let changes = result["properties"]["changes"].as_array().or_else(|| result["changes"].as_array()).unwrap_or(&empty);
    let mut page = Page { text: String::new(), is_coloured };
    let kind_of = |change: &Value| {
        let kind = change["changeType"].as_str().unwrap_or_default().to_owned();
        KINDS.iter().position(|(name, ..)| name.eq_ignore_ascii_case(&kind)).unwrap_or(KINDS.len() - 1)
    };
    let mut sorted: Vec<&Value> = changes.iter().collect();
    sorted.sort_by_key(|change| (scope(change), kind_of(change), relative(change)));
    let mut at = String::new();
    for change in &sorted {
        let scope = scope(change);
        if scope != at {
            page.text.push_str(&format!("\nScope: {scope}\n\n"));
            at = scope;
        }
        let (_, sign, colour, _) = KINDS[kind_of(change)];
        page.line(1, sign, colour, &relative(change));
        match sign {
            '+' => page.object(3, '+', colour, &change["after"], true),
            '-' => page.object(3, '-', colour, &change["before"], true),
            '~' => page.delta(3, &change["delta"]),
            _ => {}
        }
        if matches!(sign, '+' | '-' | '~') {
            page.text.push('\n');
        }
    }
    let counts = KINDS.iter().enumerate().filter_map(|(index, (.., says))| {
        let count = changes.iter().filter(|change| kind_of(change) == index).count();
        (count > 0).then(|| format!("{count} {says}"))
    });
    let counts: Vec<String> = counts.collect();
    let counts = if counts.is_empty() { "no change".to_owned() } else { counts.join(", ") };
    page.text.push_str(&format!("Resource changes: {counts}.\n"));
    page.text.trim_start_matches('\n').to_owned()
}

/// Group or subscription of a resource's id.
fn scope(change: &Value) -> String {
    let id = change["resourceId"].as_str().unwrap_or_default();
    id.to_ascii_lowercase().find("/providers/").map_or(id, |end| &id[..end]).to_owned()
}

/// Type and name of a resource, without what the scope says.
fn relative(change: &Value) -> String {
    let id = change["resourceId"].as_str().unwrap_or_default();
    let start = id.to_ascii_lowercase().find("/providers/");
    let name = start.map_or(id, |start| &id[start + "/providers/".len()..]);
    let payload = if change["after"].is_object() { &change["after"] } else { &change["before"] };
    match payload["apiVersion"].as_str() {
        Some(version) => format!("{name} [{version}]"),
        None => name.to_owned(),
    }
}

struct Page {
    text: String,
    is_coloured: bool,
}

impl Page {
    fn line(&mut self, depth: usize, sign: char, colour: &str, text: &str) {
        let body = format!("{}{sign} {text}", "  ".repeat(depth));
        if self.is_coloured && colour != "0" {
            self.text.push_str(&format!("\x1b[{colour}m{body}\x1b[0m\n"));
        } else {
            self.text.push_str(&format!("{body}\n"));
        }
    }

    /// Every leaf of a resource that appears or goes.
    fn object(&mut self, depth: usize, sign: char, colour: &str, value: &Value, is_top: bool) {
        let Some(fields) = value.as_object() else { return };
        for (name, value) in fields {
            if is_top && matches!(name.as_str(), "apiVersion" | "id" | "name" | "type") {
                continue;
            }
            self.value(depth, sign, colour, name, value);
        }
    }

    fn value(&mut self, depth: usize, sign: char, colour: &str, name: &str, value: &Value) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                self.line(depth, sign, colour, &format!("{name}:"));
                self.object(depth + 1, sign, colour, value, false);
            }
            Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
                self.line(depth, sign, colour, &format!("{name}: ["));
                for (index, item) in items.iter().enumerate() {
                    self.value(depth + 1, sign, colour, &index.to_string(), item);
                }
                self.line(depth, sign, colour, "]");
            }
            leaf => self.line(depth, sign, colour, &format!("{name}: {leaf}")),
        }
    }

    /// What changes in a resource.
    fn delta(&mut self, depth: usize, delta: &Value) {
        for change in delta.as_array().map_or(&[][..], Vec::as_slice) {
            let kind = change["propertyChangeType"].as_str().unwrap_or_default();
            let known = PROPERTIES.iter().find(|(name, ..)| name.eq_ignore_ascii_case(kind));
            let (_, sign, colour) = known.unwrap_or(&PROPERTIES[2]);
            let path = change["path"].as_str().unwrap_or_default();
            if change["children"].as_array().is_some_and(|children| !children.is_empty()) {
                let bracket = if kind.eq_ignore_ascii_case("Array") { "[" } else { "" };
                self.line(depth, *sign, colour, &format!("{path}: {bracket}"));
                self.delta(depth + 1, &change["children"]);
                if !bracket.is_empty() {
                    self.line(depth, *sign, colour, "]");
                }
                continue;
            }
            match sign {
                '+' => self.value(depth, '+', colour, path, &change["after"]),
                '-' => self.value(depth, '-', colour, path, &change["before"]),
                _ => {
                    let text = format!("{path}: {} => {}", change["before"], change["after"]);
                    self.line(depth, *sign, colour, &text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_result_is_read_at_a_glance() {
        let id =
            |name: &str| format!("/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/containerApps/{name}");
        let result = json!({"status": "Succeeded", "properties": {"changes": [
            {"resourceId": id("same"), "changeType": "NoChange"},
            {"resourceId": id("web"), "changeType": "Modify", "delta": [
                {"path": "properties.template.scale.maxReplicas", "propertyChangeType": "Modify", "before": 3, "after": 5},
                {"path": "properties.template.containers", "propertyChangeType": "Array", "children": [
                    {"path": "0", "propertyChangeType": "Modify", "children": [
                        {"path": "image", "propertyChangeType": "Modify", "before": "a", "after": "b"}]}]},
                {"path": "tags.x", "propertyChangeType": "Delete", "before": "1"}]},
            {"resourceId": id("new"), "changeType": "Create", "after": {"apiVersion": "2025-07-01", "id": id("new"),
                "name": "new", "type": "Microsoft.App/containerApps", "location": "local",
                "properties": {"template": {"containers": [{"image": "i"}]}}}},
        ]}});
        expect![[r#"
            Scope: /subscriptions/s/resourceGroups/rg

              + Microsoft.App/containerApps/new [2025-07-01]
                  + location: "local"
                  + properties:
                    + template:
                      + containers: [
                        + 0:
                          + image: "i"
                      + ]

              ~ Microsoft.App/containerApps/web
                  ~ properties.template.scale.maxReplicas: 3 => 5
                  ~ properties.template.containers: [
                    ~ 0: 
                      ~ image: "a" => "b"
                  ~ ]
                  - tags.x: "1"

              = Microsoft.App/containerApps/same
            Resource changes: 1 to create, 1 to modify, 1 no change.
        "#]]
        .assert_eq(&render(&result, false));
        assert!(render(&result, true).contains("\x1b[32m"));
        assert!(!render(&without(result, &["nochange".to_owned()]), false).contains("same"));
        assert_eq!(render(&json!({}), false), "Resource changes: no change.\n");
    }
}
