//! When a failing replica is left out, for how long, and how many may be out at once.
//!
//! As Envoy's outlier detection: so many errors in a row eject a replica at once; each ejection that follows closely lasts
//! longer; a share of the replicas always stays, but one may go whatever the share.
//!
//! **Invariant:** an ejection has an end.

use std::time::Duration;

use cove_model::BreakerPolicy;
use tokio::time::Instant;

/// Longest ejection, unless one interval is longer.
const EJECTION_MAX: Duration = Duration::from_secs(300);

/// A circuit breaker policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Breaker {
    /// Errors in a row that eject a replica.
    pub(crate) errors_max: u32,
    interval: Duration,
    percent_max: u32,
}

impl Breaker {
    pub(crate) fn new(policy: BreakerPolicy) -> Self {
        Self {
            errors_max: policy.consecutive_errors.max(1),
            interval: Duration::from_secs(policy.interval_secs.max(1).into()),
            percent_max: policy.ejection_percent_max,
        }
    }
}

/// Whether one more of `total` replicas may be left out when `out` are already.
pub(crate) fn may_eject(breaker: &Breaker, out: usize, total: usize) -> bool {
    out == 0 || (out + 1) * 100 <= total * breaker.percent_max as usize
}

/// A replica's ejections.
#[derive(Debug, Default)]
pub(crate) struct Ejection {
    until: Option<Instant>,
    restored_at: Option<Instant>,
    /// In a row.
    times: u32,
}

impl Ejection {
    /// When it comes back; `None` when it is not out.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Leaves it out; gives for how long. Every interval that it was well takes one from the ejections in a row.
    pub(crate) fn eject(&mut self, breaker: &Breaker, now: Instant) -> Duration {
        let well = self.restored_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let forgotten = u32::try_from(well.as_millis() / breaker.interval.as_millis().max(1)).unwrap_or(u32::MAX);
        self.times = self.times.saturating_sub(forgotten) + 1;
        let span = breaker.interval.saturating_mul(self.times).min(EJECTION_MAX.max(breaker.interval));
        self.until = Some(now + span);
        span
    }

    /// Lets it in again, if its time is over.
    pub(crate) fn restore(&mut self, now: Instant) -> bool {
        let is_over = self.until.is_some_and(|until| until <= now);
        if is_over {
            self.until = None;
            self.restored_at = Some(now);
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker(interval_secs: u32, ejection_percent_max: u32) -> Breaker {
        Breaker::new(BreakerPolicy { consecutive_errors: 5, interval_secs, ejection_percent_max })
    }

    #[test]
    fn a_share_stays_and_one_may_always_go() {
        for (percent, total, expected) in [
            (100, 1, 1),
            (100, 4, 4),
            (50, 1, 1),
            (50, 2, 1),
            (50, 4, 2),
            (50, 5, 2),
            (10, 10, 1),
            (10, 30, 3),
            (1, 3, 1),
        ] {
            let breaker = breaker(10, percent);
            let out = (0..total).take_while(|out| may_eject(&breaker, *out, total)).count();
            assert_eq!(out, expected, "{percent} % of {total}");
        }
    }

    #[tokio::test]
    async fn ejections_in_a_row_last_longer_and_health_forgets_them() {
        let breaker = breaker(10, 100);
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut ejection = Ejection::default();
        assert_eq!((ejection.eject(&breaker, at(0)), ejection.until()), (Duration::from_secs(10), Some(at(10))));
        assert!(!ejection.restore(at(9)) && ejection.restore(at(10)) && !ejection.restore(at(11)));
        assert_eq!(ejection.eject(&breaker, at(12)), Duration::from_secs(20));
        assert!(ejection.restore(at(32)));
        assert_eq!(ejection.eject(&breaker, at(33)), Duration::from_secs(30));
        assert!(ejection.restore(at(63)));
        assert_eq!(ejection.eject(&breaker, at(84)), Duration::from_secs(20), "well for two intervals");
        let mut often = Ejection { times: 1000, ..Ejection::default() };
        assert_eq!(often.eject(&breaker, at(0)), EJECTION_MAX);
    }
}
