//! One poll of an event-driven job's rules: what was read, what ran, what was started, and why in words.
//!
//! **Invariant:** a record holds all that its number was taken from; [`JobPoll::replay`] takes it again.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{JobConfig, JobReading, MultipleScalers, executions_to_start};
use crate::reading::Reading;

/// What one rule said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolledRule {
    /// The rule's name.
    pub name: String,
    /// Messages per execution.
    pub target: f64,
    /// The reading.
    pub reading: Reading,
}

/// A poll and its outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobPoll {
    /// When the rules were read.
    pub at: Timestamp,
    /// Limits and strategy that were in force.
    pub config: JobConfig,
    /// The rules, in the template's order.
    pub rules: Vec<PolledRule>,
    /// Executions that had not ended.
    pub running: u32,
    /// Those of them of which no replica had run yet.
    pub pending: u32,
    /// Executions to start.
    pub start: u32,
}

impl JobPoll {
    /// Decides how many executions a poll starts.
    pub fn decide(at: Timestamp, config: JobConfig, rules: Vec<PolledRule>, running: u32, pending: u32) -> Self {
        let mut poll = Self { at, config, rules, running, pending, start: 0 };
        poll.start = poll.replay();
        poll
    }

    /// The number to start, taken again from what is recorded.
    pub fn replay(&self) -> u32 {
        executions_to_start(&self.config, &self.readings(), self.running, self.pending)
    }

    /// Why, in one line: `started 3: 12 waiting, 9 running, cap 12`.
    pub fn words(&self) -> String {
        let verb = if self.start == 0 { "started none".to_owned() } else { format!("started {}", self.start) };
        let mut facts = vec![self.waiting(), format!("{} running", self.running)];
        if self.pending > 0 {
            facts.push(format!("{} of them not begun", self.pending));
        }
        facts.push(format!("cap {}", self.config.max_executions));
        if self.config.min_executions > 0 {
            facts.push(format!("at least {}", self.config.min_executions));
        }
        format!("{verb}: {}", facts.join(", "))
    }

    /// Whether it says the same as another one, but for its time.
    pub fn repeats(&self, other: &Self) -> bool {
        self.start == 0 && other.start == 0 && Self { at: other.at, ..self.clone() } == *other
    }

    fn readings(&self) -> Vec<JobReading> {
        let reading = |rule: &PolledRule| match rule.reading {
            Reading::Value { milli, active } => {
                Some(JobReading { value: crate::number::of_milli(milli), target: rule.target, active })
            }
            Reading::Replicas { .. } | Reading::Error { .. } => None,
        };
        self.rules.iter().filter_map(reading).collect()
    }

    /// What the rules say, as they are combined.
    fn waiting(&self) -> String {
        let readings = self.readings();
        let failed = self.rules.len() - readings.len();
        if failed > 0 && readings.is_empty() {
            return "no rule could be read".to_owned();
        }
        let active: Vec<f64> = readings.iter().filter(|reading| reading.active).map(|reading| reading.value).collect();
        let sum: f64 = active.iter().sum();
        let value = match self.config.calculation {
            MultipleScalers::Max => active.iter().copied().reduce(f64::max),
            MultipleScalers::Min => active.iter().copied().reduce(f64::min),
            MultipleScalers::Sum => Some(sum),
            MultipleScalers::Avg => u32::try_from(active.len()).ok().filter(|n| *n > 0).map(|n| sum / f64::from(n)),
        };
        let waiting = value.map_or_else(|| "nothing waiting".to_owned(), |value| format!("{value} waiting"));
        match failed {
            0 => waiting,
            1 => format!("{waiting} (1 rule could not be read)"),
            _ => format!("{waiting} ({failed} rules could not be read)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::job::JobStrategy;

    fn rule(name: &str, reading: Reading) -> PolledRule {
        PolledRule { name: name.into(), target: 1.0, reading }
    }

    fn value(value: u64) -> Reading {
        Reading::Value { milli: value * 1000, active: value > 0 }
    }

    #[test]
    fn a_poll_is_told_in_words_and_decided_again() {
        let config = JobConfig { max_executions: 12, ..JobConfig::default() };
        let eager = JobConfig { max_executions: 12, strategy: JobStrategy::Eager, ..JobConfig::default() };
        let least = JobConfig { min_executions: 2, ..config.clone() };
        let dead = || Reading::error("refused");
        let polls = [
            (config.clone(), vec![rule("q", value(12))], 9, 0),
            (config.clone(), vec![rule("q", value(0))], 0, 0),
            (config.clone(), vec![rule("q", dead())], 3, 0),
            (config, vec![rule("q", value(5)), rule("p", dead()), rule("r", value(7))], 1, 1),
            (eager, vec![rule("q", value(40))], 4, 2),
            (least, vec![rule("q", value(0))], 0, 0),
        ];
        let mut text = String::new();
        for (config, rules, running, pending) in polls {
            let poll = JobPoll::decide(Timestamp::UNIX_EPOCH, config, rules, running, pending);
            let kept: JobPoll = serde_json::from_str(&serde_json::to_string(&poll).unwrap()).unwrap();
            assert_eq!((kept.replay(), &kept), (poll.start, &poll));
            text += &format!("{}\n", poll.words());
        }
        expect![[r#"
            started 3: 12 waiting, 9 running, cap 12
            started none: nothing waiting, 0 running, cap 12
            started none: no rule could be read, 3 running, cap 12
            started 6: 7 waiting (1 rule could not be read), 1 running, 1 of them not begun, cap 12
            started 6: 40 waiting, 4 running, 2 of them not begun, cap 12
            started 2: nothing waiting, 0 running, cap 12, at least 2
        "#]]
        .assert_eq(&text);
    }
}
