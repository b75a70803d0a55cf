//! What a cpu or memory rule proposes from samples of the replicas.
//!
//! Follows the Kubernetes HPA: replicas that start, or gave no sample, are guessed in the direction that changes least.
//!
//! **Invariant:** no guess turns the direction: where it would, the count stays.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::config::RuleKind;
use crate::number::{ceil_div, within_tolerance};
use crate::settings::ScaleSettings;

/// What the rule's `metadata.type` and `metadata.value` ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResourceTarget {
    /// Percent of what the replicas request, whole.
    Utilization {
        /// Target percent, >= 1.
        percent: u64,
    },
    /// Mean use per replica, in the samples' unit.
    AverageValue {
        /// Target, >= 1.
        value: u64,
    },
}

/// Phase of a replica as the samples need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaPhase {
    /// Exists, its containers do not run yet.
    Pending,
    /// Its containers run.
    Running,
    /// Ended.
    Terminated,
}

/// One replica at the instant of reading. Requests and use have one unit: millicores, or bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaSample {
    /// Where it is in its life.
    pub phase: ReplicaPhase,
    /// Whether it is being removed.
    pub deleting: bool,
    /// When its containers started.
    pub started_at: Option<Timestamp>,
    /// Whether it is ready; `None` = not said yet.
    pub ready: Option<bool>,
    /// When `ready` changed last.
    pub ready_since: Option<Timestamp>,
    /// What it requests.
    pub request: u64,
    /// What it used; `None` = no sample.
    pub usage: Option<u64>,
    /// When the sample was taken.
    pub sampled_at: Timestamp,
    /// The span that the sample covers.
    pub window: SignedDuration,
}

/// Why no proposal could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoProposal {
    /// Every replica is missing, starting or gone.
    #[error("no metrics for any ready replica")]
    NoSample,
    /// Utilisation of nothing.
    #[error("the replicas request none of the resource")]
    NoRequest,
}

/// The replicas that the rule asks for; `current` is the count set last.
pub fn propose(
    settings: &ScaleSettings,
    kind: RuleKind,
    target: ResourceTarget,
    current: u32,
    now: Timestamp,
    replicas: &[ReplicaSample],
) -> Result<u32, NoProposal> {
    let mut counted = Sum::default();
    let mut unready = Sum::default();
    let mut missing = Sum::default();
    for replica in replicas {
        match classify(settings, kind, now, replica) {
            Class::Ignored => {}
            Class::Counted(usage) => counted.add(usage, replica.request),
            Class::Unready => unready.add(0, replica.request),
            Class::Missing => missing.add(refill(target, replica.request), replica.request),
        }
    }
    if counted.replicas == 0 {
        return Err(NoProposal::NoSample);
    }
    let tolerance = settings.tolerance_percent;
    let before = Ratio::of(target, &counted)?;
    let refill_unready = unready.replicas > 0 && before.above();
    if missing.replicas == 0 && !refill_unready {
        return Ok(if before.within(tolerance) { current } else { before.times(counted.replicas) });
    }
    if before.above() {
        missing.usage = 0;
    }
    if before.above() || before.below() {
        counted.join(&missing);
    }
    if refill_unready {
        counted.join(&unready);
    }
    let after = Ratio::of(target, &counted)?;
    let turned = (before.below() && after.above()) || (before.above() && after.below());
    if after.within(tolerance) || turned {
        return Ok(current);
    }
    let proposal = after.times(counted.replicas);
    let against = (after.below() && proposal > current) || (after.above() && proposal < current);
    Ok(if against { current } else { proposal })
}

enum Class {
    Ignored,
    Unready,
    Missing,
    Counted(u64),
}

fn classify(settings: &ScaleSettings, kind: RuleKind, now: Timestamp, replica: &ReplicaSample) -> Class {
    if replica.deleting || replica.phase == ReplicaPhase::Terminated {
        return Class::Ignored;
    }
    if replica.phase == ReplicaPhase::Pending {
        return Class::Unready;
    }
    let Some(usage) = replica.usage else { return Class::Missing };
    if kind == RuleKind::Cpu && is_starting(settings, now, replica) {
        return Class::Unready;
    }
    Class::Counted(usage)
}

/// Whether a replica's cpu is start-up noise.
fn is_starting(settings: &ScaleSettings, now: Timestamp, replica: &ReplicaSample) -> bool {
    let (Some(started), Some(ready)) = (replica.started_at, replica.ready) else { return true };
    let since = replica.ready_since.unwrap_or(started);
    if now.duration_since(started) < settings.cpu_initialisation {
        !ready || replica.sampled_at.duration_since(since) < replica.window
    } else {
        !ready && since.duration_since(started) < settings.cpu_readiness_delay
    }
}

/// What a replica without a sample is taken to use when scaling in.
fn refill(target: ResourceTarget, request: u64) -> u64 {
    match target {
        ResourceTarget::Utilization { percent } => {
            let usage = u128::from(request) * u128::from(percent.max(100)) / 100;
            u64::try_from(usage).unwrap_or(u64::MAX)
        }
        ResourceTarget::AverageValue { value } => value,
    }
}

#[derive(Default)]
struct Sum {
    replicas: u32,
    usage: u128,
    request: u128,
}

impl Sum {
    fn add(&mut self, usage: u64, request: u64) {
        self.replicas += 1;
        self.usage += u128::from(usage);
        self.request += u128::from(request);
    }

    fn join(&mut self, other: &Self) {
        self.replicas += other.replicas;
        self.usage += other.usage;
        self.request += other.request;
    }
}

/// Use against target, both whole numbers of one unit.
struct Ratio {
    used: u128,
    target: u128,
}

impl Ratio {
    fn of(target: ResourceTarget, sum: &Sum) -> Result<Self, NoProposal> {
        let (used, target) = match target {
            ResourceTarget::Utilization { percent } => {
                let used = (sum.usage * 100).checked_div(sum.request).ok_or(NoProposal::NoRequest)?;
                (used, percent)
            }
            ResourceTarget::AverageValue { value } => {
                (sum.usage.checked_div(sum.replicas.into()).ok_or(NoProposal::NoSample)?, value)
            }
        };
        Ok(Self { used, target: u128::from(target.max(1)) })
    }

    fn above(&self) -> bool {
        self.used > self.target
    }

    fn below(&self) -> bool {
        self.used < self.target
    }

    fn within(&self, tolerance_percent: u32) -> bool {
        within_tolerance(self.used, self.target, 1, tolerance_percent)
    }

    fn times(&self, replicas: u32) -> u32 {
        ceil_div(self.used.saturating_mul(replicas.into()), self.target)
    }
}
