//! The last look at what a session used: written down before the driver forgets it.
//!
//! **Invariant:** of a session that ended, the driver is told to forget what is left only after the processor time that it
//! used is in the store, so a crash at any moment loses none of it.

use std::collections::BTreeMap;

use cove_model::{ReplicaName, ResourceId};
use cove_runtime::Runtime;
use cove_store::{SessionChange, SessionNote};

/// Sessions on their way out.
#[derive(Debug, Default)]
pub(crate) struct LastUses(BTreeMap<ReplicaName, (ResourceId, Stand)>);

#[derive(Debug)]
enum Stand {
    /// To be written with the next batch.
    Waiting(SessionNote),
    /// In the batch that is being written.
    Sent,
    /// In the store.
    Written,
}

impl LastUses {
    /// Whether a replica that has ended may be forgotten now; if not, its use is written first.
    pub(super) fn may_go(&mut self, runtime: &dyn Runtime, pool: &ResourceId, replica: &ReplicaName) -> bool {
        match self.0.get(replica) {
            Some((_, stand)) => matches!(stand, Stand::Written),
            None => {
                let used = runtime.usage(replica).and_then(|used| used.cpu_us_total);
                // nothing ran, or it was told before
                let Some(cpu_us) = used else { return true };
                let ready_at = runtime.phases(replica).and_then(|phases| phases.ready_at);
                let note = SessionNote { replica: replica.clone(), ready_at, cpu_us: Some(cpu_us) };
                self.0.insert(replica.clone(), (pool.clone(), Stand::Waiting(note)));
                false
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.0.values().any(|(_, stand)| matches!(stand, Stand::Waiting(_)))
    }

    /// Those for the batch that is about to be written.
    pub(super) fn take(&mut self) -> Vec<SessionChange> {
        let mut changes = Vec::new();
        for (_, stand) in self.0.values_mut() {
            if let Stand::Waiting(note) = stand {
                changes.push(SessionChange::Note(note.clone()));
                *stand = Stand::Sent;
            }
        }
        changes
    }

    /// The batch is in the store: pools whose sessions may be forgotten now.
    pub(super) fn written(&mut self) -> Vec<ResourceId> {
        let sent = self.0.values_mut().filter(|(_, stand)| matches!(stand, Stand::Sent));
        sent.map(|(pool, stand)| {
            *stand = Stand::Written;
            pool.clone()
        })
        .collect()
    }

    /// Nothing is left of a session.
    pub(super) fn forget(&mut self, replica: &ReplicaName) {
        self.0.remove(replica);
    }

    /// Nothing is left of a pool.
    pub(super) fn forget_pool(&mut self, pool: &ResourceId) {
        self.0.retain(|_, (its, _)| its != pool);
    }
}
