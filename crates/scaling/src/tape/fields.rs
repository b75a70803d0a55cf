//! The fields of a decision beside those that the one before it let expect.
//!
//! **Invariant:** a field that is as expected takes no byte; which ones differ stands in one number before them.

use jiff::Timestamp;

use super::Damaged;
use super::bytes::{Source, put_number, put_option, put_signed, put_text};
use crate::decide::{Decision, Reason, RuleOutcome};
use crate::reading::{Hold, Reading};

const CURRENT: u64 = 1;
const EXISTING: u64 = 1 << 1;
const IN_FLIGHT: u64 = 1 << 2;
const HOLD: u64 = 1 << 3;
const LAST_ACTIVE: u64 = 1 << 4;
const WINDOW_PEAK: u64 = 1 << 5;
const SEEDED: u64 = 1 << 6;
const NO_RULES: u64 = 1 << 7;
const RULES: u64 = 1 << 8;
const ACTIVE: u64 = 1 << 9;
const WANT: u64 = 1 << 10;
const STABLE: u64 = 1 << 11;
const CEILING: u64 = 1 << 12;
const RECORDED: u64 = 1 << 13;
const NEW: u64 = 1 << 14;
const REASON: u64 = 1 << 15;

/// The order is the format: new ones go to the end.
const REASONS: [Reason; 14] = [
    Reason::Stopped,
    Reason::Paused,
    Reason::Activated,
    Reason::Idle,
    Reason::CooldownElapsed,
    Reason::AboveMax,
    Reason::BelowMin,
    Reason::NoValidMetric,
    Reason::PartialErrorHold,
    Reason::ScaleUp,
    Reason::ScaleUpLimited,
    Reason::ScaleDown,
    Reason::Stabilized,
    Reason::Steady,
];

/// What follows `last` if nothing happens. The rules stay known over a decision that asked none.
pub(super) fn expected(mut last: Decision, at: Timestamp) -> Decision {
    if last.active {
        last.last_active = Some(last.at);
    }
    last.at = at;
    last.current = last.new;
    last.seeded = false;
    for rule in &mut last.rules {
        rule.failures = expected_failures(rule.failures, &rule.reading);
    }
    last
}

fn expected_failures(before: u32, reading: &Reading) -> u32 {
    if matches!(reading, Reading::Error { .. }) { before.saturating_add(1) } else { 0 }
}

/// Whether `next` says nothing but its instant.
pub(super) fn is_expected(last: &Decision, next: &Decision) -> bool {
    next.new == last.new
        && next.reason == last.reason
        && last.rules.len() == next.rules.len()
        && expected(last.clone(), next.at) == *next
}

/// Puts what differs from `expected(last)`; gives what the decision after it is told from.
pub(super) fn put(bytes: &mut Vec<u8>, last: &Decision, next: &Decision) -> Decision {
    let told = expected(last.clone(), next.at);
    let mut differs = 0;
    let mut body = Vec::with_capacity(32);
    let mut mark = |flag: u64, is_set: bool| {
        differs |= if is_set { flag } else { 0 };
        is_set
    };
    if mark(CURRENT, next.current != told.current) {
        put_number(&mut body, next.current.into());
    }
    if mark(EXISTING, next.existing != told.existing) {
        put_number(&mut body, next.existing.into());
    }
    if mark(IN_FLIGHT, next.in_flight != told.in_flight) {
        put_number(&mut body, next.in_flight);
    }
    if mark(HOLD, next.hold != told.hold) {
        put_hold(&mut body, next.hold);
    }
    if mark(LAST_ACTIVE, next.last_active != told.last_active) {
        body.push(u8::from(next.last_active.is_some()));
        if let Some(last_active) = next.last_active {
            put_signed(&mut body, last_active.as_second());
            put_signed(&mut body, last_active.subsec_nanosecond().into());
        }
    }
    if mark(WINDOW_PEAK, next.window_peak != told.window_peak) {
        put_option(&mut body, next.window_peak);
    }
    mark(SEEDED, next.seeded);
    mark(NO_RULES, next.rules.is_empty() && !told.rules.is_empty());
    if mark(RULES, !next.rules.is_empty() && next.rules != told.rules) {
        put_rules(&mut body, &told.rules, &next.rules);
    }
    mark(ACTIVE, next.active != told.active);
    for (flag, told, next) in [
        (WANT, told.want, next.want),
        (STABLE, told.stable, next.stable),
        (CEILING, told.ceiling, next.ceiling),
        (RECORDED, told.recorded, next.recorded),
    ] {
        if mark(flag, told != next) {
            put_option(&mut body, next);
        }
    }
    if mark(NEW, next.new != told.new) {
        put_number(&mut body, next.new.into());
    }
    if mark(REASON, next.reason != told.reason) {
        let place = REASONS.iter().position(|reason| *reason == next.reason).unwrap_or(REASONS.len());
        body.push(u8::try_from(place).unwrap_or(u8::MAX));
    }
    put_number(bytes, differs);
    bytes.extend_from_slice(&body);
    if next.rules.is_empty() { Decision { rules: told.rules, ..next.clone() } } else { next.clone() }
}

/// Takes the decision at `at` that follows `last`, and what the one after it is told from.
pub(super) fn take(source: &mut Source<'_>, last: Decision, at: Timestamp) -> Result<(Decision, Decision), Damaged> {
    let mut next = expected(last, at);
    let differs = source.number()?;
    let has = |flag: u64| differs & flag != 0;
    if has(CURRENT) {
        next.current = source.count()?;
    }
    if has(EXISTING) {
        next.existing = source.count()?;
    }
    if has(IN_FLIGHT) {
        next.in_flight = source.number()?;
    }
    if has(HOLD) {
        next.hold = take_hold(source)?;
    }
    if has(LAST_ACTIVE) {
        next.last_active = take_instant(source)?;
    }
    if has(WINDOW_PEAK) {
        next.window_peak = source.option()?;
    }
    next.seeded = has(SEEDED);
    if has(RULES) {
        take_rules(source, &mut next.rules)?;
    }
    next.active ^= has(ACTIVE);
    for (flag, field) in [
        (WANT, &mut next.want),
        (STABLE, &mut next.stable),
        (CEILING, &mut next.ceiling),
        (RECORDED, &mut next.recorded),
    ] {
        if has(flag) {
            *field = source.option()?;
        }
    }
    if has(NEW) {
        next.new = source.count()?;
    }
    if has(REASON) {
        let place = usize::try_from(source.number()?).unwrap_or(usize::MAX);
        next.reason = *REASONS.get(place).ok_or(Damaged("an unknown reason"))?;
    }
    if !source.0.is_empty() {
        return Err(Damaged("a decision is too long"));
    }
    let known = next.clone();
    if has(NO_RULES) {
        next.rules.clear();
    }
    Ok((next, known))
}

fn take_instant(source: &mut Source<'_>) -> Result<Option<Timestamp>, Damaged> {
    const OUTSIDE: Damaged = Damaged("an instant outside time");
    if source.number()? == 0 {
        return Ok(None);
    }
    let second = source.signed()?;
    let nanosecond = i32::try_from(source.signed()?).map_err(|_| OUTSIDE)?;
    Timestamp::new(second, nanosecond).map(Some).map_err(|_| OUTSIDE)
}

fn put_hold(bytes: &mut Vec<u8>, hold: Hold) {
    let (tag, count) = match hold {
        Hold::None => (0, None),
        Hold::Stopped => (1, None),
        Hold::Paused => (2, None),
        Hold::PausedAt(count) => (3, Some(count)),
    };
    bytes.push(tag);
    if let Some(count) = count {
        put_number(bytes, count.into());
    }
}

fn take_hold(source: &mut Source<'_>) -> Result<Hold, Damaged> {
    Ok(match source.number()? {
        0 => Hold::None,
        1 => Hold::Stopped,
        2 => Hold::Paused,
        3 => Hold::PausedAt(source.count()?),
        _ => return Err(Damaged("an unknown hold")),
    })
}

/// Rule by rule: whether it differs, and then all of it.
fn put_rules(bytes: &mut Vec<u8>, told: &[RuleOutcome], next: &[RuleOutcome]) {
    for (index, rule) in next.iter().enumerate() {
        if told.get(index) == Some(rule) {
            bytes.push(0);
            continue;
        }
        match &rule.reading {
            Reading::Value { milli, active } => {
                bytes.push(if *active { 2 } else { 1 });
                put_number(bytes, *milli);
            }
            Reading::Replicas { count } => {
                bytes.push(3);
                put_number(bytes, (*count).into());
            }
            Reading::Error { reason } => {
                bytes.push(4);
                put_text(bytes, reason);
            }
        }
        put_number(bytes, u64::from(rule.failures) << 1 | u64::from(rule.active));
        put_option(bytes, rule.proposal);
    }
}

fn take_rules(source: &mut Source<'_>, rules: &mut [RuleOutcome]) -> Result<(), Damaged> {
    for rule in rules {
        rule.reading = match source.number()? {
            0 => continue,
            tag @ (1 | 2) => Reading::Value { milli: source.number()?, active: tag == 2 },
            3 => Reading::Replicas { count: source.count()? },
            4 => Reading::Error { reason: source.text()?.into() },
            _ => return Err(Damaged("an unknown reading")),
        };
        let failures = source.number()?;
        rule.active = failures & 1 != 0;
        rule.failures = u32::try_from(failures >> 1).map_err(|_| Damaged("too many failures"))?;
        rule.proposal = source.option()?;
    }
    Ok(())
}
