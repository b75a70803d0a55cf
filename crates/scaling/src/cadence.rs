//! When the rules of a revision are read.
//!
//! Event rules at 0, P, 2P … after the revision became active; http, tcp, cpu and memory rules at 15, 30, 45 … s.
//! A decision is taken whenever at least one rule was read, with the newest reading of the others.
//!
//! **Invariant:** instants are multiples of a step from one origin: they neither drift nor run twice to catch up.

use jiff::{SignedDuration, Timestamp};

use crate::config::{RuleKind, ScaleConfig};
use crate::settings::ScaleSettings;

/// The step between two readings of a rule of this kind; at least a millisecond.
pub fn step(settings: &ScaleSettings, kind: RuleKind) -> SignedDuration {
    let step = match kind {
        RuleKind::Http | RuleKind::Tcp => settings.load_sampling,
        RuleKind::Cpu | RuleKind::Memory => settings.resource_sampling,
        RuleKind::Event => settings.polling_interval,
    };
    step.max(SignedDuration::from_millis(1))
}

/// The first instant after `after` at which a rule of `config` is due; `None` without rules.
pub fn next_tick(config: &ScaleConfig, origin: Timestamp, after: Timestamp) -> Option<Timestamp> {
    config.rules.iter().filter_map(|rule| next_due(&config.settings, rule.kind, origin, after)).min()
}

/// Whether a rule of this kind is read at `at`, exactly.
pub fn is_due(settings: &ScaleSettings, kind: RuleKind, origin: Timestamp, at: Timestamp) -> bool {
    let step = step(settings, kind).as_nanos();
    let passed = at.duration_since(origin).as_nanos();
    let first = if kind == RuleKind::Event { 0 } else { step };
    passed >= first && passed % step == 0
}

/// Whether a rule of this kind became due in `(after, until]`; a late tick reads what it missed once.
pub fn was_due(
    settings: &ScaleSettings,
    kind: RuleKind,
    origin: Timestamp,
    after: Timestamp,
    until: Timestamp,
) -> bool {
    next_due(settings, kind, origin, after).is_some_and(|due| due <= until)
}

/// The first instant after `after` at which a rule of this kind is due; `None` past the end of time.
pub fn next_due(settings: &ScaleSettings, kind: RuleKind, origin: Timestamp, after: Timestamp) -> Option<Timestamp> {
    let step = step(settings, kind);
    let first = if kind == RuleKind::Event { 0 } else { 1 };
    let passed = after.duration_since(origin).as_nanos();
    let count = passed.div_euclid(step.as_nanos()).saturating_add(1).max(first);
    let nanos = step.as_nanos().checked_mul(count)?;
    let offset =
        SignedDuration::new(i64::try_from(nanos / 1_000_000_000).ok()?, i32::try_from(nanos % 1_000_000_000).ok()?);
    origin.checked_add(offset).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rule;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    #[test]
    fn http_ticks_neither_drift_nor_repeat() {
        let config = ScaleConfig {
            min_replicas: 0,
            max_replicas: 10,
            rules: vec![Rule::new("h", RuleKind::Http, 10.0)],
            settings: ScaleSettings::default(),
            fallback: None,
        };
        let origin = at(1_000);
        for (after, expected) in [(1_000, 16_000), (15_999, 16_000), (16_000, 31_000), (95_123, 106_000), (0, 16_000)] {
            assert_eq!(next_tick(&config, origin, at(after)), Some(at(expected)), "after {after}");
        }
        assert_eq!(next_tick(&ScaleConfig { rules: Vec::new(), ..config }, origin, origin), None);
    }

    #[test]
    fn an_event_rule_is_due_at_once_and_a_late_tick_reads_once() {
        let settings = ScaleSettings::default();
        assert!(is_due(&settings, RuleKind::Event, at(0), at(0)));
        assert!(!is_due(&settings, RuleKind::Http, at(0), at(0)));
        assert!(was_due(&settings, RuleKind::Http, at(0), at(14_000), at(46_000)));
        assert!(!was_due(&settings, RuleKind::Http, at(0), at(15_000), at(29_999)));
    }
}
