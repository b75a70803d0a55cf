//! What becomes of each session: started, frozen, thawed, ended, forgotten.

use cove_model::{
    ContainerState, ReplicaName, ReplicaObservation, ReplicaPhase, Session, SessionEndReason, SessionEnded,
    SessionLifecycle,
};
use jiff::SignedDuration;

use super::{Planner, SessionAction, SessionView, later};

impl Planner<'_> {
    /// Looks at every session.
    pub(super) fn live(&mut self) {
        for at in 0..self.view.sessions.len() {
            let known = self.view.sessions[at];
            let seen = self.view.seen(&known.session.replica);
            match &known.session.ended {
                Some(ended) => self.bury(&known, ended, seen),
                None => self.live_one(&known, seen),
            }
        }
    }

    /// It has ended: its replica goes, then its row.
    fn bury(&mut self, known: &SessionView<'_>, ended: &SessionEnded, seen: Option<&ReplicaObservation>) {
        let name = &known.session.replica;
        // it takes its room until nothing is left of it
        self.plan.running += u32::from(seen.is_some_and(|seen| !is_over(seen)));
        if !known.is_stored {
            return;
        }
        match seen.map(|seen| seen.phase) {
            None => self.plan.forgotten.push(name.clone()),
            Some(ReplicaPhase::Stopped | ReplicaPhase::Failed) => {
                self.step(SessionAction::Remove(name.clone()), "it has ended");
            }
            Some(ReplicaPhase::Stopping) => {}
            Some(_) => {
                let orders = self.memory.orders.entry(name.clone()).or_default();
                if std::mem::replace(&mut orders.is_stop_asked, true) {
                    return;
                }
                let own = self.view.pool.template.termination_grace_period_secs;
                let own = std::time::Duration::from_secs(u64::from(own));
                let is_kept = known.session.identifier.is_some() && ended.reason != SessionEndReason::Lost;
                let grace = if is_kept { own.min(self.view.settings.grace_most) } else { std::time::Duration::ZERO };
                self.step(SessionAction::Stop { replica: name.clone(), grace }, ended.reason.as_str());
            }
        }
    }

    fn live_one(&mut self, known: &SessionView<'_>, seen: Option<&ReplicaObservation>) {
        let session = known.session;
        if self.view.is_deleted {
            self.plan.running += u32::from(seen.is_some_and(|seen| !is_over(seen)));
            return self.end(session, SessionEndReason::PoolDeleted, None);
        }
        if session.identifier.is_none() && session.generation != self.view.pool.generation {
            self.plan.running += u32::from(seen.is_some_and(|seen| !is_over(seen)));
            return self.end(session, SessionEndReason::Replaced, None);
        }
        let orders = self.memory.orders.entry(session.replica.clone()).or_default();
        orders.was_seen |= seen.is_some();
        let Some(seen) = seen else { return self.unseen(known) };
        if is_over(seen) || has_exited(seen) {
            return self.ended_itself(session, seen);
        }
        orders.was_alive = true;
        if seen.is_ready || seen.phase == ReplicaPhase::Frozen {
            orders.was_ready = true;
            self.ready(known, seen);
        } else {
            self.not_ready(known, seen);
        }
    }

    /// Of an earlier server and gone, or of this one and not at its turn yet.
    fn unseen(&mut self, known: &SessionView<'_>) {
        let session = known.session;
        let orders = self.memory.orders.entry(session.replica.clone()).or_default();
        let ordered_at = orders.started_at;
        if let Some(why) = orders.refusal.clone() {
            return self.failed(session, why);
        }
        if ordered_at.is_none() && session.generation != self.view.pool.generation {
            return self.end(session, SessionEndReason::Replaced, None);
        }
        if orders.was_seen || !known.is_new && ordered_at.is_none() {
            return self.end(session, SessionEndReason::Lost, None);
        }
        self.plan.counts.pending += u32::from(session.identifier.is_none());
        self.plan.counts.executing += u32::from(session.identifier.is_some());
        let Some(ordered_at) = ordered_at else { return };
        self.plan.running += 1;
        self.plan.starting += 1;
        let over = later(ordered_at, self.view.settings.start_deadline);
        if over > self.now {
            self.wake(over);
        } else {
            self.failed(session, "the driver did not make it in time".to_owned());
        }
    }

    /// It can serve, or could if it were not frozen.
    fn ready(&mut self, known: &SessionView<'_>, seen: &ReplicaObservation) {
        let session = known.session;
        if session.generation == self.view.pool.generation {
            self.memory.was_ready = true;
        }
        let is_frozen = seen.phase == ReplicaPhase::Frozen;
        let name = session.replica.clone();
        if session.identifier.is_none() {
            self.plan.counts.ready += 1;
            let orders = self.memory.orders.entry(name.clone()).or_default();
            let asks = !is_frozen && self.view.freezes && !orders.is_freeze_asked && !orders.is_freeze_refused;
            if asks && known.is_stored {
                orders.is_freeze_asked = true;
                self.step(SessionAction::Freeze(name), "it waits for an identifier");
            }
            if is_frozen {
                self.plan.frozen += 1;
            } else {
                self.plan.running += 1;
            }
            return;
        }
        self.plan.running += 1;
        let is_held = self.is_being_suspended(known);
        if !is_held && self.is_due(known) {
            return;
        }
        self.plan.counts.executing += 1;
        if is_held || !known.is_stored {
            return;
        }
        self.let_go_on(&name, is_frozen);
        if !is_frozen && seen.is_ready {
            self.plan.serving.push(name);
        }
    }

    /// Has it thawed, unless that was asked for a moment ago.
    fn let_go_on(&mut self, name: &ReplicaName, is_frozen: bool) {
        let retry = self.view.settings.order_retry;
        let orders = self.memory.orders.entry(name.clone()).or_default();
        // the driver may yet be about to freeze it; a thaw of one that runs changes nothing
        let is_due = std::mem::take(&mut orders.is_freeze_asked) || is_frozen;
        if !is_frozen {
            orders.thaw_asked_at = None;
        }
        let again = orders.thaw_asked_at.map(|at| later(at, retry));
        if let Some(again) = again.filter(|again| *again > self.now) {
            return self.wake(again);
        }
        if is_due {
            orders.thaw_asked_at = Some(self.now);
            self.step(SessionAction::Thaw(name.clone()), "it has an identifier");
            self.wake(later(self.now, retry));
        }
    }

    /// Ends it when its time has come; says so.
    fn is_due(&mut self, known: &SessionView<'_>) -> bool {
        let session = known.session;
        let secs = |secs: u32| SignedDuration::from_secs(i64::from(secs));
        let (due, reason) = match self.view.pool.lifecycle {
            SessionLifecycle::Timed { .. } if known.calls > 0 => return false,
            SessionLifecycle::Timed { cooldown_secs } => {
                (later(known.accessed_at, secs(cooldown_secs)), SessionEndReason::CooledDown)
            }
            SessionLifecycle::OnContainerExit { max_alive_secs } => {
                let since = session.allocated_at.unwrap_or(session.created_at);
                (later(since, secs(max_alive_secs)), SessionEndReason::MaxAlive)
            }
        };
        if due > self.now {
            self.wake(due);
            return false;
        }
        self.end(session, reason, None);
        true
    }

    fn not_ready(&mut self, known: &SessionView<'_>, seen: &ReplicaObservation) {
        let session = known.session;
        self.plan.running += u32::from(seen.phase != ReplicaPhase::Stopping);
        let orders = self.memory.orders.entry(session.replica.clone()).or_default();
        let was_ready = orders.was_ready;
        // adopted half made: the order is given again, which the driver takes as the same one
        let begun = *orders.started_at.get_or_insert(self.now);
        if session.identifier.is_some() {
            self.plan.counts.executing += 1;
        } else {
            self.plan.counts.pending += 1;
        }
        if was_ready {
            // its probe says that it is not ready now: its time goes on
            if session.identifier.is_some() && self.is_due(known) {
                self.plan.counts.executing -= 1;
            }
            return;
        }
        self.plan.starting += 1;
        if seen.phase == ReplicaPhase::Prepared && known.is_stored {
            self.step(SessionAction::Start(session.replica.clone()), "it was to be started");
        }
        let over = later(begun, self.view.settings.start_deadline);
        if over > self.now {
            self.wake(over);
            return;
        }
        let message = format!(
            "it was not ready within {} s: no answer at port {} (or from its probes)",
            self.view.settings.start_deadline.as_secs(),
            self.view.pool.target_port
        );
        self.failed(session, message);
    }

    /// Its processes are gone, or some of them.
    fn ended_itself(&mut self, session: &Session, seen: &ReplicaObservation) {
        self.plan.running += u32::from(!is_over(seen));
        let exit =
            seen.containers.iter().filter_map(|container| container.last_exit.as_ref()).find(|exit| exit.code != 0);
        let exit = exit.or_else(|| seen.containers.iter().find_map(|container| container.last_exit.as_ref()));
        let words = exit.map(|exit| {
            let more = exit.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
            format!("exit code {} ({}){more}", exit.code, exit.reason)
        });
        let was_ready =
            seen.ready_at.is_some() || self.memory.orders.get(&session.replica).is_some_and(|orders| orders.was_ready);
        if was_ready || session.generation != self.view.pool.generation {
            if session.identifier.is_none() {
                // one that nobody used yet should not have ended: the next ones are made more slowly
                self.count_failure(session, words.as_deref().unwrap_or("it ended by itself"));
            }
            let reason = match seen.phase {
                ReplicaPhase::Failed if exit.is_none() => SessionEndReason::Lost,
                _ => SessionEndReason::ContainerExited,
            };
            return self.end(session, reason, words);
        }
        let words = words.unwrap_or_else(|| "its container did not start".to_owned());
        self.failed(session, words);
    }

    /// It never became ready.
    fn failed(&mut self, session: &Session, message: String) {
        self.count_failure(session, &message);
        self.end(session, SessionEndReason::Failed, Some(message));
    }

    fn count_failure(&mut self, session: &Session, message: &str) {
        let orders = self.memory.orders.get(&session.replica);
        // one that ended while no server was there says nothing of those that are made now
        let is_ours = orders.is_some_and(|orders| orders.was_alive || orders.started_at.is_some());
        if is_ours && session.generation == self.view.pool.generation {
            self.memory.failures = self.memory.failures.saturating_add(1);
            self.memory.failed_at = Some(self.now);
            self.memory.last_failure = Some(message.to_owned());
        }
    }

    /// What the driver has and nobody knows is ended.
    pub(super) fn end_unknown(&mut self) {
        for (name, seen) in self.view.replicas {
            if self.view.knows(name) {
                continue;
            }
            let name = *name;
            match seen.phase {
                ReplicaPhase::Stopped | ReplicaPhase::Failed => {
                    self.step(SessionAction::Remove(name.clone()), "it is no session of this pool");
                }
                ReplicaPhase::Stopping => {}
                _ => {
                    let grace = std::time::Duration::ZERO;
                    self.step(SessionAction::Stop { replica: name.clone(), grace }, "it is no session of this pool");
                }
            }
        }
    }
}

fn is_over(seen: &ReplicaObservation) -> bool {
    matches!(seen.phase, ReplicaPhase::Stopped | ReplicaPhase::Failed)
}

/// One of its containers has ended for good.
fn has_exited(seen: &ReplicaObservation) -> bool {
    let ended = |state: &ContainerState| matches!(state, ContainerState::Terminated);
    seen.phase == ReplicaPhase::Running
        && seen.containers.iter().any(|container| !container.is_init && ended(&container.state))
}
