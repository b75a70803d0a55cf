//! Who may hold a created-not-started replica when memory does not suffice for all.

use std::collections::BTreeMap;

use cove_model::RevisionKey;
use jiff::Timestamp;

/// A revision that would wake faster with a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotCandidate {
    /// The revision.
    pub revision: RevisionKey,
    /// Nothing of it runs: the next request waits for a start.
    pub is_at_zero: bool,
    /// Last time it was wanted or made active.
    pub used_at: Timestamp,
}

/// Gives each revision one slot while the budget lasts: those at zero first, then the most recently used.
#[must_use]
pub fn divide_slot_budget(
    mut candidates: Vec<SlotCandidate>,
    budget_bytes: u64,
    slot_bytes: u64,
) -> BTreeMap<RevisionKey, u32> {
    let slots = usize::try_from(budget_bytes / slot_bytes.max(1)).unwrap_or(usize::MAX);
    candidates.sort_by(|a, b| {
        b.is_at_zero.cmp(&a.is_at_zero).then(b.used_at.cmp(&a.used_at)).then_with(|| a.revision.cmp(&b.revision))
    });
    candidates.into_iter().take(slots).map(|candidate| (candidate.revision, 1)).collect()
}

#[cfg(test)]
mod tests {
    use cove_model::{ResourceId, RevisionName};

    use super::*;

    #[test]
    fn the_least_recently_used_goes_without() {
        let app = ResourceId::resource("s", "g", "Microsoft.App/containerApps", "web").unwrap();
        let candidate = |name: &str, is_at_zero, second| SlotCandidate {
            revision: RevisionKey { app: app.clone(), name: RevisionName::new(name).unwrap() },
            is_at_zero,
            used_at: Timestamp::from_second(second).unwrap(),
        };
        let all = vec![candidate("a", true, 1), candidate("b", false, 9), candidate("c", true, 5)];
        let names = |budget| {
            let given = divide_slot_budget(all.clone(), budget, 4);
            given.keys().map(|key| key.name.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(0), "");
        assert_eq!(names(7), "c");
        assert_eq!(names(8), "a c");
        assert_eq!(names(100), "a b c");
    }
}
