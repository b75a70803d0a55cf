//! What the ingress saw of one revision; counters only grow, so readers take differences.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A reading of one revision's load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionLoad {
    /// Open now: held and running, upgraded connections included.
    pub open: u64,
    /// Held now.
    pub held: u64,
    /// Requests that arrived since the ingress started.
    pub arrivals_total: u64,
    /// Time that requests were open since the ingress started, in microseconds, summed over all of them: the difference of
    /// two readings by the time between them is the mean of what was open.
    #[serde(default)]
    pub open_us_total: u64,
    /// When the last one arrived.
    pub last_arrival: Option<Timestamp>,
}
