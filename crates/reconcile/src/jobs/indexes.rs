//! Which completion indexes are to be run, and when.
//!
//! **Invariant:** an index that succeeded or runs is not run again; one that failed waits longer each time.

use std::collections::BTreeMap;

use cove_model::Execution;
use jiff::{SignedDuration, Timestamp};

use super::{INTERRUPTED, JobSettings, is_failed, later};

/// What became of an index so far.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    is_taken: bool,
    failures: u32,
    failed_at: Option<Timestamp>,
}

/// All indexes of an execution that were begun.
#[derive(Debug)]
pub(super) struct Indexes {
    states: BTreeMap<u32, State>,
    count: u32,
}

/// What can be started.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Now, the lowest first.
    pub(super) now: Vec<u32>,
    /// The next moment at which more can be.
    pub(super) next_at: Option<Timestamp>,
}

impl Indexes {
    pub(super) fn of(execution: &Execution) -> Self {
        let mut states: BTreeMap<u32, State> = BTreeMap::new();
        for replica in &execution.replicas {
            let state = states.entry(replica.index).or_default();
            if replica.reason.as_deref() == Some(INTERRUPTED) && replica.ended_at.is_some() {
                continue;
            }
            if is_failed(replica) {
                state.failures += 1;
                state.failed_at = state.failed_at.max(replica.ended_at);
            } else {
                state.is_taken = true;
            }
        }
        Self { states, count: execution.counts.completions }
    }

    pub(super) fn due(&self, settings: &JobSettings, now: Timestamp) -> Due {
        let mut due = Due::default();
        for index in 0..self.count {
            let state = self.states.get(&index).copied().unwrap_or_default();
            if state.is_taken {
                continue;
            }
            let at = state.failed_at.map(|at| later(at, wait(state.failures, settings)));
            match at {
                Some(at) if at > now => due.next_at = Some(due.next_at.map_or(at, |next| next.min(at))),
                _ => due.now.push(index),
            }
        }
        due
    }
}

/// Nothing before the first retry, then a wait that doubles.
fn wait(failures: u32, settings: &JobSettings) -> SignedDuration {
    match failures {
        0 | 1 => SignedDuration::ZERO,
        more => {
            let factor = 1_i32.checked_shl((more - 2).min(20)).unwrap_or(i32::MAX);
            let wait = settings.retry_wait_first.checked_mul(factor).unwrap_or(settings.retry_wait_most);
            wait.min(settings.retry_wait_most)
        }
    }
}
