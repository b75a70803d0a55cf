//! Properties of decisions that no single vector can show.

use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;
use crate::{DecisionRecord, ScaleSettings};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn config(min: u32, max: u32, kinds: &[RuleKind]) -> ScaleConfig {
    let rules = kinds.iter().enumerate().map(|(index, kind)| Rule::new(&format!("r{index}"), *kind, 10.0)).collect();
    ScaleConfig { min_replicas: min, max_replicas: max, rules, settings: ScaleSettings::default(), fallback: None }
}

fn kind() -> impl Strategy<Value = RuleKind> {
    prop_oneof![Just(RuleKind::Http), Just(RuleKind::Tcp), Just(RuleKind::Event), Just(RuleKind::Cpu)]
}

/// `None` is an error reading.
fn reading_of(rule: &Rule, value: Option<u32>) -> Reading {
    match value {
        None => Reading::error("gone"),
        Some(value) if rule.kind.is_resource() => Reading::Replicas { count: value / 10 },
        Some(value) => Reading::of_value(rule, f64::from(value)),
    }
}

fn sample() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![1 => Just(None), 3 => Just(Some(0)), 4 => (0u32..300).prop_map(Some)]
}

type Tick = (i64, Vec<Option<u32>>, u64, u32);

fn ticks(most: usize) -> impl Strategy<Value = Vec<Tick>> {
    let tick = (1i64..400, prop::collection::vec(sample(), 3), prop_oneof![2 => Just(0u64), 1 => 0u64..4], 0u32..12);
    prop::collection::vec(tick, 1..most)
}

/// The invariants of one life: limits, steps, no scale-in on an error or against the window, a record that replays.
fn keeps_promises(min: u32, extra: u32, kinds: &[RuleKind], ticks: Vec<Tick>) -> Result<(), TestCaseError> {
    let config = config(min, (min + extra).max(1), kinds);
    let mut state = ScaleState::start(&config, None, at(0));
    let mut now = 0;
    for (step, samples, in_flight, existing) in ticks {
        now += step;
        let readings: Vec<Reading> =
            config.rules.iter().zip(&samples).map(|(rule, value)| reading_of(rule, *value)).collect();
        let input = Input { now: at(now), readings: &readings, existing, in_flight, hold: Hold::None };
        let decision = decide(&config, &state, &input);
        let (before, new) = (state.current, decision.new);

        prop_assert!(new <= config.max_replicas && new >= config.min_replicas);
        prop_assert!(new <= config.settings.step_ceiling(before).max(config.running_min()));
        let failed = config
            .rules
            .iter()
            .zip(&readings)
            .any(|(rule, reading)| !rule.kind.is_resource() && matches!(reading, Reading::Error { .. }));
        let open = in_flight > 0 && config.rules.iter().any(|rule| rule.kind.is_load());
        if before > 0 && new == 0 {
            prop_assert!(!failed && !open && min == 0);
            let idle = at(now).duration_since(decision.last_active.unwrap());
            prop_assert!(idle > SignedDuration::from_secs(300));
        }
        if new > 0 && new < before && before <= config.max_replicas {
            prop_assert!(decision.window_peak.unwrap_or(0) <= new);
        }
        let record = DecisionRecord { config: config.clone().into(), decision };
        prop_assert_eq!(&record.replay().unwrap(), &record.decision);
        state.apply(&config, &record.decision);
        prop_assert_eq!(state.current, new);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn every_decision_keeps_the_promises(
        min in 0u32..4,
        extra in 0u32..20,
        kinds in prop::collection::vec(kind(), 0..3),
        ticks in ticks(8),
    ) {
        keeps_promises(min, extra, &kinds, ticks)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn long_lives_keep_the_promises(
        min in 0u32..4,
        extra in 0u32..20,
        kinds in prop::collection::vec(kind(), 0..3),
        ticks in ticks(40),
    ) {
        keeps_promises(min, extra, &kinds, ticks)?;
    }

    #[test]
    fn the_order_of_rules_does_not_matter(values in prop::collection::vec(sample(), 3), current in 0u32..9) {
        let config = config(0, 10, &[RuleKind::Http, RuleKind::Event, RuleKind::Cpu]);
        let readings: Vec<Reading> =
            config.rules.iter().zip(&values).map(|(rule, value)| reading_of(rule, *value)).collect();
        let state = ScaleState { current, last_active: Some(at(0)), seeded: true, ..ScaleState::default() };
        let take = |config: &ScaleConfig, readings: &[Reading]| {
            let input = Input { now: at(900), readings, existing: current, in_flight: 0, hold: Hold::None };
            decide(config, &state, &input).new
        };
        let forward = take(&config, &readings);
        let mut mirrored = config;
        mirrored.rules.reverse();
        let reversed: Vec<Reading> = readings.iter().rev().cloned().collect();
        prop_assert_eq!(forward, take(&mirrored, &reversed));
    }
}

#[test]
fn a_request_activates_only_a_revision_at_zero_with_a_load_rule() {
    let http = config(0, 10, &[RuleKind::Http]);
    let state = ScaleState::default();
    let decision = activate(&http, &state, at(5), 1).unwrap();
    assert_eq!((decision.new, decision.reason), (1, Reason::Activated));
    let record = DecisionRecord { config: http.clone().into(), decision };
    assert_eq!(record.replay().unwrap(), record.decision);
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<DecisionRecord>(&text).unwrap(), record);

    assert_eq!(activate(&http, &ScaleState { current: 1, ..ScaleState::default() }, at(5), 1), None);
    assert_eq!(activate(&config(0, 10, &[RuleKind::Event]), &state, at(5), 1), None);
}

#[test]
fn a_new_revision_takes_over_the_count_of_the_one_it_replaces() {
    for (replaced, expected) in [(None, 2), (Some(0), 2), (Some(3), 3), (Some(50), 5)] {
        let state = ScaleState::start(&config(2, 5, &[RuleKind::Http]), replaced, at(0));
        assert_eq!(state.current, expected, "{replaced:?}");
    }
    assert_eq!(ScaleState::start(&config(0, 5, &[]), None, at(0)).current, 1);
}

#[test]
fn a_fresh_revision_lives_one_cool_down() {
    let config = config(0, 5, &[RuleKind::Http]);
    let mut state = ScaleState::start(&config, None, at(0));
    let mut zero_at = None;
    for tick in 1..=30 {
        let now = tick * 15;
        let readings = [Reading::of_value(&config.rules[0], 0.0)];
        let input =
            Input { now: at(now), readings: &readings, existing: state.current, in_flight: 0, hold: Hold::None };
        let decision = decide(&config, &state, &input);
        state.apply(&config, &decision);
        if state.current == 0 && zero_at.is_none() {
            zero_at = Some(now);
        }
    }
    assert_eq!(zero_at, Some(315), "300 s must be exceeded");
}

#[test]
fn a_day_of_two_hundred_apps_is_quick() {
    let config = config(0, 10, &[RuleKind::Http]);
    let mut changes = 0;
    for app in 0..200_u32 {
        let mut state = ScaleState::start(&config, None, at(0));
        for tick in 0..5760 {
            let busy = (tick / 97 + i64::from(app)) % 3 == 0;
            let readings = [Reading::of_value(&config.rules[0], if busy { 35.0 } else { 0.0 })];
            let now = at(15 * (tick + 1));
            let input = Input { now, readings: &readings, existing: state.current, in_flight: 0, hold: Hold::None };
            let decision = decide(&config, &state, &input);
            changes += u32::from(decision.changes());
            state.apply(&config, &decision);
        }
    }
    assert!(changes > 2000, "{changes} changes");
}
