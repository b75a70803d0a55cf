//! How well a mode of scaling serves a load: who waited, and what it cost, beside the bound of knowing the future.
//!
//! Workloads are drawn from a seed; the decisions are those of the scaling core.
//!
//! **Invariant:** the same seed gives the same table.

use std::fmt::Write as _;

use cove_scaling::fast::{FastSettings, ScaleMode};
use cove_scaling::simulate::{Fleet, Outcome, Policy, Request, clairvoyant, simulate};
use cove_scaling::{Rule, RuleKind, ScaleConfig, ScaleSettings};

use crate::random::Random;

/// A load whose quality is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Short requests: nothing, 100 a second, 300 a second, and back, five minutes each.
    Steps,
    /// A day of four hours: short requests that follow the sun, with bursts of 20 s every 20 minutes or so.
    Diurnal,
    /// Long answers of a language model, 0.5 to 30 s, a little below 6 a second, for an hour.
    Llm,
    /// A request in 50 s, for two hours.
    Sparse,
}

impl Workload {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Steps, Self::Diurnal, Self::Llm, Self::Sparse];

    /// The name in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::Diurnal => "diurnal",
            Self::Llm => "llm",
            Self::Sparse => "sparse",
        }
    }

    /// The requests, and when the trace ends.
    pub fn trace(self, seed: u64) -> (Vec<Request>, u64) {
        let mut random = Random::new(seed);
        let minute_ms = 60_000;
        let (until_ms, most_per_second) = match self {
            Self::Steps => (25 * minute_ms, 300.0),
            Self::Diurnal => (240 * minute_ms, 90.0),
            Self::Llm => (60 * minute_ms, 6.0),
            Self::Sparse => (120 * minute_ms, 0.02),
        };
        let mut trace = Vec::new();
        let mut burst_from_ms = random.exponential(20.0 * 60_000.0);
        let mut micros = 0u64;
        // Candidates come at the highest rate and are thinned to the rate of their instant.
        loop {
            micros += random.exponential(1e6 / most_per_second);
            let at_ms = micros / 1000;
            if at_ms >= until_ms {
                return (trace, until_ms);
            }
            let rate = match self {
                Self::Steps => {
                    [0.0, 100.0, 300.0, 100.0, 0.0][usize::try_from(at_ms / (5 * minute_ms)).unwrap_or(0).min(4)]
                }
                Self::Diurnal => {
                    if at_ms > burst_from_ms + 20_000 {
                        burst_from_ms = at_ms + random.exponential(20.0 * 60_000.0);
                    }
                    let burst = if at_ms >= burst_from_ms { 50.0 } else { 0.0 };
                    burst + 40.0 * hat(at_ms, until_ms)
                }
                Self::Llm => 3.5 + 2.5 * hat(at_ms % (20 * minute_ms), 20 * minute_ms),
                Self::Sparse => most_per_second,
            };
            if random.chance(rate / most_per_second) {
                let duration_ms = match self {
                    Self::Steps | Self::Sparse => 100 + random.exponential(80.0),
                    Self::Diurnal => 50 + random.exponential(350.0),
                    Self::Llm => (500 + random.exponential(4000.0)).min(30_000),
                };
                trace.push(Request { at_ms, duration_ms });
            }
        }
    }
}

/// 0 at both ends of the period, 1 in its middle.
fn hat(at_ms: u64, period_ms: u64) -> f64 {
    let share = |ms: u64| f64::from(u32::try_from(ms).unwrap_or(u32::MAX));
    1.0 - (2.0 * share(at_ms) / share(period_ms) - 1.0).abs()
}

/// The table: per workload the documented mode, the fast one, and the bound. A replica takes two seconds to start.
///
/// Where all is silent for longer than the cool-down the first request waits for a start in every mode; only the bound,
/// which knows that it will come, starts before it. So `sparse` cannot meet the bound, at any cool-down.
pub fn quality_table(seed: u64) -> String {
    let mut table = String::from("workload  mode    waits>1s %  replica-s  x bound  starts  cold  p99 ms  max ms\n");
    let fleet = Fleet::default();
    for workload in Workload::ALL {
        let (trace, until_ms) = workload.trace(seed);
        let bound = clairvoyant(&trace, &fleet);
        for (name, mode) in [("aca", ScaleMode::Aca), ("fast", ScaleMode::Fast)] {
            let outcome = simulate(&policy(mode), &trace, &fleet, until_ms);
            row(&mut table, workload, name, &outcome, &bound);
        }
        row(&mut table, workload, "bound", &bound, &bound);
    }
    table
}

fn policy(mode: ScaleMode) -> Policy {
    let config = ScaleConfig {
        min_replicas: 0,
        max_replicas: 60,
        rules: vec![Rule::new("http", RuleKind::Http, 10.0)],
        settings: ScaleSettings::default(),
        fallback: None,
    };
    let fast = FastSettings::default();
    let config = if mode == ScaleMode::Fast { fast.configure(&config) } else { config };
    Policy { config, mode, fast }
}

fn row(table: &mut String, workload: Workload, mode: &str, outcome: &Outcome, bound: &Outcome) {
    let share = outcome.replica_seconds() / bound.replica_seconds().max(0.001);
    let written = writeln!(
        table,
        "{:<9} {:<7} {:>10.2} {:>10.0} {:>8.2} {:>7} {:>5} {:>7} {:>7}",
        workload.as_str(),
        mode,
        outcome.violation_percent(),
        outcome.replica_seconds(),
        share,
        outcome.starts,
        outcome.cold_requests,
        outcome.wait_ms.p99,
        outcome.wait_ms.max,
    );
    written.expect("writing to a string cannot fail");
}
