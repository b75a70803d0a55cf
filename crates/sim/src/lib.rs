//! Deterministic simulator of scaling, reconcile and ingress holding: days of platform time in seconds.
//!
//! The planner and the scaling core are the real ones; host, ingress and users are played by a world on an event heap,
//! drawn from a seed. After each event named invariants are checked; a violation says the line that replays it.
//!
//! **Invariant:** the same seed or script gives the same events, whatever machine runs it.

mod app;
mod generate;
mod host;
mod ingress;
mod invariants;
mod jobs;
mod load;
mod planning;
mod quality;
mod random;
mod scaler;
mod script;
mod sessions;
mod sim;

pub use generate::{Size, generate};
pub use invariants::{Invariant, Mutation, Violation};
pub use jobs::{JobMutation, JobSim, JobStats};
pub use load::Curve;
pub use quality::{Workload, quality_table};
pub use script::{Script, ScriptError};
pub use sessions::{SessionMutation, SessionSim, SessionStats};
pub use sim::{Faults, Sim, Stats};

#[cfg(test)]
mod tests;
