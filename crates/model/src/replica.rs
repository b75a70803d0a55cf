//! Replicas as a driver sees them.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ReplicaName, RevisionKey};

/// What was seen of one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaObservation {
    /// Its name.
    pub name: ReplicaName,
    /// Its revision.
    pub revision: RevisionKey,
    /// The revision's `restart_generation` it was made for.
    pub restart_generation: u64,
    /// Where it stands.
    pub phase: ReplicaPhase,
    /// All containers are ready: readiness probes pass, or the target port answers.
    pub is_ready: bool,
    /// Address in the environment, once it has one.
    pub address: Option<Ipv4Addr>,
    /// Its containers, init containers first.
    pub containers: Vec<ContainerObservation>,
    /// When the slot or replica was made.
    pub created_at: Timestamp,
    /// When it was started.
    pub started_at: Option<Timestamp>,
    /// When it became ready for the first time.
    pub ready_at: Option<Timestamp>,
}

/// Where a replica stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ReplicaPhase {
    /// Network, root and processes are being made.
    Preparing,
    /// A slot: all is made, nothing runs yet.
    Prepared,
    /// Started, containers run or restart.
    Running,
    /// Its processes are there with all they know, and the kernel lets none of them run until it is thawed.
    Frozen,
    /// SIGTERM was sent.
    Stopping,
    /// Nothing runs any more; will not come back.
    Stopped,
    /// It could not be made; will not come back.
    Failed,
}

/// What was seen of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerObservation {
    /// Its name in the template.
    pub name: String,
    /// Init container.
    pub is_init: bool,
    /// Where it stands.
    pub state: ContainerState,
    /// Readiness, as far as known.
    pub is_ready: bool,
    /// Its startup probe passed, or it has none.
    pub is_started: bool,
    /// Times it was restarted.
    pub restarts: u32,
    /// How it ended last, if it did.
    pub last_exit: Option<ContainerExit>,
}

/// Where a container stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Not running yet, or between two tries; the reason in ACA's words (`ContainerCreating`, `CrashLoopBackOff`, …).
    Waiting {
        /// Reason.
        reason: String,
        /// Next try, when waiting for one.
        until: Option<Timestamp>,
    },
    /// Runs.
    Running {
        /// Since.
        since: Timestamp,
    },
    /// Ended for good.
    Terminated,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerExit {
    /// Exit code; 128 + signal when killed.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `ProbeFailure`, `ContainerCannotRun`.
    pub reason: String,
    /// What to know, in words.
    pub message: Option<String>,
    /// When.
    pub at: Timestamp,
}
