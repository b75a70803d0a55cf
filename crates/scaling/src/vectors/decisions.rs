//! Vectors of decisions: one decision, a timeline of them, and their cadence.
//!
//! **Invariant:** a field that is not understood makes the vector unsupported; none is skipped.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Unsupported;
use crate::{
    Decision, DecisionRecord, Fallback, FallbackBehavior, Hold, Input, Reading, Rule, RuleKind, ScaleConfig,
    ScaleSettings, ScaleState, cadence, decide,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    min_replicas: u32,
    max_replicas: u32,
    polling_interval: Option<f64>,
    cooldown_period: Option<f64>,
    scale_down_window: Option<f64>,
    tolerance_percent: Option<u32>,
    rules: Vec<VectorRule>,
    fallback: Option<VectorFallback>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VectorRule {
    name: String,
    #[serde(rename = "type")]
    kind: VectorRuleKind,
    #[serde(default)]
    target: f64,
    #[serde(default)]
    activation: f64,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum VectorRuleKind {
    Http,
    Tcp,
    Custom,
    Cpu,
    Memory,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VectorFallback {
    failure_threshold: u32,
    replicas: u32,
    #[serde(default)]
    behavior: VectorBehavior,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum VectorBehavior {
    #[default]
    Static,
    CurrentReplicas,
    CurrentReplicasIfHigher,
    CurrentReplicasIfLower,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct State {
    current: u32,
    last_active: Option<f64>,
    #[serde(default)]
    recommendations: Vec<(f64, u32)>,
    #[serde(default)]
    failures: BTreeMap<String, u32>,
    #[serde(default = "yes")]
    seeded: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Tick {
    t: f64,
    #[serde(default)]
    samples: BTreeMap<String, Sample>,
    status: Option<u32>,
    #[serde(default)]
    in_flight: u64,
    #[serde(default)]
    paused: bool,
    paused_replicas: Option<u32>,
    #[serde(default)]
    stopped: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    value: Option<f64>,
    active: Option<bool>,
    replicas: Option<u32>,
    #[serde(default)]
    error: bool,
}

fn yes() -> bool {
    true
}

/// One decision.
pub(super) fn decision(given: Value) -> Result<Value, Unsupported> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Given {
        config: Config,
        state: State,
        input: Tick,
    }
    let Given { config, state, input } = serde_json::from_value(given)?;
    let config = config.into_config()?;
    let mut state = state.into_state(&config)?;
    let decision = step(&config, &mut state, &input)?;
    Ok(json!({ "replicas": decision.new, "reason": decision.reason }))
}

/// Decisions in a row, each applied before the next.
pub(super) fn timeline(given: Value) -> Result<Value, Unsupported> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Given {
        config: Config,
        state: State,
        ticks: Vec<Tick>,
    }
    let Given { config, state, ticks } = serde_json::from_value(given)?;
    let config = config.into_config()?;
    let mut state = state.into_state(&config)?;
    let decisions = ticks.iter().map(|tick| step(&config, &mut state, tick)).collect::<Result<Vec<_>, _>>()?;
    let replicas: Vec<u32> = decisions.iter().map(|decision| decision.new).collect();
    let reasons: Vec<_> = decisions.iter().map(|decision| decision.reason).collect();
    Ok(json!({ "replicas": replicas, "reasons": reasons }))
}

/// When which rule is read.
pub(super) fn cadence(given: Value) -> Result<Value, Unsupported> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Given {
        polling_interval: Option<f64>,
        rules: Vec<VectorRule>,
        until: f64,
    }
    let given: Given = serde_json::from_value(given)?;
    let config = Config {
        min_replicas: 0,
        max_replicas: 10,
        polling_interval: given.polling_interval,
        cooldown_period: None,
        scale_down_window: None,
        tolerance_percent: None,
        rules: given.rules,
        fallback: None,
    }
    .into_config()?;
    let origin = Timestamp::UNIX_EPOCH;
    let until = at(given.until)?;
    let mut ticks = Vec::new();
    let mut after = Timestamp::from_nanosecond(-1).unwrap_or(Timestamp::MIN);
    while let Some(next) = cadence::next_tick(&config, origin, after).filter(|next| *next <= until) {
        let due = |rule: &&Rule| cadence::is_due(&config.settings, rule.kind, origin, next);
        let mut sampled: Vec<&str> = config.rules.iter().filter(due).map(|rule| &*rule.name).collect();
        sampled.sort_unstable();
        ticks.push(json!({ "t": seconds(next), "sampled": sampled }));
        after = next;
    }
    Ok(json!({ "ticks": ticks }))
}

/// Takes one decision, checks that its record replays to the same, and applies it.
fn step(config: &ScaleConfig, state: &mut ScaleState, tick: &Tick) -> Result<Decision, Unsupported> {
    let readings = config.rules.iter().map(|rule| reading(rule, tick)).collect::<Result<Vec<_>, _>>()?;
    let hold = match (tick.stopped, tick.paused_replicas, tick.paused) {
        (true, _, _) => Hold::Stopped,
        (_, Some(count), _) => Hold::PausedAt(count),
        (_, _, true) => Hold::Paused,
        _ => Hold::None,
    };
    let input = Input {
        now: at(tick.t)?,
        readings: &readings,
        existing: tick.status.unwrap_or(state.current),
        in_flight: tick.in_flight,
        hold,
    };
    let decision = decide(config, state, &input);
    state.apply(config, &decision);
    let record = DecisionRecord { config: config.clone().into(), decision };
    record.replay().map_err(|differs| Unsupported::new(format!("replay: {differs}")))
}

fn reading(rule: &Rule, tick: &Tick) -> Result<Reading, Unsupported> {
    let Some(sample) = tick.samples.get(&*rule.name) else { return Ok(Reading::error("no sample")) };
    match sample {
        Sample { error: true, .. } => Ok(Reading::error("the vector says so")),
        Sample { replicas: Some(count), .. } => Ok(Reading::Replicas { count: *count }),
        Sample { value: Some(value), active, .. } => {
            let computed = Reading::of_value(rule, *value);
            Ok(match (computed, active) {
                (Reading::Value { milli, .. }, Some(active)) => Reading::Value { milli, active: *active },
                (computed, _) => computed,
            })
        }
        _ => Err(Unsupported::new(format!("a sample of `{}` without value, replicas or error", rule.name))),
    }
}

impl Config {
    fn into_config(self) -> Result<ScaleConfig, Unsupported> {
        let default = ScaleSettings::default();
        let span = |seconds: Option<f64>, default| seconds.map_or(Ok(default), duration);
        let settings = ScaleSettings {
            polling_interval: span(self.polling_interval, default.polling_interval)?,
            cooldown_period: span(self.cooldown_period, default.cooldown_period)?,
            scale_down_window: span(self.scale_down_window, default.scale_down_window)?,
            tolerance_percent: self.tolerance_percent.unwrap_or(default.tolerance_percent),
            ..default
        };
        let rules = self.rules.iter().map(VectorRule::as_rule).collect();
        let fallback = self.fallback.map(|fallback| Fallback {
            failure_threshold: fallback.failure_threshold,
            replicas: fallback.replicas,
            behavior: match fallback.behavior {
                VectorBehavior::Static => FallbackBehavior::Static,
                VectorBehavior::CurrentReplicas => FallbackBehavior::CurrentReplicas,
                VectorBehavior::CurrentReplicasIfHigher => FallbackBehavior::CurrentReplicasIfHigher,
                VectorBehavior::CurrentReplicasIfLower => FallbackBehavior::CurrentReplicasIfLower,
            },
        });
        Ok(ScaleConfig { min_replicas: self.min_replicas, max_replicas: self.max_replicas, rules, settings, fallback })
    }
}

impl VectorRule {
    fn as_rule(&self) -> Rule {
        let kind = match self.kind {
            VectorRuleKind::Http => RuleKind::Http,
            VectorRuleKind::Tcp => RuleKind::Tcp,
            VectorRuleKind::Custom => RuleKind::Event,
            VectorRuleKind::Cpu => RuleKind::Cpu,
            VectorRuleKind::Memory => RuleKind::Memory,
        };
        Rule { activation: self.activation, ..Rule::new(&self.name, kind, self.target) }
    }
}

impl State {
    fn into_state(self, config: &ScaleConfig) -> Result<ScaleState, Unsupported> {
        let proposals = self.recommendations.iter().map(|(t, count)| Ok((at(*t)?, *count)));
        let failures = |rule: &Rule| self.failures.get(&*rule.name).copied().unwrap_or(0);
        Ok(ScaleState {
            current: self.current,
            last_active: self.last_active.map(at).transpose()?,
            proposals: proposals.collect::<Result<_, Unsupported>>()?,
            failures: config.rules.iter().map(failures).collect(),
            seeded: self.seeded,
        })
    }
}

/// The instant `t` seconds after the vector's origin.
pub(super) fn at(t: f64) -> Result<Timestamp, Unsupported> {
    let instant = Timestamp::UNIX_EPOCH.checked_add(duration(t)?);
    instant.map_err(|_| Unsupported::new(format!("the time {t} s")))
}

/// A span of `seconds`.
pub(super) fn duration(seconds: f64) -> Result<SignedDuration, Unsupported> {
    SignedDuration::try_from_secs_f64(seconds).map_err(|_| Unsupported::new(format!("the span {seconds} s")))
}

fn seconds(at: Timestamp) -> f64 {
    at.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64()
}
