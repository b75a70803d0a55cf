//! Growing waits between tries: doubled from `first` to `most`, with jitter from a given random number.

use std::time::Duration;

/// The next wait and its bounds.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    tries: u32,
}

impl Backoff {
    /// Starts at `first`, never above `most`.
    #[must_use]
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, tries: 0 }
    }

    /// Tries counted so far.
    #[must_use]
    pub const fn tries(&self) -> u32 {
        self.tries
    }

    /// After a success: start over.
    pub const fn reset(&mut self) {
        self.tries = 0;
    }

    /// The wait before the next try, without jitter.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.first.saturating_mul(1_u32.checked_shl(self.tries.min(30)).unwrap_or(u32::MAX)).min(self.most);
        self.tries = self.tries.saturating_add(1);
        wait
    }

    /// The wait before the next try, between half and all of [`Self::next_wait`]; `random` is any number.
    pub fn next_wait_jittered(&mut self, random: u64) -> Duration {
        let wait = self.next_wait();
        let half = wait / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_nanos(random % nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_limit() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        let waits: Vec<u64> = (0..5).map(|_| backoff.next_wait().as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 5, 5]);
        backoff.reset();
        let wait = backoff.next_wait_jittered(u64::MAX);
        assert!(wait >= Duration::from_millis(500) && wait <= Duration::from_secs(1));
    }
}
