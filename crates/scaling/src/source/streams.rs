//! `redis-streams` and its cluster and sentinel forms: lag, pending entries or length of a stream.
//!
//! **Invariant:** exactly one of the three is measured, chosen by the metadata and never by the answer.

use super::params::Params;
use super::{Metric, Unreadable, float};

/// Metadata of a stream rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RedisStream {
    /// What is measured.
    pub mode: StreamMode,
    /// Per replica, default 5 (no default for the lag).
    pub target: f64,
    /// The lag must exceed this, default 0; pending entries and length exceed 0.
    pub activation: f64,
}

/// Which number of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamMode {
    /// Entries that the group has not been given (`lagCount`; Redis 7).
    Lag,
    /// Entries given and not acknowledged.
    Pending,
    /// All entries.
    Length,
}

/// What Redis says about the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamAnswer {
    /// `XLEN`; `None` = there is no such stream.
    pub length: Option<u64>,
    /// The group's row of `XINFO GROUPS`; `None` = there is no such group.
    pub group: Option<StreamGroup>,
}

/// A consumer group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamGroup {
    /// Entries given and not acknowledged.
    pub pending: u64,
    /// Entries not given yet; `None` where Redis cannot tell (before 7, or after entries were deleted).
    pub lag: Option<u64>,
}

impl RedisStream {
    pub(super) fn parse(params: &mut Params<'_>) -> Self {
        let group = params.text("consumerGroup").is_some();
        let mode = match (params.text("lagCount").is_some(), group) {
            (true, _) => StreamMode::Lag,
            (false, true) => StreamMode::Pending,
            (false, false) => StreamMode::Length,
        };
        if mode == StreamMode::Lag && !group {
            params.wrong("lagCount needs a consumerGroup");
        }
        let (key, default) = match mode {
            StreamMode::Lag => ("lagCount", None),
            StreamMode::Pending => ("pendingEntriesCount", Some(5.0)),
            StreamMode::Length => ("streamLength", Some(5.0)),
        };
        let activation = params.activation("activationLagCount");
        Self {
            mode,
            target: params.target(key, default),
            activation: if mode == StreamMode::Lag { activation } else { 0.0 },
        }
    }

    /// The stream's number.
    pub fn measure(&self, answer: StreamAnswer) -> Result<Metric, Unreadable> {
        let length = answer.length.unwrap_or(0);
        let value = match (self.mode, answer.group) {
            (StreamMode::Length, _) | (StreamMode::Lag, None) => length,
            (StreamMode::Lag, Some(_)) if answer.length.is_none() => 0,
            (StreamMode::Lag, Some(group)) => {
                group.lag.ok_or_else(|| Unreadable::new("Redis cannot tell the lag; it needs Redis 7"))?
            }
            (StreamMode::Pending, Some(group)) => group.pending,
            (StreamMode::Pending, None) => return Err(Unreadable::new("there is no such stream or consumer group")),
        };
        Ok(Metric::whole(value, float(value) > self.activation))
    }
}
