//! `managedEnvironments/daprComponents` and their `resiliencyPolicies`.
//!
//! Azure has a schema of its own for components; what Dapr itself and the guides for Kubernetes write
//! (`apiVersion: dapr.io/v1alpha1 … spec.type`) is brought to that first.
//!
//! **Invariant:** the document never holds a secret's value.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde_json::{Map, Value, json};

use super::child::{required, strip};
use crate::{ArmError, Errors, node::Node, schema::Schema};

/// Body of a component.
pub static SCHEMA: Schema = Schema::Object(&[(
    "properties",
    &Schema::Object(&[
        ("componentType", &Schema::Text),
        ("version", &Schema::Text),
        ("ignoreErrors", &Schema::Bool),
        ("initTimeout", &Schema::TextOrAbsent),
        ("secretStoreComponent", &Schema::TextOrAbsent),
        (
            "secrets",
            &Schema::List(&Schema::Object(&[
                ("name", &Schema::Text),
                ("value", &Schema::Text),
                ("identity", &Schema::TextOrAbsent),
                ("keyVaultUrl", &Schema::TextOrAbsent),
            ])),
        ),
        (
            "metadata",
            &Schema::List(&Schema::Object(&[
                ("name", &Schema::Text),
                ("value", &Schema::Text),
                ("secretRef", &Schema::TextOrAbsent),
            ])),
        ),
        ("scopes", &Schema::List(&Schema::Text)),
    ]),
)]);

static POLICY: Schema = Schema::Object(&[
    (
        "httpRetryPolicy",
        &Schema::Object(&[
            ("maxRetries", &Schema::Int),
            (
                "retryBackOff",
                &Schema::Object(&[
                    ("initialDelayInMilliseconds", &Schema::Int),
                    ("maxIntervalInMilliseconds", &Schema::Int),
                ]),
            ),
        ]),
    ),
    ("timeoutPolicy", &Schema::Object(&[("responseTimeoutInSeconds", &Schema::Int)])),
    (
        "circuitBreakerPolicy",
        &Schema::Object(&[
            ("consecutiveErrors", &Schema::Int),
            ("timeoutInSeconds", &Schema::Int),
            ("intervalInSeconds", &Schema::Int),
        ]),
    ),
]);

/// Body of a resiliency policy.
pub static POLICY_SCHEMA: Schema =
    Schema::Object(&[("properties", &Schema::Object(&[("inboundPolicy", &POLICY), ("outboundPolicy", &POLICY)]))]);

/// First parts of component types: Dapr's building blocks.
const BLOCKS: [&str; 11] = [
    "bindings",
    "configuration",
    "conversation",
    "crypto",
    "cryptography",
    "jobs",
    "lock",
    "middleware",
    "pubsub",
    "secretstores",
    "state",
];

/// What every answer about a component says.
pub const NO_EFFECT: &str = "Dapr has no effect yet: the component is stored and returned, no app can call it.";

/// A checked component; its `Debug` text has no secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Component {
    /// The document; its secrets have names only.
    pub doc: Value,
    /// Secrets; `None` keeps the value there is.
    pub secrets: BTreeMap<String, Option<String>>,
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets: Vec<&String> = self.secrets.keys().collect();
        f.debug_struct("Component").field("doc", &self.doc).field("secrets", &secrets).finish()
    }
}

/// The component in Azure's shape, whichever shape it came in.
#[must_use]
pub fn from_any_shape(body: &Value) -> Value {
    let inner = body.get("properties").unwrap_or(body);
    let field = |value: &Value, name: &str| {
        let fields = value.as_object()?;
        fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
    };
    let is_component = field(inner, "kind").and_then(|kind| Some(kind.as_str()?.eq_ignore_ascii_case("Component")));
    let (Some(true), Some(spec)) = (is_component, field(inner, "spec")) else { return body.clone() };
    let mut properties = Map::new();
    let mut keep = |name: &str, value: Option<Value>| {
        if let Some(value) = value.filter(|value| !value.is_null()) {
            properties.insert(name.to_owned(), value);
        }
    };
    keep("componentType", field(&spec, "type"));
    for name in ["version", "ignoreErrors", "initTimeout"] {
        keep(name, field(&spec, name));
    }
    keep("scopes", field(inner, "scopes"));
    keep("secretStoreComponent", field(inner, "auth").and_then(|auth| field(&auth, "secretStore")));
    let item = |item: &Value| {
        let mut item = item.clone();
        let key = item.get("secretKeyRef").map(|key| key.get("key").or_else(|| key.get("name")).cloned());
        if let (Some(fields), Some(Some(key))) = (item.as_object_mut(), key) {
            fields.remove("secretKeyRef");
            fields.insert("secretRef".into(), key);
        }
        item
    };
    let metadata = field(&spec, "metadata");
    keep("metadata", metadata.as_ref().and_then(Value::as_array).map(|items| items.iter().map(item).collect()));
    json!({ "properties": properties })
}

/// Checks a component; `known_secrets` are the names that have a value already.
///
/// # Errors
/// Every problem at once.
pub fn parse(mut doc: Value, mut errors: Errors, known_secrets: &BTreeSet<String>) -> Result<Component, ArmError> {
    strip(&mut doc, &[]);
    let properties = Node::root(&doc).get("properties");
    check_type(&properties, &mut errors);
    let secrets = check_secrets(&properties, known_secrets, &mut errors);
    check_metadata(&properties, &secrets, &mut errors);
    let mut seen = BTreeSet::new();
    for scope in properties.get("scopes").items() {
        match scope.text() {
            Some(text) if !text.is_empty() && seen.insert(text) => {}
            Some("") | None => errors.invalid(&scope.path, "A scope is the Dapr app id of an app; it cannot be empty."),
            Some(text) => errors.invalid(&scope.path, format!("The scope '{text}' is given twice.")),
        }
    }
    let timeout = properties.get("initTimeout");
    if timeout.text().is_some_and(|text| !is_go_duration(text)) {
        errors.invalid(&timeout.path, "The value is not a duration such as '5s', '500ms' or '1m30s'.");
    }
    errors.into_result()?;
    for secret in doc.pointer_mut("/properties/secrets").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(fields) = secret.as_object_mut() {
            fields.remove("value");
        }
    }
    Ok(Component { doc, secrets })
}

fn check_type(properties: &Node<'_>, errors: &mut Errors) {
    let node = properties.get("componentType");
    if let Some(kind) = required(&node, "The component's type, such as 'state.redis',", errors) {
        let (block, rest) = kind.split_once('.').unwrap_or((kind, ""));
        let is_rest = !rest.is_empty()
            && rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/'));
        if !BLOCKS.contains(&block) || !is_rest {
            let shown: String = kind.chars().take(64).collect();
            let blocks = BLOCKS.join(", ");
            errors.invalid(
                &node.path,
                format!("'{shown}' is not a component type; expected <block>.<name>, with one of the blocks {blocks}."),
            );
        } else if kind.starts_with("secretstores.local.") || kind == "secretstores.kubernetes" {
            errors
                .invalid(&node.path, format!("'{kind}' is not available; use a secret store outside of the machine."));
        }
    }
    let node = properties.get("version");
    if let Some(version) = required(&node, "The component's version, such as 'v1',", errors) {
        let digits = version.strip_prefix('v').unwrap_or("");
        let is_version = digits.starts_with(|c: char| c.is_ascii_digit())
            && digits.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !is_version {
            errors.invalid(&node.path, format!("'{}' is not a version; expected 'v1' or alike.", cut(version)));
        }
    }
}

fn check_secrets(
    properties: &Node<'_>,
    known: &BTreeSet<String>,
    errors: &mut Errors,
) -> BTreeMap<String, Option<String>> {
    let mut secrets = BTreeMap::new();
    for secret in properties.get("secrets").items() {
        let node = secret.get("name");
        let Some(name) = required(&node, "A secret's name", errors) else { continue };
        let is_name = name.len() <= 253
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.ends_with(|c: char| c.is_ascii_alphanumeric());
        if !is_name {
            let rule = "use lower case letters, digits, '-' and '.', with a letter or digit at both ends";
            errors.invalid(&node.path, format!("'{}' is not a secret's name; {rule}.", cut(name)));
        }
        let value = secret.get("value").text().map(str::to_owned);
        if value.is_none() && !known.contains(name) && !secret.get("keyVaultUrl").exists() {
            errors.invalid(&secret.path, format!("The secret '{}' has no value, and none is stored.", cut(name)));
        }
        if secrets.insert(name.to_owned(), value).is_some() {
            errors.invalid(&node.path, format!("The secret '{}' is given twice.", cut(name)));
        }
    }
    secrets
}

fn check_metadata(properties: &Node<'_>, secrets: &BTreeMap<String, Option<String>>, errors: &mut Errors) {
    let has_store = properties.get("secretStoreComponent").exists();
    let mut seen = BTreeSet::new();
    for item in properties.get("metadata").items() {
        let node = item.get("name");
        let Some(name) = required(&node, "The name of a metadata item", errors) else { continue };
        if !seen.insert(name.to_ascii_lowercase()) {
            errors.invalid(&node.path, format!("The metadata item '{}' is given twice.", cut(name)));
        }
        let reference = item.get("secretRef");
        match (item.get("value").exists(), reference.text()) {
            (true, Some(_)) => errors.invalid(
                &item.path,
                format!("The metadata item '{}' has a value and a secretRef; give one of them.", cut(name)),
            ),
            (false, Some(secret)) if !has_store && !secrets.contains_key(secret) => errors.invalid(
                &reference.path,
                format!(
                    "The secret '{}' does not exist; add it to `secrets` or name a secretStoreComponent.",
                    cut(secret)
                ),
            ),
            (true | false, None) | (false, Some(_)) => {}
        }
    }
    if has_store && !secrets.is_empty() {
        errors.invalid(
            &properties.get("secretStoreComponent").path,
            "A component has secrets of its own or a secretStoreComponent, not both.",
        );
    }
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Go's notation: `5s`, `500ms`, `1m30s`.
fn is_go_duration(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let number = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let after = &rest[number..];
        let unit = ["ms", "us", "ns", "h", "m", "s"].into_iter().find(|unit| after.starts_with(unit));
        match unit {
            Some(unit) if number > 0 => rest = &after[unit.len()..],
            Some(_) | None => return false,
        }
    }
    !text.is_empty()
}

/// Checks a resiliency policy.
///
/// # Errors
/// Every problem at once.
pub fn parse_policy(mut doc: Value, mut errors: Errors) -> Result<Value, ArmError> {
    strip(&mut doc, &[]);
    let properties = Node::root(&doc).get("properties");
    let (inbound, outbound) = (properties.get("inboundPolicy"), properties.get("outboundPolicy"));
    if !inbound.exists() && !outbound.exists() {
        errors.invalid("properties", "A policy needs an inboundPolicy or an outboundPolicy.");
    }
    for policy in [inbound, outbound] {
        let retry = policy.get("httpRetryPolicy");
        let (timeout, breaker) = (policy.get("timeoutPolicy"), policy.get("circuitBreakerPolicy"));
        let back_off = retry.get("retryBackOff");
        let (first, last) = (back_off.get("initialDelayInMilliseconds"), back_off.get("maxIntervalInMilliseconds"));
        for (node, range) in [
            (retry.get("maxRetries"), 0..=1000),
            (first.clone(), 1..=86_400_000),
            (last.clone(), 1..=86_400_000),
            (timeout.get("responseTimeoutInSeconds"), 1..=86_400),
            (breaker.get("consecutiveErrors"), 1..=10_000),
            (breaker.get("timeoutInSeconds"), 1..=86_400),
            (breaker.get("intervalInSeconds"), 0..=86_400),
        ] {
            if let Some(number) = node.int().filter(|number| !range.contains(number)) {
                let (low, high) = (range.start(), range.end());
                errors.invalid(&node.path, format!("{number} is out of range; expected {low} to {high}."));
            }
        }
        if let (Some(low), Some(high)) = (first.int(), last.int())
            && low > high
        {
            errors.invalid(&back_off.path, "The initial delay is longer than the longest interval.");
        }
    }
    errors.into_result()?;
    Ok(doc)
}
