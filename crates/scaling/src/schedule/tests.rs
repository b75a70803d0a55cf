//! Ticks against examples, and against an oracle that walks over every minute of the clock on the wall.

use expect_test::{Expect, expect};
use jiff::civil::DateTime;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;

mod due;

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn check(expression: &str, zone_name: &str, after: &str, expect: &Expect) {
    let schedule = Schedule::parse(expression, zone(zone_name)).unwrap();
    let ticks = schedule.ticks_between(at(after), Timestamp::MAX).take(5);
    let text: String =
        ticks.map(|tick| format!("{}\n", tick.to_zoned(zone(zone_name)).strftime("%F %T %z %a"))).collect();
    expect.assert_eq(&text);
}

#[test]
fn fields_ranges_steps_and_names() {
    check(
        "*/20 8-9 * * MON-fri",
        "UTC",
        "2026-05-01T08:40:00Z",
        &expect![[r#"
        2026-05-01 09:00:00 +0000 Fri
        2026-05-01 09:20:00 +0000 Fri
        2026-05-01 09:40:00 +0000 Fri
        2026-05-04 08:00:00 +0000 Mon
        2026-05-04 08:20:00 +0000 Mon
    "#]],
    );
    check(
        "0 0 1 jan,JUL ?",
        "UTC",
        "2026-05-01T00:00:00Z",
        &expect![[r#"
        2026-07-01 00:00:00 +0000 Wed
        2027-01-01 00:00:00 +0000 Fri
        2027-07-01 00:00:00 +0000 Thu
        2028-01-01 00:00:00 +0000 Sat
        2028-07-01 00:00:00 +0000 Sat
    "#]],
    );
    check(
        "5/25 * * * 7",
        "UTC",
        "2026-05-01T00:00:00Z",
        &expect![[r#"
        2026-05-03 00:05:00 +0000 Sun
        2026-05-03 00:30:00 +0000 Sun
        2026-05-03 00:55:00 +0000 Sun
        2026-05-03 01:05:00 +0000 Sun
        2026-05-03 01:30:00 +0000 Sun
    "#]],
    );
    check(
        "30 */15 * * * *",
        "UTC",
        "2026-05-01T00:00:00Z",
        &expect![[r#"
        2026-05-01 00:00:30 +0000 Fri
        2026-05-01 00:15:30 +0000 Fri
        2026-05-01 00:30:30 +0000 Fri
        2026-05-01 00:45:30 +0000 Fri
        2026-05-01 01:00:30 +0000 Fri
    "#]],
    );
    check(
        "0 0 29 2 *",
        "UTC",
        "2093-05-01T00:00:00Z",
        &expect![[r#"
        2096-02-29 00:00:00 +0000 Wed
        2104-02-29 00:00:00 +0000 Fri
        2108-02-29 00:00:00 +0000 Wed
        2112-02-29 00:00:00 +0000 Mon
        2116-02-29 00:00:00 +0000 Sat
    "#]],
    );
}

#[test]
fn a_day_of_the_month_or_of_the_week() {
    // Both day fields: either; a step is a restriction, as Kubernetes reads it.
    check(
        "0 12 13 * fri",
        "UTC",
        "2026-02-01T00:00:00Z",
        &expect![[r#"
        2026-02-06 12:00:00 +0000 Fri
        2026-02-13 12:00:00 +0000 Fri
        2026-02-20 12:00:00 +0000 Fri
        2026-02-27 12:00:00 +0000 Fri
        2026-03-06 12:00:00 +0000 Fri
    "#]],
    );
    check(
        "0 12 */10 * mon",
        "UTC",
        "2026-02-01T00:00:00Z",
        &expect![[r#"
        2026-02-01 12:00:00 +0000 Sun
        2026-02-02 12:00:00 +0000 Mon
        2026-02-09 12:00:00 +0000 Mon
        2026-02-11 12:00:00 +0000 Wed
        2026-02-16 12:00:00 +0000 Mon
    "#]],
    );
}

#[test]
fn macros_and_spans() {
    check(
        "@weekly",
        "UTC",
        "2026-05-01T00:00:00Z",
        &expect![[r#"
        2026-05-03 00:00:00 +0000 Sun
        2026-05-10 00:00:00 +0000 Sun
        2026-05-17 00:00:00 +0000 Sun
        2026-05-24 00:00:00 +0000 Sun
        2026-05-31 00:00:00 +0000 Sun
    "#]],
    );
    check(
        "@every 90s",
        "UTC",
        "2026-05-01T00:00:00.5Z",
        &expect![[r#"
        2026-05-01 00:01:30 +0000 Fri
        2026-05-01 00:03:00 +0000 Fri
        2026-05-01 00:04:30 +0000 Fri
        2026-05-01 00:06:00 +0000 Fri
        2026-05-01 00:07:30 +0000 Fri
    "#]],
    );
    check(
        " @every 1h30m ",
        "UTC",
        "2026-05-01T00:00:00Z",
        &expect![[r#"
        2026-05-01 01:30:00 +0000 Fri
        2026-05-01 03:00:00 +0000 Fri
        2026-05-01 04:30:00 +0000 Fri
        2026-05-01 06:00:00 +0000 Fri
        2026-05-01 07:30:00 +0000 Fri
    "#]],
    );
}

#[test]
fn a_skipped_time_comes_at_the_change_and_a_doubled_one_once() {
    check(
        "30 2 * * *",
        "Europe/Prague",
        "2026-03-27T12:00:00Z",
        &expect![[r#"
        2026-03-28 02:30:00 +0100 Sat
        2026-03-29 03:00:00 +0200 Sun
        2026-03-30 02:30:00 +0200 Mon
        2026-03-31 02:30:00 +0200 Tue
        2026-04-01 02:30:00 +0200 Wed
    "#]],
    );
    check(
        "*/10 2,3 * * *",
        "Europe/Prague",
        "2026-03-29T00:30:00Z",
        &expect![[r#"
        2026-03-29 03:00:00 +0200 Sun
        2026-03-29 03:10:00 +0200 Sun
        2026-03-29 03:20:00 +0200 Sun
        2026-03-29 03:30:00 +0200 Sun
        2026-03-29 03:40:00 +0200 Sun
    "#]],
    );
    check(
        "30 2 * * *",
        "Europe/Prague",
        "2026-10-23T12:00:00Z",
        &expect![[r#"
        2026-10-24 02:30:00 +0200 Sat
        2026-10-25 02:30:00 +0200 Sun
        2026-10-26 02:30:00 +0100 Mon
        2026-10-27 02:30:00 +0100 Tue
        2026-10-28 02:30:00 +0100 Wed
    "#]],
    );
    check(
        "0,30 1-3 * * *",
        "Europe/Prague",
        "2026-10-24T23:00:00Z",
        &expect![[r#"
        2026-10-25 01:30:00 +0200 Sun
        2026-10-25 02:00:00 +0200 Sun
        2026-10-25 02:30:00 +0200 Sun
        2026-10-25 03:00:00 +0100 Sun
        2026-10-25 03:30:00 +0100 Sun
    "#]],
    );
    // A day that a country left out.
    check(
        "0 9,15 30 12 *",
        "Pacific/Apia",
        "2011-12-01T00:00:00Z",
        &expect![[r#"
        2011-12-31 00:00:00 +1400 Sat
        2012-12-30 09:00:00 +1400 Sun
        2012-12-30 15:00:00 +1400 Sun
        2013-12-30 09:00:00 +1400 Mon
        2013-12-30 15:00:00 +1400 Mon
    "#]],
    );
}

#[test]
fn every_hour_goes_by_passing_time() {
    check(
        "30 * * * *",
        "America/New_York",
        "2026-03-08T05:00:00Z",
        &expect![[r#"
        2026-03-08 00:30:00 -0500 Sun
        2026-03-08 01:30:00 -0500 Sun
        2026-03-08 03:30:00 -0400 Sun
        2026-03-08 04:30:00 -0400 Sun
        2026-03-08 05:30:00 -0400 Sun
    "#]],
    );
    check(
        "30 * * * *",
        "America/New_York",
        "2026-11-01T04:00:00Z",
        &expect![[r#"
        2026-11-01 00:30:00 -0400 Sun
        2026-11-01 01:30:00 -0400 Sun
        2026-11-01 01:30:00 -0500 Sun
        2026-11-01 02:30:00 -0500 Sun
        2026-11-01 03:30:00 -0500 Sun
    "#]],
    );
    check(
        "0 * * * *",
        "Australia/Lord_Howe",
        "2026-04-04T13:30:00Z",
        &expect![[r#"
        2026-04-05 01:00:00 +1100 Sun
        2026-04-05 02:00:00 +1030 Sun
        2026-04-05 03:00:00 +1030 Sun
        2026-04-05 04:00:00 +1030 Sun
        2026-04-05 05:00:00 +1030 Sun
    "#]],
    );
}

#[test]
fn what_is_wrong_is_said_with_what_would_be_right() {
    let illegal = [
        "",
        "* * * *",
        "0 0 0 * * * 2026",
        "61 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * L * *",
        "* * * foo *",
        "* * * * 8",
        "* * * * 1#2",
        "* 22-2 * * *",
        "*/0 * * * *",
        "*/x * * * *",
        "1,,2 * * * *",
        "+5 * * * *",
        "0 0 31 2,4 *",
        "TZ=Europe/Prague 0 0 * * *",
        "@reboot",
        "@every",
        "@every 0s",
        "@every 1.5h",
        "@every 400d",
        "@every 99999999999999999999s",
    ];
    let text: String = illegal
        .iter()
        .map(|text| format!("{text:28} {}\n", Schedule::parse(text, TimeZone::UTC).unwrap_err()))
        .collect();
    expect![[r#"
                                     expected 5 fields (minute, hour, day of month, month, day of week), or 6 with seconds before them, found 0
        * * * *                      expected 5 fields (minute, hour, day of month, month, day of week), or 6 with seconds before them, found 4
        0 0 0 * * * 2026             expected 5 fields (minute, hour, day of month, month, day of week), or 6 with seconds before them, found 7
        61 * * * *                   minute is `61`; expected `*`, or 0 to 59, with `-` for ranges, `/` for steps, `,` between them
        * 24 * * *                   hour is `24`; expected `*`, or 0 to 23, with `-` for ranges, `/` for steps, `,` between them
        * * 0 * *                    day of month is `0`; expected `*`, or 1 to 31, with `-` for ranges, `/` for steps, `,` between them
        * * L * *                    day of month is `L`; expected `*`, or 1 to 31, with `-` for ranges, `/` for steps, `,` between them
        * * * foo *                  month is `foo`; expected `*`, or 1 to 12 or jan to dec, with `-` for ranges, `/` for steps, `,` between them
        * * * * 8                    day of week is `8`; expected `*`, or 0 to 7 or sun to sat, with `-` for ranges, `/` for steps, `,` between them
        * * * * 1#2                  day of week is `1#2`; expected `*`, or 0 to 7 or sun to sat, with `-` for ranges, `/` for steps, `,` between them
        * 22-2 * * *                 hour is `22-2`, which goes backwards; write `22-23,0-2`
        */0 * * * *                  minute is `*/0`, whose step is `0`; write a whole number from 1 up
        */x * * * *                  minute is `*/x`, whose step is `x`; write a whole number from 1 up
        1,,2 * * * *                 minute is nothing; expected `*`, or 0 to 59, with `-` for ranges, `/` for steps, `,` between them
        +5 * * * *                   minute is `+5`; expected `*`, or 0 to 59, with `-` for ranges, `/` for steps, `,` between them
        0 0 31 2,4 *                 it never comes: none of its months has one of its days
        TZ=Europe/Prague 0 0 * * *   it begins with a time zone, which has a property of its own; write the fields alone
        @reboot                      `@reboot` is not known; expected @hourly, @daily, @weekly, @monthly, @yearly or `@every 90s`
        @every                       `@every ` has no span that can be used; write whole numbers with `s`, `m`, `h` or `d`, such as `@every 90s` or `@every 1h30m`, from 1 s to 365 days
        @every 0s                    `@every 0s` has no span that can be used; write whole numbers with `s`, `m`, `h` or `d`, such as `@every 90s` or `@every 1h30m`, from 1 s to 365 days
        @every 1.5h                  `@every 1.5h` has no span that can be used; write whole numbers with `s`, `m`, `h` or `d`, such as `@every 90s` or `@every 1h30m`, from 1 s to 365 days
        @every 400d                  `@every 400d` has no span that can be used; write whole numbers with `s`, `m`, `h` or `d`, such as `@every 90s` or `@every 1h30m`, from 1 s to 365 days
        @every 99999999999999999999s `@every 99999999999999999999s` has no span that can be used; write whole numbers with `s`, `m`, `h` or `d`, such as `@every 90s` or `@every 1h30m`, from 1 s to 365 days
    "#]].assert_eq(&text);
}

#[test]
fn the_last_tick_is_found_without_walking() {
    let schedule = Schedule::parse("* * * * * *", TimeZone::UTC).unwrap();
    let (from, to) = (at("2000-01-01T00:00:00Z"), at("2026-05-01T00:00:00.7Z"));
    assert_eq!(schedule.last_between(from, to), Some(at("2026-05-01T00:00:00Z")));
    assert_eq!(schedule.last_between(to, to), None);
    let yearly = Schedule::parse("0 0 29 2 *", TimeZone::UTC).unwrap();
    assert_eq!(yearly.last_between(from, to), Some(at("2024-02-29T00:00:00Z")));
    assert_eq!(yearly.next_after(Timestamp::MAX), None);
}

/// Ticks of `[from, from + days)` by the definition: what the clock on the wall shows, minute for minute.
fn oracle(expression: &str, zone: &TimeZone, from: Timestamp, days: i64) -> Vec<Timestamp> {
    let fields: Vec<Vec<i64>> = expression
        .split(' ')
        .zip([(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)])
        .map(|(field, (low, high))| (low..=high).filter(|number| in_field(field, *number, high)).collect())
        .collect();
    let [minutes, hours, dates, months, weekdays] = &fields[..] else { panic!("five fields") };
    let restricted = |field: &str| !field.split(',').any(|part| part == "*");
    let mut parts = expression.split(' ').skip(2);
    let (day_field, weekday_field) = (parts.next().unwrap(), parts.nth(1).unwrap());
    let matches = |local: DateTime| {
        let weekday = i64::from(local.weekday().to_sunday_zero_offset());
        let by_date = dates.contains(&local.day().into());
        let by_weekday = weekdays.contains(&weekday) || (weekday == 0 && weekdays.contains(&7));
        let day = if restricted(day_field) && restricted(weekday_field) {
            by_date || by_weekday
        } else {
            by_date && by_weekday
        };
        let (month, hour, minute) = (local.month().into(), local.hour().into(), local.minute().into());
        day && months.contains(&month) && hours.contains(&hour) && minutes.contains(&minute)
    };
    let minute = SignedDuration::from_mins(1);
    let by_passing_time = hours.len() == 24;
    let mut ticks = Vec::new();
    let mut shown = zone.to_datetime(from - minute);
    for number in 0..days * 24 * 60 {
        let now = from + minute * i32::try_from(number).unwrap();
        let local = zone.to_datetime(now);
        let mut is_tick = matches(local);
        if !by_passing_time {
            is_tick &= local > shown;
            let mut skipped = shown.checked_add(minute).unwrap();
            while skipped < local {
                is_tick |= matches(skipped);
                skipped = skipped.checked_add(minute).unwrap();
            }
        }
        ticks.extend(is_tick.then_some(now));
        shown = if by_passing_time { local } else { shown.max(local) };
    }
    ticks
}

fn in_field(field: &str, number: i64, high: i64) -> bool {
    field.split(',').any(|part| {
        let (range, step) = part.split_once('/').unwrap_or((part, "1"));
        let (from, to) = match range.split_once('-') {
            Some((from, to)) => (from.parse().unwrap(), to.parse().unwrap()),
            None if range == "*" => (if high == 31 || high == 12 { 1 } else { 0 }, high),
            None if part.contains('/') => (range.parse().unwrap(), high),
            None => (range.parse().unwrap(), range.parse::<i64>().unwrap()),
        };
        (from..=to).contains(&number) && (number - from) % step.parse::<i64>().unwrap() == 0
    })
}

fn field(low: u32, high: u32) -> impl Strategy<Value = String> {
    let number = low..=high;
    let part = prop_oneof![
        3 => Just("*".to_owned()),
        3 => number.clone().prop_map(|number| number.to_string()),
        2 => (number.clone(), number.clone()).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
        2 => (2u32..20).prop_map(|step| format!("*/{step}")),
        1 => (number, 1u32..9).prop_map(|(from, step)| format!("{from}/{step}")),
    ];
    prop::collection::vec(part, 1..3).prop_map(|parts| parts.join(","))
}

fn expression() -> impl Strategy<Value = String> {
    (field(0, 59), field(0, 23), field(1, 31), prop_oneof![4 => Just("*".to_owned()), 1 => field(1, 12)], field(0, 7))
        .prop_map(|(minute, hour, day, month, weekday)| format!("{minute} {hour} {day} {month} {weekday}"))
}

/// Thirty days around a change of the clock, forwards and backwards, in zones with odd rules.
fn month() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop::sample::select(vec![
        ("UTC", "2026-02-10T00:00:00Z"),
        ("Europe/Prague", "2026-03-15T00:00:00Z"),
        ("Europe/Prague", "2026-10-10T00:00:00Z"),
        ("America/New_York", "2026-02-20T00:00:00Z"),
        ("America/New_York", "2026-10-15T00:00:00Z"),
        ("Australia/Lord_Howe", "2026-03-20T00:00:00Z"),
        ("Australia/Lord_Howe", "2026-09-20T00:00:00Z"),
        ("America/Sao_Paulo", "2018-10-20T00:00:00Z"),
        ("Africa/Casablanca", "2026-02-01T00:00:00Z"),
        ("Asia/Kathmandu", "2026-02-10T00:00:00Z"),
        ("Pacific/Apia", "2011-12-10T00:00:00Z"),
        ("Antarctica/Troll", "2026-03-15T00:00:00Z"),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn ticks_are_those_of_the_wall_clock(expression in expression(), (zone_name, from) in month()) {
        let Ok(schedule) = Schedule::parse(&expression, zone(zone_name)) else {
            // Only an impossible date is refused.
            return Ok(());
        };
        let from = at(from);
        let until = from + SignedDuration::from_hours(30 * 24);
        let before = from - SignedDuration::from_nanos(1);
        let found: Vec<_> = schedule.ticks_between(before, until - SignedDuration::from_nanos(1)).collect();
        prop_assert_eq!(&found, &oracle(&expression, &zone(zone_name), from, 30));
        prop_assert_eq!(schedule.last_between(before, until - SignedDuration::from_nanos(1)), found.last().copied());
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[-0-9*/?,@a-zA-Z# .]{0,30}") {
        if let Ok(schedule) = Schedule::parse(&text, TimeZone::UTC) {
            let now = at("2026-05-01T00:00:00Z");
            let next = schedule.next_after(now).unwrap();
            prop_assert!(next > now && next.subsec_nanosecond() == 0);
        }
    }
}
