//! The ingress: chooses a revision and a replica, holds what nobody can take yet, counts what is open.

use cove_model::ReplicaPhase;
use cove_traffic::{AppRouteState, EndpointState};

use crate::{
    invariants::{Invariant, Mutation},
    sim::{Event, Sim},
};

/// Longest a request is held.
pub(crate) const HOLD_MAX_MS: u64 = 240_000;

impl Sim {
    pub(crate) fn arrive(&mut self, app: usize, count: u32) {
        if self.apps[app].is_gone || self.now_ms > self.apps[app].curve_until_ms {
            return;
        }
        for _ in 0..count {
            self.request(app);
        }
        self.next_arrival(app);
    }

    pub(crate) fn next_arrival(&mut self, app: usize) {
        let curve = self.apps[app].curve;
        if let Some(next) = curve.next(self.now_ms, &mut self.random) {
            self.at(next.at_ms, Event::Arrive { app, count: next.count });
        }
    }

    /// One request to an app's own host.
    pub(crate) fn request(&mut self, app: usize) {
        self.stats.arrived += 1;
        let traffic = &self.apps[app].traffic;
        let serves = matches!(traffic.state, AppRouteState::Active | AppRouteState::Failed { .. });
        let total: u64 = traffic.weights.iter().map(|share| u64::from(share.weight)).sum();
        if !serves || total == 0 {
            self.refuse(app, "no route");
            return;
        }
        match self.route(app) {
            Some(rev) => self.dispatch(app, rev),
            None => self.refuse(app, "the revision is gone"),
        }
    }

    /// The revision for a request, by weight.
    fn route(&mut self, app: usize) -> Option<usize> {
        let weights = &self.apps[app].traffic.weights;
        let total: u64 = weights.iter().map(|share| u64::from(share.weight)).sum();
        let mut point = self.random.between(0, total.checked_sub(1)?);
        for share in &self.apps[app].traffic.weights {
            if point < u64::from(share.weight) {
                return self.apps[app].position(&share.revision.name);
            }
            point -= u64::from(share.weight);
        }
        None
    }

    /// A held request whose revision became inactive is routed anew; it arrives there now, its deadline stays.
    fn hold_elsewhere(&mut self, app: usize, rev: usize, since: u64) {
        let revision = &mut self.apps[app].revisions[rev];
        let at = revision.held.partition_point(|other| *other <= since);
        revision.held.insert(at, since);
        let (now_ms, deadline_ms) = (self.now_ms, since + HOLD_MAX_MS);
        let revision = &mut self.apps[app].revisions[rev];
        revision.arrivals.push_back(now_ms);
        revision.last_busy_ms = now_ms;
        self.at(deadline_ms, Event::Deadline { app, rev });
        self.activate(app, rev);
        self.dirty.push_back(app);
    }

    fn refuse(&mut self, app: usize, why: &str) {
        self.stats.refused += 1;
        let is_stopped = self.apps[app].traffic.state == AppRouteState::Stopped;
        let serves = self.apps[app].revisions.iter().any(|rev| !rev.is_gone && !rev.endpoints.ready.is_empty());
        if serves && !is_stopped && self.apps[app].traffic.is_routed {
            let what = format!("a request of {} was refused: {why}", self.apps[app].app.id.name());
            self.violated(Invariant::NoRequestDroppedWhileReady, what);
        }
    }

    fn dispatch(&mut self, app: usize, rev: usize) {
        let now_ms = self.now_ms;
        let revision = &mut self.apps[app].revisions[rev];
        revision.arrivals.push_back(now_ms);
        revision.last_busy_ms = now_ms;
        if self.serve(app, rev) {
            return;
        }
        let revision = &mut self.apps[app].revisions[rev];
        match revision.endpoints.state {
            EndpointState::Hold => {
                revision.held.push_back(now_ms);
                self.stats.held += 1;
                if self.mutation == Mutation::ForgottenHold {
                    return;
                }
                self.after(HOLD_MAX_MS, Event::Deadline { app, rev });
                self.activate(app, rev);
            }
            EndpointState::Failed { .. } => self.refuse_of(app, "the revision has failed"),
            EndpointState::Inactive => self.refuse(app, "the revision is inactive"),
        }
    }

    /// A failed revision answers 503 even if another one of the app is ready: the weights sent it there.
    fn refuse_of(&mut self, app: usize, why: &str) {
        let is_single = self.apps[app].app.active_revisions_mode == cove_model::ActiveRevisionsMode::Single;
        if is_single {
            self.refuse(app, why);
        } else {
            self.stats.refused += 1;
        }
    }

    /// Gives one request to the least busy replica that takes it.
    fn serve(&mut self, app: usize, rev: usize) -> bool {
        let is_long = self.faults.long_requests > 0.0 && self.random.chance(self.faults.long_requests);
        let mean_ms = if is_long { 40_000.0 } else { 150.0 };
        let span = self.random.exponential(mean_ms);
        let revision = &mut self.apps[app].revisions[rev];
        let to_draining = self.mutation == Mutation::SendToDraining && !revision.endpoints.draining.is_empty();
        let chosen = {
            let endpoints = &revision.endpoints;
            let takes = |name: &cove_model::ReplicaName| {
                if to_draining {
                    endpoints.draining.contains(name)
                } else {
                    endpoints.ready.iter().any(|endpoint| endpoint.replica == *name)
                }
            };
            // a connection to a replica that is gone but still listed fails, and another one is tried
            let lives = |phase| matches!(phase, ReplicaPhase::Running | ReplicaPhase::Stopping);
            let able = revision.replicas.iter_mut().filter(|replica| {
                lives(replica.seen.phase) && replica.seen.ready_at.is_some() && takes(&replica.seen.name)
            });
            able.filter(|replica| replica.seen.is_ready || replica.seen.phase == ReplicaPhase::Stopping)
                .min_by_key(|replica| replica.open)
        };
        let Some(replica) = chosen else { return false };
        replica.open += 1;
        let connections = replica.connections;
        let is_leaving = replica.drain_since_ms.is_some() || replica.seen.phase == ReplicaPhase::Stopping;
        let name = replica.seen.name.clone();
        revision.open += 1;
        if is_leaving {
            self.violated(Invariant::DrainedGetsNoNewRequest, format!("{name} got a request while it drains"));
        }
        self.after(span, Event::Finish { app, rev, connections });
        true
    }

    pub(crate) fn finish(&mut self, app: usize, rev: usize, connections: u64) {
        let now_ms = self.now_ms;
        let revision = &mut self.apps[app].revisions[rev];
        let Some(replica) = revision.by_connections(connections).filter(|replica| replica.open > 0) else { return };
        replica.open -= 1;
        let epoch = replica.epoch;
        let is_idle = replica.open == 0;
        let (drains, stops) = (replica.drain_since_ms.is_some(), replica.seen.phase == ReplicaPhase::Stopping);
        revision.open -= 1;
        revision.last_busy_ms = now_ms;
        self.stats.answered += 1;
        if is_idle && stops {
            self.end(app, rev, epoch);
            self.changed(app, rev);
        } else if is_idle && drains {
            self.dirty.push_back(app);
        }
    }

    pub(crate) fn deadline(&mut self, app: usize, rev: usize) {
        let held = &mut self.apps[app].revisions[rev].held;
        while held.front().is_some_and(|at| *at + HOLD_MAX_MS <= self.now_ms) {
            held.pop_front();
            self.stats.timed_out += 1;
        }
    }

    /// Sends held requests on, or refuses them when their revision has failed.
    pub(crate) fn release(&mut self, app: usize, rev: usize) {
        while !self.apps[app].revisions[rev].held.is_empty() {
            if self.serve(app, rev) {
                self.apps[app].revisions[rev].held.pop_front();
                continue;
            }
            let revision = &mut self.apps[app].revisions[rev];
            if revision.endpoints.state == EndpointState::Hold {
                if self.mutation != Mutation::ForgottenHold {
                    self.activate(app, rev);
                }
                return;
            }
            let is_inactive = revision.endpoints.state == EndpointState::Inactive;
            let Some(since) = revision.held.pop_front() else { return };
            match self.route(app).filter(|other| *other != rev && is_inactive) {
                Some(other) => self.hold_elsewhere(app, other, since),
                None => self.refuse_of(app, "its revision cannot serve any more"),
            }
        }
    }
}
