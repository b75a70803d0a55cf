//! Sources that note when they are read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cove_scalers::{ReadFuture, Source};
use cove_scaling::ScaleSettings;

/// What was seen of all sources.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) reads: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) latest_us: AtomicU64,
    /// Grows with each new beginning.
    round: AtomicU64,
}

impl Seen {
    /// Begins anew, also the cadence of each source: its next reading sets it.
    pub(super) fn reset(&self) {
        for counter in [&self.reads, &self.failed, &self.latest_us] {
            counter.store(0, Ordering::Relaxed);
        }
        self.round.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Watched {
    inner: Arc<dyn Source>,
    seen: Arc<Seen>,
    /// The round, and its first reading in it.
    first: Mutex<Option<(u64, Instant)>>,
}

/// The source, watched.
pub(super) fn watch(inner: Arc<dyn Source>, seen: &Arc<Seen>) -> Arc<dyn Source> {
    Arc::new(Watched { inner, seen: Arc::clone(seen), first: Mutex::default() })
}

impl Source for Watched {
    fn read(&self) -> ReadFuture<'_> {
        let now = Instant::now();
        let round = self.seen.round.load(Ordering::Relaxed);
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let known = first.filter(|(of, _)| *of == round);
        let (_, first) = *first.insert(known.unwrap_or((round, now)));
        self.seen.reads.fetch_add(1, Ordering::Relaxed);
        self.seen.latest_us.fetch_max(late_us(now.duration_since(first)), Ordering::Relaxed);
        Box::pin(async {
            let answer = self.inner.read().await;
            if answer.is_err() {
                self.seen.failed.fetch_add(1, Ordering::Relaxed);
            }
            answer
        })
    }
}

/// How far from the nearest instant of the cadence.
fn late_us(passed: Duration) -> u64 {
    let step = ScaleSettings::default().polling_interval.unsigned_abs().as_micros();
    let after = passed.as_micros() % step;
    u64::try_from(after.min(step - after)).unwrap_or(u64::MAX)
}
