//! Plans session pools, has what changed written, carries the steps out, answers who waits.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use cove_model::{
    AllocateError, Bytes, EventKind, MilliCpu, ReplicaName, ReplicaObservation, ResourceId, RevisionKey, Session,
    SessionEndReason, SessionIdentifier, SessionLifecycle, SnapshotId, SystemEvent,
};
use cove_reconcile::{
    Amount, Images, PoolOutcome, PoolPlan, PoolView, SessionAction, SessionSettings, SessionView, plan_pool,
};
use cove_runtime::{Runtime, RuntimeError};
use cove_store::Failure;
use jiff::{SignedDuration, Timestamp};

use super::{
    Batch, Notice, Written,
    entry::{PoolEntry, PoolPhase},
    orders::{new_guid, session_event},
    spec::replica_spec,
    table::{PoolInfo, Sessions},
};
use crate::{capacity::profile_key, edge, entry::images, loader::profile_of_name, service::Brain};

/// What the driver sees of a pool's generations.
pub(super) struct Seen(Vec<Arc<Vec<ReplicaObservation>>>);

impl Seen {
    pub(super) fn of(runtime: &dyn Runtime, entry: &PoolEntry) -> Self {
        let app = &entry.data.pool.id;
        let all = entry.generations.iter();
        Self(
            all.filter_map(|name| runtime.observations().get(&RevisionKey { app: app.clone(), name: name.clone() }))
                .collect(),
        )
    }

    pub(super) fn by_name(&self) -> BTreeMap<&ReplicaName, &ReplicaObservation> {
        self.0.iter().flat_map(|all| all.iter()).map(|seen| (&seen.name, seen)).collect()
    }

    pub(super) fn views<'a>(&self, entry: &'a PoolEntry, table: &Sessions, now: Timestamp) -> Vec<SessionView<'a>> {
        let view = |known: &'a super::entry::SessionEntry| {
            let (calls, accessed_at) = table.use_of(&known.session).unwrap_or((0, now));
            SessionView {
                session: &known.session,
                is_stored: known.version == known.written,
                is_new: known.is_new,
                calls,
                accessed_at,
            }
        };
        entry.sessions.values().map(view).collect()
    }

    pub(super) fn pool_view<'a>(
        &self,
        entry: &'a PoolEntry,
        (sessions, suspended): (&'a [SessionView<'a>], &'a BTreeMap<SessionIdentifier, (SnapshotId, Timestamp)>),
        replicas: &'a BTreeMap<&'a ReplicaName, &'a ReplicaObservation>,
        images: &'a Images,
        settings: &'a SessionSettings,
    ) -> PoolView<'a> {
        PoolView {
            pool: &entry.data.pool,
            sessions,
            suspended,
            replicas,
            images,
            is_deleted: entry.data.phase == PoolPhase::Deleting,
            room: 0,
            shortage: None,
            starts_free: 0,
            freezes: false,
            settings,
        }
    }
}

impl Brain {
    /// Takes what was heard of session pools.
    pub(crate) fn take_sessions(&mut self, notice: Notice) {
        match notice {
            Notice::Loaded(batch) => self.take_pools(batch),
            Notice::Written(written) => self.sessions_written(written),
            Notice::Orders(orders) => self.take_session_orders(orders, self.deps.clock.now()),
        }
    }

    /// Takes what the loader read of pools.
    fn take_pools(&mut self, batch: Batch) {
        self.sessions.unreadable.extend(batch.unreadable);
        for (id, loaded) in batch.pools {
            self.sessions.unreadable.remove(&id);
            let Some(loaded) = loaded else {
                self.forget_pool(&id);
                continue;
            };
            match self.sessions.entries.get_mut(&id) {
                Some(entry) => {
                    if loaded.data.phase == PoolPhase::InProgress && loaded.data.generation != entry.data.generation {
                        entry.memory.written_again();
                    }
                    entry.need = Amount::of(&loaded.data.pool.template);
                    entry.is_mended &= loaded.data.phase == PoolPhase::Failed;
                    entry.data = loaded.data;
                }
                None => {
                    let seed = crate::service::seed_of(self.config.name_seed, &id);
                    let entry = PoolEntry::new(loaded.data, loaded.sessions.unwrap_or_default(), seed);
                    self.sessions.entries.insert(id.clone(), Box::new(entry));
                }
            }
            self.publish_pool(&id);
            self.sessions.dirty.insert(id);
        }
        if !self.sessions.is_loaded && batch.is_last {
            self.sessions.is_loaded = true;
            let keys = self.deps.runtime.observations().snapshot().into_iter().map(|(key, _)| key);
            keys.filter(|key| super::is_pool(&key.app)).for_each(|key| self.pool_observed(key));
        }
    }

    /// Something of a pool's sessions changed in the driver.
    pub(crate) fn pool_observed(&mut self, key: RevisionKey) {
        if let Some(entry) = self.sessions.entries.get_mut(&key.app) {
            entry.generations.insert(key.name);
            self.sessions.dirty.insert(key.app);
        } else if self.sessions.is_loaded && !self.sessions.unreadable.contains(&key.app) {
            self.end_orphans(&key);
        }
    }

    /// A batch is on disk.
    fn sessions_written(&mut self, written: Vec<Written>) {
        self.sessions.writing = None;
        self.sessions.dirty.extend(self.sessions.last_uses.written());
        for (id, replica, version) in written {
            let Some(entry) = self.sessions.entries.get_mut(&id) else { continue };
            let Some(known) = entry.sessions.get_mut(&replica) else { continue };
            known.written = version;
            let is_ended = known.session.ended.is_some() && known.version == version;
            let told = |stop: &mut (ReplicaName, _)| is_ended && stop.0 == replica;
            for (_, answer) in entry.stops.extract_if(.., told) {
                let _caller_left = answer.send(true);
            }
            self.sessions.dirty.insert(id);
        }
    }

    /// Plans what is due.
    pub(crate) fn plan_sessions(&mut self, now: Timestamp) {
        if !self.sessions.is_loaded {
            return;
        }
        self.write_touched(now);
        while self.sessions.wakes.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, id)) = self.sessions.wakes.pop_first()
        {
            if let Some(entry) = self.sessions.entries.get_mut(&id) {
                entry.wake_at = None;
                self.sessions.dirty.insert(id);
            }
        }
        for id in std::mem::take(&mut self.sessions.dirty) {
            let planned = catch_unwind(AssertUnwindSafe(|| self.plan_one_pool(&id, now)));
            if planned.is_err() {
                tracing::error!(pool = %id, "planning a session pool panicked; it is taken up anew when it changes");
            }
        }
        let is_free = self.sessions.starting < self.config.sessions.settings.starts_max;
        if is_free && std::mem::take(&mut self.sessions.is_full) {
            let hungry = std::mem::take(&mut self.sessions.hungry);
            self.sessions.dirty.extend(hungry);
        }
        self.sessions.flush();
        self.sweep_snapshots();
    }

    fn plan_one_pool(&mut self, id: &ResourceId, now: Timestamp) {
        let Some(entry) = self.sessions.entries.get_mut(id) else { return };
        let key = entry.data.pool.key();
        entry.generations.insert(key.name.clone());
        entry.generations.extend(entry.sessions.values().map(|known| known.session.generation.clone()));
        let mut memory = std::mem::take(&mut entry.memory);
        let Some(entry) = self.sessions.entries.get(id) else { return };
        let profiles = entry.data.environment.as_ref().map_or(&[][..], |found| &found.workload_profiles);
        let profile = profile_of_name(entry.data.pool.workload_profile.as_deref(), profiles);
        let room = self.ledger.room_in(self.config.capacity, entry.data.environment(), profile);
        let shortage = room.shortage(entry.need);
        let images = images(self.deps.runtime.images(&key));
        let settings = &self.config.sessions.settings;
        let others = self.sessions.starting.saturating_sub(entry.starting);
        let starts_free = settings.starts_max.saturating_sub(others);
        let seen = Seen::of(&*self.deps.runtime, entry);
        let (views, replicas) = (seen.views(entry, &self.sessions.table, now), seen.by_name());
        let suspended = entry.suspended();
        let view = PoolView {
            room: room.fits(entry.need),
            shortage: shortage.as_deref(),
            starts_free,
            freezes: self.deps.runtime.capabilities().freezes,
            ..seen.pool_view(entry, (&views, &suspended), &replicas, &images, settings)
        };
        let plan = plan_pool(&view, &mut memory, &mut new_guid, now);
        let taken_by = profile_key(entry.data.environment(), profile);
        let frozen = Amount { cpu: MilliCpu(0), ..entry.need };
        let taken =
            Amount { cpu: MilliCpu(0), memory: Bytes(0) }.plus(entry.need, plan.running).plus(frozen, plan.frozen);
        if let Some(entry) = self.sessions.entries.get_mut(id) {
            entry.memory = memory;
            self.sessions.starting = others + plan.starting;
            entry.starting = plan.starting;
        }
        if self.ledger.set(id, taken_by, taken) {
            self.room_is_back();
        }
        self.sessions.table.set_counts(id, plan.counts);
        self.carry_out_pool(id, plan, now);
    }

    fn carry_out_pool(&mut self, id: &ResourceId, plan: PoolPlan, now: Timestamp) {
        let is_short = plan.missing > 0;
        for step in &plan.steps {
            tracing::debug!(pool = %id, %step, "a step of a session pool");
            self.carry_out_session_step(id, &step.action, now);
        }
        self.serve(id, &plan.serving, now);
        let mut withheld = Vec::new();
        for session in plan.changed {
            let replica = session.replica.clone();
            if !self.change_session(id, session, now) {
                withheld.push(replica);
            }
        }
        for event in &plan.events {
            if event.session.as_ref().is_some_and(|session| withheld.contains(session)) {
                continue;
            }
            let kind = if event.is_warning { EventKind::Warning } else { EventKind::Normal };
            let entry = self.sessions.entries.get(id);
            let about = event.session.as_ref().and_then(|name| Some(&entry?.sessions.get(name)?.session));
            if let Some(session) = about {
                self.tell_session(session_event(session, kind, event.reason, event.message.clone(), now));
            } else if let (None, Some(entry)) = (&event.session, entry) {
                let whose = (entry.data.pool.key(), entry.data.pool.environment.clone());
                self.tell_pool(whose, kind, event.reason, event.message.clone(), now);
            }
        }
        self.forget_sessions(id, plan.forgotten);
        self.drop_snapshots(id, plan.unsuspended);
        self.settle_pool(id, plan.outcome, now);
        let Some(entry) = self.sessions.entries.get_mut(id) else { return };
        if let Some(old) = entry.wake_at.take() {
            self.sessions.wakes.remove(&(old, id.clone()));
        }
        // what waits for room is looked at again every second
        let again = is_short.then(|| now.saturating_add(SignedDuration::from_secs(1)).unwrap_or(Timestamp::MAX));
        if let Some(at) = plan.wake_at.into_iter().chain(again).min() {
            entry.wake_at = Some(at);
            self.sessions.wakes.insert((at, id.clone()));
        }
        if is_short {
            self.sessions.hungry.insert(id.clone());
            self.sessions.is_full |= self.sessions.starting >= self.config.sessions.settings.starts_max;
        }
        if !withheld.is_empty() {
            self.sessions.dirty.insert(id.clone());
        }
    }

    /// Takes the newest form of a session. One that was to end for want of requests, and just got one, does not: `false`.
    pub(super) fn change_session(&mut self, id: &ResourceId, session: Session, now: Timestamp) -> bool {
        let Some(entry) = self.sessions.entries.get_mut(id) else { return false };
        if let Some(ended) = &session.ended {
            let since = match entry.data.pool.lifecycle {
                SessionLifecycle::Timed { cooldown_secs } if ended.reason == SessionEndReason::CooledDown => {
                    now.saturating_sub(SignedDuration::from_secs(i64::from(cooldown_secs))).ok()
                }
                SessionLifecycle::Timed { .. } | SessionLifecycle::OnContainerExit { .. } => None,
            };
            if !self.sessions.table.withdraw(&session, since) {
                return false;
            }
        }
        self.sessions.outbox.insert((id.clone(), session.replica.clone()));
        let (ended, identifier) = (session.ended.clone(), session.identifier.clone());
        entry.change(session);
        let waiters = identifier.filter(|_| ended.is_some()).and_then(|identifier| {
            let waiters = entry.waiters.remove(&identifier)?;
            Some((identifier, waiters))
        });
        let (Some(ended), Some((identifier, waiters))) = (ended, waiters) else { return true };
        for (answer, _) in waiters {
            // nobody's fault: they get another one
            if matches!(ended.reason, SessionEndReason::Replaced | SessionEndReason::Lost | SessionEndReason::Suspended)
            {
                self.allocate_session(id, identifier.clone(), answer, now);
                continue;
            }
            let message = ended.message.clone().unwrap_or_else(|| "it ended before it was ready".to_owned());
            let failed = AllocateError::Failed { reason: ended.reason.as_str().to_owned(), message };
            let _caller_left = answer.send(Err(failed));
        }
        true
    }

    /// Sessions that can answer are put into the table, and whoever waits for them is told.
    fn serve(&mut self, id: &ResourceId, serving: &[ReplicaName], now: Timestamp) {
        let Some(entry) = self.sessions.entries.get_mut(id) else { return };
        for name in serving {
            let Some(known) = entry.sessions.get(name) else { continue };
            // one that was adopted counts as used when this server began to know it
            self.sessions.table.serve(&known.session, now);
            let waiters = known.session.identifier.as_ref().and_then(|identifier| entry.waiters.remove(identifier));
            for (answer, is_new) in waiters.into_iter().flatten() {
                let _caller_left = answer.send(Ok(is_new));
            }
        }
    }

    fn carry_out_session_step(&mut self, id: &ResourceId, action: &SessionAction, now: Timestamp) {
        if let SessionAction::Suspend(replica) = action {
            return self.suspend_idle(id, replica, now);
        }
        let runtime = Arc::clone(&self.deps.runtime);
        let Some(entry) = self.sessions.entries.get_mut(id) else { return };
        match action {
            SessionAction::EnsureImages => {
                runtime.ensure_images(&entry.data.pool.key(), &entry.data.images(), &entry.data.logins);
            }
            SessionAction::Start(replica) => {
                let Some(known) = entry.sessions.get(replica) else { return };
                let seen = runtime.observations().get(&known.session.key());
                let is_there = seen.is_some_and(|seen| seen.iter().any(|seen| seen.name == *replica));
                let prepared =
                    if is_there { Ok(()) } else { runtime.prepare(replica_spec(&entry.data, &known.session)) };
                match prepared.and_then(|()| runtime.start(replica)) {
                    Ok(()) => {}
                    Err(error @ RuntimeError::Full { .. }) => {
                        tracing::warn!(%replica, %error, "failed to start a session; trying again");
                        entry.memory.start_refused(replica, &self.config.sessions.settings, now);
                        self.sessions.dirty.insert(id.clone());
                    }
                    Err(error) => {
                        entry.memory.start_impossible(replica, error.to_string());
                        self.sessions.dirty.insert(id.clone());
                    }
                }
            }
            SessionAction::Freeze(replica) => {
                if let Err(error) = runtime.freeze(replica) {
                    tracing::debug!(%replica, %error, "a ready session is not frozen");
                    entry.memory.freeze_refused(replica);
                }
            }
            SessionAction::Thaw(replica) => {
                if let Err(error) = runtime.thaw(replica) {
                    tracing::warn!(%replica, %error, "a session could not be thawed");
                }
            }
            // above
            SessionAction::Suspend(_) => {}
            SessionAction::Stop { replica, grace } => runtime.stop(replica, *grace),
            SessionAction::Remove(replica) => {
                let is_known = entry.sessions.contains_key(replica);
                if !is_known || self.sessions.last_uses.may_go(&*runtime, id, replica) {
                    runtime.remove(replica);
                }
            }
        }
    }

    fn forget_sessions(&mut self, id: &ResourceId, forgotten: Vec<ReplicaName>) {
        let Some(entry) = self.sessions.entries.get_mut(id) else { return };
        for replica in forgotten {
            if let Entry::Occupied(known) = entry.sessions.entry(replica.clone()) {
                self.sessions.is_sweep_due |= known.get().session.snapshot.is_some();
                known.remove();
                self.sessions.outbox.remove(&(id.clone(), replica.clone()));
                self.sessions.last_uses.forget(&replica);
                self.sessions.forgotten.insert(replica);
            }
        }
        let current = entry.data.pool.generation.clone();
        let in_use: std::collections::BTreeSet<_> =
            entry.sessions.values().map(|known| known.session.generation.clone()).collect();
        for name in entry.generations.extract_if(.., |name| *name != current && !in_use.contains(name)) {
            let key = RevisionKey { app: id.clone(), name };
            if self.deps.runtime.observations().get(&key).is_none_or(|seen| seen.is_empty()) {
                self.deps.runtime.forget_images(&key);
            }
        }
    }

    /// Tells the store what became of a pool that was written.
    fn settle_pool(&mut self, id: &ResourceId, outcome: PoolOutcome, now: Timestamp) {
        let Some(entry) = self.sessions.entries.get_mut(id) else { return };
        let generation = entry.data.generation;
        let is_better = entry.data.phase == PoolPhase::Failed && outcome == PoolOutcome::Succeeded;
        if entry.told == Some(generation) && (entry.is_mended || !is_better) {
            return;
        }
        let about = (entry.data.pool.key(), entry.data.pool.environment.clone());
        match (outcome, entry.data.phase) {
            (PoolOutcome::Gone, PoolPhase::Deleting) => {
                entry.told = Some(generation);
                self.writer.remove_app(id.clone());
            }
            (PoolOutcome::Succeeded, PoolPhase::InProgress | PoolPhase::Failed) => {
                entry.told = Some(generation);
                entry.is_mended = true;
                self.writer.outcome(id.clone(), generation, None);
                self.tell_pool(
                    about,
                    EventKind::Normal,
                    "SessionPoolReady",
                    "The session pool is ready".to_owned(),
                    now,
                );
            }
            (PoolOutcome::Failed { reason, message }, PoolPhase::InProgress) => {
                entry.told = Some(generation);
                let failure = Failure { code: reason.to_owned(), message: message.clone() };
                self.writer.outcome(id.clone(), generation, Some(failure));
                self.tell_pool(about, EventKind::Warning, reason, message, now);
            }
            _ => {}
        }
    }

    fn tell_pool(
        &self,
        (key, environment): (RevisionKey, Option<ResourceId>),
        kind: EventKind,
        reason: &str,
        message: String,
        at: Timestamp,
    ) {
        let event = SystemEvent {
            at,
            kind,
            reason: reason.to_owned(),
            message,
            environment: environment.map(|id| id.to_string()),
            app: Some(key.app.to_string()),
            revision: Some(key.name.to_string()),
            replica: None,
            container: None,
            source: "SessionPoolController".to_owned(),
        };
        if self.deps.events.try_send(event).is_err() {
            tracing::debug!(reason, "a system event was dropped: its reader is behind or gone");
        }
    }

    /// What requests and the ingress need to know of a pool.
    fn publish_pool(&mut self, id: &ResourceId) {
        let Some(entry) = self.sessions.entries.get_mut(id) else { return };
        let data = &entry.data;
        let gateway = self.config.sessions.gateway.filter(|_| data.phase != PoolPhase::Deleting);
        let host = gateway
            .and(data.environment.as_ref())
            .map(|environment| format!("{}.{}", id.name(), environment.default_domain).to_ascii_lowercase());
        let wanted = edge::of_pool(&data.pool, host.clone());
        if let Some(gateway) = gateway.filter(|_| host.is_some()) {
            let (key, endpoints) = edge::gateway_of(id, gateway);
            self.deps.endpoints.set(key, endpoints);
        }
        let outcome = edge::publish(&mut self.table, &mut entry.published, id, wanted);
        self.table_changed |= outcome.is_changed;
        for conflict in outcome.conflicts {
            tracing::warn!(pool = %id, "{conflict}");
        }
        self.sessions.table.set_pool(PoolInfo {
            id: id.clone(),
            container: data.pool.container,
            lifecycle: data.pool.lifecycle,
            sessions_max: data.pool.sessions_max,
            host,
        });
        self.sessions.table.set_snapshots(id, entry.snapshots.values());
    }

    /// A pool is not in the store any more; whatever still runs of it is an orphan.
    fn forget_pool(&mut self, id: &ResourceId) {
        let Some(mut entry) = self.sessions.entries.remove(id) else { return };
        self.release(id);
        if let Some(at) = entry.wake_at {
            self.sessions.wakes.remove(&(at, id.clone()));
        }
        self.sessions.starting = self.sessions.starting.saturating_sub(entry.starting);
        self.sessions.hungry.remove(id);
        self.sessions.last_uses.forget_pool(id);
        self.sessions.table.remove_pool(id);
        self.sessions.is_sweep_due = true;
        let outcome = edge::publish(&mut self.table, &mut entry.published, id, edge::Wanted::default());
        self.table_changed |= outcome.is_changed;
        self.deps.endpoints.remove(&edge::gateway_key(id));
        let waiters: Vec<(SessionIdentifier, _)> = std::mem::take(&mut entry.waiters).into_iter().collect();
        for (answer, _) in waiters.into_iter().flat_map(|(_, waiters)| waiters) {
            let _caller_left = answer.send(Err(AllocateError::UnknownPool));
        }
        for name in &entry.generations {
            let key = RevisionKey { app: id.clone(), name: name.clone() };
            self.deps.runtime.forget_images(&key);
            self.end_orphans(&key);
        }
    }
}
