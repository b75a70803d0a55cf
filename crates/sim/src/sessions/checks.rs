//! What must hold of sessions at every write, every answer, every end, and when all is over.

use std::collections::BTreeMap;

use cove_model::{
    ReplicaName, ReplicaPhase, Session, SessionEndReason, SessionIdentifier, SessionLifecycle, SessionPool,
};
use jiff::SignedDuration;

use super::{Server, SessionSim};
use crate::Invariant;

/// Of the sessions' cool-down.
pub(super) const COOL_DOWN_SECS: u32 = 300;
/// A plan comes at most this late.
const LATE: SignedDuration = SignedDuration::from_secs(1);

const COOL_DOWN: SignedDuration = SignedDuration::from_secs(300);

impl SessionSim {
    /// After each write: no identifier has two sessions.
    pub(super) fn check_rows(&mut self) {
        let mut of: BTreeMap<&SessionIdentifier, &ReplicaName> = BTreeMap::new();
        let mut second = None;
        for session in self.disk.values().filter(|session| session.ended.is_none()) {
            let Some(identifier) = &session.identifier else { continue };
            if let Some(other) = of.insert(identifier, &session.replica) {
                second = Some(format!("{identifier} has {other} and {}", session.replica));
            }
        }
        if let Some(what) = second {
            self.violate(Invariant::OneIdentifierOneSession, what);
        }
    }

    /// A request is answered by a session that is its identifier's on disk, runs, and never was another's.
    pub(super) fn check_answer(&mut self, identifier: &SessionIdentifier, replica: &ReplicaName) {
        let row = self.disk.get(replica);
        if row.is_none_or(|row| row.identifier.as_ref() != Some(identifier) || row.ended.is_some()) {
            let what = format!("{identifier} is answered by {replica}, which is not its own on disk");
            self.violate(Invariant::OneIdentifierOneSession, what);
        }
        let first = self.served.entry(replica.clone()).or_insert_with(|| identifier.clone()).clone();
        if first != *identifier {
            let what = format!("{replica} answers {identifier} and answered {first}");
            self.violate(Invariant::OneIdentifierOneSession, what);
        }
    }

    /// A session ends for want of requests when its cool-down is over, not before, and not while it is used.
    pub(super) fn check_end(&mut self, server: &Server, session: &Session) {
        let Some(ended) = session.ended.as_ref().filter(|ended| ended.reason == SessionEndReason::CooledDown) else {
            return;
        };
        let live = session.identifier.as_ref().and_then(|identifier| server.live.get(identifier));
        let Some(live) = live.filter(|live| live.replica == session.replica) else { return };
        let idle = ended.at.duration_since(live.accessed_at);
        let replica = &session.replica;
        if live.calls > 0 {
            self.violate(Invariant::SessionCoolDownExact, format!("{replica} ends with {} open calls", live.calls));
        }
        if idle < COOL_DOWN || live.is_exact && idle > COOL_DOWN + LATE / 2 {
            self.violate(Invariant::SessionCoolDownExact, format!("{replica} ends after {idle:#} without a request"));
        }
        self.stats.cooled_down += u64::from(live.is_exact);
    }

    /// Nobody's time is over who has not ended.
    pub(super) fn check_overdue(&mut self, server: &Server) {
        let now = self.wall();
        let is_over = |live: &super::Live| {
            let known = server.sessions.get(&live.replica);
            let is_ending = known.is_none_or(|known| known.session.ended.is_some());
            let runs = self.replicas.get(&live.replica).is_some_and(|seen| seen.is_ready);
            live.is_exact
                && live.calls == 0
                && runs
                && !is_ending
                && now.duration_since(live.accessed_at) > COOL_DOWN + LATE
        };
        if let Some(live) = server.live.values().find(|live| is_over(live)) {
            let what = format!("{} goes on after its cool-down", live.replica);
            self.violate(Invariant::SessionCoolDownExact, what);
        }
    }

    /// When every session's time is over, the ready ones are all that is left, in the store and on the host.
    pub(super) fn check_nothing_is_left(&mut self) {
        let ready = usize::try_from(self.pool.sessions_ready).unwrap_or(usize::MAX);
        let frozen = self.replicas.values().filter(|seen| seen.phase == ReplicaPhase::Frozen).count();
        let rows = self.disk.values().filter(|row| row.identifier.is_none() && row.ended.is_none()).count();
        let all = (self.replicas.len(), frozen, self.disk.len(), rows);
        if all != (ready, ready, ready, ready) {
            let left: Vec<_> =
                self.disk.values().filter(|row| row.identifier.is_some() || row.ended.is_some()).collect();
            let what =
                format!("replicas, frozen ones, rows, rows of nobody: {all:?}, of {ready} that wait ready: {left:?}");
            self.violate(Invariant::NoSessionLeaks, what);
        }
    }

    pub(super) fn pool_with_longer_cool_down(&self) -> SessionPool {
        let lifecycle = SessionLifecycle::Timed { cooldown_secs: COOL_DOWN_SECS + 1 };
        SessionPool { lifecycle, ..self.pool.clone() }
    }
}
