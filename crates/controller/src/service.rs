//! The planning task: gathers notices, plans the apps they concern, sleeps.
//!
//! **Invariant:** a notice carries no data; what is planned is what the boards say at that moment.

use std::{
    collections::{BTreeSet, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use cove_base::{OnCancel, OnError, TaskKind, Tasks};
use cove_model::{ReplicaName, ResourceId, RevisionKey};
use cove_traffic::RouteTable;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Deps, Handle,
    capacity::Ledger,
    edge::{self, Published, Wanted},
    entry::Entry,
    events::{About, Teller},
    jobs::{self, Jobs},
    loader::{self, Batch},
    saver,
    sessions::{self, SessionPools, Sessions},
    writer::Writer,
};

/// Batches that may wait between loader and planning task.
const BATCHES_MAX: usize = 16;
/// Plans of one app in one round: what one plan changed may let the next one go on. More wait for the next notice.
const PASSES_MAX: u32 = 8;
/// How long the last writes may take at shutdown.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// The service; made by [`Controller::new`], driven by [`Controller::run`].
#[derive(Debug)]
pub struct Controller {
    pub(crate) brain: Brain,
}

/// Everything that the planning task holds.
#[derive(Debug)]
pub(crate) struct Brain {
    pub(crate) config: Config,
    pub(crate) deps: Deps,
    pub(crate) handle: Handle,
    pub(crate) teller: Teller,
    pub(crate) writer: Writer,
    /// Boxed: a map keeps room for more than it has.
    pub(crate) entries: HashMap<ResourceId, Box<Entry>>,
    pub(crate) dirty: BTreeSet<ResourceId>,
    /// Revisions whose replicas changed since their app was planned.
    pub(crate) observed: BTreeSet<RevisionKey>,
    pub(crate) wakes: BTreeSet<(Timestamp, ResourceId)>,
    pub(crate) draining: HashMap<ReplicaName, ResourceId>,
    /// What the ingress is told; a copy shares what did not change.
    pub(crate) table: RouteTable,
    pub(crate) table_changed: bool,
    /// Entries of path routing in the table.
    pub(crate) path_routes: HashMap<ResourceId, Published>,
    /// Who takes what of the machine.
    pub(crate) ledger: Ledger,
    /// Apps of the store whose document or secrets are damaged.
    pub(crate) unreadable: BTreeSet<ResourceId>,
    /// When slots are to be divided again.
    pub(crate) slots_at: Option<Timestamp>,
    /// Jobs and their executions.
    pub(crate) jobs: Jobs,
    /// Session pools and their sessions.
    pub(crate) sessions: SessionPools,
    is_loaded: bool,
}

/// What the planning task waits for.
enum Notice {
    Desired(BTreeSet<RevisionKey>),
    Observed(BTreeSet<RevisionKey>),
    Drained(BTreeSet<ReplicaName>),
    Loaded(Batch),
    JobsLoaded(jobs::Batch),
    JobsWritten(Vec<RevisionKey>),
    Sessions(sessions::Notice),
    Time,
}

impl Controller {
    /// A controller that does nothing until it is run.
    #[must_use]
    pub fn new(mut config: Config, deps: Deps) -> Self {
        if deps.clock.is_virtual() {
            // its time stands still while sessions are made
            config.sessions.settings.refill_rest = SignedDuration::ZERO;
        }
        let teller = Teller { events: deps.events.clone(), clock: deps.clock.clone() };
        let writer = Writer::new(deps.clock.clone());
        let jobs = Jobs::new(deps.clock.clone());
        let sessions = SessionPools::new(deps.clock.clone(), config.sessions.ready_deadline);
        Self {
            brain: Brain {
                config,
                deps,
                handle: Handle::default(),
                teller,
                writer,
                entries: HashMap::new(),
                dirty: BTreeSet::new(),
                observed: BTreeSet::new(),
                wakes: BTreeSet::new(),
                draining: HashMap::new(),
                table: RouteTable::default(),
                table_changed: true,
                path_routes: HashMap::new(),
                ledger: Ledger::default(),
                unreadable: BTreeSet::new(),
                slots_at: None,
                jobs,
                sessions,
                is_loaded: false,
            },
        }
    }

    /// What others may ask.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.brain.handle.clone()
    }

    /// Sessions of pools: who asks gets one.
    #[must_use]
    pub fn sessions(&self) -> Sessions {
        self.brain.sessions.table.clone()
    }

    /// Runs until shutdown. Replicas go on without it.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut brain = self.brain;
        let tasks = Tasks::new(shutdown.clone());
        let kind = |name| TaskKind { name, on_error: OnError::Shutdown, on_cancel: OnCancel::Wait };
        let (batches, loaded) = mpsc::channel(BATCHES_MAX);
        tasks.spawn(kind("controller-loader"), loader::follow(brain.deps.store.clone(), batches, shutdown.clone()));
        let writer = brain.writer.clone();
        tasks.spawn(kind("controller-writer"), writer.run(brain.deps.store.clone(), shutdown.clone()));
        let (batches, jobs_loaded) = mpsc::channel(BATCHES_MAX);
        tasks.spawn(kind("controller-jobs-loader"), jobs::follow(brain.deps.store.clone(), batches, shutdown.clone()));
        let ((writes, to_write), (told, jobs_written)) = (mpsc::channel(1), mpsc::channel(1));
        brain.jobs.write_to(writes);
        let store = brain.deps.store.clone();
        let save = move |batch| {
            let store = store.clone();
            async move { store.save_executions(batch).await }
        };
        let write = saver::run("executions", (to_write, told), save, shutdown.clone());
        tasks.spawn(kind("controller-jobs-writer"), write);
        let (batches, loaded_pools) = mpsc::channel(BATCHES_MAX);
        let pools = sessions::follow(brain.deps.store.clone(), batches, shutdown.clone());
        tasks.spawn(kind("controller-sessions-loader"), pools);
        let ((writes, to_write), (told, written)) = (mpsc::channel(1), mpsc::channel(1));
        brain.sessions.write_to(writes);
        let store = brain.deps.store.clone();
        let save = move |batch| {
            let store = store.clone();
            async move { store.save_sessions(batch).await }
        };
        let write = saver::run("sessions", (to_write, told), save, shutdown.clone());
        tasks.spawn(kind("controller-sessions-writer"), write);
        let (jobs, keeper_jobs) = mpsc::channel(sessions::KEEPER_JOBS_MAX);
        let keeper = sessions::Keeper {
            store: brain.deps.store.clone(),
            runtime: Arc::clone(&brain.deps.runtime),
            clock: brain.deps.clock.clone(),
            bytes_max: brain.config.sessions.snapshot_bytes_max,
            orders: brain.sessions.table.orders(),
        };
        brain.sessions.keep_with(jobs);
        tasks.spawn(kind("controller-sessions-keeper"), keeper.run(keeper_jobs, shutdown.clone()));
        let orders = brain.sessions.orders.take().expect("a controller runs once");
        let feeds = sessions::Feeds { loaded: loaded_pools, written, orders };
        brain.follow(loaded, (jobs_loaded, jobs_written), feeds, shutdown).await;
        if !tasks.drain(SHUTDOWN_LIMIT).await {
            tracing::warn!("the last statuses were not written in time; they are found again at the next start");
        }
    }
}

impl Brain {
    async fn follow(
        &mut self,
        mut loaded: mpsc::Receiver<Batch>,
        (mut jobs_loaded, mut jobs_written): (mpsc::Receiver<jobs::Batch>, mpsc::Receiver<Vec<RevisionKey>>),
        mut feeds: sessions::Feeds,
        shutdown: CancellationToken,
    ) {
        // beside a virtual clock: it is not moved on while this plans
        let mut worker = self.deps.clock.worker("controller");
        let mut desired = self.deps.desired.subscribe();
        let mut observations = self.deps.runtime.observations().subscribe();
        let mut drained = self.deps.drained.subscribe();
        loop {
            let next = self.next_wake();
            let sleep = async {
                match next {
                    Some(at) => self.deps.clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let is_loaded = self.is_loaded;
            let takes_orders = self.sessions.is_loaded();
            let notice = async {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => None,
                    keys = desired.next(), if is_loaded => Some(Notice::Desired(keys)),
                    keys = observations.next(), if is_loaded => Some(Notice::Observed(keys)),
                    names = drained.next(), if is_loaded => Some(Notice::Drained(names)),
                    batch = loaded.recv() => batch.map(Notice::Loaded),
                    Some(keys) = jobs_written.recv() => Some(Notice::JobsWritten(keys)),
                    Some(batch) = jobs_loaded.recv() => Some(Notice::JobsLoaded(batch)),
                    Some(notice) = feeds.next(takes_orders) => Some(Notice::Sessions(notice)),
                    () = sleep => Some(Notice::Time),
                }
            };
            match worker.wait(notice).await {
                None => return,
                Some(Notice::Desired(keys)) => self.dirty.extend(keys.into_iter().map(|key| key.app)),
                Some(Notice::Observed(keys)) => self.observed(keys),
                Some(Notice::Drained(names)) => {
                    let apps = names.iter().filter_map(|name| self.draining.get(name));
                    self.dirty.extend(apps.cloned().collect::<Vec<_>>());
                }
                Some(Notice::Loaded(batch)) => self.take(batch),
                Some(Notice::JobsLoaded(batch)) => self.take_jobs(batch),
                Some(Notice::JobsWritten(keys)) => self.jobs_written(keys, self.deps.clock.now()),
                Some(Notice::Sessions(notice)) => self.take_sessions(notice),
                Some(Notice::Time) => {}
            }
            self.round();
        }
    }

    fn next_wake(&self) -> Option<Timestamp> {
        if !self.is_loaded {
            return None;
        }
        if !self.dirty.is_empty() {
            return Some(self.deps.clock.now());
        }
        let app = self.wakes.first().map(|(at, _)| *at);
        let job = self.jobs.next_wake(self.deps.clock.now());
        let session = self.sessions.next_wake(self.deps.clock.now());
        [app, self.slots_at, job, session].into_iter().flatten().min()
    }

    fn observed(&mut self, keys: BTreeSet<RevisionKey>) {
        for key in keys {
            if jobs::is_job(&key.app) {
                self.job_observed(key);
                continue;
            }
            if sessions::is_pool(&key.app) {
                self.pool_observed(key);
                continue;
            }
            match self.entries.get(&key.app) {
                Some(entry) if entry.known(&key.name).is_some() => {
                    self.dirty.insert(key.app.clone());
                    self.observed.insert(key);
                }
                Some(_) | None => self.end_orphans(&key),
            }
        }
    }

    /// Takes what the loader read.
    fn take(&mut self, batch: Batch) {
        for (id, routes) in batch.path_routes {
            let published = self.path_routes.entry(id.clone()).or_default();
            let wanted = routes.map(edge::of_paths).unwrap_or_default();
            let is_gone = wanted.is_empty();
            let outcome = edge::publish(&mut self.table, published, &id, wanted);
            self.table_changed |= outcome.is_changed;
            for conflict in outcome.conflicts {
                tracing::warn!(route = %id, "{conflict}");
            }
            if is_gone {
                self.path_routes.remove(&id);
            }
        }
        self.unreadable.extend(batch.unreadable);
        for (id, data) in batch.apps {
            self.unreadable.remove(&id);
            let Some(data) = data else {
                self.forget_app(&id);
                continue;
            };
            self.dirty.insert(id.clone());
            let is_running = self.is_loaded;
            match self.entries.get_mut(&id) {
                Some(entry) => {
                    let before = entry.data.generation;
                    let (new, gone) = entry.update(*data);
                    if entry.data.generation != before {
                        let message = format!("Updating containerApp: {}", id.name());
                        self.teller.normal(&entry.data.app, About::default(), "ContainerAppUpdate", message);
                    }
                    self.tell_new(&id, &new);
                    for key in gone {
                        self.forget_revision(&key);
                    }
                }
                None => {
                    let seed = seed_of(self.config.name_seed, &id);
                    let entry = Box::new(Entry::new(*data, seed));
                    let new: Vec<_> = entry.revisions.iter().map(|known| known.key.clone()).collect();
                    if is_running {
                        let message = format!("Creating containerApp: {}", id.name());
                        self.teller.normal(&entry.data.app, About::default(), "ContainerAppCreation", message);
                    }
                    self.observed.extend(new.iter().cloned());
                    self.entries.insert(id.clone(), entry);
                    if is_running {
                        self.tell_new(&id, &new);
                    }
                }
            }
        }
        if !self.is_loaded && batch.is_last {
            self.is_loaded = true;
            let keys = self.deps.runtime.observations().snapshot().into_iter().map(|(key, _)| key);
            self.observed(keys.collect());
        }
    }

    fn tell_new(&self, app: &ResourceId, revisions: &[RevisionKey]) {
        let Some(entry) = self.entries.get(app) else { return };
        for key in revisions {
            let about = About { revision: Some(&key.name), replica: None };
            let message = format!("Creating a new revision: {}", key.name);
            self.teller.normal(&entry.data.app, about, "RevisionCreation", message);
        }
    }

    /// Plans what is due and publishes what changed.
    fn round(&mut self) {
        if !self.is_loaded {
            return;
        }
        let now = self.deps.clock.now();
        while self.wakes.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, id)) = self.wakes.pop_first()
        {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.wake_at = None;
                self.dirty.insert(id);
            }
        }
        if self.slots_at.is_some_and(|at| at <= now) {
            self.divide_slots(now);
        }
        for _ in 0..PASSES_MAX {
            for id in std::mem::take(&mut self.dirty) {
                let planned = catch_unwind(AssertUnwindSafe(|| self.plan_app(&id, now)));
                if planned.is_err() {
                    tracing::error!(app = %id, "planning an app panicked; it is taken up anew when it changes");
                }
            }
            self.publish();
            self.plan_jobs(now);
            self.plan_sessions(now);
            if self.dirty.is_empty() {
                break;
            }
        }
        // requests to sessions must find their pools from the first one on
        if self.sessions.is_loaded() {
            self.deps.loaded.send_if_modified(|loaded| !std::mem::replace(loaded, true));
        }
    }

    /// Publishes the route table if it changed.
    fn publish(&mut self) {
        if std::mem::take(&mut self.table_changed) {
            self.deps.routes.send_replace(Arc::new(self.table.clone()));
        }
    }

    /// Forgets an app that is not in the store any more; whatever still runs of it is an orphan.
    pub(crate) fn forget_app(&mut self, id: &ResourceId) {
        let Some(mut entry) = self.entries.remove(id) else { return };
        self.release(id);
        if let Some(at) = entry.wake_at {
            self.wakes.remove(&(at, id.clone()));
        }
        let outcome = edge::publish(&mut self.table, &mut entry.published, id, Wanted::default());
        self.table_changed |= outcome.is_changed;
        for name in &entry.draining {
            self.draining.remove(name);
        }
        for known in &entry.revisions {
            self.forget_revision(&known.key);
        }
    }

    /// Forgets a revision that is not in the store any more.
    pub(crate) fn forget_revision(&mut self, key: &RevisionKey) {
        self.deps.endpoints.remove(key);
        self.handle.forget(key);
        self.deps.scaled.remove(key);
        self.end_orphans(key);
    }
}

/// Every app names its replicas from a seed of its own.
pub(crate) fn seed_of(seed: u64, id: &ResourceId) -> u64 {
    id.key()
        .bytes()
        .fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
