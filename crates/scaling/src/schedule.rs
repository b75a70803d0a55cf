//! When a scheduled job is due: cron expressions, their ticks, and what a tick that was missed or overlaps does.
//!
//! Five fields (minute, hour, day of month, month, day of week) are Azure's, read in UTC. Seconds as a sixth field before
//! them, `@every 90s` and a time zone are extensions. The reading of a field follows the parser that Kubernetes uses; it is
//! written here since no crate has crontab's fields (Sunday is 0 and 7), seconds as an option and this rule of zones.
//!
//! **Where a zone changes its clock** an expression that names hours means the clock on the wall: a time that is skipped
//! comes at the moment of the change (once, however many are skipped), one that is shown twice counts the first time. An
//! expression that holds for every hour (`*/5 * * * *`) goes by passing time instead: what is skipped is left out, what is
//! shown twice comes twice.
//!
//! **Invariant:** pure and total; a tick depends on the expression and the zone alone, so a restart cannot move it.

mod calendar;
mod due;

use jiff::Timestamp;
use jiff::tz::TimeZone;

pub use calendar::Calendar;
pub use due::{Due, LeftOut, Look, ON_TIME, Policy, Why, due};

/// Shortest and longest `@every`, in seconds.
const EVERY_SECS: std::ops::RangeInclusive<i64> = 1..=365 * 86_400;

/// Why an expression is refused; the text says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSchedule(pub(crate) String);

impl InvalidSchedule {
    /// A time zone that the caller's zone database does not have.
    #[must_use]
    pub fn unknown_zone(name: &str) -> Self {
        Self(format!("time zone `{name}` is not known; expected an IANA name such as Europe/Prague"))
    }
}

/// A cron expression in a time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    rule: Rule,
    zone: TimeZone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Calendar(Calendar),
    /// Seconds between ticks, counted from the Unix epoch.
    Every(i64),
}

impl Schedule {
    /// Reads an expression: five fields, six with seconds, `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`, or
    /// `@every 1h30m` (1 s to 365 days, counted from 1970-01-01T00:00:00Z whatever the zone).
    ///
    /// # Errors
    /// [`InvalidSchedule`] when it is none of these, or never comes (30 February).
    ///
    /// ```
    /// use cove_scaling::schedule::Schedule;
    /// use jiff::tz::TimeZone;
    ///
    /// let schedule = Schedule::parse("*/15 9-17 * * mon-fri", TimeZone::UTC).unwrap();
    /// let next = schedule.next_after("2026-05-01T17:45:00Z".parse().unwrap()).unwrap();
    /// assert_eq!(next.to_string(), "2026-05-04T09:00:00Z");
    /// assert!(Schedule::parse("0 25 * * *", TimeZone::UTC).unwrap_err().to_string().contains("0 to 23"));
    /// ```
    pub fn parse(text: &str, zone: TimeZone) -> Result<Self, InvalidSchedule> {
        let rule = match text.trim().strip_prefix("@every") {
            Some(span) => Rule::Every(every(span.trim())?),
            None => Rule::Calendar(Calendar::parse(text)?),
        };
        Ok(Self { rule, zone })
    }

    /// The first tick after an instant; `None` at the end of time.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.rule {
            Rule::Calendar(calendar) => calendar.next_after(after, &self.zone),
            Rule::Every(secs) => {
                let passed = floor_second(after).div_euclid(*secs);
                Timestamp::from_second(passed.checked_add(1)?.checked_mul(*secs)?).ok()
            }
        }
    }

    /// The ticks of `(after, until]`, oldest first.
    pub fn ticks_between(&self, after: Timestamp, until: Timestamp) -> impl Iterator<Item = Timestamp> + '_ {
        std::iter::successors(self.next_after(after), |tick| self.next_after(*tick))
            .take_while(move |tick| *tick <= until)
    }

    /// The last tick of `(after, until]`, found without walking over those before it.
    pub fn last_between(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let mut last = self.next_after(after).filter(|tick| *tick <= until)?;
        // No tick lies after `high`.
        let mut high = floor_second(until);
        while last.as_second() < high {
            let low = last.as_second();
            let middle = low + (high - low + 1) / 2;
            let from_middle = Timestamp::from_second(middle - 1).ok().and_then(|before| self.next_after(before));
            match from_middle.filter(|tick| *tick <= until) {
                Some(tick) => last = tick,
                None => high = middle - 1,
            }
        }
        Some(last)
    }
}

/// The whole second at or before an instant.
fn floor_second(at: Timestamp) -> i64 {
    at.as_second() - i64::from(at.subsec_nanosecond() < 0)
}

/// The seconds of `90s`, `5m`, `1h30m`, `2d`.
fn every(text: &str) -> Result<i64, InvalidSchedule> {
    let refused = || {
        InvalidSchedule(format!(
            "`@every {text}` has no span that can be used; write whole numbers with `s`, `m`, `h` or `d`, such as \
             `@every 90s` or `@every 1h30m`, from 1 s to 365 days"
        ))
    };
    let mut secs = 0i64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit()).ok_or_else(refused)?;
        let number: i64 = rest[..digits].parse().map_err(|_| refused())?;
        let unit = match rest.as_bytes()[digits] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            _ => return Err(refused()),
        };
        secs = number.checked_mul(unit).and_then(|part| secs.checked_add(part)).ok_or_else(refused)?;
        rest = &rest[digits + 1..];
    }
    if EVERY_SECS.contains(&secs) { Ok(secs) } else { Err(refused()) }
}

#[cfg(test)]
mod tests;
