//! Percentiles of durations, printed in milliseconds.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

/// Durations in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    sorted: Vec<Duration>,
}

impl Samples {
    /// The smallest value that at least `percent` of all are not above; zero without any.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1);
        self.sorted.get(rank - 1).copied().unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Each value less `base`; never below zero.
    pub(crate) fn above(&self, base: Duration) -> Self {
        self.sorted.iter().map(|value| value.saturating_sub(base)).collect()
    }

    /// Milliseconds: `{"n", "p50", "p95", "p99", "max"}`.
    pub(crate) fn to_json(&self) -> Value {
        let at = |percent| ms(self.percentile(percent));
        json!({"n": self.len(), "p50_ms": at(50), "p95_ms": at(95), "p99_ms": at(99), "max_ms": at(100)})
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(values: I) -> Self {
        let mut sorted: Vec<Duration> = values.into_iter().collect();
        sorted.sort();
        Self { sorted }
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |percent| ms(self.percentile(percent));
        let n = self.len();
        write!(f, "p50 {:7.2}  p95 {:7.2}  p99 {:7.2}  max {:7.2} ms  (n = {n})", at(50), at(95), at(99), at(100))
    }
}

/// Milliseconds with microseconds behind the point.
pub(crate) fn ms(value: Duration) -> f64 {
    (value.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rank() {
        let samples: Samples = (1..=200).rev().map(Duration::from_millis).collect();
        let at = |percent| samples.percentile(percent).as_millis();
        assert_eq!((at(50), at(95), at(99), at(100)), (100, 190, 198, 200));
        assert_eq!(Samples::default().percentile(99), Duration::ZERO);
        assert_eq!(samples.above(Duration::from_millis(150)).percentile(50), Duration::ZERO);
    }
}
