//! What a revision's resiliency policy did, counted.
//!
//! **Invariant:** every number but [`ResilienceCounts::ejected`] only grows.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a revision's resiliency policy did since the ingress started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResilienceCounts {
    /// Tries after a first one.
    pub retries: u64,
    /// Requests that got an answer worth passing on after a retry.
    pub retry_successes: u64,
    /// Connections to replicas that did not come about in time.
    pub connect_timeouts: u64,
    /// Tries that got no answer in the policy's time.
    pub request_timeouts: u64,
    /// Times that a replica was left out.
    pub ejections: u64,
    /// Times that one was not, because too many were out already.
    pub ejections_aborted: u64,
    /// Replicas that are left out now.
    pub ejected: u64,
    /// Requests and connections refused because too many were open.
    pub pool_overflows: u64,
}

/// The numbers as they are counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) retries: AtomicU64,
    pub(crate) retry_successes: AtomicU64,
    pub(crate) connect_timeouts: AtomicU64,
    pub(crate) request_timeouts: AtomicU64,
    pub(crate) ejections: AtomicU64,
    pub(crate) ejections_aborted: AtomicU64,
    pub(crate) pool_overflows: AtomicU64,
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// As they are now.
    pub(crate) fn read(&self, ejected: u64) -> ResilienceCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ResilienceCounts {
            retries: read(&self.retries),
            retry_successes: read(&self.retry_successes),
            connect_timeouts: read(&self.connect_timeouts),
            request_timeouts: read(&self.request_timeouts),
            ejections: read(&self.ejections),
            ejections_aborted: read(&self.ejections_aborted),
            ejected,
            pool_overflows: read(&self.pool_overflows),
        }
    }
}
