//! `managedEnvironments/httpRouteConfigs`: one host whose paths lead to several apps.
//!
//! **Invariant:** what is stored can be routed: every rule has a match and a target, weights of several targets are 100.

use std::collections::BTreeSet;

use cove_model::{CustomDomain, HttpRoute, HttpRouteConfig, HttpRouteRule, HttpRouteTarget, PathMatcher, ResourceId};
use serde_json::Value;

use super::child::{is_host_name, required, strip};
use crate::{ArmError, Errors, node::Node, schema::Schema};

/// Body of a configuration.
pub static SCHEMA: Schema = Schema::Object(&[(
    "properties",
    &Schema::Object(&[
        (
            "customDomains",
            &Schema::List(&Schema::Object(&[
                ("name", &Schema::Text),
                ("bindingType", &Schema::Word(&["Disabled", "SniEnabled", "Auto"])),
                ("certificateId", &Schema::TextOrAbsent),
            ])),
        ),
        (
            "rules",
            &Schema::List(&Schema::Object(&[
                ("description", &Schema::Text),
                ("routes", &Schema::List(&ROUTE)),
                (
                    "targets",
                    &Schema::List(&Schema::Object(&[
                        ("containerApp", &Schema::Text),
                        ("revision", &Schema::TextOrAbsent),
                        ("label", &Schema::TextOrAbsent),
                        ("weight", &Schema::Int),
                    ])),
                ),
            ])),
        ),
    ]),
)]);

static ROUTE: Schema = Schema::Object(&[
    (
        "match",
        &Schema::Object(&[
            ("prefix", &Schema::TextOrAbsent),
            ("path", &Schema::TextOrAbsent),
            ("pathSeparatedPrefix", &Schema::TextOrAbsent),
            ("caseSensitive", &Schema::Bool),
        ]),
    ),
    ("action", &Schema::Object(&[("prefixRewrite", &Schema::TextOrAbsent)])),
]);

/// Rules of one configuration.
const RULES_MAX: usize = 100;
/// Routes of one rule; the ingress tries them one after the other.
const ROUTES_MAX: usize = 100;
/// Targets of one rule.
const TARGETS_MAX: usize = 100;
/// Custom domains of one configuration.
const DOMAINS_MAX: usize = 100;

/// Checks a configuration; the answer is the document and what the ingress reads. Whether apps and certificates exist is
/// for the caller to ask, see [`targets`].
///
/// # Errors
/// Every problem at once.
pub fn parse(id: &ResourceId, mut doc: Value, mut errors: Errors) -> Result<(Value, HttpRouteConfig), ArmError> {
    strip(&mut doc, &["provisioningErrors", "fqdn"]);
    check_name(id.name(), &mut errors);
    let properties = Node::root(&doc).get("properties");
    let custom_domains = custom_domains(&properties, &mut errors);
    let nodes = properties.get("rules").items();
    if nodes.is_empty() || nodes.len() > RULES_MAX {
        errors.invalid("properties.rules", format!("Expected 1 to {RULES_MAX} rules, found {}.", nodes.len()));
    }
    let mut rules = Vec::new();
    for node in &nodes {
        let routes = routes(node, &mut errors);
        let targets = targets_of(node, &mut errors);
        rules.push(HttpRouteRule { routes, targets });
    }
    errors.into_result()?;
    let config = HttpRouteConfig { id: id.clone(), custom_domains, rules };
    Ok((doc, config))
}

/// Every target with its path in the document, for messages.
pub fn targets(config: &HttpRouteConfig) -> impl Iterator<Item = (String, &HttpRouteTarget)> {
    config.rules.iter().enumerate().flat_map(|(rule, value)| {
        value
            .targets
            .iter()
            .enumerate()
            .map(move |(target, value)| (format!("properties.rules[{rule}].targets[{target}]"), value))
    })
}

/// The name is the first label of a host name.
fn check_name(name: &str, errors: &mut Errors) {
    let is_label = (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && !name.ends_with('-')
        && !name.contains("--");
    if !is_label {
        let message = format!(
            "The name '{}' is part of a host name: use 1 to 63 letters, digits and '-', begin with a letter, end with a letter or digit, and do not use '--'.",
            name.chars().take(80).collect::<String>()
        );
        errors.push(ArmError::new(400, "InvalidResourceName", message));
    }
}

/// The items of a list, up to a number; more are an error.
fn some<'d>(list: &Node<'d>, most: usize, errors: &mut Errors) -> Vec<Node<'d>> {
    let mut items = list.items();
    if items.len() > most {
        errors.invalid(&list.path, format!("Expected at most {most} items, found {}.", items.len()));
        items.truncate(most);
    }
    items
}

fn custom_domains(properties: &Node<'_>, errors: &mut Errors) -> Vec<CustomDomain> {
    let mut domains: Vec<CustomDomain> = Vec::new();
    for node in some(&properties.get("customDomains"), DOMAINS_MAX, errors) {
        let name_node = node.get("name");
        let Some(name) = required(&name_node, "A custom domain's name", errors) else { continue };
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if name.starts_with("*.") {
            errors.push(ArmError::not_implemented(
                &name_node.path,
                "A custom domain for all names below it",
                "name each host",
            ));
        } else if !is_host_name(&name) {
            errors.invalid(
                &name_node.path,
                format!("'{}' is not a host name.", name.chars().take(80).collect::<String>()),
            );
        }
        if domains.iter().any(|known| known.name == name) {
            errors.invalid(&name_node.path, format!("The custom domain '{name}' is given twice."));
        }
        let certificate_node = node.get("certificateId");
        let certificate = match certificate_node.text().map(ResourceId::parse) {
            Some(Ok(id)) => Some(id),
            Some(Err(error)) => {
                errors.invalid(&certificate_node.path, format!("{error}."));
                None
            }
            None => None,
        };
        let is_bound = node.get("bindingType").text() == Some("SniEnabled");
        if is_bound && certificate.is_none() {
            errors.invalid(&certificate_node.path, "The binding type 'SniEnabled' needs a certificateId.");
        }
        let is_disabled = node.get("bindingType").text() == Some("Disabled");
        domains.push(CustomDomain { name, certificate: certificate.filter(|_| !is_disabled) });
    }
    domains
}

fn routes(rule: &Node<'_>, errors: &mut Errors) -> Vec<HttpRoute> {
    let nodes = some(&rule.get("routes"), ROUTES_MAX, errors);
    if nodes.is_empty() {
        errors.invalid(&rule.get("routes").path, "A rule needs at least one route.");
    }
    let mut routes = Vec::new();
    for node in &nodes {
        let wanted = node.get("match");
        let given: Vec<(&str, Node<'_>)> = ["path", "prefix", "pathSeparatedPrefix"]
            .into_iter()
            .map(|name| (name, wanted.get(name)))
            .filter(|(_, node)| node.exists())
            .collect();
        let [(kind, place)] = given.as_slice() else {
            errors.invalid(&wanted.path, "A match has exactly one of path, prefix and pathSeparatedPrefix.");
            continue;
        };
        let text = place.text().unwrap_or_default().to_owned();
        if !text.starts_with('/') || text.contains(['?', '#']) {
            errors.invalid(&place.path, "A path begins with '/' and has no '?' and no '#'.");
        }
        let rewrite = node.get("action").get("prefixRewrite");
        let is_path = |text: &str| {
            text.starts_with('/')
                && text
                    .bytes()
                    .all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'<' | b'>' | b'^' | b'`' | b'\\'))
        };
        if rewrite.text().is_some_and(|text| !is_path(text)) {
            let message = "A path begins with '/' and has no '?' and no '#'; blanks and letters beyond ASCII are written as '%20'.";
            errors.invalid(&rewrite.path, message);
        }
        routes.push(HttpRoute {
            matcher: match *kind {
                "path" => PathMatcher::Path(text),
                "prefix" => PathMatcher::Prefix(text),
                _ => PathMatcher::PathSeparatedPrefix(text),
            },
            is_case_sensitive: wanted.get("caseSensitive").flag().unwrap_or(true),
            prefix_rewrite: rewrite.text().map(str::to_owned),
        });
    }
    routes
}

fn targets_of(rule: &Node<'_>, errors: &mut Errors) -> Vec<HttpRouteTarget> {
    let nodes = some(&rule.get("targets"), TARGETS_MAX, errors);
    if nodes.is_empty() {
        errors.invalid(&rule.get("targets").path, "A rule needs at least one target.");
    }
    let mut targets = Vec::new();
    let mut seen = BTreeSet::new();
    for node in &nodes {
        let Some(app) = required(&node.get("containerApp"), "The name of a container app", errors) else { continue };
        let (revision, label) = (node.get("revision").text(), node.get("label").text());
        if revision.is_some() && label.is_some() {
            errors.invalid(&node.path, "A target has a revision or a label, not both.");
        }
        if !seen.insert((app.to_ascii_lowercase(), revision, label)) {
            errors.invalid(&node.path, format!("The target '{app}' is given twice in one rule."));
        }
        let weight_node = node.get("weight");
        let weight = weight_node.int().map(|weight| u32::try_from(weight).ok().filter(|weight| *weight <= 100));
        if weight == Some(None) {
            errors.invalid(&weight_node.path, "A weight is a number from 0 to 100.");
        }
        targets.push(HttpRouteTarget {
            app: app.to_ascii_lowercase(),
            revision: revision.map(str::to_owned),
            label: label.map(str::to_owned),
            weight: weight.flatten(),
        });
    }
    let sum: u32 = targets.iter().filter_map(|target| target.weight).sum();
    let is_weighted = targets.iter().any(|target| target.weight.is_some());
    if (targets.len() > 1 || is_weighted) && (sum != 100 || targets.iter().any(|target| target.weight.is_none())) {
        let message = format!("Several targets need a weight each, together 100; they are {sum} together.");
        errors.invalid(&rule.get("targets").path, message);
    }
    targets
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::{Nulls, normalise};

    fn code(properties: Value) -> (u16, String) {
        let environment = ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", "env").unwrap();
        let mut errors = Errors::new();
        let doc = normalise(&json!({ "properties": properties }), &SCHEMA, Nulls::Drop, &mut errors);
        match parse(&environment.child("httpRouteConfigs", "routes").unwrap(), doc, errors) {
            Ok(_) => (200, String::new()),
            Err(error) => (error.status, error.target.unwrap_or_default()),
        }
    }

    fn rule(route: Value) -> Value {
        json!({ "rules": [{ "routes": [route], "targets": [{ "containerApp": "web" }] }] })
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        let rewrite = |to: &str| rule(json!({ "match": { "prefix": "/a" }, "action": { "prefixRewrite": to } }));
        assert_eq!(code(rewrite("/b/%20c~1")).0, 200);
        let place = "properties.rules[0].routes[0].action.prefixRewrite".to_owned();
        for bad in ["b", "/b?x=1", "/b#c", "/b c", "/é", "/b\\c"] {
            assert_eq!(code(rewrite(bad)), (400, place.clone()), "{bad}");
        }
        let mut body = rule(json!({ "match": { "prefix": "/" } }));
        body["customDomains"] = json!([{ "name": "*.example.com" }]);
        assert_eq!(code(body.clone()), (501, "properties.customDomains[0].name".to_owned()));
        body["customDomains"] = (0..=DOMAINS_MAX).map(|n| json!({ "name": format!("h{n}.example.com") })).collect();
        assert_eq!(code(body), (400, "properties.customDomains".to_owned()));
    }
}
