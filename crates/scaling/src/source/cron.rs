//! `cron`: a number of replicas between two points of a calendar.
//!
//! Both points are expressions as those of scheduled jobs; the zone is given by the caller, since only it may read a zone
//! database.
//!
//! **Invariant:** inside means that the next end comes no later than the next start.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::params::Params;
use super::{Metric, Unreadable};
use crate::schedule::Calendar;

/// Metadata of a `cron` rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Cron {
    /// When the time begins.
    pub start: Calendar,
    /// When it ends.
    pub end: Calendar,
    /// IANA name of the zone of both.
    pub timezone: String,
    /// Replicas wanted inside, >= 1.
    pub desired_replicas: u64,
}

impl Cron {
    pub(super) fn parse(params: &mut Params<'_>) -> Self {
        let mut schedule = |key: &str| {
            let text = params.required(key);
            Calendar::parse(&text).unwrap_or_else(|reason| {
                if !text.is_empty() {
                    params.wrong(format!("{key} is `{text}`: {reason}"));
                }
                Calendar::EVERY_MINUTE
            })
        };
        let (start, end) = (schedule("start"), schedule("end"));
        if start == end && params.text("start").is_some() {
            params.wrong("start and end must differ");
        }
        let desired_replicas = params.count("desiredReplicas", 1);
        params.required("desiredReplicas");
        Self { start, end, timezone: params.required("timezone"), desired_replicas }
    }

    /// The rule's value at `now`.
    pub fn measure(&self, now: Timestamp, zone: &TimeZone) -> Result<Metric, Unreadable> {
        let next = |schedule: &Calendar, name: &str| {
            schedule.next_after(now, zone).ok_or_else(|| Unreadable::new(format!("{name} never comes")))
        };
        let inside = is_inside(next(&self.start, "start")?, next(&self.end, "end")?);
        Ok(Self::value(self.desired_replicas, inside))
    }

    /// `desired` replicas inside, none outside.
    pub fn value(desired: u64, inside: bool) -> Metric {
        Metric::whole(if inside { desired } else { 0 }, inside)
    }
}

/// Whether the time between a start and an end is running, from when each comes next.
pub fn is_inside<T: Ord>(next_start: T, next_end: T) -> bool {
    next_end <= next_start
}
