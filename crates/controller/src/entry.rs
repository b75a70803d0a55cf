//! What the planning task holds of one app: what was loaded, what was said of it, and the planner's memory.
//!
//! **Invariant:** a status in memory is never older than the one in the store; a reload does not bring old ones back.

use std::collections::BTreeMap;

use cove_model::{ReplicaName, ResourceId, Revision, RevisionKey, RevisionName, RevisionStatus};
use cove_reconcile::{AppMemory, AppPhase, Images, Traffic};
use cove_runtime::ImagesState;
use jiff::Timestamp;

use crate::{edge::Published, loader::AppData};

/// One app.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As loaded; its `revisions` were moved to [`Entry::revisions`].
    pub(crate) data: AppData,
    /// Oldest first.
    pub(crate) revisions: Vec<KnownRevision>,
    pub(crate) memory: AppMemory,
    /// The generation whose outcome was handed to the writer.
    pub(crate) told: Option<u64>,
    /// As published last.
    pub(crate) traffic: Option<Traffic>,
    /// Its entries in the route table.
    pub(crate) published: Published,
    /// Reported as draining to the ingress.
    pub(crate) draining: Vec<ReplicaName>,
    /// Revisions that wait for room, and how many replicas of each.
    pub(crate) short: BTreeMap<RevisionName, u32>,
    /// Set in the timer.
    pub(crate) wake_at: Option<Timestamp>,
    /// Every revision was planned once, the dormant ones too.
    pub(crate) is_complete: bool,
}

/// One revision of it.
#[derive(Debug)]
pub(crate) struct KnownRevision {
    pub(crate) key: RevisionKey,
    pub(crate) revision: Revision,
    pub(crate) status: RevisionStatus,
    /// Slots that it was given.
    pub(crate) slots_wanted: u32,
    /// Could use a slot, and whether nothing of it runs.
    pub(crate) slot_candidate: Option<bool>,
    /// Last time it had replicas, or was made.
    pub(crate) used_at: Timestamp,
    /// The autoscaler decides its count.
    pub(crate) is_kept: bool,
}

impl Entry {
    pub(crate) fn new(mut data: AppData, name_seed: u64) -> Self {
        let revisions = std::mem::take(&mut data.revisions);
        Self {
            data,
            revisions: revisions.into_iter().map(|(revision, status)| KnownRevision::new(revision, status)).collect(),
            memory: AppMemory::new(name_seed),
            told: None,
            traffic: None,
            published: Published::default(),
            draining: Vec::new(),
            short: BTreeMap::new(),
            wake_at: None,
            is_complete: false,
        }
    }

    /// Takes what was loaded; gives the revisions that are new and the keys of those that are gone.
    pub(crate) fn update(&mut self, mut data: AppData) -> (Vec<RevisionKey>, Vec<RevisionKey>) {
        let mut old = std::mem::take(&mut self.revisions);
        let mut new = Vec::new();
        self.revisions.reserve_exact(data.revisions.len());
        for (revision, status) in std::mem::take(&mut data.revisions) {
            let at = old.iter().position(|known| known.revision.name == revision.name);
            self.revisions.push(match at {
                Some(at) => KnownRevision { revision, ..old.swap_remove(at) },
                None => {
                    new.push(revision.key());
                    KnownRevision::new(revision, status)
                }
            });
        }
        if self.data.phase == AppPhase::Deleting && data.phase != AppPhase::Deleting {
            // gone and made again between two looks: another app of the same name
            self.told = None;
        }
        self.data = data;
        self.traffic = None;
        self.is_complete = false;
        (new, old.into_iter().map(|known| known.key).collect())
    }

    pub(crate) fn phase(&self) -> AppPhase {
        match self.data.phase {
            AppPhase::InProgress if self.told == Some(self.data.generation) => AppPhase::Settled,
            phase => phase,
        }
    }

    pub(crate) fn id(&self) -> &ResourceId {
        &self.data.app.id
    }

    pub(crate) fn known(&self, name: &RevisionName) -> Option<&KnownRevision> {
        self.revisions.iter().find(|known| known.revision.name == *name)
    }
}

impl KnownRevision {
    fn new(revision: Revision, status: RevisionStatus) -> Self {
        Self {
            key: revision.key(),
            slots_wanted: 0,
            slot_candidate: None,
            used_at: revision.activated_at,
            is_kept: false,
            revision,
            status,
        }
    }

    /// Images of its containers, each once.
    pub(crate) fn images(&self) -> Vec<String> {
        let template = &self.revision.template;
        let mut images: Vec<String> = Vec::new();
        for container in template.init_containers.iter().chain(&template.containers) {
            if !images.contains(&container.image) {
                images.push(container.image.clone());
            }
        }
        images
    }
}

/// The driver's answer in the planner's words.
pub(crate) fn images(state: ImagesState) -> Images {
    match state {
        ImagesState::Unknown => Images::Unknown,
        ImagesState::Pulling { percent } => Images::Pulling { percent },
        ImagesState::Ready { exposed_ports } => Images::Ready { exposed_ports },
        ImagesState::Failed { reason, message, retryable } => {
            Images::Failed { message: format!("{reason}: {message}"), retryable }
        }
    }
}
