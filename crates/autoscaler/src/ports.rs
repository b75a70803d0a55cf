//! What the autoscaler needs from others, as plain values and closures: it knows no other service.
//!
//! **Invariant:** a source is called without any lock of this crate held, so it may take its own.

use std::fmt;
use std::sync::Arc;

use cove_base::{Board, Clock};
use cove_model::{DesiredCount, RevisionKey, SystemEvent};
use cove_scaling::{DecisionRecord, ScaleState, ScaledRevision};
use cove_traffic::RevisionLoad;
use tokio::sync::mpsc;

use crate::sources::RuleSources;

/// Reads one revision's load; a revision that was never asked for has the default load. Must not block.
pub type LoadSource = Arc<dyn Fn(&RevisionKey) -> RevisionLoad + Send + Sync>;

/// Replicas of a revision that exist, starting ones included, draining ones and slots not; `None` = not known.
/// Must not block.
pub type ExistingSource = Arc<dyn Fn(&RevisionKey) -> Option<u32> + Send + Sync>;

/// Any error of a store.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A revision's state to write down; `None` = forget it.
pub type SavedCount = (RevisionKey, Option<ScaleState>);

/// Keeps counts over a restart. Both functions may block; they run on a blocking thread, never on the wake path.
pub trait CountStore: Send + Sync + 'static {
    /// Everything written down.
    ///
    /// # Errors
    /// Whatever the store says; the autoscaler then does not start, since it would start every app afresh.
    fn load(&self) -> Result<Vec<(RevisionKey, ScaleState)>, BoxError>;

    /// Writes a batch, all or nothing.
    ///
    /// # Errors
    /// Whatever the store says; the batch is tried again, with newer values where there are some.
    fn save(&self, batch: &[SavedCount]) -> Result<(), BoxError>;
}

/// A decision with everything it was taken from.
#[derive(Clone, Debug)]
pub struct RevisionDecision {
    /// Whose count.
    pub revision: RevisionKey,
    /// The record.
    pub record: Arc<DecisionRecord>,
}

/// What the server wires.
#[derive(Clone)]
pub struct Deps {
    /// Time.
    pub clock: Clock,
    /// Every revision whose count is to be decided; one that is taken off is forgotten.
    pub revisions: Board<RevisionKey, Arc<ScaledRevision>>,
    /// The ingress.
    pub load: LoadSource,
    /// The controller's view of replicas.
    pub existing: ExistingSource,
    /// Event sources, secrets, use of cpu and memory.
    pub rules: RuleSources,
    /// Where counts are published.
    pub desired: Board<RevisionKey, DesiredCount>,
    /// What survives a restart; `None` keeps nothing.
    pub counts: Option<Arc<dyn CountStore>>,
    /// Decisions as they are taken; when full, they are dropped and counted.
    pub decisions: Option<mpsc::Sender<RevisionDecision>>,
    /// System events; when full, they are dropped and counted.
    pub events: mpsc::Sender<SystemEvent>,
}

impl fmt::Debug for Deps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deps")
            .field("clock", &self.clock)
            .field("counts", &self.counts.is_some())
            .finish_non_exhaustive()
    }
}
