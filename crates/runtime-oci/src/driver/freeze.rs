//! Freezing and thawing: orders to the helper, probes that rest, memory that goes to swap.
//!
//! **Invariant:** thawing waits for nothing: memory that is just being moved is left where it is.
//! **Invariant:** a replica whose order to freeze was overtaken by one to thaw is not ready until its helper has carried out
//! both: no request is sent to one that is about to be frozen for a moment, which would interrupt what it waits in.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use cove_model::{EventKind, ReplicaName, ReplicaPhase};
use cove_runtime::RuntimeError;
use jiff::Timestamp;

use super::{Inner, Replica, lock};
use crate::{
    cgroup::Weight,
    page_out::{self, PagedOut},
    protocol::{ShimState, ToShim},
};

/// What is wanted of a replica that can be frozen.
#[derive(Debug, Default)]
pub(super) struct Freezing {
    /// The last order; `None` before the first.
    wanted: Option<bool>,
    /// Set when it is to be thawed: its memory is left alone.
    breaks_off: Arc<AtomicBool>,
    /// Since it was ordered to freeze, until it was seen running again, its probes rest.
    pub(super) rests: Arc<AtomicBool>,
    /// When thawing was ordered, and when it was seen running again.
    pub(super) thaw_asked_at: Option<Timestamp>,
    pub(super) thawed_at: Option<Timestamp>,
    /// An order to freeze is on its way, and one to thaw behind it: thaws that the helper had told of before.
    overtaken: Option<u64>,
}

impl Freezing {
    /// No order to freeze it can be carried out any more but the last one.
    pub(super) fn is_settled(&self) -> bool {
        self.overtaken.is_none()
    }

    /// To be thawed; `shim` is what the helper told last.
    fn thaw(&mut self, shim: Option<&ShimState>) {
        let is_frozen = shim.is_some_and(|shim| shim.phase == ReplicaPhase::Frozen);
        if self.wanted == Some(true) && !is_frozen {
            self.overtaken = shim.and_then(|shim| shim.thaws);
        }
        if self.wanted != Some(false) {
            self.thaw_asked_at = Some(Timestamp::now());
            self.thawed_at = None;
        }
        self.wanted = Some(false);
    }

    /// The helper tells something.
    fn heard(&mut self, new: &ShimState) {
        self.overtaken = self.overtaken.filter(|before| new.thaws.is_some_and(|thaws| thaws <= *before));
    }
}

fn living<'a>(
    replicas: &'a mut std::collections::BTreeMap<ReplicaName, Replica>,
    name: &ReplicaName,
) -> Result<&'a mut Replica, RuntimeError> {
    let replica = replicas.get_mut(name).ok_or_else(|| RuntimeError::NotFound(name.clone()))?;
    if replica.ended.is_some() || replica.stop.is_some() {
        return Err(RuntimeError::Gone(name.clone()));
    }
    Ok(replica)
}

pub(super) fn freeze(inner: &Inner, name: &ReplicaName) -> Result<(), RuntimeError> {
    if !inner.capabilities.freezes {
        return Err(RuntimeError::Unsupported("its control groups have no freezer".to_owned()));
    }
    let mut state = lock(&inner.state);
    let replica = living(&mut state.replicas, name)?;
    if !replica.shim.as_ref().is_some_and(|shim| shim.freezes) {
        return Err(RuntimeError::Unsupported("the replica's helper process is of an older version".to_owned()));
    }
    let freezing = &mut replica.freezing;
    freezing.wanted = Some(true);
    freezing.breaks_off = Arc::new(AtomicBool::new(false));
    freezing.rests.store(true, Ordering::Relaxed);
    if let Some(conn) = &replica.conn {
        // A broken connection shows in its own loop, which gives the order again after connecting anew.
        let _ = conn.send(&ToShim::Freeze, &[]);
    }
    Ok(())
}

pub(super) fn thaw(inner: &Inner, name: &ReplicaName) -> Result<(), RuntimeError> {
    let mut state = lock(&inner.state);
    let replica = living(&mut state.replicas, name)?;
    weigh_as_usual(inner, replica);
    let freezing = &mut replica.freezing;
    freezing.breaks_off.store(true, Ordering::Relaxed);
    let is_frozen = replica.shim.as_ref().is_some_and(|shim| shim.phase == ReplicaPhase::Frozen);
    if freezing.wanted != Some(true) && !is_frozen {
        return Ok(());
    }
    freezing.thaw(replica.shim.as_ref());
    if let Some(conn) = &replica.conn {
        let _ = conn.send(&ToShim::Thaw, &[]);
    }
    if !replica.freezing.is_settled() {
        let revision = replica.spec.revision.clone();
        inner.publish(&state, &revision);
    }
    Ok(())
}

/// One that was made ahead is wanted now.
pub(super) fn weigh_as_usual(inner: &Inner, replica: &Replica) {
    let is_ahead = replica.spec.sandbox.as_ref().is_some_and(|sandbox| sandbox.is_ahead);
    if let Some(cgroup) = replica.cgroup.as_ref().filter(|_| is_ahead)
        && let Err(error) = inner.cgroups.weigh(cgroup, Weight::Usual)
    {
        tracing::warn!(replica = %replica.spec.name, %error, "it keeps the least share of the processor");
    }
}

/// The order that stands, for a helper that was connected anew.
pub(super) fn standing_order(replica: &Replica) -> Option<ToShim> {
    replica.freezing.wanted.map(|is_wanted| if is_wanted { ToShim::Freeze } else { ToShim::Thaw })
}

/// Follows what a helper tells; says whether the replica has just been frozen.
pub(super) fn follow(replica: &mut Replica, old: Option<&ShimState>, new: &ShimState) -> bool {
    let is_frozen = new.phase == ReplicaPhase::Frozen;
    let was_frozen = old.is_some_and(|old| old.phase == ReplicaPhase::Frozen);
    let freezing = &mut replica.freezing;
    freezing.heard(new);
    let has_failed = new.freeze_error.is_some() && !is_frozen;
    if has_failed {
        freezing.wanted = None;
    }
    freezing.rests.store(is_frozen || freezing.wanted == Some(true), Ordering::Relaxed);
    if was_frozen && !is_frozen && freezing.wanted == Some(false) {
        freezing.thawed_at = Some(Timestamp::now());
    }
    is_frozen && !was_frozen && freezing.wanted == Some(true)
}

/// A replica was frozen: moves its memory to swap behind, if there is any, and says so.
pub(super) fn settle(inner: &Arc<Inner>, name: &ReplicaName) {
    let (inner, name) = (Arc::clone(inner), name.clone());
    let stop = inner.stop.clone();
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let Ok(_turn) = inner.page_outs.acquire().await else { return };
        let found = {
            let state = lock(&inner.state);
            let replica = state.replicas.get(&name);
            replica.and_then(|replica| {
                let freezing = &replica.freezing;
                let parts = (replica.cgroup.clone()?, Arc::clone(&freezing.breaks_off), Arc::clone(&replica.spec));
                (freezing.wanted == Some(true)).then_some(parts)
            })
        };
        let Some((cgroup, breaks_off, spec)) = found else { return };
        let cgroups = inner.cgroups.clone();
        let moved = tokio::task::spawn_blocking(move || {
            let processes = cgroups.processes(&cgroup)?;
            if page_out::swap_free() == 0 {
                let usage = page_out::usage(&processes);
                return Ok((false, PagedOut { before: usage, after: usage }));
            }
            page_out::page_out(&processes, || !breaks_off.load(Ordering::Relaxed)).map(|moved| (true, moved))
        });
        match moved.await {
            Ok(Ok((has_swap, moved))) => {
                let message = format!("Replica '{name}' is frozen; {}", words(has_swap, moved));
                inner.event(&spec, None, EventKind::Normal, "ReplicaFrozen", message);
            }
            Ok(Err(error)) => {
                let message = format!("Replica '{name}' is frozen; its memory stays where it is: {error}");
                inner.event(&spec, None, EventKind::Normal, "ReplicaFrozen", message);
            }
            Err(error) => tracing::error!(replica = %name, %error, "moving memory to swap panicked"),
        }
    }));
}

fn words(has_swap: bool, moved: PagedOut) -> String {
    let mib = |bytes: u64| bytes >> 20;
    if has_swap {
        let out = moved.after.swapped.saturating_sub(moved.before.swapped);
        format!("{} MiB of its memory were moved to swap, {} MiB stay", mib(out), mib(moved.after.resident))
    } else {
        format!("its {} MiB of memory stay, as this machine has no swap", mib(moved.after.resident))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(phase: ReplicaPhase, thaws: Option<u64>) -> ShimState {
        ShimState {
            phase,
            failure: None,
            containers: Vec::new(),
            phases: cove_model::ReplicaPhases::default(),
            is_start_asked: true,
            freezes: true,
            freeze_error: None,
            thaws,
            gives_written: true,
            gives_memory: false,
            restored: None,
            restore_error: None,
            cpu_us_total: None,
        }
    }

    #[test]
    fn a_thaw_that_overtakes_a_freeze_waits_for_both() {
        use ReplicaPhase::{Frozen, Running};
        let mut freezing = Freezing { wanted: Some(true), ..Freezing::default() };
        freezing.thaw(Some(&told(Running, Some(3))));
        assert!(!freezing.is_settled(), "the order to freeze is still on its way");
        for (phase, thaws) in [(Running, 3), (Frozen, 3)] {
            freezing.heard(&told(phase, Some(thaws)));
            assert!(!freezing.is_settled());
        }
        // given again, it does not begin anew
        freezing.thaw(Some(&told(Frozen, Some(3))));
        freezing.heard(&told(Running, Some(4)));
        assert!(freezing.is_settled());

        let mut frozen = Freezing { wanted: Some(true), ..Freezing::default() };
        frozen.thaw(Some(&told(Frozen, Some(3))));
        assert!(frozen.is_settled(), "its phase says enough");
        let mut old = Freezing { wanted: Some(true), ..Freezing::default() };
        old.thaw(Some(&told(Running, None)));
        assert!(old.is_settled(), "a helper that does not count is not waited for");
    }
}
