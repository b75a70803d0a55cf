//! Worlds small enough to be counted by hand, and properties of the bound.

use cove_model::ScaleMode;
use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;
use crate::{Rule, RuleKind, ScaleSettings};

fn policy(mode: ScaleMode, min: u32, max: u32) -> Policy {
    let settings = ScaleSettings { cooldown_period: SignedDuration::from_secs(30), ..ScaleSettings::default() };
    let rules = vec![Rule::new("h", RuleKind::Http, 10.0)];
    let config = ScaleConfig { min_replicas: min, max_replicas: max, rules, settings, fallback: None };
    let fast = FastSettings::default();
    let config = if mode == ScaleMode::Fast { fast.configure(&config) } else { config };
    Policy { config, mode, fast }
}

fn request(at_ms: u64, duration_ms: u64) -> Request {
    Request { at_ms, duration_ms }
}

#[test]
fn one_request_wakes_waits_and_lets_go() {
    let outcome = simulate(&policy(ScaleMode::Aca, 0, 10), &[request(1000, 500)], &Fleet::default(), 120_000);
    // Woken at 1 s, read as active at 15 s, gone at the first tick more than 30 s later.
    assert_eq!((outcome.starts, outcome.cold_requests, outcome.violations), (1, 1, 1));
    assert_eq!(outcome.wait_ms, WaitPercentiles { p50: 2000, p95: 2000, p99: 2000, max: 2000 });
    assert_eq!(outcome.replica_ms, 59_000);
    let card = RateCard { vcpu_second: 0.25, idle_vcpu_second: 0.0, gib_second: 0.25, million_requests: 1e6 };
    assert!((outcome.cost(&card, ReplicaSize { vcpu: 1.0, gib: 1.0 }) - 30.5).abs() < 1e-9);
}

#[test]
fn a_burst_is_followed_in_a_second_or_in_fifteen() {
    let burst: Vec<Request> = (0..60).map(|_| request(10_000, 20_000)).collect();
    let [aca, fast] =
        [ScaleMode::Aca, ScaleMode::Fast].map(|mode| simulate(&policy(mode, 1, 10), &burst, &Fleet::default(), 60_000));
    assert!(fast.wait_ms.max <= 5_000, "{fast:?}");
    assert!(aca.wait_ms.max > 15_000, "{aca:?}");
    assert!(fast.violations < aca.violations || fast.wait_ms.p50 < aca.wait_ms.p50, "{fast:?} {aca:?}");
}

#[test]
fn the_bound_bridges_a_short_gap_and_pays_a_long_one() {
    let fleet = Fleet::default();
    let short = clairvoyant(&[request(5000, 1000), request(7500, 1000)], &fleet);
    assert_eq!((short.starts, short.replica_ms), (1, 2000 + 3500));
    let long = clairvoyant(&[request(5000, 1000), request(9000, 1000)], &fleet);
    assert_eq!((long.starts, long.replica_ms), (2, 2 * 3000));
    assert_eq!(clairvoyant(&[], &fleet), Outcome::default());
}

#[test]
fn without_a_rule_for_requests_they_are_never_answered_and_the_world_ends() {
    let mut policy = policy(ScaleMode::Aca, 0, 10);
    policy.config.rules = vec![Rule::new("q", RuleKind::Event, 1.0)];
    let outcome = simulate(&policy, &[request(0, 10)], &Fleet::default(), 1000);
    assert_eq!((outcome.starts, outcome.violations), (0, 1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_answered_and_the_same_trace_gives_the_same_outcome(
        arrivals in prop::collection::vec((0u64..200_000, 1u64..20_000), 0..120),
        is_fast in any::<bool>(),
    ) {
        let mode = if is_fast { ScaleMode::Fast } else { ScaleMode::Aca };
        let trace: Vec<Request> = arrivals.iter().map(|(at_ms, duration)| request(*at_ms, *duration)).collect();
        let fleet = Fleet::default();
        let outcome = simulate(&policy(mode, 0, 5), &trace, &fleet, 300_000);
        prop_assert_eq!(&outcome, &simulate(&policy(mode, 0, 5), &trace, &fleet, 300_000));
        prop_assert!(outcome.violations <= outcome.requests && outcome.wait_ms.p50 <= outcome.wait_ms.max);
        let work: u64 = trace.iter().map(|request| request.duration_ms).sum();
        prop_assert!(outcome.replica_ms * u64::from(fleet.slots) >= work, "the work was done");
        let bound = clairvoyant(&trace, &fleet);
        prop_assert!(bound.replica_ms * u64::from(fleet.slots) >= work);
        prop_assert!(outcome.violations > 0 || trace.is_empty() || outcome.replica_ms >= bound.replica_ms);
    }
}
