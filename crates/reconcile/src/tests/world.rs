//! A world that does what a plan says: one app, replicas that become ready at once unless told otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use cove_model::{
    ActiveRevisionsMode, Bytes, Container, ContainerApp, ContainerExit, ContainerObservation, ContainerState, Ingress,
    IngressPolicies, MilliCpu, ReplicaName, ReplicaObservation, ReplicaPhase, ResourceId, Resources, Revision,
    RevisionName, RevisionStatus, Scale, Template, Transport,
};
use jiff::{SignedDuration, Timestamp};

use crate::{
    Action, Amount, AppMemory, AppPhase, AppView, Images, Outcome, Plan, Pool, RevisionView, Room, Settings, plan,
};

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) app: ContainerApp,
    pub(super) generation: u64,
    pub(super) phase: AppPhase,
    pub(super) revisions: Vec<(Revision, RevisionStatus)>,
    pub(super) desired: BTreeMap<RevisionName, u32>,
    pub(super) slots: u32,
    pub(super) images: BTreeMap<RevisionName, Images>,
    pub(super) replicas: Vec<ReplicaObservation>,
    pub(super) open: BTreeMap<ReplicaName, u64>,
    pub(super) memory: AppMemory,
    pub(super) now: Timestamp,
    pub(super) config_hash: u64,
    /// Servers that ran so far: each names its replicas in its own way.
    pub(super) servers: u64,
    /// Images that end as given when asked for.
    pub(super) image_fate: BTreeMap<String, Images>,
    /// Images whose replicas never become ready, or crash.
    pub(super) deaf: BTreeSet<String>,
    pub(super) crashing: BTreeSet<String>,
    pub(super) last: Plan,
    /// What the machine has; `None` is without end.
    pub(super) capacity: Option<Amount>,
    pub(super) settings: Settings,
    pub(super) cannot_freeze: Option<&'static str>,
}

pub(super) fn template(image: &str) -> Template {
    let container = Container {
        name: "main".into(),
        image: image.into(),
        command: vec![],
        args: vec![],
        env: vec![],
        resources: Resources { cpu: MilliCpu(250), memory: Bytes(1 << 29), ephemeral_storage: Bytes(1 << 30) },
        probes: vec![],
        volume_mounts: vec![],
    };
    Template {
        init_containers: vec![],
        containers: vec![container],
        volumes: vec![],
        scale: Scale::default(),
        termination_grace_period_secs: 30,
    }
}

impl World {
    pub(super) fn new() -> Self {
        let id =
            |kind: &str, name: &str| ResourceId::resource("s", "g", &format!("Microsoft.App/{kind}"), name).unwrap();
        let ingress = Ingress {
            external: true,
            target_port: Some(80),
            transport: Transport::Auto,
            allow_insecure: true,
            traffic: vec![],
            exposed_port: None,
            additional_ports: Vec::new(),
            custom_domains: Vec::new(),
            policies: IngressPolicies::default(),
        };
        let app = ContainerApp {
            id: id("containerApps", "web"),
            environment: id("managedEnvironments", "env"),
            active_revisions_mode: ActiveRevisionsMode::Single,
            ingress: Some(ingress),
            registries: vec![],
            max_inactive_revisions: 100,
            template: template("sample"),
            is_stopped: false,
            workload_profile: None,
        };
        Self {
            app,
            generation: 0,
            phase: AppPhase::Settled,
            revisions: vec![],
            desired: BTreeMap::new(),
            slots: 0,
            images: BTreeMap::new(),
            replicas: vec![],
            open: BTreeMap::new(),
            memory: AppMemory::new(1),
            now: Timestamp::from_second(1000).unwrap(),
            config_hash: 1,
            servers: 1,
            image_fate: BTreeMap::new(),
            deaf: BTreeSet::new(),
            crashing: BTreeSet::new(),
            last: Plan::default(),
            capacity: None,
            settings: Settings::default(),
            cannot_freeze: None,
        }
    }

    pub(super) fn name(suffix: &str) -> RevisionName {
        RevisionName::of("web", suffix).unwrap()
    }

    /// A write that makes a revision.
    pub(super) fn deploy(&mut self, suffix: &str, image: &str) {
        self.deploy_scaled(suffix, image, Scale::default());
    }

    pub(super) fn deploy_scaled(&mut self, suffix: &str, image: &str, scale: Scale) {
        self.generation += 1;
        self.phase = AppPhase::InProgress;
        let revision = Revision {
            name: Self::name(suffix),
            app: self.app.id.clone(),
            number: u64::try_from(self.revisions.len()).unwrap() + 1,
            template: Template { scale, ..template(image) },
            ingress: None,
            is_active: true,
            created_at: self.now,
            activated_at: self.now,
            restart_generation: 0,
        };
        self.revisions.push((revision, RevisionStatus::default()));
    }

    pub(super) fn want(&mut self, suffix: &str, count: u32) {
        self.desired.insert(Self::name(suffix), count);
    }

    pub(super) fn pass(&mut self, span: SignedDuration) {
        self.now = self.now.checked_add(span).unwrap();
    }

    /// What is left of the machine beside what runs.
    fn room(&self, seen: &[ReplicaObservation]) -> Room {
        let Some(total) = self.capacity else { return Room::default() };
        let need = Amount::of(&template("sample"));
        let running = seen.iter().filter(|replica| replica.phase == ReplicaPhase::Running).count();
        let frozen = seen.iter().filter(|replica| replica.phase == ReplicaPhase::Frozen).count();
        let used = Amount::default().plus(need, u32::try_from(running).unwrap());
        let used = used.plus(Amount { cpu: MilliCpu(0), ..need }, u32::try_from(frozen).unwrap());
        Room { pools: vec![Pool { name: "this machine".to_owned(), total, used }] }
    }

    /// Plans with what is seen, without doing anything.
    pub(super) fn plan_of(&self, seen: &[ReplicaObservation], memory: &mut AppMemory) -> Plan {
        let unknown = Images::Unknown;
        let mine: Vec<Vec<ReplicaObservation>> = self
            .revisions
            .iter()
            .map(|(revision, _)| seen.iter().filter(|r| r.revision.name == revision.name).cloned().collect())
            .collect();
        let views: Vec<RevisionView<'_>> = self
            .revisions
            .iter()
            .zip(&mine)
            .map(|((revision, status), replicas)| RevisionView {
                revision,
                status,
                desired: self.desired.get(&revision.name).copied(),
                slots_wanted: self.slots,
                images: self.images.get(&revision.name).unwrap_or(&unknown),
                replicas,
            })
            .collect();
        let view = AppView {
            app: &self.app,
            generation: self.generation,
            phase: self.phase,
            environment_domain: "env.localhost",
            config_hash: self.config_hash,
            revisions: &views,
            open: &self.open,
            room: &self.room(seen),
            cannot_freeze: self.cannot_freeze,
            settings: &self.settings,
        };
        plan(&view, memory, self.now)
    }

    /// Plans once and does it; gives the steps as text, with replicas named by their order of appearance.
    pub(super) fn round(&mut self) -> String {
        let mut memory = std::mem::take(&mut self.memory);
        let plan = self.plan_of(&self.replicas, &mut memory);
        self.memory = memory;
        for (name, status) in &plan.statuses {
            let (_, old) = self.revisions.iter_mut().find(|(revision, _)| revision.name == *name).unwrap();
            *old = status.clone();
        }
        let mut text = String::new();
        for step in &plan.steps {
            self.apply(&step.action);
            writeln!(text, "{step}").unwrap();
        }
        if let Some(outcome) = &plan.outcome {
            match outcome {
                Outcome::Succeeded => text.push_str("succeeded\n"),
                Outcome::Failed { code, message } => writeln!(text, "{code}: {message}").unwrap(),
                Outcome::Deleted => text.push_str("deleted\n"),
            }
            self.phase = AppPhase::Settled;
        }
        self.last = plan;
        text
    }

    /// Plans until nothing is left to do at this instant.
    pub(super) fn settle(&mut self) -> String {
        let mut text = String::new();
        for _ in 0..30 {
            let before = (self.phase, self.revisions.clone());
            text.push_str(&self.round());
            if self.last.steps.is_empty() && before == (self.phase, self.revisions.clone()) {
                return text;
            }
        }
        panic!("plan-settles: still busy after 30 rounds\n{text}");
    }

    /// Does one action; doing it twice is the same as once.
    pub(super) fn apply(&mut self, action: &Action) {
        let now = self.now;
        match action {
            Action::EnsureImages { revision } => {
                let (found, _) = self.revisions.iter().find(|(found, _)| found.name == *revision).unwrap();
                let image = found.template.containers[0].image.clone();
                let ready = Images::Ready { exposed_ports: [(image.clone(), Some(8080))].into() };
                let fate = self.image_fate.get(&image).cloned().unwrap_or(ready);
                self.images.insert(revision.clone(), fate);
            }
            Action::Prepare { revision, replica, .. } => {
                if self.replicas.iter().any(|seen| seen.name == *replica) {
                    return;
                }
                let (found, _) = self.revisions.iter().find(|(found, _)| found.name == *revision).unwrap();
                self.replicas.push(prepared(found, replica.clone(), now));
            }
            Action::Start { revision, replica } => {
                let (found, _) = self.revisions.iter().find(|(found, _)| found.name == *revision).unwrap();
                let image = &found.template.containers[0].image;
                let (is_deaf, crashes) = (self.deaf.contains(image), self.crashing.contains(image));
                let Some(seen) = self.replicas.iter_mut().find(|seen| seen.name == *replica) else { return };
                if seen.phase != ReplicaPhase::Prepared {
                    return;
                }
                seen.phase = ReplicaPhase::Running;
                seen.started_at = Some(now);
                if crashes {
                    seen.containers[0].restarts = 5;
                    let message = Some("no such file".to_owned());
                    seen.containers[0].last_exit =
                        Some(ContainerExit { code: 127, reason: "Error".into(), message, at: now });
                } else if !is_deaf {
                    seen.is_ready = true;
                    seen.ready_at = Some(now);
                    seen.containers[0].is_ready = true;
                }
            }
            Action::Freeze { replica, .. } => self.turn(replica, ReplicaPhase::Running, ReplicaPhase::Frozen),
            Action::Thaw { replica, .. } => self.turn(replica, ReplicaPhase::Frozen, ReplicaPhase::Running),
            Action::Stop { replica, .. } => {
                if let Some(seen) = self.replicas.iter_mut().find(|seen| seen.name == *replica) {
                    seen.phase = ReplicaPhase::Stopped;
                    seen.is_ready = false;
                }
            }
            Action::Remove { replica } => self.replicas.retain(|seen| seen.name != *replica),
            Action::SetActive { active } => {
                for (revision, _) in &mut self.revisions {
                    revision.is_active = active.contains(&revision.name);
                }
            }
            Action::DeleteRevision { revision } => self.revisions.retain(|(found, _)| found.name != *revision),
            Action::Drain { .. } | Action::Undrain { .. } => {}
        }
    }

    /// Freezes or thaws what is in the phase for it; who was ready is ready again.
    fn turn(&mut self, replica: &ReplicaName, from: ReplicaPhase, to: ReplicaPhase) {
        if let Some(seen) = self.replicas.iter_mut().find(|seen| seen.name == *replica && seen.phase == from) {
            seen.phase = to;
            seen.is_ready = to == ReplicaPhase::Running && seen.ready_at.is_some();
        }
    }

    /// `v1=2 ready, 1 slot; v2=…` as observed.
    pub(super) fn replicas_text(&self) -> String {
        let mut parts = Vec::new();
        for (revision, _) in &self.revisions {
            let count = |f: &dyn Fn(&ReplicaObservation) -> bool| {
                self.replicas.iter().filter(|r| r.revision.name == revision.name && f(r)).count()
            };
            let ready = count(&|r| r.is_ready);
            let starting = count(&|r| r.phase == ReplicaPhase::Running && !r.is_ready);
            let slots = count(&|r| r.phase == ReplicaPhase::Prepared);
            parts.push(format!("{}={ready}+{starting} slots {slots}", revision.name.suffix()));
        }
        parts.join(", ")
    }

    /// The revision that gets most of the app's requests.
    pub(super) fn serving(&self) -> Option<RevisionName> {
        self.last.traffic.weights.iter().max_by_key(|share| share.weight).map(|share| share.revision.name.clone())
    }

    /// Ready endpoints of a revision in the last plan.
    pub(super) fn ready(&self, name: &RevisionName) -> usize {
        let found = self.last.endpoints.iter().find(|(key, _)| key.name == *name);
        found.map_or(0, |(_, endpoints)| endpoints.ready.len())
    }
}

fn prepared(revision: &Revision, name: ReplicaName, now: Timestamp) -> ReplicaObservation {
    ReplicaObservation {
        name,
        revision: revision.key(),
        restart_generation: revision.restart_generation,
        phase: ReplicaPhase::Prepared,
        is_ready: false,
        address: Some([10, 0, 0, 2].into()),
        containers: vec![ContainerObservation {
            name: "main".into(),
            is_init: false,
            state: ContainerState::Waiting { reason: "ContainerCreating".into(), until: None },
            is_ready: false,
            is_started: false,
            restarts: 0,
            last_exit: None,
        }],
        created_at: now,
        started_at: None,
        ready_at: None,
    }
}
