//! Sessions that end and keep their files: when, and until when.
//!
//! **Invariant:** a session that serves has no snapshot that waits for it: its own files are the newer ones.

use jiff::SignedDuration;

use super::{Planner, SessionAction, SessionView, later};

impl Planner<'_> {
    /// Its files are being copied, or are to be now: it ends when they are.
    pub(super) fn is_being_suspended(&mut self, known: &SessionView<'_>) -> bool {
        let name = &known.session.replica;
        let orders = self.memory.orders.entry(name.clone()).or_default();
        if orders.is_suspending {
            return true;
        }
        let Some(rule) = self.view.pool.suspend else { return false };
        let has_failed = orders.suspend_failed == Some(known.accessed_at);
        if known.calls > 0 || !known.is_stored || has_failed {
            return false;
        }
        let due = later(known.accessed_at, SignedDuration::from_secs(i64::from(rule.after_idle_secs)));
        if due > self.now {
            self.wake(due);
            return false;
        }
        orders.is_suspending = true;
        self.step(SessionAction::Suspend(name.clone()), "no request came for as long as its pool says");
        true
    }

    /// What serves again, or has waited for too long, is suspended no more.
    pub(super) fn end_suspended(&mut self) {
        if self.view.is_deleted || self.view.suspended.is_empty() {
            return;
        }
        for at in 0..self.plan.serving.len() {
            let name = &self.plan.serving[at];
            let found = self.view.sessions.binary_search_by(|known| known.session.replica.cmp(name));
            let session = found.ok().map(|at| self.view.sessions[at].session);
            let identifier = session.and_then(|session| session.identifier.as_ref());
            if let Some((snapshot, _)) = identifier.and_then(|identifier| self.view.suspended.get(identifier)) {
                self.plan.unsuspended.push(snapshot.clone());
            }
        }
        for (identifier, (snapshot, expires_at)) in self.view.suspended {
            if *expires_at > self.now {
                self.wake(*expires_at);
                continue;
            }
            let is_its = |known: &SessionView<'_>| {
                known.session.ended.is_none() && known.session.identifier.as_ref() == Some(identifier)
            };
            // one that is just being resumed goes on
            if !self.view.sessions.iter().any(is_its) && !self.plan.unsuspended.contains(snapshot) {
                self.plan.unsuspended.push(snapshot.clone());
            }
        }
    }
}
