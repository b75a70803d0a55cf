//! What was read at one instant, before any decision.
//!
//! **Invariant:** a reading that is missing or late is [`Reading::Error`], never a zero.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::Rule;
use crate::number::milli;

/// The newest reading of one rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reading {
    /// A value rule's number.
    Value {
        /// The value in thousandths.
        milli: u64,
        /// Whether it keeps the revision active.
        active: bool,
    },
    /// A cpu or memory rule's proposal, from [`crate::resource::propose`].
    Replicas {
        /// Proposed replicas.
        count: u32,
    },
    /// The source did not answer, or not in time, or what it said makes no sense.
    Error {
        /// Why, for people.
        reason: Arc<str>,
    },
}

impl Reading {
    /// A value, active when it exceeds the rule's activation.
    pub fn of_value(rule: &Rule, value: f64) -> Self {
        Self::Value { milli: milli(value), active: value > rule.activation }
    }

    /// A failed reading.
    pub fn error(reason: impl Into<Arc<str>>) -> Self {
        Self::Error { reason: reason.into() }
    }
}

/// Everything a decision is taken from, besides configuration and state.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// The instant of the decision.
    pub now: Timestamp,
    /// One reading per rule, in the rules' order; rules past its end count as not read.
    pub readings: &'a [Reading],
    /// Replicas that exist, starting ones included, draining ones not.
    pub existing: u32,
    /// Open requests and connections, held ones included.
    pub in_flight: u64,
    /// Whether something outranks the rules.
    pub hold: Hold,
}

/// What outranks every rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// Nothing: the rules decide.
    #[default]
    None,
    /// The revision was deactivated or the app stopped: zero at once.
    Stopped,
    /// Keep the count (maintenance).
    Paused,
    /// Go to this count and keep it (maintenance).
    PausedAt(u32),
}
