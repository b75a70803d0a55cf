//! What a schedule starts now: the state machine between two looks at the clock.
//!
//! A schedule remembers one instant, up to which every tick is settled: started, or left out for a reason. A look settles
//! the ticks since then. A restart is a look after a long time, and so is a clock that was set forward.
//!
//! **Invariant:** a tick is settled once; a clock that was set back waits until it has passed what is settled.
//! **Invariant:** pure; which execution belongs to a tick is the store's, whose unique cause is a second guard.

use cove_model::{JobSchedule, MissedRuns, Overlap};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::Schedule;

/// A tick that is looked at within this time is no missed one: a busy machine is not a stopped one.
pub const ON_TIME: SignedDuration = SignedDuration::from_secs(10);

/// Missed ticks that [`MissedRuns::All`] starts at most, the newest ones.
const ALL_MAX: usize = 100;

/// Ticks that are counted at most, for what is told.
const COUNTED_MAX: usize = 1000;

/// A settled instant further ahead than this comes from a clock that was wrong: counting begins anew.
const AHEAD_MAX: SignedDuration = SignedDuration::from_hours(25);

/// What a tick does that is late, or finds an execution running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What it does while an execution runs.
    pub overlap: Overlap,
    /// What becomes of ticks that nobody saw.
    pub missed: MissedRuns,
    /// A tick that is later is left out; `None` = however late.
    pub starting_deadline: Option<SignedDuration>,
}

impl From<&JobSchedule> for Policy {
    fn from(schedule: &JobSchedule) -> Self {
        let seconds = |secs: u32| SignedDuration::from_secs(secs.into());
        Self {
            overlap: schedule.overlap,
            missed: schedule.missed,
            starting_deadline: schedule.starting_deadline_secs.map(seconds),
        }
    }
}

/// One look at the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Ticks up to this instant are settled: when the schedule was made or changed, or its last tick.
    pub settled: Timestamp,
    /// The time.
    pub now: Timestamp,
    /// Whether an execution of the job has not ended.
    pub is_running: bool,
}

/// What is to be done after a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Ticks to start, oldest first.
    pub start: Vec<Timestamp>,
    /// The executions that run are to be stopped first.
    pub replaces: bool,
    /// Ticks that are not started, by reason.
    pub left_out: Vec<LeftOut>,
    /// What is settled from now on.
    pub settled: Timestamp,
    /// The next tick; `None` = none ever.
    pub next_at: Option<Timestamp>,
}

/// Ticks that were not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Why.
    pub why: Why,
    /// How many, counted up to 1000.
    pub number: usize,
    /// The last of them.
    pub last: Timestamp,
}

/// Why a tick was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Why {
    /// Nobody looked when it came, and the policy leaves it out.
    Missed,
    /// It is later than the starting deadline.
    TooLate,
    /// An execution runs, and the schedule forbids another one, or a later tick takes its place.
    Overlap,
}

impl Why {
    /// In words, after "n ticks were left out: ".
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Missed => "the server did not run, or its clock was set forward",
            Self::TooLate => "they were later than `coveStartingDeadlineSeconds`",
            Self::Overlap => "an execution was still running",
        }
    }
}

/// Settles the ticks since the last look.
pub fn due(schedule: &Schedule, policy: &Policy, look: &Look) -> Due {
    let now = look.now;
    let is_astray = look.settled.duration_since(now) > AHEAD_MAX;
    let settled = if is_astray { now } else { look.settled };
    let Some(last) = schedule.last_between(settled, now) else {
        let next_at = schedule.next_after(settled.max(now));
        return Due { start: Vec::new(), replaces: false, left_out: Vec::new(), settled, next_at };
    };
    let (mut start, mut left_out) = candidates(schedule, policy, settled, now, last);
    if let Some(deadline) = policy.starting_deadline {
        let (late, in_time) = start.into_iter().partition(|tick| now.duration_since(*tick) > deadline);
        start = in_time;
        leave_out(&mut left_out, Why::TooLate, &late);
    }
    let overlapped = match policy.overlap {
        Overlap::Allow => Vec::new(),
        Overlap::Forbid if look.is_running => std::mem::take(&mut start),
        Overlap::Forbid | Overlap::Replace => start.drain(..start.len().saturating_sub(1)).collect(),
    };
    leave_out(&mut left_out, Why::Overlap, &overlapped);
    let replaces = look.is_running && policy.overlap == Overlap::Replace && !start.is_empty();
    Due { start, replaces, left_out, settled: last, next_at: schedule.next_after(now) }
}

/// What the policy for missed ticks leaves of those of `(settled, now]`; `last` is the last of them.
fn candidates(
    schedule: &Schedule,
    policy: &Policy,
    settled: Timestamp,
    now: Timestamp,
    last: Timestamp,
) -> (Vec<Timestamp>, Vec<LeftOut>) {
    // A tick of exactly that age is on time.
    let missed_until = now.saturating_sub(ON_TIME + SignedDuration::from_nanos(1)).unwrap_or(Timestamp::MIN);
    let on_time: Vec<Timestamp> = schedule.ticks_between(settled.max(missed_until), now).collect();
    let missed_number = schedule.ticks_between(settled, missed_until).take(COUNTED_MAX + ALL_MAX).count();
    let Some(last_missed) = schedule.last_between(settled, missed_until) else { return (on_time, Vec::new()) };
    let started: Vec<Timestamp> = match policy.missed {
        MissedRuns::Skip => Vec::new(),
        MissedRuns::Last if on_time.is_empty() => vec![last],
        MissedRuns::Last => Vec::new(),
        MissedRuns::All => {
            // From the back: there may be millions before them.
            let before = |tick: &Timestamp| schedule.last_between(settled, tick.saturating_sub(NANOSECOND).ok()?);
            let mut newest: Vec<_> = std::iter::successors(Some(last_missed), before).take(ALL_MAX).collect();
            newest.reverse();
            newest
        }
    };
    let number = missed_number.saturating_sub(started.len()).clamp(1, COUNTED_MAX);
    let last_left = match started.first() {
        Some(first) => first.saturating_sub(NANOSECOND).ok().and_then(|until| schedule.last_between(settled, until)),
        None => Some(last_missed),
    };
    let left_out = last_left.map(|last| LeftOut { why: Why::Missed, number, last });
    let start = started.into_iter().chain(on_time).collect();
    (start, left_out.into_iter().collect())
}

const NANOSECOND: SignedDuration = SignedDuration::from_nanos(1);

fn leave_out(left_out: &mut Vec<LeftOut>, why: Why, ticks: &[Timestamp]) {
    if let Some(last) = ticks.last() {
        left_out.push(LeftOut { why, number: ticks.len(), last: *last });
    }
}
