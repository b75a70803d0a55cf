//! Decides when a request of one revision may go to which replica, and counts what is open.
//!
//! One gate per revision. A request is admitted (counted), then leases a replica: the one with the fewest open requests, the
//! oldest on a tie, so that an idle app packs onto its oldest replicas. Without a replica it waits in line and is handed one,
//! first come first served, the moment one has room: by the endpoint change itself, by an answer, or by a timer of the
//! replica's trust. There is nothing to miss and nothing to poll.
//!
//! **Invariant:** all decisions happen under one short lock; `activate`, grants and drops run outside it.
//! **Invariant:** a replica in `draining` gets no lease; its open count is on the `drained` board from then until it leaves.
//! **Invariant:** nobody waits while a replica has room.

mod ejection;
mod replica;
mod ticket;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use cove_base::{Board, Clock, OnCancel, OnError, TaskKind, Tasks};
use cove_model::{ReplicaName, RevisionKey};
use cove_traffic::{EndpointState, Endpoints, RevisionLoad, RevisionTraffic};
use http::StatusCode;
use jiff::Timestamp;
use tokio::sync::oneshot;

pub(crate) use self::{
    replica::Replica,
    ticket::{Lease, Ticket},
};
use self::{
    replica::{Slot, Stage, Trust},
    ticket::Waiting,
};
use crate::{
    answer::Refusal,
    arrivals::Arrivals,
    config::IngressConfig,
    observe::{Ended, Red},
    request_body::Budget,
    resilience::{Counters, Ejections},
    sticky,
};

const TRUST_TIMER: TaskKind = TaskKind { name: "ingress-trust", on_error: OnError::Log, on_cancel: OnCancel::Abort };
const WEBSOCKET_TIMER: TaskKind =
    TaskKind { name: "ingress-websocket-drain", on_error: OnError::Log, on_cancel: OnCancel::Abort };

/// Asks for a first replica; cheap, may be called often.
pub(crate) type Activate = Arc<dyn Fn(&RevisionKey) + Send + Sync>;

/// What all gates of one ingress share.
pub(crate) struct GateShared {
    pub(crate) config: Arc<IngressConfig>,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) activate: Activate,
    /// Open requests of draining replicas.
    pub(crate) drained: Board<ReplicaName, u64>,
    /// Requests held now, over all gates.
    pub(crate) held_total: AtomicUsize,
    /// Room for request bodies that are kept for another try.
    pub(crate) kept_bodies: Arc<Budget>,
    /// Replicas that circuit breakers left out, to be told.
    pub(crate) ejections: Ejections,
    /// Most header fields that an app was allowed so far.
    pub(crate) header_fields_ceiling: AtomicUsize,
}

#[cfg(test)]
impl GateShared {
    /// Defaults, a real clock, and nobody who is woken.
    pub(crate) fn for_tests() -> Self {
        Self {
            config: Arc::default(),
            clock: Clock::real(),
            tasks: Tasks::default(),
            activate: Arc::new(|_| {}),
            drained: Board::default(),
            held_total: 0.into(),
            kept_bodies: Arc::new(Budget::new(0)),
            ejections: Ejections::default(),
            header_fields_ceiling: 0.into(),
        }
    }
}

/// The way into one revision.
pub(crate) struct Gate {
    key: RevisionKey,
    affinity: u64,
    shared: Arc<GateShared>,
    /// Admitted and not yet answered to the end; upgraded connections included.
    open: AtomicU64,
    /// Answers by class of status, 1xx first.
    answers: [AtomicU64; 5],
    counters: Counters,
    /// Made at the end of the first request.
    red: OnceLock<Box<Red>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    endpoint_state: EndpointState,
    slots: Vec<Slot>,
    /// Who waits, by the order of coming.
    line: BTreeMap<u64, oneshot::Sender<Grant>>,
    next_in_line: u64,
    /// Somebody waits because there was no replica at all: the first to be served tells about the wake.
    is_waking: bool,
    arrivals: Arrivals,
    busy: Busy,
    /// Replicas that are on the `drained` board because of us.
    published: Vec<ReplicaName>,
}

/// Time that requests were open, summed over all of them.
#[derive(Default)]
struct Busy {
    open: u64,
    since: Option<Timestamp>,
    total_us: u64,
}

impl Busy {
    /// Counts the time until `now` with what was open. A clock that went back adds nothing.
    fn count(&mut self, now: Timestamp) -> u64 {
        let passed = self.since.map_or(0, |since| u64::try_from(now.duration_since(since).as_micros()).unwrap_or(0));
        self.total_us = self.total_us.saturating_add(passed.saturating_mul(self.open));
        self.since = Some(now);
        self.total_us
    }
}

/// Lines shorter than this may use every place.
const SHORT_LINE: usize = 32;
/// Longer ones leave this part of all places to them: one sixteenth.
const RESERVED_SHARE: usize = 16;

/// Whether one more may wait: the crowds of some apps leave places for others, which are woken like any other time.
fn has_share(line: usize, held_total: usize, held_total_max: usize) -> bool {
    let free = held_total_max.saturating_sub(held_total);
    free > if line < SHORT_LINE { 0 } else { held_total_max / RESERVED_SHARE }
}

/// What a waiting request is told.
type Grant = Result<Lease, Refusal>;

/// Grants decided under the lock, to be sent outside it.
#[must_use]
struct Grants(Vec<(oneshot::Sender<Grant>, Grant)>);

impl Grants {
    fn send(self) {
        for (waiter, grant) in self.0 {
            // a waiter that is gone gives the lease back by dropping it here
            let _gone = waiter.send(grant);
        }
    }
}

impl Gate {
    pub(crate) fn new(key: RevisionKey, shared: Arc<GateShared>) -> Arc<Self> {
        Arc::new(Self {
            affinity: sticky::of_revision(&key),
            key,
            shared,
            open: AtomicU64::new(0),
            answers: Default::default(),
            counters: Counters::default(),
            red: OnceLock::new(),
            state: Mutex::default(),
        })
    }

    /// What an affinity cookie holds of the revision.
    pub(crate) fn affinity(&self) -> u64 {
        self.affinity
    }

    /// The revision.
    pub(crate) fn key(&self) -> &RevisionKey {
        &self.key
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen so far.
    pub(crate) fn load(&self) -> RevisionLoad {
        let mut state = self.lock();
        RevisionLoad {
            open_us_total: state.busy.count(self.shared.clock.now()),
            open: self.open.load(Ordering::Relaxed),
            held: state.line.len() as u64,
            arrivals_total: state.arrivals.total(),
            last_arrival: state.arrivals.last(),
        }
    }

    /// Counts an answer.
    pub(crate) fn count_answer(&self, status: StatusCode) {
        if let Some(counter) = self.answers.get(usize::from(status.as_u16() / 100).wrapping_sub(1)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Answers so far by class of status, 1xx first.
    pub(crate) fn answers(&self) -> [u64; 5] {
        self.answers.each_ref().map(|counter| counter.load(Ordering::Relaxed))
    }

    /// Counts how a request ended.
    pub(crate) fn ended(&self, ended: &Ended) {
        self.red.get_or_init(Box::default).count(ended);
    }

    /// Rate, errors and durations so far; `None` when no request ended yet.
    pub(crate) fn traffic(&self, now_secs: u64) -> Option<RevisionTraffic> {
        let red = self.red.get()?;
        let load = self.load();
        Some(RevisionTraffic { answers: self.answers(), open: load.open, held: load.held, ..red.read(now_secs) })
    }

    /// Arrivals in `[from, to)`.
    pub(crate) fn arrivals_between(&self, from: Timestamp, to: Timestamp) -> u64 {
        self.lock().arrivals.between(from, to)
    }

    /// Nothing is open and no replica is known: the gate can be forgotten.
    pub(crate) fn is_idle(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0 && self.lock().slots.is_empty()
    }

    /// Counts an arrival; it is open until the ticket is dropped.
    pub(crate) fn admit(self: &Arc<Self>, accepted_at: Timestamp) -> Ticket {
        self.open.fetch_add(1, Ordering::Relaxed);
        let now = self.shared.clock.now();
        let mut state = self.lock();
        state.arrivals.record(now);
        state.busy.count(now);
        state.busy.open += 1;
        drop(state);
        Ticket::new(Arc::clone(self), accepted_at)
    }

    /// A request is over.
    fn leave(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        let mut state = self.lock();
        state.busy.count(self.shared.clock.now());
        state.busy.open = state.busy.open.saturating_sub(1);
    }

    /// A replica at once, or a place in line.
    ///
    /// `preferred` is the replica that a cookie names, `avoid` one that just failed.
    fn lease_or_wait(
        self: &Arc<Self>,
        (preferred, avoid): (Option<u64>, Option<u64>),
    ) -> Result<Result<Lease, Waiting>, Refusal> {
        let mut state = self.lock();
        let preferred = preferred.filter(|_| avoid.is_none()).and_then(|replica| state.find(replica));
        if let Some(index) = preferred.or_else(|| state.pick_beside(avoid)) {
            return Ok(Ok(state.grant(index, self)));
        }
        if let Some(refusal) = state.all_ejected() {
            return Err(refusal);
        }
        if !state.has_ready() {
            state.endpoint_state_allows_waiting()?;
        }
        let config = &self.shared.config;
        if state.line.len() >= config.held_per_revision_max {
            return Err(Refusal::HoldQueueFull);
        }
        let held = self.shared.held_total.fetch_add(1, Ordering::Relaxed);
        if !has_share(state.line.len(), held, config.held_total_max) {
            self.shared.held_total.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::HoldQueueFull);
        }
        let place = state.next_in_line;
        state.next_in_line += 1;
        let (sender, receiver) = oneshot::channel();
        state.line.insert(place, sender);
        let needs_replica = !state.has_ready();
        state.is_waking |= needs_replica;
        drop(state);
        // the place in line is taken: from here on an endpoint that comes finds it, so a replica that this call starts
        // cannot be missed
        if needs_replica {
            (self.shared.activate)(&self.key);
        }
        Ok(Err(Waiting::new(Arc::clone(self), place, receiver)))
    }

    /// Asks again for a replica when there is none: the signal is repeated until it is obeyed.
    fn ask_again(&self) {
        if !self.lock().has_ready() {
            (self.shared.activate)(&self.key);
        }
    }

    /// Leaves the line; nothing to do when a grant was sent already.
    fn leave_line(&self, place: u64) {
        let mut state = self.lock();
        if state.line.remove(&place).is_some() {
            state.is_waking &= !state.line.is_empty();
            self.shared.held_total.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A request at a replica ended.
    fn release(self: &Arc<Self>, replica: &Arc<Replica>) {
        let mut state = self.lock();
        let Some(index) = state.slots.iter().position(|slot| Arc::ptr_eq(&slot.replica, replica)) else { return };
        let slot = &mut state.slots[index];
        slot.open -= 1;
        if slot.open == 0 {
            match slot.stage {
                Stage::Ready => {}
                Stage::Draining => {
                    self.shared.drained.set(replica.name.clone(), 0);
                }
                Stage::Away => {
                    state.slots.remove(index);
                }
            }
        }
        let grants = state.serve_line(self);
        drop(state);
        grants.send();
    }

    /// A replica answered: it gets requests without limit from now on.
    fn trust(self: &Arc<Self>, replica: &Arc<Replica>) {
        self.set_trust(replica, Trust::Full);
    }

    /// A replica refused a connection: it gets nothing new for a moment.
    fn suspend(self: &Arc<Self>, replica: &Arc<Replica>) {
        self.set_trust(replica, Trust::Suspended);
        self.trust_timer(replica, self.shared.config.suspend_time);
    }

    fn set_trust(self: &Arc<Self>, replica: &Arc<Replica>, trust: Trust) {
        replica.set_trusted(trust == Trust::Full);
        let mut state = self.lock();
        if let Some(slot) = state.slots.iter_mut().find(|slot| Arc::ptr_eq(&slot.replica, replica)) {
            slot.trust = trust;
        }
        let grants = state.serve_line(self);
        drop(state);
        grants.send();
    }

    /// After `wait`, a suspended replica is tried again and one on trial is trusted: nobody waits for ever for a replica
    /// that is slow to answer.
    fn trust_timer(self: &Arc<Self>, replica: &Arc<Replica>, wait: Duration) {
        let (gate, replica) = (Arc::downgrade(self), Arc::clone(replica));
        self.shared.tasks.spawn(TRUST_TIMER, async move {
            tokio::time::sleep(wait).await;
            let Some(gate) = gate.upgrade() else { return };
            let trust =
                gate.lock().slots.iter().find(|slot| Arc::ptr_eq(&slot.replica, &replica)).map(|slot| slot.trust);
            match trust {
                Some(Trust::Suspended) => {
                    gate.set_trust(&replica, Trust::Trial);
                    gate.trust_timer(&replica, gate.shared.config.trial_time);
                }
                Some(Trust::Trial) => gate.set_trust(&replica, Trust::Full),
                Some(Trust::Full) | None => {}
            }
        });
    }

    /// Takes over what the controller says about the revision's replicas; `None` when it says nothing any more.
    pub(crate) fn update(self: &Arc<Self>, endpoints: Option<&Endpoints>) {
        let nothing = Endpoints::default();
        let endpoints = endpoints.unwrap_or(&nothing);
        let mut state = self.lock();
        state.endpoint_state = endpoints.state.clone();
        let (new, draining) = state.take_over(endpoints, self.shared.config.as_ref());
        self.publish_draining(&mut state, endpoints);
        let mut grants = state.serve_line(self);
        if !state.has_ready()
            && let Err(refusal) = state.endpoint_state_allows_waiting()
        {
            let line = std::mem::take(&mut state.line);
            self.shared.held_total.fetch_sub(line.len(), Ordering::Relaxed);
            grants.0.extend(line.into_values().map(|waiter| (waiter, Err(refusal.clone()))));
        }
        drop(state);
        grants.send();
        for replica in &new {
            self.trust_timer(replica, self.shared.config.trial_time);
        }
        for replica in draining {
            let wait = self.shared.clock.sleep(self.shared.config.websocket_drain_after);
            self.shared.tasks.spawn(WEBSOCKET_TIMER, async move {
                tokio::select! {
                    () = wait => replica.evict(),
                    () = replica.evicted() => {}
                }
            });
        }
    }

    /// Puts the open count of every draining replica on the board, under the lock: no lease can follow.
    fn publish_draining(&self, state: &mut State, endpoints: &Endpoints) {
        for name in std::mem::take(&mut state.published) {
            if !endpoints.draining.contains(&name) {
                self.shared.drained.remove(&name);
            }
        }
        for name in &endpoints.draining {
            let open = state.slots.iter().filter(|slot| &slot.replica.name == name).map(|slot| slot.open).sum();
            self.shared.drained.set(name.clone(), open);
            state.published.push(name.clone());
        }
    }
}

impl State {
    fn has_ready(&self) -> bool {
        self.slots.iter().any(|slot| slot.stage == Stage::Ready)
    }

    fn endpoint_state_allows_waiting(&self) -> Result<(), Refusal> {
        match &self.endpoint_state {
            EndpointState::Hold => Ok(()),
            EndpointState::Failed { reason } => Err(Refusal::RevisionFailed { reason: reason.clone() }),
            EndpointState::Inactive => Err(Refusal::RevisionInactive),
        }
    }

    /// The ready replica that a cookie names. That it has not answered yet does not matter: its clients stay together.
    fn find(&self, affinity: u64) -> Option<usize> {
        let takes = |slot: &Slot| {
            slot.stage == Stage::Ready && slot.trust != Trust::Suspended && slot.ejection.until().is_none()
        };
        self.slots.iter().position(|slot| slot.replica.affinity == affinity && takes(slot))
    }

    /// The ready replica with room that has the fewest open requests, the oldest on a tie.
    fn pick(&self) -> Option<usize> {
        let with_room = self.slots.iter().enumerate().filter(|(_, slot)| slot.has_room());
        with_room.min_by_key(|(_, slot)| (slot.open, slot.order)).map(|(index, _)| index)
    }

    fn grant(&mut self, index: usize, gate: &Arc<Gate>) -> Lease {
        let slot = &mut self.slots[index];
        slot.open += 1;
        Lease::new(Arc::clone(gate), Arc::clone(&slot.replica))
    }

    /// Hands replicas with room to those who wait longest.
    fn serve_line(&mut self, gate: &Arc<Gate>) -> Grants {
        let mut grants = Vec::new();
        while !self.line.is_empty()
            && let Some(index) = self.pick()
            && let Some((_, waiter)) = self.line.pop_first()
        {
            gate.shared.held_total.fetch_sub(1, Ordering::Relaxed);
            if waiter.is_closed() {
                continue;
            }
            let mut lease = self.grant(index, gate);
            lease.woken_at = std::mem::take(&mut self.is_waking).then(Timestamp::now);
            grants.push((waiter, Ok(lease)));
        }
        Grants(grants)
    }

    /// Moves every replica to the stage that `endpoints` says; gives back new replicas and those that begin to drain.
    fn take_over(&mut self, endpoints: &Endpoints, config: &IngressConfig) -> (Vec<Arc<Replica>>, Vec<Arc<Replica>>) {
        let mut began_to_drain = Vec::new();
        self.slots.retain_mut(|slot| {
            let is = &slot.replica;
            let is_ready = endpoints.ready.iter().any(|it| it.replica == is.name && it.address == is.address);
            let stage = if endpoints.draining.contains(&is.name) {
                Stage::Draining
            } else if is_ready {
                Stage::Ready
            } else {
                Stage::Away
            };
            let before = std::mem::replace(&mut slot.stage, stage);
            is.set_draining(stage == Stage::Draining || stage == Stage::Away && before == Stage::Draining);
            if stage != Stage::Ready {
                slot.replica.pool.close();
            }
            if stage == Stage::Draining && before != Stage::Draining {
                began_to_drain.push(Arc::clone(&slot.replica));
            }
            if stage == Stage::Away && before == Stage::Draining {
                // its time is over: what is still open is ended by the replica's stop
                slot.replica.evict();
                return false;
            }
            if stage == Stage::Ready && before != Stage::Ready {
                slot.replica.pool.open();
            }
            stage != Stage::Away || slot.open > 0
        });
        let mut new = Vec::new();
        for endpoint in endpoints.ready.iter().filter(|endpoint| !endpoints.draining.contains(&endpoint.replica)) {
            let known = self
                .slots
                .iter_mut()
                .find(|slot| slot.replica.name == endpoint.replica && slot.replica.address == endpoint.address);
            if let Some(slot) = known {
                slot.order = endpoint.order;
                continue;
            }
            let replica = Replica::new(endpoint, config);
            self.slots.push(Slot::new(Arc::clone(&replica), endpoint.order, config.trial_requests_max));
            new.push(replica);
        }
        (new, began_to_drain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crowds_leave_places_to_others() {
        const MAX: usize = 10_000;
        let mut lines = [0_usize; 12];
        let mut held = 0;
        // twelve crowds, as long as any gets in
        while let Some(line) = lines.iter_mut().find(|line| **line < 1000 && has_share(**line, held, MAX)) {
            *line += 1;
            held += 1;
        }
        assert!(held > 9_000, "places are used: {held}");
        assert!(has_share(0, held + 500, MAX), "other apps have hundreds left: {held}");
        // many small lines use every place
        assert!((0..MAX).all(|held| has_share(held / 500, held, MAX)));
        assert!(!has_share(0, MAX, MAX));
    }

    #[tokio::test]
    async fn a_request_counts_its_time_from_its_admission() {
        let shared = GateShared::for_tests();
        let app = cove_model::ResourceId::resource("s", "g", "Microsoft.App/containerApps", "web").unwrap();
        let name = cove_model::RevisionName::of("web", "v1").unwrap();
        let gate = Gate::new(RevisionKey { app, name }, Arc::new(shared));
        let ticket = gate.admit(Timestamp::now());
        let counted = async {
            while gate.load().open_us_total == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), counted).await.expect("time passes for what is open");
        drop(ticket);
        let then = gate.load();
        assert_eq!((then.open, gate.load().open_us_total), (0, then.open_us_total));
    }

    #[test]
    fn the_time_that_requests_were_open_is_summed() {
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        let mut busy = Busy::default();
        assert_eq!(busy.count(at(1_000)), 0);
        busy.open = 3;
        assert_eq!(busy.count(at(1_500)), 1_500_000);
        busy.open = 1;
        assert_eq!(busy.count(at(1_400)), 1_500_000, "the clock went back");
        assert_eq!(busy.count(at(2_400)), 2_500_000);
    }
}
