//! Reads what the scale rules measure and decides desired replica counts.
//!
//! The arithmetic is `cove-scaling`'s; this crate owns what varies: when to read, the state of each revision, the board
//! of desired counts, what survives a restart. A request for a revision at zero goes past all of it: [`Handle::activate`]
//! sets the count at once, under one short lock.
//!
//! **Invariant:** a count is published under the lock that decided it, so the board never shows an older one.
//! **Invariant:** a lost race or signal costs at most one sampling step: after every step to zero, and every 15 s, the
//! open requests of revisions at zero are looked at again.
//! **Invariant:** a rule that cannot be read is an error reading: the count does not fall, and an event says so once.

mod config;
mod entry;
mod events;
mod health;
mod history;
mod jobs;
mod poll;
mod ports;
mod reader;
mod recording;
mod resolve;
mod saver;
mod service;
mod sources;
mod table;
mod usage;

pub use config::Config;
pub use cove_scaling::{DecisionRecord, Reason, ScaleState, ScaledRevision};
pub use history::KeptDecision;
pub use jobs::{
    Executions, JobDecision, JobDecisionKind, JobDeps, JobHandle, JobService, JobState, JobTriggers, OpenCount,
    StartError, StartRequest, Tick, TriggeredJob,
};
pub use ports::{BoxError, CountStore, Deps, ExistingSource, LoadSource, RevisionDecision, SavedCount};
pub use recording::{
    RecordedRevision, Recorder, Recording, RecordingConfig, RecordingError, RecordingQuery, recording,
};
pub use resolve::Surroundings;
pub use service::{Error, Handle, Service};
pub use sources::{ContextSource, OpenSource, ReplicaUsage, RuleSources, SurroundingsSource, UsageSource};
pub use table::{Activation, RevisionScale};
