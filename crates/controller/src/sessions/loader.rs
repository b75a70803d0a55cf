//! Reads session pools from the store, off the planning task, and of each its sessions once.
//!
//! **Invariant:** a pool's sessions are handed over with its first form; after that the planning task knows them better than
//! the store. **Invariant:** the batches up to the first last one hold every pool.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use cove_base::Backoff;
use cove_model::{ResourceId, SESSION_POOL_KIND, Session, SessionPool, SessionSnapshot};
use cove_store::{Provisioning, Store, StoreError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    entry::{PoolData, PoolPhase},
    is_pool,
};
use crate::{
    loader::{ENVIRONMENT_KIND, environment_of, logins_of},
    storages,
};

/// What became of some pools.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// `None`: it is gone.
    pub(crate) pools: Vec<(ResourceId, Option<Box<Loaded>>)>,
    /// Pools that are there and whose document, sessions or secrets are damaged.
    pub(crate) unreadable: Vec<ResourceId>,
    /// Nothing more belongs to it.
    pub(crate) is_last: bool,
}

/// A pool as the store has it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) data: PoolData,
    /// Its sessions and their kept snapshots. `None`: they were handed over before.
    pub(crate) sessions: Option<(Vec<Session>, Vec<SessionSnapshot>)>,
}

/// Follows the change feed until shutdown.
pub(crate) async fn follow(store: Store, batches: mpsc::Sender<Batch>, shutdown: CancellationToken) {
    let mut changes = store.changes();
    let mut seen: HashSet<ResourceId> = HashSet::new();
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
        let (reader, ids, known) = (store.clone(), todo.clone(), seen.clone());
        let Ok(loaded) = tokio::task::spawn_blocking(move || load_all(&reader, &ids, &known)).await else { return };
        match loaded {
            Ok(batch) => {
                backoff.reset();
                todo.clear();
                for (id, loaded) in &batch.pools {
                    if loaded.is_some() {
                        seen.insert(id.clone());
                    } else {
                        seen.remove(id);
                    }
                }
                let is_news = !batch.pools.is_empty() || !batch.unreadable.is_empty() || is_first;
                is_first = false;
                // whoever takes the batches may have ended before
                if is_news && !matches!(shutdown.run_until_cancelled(batches.send(batch)).await, Some(Ok(()))) {
                    return;
                }
            }
            Err(error) => {
                tracing::error!(%error, "failed to read changed session pools");
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(backoff.next_wait()) => {}
                }
            }
        }
    }
}

fn load_all(store: &Store, ids: &BTreeSet<ResourceId>, seen: &HashSet<ResourceId>) -> Result<Batch, StoreError> {
    let mut batch = Batch { is_last: true, ..Batch::default() };
    for id in affected(store, ids)? {
        match store.at_one_moment(|store| load(store, &id, seen.contains(&id))) {
            Ok(loaded) => batch.pools.push((id, loaded.map(Box::new))),
            // one that cannot be read must not keep all others from being loaded
            Err(error) if error.is_of_one_document() => {
                tracing::error!(pool = %id, %error, "a session pool cannot be read; its sessions go on until it is put again");
                batch.unreadable.push(id);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(batch)
}

/// The pools that some changes are about.
fn affected(store: &Store, ids: &BTreeSet<ResourceId>) -> Result<BTreeSet<ResourceId>, StoreError> {
    let is = |id: &ResourceId, kind: &str| id.kind().eq_ignore_ascii_case(kind);
    let mut pools = BTreeSet::new();
    for id in ids {
        if is_pool(id) {
            pools.insert(id.clone());
        } else if is(id, ENVIRONMENT_KIND) {
            pools.extend(store.ids_in(SESSION_POOL_KIND, id)?);
        } else if is(id, storages::KIND)
            && let Some(environment) = id.parent()
        {
            pools.extend(store.ids_in(SESSION_POOL_KIND, &environment)?);
        }
    }
    Ok(pools)
}

fn load(store: &Store, id: &ResourceId, is_seen: bool) -> Result<Option<Loaded>, StoreError> {
    let Some(row) = store.snapshot::<SessionPool>(id)? else { return Ok(None) };
    let Some(pool) = row.spec else { return Ok(None) };
    let environment = match &pool.environment {
        Some(environment) => environment_of(store, environment)?,
        None => None,
    };
    let secrets = store.secrets(id)?;
    let storages = match &pool.environment {
        Some(environment) => storages::load_of(store, environment, std::iter::once(&*pool.template))?,
        None => storages::Storages::new(),
    };
    let phase = match row.provisioning {
        Provisioning::InProgress => PoolPhase::InProgress,
        Provisioning::Failed => PoolPhase::Failed,
        Provisioning::Succeeded | Provisioning::Canceled => PoolPhase::Settled,
        Provisioning::Deleting => PoolPhase::Deleting,
    };
    let sessions = if is_seen { None } else { Some((store.sessions(id)?, store.session_snapshots(id)?)) };
    let data = PoolData {
        generation: row.generation,
        phase,
        domain: environment.as_ref().map_or_else(|| "localhost".to_owned(), |found| found.default_domain.clone()),
        environment,
        logins: logins_of(&pool.registries, &secrets),
        secrets,
        storages,
        pool,
    };
    Ok(Some(Loaded { data, sessions }))
}
