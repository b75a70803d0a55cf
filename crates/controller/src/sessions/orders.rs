//! What requests ask of the planning task: a session for an identifier, the end of one.

use cove_base::Busy;
use cove_model::{
    AllocateError, EventKind, ResourceId, Session, SessionEndReason, SessionEnded, SessionIdentifier, SnapshotId,
    SystemEvent,
};
use cove_reconcile::{Allocated, allocate};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;

use super::{
    entry::{AllocateAnswer, PoolPhase},
    keeper::Taken,
    plan::Seen,
    snapshots::SnapshotRequest,
};
use crate::service::Brain;

/// A last access is on disk at most this much later.
const TOUCH_WAIT: SignedDuration = SignedDuration::from_secs(1);

/// An order to the planning task.
#[derive(Debug)]
pub(crate) enum Order {
    /// Give an identifier its session; the answer says whether it was allocated by this order, and comes when it serves.
    Allocate {
        /// Of which pool.
        pool: ResourceId,
        /// Whose.
        identifier: SessionIdentifier,
        /// Told when the session is in the table.
        answer: AllocateAnswer,
    },
    /// End the session of an identifier; the answer says whether there was one, and comes when its end is on disk.
    Stop {
        /// Of which pool.
        pool: ResourceId,
        /// Whose.
        identifier: SessionIdentifier,
        /// Told when that is on disk.
        answer: oneshot::Sender<bool>,
    },
    /// About snapshots.
    Snapshot(Box<SnapshotRequest>),
    /// The keeper has taken one, or not.
    Taken(Box<Taken>),
    /// The keeper has forgotten the rows of these.
    SnapshotsDropped(Vec<SnapshotId>, Busy),
    /// Requests began or ended, or a snapshot is not held any more.
    Touched,
}

impl Brain {
    pub(crate) fn take_session_orders(&mut self, orders: Vec<Order>, now: Timestamp) {
        for order in orders {
            match order {
                Order::Allocate { pool, identifier, answer } => self.allocate_session(&pool, identifier, answer, now),
                Order::Stop { pool, identifier, answer } => self.stop_session(&pool, &identifier, answer, now),
                Order::Snapshot(request) => self.take_snapshot_request(*request, now),
                Order::Taken(taken) => self.snapshot_taken(*taken, now),
                Order::SnapshotsDropped(ids, busy) => {
                    self.snapshots_dropped(&ids);
                    drop(busy);
                }
                Order::Touched => {}
            }
        }
        // looked at here, so that a notice which found no room is not missed
        if self.sessions.touch_at.is_none() && self.sessions.table.has_touched() {
            self.sessions.touch_at = now.saturating_add(TOUCH_WAIT).ok();
        }
    }

    pub(super) fn allocate_session(
        &mut self,
        id: &ResourceId,
        identifier: SessionIdentifier,
        answer: AllocateAnswer,
        now: Timestamp,
    ) {
        let Some(entry) = self.sessions.entries.get_mut(id) else {
            let _caller_left = answer.send(Err(AllocateError::UnknownPool));
            return;
        };
        let mut memory = std::mem::take(&mut entry.memory);
        let Some(entry) = self.sessions.entries.get(id) else { return };
        let seen = Seen::of(&*self.deps.runtime, entry);
        let views = seen.views(entry, &self.sessions.table, now);
        let replicas = seen.by_name();
        let images = cove_reconcile::Images::default();
        let suspended = entry.suspended();
        let settings = &self.config.sessions.settings;
        let view = seen.pool_view(entry, (&views, &suspended), &replicas, &images, settings);
        let allocated = allocate(&view, &mut memory, &identifier, &mut new_guid, now);
        if let Ok(Allocated::Given(session)) = &allocated
            && replicas.contains_key(&session.replica)
        {
            // it runs by the time that its row is written; before that nobody is told of it
            match self.deps.runtime.thaw(&session.replica) {
                Ok(()) => memory.thaw_ordered(&session.replica, now),
                Err(error) => tracing::debug!(replica = %session.replica, %error, "a session is thawed later"),
            }
        }
        let Some(entry) = self.sessions.entries.get_mut(id) else { return };
        entry.memory = memory;
        let is_new = match allocated {
            Err(error) => {
                let _caller_left = answer.send(Err(error));
                return;
            }
            Ok(Allocated::Known(replica)) => {
                let session = entry.sessions.get(&replica).map(|known| &known.session);
                if session.is_some_and(|session| self.sessions.table.use_of(session).is_some()) {
                    let _caller_left = answer.send(Ok(false));
                    return;
                }
                false
            }
            Ok(Allocated::Given(session) | Allocated::New(session)) => {
                self.sessions.outbox.insert((id.clone(), session.replica.clone()));
                let message = format!("Session '{}' of pool '{}' was allocated", session.guid, id.name());
                let event = session_event(&session, EventKind::Normal, "SessionAllocated", message, now);
                entry.change(*session);
                self.tell_session(event);
                true
            }
        };
        if let Some(entry) = self.sessions.entries.get_mut(id) {
            entry.waiters.entry(identifier).or_default().push((answer, is_new));
        }
        self.sessions.dirty.insert(id.clone());
    }

    fn stop_session(
        &mut self,
        id: &ResourceId,
        identifier: &SessionIdentifier,
        answer: oneshot::Sender<bool>,
        now: Timestamp,
    ) {
        let answer = match self.stop_suspended(id, identifier, answer) {
            Some(answer) => answer,
            None => return,
        };
        let found = self.sessions.entries.get(id).filter(|entry| entry.data.phase != PoolPhase::Deleting);
        let Some(mut session) = found.and_then(|entry| entry.of(identifier)).map(|entry| entry.session.clone()) else {
            let _caller_left = answer.send(false);
            return;
        };
        session.ended = Some(SessionEnded { at: now, reason: SessionEndReason::Stopped, message: None });
        let message = format!("Session '{}' of pool '{}' ended (Stopped)", session.guid, id.name());
        self.tell_session(session_event(&session, EventKind::Normal, "SessionEnded", message, now));
        if let Some(entry) = self.sessions.entries.get_mut(id) {
            entry.stops.push((session.replica.clone(), answer));
        }
        self.change_session(id, session, now);
        self.sessions.dirty.insert(id.clone());
    }

    /// Writes down last accesses, and looks whether calls that ended set a new time.
    pub(super) fn write_touched(&mut self, now: Timestamp) {
        if self.sessions.touch_at.is_none_or(|at| at > now) {
            return;
        }
        self.sessions.touch_at = None;
        for (id, session, accessed_at) in self.sessions.table.take_touched() {
            let Some(entry) = self.sessions.entries.get_mut(&id) else { continue };
            let Some(known) = entry.sessions.get_mut(&session.replica) else { continue };
            if known.session.ended.is_none() {
                known.session.last_accessed_at = Some(accessed_at);
                self.sessions.outbox.insert((id.clone(), session.replica));
                self.sessions.dirty.insert(id);
            }
        }
    }

    pub(super) fn tell_session(&self, mut event: SystemEvent) {
        let pool = event.app.as_deref().and_then(|id| ResourceId::parse(id).ok());
        let entry = pool.and_then(|id| self.sessions.entries.get(&id));
        event.environment = entry.and_then(|entry| entry.data.pool.environment.as_ref()).map(ToString::to_string);
        if self.deps.events.try_send(event).is_err() {
            tracing::debug!("a system event was dropped: its reader is behind or gone");
        }
    }
}

/// An event of the system log about a session.
pub(super) fn session_event(
    session: &Session,
    kind: EventKind,
    reason: &str,
    message: String,
    at: Timestamp,
) -> SystemEvent {
    SystemEvent {
        at,
        kind,
        reason: reason.to_owned(),
        message,
        environment: None,
        app: Some(session.pool.to_string()),
        revision: Some(session.generation.to_string()),
        replica: Some(session.replica.to_string()),
        container: None,
        source: "SessionPoolController".to_owned(),
    }
}

pub(super) fn new_guid() -> String {
    uuid::Uuid::new_v4().to_string()
}
