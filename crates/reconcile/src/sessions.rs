//! What must change so that a pool has the sessions that it should have: ready ones, and those that belong to identifiers.
//!
//! [`allocate`] chooses the session of an identifier. [`plan_pool`] looks at a pool, at its sessions as they are stored and at
//! what the driver observes of them; it gives sessions that are to be stored, steps, and rows that can go. Whoever calls them
//! stores what changed, and calls [`plan_pool`] again when that is done or anything else changed. After a crash at any point
//! the next plan goes on.
//!
//! **Invariant:** no step concerns a session whose newest form is not on disk: what was started is known, what belongs to an
//! identifier stays with it, what has ended is never given to another.
//! **Invariant:** an identifier has at most one session that has not ended; a session has at most one identifier, for good.
//! **Invariant:** a session with open requests does not end for want of requests.
//! **Invariant:** a row goes only after the driver has forgotten the replica.

mod allocate;
mod lives;
mod refill;
mod suspend;

use std::{collections::BTreeMap, fmt, time::Duration};

use cove_model::{
    ReplicaName, ReplicaObservation, RevisionName, Session, SessionCounts, SessionEndReason, SessionEnded,
    SessionIdentifier, SessionPool, SnapshotId,
};
use jiff::{SignedDuration, Timestamp};

use crate::Images;

pub use allocate::{Allocated, allocate, fork_sessions};

/// Waiting times and limits of session pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSettings {
    /// Sessions that are being started at once, over all pools; those that an identifier waits for go first. Default 4.
    pub starts_max: u32,
    /// Longest from the start of a session until it is ready; then it has failed. Default 2 min.
    pub start_deadline: SignedDuration,
    /// Wait before sessions are made again after the second failure in a row; it doubles. The first is made up for at once.
    /// Default 1 s.
    pub retry_wait_first: SignedDuration,
    /// Longest wait after failures. Default 5 min.
    pub retry_wait_most: SignedDuration,
    /// Failures in a row, no session of the generation having been ready, after which a new pool has failed. Default 3.
    pub failures_max: u32,
    /// Time between two tries to get images that could not be had. Default 10 s.
    pub images_retry: SignedDuration,
    /// How long a new pool tries for images that may yet come. Default 60 s.
    pub images_patience: SignedDuration,
    /// Longest until a new pool has its first ready session; then it has failed. Default 10 min.
    pub provisioning_deadline: SignedDuration,
    /// An order that the driver refused is given again after this. Default 1 s.
    pub order_retry: SignedDuration,
    /// New sessions are put in so long after the last one was given away: a burst of requests has the machine to itself.
    /// Zero under a virtual clock. Default 20 ms.
    pub refill_rest: SignedDuration,
    /// At the latest so long after the first one was given away. Default 500 ms.
    pub refill_rest_most: SignedDuration,
    /// Longest between SIGTERM and SIGKILL for a session that belongs to an identifier; the template may say less. One that
    /// belongs to none is killed at once. Default 5 s.
    pub grace_most: Duration,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self {
            starts_max: 4,
            start_deadline: SignedDuration::from_mins(2),
            retry_wait_first: SignedDuration::from_secs(1),
            retry_wait_most: SignedDuration::from_mins(5),
            failures_max: 3,
            images_retry: SignedDuration::from_secs(10),
            images_patience: SignedDuration::from_secs(60),
            provisioning_deadline: SignedDuration::from_mins(10),
            order_retry: SignedDuration::from_secs(1),
            refill_rest: SignedDuration::from_millis(20),
            refill_rest_most: SignedDuration::from_millis(500),
            grace_most: Duration::from_secs(5),
        }
    }
}

/// A session with what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct SessionView<'a> {
    /// Its newest form.
    pub session: &'a Session,
    /// That form is on disk.
    pub is_stored: bool,
    /// It was put in by this server, which has not ordered it yet.
    pub is_new: bool,
    /// Its requests that are open.
    pub calls: u32,
    /// The end of its last request, not before the start of this server.
    pub accessed_at: Timestamp,
}

/// What the planner looks at.
#[derive(Clone, Debug)]
pub struct PoolView<'a> {
    /// As stored.
    pub pool: &'a SessionPool,
    /// Its sessions that the driver or the store still know, by the name of their replica.
    pub sessions: &'a [SessionView<'a>],
    /// Its suspended sessions: their snapshots, and when they are given up.
    pub suspended: &'a BTreeMap<SessionIdentifier, (SnapshotId, Timestamp)>,
    /// What the driver sees of all its generations.
    pub replicas: &'a BTreeMap<&'a ReplicaName, &'a ReplicaObservation>,
    /// Where the images of its generation stand.
    pub images: &'a Images,
    /// It is being deleted.
    pub is_deleted: bool,
    /// How many more of its sessions there is room for.
    pub room: u32,
    /// What is short when there is no room, in words.
    pub shortage: Option<&'a str>,
    /// Sessions of this pool that may be starting at once.
    pub starts_free: u32,
    /// The driver can freeze.
    pub freezes: bool,
    /// Waiting times and limits.
    pub settings: &'a SessionSettings,
}

impl<'a> PoolView<'a> {
    fn seen(&self, replica: &ReplicaName) -> Option<&'a ReplicaObservation> {
        self.replicas.get(replica).copied()
    }

    fn knows(&self, replica: &ReplicaName) -> bool {
        self.sessions.binary_search_by(|known| known.session.replica.cmp(replica)).is_ok()
    }
}

/// What the planner remembers; may be lost at any time, which costs an order given twice or a longer wait.
#[derive(Clone, Debug, Default)]
pub struct PoolMemory {
    orders: BTreeMap<ReplicaName, Orders>,
    images_asked_at: Option<Timestamp>,
    images_failing_since: Option<Timestamp>,
    /// Failures since a session of the generation was ready.
    failures: u32,
    failed_at: Option<Timestamp>,
    last_failure: Option<String>,
    refused_until: Option<Timestamp>,
    /// When the first and the last session was given away since new ones were put in.
    given: Option<(Timestamp, Timestamp)>,
    /// When the generation began to be brought up, and which.
    begun: Option<(RevisionName, Timestamp)>,
    was_ready: bool,
    /// Fewer sessions wait ready than should.
    is_short: bool,
    name_seed: u64,
    next_name: u64,
}

/// What the driver was asked to do with a session.
#[derive(Clone, Debug, Default)]
struct Orders {
    started_at: Option<Timestamp>,
    was_seen: bool,
    was_alive: bool,
    was_ready: bool,
    is_freeze_asked: bool,
    is_freeze_refused: bool,
    /// The last order to let it go on, until it was seen running.
    thaw_asked_at: Option<Timestamp>,
    is_stop_asked: bool,
    /// Its files are being copied, so that it can be ended.
    is_suspending: bool,
    /// That failed when its last request had ended then.
    suspend_failed: Option<Timestamp>,
    /// The driver will never take the order to start it, for this reason.
    refusal: Option<String>,
}

impl PoolMemory {
    /// Of a pool whose sessions are named from a seed of its own.
    #[must_use]
    pub fn new(name_seed: u64) -> Self {
        Self { name_seed, ..Self::default() }
    }

    /// The pool was written again: what failed before, its images among it, is tried anew. A pool that works goes on.
    pub fn written_again(&mut self) {
        if !self.was_ready {
            self.begun = None;
        }
    }

    /// The driver did not take the order to start this session; it is given again a little later.
    pub fn start_refused(&mut self, replica: &ReplicaName, settings: &SessionSettings, now: Timestamp) {
        self.orders.remove(replica);
        self.refused_until = Some(later(now, settings.order_retry));
    }

    /// The driver will never take the order to start this session: it has failed.
    pub fn start_impossible(&mut self, replica: &ReplicaName, why: String) {
        self.orders.entry(replica.clone()).or_default().refusal = Some(why);
    }

    /// Its files are being copied: it takes no requests, and its cool-down waits.
    pub fn suspending(&mut self, replica: &ReplicaName) {
        self.orders.entry(replica.clone()).or_default().is_suspending = true;
    }

    /// That is over, and it was not suspended. `failed_at`: the end of its last request, if it shall not be tried again
    /// before another one.
    pub fn not_suspended(&mut self, replica: &ReplicaName, failed_at: Option<Timestamp>) {
        let orders = self.orders.entry(replica.clone()).or_default();
        orders.is_suspending = false;
        orders.suspend_failed = failed_at;
    }

    /// It cannot be frozen: it waits running.
    pub fn freeze_refused(&mut self, replica: &ReplicaName) {
        if let Some(orders) = self.orders.get_mut(replica) {
            orders.is_freeze_refused = true;
        }
    }

    /// The driver was asked to let this session go on, before its row is written: it runs by the time that it may be used.
    /// After a crash in between nobody has it, and it is frozen again.
    pub fn thaw_ordered(&mut self, replica: &ReplicaName, now: Timestamp) {
        let orders = self.orders.entry(replica.clone()).or_default();
        orders.is_freeze_asked = false;
        orders.thaw_asked_at = Some(now);
    }

    /// A session was given away that others have to make up for.
    fn note_given(&mut self, now: Timestamp) {
        self.given = Some((self.given.map_or(now, |(first, _)| first), now));
    }

    /// Why the last session could not be made, while sessions fail.
    #[must_use]
    pub fn last_failure(&self) -> Option<&str> {
        self.last_failure.as_deref().filter(|_| self.failures > 0)
    }

    /// It is tried no more before anything changes: nobody should wait for a session.
    #[must_use]
    pub fn is_hopeless(&self, settings: &SessionSettings) -> bool {
        self.failures >= settings.failures_max && !self.was_ready
    }

    fn new_name(&mut self, generation: &RevisionName) -> ReplicaName {
        self.next_name += 1;
        crate::names::replica_name(generation, self.name_seed, self.next_name)
    }
}

/// One thing to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionAction {
    /// Get the images of the pool's generation.
    EnsureImages,
    /// Make this session's replica and start it; both may have been asked before.
    Start(ReplicaName),
    /// Freeze it: it waits for an identifier.
    Freeze(ReplicaName),
    /// Let it run: it has an identifier.
    Thaw(ReplicaName),
    /// Keep its files and end it.
    Suspend(ReplicaName),
    /// End it.
    Stop {
        /// Which.
        replica: ReplicaName,
        /// Between SIGTERM and SIGKILL.
        grace: Duration,
    },
    /// Forget what is left of it.
    Remove(ReplicaName),
}

/// An action and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStep {
    /// What.
    pub action: SessionAction,
    /// Why, in words.
    pub reason: &'static str,
}

impl fmt::Display for SessionStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            SessionAction::EnsureImages => write!(f, "get images")?,
            SessionAction::Start(replica) => write!(f, "start {replica}")?,
            SessionAction::Freeze(replica) => write!(f, "freeze {replica}")?,
            SessionAction::Thaw(replica) => write!(f, "thaw {replica}")?,
            SessionAction::Suspend(replica) => write!(f, "suspend {replica}")?,
            SessionAction::Stop { replica, grace } => write!(f, "stop {replica} within {grace:?}")?,
            SessionAction::Remove(replica) => write!(f, "remove {replica}")?,
        }
        write!(f, ": {}", self.reason)
    }
}

/// What became of a pool that was created or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolOutcome {
    /// Nothing yet.
    Pending,
    /// Images are there, and a ready session if any are asked for.
    Succeeded,
    /// It cannot work; a word and a sentence.
    Failed {
        /// One word.
        reason: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
    /// It was to be deleted, and nothing is left of it.
    Gone,
}

/// A session ended, or could be told of otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionEvent {
    /// Something went wrong.
    pub is_warning: bool,
    /// One word.
    pub reason: &'static str,
    /// In words.
    pub message: String,
    /// The session it is about.
    pub session: Option<ReplicaName>,
}

/// What is to be stored, done, told, and when to look again.
#[derive(Clone, Debug)]
pub struct PoolPlan {
    /// New and changed sessions, to be stored.
    pub changed: Vec<Session>,
    /// Sessions whose row can go: nothing is left of them.
    pub forgotten: Vec<ReplicaName>,
    /// Suspended sessions that are none any more: they serve again, or their time is over.
    pub unsuspended: Vec<SnapshotId>,
    /// To be carried out in this order.
    pub steps: Vec<SessionStep>,
    /// To be told.
    pub events: Vec<SessionEvent>,
    /// Sessions that can answer now: ready, thawed, on disk, with an identifier.
    pub serving: Vec<ReplicaName>,
    /// How many there are of each kind.
    pub counts: SessionCounts,
    /// Sessions that run or are about to: each takes what its template asks for.
    pub running: u32,
    /// Frozen ones: they take memory only.
    pub frozen: u32,
    /// Those among the running ones that are not ready yet.
    pub starting: u32,
    /// Sessions that wait for room or for their turn to start.
    pub missing: u32,
    /// What became of the pool.
    pub outcome: PoolOutcome,
    /// The next moment at which something is due without any notice.
    pub wake_at: Option<Timestamp>,
}

struct Planner<'a> {
    view: &'a PoolView<'a>,
    memory: &'a mut PoolMemory,
    now: Timestamp,
    /// Draws a GUID.
    guid: &'a mut dyn FnMut() -> String,
    plan: PoolPlan,
    starts_free: u32,
    room: u32,
    /// What is known of the images is older than the pool as it is now.
    are_images_stale: bool,
}

/// Plans one pool; `guid` draws a new GUID at each call.
#[must_use]
pub fn plan_pool(
    view: &PoolView<'_>,
    memory: &mut PoolMemory,
    guid: &mut dyn FnMut() -> String,
    now: Timestamp,
) -> PoolPlan {
    let plan = PoolPlan {
        changed: Vec::new(),
        forgotten: Vec::new(),
        unsuspended: Vec::new(),
        steps: Vec::new(),
        events: Vec::new(),
        serving: Vec::new(),
        counts: SessionCounts::default(),
        running: 0,
        frozen: 0,
        starting: 0,
        missing: 0,
        outcome: PoolOutcome::Pending,
        wake_at: None,
    };
    let (starts_free, room) = (view.starts_free, view.room);
    let mut planner = Planner { view, memory, now, guid, plan, starts_free, room, are_images_stale: false };
    planner.follow_generation();
    planner.live();
    planner.end_suspended();
    planner.starts_free = planner.starts_free.saturating_sub(planner.plan.starting);
    planner.end_unknown();
    planner.refill();
    planner.tell_refilled();
    planner.plan.outcome = planner.outcome();
    planner.plan
}

impl Planner<'_> {
    fn step(&mut self, action: SessionAction, reason: &'static str) {
        self.plan.steps.push(SessionStep { action, reason });
    }

    fn wake(&mut self, at: Timestamp) {
        self.plan.wake_at = Some(self.plan.wake_at.map_or(at, |old| old.min(at)));
    }

    fn tell(&mut self, is_warning: bool, reason: &'static str, message: String, session: Option<&ReplicaName>) {
        self.plan.events.push(SessionEvent { is_warning, reason, message, session: session.cloned() });
    }

    /// Another generation starts with a clean sheet.
    fn follow_generation(&mut self) {
        let generation = &self.view.pool.generation;
        if self.memory.begun.as_ref().is_none_or(|(known, _)| known != generation) {
            self.memory.begun = Some((generation.clone(), self.now));
            self.memory.images_asked_at = None;
            self.memory.images_failing_since = None;
            self.memory.failures = 0;
            self.memory.failed_at = None;
            self.memory.last_failure = None;
            self.memory.was_ready = false;
        }
        let view = self.view;
        self.memory.orders.retain(|name, _| view.knows(name));
    }

    /// Stores the end of a session and tells it.
    fn end(&mut self, session: &Session, reason: SessionEndReason, message: Option<String>) {
        let mut ended = session.clone();
        ended.ended = Some(SessionEnded { at: self.now, reason, message: message.clone() });
        let is_bad = matches!(reason, SessionEndReason::Failed | SessionEndReason::Lost);
        let detail = message.map(|message| format!(": {message}")).unwrap_or_default();
        let text =
            format!("Session '{}' of pool '{}' ended ({}){detail}", ended.guid, ended.pool.name(), reason.as_str());
        let word = if reason == SessionEndReason::Failed { "SessionFailed" } else { "SessionEnded" };
        self.tell(is_bad, word, text, Some(&session.replica));
        self.plan.changed.push(ended);
    }

    /// What there is to say of a pool that was written.
    fn outcome(&mut self) -> PoolOutcome {
        let settings = self.view.settings;
        if self.view.is_deleted {
            let is_empty = self.view.sessions.len() == self.plan.forgotten.len() && self.view.replicas.is_empty();
            return if is_empty { PoolOutcome::Gone } else { PoolOutcome::Pending };
        }
        if self.memory.was_ready {
            return PoolOutcome::Succeeded;
        }
        let begun_at = self.memory.begun.as_ref().map_or(self.now, |(_, at)| *at);
        match self.view.images {
            Images::Ready { .. } if self.target() == 0 => return PoolOutcome::Succeeded,
            Images::Failed { .. } if self.are_images_stale => self.wake(later(self.now, settings.images_retry)),
            Images::Failed { message, retryable } => {
                let since = self.memory.images_failing_since.unwrap_or(self.now);
                let over = later(since, settings.images_patience);
                if !retryable || over <= self.now {
                    return PoolOutcome::Failed { reason: "ImagePullFailure", message: message.clone() };
                }
                self.wake(over);
            }
            Images::Ready { .. } | Images::Unknown | Images::Pulling { .. } => {}
        }
        if self.memory.failures >= settings.failures_max {
            let message = self.memory.last_failure.clone().unwrap_or_default();
            return PoolOutcome::Failed { reason: "SessionStartFailed", message };
        }
        let over = later(begun_at, settings.provisioning_deadline);
        if over <= self.now {
            let why = self.view.shortage.filter(|_| self.plan.missing > 0);
            let message = why.map_or_else(
                || format!("no session became ready within {} s", settings.provisioning_deadline.as_secs()),
                |shortage| format!("there is no room for a session: {shortage}"),
            );
            return PoolOutcome::Failed { reason: "ProvisioningDeadlineExceeded", message };
        }
        self.wake(over);
        PoolOutcome::Pending
    }
}

fn later(at: Timestamp, wait: SignedDuration) -> Timestamp {
    at.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
