//! What starts executions of jobs by itself, wired: jobs from the store, executions into it, decisions to `explain`.
//!
//! **Invariant:** an execution is in the store before anything else is; the controller follows the store's notice.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Json,
    extract::{Query, State},
    http::StatusCode,
};
use cove_autoscaler::{
    BoxError, Executions, JobDeps, JobHandle, JobService, JobState, OpenCount, RuleSources, StartError, StartRequest,
    TriggeredJob,
};
use cove_base::{Board, Clock};
use cove_model::{Execution, ExecutionCause, JOB_KIND, Job, ResourceId, RevisionKey, RevisionName, SystemEvent};
use cove_store::{Inserted, Provisioning, Store, StoreError};
use futures_util::{FutureExt, future::BoxFuture, future::join_all};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::extensions::{Context, Failed, internal};

/// Names drawn for an execution before it is given up: one of 36^7 is taken by chance only.
const NAMES_TRIED: usize = 8;

/// How often, and for how long at most, it is looked whether executions have begun.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const BEGIN_LIMIT: Duration = Duration::from_secs(30);

/// The handle, filled once the triggers are made.
pub(crate) type JobCell = Arc<OnceLock<JobHandle>>;

/// The triggers and what tells them of jobs.
pub(crate) fn make(
    (store, clock): (&Store, &Clock),
    jobs: Board<ResourceId, TriggeredJob>,
    rules: RuleSources,
    config: &cove_autoscaler::Config,
    events: mpsc::Sender<SystemEvent>,
) -> (JobService, impl Future<Output = ()> + Send + 'static) {
    let deps = JobDeps {
        clock: clock.clone(),
        jobs: jobs.clone(),
        executions: Arc::new(Stored { store: store.clone(), clock: clock.clone() }),
        rules,
        read_deadline: config.settings.read_deadline,
        decisions_kept: config.decisions_kept,
        events,
    };
    (JobService::new(deps), follow(store.clone(), clock.clone(), jobs))
}

/// Puts every job of the store on the board.
async fn follow(store: Store, clock: Clock, jobs: Board<ResourceId, TriggeredJob>) {
    let mut changes = store.changes();
    let mut worker = clock.worker("list of jobs");
    loop {
        for id in worker.wait(changes.next()).await {
            if !id.kind().eq_ignore_ascii_case(JOB_KIND) {
                continue;
            }
            match load(&store, &id) {
                Ok(Some(job)) => {
                    jobs.set(id, job);
                }
                Ok(None) => {
                    jobs.remove(&id);
                }
                Err(error) => tracing::error!(job = %id, %error, "a job could not be loaded; it keeps its old trigger"),
            }
        }
    }
}

fn load(store: &Store, id: &ResourceId) -> Result<Option<TriggeredJob>, BoxError> {
    let row = store.resource(id)?.filter(|row| row.provisioning != Provisioning::Deleting);
    let Some((spec, changed_at)) = row.and_then(|row| Some((row.spec?, row.updated_at))) else { return Ok(None) };
    Ok(Some(TriggeredJob { job: Arc::new(serde_json::from_value(spec)?), changed_at }))
}

/// The store, as triggers see it.
#[derive(Debug)]
struct Stored {
    store: Store,
    clock: Clock,
}

impl Executions for Stored {
    fn open(&self, job: &ResourceId) -> BoxFuture<'_, Result<OpenCount, BoxError>> {
        let counted = self.store.count_open_executions(job);
        async move {
            let counted = counted?;
            Ok(OpenCount { running: counted.running, pending: counted.pending })
        }
        .boxed()
    }

    fn start(&self, request: StartRequest) -> BoxFuture<'_, Result<Vec<RevisionName>, StartError>> {
        async move {
            let job = request.job.id.clone();
            let names = start(&self.store, request).await?;
            if self.clock.is_virtual() {
                begun(&self.store, &job, &names).await;
            }
            Ok(names)
        }
        .boxed()
    }

    fn state(&self, job: &ResourceId) -> BoxFuture<'_, Result<Option<JobState>, BoxError>> {
        let state = self.store.job_state(job);
        async move { Ok(state?.map(serde_json::from_value).transpose()?) }.boxed()
    }

    fn save(&self, job: &ResourceId, state: JobState) -> BoxFuture<'_, Result<(), BoxError>> {
        let job = job.clone();
        async move { Ok(self.store.set_job_state(job, serde_json::to_value(state)?).await?) }.boxed()
    }
}

async fn start(store: &Store, request: StartRequest) -> Result<Vec<RevisionName>, StartError> {
    let StartRequest { job, causes, replaces, now } = request;
    let before = if replaces { store.open_executions(&job.id).map_err(failed)? } else { Vec::new() };
    let started = causes.into_iter().map(|cause| start_one(store, &job, cause, now));
    let mut names = Vec::new();
    let mut of_causes = Vec::new();
    for started in join_all(started).await {
        let (name, is_new) = started?;
        of_causes.push(name.clone());
        names.extend(is_new.then_some(name));
    }
    // Only now: should the server end in between, the same causes are asked for again.
    for old in before.into_iter().map(|old| old.name).filter(|name| !of_causes.contains(name)) {
        store.stop_executions(job.id.clone(), Some(old), now).await.map_err(failed)?;
    }
    Ok(names)
}

/// Waits, in real time, until executions have begun, or it is known why they have not: a virtual clock, which does not move
/// on before this returns, would else be hours further when they do.
async fn begun(store: &Store, job: &ResourceId, names: &[RevisionName]) {
    let waiting = async {
        for name in names {
            let key = RevisionKey { app: job.clone(), name: name.clone() };
            let is_waiting =
                |one: &Execution| one.started_at.is_none() && one.reason.is_none() && !one.status.is_final();
            while store.execution(&key).ok().flatten().as_ref().is_some_and(is_waiting) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    };
    if tokio::time::timeout(BEGIN_LIMIT, waiting).await.is_err() {
        tracing::warn!(%job, "executions begin later than the virtual clock waits for them");
    }
}

/// One execution per cause; its name, and whether it is new.
async fn start_one(
    store: &Store,
    job: &Job,
    cause: ExecutionCause,
    now: Timestamp,
) -> Result<(RevisionName, bool), StartError> {
    for _ in 0..NAMES_TRIED {
        let name =
            cove_model::execution_name(job.id.name(), &suffix()).map_err(|error| StartError::Failed(error.into()))?;
        match store.insert_execution(job.execution(name.clone(), cause.clone(), None, now)).await {
            Ok(Inserted::New) => return Ok((name, true)),
            Ok(Inserted::Known(name)) => return Ok((name, false)),
            Err(StoreError::ExecutionExists { .. }) => {}
            Err(StoreError::NotFound { .. }) => return Err(StartError::Gone),
            Err(error) => return Err(failed(error)),
        }
    }
    Err(StartError::Failed(format!("no name was free in {NAMES_TRIED} draws").into()))
}

fn failed(error: StoreError) -> StartError {
    StartError::Failed(error.into())
}

/// The characters behind an execution's name.
fn suffix() -> String {
    const CHARACTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let character = |_| char::from(CHARACTERS[rand::random_range(0..CHARACTERS.len())]);
    (0..cove_model::EXECUTION_SUFFIX_LENGTH).map(character).collect()
}

/// `GET /jobs/explain`: the last ticks or polls of a job, oldest first.
pub(crate) async fn explain(
    State(context): State<Arc<Context>>,
    Query(query): Query<ExplainQuery>,
) -> Result<Json<Value>, Failed> {
    let refused = |message: String| Failed(StatusCode::BAD_REQUEST, "InvalidResourceId", message);
    let id = ResourceId::parse(&query.job).map_err(|error| refused(error.to_string()))?;
    if !id.kind().eq_ignore_ascii_case(JOB_KIND) {
        return Err(refused(format!("`{id}` is not a job; expected an id of {JOB_KIND}")));
    }
    let Some(job) = load(&context.store, &id).map_err(|error| internal(error.as_ref()))? else {
        let message = format!("there is no job `{}`", id.name());
        return Err(Failed(StatusCode::NOT_FOUND, "ResourceNotFound", message));
    };
    let triggers = context.jobs.get().and_then(|jobs| jobs.triggers_of(&id)).unwrap_or_default();
    Ok(Json(json!({
        "job": id,
        "triggerType": job.job.trigger.as_arm(),
        "nextAt": triggers.next_at,
        "value": triggers.decisions,
    })))
}

#[derive(Debug, Deserialize)]
pub(crate) struct ExplainQuery {
    job: String,
}

#[cfg(test)]
mod tests;
