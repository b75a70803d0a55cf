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
    /// How counts are decided: `properties.template.scale.coveMode`, default [`ScaleMode::Aca`].
    #[serde(default)]
    pub mode: ScaleMode,
}

impl Default for Scale {
    fn default() -> Self {
        Self {
            min_replicas: 0,
            max_replicas: 10,
            cooldown_period_secs: 300,
            polling_interval_secs: 30,
            rules: Vec::new(),
            mode: ScaleMode::Aca,
        }
    }
}

/// Whether counts follow Azure's documented timing to the tick, or react faster with the same limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScaleMode {
    /// Polling, windows and the arrival-rate metric as documented.
    #[default]
    Aca,
    /// Open requests, within a second (not built yet; refused by the API).
    Fast,
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
