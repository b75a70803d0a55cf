//! The last decisions of one revision: what `scale explain` shows.
//!
//! A revision that idles takes the same decision every 15 s; such a run is kept as one entry with its newest record.
//!
//! **Invariant:** at most `kept_max` entries.

use std::collections::VecDeque;
use std::sync::Arc;

use cove_scaling::DecisionRecord;
use jiff::Timestamp;

/// A run of equal decisions.
#[derive(Clone, Debug)]
pub struct KeptDecision {
    /// When the run began.
    pub since: Timestamp,
    /// Decisions in it.
    pub times: u32,
    /// The newest of them.
    pub record: Arc<DecisionRecord>,
}

/// Runs of decisions, oldest first.
#[derive(Debug, Default)]
pub(crate) struct History {
    runs: VecDeque<KeptDecision>,
}

impl History {
    /// Adds a decision.
    pub(crate) fn push(&mut self, record: Arc<DecisionRecord>, kept_max: usize) {
        if let Some(last) = self.runs.back_mut()
            && repeats(&last.record, &record)
        {
            last.times = last.times.saturating_add(1);
            last.record = record;
            return;
        }
        while self.runs.len() >= kept_max.max(1) {
            self.runs.pop_front();
        }
        self.runs.push_back(KeptDecision { since: record.decision.at, times: 1, record });
    }

    pub(crate) fn to_vec(&self) -> Vec<KeptDecision> {
        self.runs.iter().cloned().collect()
    }
}

fn repeats(last: &DecisionRecord, next: &DecisionRecord) -> bool {
    let (last, next) = (&last.decision, &next.decision);
    !next.changes() && last.new == next.new && last.reason == next.reason
}
