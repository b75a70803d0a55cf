//! Writes what loops found out, behind their backs: the newest value per key, in batches, tried again until it works.
//!
//! **Invariant:** an outcome is told only after the statuses that belong to it are on disk.
//! **Invariant:** bounded: one value per app, revision and kind; of plans, the newest [`PLANS_MAX`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cove_base::{Backoff, Busy, Clock};
use cove_model::{ReplicaObservation, ResourceId, RevisionKey, RevisionName, RevisionStatus};
use cove_store::{Failure, PlanRow, Store, StoreError};
use futures_util::future::try_join_all;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Plans that wait to be written; older ones are dropped.
const PLANS_MAX: usize = 4096;

/// What waits to be written.
#[derive(Debug, Default)]
struct Pending {
    statuses: BTreeMap<RevisionKey, RevisionStatus>,
    replicas: BTreeMap<RevisionKey, Arc<Vec<ReplicaObservation>>>,
    active: BTreeMap<ResourceId, Vec<RevisionName>>,
    outcomes: BTreeMap<ResourceId, (u64, Option<Failure>)>,
    removed_revisions: BTreeSet<RevisionKey>,
    removed_apps: BTreeSet<ResourceId>,
    plans: VecDeque<(ResourceId, PlanRow)>,
    /// There is something: a virtual clock is not at rest until it is written.
    busy: Option<Busy>,
}

/// Writes that are handed to the store at once: far fewer than its queue takes, since each one beyond that holds a thread.
const TOGETHER_MAX: usize = 256;

/// Takes what is to be written; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    clock: Clock,
    pending: Arc<Mutex<Pending>>,
    notify: Arc<Notify>,
}

impl Writer {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, pending: Arc::default(), notify: Arc::default() }
    }

    pub(crate) fn status(&self, key: RevisionKey, status: RevisionStatus) {
        self.add(|pending| drop(pending.statuses.insert(key, status)));
    }

    pub(crate) fn replicas(&self, key: RevisionKey, replicas: Arc<Vec<ReplicaObservation>>) {
        self.add(|pending| drop(pending.replicas.insert(key, replicas)));
    }

    pub(crate) fn active(&self, app: ResourceId, active: Vec<RevisionName>) {
        self.add(|pending| drop(pending.active.insert(app, active)));
    }

    pub(crate) fn outcome(&self, app: ResourceId, generation: u64, failure: Option<Failure>) {
        self.add(|pending| drop(pending.outcomes.insert(app, (generation, failure))));
    }

    pub(crate) fn remove_revision(&self, key: RevisionKey) {
        self.add(|pending| {
            pending.statuses.remove(&key);
            pending.replicas.remove(&key);
            pending.removed_revisions.insert(key);
        });
    }

    pub(crate) fn remove_app(&self, app: ResourceId) {
        self.add(|pending| {
            pending.removed_apps.insert(app);
        });
    }

    pub(crate) fn plan(&self, app: ResourceId, plan: PlanRow) {
        self.add(|pending| {
            if pending.plans.len() >= PLANS_MAX {
                pending.plans.pop_front();
            }
            pending.plans.push_back((app, plan));
        });
    }

    fn add(&self, change: impl FnOnce(&mut Pending)) {
        {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut pending);
            pending.busy.get_or_insert_with(|| self.clock.busy("statuses that are written down"));
        }
        self.notify.notify_one();
    }

    fn take(&self) -> Pending {
        std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts back what could not be written, below anything newer.
    fn put_back(&self, mut old: Pending) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = std::mem::take(&mut *pending);
        old.statuses.extend(newer.statuses);
        old.replicas.extend(newer.replicas);
        old.active.extend(newer.active);
        old.outcomes.extend(newer.outcomes);
        old.removed_revisions.extend(newer.removed_revisions);
        old.removed_apps.extend(newer.removed_apps);
        old.plans.extend(newer.plans);
        old.busy = old.busy.or(newer.busy);
        while old.plans.len() > PLANS_MAX {
            old.plans.pop_front();
        }
        *pending = old;
    }

    /// Writes until shutdown, then once more.
    pub(crate) async fn run(self, store: Store, shutdown: CancellationToken) {
        let clock = self.clock.clone();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            tokio::select! {
                () = self.notify.notified() => {}
                () = shutdown.cancelled() => {
                    let mut rest = self.take();
                    if let Err(error) = write(&store, &clock, &mut rest).await {
                        tracing::warn!(%error, "failed to write the last statuses; they are found again at the next start");
                    }
                    return;
                }
            }
            let mut batch = self.take();
            match write(&store, &clock, &mut batch).await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    tracing::error!(%error, "failed to write statuses; trying again");
                    self.put_back(batch);
                    self.notify.notify_one();
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        () = tokio::time::sleep(backoff.next_wait()) => {}
                    }
                }
            }
        }
    }
}

/// Writes a batch; what was written is taken out of it. Writes of one kind go to the store together: it commits what
/// waits in one go.
async fn write(store: &Store, clock: &Clock, batch: &mut Pending) -> Result<(), StoreError> {
    let now = clock.now();
    if !batch.statuses.is_empty() {
        store.set_revision_statuses(batch.statuses.clone().into_iter().collect()).await?;
        batch.statuses.clear();
    }
    let replicas: Vec<_> = batch.replicas.iter().collect();
    for part in replicas.chunks(TOGETHER_MAX) {
        let set = part.iter().map(|(key, seen)| store.set_replicas((*key).clone(), seen.as_ref().clone()));
        try_join_all(set).await?;
    }
    batch.replicas.clear();
    let active = batch.active.iter();
    try_join_all(active.map(|(app, active)| store.set_active(app.clone(), active.clone(), now))).await?;
    batch.active.clear();
    if !batch.removed_revisions.is_empty() {
        store.remove_revisions(batch.removed_revisions.iter().cloned().collect()).await?;
        batch.removed_revisions.clear();
    }
    let outcomes = batch.outcomes.iter();
    let finish = |(app, (generation, failure)): (&ResourceId, &(u64, Option<Failure>))| {
        store.finish(app.clone(), *generation, failure.clone(), now)
    };
    try_join_all(outcomes.map(finish)).await?;
    batch.outcomes.clear();
    for part in batch.plans.make_contiguous().chunks(TOGETHER_MAX) {
        try_join_all(part.iter().map(|(app, plan)| store.record_plan(app.clone(), plan.clone()))).await?;
    }
    batch.plans.clear();
    try_join_all(batch.removed_apps.iter().map(|app| store.remove(app.clone(), now))).await?;
    batch.removed_apps.clear();
    Ok(())
}
