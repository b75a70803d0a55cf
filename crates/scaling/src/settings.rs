//! Every constant of the autoscaler, with Azure's default.
//!
//! A test or an operator who wants KEDA's own cadence, or a faster clock, changes a value here and nothing else.
//!
//! **Invariant:** no other file of this crate holds a duration, a step or a tolerance of its own.
//! There is no scale-up window: Azure documents 0 s, so a scale-out is never delayed.

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

/// Timings, windows and steps of one revision's autoscaler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScaleSettings {
    /// Time between two readings of an event rule (custom, azure-queue). Default 30 s, `template.scale.pollingInterval`.
    pub polling_interval: SignedDuration,
    /// Time without activity after which the last replicas go; must be exceeded, not only reached. Default 300 s,
    /// `template.scale.cooldownPeriod`.
    pub cooldown_period: SignedDuration,
    /// Time between two readings of http and tcp rules, and the window whose arrivals they count. Default 15 s.
    pub load_sampling: SignedDuration,
    /// Time between two readings of cpu and memory rules. Default 15 s.
    pub resource_sampling: SignedDuration,
    /// A proposal holds the count for this long, its last instant included. Default 300 s.
    pub scale_down_window: SignedDuration,
    /// Smallest ceiling of one step up, in replicas. Default 4.
    pub step_floor: u32,
    /// One step up reaches at most this many times the current count (or `step_floor`). Default 2.
    pub step_factor: u32,
    /// A reading this close to what the existing replicas should carry changes nothing. Percent, inclusive, default 10.
    pub tolerance_percent: u32,
    /// How long a replica's cpu counts as start-up noise until it was ready for one sample window. Default 300 s.
    pub cpu_initialisation: SignedDuration,
    /// A replica that lost readiness this soon after its start counts as never ready. Default 30 s.
    pub cpu_readiness_delay: SignedDuration,
    /// A reading later than this is an error reading. Default 3 s.
    pub read_deadline: SignedDuration,
}

impl Default for ScaleSettings {
    fn default() -> Self {
        Self {
            polling_interval: SignedDuration::from_secs(30),
            cooldown_period: SignedDuration::from_secs(300),
            load_sampling: SignedDuration::from_secs(15),
            resource_sampling: SignedDuration::from_secs(15),
            scale_down_window: SignedDuration::from_secs(300),
            step_floor: 4,
            step_factor: 2,
            tolerance_percent: 10,
            cpu_initialisation: SignedDuration::from_secs(300),
            cpu_readiness_delay: SignedDuration::from_secs(30),
            read_deadline: SignedDuration::from_secs(3),
        }
    }
}

impl ScaleSettings {
    /// The highest count that one decision may reach from `current`, before the limits.
    pub fn step_ceiling(&self, current: u32) -> u32 {
        self.step_floor.max(current.saturating_mul(self.step_factor))
    }
}
