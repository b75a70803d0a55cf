//! What is written is read back, and what is damaged is said to be.

use proptest::prelude::*;

use super::*;
use crate::{Input, Rule, RuleKind, ScaleSettings, ScaleState, activate, decide};

fn config(rules: &[&str]) -> Arc<ScaleConfig> {
    let rule = |name: &&str| Rule::new(name, RuleKind::Event, 5.0);
    Arc::new(ScaleConfig {
        min_replicas: 0,
        max_replicas: 10,
        rules: rules.iter().map(rule).collect(),
        settings: ScaleSettings::default(),
        fallback: None,
    })
}

/// Decisions from readings; `None` is a failure. Every instant is a little late.
fn decisions(config: &Arc<ScaleConfig>, readings: &[Option<u16>], step_s: i64) -> Vec<DecisionRecord> {
    let mut state = ScaleState::default();
    let mut taken = Vec::new();
    for (tick, value) in (0i64..).zip(readings) {
        let now =
            Timestamp::new(1_700_000_000 + tick * step_s, i32::try_from(tick * 7919 % 3_000_000).unwrap()).unwrap();
        let reading = |rule: &Rule| match value {
            Some(value) => Reading::of_value(rule, f64::from(*value)),
            None => Reading::error("no answer"),
        };
        let readings: Vec<Reading> = config.rules.iter().map(reading).collect();
        let existing = state.current;
        let input = Input { now, readings: &readings, existing, in_flight: 0, hold: Hold::None };
        let decision = decide(config, &state, &input);
        state.apply(config, &decision);
        taken.push(DecisionRecord { config: Arc::clone(config), decision });
    }
    taken
}

fn write(records: &[DecisionRecord]) -> Vec<(u8, Vec<u8>)> {
    let mut writer = Writer::default();
    let mut tape = Vec::new();
    let mut put = |entry: Entry<'_>| {
        let (tag, bytes) = match entry {
            Entry::Config(bytes) => (0, bytes),
            Entry::One(bytes) => (1, bytes),
            Entry::Run(bytes) => (2, bytes),
        };
        tape.push((tag, bytes.to_vec()));
    };
    for record in records {
        writer.push(record, &mut put);
    }
    writer.end_run(&mut put);
    assert_eq!(writer.run_since(), None);
    tape
}

fn read(tape: &[(u8, Vec<u8>)]) -> Result<Vec<DecisionRecord>, Damaged> {
    let mut reader = Reader::default();
    let mut records = Vec::new();
    for (tag, bytes) in tape {
        let entry = match tag {
            0 => Entry::Config(bytes),
            1 => Entry::One(bytes),
            _ => Entry::Run(bytes),
        };
        reader.take(entry, &mut |record| records.push(record))?;
    }
    Ok(records)
}

#[test]
fn a_day_of_idling_takes_a_few_bytes_a_decision_and_comes_back() {
    let config = config(&["a", "b", "c", "d", "e"]);
    let records = decisions(&config, &[Some(7); 2880], 30);
    let tape = write(&records);
    let bytes: usize = tape.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes < 2880 * 4 + 1500, "{bytes}");
    assert_eq!(read(&tape).unwrap(), records);
    for record in &records {
        record.replay().unwrap();
    }
}

#[test]
fn readings_that_change_take_a_few_bytes_each() {
    let config = config(&["a", "b", "c", "d", "e"]);
    let values: Vec<Option<u16>> = (0..2880u32).map(|tick| u16::try_from(20 + tick * 37 % 25).ok()).collect();
    let records = decisions(&config, &values, 30);
    let tape = write(&records);
    let bytes: usize = tape.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes < 2880 * 50, "{bytes}");
    assert_eq!(read(&tape).unwrap(), records);
}

#[test]
fn a_wake_asks_no_rule_and_the_next_decision_knows_them_again() {
    let config = Arc::new(ScaleConfig { rules: vec![Rule::new("h", RuleKind::Http, 10.0)], ..(*config(&[])).clone() });
    let mut records = decisions(&config, &[Some(0), Some(0)], 15);
    let state = ScaleState::default();
    let woken = activate(&config, &state, Timestamp::from_second(1_700_000_100).unwrap(), 1).unwrap();
    records.push(DecisionRecord { config: Arc::clone(&config), decision: woken });
    records.extend(decisions(&config, &[Some(9), Some(9), Some(9)], 15));
    assert_eq!(read(&write(&records)).unwrap(), records);
}

#[test]
fn a_changed_configuration_stands_before_its_decisions() {
    let mut records = decisions(&config(&["a"]), &[Some(3), None, None], 30);
    records.extend(decisions(&config(&["a", "b"]), &[Some(9), Some(9), None], 30));
    assert_eq!(read(&write(&records)).unwrap(), records);
}

proptest! {
    #[test]
    fn any_sequence_comes_back(values in prop::collection::vec(prop::option::weighted(0.9, 0u16..60), 0..60), step in 1i64..400) {
        let records = decisions(&config(&["a", "b"]), &values, step);
        prop_assert_eq!(read(&write(&records)).unwrap(), records);
    }

    #[test]
    fn damage_is_an_error_or_other_decisions(tag in 0u8..3, bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut tape = write(&decisions(&config(&["a"]), &[Some(1), Some(2)], 30));
        tape.push((tag, bytes));
        let _readable_or_not = read(&tape);
    }
}
