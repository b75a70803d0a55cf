//! The host of the sessions' world: replicas that take their time, fail, end by themselves.
//!
//! **Invariant:** replicas do not depend on the server: they go on while it is down.

use cove_model::{
    ContainerExit, ContainerObservation, ContainerState, ReplicaName, ReplicaObservation, ReplicaPhase, RevisionKey,
};

use super::{SessionMutation, SessionSim, What};
use crate::Invariant;

impl SessionSim {
    /// The driver makes and starts a replica; one that is there already is left as it is.
    pub(super) fn host_start(&mut self, replica: &ReplicaName) {
        if self.replicas.contains_key(replica) {
            return;
        }
        if !self.begun.insert(replica.clone()) {
            self.violate(Invariant::ReplicaStartedOnce, format!("{replica} is started a second time"));
        }
        let seen = ReplicaObservation {
            name: replica.clone(),
            revision: RevisionKey { app: self.pool.id.clone(), name: self.pool.generation.clone() },
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
            created_at: self.wall(),
            started_at: None,
            ready_at: None,
        };
        self.replicas.insert(replica.clone(), seen);
        let at = self.soon(1_500);
        self.push(at, What::Ready(replica.clone()));
        let ends = self.random.chance(0.05) && !self.is_quiet;
        if ends {
            let at = self.now_ms + self.random.exponential(60_000.0);
            self.push(at, What::Exits(replica.clone()));
        }
    }

    pub(super) fn host_ready(&mut self, replica: &ReplicaName) {
        let now = self.wall();
        let Some(seen) = self.replicas.get_mut(replica) else { return };
        if seen.phase == ReplicaPhase::Preparing {
            (seen.phase, seen.is_ready) = (ReplicaPhase::Running, true);
            (seen.started_at, seen.ready_at) = (Some(now), Some(now));
            for container in &mut seen.containers {
                container.state = ContainerState::Running { since: now };
            }
            self.notice();
        }
    }

    /// Its container ends by itself, or was stopped.
    pub(super) fn host_exits(&mut self, replica: &ReplicaName) {
        let at = self.wall();
        let Some(seen) = self.replicas.get_mut(replica) else { return };
        if matches!(seen.phase, ReplicaPhase::Stopped | ReplicaPhase::Failed) {
            return;
        }
        (seen.phase, seen.is_ready) = (ReplicaPhase::Stopped, false);
        for container in &mut seen.containers {
            container.state = ContainerState::Terminated;
            container.last_exit = Some(ContainerExit { code: 1, reason: "Error".to_owned(), message: None, at });
        }
        self.notice();
    }

    pub(super) fn host_freeze(&mut self, replica: &ReplicaName) {
        if let Some(seen) = self.replicas.get_mut(replica)
            && seen.phase == ReplicaPhase::Running
        {
            (seen.phase, seen.is_ready) = (ReplicaPhase::Frozen, false);
            self.notice();
        }
    }

    /// Whether there is such a replica.
    pub(super) fn host_thaw(&mut self, replica: &ReplicaName) -> bool {
        let Some(seen) = self.replicas.get_mut(replica) else { return false };
        if seen.phase == ReplicaPhase::Frozen {
            (seen.phase, seen.is_ready) = (ReplicaPhase::Running, true);
            self.notice();
        }
        true
    }

    pub(super) fn host_stop(&mut self, replica: &ReplicaName) {
        let is_lost = self.mutation == SessionMutation::StopsLost && self.random.chance(0.05);
        let Some(seen) = self.replicas.get_mut(replica) else { return };
        if is_lost || matches!(seen.phase, ReplicaPhase::Stopping | ReplicaPhase::Stopped | ReplicaPhase::Failed) {
            return;
        }
        (seen.phase, seen.is_ready) = (ReplicaPhase::Stopping, false);
        let at = self.soon(5_000);
        self.push(at, What::Exits(replica.clone()));
    }

    pub(super) fn host_remove(&mut self, replica: &ReplicaName) {
        self.replicas.remove(replica);
        self.notice();
    }
}
