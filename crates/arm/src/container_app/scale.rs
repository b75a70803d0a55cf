//! Scale limits and rules.

use std::collections::BTreeSet;

use cove_model::{IdleState, Scale, ScaleMode, ScaleRule, ScaleRuleAuth, ScaleRuleKind};

use super::{check::Scope, later, scale_settings};
use crate::{ArmError, Errors, node::Node};

/// Most replicas that may be asked for.
const REPLICAS_MAX: u32 = 1000;
/// Longest polling interval and cool-down in seconds: a week.
const SECONDS_MAX: u32 = 7 * 24 * 3600;

/// Reads `template.scale`.
pub(super) fn read(node: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) -> Scale {
    let defaults = Scale::default();
    let min_replicas = limit(node, "minReplicas", 0..=REPLICAS_MAX, defaults.min_replicas, scope, errors);
    let max_replicas = limit(node, "maxReplicas", 1..=REPLICAS_MAX, defaults.max_replicas, scope, errors);
    if min_replicas > max_replicas {
        let message = format!(
            "minReplicas is {min_replicas} and maxReplicas {max_replicas} (10 unless given); min must not be above max."
        );
        errors.push(options_error("MinGreaterThanMax", scope, &message).at(&node.path));
    }
    later::check_custom_rules(node, scope, errors);
    Scale {
        min_replicas,
        max_replicas,
        cooldown_period_secs: limit(
            node,
            "cooldownPeriod",
            0..=SECONDS_MAX,
            defaults.cooldown_period_secs,
            scope,
            errors,
        ),
        polling_interval_secs: limit(
            node,
            "pollingInterval",
            1..=SECONDS_MAX,
            defaults.polling_interval_secs,
            scope,
            errors,
        ),
        rules: rules(&node.get("rules"), scope, errors),
        mode: match node.get("coveMode").text() {
            Some("fast") => Some(ScaleMode::Fast),
            Some(_) => Some(ScaleMode::Aca),
            None => None,
        },
        idle: if node.get("coveIdle").text() == Some("frozen") { IdleState::Frozen } else { IdleState::Zero },
        settings: scale_settings::read(&node.get("coveSettings"), errors),
    }
}

fn limit(
    scale: &Node<'_>,
    name: &str,
    allowed: std::ops::RangeInclusive<u32>,
    default: u32,
    scope: &Scope<'_>,
    errors: &mut Errors,
) -> u32 {
    let node = scale.get(name);
    let Some(number) = node.int() else { return default };
    if let Some(number) = u32::try_from(number).ok().filter(|number| allowed.contains(number)) {
        return number;
    }
    let code = match name {
        "minReplicas" => "MinReplicasOutOfRange",
        "maxReplicas" => "MaxReplicasOutOfRange",
        "cooldownPeriod" => "CooldownPeriodInvalid",
        _ => "PollingIntervalInvalid",
    };
    let unit = if name.ends_with("Replicas") { "" } else { " seconds" };
    let message = format!("{name} is {number}; expected {} to {}{unit}.", allowed.start(), allowed.end());
    errors.push(options_error(code, scope, &message).at(&node.path));
    // kept, so that "min above max" is told as well; with an error nothing of it is used
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}

fn options_error(code: &str, scope: &Scope<'_>, message: &str) -> ArmError {
    ArmError::new(
        400,
        code,
        format!("The scale options provided for Container App '{}' are incorrect. {message}", scope.app),
    )
}

fn rule_error(code: &str, name: &str, node: &Node<'_>, message: &str) -> ArmError {
    let shown: String = name.chars().take(80).collect();
    ArmError::new(400, code, format!("The scale rule '{shown}' is invalid. {message}")).at(&node.path)
}

fn rules(node: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) -> Vec<ScaleRule> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for item in node.items() {
        let name_node = item.get("name");
        let name = name_node.text().unwrap_or("").trim();
        if name.is_empty() {
            errors.push(rule_error("RuleNameMissing", name, &name_node, "A scale rule needs a name."));
        } else if !seen.insert(name.to_owned()) {
            errors.push(rule_error("RuleNameDuplicate", name, &name_node, "Names of scale rules must be unique."));
        }
        let given: Vec<&str> =
            ["http", "tcp", "custom", "azureQueue"].into_iter().filter(|kind| item.get(kind).exists()).collect();
        match given[..] {
            [kind] => {
                if let Some(kind) = rule(name, kind, &item.get(kind), scope, errors) {
                    all.push(ScaleRule { name: name.to_owned(), kind });
                }
            }
            [] => {
                let message = "It must have either Azure Queue or HTTP or TCP or Custom Rule specified.";
                errors.push(rule_error("RuleTypeMissing", name, &item, message));
            }
            _ => {
                let message = format!("It has {}; give exactly one of them.", given.join(" and "));
                errors.push(rule_error("RuleTypeAmbiguous", name, &item, &message));
            }
        }
    }
    all
}

fn rule(name: &str, kind: &str, node: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) -> Option<ScaleRuleKind> {
    let auth = auth(name, node, scope, errors);
    let identity = node.get("identity");
    later::check_identity_ref(&identity, &scope.identities, errors);
    let identity = identity.text().map(str::to_owned);
    match kind {
        "http" | "tcp" => request_rule(name, kind, node, errors),
        "custom" => custom_rule(name, node, auth, identity, errors),
        _ => {
            let (queue, length) = (node.get("queueName"), node.get("queueLength"));
            if queue.text().is_none_or(str::is_empty) {
                errors.push(rule_error("MetadataInvalid", name, &queue, "azureQueue needs a queueName."));
            }
            let given = length.int().map(|number| u32::try_from(number).unwrap_or(0));
            if given == Some(0) {
                let message = "queueLength must be a whole number of at least 1.";
                errors.push(rule_error("MetadataInvalid", name, &length, message));
            }
            Some(ScaleRuleKind::AzureQueue {
                account_name: node.get("accountName").text().map(str::to_owned),
                queue_name: queue.text().unwrap_or("").to_owned(),
                queue_length: given.unwrap_or(5),
                auth,
                identity,
            })
        }
    }
}

fn request_rule(name: &str, kind: &str, node: &Node<'_>, errors: &mut Errors) -> Option<ScaleRuleKind> {
    let is_http = kind == "http";
    let key = if is_http { "concurrentRequests" } else { "concurrentConnections" };
    let code = if is_http { "HttpConcurrencyInvalid" } else { "TcpConcurrencyInvalid" };
    let members = node.get("metadata").members();
    let found = members.iter().find(|(given, _)| given.eq_ignore_ascii_case(key));
    let count = match found.and_then(|(_, value)| value.text()) {
        None => Some(10),
        Some(text) => text.trim().parse().ok().filter(|count: &u32| *count >= 1),
    };
    if count.is_none() {
        let message = format!("metadata.{key} must be a whole number of at least 1.");
        errors.push(rule_error(code, name, &node.get("metadata").get(key), &message));
    }
    Some(if is_http {
        ScaleRuleKind::Http { concurrent_requests: count? }
    } else {
        ScaleRuleKind::Tcp { concurrent_connections: count? }
    })
}

fn custom_rule(
    name: &str,
    node: &Node<'_>,
    auth: Vec<ScaleRuleAuth>,
    identity: Option<String>,
    errors: &mut Errors,
) -> Option<ScaleRuleKind> {
    let kind = node.get("type");
    match kind.text().map(str::trim) {
        None | Some("") => {
            let message = "A custom rule needs a type, such as 'redis'.";
            errors.push(rule_error("CustomTypeMissing", name, &kind, message));
            None
        }
        Some(reserved @ ("http" | "tcp")) => {
            let message = format!("'{reserved}' is a rule of its own, not a custom type.");
            errors.push(rule_error("CustomTypeReserved", name, &kind, &message));
            None
        }
        Some(scaler) => {
            let metadata = node.get("metadata").members();
            let metadata =
                metadata.iter().map(|(key, value)| ((*key).to_owned(), value.text().unwrap_or("").to_owned()));
            Some(ScaleRuleKind::Custom { scaler: scaler.to_owned(), metadata: metadata.collect(), auth, identity })
        }
    }
}

fn auth(name: &str, node: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) -> Vec<ScaleRuleAuth> {
    let mut all = Vec::new();
    for item in node.get("auth").items() {
        let (secret, parameter) = (item.get("secretRef"), item.get("triggerParameter"));
        if parameter.text().is_none_or(str::is_empty) {
            let message = "An auth entry needs a triggerParameter.";
            errors.push(rule_error("AuthTriggerParameterMissing", name, &parameter, message));
        }
        let found = secret.text().unwrap_or("");
        if !scope.secrets.contains(found) {
            let message = format!("The secret '{found}' of an auth entry does not exist.");
            errors.push(rule_error("AuthSecretNotFound", name, &secret, &message));
        }
        all.push(ScaleRuleAuth {
            secret_ref: found.to_owned(),
            trigger_parameter: parameter.text().unwrap_or("").to_owned(),
        });
    }
    all
}
