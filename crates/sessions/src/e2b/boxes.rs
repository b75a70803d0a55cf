//! The sandboxes there are: in memory, and in a small file each, so that they outlive the server.
//!
//! A sandbox holds its session like an open request, so the pool's cool-down does not end it before its own time does.
//!
//! **Invariant:** a sandbox is in its file before a client hears of it. **Invariant:** one that was removed is never found
//! again, also when its file could not be deleted: its time has come, or its session is gone.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use camino::{Utf8Path, Utf8PathBuf};
use cove_base::Clock;
use cove_model::{ResourceId, SessionIdentifier};
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::ports::{Lease, Pools};

/// What identifiers of sandboxes' sessions begin with.
const IDENTIFIER: &str = "e2b-";
/// How long to wait until a session is looked for again that was not there: a second more each time, up to this, which is
/// well below the shortest cool-down of a pool.
const AGAIN_MAX_SECONDS: u64 = 20;

/// A sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Sandbox {
    pub(super) id: String,
    pub(super) pool: ResourceId,
    /// As the client named it.
    pub(super) template: String,
    /// Of the session that it began with.
    pub(super) guid: String,
    /// Opens its services.
    pub(super) token: String,
    pub(super) started_at: Timestamp,
    pub(super) end_at: Timestamp,
    pub(super) metadata: BTreeMap<String, String>,
    /// Variables of all that is run in it.
    pub(super) envs: BTreeMap<String, String>,
}

impl Sandbox {
    /// The identifier of its session.
    pub(super) fn identifier(&self) -> Option<SessionIdentifier> {
        SessionIdentifier::new(format!("{IDENTIFIER}{}", self.id)).ok()
    }

    /// Whether this is its token; the time says nothing of how much of a guess is right.
    pub(super) fn is_token(&self, token: &[u8]) -> bool {
        digest(&SHA256, self.token.as_bytes()).as_ref() == digest(&SHA256, token).as_ref()
    }

    /// Whether the session that it began with is still its.
    pub(super) fn is_in(&self, pools: &dyn Pools) -> bool {
        let found = self.identifier().and_then(|identifier| pools.find(&self.pool, &identifier));
        found.is_some_and(|info| info.session.guid == self.guid)
    }
}

struct Held {
    sandbox: Arc<Sandbox>,
    /// Keeps the session; none until it is taken up again after a start of the server.
    lease: Option<Lease>,
}

/// All of them.
pub(super) struct Boxes {
    dir: Utf8PathBuf,
    clock: Clock,
    held: Mutex<BTreeMap<String, Held>>,
    changed: Notify,
}

impl Boxes {
    pub(super) fn new(dir: Utf8PathBuf, clock: Clock) -> Self {
        Self { dir, clock, held: Mutex::default(), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, id: &str) -> Utf8PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    /// A sandbox whose time has not come.
    pub(super) fn find(&self, id: &str) -> Option<Arc<Sandbox>> {
        let found = self.lock().get(id).map(|held| Arc::clone(&held.sandbox));
        found.filter(|sandbox| sandbox.end_at > self.clock.now())
    }

    pub(super) fn of_pool(&self, pool: &ResourceId) -> Vec<Arc<Sandbox>> {
        let now = self.clock.now();
        let held = self.lock();
        let all = held.values().map(|held| &held.sandbox);
        all.filter(|sandbox| sandbox.pool == *pool && sandbox.end_at > now).map(Arc::clone).collect()
    }

    /// Keeps a new sandbox.
    pub(super) async fn add(&self, sandbox: Sandbox, lease: Lease) -> io::Result<()> {
        self.write(&sandbox).await?;
        let held = Held { sandbox: Arc::new(sandbox), lease: Some(lease) };
        self.lock().insert(held.sandbox.id.clone(), held);
        self.changed.notify_one();
        Ok(())
    }

    /// Moves the end of a sandbox; `false` when there is none any more.
    pub(super) async fn end_at(&self, id: &str, end_at: Timestamp) -> io::Result<bool> {
        let Some(sandbox) = self.find(id) else { return Ok(false) };
        let changed = Sandbox { end_at, ..Sandbox::clone(&sandbox) };
        self.write(&changed).await?;
        let is_there = self.replace(id, changed);
        if is_there {
            self.changed.notify_one();
        } else {
            // it was removed meanwhile
            self.delete(id).await;
        }
        Ok(is_there)
    }

    fn replace(&self, id: &str, sandbox: Sandbox) -> bool {
        let mut held = self.lock();
        let entry = held.get_mut(id);
        entry.map(|entry| entry.sandbox = Arc::new(sandbox)).is_some()
    }

    /// Forgets a sandbox and lets its session go.
    pub(super) async fn remove(&self, id: &str) -> Option<Arc<Sandbox>> {
        let removed = self.lock().remove(id)?;
        self.delete(id).await;
        Some(removed.sandbox)
    }

    async fn write(&self, sandbox: &Sandbox) -> io::Result<()> {
        let (path, bytes) = (self.path(&sandbox.id), serde_json::to_vec(sandbox)?);
        tokio::task::spawn_blocking(move || write(&path, &bytes)).await.map_err(io::Error::other)?
    }

    async fn delete(&self, id: &str) {
        let path = self.path(id);
        let deleted = tokio::task::spawn_blocking(move || fs::remove_file(path)).await;
        if let Ok(Err(error)) = deleted
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "failed to delete the file of a sandbox");
        }
    }

    /// Takes up what the last server left, and ends each sandbox at its time. Sessions are looked for once they are `known`.
    pub(super) async fn keep(
        &self,
        pools: &Arc<dyn Pools>,
        known: impl Future<Output = ()> + Send,
        stopped: impl Future<Output = ()> + Send,
    ) {
        let kept = async {
            let taken_up = self.take_up().await;
            known.await;
            tokio::join!(self.end_each(pools), self.hold_all(pools, taken_up));
        };
        tokio::select! {
            () = stopped => {}
            () = kept => {}
        }
    }

    /// Reads what the last server left; the ids of it. Clients find these from now on, whether or not they are held already.
    async fn take_up(&self) -> Vec<String> {
        let dir = self.dir.clone();
        let found = tokio::task::spawn_blocking(move || read_all(&dir)).await.unwrap_or_default();
        let ids = found.iter().map(|sandbox| sandbox.id.clone()).collect();
        let mut held = self.lock();
        for sandbox in found {
            held.entry(sandbox.id.clone()).or_insert_with(|| Held { sandbox: Arc::new(sandbox), lease: None });
        }
        ids
    }

    async fn end_each(&self, pools: &Arc<dyn Pools>) {
        loop {
            let now = self.clock.now();
            let ends = self.lock().values().map(|held| held.sandbox.end_at).min();
            match ends {
                Some(end) if end <= now => self.end_due(pools, now).await,
                Some(end) => {
                    tokio::select! {
                        () = self.clock.sleep_until(end) => {}
                        () = self.changed.notified() => {}
                    }
                }
                None => self.changed.notified().await,
            }
        }
    }

    /// Holds the sessions of sandboxes, all at once: one that is not ready takes its time.
    async fn hold_all(&self, pools: &Arc<dyn Pools>, ids: Vec<String>) {
        stream::iter(ids).for_each_concurrent(None, |id| async move { self.hold(pools, &id).await }).await;
    }

    /// Holds the session of a sandbox, as soon as it is there: the last server's are taken up one after the other. Ends when
    /// it is held, the sandbox has ended, or its session is another one.
    async fn hold(&self, pools: &Arc<dyn Pools>, id: &str) {
        for seconds in 1.. {
            let Some(sandbox) = self.unheld(id) else { return };
            let Some(identifier) = sandbox.identifier() else { return };
            match pools.find(&sandbox.pool, &identifier) {
                Some(found) if found.session.guid != sandbox.guid => return,
                Some(_) => match pools.allocate(&sandbox.pool, &identifier).await {
                    Ok(lease) if lease.allocation.session.guid == sandbox.guid => return self.held_by(id, lease),
                    Ok(lease) => {
                        // it ended a moment ago; what was made in its place is nobody's
                        drop(lease);
                        pools.stop(&sandbox.pool, &identifier).await;
                        return;
                    }
                    Err(error) => tracing::debug!(?error, "the session of a sandbox is not held yet"),
                },
                None => {}
            }
            tokio::time::sleep(Duration::from_secs(AGAIN_MAX_SECONDS.min(seconds))).await;
        }
    }

    /// A sandbox that goes on and whose session is not held.
    fn unheld(&self, id: &str) -> Option<Arc<Sandbox>> {
        let held = self.lock();
        let one = held.get(id).filter(|one| one.lease.is_none() && one.sandbox.end_at > self.clock.now())?;
        Some(Arc::clone(&one.sandbox))
    }

    fn held_by(&self, id: &str, lease: Lease) {
        // a sandbox that was removed meanwhile lets the session go
        if let Some(held) = self.lock().get_mut(id) {
            held.lease = Some(lease);
        }
    }

    async fn end_due(&self, pools: &Arc<dyn Pools>, now: Timestamp) {
        let _busy = self.clock.busy("sandboxes");
        let due: Vec<String> = {
            let held = self.lock();
            held.values().filter(|held| held.sandbox.end_at <= now).map(|held| held.sandbox.id.clone()).collect()
        };
        for id in due {
            let Some(sandbox) = self.remove(&id).await else { continue };
            if let Some(identifier) = sandbox.identifier()
                && sandbox.is_in(&**pools)
            {
                pools.stop(&sandbox.pool, &identifier).await;
            }
        }
    }
}

/// Writes a file that is the old or the new one; it holds a token.
fn write(path: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let temporary = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes).and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// All that can be read; what cannot is said and left.
fn read_all(dir: &Utf8Path) -> Vec<Sandbox> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "json") {
            let _ = fs::remove_file(&path);
            continue;
        }
        let read = fs::read(&path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other));
        match read {
            Ok(sandbox) => found.push(sandbox),
            Err(error) => tracing::warn!(path = %path.display(), %error, "the file of a sandbox cannot be read"),
        }
    }
    found
}
