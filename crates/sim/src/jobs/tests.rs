//! A thousand worlds of jobs, and faults made on purpose that each check must find.

use super::*;

const HOURS_MS: u64 = 9 * 3_600_000;

fn every_seed_keeps_every_promise(seeds: std::ops::Range<u64>) {
    let (mut broken, mut all) = (Vec::new(), JobStats::default());
    for seed in seeds {
        let mut sim = JobSim::new(seed);
        sim.advance(HOURS_MS);
        let stats = sim.stats();
        all.started += stats.started;
        all.ended += stats.ended;
        all.crashes += stats.crashes;
        all.jumps += stats.jumps;
        if let Some(violation) = sim.violations().first() {
            broken.push(format!("{violation}\n  replay: cargo run -p cove-sim -- --jobs {seed}"));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(all.started > 10_000 && all.ended > all.started / 2 && all.crashes > 250 && all.jumps > 100, "{all:?}");
}

#[test]
fn jobs_of_seeds_below_250_keep_every_promise() {
    every_seed_keeps_every_promise(0..250);
}

#[test]
fn jobs_of_seeds_below_500_keep_every_promise() {
    every_seed_keeps_every_promise(250..500);
}

#[test]
fn jobs_of_seeds_below_750_keep_every_promise() {
    every_seed_keeps_every_promise(500..750);
}

#[test]
fn jobs_of_seeds_below_1000_keep_every_promise() {
    every_seed_keeps_every_promise(750..1000);
}

/// From the evening before the clocks change: each tick that was not missed has one execution, none has two.
#[test]
fn thirty_days_with_a_change_of_the_clocks_crashes_and_set_clocks() {
    let mut all = JobStats::default();
    for seed in 2000..2006 {
        let mut sim = JobSim::new(seed);
        sim.advance(30 * 24 * 3_600_000);
        assert_eq!(sim.violations(), [], "seed {seed}");
        let stats = sim.stats();
        all.started += stats.started;
        all.crashes += stats.crashes;
        all.jumps += stats.jumps;
    }
    assert!(all.started > 20_000 && all.crashes > 1_000 && all.jumps > 500, "{all:?}");
}

#[test]
fn the_same_seed_is_the_same_world_of_jobs() {
    let run = || {
        let mut sim = JobSim::new(11);
        sim.advance(HOURS_MS);
        sim.stats()
    };
    assert_eq!(run(), run());
}

#[test]
fn what_is_broken_on_purpose_in_jobs_is_caught() {
    let expected = [
        (JobMutation::CausesNotUnique, Invariant::OneExecutionPerCronTick),
        (JobMutation::NothingSettled, Invariant::OneExecutionPerCronTick),
        (JobMutation::TicksLost, Invariant::OneExecutionPerCronTick),
        (JobMutation::TooParallel, Invariant::ParallelismBound),
        (JobMutation::EndsForgotten, Invariant::ExecutionEndsOnce),
    ];
    for (mutation, invariant) in expected {
        let found = (0..100).find_map(|seed| {
            let mut sim = JobSim::new(seed).with_mutation(mutation);
            sim.advance(HOURS_MS);
            sim.violations().first().cloned()
        });
        assert_eq!(found.map(|violation| violation.invariant), Some(invariant), "{mutation:?}");
    }
}
