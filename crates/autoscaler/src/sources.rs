//! What event, cpu and memory rules need from others.
//!
//! **Invariant:** nothing here is called with a lock of this crate held.

use std::fmt;
use std::sync::Arc;

use cove_model::{Bytes, MilliCpu, ReplicaName, ResourceId, RevisionKey};
use cove_scalers::{Context, OpenError, Source, Trigger};
use cove_scaling::resource::ReplicaPhase;
use jiff::Timestamp;

use crate::ports::BoxError;
use crate::resolve::Surroundings;

/// Opens the event source of a rule; `cove_scalers::Scalers::open`. Must not block.
pub type OpenSource = Arc<dyn Fn(&Trigger, &Context) -> Result<Arc<dyn Source>, OpenError> + Send + Sync>;

/// Variables and secrets of a revision. May block: it runs on a blocking thread, at the first reading of a rule and after
/// each failed one.
pub type SurroundingsSource = Arc<dyn Fn(&RevisionKey) -> Result<Surroundings, BoxError> + Send + Sync>;

/// Names and tokens of a revision in its environment. Must not block.
pub type ContextSource = Arc<dyn Fn(&RevisionKey, &ResourceId) -> Context + Send + Sync>;

/// What the replicas of a revision use. Reads some small files of the kernel, which never wait.
pub type UsageSource = Arc<dyn Fn(&RevisionKey) -> Vec<ReplicaUsage> + Send + Sync>;

/// One replica as it was seen just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaUsage {
    /// Its name.
    pub name: ReplicaName,
    /// Where it is in its life.
    pub phase: ReplicaPhase,
    /// Whether it is being removed.
    pub is_leaving: bool,
    /// When it was started.
    pub started_at: Option<Timestamp>,
    /// Whether it is ready; `None` = not said yet.
    pub is_ready: Option<bool>,
    /// When it became ready for the first time.
    pub ready_at: Option<Timestamp>,
    /// Processor time of its containers since it was made, in microseconds; `None` = not known.
    pub cpu_us_total: Option<u64>,
    /// When that was measured by the machine's clock, which counts processor time also beside a virtual one; `None` = at the
    /// time of the look.
    pub cpu_taken_at: Option<Timestamp>,
    /// Memory that cannot be taken back from it, in bytes; `None` = not known.
    pub memory_bytes: Option<u64>,
    /// What its containers request together.
    pub cpu_request: MilliCpu,
    /// What its containers request together.
    pub memory_request: Bytes,
}

/// Everything that reading a rule takes.
#[derive(Clone)]
pub struct RuleSources {
    /// Opens event sources.
    pub open: OpenSource,
    /// Variables and secrets.
    pub surroundings: SurroundingsSource,
    /// Names and tokens.
    pub context: ContextSource,
    /// Use of cpu and memory.
    pub usage: UsageSource,
}

impl RuleSources {
    /// Event sources without variables, secrets, names inside an environment and tokens; no figures of replicas.
    pub fn of_open(open: OpenSource) -> Self {
        Self {
            open,
            surroundings: Arc::new(|_| Ok(Surroundings::default())),
            context: Arc::new(|_, _| Context { hosts: Arc::new(|_| None), tokens: None }),
            usage: Arc::new(|_| Vec::new()),
        }
    }
}

impl Default for RuleSources {
    /// No source at all: every event rule is a failed reading.
    fn default() -> Self {
        Self::of_open(Arc::new(|trigger, _| Err(OpenError::Unknown(trigger.scaler.clone()))))
    }
}

impl fmt::Debug for RuleSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuleSources").finish_non_exhaustive()
    }
}
