//! How much a sandboxed container may write to its console.
//!
//! What comes too fast is not read until its turn, so the writer waits in its own time and on its own processor share:
//! neither this helper nor what reads the log files is kept busy by it.
//!
//! **Invariant:** over any span a container's log grows by at most [`BURST_BYTES`] and [`BYTES_PER_SEC`].

use std::time::{Duration, Instant};

/// What may be written at once.
const BURST_BYTES: i64 = 4 << 20;

/// What may be written in the long run.
const BYTES_PER_SEC: i64 = 128 << 10;

/// Reading goes on when this much is allowed again.
const RESUME_BYTES: i64 = 32 << 10;

/// A bucket that fills by time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Less than nothing when a read took more than was left.
    bytes: i64,
    at: Instant,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self { bytes: BURST_BYTES, at: now }
    }

    /// Takes what was read, which may be a little more than was left.
    pub(super) fn take(&mut self, bytes: usize, now: Instant) {
        self.fill(now);
        self.bytes = self.bytes.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    fn fill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.at);
        let new = i64::try_from(since.as_millis()).unwrap_or(i64::MAX).saturating_mul(BYTES_PER_SEC) / 1000;
        if new > 0 {
            self.bytes = self.bytes.saturating_add(new).min(BURST_BYTES);
            self.at = now;
        }
    }

    /// When reading may go on; `None`: now.
    pub(super) fn resumes_at(&self, now: Instant) -> Option<Instant> {
        let mut filled = *self;
        filled.fill(now);
        let wait_ms =
            u64::try_from(RESUME_BYTES - filled.bytes).ok()?.checked_mul(1000)? / BYTES_PER_SEC.unsigned_abs();
        (filled.bytes < RESUME_BYTES).then(|| now + Duration::from_millis(wait_ms + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_slowed_down_and_a_line_is_not() {
        let begin = Instant::now();
        let mut budget = Budget::new(begin);
        budget.take(1000, begin);
        assert_eq!(budget.resumes_at(begin), None);
        let (mut now, mut written) = (begin, 0_i64);
        while now < begin + Duration::from_secs(100) {
            match budget.resumes_at(now) {
                Some(at) => now = at,
                None => {
                    budget.take(64 << 10, now);
                    written += 64 << 10;
                }
            }
        }
        let most = BURST_BYTES + 101 * BYTES_PER_SEC + (64 << 10);
        assert!(written <= most && written > most / 2, "{written} of {most}");
    }
}
