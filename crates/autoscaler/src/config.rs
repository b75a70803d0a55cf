//! `[autoscaler]` of the server's configuration.
//!
//! **Invariant:** every default is Azure's, or costs nothing visible.

use cove_scaling::ScaleSettings;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

/// Settings of the autoscaler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Timings, windows and steps of every revision; a template's own cool-down and polling interval win. Default: Azure's.
    pub settings: ScaleSettings,
    /// Distinct decisions kept in memory per revision, 1..=1000. Default 32; the oldest go first.
    pub decisions_kept: usize,
    /// Longest a changed count waits until it is written down. Default `1s`; after a crash that much may be decided again.
    pub save_after: SignedDuration,
}

impl Default for Config {
    fn default() -> Self {
        Self { settings: ScaleSettings::default(), decisions_kept: 32, save_after: SignedDuration::from_secs(1) }
    }
}
