//! Forks, templates and suspended sessions: what requests ask of the planning task about them, and what it does.
//!
//! **Invariant:** the files of a snapshot go only when no row, no session that is known, and nobody who is about to make one
//! of them needs it; what changed of that is on disk by then.

use std::{collections::BTreeSet, time::Duration};

use cove_model::{
    EventKind, FORKS_MAX, ResourceId, SUSPENDED_KEEP_SECS, Session, SessionEndReason, SessionEnded, SessionIdentifier,
    SessionSnapshot, SnapshotError, SnapshotId, SnapshotKeep, check_snapshot_name,
};
use cove_reconcile::{Images, fork_sessions};
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use tokio::{sync::oneshot, time::timeout};

use super::{
    Order,
    entry::PoolPhase,
    keeper::{Job, Take, Taken},
    orders::{new_guid, session_event},
    plan::Seen,
    table::{SessionLease, Sessions},
};
use crate::service::Brain;

/// Snapshots with a name that a pool may have.
const NAMED_MAX: usize = 100;
/// Suspended sessions that a pool may have.
const SUSPENDED_MAX: usize = 1000;

/// How often, and after which wait, it is tried again to suspend a session that has open requests.
const BUSY_TRIES: usize = 10;
const BUSY_WAIT: Duration = Duration::from_millis(50);

/// Longest wait until a snapshot is taken, with those before it.
const ANSWER_LIMIT: Duration = Duration::from_secs(240);

/// Told what came of a request for a snapshot.
pub(crate) type KeepAnswer = oneshot::Sender<Result<SessionSnapshot, SnapshotError>>;

/// Told when a snapshot is not kept any more.
#[derive(Debug)]
pub(crate) enum DeleteAnswer {
    /// It was deleted by its name.
    Deleted(oneshot::Sender<Result<(), SnapshotError>>),
    /// Its suspended session was stopped.
    Stopped(oneshot::Sender<bool>),
}

impl DeleteAnswer {
    fn send(self) {
        // who asked may have left
        match self {
            Self::Deleted(answer) => drop(answer.send(Ok(()))),
            Self::Stopped(answer) => drop(answer.send(true)),
        }
    }
}

/// Sessions that are to be made of another one.
#[derive(Debug)]
pub(crate) struct Forks {
    /// Their identifiers.
    pub(super) targets: Vec<SessionIdentifier>,
    /// They are to go on with its memory, where that can be kept.
    pub(super) memory: bool,
}

/// What a snapshot is taken for.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// New sessions of these identifiers begin with it. The lease keeps the source alive.
    Fork(Forks, SessionLease, oneshot::Sender<Result<(), SnapshotError>>),
    /// It is kept under a name.
    Name(SessionLease, KeepAnswer),
    /// Its session ends; the end of its last request, and who asked.
    Suspend(Timestamp, Option<KeepAnswer>),
}

impl Purpose {
    fn refuse(self, error: SnapshotError) {
        match self {
            Self::Fork(_, _, answer) => drop(answer.send(Err(error))),
            Self::Name(_, answer) | Self::Suspend(_, Some(answer)) => drop(answer.send(Err(error))),
            Self::Suspend(_, None) => {}
        }
    }
}

/// A request about snapshots.
#[derive(Debug)]
pub(crate) enum SnapshotRequest {
    /// Make these sessions, which have what the lease's session has.
    Fork(SessionLease, Forks, oneshot::Sender<Result<(), SnapshotError>>),
    /// Keep the files of the lease's session under a name.
    Name(SessionLease, String, KeepAnswer),
    /// End the session of an identifier and keep its files.
    Suspend(ResourceId, SessionIdentifier, KeepAnswer),
    /// Delete a snapshot by its name; told when that is on disk.
    Delete(ResourceId, String, oneshot::Sender<Result<(), SnapshotError>>),
}

impl Sessions {
    /// Allocates sessions for identifiers that have none; they find the files of the source's session as they are now, and with
    /// `memory` go on with what it has in memory where the runtime can keep that. All or none, ready when this returns. The
    /// source's processes stand still meanwhile.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn fork(
        &self,
        pool: &ResourceId,
        source: &SessionIdentifier,
        targets: &[SessionIdentifier],
        memory: bool,
    ) -> Result<Vec<Session>, SnapshotError> {
        let names: BTreeSet<_> = targets.iter().collect();
        if targets.is_empty() || targets.len() > FORKS_MAX || names.len() != targets.len() {
            let text = format!("a fork makes 1 to {FORKS_MAX} sessions, each for an identifier of its own");
            return Err(SnapshotError::Taken(text));
        }
        let lease = self.lease(pool, source)?;
        let forks = Forks { targets: targets.to_vec(), memory };
        self.ask(|answer| SnapshotRequest::Fork(lease, forks, answer)).await?;
        let all = join_all(targets.iter().map(|target| self.allocate(pool, target))).await;
        match all.into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(leases) => Ok(leases.iter().map(|lease| lease.allocation().session.clone()).collect()),
            Err(error) => {
                for target in targets {
                    self.stop(pool, target).await;
                }
                Err(error.into())
            }
        }
    }

    /// Keeps the files of a session as they are now under a name that is free.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn keep(
        &self,
        pool: &ResourceId,
        source: &SessionIdentifier,
        name: &str,
    ) -> Result<SessionSnapshot, SnapshotError> {
        let lease = self.lease(pool, source)?;
        self.ask(|answer| SnapshotRequest::Name(lease, name.to_owned(), answer)).await
    }

    /// Ends a session and keeps its files for its next request.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn suspend(
        &self,
        pool: &ResourceId,
        source: &SessionIdentifier,
    ) -> Result<SessionSnapshot, SnapshotError> {
        let ask = || self.ask(|answer| SnapshotRequest::Suspend(pool.clone(), source.clone(), answer));
        // the last byte of an answer is read a little before its request counts as over
        for _ in 0..BUSY_TRIES {
            match ask().await {
                Err(SnapshotError::Busy(_)) => tokio::time::sleep(BUSY_WAIT).await,
                told => return told,
            }
        }
        ask().await
    }

    /// Deletes a snapshot that has a name and that no pool uses.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn delete_snapshot(&self, pool: &ResourceId, name: &str) -> Result<(), SnapshotError> {
        self.ask(|answer| SnapshotRequest::Delete(pool.clone(), name.to_owned(), answer)).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, SnapshotError>>) -> SnapshotRequest,
    ) -> Result<T, SnapshotError> {
        let (answer, answered) = oneshot::channel();
        self.send(Order::Snapshot(Box::new(request(answer))))
            .map_err(|()| SnapshotError::Busy("too many requests wait already; try again in a moment".to_owned()))?;
        let stopping = || SnapshotError::Failed("this server is stopping; try again".to_owned());
        let in_time = timeout(ANSWER_LIMIT, answered).await;
        let late = || SnapshotError::Busy("the snapshot is not taken yet: too many others are; try again".to_owned());
        in_time.map_err(|_| late())?.map_err(|_| stopping())?
    }
}

impl Brain {
    pub(super) fn take_snapshot_request(&mut self, request: SnapshotRequest, now: Timestamp) {
        match request {
            SnapshotRequest::Fork(lease, forks, answer) => {
                let session = lease.allocation().session.clone();
                self.begin_snapshot(session, None, Purpose::Fork(forks, lease, answer));
            }
            SnapshotRequest::Name(lease, name, answer) => {
                let session = lease.allocation().session.clone();
                match self.check_name(&session.pool, &name) {
                    Ok(()) => {
                        self.begin_snapshot(session, Some(SnapshotKeep::Named { name }), Purpose::Name(lease, answer));
                    }
                    Err(error) => drop(answer.send(Err(error))),
                }
            }
            SnapshotRequest::Suspend(pool, identifier, answer) => self.suspend_asked(&pool, &identifier, answer, now),
            SnapshotRequest::Delete(pool, name, answer) => self.delete_named(&pool, &name, answer),
        }
    }

    fn check_name(&self, pool: &ResourceId, name: &str) -> Result<(), SnapshotError> {
        let entry = self.sessions.entries.get(pool).ok_or(SnapshotError::UnknownPool)?;
        debug_assert!(check_snapshot_name(name), "the caller has checked it");
        let mut names = entry.snapshots.values().filter_map(SessionSnapshot::name);
        if names.clone().any(|known| known == name) {
            let text = format!("the pool has a snapshot '{name}' already; delete it or choose another name");
            return Err(SnapshotError::Taken(text));
        }
        if names.by_ref().count() >= NAMED_MAX {
            return Err(SnapshotError::NoRoom(format!("a pool has at most {NAMED_MAX} snapshots; delete some")));
        }
        Ok(())
    }

    fn begin_snapshot(&mut self, session: Session, keep: Option<SnapshotKeep>, purpose: Purpose) {
        let Some(keeper) = &self.sessions.keeper else {
            return purpose.refuse(SnapshotError::Failed("this server is stopping; try again".to_owned()));
        };
        let id = SnapshotId::new(&new_guid()).expect("a GUID has 32 hexadecimal digits");
        let hold = self.sessions.table.hold_snapshot(id);
        let busy = self.sessions.clock.busy("a snapshot of a session");
        let take = Box::new(Take { session, hold, keep, purpose, busy });
        if let Err(error) = keeper.try_send(Job::Take(take))
            && let Job::Take(take) = error.into_inner()
        {
            let text = "too many snapshots are being taken; try again in a moment";
            let (session, purpose) = (take.session, take.purpose);
            self.snapshot_failed(&session, purpose, SnapshotError::Busy(text.to_owned()));
        }
    }

    fn suspend_asked(&mut self, pool: &ResourceId, identifier: &SessionIdentifier, answer: KeepAnswer, now: Timestamp) {
        let found = self.sessions.entries.get(pool).filter(|entry| entry.data.phase != PoolPhase::Deleting);
        let Some(entry) = found else { return drop(answer.send(Err(SnapshotError::UnknownPool))) };
        if let Some(known) = entry.suspended_of(identifier) {
            // it is what was asked for
            return drop(answer.send(Ok(known.clone())));
        }
        let Some(session) = entry.of(identifier).map(|known| known.session.clone()) else {
            return drop(answer.send(Err(SnapshotError::UnknownSession)));
        };
        self.begin_suspend(session, None, Some(answer), now);
    }

    /// A plan says that a session is idle.
    pub(super) fn suspend_idle(&mut self, pool: &ResourceId, replica: &cove_model::ReplicaName, now: Timestamp) {
        let Some(entry) = self.sessions.entries.get(pool) else { return };
        let Some(session) = entry.sessions.get(replica).map(|known| known.session.clone()) else { return };
        let idle = entry.data.pool.suspend.map(|rule| SignedDuration::from_secs(i64::from(rule.after_idle_secs)));
        let since = idle.and_then(|idle| now.saturating_sub(idle).ok());
        self.begin_suspend(session, since, None, now);
    }

    /// Takes a session out of the table and has its files copied; `since`: only if no request ended after that.
    fn begin_suspend(
        &mut self,
        session: Session,
        since: Option<Timestamp>,
        answer: Option<KeepAnswer>,
        now: Timestamp,
    ) {
        let refuse = |answer: Option<KeepAnswer>, error| {
            if let Some(answer) = answer {
                drop(answer.send(Err(error)));
            }
        };
        let Some(entry) = self.sessions.entries.get_mut(&session.pool) else { return };
        let Some(identifier) = session.identifier.clone() else { return };
        let Some((_, accessed_at)) = self.sessions.table.use_of(&session) else {
            // it does not serve: it is being made, or suspended already
            if since.is_some() {
                entry.memory.not_suspended(&session.replica, None);
            }
            let text = "the session does not serve just now; try again in a moment";
            return refuse(answer, SnapshotError::Busy(text.to_owned()));
        };
        if entry.snapshots.values().filter(|kept| kept.suspended().is_some()).count() >= SUSPENDED_MAX {
            entry.memory.not_suspended(&session.replica, Some(accessed_at));
            let text = format!("a pool has at most {SUSPENDED_MAX} suspended sessions");
            return refuse(answer, SnapshotError::NoRoom(text));
        }
        if !self.sessions.table.withdraw(&session, Some(since.unwrap_or(now))) {
            entry.memory.not_suspended(&session.replica, None);
            self.sessions.dirty.insert(session.pool.clone());
            return refuse(answer, SnapshotError::Busy("requests of the session are open; end them first".to_owned()));
        }
        entry.memory.suspending(&session.replica);
        let keep_secs = entry.data.pool.suspend.map_or(SUSPENDED_KEEP_SECS, |rule| rule.keep_secs);
        let keep = SignedDuration::from_secs(i64::from(keep_secs));
        let expires_at = now.saturating_add(keep).unwrap_or(Timestamp::MAX);
        let keep = SnapshotKeep::Suspended { identifier, expires_at };
        self.begin_snapshot(session, Some(keep), Purpose::Suspend(accessed_at, answer));
    }

    /// The keeper has taken a snapshot, or not.
    pub(super) fn snapshot_taken(&mut self, taken: Taken, now: Timestamp) {
        let Taken { take, outcome } = taken;
        let Take { session, hold, purpose, busy, .. } = take;
        match outcome {
            Err(error) => self.snapshot_failed(&session, purpose, error),
            Ok(row) => {
                if let (Some(row), Some(entry)) = (&row, self.sessions.entries.get_mut(&session.pool)) {
                    let own = row.suspended().map(|(identifier, _)| identifier);
                    let is_older = |kept: &SessionSnapshot| own.is_some() && kept.suspended().map(|kept| kept.0) == own;
                    entry.snapshots.retain(|_, kept| !is_older(kept));
                    entry.snapshots.insert(row.id.clone(), row.clone());
                    self.sessions.table.set_snapshots(&session.pool, entry.snapshots.values());
                }
                match (purpose, row) {
                    (Purpose::Fork(forks, lease, answer), _) => {
                        drop(answer.send(self.make_forks(&session, hold.id(), &forks.targets, now)));
                        drop(lease);
                    }
                    (Purpose::Name(lease, answer), Some(row)) => {
                        drop(answer.send(Ok(row)));
                        drop(lease);
                    }
                    (Purpose::Suspend(_, answer), Some(row)) => {
                        self.suspended(&session, &row, now);
                        if let Some(answer) = answer {
                            drop(answer.send(Ok(row)));
                        }
                    }
                    (purpose, None) => purpose.refuse(SnapshotError::Failed("nothing was kept".to_owned())),
                }
            }
        }
        self.sessions.dirty.insert(session.pool);
        drop((hold, busy));
    }

    fn snapshot_failed(&mut self, session: &Session, purpose: Purpose, error: SnapshotError) {
        if let Purpose::Suspend(accessed_at, _) = &purpose
            && let Some(entry) = self.sessions.entries.get_mut(&session.pool)
        {
            entry.memory.not_suspended(&session.replica, Some(*accessed_at));
            if entry.sessions.get(&session.replica).is_some_and(|known| known.session.ended.is_none()) {
                // as if nothing had been: its cool-down goes on
                self.sessions.table.serve(session, *accessed_at);
            }
            let message = format!("Session '{}' could not be suspended: {error}", session.guid);
            let now = self.deps.clock.now();
            self.tell_session(session_event(session, EventKind::Warning, "SessionNotSuspended", message, now));
        }
        self.sessions.dirty.insert(session.pool.clone());
        purpose.refuse(error);
    }

    /// Its files are kept: the session ends.
    fn suspended(&mut self, session: &Session, row: &SessionSnapshot, now: Timestamp) {
        let Some(entry) = self.sessions.entries.get(&session.pool) else { return };
        let known = entry.sessions.get(&session.replica).map(|known| known.session.clone());
        let reason = known.as_ref().map(|known| known.ended.as_ref().map(|ended| ended.reason));
        if matches!(reason, None | Some(Some(SessionEndReason::Stopped | SessionEndReason::PoolDeleted))) {
            // somebody wanted it gone while it was copied
            return self.drop_snapshots(&session.pool, vec![row.id.clone()]);
        }
        // one that ended otherwise keeps its files all the same
        let Some(mut ended) = known.filter(|known| known.ended.is_none()) else { return };
        ended.ended = Some(SessionEnded { at: now, reason: SessionEndReason::Suspended, message: None });
        let message = format!(
            "Session '{}' of pool '{}' was suspended; {} bytes are kept",
            session.guid,
            session.pool.name(),
            row.bytes
        );
        self.tell_session(session_event(session, EventKind::Normal, "SessionSuspended", message, now));
        self.change_session(&session.pool.clone(), ended, now);
    }

    fn make_forks(
        &mut self,
        source: &Session,
        snapshot: &SnapshotId,
        targets: &[SessionIdentifier],
        now: Timestamp,
    ) -> Result<(), SnapshotError> {
        let id = &source.pool;
        let entry = self.sessions.entries.get_mut(id).ok_or(SnapshotError::UnknownPool)?;
        let mut memory = std::mem::take(&mut entry.memory);
        let entry = &*entry;
        let seen = Seen::of(&*self.deps.runtime, entry);
        let views = seen.views(entry, &self.sessions.table, now);
        let (replicas, images, suspended) = (seen.by_name(), Images::default(), entry.suspended());
        let settings = &self.config.sessions.settings;
        let view = seen.pool_view(entry, (&views, &suspended), &replicas, &images, settings);
        let made = fork_sessions(&view, &mut memory, (snapshot, targets), &mut new_guid, now);
        let entry = self.sessions.entries.get_mut(id).ok_or(SnapshotError::UnknownPool)?;
        entry.memory = memory;
        let made = made?;
        let mut events = Vec::new();
        for session in made {
            self.sessions.outbox.insert((id.clone(), session.replica.clone()));
            let message = format!("Session '{}' was forked from '{}'", session.guid, source.guid);
            events.push(session_event(&session, EventKind::Normal, "SessionForked", message, now));
            entry.change(session);
        }
        for event in events {
            self.tell_session(event);
        }
        Ok(())
    }

    fn delete_named(&mut self, pool: &ResourceId, name: &str, answer: oneshot::Sender<Result<(), SnapshotError>>) {
        let entry = self.sessions.entries.get(pool);
        let found = entry.and_then(|entry| entry.snapshots.values().find(|kept| kept.name() == Some(name)));
        let Some(id) = found.map(|kept| kept.id.clone()) else {
            let error = if entry.is_some() { SnapshotError::UnknownSnapshot } else { SnapshotError::UnknownPool };
            return drop(answer.send(Err(error)));
        };
        let uses = |data: &super::entry::PoolData| data.pool.snapshot.as_ref().is_some_and(|used| used.id == id);
        if let Some((user, _)) = self.sessions.entries.iter().find(|(_, entry)| uses(&entry.data)) {
            return drop(answer.send(Err(SnapshotError::InUse(user.name().to_owned()))));
        }
        self.sessions.deletes.push((id.clone(), DeleteAnswer::Deleted(answer)));
        self.drop_snapshots(pool, vec![id]);
    }

    /// Gives up the suspended session of an identifier, if there is one; gives the answer back where there is more to end.
    pub(super) fn stop_suspended(
        &mut self,
        pool: &ResourceId,
        identifier: &SessionIdentifier,
        answer: oneshot::Sender<bool>,
    ) -> Option<oneshot::Sender<bool>> {
        let Some(entry) = self.sessions.entries.get(pool) else { return Some(answer) };
        let Some(id) = entry.suspended_of(identifier).map(|kept| kept.id.clone()) else { return Some(answer) };
        // one that is just being resumed ends as others do
        let answer = if entry.of(identifier).is_some() {
            Some(answer)
        } else {
            self.sessions.deletes.push((id.clone(), DeleteAnswer::Stopped(answer)));
            None
        };
        self.drop_snapshots(pool, vec![id]);
        answer
    }

    /// Keeps snapshots no longer.
    pub(super) fn drop_snapshots(&mut self, pool: &ResourceId, ids: Vec<SnapshotId>) {
        if ids.is_empty() {
            return;
        }
        if let Some(entry) = self.sessions.entries.get_mut(pool) {
            for id in &ids {
                entry.snapshots.remove(id);
            }
            self.sessions.table.set_snapshots(pool, entry.snapshots.values());
        }
        self.sessions.unwanted.extend(ids);
    }

    /// Rows of snapshots are gone.
    pub(super) fn snapshots_dropped(&mut self, ids: &[SnapshotId]) {
        self.sessions.dropping = false;
        self.sessions.is_sweep_due = true;
        for (_, answer) in self.sessions.deletes.extract_if(.., |(id, _)| ids.contains(id)) {
            answer.send();
        }
    }

    /// Hands rows that are not wanted to the keeper, and when all is on disk the files that nobody needs.
    pub(super) fn sweep_snapshots(&mut self) {
        self.sessions.is_sweep_due |= self.sessions.table.take_sweep_due();
        let Some(keeper) = self.sessions.keeper.clone() else { return };
        if !self.sessions.dropping && !self.sessions.unwanted.is_empty() {
            let ids: Vec<_> = self.sessions.unwanted.iter().cloned().collect();
            let busy = self.sessions.clock.busy("snapshots that are forgotten");
            if keeper.try_send(Job::Drop(ids, busy)).is_ok() {
                self.sessions.dropping = true;
                self.sessions.unwanted.clear();
            }
        }
        let is_settled = self.sessions.is_all_written() && !self.sessions.dropping && self.sessions.unwanted.is_empty();
        if !self.sessions.is_sweep_due || !is_settled || !self.sessions.unreadable.is_empty() {
            return;
        }
        // what is there first, then who needs it: whoever makes a session of one holds it from before it is there
        let there = self.deps.runtime.snapshots();
        let mut needed = self.sessions.table.held_snapshots();
        for entry in self.sessions.entries.values() {
            needed.extend(entry.snapshots.keys().cloned());
            needed.extend(entry.sessions.values().filter_map(|known| known.session.snapshot.clone()));
            needed.extend(entry.data.pool.snapshot.iter().map(|used| used.id.clone()));
        }
        let surplus: Vec<_> = there.into_keys().filter(|id| !needed.contains(id)).collect();
        let busy = self.sessions.clock.busy("files of snapshots that go");
        if surplus.is_empty() || keeper.try_send(Job::Remove(surplus, busy)).is_ok() {
            self.sessions.is_sweep_due = false;
        }
    }
}
