//! The memory of replicas in snapshots: asked of the helper, taken away from it, given to those that begin with it.
//!
//! **Invariant:** what cannot be kept or brought back is told in words and never keeps the files from being kept.

use std::{fs, io, os::fd::AsRawFd as _, time::Duration};

use camino::{Utf8Path, Utf8PathBuf};
use cove_model::ReplicaName;
use cove_runtime::{ReplicaSpec, SandboxTier};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::MsgFlags,
};
use tokio::time::timeout;

use super::{Inner, conn::register, lock};
use crate::{
    memory::{self, MEMORY_DIR},
    protocol::{MemoryGiven, MemoryOrder, ToShim, pair, receive},
};

/// Longest wait for memory to be kept: what the helper gives CRIU, and some more.
const KEEP_LIMIT: Duration = Duration::from_secs(135);

/// Keeps the memory of a replica that is held still; the folder of its images, or why not.
pub(super) async fn keep(
    inner: &Inner,
    name: &ReplicaName,
    spec: &ReplicaSpec,
    bytes_max: u64,
) -> Result<Utf8PathBuf, String> {
    if !matches!(spec.sandbox.as_ref().map(|sandbox| &sandbox.tier), Some(SandboxTier::Hardened)) {
        return Err("memory is kept of sessions of isolation `hardened` alone".to_owned());
    }
    let [container] = &spec.template.containers[..] else {
        return Err("memory is kept of sessions with one container alone".to_owned());
    };
    let program = inner.criu.get_or_try_init(|| tried(inner.config.criu.clone())).await?.clone();
    let free = crate::layer_copy::open_folder(&inner.config.dir).and_then(|dir| crate::layer_copy::free_bytes(&dir));
    let free = free.map_err(|error| error.to_string())?.saturating_sub(super::snapshot::KEPT_FREE_BYTES);
    let ask = ToShim::Memory { container: container.name.clone(), program, bytes_max: bytes_max.min(free) };
    let gives = |replica: &super::Replica| replica.shim.as_ref().is_some_and(|shim| shim.gives_memory);
    let (ours, theirs) = pair().map_err(|error| error.to_string())?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|error| error.to_string())?;
    {
        let state = lock(&inner.state);
        let replica = state.replicas.get(name).ok_or("it does not run")?;
        if !gives(replica) {
            return Err("the session is of an older version of Cove".to_owned());
        }
        let conn = replica.conn.as_ref().ok_or("it does not run")?;
        conn.send(&ask, &[theirs.as_raw_fd()]).map_err(|error| error.to_string())?;
    }
    drop(theirs);
    let socket = register(ours).map_err(|error| error.to_string())?;
    let answer = async {
        loop {
            let mut guard = socket.readable().await?;
            let received = guard.try_io(|fd| receive::<MemoryGiven>(fd.as_raw_fd(), MsgFlags::MSG_DONTWAIT));
            if let Ok(received) = received {
                return received;
            }
        }
    };
    match timeout(KEEP_LIMIT, answer).await {
        Ok(Ok(Some((given, _)))) => given.images,
        Ok(Ok(None)) => Err("the session ended".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("its memory was not kept within {} s", KEEP_LIMIT.as_secs())),
    }
}

/// CRIU, if this machine has it and it works.
async fn tried(program: String) -> Result<Utf8PathBuf, String> {
    let tried = tokio::task::spawn_blocking(move || {
        let program = memory::find(&program)?;
        memory::check(&program)?;
        Ok(program)
    });
    tried.await.unwrap_or_else(|error| Err(error.to_string()))
}

/// Moves images into a snapshot that is being made; their bytes.
pub(super) fn take_away(images: &Utf8Path, part: &Utf8Path) -> Result<u64, String> {
    let moved = || -> io::Result<u64> {
        let bytes = memory::bytes_of(images)?;
        fs::rename(images, part.join(MEMORY_DIR))?;
        Ok(bytes)
    };
    moved().map_err(|error| format!("its memory cannot be kept: {error}"))
}

/// What a container begins with of the memory of a snapshot.
pub(super) fn order_of(inner: &Inner, spec: &ReplicaSpec, is_init: bool) -> Option<MemoryOrder> {
    let sandbox = spec.sandbox.as_ref()?;
    let id = sandbox.snapshot.as_ref()?;
    let may = !is_init && sandbox.tier == SandboxTier::Hardened && spec.template.containers.len() == 1;
    if !may || !inner.snapshots.has_memory(id) {
        return None;
    }
    let program = inner.criu.get().cloned().or_else(|| memory::find(&inner.config.criu).ok())?;
    Some(MemoryOrder { program, images: inner.snapshots.path(id).join(MEMORY_DIR) })
}

/// Whether a replica began with memory that it was to begin with.
pub(super) fn restored(inner: &Inner, name: &ReplicaName) -> Option<Result<(), String>> {
    let state = lock(&inner.state);
    let shim = state.replicas.get(name)?.shim.as_ref()?;
    shim.restored.map(
        |is_restored| {
            if is_restored { Ok(()) } else { Err(shim.restore_error.clone().unwrap_or_default()) }
        },
    )
}
