//! Replicas that fail again and again are left out for a while, as the app's circuit breaker says.
//!
//! **Invariant:** an answer that is no error takes no lock.

use std::sync::{Arc, atomic::Ordering};

use cove_base::{OnCancel, OnError, TaskKind};
use tokio::time::Instant;

use super::{
    Gate, State,
    replica::{Replica, Slot, Stage},
};
use crate::{
    answer::Refusal,
    resilience::{Breaker, Counters, Ejected, ResilienceCounts, count, may_eject},
};

const RESTORE: TaskKind = TaskKind { name: "ingress-restore", on_error: OnError::Log, on_cancel: OnCancel::Abort };

impl Gate {
    /// What the policy did, to be counted.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What the policy did so far.
    pub(crate) fn resilience(&self) -> ResilienceCounts {
        let out = self.lock().slots.iter().filter(|slot| slot.ejection.until().is_some()).count();
        self.counters.read(out as u64)
    }

    /// Requests and connections that are open now.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// A replica answered, or failed.
    pub(super) fn note(self: &Arc<Self>, replica: &Arc<Replica>, breaker: &Breaker, is_error: bool) {
        if !is_error {
            replica.forget_errors();
        } else if replica.count_error() >= breaker.errors_max {
            self.eject(replica, breaker);
        }
    }

    fn eject(self: &Arc<Self>, replica: &Arc<Replica>, breaker: &Breaker) {
        let now = Instant::now();
        let mut state = self.lock();
        let (out, total) = state.out_of();
        let is_it = |slot: &&mut Slot| Arc::ptr_eq(&slot.replica, replica) && slot.stage == Stage::Ready;
        let Some(slot) = state.slots.iter_mut().find(is_it).filter(|slot| slot.ejection.until().is_none()) else {
            return;
        };
        replica.forget_errors();
        if !may_eject(breaker, out, total) {
            count(&self.counters.ejections_aborted);
            return;
        }
        let span = slot.ejection.eject(breaker, now);
        drop(state);
        count(&self.counters.ejections);
        tracing::info!(revision = %self.key, replica = %replica.name, ?span, "a replica failed again and again; it gets no requests for a while");
        self.shared.ejections.tell(Ejected {
            at: self.shared.clock.now(),
            revision: self.key.clone(),
            replica: replica.name.clone(),
            errors: breaker.errors_max,
            span,
        });
        let (gate, replica) = (Arc::downgrade(self), Arc::clone(replica));
        self.shared.tasks.spawn(RESTORE, async move {
            tokio::time::sleep_until(now + span).await;
            if let Some(gate) = gate.upgrade() {
                gate.restore(&replica);
            }
        });
    }

    fn restore(self: &Arc<Self>, replica: &Arc<Replica>) {
        let mut state = self.lock();
        if let Some(slot) = state.slots.iter_mut().find(|slot| Arc::ptr_eq(&slot.replica, replica)) {
            slot.ejection.restore(Instant::now());
        }
        let grants = state.serve_line(self);
        drop(state);
        grants.send();
    }
}

impl State {
    /// Ready replicas that are left out, and all ready ones.
    fn out_of(&self) -> (usize, usize) {
        let ready = self.slots.iter().filter(|slot| slot.stage == Stage::Ready);
        ready.fold((0, 0), |(out, total), slot| (out + usize::from(slot.ejection.until().is_some()), total + 1))
    }

    /// What a request is told when every ready replica is left out.
    pub(super) fn all_ejected(&self) -> Option<Refusal> {
        let (out, total) = self.out_of();
        if total == 0 || out < total {
            return None;
        }
        let until = self.slots.iter().filter_map(|slot| slot.ejection.until()).min()?;
        let left = until.saturating_duration_since(Instant::now());
        let seconds = u32::try_from(left.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
        Some(Refusal::ReplicasEjected { seconds })
    }

    /// A replica with room, another one than `avoid` if there is one.
    pub(super) fn pick_beside(&self, avoid: Option<u64>) -> Option<usize> {
        let others = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.has_room() && avoid.is_some_and(|avoid| avoid != slot.replica.affinity));
        others.min_by_key(|(_, slot)| (slot.open, slot.order)).map(|(index, _)| index).or_else(|| self.pick())
    }
}
