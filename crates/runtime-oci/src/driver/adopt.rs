//! Opening again: which replicas still run, and what is left of others.
//!
//! **Invariant:** afterwards each helper that lives is connected, and every cgroup, network namespace and folder that
//! belongs to none is gone or being removed; logs that belong to none are marked as ended, for their reader to remove, or gone
//! if nothing was written.

use std::{collections::BTreeSet, io, net::Ipv4Addr, sync::Arc, time::Duration};

use camino::Utf8DirEntry;
use cove_model::{ReplicaName, ReplicaPhase};
use cove_network::NetnsId;
use cove_runtime::{ReplicaSpec, logs::ENDED_MARK};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{Inner, Replica, conn::Conn, helpers, link, lock};
use crate::protocol::{ShimState, connect};

/// File in a replica's folder with what the next driver must know; mode 0600, it holds secrets.
pub(super) const REPLICA_FILE: &str = "replica.json";

/// Longest wait for the first word of a helper that was found.
const STATE_LIMIT: Duration = Duration::from_secs(5);

/// Longest wait for a cgroup to become empty.
pub(super) const CGROUP_LIMIT: Duration = Duration::from_secs(10);

/// What the next driver must know.
#[derive(Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) spec: Arc<ReplicaSpec>,
    pub(super) created_at: Timestamp,
    /// None: one that leads nowhere, which its helper holds.
    pub(super) netns: Option<NetnsId>,
    pub(super) address: Option<Ipv4Addr>,
    #[serde(default)]
    pub(super) first_id: Option<u32>,
    pub(super) cgroup: String,
}

pub(super) async fn adopt(inner: &Arc<Inner>) {
    let mut found = Vec::new();
    let folders = inner.config.dir.join("replicas").read_dir_utf8();
    for folder in folders.into_iter().flatten().flatten() {
        let path = folder.path();
        let read =
            std::fs::read(path.join(REPLICA_FILE)).and_then(|text| Ok(serde_json::from_slice::<Remembered>(&text)?));
        match read {
            Ok(remembered) => found.push(remembered),
            Err(error) => {
                // Without this file no helper was ever told of the folder.
                tracing::warn!(%error, folder = %path, "removing a replica's folder that was never finished");
                let _ = std::fs::remove_dir_all(path);
            }
        }
    }
    let mut cgroups = BTreeSet::new();
    let mut namespaces = BTreeSet::new();
    for remembered in found {
        let cgroup = remembered.cgroup.clone();
        if let Some(netns) = adopt_one(inner, remembered).await {
            cgroups.insert(cgroup);
            namespaces.extend(netns);
        }
    }
    let adopted = inner.network.adopt(&namespaces);
    super::sandbox::limit_again(inner).await;
    tracing::info!(
        replicas = cgroups.len(),
        namespaces_removed = adopted.removed,
        "replicas of the last run were found"
    );
    end_strange_logs(inner);
    remove_strange_cgroups(inner, &cgroups).await;
}

/// Marks the logs of what is not there any more as ended: the last run was killed while it removed them. Where nothing was
/// written it was killed while it made them, and the replica may yet be made under the same name: these go at once, for what
/// is marked is removed by its reader, also from under a replica that writes there by then.
fn end_strange_logs(inner: &Inner) {
    let known: BTreeSet<String> = lock(&inner.state).replicas.keys().map(ToString::to_string).collect();
    for folder in inner.config.log_dir.read_dir_utf8().into_iter().flatten().flatten() {
        let is_known = known.contains(folder.file_name());
        if is_known || !folder.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let is_written = |file: Utf8DirEntry| file.file_name().contains(".log");
        let ended = match folder.path().read_dir_utf8().map(|mut files| files.any(|file| file.is_ok_and(is_written))) {
            Ok(true) => std::fs::write(folder.path().join(ENDED_MARK), b""),
            Ok(false) => std::fs::remove_dir_all(folder.path()),
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            tracing::warn!(%error, folder = %folder.path(), "logs that belong to no replica stay");
        }
    }
}

/// If the replica still runs, gives its namespace on the bridge if it has one.
async fn adopt_one(inner: &Arc<Inner>, remembered: Remembered) -> Option<Option<NetnsId>> {
    let name = remembered.spec.name.clone();
    let mut replica = Replica::new(Arc::clone(&remembered.spec), remembered.created_at);
    replica.address = remembered.address;
    replica.netns = remembered.netns;
    replica.first_id = remembered.first_id;
    replica.cgroup = Some(remembered.cgroup.clone());
    let last = link::last_state(inner, &name);
    replica.asked_at = last.as_ref().and_then(|state| state.phases.asked_at);
    replica.ready_at = last.as_ref().and_then(|state| state.phases.ready_at);
    let prepared = Arc::clone(&replica.prepared);
    if last.as_ref().is_some_and(|state| state.phase != ReplicaPhase::Frozen) {
        // the server may have ended between writing down whose it is and thawing it
        super::freeze::weigh_as_usual(inner, &replica);
    }
    {
        let mut state = lock(&inner.state);
        state.revisions.entry(replica.spec.revision.clone()).or_default().insert(name.clone());
        state.replicas.insert(name.clone(), replica);
    }
    let conn = connect(&inner.replica_dir(&name)).and_then(Conn::new);
    let is_over = |last: &Option<ShimState>| last.as_ref().is_some_and(|state| link::is_over(state.phase));
    if let Ok(conn) = conn
        && !is_over(&last)
    {
        let heard = Arc::clone(&prepared);
        link::connected(inner, &name, conn);
        if timeout(STATE_LIMIT, heard.notified()).await.is_err() {
            tracing::warn!(replica = %name, "the replica's helper has not told its state yet");
        }
        return Some(remembered.netns);
    }
    // it may have ended just now
    let last = link::last_state(inner, &name).or(last);
    let failure = (!is_over(&last)).then(|| {
        let message = "its helper process ended while the server was away".to_owned();
        ("ContainerTerminated".to_owned(), message)
    });
    inner.update(&name, |replica| replica.shim = last);
    link::end(inner, &name, failure);
    None
}

async fn remove_strange_cgroups(inner: &Arc<Inner>, used: &BTreeSet<String>) {
    let parent = helpers::parent(&inner.config);
    let own = inner.helpers.prefix();
    let strange: Vec<String> = inner
        .cgroups
        .children(&parent)
        .into_iter()
        .filter(|name| !name.starts_with(&own))
        .map(|name| format!("{parent}/{name}"))
        .filter(|path| !used.contains(path))
        .collect();
    let cgroups = inner.cgroups.clone();
    let removed = tokio::task::spawn_blocking(move || {
        for path in &strange {
            if let Err(error) = cgroups.remove(path, CGROUP_LIMIT) {
                tracing::warn!(%error, path, "failed to remove a cgroup of the last run");
            }
        }
    });
    let _ = removed.await;
}

/// Ends and removes everything.
pub(super) async fn purge(inner: &Arc<Inner>) {
    inner.stop.cancel();
    inner.helpers.close().await;
    let (names, leases): (Vec<ReplicaName>, Vec<NetnsId>) = {
        let mut state = lock(&inner.state);
        state.queue_slots.clear();
        state.queue_wanted.clear();
        let leases = state.replicas.values_mut().filter_map(|replica| replica.netns.take()).collect();
        (state.replicas.keys().cloned().collect(), leases)
    };
    for netns in leases {
        inner.network.release(netns);
    }
    let (cgroups, parent, dir) = (inner.cgroups.clone(), helpers::parent(&inner.config), inner.config.dir.clone());
    let removed = tokio::task::spawn_blocking(move || {
        // A helper that is ended takes its containers along; one that is being made may still be joining a group.
        let helpers = end_helpers(&dir);
        let result = cgroups.remove(&parent, CGROUP_LIMIT);
        let _ = std::fs::remove_dir_all(dir.join("replicas"));
        helpers.and(result)
    });
    match removed.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "failed to remove everything"),
        Err(error) => tracing::warn!(%error, "failed to remove everything"),
    }
    for name in names {
        link::forget(inner, &name);
    }
}

/// Asks every helper below a folder to end at once, and waits until its socket is closed.
fn end_helpers(dir: &camino::Utf8Path) -> io::Result<()> {
    use crate::protocol::{FromShim, ToShim, receive, send};
    use nix::sys::socket::MsgFlags;
    use std::os::fd::AsRawFd as _;
    let deadline = std::time::Instant::now() + CGROUP_LIMIT;
    for folder in dir.join("replicas").read_dir_utf8()?.flatten() {
        let Ok(socket) = connect(folder.path()) else { continue };
        if send(socket.as_raw_fd(), &ToShim::Stop { grace_ms: 0 }, &[], MsgFlags::MSG_DONTWAIT).is_err() {
            continue;
        }
        loop {
            match receive::<FromShim>(socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT) {
                Ok(Some(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut fds =
                        [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&socket), nix::poll::PollFlags::POLLIN)];
                    let _ = nix::poll::poll(&mut fds, 100_u16);
                    if std::time::Instant::now() >= deadline {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, "a helper process does not end"));
                    }
                }
                Ok(None) | Err(_) => break,
            }
        }
    }
    Ok(())
}
