//! Keeps as many sessions ready as the pool asks for, and starts them: those that an identifier waits for first.
//!
//! **Invariant:** never more starts at once than there are turns and room for; after failures the next try waits longer.

use cove_model::{ReplicaName, SessionEndReason};
use jiff::{SignedDuration, Timestamp};

use super::{Planner, SessionAction, SessionView, allocate::new_session, later};
use crate::Images;

/// So long after the last failure, and twice the wait before the next try, failures are forgotten.
const SETTLED_AFTER: SignedDuration = SignedDuration::from_secs(10);

/// Longest wait before images that could not be had are asked for again.
const IMAGES_RETRY_MOST: SignedDuration = SignedDuration::from_mins(2);

impl<'a> Planner<'a> {
    /// Says once that there are as many ready sessions as should be, after there were fewer.
    pub(super) fn tell_refilled(&mut self) {
        let target = self.target();
        let ready = usize::try_from(self.plan.counts.ready).unwrap_or(usize::MAX);
        if self.view.is_deleted || ready < target {
            self.memory.is_short = !self.view.is_deleted;
        } else if std::mem::take(&mut self.memory.is_short) && target > 0 {
            let text = format!("Session pool '{}' has {target} ready sessions", self.view.pool.id.name());
            self.tell(false, "SessionPoolRefilled", text, None);
        }
    }

    pub(super) fn refill(&mut self) {
        if self.view.is_deleted {
            return;
        }
        self.end_surplus();
        self.forget_failures();
        let is_wanted = self.view.pool.sessions_ready > 0 || !self.waiting().is_empty();
        let are_images_here = self.are_images_here(is_wanted);
        self.add_missing();
        if are_images_here {
            self.start_waiting();
        }
    }

    /// How many sessions should wait: no more than could ever be given away.
    pub(super) fn target(&self) -> usize {
        let pool = self.view.pool;
        let is_given = |known: &&SessionView<'_>| known.session.is_allocated();
        let given = u32::try_from(self.view.sessions.iter().filter(is_given).count()).unwrap_or(u32::MAX);
        usize::try_from(pool.sessions_ready.min(pool.sessions_max.saturating_sub(given))).unwrap_or(usize::MAX)
    }

    /// Sessions of the generation that belong to nobody and were not just ended.
    fn unallocated(&self) -> Vec<SessionView<'a>> {
        let is_ended = |name: &ReplicaName| self.plan.changed.iter().any(|session| session.replica == *name);
        let known = self.view.sessions.iter().filter(|known| {
            let session = known.session;
            session.identifier.is_none()
                && session.ended.is_none()
                && session.generation == self.view.pool.generation
                && !is_ended(&session.replica)
        });
        known.copied().collect()
    }

    /// The pool asks for fewer than there are: the newest go.
    fn end_surplus(&mut self) {
        let target = self.target();
        let mut all: Vec<_> = self.unallocated().iter().map(|known| known.session.clone()).collect();
        if all.len() <= target {
            return;
        }
        all.sort_by(|a, b| (a.created_at, &a.replica).cmp(&(b.created_at, &b.replica)));
        for session in all.split_off(target) {
            self.end(&session, SessionEndReason::Surplus, None);
        }
    }

    /// Sessions that are on disk and were not ordered yet, those with an identifier first, then the oldest.
    fn waiting(&self) -> Vec<SessionView<'a>> {
        let is_ordered = |name: &ReplicaName| self.memory.orders.get(name).is_some_and(|o| o.started_at.is_some());
        let mut waiting: Vec<SessionView<'a>> = self
            .view
            .sessions
            .iter()
            .filter(|known| {
                let session = known.session;
                known.is_new
                    && session.ended.is_none()
                    && !is_ordered(&session.replica)
                    && !self.plan.changed.iter().any(|changed| changed.replica == session.replica)
            })
            .copied()
            .collect();
        waiting.sort_by_key(|known| (known.session.identifier.is_none(), known.session.created_at));
        waiting
    }

    /// Puts in what is missing, as much as can be started soon: a burst that never comes to its turn is not written down.
    fn add_missing(&mut self) {
        if self.next_try().is_some_and(|at| at > self.now) {
            return;
        }
        let missing = self.target().saturating_sub(self.unallocated().len());
        let waiting = self.waiting().len();
        let turns = usize::try_from(self.starts_free.min(self.room)).unwrap_or(usize::MAX).saturating_sub(waiting);
        if missing > turns {
            self.plan.missing = self.plan.missing.saturating_add(u32::try_from(missing - turns).unwrap_or(u32::MAX));
        }
        if !matches!(self.view.images, Images::Ready { .. }) || missing.min(turns) > 0 && self.rests() {
            return;
        }
        // while sessions fail one try at a time is enough to see whether they still do
        let at_once = if self.memory.failures > 0 { usize::from(self.plan.starting == 0) } else { turns };
        for _ in 0..missing.min(turns).min(at_once) {
            let session = new_session(self.view, self.memory, self.guid, self.now);
            self.plan.counts.pending += 1;
            self.plan.changed.push(session);
        }
    }

    /// Sessions are being given away just now: they and their requests go first, for a while.
    fn rests(&mut self) -> bool {
        let Some((first, last)) = self.memory.given else { return false };
        let settings = self.view.settings;
        let until = later(last, settings.refill_rest).min(later(first, settings.refill_rest_most));
        if until > self.now {
            self.wake(until);
            return true;
        }
        self.memory.given = None;
        false
    }

    fn start_waiting(&mut self) {
        if let Some(until) = self.memory.refused_until {
            if until > self.now {
                return self.wake(until);
            }
            self.memory.refused_until = None;
        }
        for known in self.waiting() {
            let name = known.session.replica.clone();
            let is_asked_for = known.session.identifier.is_some();
            if let Some(at) = self.next_try().filter(|at| *at > self.now && !is_asked_for) {
                self.wake(at);
                continue;
            }
            if self.starts_free == 0 || self.room == 0 {
                self.plan.missing += 1;
                continue;
            }
            if !known.is_stored {
                continue;
            }
            self.starts_free -= 1;
            self.room -= 1;
            self.plan.running += 1;
            self.plan.starting += 1;
            let orders = self.memory.orders.entry(name.clone()).or_default();
            orders.started_at = Some(self.now);
            let reason = if is_asked_for { "an identifier waits for it" } else { "the pool keeps sessions ready" };
            self.step(SessionAction::Start(name), reason);
            let over = later(self.now, self.view.settings.start_deadline);
            self.wake(over);
        }
    }

    /// When sessions may be made again after failures.
    fn next_try(&mut self) -> Option<Timestamp> {
        let at = later(self.memory.failed_at?, self.wait()?);
        if at > self.now {
            self.wake(at);
        }
        Some(at)
    }

    fn wait(&self) -> Option<SignedDuration> {
        let doublings = self.memory.failures.checked_sub(2)?;
        let settings = self.view.settings;
        let factor = 1_i32.checked_shl(doublings.min(20)).unwrap_or(i32::MAX);
        let wait = settings.retry_wait_first.checked_mul(factor).unwrap_or(SignedDuration::MAX);
        Some(wait.min(settings.retry_wait_most))
    }

    /// What was started after the last failure has not failed for long enough.
    fn forget_failures(&mut self) {
        let Some(failed_at) = self.memory.failed_at else { return };
        let wait = self.wait().unwrap_or_default();
        let quiet = SETTLED_AFTER.saturating_add(wait).saturating_add(wait);
        if self.plan.starting == 0 && later(failed_at, quiet) <= self.now {
            self.memory.failures = 0;
            self.memory.failed_at = None;
        }
    }

    /// Asks for the images of the generation; a pool caches them even if it keeps no session ready.
    fn are_images_here(&mut self, is_wanted: bool) -> bool {
        match self.view.images {
            Images::Ready { .. } => {
                self.memory.images_failing_since = None;
                return true;
            }
            Images::Pulling { .. } => {}
            Images::Unknown => {
                self.memory.images_asked_at = Some(self.now);
                self.step(SessionAction::EnsureImages, "its sessions need them");
            }
            Images::Failed { .. } if self.memory.images_asked_at.is_none() => {
                self.memory.images_asked_at = Some(self.now);
                self.are_images_stale = true;
                self.step(SessionAction::EnsureImages, "the pool was written since they could not be had");
            }
            Images::Failed { message, .. } => {
                let since = *self.memory.images_failing_since.get_or_insert(self.now);
                self.memory.last_failure = Some(message.clone());
                let asked_at = self.memory.images_asked_at.unwrap_or(since);
                // one that nobody waits for is tried less and less urgently
                let factor = if is_wanted { 1 } else { 10 };
                let usual = self.view.settings.images_retry.checked_mul(factor).unwrap_or(SignedDuration::MAX);
                // a registry is asked less and less often; looking whether this machine has an image costs nothing
                let is_own = self.view.pool.container.interpreter_image().is_some();
                let slower = if is_own { SignedDuration::ZERO } else { self.now.duration_since(since) / 4 };
                let again = later(asked_at, usual.max(slower.min(IMAGES_RETRY_MOST)));
                if again <= self.now {
                    self.memory.images_asked_at = Some(self.now);
                    self.step(SessionAction::EnsureImages, "they could not be had the last time");
                } else {
                    self.wake(again);
                }
            }
        }
        false
    }
}
