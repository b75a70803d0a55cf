//! Which constants are in force for a revision: its own, else its mode's, else the server's, else Azure's.
//!
//! **Invariant:** this is the one place that decides it: the autoscaler scales by it, `show` prints it, and a simulation
//! begins from it.

use cove_model::{Scale, ScaleMode};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::config::{Fallback, FallbackBehavior};
use crate::fast::FastSettings;
use crate::settings::ScaleSettings;

/// What a server gives to revisions that say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScaleDefaults {
    /// Mode of a revision without `coveMode`, default [`ScaleMode::Aca`].
    pub mode: ScaleMode,
    /// Constants of the mode `aca`, default Azure's; the mode `fast` takes those from it that it has no own for.
    pub settings: ScaleSettings,
    /// Constants of the mode `fast`.
    pub fast: FastSettings,
}

/// Mode and constants in force for one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectiveScale {
    /// How counts are decided.
    pub mode: ScaleMode,
    /// Timings, windows, steps.
    pub settings: ScaleSettings,
    /// Room above the open requests, in percent; 0 in the mode `aca`, which has none.
    pub headroom_percent: u32,
    /// What a failing event source counts as; `None` keeps the count.
    pub fallback: Option<Fallback>,
}

/// Mode and constants in force for `scale` on a server with these defaults.
pub fn effective(scale: &Scale, defaults: &ScaleDefaults) -> EffectiveScale {
    let mode = scale.mode.unwrap_or(defaults.mode);
    let (base, headroom) = match mode {
        ScaleMode::Aca => (defaults.settings.clone(), 0),
        ScaleMode::Fast => {
            let headroom = scale.settings.headroom_percent.unwrap_or(defaults.fast.headroom_percent);
            (defaults.fast.effective(&defaults.settings), headroom)
        }
    };
    let own = &scale.settings;
    let seconds = |given: Option<u32>, base: SignedDuration| given.map_or(base, secs);
    let settings = ScaleSettings {
        polling_interval: secs(scale.polling_interval_secs.max(1)),
        cooldown_period: secs(scale.cooldown_period_secs),
        load_sampling: seconds(own.load_sampling_secs, base.load_sampling),
        resource_sampling: seconds(own.resource_sampling_secs, base.resource_sampling),
        scale_down_window: seconds(own.scale_down_window_secs, base.scale_down_window),
        step_floor: own.step_floor.unwrap_or(base.step_floor),
        step_factor: own.step_factor.unwrap_or(base.step_factor),
        tolerance_percent: own.tolerance_percent.unwrap_or(base.tolerance_percent),
        cpu_initialisation: seconds(own.cpu_initialisation_secs, base.cpu_initialisation),
        cpu_readiness_delay: seconds(own.cpu_readiness_delay_secs, base.cpu_readiness_delay),
        read_deadline: seconds(own.read_deadline_secs, base.read_deadline),
    };
    EffectiveScale { mode, settings, headroom_percent: headroom, fallback: own.fallback.map(Fallback::from) }
}

fn secs(seconds: u32) -> SignedDuration {
    SignedDuration::from_secs(seconds.into())
}

impl From<cove_model::ScaleFallback> for Fallback {
    fn from(given: cove_model::ScaleFallback) -> Self {
        use cove_model::FallbackBehavior as Given;
        let behavior = match given.behavior {
            Given::Static => FallbackBehavior::Static,
            Given::CurrentReplicas => FallbackBehavior::CurrentReplicas,
            Given::CurrentReplicasIfHigher => FallbackBehavior::CurrentReplicasIfHigher,
            Given::CurrentReplicasIfLower => FallbackBehavior::CurrentReplicasIfLower,
        };
        Self { failure_threshold: given.failure_threshold, replicas: given.replicas, behavior }
    }
}

#[cfg(test)]
mod tests {
    use cove_model::{ScaleFallback, ScaleOverrides};

    use super::*;

    #[test]
    fn a_revision_that_says_nothing_has_azures_constants() {
        let found = effective(&Scale::default(), &ScaleDefaults::default());
        assert_eq!((found.mode, found.headroom_percent, found.fallback), (ScaleMode::Aca, 0, None));
        assert_eq!(found.settings, ScaleSettings::default());
    }

    #[test]
    fn the_revision_outranks_its_mode_and_its_mode_the_server() {
        let fallback = ScaleFallback { failure_threshold: 3, replicas: 6, behavior: Default::default() };
        let settings = ScaleOverrides {
            scale_down_window_secs: Some(60),
            headroom_percent: Some(50),
            fallback: Some(fallback),
            ..ScaleOverrides::default()
        };
        let scale = Scale { cooldown_period_secs: 10, settings, ..Scale::default() };
        let mut defaults = ScaleDefaults { mode: ScaleMode::Fast, ..ScaleDefaults::default() };
        defaults.settings.read_deadline = SignedDuration::from_secs(1);
        let found = effective(&scale, &defaults);
        assert_eq!((found.mode, found.headroom_percent), (ScaleMode::Fast, 50));
        assert_eq!(found.settings.scale_down_window, SignedDuration::from_secs(60));
        assert_eq!(found.settings.cooldown_period, SignedDuration::from_secs(10));
        assert_eq!(found.settings.load_sampling, defaults.fast.load_sampling);
        assert_eq!(found.settings.read_deadline, SignedDuration::from_secs(1));
        assert_eq!(found.fallback, Some(fallback.into()));

        let aca = effective(&Scale { mode: Some(ScaleMode::Aca), ..scale }, &defaults);
        assert_eq!((aca.headroom_percent, aca.settings.load_sampling), (0, SignedDuration::from_secs(15)));
    }
}
