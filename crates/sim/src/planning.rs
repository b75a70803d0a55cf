//! Plans apps with the real planner, checks what it says, and does it.

use std::collections::BTreeMap;

use cove_model::{ActiveRevisionsMode, ReplicaName, ReplicaPhase, RevisionProvisioning};
use cove_reconcile::{Action, AppMemory, AppPhase, AppView, Outcome, Plan, RevisionView, Room, plan};
use cove_traffic::AppRouteState;

use crate::{
    app::timestamp,
    invariants::{Invariant, Mutation},
    sim::{Event, Sim},
};

/// Rounds until a plan must have nothing left to order.
const ROUNDS_MAX: u32 = 12;

impl Sim {
    /// Plans what the last event touched, until nothing more is to be ordered.
    pub(crate) fn plan_dirty(&mut self) {
        let mut rounds: BTreeMap<usize, u32> = BTreeMap::new();
        while let Some(app) = self.dirty.pop_front() {
            self.dirty.retain(|other| *other != app);
            if self.apps[app].is_gone || !self.violations.is_empty() {
                continue;
            }
            if self.plan_app(app) {
                self.dirty.push_back(app);
                *rounds.entry(app).or_default() += 1;
            }
            if rounds.get(&app).is_some_and(|rounds| *rounds > ROUNDS_MAX) {
                let name = self.apps[app].app.id.name().to_owned();
                self.violated(Invariant::PlanSettles, format!("{name} still orders after {ROUNDS_MAX} plans"));
            }
        }
    }

    /// Plans once; says whether that ordered anything.
    fn plan_app(&mut self, app: usize) -> bool {
        self.stats.plans += 1;
        if self.mutation == Mutation::NoMemory {
            self.apps[app].memory = AppMemory::new(self.stats.plans);
        }
        let mut memory = std::mem::take(&mut self.apps[app].memory);
        let mut plan = self.ask(app, &mut memory);
        self.apps[app].memory = memory;
        self.mutate(app, &mut plan);
        self.check_counts(app, &plan);
        let before = self.serving(app);
        self.publish(app, &plan);
        self.check_change_of_charge(app, before);
        let has_listed = self.list_scaled(app, &plan);
        let has_ordered = self.order(app, &plan);
        for rev in 0..self.apps[app].revisions.len() {
            if !self.apps[app].revisions[rev].held.is_empty() {
                self.release(app, rev);
            }
        }
        self.tell(app, &plan);
        let wake_ms = plan.wake_at.map(|at| u64::try_from(at.as_millisecond()).unwrap_or(0).max(self.now_ms + 1));
        if wake_ms != self.apps[app].wake_ms {
            self.apps[app].wake_ms = wake_ms;
            if let Some(at) = wake_ms {
                self.at(at, Event::Wake { app });
            }
        }
        has_listed || has_ordered || !plan.statuses.is_empty()
    }

    fn ask(&self, at: usize, memory: &mut AppMemory) -> Plan {
        let app = &self.apps[at];
        let mut open: BTreeMap<ReplicaName, u64> = BTreeMap::new();
        for replica in app.revisions.iter().flat_map(|rev| &rev.replicas) {
            if replica.seen.phase == ReplicaPhase::Running {
                let is_inverted = self.mutation == Mutation::VictimsInverted && replica.drain_since_ms.is_none();
                let count = if is_inverted { 1_000_000 - replica.open } else { replica.open };
                open.insert(replica.seen.name.clone(), count);
            }
        }
        let factor = if self.mutation == Mutation::NoUpperLimit { 2 } else { 1 };
        let mut unlimited = Vec::new();
        if factor > 1 {
            unlimited.extend(app.revisions.iter().map(|rev| rev.revision.clone()));
            unlimited.iter_mut().for_each(|revision| revision.template.scale.max_replicas *= factor);
        }
        let revisions: Vec<RevisionView<'_>> = app
            .revisions
            .iter()
            .enumerate()
            .filter(|(_, rev)| !rev.is_gone)
            .map(|(at, rev)| RevisionView {
                revision: unlimited.get(at).unwrap_or(&rev.revision),
                status: &rev.status,
                desired: rev.desired.map(|count| count * factor),
                slots_wanted: self.faults.slots,
                images: &rev.images,
                replicas: &rev.observed,
            })
            .collect();
        let view = AppView {
            app: &app.app,
            generation: app.generation,
            phase: app.phase,
            environment_domain: "env.localhost",
            config_hash: 1,
            revisions: &revisions,
            open: &open,
            room: &Room::default(),
            cannot_freeze: None,
            settings: &self.settings,
        };
        plan(&view, memory, timestamp(self.now_ms))
    }

    /// Breaks a plan on purpose.
    fn mutate(&self, app: usize, plan: &mut Plan) {
        match self.mutation {
            Mutation::SwitchAtOnce => {
                let key = |name: &cove_model::RevisionName| {
                    self.apps[app].position(name).map(|at| self.apps[app].revisions[at].revision.key())
                };
                if let (Some(newest), [share]) = (plan.kept.last().and_then(key), plan.traffic.weights.as_mut_slice()) {
                    share.revision = newest;
                }
            }
            Mutation::WeightsUnchecked => {
                plan.traffic.weights.first_mut().into_iter().for_each(|share| share.weight += 1);
            }
            Mutation::HopefulStatus => plan.statuses.iter_mut().for_each(|(_, status)| status.ready += 1),
            Mutation::None
            | Mutation::VictimsInverted
            | Mutation::StopInsteadOfDrain
            | Mutation::FreezeInsteadOfDrain
            | Mutation::SendToDraining
            | Mutation::ImpatientCoolDown
            | Mutation::NoMemory
            | Mutation::ForgottenHold
            | Mutation::NoUpperLimit
            | Mutation::StaleOutcome => {}
        }
    }

    fn check_counts(&mut self, app: usize, plan: &Plan) {
        let sum: u32 = plan.traffic.weights.iter().map(|share| share.weight).sum();
        if sum != 100 && !plan.traffic.weights.is_empty() {
            self.violated(Invariant::TrafficSumsTo100, format!("weights add up to {sum}"));
        }
        for (name, status) in &plan.statuses {
            let Some(at) = self.apps[app].position(name) else { continue };
            let seen = &self.apps[app].revisions[at].observed;
            let ready = seen.iter().filter(|replica| replica.is_ready).count();
            if usize::try_from(status.ready).unwrap_or(usize::MAX) > ready
                || usize::try_from(status.replicas).unwrap_or(usize::MAX) > seen.len()
            {
                self.violated(Invariant::StatusNeverAheadOfObserved, format!("{name}: {} ready", status.ready));
            }
        }
        for (key, existing) in &plan.existing {
            let Some(at) = self.apps[app].position(&key.name) else { continue };
            let rev = &mut self.apps[app].revisions[at];
            rev.existing = *existing;
            let most = rev.revision.template.scale.max_replicas;
            let stays = |replica: &&crate::app::Replica| {
                replica.seen.phase == ReplicaPhase::Running
                    && replica.drain_since_ms.is_none()
                    && replica.seen.restart_generation == rev.revision.restart_generation
            };
            let running = u32::try_from(rev.replicas.iter().filter(stays).count()).unwrap_or(u32::MAX);
            let is_lossy = self.faults.observations_lost > 0.0;
            if *existing > most || (running > most && !is_lossy) {
                let what = format!("{key} has {existing} replicas, {running} of them run, {most} are allowed");
                self.violated(Invariant::ReplicasWithinLimits, what);
            }
        }
    }

    /// The revision that gets most requests, and whether it can take them.
    fn serving(&self, app: usize) -> Option<(usize, bool)> {
        let app = &self.apps[app];
        let top = app.traffic.weights.iter().max_by_key(|share| share.weight)?;
        let at = app.position(&top.revision.name)?;
        Some((at, !app.revisions[at].endpoints.ready.is_empty()))
    }

    fn check_change_of_charge(&mut self, app: usize, before: Option<(usize, bool)>) {
        let is_single = self.apps[app].app.active_revisions_mode == ActiveRevisionsMode::Single;
        let (Some((old, true)), Some((new, false))) = (before, self.serving(app)) else { return };
        let is_active = self.apps[app].traffic.state != AppRouteState::Stopped;
        if is_single && old != new && is_active && self.apps[app].revisions[old].revision.is_active {
            let revisions = &self.apps[app].revisions;
            let what = format!("{} gave way to {}", revisions[old].revision.name, revisions[new].revision.name);
            self.violated(Invariant::OldRevisionServesUntilNewReady, what);
        }
    }

    fn publish(&mut self, app: usize, plan: &Plan) {
        for (name, status) in &plan.statuses {
            let Some(at) = self.apps[app].position(name) else { continue };
            let old = std::mem::replace(&mut self.apps[app].revisions[at].status, status.clone());
            if old.provisioning != status.provisioning {
                let message = status.message.clone().map_or_else(String::new, |message| format!(": {message}"));
                self.say(|| format!("{name} is {:?}{message}", status.provisioning));
            }
        }
        for (key, endpoints) in &plan.endpoints {
            if let Some(at) = self.apps[app].position(&key.name) {
                self.apps[app].revisions[at].endpoints = endpoints.clone();
            }
        }
        self.apps[app].traffic = plan.traffic.clone();
    }

    /// Does the steps; says whether there were any.
    fn order(&mut self, app: usize, plan: &Plan) -> bool {
        let mut has_ordered = false;
        for step in &plan.steps {
            self.say(|| step.to_string());
            has_ordered = true;
            match &step.action {
                Action::EnsureImages { revision } => {
                    let Some(rev) = self.apps[app].position(revision) else { continue };
                    self.ensure_images(app, rev);
                }
                Action::Prepare { revision, replica, .. } => {
                    let Some(rev) = self.apps[app].position(revision) else { continue };
                    self.prepare(app, rev, replica);
                }
                Action::Start { revision, replica } => {
                    let Some(rev) = self.apps[app].position(revision) else { continue };
                    self.start(app, rev, replica);
                }
                Action::Drain { replica } => self.drain(app, replica, step.reason),
                Action::Undrain { replica } => {
                    if let Some(rev) = self.owner(app, replica)
                        && let Some(replica) = self.apps[app].revisions[rev].replica(replica)
                    {
                        replica.drain_since_ms = None;
                    }
                }
                Action::Freeze { replica, .. } => {
                    if let Some(rev) = self.owner(app, replica) {
                        self.freeze(app, rev, replica);
                    }
                }
                Action::Thaw { replica, .. } => {
                    if let Some(rev) = self.owner(app, replica) {
                        self.thaw(app, rev, replica);
                    }
                }
                Action::Stop { replica, .. } => {
                    if let Some(rev) = self.owner(app, replica) {
                        self.stop(app, rev, replica);
                    }
                }
                Action::Remove { replica } => {
                    if let Some(rev) = self.owner(app, replica) {
                        self.remove(app, rev, replica);
                    }
                }
                Action::SetActive { active } => {
                    for rev in &mut self.apps[app].revisions {
                        rev.revision.is_active = active.contains(&rev.revision.name);
                    }
                }
                Action::DeleteRevision { revision } => {
                    let Some(rev) = self.apps[app].position(revision) else { continue };
                    self.apps[app].revisions[rev].is_gone = true;
                }
            }
        }
        has_ordered
    }

    fn owner(&self, app: usize, replica: &ReplicaName) -> Option<usize> {
        let has = |rev: &crate::app::Rev| rev.replicas.iter().any(|mine| mine.seen.name == *replica);
        self.apps[app].revisions.iter().position(has)
    }

    fn drain(&mut self, app: usize, name: &ReplicaName, reason: &str) {
        let Some(rev) = self.owner(app, name) else { return };
        let now_ms = self.now_ms;
        let revision = &mut self.apps[app].revisions[rev];
        let Some(replica) = revision.replica(name) else { return };
        replica.drain_since_ms = Some(now_ms);
        let (open, is_ready) = (replica.open, replica.seen.is_ready);
        let stays = revision.replicas.iter().filter(|other| {
            other.seen.phase == ReplicaPhase::Running && other.seen.is_ready && other.drain_since_ms.is_none()
        });
        let least = stays.map(|other| other.open).min();
        if self.mutation == Mutation::StopInsteadOfDrain {
            self.stop(app, rev, name);
        } else if self.mutation == Mutation::FreezeInsteadOfDrain {
            self.freeze(app, rev, name);
        } else if is_ready && reason == "the wanted number of replicas" && least.is_some_and(|least| least < open) {
            let what = format!("{name} with {open} open requests was chosen, another one has fewer");
            self.violated(Invariant::LeastBusyGoesFirst, what);
        }
    }

    fn tell(&mut self, app: usize, plan: &Plan) {
        let Some(outcome) = &plan.outcome else { return };
        let (newest, told) = (self.apps[app].generation, self.apps[app].told_generation);
        let generation = if self.mutation == Mutation::StaleOutcome { newest - 1 } else { newest };
        if generation < told || generation != newest {
            let what = format!("generation {generation} was told after {told}, the newest is {newest}");
            self.violated(Invariant::GenerationMonotone, what);
        }
        self.apps[app].told_generation = generation;
        let name = self.apps[app].app.id.name().to_owned();
        match outcome {
            Outcome::Succeeded => {
                self.apps[app].phase = AppPhase::Settled;
                self.say(|| format!("{name} generation {generation} succeeded"));
            }
            Outcome::Failed { message, .. } => {
                self.apps[app].phase = AppPhase::Settled;
                self.say(|| format!("{name} generation {generation} failed: {message}"));
            }
            Outcome::Deleted => {
                self.apps[app].is_gone = true;
                let left: usize = self.apps[app].revisions.iter().map(|rev| rev.held.len()).sum();
                self.stats.refused += u64::try_from(left).unwrap_or(u64::MAX);
                self.apps[app].revisions.iter_mut().for_each(|rev| rev.held.clear());
                self.say(|| format!("{name} is deleted"));
            }
        }
    }

    /// `name: v1 Provisioned Running 2/2, …` for people.
    #[must_use]
    pub fn show(&self) -> String {
        let mut text = String::new();
        for app in self.apps.iter().filter(|app| !app.is_gone) {
            let mut parts = Vec::new();
            for rev in app.revisions.iter().filter(|rev| !rev.is_gone) {
                if rev.status.provisioning == RevisionProvisioning::Deprovisioned {
                    continue;
                }
                let ready = rev.endpoints.ready.len();
                let running = rev.replicas.iter().filter(|r| r.seen.phase == ReplicaPhase::Running).count();
                let slots = rev.replicas.iter().filter(|r| r.seen.phase == ReplicaPhase::Prepared).count();
                let weights = app.traffic.weights.iter().filter(|share| share.revision.name == rev.revision.name);
                let weight: u32 = weights.map(|share| share.weight).sum();
                parts.push(format!(
                    "{} {:?} {:?} {ready}/{running} slots {slots} weight {weight} held {}",
                    rev.revision.name.suffix(),
                    rev.status.provisioning,
                    rev.status.running,
                    rev.held.len()
                ));
            }
            text.push_str(&format!("{}: {}\n", app.app.id.name(), parts.join("; ")));
        }
        text
    }
}
