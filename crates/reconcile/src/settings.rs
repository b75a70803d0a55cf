//! Every waiting time and limit of the planner.

use jiff::SignedDuration;

/// Waiting times and limits; the defaults are what the documentation states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A replica that drains is not stopped before this has passed, however idle it looks: a request may just have been
    /// sent its way. Default 500 ms.
    pub drain_settle: SignedDuration,
    /// A revision that was replaced still serves for this long, for requests that were routed just before. Default 1 s.
    pub retire_settle: SignedDuration,
    /// Longest a replica waits for its open requests before SIGTERM. Default 30 s, as Azure answers in its issue 493.
    pub drain_period: SignedDuration,
    /// Longest a revision may take until it is ready; then it has failed. Default 10 min.
    pub provisioning_deadline: SignedDuration,
    /// Restarts of one container, never having been ready, after which its revision has failed. Default 5.
    pub crash_restarts_max: u32,
    /// Replicas that could not be made or ended, none having been ready, after which a revision has failed. Default 3.
    pub failed_replicas_max: usize,
    /// With one replica ready for this long, a new revision takes over though not all are ready. Default 60 s.
    pub switch_patience: SignedDuration,
    /// A revision that just became ready keeps at least its initial replicas for this long, whatever is wanted: requests
    /// are only on their way to it. Default 30 s.
    pub fresh_hold: SignedDuration,
    /// First wait before a replica that failed again is replaced; it doubles. Default 1 s.
    pub replace_wait_first: SignedDuration,
    /// Longest wait before a failed replica is replaced. Default 5 min.
    pub replace_wait_most: SignedDuration,
    /// Failures older than this are forgotten. Default 10 min.
    pub failure_window: SignedDuration,
    /// Orders that had no visible effect after this are given again. Default 60 s.
    pub order_timeout: SignedDuration,
    /// After a replica was started, slots are made again only this much later. Default 500 ms.
    pub slot_refill_after: SignedDuration,
    /// Time between two tries to get images that could not be had. Default 30 s; ten times that once a revision failed.
    pub images_retry: SignedDuration,
    /// How long a new revision tries for images that may yet come (a registry that cannot be reached). Default 60 s; then
    /// it has failed, and is tried for again in the background.
    pub images_patience: SignedDuration,
    /// How long a new revision waits for room on the machine or in its workload profile. Default 60 s; then it has
    /// failed, and starts all the same as soon as there is room.
    pub capacity_patience: SignedDuration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            drain_settle: SignedDuration::from_millis(500),
            retire_settle: SignedDuration::from_secs(1),
            drain_period: SignedDuration::from_secs(30),
            provisioning_deadline: SignedDuration::from_secs(600),
            crash_restarts_max: 5,
            failed_replicas_max: 3,
            switch_patience: SignedDuration::from_secs(60),
            fresh_hold: SignedDuration::from_secs(30),
            replace_wait_first: SignedDuration::from_secs(1),
            replace_wait_most: SignedDuration::from_secs(300),
            failure_window: SignedDuration::from_secs(600),
            order_timeout: SignedDuration::from_secs(60),
            slot_refill_after: SignedDuration::from_millis(500),
            images_retry: SignedDuration::from_secs(30),
            images_patience: SignedDuration::from_secs(60),
            capacity_patience: SignedDuration::from_secs(60),
        }
    }
}
