//! What one revision's autoscaler remembers between decisions.
//!
//! **Invariant:** changed only by [`ScaleState::apply`] with a decision taken from it; size is bounded by
//! [`PROPOSALS_MAX`] however long the revision lives.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::config::ScaleConfig;
use crate::decide::Decision;

/// Most proposals remembered; a window of 300 s at one decision a second needs 300. Beyond it the oldest is merged
/// into the next, which can only delay a scale-in.
pub const PROPOSALS_MAX: usize = 1024;

/// Memory of one revision's autoscaler. All of it may be written down and read back after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleState {
    /// The count set last.
    pub current: u32,
    /// The last instant at which any rule was active; `None` = never.
    pub last_active: Option<Timestamp>,
    /// Unclamped proposals of the scale-down window.
    pub proposals: Proposals,
    /// Failed readings in a row per rule; empty = none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<u32>,
    /// Whether the count at the autoscaler's start was recorded as a proposal. Not kept over a restart, on purpose:
    /// a restart must not shrink anything for one window.
    #[serde(skip)]
    pub seeded: bool,
}

impl ScaleState {
    /// A revision that becomes active: as many replicas as the one it replaces has, within its own limits.
    ///
    /// It counts as active at that instant, so that its first replica lives at least one cool-down.
    pub fn start(config: &ScaleConfig, replaced: Option<u32>, activated_at: Timestamp) -> Self {
        let lower = config.running_min();
        let current = replaced.unwrap_or(lower).min(config.max_replicas).max(lower);
        Self { current, last_active: Some(activated_at), ..Self::default() }
    }

    /// The clock was set back to `now`: nothing remembered may lie in its future, or it would outlive its window.
    pub fn clock_set_back(&mut self, now: Timestamp) {
        self.last_active = self.last_active.map(|last| last.min(now));
        self.proposals = self.proposals.0.iter().map(|(at, replicas)| ((*at).min(now), *replicas)).collect();
    }

    /// Takes over what `decision` said. `decision` must have been taken from this state.
    pub fn apply(&mut self, config: &ScaleConfig, decision: &Decision) {
        debug_assert_eq!(self.current, decision.current, "a decision is applied to the state it was taken from");
        self.proposals.forget_before(decision.at, config.settings.scale_down_window);
        if decision.seeded {
            self.seeded = true;
            self.proposals.record(decision.at, decision.current);
        }
        if decision.active {
            self.last_active = Some(decision.at);
        }
        if let Some(want) = decision.recorded {
            self.proposals.record(decision.at, want);
        }
        if decision.rules.iter().any(|rule| rule.failures > 0) {
            self.failures.clear();
            self.failures.extend(decision.rules.iter().map(|rule| rule.failures));
        } else if !decision.rules.is_empty() {
            self.failures.clear();
        }
        self.current = decision.new;
    }
}

/// Recent unclamped proposals, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Proposals(VecDeque<(Timestamp, u32)>);

impl Proposals {
    /// Adds one; the newest instant comes last, whatever a clock may have done.
    pub fn record(&mut self, at: Timestamp, replicas: u32) {
        if let Some(last) = self.0.back_mut()
            && last.0 >= at
        {
            last.1 = last.1.max(replicas);
            return;
        }
        if self.0.len() >= PROPOSALS_MAX
            && let Some((_, oldest)) = self.0.pop_front()
            && let Some(next) = self.0.front_mut()
        {
            next.1 = next.1.max(oldest);
        }
        self.0.push_back((at, replicas));
    }

    /// The highest proposal of `[now - window, now]`.
    pub fn peak(&self, now: Timestamp, window: SignedDuration) -> Option<u32> {
        self.0.iter().filter(|(at, _)| now.duration_since(*at) <= window).map(|(_, replicas)| *replicas).max()
    }

    /// The highest proposal of `[now - window, now]` with the newest instant at which it was made.
    pub fn newest_peak(&self, now: Timestamp, window: SignedDuration) -> Option<(Timestamp, u32)> {
        let inside = self.0.iter().filter(|(at, _)| now.duration_since(*at) <= window);
        inside.copied().max_by_key(|(at, replicas)| (*replicas, *at))
    }

    /// Proposals held.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn forget_before(&mut self, now: Timestamp, window: SignedDuration) {
        while self.0.front().is_some_and(|(at, _)| now.duration_since(*at) > window) {
            self.0.pop_front();
        }
    }
}

impl FromIterator<(Timestamp, u32)> for Proposals {
    fn from_iter<I: IntoIterator<Item = (Timestamp, u32)>>(iter: I) -> Self {
        let mut all: Vec<_> = iter.into_iter().collect();
        all.sort_unstable();
        let mut proposals = Self::default();
        for (at, replicas) in all {
            proposals.record(at, replicas);
        }
        proposals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_window_includes_its_first_instant() {
        let proposals: Proposals = [(at(250), 7), (at(200), 10), (at(400), 3)].into_iter().collect();
        let window = SignedDuration::from_secs(300);
        assert_eq!(proposals.peak(at(500), window), Some(10));
        assert_eq!(proposals.peak(at(501), window), Some(7));
        assert_eq!(proposals.peak(at(701), window), None);
    }

    #[test]
    fn memory_is_bounded_and_never_forgets_a_peak_early() {
        let mut proposals = Proposals::default();
        proposals.record(at(0), 99);
        for second in 1..5000 {
            proposals.record(at(second), 1);
        }
        assert_eq!(proposals.len(), PROPOSALS_MAX);
        assert_eq!(proposals.peak(at(5000), SignedDuration::from_secs(5000)), Some(99));
    }
}
