//! The clairvoyant bound: the fewest replica-seconds with which nobody waits.
//!
//! Each request starts at once, so the number of open requests over time is known, and with it how many replicas are
//! needed. The k-th replica runs while at least k are needed, starts early by one cold start, and runs through a gap
//! that is shorter than starting again; for each k by itself that is optimal.
//!
//! **Invariant:** no policy without waits costs less, if its replicas take as long to start.

use super::{Fleet, Outcome, Request, WaitPercentiles};

/// The bound for `trace`.
pub fn clairvoyant(trace: &[Request], fleet: &Fleet) -> Outcome {
    let mut changes: Vec<(u64, i64)> = Vec::with_capacity(trace.len() * 2);
    for request in trace {
        changes.push((request.at_ms, 1));
        changes.push((request.at_ms.saturating_add(request.duration_ms), -1));
    }
    // Ends come before starts of the same instant: a slot can be used again at once.
    changes.sort_unstable();
    let slots = i64::from(fleet.slots.max(1));
    let mut outcome = Outcome { requests: u64::try_from(trace.len()).unwrap_or(u64::MAX), ..Outcome::default() };
    // Per level: when it was last needed until, `None` while it is needed now; it is paid from its start on.
    let mut idle_since: Vec<Option<u64>> = Vec::new();
    let mut paid_from: Vec<u64> = Vec::new();
    let mut open = 0i64;
    for (at, change) in changes {
        open += change;
        let needed = usize::try_from(open.max(0).unsigned_abs().div_ceil(slots.unsigned_abs())).unwrap_or(usize::MAX);
        while idle_since.len() < needed {
            idle_since.push(Some(0));
            paid_from.push(u64::MAX);
        }
        outcome.most_replicas = outcome.most_replicas.max(u32::try_from(needed).unwrap_or(u32::MAX));
        for (level, idle) in idle_since.iter_mut().enumerate() {
            match (*idle, level < needed) {
                (None, false) => *idle = Some(at),
                (Some(since), true) => {
                    let first = paid_from[level] == u64::MAX;
                    if first || at - since > fleet.cold_start_ms {
                        if !first {
                            outcome.replica_ms += since - paid_from[level];
                        }
                        outcome.replica_ms += fleet.cold_start_ms;
                        outcome.starts += 1;
                        paid_from[level] = at;
                    }
                    *idle = None;
                }
                _ => {}
            }
        }
    }
    for (level, idle) in idle_since.iter().enumerate() {
        outcome.replica_ms += idle.unwrap_or(paid_from[level]).saturating_sub(paid_from[level]);
    }
    outcome.wait_ms = WaitPercentiles::default();
    outcome
}
