//! Latency over time in a fixed number of slots: when they are full, neighbours are joined and a slot is twice as long.
//!
//! A request belongs to the slot in which it should have been sent, so a stall is seen where it began.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Most slots; an even number.
const SLOTS_MAX: usize = 240;
/// How long a slot is at first.
const WIDTH_FIRST: Duration = Duration::from_millis(100);
/// Longest latency that is told apart, in microseconds; ten minutes.
const LATENCY_MAX_US: u64 = 600_000_000;

/// One stretch of time.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Microseconds; two digits are enough for a picture.
    pub(crate) latency: Histogram<u32>,
    pub(crate) lost: u64,
}

#[derive(Debug)]
pub(crate) struct Timeline {
    width: Duration,
    slots: Vec<Slot>,
}

impl Slot {
    fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX_US, 2).expect("the bounds are in order");
        Self { latency, lost: 0 }
    }
}

impl Default for Timeline {
    fn default() -> Self {
        Self { width: WIDTH_FIRST, slots: Vec::new() }
    }
}

impl Timeline {
    /// How long one slot is.
    pub(crate) fn width(&self) -> Duration {
        self.width
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(crate) fn answered(&mut self, due: Duration, latency_us: u64) {
        self.slot(due).latency.saturating_record(latency_us);
    }

    pub(crate) fn lost(&mut self, due: Duration) {
        self.slot(due).lost += 1;
    }

    fn slot(&mut self, due: Duration) -> &mut Slot {
        let mut index = self.index(due);
        while index >= SLOTS_MAX {
            self.join();
            index = self.index(due);
        }
        while self.slots.len() <= index {
            self.slots.push(Slot::new());
        }
        &mut self.slots[index]
    }

    fn index(&self, due: Duration) -> usize {
        usize::try_from(due.as_micros() / self.width.as_micros()).unwrap_or(usize::MAX)
    }

    /// Halves the slots.
    fn join(&mut self) {
        self.width *= 2;
        let mut joined: Vec<Slot> = Vec::with_capacity(SLOTS_MAX);
        for (index, slot) in self.slots.drain(..).enumerate() {
            match joined.last_mut() {
                Some(last) if index % 2 == 1 => {
                    last.latency.add(&slot.latency).expect("both histograms have the same bounds");
                    last.lost += slot.lost;
                }
                _ => joined.push(slot),
            }
        }
        self.slots = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_takes_no_more_slots_than_a_minute() {
        let mut timeline = Timeline::default();
        for second in 0..3600 {
            timeline.answered(Duration::from_secs(second), 1000 + second);
            if second % 100 == 0 {
                timeline.lost(Duration::from_secs(second));
            }
        }
        assert!(timeline.slots().len() <= SLOTS_MAX);
        assert_eq!(timeline.width(), WIDTH_FIRST * 256);
        assert_eq!(timeline.slots().iter().map(|slot| slot.latency.len()).sum::<u64>(), 3600);
        assert_eq!(timeline.slots().iter().map(|slot| slot.lost).sum::<u64>(), 36);
        assert!(timeline.slots()[0].latency.max() < timeline.slots()[100].latency.min());
    }
}
