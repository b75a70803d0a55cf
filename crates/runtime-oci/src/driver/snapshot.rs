//! Snapshots of sandboxed replicas: folders that are one more layer of others.
//!
//! A snapshot is `<id>/` with `roots/<container>/` for each container that is no init container, [`FACTS_FILE`], and where it
//! holds memory `memory/`. It is
//! made as `<id>.part` and gets its name when it is whole. The helper gives the directory that a container writes to and holds
//! the replica still until it is told that nobody reads any more, which the end of this program tells too.
//!
//! **Invariant:** a folder without `.part` is whole; what is not is removed when the driver opens.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use camino::{Utf8Path, Utf8PathBuf};
use cove_model::{Container, ReplicaName, ReplicaPhase, SnapshotId};
use cove_runtime::{ReplicaSpec, SandboxTier, SnapshotFacts, SnapshotFailure, SnapshotOrder};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use tokio::{io::unix::AsyncFd, sync::Semaphore, time::timeout};

use super::{Inner, exec, lock, memory};
use crate::{
    layer_copy::{self, CopyError, LayerCopy},
    protocol::{ToShim, write_atomically},
};

const FACTS_FILE: &str = "facts.json";

/// Copies at a time: the disk is the same.
const COPIES_MAX: usize = 2;

/// Longest wait for the turn of a copy.
const TURN_LIMIT: Duration = Duration::from_secs(60);

/// Free space of the disk that a snapshot never takes.
pub(super) const KEPT_FREE_BYTES: u64 = 512 << 20;

/// What is known of the folder of snapshots.
#[derive(Debug)]
pub(super) struct Snapshots {
    dir: Utf8PathBuf,
    whole: Mutex<BTreeMap<SnapshotId, SnapshotFacts>>,
    turns: Semaphore,
}

impl Snapshots {
    /// Finds whole ones and removes what is left of others.
    pub(super) fn open(dir: &Utf8Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut whole = BTreeMap::new();
        for entry in dir.read_dir_utf8()? {
            let path = entry?.into_path();
            let id = path.file_name().and_then(|name| SnapshotId::new(name).ok());
            let facts = fs::read(path.join(FACTS_FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok());
            match (id, facts) {
                (Some(id), Some(facts)) => drop(whole.insert(id, facts)),
                _ => {
                    tracing::info!(folder = %path, "removing what is left of a snapshot that was not finished");
                    remove_any(&path)?;
                }
            }
        }
        Ok(Self { dir: dir.to_owned(), whole: Mutex::new(whole), turns: Semaphore::new(COPIES_MAX) })
    }

    pub(super) fn all(&self) -> BTreeMap<SnapshotId, SnapshotFacts> {
        lock(&self.whole).clone()
    }

    pub(super) fn path(&self, id: &SnapshotId) -> Utf8PathBuf {
        self.dir.join(id.as_str())
    }

    fn has(&self, id: &SnapshotId) -> bool {
        lock(&self.whole).contains_key(id)
    }

    pub(super) fn has_memory(&self, id: &SnapshotId) -> bool {
        lock(&self.whole).get(id).is_some_and(|facts| facts.memory)
    }
}

fn remove_any(path: &Utf8Path) -> io::Result<()> {
    if path.is_dir() && !path.is_symlink() { layer_copy::remove_tree(path) } else { fs::remove_file(path) }
}

/// What a container begins with of a snapshot; nothing where that has none of a container of this name.
pub(super) fn layer_of(
    inner: &Inner,
    spec: &ReplicaSpec,
    container: &Container,
    is_init: bool,
) -> Result<Option<Utf8PathBuf>, (String, String)> {
    let Some(id) = spec.sandbox.as_ref().and_then(|sandbox| sandbox.snapshot.as_ref()) else { return Ok(None) };
    if !inner.snapshots.has(id) {
        let text = format!("snapshot {id} that it is to begin with does not exist any more");
        return Err(("SnapshotNotFound".to_owned(), text));
    }
    if is_init {
        return Ok(None);
    }
    let roots = inner.snapshots.path(id).join("roots");
    let own = roots.join(&container.name);
    if own.is_dir() {
        return Ok(Some(own));
    }
    let all: Vec<_> = roots.read_dir_utf8().into_iter().flatten().flatten().collect();
    // another pool may call its only container otherwise
    let is_only = spec.template.containers.len() == 1 && all.len() == 1;
    Ok(all.into_iter().next().filter(|_| is_only).map(camino::Utf8DirEntry::into_path))
}

/// What a container has written, held still.
struct Written {
    container: String,
    upper: OwnedFd,
    /// The snapshot that it began with.
    base: Option<Utf8PathBuf>,
    hold: AsyncFd<OwnedFd>,
}

impl Written {
    /// The helper has not let the replica go on.
    fn is_held(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.hold.as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
    }
}

pub(super) async fn take(
    inner: Arc<Inner>,
    name: ReplicaName,
    order: SnapshotOrder,
) -> Result<SnapshotFacts, SnapshotFailure> {
    let failed = |error: &dyn std::fmt::Display| SnapshotFailure::Failed(format!("no snapshot was taken: {error}"));
    let turn = timeout(TURN_LIMIT, inner.snapshots.turns.acquire()).await;
    let Ok(Ok(_turn)) = turn else { return Err(failed(&"too many others are being taken; try again")) };
    let (spec, first_id) = find(&inner, &name)?;
    let begun = std::time::Instant::now();
    let rests = lock(&inner.state).replicas.get(&name).map(|replica| Arc::clone(&replica.freezing.rests));
    if let Some(rests) = &rests {
        rests.store(true, Ordering::Relaxed);
    }
    let copied = copy_written(&inner, &name, &spec, first_id, &order).await;
    if let Some(replica) = lock(&inner.state).replicas.get(&name) {
        let is_frozen = replica.shim.as_ref().is_some_and(|shim| shim.phase == ReplicaPhase::Frozen);
        replica.freezing.rests.store(is_frozen, Ordering::Relaxed);
    }
    let facts = copied?;
    let held_ms = begun.elapsed().as_millis();
    let snapshots = &inner.snapshots;
    let (part, path) = (part_of(snapshots, &order.into), snapshots.path(&order.into));
    let is_for_good = order.is_for_good;
    let finished = tokio::task::spawn_blocking(move || finish(&part, &path, is_for_good)).await;
    finished.map_err(io::Error::other).and_then(|done| done).map_err(|error| {
        let _ = remove_any(&part_of(snapshots, &order.into));
        failed(&error)
    })?;
    lock(&snapshots.whole).insert(order.into.clone(), facts.clone());
    tracing::debug!(replica = %name, snapshot = %order.into, ?facts, held_ms, "a snapshot was taken");
    Ok(facts)
}

fn part_of(snapshots: &Snapshots, id: &SnapshotId) -> Utf8PathBuf {
    snapshots.dir.join(format!("{id}.part"))
}

/// The replica, if it is one whose files can be copied.
fn find(inner: &Inner, name: &ReplicaName) -> Result<(Arc<ReplicaSpec>, u32), SnapshotFailure> {
    let state = lock(&inner.state);
    let replica = state.replicas.get(name).filter(|replica| replica.ended.is_none() && replica.stop.is_none());
    let replica = replica.ok_or(SnapshotFailure::NotRunning)?;
    let unsupported = |text: &str| Err(SnapshotFailure::Unsupported(text.to_owned()));
    let Some(shim) = &replica.shim else { return Err(SnapshotFailure::NotRunning) };
    if !matches!(shim.phase, ReplicaPhase::Running | ReplicaPhase::Frozen) {
        return Err(SnapshotFailure::NotRunning);
    }
    match replica.spec.sandbox.as_ref().map(|sandbox| &sandbox.tier) {
        None => return unsupported("only sessions have snapshots"),
        Some(SandboxTier::Vm) => return unsupported("sessions of isolation `vm` have no snapshots; use `hardened`"),
        Some(SandboxTier::Hardened | SandboxTier::Handler(_)) => {}
    }
    if !shim.gives_written {
        return unsupported("the session is of an older version of Cove, or this machine has no freezer");
    }
    let first_id = replica.first_id.ok_or(SnapshotFailure::NotRunning)?;
    Ok((Arc::clone(&replica.spec), first_id))
}

/// Copies what is written while nothing of the replica runs.
async fn copy_written(
    inner: &Inner,
    name: &ReplicaName,
    spec: &ReplicaSpec,
    first_id: u32,
    order: &SnapshotOrder,
) -> Result<SnapshotFacts, SnapshotFailure> {
    let mut all = Vec::new();
    for container in &spec.template.containers {
        let ask = ToShim::Written { container: container.name.clone() };
        let (upper, hold) = exec::ask_and_hold(inner, name, &ask).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SnapshotFailure::NotRunning,
            _ => SnapshotFailure::Failed(format!("no snapshot was taken: {error}")),
        })?;
        let base = layer_of(inner, spec, container, false).map_err(|(_, text)| SnapshotFailure::Failed(text))?;
        all.push(Written { container: container.name.clone(), upper, base, hold });
    }
    let kept = if order.memory { Some(memory::keep(inner, name, spec, order.bytes_max).await) } else { None };
    let part = part_of(&inner.snapshots, &order.into);
    let bytes_max = order.bytes_max;
    let copied = tokio::task::spawn_blocking(move || {
        let copied = copy_all(&part, &all, first_id, bytes_max, kept);
        if copied.is_err() {
            let _ = remove_any(&part);
        }
        copied
    });
    match copied.await {
        Ok(Ok(facts)) => Ok(facts),
        Ok(Err(CopyError::NoRoom(text))) => Err(SnapshotFailure::NoRoom(text)),
        Ok(Err(CopyError::Failed(error))) => Err(SnapshotFailure::Failed(format!("no snapshot was taken: {error}"))),
        Err(error) => Err(SnapshotFailure::Failed(format!("no snapshot was taken: {error}"))),
    }
}

fn copy_all(
    part: &Utf8Path,
    all: &[Written],
    first_id: u32,
    bytes_max: u64,
    kept: Option<Result<Utf8PathBuf, String>>,
) -> Result<SnapshotFacts, CopyError> {
    if part.exists() {
        remove_any(part)?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(part.join("roots"))?;
    let kept = kept.map(|kept| memory::take_away(&kept?, part));
    let bytes_max = bytes_max.saturating_sub(kept.clone().and_then(Result::ok).unwrap_or(0));
    let free = layer_copy::free_bytes(&layer_copy::open_folder(part)?)?.saturating_sub(KEPT_FREE_BYTES);
    let mut copy = LayerCopy::new(first_id, bytes_max.min(free));
    for written in all {
        let root = part.join("roots").join(&written.container);
        fs::DirBuilder::new().mode(0o755).create(&root)?;
        let root = layer_copy::open_folder(&root)?;
        if let Some(base) = &written.base {
            copy.begin_with(&layer_copy::open_folder(base)?, &root)?;
        }
        copy.lay_over(&written.upper, &root)?;
    }
    if !all.iter().all(Written::is_held) {
        return Err(CopyError::Failed(io::Error::other("the session ended while its files were copied")));
    }
    let mut facts = copy.facts();
    match kept {
        Some(Ok(bytes)) => (facts.memory, facts.bytes) = (true, facts.bytes + bytes),
        Some(Err(error)) => facts.memory_error = Some(error),
        None => {}
    }
    let text = serde_json::to_vec(&facts).map_err(io::Error::from)?;
    write_atomically(&part.join(FACTS_FILE), &text)?;
    Ok(facts)
}

/// Gives a snapshot its name.
fn finish(part: &Utf8Path, path: &Utf8Path, is_for_good: bool) -> io::Result<()> {
    if is_for_good {
        layer_copy::sync(&layer_copy::open_folder(part)?)?;
    }
    fs::rename(part, path)?;
    if is_for_good && let Some(parent) = path.parent() {
        fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

pub(super) async fn remove(inner: Arc<Inner>, id: SnapshotId) -> io::Result<()> {
    if !inner.snapshots.has(&id) {
        return Ok(());
    }
    let (path, part) = (inner.snapshots.path(&id), part_of(&inner.snapshots, &id));
    let removed = tokio::task::spawn_blocking(move || {
        // not whole any more before anything of it goes
        fs::rename(&path, &part)?;
        remove_any(&part)
    });
    let removed = removed.await.map_err(io::Error::other)?;
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => {
            lock(&inner.snapshots.whole).remove(&id);
            Ok(())
        }
    }
}
