//! What is wrong, or surprising, with scale properties as a user writes them.
//!
//! Works on the JSON of `template.scale` (apps) or `eventTriggerConfig.scale` (jobs), since most mistakes cannot be
//! expressed in the model. Everything wrong is reported at once; nothing is corrected in silence.
//!
//! **Invariant:** total: any JSON gives findings, never a panic.

mod catalogue;
mod hints;
mod rules;

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

pub use catalogue::{Key, keys_of, scalers};

use crate::config::DEFAULT_RULE_NAME;

/// Highest legal `minReplicas` and `maxReplicas`.
pub const REPLICAS_MAX: i64 = 1000;

/// What surrounds the scale properties.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// An event-driven job; otherwise an app.
    pub is_job: bool,
    /// Whether the app has ingress.
    pub has_ingress: bool,
    /// Whether several revisions may be active.
    pub multiple_revisions: bool,
    /// Whether the app hosts Dapr actors.
    pub dapr_actors: bool,
    /// Names of the app's secrets.
    pub secrets: BTreeSet<String>,
}

/// All findings, and what the properties come to when there is no error.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Reject the request.
    pub errors: BTreeSet<Finding<ErrorCode>>,
    /// Accepted, but worth saying.
    pub warnings: BTreeSet<Finding<WarningCode>>,
    /// Why a rule that is accepted will never be read: place and reason.
    pub hints: BTreeSet<(String, String)>,
    /// Limits after defaults; `None` for jobs and where they are wrong.
    pub limits: Option<(i64, i64)>,
    /// Names of the rules in force, the default rule included.
    pub rules: Vec<String>,
}

/// One finding: what, and where in the properties.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding<C> {
    /// What.
    pub code: C,
    /// Path within the scale properties, such as `rules[0].http`.
    pub place: String,
    /// What would be right.
    pub message: String,
}

/// Codes of errors; their spelling is part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum ErrorCode {
    /// `minReplicas` is no whole number of 0..=1000.
    MinReplicasOutOfRange,
    /// `maxReplicas` is no whole number of 1..=1000.
    MaxReplicasOutOfRange,
    /// After defaults.
    MinGreaterThanMax,
    /// Less than 1 second.
    PollingIntervalInvalid,
    /// Less than 0 seconds.
    CooldownPeriodInvalid,
    /// `minExecutions` is no whole number of at least 0.
    MinExecutionsOutOfRange,
    /// `maxExecutions` is no whole number of at least 1.
    MaxExecutionsOutOfRange,
    /// An event-driven job without a rule.
    RulesRequired,
    /// Empty or missing.
    RuleNameMissing,
    /// Given twice.
    RuleNameDuplicate,
    /// None of http, tcp, custom, azureQueue.
    RuleTypeMissing,
    /// Several of them.
    RuleTypeAmbiguous,
    /// `concurrentRequests` is no whole number of at least 1.
    HttpConcurrencyInvalid,
    /// `concurrentConnections` is no whole number of at least 1.
    TcpConcurrencyInvalid,
    /// Jobs have no ingress.
    HttpRuleOnJob,
    /// Jobs have no ingress.
    TcpRuleOnJob,
    /// A custom rule without a type.
    CustomTypeMissing,
    /// `http` or `tcp` as a custom type.
    CustomTypeReserved,
    /// Not a scaler of the catalogue.
    CustomTypeUnknown,
    /// A required key is missing, or a value is none of those allowed.
    MetadataInvalid,
    /// `auth` names a secret that is not there.
    AuthSecretNotFound,
    /// An `auth` entry without a parameter.
    AuthTriggerParameterMissing,
}

/// Codes of warnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum WarningCode {
    /// Ingress and no rule: http, 10.
    DefaultRuleApplied,
    /// No ingress, no rule, minimum 0: it goes to zero and nothing starts it.
    NoWayToStart,
    /// Only cpu and memory rules: never below 1.
    ResourceRulesNeverReachZero,
    /// Every active revision reads the same source.
    EventRuleInMultipleRevisions,
    /// A key that nothing reads.
    UnknownMetadataKey,
    /// Actors of an app at zero are not found.
    DaprActorsScaleToZero,
}

/// Whether a scaler reads a key; no for a scaler that is not in the catalogue.
pub fn reads(scaler: &str, key: &str) -> bool {
    keys_of(scaler).is_some_and(|mut keys| keys.any(|known| known.name == key && known.has_effect))
}

/// Whether a scaler reads a key from metadata itself, not only from a variable or a secret; yes for a key that it does
/// not know.
pub fn reads_in_metadata(scaler: &str, key: &str) -> bool {
    keys_of(scaler).is_none_or(|mut keys| keys.find(|known| known.name == key).is_none_or(|known| known.in_metadata))
}

/// Looks at scale properties; `scale` may be null.
pub fn validate(scale: &Value, around: &Surroundings) -> Findings {
    let mut findings = Findings::default();
    if around.is_job {
        job_limits(scale, &mut findings);
    } else {
        app_limits(scale, &mut findings);
    }
    at_least(scale, "pollingInterval", 1, ErrorCode::PollingIntervalInvalid, &mut findings);
    at_least(scale, "cooldownPeriod", 0, ErrorCode::CooldownPeriodInvalid, &mut findings);
    let seen = rules::check(scale, around, &mut findings);
    if around.is_job {
        if seen.total == 0 {
            findings.error(ErrorCode::RulesRequired, "rules", "an event-driven job needs at least one rule");
        }
        return findings;
    }
    app_warnings(around, &seen, &mut findings);
    findings
}

/// How many rules of which class there are.
#[derive(Default)]
struct Seen {
    total: usize,
    resource: usize,
    event: usize,
}

fn app_warnings(around: &Surroundings, seen: &Seen, findings: &mut Findings) {
    let min_zero = findings.limits.is_none_or(|(min, _)| min == 0);
    if seen.total == 0 && around.has_ingress {
        findings.rules.push(DEFAULT_RULE_NAME.to_owned());
        findings.warn(WarningCode::DefaultRuleApplied, "rules", "the default rule applies: http, 10 per replica");
    }
    if seen.total == 0 && !around.has_ingress && min_zero {
        let message = "it goes to zero and nothing starts it again; add a rule, enable ingress or set minReplicas";
        findings.warn(WarningCode::NoWayToStart, "rules", message);
    }
    if seen.total > 0 && seen.resource == seen.total && min_zero {
        let message = "cpu and memory rules alone never reach zero; at least 1 replica runs";
        findings.warn(WarningCode::ResourceRulesNeverReachZero, "rules", message);
    }
    if seen.event > 0 && around.multiple_revisions {
        let message = "every active revision reads the same source and scales for all of it; use Single mode";
        findings.warn(WarningCode::EventRuleInMultipleRevisions, "rules", message);
    }
    if around.dapr_actors && min_zero {
        let message = "actors of an app at zero cannot be called; set minReplicas to 1";
        findings.warn(WarningCode::DaprActorsScaleToZero, "minReplicas", message);
    }
}

fn app_limits(scale: &Value, findings: &mut Findings) {
    use ErrorCode::{MaxReplicasOutOfRange, MinGreaterThanMax, MinReplicasOutOfRange};
    let before = findings.errors.len();
    let min = limit(scale, "minReplicas", 0, (0, REPLICAS_MAX), MinReplicasOutOfRange, findings);
    let max = limit(scale, "maxReplicas", 10, (1, REPLICAS_MAX), MaxReplicasOutOfRange, findings);
    if let (Some(min), Some(max)) = (min, max) {
        if min > max {
            let message = format!("minReplicas is {min} and maxReplicas {max}; min must not be above max");
            findings.error(MinGreaterThanMax, "minReplicas", &message);
        }
        findings.limits = (findings.errors.len() == before).then_some((min, max));
    }
}

fn job_limits(scale: &Value, findings: &mut Findings) {
    limit(scale, "minExecutions", 0, (0, i64::MAX), ErrorCode::MinExecutionsOutOfRange, findings);
    limit(scale, "maxExecutions", 100, (1, i64::MAX), ErrorCode::MaxExecutionsOutOfRange, findings);
}

/// The number given or its default, also when out of range; `None` when it is no whole number.
fn limit(
    scale: &Value,
    name: &str,
    default: i64,
    (least, most): (i64, i64),
    code: ErrorCode,
    findings: &mut Findings,
) -> Option<i64> {
    let given = present(scale, name);
    let number = given.map_or(Some(default), whole);
    if number.is_none_or(|number| number < least || number > most) {
        let range = if most == i64::MAX { format!("at least {least}") } else { format!("{least} to {most}") };
        findings.error(code, name, &format!("{name} must be a whole number, {range}"));
    }
    number
}

fn at_least(scale: &Value, name: &str, least: i64, code: ErrorCode, findings: &mut Findings) {
    let invalid = |given| whole(given).is_none_or(|number| number < least);
    if present(scale, name).is_some_and(invalid) {
        findings.error(code, name, &format!("{name} must be a whole number of seconds, at least {least}"));
    }
}

/// A member that is there and not null.
fn present<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.get(name).filter(|value| !value.is_null())
}

fn whole(value: &Value) -> Option<i64> {
    let from_float = |number: f64| {
        #[expect(clippy::cast_possible_truncation, reason = "whole and far below 2^53")]
        let number = (number.fract() == 0.0 && number.abs() < 1e15).then_some(number as i64);
        number
    };
    value.as_i64().or_else(|| value.as_f64().and_then(from_float))
}

impl Findings {
    fn error(&mut self, code: ErrorCode, place: &str, message: &str) {
        self.errors.insert(Finding { code, place: place.to_owned(), message: message.to_owned() });
    }

    fn warn(&mut self, code: WarningCode, place: &str, message: &str) {
        self.warnings.insert(Finding { code, place: place.to_owned(), message: message.to_owned() });
    }
}

#[cfg(test)]
mod pages;
#[cfg(test)]
mod tests;
