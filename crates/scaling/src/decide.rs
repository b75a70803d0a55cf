//! Decides how many replicas a revision should have.
//!
//! Follows KEDA in two phases. *Activation* moves between zero and running by each rule's activity; *scaling* moves
//! between one and many by each rule's proposal. The largest proposal wins, zero is reached only after the cool-down,
//! a scale-in must have been asked for during the whole window, and a step up is bounded.
//!
//! **Invariant:** a decision depends on its arguments only, and carries them: see [`crate::record`].
//! **Invariant:** while it runs, the count stays within the limits; it is never zero because a source failed.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::{FallbackBehavior, Rule, RuleKind, ScaleConfig};
use crate::number::{ceil_div, within_tolerance};
use crate::reading::{Hold, Input, Reading};
use crate::state::ScaleState;

/// One decision with everything it was taken from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// When.
    pub at: Timestamp,
    /// The count before.
    pub current: u32,
    /// Replicas that existed.
    pub existing: u32,
    /// Open requests and connections.
    pub in_flight: u64,
    /// What outranked the rules, if anything.
    #[serde(default)]
    pub hold: Hold,
    /// Last activity before this instant.
    pub last_active: Option<Timestamp>,
    /// Highest proposal in the window before this instant.
    pub window_peak: Option<u32>,
    /// Whether this was the first tick after a start, which recorded `current` as a proposal.
    pub seeded: bool,
    /// Per rule: reading, activity, proposal. Empty when the rules were not asked.
    pub rules: Vec<RuleOutcome>,
    /// Whether any rule was active.
    pub active: bool,
    /// Largest proposal.
    pub want: Option<u32>,
    /// Largest proposal of the window, this instant included.
    pub stable: Option<u32>,
    /// The highest count this step could reach: step and limit.
    pub ceiling: Option<u32>,
    /// The proposal to remember, unclamped.
    pub recorded: Option<u32>,
    /// The count decided.
    pub new: u32,
    /// Why.
    pub reason: Reason,
}

/// What one rule said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleOutcome {
    /// The rule.
    pub name: Arc<str>,
    /// Its newest reading.
    pub reading: Reading,
    /// Failed readings in a row, this one included.
    pub failures: u32,
    /// Whether it keeps the revision active.
    pub active: bool,
    /// The replicas it asks for.
    pub proposal: Option<u32>,
}

/// Why a decision came out as it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The revision was deactivated or the app stopped.
    Stopped,
    /// Scaling is paused.
    Paused,
    /// At zero and active: started.
    Activated,
    /// At zero, and nothing asks for more.
    Idle,
    /// Not active for longer than the cool-down.
    CooldownElapsed,
    /// Set to the maximum before any metric was looked at.
    AboveMax,
    /// Set to the minimum before any metric was looked at.
    BelowMin,
    /// No rule gave a proposal: kept.
    NoValidMetric,
    /// A rule failed and the others ask for less: kept.
    PartialErrorHold,
    /// More.
    ScaleUp,
    /// More, but not all that was asked for: one step or the maximum allows no more.
    ScaleUpLimited,
    /// Fewer.
    ScaleDown,
    /// Fewer are asked for, but a proposal of the window holds the count.
    Stabilized,
    /// As many as are asked for.
    Steady,
}

impl Reason {
    /// The word used in events, logs, labels and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Paused => "paused",
            Self::Activated => "activated",
            Self::Idle => "idle",
            Self::CooldownElapsed => "cooldown-elapsed",
            Self::AboveMax => "above-max",
            Self::BelowMin => "below-min",
            Self::NoValidMetric => "no-valid-metric",
            Self::PartialErrorHold => "partial-error-hold",
            Self::ScaleUp => "scale-up",
            Self::ScaleUpLimited => "scale-up-limited",
            Self::ScaleDown => "scale-down",
            Self::Stabilized => "stabilized",
            Self::Steady => "steady",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Takes one decision. The caller then gives it to [`ScaleState::apply`].
pub fn decide(config: &ScaleConfig, state: &ScaleState, input: &Input<'_>) -> Decision {
    let mut decision = Decision::of(state, input);
    match input.hold {
        Hold::None => {}
        Hold::Stopped => return decision.conclude(0, Reason::Stopped),
        Hold::Paused => return decision.conclude(state.current, Reason::Paused),
        Hold::PausedAt(count) => return decision.conclude(count, Reason::Paused),
    }
    decision.seeded = !state.seeded;
    decision.window_peak = state.proposals.peak(input.now, config.settings.scale_down_window);
    let asked = ask_rules(config, state, input, &mut decision.rules);
    decision.active = asked.active;
    if state.current == 0 {
        return from_zero(config, decision);
    }
    let may_stop = !asked.active && !asked.value_error && config.min_replicas == 0;
    if may_stop && cooled_down(config, state, input.now) {
        return decision.conclude(0, Reason::CooldownElapsed);
    }
    if state.current > config.max_replicas {
        return decision.conclude(config.max_replicas, Reason::AboveMax);
    }
    if state.current < config.running_min() {
        return decision.conclude(config.running_min(), Reason::BelowMin);
    }
    scale(config, decision, asked.any_error)
}

/// Activates a revision at zero because a request or connection arrived; `None` where that changes nothing.
pub fn activate(config: &ScaleConfig, state: &ScaleState, now: Timestamp, in_flight: u64) -> Option<Decision> {
    if state.current > 0 || !config.activates_on_request() {
        return None;
    }
    let input = Input { now, readings: &[], existing: 0, in_flight, hold: Hold::None };
    let mut decision = Decision::of(state, &input);
    decision.active = true;
    Some(decision.conclude(config.running_min(), Reason::Activated))
}

fn from_zero(config: &ScaleConfig, decision: Decision) -> Decision {
    if decision.active {
        decision.conclude(config.running_min(), Reason::Activated)
    } else if config.min_replicas > 0 {
        decision.conclude(config.min_replicas, Reason::BelowMin)
    } else {
        decision.conclude(0, Reason::Idle)
    }
}

fn cooled_down(config: &ScaleConfig, state: &ScaleState, now: Timestamp) -> bool {
    state.last_active.is_none_or(|last| now.duration_since(last) > config.settings.cooldown_period)
}

/// Lines 8 to 10 of the specification: proposals, window, step.
fn scale(config: &ScaleConfig, mut decision: Decision, any_error: bool) -> Decision {
    let current = decision.current;
    let Some(want) = decision.rules.iter().filter_map(|rule| rule.proposal).max() else {
        return decision.conclude(current, Reason::NoValidMetric);
    };
    decision.want = Some(want);
    if any_error && want < current {
        return decision.conclude(current, Reason::PartialErrorHold);
    }
    let seed = decision.seeded.then_some(current);
    let stable = want.max(decision.window_peak.unwrap_or(0)).max(seed.unwrap_or(0));
    let ceiling = config.max_replicas.min(config.settings.step_ceiling(current));
    let new = stable.min(ceiling).max(config.running_min());
    decision.stable = Some(stable);
    decision.ceiling = Some(ceiling);
    decision.recorded = Some(want);
    let reason = if new > current {
        if stable > ceiling { Reason::ScaleUpLimited } else { Reason::ScaleUp }
    } else if new < current {
        Reason::ScaleDown
    } else if want < current && stable >= current && current > config.running_min() {
        Reason::Stabilized
    } else {
        Reason::Steady
    };
    decision.conclude(new, reason)
}

/// What the rules say together.
struct Asked {
    active: bool,
    /// A rule that could keep the revision active could not be read.
    value_error: bool,
    any_error: bool,
}

fn ask_rules(config: &ScaleConfig, state: &ScaleState, input: &Input<'_>, outcomes: &mut Vec<RuleOutcome>) -> Asked {
    let mut asked = Asked { active: config.resource_rules_only(), value_error: false, any_error: false };
    outcomes.reserve_exact(config.rules.len());
    for (index, rule) in config.rules.iter().enumerate() {
        let failures = state.failures.get(index).copied().unwrap_or(0);
        let outcome = ask_rule(config, rule, failures, input.readings.get(index), input, state.current);
        let failed = matches!(outcome.reading, Reading::Error { .. }) && outcome.proposal.is_none();
        asked.active |= outcome.active;
        asked.any_error |= failed;
        asked.value_error |= failed && !rule.kind.is_resource();
        outcomes.push(outcome);
    }
    asked
}

fn ask_rule(
    config: &ScaleConfig,
    rule: &Rule,
    failures_before: u32,
    reading: Option<&Reading>,
    input: &Input<'_>,
    current: u32,
) -> RuleOutcome {
    let reading = match reading {
        None => Reading::error("not read yet"),
        // A class of reading that the rule cannot give is a failed reading, not a zero.
        Some(Reading::Replicas { .. }) if !rule.kind.is_resource() => Reading::error("not a value"),
        Some(Reading::Value { .. }) if rule.kind.is_resource() => Reading::error("not a proposal"),
        Some(reading) => reading.clone(),
    };
    let (failures, active, proposal) = match &reading {
        Reading::Value { milli, active } => {
            let open = rule.kind.is_load() && input.in_flight > 0;
            (0, *active || open, Some(propose(config, rule, *milli, input.existing)))
        }
        Reading::Replicas { count } => (0, false, Some(*count)),
        Reading::Error { .. } => {
            let failures = failures_before.saturating_add(1);
            match fallback_milli(config, rule, failures, current) {
                Some(milli) => (failures, true, Some(propose(config, rule, milli, input.existing))),
                None => (failures, false, None),
            }
        }
    };
    RuleOutcome { name: rule.name.clone(), reading, failures, active, proposal }
}

/// HPA's average-value rule: existing replicas within the tolerance, else `ceil(value / target)`.
fn propose(config: &ScaleConfig, rule: &Rule, value_milli: u64, existing: u32) -> u32 {
    let (value, target) = (u128::from(value_milli), u128::from(rule.target_milli.max(1)));
    if existing > 0 && within_tolerance(value, target, existing.into(), config.settings.tolerance_percent) {
        existing
    } else {
        ceil_div(value, target)
    }
}

fn fallback_milli(config: &ScaleConfig, rule: &Rule, failures: u32, current: u32) -> Option<u64> {
    let fallback = config.fallback.filter(|f| failures > f.failure_threshold && rule.kind == RuleKind::Event)?;
    let replicas = match fallback.behavior {
        FallbackBehavior::Static => fallback.replicas,
        FallbackBehavior::CurrentReplicas => current,
        FallbackBehavior::CurrentReplicasIfHigher => fallback.replicas.max(current),
        FallbackBehavior::CurrentReplicasIfLower => fallback.replicas.min(current),
    };
    Some(rule.target_milli.saturating_mul(replicas.into()))
}

impl Decision {
    fn of(state: &ScaleState, input: &Input<'_>) -> Self {
        Self {
            at: input.now,
            current: state.current,
            existing: input.existing,
            in_flight: input.in_flight,
            hold: input.hold,
            last_active: state.last_active,
            window_peak: None,
            seeded: false,
            rules: Vec::new(),
            active: false,
            want: None,
            stable: None,
            ceiling: None,
            recorded: None,
            new: state.current,
            reason: Reason::Steady,
        }
    }

    fn conclude(mut self, new: u32, reason: Reason) -> Self {
        self.new = new;
        self.reason = reason;
        self
    }

    /// Whether the count changes.
    pub fn changes(&self) -> bool {
        self.new != self.current
    }
}

#[cfg(test)]
mod tests;
