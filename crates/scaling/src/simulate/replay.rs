//! Tries rules out on readings that were recorded: what would have been decided at each of their instants.
//!
//! With the rules, state and existing replicas of the record, the decisions are those of the record. Under other rules the
//! replicas are taken to exist as decided, and a reading keeps the activity it was recorded with.
//!
//! **Invariant:** a rule that the record knows nothing of has a failed reading, never a zero.

use std::sync::Arc;

use jiff::Timestamp;

use crate::config::ScaleConfig;
use crate::decide::{Decision, decide};
use crate::reading::{Hold, Input, Reading};
use crate::state::ScaleState;

/// What was read at one instant.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// The instant of the decision.
    pub at: Timestamp,
    /// The newest reading per rule name.
    pub readings: Vec<(Arc<str>, Reading)>,
    /// Open requests and connections.
    pub in_flight: u64,
    /// Replicas that existed; `None` = as many as were decided.
    pub existing: Option<u32>,
}

/// What the rules would have done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replayed {
    /// One decision per instant.
    pub decisions: Vec<Decision>,
    /// Decided replicas times milliseconds, from the first instant to the last.
    pub replica_ms: u64,
    /// Replicas started.
    pub starts: u64,
}

impl From<&Decision> for Recorded {
    fn from(decision: &Decision) -> Self {
        Self {
            at: decision.at,
            readings: decision.rules.iter().map(|rule| (rule.name.clone(), rule.reading.clone())).collect(),
            in_flight: decision.in_flight,
            existing: Some(decision.existing),
        }
    }
}

/// Decides at each recorded instant, in their order, beginning with `state`.
pub fn replay(config: &ScaleConfig, mut state: ScaleState, recorded: &[Recorded]) -> Replayed {
    let mut replayed = Replayed::default();
    for (index, tick) in recorded.iter().enumerate() {
        let reading = |name: &Arc<str>| {
            let found = tick.readings.iter().find(|(known, _)| known == name);
            found.map_or_else(|| Reading::error("not recorded"), |(_, reading)| reading.clone())
        };
        let readings: Vec<Reading> = config.rules.iter().map(|rule| reading(&rule.name)).collect();
        let existing = tick.existing.unwrap_or(state.current);
        let input = Input { now: tick.at, readings: &readings, existing, in_flight: tick.in_flight, hold: Hold::None };
        let decision = decide(config, &state, &input);
        state.apply(config, &decision);
        replayed.starts += u64::from(decision.new.saturating_sub(decision.current));
        if let Some(next) = recorded.get(index + 1) {
            let span_ms = u64::try_from(next.at.duration_since(tick.at).as_millis()).unwrap_or(0);
            replayed.replica_ms += span_ms.saturating_mul(decision.new.into());
        }
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
                Recorded { at: at(tick * 30), readings: vec![("q".into(), reading)], in_flight: 0, existing: None }
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
