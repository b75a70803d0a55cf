//! The rules of scale properties: name, type, metadata, authentication.
//!
//! **Invariant:** a rule that is wrong still counts as a rule, so that one mistake does not look like two.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::catalogue::{Key, keys_of, scalers};
use super::{ErrorCode, Findings, Seen, Surroundings, WarningCode, hints, present};

const TYPES: [&str; 4] = ["http", "tcp", "custom", "azureQueue"];

/// Looks at every rule of `scale`.
pub(super) fn check(scale: &Value, around: &Surroundings, findings: &mut Findings) -> Seen {
    let mut seen = Seen::default();
    let mut names = BTreeSet::new();
    let rules = present(scale, "rules").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for (index, rule) in rules.iter().enumerate() {
        let place = format!("rules[{index}]");
        seen.total += 1;
        let name = text(rule, "name");
        if name.is_empty() {
            findings.error(ErrorCode::RuleNameMissing, &place, "a scale rule needs a name");
        } else if !names.insert(name.to_owned()) {
            findings.error(ErrorCode::RuleNameDuplicate, &place, "names of scale rules must be unique");
        }
        findings.rules.push(name.to_owned());
        if around.is_job {
            job_rule(rule, &place, around, findings);
            continue;
        }
        let given: Vec<&str> = TYPES.into_iter().filter(|kind| present(rule, kind).is_some()).collect();
        match given[..] {
            [kind] => app_rule(kind, &rule[kind], &format!("{place}.{kind}"), around, &mut seen, findings),
            [] => {
                let message = "it needs one of http, tcp, custom and azureQueue";
                findings.error(ErrorCode::RuleTypeMissing, &place, message);
            }
            _ => {
                let message = format!("it has {}; give exactly one", given.join(" and "));
                findings.error(ErrorCode::RuleTypeAmbiguous, &place, &message);
            }
        }
    }
    seen
}

fn app_rule(kind: &str, rule: &Value, place: &str, around: &Surroundings, seen: &mut Seen, findings: &mut Findings) {
    auth(rule, place, around, findings);
    match kind {
        "http" => concurrency(rule, place, &["concurrentRequests"], ErrorCode::HttpConcurrencyInvalid, findings),
        "tcp" => {
            let keys = ["concurrentConnections", "concurrentRequests"];
            concurrency(rule, place, &keys, ErrorCode::TcpConcurrencyInvalid, findings);
        }
        "custom" => {
            let scaler = text(rule, "type");
            if matches!(scaler, "cpu" | "memory") {
                seen.resource += 1;
            } else {
                seen.event += 1;
            }
            custom(scaler, rule, place, findings);
        }
        _ => {
            seen.event += 1;
            if text(rule, "queueName").is_empty() {
                findings.error(ErrorCode::MetadataInvalid, place, "azureQueue needs a queueName");
            }
            if present(rule, "queueLength").is_some_and(|length| !is_count(length)) {
                findings.error(ErrorCode::MetadataInvalid, place, "queueLength must be a whole number, at least 1");
            }
            let given = |key: &str| !text(rule, key).is_empty() || has_auth(rule, key);
            hints::check("azure-queue", &given, place, findings);
        }
    }
}

/// A job's rule has its scaler and metadata beside its name.
fn job_rule(rule: &Value, place: &str, around: &Surroundings, findings: &mut Findings) {
    auth(rule, place, around, findings);
    let message = "a job has no ingress; use a custom rule";
    match text(rule, "type") {
        "http" => findings.error(ErrorCode::HttpRuleOnJob, place, message),
        "tcp" => findings.error(ErrorCode::TcpRuleOnJob, place, message),
        "" => findings.error(ErrorCode::RuleTypeMissing, place, "it needs a type"),
        scaler => custom(scaler, rule, place, findings),
    }
}

fn concurrency(rule: &Value, place: &str, keys: &[&str], code: ErrorCode, findings: &mut Findings) {
    let Some(metadata) = metadata(rule) else { return };
    for (name, value) in metadata {
        if !keys.iter().any(|key| key.eq_ignore_ascii_case(name)) {
            let message = format!("`{name}` is not read; known: {}", keys.join(", "));
            findings.warn(WarningCode::UnknownMetadataKey, place, &message);
        } else if !value.is_null() && !is_count(value) {
            findings.error(code, place, &format!("{name} must be a whole number, at least 1"));
        }
    }
}

fn custom(scaler: &str, rule: &Value, place: &str, findings: &mut Findings) {
    match scaler {
        "" => {
            findings.error(ErrorCode::CustomTypeMissing, place, "a custom rule needs a type, such as `redis`");
            return;
        }
        "http" | "tcp" => {
            let message = format!("`{scaler}` is a rule of its own, not a custom type");
            findings.error(ErrorCode::CustomTypeReserved, place, &message);
            return;
        }
        _ => {}
    }
    let Some(keys) = keys_of(scaler) else {
        let known: Vec<&str> = scalers().collect();
        let message = format!("`{scaler}` is not a known scaler; known: {}", known.join(", "));
        findings.error(ErrorCode::CustomTypeUnknown, place, &message);
        return;
    };
    let keys: Vec<Key<'_>> = keys.collect();
    let empty = Map::new();
    let metadata = metadata(rule).unwrap_or(&empty);
    for key in &keys {
        key_value(key, &keys, metadata, rule, place, findings);
    }
    for name in metadata.keys() {
        metadata_key(name, scaler, &keys, place, findings);
    }
    for entry in auth_entries(rule) {
        auth_parameter(text(entry, "triggerParameter"), scaler, &keys, place, findings);
    }
    whole_rule(scaler, metadata, place, findings);
    values(scaler, &keys, metadata, place, findings);
    let given = |key: &str| is_given(key, &keys, metadata, rule);
    hints::check(scaler, &given, place, findings);
}

/// Says that a metadata key is not read, or is not read here, or not from metadata.
fn metadata_key(name: &str, scaler: &str, keys: &[Key<'_>], place: &str, findings: &mut Findings) {
    let key = keys.iter().find(|key| key.name == name);
    let by_env = || keys.iter().find(|key| key.from_env && name.strip_suffix("FromEnv") == Some(key.name));
    let message = match key.or_else(by_env) {
        Some(key) if !key.has_effect => format!("`{name}` of `{scaler}` has no effect here"),
        Some(key) if key.name == name && !key.in_metadata => {
            let from_env = if key.from_env { format!(", or name a variable in {name}FromEnv") } else { String::new() };
            format!("`{name}` is not read from metadata; give it by auth{from_env}")
        }
        Some(_) => return,
        None => format!("`{name}` is not read by `{scaler}`"),
    };
    findings.warn(WarningCode::UnknownMetadataKey, place, &message);
}

/// Says that an auth parameter is not read, or not here.
fn auth_parameter(name: &str, scaler: &str, keys: &[Key<'_>], place: &str, findings: &mut Findings) {
    let message = match keys.iter().find(|key| key.name == name) {
        _ if name.is_empty() => return,
        Some(key) if !key.has_effect => format!("`{name}` of `{scaler}` has no effect here"),
        Some(key) if key.from_auth => return,
        Some(_) => format!("`{name}` of `{scaler}` is metadata, not an auth parameter"),
        None => format!("auth parameter `{name}` is not read by `{scaler}`"),
    };
    findings.warn(WarningCode::UnknownMetadataKey, place, &message);
}

/// Whether a key has a value, wherever it may come from; `identity` is the rule's own property.
fn is_given(name: &str, keys: &[Key<'_>], metadata: &Map<String, Value>, rule: &Value) -> bool {
    if name == "identity" {
        return present(rule, "identity").is_some();
    }
    let Some(key) = keys.iter().find(|key| key.name == name) else { return false };
    let is_full = |name: &str| metadata.get(name).map(plain).is_some_and(|value| !value.is_empty());
    (key.in_metadata && is_full(name))
        || (key.from_env && is_full(&format!("{name}FromEnv")))
        || (key.from_auth && has_auth(rule, name))
}

/// Values that the scaler cannot use. A key that comes from the environment or a secret is not known yet.
fn values(scaler: &str, keys: &[Key<'_>], metadata: &Map<String, Value>, place: &str, findings: &mut Findings) {
    let lookup = |name: &str| {
        let given = metadata.get(name).map(plain).filter(|value| !value.is_empty());
        let key = keys.iter().find(|key| key.name == name);
        let elsewhere = key.is_some_and(|key| key.from_env && metadata.contains_key(&format!("{name}FromEnv")));
        given.or_else(|| elsewhere.then(|| "1".to_owned()))
    };
    let Err(error) = crate::source::Scaler::parse(scaler, &lookup) else { return };
    for reason in error.reasons {
        // What the catalogue has already found is not said twice.
        let subject = reason.split(' ').next().unwrap_or_default().to_owned();
        let said = findings
            .errors
            .iter()
            .any(|error| error.place == place && error.message.split(' ').next() == Some(subject.as_str()));
        if !said {
            findings.error(ErrorCode::MetadataInvalid, place, &reason);
        }
    }
}

fn key_value(
    key: &Key<'_>,
    keys: &[Key<'_>],
    metadata: &Map<String, Value>,
    rule: &Value,
    place: &str,
    findings: &mut Findings,
) {
    let given = metadata.get(key.name).map(plain).filter(|value| !value.is_empty());
    if let Some(value) = &given
        && !key.allowed.is_empty()
        && !key.allowed.split('|').any(|allowed| allowed == value)
    {
        let message = format!("{} is `{value}`; expected one of {}", key.name, key.allowed.replace('|', ", "));
        findings.error(ErrorCode::MetadataInvalid, place, &message);
    }
    let by_identity = || key.from_auth && present(rule, "identity").is_some();
    if key.required && !is_given(key.name, keys, metadata, rule) && !by_identity() {
        findings.error(ErrorCode::MetadataInvalid, place, &format!("{} is missing", key.name));
    }
}

/// What no single key can say.
fn whole_rule(scaler: &str, metadata: &Map<String, Value>, place: &str, findings: &mut Findings) {
    let has = |key: &str| metadata.get(key).map(plain).is_some_and(|value| !value.is_empty());
    let message = match scaler {
        "cpu" | "memory" if has("value") && !metadata.get("value").is_some_and(is_amount) => {
            "value must be a whole number of at least 1, or a quantity (`500m`, `200Mi`) for AverageValue"
        }
        "azure-servicebus" if has("queueName") == has("topicName") => "give either queueName or topicName",
        "azure-servicebus" if has("topicName") && !has("subscriptionName") => "a topic needs a subscriptionName",
        _ => return,
    };
    findings.error(ErrorCode::MetadataInvalid, place, message);
}

fn auth(rule: &Value, place: &str, around: &Surroundings, findings: &mut Findings) {
    for entry in auth_entries(rule) {
        if text(entry, "triggerParameter").is_empty() {
            let message = "an auth entry needs a triggerParameter";
            findings.error(ErrorCode::AuthTriggerParameterMissing, place, message);
        }
        let secret = text(entry, "secretRef");
        if !around.secrets.contains(secret) {
            findings.error(ErrorCode::AuthSecretNotFound, place, &format!("there is no secret `{secret}`"));
        }
    }
}

fn has_auth(rule: &Value, parameter: &str) -> bool {
    auth_entries(rule).iter().any(|entry| text(entry, "triggerParameter") == parameter)
}

fn auth_entries(rule: &Value) -> &[Value] {
    present(rule, "auth").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn metadata(rule: &Value) -> Option<&Map<String, Value>> {
    present(rule, "metadata").and_then(Value::as_object)
}

/// The trimmed text of a member; empty when it is missing or no text.
fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or("").trim()
}

/// Metadata values are strings; numbers and booleans are taken as they would be written.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.trim().to_owned(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A count, or a Kubernetes quantity such as `500m` or `200Mi`.
fn is_amount(value: &Value) -> bool {
    let text = plain(value);
    let number = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let unit = &text[number.len()..];
    matches!(unit, "" | "m" | "k" | "Ki" | "M" | "Mi" | "G" | "Gi") && number.parse::<u32>().is_ok_and(|n| n >= 1)
}

fn is_count(value: &Value) -> bool {
    plain(value).parse::<u32>().is_ok_and(|count| count >= 1)
}
