//! Executions of jobs in the planning task: what is known of each, who waits for room, what is being written.
//!
//! An execution is planned like an app, with one difference: its plan is stored before it is carried out, so that a replica
//! that was started is always a replica that is known. Writes go to a task of their own, in batches, one at a time; while an
//! execution is being written it is not planned.
//!
//! **Invariant:** no step of a plan that changed its execution is carried out before the change is on disk.
//! **Invariant:** what an execution takes of the machine is in the same ledger as what apps take.
//! **Invariant:** an execution is dropped from memory only after its end is on disk, and never comes back.

mod entry;
mod loader;
mod plan;
mod queue;
mod spec;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cove_base::{Busy, Clock};
use cove_model::{Execution, JOB_KIND, ResourceId, RevisionKey};
use jiff::Timestamp;
use tokio::sync::mpsc;

pub(crate) use entry::JobEntry;
pub(crate) use loader::{Batch, follow};

/// Executions that are written together at most; more wait for the next batch.
const WRITES_MAX: usize = 256;

/// Executions that are saved together, and their keys.
pub(crate) type Writes = (Vec<Execution>, Vec<RevisionKey>);

/// All jobs.
#[derive(Debug)]
pub(crate) struct Jobs {
    pub(crate) entries: HashMap<ResourceId, JobEntry>,
    /// Jobs whose document or secrets are damaged.
    unreadable: BTreeSet<ResourceId>,
    dirty: BTreeSet<RevisionKey>,
    wakes: BTreeSet<(Timestamp, RevisionKey)>,
    /// Executions that wait for room.
    waiting: BTreeSet<RevisionKey>,
    /// Since their places were told.
    is_line_changed: bool,
    /// Room was given back since those were planned.
    has_room_changed: bool,
    /// Replicas per resource group.
    groups: BTreeMap<String, u32>,
    /// Planned, to be written.
    outbox: Vec<Execution>,
    /// A batch is being written.
    writing: Option<Busy>,
    writer: Option<mpsc::Sender<Writes>>,
    clock: Clock,
    is_loaded: bool,
}

impl Jobs {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            entries: HashMap::new(),
            unreadable: BTreeSet::new(),
            dirty: BTreeSet::new(),
            wakes: BTreeSet::new(),
            waiting: BTreeSet::new(),
            is_line_changed: false,
            has_room_changed: false,
            groups: BTreeMap::new(),
            outbox: Vec::new(),
            writing: None,
            writer: None,
            clock,
            is_loaded: false,
        }
    }

    /// Where batches go to be written.
    pub(crate) fn write_to(&mut self, writer: mpsc::Sender<Writes>) {
        self.writer = Some(writer);
    }

    /// Something was given back: executions that wait are looked at again.
    pub(crate) fn room_changed(&mut self) {
        self.has_room_changed |= !self.waiting.is_empty();
    }

    /// When something is to be planned; `now` when at once.
    pub(crate) fn next_wake(&self, now: Timestamp) -> Option<Timestamp> {
        if !self.is_loaded {
            return None;
        }
        if !self.dirty.is_empty() || self.has_room_changed {
            return Some(now);
        }
        self.wakes.first().map(|(at, _)| *at)
    }

    /// Hands over what is to be written, unless a batch is on its way.
    fn flush(&mut self) {
        if self.writing.is_some() || self.outbox.is_empty() {
            return;
        }
        let Some(writer) = &self.writer else { return };
        let rest = self.outbox.split_off(self.outbox.len().min(WRITES_MAX));
        let batch = std::mem::replace(&mut self.outbox, rest);
        let keys = batch.iter().map(Execution::key).collect();
        match writer.try_send((batch, keys)) {
            Ok(()) => self.writing = Some(self.clock.busy("executions that are written down")),
            // the writer has ended: the server is shutting down, and the next one plans anew
            Err(error) => tracing::debug!(%error, "executions are not written any more"),
        }
    }
}

/// The id is one of a job.
pub(crate) fn is_job(id: &ResourceId) -> bool {
    id.kind().eq_ignore_ascii_case(JOB_KIND)
}
