//! Counts of one revision: how long its requests took, how they ended, how much went through.
//!
//! **Invariant:** counting is a few additions; a revision that never had a request has none of this.

use std::sync::atomic::{AtomicU64, Ordering};

use cove_traffic::{DURATION_EDGES_US, Ending, RevisionTraffic};

use super::sketch::Sketch;

/// What is counted at the end of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) duration_us: u64,
    /// Seconds since the ingress began.
    pub(crate) now_secs: u64,
    pub(crate) ending: Ending,
    /// Its duration is that of a connection, not of an answer.
    pub(crate) is_upgraded: bool,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
}

/// Counters of one revision.
#[derive(Default)]
pub(crate) struct Red {
    durations: [AtomicU64; DURATION_EDGES_US.len() + 1],
    duration_us_total: AtomicU64,
    client_left: AtomicU64,
    app_cut: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    recent: Sketch,
}

impl Red {
    /// Counts a request.
    pub(crate) fn count(&self, ended: &Ended) {
        let add = |counter: &AtomicU64, amount| {
            if amount > 0 {
                counter.fetch_add(amount, Ordering::Relaxed);
            }
        };
        if !ended.is_upgraded {
            let class = DURATION_EDGES_US.partition_point(|edge| *edge < ended.duration_us);
            add(&self.durations[class], 1);
            add(&self.duration_us_total, ended.duration_us);
            self.recent.record(ended.duration_us, ended.now_secs);
        }
        match ended.ending {
            Ending::Complete => {}
            Ending::ClientLeft => add(&self.client_left, 1),
            Ending::AppCut | Ending::AppSilent => add(&self.app_cut, 1),
        }
        add(&self.received_bytes, ended.received_bytes);
        add(&self.sent_bytes, ended.sent_bytes);
    }

    /// What was counted so far; the rest is for the caller.
    pub(crate) fn read(&self, now_secs: u64) -> RevisionTraffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RevisionTraffic {
            durations: self.durations.each_ref().map(read),
            duration_us_total: read(&self.duration_us_total),
            client_left: read(&self.client_left),
            app_cut: read(&self.app_cut),
            received_bytes: read(&self.received_bytes),
            sent_bytes: read(&self.sent_bytes),
            recent: self.recent.read(now_secs),
            ..RevisionTraffic::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_in_the_class_that_they_reach() {
        let red = Red::default();
        let plain = Ended {
            duration_us: 0,
            now_secs: 0,
            ending: Ending::Complete,
            is_upgraded: false,
            received_bytes: 1,
            sent_bytes: 10,
        };
        for duration_us in [0, 1_000, 1_001, 60_000_000, 60_000_001] {
            red.count(&Ended { duration_us, ..plain });
        }
        red.count(&Ended { duration_us: 5, is_upgraded: true, ending: Ending::ClientLeft, ..plain });
        red.count(&Ended { duration_us: 5, ending: Ending::AppCut, ..plain });
        let read = red.read(0);
        assert_eq!((read.durations[0], read.durations[1], read.durations[13], read.durations[14]), (3, 1, 1, 1));
        assert_eq!(read.durations.iter().sum::<u64>(), 6, "an upgraded connection has no duration");
        assert_eq!((read.client_left, read.app_cut, read.received_bytes, read.sent_bytes), (1, 1, 7, 70));
        assert_eq!(read.recent.unwrap().count, 6);
    }
}
