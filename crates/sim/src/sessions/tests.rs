//! Thousands of sessions in worlds of two hours, and proof that each check can fail.

use super::*;

const HOURS_MS: u64 = 2 * 3_600_000;

fn every_seed_keeps_every_promise(seeds: std::ops::Range<u64>) {
    let (mut broken, mut all) = (Vec::new(), SessionStats::default());
    for seed in seeds {
        let mut sim = SessionSim::new(seed);
        sim.advance(HOURS_MS);
        sim.settle();
        let stats = sim.stats();
        all.allocated += stats.allocated;
        all.cooled_down += stats.cooled_down;
        all.answered += stats.answered;
        all.crashes += stats.crashes;
        all.jumps += stats.jumps;
        if let Some(violation) = sim.violations().first() {
            broken.push(format!("{violation}\n  replay: cargo run -p cove-sim -- --sessions {seed}"));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(all.allocated > 5_000 && all.cooled_down > 2_000 && all.crashes > 50 && all.jumps > 10, "{all:?}");
    assert!(all.answered > all.allocated, "{all:?}");
}

#[test]
fn sessions_of_seeds_below_6_keep_every_promise() {
    every_seed_keeps_every_promise(0..6);
}

#[test]
fn sessions_of_seeds_below_12_keep_every_promise() {
    every_seed_keeps_every_promise(6..12);
}

#[test]
fn the_same_seed_is_the_same_world_of_sessions() {
    let run = || {
        let mut sim = SessionSim::new(11);
        sim.advance(HOURS_MS / 4);
        sim.stats()
    };
    assert_eq!(run(), run());
}

#[test]
fn what_is_broken_on_purpose_in_sessions_is_caught() {
    let expected = [
        (SessionMutation::ServedUnstored, Invariant::OneIdentifierOneSession),
        (SessionMutation::IdentifierNotLookedUp, Invariant::OneIdentifierOneSession),
        (SessionMutation::CallsNotCounted, Invariant::SessionCoolDownExact),
        (SessionMutation::CoolDownTooLong, Invariant::SessionCoolDownExact),
        (SessionMutation::StopsLost, Invariant::NoSessionLeaks),
        (SessionMutation::NamesRepeated, Invariant::ReplicaStartedOnce),
    ];
    for (mutation, invariant) in expected {
        let found = (0..20).find_map(|seed| {
            let mut sim = SessionSim::new(seed).with_mutation(mutation);
            sim.advance(HOURS_MS / 4);
            if sim.violations().is_empty() {
                sim.settle();
            }
            sim.violations().first().cloned()
        });
        assert_eq!(found.map(|violation| violation.invariant), Some(invariant), "{mutation:?}");
    }
}
