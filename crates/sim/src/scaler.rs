//! The autoscaler: ticks with readings of the world, wakes on held requests.

use cove_reconcile::Plan;
use cove_scaling::{
    Hold, Input, Reading, Reason, ScaleConfig, ScaleState, activate, cadence::next_tick, decide, measure::load_reading,
};
use jiff::SignedDuration;

use crate::{
    app::{Rev, Scaler, timestamp},
    invariants::{Invariant, Mutation},
    sim::{Event, Sim},
};

impl Sim {
    /// Begins and ends autoscalers as revisions are kept or not; says whether a count changed.
    pub(crate) fn list_scaled(&mut self, app: usize, plan: &Plan) -> bool {
        let mut changed = false;
        for rev in 0..self.apps[app].revisions.len() {
            let name = self.apps[app].revisions[rev].revision.name.clone();
            if !plan.kept.contains(&name) {
                let revision = &mut self.apps[app].revisions[rev];
                revision.scaler = None;
                revision.desired = None;
                continue;
            }
            if self.apps[app].revisions[rev].scaler.is_some() {
                continue;
            }
            let replaced = plan.replaces.as_ref().filter(|(newest, _)| *newest == name).map(|(_, old)| old);
            let replaced = replaced.and_then(|old| self.apps[app].position(old));
            let count = replaced.and_then(|at| self.apps[app].revisions[at].desired);
            let mut config = self.scale_config(app, rev);
            if self.mutation == Mutation::ImpatientCoolDown {
                config.settings.cooldown_period = SignedDuration::from_secs(20);
            }
            let state = ScaleState::start(&config, count, timestamp(self.now_ms));
            let revision = &mut self.apps[app].revisions[rev];
            revision.desired = Some(state.current);
            revision.scaler = Some(Scaler { config, state, origin_ms: self.now_ms, next_ms: None });
            self.arm(app, rev);
            changed = true;
        }
        changed
    }

    fn scale_config(&self, app: usize, rev: usize) -> ScaleConfig {
        let scale = &self.apps[app].revisions[rev].revision.template.scale;
        ScaleConfig::from_scale(scale, self.apps[app].app.ingress.is_some(), &self.scaling)
    }

    /// Sets the next tick; a revision that can only be woken by a request needs none.
    pub(crate) fn arm(&mut self, app: usize, rev: usize) {
        let now_ms = self.now_ms;
        let Some(scaler) = &mut self.apps[app].revisions[rev].scaler else { return };
        let sleeps = scaler.state.current == 0 && scaler.config.sleeps_at_zero();
        let origin = timestamp(scaler.origin_ms);
        let next = (!sleeps).then(|| next_tick(&scaler.config, origin, timestamp(now_ms))).flatten();
        scaler.next_ms = next.and_then(|at| u64::try_from(at.as_millisecond()).ok());
        if let Some(at) = scaler.next_ms {
            self.at(at, Event::Tick { app, rev });
        }
    }

    pub(crate) fn tick(&mut self, app: usize, rev: usize) {
        let now_ms = self.now_ms;
        let revision = &mut self.apps[app].revisions[rev];
        let Some(scaler) = revision.scaler.as_mut().filter(|scaler| scaler.next_ms == Some(now_ms)) else { return };
        let window_ms = u64::try_from(scaler.config.settings.load_sampling.as_millis()).unwrap_or(15_000);
        while revision.arrivals.front().is_some_and(|at| *at + window_ms < now_ms) {
            revision.arrivals.pop_front();
        }
        let recent = revision.arrivals.iter().filter(|at| **at < now_ms).count();
        let held = u64::try_from(revision.held.len()).unwrap_or(u64::MAX);
        let in_flight = revision.open + held;
        let reading =
            load_reading(u64::try_from(recent).unwrap_or(u64::MAX), in_flight, scaler.config.settings.load_sampling);
        let readings: Vec<Reading> = scaler.config.rules.iter().map(|_| reading.clone()).collect();
        let input = Input {
            now: timestamp(now_ms),
            readings: &readings,
            existing: revision.existing,
            in_flight,
            hold: Hold::None,
        };
        let decision = decide(&scaler.config, &scaler.state, &input);
        scaler.state.apply(&scaler.config, &decision);
        revision.desired = Some(decision.new);
        let changed = decision.changes();
        let cooled_down = decision.reason == Reason::CooldownElapsed;
        let (limit, most) = (decision.new, revision.revision.template.scale.max_replicas);
        self.stats.decisions += 1;
        if cooled_down {
            self.check_cool_down(app, rev);
        }
        if limit > most {
            self.violated(
                Invariant::ReplicasWithinLimits,
                format!("{limit} replicas were decided, {most} are allowed"),
            );
        }
        self.arm(app, rev);
        if changed {
            self.dirty.push_back(app);
            self.say(|| format!("{} wants {} ({})", name_of(app, rev), decision.new, decision.reason));
        }
    }

    fn check_cool_down(&mut self, app: usize, rev: usize) {
        let revision: &Rev = &self.apps[app].revisions[rev];
        let cool_down_ms = u64::from(revision.revision.template.scale.cooldown_period_secs) * 1000;
        let idle_ms = self.now_ms - revision.last_busy_ms;
        if revision.open > 0 || !revision.held.is_empty() || idle_ms < cool_down_ms {
            let what = format!(
                "{} goes to zero after {idle_ms} ms of quiet, with {} open and {} held",
                revision.revision.name,
                revision.open,
                revision.held.len()
            );
            self.violated(Invariant::ZeroOnlyAfterCoolDown, what);
        }
    }

    /// A request is held: a revision at zero starts at once.
    pub(crate) fn activate(&mut self, app: usize, rev: usize) {
        let now = timestamp(self.now_ms);
        let revision = &mut self.apps[app].revisions[rev];
        let held = u64::try_from(revision.held.len()).unwrap_or(u64::MAX);
        let in_flight = revision.open + held;
        let Some(scaler) = &mut revision.scaler else { return };
        let Some(decision) = activate(&scaler.config, &scaler.state, now, in_flight) else { return };
        scaler.state.apply(&scaler.config, &decision);
        revision.desired = Some(decision.new);
        self.stats.decisions += 1;
        self.arm(app, rev);
        self.dirty.push_back(app);
        self.say(|| format!("{} is woken", name_of(app, rev)));
    }
}

/// How log lines name a revision.
fn name_of(app: usize, rev: usize) -> String {
    format!("app {app} revision {rev}")
}
