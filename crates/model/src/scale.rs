//! Scale limits and rules of a revision's template, as ACA's "Set scaling rules" describes them.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// `template.scale`: limits, timings and rules. Absent values have taken their defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// Fewest replicas, 0..=1000, default 0.
    pub min_replicas: u32,
    /// Most replicas, 1..=1000, default 10.
    pub max_replicas: u32,
    /// Seconds from the last activity until the last replicas go, default 300.
    pub cooldown_period_secs: u32,
    /// Seconds between two readings of custom and azure-queue rules, default 30.
    pub polling_interval_secs: u32,
    /// The rules as given; empty means the default rule when there is ingress.
    pub rules: Vec<ScaleRule>,
    /// How counts are decided: `properties.template.scale.coveMode`; `None` means the server's `[autoscaler] mode`.
    #[serde(default)]
    pub mode: Option<ScaleMode>,
    /// What the last replica does when nothing needs it: `coveIdle`, default [`IdleState::Zero`].
    #[serde(default)]
    pub idle: IdleState,
    /// Constants of the autoscaler that differ from Azure's: `coveSettings`; empty means Azure's.
    #[serde(default)]
    pub settings: ScaleOverrides,
}

impl Default for Scale {
    fn default() -> Self {
        Self {
            min_replicas: 0,
            max_replicas: 10,
            cooldown_period_secs: 300,
            polling_interval_secs: 30,
            rules: Vec::new(),
            mode: None,
            idle: IdleState::Zero,
            settings: ScaleOverrides::default(),
        }
    }
}

/// Whether counts follow Azure's documented timing to the tick, or react faster with the same limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScaleMode {
    /// Polling, windows and the arrival-rate metric as documented.
    #[default]
    Aca,
    /// Open requests, within a second.
    Fast,
}

/// What the last replica of an idle revision does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdleState {
    /// It ends, as in Azure.
    #[default]
    Zero,
    /// It stays, frozen, with its memory paged out where there is swap.
    Frozen,
}

/// Constants of the autoscaler that a template sets: `template.scale.coveSettings`. `None` means Azure's value,
/// which is written at each field. `pollingInterval` and `cooldownPeriod` are Azure's own fields of [`Scale`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScaleOverrides {
    /// Seconds between two readings of http and tcp rules, and the window that they count; 1..=3600, Azure's 15.
    pub load_sampling_secs: Option<u32>,
    /// Seconds between two readings of cpu and memory rules; 1..=3600, Azure's 15.
    pub resource_sampling_secs: Option<u32>,
    /// Seconds for which a proposal holds the count; 0..=604800, Azure's 300.
    pub scale_down_window_secs: Option<u32>,
    /// Smallest ceiling of one step up, in replicas; 1..=1000, Azure's 4.
    pub step_floor: Option<u32>,
    /// One step up reaches at most this many times the current count; 1..=1000, Azure's 2.
    pub step_factor: Option<u32>,
    /// A reading this close to its target changes nothing, in percent; 0..=100, Azure's 10.
    pub tolerance_percent: Option<u32>,
    /// Seconds for which a replica's cpu counts as start-up noise; 0..=3600, Azure's 300.
    pub cpu_initialisation_secs: Option<u32>,
    /// A replica that lost readiness this soon after its start counts as never ready, in seconds; 0..=3600, Azure's 30.
    pub cpu_readiness_delay_secs: Option<u32>,
    /// A reading later than this is an error, in seconds; 1..=60, Azure's 3.
    pub read_deadline_secs: Option<u32>,
    /// Room above the open requests in fast mode, in percent; 0..=1000. Azure has no such mode.
    pub headroom_percent: Option<u32>,
    /// What a failing event source counts as; `None`, as in Azure, keeps the count.
    pub fallback: Option<ScaleFallback>,
}

/// KEDA's fallback for failing event sources: `coveSettings.fallback`. Azure has no field for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleFallback {
    /// From failure number `failure_threshold + 1` in a row the rule counts as active; 0..=1000000.
    pub failure_threshold: u32,
    /// Replicas that it then asks for; 0..=1000.
    pub replicas: u32,
    /// How `replicas` meets the current count.
    #[serde(default)]
    pub behavior: FallbackBehavior,
}

/// How the fallback's count and the current count combine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FallbackBehavior {
    /// The fallback's count.
    #[default]
    Static,
    /// The current count.
    CurrentReplicas,
    /// The higher of the two.
    CurrentReplicasIfHigher,
    /// The lower of the two.
    CurrentReplicasIfLower,
}

/// One scale rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleRule {
    /// Unique within the revision.
    pub name: String,
    /// What is measured.
    pub kind: ScaleRuleKind,
}

/// What a rule measures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScaleRuleKind {
    /// Requests that arrived in 15 s divided by 15, per replica.
    Http {
        /// `metadata.concurrentRequests`, >= 1, default 10.
        concurrent_requests: u32,
    },
    /// Connections opened in 15 s divided by 15, per replica.
    Tcp {
        /// `metadata.concurrentConnections`, >= 1, default 10.
        concurrent_connections: u32,
    },
    /// Any KEDA scaler.
    Custom {
        /// KEDA's trigger type, such as `redis`.
        scaler: String,
        /// Trigger metadata, always strings.
        metadata: IndexMap<String, String>,
        /// Secrets for trigger parameters.
        auth: Vec<ScaleRuleAuth>,
        /// `system` or the id of a user-assigned identity.
        identity: Option<String>,
    },
    /// The azure-queue scaler in its own spelling.
    AzureQueue {
        /// Storage account.
        account_name: Option<String>,
        /// Queue.
        queue_name: String,
        /// Messages per replica, >= 1.
        queue_length: u32,
        /// Secrets for trigger parameters.
        auth: Vec<ScaleRuleAuth>,
        /// `system` or the id of a user-assigned identity.
        identity: Option<String>,
    },
}

/// Gives a trigger parameter the value of a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleRuleAuth {
    /// Name of the app's secret.
    pub secret_ref: String,
    /// KEDA's parameter, such as `connection`.
    pub trigger_parameter: String,
}

/// How many replicas a revision should have now, and why. Written by the autoscaler, obeyed by the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredCount {
    /// Wanted replicas.
    pub replicas: u32,
    /// Short reason, e.g. `activated`, `cooldown-elapsed`, `scale-up`.
    pub reason: String,
}
