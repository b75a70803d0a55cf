//! Counts a revision's arrivals: all of them, and how many came in any span of the last 15 seconds.
//!
//! The HTTP scale rule is defined on the requests that arrived in `[t - 15 s, t)`. A reader that is late by a few
//! milliseconds must still get that number, so the counts are kept per 10 ms, not only as a total.
//!
//! **Invariant:** the total never falls; a clock that steps back counts into the newest slot.

use jiff::Timestamp;

/// Length of one slot in milliseconds.
const SLOT_MS: i64 = 10;
/// Slots kept: 15 s and a little more for late readers.
const SLOTS: usize = 1600;

/// Arrivals of one revision.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    total: u64,
    last: Option<Timestamp>,
    newest: i64,
    /// Made at the first arrival: most revisions of a machine never get one.
    slots: Option<Box<[u32]>>,
}

fn slot_of(at: Timestamp) -> i64 {
    at.as_millisecond().div_euclid(SLOT_MS)
}

fn place(slot: i64) -> usize {
    usize::try_from(slot.rem_euclid(SLOTS as i64)).expect("a remainder is not negative")
}

impl Arrivals {
    /// Counts one arrival.
    pub(crate) fn record(&mut self, now: Timestamp) {
        let slot = slot_of(now);
        let slots = self.slots.get_or_insert_with(|| {
            self.newest = slot;
            vec![0; SLOTS].into_boxed_slice()
        });
        if slot > self.newest {
            let passed = (slot - self.newest).min(SLOTS as i64);
            for step in 0..passed {
                slots[place(slot - step)] = 0;
            }
            self.newest = slot;
        }
        let counter = &mut slots[place(self.newest)];
        *counter = counter.saturating_add(1);
        self.total += 1;
        self.last = Some(now);
    }

    /// Arrivals since the ingress started.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The last arrival.
    pub(crate) fn last(&self) -> Option<Timestamp> {
        self.last
    }

    /// Arrivals in `[from, to)`, both rounded down to 10 ms; what is older than 16 s is forgotten.
    pub(crate) fn between(&self, from: Timestamp, to: Timestamp) -> u64 {
        let Some(slots) = &self.slots else { return 0 };
        let first = slot_of(from).max(self.newest - (SLOTS as i64 - 1));
        let end = slot_of(to).min(self.newest + 1);
        (first..end).map(|slot| u64::from(slots[place(slot)])).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    #[test]
    fn a_window_has_an_exact_count() {
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.between(at(0), at(15_000)), 0);
        for ms in [1_000, 1_000, 1_009, 1_010, 15_999, 16_000] {
            arrivals.record(at(ms));
        }
        for (from, to, expected) in [
            (1_000, 16_000, 5),
            (1_010, 16_010, 3),
            (1_000, 1_010, 3),
            (0, 99_000, 6),
            (16_000, 16_000, 0),
            (16_010, 31_010, 0),
        ] {
            assert_eq!(arrivals.between(at(from), at(to)), expected, "[{from}, {to})");
        }
        assert_eq!((arrivals.total(), arrivals.last()), (6, Some(at(16_000))));
    }

    #[test]
    fn old_slots_are_used_again() {
        let mut arrivals = Arrivals::default();
        for second in 0..100 {
            arrivals.record(at(second * 1000));
            assert_eq!(
                arrivals.between(at(second * 1000 - 14_990), at(second * 1000 + 10)),
                15.min(u64::try_from(second).unwrap() + 1)
            );
        }
        arrivals.record(at(1_000_000));
        assert_eq!(arrivals.between(at(985_000), at(1_000_010)), 1);
        arrivals.record(at(500_000));
        assert_eq!(arrivals.between(at(985_000), at(1_000_010)), 2, "a clock that stepped back");
    }
}
