//! Plans one app and carries the plan out: orders to the driver first, then endpoints, then routes, then everything that
//! only has to be written down.
//!
//! **Invariant:** a replica is told to the ingress as draining before it is stopped; a route that leads to a revision is
//! published after the revision's endpoints.

use std::{collections::BTreeMap, sync::Arc};

use cove_model::{
    ReplicaName, ReplicaObservation, ReplicaPhase, ResourceId, RevisionName, RevisionProvisioning, RevisionStatus,
};
use cove_reconcile::{Action, AppPhase, AppView, Images, Outcome, Plan, RevisionView, hosts, plan};
use cove_store::{Failure, PlanRow};
use cove_traffic::EndpointState;
use jiff::{SignedDuration, Timestamp};

use crate::{
    edge,
    entry::{Entry, images},
    events::About,
    frozen,
    service::Brain,
    slots::note_candidates,
    spec::replica_spec,
};

/// While images are on the way, their progress is looked at this often.
const PULL_LOOK: SignedDuration = SignedDuration::from_millis(500);

/// What was looked up for one revision.
struct Looked {
    at: usize,
    desired: Option<u32>,
    images: Images,
    replicas: Arc<Vec<ReplicaObservation>>,
}

impl Brain {
    /// Plans an app and carries the plan out.
    pub(crate) fn plan_app(&mut self, id: &ResourceId, now: Timestamp) {
        let Some(mut entry) = self.entries.remove(id) else { return };
        let looked = self.look(&entry);
        let open = self.open_requests(&looked);
        let mut memory = std::mem::take(&mut entry.memory);
        let room = self.ledger.room(self.config.capacity, &entry);
        let cannot_freeze = self.cannot_freeze(&entry);
        let mut plan = {
            let views: Vec<RevisionView<'_>> = looked
                .iter()
                .map(|looked| {
                    let known = &entry.revisions[looked.at];
                    RevisionView {
                        revision: &known.revision,
                        status: &known.status,
                        desired: looked.desired,
                        slots_wanted: known.slots_wanted,
                        images: &looked.images,
                        replicas: &looked.replicas,
                    }
                })
                .collect();
            let view = AppView {
                app: &entry.data.app,
                generation: entry.data.generation,
                phase: entry.phase(),
                environment_domain: &entry.data.domain,
                config_hash: entry.data.config_hash,
                revisions: &views,
                open: &open,
                room: &room,
                cannot_freeze,
                settings: &self.config.settings,
            };
            plan(&view, &mut memory, now)
        };
        entry.memory = memory;
        if looked.iter().any(|looked| matches!(looked.images, Images::Pulling { .. })) {
            let look = now.checked_add(PULL_LOOK).unwrap_or(Timestamp::MAX);
            plan.wake_at = Some(plan.wake_at.map_or(look, |at| at.min(look)));
        }
        entry.is_complete = true;
        self.note_capacity(&mut entry, &plan);
        if self.order(&mut entry, &plan, now) {
            // what was refused is planned otherwise now, not at the next notice: that may be a minute away
            self.dirty.insert(id.clone());
        }
        self.publish_app(&mut entry, &mut plan);
        self.write_down(&mut entry, &looked, plan, now);
        self.entries.insert(id.clone(), entry);
    }

    /// Reads boards and driver for every revision that matters: inactive ones with nothing left are passed over.
    fn look(&self, entry: &Entry) -> Vec<Looked> {
        let observations = self.deps.runtime.observations();
        let limit = usize::try_from(entry.data.app.max_inactive_revisions).unwrap_or(usize::MAX);
        let inactive = entry.revisions.iter().filter(|known| !known.revision.is_active).count();
        let may_skip = entry.is_complete && inactive <= limit;
        let mut looked = Vec::new();
        for (at, known) in entry.revisions.iter().enumerate() {
            let replicas = observations.get(&known.key);
            let is_left = replicas.as_ref().is_some_and(|replicas| !replicas.is_empty());
            let is_dormant = !known.revision.is_active
                && known.status.provisioning == RevisionProvisioning::Deprovisioned
                && !is_left
                && self.deps.endpoints.get(&known.key).is_none_or(|told| told.state == EndpointState::Inactive);
            if may_skip && is_dormant {
                continue;
            }
            let images = if known.revision.is_active || is_left {
                images(self.deps.runtime.images(&known.key))
            } else {
                Images::Unknown
            };
            let desired = self.deps.desired.get(&known.key).map(|desired| desired.replicas);
            looked.push(Looked { at, desired, images, replicas: replicas.unwrap_or_default() });
        }
        looked
    }

    fn open_requests(&self, looked: &[Looked]) -> BTreeMap<ReplicaName, u64> {
        let replicas = looked.iter().flat_map(|looked| looked.replicas.iter());
        let running = replicas.filter(|replica| replica.phase == ReplicaPhase::Running);
        running
            .filter_map(|replica| {
                let told = self.deps.drained.get(&replica.name);
                let asked = || self.deps.open.as_ref().and_then(|open| open(&replica.name));
                told.or_else(asked).map(|open| (replica.name.clone(), open))
            })
            .collect()
    }

    /// Gives the orders of a plan to the driver; none of them waits. Says whether one was refused.
    fn order(&self, entry: &mut Entry, plan: &Plan, now: Timestamp) -> bool {
        let runtime = &self.deps.runtime;
        let mut refused: Vec<ReplicaName> = Vec::new();
        let mut is_refused = false;
        for step in &plan.steps {
            match &step.action {
                Action::Start { revision, replica } if !refused.contains(replica) => {
                    if let Err(error) = runtime.start(replica) {
                        is_refused = true;
                        entry.memory.order_refused(revision, replica, error.to_string(), now);
                        tracing::warn!(%replica, %error, "failed to start a replica");
                    }
                }
                Action::Prepare { revision, replica, target_port } => {
                    let Some(known) = entry.known(revision) else { continue };
                    let spec = replica_spec(entry, known, replica.clone(), *target_port);
                    if let Err(error) = runtime.prepare(spec) {
                        is_refused = true;
                        entry.memory.order_refused(revision, replica, error.to_string(), now);
                        tracing::warn!(%replica, %error, "failed to prepare a replica");
                        refused.push(replica.clone());
                    }
                }
                Action::EnsureImages { revision } => {
                    let Some(known) = entry.known(revision) else { continue };
                    runtime.ensure_images(&known.key, &known.images(), &entry.data.logins);
                }
                Action::Freeze { revision, replica } => {
                    if let Err(error) = runtime.freeze(replica) {
                        is_refused = true;
                        entry.memory.freeze_refused(revision, replica);
                        tracing::warn!(%replica, %error, "failed to freeze a replica; it is ended instead");
                    }
                }
                Action::Thaw { revision, replica } => {
                    if let Err(error) = runtime.thaw(replica) {
                        is_refused = true;
                        entry.memory.order_refused(revision, replica, error.to_string(), now);
                        tracing::warn!(%replica, %error, "failed to thaw a replica");
                    }
                }
                Action::Stop { replica, grace } => runtime.stop(replica, *grace),
                Action::Remove { replica } => runtime.remove(replica),
                Action::Start { .. }
                | Action::Drain { .. }
                | Action::Undrain { .. }
                | Action::SetActive { .. }
                | Action::DeleteRevision { .. } => {}
            }
        }
        is_refused
    }

    /// Endpoints, then hosts.
    fn publish_app(&mut self, entry: &mut Entry, plan: &mut Plan) {
        for name in entry.draining.drain(..) {
            self.draining.remove(&name);
        }
        for (key, endpoints) in std::mem::take(&mut plan.endpoints) {
            for name in &endpoints.draining {
                self.draining.insert(name.clone(), key.app.clone());
                entry.draining.push(name.clone());
            }
            self.deps.endpoints.set(key, endpoints);
        }
        self.handle.set_existing(std::mem::take(&mut plan.existing));
        if entry.traffic.as_ref() == Some(&plan.traffic) {
            return;
        }
        let (app, domain) = (&entry.data.app, entry.data.domain.as_str());
        let mut wanted = edge::of_app(app, domain, hosts(app, domain, &plan.traffic));
        if let Some(suffix) = &entry.data.suffix {
            wanted.answer_below(suffix, domain, &app.environment);
        }
        let outcome = edge::publish(&mut self.table, &mut entry.published, &app.id, wanted);
        self.table_changed |= outcome.is_changed;
        for conflict in outcome.conflicts {
            self.teller.warning(app, About::default(), "IngressConflict", conflict);
        }
    }

    /// Statuses, the autoscaler's list, slots, events, and what goes to the store.
    fn write_down(&mut self, entry: &mut Entry, looked: &[Looked], plan: Plan, now: Timestamp) {
        let id = entry.id().clone();
        for (name, status) in &plan.statuses {
            let Some(known) = entry.revisions.iter_mut().find(|known| known.revision.name == *name) else { continue };
            let old = std::mem::replace(&mut known.status, status.clone());
            if old.provisioning != status.provisioning {
                self.dirty.insert(id.clone());
            }
            self.writer.status(known.key.clone(), status.clone());
            self.tell_status(&entry.data.app, name, &old, status);
            if status.provisioning == RevisionProvisioning::Provisioned && old.provisioning != status.provisioning {
                frozen::tell_impossible(self, entry, name);
            }
        }
        for looked in looked {
            let key = &entry.revisions[looked.at].key;
            if self.observed.remove(key) {
                self.writer.replicas(key.clone(), Arc::clone(&looked.replicas));
            }
        }
        self.list_scaled(entry, &plan, now);
        if note_candidates(entry, &plan, now) {
            self.divide_slots_soon(now);
        }
        self.settle(entry, &plan, now);
        if !plan.steps.is_empty() {
            let actions = plan.steps.iter().map(ToString::to_string).collect();
            self.writer.plan(id.clone(), PlanRow { at: now, generation: entry.data.generation, actions });
        }
        if let Some(old) = entry.wake_at.take() {
            self.wakes.remove(&(old, id.clone()));
        }
        if let Some(at) = plan.wake_at {
            entry.wake_at = Some(at);
            self.wakes.insert((at, id));
        }
        entry.traffic = Some(plan.traffic);
    }

    /// Revisions that change sides, and the outcome.
    fn settle(&mut self, entry: &mut Entry, plan: &Plan, now: Timestamp) {
        for step in &plan.steps {
            match &step.action {
                Action::SetActive { active } => {
                    for known in &mut entry.revisions {
                        known.revision.is_active = active.contains(&known.revision.name);
                    }
                    self.dirty.insert(entry.id().clone());
                    self.writer.active(entry.id().clone(), active.clone());
                }
                Action::DeleteRevision { revision } => {
                    let Some(at) = entry.revisions.iter().position(|known| known.revision.name == *revision) else {
                        continue;
                    };
                    let known = entry.revisions.remove(at);
                    self.writer.remove_revision(known.key.clone());
                    self.forget_revision(&known.key);
                }
                Action::Start { revision, replica } => {
                    let about = About { revision: Some(revision), replica: Some(replica) };
                    let message = format!("Starting replica '{replica}': {}", step.reason);
                    self.teller.normal(&entry.data.app, about, "ReplicaStarting", message);
                }
                Action::Freeze { revision, replica } => {
                    let about = About { revision: Some(revision), replica: Some(replica) };
                    let message = format!("Freezing replica '{replica}': {}", step.reason);
                    self.teller.normal(&entry.data.app, about, "ReplicaFreezing", message);
                }
                Action::Thaw { revision, replica } => {
                    let about = About { revision: Some(revision), replica: Some(replica) };
                    let message = format!("Thawing replica '{replica}': {}", step.reason);
                    self.teller.normal(&entry.data.app, about, "ReplicaThawing", message);
                }
                Action::EnsureImages { .. }
                | Action::Prepare { .. }
                | Action::Drain { .. }
                | Action::Undrain { .. }
                | Action::Stop { .. }
                | Action::Remove { .. } => {}
            }
        }
        let app = &entry.data.app;
        match &plan.outcome {
            None => {}
            Some(Outcome::Deleted) => {
                if entry.told != Some(entry.data.generation) {
                    let message = format!("Deleted containerApp: {}", app.id.name());
                    self.teller.normal(app, About::default(), "ContainerAppDeleted", message);
                    self.writer.remove_app(app.id.clone());
                }
                entry.told = Some(entry.data.generation);
            }
            Some(Outcome::Succeeded) => {
                let message = format!("Running state reached for ContainerApp '{}'", app.id.name());
                self.teller.normal(app, About::default(), "ContainerAppReady", message);
                self.writer.outcome(app.id.clone(), entry.data.generation, None);
                entry.told = Some(entry.data.generation);
            }
            Some(Outcome::Failed { code, message }) => {
                self.teller.warning(app, About::default(), "ContainerAppUpdateFailed", message.clone());
                let failure = Failure { code: (*code).to_owned(), message: message.clone() };
                self.writer.outcome(app.id.clone(), entry.data.generation, Some(failure));
                entry.told = Some(entry.data.generation);
            }
        }
        debug_assert!(entry.data.phase != AppPhase::Settled || plan.outcome.is_none(), "an outcome is told once");
        tracing::debug!(app = %entry.id(), steps = plan.steps.len(), %now, "planned");
    }

    fn tell_status(
        &self,
        app: &cove_model::ContainerApp,
        name: &RevisionName,
        old: &RevisionStatus,
        new: &RevisionStatus,
    ) {
        if old.provisioning == new.provisioning {
            return;
        }
        let about = About { revision: Some(name), replica: None };
        match new.provisioning {
            RevisionProvisioning::Provisioned => {
                let message = format!("Successfully provisioned revision '{name}'");
                self.teller.normal(app, about, "RevisionReady", message);
            }
            RevisionProvisioning::Failed => {
                let detail = new.message.as_deref().unwrap_or("it did not become ready");
                let message = format!("Error provisioning revision '{name}': {detail}");
                self.teller.warning(app, about, "RevisionFailed", message);
            }
            RevisionProvisioning::Deprovisioning => {
                let message = format!("Deactivating revision '{name}'");
                self.teller.normal(app, about, "RevisionDeactivating", message);
            }
            RevisionProvisioning::Deprovisioned => {
                let message = format!("Deactivated revision '{name}'");
                self.teller.normal(app, about, "RevisionDeactivated", message);
            }
            RevisionProvisioning::Provisioning => {
                let message = format!("Provisioning revision '{name}'");
                self.teller.normal(app, about, "RevisionProvisioning", message);
            }
        }
    }
}
