//! Dates: ISO 8601 durations, .NET's date formats.
//!
//! **Invariant:** the only clock is the `now` of the deployment's scope.

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};
use serde_json::Value;

use super::args::Args;
use crate::meter::Fault;

/// What `utcNow()` gives without a format.
const COMPACT: &str = "yyyyMMddTHHmmssZ";
const ROUND: &str = "yyyy-MM-ddTHH:mm:ssZ";
/// Longest format.
const FORMAT_LEN_MAX: usize = 200;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

pub(super) fn utc_now(args: Args<'_, '_>) -> Result<Value, Fault> {
    let format = if args.len() > 0 { args.text(0)? } else { COMPACT };
    let now = args.env.names.scope.now.to_zoned(TimeZone::UTC);
    formatted(&now, format).map(Value::from).map_err(|error| args.fault(error))
}

pub(super) fn date_time_add(args: Args<'_, '_>) -> Result<Value, Fault> {
    let base = args.text(0)?;
    let (time, form) = parse(base)
        .ok_or_else(|| args.fault(format!("the argument 'base' must be a date and time as {ROUND} or {COMPACT}")))?;
    let text = args.text(1)?.trim();
    let is_iso = text.trim_start_matches(['-', '+']).starts_with(['P', 'p']);
    let span: Option<Span> = if is_iso { text.parse().ok() } else { None };
    let span = span.ok_or_else(|| args.wrong(1, "an ISO 8601 duration as P1D, -PT2H30M, P1Y"))?;
    let sum = time.checked_add(span).map_err(|_| args.fault("the result is outside the years -9999 to 9999"))?;
    let format = if args.len() > 2 { args.text(2)? } else { form };
    formatted(&sum, format).map(Value::from).map_err(|error| args.fault(error))
}

pub(super) fn date_time_to_epoch(args: Args<'_, '_>) -> Result<Value, Fault> {
    let (time, _) = parse(args.text(0)?)
        .ok_or_else(|| args.fault(format!("the argument 'dateTime' must be a date and time as {ROUND}")))?;
    Ok(time.timestamp().as_second().into())
}

pub(super) fn date_time_from_epoch(args: Args<'_, '_>) -> Result<Value, Fault> {
    let time =
        Timestamp::from_second(args.integer(0)?).map_err(|_| args.wrong(0, "seconds since 1970 up to year 9999"))?;
    formatted(&time.to_zoned(TimeZone::UTC), ROUND).map(Value::from).map_err(|error| args.fault(error))
}

/// A date and time in the forms that templates use, and the format to give it back in.
fn parse(text: &str) -> Option<(Zoned, &'static str)> {
    let text = text.trim();
    let compact = || -> Option<Timestamp> {
        let digits = text.strip_suffix('Z')?;
        let (date, time) = digits.split_once('T')?;
        let is_digits = |part: &str, len: usize| part.len() == len && part.bytes().all(|byte| byte.is_ascii_digit());
        if !is_digits(date, 8) || !is_digits(time, 6) {
            return None;
        }
        let round =
            format!("{}-{}-{}T{}:{}:{}Z", &date[..4], &date[4..6], &date[6..], &time[..2], &time[2..4], &time[4..]);
        round.parse().ok()
    };
    if let Some(time) = compact() {
        return Some((time.to_zoned(TimeZone::UTC), COMPACT));
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        // Azure gives a date with a space back as its culture writes it
        let form = if text.contains(' ') { "G" } else { ROUND };
        return Some((time.to_zoned(TimeZone::UTC), form));
    }
    let civil: jiff::civil::DateTime = text.parse().ok()?;
    Some((civil.to_zoned(TimeZone::UTC).ok()?, ROUND))
}

/// .NET's standard formats, as custom ones.
fn standard(letter: char) -> Option<&'static str> {
    Some(match letter {
        'd' => "MM/dd/yyyy",
        'D' => "dddd, dd MMMM yyyy",
        'f' => "dddd, dd MMMM yyyy HH:mm",
        'F' | 'U' => "dddd, dd MMMM yyyy HH:mm:ss",
        'g' => "MM/dd/yyyy HH:mm",
        'G' => "M/d/yyyy h:mm:ss tt",
        'm' | 'M' => "MMMM dd",
        'o' | 'O' => "yyyy-MM-ddTHH:mm:ss.fffffffZ",
        'r' | 'R' => "ddd, dd MMM yyyy HH:mm:ss 'GMT'",
        's' => "yyyy-MM-ddTHH:mm:ss",
        't' => "HH:mm",
        'T' => "HH:mm:ss",
        'u' => "yyyy-MM-dd HH:mm:ssZ",
        'y' | 'Y' => "yyyy MMMM",
        _ => return None,
    })
}

fn formatted(time: &Zoned, format: &str) -> Result<String, String> {
    if format.len() > FORMAT_LEN_MAX {
        return Err(format!("a date format may have at most {FORMAT_LEN_MAX} characters"));
    }
    let mut letters = format.chars();
    let format = match (letters.next(), letters.next()) {
        (None, _) => COMPACT,
        (Some(letter), None) => standard(letter)
            .ok_or_else(|| format!("`{format}` is not a date format; write d, G, o, s, u or yyyy-MM-dd"))?,
        _ => format,
    };
    let mut text = String::new();
    let mut rest = format;
    while let Some(letter) = rest.chars().next() {
        let run = rest.chars().take_while(|c| *c == letter).count();
        let len = run * letter.len_utf8();
        match letter {
            '\'' | '"' => {
                let end = rest[1..].find(letter).ok_or("a date format has a quote without its pair")?;
                text.push_str(&rest[1..=end]);
                rest = &rest[end + 2..];
                continue;
            }
            '\\' => {
                let escaped = rest[1..].chars().next().ok_or("a date format ends with a backslash")?;
                text.push(escaped);
                rest = &rest[1 + escaped.len_utf8()..];
                continue;
            }
            '%' => {}
            _ => text.push_str(&part(time, letter, run).unwrap_or_else(|| rest[..len].to_owned())),
        }
        rest = &rest[len..];
    }
    Ok(text)
}

/// One run of a letter; `None` when the letter stands for itself.
fn part(time: &Zoned, letter: char, run: usize) -> Option<String> {
    let number = |value: i64| if run == 1 { value.to_string() } else { format!("{value:02}") };
    let hour = i64::from(time.hour());
    let name = |name: &str| if run == 3 { name[..3].to_owned() } else { name.to_owned() };
    Some(match letter {
        'y' if run <= 2 => number(i64::from(time.year()).rem_euclid(100)),
        'y' => format!("{:0run$}", time.year()),
        'M' if run <= 2 => number(i64::from(time.month())),
        'M' => name(MONTHS[usize::try_from(time.month() - 1).unwrap_or_default() % 12]),
        'd' if run <= 2 => number(i64::from(time.day())),
        'd' => name(day_name(time.weekday())),
        'H' => number(hour),
        'h' => number(if hour % 12 == 0 { 12 } else { hour % 12 }),
        'm' => number(i64::from(time.minute())),
        's' => number(i64::from(time.second())),
        'f' => format!("{:09}", time.subsec_nanosecond()).chars().take(run.min(7)).collect(),
        'F' => {
            let digits: String = format!("{:09}", time.subsec_nanosecond()).chars().take(run.min(7)).collect();
            digits.trim_end_matches('0').to_owned()
        }
        't' if run == 1 => if hour < 12 { "A" } else { "P" }.to_owned(),
        't' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
        'z' => match run {
            1 => "+0",
            2 => "+00",
            _ => "+00:00",
        }
        .to_owned(),
        'K' => "Z".to_owned(),
        _ => return None,
    })
}

fn day_name(day: Weekday) -> &'static str {
    match day {
        Weekday::Monday => "Monday",
        Weekday::Tuesday => "Tuesday",
        Weekday::Wednesday => "Wednesday",
        Weekday::Thursday => "Thursday",
        Weekday::Friday => "Friday",
        Weekday::Saturday => "Saturday",
        Weekday::Sunday => "Sunday",
    }
}
