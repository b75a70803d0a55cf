//! How often Cove answered itself, by reason.
//!
//! **Invariant:** reasons come from this crate only, so there are few; what would not fit is counted together.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// More reasons than there are.
const SLOTS: usize = 96;
/// The name of those that do not fit.
const OTHERS: &str = "other";

/// Counters by reason; a reason takes the first free slot and keeps it.
pub(crate) struct Tally {
    slots: [(OnceLock<Box<str>>, AtomicU64); SLOTS],
    others: AtomicU64,
}

impl Default for Tally {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| (OnceLock::new(), AtomicU64::new(0))), others: AtomicU64::new(0) }
    }
}

impl Tally {
    /// Counts one answer.
    pub(crate) fn count(&self, reason: &str) {
        let its = self.slots.iter().find(|(name, _)| **name.get_or_init(|| reason.into()) == *reason);
        its.map_or(&self.others, |(_, count)| count).fetch_add(1, Ordering::Relaxed);
    }

    /// All counts, by reason.
    pub(crate) fn read(&self) -> Vec<(String, u64)> {
        let known = self.slots.iter().filter_map(|(name, count)| Some((name.get()?.to_string(), count)));
        let all = known.chain([(OTHERS.to_owned(), &self.others)]);
        let mut all: Vec<(String, u64)> = all.map(|(name, count)| (name, count.load(Ordering::Relaxed))).collect();
        all.retain(|(_, count)| *count > 0);
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_apart_until_there_is_no_room() {
        let tally = Tally::default();
        assert_eq!(tally.read(), []);
        for reason in ["unknown-host", "no-revision", "unknown-host"] {
            tally.count(reason);
        }
        assert_eq!(tally.read(), [("no-revision".to_owned(), 1), ("unknown-host".to_owned(), 2)]);
        (0..SLOTS).for_each(|n| tally.count(&format!("reason-{n}")));
        assert_eq!(tally.read().len(), SLOTS + 1);
        assert!(tally.read().contains(&(OTHERS.to_owned(), 2)));
    }
}
