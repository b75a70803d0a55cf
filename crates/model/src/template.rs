//! A revision's immutable template: containers, probes, volumes, scale.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::{Bytes, MilliCpu, Scale, StorageVolume};

/// What a revision runs; the snapshot that makes a revision a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Run to completion, one after another, before `containers`.
    pub init_containers: Vec<Container>,
    /// Run side by side; at least one.
    pub containers: Vec<Container>,
    /// Volumes that containers mount.
    pub volumes: Vec<Volume>,
    /// Limits and rules.
    pub scale: Scale,
    /// Seconds between SIGTERM and SIGKILL, 0..=600, default 30.
    pub termination_grace_period_secs: u32,
}

/// One container of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Unique within the replica.
    pub name: String,
    /// Image reference as the user wrote it.
    pub image: String,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments when not empty.
    pub args: Vec<String>,
    /// Environment, in order.
    pub env: Vec<EnvVar>,
    /// Limits.
    pub resources: Resources,
    /// At most one per kind.
    pub probes: Vec<Probe>,
    /// Mounted volumes.
    pub volume_mounts: Vec<VolumeMount>,
}

/// One environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name.
    pub name: String,
    /// Value or where it comes from.
    pub value: EnvValue,
}

/// Where an environment variable's value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvValue {
    /// Literal text.
    Plain(String),
    /// The app's secret of this name, read when a replica starts.
    SecretRef(String),
}

/// CPU, memory and ephemeral storage of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CPU quota.
    pub cpu: MilliCpu,
    /// Memory limit.
    pub memory: Bytes,
    /// Writable layer limit; follows ACA's table from `cpu`.
    pub ephemeral_storage: Bytes,
}

/// A health probe with its defaults taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What follows from its answer.
    pub kind: ProbeKind,
    /// What is asked.
    pub action: ProbeAction,
    /// Seconds before the first ask, 0..=60, default 0 (startup and readiness of ACA's default probes: 1 and 3).
    pub initial_delay_secs: u32,
    /// Seconds between asks, 1..=240, default 10.
    pub period_secs: u32,
    /// Seconds until an ask has failed, 1..=240, default 1.
    pub timeout_secs: u32,
    /// Successes in a row to be healthy again, 1..=10, default 1.
    pub success_threshold: u32,
    /// Failures in a row to be unhealthy, 1..=240, default 3.
    pub failure_threshold: u32,
}

/// What follows from a probe's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProbeKind {
    /// Holds the other two back until it succeeds; its failure restarts the container.
    Startup,
    /// Its failure takes the replica out of traffic.
    Readiness,
    /// Its failure restarts the container.
    Liveness,
}

/// What a probe asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeAction {
    /// `GET path`; 200..=399 is healthy.
    HttpGet {
        /// Port in the replica.
        port: u16,
        /// Path, default `/`.
        path: String,
        /// `HTTPS` when true (certificate not checked).
        https: bool,
        /// Host header when given.
        host: Option<String>,
        /// Further headers.
        headers: IndexMap<String, String>,
    },
    /// A connection that opens is healthy.
    Tcp {
        /// Port in the replica.
        port: u16,
    },
}

/// A volume of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Unique within the replica.
    pub name: String,
    /// What it is.
    pub kind: VolumeKind,
}

/// What a volume is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeKind {
    /// An empty directory that lives as long as the replica.
    EmptyDir,
    /// Secrets as files: secret name and path; empty list means every secret under its own name.
    Secret(Vec<(String, String)>),
    /// A share of one of the environment's storages; outlives the replica.
    Storage(StorageVolume),
    /// A directory that all replicas of one execution of a job share, retries too; kept as long as the execution's history.
    /// Azure has no such volume (`CoveExecutionDir`).
    ExecutionDir,
    /// As [`VolumeKind::ExecutionDir`], for what an execution leaves behind; can be listed and fetched by the API. Azure has
    /// no such volume (`CoveArtifacts`).
    Artifacts(ArtifactsVolume),
}

/// How much of an execution's artifacts is kept, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactsVolume {
    /// The newest executions of the job whose artifacts are kept after their end, 1..=100, default 10
    /// (`coveKeepExecutions`).
    pub keep_executions: u32,
    /// Most bytes of one execution, 1 MiB..=1 TiB, default 1 GiB (`coveMaxSize`). An execution that holds more is stopped.
    pub max_bytes: Bytes,
}

impl Default for ArtifactsVolume {
    fn default() -> Self {
        Self { keep_executions: 10, max_bytes: Bytes(Bytes::GIB) }
    }
}

/// Where a volume appears in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Name of the volume.
    pub volume: String,
    /// Absolute path in the container.
    pub path: String,
    /// Part of the volume, relative.
    pub sub_path: Option<String>,
}
