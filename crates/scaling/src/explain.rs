//! A decision in words: what was read, what it asked for, what held or limited it, and until when.
//!
//! [`Explainer`] is given a revision's decisions in their order and remembers when the highest proposal of the window was
//! made; [`Explained`] is what people and the API see.
//!
//! **Invariant:** the words follow from the decision and those before it only; times are UTC.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::config::ScaleConfig;
use crate::decide::{Decision, Reason, RuleOutcome};
use crate::reading::{Hold, Reading};
use crate::record::DecisionRecord;
use crate::state::Proposals;

/// A decision with what the ones before it add to its understanding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// The decision and its configuration.
    #[serde(flatten)]
    pub record: DecisionRecord,
    /// Where the count is held by the window: the newest instant of its highest proposal; `None` where that is not known.
    pub peak_at: Option<Timestamp>,
    /// Until when that proposal holds the count, inclusive.
    pub window_until: Option<Timestamp>,
    /// When the cool-down ends if nothing becomes active; `None` where it does not run.
    pub cooldown_until: Option<Timestamp>,
    /// The reason as a sentence.
    pub words: String,
}

/// Explains one revision's decisions, one after the other.
#[derive(Debug, Default)]
pub struct Explainer {
    proposals: Proposals,
    config: Option<Arc<ScaleConfig>>,
}

impl Explainer {
    /// An explainer that knows earlier proposals already.
    pub fn knowing(proposals: Proposals) -> Self {
        Self { proposals, config: None }
    }

    /// Explains the next decision.
    pub fn explain(&mut self, record: &DecisionRecord) -> Explained {
        let DecisionRecord { config, decision } = record;
        if self.config.as_ref().is_some_and(|before| before != config) {
            self.proposals = Proposals::default();
        }
        self.config = Some(Arc::clone(config));
        let window = config.settings.scale_down_window;
        let stable = decision.stable.filter(|stable| Some(*stable) != decision.want);
        let peak_at = stable.and_then(|_| {
            let (at, peak) = self.proposals.newest_peak(decision.at, window)?;
            (Some(peak) == decision.window_peak).then_some(at)
        });
        if decision.seeded {
            self.proposals.record(decision.at, decision.current);
        }
        if let Some(recorded) = decision.recorded {
            self.proposals.record(decision.at, recorded);
        }
        let window_until = peak_at.and_then(|at| at.checked_add(window).ok());
        let cooldown_until = cooldown_until(config, decision);
        let words = words(config, decision, peak_at.zip(window_until), cooldown_until);
        Explained { record: record.clone(), peak_at, window_until, cooldown_until, words }
    }
}

/// When the cool-down ends; only for a revision that runs, may reach zero, and is not active.
fn cooldown_until(config: &ScaleConfig, decision: &Decision) -> Option<Timestamp> {
    let failed = decision.rules.iter().zip(&config.rules).any(|(outcome, rule)| {
        !rule.kind.is_resource() && outcome.proposal.is_none() && matches!(outcome.reading, Reading::Error { .. })
    });
    let runs_down = decision.new > 0 && config.min_replicas == 0 && !decision.active && !failed;
    let last_active = decision.last_active.filter(|_| runs_down && decision.hold == Hold::None)?;
    last_active.checked_add(config.settings.cooldown_period).ok()
}

fn words(
    config: &ScaleConfig,
    decision: &Decision,
    window: Option<(Timestamp, Timestamp)>,
    cooldown_until: Option<Timestamp>,
) -> String {
    let (current, new) = (decision.current, decision.new);
    let asked = asked(decision);
    let mut text = match decision.reason {
        Reason::Stopped => "zero at once: the revision was deactivated or its app stopped".to_owned(),
        Reason::Paused => format!("kept at {new}: scaling is paused"),
        Reason::Activated if decision.rules.is_empty() => format!("started with {new}: a request arrived"),
        Reason::Activated => format!("started with {new}: {} is active", active_rules(decision)),
        Reason::Idle => "at zero: no rule is active".to_owned(),
        Reason::CooldownElapsed => {
            let last = decision.last_active.map_or_else(|| "never".to_owned(), clock_time);
            let span = config.settings.cooldown_period.as_secs();
            format!("{current} to zero: last active {last}, more than the cool-down of {span} s ago")
        }
        Reason::AboveMax => format!("{current} to {new}: maxReplicas is {}", config.max_replicas),
        Reason::BelowMin => format!("{current} to {new}: minReplicas is {}", config.min_replicas),
        Reason::NoValidMetric if config.rules.is_empty() => format!("kept at {new}: there is no scale rule"),
        Reason::NoValidMetric => format!("kept at {new}: no rule could be read ({})", failed_rules(decision)),
        Reason::PartialErrorHold => {
            format!("kept at {new}: {asked}, but fewer are not taken while a rule fails ({})", failed_rules(decision))
        }
        Reason::ScaleUp => format!("{current} to {new}: {asked}{}", earlier(decision)),
        Reason::ScaleUpLimited => {
            format!("{current} to {new}: {asked}{}; {}", earlier(decision), limited_by(config, decision))
        }
        Reason::ScaleDown => {
            let span = config.settings.scale_down_window.as_secs();
            format!("{current} to {new}: {asked}, and nothing asked for more than {new} in the last {span} s")
        }
        Reason::Stabilized => match window {
            Some((peak_at, until)) => format!(
                "held at {new}: window until {}, largest proposal {} at {}; {asked} now",
                clock_time(until),
                decision.stable.unwrap_or(new),
                clock_time(peak_at)
            ),
            None => {
                format!("held at {new}: the count at the start of the autoscaler holds for one window; {asked} now")
            }
        },
        Reason::Steady => steady(config, decision, &asked),
    };
    if let Some(until) = cooldown_until {
        text.push_str(&format!("; idle, zero after {}", clock_time(until)));
    }
    text
}

fn steady(config: &ScaleConfig, decision: &Decision, asked: &str) -> String {
    let new = decision.new;
    match decision.want {
        Some(want) if want > new && new >= config.max_replicas => {
            format!("kept at {new}: {asked}, but maxReplicas is {}", config.max_replicas)
        }
        Some(want) if want < new && new <= config.running_min() => {
            format!("kept at {new}, the least while it runs: {asked}")
        }
        _ => format!("kept at {new}: {asked}"),
    }
}

/// A larger proposal of the window counts, too.
fn earlier(decision: &Decision) -> String {
    match (decision.stable, decision.want) {
        (Some(stable), Some(want)) if stable > want => format!(", {stable} were asked for within the window"),
        _ => String::new(),
    }
}

fn limited_by(config: &ScaleConfig, decision: &Decision) -> String {
    let ceiling = decision.ceiling.unwrap_or(decision.new);
    if ceiling >= config.max_replicas {
        format!("maxReplicas is {}", config.max_replicas)
    } else {
        format!("one step reaches {ceiling}")
    }
}

/// `queue asks for 10`
fn asked(decision: &Decision) -> String {
    let Some(want) = decision.want else { return "no rule asks for anything".to_owned() };
    let asks = |rule: &&RuleOutcome| rule.proposal == Some(want);
    let names: Vec<&str> = decision.rules.iter().filter(asks).map(|rule| &*rule.name).collect();
    let verb = if names.len() == 1 { "asks" } else { "ask" };
    format!("{} {verb} for {want}", names.join(", "))
}

fn active_rules(decision: &Decision) -> String {
    let active = decision.rules.iter().filter(|rule| rule.active).map(|rule| &*rule.name).collect::<Vec<_>>();
    if active.is_empty() { "a cpu or memory rule always".to_owned() } else { active.join(", ") }
}

fn failed_rules(decision: &Decision) -> String {
    let failed = decision.rules.iter().filter_map(|rule| match &rule.reading {
        Reading::Error { reason } => Some(format!("{}: {reason}", rule.name)),
        _ => None,
    });
    failed.collect::<Vec<_>>().join("; ")
}

/// `12:04:30`, UTC.
fn clock_time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::{Input, Rule, RuleKind, ScaleSettings, ScaleState, decide};

    #[test]
    fn a_climb_a_hold_and_a_fall_in_words() {
        let config = Arc::new(ScaleConfig {
            min_replicas: 0,
            max_replicas: 10,
            rules: vec![Rule::new("queue", RuleKind::Event, 5.0), Rule::new("lag", RuleKind::Event, 10.0)],
            settings: ScaleSettings::default(),
            fallback: None,
        });
        let mut state = ScaleState { seeded: true, ..ScaleState::default() };
        let mut explainer = Explainer::default();
        let mut text = String::new();
        let readings = [0, 50, 50, 50, 80, 10, 10, -1, 10, 10, 0, 0].into_iter();
        for (tick, value) in (0i64..).zip(readings.chain(std::iter::repeat_n(0, 10))) {
            let now: Timestamp = "2026-05-01T11:57:00Z".parse().unwrap();
            let now = now + jiff::SignedDuration::from_secs(30 * tick);
            let queue = if value < 0 {
                Reading::error("connection refused")
            } else {
                Reading::of_value(&config.rules[0], f64::from(value))
            };
            let readings = [queue, Reading::of_value(&config.rules[1], 0.0)];
            let input = Input { now, readings: &readings, existing: state.current, in_flight: 0, hold: Hold::None };
            let decision = decide(&config, &state, &input);
            state.apply(&config, &decision);
            let record = DecisionRecord { config: Arc::clone(&config), decision };
            let explained = explainer.explain(&record);
            text.push_str(&format!("{} {}\n", clock_time(now), explained.words));
        }
        expect![[r#"
            11:57:00 at zero: no rule is active
            11:57:30 started with 1: queue is active
            11:58:00 1 to 4: queue asks for 10; one step reaches 4
            11:58:30 4 to 8: queue asks for 10; one step reaches 8
            11:59:00 8 to 10: queue asks for 16; maxReplicas is 10
            11:59:30 held at 10: window until 12:04:00, largest proposal 16 at 11:59:00; queue asks for 2 now
            12:00:00 held at 10: window until 12:04:00, largest proposal 16 at 11:59:00; queue asks for 2 now
            12:00:30 kept at 10: lag asks for 0, but fewer are not taken while a rule fails (queue: connection refused)
            12:01:00 held at 10: window until 12:04:00, largest proposal 16 at 11:59:00; queue asks for 2 now
            12:01:30 held at 10: window until 12:04:00, largest proposal 16 at 11:59:00; queue asks for 2 now
            12:02:00 held at 10: window until 12:04:00, largest proposal 16 at 11:59:00; queue, lag ask for 0 now; idle, zero after 12:06:30
            12:02:30 held at 10: window until 12:04:00, largest proposal 16 at 11:59:00; queue, lag ask for 0 now; idle, zero after 12:06:30
            12:03:00 held at 10: window until 12:04:00, largest proposal 16 at 11:59:00; queue, lag ask for 0 now; idle, zero after 12:06:30
            12:03:30 held at 10: window until 12:04:00, largest proposal 16 at 11:59:00; queue, lag ask for 0 now; idle, zero after 12:06:30
            12:04:00 held at 10: window until 12:04:00, largest proposal 16 at 11:59:00; queue, lag ask for 0 now; idle, zero after 12:06:30
            12:04:30 10 to 2: queue, lag ask for 0, and nothing asked for more than 2 in the last 300 s; idle, zero after 12:06:30
            12:05:00 held at 2: window until 12:06:30, largest proposal 2 at 12:01:30; queue, lag ask for 0 now; idle, zero after 12:06:30
            12:05:30 held at 2: window until 12:06:30, largest proposal 2 at 12:01:30; queue, lag ask for 0 now; idle, zero after 12:06:30
            12:06:00 held at 2: window until 12:06:30, largest proposal 2 at 12:01:30; queue, lag ask for 0 now; idle, zero after 12:06:30
            12:06:30 held at 2: window until 12:06:30, largest proposal 2 at 12:01:30; queue, lag ask for 0 now; idle, zero after 12:06:30
            12:07:00 2 to zero: last active 12:01:30, more than the cool-down of 300 s ago
            12:07:30 at zero: no rule is active
        "#]].assert_eq(&text);
    }
}
