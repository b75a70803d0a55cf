//! What the driver saw becomes part of the execution: starts, ends, exit codes, counts.
//!
//! **Invariant:** an end is noted once, and counted then.

use cove_model::{ExecutionReplica, ReplicaName, ReplicaObservation, ReplicaPhase};
use jiff::Timestamp;

use super::{DEADLINE_EXCEEDED, INTERRUPTED, INTERRUPTED_MAX, JobAction, LOST, Planner, STOPPED, is_failed};

/// The driver's reason for a replica whose helper process ended before it was made.
const MAKER_ENDED: &str = "ContainerTerminated";

impl Planner<'_> {
    pub(super) fn seen(&self, name: &ReplicaName) -> Option<&ReplicaObservation> {
        self.view.replicas.iter().find(|seen| seen.name == *name)
    }

    /// Takes over what is seen of each replica.
    pub(super) fn look(&mut self) {
        for at in 0..self.plan.execution.replicas.len() {
            let replica = &self.plan.execution.replicas[at];
            if replica.ended_at.is_some() {
                continue;
            }
            let name = replica.name.clone();
            match self.seen(&name).cloned() {
                Some(seen) => self.take(at, &seen),
                None => self.miss(at),
            }
        }
        self.clear();
    }

    fn take(&mut self, at: usize, seen: &ReplicaObservation) {
        let runs = matches!(seen.phase, ReplicaPhase::Running | ReplicaPhase::Frozen);
        // one that ended in an init container has no start of its own
        let ran = seen.phase == ReplicaPhase::Stopped;
        let replica = &mut self.plan.execution.replicas[at];
        if (runs || ran || seen.started_at.is_some()) && replica.started_at.is_none() {
            let first = if runs { self.now } else { seen.created_at };
            let started_at = seen.started_at.unwrap_or(first).min(self.now);
            replica.started_at = Some(started_at);
            self.plan.execution.started_at.get_or_insert(started_at);
        }
        if matches!(seen.phase, ReplicaPhase::Stopped | ReplicaPhase::Failed) {
            let is_interrupted = |replica: &&ExecutionReplica| replica.reason.as_deref() == Some(INTERRUPTED);
            let interrupted = self.plan.execution.replicas.iter().filter(is_interrupted).count();
            note_end(&mut self.plan.execution.replicas[at], seen, interrupted < INTERRUPTED_MAX, self.now);
            self.count(at);
        }
    }

    /// It is not there. Not asked for yet is fine; gone after its start, it failed.
    fn miss(&mut self, at: usize) {
        let replica = &mut self.plan.execution.replicas[at];
        let was_there = replica.started_at.is_some();
        if was_there {
            replica.ended_at = Some(self.now);
            replica.reason.get_or_insert_with(|| LOST.to_owned());
            self.count(at);
        }
    }

    fn count(&mut self, at: usize) {
        let replica = self.plan.execution.replicas[at].clone();
        let execution = &mut self.plan.execution;
        if replica.reason.as_deref() == Some("Completed") {
            execution.succeeded = execution.succeeded.saturating_add(1);
        } else if is_failed(&replica) {
            execution.failed = execution.failed.saturating_add(1);
            let (failed, limit) = (execution.failed, execution.replica_retry_limit);
            let name = &replica.name;
            let how = super::how_it_ended(&replica, execution);
            let message = format!("Replica '{name}' {how}; {failed} of at most {limit} failed runs that are retried");
            let reason = match replica.reason.as_deref() {
                Some("OOMKilled") => "ReplicaOOMKilled",
                Some(LOST) => "ReplicaLost",
                _ => "ReplicaFailed",
            };
            self.tell(true, reason, message, Some(&replica.name));
        }
    }

    /// What has ended and is noted is forgotten by the driver; what nobody knows is ended.
    fn clear(&mut self) {
        let grace = self.grace();
        for seen in self.view.replicas {
            let known = self.plan.execution.replicas.iter().find(|replica| replica.name == seen.name);
            let name = seen.name.clone();
            match (known, seen.phase) {
                (_, ReplicaPhase::Stopped | ReplicaPhase::Failed) => {
                    self.step(JobAction::Remove { replica: name }, "it has ended");
                }
                (None, phase) if phase != ReplicaPhase::Stopping => {
                    self.step(JobAction::Stop { replica: name, grace }, "it is none of this execution's");
                }
                (Some(known), phase) if known.ended_at.is_some() && phase != ReplicaPhase::Stopping => {
                    self.step(JobAction::Stop { replica: name, grace }, "it was given up");
                }
                _ => {}
            }
        }
    }
}

fn note_end(replica: &mut ExecutionReplica, seen: &ReplicaObservation, may_be_interrupted: bool, now: Timestamp) {
    let exits = || seen.containers.iter().filter_map(|container| container.last_exit.as_ref());
    let bad = exits().find(|exit| exit.code != 0);
    let is_whole = seen.containers.iter().all(|container| container.last_exit.is_some());
    let last_at = exits().map(|exit| exit.at).max().unwrap_or(now);
    replica.ended_at = Some(last_at.min(now).max(replica.started_at.unwrap_or(Timestamp::MIN)));
    replica.exit_code = bad.map(|exit| exit.code).or_else(|| exits().next().map(|_| 0));
    if matches!(replica.reason.as_deref(), Some(DEADLINE_EXCEEDED | STOPPED)) {
        return;
    }
    let was_made = seen.phase != ReplicaPhase::Failed || replica.started_at.is_some();
    let reason = match bad {
        Some(exit) if may_be_interrupted && !was_made && exit.reason == MAKER_ENDED => INTERRUPTED,
        Some(exit) => exit.reason.as_str(),
        None if seen.phase == ReplicaPhase::Stopped && is_whole => "Completed",
        None => "Error",
    };
    // an exit that is not 0 is never a success, whatever the container's helper calls it
    replica.reason = Some(if bad.is_some() && reason == "Completed" { "Error" } else { reason }.to_owned());
}
