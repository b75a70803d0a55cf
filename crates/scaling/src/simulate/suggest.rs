//! Searches the parameters of a policy on a trace: one after the other, the best of each kept, twice.
//!
//! **Invariant:** the search tries a bounded number of policies and takes the same way each time; limits above are kept.

use cove_model::ScaleMode;
use jiff::SignedDuration;

use super::{Fleet, Outcome, Policy, RateCard, ReplicaSize, Request, simulate};
use crate::fast::FastSettings;
use crate::settings::ScaleSettings;

/// Times that every parameter is gone through.
const ROUNDS: usize = 2;

/// What is wanted of a policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// The cheapest with at most this share of waits over the limit, in percent.
    Waits(f64),
    /// The fewest waits over the limit for at most this cost, in the rate card's currency, over the trace.
    Cost(f64),
}

/// A policy that was tried.
#[derive(Clone, Debug)]
pub struct Suggestion {
    /// The policy.
    pub policy: Policy,
    /// What came of it.
    pub outcome: Outcome,
    /// Its cost.
    pub cost: f64,
}

/// Policies for a trace, best first, at most `count`; the first of them may be `today` itself.
pub fn suggest(
    today: &Policy,
    trace: &[Request],
    fleet: &Fleet,
    until_ms: u64,
    money: (&RateCard, ReplicaSize),
    objective: Objective,
    count: usize,
) -> Vec<Suggestion> {
    let (card, size) = money;
    let mut tried: Vec<Suggestion> = Vec::new();
    let mut best = today.clone();
    for _ in 0..ROUNDS {
        for variants in [modes, targets, minima, cooldowns, windows, headrooms] {
            for policy in std::iter::once(best.clone()).chain(variants(&best, today)) {
                if tried.iter().any(|known| known.policy == policy) {
                    continue;
                }
                let outcome = simulate(&policy, trace, fleet, until_ms);
                let cost = outcome.cost(card, size);
                tried.push(Suggestion { policy, outcome, cost });
            }
            tried
                .sort_by(|a, b| key(a, objective).partial_cmp(&key(b, objective)).unwrap_or(std::cmp::Ordering::Equal));
            if let Some(first) = tried.first() {
                best = first.policy.clone();
            }
        }
    }
    // what changes nothing is left out: the first tried of them is nearest to today's
    let mut told: Vec<Suggestion> = Vec::new();
    for suggestion in tried {
        if told.len() < count.max(1) && !told.iter().any(|known| known.outcome == suggestion.outcome) {
            told.push(suggestion);
        }
    }
    told
}

/// What misses the objective comes after all that meets it.
fn key(suggestion: &Suggestion, objective: Objective) -> (f64, f64, f64) {
    let waits = suggestion.outcome.violation_percent();
    match objective {
        Objective::Waits(percent) => ((waits - percent).max(0.0), suggestion.cost, waits),
        Objective::Cost(cost) => ((suggestion.cost - cost).max(0.0), waits, suggestion.cost),
    }
}

fn modes(best: &Policy, today: &Policy) -> Vec<Policy> {
    let with = |mode: ScaleMode| {
        let mut policy = Policy { mode, ..best.clone() };
        let own = &best.config.settings;
        let mut settings = match mode {
            ScaleMode::Aca if today.mode == ScaleMode::Aca => today.config.settings.clone(),
            ScaleMode::Aca => ScaleSettings::default(),
            ScaleMode::Fast if today.mode == ScaleMode::Fast => today.config.settings.clone(),
            ScaleMode::Fast => FastSettings::default().effective(own),
        };
        settings.cooldown_period = own.cooldown_period;
        settings.polling_interval = own.polling_interval;
        policy.config.settings = settings;
        policy
    };
    let other = if best.mode == ScaleMode::Aca { ScaleMode::Fast } else { ScaleMode::Aca };
    vec![with(other)]
}

fn targets(best: &Policy, today: &Policy) -> Vec<Policy> {
    let scaled = |percent: u64| {
        let mut policy = best.clone();
        for (rule, given) in
            policy.config.rules.iter_mut().zip(&today.config.rules).filter(|(rule, _)| rule.kind.is_load())
        {
            rule.target_milli = (given.target_milli * percent / 100 / 1000).max(1) * 1000;
        }
        policy
    };
    [25, 50, 100, 150, 200, 400].into_iter().map(scaled).collect()
}

fn minima(best: &Policy, today: &Policy) -> Vec<Policy> {
    let most = today.config.max_replicas;
    let with = |min: u32| {
        let mut policy = best.clone();
        policy.config.min_replicas = min.min(most);
        policy
    };
    [0, 1, 2, 3, 5, 8, today.config.min_replicas].into_iter().map(with).collect()
}

fn cooldowns(best: &Policy, _today: &Policy) -> Vec<Policy> {
    [30, 60, 120, 300, 900, 1800]
        .into_iter()
        .map(|seconds| with_settings(best, |settings| settings.cooldown_period = SignedDuration::from_secs(seconds)))
        .collect()
}

fn windows(best: &Policy, _today: &Policy) -> Vec<Policy> {
    let seconds: &[i64] = if best.mode == ScaleMode::Fast { &[5, 10, 20, 60] } else { &[60, 120, 300, 600] };
    seconds
        .iter()
        .map(|seconds| with_settings(best, |settings| settings.scale_down_window = SignedDuration::from_secs(*seconds)))
        .collect()
}

fn headrooms(best: &Policy, _today: &Policy) -> Vec<Policy> {
    if best.mode != ScaleMode::Fast {
        return Vec::new();
    }
    let with = |percent: u32| {
        let mut policy = best.clone();
        policy.fast.headroom_percent = percent;
        policy
    };
    [0, 10, 20, 30, 50, 100].into_iter().map(with).collect()
}

fn with_settings(best: &Policy, change: impl FnOnce(&mut ScaleSettings)) -> Policy {
    let mut policy = best.clone();
    change(&mut policy.config.settings);
    policy
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rule, RuleKind, ScaleConfig};

    #[test]
    fn the_search_finds_a_policy_that_meets_the_objective() {
        let config = ScaleConfig {
            min_replicas: 0,
            max_replicas: 10,
            rules: vec![Rule::new("h", RuleKind::Http, 10.0)],
            settings: ScaleSettings::default(),
            fallback: None,
        };
        let today = Policy { config, mode: ScaleMode::Aca, fast: FastSettings::default() };
        let trace: Vec<Request> = (0..600)
            .map(|index| Request { at_ms: (index / 40 + 1) * 60_000 + index % 40 * 50, duration_ms: 3000 })
            .collect();
        let fleet = Fleet::default();
        let money = (&RateCard::default(), ReplicaSize::default());
        let found = suggest(&today, &trace, &fleet, 960_000, money, Objective::Waits(1.0), 3);
        let before = simulate(&today, &trace, &fleet, 960_000);
        assert_eq!(found.len(), 3);
        assert!(before.violation_percent() > 1.0, "{before:?}");
        assert!(found[0].outcome.violation_percent() <= 1.0, "{found:?}");
        assert!(found[0].cost <= found[1].cost);
        let cheap = suggest(&today, &trace, &fleet, 960_000, money, Objective::Cost(found[0].cost), 1);
        assert!(cheap[0].cost <= found[0].cost * 1.000_001);
    }
}
