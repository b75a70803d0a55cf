//! How many replicas a revision should have, and how many executions an event-driven job should start.
//!
//! [`decide`] takes one decision from configuration, state and readings; the other modules say when to read
//! ([`cadence`]), what an http or tcp reading is ([`measure`]), what the answer of an event source comes to ([`source`]),
//! what cpu and memory propose ([`resource`]), what starts jobs ([`job`], [`schedule`]) and what is wrong with a user's
//! properties ([`validate`]). [`fast`] takes the same decisions every second from open requests; [`simulate`] tries rules out on a
//! trace. [`vectors`] checks the crate against a file of expected decisions.
//!
//! **Invariant:** nothing here reads a clock, a metric, a file or the environment; the `autoscaler` crate does.

pub mod cadence;
mod config;
mod decide;
mod effective;
pub mod explain;
pub mod fast;
pub mod job;
pub mod measure;
mod number;
mod reading;
mod record;
pub mod resource;
mod revision;
pub mod schedule;
mod settings;
pub mod simulate;
pub mod source;
mod state;
pub mod tape;
pub mod validate;
pub mod vectors;

pub use config::{DEFAULT_CONCURRENCY, DEFAULT_RULE_NAME, Fallback, FallbackBehavior, Rule, RuleKind, ScaleConfig};
pub use decide::{Decision, Reason, RuleOutcome, activate, decide};
pub use effective::{EffectiveScale, ScaleDefaults, effective};
pub use number::{milli, of_milli};
pub use reading::{Hold, Input, Reading};
pub use record::{DecisionRecord, ReplayDiffers};
pub use revision::ScaledRevision;
pub use settings::ScaleSettings;
pub use state::{PROPOSALS_MAX, Proposals, ScaleState};
