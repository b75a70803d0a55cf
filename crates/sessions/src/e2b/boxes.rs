//! The sandboxes there are: in memory, and in a small file each, so that they outlive the server.
//!
//! A sandbox holds its session like an open request, so the pool's cool-down does not end it before its own time does. One
//! that lost its session is forgotten when somebody asks for it, and when there are as many sandboxes as there can be sessions.
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
/// How often a session of the last server is not found in a pool that is there until it is taken for lost: about an hour. It
/// is found in seconds where it is.
const LOOKS_MAX: u32 = 190;

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

    /// Whether the session that a sandbox began with is there. A sandbox that held it and has lost it is forgotten; one that
    /// does not hold it yet is kept, since the last server's sessions are taken up one after the other.
    pub(super) fn is_alive(&self, sandbox: &Sandbox, pools: &dyn Pools) -> bool {
        // in this order: a session that was held before it was looked for in vain is gone
        let was_held = self.lock().get(&sandbox.id).is_some_and(|held| held.lease.is_some());
        let is_alive = sandbox.is_in(pools);
        if was_held && !is_alive {
            self.forget(&sandbox.id);
        }
        is_alive
    }

    /// Before a sandbox is added: forgets those of the pool that lost their sessions, when there are as many as it may have.
    pub(super) fn sweep(&self, pool: &ResourceId, sessions_max: u32, pools: &dyn Pools) {
        let all = self.of_pool(pool);
        if u32::try_from(all.len()).is_ok_and(|count| count < sessions_max) {
            return;
        }
        for sandbox in all {
            self.is_alive(&sandbox, pools);
        }
    }

    /// Keeps a new sandbox, also when who asked for it goes away: no file is left that nobody knows of.
    pub(super) async fn add(self: &Arc<Self>, sandbox: Sandbox, lease: Lease) -> io::Result<()> {
        let boxes = Arc::clone(self);
        let adding = tokio::spawn(async move {
            boxes.write(&sandbox).await?;
            let held = Held { sandbox: Arc::new(sandbox), lease: Some(lease) };
            boxes.lock().insert(held.sandbox.id.clone(), held);
            boxes.changed.notify_one();
            Ok::<_, io::Error>(())
        });
        adding.await.map_err(io::Error::other)?
    }

    /// Moves the end of a sandbox, also when who asked for it goes away; `false` when there is none any more.
    pub(super) async fn end_at(self: &Arc<Self>, id: &str, end_at: Timestamp) -> io::Result<bool> {
        let Some(sandbox) = self.find(id) else { return Ok(false) };
        let changed = Sandbox { end_at, ..Sandbox::clone(&sandbox) };
        let boxes = Arc::clone(self);
        let changing = tokio::spawn(async move {
            boxes.write(&changed).await?;
            let is_there = boxes.replace(changed);
            if is_there {
                boxes.changed.notify_one();
            } else {
                // it was removed meanwhile
                boxes.delete(&sandbox.id).await;
            }
            Ok::<_, io::Error>(is_there)
        });
        changing.await.map_err(io::Error::other)?
    }

    fn replace(&self, sandbox: Sandbox) -> bool {
        let mut held = self.lock();
        let entry = held.get_mut(&sandbox.id);
        entry.map(|entry| entry.sandbox = Arc::new(sandbox)).is_some()
    }

    /// Forgets a sandbox and lets its session go.
    pub(super) async fn remove(&self, id: &str) -> Option<Arc<Sandbox>> {
        let removed = self.lock().remove(id)?;
        self.delete(id).await;
        Some(removed.sandbox)
    }

    /// The same, for who does not wait for it.
    fn forget(&self, id: &str) {
        let removed = self.lock().remove(id);
        if removed.is_some() {
            let path = self.path(id);
            tokio::task::spawn_blocking(move || delete(&path));
        }
    }

    async fn write(&self, sandbox: &Sandbox) -> io::Result<()> {
        let (path, bytes) = (self.path(&sandbox.id), serde_json::to_vec(sandbox)?);
        tokio::task::spawn_blocking(move || write(&path, &bytes)).await.map_err(io::Error::other)?
    }

    async fn delete(&self, id: &str) {
        let path = self.path(id);
        drop(tokio::task::spawn_blocking(move || delete(&path)).await);
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
    /// it is held or the sandbox has ended. One whose session is another one, or is not found for long, is forgotten.
    async fn hold(&self, pools: &Arc<dyn Pools>, id: &str) {
        let mut looks = 0;
        for seconds in 1.. {
            let Some(sandbox) = self.unheld(id) else { return };
            let Some(identifier) = sandbox.identifier() else { return };
            match pools.find(&sandbox.pool, &identifier) {
                Some(found) if found.session.guid != sandbox.guid => return self.forget(id),
                Some(_) => match pools.allocate(&sandbox.pool, &identifier).await {
                    Ok(lease) if lease.allocation.session.guid == sandbox.guid => return self.held_by(id, lease),
                    Ok(lease) => {
                        // it ended a moment ago; what was made in its place is nobody's
                        drop(lease);
                        pools.stop(&sandbox.pool, &identifier).await;
                        return self.forget(id);
                    }
                    Err(error) => tracing::debug!(?error, "the session of a sandbox is not held yet"),
                },
                None if looks >= LOOKS_MAX => return self.forget(id),
                // a pool that could not be read is not known, and its sessions go on
                None => looks += u32::from(pools.pool(&sandbox.pool).is_some()),
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

fn delete(path: &Utf8Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "failed to delete the file of a sandbox");
    }
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_sandbox_whose_client_left_while_it_was_made_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(dir.path().to_owned()).unwrap();
        let boxes = Arc::new(Boxes::new(folder, Clock::real()));
        let session = crate::tests::session("e2b-x");
        let sandbox = Sandbox {
            id: "x".to_owned(),
            pool: session.pool.clone(),
            template: "base".to_owned(),
            guid: session.guid.clone(),
            token: "secret".to_owned(),
            started_at: Timestamp::UNIX_EPOCH,
            end_at: Timestamp::MAX,
            metadata: BTreeMap::new(),
            envs: BTreeMap::new(),
        };
        let allocation = cove_model::SessionAllocation { session, target_port: 80, is_new: true };
        let adding = boxes.add(sandbox, Lease { allocation, guard: Box::new(()) });
        assert!(adding.now_or_never().is_none(), "nobody waits for it any more");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while boxes.find("x").is_none() {
            assert!(tokio::time::Instant::now() < deadline, "it is kept");
            tokio::task::yield_now().await;
        }
        assert!(boxes.path("x").exists());
        assert!(boxes.remove("x").await.is_some());
        assert!(!boxes.path("x").exists(), "and can be removed");
    }
}
