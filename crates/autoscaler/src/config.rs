//! `[autoscaler]` of the server's configuration.
//!
//! **Invariant:** every default is Azure's, or costs nothing visible.

use cove_model::ScaleMode;
use cove_scaling::fast::FastSettings;
use cove_scaling::{ScaleDefaults, ScaleSettings};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::recording::RecordingConfig;

/// Settings of the autoscaler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Timings, windows and steps of every revision; a template's own cool-down and polling interval win. Default: Azure's.
    pub settings: ScaleSettings,
    /// How revisions without `coveMode` are scaled, `aca` or `fast`. Default `aca`.
    #[serde(with = "mode")]
    pub mode: ScaleMode,
    /// Constants of the mode `fast`; a template's own win.
    pub fast: FastSettings,
    /// Distinct decisions kept in memory per revision, 1..=1000. Default 16; the oldest go first, and the recording
    /// has them all.
    pub decisions_kept: usize,
    /// Longest a changed count waits until it is written down. Default `1s`; after a crash that much may be decided again.
    pub save_after: SignedDuration,
    /// Where every decision is kept for days.
    pub recording: RecordingConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            settings: ScaleSettings::default(),
            mode: ScaleMode::Aca,
            fast: FastSettings::default(),
            decisions_kept: 16,
            save_after: SignedDuration::from_secs(1),
            recording: RecordingConfig::default(),
        }
    }
}

impl Config {
    /// What revisions get that say nothing.
    pub fn defaults(&self) -> ScaleDefaults {
        ScaleDefaults { mode: self.mode, settings: self.settings.clone(), fast: self.fast.clone() }
    }
}

/// The mode as it is written in the configuration, which is how templates write it.
mod mode {
    use cove_model::ScaleMode;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(mode: &ScaleMode, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match mode {
            ScaleMode::Aca => "aca",
            ScaleMode::Fast => "fast",
        })
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ScaleMode, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "aca" => Ok(ScaleMode::Aca),
            "fast" => Ok(ScaleMode::Fast),
            other => Err(D::Error::custom(format!("mode is `{other}`; expected `aca` or `fast`"))),
        }
    }
}
