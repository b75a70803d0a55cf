//! What Cove manages, free of any wire format: environments, container apps, revisions, replicas, their units and states.
//!
//! The ARM shape of these things lives in `cove-arm`; how they are stored in `cove-store`. A type belongs here only when
//! two core crates use it.
//!
//! **Invariant:** nothing here does IO, reads a clock or depends on another Cove crate.

mod app;
mod auth;
mod edge;
mod egress;
mod environment;
mod event;
mod id;
mod job;
mod name;
mod policy;
mod progress;
mod replica;
mod resiliency;
mod revision;
mod scale;
mod session_pool;
mod session_snapshot;
mod storage;
mod template;
mod units;
mod wake;
mod workload;

pub use app::*;
pub use auth::*;
pub use edge::*;
pub use egress::*;
pub use environment::*;
pub use event::*;
pub use id::*;
pub use job::*;
pub use name::*;
pub use policy::*;
pub use progress::*;
pub use replica::*;
pub use resiliency::*;
pub use revision::*;
pub use scale::*;
pub use session_pool::*;
pub use session_snapshot::*;
pub use storage::*;
pub use template::*;
pub use units::*;
pub use wake::*;
pub use workload::*;
