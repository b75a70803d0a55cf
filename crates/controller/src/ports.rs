//! What the controller needs from others and what it offers: values, boards and closures of core types.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use cove_base::{Board, Clock};
use cove_model::{Bytes, DesiredCount, MilliCpu, ReplicaName, RevisionKey, SystemEvent};
use cove_reconcile::{Amount, JobSettings, Settings};
use cove_runtime::Runtime;
use cove_scaling::ScaledRevision;
use cove_store::Store;
use cove_traffic::{Endpoints, RouteTable};
use tokio::sync::{mpsc, watch};

use crate::sessions::SessionConfig;

/// Open requests of a replica that takes requests, if the ingress knows it. Must not block.
pub type OpenSource = Arc<dyn Fn(&ReplicaName) -> Option<u64> + Send + Sync>;

/// More than any machine has.
const NO_LIMIT: Amount = Amount { cpu: MilliCpu(u32::MAX), memory: Bytes(u64::MAX) };

/// What may be set.
#[derive(Clone, Debug)]
pub struct Config {
    /// Memory for created-not-started replicas of apps at zero, in bytes. Default 256 MiB.
    pub slot_budget_bytes: u64,
    /// CPU and memory that replicas may ask for together. Default: no limit that matters.
    pub capacity: Amount,
    /// Waiting times and limits of the planner.
    pub settings: Settings,
    /// Waiting times of executions of jobs.
    pub jobs: JobSettings,
    /// Session pools.
    pub sessions: SessionConfig,
    /// Makes replica names of this run differ from those of every other; draw it at random.
    pub name_seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            slot_budget_bytes: 256 << 20,
            capacity: NO_LIMIT,
            settings: Settings::default(),
            jobs: JobSettings::default(),
            sessions: SessionConfig::default(),
            name_seed: 0,
        }
    }
}

/// What the server wires.
#[derive(Clone)]
pub struct Deps {
    /// Desired state, and where statuses go.
    pub store: Store,
    /// What runs replicas.
    pub runtime: Arc<dyn Runtime>,
    /// Time.
    pub clock: Clock,
    /// Counts that the autoscaler wants.
    pub desired: Board<RevisionKey, DesiredCount>,
    /// Where requests can go; written here, read by the ingress.
    pub endpoints: Board<RevisionKey, Endpoints>,
    /// Hosts; written here, read by the ingress.
    pub routes: watch::Sender<Arc<RouteTable>>,
    /// Open requests of draining replicas; written by the ingress.
    pub drained: Board<ReplicaName, u64>,
    /// Open requests of replicas that take requests; decides who goes first. `None`: the newest goes.
    pub open: Option<OpenSource>,
    /// Revisions whose counts are to be decided; written here, read by the autoscaler.
    pub scaled: Board<RevisionKey, Arc<ScaledRevision>>,
    /// `true` once every app of the store is planned: routes and `scaled` are complete from then on.
    pub loaded: watch::Sender<bool>,
    /// System events; when full, they are dropped.
    pub events: mpsc::Sender<SystemEvent>,
}

impl fmt::Debug for Deps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deps").field("runtime", &self.runtime).field("clock", &self.clock).finish_non_exhaustive()
    }
}

/// What others may ask of a running controller; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Handle {
    existing: Arc<Mutex<HashMap<RevisionKey, u32>>>,
    /// Executions that wait for room, and their places in line.
    line: Arc<Mutex<HashMap<RevisionKey, u32>>>,
}

impl Handle {
    /// Replicas of a revision that exist, starting ones included, draining ones and slots not; `None` = unknown revision.
    #[must_use]
    pub fn existing(&self, revision: &RevisionKey) -> Option<u32> {
        self.existing.lock().unwrap_or_else(PoisonError::into_inner).get(revision).copied()
    }

    /// The place in line of an execution that waits for room, from 1; `None` when it does not wait.
    #[must_use]
    pub fn place_in_line(&self, execution: &RevisionKey) -> Option<u32> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner).get(execution).copied()
    }

    pub(crate) fn set_line(&self, line: HashMap<RevisionKey, u32>) {
        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = line;
    }

    pub(crate) fn set_existing(&self, counts: Vec<(RevisionKey, u32)>) {
        let mut existing = self.existing.lock().unwrap_or_else(PoisonError::into_inner);
        existing.extend(counts);
    }

    pub(crate) fn forget(&self, revision: &RevisionKey) {
        self.existing.lock().unwrap_or_else(PoisonError::into_inner).remove(revision);
    }
}
