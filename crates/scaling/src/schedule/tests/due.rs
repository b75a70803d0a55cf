//! The state machine between two looks: lateness, overlap, restarts, a clock that is set.

use super::*;
use cove_model::{MissedRuns, Overlap};

use crate::schedule::{Due, Look, ON_TIME, Policy, due};

fn told(found: &Due) -> String {
    let short = |tick: &Timestamp| tick.strftime("%d %T").to_string();
    let mut text = match &found.start[..] {
        [] => "nothing".to_owned(),
        ticks if ticks.len() > 3 => {
            format!("start {} from {} to {}", ticks.len(), short(&ticks[0]), short(&ticks[ticks.len() - 1]))
        }
        ticks => format!("start {}", ticks.iter().map(short).collect::<Vec<_>>().join(", ")),
    };
    if found.replaces {
        text += ", replacing";
    }
    for left in &found.left_out {
        text += &format!("; {} left out until {}: {:?}", left.number, short(&left.last), left.why);
    }
    format!(
        "{text}; settled {}, next {}",
        short(&found.settled),
        found.next_at.as_ref().map_or_else(|| "never".into(), short)
    )
}

fn look(expression: &str, policy: Policy, settled: &str, now: &str, is_running: bool) -> String {
    let schedule = Schedule::parse(expression, TimeZone::UTC).unwrap();
    told(&due(&schedule, &policy, &Look { settled: at(settled), now: at(now), is_running }))
}

fn policies() -> [(&'static str, Policy); 5] {
    let last = Policy::default();
    [
        ("last", last),
        ("deadline", Policy { starting_deadline: Some(SignedDuration::from_secs(200)), ..last }),
        ("skip", Policy { missed: MissedRuns::Skip, ..last }),
        ("all", Policy { missed: MissedRuns::All, ..last }),
        ("forbid", Policy { overlap: Overlap::Forbid, missed: MissedRuns::All, ..last }),
    ]
}

/// What it is, the expression, what is settled, and now.
const TIMES: [(&str, &str, &str, &str); 9] = [
    ("before the tick", "0 * * * *", "01T10:00:00Z", "01T10:59:59.9Z"),
    ("at the tick", "0 * * * *", "01T10:00:00Z", "01T11:00:00Z"),
    ("ten seconds later", "0 * * * *", "01T10:00:00Z", "01T11:00:10Z"),
    ("eleven seconds later", "0 * * * *", "01T10:00:00Z", "01T11:00:11Z"),
    ("after two days", "0 * * * *", "01T10:00:00Z", "03T10:30:00Z"),
    ("after two days, at a tick", "0 * * * *", "01T10:00:00Z", "03T11:00:00Z"),
    ("a year of seconds", "* * * * * *", "01T10:00:00Z", "31T10:00:00.5Z"),
    ("set back by an hour", "0 * * * *", "01T11:00:00Z", "01T10:10:00Z"),
    ("settled in another week", "0 * * * *", "09T11:00:00Z", "01T10:10:00Z"),
];

#[test]
fn looks() {
    let mut text = String::new();
    for (what, expression, settled, now) in TIMES {
        text += &format!("{what}\n");
        for (name, policy) in policies() {
            let found = look(expression, policy, &format!("2026-05-{settled}"), &format!("2026-05-{now}"), false);
            text += &format!("  {name}: {found}\n");
        }
    }
    expect![[r#"
        before the tick
          last: nothing; settled 01 10:00:00, next 01 11:00:00
          deadline: nothing; settled 01 10:00:00, next 01 11:00:00
          skip: nothing; settled 01 10:00:00, next 01 11:00:00
          all: nothing; settled 01 10:00:00, next 01 11:00:00
          forbid: nothing; settled 01 10:00:00, next 01 11:00:00
        at the tick
          last: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
          deadline: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
          skip: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
          all: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
          forbid: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
        ten seconds later
          last: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
          deadline: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
          skip: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
          all: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
          forbid: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
        eleven seconds later
          last: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
          deadline: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
          skip: nothing; 1 left out until 01 11:00:00: Missed; settled 01 11:00:00, next 01 12:00:00
          all: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
          forbid: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
        after two days
          last: start 03 10:00:00; 47 left out until 03 09:00:00: Missed; settled 03 10:00:00, next 03 11:00:00
          deadline: nothing; 47 left out until 03 09:00:00: Missed; 1 left out until 03 10:00:00: TooLate; settled 03 10:00:00, next 03 11:00:00
          skip: nothing; 48 left out until 03 10:00:00: Missed; settled 03 10:00:00, next 03 11:00:00
          all: start 48 from 01 11:00:00 to 03 10:00:00; settled 03 10:00:00, next 03 11:00:00
          forbid: start 03 10:00:00; 47 left out until 03 09:00:00: Overlap; settled 03 10:00:00, next 03 11:00:00
        after two days, at a tick
          last: start 03 11:00:00; 48 left out until 03 10:00:00: Missed; settled 03 11:00:00, next 03 12:00:00
          deadline: start 03 11:00:00; 48 left out until 03 10:00:00: Missed; settled 03 11:00:00, next 03 12:00:00
          skip: start 03 11:00:00; 48 left out until 03 10:00:00: Missed; settled 03 11:00:00, next 03 12:00:00
          all: start 49 from 01 11:00:00 to 03 11:00:00; settled 03 11:00:00, next 03 12:00:00
          forbid: start 03 11:00:00; 48 left out until 03 10:00:00: Overlap; settled 03 11:00:00, next 03 12:00:00
        a year of seconds
          last: start 10 from 31 09:59:51 to 31 10:00:00; 1000 left out until 31 09:59:50: Missed; settled 31 10:00:00, next 31 10:00:01
          deadline: start 10 from 31 09:59:51 to 31 10:00:00; 1000 left out until 31 09:59:50: Missed; settled 31 10:00:00, next 31 10:00:01
          skip: start 10 from 31 09:59:51 to 31 10:00:00; 1000 left out until 31 09:59:50: Missed; settled 31 10:00:00, next 31 10:00:01
          all: start 110 from 31 09:58:11 to 31 10:00:00; 1000 left out until 31 09:58:10: Missed; settled 31 10:00:00, next 31 10:00:01
          forbid: start 31 10:00:00; 1000 left out until 31 09:58:10: Missed; 109 left out until 31 09:59:59: Overlap; settled 31 10:00:00, next 31 10:00:01
        set back by an hour
          last: nothing; settled 01 11:00:00, next 01 12:00:00
          deadline: nothing; settled 01 11:00:00, next 01 12:00:00
          skip: nothing; settled 01 11:00:00, next 01 12:00:00
          all: nothing; settled 01 11:00:00, next 01 12:00:00
          forbid: nothing; settled 01 11:00:00, next 01 12:00:00
        settled in another week
          last: nothing; settled 01 10:10:00, next 01 11:00:00
          deadline: nothing; settled 01 10:10:00, next 01 11:00:00
          skip: nothing; settled 01 10:10:00, next 01 11:00:00
          all: nothing; settled 01 10:10:00, next 01 11:00:00
          forbid: nothing; settled 01 10:10:00, next 01 11:00:00
    "#]].assert_eq(&text);
}

#[test]
fn overlap() {
    let mut text = String::new();
    for overlap in [Overlap::Allow, Overlap::Forbid, Overlap::Replace] {
        for is_running in [false, true] {
            let policy = Policy { overlap, ..Policy::default() };
            let found = look("0 * * * *", policy, "2026-05-01T10:00:00Z", "2026-05-01T11:00:01Z", is_running);
            text += &format!("{overlap:?}, running {is_running}: {found}\n");
        }
    }
    expect![[r#"
        Allow, running false: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
        Allow, running true: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
        Forbid, running false: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
        Forbid, running true: nothing; 1 left out until 01 11:00:00: Overlap; settled 01 11:00:00, next 01 12:00:00
        Replace, running false: start 01 11:00:00; settled 01 11:00:00, next 01 12:00:00
        Replace, running true: start 01 11:00:00, replacing; settled 01 11:00:00, next 01 12:00:00
    "#]]
    .assert_eq(&text);
}

#[derive(Clone, Debug)]
enum Step {
    /// The clock goes on by so many seconds, and the schedule is looked at.
    Pass(i64),
    /// As much, with nobody looking: the server is down, or the clock jumps.
    Away(i64),
    /// The clock is set back.
    Back(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1i64..8).prop_map(Step::Pass),
        1 => (1i64..10_000).prop_map(Step::Away),
        1 => (1i64..2_000).prop_map(Step::Back),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the clock goes, no tick is started twice, every started one is a tick, and what is on time is started.
    #[test]
    fn a_tick_is_started_once(
        steps in steps(),
        expression in prop::sample::select(vec!["*/20 * * * * *", "* * * * *", "7 * * * *", "@every 90s"]),
        missed in prop::sample::select(vec![MissedRuns::Last, MissedRuns::Skip, MissedRuns::All]),
    ) {
        let schedule = Schedule::parse(expression, zone("Europe/Prague")).unwrap();
        let policy = Policy { missed, ..Policy::default() };
        let mut now = at("2026-03-28T22:00:00Z");
        let mut settled = now;
        let mut started = std::collections::BTreeSet::new();
        for step in steps {
            let from = now;
            let (secs, is_away) = match step {
                Step::Pass(secs) => (secs, false),
                Step::Away(secs) => (secs, true),
                Step::Back(secs) => (-secs, true),
            };
            now += SignedDuration::from_secs(secs);
            let found = due(&schedule, &policy, &Look { settled, now, is_running: false });
            for tick in &found.start {
                prop_assert!(started.insert(*tick), "{tick} twice");
                prop_assert!(*tick <= now && schedule.last_between(settled.min(*tick) - ON_TIME, *tick) == Some(*tick));
            }
            if !is_away {
                for tick in schedule.ticks_between(from.max(settled), now) {
                    prop_assert!(started.contains(&tick), "{tick} was on time");
                }
            }
            let number = schedule.ticks_between(settled, now).count();
            let left: usize = found.left_out.iter().map(|left| left.number).sum();
            prop_assert!(number == found.start.len() + left || number > 1000);
            prop_assert!(found.settled >= settled && found.next_at.unwrap() > now);
            settled = found.settled;
        }
    }
}
