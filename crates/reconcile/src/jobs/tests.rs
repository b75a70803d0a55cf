//! Executions in a world of their own: a stored row, a driver that starts each name once, and crashes at any point.

mod cases;
mod properties;

use std::{collections::BTreeMap, sync::Arc};

use cove_model::{
    ContainerExit, ContainerObservation, ContainerState, Counts, Execution, ExecutionCause, ExecutionStatus,
    ReplicaName, ReplicaObservation, ReplicaPhase, ResourceId, RevisionName, Scale, Template,
};
use jiff::{SignedDuration, Timestamp};

use super::*;

/// Where a crash comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crash {
    Never,
    /// The execution was not stored.
    BeforeWrite,
    /// It was, and only this many of the steps were carried out.
    AfterSteps(usize),
}

struct World {
    now: Timestamp,
    stored: Execution,
    memory: ExecutionMemory,
    images: Images,
    /// Replicas that fit beside each other.
    room: u32,
    settings: JobSettings,
    replicas: BTreeMap<ReplicaName, ReplicaObservation>,
    /// How often each name was started.
    starts: BTreeMap<ReplicaName, u32>,
    wake_at: Option<Timestamp>,
    /// Texts of all steps and events, in their order.
    told: Vec<String>,
}

fn execution(parallelism: u32, completions: u32, retry_limit: u32) -> Execution {
    let template = Template {
        init_containers: vec![],
        containers: vec![],
        volumes: vec![],
        scale: Scale::default(),
        termination_grace_period_secs: 30,
    };
    Execution {
        job: ResourceId::resource("s", "g", "Microsoft.App/jobs", "job").unwrap(),
        name: RevisionName::new("job-abc1234").unwrap(),
        cause: ExecutionCause::Manual("1".into()),
        environment: ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", "env").unwrap(),
        workload_profile: None,
        template: Arc::new(template),
        counts: Counts { parallelism, completions },
        replica_timeout_secs: 60,
        replica_retry_limit: retry_limit,
        priority: 0,
        status: ExecutionStatus::Processing,
        reason: None,
        message: None,
        created_at: Timestamp::UNIX_EPOCH,
        started_at: None,
        ended_at: None,
        succeeded: 0,
        failed: 0,
        replicas: vec![],
        stop_requested_at: None,
    }
}

impl World {
    fn new(stored: Execution) -> Self {
        Self {
            now: Timestamp::UNIX_EPOCH,
            stored,
            memory: ExecutionMemory::default(),
            images: Images::Ready { exposed_ports: BTreeMap::new() },
            room: 1000,
            settings: JobSettings::default(),
            replicas: BTreeMap::new(),
            starts: BTreeMap::new(),
            wake_at: None,
            told: Vec::new(),
        }
    }

    fn plan(&mut self, crash: Crash) {
        let replicas: Vec<_> = self.replicas.values().cloned().collect();
        let view = ExecutionView {
            execution: &self.stored,
            images: &self.images,
            replicas: &replicas,
            room: self.room.saturating_sub(u32::try_from(self.live()).unwrap()),
            shortage: Some("the machine is full"),
            is_job_deleted: false,
            settings: &self.settings,
        };
        let plan = plan_execution(&view, &mut self.memory, self.now);
        self.wake_at = plan.wake_at;
        if crash == Crash::BeforeWrite {
            self.memory = ExecutionMemory::default();
            return;
        }
        assert!(!self.stored.status.is_final() || self.stored == plan.execution, "an end is changed");
        self.stored = plan.execution;
        for (at, step) in plan.steps.iter().enumerate() {
            if crash == Crash::AfterSteps(at) {
                self.memory = ExecutionMemory::default();
                return;
            }
            self.told.push(step.to_string());
            self.carry_out(&step.action);
        }
        self.told.extend(plan.events.iter().map(|event| format!("{}: {}", event.reason, event.message)));
    }

    fn carry_out(&mut self, action: &JobAction) {
        match action {
            JobAction::EnsureImages => self.images = Images::Pulling { percent: 0 },
            JobAction::Start { replica, .. } => {
                assert!(self.stored.replicas.iter().any(|known| known.name == *replica), "a start before its write");
                if self.replicas.contains_key(replica) {
                    return;
                }
                *self.starts.entry(replica.clone()).or_default() += 1;
                self.replicas.insert(replica.clone(), self.observation(replica));
            }
            JobAction::Stop { replica, .. } => {
                if let Some(seen) = self.replicas.get_mut(replica) {
                    seen.phase = ReplicaPhase::Stopping;
                }
            }
            JobAction::Remove { replica } => {
                let is_noted =
                    self.stored.replicas.iter().any(|known| known.name == *replica && known.ended_at.is_some());
                assert!(is_noted, "an end is forgotten before it is stored");
                self.replicas.remove(replica);
            }
        }
    }

    fn observation(&self, name: &ReplicaName) -> ReplicaObservation {
        ReplicaObservation {
            name: name.clone(),
            revision: self.stored.key(),
            restart_generation: 0,
            phase: ReplicaPhase::Preparing,
            is_ready: false,
            address: None,
            containers: vec![ContainerObservation {
                name: "main".into(),
                is_init: false,
                state: ContainerState::Waiting { reason: "ContainerCreating".into(), until: None },
                is_ready: false,
                is_started: false,
                restarts: 0,
                last_exit: None,
            }],
            created_at: self.now,
            started_at: None,
            ready_at: None,
        }
    }

    /// The first replica that has not ended begins to run.
    fn run(&mut self, at: usize) {
        let now = self.now;
        let waiting = self.replicas.values_mut().filter(|seen| matches!(seen.phase, ReplicaPhase::Preparing)).nth(at);
        if let Some(seen) = waiting {
            seen.phase = ReplicaPhase::Running;
            seen.started_at = Some(now);
        }
    }

    /// A replica ends with this code.
    fn exit(&mut self, at: usize, code: i32) {
        let now = self.now;
        let running =
            |seen: &&mut ReplicaObservation| matches!(seen.phase, ReplicaPhase::Running | ReplicaPhase::Stopping);
        if let Some(seen) = self.replicas.values_mut().filter(running).nth(at) {
            seen.phase = ReplicaPhase::Stopped;
            let reason = if code == 0 { "Completed" } else { "Error" };
            seen.containers[0].state = ContainerState::Terminated;
            seen.containers[0].last_exit = Some(ContainerExit { code, reason: reason.into(), message: None, at: now });
        }
    }

    /// A replica that is being made cannot be made.
    fn fail(&mut self, reason: &str) {
        let at = self.now;
        let made = self.replicas.values_mut().find(|seen| seen.phase == ReplicaPhase::Preparing).unwrap();
        made.phase = ReplicaPhase::Failed;
        made.containers[0].last_exit = Some(ContainerExit { code: 128, reason: reason.into(), message: None, at });
    }

    fn live(&self) -> usize {
        self.replicas
            .values()
            .filter(|seen| !matches!(seen.phase, ReplicaPhase::Stopped | ReplicaPhase::Failed))
            .count()
    }

    fn pass(&mut self, seconds: i64) {
        self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
    }

    /// Plans until nothing more comes of it.
    fn settle(&mut self) {
        for _ in 0..20 {
            let before = (self.stored.clone(), self.told.len());
            self.plan(Crash::Never);
            if before == (self.stored.clone(), self.told.len()) {
                return;
            }
        }
        panic!("plans do not come to rest: {:#?}", self.told);
    }
}
