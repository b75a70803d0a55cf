//! Seeds, scripts with golden output, and mutations: a platform broken on purpose must be caught.

use std::path::Path;
use std::time::Duration;

use cove_testing::processor_time;

use crate::{Invariant, Mutation, Script, Size, generate};

const HOUR_MS: u64 = 3_600_000;

/// Every test run tries a thousand worlds, in four parts so that they run side by side; `cove-sim --seeds` tries more.
fn every_seed_keeps_every_promise(seeds: std::ops::Range<u64>) {
    let mut freezes = 0;
    let broken: Vec<String> = seeds
        .filter_map(|seed| {
            let mut sim = generate(seed, Size::Small);
            sim.advance(HOUR_MS);
            freezes += sim.stats().freezes;
            let violation = sim.violations().first()?;
            Some(format!("{violation}\n  replay: cargo run -p cove-sim -- --seed {seed}"))
        })
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(freezes > 100, "only {freezes} replicas were ever frozen");
}

#[test]
fn seeds_below_250_keep_every_promise() {
    every_seed_keeps_every_promise(0..250);
}

#[test]
fn seeds_below_500_keep_every_promise() {
    every_seed_keeps_every_promise(250..500);
}

#[test]
fn seeds_below_750_keep_every_promise() {
    every_seed_keeps_every_promise(500..750);
}

#[test]
fn seeds_below_1000_keep_every_promise() {
    every_seed_keeps_every_promise(750..1000);
}

#[test]
fn a_day_of_two_hundred_apps_takes_less_than_thirty_seconds() {
    let begun = processor_time();
    let mut sim = generate(1, Size::Day);
    sim.advance(24 * HOUR_MS);
    assert_eq!(sim.violations(), []);
    let stats = sim.stats();
    assert!(stats.arrived > 500_000 && stats.decisions > 500_000, "{stats:?}");
    let took = processor_time() - begun;
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[test]
fn the_same_seed_is_the_same_world() {
    let run = || {
        let mut sim = generate(7, Size::Small).with_log();
        sim.advance(HOUR_MS);
        (sim.log().to_vec(), sim.stats())
    };
    let (first, second) = (run(), run());
    assert!(first.0.len() > 100);
    assert_eq!(first, second);
}

#[test]
fn what_is_broken_on_purpose_is_caught() {
    let expected = [
        (Mutation::VictimsInverted, Invariant::LeastBusyGoesFirst),
        (Mutation::StopInsteadOfDrain, Invariant::NoRequestDroppedWhileReady),
        (Mutation::FreezeInsteadOfDrain, Invariant::NoRequestDroppedWhileReady),
        (Mutation::SendToDraining, Invariant::DrainedGetsNoNewRequest),
        (Mutation::ImpatientCoolDown, Invariant::ZeroOnlyAfterCoolDown),
        (Mutation::NoMemory, Invariant::PlanSettles),
        (Mutation::ForgottenHold, Invariant::HeldRequestAnsweredOr504),
        (Mutation::NoUpperLimit, Invariant::ReplicasWithinLimits),
        (Mutation::SwitchAtOnce, Invariant::OldRevisionServesUntilNewReady),
        (Mutation::WeightsUnchecked, Invariant::TrafficSumsTo100),
        (Mutation::HopefulStatus, Invariant::StatusNeverAheadOfObserved),
        (Mutation::StaleOutcome, Invariant::GenerationMonotone),
    ];
    for (mutation, invariant) in expected {
        let found = (0..60).find_map(|seed| {
            let mut sim = generate(seed, Size::Small).with_mutation(mutation);
            sim.advance(HOUR_MS);
            sim.violations().first().cloned()
        });
        assert_eq!(found.map(|violation| violation.invariant), Some(invariant), "{mutation:?}");
    }
}

#[test]
fn scripts_show_what_they_showed() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut scripts: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.retain(|path| path.extension().is_some_and(|extension| extension == "sim"));
    scripts.sort();
    assert!(scripts.len() >= 5);
    for path in scripts {
        let shown = Script::run(&std::fs::read_to_string(&path).unwrap()).unwrap();
        expect_test::expect_file![path.with_extension("out")].assert_eq(&shown);
    }
}

#[test]
fn what_is_not_a_command_is_said() {
    for (line, says) in [
        ("dance", "`dance` is not a command; see the header of `script.rs`"),
        ("advance ten", "`ten` is not a span such as 500ms, 90s, 10m, 24h"),
        ("stop web", "there is no app `web`"),
        ("app Web", "`Web` is not a container app name"),
        ("app web min x", "`x` is not a whole number"),
    ] {
        assert_eq!(Script::default().line(line).unwrap_err().to_string(), says);
    }
}

#[test]
fn the_table_of_quality_is_what_it_was() {
    let table = crate::quality_table(1);
    expect_test::expect![[r#"
        workload  mode    waits>1s %  replica-s  x bound  starts  cold  p99 ms  max ms
        steps     aca           1.46      23880     5.67      30   202    3507    8854
        steps     fast          0.19       5689     1.35      97   202       8    2294
        steps     bound         0.00       4209     1.00     122     0       0       0
        diurnal   aca           0.94      53837     2.07      46     2     913    7719
        diurnal   fast          0.08      31227     1.20     288     2      64    2000
        diurnal   bound         0.00      26001     1.00    1304     0       0       0
        llm       aca          99.91       7671     0.74       1     9 4032998 4057924
        llm       fast          0.03      13296     1.28     105     9       0    2000
        llm       bound         0.00      10351     1.00     302     0       0       0
        sparse    aca           0.72       7190    24.05       1     1       0    2000
        sparse    fast          1.45       7189    24.04       2     2    2000    2000
        sparse    bound         0.00        299     1.00     135     0       0       0
    "#]]
    .assert_eq(&table);
}
