//! The things of the world: apps, revisions, replicas as they truly are.

use std::collections::VecDeque;

use cove_model::{
    ActiveRevisionsMode, Bytes, Container, ContainerApp, ContainerObservation, ContainerState, Ingress,
    IngressPolicies, MilliCpu, ReplicaName, ReplicaObservation, ReplicaPhase, ResourceId, Resources, Revision,
    RevisionName, RevisionStatus, Scale, Template, Transport,
};
use cove_reconcile::{AppMemory, AppPhase, Images, Traffic};
use cove_scaling::{ScaleConfig, ScaleState};
use cove_traffic::Endpoints;
use jiff::Timestamp;

use crate::load::Curve;

/// The world begins at the epoch.
pub(crate) fn timestamp(at_ms: u64) -> Timestamp {
    Timestamp::from_millisecond(i64::try_from(at_ms).unwrap_or(i64::MAX)).unwrap_or(Timestamp::MAX)
}

/// One app with its load.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) app: ContainerApp,
    pub(crate) generation: u64,
    pub(crate) told_generation: u64,
    pub(crate) phase: AppPhase,
    pub(crate) revisions: Vec<Rev>,
    pub(crate) memory: AppMemory,
    pub(crate) traffic: Traffic,
    pub(crate) curve: Curve,
    pub(crate) curve_until_ms: u64,
    /// When its planner asked to be woken.
    pub(crate) wake_ms: Option<u64>,
    pub(crate) is_gone: bool,
}

/// One revision.
#[derive(Clone, Debug)]
pub(crate) struct Rev {
    pub(crate) revision: Revision,
    pub(crate) status: RevisionStatus,
    pub(crate) desired: Option<u32>,
    pub(crate) images: Images,
    pub(crate) scaler: Option<Scaler>,
    /// What the planner sees.
    pub(crate) observed: Vec<ReplicaObservation>,
    /// What is.
    pub(crate) replicas: Vec<Replica>,
    pub(crate) endpoints: Endpoints,
    /// When the held requests arrived, oldest first.
    pub(crate) held: VecDeque<u64>,
    /// Arrivals of the last 15 s.
    pub(crate) arrivals: VecDeque<u64>,
    pub(crate) open: u64,
    pub(crate) last_busy_ms: u64,
    pub(crate) existing: u32,
    pub(crate) is_gone: bool,
}

/// The autoscaler of one revision.
#[derive(Clone, Debug)]
pub(crate) struct Scaler {
    pub(crate) config: ScaleConfig,
    pub(crate) state: ScaleState,
    pub(crate) origin_ms: u64,
    pub(crate) next_ms: Option<u64>,
}

/// A replica as it truly is.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub(crate) seen: ReplicaObservation,
    /// Changes when its process does: what was under way then is void.
    pub(crate) epoch: u64,
    /// Changes when its connections break: requests that were open then are void.
    pub(crate) connections: u64,
    pub(crate) open: u64,
    pub(crate) start_asked: bool,
    pub(crate) drain_since_ms: Option<u64>,
    pub(crate) starts: u32,
}

/// What an image does when it is run; by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    Good,
    Slow,
    Missing,
    Flaky,
    Crashing,
    Deaf,
}

impl Nature {
    pub(crate) fn of(image: &str) -> Self {
        match image {
            "slow" => Self::Slow,
            "missing" => Self::Missing,
            "flaky" => Self::Flaky,
            "crashing" => Self::Crashing,
            "deaf" => Self::Deaf,
            _ => Self::Good,
        }
    }
}

impl App {
    pub(crate) fn new(name: &str, seed: u64, mode: ActiveRevisionsMode) -> Self {
        let id = |kind: &str, name: &str| {
            ResourceId::resource("sim", "sim", &format!("Microsoft.App/{kind}"), name)
                .expect("names of the world are plain")
        };
        let ingress = Ingress {
            external: true,
            target_port: Some(80),
            transport: Transport::Auto,
            allow_insecure: true,
            traffic: Vec::new(),
            exposed_port: None,
            additional_ports: Vec::new(),
            custom_domains: Vec::new(),
            policies: IngressPolicies::default(),
        };
        let app = ContainerApp {
            id: id("containerApps", name),
            environment: id("managedEnvironments", "env"),
            active_revisions_mode: mode,
            ingress: Some(ingress),
            registries: Vec::new(),
            max_inactive_revisions: 5,
            template: template("good", Scale::default()),
            is_stopped: false,
            workload_profile: None,
        };
        Self {
            app,
            generation: 0,
            told_generation: 0,
            phase: AppPhase::Settled,
            revisions: Vec::new(),
            memory: AppMemory::new(seed),
            traffic: Traffic::default(),
            curve: Curve::Silent,
            curve_until_ms: u64::MAX,
            wake_ms: None,
            is_gone: false,
        }
    }

    /// A write that makes a revision.
    pub(crate) fn deploy(&mut self, suffix: &str, image: &str, scale: Scale, now_ms: u64) {
        self.generation += 1;
        self.phase = AppPhase::InProgress;
        let now = timestamp(now_ms);
        let revision = Revision {
            name: RevisionName::of(self.app.id.name(), suffix).expect("names of the world are plain"),
            app: self.app.id.clone(),
            number: u64::try_from(self.revisions.len()).unwrap_or(u64::MAX) + 1,
            template: template(image, scale),
            ingress: None,
            is_active: true,
            created_at: now,
            activated_at: now,
            restart_generation: 0,
        };
        self.revisions.push(Rev {
            revision,
            status: RevisionStatus::default(),
            desired: None,
            images: Images::Unknown,
            scaler: None,
            observed: Vec::new(),
            replicas: Vec::new(),
            endpoints: Endpoints::default(),
            held: VecDeque::new(),
            arrivals: VecDeque::new(),
            open: 0,
            last_busy_ms: now_ms,
            existing: 0,
            is_gone: false,
        });
    }

    pub(crate) fn position(&self, name: &RevisionName) -> Option<usize> {
        self.revisions.iter().position(|rev| !rev.is_gone && rev.revision.name == *name)
    }
}

impl Rev {
    pub(crate) fn nature(&self) -> Nature {
        Nature::of(&self.revision.template.containers[0].image)
    }

    pub(crate) fn replica(&mut self, name: &ReplicaName) -> Option<&mut Replica> {
        self.replicas.iter_mut().find(|replica| replica.seen.name == *name)
    }

    pub(crate) fn by_connections(&mut self, connections: u64) -> Option<&mut Replica> {
        self.replicas.iter_mut().find(|replica| replica.connections == connections)
    }

    pub(crate) fn by_epoch(&mut self, epoch: u64) -> Option<&mut Replica> {
        self.replicas.iter_mut().find(|replica| replica.epoch == epoch)
    }
}

impl Replica {
    pub(crate) fn new(revision: &Revision, name: ReplicaName, epoch: u64, now_ms: u64) -> Self {
        let seen = ReplicaObservation {
            name,
            revision: revision.key(),
            restart_generation: revision.restart_generation,
            phase: ReplicaPhase::Preparing,
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
            created_at: timestamp(now_ms),
            started_at: None,
            ready_at: None,
        };
        Self { seen, epoch, connections: epoch, open: 0, start_asked: false, drain_since_ms: None, starts: 0 }
    }
}

fn template(image: &str, scale: Scale) -> Template {
    let container = Container {
        name: "main".into(),
        image: image.into(),
        command: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        resources: Resources { cpu: MilliCpu(250), memory: Bytes(1 << 29), ephemeral_storage: Bytes(1 << 30) },
        probes: Vec::new(),
        volume_mounts: Vec::new(),
    };
    Template {
        init_containers: Vec::new(),
        containers: vec![container],
        volumes: Vec::new(),
        scale,
        termination_grace_period_secs: 30,
    }
}
