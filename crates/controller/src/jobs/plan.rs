//! Plans executions, has the plans written, carries them out.

use std::{
    collections::hash_map::Entry,
    panic::{AssertUnwindSafe, catch_unwind},
};

use cove_model::{EventKind, ReplicaName, ResourceId, RevisionKey, SystemEvent};
use cove_reconcile::{Amount, ExecutionPlan, ExecutionView, JobAction, plan_execution};
use jiff::Timestamp;

use super::{
    Batch,
    entry::{ExecutionEntry, JobEntry, JobPhase},
    spec::replica_spec,
};
use crate::{capacity::profile_key, entry::images, loader::profile_of_name, service::Brain};

impl Brain {
    /// Takes what the loader read of jobs.
    pub(crate) fn take_jobs(&mut self, batch: Batch) {
        self.jobs.unreadable.extend(batch.unreadable);
        for (id, loaded) in batch.jobs {
            self.jobs.unreadable.remove(&id);
            let Some(loaded) = loaded else {
                self.forget_job(&id);
                continue;
            };
            let before = self.jobs.entries.get(&id).map(|known| (known.data.generation, known.data.phase));
            let entry = match self.jobs.entries.entry(id.clone()) {
                Entry::Occupied(known) => {
                    let entry = known.into_mut();
                    entry.data = loaded.data;
                    entry
                }
                Entry::Vacant(free) => free.insert(JobEntry::new(loaded.data)),
            };
            for execution in loaded.executions {
                let name = execution.name.clone();
                if let Some(execution) = ExecutionEntry::new(execution) {
                    self.jobs.dirty.insert(execution.key.clone());
                    entry.executions.entry(name).or_insert_with(|| Box::new(execution));
                }
            }
            for (name, at) in loaded.stops {
                if let Some(execution) = entry.executions.get_mut(&name)
                    && execution.stop_at(at)
                {
                    self.jobs.dirty.insert(execution.key.clone());
                }
            }
            if before != Some((entry.data.generation, entry.data.phase)) {
                self.jobs.dirty.extend(entry.executions.values().map(|execution| execution.key.clone()));
            }
            self.settle_job(&id);
        }
        if !self.jobs.is_loaded && batch.is_last {
            self.jobs.is_loaded = true;
            let keys = self.deps.runtime.observations().snapshot().into_iter().map(|(key, _)| key);
            keys.filter(|key| super::is_job(&key.app)).for_each(|key| self.job_observed(key));
        }
    }

    /// Something of an execution changed in the driver.
    pub(crate) fn job_observed(&mut self, key: RevisionKey) {
        let is_known = self.jobs.entries.get(&key.app).is_some_and(|job| job.executions.contains_key(&key.name));
        if is_known {
            let seen = self.deps.runtime.observations().get(&key).unwrap_or_default();
            self.writer.replicas(key.clone(), seen);
            self.jobs.dirty.insert(key);
        } else if self.jobs.is_loaded && !self.jobs.unreadable.contains(&key.app) {
            // of a job whose executions are read but for one that was just put in there is nothing to see yet
            self.end_orphans(&key);
        }
    }

    /// A batch is on disk: its plans are carried out.
    pub(crate) fn jobs_written(&mut self, keys: Vec<RevisionKey>, now: Timestamp) {
        self.jobs.writing = None;
        for key in keys {
            let Some(job) = self.jobs.entries.get_mut(&key.app) else { continue };
            let Some(mut entry) = job.executions.remove(&key.name) else { continue };
            let Some(plan) = entry.pending.take() else {
                job.executions.insert(key.name.clone(), entry);
                continue;
            };
            entry.stored = plan.execution.clone();
            if let Some(at) = entry.stop_asked_at {
                entry.stored.stop_requested_at.get_or_insert(at);
            }
            self.carry_out(&mut entry, &plan, now);
            if entry.stored.status.is_final() {
                self.drop_execution(&entry);
                self.settle_job(&key.app);
                continue;
            }
            if let Some(job) = self.jobs.entries.get_mut(&key.app) {
                job.executions.insert(key.name.clone(), entry);
            }
            // what was seen meanwhile, and what the plan leads to
            self.jobs.dirty.insert(key);
        }
    }

    /// Plans what is due.
    pub(crate) fn plan_jobs(&mut self, now: Timestamp) {
        if !self.jobs.is_loaded {
            return;
        }
        while self.jobs.wakes.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, key)) = self.jobs.wakes.pop_first()
        {
            if let Some(entry) = self.execution_mut(&key) {
                entry.wake_at = None;
                self.jobs.dirty.insert(key);
            }
        }
        for key in std::mem::take(&mut self.jobs.dirty) {
            if !self.jobs.waiting.contains(&key) || self.is_urgent(&key) {
                self.plan_guarded(&key, false, now);
            } else {
                self.jobs.has_room_changed = true;
            }
        }
        let walked = std::mem::take(&mut self.jobs.has_room_changed).then(|| self.plan_line(now));
        self.jobs.flush();
        if std::mem::take(&mut self.jobs.is_line_changed) {
            // a long line is put in order once a round: what was gone through is the line, but for those that left it
            let line = walked.unwrap_or_else(|| self.jobs.line(self.config.jobs.line_patience, now));
            let waiting = line.into_iter().filter(|waiting| self.jobs.waiting.contains(&waiting.key));
            let places = (1..).zip(waiting).map(|(place, waiting)| (waiting.key, place));
            self.handle.set_line(places.collect());
        }
    }

    /// It waits for room, and something else than room is to be seen to.
    fn is_urgent(&mut self, key: &RevisionKey) -> bool {
        let is_deleted = self.jobs.entries.get(&key.app).is_some_and(|job| job.data.phase == JobPhase::Deleting);
        let has_replicas = self.deps.runtime.observations().get(key).is_some_and(|seen| !seen.is_empty());
        let is_stopped = self.execution_mut(key).is_some_and(|entry| entry.stored.stop_requested_at.is_some());
        is_deleted || has_replicas || is_stopped
    }

    pub(super) fn plan_guarded(&mut self, key: &RevisionKey, is_its_turn: bool, now: Timestamp) {
        let planned = catch_unwind(AssertUnwindSafe(|| self.plan_one(key, is_its_turn, now)));
        if planned.is_err() {
            tracing::error!(execution = %key, "planning an execution panicked; it is taken up anew when it changes");
        }
    }

    fn execution_mut(&mut self, key: &RevisionKey) -> Option<&mut ExecutionEntry> {
        Some(&mut **self.jobs.entries.get_mut(&key.app)?.executions.get_mut(&key.name)?)
    }

    /// One that is not at its turn gets no room while others wait for some.
    fn plan_one(&mut self, key: &RevisionKey, is_its_turn: bool, now: Timestamp) {
        let others_wait = !is_its_turn && !self.jobs.waiting.is_empty();
        let Some(job) = self.jobs.entries.get_mut(&key.app) else { return };
        let is_job_deleted = job.data.phase == JobPhase::Deleting;
        let Some(entry) = job.executions.get_mut(&key.name).filter(|entry| entry.pending.is_none()) else { return };
        let profile = profile_of_name(entry.stored.workload_profile.as_deref(), &job.data.profiles);
        let room = self.ledger.room_in(self.config.capacity, &job.data.environment, profile);
        let fits_ever = room.pools.iter().all(|pool| entry.need.fits_into(pool.total));
        let shortage = room.shortage(entry.need).unwrap_or_else(|| "others wait for room before it".to_owned());
        let images = images(self.deps.runtime.images(key));
        let replicas = self.deps.runtime.observations().get(key).unwrap_or_default();
        let view = ExecutionView {
            execution: &entry.stored,
            images: &images,
            replicas: &replicas,
            room: if others_wait { 0 } else { room.fits(entry.need) },
            shortage: Some(&shortage),
            is_job_deleted,
            settings: &self.config.jobs,
        };
        let plan = plan_execution(&view, &mut entry.memory, now);
        let share = (entry.share.clone(), profile_key(&job.data.environment, profile));
        let taken = Amount::default().plus(entry.need, plan.live);
        let before = std::mem::replace(&mut entry.live, plan.live);
        let is_changed = plan.execution != entry.stored;
        if is_changed {
            self.jobs.outbox.push(plan.execution.clone());
        }
        // what never fits here must not hold up the others
        self.jobs.wait(key, plan.missing > 0 && fits_ever);
        self.jobs.count_replicas(key, before, plan.live);
        if is_changed {
            if let Some(entry) = self.execution_mut(key) {
                entry.pending = Some(Box::new(plan));
            }
        } else if let Some(mut entry) = self.jobs.entries.get_mut(&key.app).and_then(|j| j.executions.remove(&key.name))
        {
            self.carry_out(&mut entry, &plan, now);
            if let Some(job) = self.jobs.entries.get_mut(&key.app) {
                job.executions.insert(key.name.clone(), entry);
            }
        }
        if self.ledger.set(&share.0, share.1, taken) {
            self.room_is_back();
        }
    }

    /// Gives the orders of a plan to the driver; none of them waits.
    fn carry_out(&mut self, entry: &mut ExecutionEntry, plan: &ExecutionPlan, now: Timestamp) {
        let Some(job) = self.jobs.entries.get(&entry.key.app) else { return };
        let runtime = &self.deps.runtime;
        for step in &plan.steps {
            tracing::debug!(execution = %entry.key, %step, "a step of an execution");
            match &step.action {
                JobAction::EnsureImages => runtime.ensure_images(&entry.key, &entry.images(), &job.data.logins),
                JobAction::Start { replica, index } => {
                    let seen = runtime.observations().get(&entry.key);
                    let is_there = seen.is_some_and(|seen| seen.iter().any(|seen| seen.name == *replica));
                    let prepared = if is_there {
                        Ok(())
                    } else {
                        runtime.prepare(replica_spec(&job.data, entry, replica.clone(), *index))
                    };
                    if let Err(error) = prepared.and_then(|()| runtime.start(replica)) {
                        tracing::warn!(%replica, %error, "failed to start a replica of an execution; trying again");
                        entry.memory.order_refused(replica, &self.config.jobs, now);
                        self.jobs.dirty.insert(entry.key.clone());
                    }
                }
                JobAction::Stop { replica, grace } => runtime.stop(replica, *grace),
                JobAction::Remove { replica } => runtime.remove(replica),
            }
        }
        for event in &plan.events {
            let kind = if event.is_warning { EventKind::Warning } else { EventKind::Normal };
            let about = (&entry.key, &job.data.environment, event.replica.as_ref());
            self.tell_job(kind, about, event.reason, event.message.clone());
        }
        if let Some(old) = entry.wake_at.take() {
            self.jobs.wakes.remove(&(old, entry.key.clone()));
        }
        if let Some(at) = plan.wake_at {
            entry.wake_at = Some(at);
            self.jobs.wakes.insert((at, entry.key.clone()));
        }
    }

    fn tell_job(
        &self,
        kind: EventKind,
        (key, environment, replica): (&RevisionKey, &ResourceId, Option<&ReplicaName>),
        reason: &str,
        message: String,
    ) {
        let event = SystemEvent {
            at: self.deps.clock.now(),
            kind,
            reason: reason.to_owned(),
            message,
            environment: Some(environment.to_string()),
            app: Some(key.app.to_string()),
            revision: Some(key.name.to_string()),
            replica: replica.map(ToString::to_string),
            container: None,
            source: "ContainerAppController".to_owned(),
        };
        if self.deps.events.try_send(event).is_err() {
            tracing::debug!(execution = %key, reason, "a system event was dropped: its reader is behind or gone");
        }
    }

    /// An execution has ended, or its job is gone: nothing is known of it any more.
    fn drop_execution(&mut self, entry: &ExecutionEntry) {
        if let Some(at) = entry.wake_at {
            self.jobs.wakes.remove(&(at, entry.key.clone()));
        }
        self.jobs.wait(&entry.key, false);
        self.jobs.count_replicas(&entry.key, entry.live, 0);
        self.deps.runtime.forget_images(&entry.key);
        self.writer.remove_revision(entry.key.clone());
        if self.ledger.forget(&entry.share) != Amount::default() {
            self.room_is_back();
        }
        self.end_orphans(&entry.key);
    }

    fn forget_job(&mut self, id: &ResourceId) {
        let Some(job) = self.jobs.entries.remove(id) else { return };
        for entry in job.executions.values() {
            self.drop_execution(entry);
        }
    }

    /// What is awaited of a job itself: nothing but, when it is to go, the end of its executions.
    fn settle_job(&mut self, id: &ResourceId) {
        let Some(job) = self.jobs.entries.get_mut(id) else { return };
        let generation = job.data.generation;
        if job.told == Some(generation) {
            return;
        }
        match job.data.phase {
            JobPhase::Settled => {}
            JobPhase::InProgress => {
                job.told = Some(generation);
                self.writer.outcome(id.clone(), generation, None);
            }
            JobPhase::Deleting if job.executions.is_empty() => {
                job.told = Some(generation);
                self.writer.remove_app(id.clone());
            }
            JobPhase::Deleting => {}
        }
    }
}
