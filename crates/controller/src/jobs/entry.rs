//! What the planning task holds of one job and of each execution of it that has not ended.

use std::{collections::BTreeMap, fmt};

use cove_model::{Execution, ResourceId, RevisionKey, RevisionName, WorkloadProfile};
use cove_reconcile::{Amount, ExecutionMemory, ExecutionPlan};
use cove_runtime::RegistryLogin;
use jiff::Timestamp;

use crate::storages::Storages;

/// What is loaded of a job besides its executions; its `Debug` text has no secrets.
#[derive(Clone)]
pub(crate) struct JobData {
    pub(crate) id: ResourceId,
    pub(crate) generation: u64,
    pub(crate) phase: JobPhase,
    pub(crate) environment: ResourceId,
    pub(crate) domain: String,
    /// Every workload profile that its executions may name.
    pub(crate) profiles: Vec<WorkloadProfile>,
    pub(crate) secrets: BTreeMap<String, String>,
    pub(crate) logins: Vec<RegistryLogin>,
    pub(crate) storages: Storages,
}

/// Where the stored resource stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobPhase {
    /// An outcome is awaited; nothing needs to be done for it.
    InProgress,
    /// Nothing is awaited.
    Settled,
    /// Its executions are to be ended, then it goes.
    Deleting,
}

impl fmt::Debug for JobData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobData")
            .field("id", &self.id)
            .field("generation", &self.generation)
            .field("secrets", &self.secrets.keys())
            .finish_non_exhaustive()
    }
}

/// One job.
#[derive(Debug)]
pub(crate) struct JobEntry {
    pub(crate) data: JobData,
    pub(crate) executions: BTreeMap<RevisionName, Box<ExecutionEntry>>,
    /// The generation whose outcome was handed to the writer.
    pub(crate) told: Option<u64>,
}

/// One execution.
#[derive(Debug)]
pub(crate) struct ExecutionEntry {
    pub(crate) key: RevisionKey,
    /// Under which the ledger counts it.
    pub(crate) share: ResourceId,
    /// What one of its replicas asks for.
    pub(crate) need: Amount,
    /// As it is on disk.
    pub(crate) stored: Execution,
    pub(crate) memory: ExecutionMemory,
    /// Being written; carried out when that is done.
    pub(crate) pending: Option<Box<ExecutionPlan>>,
    /// Set in the timer.
    pub(crate) wake_at: Option<Timestamp>,
    /// Replicas that it takes room for.
    pub(crate) live: u32,
    /// A stop that was asked for while it was being written.
    pub(crate) stop_asked_at: Option<Timestamp>,
}

impl JobEntry {
    pub(crate) fn new(data: JobData) -> Self {
        Self { data, executions: BTreeMap::new(), told: None }
    }
}

impl ExecutionEntry {
    pub(crate) fn new(stored: Execution) -> Option<Self> {
        let key = stored.key();
        let share = key.app.child("executions", key.name.as_str()).ok()?;
        let need = Amount::of(&stored.template);
        let memory = ExecutionMemory::default();
        Some(Self { key, share, need, stored, memory, pending: None, wake_at: None, live: 0, stop_asked_at: None })
    }

    /// A user asked for its end; says whether that is news.
    pub(crate) fn stop_at(&mut self, at: Timestamp) -> bool {
        let is_new = self.stop_asked_at.is_none() && self.stored.stop_requested_at.is_none();
        self.stop_asked_at.get_or_insert(at);
        if self.pending.is_none() {
            self.stored.stop_requested_at.get_or_insert(at);
        }
        is_new
    }

    /// Images of its containers, each once.
    pub(crate) fn images(&self) -> Vec<String> {
        let template = &self.stored.template;
        let mut images: Vec<String> = Vec::new();
        for container in template.init_containers.iter().chain(&template.containers) {
            if !images.contains(&container.image) {
                images.push(container.image.clone());
            }
        }
        images
    }
}
