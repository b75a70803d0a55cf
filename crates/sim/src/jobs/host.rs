//! The host of the jobs' world: replicas that take their time, fail, or do not want to end.
//!
//! **Invariant:** replicas do not depend on the server: they go on while it is down.

use cove_model::{
    ContainerExit, ContainerObservation, ContainerState, ReplicaName, ReplicaObservation, ReplicaPhase, RevisionKey,
    RevisionName,
};

use super::{JobSim, What};
use crate::Invariant;

/// A replica on the host.
#[derive(Debug)]
pub(super) struct Hosted {
    pub(super) seen: ReplicaObservation,
    /// What it will end with.
    code: i32,
}

impl Hosted {
    pub(super) fn takes_room(&self) -> bool {
        !matches!(self.seen.phase, ReplicaPhase::Stopped | ReplicaPhase::Failed)
    }
}

impl JobSim {
    /// The driver makes and starts a replica; one that is there already is left as it is.
    pub(super) fn host_start(&mut self, job: usize, execution: &RevisionName, replica: ReplicaName) {
        if self.jobs[job].replicas.contains_key(&replica) {
            return;
        }
        let wall = self.wall();
        let world = &mut self.jobs[job];
        let is_first = world.begun.insert(replica.clone());
        let code = if self.random.chance(0.15) { 1 } else { 0 };
        let seen = ReplicaObservation {
            name: replica.clone(),
            revision: RevisionKey { app: world.job.id.clone(), name: execution.clone() },
            restart_generation: 0,
            phase: ReplicaPhase::Preparing,
            is_ready: false,
            address: None,
            containers: vec![ContainerObservation {
                name: "main".to_owned(),
                is_init: false,
                state: ContainerState::Waiting { reason: "ContainerCreating".to_owned(), until: None },
                is_ready: false,
                is_started: false,
                restarts: 0,
                last_exit: None,
            }],
            created_at: wall,
            started_at: None,
            ready_at: None,
        };
        world.replicas.insert(replica.clone(), Hosted { seen, code });
        if !is_first {
            self.violate(Invariant::ReplicaStartedOnce, format!("{replica} is started a second time"));
        }
        let world = &self.jobs[job];
        let at_once = world.replicas.values().filter(|one| one.seen.revision.name == *execution && one.takes_room());
        let (at_once, limit) = (at_once.count(), world.job.trigger.counts().parallelism);
        if u32::try_from(at_once).unwrap_or(u32::MAX) > limit {
            let what = format!("{execution} has {at_once} replicas at once, of {limit}");
            self.violate(Invariant::ParallelismBound, what);
        }
        let at = self.soon(1_500);
        self.push(at, What::Runs { job, replica });
    }

    pub(super) fn host_runs(&mut self, job: usize, replica: &ReplicaName) {
        let wall = self.wall();
        let Some(hosted) = self.jobs[job].replicas.get_mut(replica) else { return };
        if hosted.seen.phase != ReplicaPhase::Preparing {
            return;
        }
        (hosted.seen.phase, hosted.seen.started_at) = (ReplicaPhase::Running, Some(wall));
        let mean = if self.random.chance(0.1) { 400_000.0 } else { 20_000.0 };
        let at = self.now_ms + self.random.exponential(mean);
        self.push(at, What::Exits { job, replica: replica.clone() });
        self.tell(job, replica);
    }

    pub(super) fn host_exits(&mut self, job: usize, replica: &ReplicaName) {
        let wall = self.wall();
        let Some(hosted) = self.jobs[job].replicas.get_mut(replica) else { return };
        if !hosted.takes_room() {
            return;
        }
        hosted.seen.phase = ReplicaPhase::Stopped;
        let reason = if hosted.code == 0 { "Completed" } else { "Error" };
        let exit = ContainerExit { code: hosted.code, reason: reason.to_owned(), message: None, at: wall };
        for container in &mut hosted.seen.containers {
            container.state = ContainerState::Terminated;
            container.last_exit = hosted.seen.started_at.is_some().then(|| exit.clone());
        }
        self.tell(job, replica);
    }

    /// SIGTERM: some end at once, some when they are killed.
    pub(super) fn host_stop(&mut self, job: usize, replica: &ReplicaName) {
        let Some(hosted) = self.jobs[job].replicas.get_mut(replica) else { return };
        if matches!(hosted.seen.phase, ReplicaPhase::Stopping | ReplicaPhase::Stopped | ReplicaPhase::Failed) {
            return;
        }
        hosted.seen.phase = ReplicaPhase::Stopping;
        hosted.code = if self.random.chance(0.7) { 143 } else { 0 };
        let at = self.soon(30_000);
        self.push(at, What::Exits { job, replica: replica.clone() });
        self.tell(job, replica);
    }

    /// The driver's notice; a server that is down hears nothing.
    fn tell(&mut self, job: usize, replica: &ReplicaName) {
        if !self.is_up {
            return;
        }
        let Some(execution) = self.jobs[job].replicas.get(replica).map(|one| one.seen.revision.name.clone()) else {
            return;
        };
        let (at, epoch) = (self.soon(50), self.epoch);
        self.push(at, What::Plan { job, execution, epoch });
    }
}
