//! Constants of the autoscaler: those that a template sets (`coveSettings`), and those in force (`coveEffective`).
//!
//! Azure has no such fields and its clients pass them on as they are. What is in force is only shown, never stored: it
//! changes with the server's defaults, and a document that is sent back must not make a new revision.
//!
//! **Invariant:** both objects use one set of names, so that what is shown can be copied into `coveSettings`.

use cove_model::{FallbackBehavior, Scale, ScaleFallback, ScaleMode, ScaleOverrides};
use cove_scaling::{RuleKind, ScaleConfig, ScaleDefaults, effective};
use jiff::SignedDuration;
use serde_json::{Map, Value, json};

use super::check::range;
use crate::{Errors, node::Node, schema::Schema};

use Schema::{Int, Object, Word};

/// Longest window, in seconds: a week.
const WINDOW_SECONDS_MAX: u32 = 7 * 24 * 3600;
/// Longest time between two readings, and longest grace of a starting replica, in seconds.
const HOUR_SECONDS: u32 = 3600;

const BEHAVIORS: [(&str, FallbackBehavior); 4] = [
    ("static", FallbackBehavior::Static),
    ("currentReplicas", FallbackBehavior::CurrentReplicas),
    ("currentReplicasIfHigher", FallbackBehavior::CurrentReplicasIfHigher),
    ("currentReplicasIfLower", FallbackBehavior::CurrentReplicasIfLower),
];

/// The properties of `coveSettings`.
pub(super) static SETTINGS: Schema = Object(&[
    ("loadSamplingSeconds", &Int),
    ("resourceSamplingSeconds", &Int),
    ("scaleDownWindowSeconds", &Int),
    ("stepFloor", &Int),
    ("stepFactor", &Int),
    ("tolerancePercent", &Int),
    ("cpuInitialisationSeconds", &Int),
    ("cpuReadinessDelaySeconds", &Int),
    ("readDeadlineSeconds", &Int),
    ("headroomPercent", &Int),
    (
        "fallback",
        &Object(&[
            ("failureThreshold", &Int),
            ("replicas", &Int),
            ("behavior", &Word(&["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"])),
        ]),
    ),
]);

/// Reads `coveSettings`; a name that is not known is refused, since nothing else would say that it has no effect.
pub(super) fn read(node: &Node<'_>, errors: &mut Errors) -> ScaleOverrides {
    let Object(known) = &SETTINGS else { return ScaleOverrides::default() };
    for (name, _) in node.members() {
        if !known.iter().any(|(known, _)| *known == name) {
            let shown: String = name.chars().take(80).collect();
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            errors.invalid(&node.path, format!("'{shown}' is not a setting; expected {}.", names.join(", ")));
        }
    }
    let mut number = |name: &str, least: u32, most: u32| {
        let node = node.get(name);
        node.exists().then(|| range(&node, least..=most, least, errors))
    };
    let mut overrides = ScaleOverrides {
        load_sampling_secs: number("loadSamplingSeconds", 1, HOUR_SECONDS),
        resource_sampling_secs: number("resourceSamplingSeconds", 1, HOUR_SECONDS),
        scale_down_window_secs: number("scaleDownWindowSeconds", 0, WINDOW_SECONDS_MAX),
        step_floor: number("stepFloor", 1, 1000),
        step_factor: number("stepFactor", 1, 1000),
        tolerance_percent: number("tolerancePercent", 0, 100),
        cpu_initialisation_secs: number("cpuInitialisationSeconds", 0, HOUR_SECONDS),
        cpu_readiness_delay_secs: number("cpuReadinessDelaySeconds", 0, HOUR_SECONDS),
        read_deadline_secs: number("readDeadlineSeconds", 1, 60),
        headroom_percent: number("headroomPercent", 0, 1000),
        fallback: None,
    };
    if overrides.step_floor == Some(1) && overrides.step_factor == Some(1) {
        let message =
            "stepFloor 1 and stepFactor 1 together never go above one replica; one of them must be at least 2.";
        errors.invalid(&node.path, message);
    }
    overrides.fallback = fallback(&node.get("fallback"), errors);
    overrides
}

fn fallback(node: &Node<'_>, errors: &mut Errors) -> Option<ScaleFallback> {
    if !node.exists() {
        return None;
    }
    for name in ["failureThreshold", "replicas"] {
        if !node.get(name).exists() {
            errors.invalid(&node.path, format!("A fallback needs {name}."));
        }
    }
    let word = node.get("behavior");
    let behavior = BEHAVIORS.iter().find(|(name, _)| word.text() == Some(*name));
    Some(ScaleFallback {
        failure_threshold: range(&node.get("failureThreshold"), 0..=1_000_000, 0, errors),
        replicas: range(&node.get("replicas"), 0..=1000, 0, errors),
        behavior: behavior.map_or(FallbackBehavior::Static, |(_, behavior)| *behavior),
    })
}

/// `coveSettings` as it was given, in canonical form; `None` when it sets nothing.
pub(super) fn render(overrides: &ScaleOverrides) -> Option<Value> {
    let mut value = Map::new();
    for (name, given) in [
        ("loadSamplingSeconds", overrides.load_sampling_secs),
        ("resourceSamplingSeconds", overrides.resource_sampling_secs),
        ("scaleDownWindowSeconds", overrides.scale_down_window_secs),
        ("stepFloor", overrides.step_floor),
        ("stepFactor", overrides.step_factor),
        ("tolerancePercent", overrides.tolerance_percent),
        ("cpuInitialisationSeconds", overrides.cpu_initialisation_secs),
        ("cpuReadinessDelaySeconds", overrides.cpu_readiness_delay_secs),
        ("readDeadlineSeconds", overrides.read_deadline_secs),
        ("headroomPercent", overrides.headroom_percent),
    ] {
        if let Some(number) = given {
            value.insert(name.to_owned(), json!(number));
        }
    }
    if let Some(fallback) = &overrides.fallback {
        value.insert("fallback".to_owned(), render_fallback(fallback));
    }
    (!value.is_empty()).then_some(Value::Object(value))
}

fn render_fallback(fallback: &ScaleFallback) -> Value {
    let behavior = BEHAVIORS.iter().find(|(_, behavior)| *behavior == fallback.behavior);
    json!({
        "failureThreshold": fallback.failure_threshold,
        "replicas": fallback.replicas,
        "behavior": behavior.map_or("static", |(name, _)| *name),
    })
}

/// Everything in force for a revision, `coveEffective`: mode, constants, and the target of every rule.
pub(super) fn render_effective(scale: &Scale, has_ingress: bool, defaults: &ScaleDefaults) -> Value {
    let found = effective(scale, defaults);
    let settings = &found.settings;
    let mut value = json!({
        "mode": if found.mode == ScaleMode::Fast { "fast" } else { "aca" },
        "pollingIntervalSeconds": seconds(settings.polling_interval),
        "cooldownPeriodSeconds": seconds(settings.cooldown_period),
        "loadSamplingSeconds": seconds(settings.load_sampling),
        "resourceSamplingSeconds": seconds(settings.resource_sampling),
        "scaleUpWindowSeconds": 0,
        "scaleDownWindowSeconds": seconds(settings.scale_down_window),
        "stepFloor": settings.step_floor,
        "stepFactor": settings.step_factor,
        "tolerancePercent": settings.tolerance_percent,
        "cpuInitialisationSeconds": seconds(settings.cpu_initialisation),
        "cpuReadinessDelaySeconds": seconds(settings.cpu_readiness_delay),
        "readDeadlineSeconds": seconds(settings.read_deadline),
        "headroomPercent": found.headroom_percent,
    });
    if let Some(fallback) = &scale.settings.fallback {
        value["fallback"] = render_fallback(fallback);
    }
    let rule = |rule: &cove_scaling::Rule| {
        let kind = match rule.kind {
            RuleKind::Http => "http",
            RuleKind::Tcp => "tcp",
            RuleKind::Event => "event",
            RuleKind::Cpu => "cpu",
            RuleKind::Memory => "memory",
        };
        #[expect(clippy::cast_precision_loss, reason = "a target of thousandths beyond 2^53 is no target")]
        let target = rule.target_milli as f64 / 1000.0;
        json!({ "name": &*rule.name, "kind": kind, "target": number(target) })
    };
    let config = ScaleConfig::from_effective(scale, has_ingress, &found);
    value["rules"] = config.rules.iter().map(rule).collect();
    value
}

fn seconds(duration: SignedDuration) -> Value {
    number(duration.as_secs_f64())
}

/// `10` rather than `10.0`.
fn number(number: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "whole and far below 2^53")]
    let whole = (number.fract() == 0.0 && number.abs() < 1e15).then_some(number as i64);
    whole.map_or_else(|| json!(number), Value::from)
}
