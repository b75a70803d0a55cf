//! `cron`: a number of replicas between two points of a calendar.
//!
//! Five fields (minute, hour, day of month, month, day of week) as crontab knows them; the zone is given by the caller,
//! since only it may read a zone database.
//!
//! **Invariant:** inside means that the next end comes no later than the next start.

use jiff::civil::{DateTime, Weekday, date};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

use super::params::Params;
use super::{Metric, Unreadable};

/// Years searched for the next occurrence; 29 February can be 8 years away.
const YEARS_SEARCHED: i16 = 9;

/// Metadata of a `cron` rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Cron {
    /// When the time begins.
    pub start: Schedule,
    /// When it ends.
    pub end: Schedule,
    /// IANA name of the zone of both.
    pub timezone: String,
    /// Replicas wanted inside, >= 1.
    pub desired_replicas: u64,
}

/// A calendar expression: which minutes, hours, days, months and weekdays match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both day fields are restricted: either may match.
    either_day: bool,
}

impl Cron {
    pub(super) fn parse(params: &mut Params<'_>) -> Self {
        let mut schedule = |key: &str| {
            let text = params.required(key);
            Schedule::parse(&text).unwrap_or_else(|reason| {
                if !text.is_empty() {
                    params.wrong(format!("{key} is `{text}`: {reason}"));
                }
                Schedule::EVERY_MINUTE
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
        let next = |schedule: &Schedule, name: &str| {
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

impl Schedule {
    const EVERY_MINUTE: Self = Self {
        minutes: (1 << 60) - 1,
        hours: (1 << 24) - 1,
        days: 0xffff_fffe,
        months: 0x1ffe,
        weekdays: 0x7f,
        either_day: false,
    };

    /// Reads five fields, or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = match text.trim() {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(format!("expected 5 fields, found {}", fields.len()));
        };
        let open = |field: &str| field.starts_with(['*', '?']);
        let mut weekday_set = set(weekdays, 0, 7, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"])?;
        weekday_set |= weekday_set >> 7;
        const MONTHS: [&str; 13] =
            ["", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
        Ok(Self {
            minutes: set(minutes, 0, 59, &[])?,
            hours: set(hours, 0, 23, &[])?,
            days: set(days, 1, 31, &[])?,
            months: set(months, 1, 12, &MONTHS)?,
            weekdays: weekday_set & 0x7f,
            either_day: !open(days) && !open(weekdays),
        })
    }

    /// The first match after `now`; a time that a zone skips comes right after the gap. `None` if there is none.
    pub fn next_after(&self, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let local = zone.to_datetime(now);
        let mut at = local.with().second(0).subsec_nanosecond(0).build().ok()?.checked_add(1.minute()).ok()?;
        let last_year = at.year().saturating_add(YEARS_SEARCHED);
        while at.year() <= last_year {
            if !has(self.months, at.month()) {
                at = first_of_next_month(at)?;
            } else if !self.matches_day(at) {
                at = at.date().tomorrow().ok()?.at(0, 0, 0, 0);
            } else if !has(self.hours, at.hour()) {
                at = at.with().minute(0).build().ok()?.checked_add(1.hour()).ok()?;
            } else if !has(self.minutes, at.minute()) {
                at = at.checked_add(1.minute()).ok()?;
            } else {
                let instant = zone.to_ambiguous_timestamp(at).compatible().ok()?;
                if instant > now {
                    return Some(instant);
                }
                at = at.checked_add(1.minute()).ok()?;
            }
        }
        None
    }

    fn matches_day(&self, at: DateTime) -> bool {
        let weekday = match at.weekday() {
            Weekday::Sunday => 0,
            other => other.to_monday_one_offset(),
        };
        let (day, weekday) = (has(self.days, at.day()), has(self.weekdays, weekday));
        if self.either_day { day || weekday } else { day && weekday }
    }
}

fn has(set: u64, number: i8) -> bool {
    u32::try_from(number).is_ok_and(|number| set & (1 << number) != 0)
}

fn first_of_next_month(at: DateTime) -> Option<DateTime> {
    let first = date(at.year(), at.month(), 1).at(0, 0, 0, 0);
    first.checked_add(1.month()).ok()
}

/// The numbers of one field: `*`, `a`, `a-b`, any of them with `/step`, joined by commas.
fn set(field: &str, low: u32, high: u32, names: &[&str]) -> Result<u64, String> {
    let number = |text: &str| {
        let named = names.iter().position(|name| !name.is_empty() && name.eq_ignore_ascii_case(text));
        let number = named.and_then(|at| u32::try_from(at).ok()).or_else(|| text.parse().ok());
        number
            .filter(|number| (low..=high).contains(number))
            .ok_or_else(|| format!("`{text}` is not within {low} to {high}"))
    };
    let mut all = 0u64;
    for part in field.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let (from, to) = match range {
            "*" | "?" => (low, high),
            _ => match range.split_once('-') {
                Some((from, to)) => (number(from)?, number(to)?),
                None if step.is_some() => (number(range)?, high),
                None => (number(range)?, number(range)?),
            },
        };
        let step = step.map_or(Ok(1), |step| step.parse::<usize>().map_err(|_| format!("`{step}` is no step")))?;
        if from > to || step == 0 {
            return Err(format!("`{part}` is empty"));
        }
        all = (from..=to).step_by(step).fold(all, |all, number| all | (1 << number));
    }
    Ok(all)
}
