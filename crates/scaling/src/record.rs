//! A decision and the configuration it was taken under: enough to take it again.
//!
//! A report from the field is checked by replaying its record; a record that disagrees is one more test vector.
//!
//! **Invariant:** [`DecisionRecord::replay`] of an unchanged record gives the recorded decision.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::ScaleConfig;
use crate::decide::{Decision, activate, decide};
use crate::reading::{Input, Reading};
use crate::state::{Proposals, ScaleState};

/// One decision of one revision, self-contained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// Limits, rules and settings, shared by all records of a revision.
    pub config: Arc<ScaleConfig>,
    /// What was decided from what.
    pub decision: Decision,
}

/// A record that does not follow from its own readings.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record says {recorded} replicas ({recorded_reason}), its readings give {replayed} ({replayed_reason})")]
pub struct ReplayDiffers {
    /// Count in the record.
    pub recorded: u32,
    /// Reason in the record.
    pub recorded_reason: crate::Reason,
    /// Count taken again.
    pub replayed: u32,
    /// Reason taken again.
    pub replayed_reason: crate::Reason,
}

impl DecisionRecord {
    /// Takes the decision again from what the record says was known.
    pub fn replay(&self) -> Result<Decision, ReplayDiffers> {
        let again = self.decide_again();
        if again == self.decision {
            return Ok(again);
        }
        Err(ReplayDiffers {
            recorded: self.decision.new,
            recorded_reason: self.decision.reason,
            replayed: again.new,
            replayed_reason: again.reason,
        })
    }

    fn decide_again(&self) -> Decision {
        let recorded = &self.decision;
        let failures = |rule: &crate::RuleOutcome| rule.failures.saturating_sub(1);
        let state = ScaleState {
            current: recorded.current,
            last_active: recorded.last_active,
            proposals: recorded.window_peak.map(|peak| (recorded.at, peak)).into_iter().collect::<Proposals>(),
            failures: recorded.rules.iter().map(failures).collect(),
            seeded: !recorded.seeded,
        };
        let activated_by_request = recorded.rules.is_empty() && recorded.reason == crate::Reason::Activated;
        if activated_by_request && let Some(again) = activate(&self.config, &state, recorded.at, recorded.in_flight) {
            return again;
        }
        let readings: Vec<Reading> = recorded.rules.iter().map(|rule| rule.reading.clone()).collect();
        let input = Input {
            now: recorded.at,
            readings: &readings,
            existing: recorded.existing,
            in_flight: recorded.in_flight,
            hold: recorded.hold,
        };
        decide(&self.config, &state, &input)
    }
}
