//! The host: makes, starts, loses and stops replicas with the latencies of a machine; what it does is observed later.
//!
//! **Invariant:** orders given twice have the effect of one.

use cove_model::{ContainerExit, ContainerState, ReplicaName, ReplicaPhase};
use cove_reconcile::Images;

use crate::{
    app::{Nature, Replica, timestamp},
    invariants::Invariant,
    sim::{Event, HostEvent, Sim},
};

/// Observations that were lost are made up for after this.
const RESYNC_MS: u64 = 10_000;
/// Between SIGTERM and SIGKILL, as the template says.
const GRACE_MS: u64 = 30_000;

impl Sim {
    pub(crate) fn ensure_images(&mut self, app: usize, rev: usize) {
        self.apps[app].revisions[rev].images = Images::Pulling { percent: 0 };
        let span = self.random.between(300, 8_000);
        self.after(span, Event::Pulled { app, rev });
    }

    pub(crate) fn pulled(&mut self, app: usize, rev: usize) {
        let is_unlucky = self.random.chance(0.5);
        let revision = &mut self.apps[app].revisions[rev];
        let image = revision.revision.template.containers[0].image.clone();
        revision.images = match revision.nature() {
            Nature::Missing => Images::Failed { message: format!("image `{image}` was not found"), retryable: false },
            Nature::Flaky if is_unlucky => {
                Images::Failed { message: "the registry did not answer".to_owned(), retryable: true }
            }
            Nature::Good | Nature::Slow | Nature::Flaky | Nature::Crashing | Nature::Deaf => {
                Images::Ready { exposed_ports: [(image, Some(80))].into() }
            }
        };
        self.dirty.push_back(app);
    }

    pub(crate) fn prepare(&mut self, app: usize, rev: usize, name: &ReplicaName) {
        let (epoch, now_ms) = (self.epoch(), self.now_ms);
        let revision = &mut self.apps[app].revisions[rev];
        if revision.replica(name).is_some() {
            return;
        }
        let replica = Replica::new(&revision.revision, name.clone(), epoch, now_ms);
        revision.replicas.push(replica);
        let span = self.random.between(15, 60);
        self.after(span, Event::Host { app, rev, epoch, what: HostEvent::Prepared });
        self.changed(app, rev);
    }

    pub(crate) fn start(&mut self, app: usize, rev: usize, name: &ReplicaName) {
        let Some(replica) = self.apps[app].revisions[rev].replica(name) else { return };
        replica.start_asked = true;
        if replica.seen.phase == ReplicaPhase::Prepared {
            let epoch = replica.epoch;
            self.run(app, rev, epoch);
        }
    }

    fn run(&mut self, app: usize, rev: usize, epoch: u64) {
        let now = timestamp(self.now_ms);
        let nature = self.apps[app].revisions[rev].nature();
        let Some(replica) = self.apps[app].revisions[rev].by_epoch(epoch) else { return };
        replica.seen.phase = ReplicaPhase::Running;
        replica.seen.started_at = Some(now);
        replica.seen.containers[0].state = ContainerState::Running { since: now };
        self.stats.starts += 1;
        self.after_start(app, rev, epoch, nature);
        self.changed(app, rev);
    }

    fn after_start(&mut self, app: usize, rev: usize, epoch: u64, nature: Nature) {
        match nature {
            Nature::Good | Nature::Flaky | Nature::Missing => {
                let span =
                    if self.random.chance(0.02) { self.random.between(100, 3_000) } else { self.random.between(2, 10) };
                self.after(span, Event::Host { app, rev, epoch, what: HostEvent::Ready });
            }
            Nature::Slow => {
                let span = self.random.between(20_000, 90_000);
                self.after(span, Event::Host { app, rev, epoch, what: HostEvent::Ready });
            }
            Nature::Crashing => self.after(500, Event::Host { app, rev, epoch, what: HostEvent::Crash }),
            Nature::Deaf => {}
        }
    }

    pub(crate) fn host(&mut self, app: usize, rev: usize, epoch: u64, what: HostEvent) {
        let now = timestamp(self.now_ms);
        let crash_ms = self.faults.crash_mean_secs * 1000.0;
        let Some(replica) = self.apps[app].revisions[rev].by_epoch(epoch) else { return };
        match (what, replica.seen.phase) {
            (HostEvent::Prepared, ReplicaPhase::Preparing) => {
                replica.seen.phase = ReplicaPhase::Prepared;
                if replica.start_asked {
                    self.run(app, rev, epoch);
                    return;
                }
            }
            (HostEvent::Ready, ReplicaPhase::Running) => {
                replica.seen.is_ready = true;
                replica.seen.ready_at.get_or_insert(now);
                replica.seen.containers[0].is_ready = true;
                replica.starts += 1;
                if crash_ms > 0.0 {
                    let span = self.random.exponential(crash_ms);
                    self.after(span, Event::Host { app, rev, epoch, what: HostEvent::Crash });
                }
            }
            (HostEvent::Crash, ReplicaPhase::Running) => {
                self.crash(app, rev, epoch);
            }
            // a frozen replica ends as a whole
            (HostEvent::Crash, ReplicaPhase::Frozen) => self.end(app, rev, epoch),
            (HostEvent::StopEnds, ReplicaPhase::Stopping) => {
                let open = replica.open;
                self.stats.cut_after_grace += open;
                self.end(app, rev, epoch);
            }
            _ => return,
        }
        self.changed(app, rev);
    }

    /// A container ends by itself: half of the time the whole replica goes, else it is restarted with growing waits.
    fn crash(&mut self, app: usize, rev: usize, epoch: u64) {
        let now = timestamp(self.now_ms);
        let nature = self.apps[app].revisions[rev].nature();
        let is_lost = nature != Nature::Crashing && self.random.chance(0.5);
        let new_epoch = self.epoch();
        let Some(replica) = self.apps[app].revisions[rev].by_epoch(epoch) else { return };
        let open = std::mem::take(&mut replica.open);
        (replica.epoch, replica.connections) = (new_epoch, new_epoch);
        replica.seen.is_ready = false;
        let container = &mut replica.seen.containers[0];
        container.is_ready = false;
        container.last_exit = Some(ContainerExit { code: 1, reason: "Error".into(), message: None, at: now });
        if is_lost {
            replica.seen.phase = ReplicaPhase::Stopped;
        } else {
            let wait = 10_000_u64 << container.restarts.min(5);
            container.restarts += 1;
            container.state = ContainerState::Waiting { reason: "CrashLoopBackOff".into(), until: None };
            let what = if nature == Nature::Crashing { HostEvent::Crash } else { HostEvent::Ready };
            self.after(wait, Event::Host { app, rev, epoch: new_epoch, what });
        }
        self.apps[app].revisions[rev].open -= open;
        self.stats.cut_by_fault += open;
        self.say(|| format!("a replica crashed with {open} open requests"));
    }

    /// A machine fault: the replica is gone, whatever it did.
    pub(crate) fn lose(&mut self, app: usize, rev: usize, epoch: u64) {
        let Some(replica) = self.apps[app].revisions[rev].by_epoch(epoch) else { return };
        let open = replica.open;
        self.stats.cut_by_fault += open;
        self.end(app, rev, epoch);
        self.changed(app, rev);
    }

    pub(crate) fn stop(&mut self, app: usize, rev: usize, name: &ReplicaName) {
        let now_ms = self.now_ms;
        let period_ms = u64::try_from(self.settings.drain_period.as_millis()).unwrap_or(u64::MAX);
        let is_deleting = self.apps[app].phase == cove_reconcile::AppPhase::Deleting;
        let Some(replica) = self.apps[app].revisions[rev].replica(name) else { return };
        let (epoch, open, drained) = (replica.epoch, replica.open, replica.drain_since_ms);
        match replica.seen.phase {
            ReplicaPhase::Preparing | ReplicaPhase::Prepared => {
                self.end(app, rev, epoch);
                self.changed(app, rev);
                return;
            }
            ReplicaPhase::Stopping | ReplicaPhase::Stopped | ReplicaPhase::Failed => return,
            ReplicaPhase::Running | ReplicaPhase::Frozen => {}
        }
        replica.seen.phase = ReplicaPhase::Stopping;
        replica.seen.is_ready = false;
        let had_its_time = drained.is_some_and(|since| now_ms - since >= period_ms);
        if open > 0 && !had_its_time && !is_deleting {
            let what = format!("{name} was stopped with {open} open requests before its drain period was over");
            self.violated(Invariant::NoRequestDroppedWhileReady, what);
        }
        let span = if open == 0 { 5 } else { GRACE_MS };
        self.after(span, Event::Host { app, rev, epoch, what: HostEvent::StopEnds });
        self.changed(app, rev);
    }

    pub(crate) fn freeze(&mut self, app: usize, rev: usize, name: &ReplicaName) {
        let Some(replica) = self.apps[app].revisions[rev].replica(name) else { return };
        if replica.seen.phase != ReplicaPhase::Running {
            return;
        }
        let open = replica.open;
        replica.seen.phase = ReplicaPhase::Frozen;
        replica.seen.is_ready = false;
        replica.drain_since_ms = None;
        self.stats.freezes += 1;
        if open > 0 {
            let what = format!("{name} was frozen with {open} open requests");
            self.violated(Invariant::NoRequestDroppedWhileReady, what);
        }
        self.changed(app, rev);
    }

    pub(crate) fn thaw(&mut self, app: usize, rev: usize, name: &ReplicaName) {
        let Some(replica) = self.apps[app].revisions[rev].replica(name) else { return };
        if replica.seen.phase == ReplicaPhase::Frozen {
            replica.seen.phase = ReplicaPhase::Running;
            replica.seen.is_ready = replica.seen.ready_at.is_some();
            self.changed(app, rev);
        }
    }

    /// Nothing runs any more.
    pub(crate) fn end(&mut self, app: usize, rev: usize, epoch: u64) {
        let new_epoch = self.epoch();
        let revision = &mut self.apps[app].revisions[rev];
        let Some(replica) = revision.by_epoch(epoch) else { return };
        replica.seen.phase = ReplicaPhase::Stopped;
        replica.seen.is_ready = false;
        (replica.epoch, replica.connections) = (new_epoch, new_epoch);
        let open = std::mem::take(&mut replica.open);
        revision.open -= open;
    }

    pub(crate) fn remove(&mut self, app: usize, rev: usize, name: &ReplicaName) {
        self.apps[app].revisions[rev].replicas.retain(|replica| replica.seen.name != *name);
        self.changed(app, rev);
    }

    /// What changed is observed a little later, or much later.
    pub(crate) fn changed(&mut self, app: usize, rev: usize) {
        if self.faults.observations_lost > 0.0 && self.random.chance(self.faults.observations_lost) {
            self.after(RESYNC_MS, Event::Observe { app, rev });
            return;
        }
        let span = self.random.between(0, self.faults.observation_delay_ms);
        self.after(span, Event::Observe { app, rev });
    }

    pub(crate) fn observe(&mut self, app: usize, rev: usize) {
        let revision = &mut self.apps[app].revisions[rev];
        let is_same = revision.observed.len() == revision.replicas.len()
            && revision.observed.iter().zip(&revision.replicas).all(|(seen, replica)| *seen == replica.seen);
        if !is_same {
            revision.observed = revision.replicas.iter().map(|replica| replica.seen.clone()).collect();
            self.dirty.push_back(app);
        }
    }
}
