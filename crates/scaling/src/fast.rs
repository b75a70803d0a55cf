//! `coveMode: fast`: the same decision, taken every second from open requests instead of every 15 s from arrivals.
//!
//! Nothing of [`crate::decide`] changes: limits, windows, reasons and records stay. What changes is the reading, its
//! cadence, and the constants, all of them fields here.
//!
//! **Invariant:** the limits, the cool-down and the polling of event rules are the app's own in both modes.

pub use cove_model::ScaleMode;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::config::ScaleConfig;
use crate::reading::Reading;
use crate::settings::ScaleSettings;

/// Every constant of the fast mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FastSettings {
    /// Time between two readings of http and tcp rules. Default 1 s.
    pub load_sampling: SignedDuration,
    /// A proposal holds the count for this long. Default 10 s.
    pub scale_down_window: SignedDuration,
    /// Smallest ceiling of one step up, in replicas. Default 8.
    pub step_floor: u32,
    /// One step up reaches at most this many times the current count. Default 4.
    pub step_factor: u32,
    /// A reading this close to what the replicas carry changes nothing. Percent, default 0.
    pub tolerance_percent: u32,
    /// Room kept free above the open requests, for those that arrive while a replica starts. Percent, default 20.
    pub headroom_percent: u32,
}

impl Default for FastSettings {
    fn default() -> Self {
        Self {
            load_sampling: SignedDuration::from_secs(1),
            scale_down_window: SignedDuration::from_secs(10),
            step_floor: 8,
            step_factor: 4,
            tolerance_percent: 0,
            headroom_percent: 20,
        }
    }
}

impl FastSettings {
    /// The settings in force for an app in fast mode.
    pub fn effective(&self, settings: &ScaleSettings) -> ScaleSettings {
        ScaleSettings {
            load_sampling: self.load_sampling,
            scale_down_window: self.scale_down_window,
            step_floor: self.step_floor,
            step_factor: self.step_factor,
            tolerance_percent: self.tolerance_percent,
            ..settings.clone()
        }
    }

    /// The configuration with the fast mode's constants.
    pub fn configure(&self, config: &ScaleConfig) -> ScaleConfig {
        ScaleConfig { settings: self.effective(&config.settings), ..config.clone() }
    }

    /// The reading of an http or tcp rule: open requests, held ones included, with the headroom on top.
    ///
    /// `open` is the count now, `mean_milli` the mean of the time since the last reading in thousandths; the larger of
    /// the two counts, so that neither a burst between two readings nor one just now is missed.
    pub fn open_reading(&self, open: u64, mean_milli: u64) -> Reading {
        let load = open.saturating_mul(1000).max(mean_milli);
        let share = u128::from(load) * (100 + u128::from(self.headroom_percent)) / 100;
        Reading::Value { milli: u64::try_from(share).unwrap_or(u64::MAX), active: load > 0 }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{Hold, Input, Reason, Rule, RuleKind, ScaleState, decide};

    #[test]
    fn open_requests_decide_within_the_limits_of_the_app() {
        let config = ScaleConfig {
            min_replicas: 0,
            max_replicas: 20,
            rules: vec![Rule::new("h", RuleKind::Http, 10.0)],
            settings: ScaleSettings::default(),
            fallback: None,
        };
        let fast = FastSettings::default();
        let config = fast.configure(&config);
        let mut state = ScaleState { current: 1, seeded: true, ..ScaleState::default() };
        let mut decided = Vec::new();
        for (second, open, mean_milli) in [(1, 9, 0), (2, 60, 90_000), (3, 400, 0), (4, 0, 0), (13, 0, 0), (14, 0, 0)] {
            let readings = [fast.open_reading(open, mean_milli)];
            let now = Timestamp::from_second(second).unwrap();
            let input = Input { now, readings: &readings, existing: state.current, in_flight: open, hold: Hold::None };
            let decision = decide(&config, &state, &input);
            state.apply(&config, &decision);
            decided.push((decision.new, decision.reason));
        }
        let expected = [
            (2, Reason::ScaleUp),
            (8, Reason::ScaleUpLimited),
            (20, Reason::ScaleUpLimited),
            (20, Reason::Stabilized),
            (20, Reason::Stabilized),
            (1, Reason::ScaleDown),
        ];
        assert_eq!(decided, expected);
        assert_eq!(config.settings.cooldown_period, SignedDuration::from_secs(300));
    }
}
