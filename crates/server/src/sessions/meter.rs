//! Follows what sessions of pools use, for their meter: when each was first ready, and its processor time while it runs.
//!
//! What a session is and when it ended is metered by the store itself, its last use by the controller before it is
//! forgotten; what is here only keeps the figures of those that live fresh, so nothing is lost with it.
//!
//! **Invariant:** one small write for all sessions at most every [`EVERY`], besides those that became ready.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use cove_base::Clock;
use cove_model::{ReplicaName, ReplicaPhase, SESSION_POOL_KIND};
use cove_runtime::Runtime;
use cove_store::{SessionNote, Store};
use jiff::{SignedDuration, Timestamp};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Time between two looks at the processor time of sessions that run.
const EVERY: Duration = Duration::from_secs(10);
/// Time between two looks for sessions that ended long ago.
const SUM_UP_EVERY: Duration = Duration::from_secs(3600);
/// So long a session that ended is kept by itself; then it is in the sum of its pool.
const KEPT: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What was noted of a session already.
#[derive(Clone, Copy, Debug, Default)]
struct Noted {
    is_ready: bool,
    cpu_us: u64,
}

/// Runs until `stop`.
pub(crate) async fn run(store: Store, runtime: Arc<dyn Runtime>, clock: Clock, stop: CancellationToken) {
    let mut changes = runtime.observations().subscribe();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sums = tokio::time::interval(SUM_UP_EVERY);
    let mut noted: HashMap<ReplicaName, Noted> = HashMap::new();
    loop {
        let notes = tokio::select! {
            () = stop.cancelled() => return,
            keys = changes.next() => {
                let pools = keys.into_iter().filter(|key| key.app.kind().eq_ignore_ascii_case(SESSION_POOL_KIND));
                let seen = pools.filter_map(|key| runtime.observations().get(&key));
                let all = seen.flat_map(|all| all.iter().map(|one| (one.name.clone(), one.ready_at)).collect::<Vec<_>>());
                became_ready(all, &mut noted)
            }
            _ = ticks.tick() => look(&*runtime, &mut noted),
            _ = sums.tick() => {
                sum_up(&store, clock.now()).await;
                Vec::new()
            }
        };
        if notes.is_empty() {
            continue;
        }
        if let Err(error) = store.note_session_uses(notes).await {
            tracing::warn!(%error, "what sessions use was not written down; it is tried again at the next look");
            noted.clear();
        }
    }
}

fn became_ready(
    all: impl Iterator<Item = (ReplicaName, Option<Timestamp>)>,
    noted: &mut HashMap<ReplicaName, Noted>,
) -> Vec<SessionNote> {
    let mut notes = Vec::new();
    for (replica, ready_at) in all.filter(|(_, ready_at)| ready_at.is_some()) {
        let known = noted.entry(replica.clone()).or_default();
        if !std::mem::replace(&mut known.is_ready, true) {
            notes.push(SessionNote { replica, ready_at, cpu_us: None });
        }
    }
    notes
}

/// Looks at all sessions that run; those that are frozen use nothing.
fn look(runtime: &dyn Runtime, noted: &mut HashMap<ReplicaName, Noted>) -> Vec<SessionNote> {
    let mut notes = Vec::new();
    let mut there = HashSet::new();
    for (key, all) in runtime.observations().snapshot() {
        if !key.app.kind().eq_ignore_ascii_case(SESSION_POOL_KIND) {
            continue;
        }
        for one in all.iter() {
            there.insert(one.name.clone());
            let known = noted.entry(one.name.clone()).or_default();
            if one.phase == ReplicaPhase::Frozen && known.cpu_us > 0 {
                continue;
            }
            let cpu_us = runtime.usage(&one.name).and_then(|used| used.cpu_us_total).unwrap_or(0);
            if cpu_us > known.cpu_us || one.ready_at.is_some() && !known.is_ready {
                *known = Noted { is_ready: one.ready_at.is_some(), cpu_us: cpu_us.max(known.cpu_us) };
                notes.push(SessionNote { replica: one.name.clone(), ready_at: one.ready_at, cpu_us: Some(cpu_us) });
            }
        }
    }
    noted.retain(|name, _| there.contains(name));
    notes
}

async fn sum_up(store: &Store, now: Timestamp) {
    let before = now.saturating_sub(KEPT).unwrap_or(Timestamp::MIN);
    match store.sum_up_session_uses(before).await {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "sessions that ended long ago are in the sums of their pools"),
        Err(error) => tracing::warn!(%error, "sessions that ended long ago were not summed up"),
    }
}
