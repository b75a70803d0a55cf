//! Use of replicas that start, run, leave and give no sample.

use cove_model::{Bytes, MilliCpu};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn replica(number: u32, cpu_us_total: Option<u64>) -> ReplicaUsage {
    ReplicaUsage {
        name: ReplicaName::new(format!("w--v1-{number}")).unwrap(),
        phase: ReplicaPhase::Running,
        is_leaving: false,
        started_at: Some(at(0)),
        is_ready: Some(true),
        ready_at: Some(at(1)),
        cpu_us_total,
        cpu_taken_at: None,
        memory_bytes: Some(128 << 20),
        cpu_request: MilliCpu(250),
        memory_request: Bytes(512 << 20),
    }
}

fn rule(scaler: &str, kind: Option<&str>, value: &str) -> ScaleRule {
    let mut metadata = vec![("value".to_owned(), value.to_owned())];
    metadata.extend(kind.map(|kind| ("type".to_owned(), kind.to_owned())));
    let metadata = metadata.into_iter().collect();
    let kind = ScaleRuleKind::Custom { scaler: scaler.into(), metadata, auth: Vec::new(), identity: None };
    ScaleRule { name: "r".into(), kind }
}

fn error(reading: &Reading) -> &str {
    match reading {
        Reading::Error { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn targets_are_percentages_or_amounts() {
    use ResourceTarget::{AverageValue, Utilization};
    let cases = [
        (RuleKind::Cpu, None, "50", Ok(Utilization { percent: 50 })),
        (RuleKind::Cpu, Some("AverageValue"), "500m", Ok(AverageValue { value: 500 })),
        (RuleKind::Cpu, Some("AverageValue"), "2", Ok(AverageValue { value: 2000 })),
        (RuleKind::Memory, Some("AverageValue"), "200Mi", Ok(AverageValue { value: 200 << 20 })),
        (RuleKind::Memory, Some("Utilization"), " 80 ", Ok(Utilization { percent: 80 })),
        (RuleKind::Cpu, None, "0", Err("value is `0`; expected a whole percentage of at least 1")),
        (RuleKind::Cpu, Some("AverageValue"), "-1", Err("value is not an amount above 0, such as `500m`")),
        (RuleKind::Memory, Some("Percent"), "1", Err("type is `Percent`; expected Utilization or AverageValue")),
    ];
    for (kind, target_kind, value, expected) in cases {
        assert_eq!(target(kind, &rule("x", target_kind, value)), expected.map_err(str::to_owned), "{value}");
    }
}

#[test]
fn a_rate_takes_two_looks_and_a_counter_that_starts_anew_gives_none() {
    let settings = ScaleSettings::default();
    let cpu = rule("cpu", None, "50");
    let mut meter = Meter::default();
    let read = |meter: &mut Meter, second: i64, total: Option<u64>| {
        meter.look(vec![replica(1, total)], at(second)).reading(&settings, RuleKind::Cpu, &cpu, 1)
    };
    assert_eq!(error(&read(&mut meter, 400, Some(1_000_000))), "no metrics for any ready replica");
    // 7.5 s of processor in 15 s are 500 m: 200 % of the request
    assert_eq!(read(&mut meter, 415, Some(8_500_000)), Reading::Replicas { count: 4 });
    assert_eq!(error(&read(&mut meter, 430, Some(5))), "no metrics for any ready replica");
    assert_eq!(error(&read(&mut meter, 445, None)), "no metrics for any ready replica");
    assert_eq!(meter.seen.len(), 1);
    meter.look(Vec::new(), at(460));
    assert!(meter.seen.is_empty(), "who is gone is forgotten");
}

#[test]
fn a_replica_that_starts_is_no_reason_to_add_more() {
    let settings = ScaleSettings::default();
    let cpu = rule("cpu", None, "50");
    let mut meter = Meter::default();
    let look = |meter: &mut Meter, second: i64, is_ready: bool| {
        let old = replica(1, Some(u64::try_from(second).unwrap() * 125_000));
        let young = ReplicaUsage {
            started_at: Some(at(590)),
            is_ready: Some(is_ready),
            ready_at: None,
            ..replica(2, Some(u64::try_from(second).unwrap() * 250_000))
        };
        meter.look(vec![old, young], at(second)).reading(&settings, RuleKind::Cpu, &cpu, 2)
    };
    look(&mut meter, 600, false);
    // the old one uses its target, the young one twice that, which is start-up noise
    assert_eq!(look(&mut meter, 615, false), Reading::Replicas { count: 2 });
    assert_eq!(look(&mut meter, 630, true), Reading::Replicas { count: 2 }, "not ready for a whole window yet");
    assert_eq!(look(&mut meter, 645, true), Reading::Replicas { count: 3 });
}

#[test]
fn memory_needs_one_look() {
    let settings = ScaleSettings::default();
    let look = Meter::default().look(vec![replica(1, None), replica(2, None)], at(20));
    assert!(look.any_runs());
    let memory = rule("memory", Some("AverageValue"), "64Mi");
    assert_eq!(look.reading(&settings, RuleKind::Memory, &memory, 2), Reading::Replicas { count: 4 });
}
