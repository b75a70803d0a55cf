//! System events: what users read in `ContainerAppSystemLogs`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One row of the system log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemEvent {
    /// When.
    pub at: Timestamp,
    /// `Normal` or `Warning`.
    pub kind: EventKind,
    /// ACA's vocabulary: `PullingImage`, `PulledImage`, `ContainerCreated`, `ContainerStarted`, `ContainerTerminated`,
    /// `ContainerCrashing`, `ProbeFailed`, `RevisionReady`, `ScaledObjectReady`, `KEDAScaleTargetActivated`, …
    pub reason: String,
    /// Says what happened and, for a warning, what would be right.
    pub message: String,
    /// Environment's resource id, if it concerns one.
    pub environment: Option<String>,
    /// App's resource id.
    pub app: Option<String>,
    /// Revision name.
    pub revision: Option<String>,
    /// Replica name.
    pub replica: Option<String>,
    /// Container name.
    pub container: Option<String>,
    /// Part of Cove that says so: `ContainerAppController`, `KEDA`, `Ingress`, `Runtime`.
    pub source: String,
}

/// Whether something is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// As it should be.
    Normal,
    /// Somebody should look.
    Warning,
}
