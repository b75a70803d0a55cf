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
};

use camino::{Utf8Path, Utf8PathBuf};
use cove_base::Clock;
use cove_model::{ResourceId, SessionIdentifier};
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::ports::{Lease, Pools};

/// What identifiers of sandboxes' sessions begin with.
const IDENTIFIER: &str = "e2b-";

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
    _lease: Option<Lease>,
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
        let held = Held { sandbox: Arc::new(sandbox), _lease: Some(lease) };
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

    /// Takes up what the last server left, and ends each sandbox at its time.
    pub(super) async fn keep(&self, pools: &Arc<dyn Pools>, stopped: impl Future<Output = ()> + Send) {
        tokio::select! {
            () = stopped => {}
            () = self.keep_on(pools) => {}
        }
    }

    async fn keep_on(&self, pools: &Arc<dyn Pools>) {
        let dir = self.dir.clone();
        let found = tokio::task::spawn_blocking(move || read_all(&dir)).await.unwrap_or_default();
        for sandbox in found {
            let lease = self.lease_again(pools, &sandbox).await;
            let held = Held { sandbox: Arc::new(sandbox), _lease: lease };
            self.lock().entry(held.sandbox.id.clone()).or_insert(held);
        }
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

    /// Holds the session of a sandbox again, if it is still its.
    async fn lease_again(&self, pools: &Arc<dyn Pools>, sandbox: &Sandbox) -> Option<Lease> {
        if sandbox.end_at <= self.clock.now() || !sandbox.is_in(&**pools) {
            return None;
        }
        let lease = pools.allocate(&sandbox.pool, &sandbox.identifier()?).await.ok()?;
        (lease.allocation.session.guid == sandbox.guid).then_some(lease)
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
