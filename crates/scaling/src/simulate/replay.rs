//! Tries rules out on readings that were recorded: what would have been decided at each of their instants.
//!
//! With the rules, state and existing replicas of the record, the decisions are those of the record. Under other rules the
//! replicas are taken to exist as decided, and a reading keeps the activity it was recorded with.
//!
//! **Invariant:** a rule that the record knows nothing of has a failed reading, never a zero.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::config::ScaleConfig;
use crate::decide::{Decision, Reason, activate, decide};
use crate::reading::{Hold, Input, Reading};
use crate::state::ScaleState;

/// Instants that are put between recorded ones at most.
const SLEEP_TICKS_MAX: usize = 1_000_000;

/// What was read at one instant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recorded {
    /// The instant of the decision.
    pub at: Timestamp,
    /// The newest reading per rule name.
    pub readings: Vec<(Arc<str>, Reading)>,
    /// Failed readings in a row per rule, as in `readings`, this one included; none = counted here, one per instant.
    pub failures: Vec<u32>,
    /// Open requests and connections.
    pub in_flight: u64,
    /// Replicas that existed; `None` = as many as were decided.
    pub existing: Option<u32>,
    /// Whether a request or connection arrived at zero: then nothing else was asked.
    pub is_request: bool,
    /// Whether the autoscaler had just started: the count is recorded as a proposal.
    pub seeds: bool,
    /// The last activity, where something else than a decision had set it.
    pub last_active: Option<Option<Timestamp>>,
}

/// What the rules would have done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replayed {
    /// One decision per instant.
    pub decisions: Vec<Decision>,
    /// Decided replicas times milliseconds, from the first instant to the last.
    pub replica_ms: u64,
    /// Of it, time at `minReplicas` above zero without an open request.
    pub idle_ms: u64,
    /// Replicas started.
    pub starts: u64,
}

impl From<&Decision> for Recorded {
    fn from(decision: &Decision) -> Self {
        Self {
            at: decision.at,
            readings: decision.rules.iter().map(|rule| (rule.name.clone(), rule.reading.clone())).collect(),
            failures: decision.rules.iter().map(|rule| rule.failures).collect(),
            in_flight: decision.in_flight,
            existing: Some(decision.existing),
            is_request: decision.rules.is_empty() && decision.reason == Reason::Activated,
            seeds: decision.seeded,
            last_active: None,
        }
    }
}

impl Recorded {
    /// What decisions in a row were taken from. What came between two of them from elsewhere (a restart, an end of the
    /// cool-down by hand) is kept.
    pub fn of(decisions: &[Decision]) -> Vec<Self> {
        let mut expected: Option<Option<Timestamp>> = None;
        let mut recorded = Vec::with_capacity(decisions.len());
        for decision in decisions {
            let from_elsewhere = expected.is_some_and(|expected| expected != decision.last_active);
            let last_active = from_elsewhere.then_some(decision.last_active);
            recorded.push(Self { last_active, ..Self::from(decision) });
            expected = Some(if decision.active { Some(decision.at) } else { decision.last_active });
        }
        recorded
    }

    /// Instants between those that were recorded: where a revision of http and tcp rules slept at zero nothing arrived,
    /// which other rules want to know.
    pub fn with_sleep(recorded: &[Self], config: &ScaleConfig) -> Vec<Self> {
        let step = config.settings.load_sampling.max(SignedDuration::from_secs(1));
        let mut all: Vec<Self> = Vec::with_capacity(recorded.len());
        for (index, tick) in recorded.iter().enumerate() {
            all.push(tick.clone());
            let Some(next) = recorded.get(index + 1) else { break };
            let slept = next.is_request && tick.in_flight == 0 && !tick.readings.is_empty();
            let mut at = tick.at.saturating_add(step).unwrap_or(Timestamp::MAX);
            while slept && at < next.at && all.len() < SLEEP_TICKS_MAX {
                let silent =
                    |(name, _): &(Arc<str>, Reading)| (name.clone(), Reading::Value { milli: 0, active: false });
                all.push(Self { at, readings: tick.readings.iter().map(silent).collect(), ..Self::default() });
                at = at.saturating_add(step).unwrap_or(Timestamp::MAX);
            }
        }
        all
    }
}

/// The state after `decisions` were taken, as far as they tell it: what a replay of the ones after them begins with.
/// `next` is the first of those.
pub fn state_before(before: &[Decision], config: &ScaleConfig, next: &Decision) -> ScaleState {
    let first = before.first().unwrap_or(next);
    let failures = |rule: &crate::RuleOutcome| rule.failures.saturating_sub(1);
    let mut state = ScaleState {
        current: first.current,
        last_active: first.last_active,
        proposals: first.window_peak.map(|peak| (first.at, peak)).into_iter().collect(),
        failures: first.rules.iter().map(failures).collect(),
        seeded: !first.seeded,
    };
    for decision in before {
        state.current = decision.current;
        state.last_active = decision.last_active;
        state.apply(config, decision);
    }
    state.current = next.current;
    state.last_active = next.last_active;
    state
}

/// Decides at each recorded instant, in their order, beginning with `state`.
pub fn replay(config: &ScaleConfig, mut state: ScaleState, recorded: &[Recorded]) -> Replayed {
    let mut replayed = Replayed::default();
    for (index, tick) in recorded.iter().enumerate() {
        if tick.seeds {
            state.seeded = false;
        }
        if let Some(last_active) = tick.last_active {
            state.last_active = last_active;
        }
        let reading = |name: &Arc<str>| {
            let found = tick.readings.iter().find(|(known, _)| known == name);
            found.map_or_else(|| Reading::error("not recorded"), |(_, reading)| reading.clone())
        };
        if !tick.failures.is_empty() {
            // a reading that failed once is decided on more than once where other rules are read more often
            let before = |name: &Arc<str>| {
                let place = tick.readings.iter().position(|(known, _)| known == name);
                place.and_then(|place| tick.failures.get(place)).map_or(0, |failures| failures.saturating_sub(1))
            };
            state.failures = config.rules.iter().map(|rule| before(&rule.name)).collect();
        }
        let readings: Vec<Reading> = config.rules.iter().map(|rule| reading(&rule.name)).collect();
        let existing = tick.existing.unwrap_or(state.current);
        let input = Input { now: tick.at, readings: &readings, existing, in_flight: tick.in_flight, hold: Hold::None };
        let decision = if tick.is_request {
            // a request for what runs already decides nothing
            activate(config, &state, tick.at, tick.in_flight)
        } else {
            Some(decide(config, &state, &input))
        };
        if let Some(next) = recorded.get(index + 1) {
            let span_ms = u64::try_from(next.at.duration_since(tick.at).as_millis()).unwrap_or(0);
            let count = decision.as_ref().map_or(state.current, |decision| decision.new);
            replayed.replica_ms += span_ms.saturating_mul(count.into());
            let is_idle = count > 0 && count == config.min_replicas && tick.in_flight == 0;
            replayed.idle_ms += if is_idle { span_ms.saturating_mul(count.into()) } else { 0 };
        }
        let Some(decision) = decision else { continue };
        state.apply(config, &decision);
        replayed.starts += u64::from(decision.new.saturating_sub(decision.current));
        replayed.decisions.push(decision);
    }
    replayed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rule, RuleKind, ScaleSettings};

    fn config(target: f64) -> ScaleConfig {
        ScaleConfig {
            min_replicas: 0,
            max_replicas: 10,
            rules: vec![Rule::new("q", RuleKind::Event, target)],
            settings: ScaleSettings::default(),
            fallback: None,
        }
    }

    #[test]
    fn a_recorded_hour_is_decided_again_and_other_rules_are_tried_on_it() {
        let today = config(5.0);
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let ticks: Vec<Recorded> = (0..120)
            .map(|tick| {
                let value = if (4..30).contains(&tick) { 50.0 } else { 0.0 };
                let reading =
                    if tick == 7 { Reading::error("down") } else { Reading::of_value(&today.rules[0], value) };
                Recorded { at: at(tick * 30), readings: vec![("q".into(), reading)], ..Recorded::default() }
            })
            .collect();
        let start = ScaleState { seeded: true, ..ScaleState::default() };
        let live = replay(&today, start.clone(), &ticks);
        let counts: Vec<u32> = live.decisions.iter().map(|decision| decision.new).collect();
        assert_eq!(counts[3..10], [0, 1, 4, 8, 8, 10, 10]);
        assert_eq!(counts.last(), Some(&0));

        let record: Vec<Recorded> = live.decisions.iter().map(Recorded::from).collect();
        assert_eq!(replay(&today, start.clone(), &record), live, "decision by decision");
        let gentle = replay(&config(25.0), start.clone(), &ticks);
        assert!(gentle.replica_ms < live.replica_ms / 3 && gentle.starts == 2, "{}", gentle.starts);

        let mut renamed = config(5.0);
        renamed.rules[0].name = "other".into();
        assert_eq!(replay(&renamed, start, &ticks).replica_ms, 0);
    }
}
