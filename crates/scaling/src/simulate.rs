//! Tries rules out on a trace of requests: what they would have cost, and who would have waited.
//!
//! Replicas, queue and clock are played; the decisions are those of [`crate::decide`]. The bound is a scaler that knows
//! the future: nobody waits, and each replica runs for as short as its starts allow.
//!
//! **Invariant:** the same trace and policy give the same outcome; time is counted in whole milliseconds.

mod bound;
mod replay;
mod suggest;
mod trace;
mod world;

use serde::{Deserialize, Serialize};

pub use bound::clairvoyant;
pub use replay::{Recorded, Replayed, replay, state_before};
pub use suggest::{Objective, Suggestion, suggest};
pub use trace::{TRACE_MAX, TraceError, parse_csv, rebuild};

use cove_model::{Scale, ScaleMode};

use crate::config::ScaleConfig;
use crate::effective::{ScaleDefaults, effective};
use crate::fast::FastSettings;

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// When it arrives, since the trace's start.
    pub at_ms: u64,
    /// How long a replica works on it.
    pub duration_ms: u64,
}

/// What the replicas are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fleet {
    /// From the decision until a replica is ready.
    pub cold_start_ms: u64,
    /// Requests that one replica works on at once, >= 1.
    pub slots: u32,
    /// A longer wait is a violation.
    pub wait_limit_ms: u64,
}

impl Default for Fleet {
    /// 2 s to start, 10 requests at once, waits over 1 s count.
    fn default() -> Self {
        Self { cold_start_ms: 2000, slots: 10, wait_limit_ms: 1000 }
    }
}

/// What running costs, in any one currency. The default is Azure's consumption plan in most regions, in US dollars
/// (prices as published in 2026); what is free each month is not taken off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RateCard {
    /// One vCPU of an active replica for one second. Default 0.000024.
    pub vcpu_second: f64,
    /// One vCPU of an idle replica for one second: at `minReplicas` above zero, without an open request. Default 0.000003.
    pub idle_vcpu_second: f64,
    /// One GiB of a replica for one second, active or idle. Default 0.000003.
    pub gib_second: f64,
    /// A million requests. Default 0.40.
    pub million_requests: f64,
}

impl Default for RateCard {
    fn default() -> Self {
        Self { vcpu_second: 0.000_024, idle_vcpu_second: 0.000_003, gib_second: 0.000_003, million_requests: 0.4 }
    }
}

/// What one replica asks for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaSize {
    /// Cores.
    pub vcpu: f64,
    /// Memory in GiB.
    pub gib: f64,
}

impl Default for ReplicaSize {
    /// 0.5 cores and 1 GiB, Azure's default.
    fn default() -> Self {
        Self { vcpu: 0.5, gib: 1.0 }
    }
}

impl RateCard {
    /// The cost of replica time, of which a part was idle, and of requests.
    #[expect(clippy::cast_precision_loss, reason = "money is shown with a few digits")]
    pub fn cost(&self, size: ReplicaSize, replica_ms: u64, idle_ms: u64, requests: u64) -> f64 {
        let active_s = replica_ms.saturating_sub(idle_ms) as f64 / 1000.0;
        let idle_s = idle_ms as f64 / 1000.0;
        size.vcpu * (active_s * self.vcpu_second + idle_s * self.idle_vcpu_second)
            + size.gib * (active_s + idle_s) * self.gib_second
            + requests as f64 / 1e6 * self.million_requests
    }
}

/// Rules to try: the configuration, and the mode it runs in.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Limits, rules, and the settings in force; only http and tcp rules see the trace.
    pub config: ScaleConfig,
    /// Which readings the rules get.
    pub mode: ScaleMode,
    /// Of the fast mode, its headroom; the rest of its constants is in `config`.
    pub fast: FastSettings,
}

impl Policy {
    /// The policy of a template on a server with these defaults.
    pub fn of(scale: &Scale, has_ingress: bool, defaults: &ScaleDefaults) -> Self {
        let in_force = effective(scale, defaults);
        let fast = FastSettings { headroom_percent: in_force.headroom_percent, ..defaults.fast.clone() };
        Self { config: ScaleConfig::from_effective(scale, has_ingress, &in_force), mode: in_force.mode, fast }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Requests of the trace.
    pub requests: u64,
    /// Time that replicas existed, starting and draining included.
    pub replica_ms: u64,
    /// Of it, time at `minReplicas` above zero without an open request.
    pub idle_ms: u64,
    /// Replicas started.
    pub starts: u64,
    /// Requests that found no replica ready.
    pub cold_requests: u64,
    /// Requests that waited longer than the limit.
    pub violations: u64,
    /// Waits, sorted by share: 50 %, 95 %, 99 %, all.
    pub wait_ms: WaitPercentiles,
    /// Most replicas at once.
    pub most_replicas: u32,
    /// Decisions taken.
    pub decisions: u64,
    /// Turns of direction within 300 s of the change before.
    pub reversals: u64,
    /// Decided counts: from when on, in milliseconds, and how many.
    pub counts: Vec<(u64, u32)>,
}

/// How long requests waited, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitPercentiles {
    /// Half of them at most this.
    pub p50: u64,
    /// 95 of 100 at most this.
    pub p95: u64,
    /// 99 of 100 at most this.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

impl Outcome {
    /// Replica-seconds.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub fn replica_seconds(&self) -> f64 {
        self.replica_ms as f64 / 1000.0
    }

    /// Violations in percent of the requests.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub fn violation_percent(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.violations as f64 * 100.0 / self.requests as f64 }
    }

    /// The cost by a rate card.
    pub fn cost(&self, card: &RateCard, size: ReplicaSize) -> f64 {
        card.cost(size, self.replica_ms, self.idle_ms, self.requests)
    }
}

/// Plays `trace` (by arrival; sorted here if it is not) under `policy`, from zero replicas, until `until_ms` and until
/// every request is answered. A policy that leaves requests without a replica ends ten cool-downs after the last event.
pub fn simulate(policy: &Policy, trace: &[Request], fleet: &Fleet, until_ms: u64) -> Outcome {
    if trace.is_sorted_by_key(|request| request.at_ms) {
        return world::World::new(policy, trace, fleet).run(until_ms);
    }
    let mut sorted = trace.to_vec();
    sorted.sort_by_key(|request| request.at_ms);
    world::World::new(policy, &sorted, fleet).run(until_ms)
}

impl WaitPercentiles {
    fn of(mut waits: Vec<u64>) -> Self {
        waits.sort_unstable();
        let at = |percent: usize| {
            let rank = (waits.len() * percent).div_ceil(100).max(1);
            waits.get(rank - 1).copied().unwrap_or(0)
        };
        Self { p50: at(50), p95: at(95), p99: at(99), max: at(100) }
    }
}

#[cfg(test)]
mod tests;
