//! Reads jobs and their new executions from the store, off the planning task.
//!
//! **Invariant:** an execution is handed over once; after that the planning task knows it better than the store.
//! **Invariant:** the batches up to the first last one hold every execution that has not ended.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use cove_base::Backoff;
use cove_model::{Execution, JOB_KIND, Job, ResourceId, RevisionName};
use cove_store::{Provisioning, Store, StoreError};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    entry::{JobData, JobPhase},
    is_job,
};
use crate::{
    loader::{ENVIRONMENT_KIND, environment_of, logins_of},
    storages,
};

/// Jobs that are read and handed on together.
const PART_MAX: usize = 64;

/// What became of some jobs.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// `None`: it is gone.
    pub(crate) jobs: Vec<(ResourceId, Option<Box<Loaded>>)>,
    /// Jobs that are there and whose document or secrets are damaged.
    pub(crate) unreadable: Vec<ResourceId>,
    /// Nothing more belongs to it.
    pub(crate) is_last: bool,
}

/// A job as the store has it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) data: JobData,
    /// Those that were not handed over before.
    pub(crate) executions: Vec<Execution>,
    /// Which are to be stopped.
    pub(crate) stops: Vec<(RevisionName, Timestamp)>,
}

/// How far the executions of each job were read.
type Seen = HashMap<ResourceId, i64>;

/// Follows the change feed until shutdown.
pub(crate) async fn follow(store: Store, batches: mpsc::Sender<Batch>, shutdown: CancellationToken) {
    let mut changes = store.changes();
    let mut seen = Seen::new();
    let mut is_first = true;
    let mut todo: BTreeSet<ResourceId> = BTreeSet::new();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        todo.extend(changes.take());
        if todo.is_empty() && !is_first {
            tokio::select! {
                () = shutdown.cancelled() => return,
                dirty = changes.next() => todo.extend(dirty),
            }
        }
        // whoever takes the batches may have ended before
        let loading = shutdown.run_until_cancelled(load_all(&store, &todo, is_first, &mut seen, &batches));
        let Some(loaded) = loading.await else { return };
        match loaded {
            Ok(true) => {
                backoff.reset();
                todo.clear();
                is_first = false;
            }
            Ok(false) => return,
            Err(error) => {
                tracing::error!(%error, "failed to read changed jobs");
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(backoff.next_wait()) => {}
                }
            }
        }
    }
}

/// `false` when nobody takes it any more.
async fn load_all(
    store: &Store,
    ids: &BTreeSet<ResourceId>,
    is_first: bool,
    seen: &mut Seen,
    batches: &mpsc::Sender<Batch>,
) -> Result<bool, StoreError> {
    let (reader, ids) = (store.clone(), ids.clone());
    let Ok(affected) = tokio::task::spawn_blocking(move || affected(&reader, &ids)).await else { return Ok(false) };
    let mut jobs = affected?.into_iter().peekable();
    if jobs.peek().is_none() && !is_first {
        return Ok(true);
    }
    loop {
        let part: Vec<(ResourceId, i64)> = jobs
            .by_ref()
            .take(PART_MAX)
            .map(|id| {
                let last = seen.get(&id).copied().unwrap_or(0);
                (id, last)
            })
            .collect();
        let is_last = jobs.peek().is_none();
        let reader = store.clone();
        let Ok(loaded) = tokio::task::spawn_blocking(move || load_part(&reader, part, is_last)).await else {
            return Ok(false);
        };
        let (batch, read) = loaded?;
        if batches.send(batch).await.is_err() {
            return Ok(false);
        }
        for (id, last) in read {
            match last {
                Some(last) => drop(seen.insert(id, last)),
                None => drop(seen.remove(&id)),
            }
        }
        if is_last {
            return Ok(true);
        }
    }
}

/// The batch, and how far each job was read; `None`: it is gone.
type Part = (Batch, Vec<(ResourceId, Option<i64>)>);

fn load_part(store: &Store, part: Vec<(ResourceId, i64)>, is_last: bool) -> Result<Part, StoreError> {
    let mut batch = Batch { is_last, ..Batch::default() };
    let mut read = Vec::new();
    for (id, last) in part {
        match store.at_one_moment(|store| load(store, &id, last)) {
            Ok(Some((loaded, last))) => {
                batch.jobs.push((id.clone(), Some(Box::new(loaded))));
                read.push((id, Some(last)));
            }
            Ok(None) => {
                batch.jobs.push((id.clone(), None));
                read.push((id, None));
            }
            // one that cannot be read must not keep all others from being loaded
            Err(error) if error.is_of_one_document() => {
                tracing::error!(job = %id, %error, "a job cannot be read; what runs of it goes on until it is put again");
                batch.unreadable.push(id);
            }
            Err(error) => return Err(error),
        }
    }
    Ok((batch, read))
}

/// The jobs that some changes are about.
fn affected(store: &Store, ids: &BTreeSet<ResourceId>) -> Result<BTreeSet<ResourceId>, StoreError> {
    let is = |id: &ResourceId, kind: &str| id.kind().eq_ignore_ascii_case(kind);
    let mut jobs = BTreeSet::new();
    for id in ids {
        if is_job(id) {
            jobs.insert(id.clone());
        } else if is(id, ENVIRONMENT_KIND) {
            jobs.extend(store.ids_in(JOB_KIND, id)?);
        } else if is(id, storages::KIND)
            && let Some(environment) = id.parent()
        {
            jobs.extend(store.ids_in(JOB_KIND, &environment)?);
        }
    }
    Ok(jobs)
}

fn load(store: &Store, id: &ResourceId, last: i64) -> Result<Option<(Loaded, i64)>, StoreError> {
    let Some(row) = store.snapshot::<Job>(id)? else { return Ok(None) };
    let Some(job) = row.spec else { return Ok(None) };
    let environment = environment_of(store, &job.environment)?;
    let secrets = store.secrets(id)?;
    let (executions, last) = store.open_executions_since(id, last)?;
    let stops = store.stop_requests(id)?;
    let templates = executions.iter().map(|execution| &*execution.template).chain([&job.template]);
    let storages = storages::load_of(store, &job.environment, templates)?;
    let phase = match row.provisioning {
        Provisioning::InProgress => JobPhase::InProgress,
        Provisioning::Succeeded | Provisioning::Failed | Provisioning::Canceled => JobPhase::Settled,
        Provisioning::Deleting => JobPhase::Deleting,
    };
    let data = JobData {
        id: job.id,
        generation: row.generation,
        phase,
        domain: environment.as_ref().map_or_else(|| "localhost".to_owned(), |found| found.default_domain.clone()),
        profiles: environment.map(|found| found.workload_profiles).unwrap_or_default(),
        environment: job.environment,
        logins: logins_of(&job.registries, &secrets),
        secrets,
        storages,
    };
    Ok(Some((Loaded { data, executions, stops }, last)))
}
