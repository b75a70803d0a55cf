//! The connection to a helper: what it tells becomes observations and events; when it is gone, what is left is removed.
//!
//! **Invariant:** a replica ends exactly once; its cgroup, network and files are removed in the background after that.
//! **Invariant:** whoever connects gives all standing orders again, so an order lost with a connection is not lost.

use std::{sync::Arc, time::Duration};

use cove_model::{ContainerExit, ContainerState, EventKind, ReplicaName, ReplicaPhase};
use cove_runtime::logs::ENDED_MARK;
use jiff::Timestamp;

use super::{Inner, Replica, adopt::CGROUP_LIMIT, conn::Conn, exec, freeze, health, lock, templates};
use crate::protocol::{FromShim, STATE_FILE, ShimState, ToShim, connect};

/// Takes a connection into use: gives the standing orders and listens.
pub(super) fn connected(inner: &Arc<Inner>, name: &ReplicaName, conn: Conn) {
    let conn = Arc::new(conn);
    let known = inner.update(name, |replica| {
        replica.conn = Some(Arc::clone(&conn));
        give_orders(replica, &conn);
    });
    if known.is_none() {
        return;
    }
    let (inner, name) = (Arc::clone(inner), name.clone());
    let stop = inner.stop.clone();
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        listen(&inner, &name, conn).await;
    }));
}

fn give_orders(replica: &Replica, conn: &Conn) {
    // A send that fails shows in the loop that listens.
    if let Some(asked_at) = replica.asked_at {
        let _ = conn.send(&ToShim::Start { asked_at }, &[]);
    }
    if let Some(order) = freeze::standing_order(replica) {
        let _ = conn.send(&order, &[]);
    }
    if let Some(grace) = replica.stop {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let _ = conn.send(&ToShim::Stop { grace_ms }, &[]);
    }
    if let Some(at) = replica.ready_at {
        let _ = conn.send(&ToShim::Ready { at }, &[]);
    }
}

async fn listen(inner: &Arc<Inner>, name: &ReplicaName, mut conn: Arc<Conn>) {
    let mut was_reset = false;
    loop {
        match conn.receive::<FromShim>().await {
            Ok(Some(FromShim::State(state))) => take_state(inner, name, *state),
            Ok(Some(FromShim::ExecStarted { id })) => exec::started(inner, name, id),
            Ok(Some(FromShim::ExecEnded { id, code, error })) => exec::ended(inner, name, id, code, error),
            Ok(Some(FromShim::Blank | FromShim::Broken { .. })) => {}
            // It ended without reading all orders. The kernel says that once, before what it had told until then.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset && !was_reset => was_reset = true,
            Ok(None) | Err(_) => match connect(&inner.replica_dir(name)).and_then(Conn::new) {
                Ok(again) => {
                    // The helper lives: it dropped us because we were far behind.
                    conn = Arc::new(again);
                    let fresh = Arc::clone(&conn);
                    inner.update(name, |replica| {
                        give_orders(replica, &fresh);
                        replica.conn = Some(fresh);
                    });
                }
                Err(_) => break,
            },
        }
    }
    let is_told = |replica: &mut Replica| replica.shim.as_ref().is_some_and(|shim| is_over(shim.phase));
    if inner.update(name, is_told) == Some(false)
        && let Some(last) = last_state(inner, name).filter(|last| is_over(last.phase))
    {
        // it ended before it took this connection: what it had to say it has written down
        take_state(inner, name, last);
    }
    let failure = inner.update(name, |replica| {
        (!is_told(replica)).then(|| ("ContainerTerminated".to_owned(), "its helper process was killed".to_owned()))
    });
    let failure = failure.flatten();
    if failure.is_some() {
        // The kernel ends the containers of a killed helper, but a moment later: only then it has ended.
        let cgroup = inner.update(name, |replica| replica.cgroup.clone()).flatten();
        let cgroups = inner.cgroups.clone();
        let removed = cgroup.map(|path| tokio::task::spawn_blocking(move || cgroups.remove(&path, CGROUP_LIMIT)));
        if let Some(removed) = removed
            && let Ok(Err(error)) = removed.await
        {
            tracing::warn!(replica = %name, %error, "containers of a killed helper do not end");
        }
    }
    end(inner, name, failure);
}

/// What a replica's helper wrote down last.
pub(super) fn last_state(inner: &Inner, name: &ReplicaName) -> Option<ShimState> {
    let text = std::fs::read(inner.replica_dir(name).join(STATE_FILE)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Whether a helper has nothing more to say.
pub(super) fn is_over(phase: ReplicaPhase) -> bool {
    matches!(phase, ReplicaPhase::Stopped | ReplicaPhase::Failed)
}

fn take_state(inner: &Arc<Inner>, name: &ReplicaName, new: ShimState) {
    let told = inner.update(name, |replica| {
        let old = replica.shim.replace(new.clone());
        if new.phase != ReplicaPhase::Preparing {
            replica.prepared.notify_one();
        }
        let is_frozen_now = freeze::follow(replica, old.as_ref(), &new);
        // Before anybody sees the change: who acts upon it finds its events.
        tell_changes(inner, &replica.spec, old.as_ref(), &new);
        // In the same step, so that nobody sees a new run with the readiness of the old one.
        (health::follow(inner, replica, &new), is_frozen_now)
    });
    let Some((due, is_frozen_now)) = told else { return };
    health::begin(due);
    if is_frozen_now {
        freeze::settle(inner, name);
    }
    if new.containers.iter().any(|container| container.template.is_some()) {
        templates::settled(inner, name);
    }
}

fn tell_changes(inner: &Inner, spec: &cove_runtime::ReplicaSpec, old: Option<&ShimState>, new: &ShimState) {
    // What happened while no driver was there is in the logs; the first state after connecting is where we begin.
    let Some(old) = old else {
        if new.phase != ReplicaPhase::Preparing {
            return;
        }
        for container in &new.containers {
            let message = format!("Created container '{}'", container.name);
            inner.event(spec, Some(&container.name), EventKind::Normal, "ContainerCreated", message);
        }
        return;
    };
    templates::tell(inner, spec, old, new);
    for (before, now) in old.containers.iter().zip(&new.containers) {
        let started = matches!(now.state, ContainerState::Running { .. }) && before.state != now.state;
        if started {
            let message = format!("Started container '{}'", now.name);
            inner.event(spec, Some(&now.name), EventKind::Normal, "ContainerStarted", message);
        }
        if now.last_exit != before.last_exit
            && let Some(exit) = &now.last_exit
        {
            tell_exit(inner, spec, &now.name, now.restarts, exit, new.phase);
        }
    }
    if let Some(error) = new.freeze_error.as_ref().filter(|_| old.freeze_error != new.freeze_error) {
        let message = format!("Replica '{}' could not be frozen: {error}", spec.name);
        inner.event(spec, None, EventKind::Warning, "ReplicaFreezeFailed", message);
    }
    if let (None, Some((reason, message))) = (&old.failure, &new.failure) {
        inner.event(spec, None, EventKind::Warning, reason, message.clone());
    }
}

fn tell_exit(
    inner: &Inner,
    spec: &cove_runtime::ReplicaSpec,
    container: &str,
    restarts: u32,
    exit: &ContainerExit,
    phase: ReplicaPhase,
) {
    let mut message =
        format!("Container '{container}' was terminated with exit code '{}' and reason '{}'", exit.code, exit.reason);
    if let Some(detail) = &exit.message {
        message = format!("{message}: {detail}");
    }
    let is_expected = phase == ReplicaPhase::Stopping || exit.reason == "Completed";
    let kind = if is_expected { EventKind::Normal } else { EventKind::Warning };
    let reason = if exit.reason == "OOMKilled" { "ContainerOOMKilled" } else { "ContainerTerminated" };
    inner.event(spec, Some(container), kind, reason, message);
    if phase != ReplicaPhase::Stopping && restarts > 1 {
        let message =
            format!("Container '{container}' keeps ending and was restarted {restarts} times; see its console log");
        inner.event(spec, Some(container), EventKind::Warning, "ContainerCrashing", message);
    }
}

/// A helper takes too long: it is asked to end at once.
pub(super) fn give_up(inner: &Arc<Inner>, name: &ReplicaName, message: String) {
    inner.update(name, |replica| {
        replica.failure = Some(("ContainerCreateFailed".to_owned(), message));
        replica.stop = Some(Duration::ZERO);
        if let Some(conn) = &replica.conn {
            let _ = conn.send(&ToShim::Stop { grace_ms: 0 }, &[]);
        }
    });
}

/// Nothing of it runs any more, or never did: says so, then clears away what is left.
pub(super) fn end(inner: &Arc<Inner>, name: &ReplicaName, failure: Option<(String, String)>) {
    let left = inner.update(name, |replica| {
        if replica.ended.is_some() {
            return None;
        }
        replica.conn = None;
        replica.execs.clear();
        replica.prepared.notify_one();
        let was_prepared = replica.shim.as_ref().is_some_and(|shim| {
            use ReplicaPhase::{Frozen, Prepared, Running, Stopping};
            matches!(shim.phase, Prepared | Running | Frozen | Stopping)
        });
        let shim_failure = replica.shim.as_ref().and_then(|shim| shim.failure.clone());
        if let Some(failure) = failure.or(shim_failure) {
            replica.failure.get_or_insert(failure);
        }
        let is_failed = replica.failure.is_some() && !was_prepared;
        if let (true, Some((_, message)), Some(shim)) = (was_prepared, replica.failure.clone(), &mut replica.shim) {
            note_killed(shim, &message);
        }
        replica.ended = Some(if is_failed { ReplicaPhase::Failed } else { ReplicaPhase::Stopped });
        replica.is_ready = false;
        for health in &mut replica.health {
            health.end();
        }
        replica.held.clear();
        // what nobody else holds is gone with that
        replica.namespace = None;
        Some((replica.netns.take(), replica.cgroup.clone()))
    });
    let Some(Some((netns, cgroup))) = left else { return };
    templates::settled(inner, name);
    let (inner, name) = (Arc::clone(inner), name.clone());
    tokio::task::spawn_blocking(move || {
        if let Some(cgroup) = cgroup
            && let Err(error) = inner.cgroups.remove(&cgroup, CGROUP_LIMIT)
        {
            tracing::warn!(replica = %name, %error, "failed to remove the replica's cgroup");
        }
        if let Some(netns) = netns {
            inner.network.release(netns);
        }
        let _ = std::fs::write(inner.config.log_dir.join(name.as_str()).join(ENDED_MARK), b"");
        clear_folder(&inner, &name);
        if inner.update(&name, |replica| replica.is_removed) == Some(true) {
            forget(&inner, &name);
        }
    });
}

fn note_killed(shim: &mut ShimState, message: &str) {
    for container in &mut shim.containers {
        if let ContainerState::Running { .. } = container.state {
            container.state = ContainerState::Terminated;
            container.last_exit = Some(ContainerExit {
                code: 137,
                reason: "Error".to_owned(),
                message: Some(message.to_owned()),
                at: Timestamp::now(),
            });
        }
    }
}

/// Removes all but the two small files by which the next driver knows that it ended.
fn clear_folder(inner: &Inner, name: &ReplicaName) {
    let dir = inner.replica_dir(name);
    for entry in dir.read_dir_utf8().into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Forgets an ended replica; one that has not ended is forgotten when it has.
pub(super) fn remove(inner: &Arc<Inner>, name: &ReplicaName) {
    let has_ended = inner.update(name, |replica| {
        replica.is_removed = true;
        replica.ended.is_some()
    });
    if has_ended == Some(true) {
        forget(inner, name);
    }
}

pub(super) fn forget(inner: &Arc<Inner>, name: &ReplicaName) {
    {
        let mut state = lock(&inner.state);
        let Some(replica) = state.replicas.remove(name) else { return };
        let revision = replica.spec.revision.clone();
        if let Some(names) = state.revisions.get_mut(&revision) {
            names.remove(name);
            if names.is_empty() {
                state.revisions.remove(&revision);
            }
        }
        inner.publish(&state, &revision);
    }
    let dir = inner.replica_dir(name);
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn_blocking(move || std::fs::remove_dir_all(dir));
    } else {
        let _ = std::fs::remove_dir_all(dir);
    }
}
