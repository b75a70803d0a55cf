//! Random worlds from a seed: apps, loads, faults, writers and chaos.

use cove_model::{ActiveRevisionsMode, IdleState, ReplicaPhase, Scale, ScaleRule, ScaleRuleKind, TrafficWeight};
use cove_reconcile::{AppMemory, AppPhase, Images, Traffic};
use cove_traffic::Endpoints;

use crate::{
    app::App,
    load::Curve,
    sim::{Event, Faults, Sim},
};

/// How large a random world is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A few apps with everything that can go wrong, for an hour or so.
    Small,
    /// Two hundred apps of ordinary load and a deploy a day each.
    Day,
}

/// Makes the world of a seed.
#[must_use]
pub fn generate(seed: u64, size: Size) -> Sim {
    let mut sim = Sim::new(seed);
    let apps = match size {
        Size::Small => {
            sim.faults = Faults {
                crash_mean_secs: if sim.random.chance(0.5) { 900.0 } else { 0.0 },
                observations_lost: if sim.random.chance(0.3) { 0.2 } else { 0.0 },
                observation_delay_ms: sim.random.between(0, 200),
                long_requests: if sim.random.chance(0.3) { 0.02 } else { 0.0 },
                slots: u32::from(sim.random.chance(0.7)),
            };
            sim.deploy_mean_ms = 300_000.0;
            sim.chaos_mean_ms = 600_000.0;
            sim.random.between(1, 4)
        }
        Size::Day => {
            sim.faults.crash_mean_secs = 12.0 * 3600.0;
            sim.deploy_mean_ms = 24.0 * 3_600_000.0;
            200
        }
    };
    for index in 0..apps {
        let mode = if sim.random.chance(0.2) { ActiveRevisionsMode::Multiple } else { ActiveRevisionsMode::Single };
        let mut scale = sim.random_scale(size);
        if size == Size::Small && index % 2 == 1 {
            scale.idle = IdleState::Frozen;
        }
        let curve = sim.random_curve(size);
        let app = sim.add_app(&format!("app{index}"), mode, "good", scale);
        sim.set_load(app, curve, u64::MAX);
        sim.next_deploy(app);
    }
    if sim.chaos_mean_ms > 0.0 {
        let span = sim.random.exponential(sim.chaos_mean_ms);
        sim.after(span, Event::Chaos);
    }
    sim.plan_dirty();
    sim
}

impl Sim {
    pub(crate) fn add_app(&mut self, name: &str, mode: ActiveRevisionsMode, image: &str, scale: Scale) -> usize {
        let index = self.apps.len();
        let seed = self.random.next();
        let mut app = App::new(name, seed, mode);
        app.deploy("v1", image, scale, self.now_ms);
        self.apps.push(app);
        self.dirty.push_back(index);
        index
    }

    pub(crate) fn set_load(&mut self, app: usize, curve: Curve, until_ms: u64) {
        self.apps[app].curve = curve;
        self.apps[app].curve_until_ms = until_ms;
        self.next_arrival(app);
    }

    fn random_scale(&mut self, size: Size) -> Scale {
        let min_replicas = match (size, self.random.chance(0.7)) {
            (_, true) => 0,
            (Size::Small, false) => u32::try_from(self.random.between(1, 3)).unwrap_or(1),
            (Size::Day, false) => 1,
        };
        let extra = u32::try_from(self.random.between(1, 6)).unwrap_or(1);
        let cooldown_period_secs = if size == Size::Small { 60 } else { 300 };
        let concurrent_requests = u32::try_from(self.random.between(1, 10)).unwrap_or(10);
        let rule = ScaleRule { name: "http".to_owned(), kind: ScaleRuleKind::Http { concurrent_requests } };
        let rules = if self.random.chance(0.5) { vec![rule] } else { Vec::new() };
        Scale { min_replicas, max_replicas: min_replicas + extra, cooldown_period_secs, rules, ..Scale::default() }
    }

    fn random_curve(&mut self, size: Size) -> Curve {
        match (size, self.random.between(0, 9)) {
            (Size::Small, 0..=4) => Curve::Flat(0.02 + self.random.fraction() * 8.0),
            (Size::Small, 5..=6) => Curve::Flat(0.005),
            (Size::Small, 7..=8) => Curve::Herd(20),
            (Size::Small, _) => Curve::Burst(20.0),
            (Size::Day, 0..=5) => Curve::Diurnal(0.02 + self.random.fraction() * 0.3),
            (Size::Day, 6..=7) => Curve::Flat(0.002),
            (Size::Day, 8) => Curve::Burst(10.0),
            (Size::Day, _) => Curve::Herd(10),
        }
    }

    fn next_deploy(&mut self, app: usize) {
        if self.deploy_mean_ms > 0.0 {
            let span = self.random.exponential(self.deploy_mean_ms);
            self.after(span, Event::Deploy { app });
        }
    }

    /// A user does something to an app.
    pub(crate) fn random_write(&mut self, app: usize) {
        if self.apps[app].is_gone || self.apps[app].phase == AppPhase::Deleting {
            return;
        }
        let is_stopped = self.apps[app].app.is_stopped;
        match self.random.between(0, 19) {
            _ if is_stopped && self.random.chance(0.7) => self.set_stopped(app, false),
            0 => self.set_stopped(app, !is_stopped),
            1 => {
                if let Some(rev) = self.apps[app].revisions.iter_mut().rfind(|rev| rev.revision.is_active) {
                    rev.revision.restart_generation += 1;
                }
                self.dirty.push_back(app);
            }
            2 if self.chaos_mean_ms > 0.0 && self.random.chance(0.2) => self.delete(app),
            3 => self.split_traffic(app),
            _ => self.random_deploy(app),
        }
        self.next_deploy(app);
    }

    fn random_deploy(&mut self, app: usize) {
        let image = match self.random.between(0, 19) {
            0 => "missing",
            1 => "crashing",
            2 => "flaky",
            3 => "deaf",
            4 => "slow",
            _ => "good",
        };
        let last = self.apps[app].revisions.last().map(|rev| rev.revision.template.scale.clone());
        let scale = last.unwrap_or_default();
        let suffix = format!("v{}", self.apps[app].revisions.len() + 1);
        let now_ms = self.now_ms;
        self.apps[app].deploy(&suffix, image, scale, now_ms);
        self.say(|| format!("app {app} is written: {suffix} of image {image}"));
        // in multiple mode nobody else would ever deactivate anything
        let active: Vec<usize> = (0..self.apps[app].revisions.len())
            .filter(|at| self.apps[app].revisions[*at].revision.is_active && !self.apps[app].revisions[*at].is_gone)
            .collect();
        if self.apps[app].app.active_revisions_mode == ActiveRevisionsMode::Multiple && active.len() > 3 {
            self.apps[app].revisions[active[0]].revision.is_active = false;
        }
        self.dirty.push_back(app);
    }

    pub(crate) fn set_stopped(&mut self, app: usize, is_stopped: bool) {
        self.apps[app].app.is_stopped = is_stopped;
        self.apps[app].generation += 1;
        self.apps[app].phase = AppPhase::InProgress;
        self.dirty.push_back(app);
    }

    pub(crate) fn delete(&mut self, app: usize) {
        self.apps[app].generation += 1;
        self.apps[app].phase = AppPhase::Deleting;
        self.dirty.push_back(app);
    }

    fn split_traffic(&mut self, app: usize) {
        let names: Vec<String> = self.apps[app]
            .revisions
            .iter()
            .filter(|rev| rev.revision.is_active && !rev.is_gone)
            .map(|rev| rev.revision.name.to_string())
            .collect();
        let Some(ingress) = &mut self.apps[app].app.ingress else { return };
        let first = u32::try_from(self.random.between(0, 100)).unwrap_or(50);
        ingress.traffic = vec![
            TrafficWeight { revision: names.first().cloned(), weight: first, label: None },
            TrafficWeight { revision: None, weight: 100 - first, label: None },
        ];
        self.apps[app].generation += 1;
        self.apps[app].phase = AppPhase::InProgress;
        self.dirty.push_back(app);
    }

    /// Something happens to the whole machine.
    pub(crate) fn chaos(&mut self) {
        if self.random.chance(0.5) {
            self.restart_server();
        } else {
            self.say(|| "half of the replicas are lost".to_owned());
            for app in 0..self.apps.len() {
                for rev in 0..self.apps[app].revisions.len() {
                    for at in 0..self.apps[app].revisions[rev].replicas.len() {
                        let replica = &self.apps[app].revisions[rev].replicas[at];
                        let lives = !matches!(replica.seen.phase, ReplicaPhase::Stopped | ReplicaPhase::Failed);
                        let epoch = replica.epoch;
                        if lives && self.random.chance(0.5) {
                            self.lose(app, rev, epoch);
                        }
                    }
                }
            }
        }
        let span = self.random.exponential(self.chaos_mean_ms);
        self.after(span, Event::Chaos);
    }

    /// The server is killed and comes up again: memory and connections are gone, replicas and the store are not.
    pub(crate) fn restart_server(&mut self) {
        self.say(|| "the server is killed and comes up again".to_owned());
        self.servers += 1;
        for app in 0..self.apps.len() {
            if self.apps[app].is_gone {
                continue;
            }
            let seed = self.random.next();
            self.apps[app].memory = AppMemory::new(seed);
            self.apps[app].traffic = Traffic::default();
            self.apps[app].wake_ms = None;
            for rev in 0..self.apps[app].revisions.len() {
                let mut cut = 0;
                let mut fresh = self.next_epoch;
                let revision = &mut self.apps[app].revisions[rev];
                for replica in &mut revision.replicas {
                    fresh += 1;
                    replica.connections = fresh;
                    cut += std::mem::take(&mut replica.open);
                    replica.drain_since_ms = None;
                }
                self.next_epoch = fresh;
                let revision = &mut self.apps[app].revisions[rev];
                cut += u64::try_from(revision.held.len()).unwrap_or(u64::MAX);
                revision.held.clear();
                revision.open = 0;
                revision.images = Images::Unknown;
                revision.endpoints = Endpoints::default();
                revision.observed = revision.replicas.iter().map(|replica| replica.seen.clone()).collect();
                if let Some(scaler) = &mut revision.scaler {
                    scaler.state.seeded = false;
                }
                self.stats.cut_by_fault += cut;
            }
            self.dirty.push_back(app);
        }
    }
}
