//! Durable state of the control plane in one SQLite file; every public function is one transaction.
//!
//! WAL, `synchronous=FULL`, one writer thread that commits what is waiting together, readers beside it. A change feed
//! tells *which* resource changed after the commit and carries no data, so a loop that was away reads the newest state.
//!
//! **Invariant:** an answer is given after its commit is on disk; of sessions, which end with the machine, when the kernel has
//! it, so that it outlives this process. **Invariant:** a second server cannot open the same
//! data directory. **Invariant:** `generation` of a resource only rises.

mod db;
mod error;
mod executions;
mod operations;
mod rehearsal;
mod resources;
mod revisions;
mod secrets;
mod session_snapshots;
mod session_use;
mod sessions;
mod status;

pub use db::{DirectoryLock, Store};
pub use error::StoreError;
pub use executions::{Inserted, OPEN_EXECUTIONS_MAX, OpenExecutions};
pub use operations::{NewOperation, OperationRow, OperationStatus};
pub use resources::{Expect, Failure, Provisioning, PutResource, ResourceRow, SecretsChange, Snapshot};
pub use revisions::{NewRevision, RevisionRow};
pub use session_snapshots::Kept;
pub use session_use::{SESSION_USES_MAX, SessionNote, SessionUse, SessionUseSum};
pub use sessions::SessionChange;
pub use status::{CountRow, PlanRow};

#[cfg(test)]
mod tests;
