//! What the planner remembers of an app between two plans.
//!
//! **Invariant:** bounded: one note per replica that exists or was just ordered, a few failures per revision.

use std::collections::{BTreeMap, VecDeque};

use cove_model::{ReplicaName, RevisionName};
use jiff::{SignedDuration, Timestamp};

use crate::Settings;

/// Failures remembered per revision.
const FAILURES_MAX: usize = 16;

/// The planner's memory of one app; owned by the caller, changed by [`crate::plan`] only.
#[derive(Clone, Debug, Default)]
pub struct AppMemory {
    /// Makes this server's replica names differ from every other's.
    name_seed: u64,
    next_name: u64,
    /// The generation whose bringing-up the clocks of the revisions belong to.
    pub(crate) attempt_generation: u64,
    // boxed: a map reserves room for eleven values, and thousands of apps have one revision each
    pub(crate) revisions: BTreeMap<RevisionName, Box<RevisionMemory>>,
    /// Which revision was ready for a label last; labels mode only.
    pub(crate) labels: BTreeMap<String, RevisionName>,
}

/// Memory of one revision.
#[derive(Clone, Debug, Default)]
pub(crate) struct RevisionMemory {
    /// Replicas it begins with.
    pub(crate) initial: Option<u32>,
    /// Since when it is being brought up.
    pub(crate) attempt_since: Option<Timestamp>,
    /// Since when at least one replica was ready, while it is being brought up.
    pub(crate) first_ready_at: Option<Timestamp>,
    /// When it became ready, for the first time or again.
    pub(crate) provisioned_at: Option<Timestamp>,
    /// It ran or was brought up while this memory lasts: requests may be on their way to it.
    pub(crate) was_kept: bool,
    /// Since when it should not serve any more.
    pub(crate) retired_at: Option<Timestamp>,
    /// When its images were asked for last.
    pub(crate) images_asked_at: Option<Timestamp>,
    /// The images were asked for in this attempt: a failure counts.
    pub(crate) images_asked_now: bool,
    failures: VecDeque<Timestamp>,
    pub(crate) last_failure: Option<String>,
    pub(crate) notes: BTreeMap<ReplicaName, Note>,
}

/// What was ordered for one replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct Note {
    /// When its making was ordered, until it is seen.
    pub(crate) pending_since: Option<Timestamp>,
    /// What it was made with; unknown after a restart of the server.
    pub(crate) config_hash: Option<u64>,
    pub(crate) start_ordered_at: Option<Timestamp>,
    pub(crate) drain_since: Option<Timestamp>,
    pub(crate) stop_ordered_at: Option<Timestamp>,
    pub(crate) freeze_ordered_at: Option<Timestamp>,
    pub(crate) thaw_ordered_at: Option<Timestamp>,
    /// It cannot be frozen: it is ended instead.
    pub(crate) no_freeze: bool,
    pub(crate) end_counted: bool,
    pub(crate) remove_ordered_at: Option<Timestamp>,
    /// To be ended whatever the count.
    pub(crate) condemned: bool,
}

impl AppMemory {
    /// An empty memory; `name_seed` must differ between servers and apps.
    #[must_use]
    pub fn new(name_seed: u64) -> Self {
        Self { name_seed, ..Self::default() }
    }

    /// An order to make or start this replica was refused: it does not count any more, and the next one waits a little.
    pub fn order_refused(&mut self, revision: &RevisionName, replica: &ReplicaName, why: String, now: Timestamp) {
        let Some(memory) = self.revisions.get_mut(revision) else { return };
        let Some(note) = memory.notes.get_mut(replica) else { return };
        if note.pending_since.is_some() {
            memory.notes.remove(replica);
        } else {
            note.condemned = true;
        }
        memory.failed(why, now);
    }

    /// An order to freeze this replica was refused: it is ended instead.
    pub fn freeze_refused(&mut self, revision: &RevisionName, replica: &ReplicaName) {
        if let Some(note) = self.revisions.get_mut(revision).and_then(|memory| memory.notes.get_mut(replica)) {
            note.freeze_ordered_at = None;
            note.no_freeze = true;
        }
    }

    pub(crate) fn new_name(&mut self, revision: &RevisionName) -> ReplicaName {
        self.next_name += 1;
        crate::names::replica_name(revision, self.name_seed, self.next_name)
    }
}

impl RevisionMemory {
    /// A replica ended that should not have.
    pub(crate) fn failed(&mut self, why: String, now: Timestamp) {
        if self.failures.len() == FAILURES_MAX {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        self.last_failure = Some(why);
    }

    /// Forgets failures that are too old to matter.
    pub(crate) fn forget_old_failures(&mut self, now: Timestamp, window: SignedDuration) {
        while self.failures.front().is_some_and(|at| now.duration_since(*at) > window) {
            self.failures.pop_front();
        }
    }

    /// Failures that still count.
    pub(crate) fn failures(&self) -> usize {
        self.failures.len()
    }

    /// When a replica may be made again: at once after the first failure, then later and later.
    pub(crate) fn may_replace_at(&self, settings: &Settings) -> Option<Timestamp> {
        let last = self.failures.back()?;
        let doublings = u32::try_from(self.failures.len()).unwrap_or(u32::MAX).checked_sub(2)?;
        let factor = 1_i32.checked_shl(doublings.min(20)).unwrap_or(i32::MAX);
        let wait = settings.replace_wait_first.checked_mul(factor).unwrap_or(SignedDuration::MAX);
        last.checked_add(wait.min(settings.replace_wait_most)).ok()
    }

    /// Begins to bring the revision up anew: clocks and failures start over.
    pub(crate) fn new_attempt(&mut self) {
        self.attempt_since = None;
        self.first_ready_at = None;
        self.images_asked_at = None;
        self.images_asked_now = false;
        self.failures.clear();
        self.last_failure = None;
        self.notes.values_mut().for_each(|note| note.condemned = true);
    }
}
