//! The driver contract: how the controller makes, starts, stops and sees replicas, whatever runs them.
//!
//! Every order is level-triggered: it returns at once, may be given twice, and its outcome shows in the observations.
//! A driver owns everything below a replica (image, root, network, processes, probes, restarts with back-off, logs) and
//! nothing above it (how many, which revision, traffic).
//!
//! **Invariant:** replicas outlive the server; a driver that is opened again observes every replica that still exists.
//! **Invariant:** a replica name is used once; a stopped or failed replica never runs again.

pub mod conformance;
mod contract;
pub mod fake;
pub mod logs;

pub use contract::{
    Capabilities, DIAL_LIMIT, ExecError, ExecRequest, ExecSession, ImagesState, RegistryLogin, ReplicaSpec, ReplicaUse,
    Resize, RestartPolicy, Runtime, RuntimeError, Sandbox, SandboxEgress, SandboxTier, SnapshotFacts, SnapshotFailure,
    SnapshotOrder, StorageBinding,
};
