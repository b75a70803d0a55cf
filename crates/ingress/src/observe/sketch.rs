//! Durations of one revision over the last minutes, as percentiles, in fixed memory and without a lock.
//!
//! Durations are counted in steps that grow with them, 32 to each doubling, so a percentile is at most 1/32 too high. There are
//! three generations of counters: one is written, the one before is read with it, and the third is already empty, so that
//! turning to it loses nothing. Only after a pause of a generation or more all are emptied at once, and what other threads
//! record in that very moment may be lost.
//!
//! **Invariant:** recording is one addition; only the first request of a new generation does more.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use cove_traffic::Percentiles;

/// Seconds of one generation: what is read covers one to two of them.
pub(crate) const GENERATION_SECS: u64 = 300;

const STEP_BITS: u32 = 5;
const STEPS: u64 = 1 << STEP_BITS;
/// Longer durations count as this: 71 minutes.
const MAX_US: u64 = u32::MAX as u64;
const BUCKETS: usize = bucket(MAX_US) + 1;
const GENERATIONS: u64 = 3;

type Buckets = [AtomicU32; BUCKETS];

/// Counters of one revision; 11 KB.
pub(crate) struct Sketch {
    /// Number of the generation that is written.
    generation: AtomicU64,
    buckets: Box<[Buckets]>,
}

/// The step that a duration falls into.
const fn bucket(us: u64) -> usize {
    #![expect(clippy::cast_possible_truncation, reason = "there are fewer than a thousand steps")]
    if us < STEPS {
        return us as usize;
    }
    let doubling = us.ilog2();
    let step = (us >> (doubling - STEP_BITS)) - STEPS;
    ((doubling - STEP_BITS + 1) as u64 * STEPS + step) as usize
}

/// The longest duration of a step.
const fn upper(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let shift = bucket / STEPS - 1;
    ((STEPS + bucket % STEPS + 1) << shift) - 1
}

impl Default for Sketch {
    fn default() -> Self {
        let empty = || std::array::from_fn(|_| AtomicU32::new(0));
        Self { generation: AtomicU64::new(0), buckets: (0..GENERATIONS).map(|_| empty()).collect() }
    }
}

impl Sketch {
    /// Counts a request that took `us` and ended in second `now_secs` of the ingress's life.
    pub(crate) fn record(&self, us: u64, now_secs: u64) {
        let generation = now_secs / GENERATION_SECS;
        let known = self.generation.load(Ordering::Relaxed);
        if generation > known
            && self.generation.compare_exchange(known, generation, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            if generation == known + 1 {
                // the one that is written now was emptied a generation ago
                self.clear(generation + 1);
            } else {
                (generation..generation + GENERATIONS).for_each(|old| self.clear(old));
            }
        }
        self.of(generation)[bucket(us.min(MAX_US))].fetch_add(1, Ordering::Relaxed);
    }

    fn of(&self, generation: u64) -> &Buckets {
        let place = usize::try_from(generation % GENERATIONS).expect("a remainder by 3 is small");
        &self.buckets[place]
    }

    fn clear(&self, generation: u64) {
        self.of(generation).iter().for_each(|count| count.store(0, Ordering::Relaxed));
    }

    /// Percentiles of this generation and the last one; `None` when nothing was counted in them.
    pub(crate) fn read(&self, now_secs: u64) -> Option<Percentiles> {
        let (now, written) = (now_secs / GENERATION_SECS, self.generation.load(Ordering::Acquire));
        let mut counts = [0_u64; BUCKETS];
        for generation in now.saturating_sub(1)..=now {
            // one that nobody wrote holds what is three generations old
            if generation <= written && written - generation < 2 {
                let read = self.of(generation).iter().map(|count| u64::from(count.load(Ordering::Relaxed)));
                counts.iter_mut().zip(read).for_each(|(sum, count)| *sum += count);
            }
        }
        percentiles(&counts)
    }
}

fn percentiles(counts: &[u64; BUCKETS]) -> Option<Percentiles> {
    let count: u64 = counts.iter().sum();
    let last = counts.iter().rposition(|count| *count > 0)?;
    let percentile = |hundredths: u64| {
        let rank = (count * hundredths).div_ceil(100);
        let mut seen = 0;
        let place = counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        upper(place.unwrap_or(last))
    };
    Some(Percentiles {
        count,
        p50_us: percentile(50),
        p95_us: percentile(95),
        p99_us: percentile(99),
        max_us: upper(last),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_fine_and_leave_no_gap() {
        let mut last = 0;
        for us in (0..5_000).chain((5_000..MAX_US).step_by(999_983)).chain([MAX_US]) {
            let at = bucket(us);
            assert!(at >= last && at < BUCKETS, "{us}");
            last = at;
            assert!(upper(at) >= us && (upper(at) - us) * 32 <= us.max(1), "{us} counts as {}", upper(at));
            assert_eq!(bucket(upper(at)), at);
            assert_eq!(bucket(upper(at) + 1), at + 1);
        }
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let sketch = Sketch::default();
        assert_eq!(sketch.read(0), None);
        for us in 1..=10_000 {
            sketch.record(us, 7);
        }
        let read = sketch.read(7).unwrap();
        assert_eq!(read.count, 10_000);
        for (got, exact) in [(read.p50_us, 5_000), (read.p95_us, 9_500), (read.p99_us, 9_900), (read.max_us, 10_000)] {
            assert!(got >= exact && (got - exact) * 32 <= exact, "{got} for {exact}");
        }
        sketch.record(u64::MAX, 7);
        assert_eq!(sketch.read(7).unwrap().max_us, MAX_US);
    }

    #[test]
    fn what_is_older_than_two_generations_is_forgotten() {
        let sketch = Sketch::default();
        let count = |now| sketch.read(now).map_or(0, |read| read.count);
        let at = |generation| generation * GENERATION_SECS + 1;
        sketch.record(10, at(0));
        assert_eq!((count(at(0)), count(at(1)), count(at(2))), (1, 1, 0));
        sketch.record(10, at(1));
        assert_eq!((count(at(1)), count(at(2)), count(at(3))), (2, 1, 0));
        sketch.record(10, at(2));
        sketch.record(10, at(3));
        sketch.record(10, at(3));
        assert_eq!((count(at(3)), count(at(4))), (3, 2));
        // after a pause
        sketch.record(10, at(50));
        assert_eq!((count(at(50)), count(at(51)), count(at(52))), (1, 1, 0));
        sketch.record(10, at(51));
        assert_eq!(count(at(51)), 2);
    }

    #[test]
    fn threads_that_turn_the_generation_together_lose_nothing() {
        let sketch = Sketch::default();
        sketch.record(1, 0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| sketch.record(50, GENERATION_SECS)));
            }
        });
        assert_eq!(sketch.read(GENERATION_SECS).unwrap().count, 40_001);
    }
}
