//! Brings one revision to its number of replicas and slots: start, make, drain, stop, remove.
//!
//! More are wanted: take back what still drains, thaw, start slots, make new ones, in this order. Fewer are wanted: drain
//! those that are not ready, then the least busy, then the newest; the last one may be frozen instead of ended. A replica
//! of an older restart generation goes when newer ones are ready in its place.
//!
//! **Invariant:** a replica that was ready is stopped only after a drain. **Invariant:** what was ordered and not yet
//! seen counts as there, so a plan made too early never doubles anything.

mod frozen;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cove_model::{ReplicaName, ReplicaObservation, ReplicaPhase};
use jiff::{SignedDuration, Timestamp};

use crate::{
    Amount, AppView, Images, Plan, RevisionView, Short,
    assess::{Port, end_text, takes_requests},
    memory::{AppMemory, RevisionMemory},
    plan::Action,
};

/// What one revision should have.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    pub(crate) count: u32,
    pub(crate) slots: u32,
    /// Keep one replica frozen: none is wanted, and the next request should find it warm.
    pub(crate) keep_frozen: bool,
    /// Change nothing that serves yet: requests may still be on their way.
    pub(crate) keep_serving: bool,
    /// End what runs without a drain.
    pub(crate) at_once: bool,
    pub(crate) port: Port,
    /// Tries to get images rarely: it has failed.
    pub(crate) has_failed: bool,
    pub(crate) reason: &'static str,
}

/// One revision's replicas, sorted by what they are to the planner.
#[derive(Debug, Default)]
struct Lists<'a> {
    /// Started ones of this restart generation that take or will take requests.
    live: Vec<&'a ReplicaObservation>,
    /// The same of older restart generations.
    outdated: Vec<&'a ReplicaObservation>,
    draining: Vec<&'a ReplicaObservation>,
    slots: Vec<&'a ReplicaObservation>,
    frozen: Vec<&'a ReplicaObservation>,
    /// Ordered, not seen yet, started.
    pending_live: u32,
    /// Ordered, not seen yet, slots.
    pending_slots: Vec<ReplicaName>,
}

/// Plans the replicas of one revision; gives the number that exist and are to stay.
pub(crate) fn control(
    view: &AppView<'_>,
    revision: &RevisionView<'_>,
    memory: &mut AppMemory,
    want: &Want,
    now: Timestamp,
    plan: &mut Plan,
) -> u32 {
    let name = &revision.revision.name;
    let mut mine = memory.revisions.remove(name).unwrap_or_default();
    let mut work = Work { view, revision, memory: &mut mine, names: memory, want, now, plan };
    work.forget_notes();
    let mut lists = work.sort();
    let mut have = u32::try_from(lists.live.len()).unwrap_or(u32::MAX).saturating_add(lists.pending_live);
    if have < want.count {
        let fitting = work.admit(&lists, want.count - have);
        have += work.grow(&mut lists, fitting);
    } else if have > want.count && !want.keep_serving {
        have -= work.shrink(&mut lists, have - want.count);
    }
    work.replace_outdated(&mut lists);
    work.settle_frozen(&mut lists);
    for replica in std::mem::take(&mut lists.draining) {
        work.finish_drain(replica, &mut lists);
    }
    work.count_frozen(&lists);
    work.slots(&mut lists);
    if want.port == Port::Unknown && !(lists.live.is_empty() && lists.slots.is_empty()) {
        work.ensure_images("their ports must be known");
    }
    if mine.notes.is_empty() {
        // an emptied map keeps its room
        mine.notes = BTreeMap::new();
    }
    memory.revisions.insert(name.clone(), mine);
    have
}

struct Work<'a, 'b> {
    view: &'b AppView<'a>,
    revision: &'b RevisionView<'a>,
    memory: &'b mut RevisionMemory,
    names: &'b mut AppMemory,
    want: &'b Want,
    now: Timestamp,
    plan: &'b mut Plan,
}

impl<'a> Work<'a, '_> {
    /// Drops notes of replicas that are gone or whose order had no effect.
    fn forget_notes(&mut self) {
        if self.memory.notes.is_empty() {
            return;
        }
        let seen: BTreeSet<&ReplicaName> = self.revision.replicas.iter().map(|replica| &replica.name).collect();
        let (now, timeout) = (self.now, self.view.settings.order_timeout);
        let mut next: Option<Timestamp> = None;
        self.memory.notes.retain(|name, note| {
            if seen.contains(name) {
                note.pending_since = None;
                return true;
            }
            let Some(since) = note.pending_since else { return false };
            let until = after(since, timeout);
            next = Some(next.map_or(until, |next| next.min(until)));
            now < until
        });
        if let Some(next) = next.filter(|next| *next > now) {
            self.plan.wake(next);
        }
    }

    fn sort(&mut self) -> Lists<'a> {
        let mut lists = Lists::default();
        for (name, note) in &self.memory.notes {
            if note.pending_since.is_some() && note.stop_ordered_at.is_none() {
                if note.start_ordered_at.is_some() {
                    lists.pending_live += 1;
                } else {
                    lists.pending_slots.push(name.clone());
                }
            }
        }
        let replicas: &'a [ReplicaObservation] = self.revision.replicas;
        for replica in replicas {
            // of one that ended before this server saw it nobody knows whether that was asked for
            let is_ours = self.memory.notes.contains_key(&replica.name);
            let note = self.memory.notes.entry(replica.name.clone()).or_default();
            match replica.phase {
                ReplicaPhase::Stopped | ReplicaPhase::Failed => {
                    let was_asked =
                        !is_ours || note.stop_ordered_at.is_some() || note.drain_since.is_some() || note.condemned;
                    let counts = !std::mem::replace(&mut note.end_counted, true) && !was_asked;
                    if counts {
                        self.memory.failed(end_text(replica), self.now);
                    }
                    self.remove(replica);
                }
                ReplicaPhase::Stopping => {}
                ReplicaPhase::Frozen => self.sort_frozen(replica, &mut lists),
                ReplicaPhase::Preparing | ReplicaPhase::Prepared | ReplicaPhase::Running => {
                    if note.stop_ordered_at.is_some() || note.condemned {
                        self.stop(replica, "it belongs to an earlier try");
                    } else if note.drain_since.is_some() {
                        lists.draining.push(replica);
                    } else if replica.phase != ReplicaPhase::Running && note.start_ordered_at.is_none() {
                        lists.slots.push(replica);
                    } else {
                        let is_current = replica.restart_generation == self.revision.revision.restart_generation;
                        if is_current { &mut lists.live } else { &mut lists.outdated }.push(replica);
                        self.start_again(replica);
                    }
                }
            }
        }
        lists
    }

    fn remove(&mut self, replica: &ReplicaObservation) {
        let note = self.memory.notes.entry(replica.name.clone()).or_default();
        let again = note.remove_ordered_at.map(|at| after(at, self.view.settings.order_timeout));
        if let Some(again) = again.filter(|again| *again > self.now) {
            self.plan.wake(again);
            return;
        }
        note.remove_ordered_at = Some(self.now);
        self.plan.wake(after(self.now, self.view.settings.order_timeout));
        self.plan.step(Action::Remove { replica: replica.name.clone() }, "it has ended");
    }

    /// Gives a start order again that had no effect.
    fn start_again(&mut self, replica: &ReplicaObservation) {
        let Some(note) = self.memory.notes.get_mut(&replica.name) else { return };
        let Some(ordered_at) = note.start_ordered_at.filter(|_| replica.phase == ReplicaPhase::Prepared) else {
            return;
        };
        let again = after(ordered_at, self.view.settings.order_timeout);
        if again <= self.now {
            note.start_ordered_at = Some(self.now);
            let revision = self.revision.revision.name.clone();
            self.plan.step(Action::Start { revision, replica: replica.name.clone() }, "the first order had no effect");
        } else {
            self.plan.wake(again);
        }
    }

    /// How many of the missing replicas there is room for; notes what is short.
    fn admit(&mut self, lists: &Lists<'a>, missing: u32) -> u32 {
        let need = Amount::of(&self.revision.revision.template);
        let warm = self.admit_frozen(lists, need, missing);
        let missing = missing - warm;
        let fitting = self.plan.room.fits(need).min(missing);
        if fitting < missing {
            let mut room = self.plan.room.clone();
            room.take(need, fitting);
            let message = room.shortage(need).unwrap_or_default();
            let revision = self.revision.revision.name.clone();
            let lacks_memory = room.lacks_memory(need);
            self.plan.short.push(Short { revision, missing: missing - fitting, lacks_memory, message });
            self.ensure_images("they are needed as soon as there is room");
        }
        self.plan.room.take(need, fitting);
        warm + fitting
    }

    /// Gets up to `missing` more replicas going; gives how many.
    fn grow(&mut self, lists: &mut Lists<'a>, missing: u32) -> u32 {
        let mut left = missing;
        while left > 0
            && let Some(at) = lists.draining.iter().position(|replica| self.may_return(replica))
        {
            let replica = lists.draining.remove(at);
            let note = self.memory.notes.entry(replica.name.clone()).or_default();
            note.drain_since = None;
            let was_to_freeze = note.freeze_ordered_at.take().is_some();
            self.plan.step(Action::Undrain { replica: replica.name.clone() }, self.want.reason);
            if was_to_freeze {
                self.thaw(replica);
            }
            lists.live.push(replica);
            left -= 1;
        }
        left -= self.thaw_some(lists, left);
        lists.slots.sort_by_key(|slot| (slot.phase != ReplicaPhase::Prepared, slot.created_at));
        while left > 0
            && let Some(at) = lists.slots.iter().position(|slot| self.is_usable(slot))
        {
            let slot = lists.slots.remove(at);
            self.start(slot.name.clone());
            lists.live.push(slot);
            left -= 1;
        }
        while left > 0
            && let Some(name) = lists.pending_slots.pop()
        {
            self.start(name);
            left -= 1;
        }
        while left > 0
            && let Some(name) = self.prepare(self.want.reason)
        {
            self.start(name);
            left -= 1;
        }
        missing - left
    }

    fn may_return(&self, replica: &ReplicaObservation) -> bool {
        replica.phase == ReplicaPhase::Running
            && replica.is_ready
            && replica.restart_generation == self.revision.revision.restart_generation
    }

    /// Whether a slot was made with what a new one would be made with.
    fn is_usable(&self, slot: &ReplicaObservation) -> bool {
        let made_with = self.memory.notes.get(&slot.name).and_then(|note| note.config_hash);
        slot.restart_generation == self.revision.revision.restart_generation
            && made_with.is_none_or(|hash| hash == self.view.config_hash)
    }

    fn start(&mut self, replica: ReplicaName) {
        self.memory.notes.entry(replica.clone()).or_default().start_ordered_at = Some(self.now);
        let revision = self.revision.revision.name.clone();
        self.plan.step(Action::Start { revision, replica }, self.want.reason);
    }

    /// Orders a new slot, if that is possible now.
    fn prepare(&mut self, reason: &'static str) -> Option<ReplicaName> {
        let Images::Ready { .. } = self.revision.images else {
            self.ensure_images(reason);
            return None;
        };
        if let Port::Impossible(_) = self.want.port {
            return None;
        }
        if let Some(at) = self.memory.may_replace_at(self.view.settings).filter(|at| *at > self.now) {
            self.plan.wake(at);
            return None;
        }
        let revision = self.revision.revision.name.clone();
        let replica = self.names.new_name(&revision);
        let note = self.memory.notes.entry(replica.clone()).or_default();
        note.pending_since = Some(self.now);
        note.config_hash = Some(self.view.config_hash);
        self.plan.wake(after(self.now, self.view.settings.order_timeout));
        let target_port = self.want.port.known();
        self.plan.step(Action::Prepare { revision, replica: replica.clone(), target_port }, reason);
        Some(replica)
    }

    fn ensure_images(&mut self, reason: &'static str) {
        let retry = self.view.settings.images_retry;
        let retry = if self.want.has_failed { retry.checked_mul(10).unwrap_or(SignedDuration::MAX) } else { retry };
        let may_ask = match self.revision.images {
            Images::Ready { .. } | Images::Pulling { .. } => return,
            Images::Failed { .. } if !self.memory.images_asked_now => self.now,
            Images::Unknown | Images::Failed { .. } => {
                self.memory.images_asked_at.map_or(self.now, |asked| after(asked, retry))
            }
        };
        if may_ask > self.now {
            self.plan.wake(may_ask);
            return;
        }
        self.memory.images_asked_at = Some(self.now);
        self.memory.images_asked_now = true;
        self.plan.wake(after(self.now, retry));
        self.plan.step(Action::EnsureImages { revision: self.revision.revision.name.clone() }, reason);
    }

    /// Drains `surplus` replicas; gives how many.
    fn shrink(&mut self, lists: &mut Lists<'a>, surplus: u32) -> u32 {
        let open = self.view.open;
        lists.live.sort_by(|a, b| {
            let busy = |replica: &ReplicaObservation| open.get(&replica.name).copied().unwrap_or(0);
            (a.is_ready.cmp(&b.is_ready)).then(busy(a).cmp(&busy(b))).then(b.created_at.cmp(&a.created_at))
        });
        let count = lists.live.len().min(usize::try_from(surplus).unwrap_or(usize::MAX));
        for replica in lists.live.drain(..count).collect::<Vec<_>>() {
            self.drain(replica, self.want.reason);
            lists.draining.push(replica);
        }
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn drain(&mut self, replica: &ReplicaObservation, reason: &'static str) {
        self.memory.notes.entry(replica.name.clone()).or_default().drain_since = Some(self.now);
        self.plan.step(Action::Drain { replica: replica.name.clone() }, reason);
    }

    /// Lets go of replicas of an older restart generation, as far as newer ones are ready in their place.
    fn replace_outdated(&mut self, lists: &mut Lists<'a>) {
        if lists.outdated.is_empty() || self.want.keep_serving {
            return;
        }
        let ready = |replicas: &[&ReplicaObservation]| replicas.iter().filter(|replica| replica.is_ready).count();
        let wanted = usize::try_from(self.want.count).unwrap_or(usize::MAX);
        let mut may_go = (ready(&lists.live) + ready(&lists.outdated)).saturating_sub(wanted);
        for replica in std::mem::take(&mut lists.outdated) {
            if !replica.is_ready || may_go > 0 {
                may_go = may_go.saturating_sub(usize::from(replica.is_ready));
                self.drain(replica, "a restart was asked for");
                lists.draining.push(replica);
            }
        }
    }

    /// Stops a draining replica when nothing is open any more or its time is over.
    fn finish_drain(&mut self, replica: &'a ReplicaObservation, lists: &mut Lists<'a>) {
        let settings = self.view.settings;
        let since = self.memory.notes.get(&replica.name).and_then(|note| note.drain_since).unwrap_or(self.now);
        let could_serve = replica.ready_at.is_some() && self.view.app.ingress.is_some() && !self.want.at_once;
        if !could_serve {
            self.stop(replica, self.want.reason);
            return;
        }
        let (settled, ends) = (after(since, settings.drain_settle), after(since, settings.drain_period));
        let is_idle = self.view.open.get(&replica.name) == Some(&0);
        if self.is_being_frozen(replica, lists) {
        } else if self.now >= ends {
            self.stop(replica, "its open requests had their time");
        } else if is_idle && self.now >= settled {
            if self.may_be_frozen(replica, lists) {
                self.freeze(replica, lists);
            } else {
                self.stop(replica, "its last request has ended");
            }
        } else {
            self.plan.wake(if is_idle { settled } else { ends });
        }
    }

    fn stop(&mut self, replica: &ReplicaObservation, reason: &'static str) {
        let grace_secs = u64::from(self.revision.revision.template.termination_grace_period_secs);
        let was_started = matches!(replica.phase, ReplicaPhase::Running | ReplicaPhase::Frozen);
        let grace = if was_started { Duration::from_secs(grace_secs) } else { Duration::ZERO };
        let note = self.memory.notes.entry(replica.name.clone()).or_default();
        if let Some(ordered_at) = note.stop_ordered_at {
            let again = after(ordered_at, self.view.settings.order_timeout);
            if again > self.now {
                self.plan.wake(again);
                return;
            }
        }
        note.stop_ordered_at = Some(self.now);
        self.plan.wake(after(self.now, self.view.settings.order_timeout));
        self.plan.step(Action::Stop { replica: replica.name.clone(), grace }, reason);
    }

    /// Makes the number of slots right, once nothing more urgent is under way.
    fn slots(&mut self, lists: &mut Lists<'a>) {
        let wanted = usize::try_from(self.want.slots).unwrap_or(usize::MAX);
        let (mut good, bad): (Vec<_>, Vec<_>) =
            std::mem::take(&mut lists.slots).into_iter().partition(|slot| self.is_usable(slot));
        for slot in bad {
            self.stop(slot, "it was made with older settings");
        }
        while good.len() > wanted
            && let Some(slot) = good.pop()
        {
            self.stop(slot, "no slot is wanted");
        }
        let is_starting = lists.live.iter().any(|replica| !replica.is_ready) || lists.pending_live > 0;
        let mut have = good.len() + lists.pending_slots.len();
        lists.slots = good;
        let orders_starts = self.plan.steps.iter().any(|step| matches!(step.action, Action::Start { .. }));
        // making a slot takes a core for some tens of milliseconds: not while a woken replica gives its first answers
        let newest_start = lists.live.iter().filter_map(|replica| replica.started_at).max();
        if let Some(quiet_at) = newest_start.map(|at| after(at, self.view.settings.slot_refill_after))
            && quiet_at > self.now
            && have < wanted
        {
            self.plan.wake(quiet_at);
            return;
        }
        while have < wanted && !is_starting && !orders_starts && self.prepare("so that it wakes fast").is_some() {
            have += 1;
        }
    }
}

/// Ready replicas and draining ones, for the ingress.
pub(crate) fn endpoints(
    revision: &RevisionView<'_>,
    memory: Option<&RevisionMemory>,
    port: Option<u16>,
) -> cove_traffic::Endpoints {
    let empty = BTreeMap::new();
    let notes = memory.map_or(&empty, |memory| &memory.notes);
    let mut endpoints = cove_traffic::Endpoints::default();
    for replica in revision.replicas {
        let note = notes.get(&replica.name);
        if takes_requests(replica, note) {
            if let (Some(address), Some(port)) = (replica.address, port) {
                let since = replica.started_at.unwrap_or(replica.created_at);
                let order = u64::try_from(since.as_microsecond()).unwrap_or(0);
                let address = (address, port).into();
                endpoints.ready.push(cove_traffic::Endpoint { replica: replica.name.clone(), address, order });
            }
        } else if replica.phase == ReplicaPhase::Stopping
            || replica.phase == ReplicaPhase::Running
                && note.is_some_and(|note| note.drain_since.is_some() || note.stop_ordered_at.is_some())
        {
            endpoints.draining.push(replica.name.clone());
        }
    }
    endpoints.ready.sort_by(|a, b| a.order.cmp(&b.order).then_with(|| a.replica.cmp(&b.replica)));
    endpoints
}

pub(crate) fn after(at: Timestamp, span: SignedDuration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}
