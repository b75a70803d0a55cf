//! The last replica of an idle revision: frozen when its requests have ended, thawed when one comes.
//!
//! **Invariant:** only a replica that has drained is frozen, and nothing is routed to one before it is seen running again.
//! **Invariant:** a frozen replica holds its memory in the account of the machine, and no CPU.

use cove_model::{Bytes, ReplicaObservation, ReplicaPhase};

use super::{Lists, Work, after};
use crate::{Amount, plan::Action};

impl<'a> Work<'a, '_> {
    /// Sorts a replica that is seen frozen.
    pub(super) fn sort_frozen(&mut self, replica: &'a ReplicaObservation, lists: &mut Lists<'a>) {
        let note = self.memory.notes.entry(replica.name.clone()).or_default();
        note.drain_since = None;
        note.freeze_ordered_at = None;
        if note.stop_ordered_at.is_some() || note.condemned {
            self.stop(replica, "it belongs to an earlier try");
            return;
        }
        let Some(ordered_at) = note.thaw_ordered_at else {
            lists.frozen.push(replica);
            return;
        };
        lists.live.push(replica);
        let again = after(ordered_at, self.view.settings.order_timeout);
        if again <= self.now {
            self.thaw(replica);
        } else {
            self.plan.wake(again);
        }
    }

    /// Takes room for replicas that are only to be thawed: their memory is accounted for already. Gives how many.
    pub(super) fn admit_frozen(&mut self, lists: &Lists<'a>, need: Amount, missing: u32) -> u32 {
        let usable = lists.frozen.iter().filter(|replica| self.is_usable(replica)).count();
        let cpu = Amount { memory: Bytes(0), ..need };
        let warm = u32::try_from(usable).unwrap_or(u32::MAX).min(missing).min(self.plan.room.fits(cpu));
        self.plan.room.take(cpu, warm);
        warm
    }

    /// Thaws up to `most`; gives how many.
    pub(super) fn thaw_some(&mut self, lists: &mut Lists<'a>, most: u32) -> u32 {
        let mut thawed = 0;
        while thawed < most
            && let Some(at) = lists.frozen.iter().position(|replica| self.is_usable(replica))
        {
            let replica = lists.frozen.remove(at);
            self.thaw(replica);
            lists.live.push(replica);
            thawed += 1;
        }
        thawed
    }

    pub(super) fn thaw(&mut self, replica: &ReplicaObservation) {
        self.memory.notes.entry(replica.name.clone()).or_default().thaw_ordered_at = Some(self.now);
        self.plan.wake(after(self.now, self.view.settings.order_timeout));
        let revision = self.revision.revision.name.clone();
        self.plan.step(Action::Thaw { revision, replica: replica.name.clone() }, self.want.reason);
    }

    /// Ends frozen replicas that are not to be kept.
    pub(super) fn settle_frozen(&mut self, lists: &mut Lists<'a>) {
        let frozen = std::mem::take(&mut lists.frozen);
        for replica in frozen {
            if !self.is_usable(replica) {
                self.stop(replica, "it was made with older settings");
            } else if !self.want.keep_frozen || !lists.frozen.is_empty() {
                self.stop(replica, self.reason_to_end());
            } else {
                lists.frozen.push(replica);
            }
        }
    }

    fn reason_to_end(&self) -> &'static str {
        match self.view.cannot_freeze {
            Some(_) if self.want.count == 0 => "a frozen replica cannot be kept now",
            Some(_) | None => self.want.reason,
        }
    }

    /// Whether a drained replica is to be frozen and not ended.
    pub(super) fn may_be_frozen(&self, replica: &ReplicaObservation, lists: &Lists<'a>) -> bool {
        let refused = self.memory.notes.get(&replica.name).is_some_and(|note| note.no_freeze);
        self.want.keep_frozen
            && lists.frozen.is_empty()
            && !refused
            && self.may_return(replica)
            && self.is_usable(replica)
    }

    pub(super) fn freeze(&mut self, replica: &'a ReplicaObservation, lists: &mut Lists<'a>) {
        let note = self.memory.notes.entry(replica.name.clone()).or_default();
        note.freeze_ordered_at = Some(self.now);
        note.thaw_ordered_at = None;
        self.plan.wake(after(self.now, self.view.settings.order_timeout));
        let revision = self.revision.revision.name.clone();
        let action = Action::Freeze { revision, replica: replica.name.clone() };
        self.plan.step(action, "its last request has ended, and it is to wake warm");
        lists.frozen.push(replica);
    }

    /// Whether the order to freeze it is under way; one without effect is given up.
    pub(super) fn is_being_frozen(&mut self, replica: &'a ReplicaObservation, lists: &mut Lists<'a>) -> bool {
        let Some(note) = self.memory.notes.get_mut(&replica.name) else { return false };
        let Some(ordered_at) = note.freeze_ordered_at else { return false };
        let until = after(ordered_at, self.view.settings.order_timeout);
        if until <= self.now || !self.want.keep_frozen {
            note.freeze_ordered_at = None;
            note.no_freeze = true;
            return false;
        }
        self.plan.wake(until);
        lists.frozen.push(replica);
        true
    }

    /// Tells how many stay frozen; one that is only about to be is still counted with the draining ones.
    pub(super) fn count_frozen(&mut self, lists: &Lists<'a>) {
        let seen = lists.frozen.iter().filter(|replica| replica.phase == ReplicaPhase::Frozen).count();
        if seen > 0 {
            self.plan.frozen.push((self.revision.revision.key(), u32::try_from(seen).unwrap_or(u32::MAX)));
        }
    }
}
