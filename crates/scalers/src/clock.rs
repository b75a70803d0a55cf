//! `cron`: the source is the clock itself.
//!
//! **Invariant:** the zone is looked up once; the rule's own metadata names it.

use cove_base::Clock;
use cove_scaling::source::Answer;
use jiff::tz::TimeZone;

use crate::source::{OpenError, ReadFuture, Source, Trigger};

/// The clock in the zone of a cron rule.
#[derive(Debug)]
pub(crate) struct Calendar {
    clock: Clock,
    zone: TimeZone,
}

/// Opens the calendar of `timezone`, an IANA name.
pub(crate) fn open(trigger: &Trigger, clock: &Clock) -> Result<Calendar, OpenError> {
    let name = trigger.get("timezone").unwrap_or_default();
    let zone = TimeZone::get(name).map_err(|_| {
        OpenError::metadata(format!("timezone `{name}` is not known; expected an IANA name such as Europe/Prague"))
    })?;
    Ok(Calendar { clock: clock.clone(), zone })
}

impl Source for Calendar {
    fn read(&self) -> ReadFuture<'_> {
        let answer = Answer::Clock(self.clock.now(), self.zone.clone());
        Box::pin(std::future::ready(Ok(answer)))
    }
}
