//! The fields of a cron expression, and the instants that they name in a zone.
//!
//! A set of numbers is a bit mask, so the next match of a field is a count of zeros. A zone is walked in stretches of equal
//! offset: within one the clock on the wall and time run alike, and what a change of the clock does is decided at its edge.
//!
//! **Invariant:** the search ends: it looks nine years ahead, and what comes at all comes within eight (29 February).

use jiff::civil::{DateTime, Weekday, date};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::{InvalidSchedule, floor_second};

/// Years searched for the next match; 29 February can be 8 years away.
const YEARS_SEARCHED: i16 = 9;
const EVERY_HOUR: u64 = (1 << 24) - 1;
const SECOND: SignedDuration = SignedDuration::from_secs(1);

const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const MONTHS: &[&str] = &["", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// Which seconds, minutes, hours, days, months and weekdays match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    seconds: u64,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both day fields are restricted: either may match, as crontab has it.
    either_day: bool,
}

impl Calendar {
    /// Every minute.
    pub(crate) const EVERY_MINUTE: Self = Self {
        seconds: 1,
        minutes: (1 << 60) - 1,
        hours: EVERY_HOUR,
        days: 0xffff_fffe,
        months: 0x1ffe,
        weekdays: 0x7f,
        either_day: false,
    };

    /// Reads five fields, six with seconds before them, or a macro such as `@daily`.
    ///
    /// # Errors
    /// [`InvalidSchedule`] when a field cannot be read, or no day has what they ask.
    pub fn parse(text: &str) -> Result<Self, InvalidSchedule> {
        let text = text.trim();
        let fields: Vec<&str> = expanded(text)?.split_ascii_whitespace().collect();
        let (seconds, [minutes, hours, days, months, weekdays]) = match fields[..] {
            [minutes, hours, days, months, weekdays] => ("0", [minutes, hours, days, months, weekdays]),
            [seconds, minutes, hours, days, months, weekdays] => (seconds, [minutes, hours, days, months, weekdays]),
            _ => {
                let found = fields.len();
                return Err(InvalidSchedule(format!(
                    "expected 5 fields (minute, hour, day of month, month, day of week), or 6 with seconds before \
                     them, found {found}"
                )));
            }
        };
        let (days, any_day) = set(&Field { name: "day of month", low: 1, high: 31, names: &[] }, days)?;
        let (weekdays, any_weekday) = set(&Field { name: "day of week", low: 0, high: 7, names: WEEKDAYS }, weekdays)?;
        let calendar = Self {
            seconds: set(&Field { name: "second", low: 0, high: 59, names: &[] }, seconds)?.0,
            minutes: set(&Field { name: "minute", low: 0, high: 59, names: &[] }, minutes)?.0,
            hours: set(&Field { name: "hour", low: 0, high: 23, names: &[] }, hours)?.0,
            days,
            months: set(&Field { name: "month", low: 1, high: 12, names: MONTHS }, months)?.0,
            weekdays: (weekdays | weekdays >> 7) & 0x7f,
            either_day: !any_day && !any_weekday,
        };
        if calendar.comes() {
            Ok(calendar)
        } else {
            Err(InvalidSchedule("it never comes: none of its months has one of its days".to_owned()))
        }
    }

    /// The first match after `after`.
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut from = Timestamp::from_second(floor_second(after).checked_add(1)?).ok()?;
        let horizon = from.saturating_add(SignedDuration::from_hours(24 * 366 * i64::from(YEARS_SEARCHED))).ok()?;
        while from <= horizon {
            let offset = zone.to_offset(from);
            let mut local = offset.to_datetime(from);
            if self.hours != EVERY_HOUR
                && let Some((changed_at, before)) = last_change(zone, from)
            {
                // What the clock on the wall showed at the change before it was set.
                let shown = before.to_datetime(changed_at);
                let is_skipped = || self.first_from(shown).is_some_and(|skipped| skipped < local);
                if changed_at == from && shown < local && is_skipped() {
                    return Some(from);
                }
                local = local.max(shown);
            }
            let end = zone.following(from).next().map(|change| change.timestamp());
            let found = offset.to_timestamp(self.first_from(local)?).ok()?;
            match end {
                Some(end) if found >= end => from = end,
                _ => return Some(found),
            }
        }
        None
    }

    /// The first match at or after a time on the wall.
    fn first_from(&self, from: DateTime) -> Option<DateTime> {
        let mut at = from;
        let last_year = at.year().saturating_add(YEARS_SEARCHED);
        while at.year() <= last_year {
            at = match next_in(self.months, at.month()) {
                None => date(at.year().checked_add(1).filter(|year| *year <= 9999)?, 1, 1).at(0, 0, 0, 0),
                Some(month) if month != at.month() => date(at.year(), month, 1).at(0, 0, 0, 0),
                Some(_) if !self.matches_day(at) => tomorrow(at)?,
                Some(_) => match self.first_on_day(at) {
                    Some(found) => return Some(found),
                    None => tomorrow(at)?,
                },
            };
        }
        None
    }

    /// The first matching time from `at` to the end of its day.
    fn first_on_day(&self, at: DateTime) -> Option<DateTime> {
        let (hour, minute, second) = (at.hour(), at.minute(), at.second());
        let in_minute = |hour, minute, second| Some((hour, minute, next_in(self.seconds, second)?));
        let in_hour = |hour, minute| in_minute(hour, next_in(self.minutes, minute)?, 0);
        let found = (has(self.hours, hour) && has(self.minutes, minute)).then(|| in_minute(hour, minute, second));
        let found = found.flatten();
        let found = found.or_else(|| has(self.hours, hour).then(|| in_hour(hour, minute + 1)).flatten());
        let (hour, minute, second) = found.or_else(|| in_hour(next_in(self.hours, hour + 1)?, 0))?;
        Some(at.date().at(hour, minute, second, 0))
    }

    fn matches_day(&self, at: DateTime) -> bool {
        let weekday = match at.weekday() {
            Weekday::Sunday => 0,
            other => other.to_monday_one_offset(),
        };
        let (day, weekday) = (has(self.days, at.day()), has(self.weekdays, weekday));
        if self.either_day { day || weekday } else { day && weekday }
    }

    /// Whether any day matches at all.
    fn comes(&self) -> bool {
        const LONGEST: [i8; 13] = [0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let first_day = next_in(self.days, 1).unwrap_or(i8::MAX);
        let mut months = (1i8..).zip(&LONGEST[1..]).filter(|(month, _)| has(self.months, *month));
        self.either_day || months.any(|(_, longest)| first_day <= *longest)
    }
}

/// The last change of the zone's offset at or before `at`, and the offset before it.
fn last_change(zone: &TimeZone, at: Timestamp) -> Option<(Timestamp, jiff::tz::Offset)> {
    let changed_at = zone.preceding(at.checked_add(SECOND).ok()?).next()?.timestamp();
    Some((changed_at, zone.to_offset(changed_at.checked_sub(SECOND).ok()?)))
}

fn tomorrow(at: DateTime) -> Option<DateTime> {
    Some(at.date().tomorrow().ok()?.at(0, 0, 0, 0))
}

fn has(set: u64, number: i8) -> bool {
    u32::try_from(number).ok().and_then(|number| set.checked_shr(number)).is_some_and(|rest| rest & 1 == 1)
}

/// The first number of the set that is not below `from`.
fn next_in(set: u64, from: i8) -> Option<i8> {
    let rest = set.checked_shr(u32::try_from(from).ok()?)?;
    if rest == 0 { None } else { from.checked_add(i8::try_from(rest.trailing_zeros()).ok()?) }
}

/// The fields that a macro stands for.
fn expanded(text: &str) -> Result<&str, InvalidSchedule> {
    let fields = match text {
        "@hourly" => "0 * * * *",
        "@daily" | "@midnight" => "0 0 * * *",
        "@weekly" => "0 0 * * 0",
        "@monthly" => "0 0 1 * *",
        "@yearly" | "@annually" => "0 0 1 1 *",
        _ if text.starts_with('@') => {
            return Err(InvalidSchedule(format!(
                "`{text}` is not known; expected @hourly, @daily, @weekly, @monthly, @yearly or `@every 90s`"
            )));
        }
        _ if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") => {
            return Err(InvalidSchedule(
                "it begins with a time zone, which has a property of its own; write the fields alone".to_owned(),
            ));
        }
        other => other,
    };
    Ok(fields)
}

/// What one field may hold.
struct Field {
    name: &'static str,
    low: u32,
    high: u32,
    /// Names of the numbers, from 0.
    names: &'static [&'static str],
}

impl Field {
    fn refused(&self, text: &str) -> InvalidSchedule {
        let Self { name, low, high, names } = self;
        let names = match (names.iter().find(|name| !name.is_empty()), names.last()) {
            (Some(first), Some(last)) => format!(" or {first} to {last}"),
            _ => String::new(),
        };
        let text = if text.is_empty() { "nothing".to_owned() } else { format!("`{text}`") };
        InvalidSchedule(format!(
            "{name} is {text}; expected `*`, or {low} to {high}{names}, with `-` for ranges, `/` for steps, `,` between \
             them"
        ))
    }

    fn number(&self, text: &str) -> Result<u32, InvalidSchedule> {
        let named = self.names.iter().position(|name| !name.is_empty() && name.eq_ignore_ascii_case(text));
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = match named {
            Some(at) => u32::try_from(at).ok(),
            None => text.parse().ok().filter(|_| is_number),
        };
        number.filter(|number| (self.low..=self.high).contains(number)).ok_or_else(|| self.refused(text))
    }
}

/// The numbers of one field, and whether it leaves all open: `*` or `?` without a step.
fn set(field: &Field, text: &str) -> Result<(u64, bool), InvalidSchedule> {
    let (mut all, mut is_open) = (0u64, false);
    for part in text.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let (from, to) = match (range, range.split_once('-')) {
            ("*" | "?", _) => (field.low, field.high),
            (_, Some((from, to))) => (field.number(from)?, field.number(to)?),
            (_, None) if step.is_some() => (field.number(range)?, field.high),
            (_, None) => (field.number(range)?, field.number(range)?),
        };
        if from > to {
            let (name, low, high) = (field.name, field.low, field.high);
            return Err(InvalidSchedule(format!(
                "{name} is `{part}`, which goes backwards; write `{from}-{high},{low}-{to}`"
            )));
        }
        let step = step.map_or(Ok(1), |step| field_step(field, part, step))?;
        is_open |= matches!(range, "*" | "?") && step == 1;
        all = (from..=to).step_by(step).fold(all, |all, number| all | (1 << number));
    }
    Ok((all, is_open))
}

fn field_step(field: &Field, part: &str, step: &str) -> Result<usize, InvalidSchedule> {
    let number = step.parse::<usize>().ok().filter(|number| *number > 0 && !step.starts_with('+'));
    number.ok_or_else(|| {
        InvalidSchedule(format!("{} is `{part}`, whose step is `{step}`; write a whole number from 1 up", field.name))
    })
}
