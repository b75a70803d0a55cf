//! What starts executions of jobs by itself: the clock for scheduled jobs, polls of rules for event-driven ones.
//!
//! Each job that has such a trigger has one task, so a job takes one step at a time, and a source that hangs holds up
//! nobody else. What is decided is pure (`scaling::schedule`, `scaling::job`); what
//! an execution is and that there is one per cause is behind [`Executions`].
//!
//! **Invariant:** a tick or poll is written down by its executions first, then as settled: a crash in between repeats the
//! step, and the cause finds the execution that is there.

mod event;
mod news;
mod schedule;
mod task;
mod triggers;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cove_base::{Board, Changes, Clock};
use cove_model::{ExecutionCause, Job, JobTrigger, ResourceId, RevisionKey, RevisionName, SystemEvent};
use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ports::BoxError;
use crate::reader::Readers;
use crate::sources::RuleSources;

pub use schedule::JobState;
pub use triggers::{JobDecision, JobDecisionKind, JobTriggers, Tick};

use task::{Task, Wake};

/// A job as its trigger wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriggeredJob {
    /// The job.
    pub job: Arc<Job>,
    /// Its last write by a user: ticks before it are not due when nothing else is remembered.
    pub changed_at: Timestamp,
}

/// Executions of a job that have not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenCount {
    /// All of them.
    pub running: u32,
    /// Those among them of which no replica has run yet.
    pub pending: u32,
}

/// What is asked for at once, in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct StartRequest {
    /// The job, as it was when the trigger was taken.
    pub job: Arc<Job>,
    /// One execution each; one that exists already is left as it is.
    pub causes: Vec<ExecutionCause>,
    /// Executions of other causes that have not ended are stopped, once the new ones are there.
    pub replaces: bool,
    /// The time.
    pub now: Timestamp,
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The job is gone, or being deleted.
    #[error("the job is gone")]
    Gone,
    /// It can be tried again.
    #[error("failed to start executions")]
    Failed(#[source] BoxError),
}

/// Executions as the triggers see them; the server wires the store. Every function is safe to repeat.
pub trait Executions: Send + Sync + 'static {
    /// Executions that have not ended.
    fn open(&self, job: &ResourceId) -> BoxFuture<'_, Result<OpenCount, BoxError>>;

    /// Puts executions in; gives the names of those that were not there before.
    fn start(&self, request: StartRequest) -> BoxFuture<'_, Result<Vec<RevisionName>, StartError>>;

    /// What [`Executions::save`] kept.
    fn state(&self, job: &ResourceId) -> BoxFuture<'_, Result<Option<JobState>, BoxError>>;

    /// Keeps what a trigger must know after a restart.
    fn save(&self, job: &ResourceId, state: JobState) -> BoxFuture<'_, Result<(), BoxError>>;
}

/// What the server wires.
#[derive(Clone)]
pub struct JobDeps {
    /// Time.
    pub clock: Clock,
    /// Every job; one that is taken off starts nothing more.
    pub jobs: Board<ResourceId, TriggeredJob>,
    /// Executions.
    pub executions: Arc<dyn Executions>,
    /// Event sources, secrets, tokens.
    pub rules: RuleSources,
    /// Longest that a reading may take; later is an error. Default 3 s, as for apps.
    pub read_deadline: SignedDuration,
    /// Distinct decisions kept in memory per job, 1..=1000. Default 16.
    pub decisions_kept: usize,
    /// System events; when full, they are dropped.
    pub events: mpsc::Sender<SystemEvent>,
}

impl fmt::Debug for JobDeps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobDeps").field("clock", &self.clock).finish_non_exhaustive()
    }
}

/// The triggers of all jobs; [`JobService::run`] is the whole of it.
#[derive(Debug)]
pub struct JobService {
    shared: Arc<Shared>,
    changes: Changes<ResourceId>,
}

/// Asks the triggers; cheap to clone.
#[derive(Clone, Debug)]
pub struct JobHandle {
    shared: Arc<Shared>,
}

/// What the tasks of all jobs share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) deps: JobDeps,
    pub(crate) readers: Arc<Readers>,
    /// What is known of each job's trigger.
    triggers: Mutex<BTreeMap<ResourceId, JobTriggers>>,
    /// Wakes the task of a job whose source pushed, or that changed.
    wakes: Arc<Wakes>,
}

type Wakes = Mutex<BTreeMap<ResourceId, Arc<Wake>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Changes what is known of a job's trigger.
    pub(crate) fn note(&self, job: &ResourceId, change: impl FnOnce(&mut JobTriggers)) {
        if let Some(triggers) = lock(&self.triggers).get_mut(job) {
            change(triggers);
        }
    }

    pub(crate) fn tell(&self, event: SystemEvent) {
        if self.deps.events.try_send(event).is_err() {
            tracing::warn!("an event of a job was lost: its reader is too slow");
        }
    }
}

impl JobHandle {
    /// Decisions and the next look of a job that the clock or events start; `None` for any other.
    pub fn triggers_of(&self, job: &ResourceId) -> Option<JobTriggers> {
        lock(&self.shared.triggers).get(job).cloned()
    }
}

impl JobService {
    /// Triggers that start nothing until they run.
    pub fn new(deps: JobDeps) -> Self {
        let wakes: Arc<Wakes> = Arc::default();
        let pushed = {
            let (wakes, clock) = (Arc::clone(&wakes), deps.clock.clone());
            move |key: &RevisionKey| {
                if let Some(wake) = lock(&wakes).get(&key.app) {
                    wake.ring(&clock);
                }
            }
        };
        let readers = Arc::new(Readers::new(deps.rules.clone(), Box::new(pushed)));
        let changes = deps.jobs.subscribe();
        Self { shared: Arc::new(Shared { deps, readers, triggers: Mutex::default(), wakes }), changes }
    }

    /// A handle to it.
    pub fn handle(&self) -> JobHandle {
        JobHandle { shared: Arc::clone(&self.shared) }
    }

    /// Runs until `shutdown`; a step that is under way then is dropped, and taken again after the next start.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { shared, changes: mut jobs } = self;
        let mut worker = shared.deps.clock.worker("triggers of jobs");
        let mut tasks: JoinSet<()> = JoinSet::new();
        shared.follow(&jobs.take(), &mut tasks);
        loop {
            let wake = async {
                tokio::select! {
                    () = shutdown.cancelled() => None,
                    changed = jobs.next() => Some(changed),
                    Some(ended) = tasks.join_next() => Some(without_fault(ended)),
                }
            };
            let Some(changed) = worker.wait(wake).await else { break };
            shared.follow(&changed, &mut tasks);
        }
        lock(&shared.wakes).clear();
        tasks.shutdown().await;
    }
}

impl Shared {
    /// Takes over what changed in the list of jobs.
    fn follow(self: &Arc<Self>, changed: &BTreeSet<ResourceId>, tasks: &mut JoinSet<()>) {
        let clock = &self.deps.clock;
        for id in changed {
            let job = self.deps.jobs.get(id).filter(|job| !matches!(job.job.trigger, JobTrigger::Manual(_)));
            let mut wakes = lock(&self.wakes);
            let Some(job) = job else {
                if let Some(gone) = wakes.remove(id) {
                    gone.stop.cancel();
                }
                lock(&self.triggers).remove(id);
                continue;
            };
            match wakes.get(id).filter(|known| known.has_task()) {
                Some(known) => known.tell(job, clock),
                None => {
                    let wake = Arc::new(Wake::new(job, clock));
                    lock(&self.triggers).insert(id.clone(), JobTriggers::default());
                    tasks.spawn(Task::new(Arc::clone(self), id.clone(), Arc::clone(&wake)).run());
                    wakes.insert(id.clone(), wake);
                }
            }
        }
    }
}

/// A task that ended: nothing is to be followed.
fn without_fault(ended: Result<(), tokio::task::JoinError>) -> BTreeSet<ResourceId> {
    if let Err(error) = ended {
        tracing::error!(%error, "the trigger of a job failed by a fault of its own; the job's next change starts it anew");
    }
    BTreeSet::new()
}

#[cfg(test)]
mod tests;
