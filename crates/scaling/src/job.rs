//! How many executions an event-driven job starts at one poll, and where one execution stands.
//!
//! Follows KEDA's ScaledJob. Azure exposes no strategy and runs `default`; the others are opt-in.
//!
//! **Invariant:** a poll only starts executions, it never stops one.

use cove_model::JobScale;
use serde::{Deserialize, Serialize};

mod poll;

pub use poll::{JobPoll, PolledRule};

/// Limits and rules of an event-driven job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobConfig {
    /// Executions kept running, default 0.
    pub min_executions: u32,
    /// Most executions at once, default 100.
    pub max_executions: u32,
    /// How running executions count against the queue.
    pub strategy: JobStrategy,
    /// How several rules combine.
    pub calculation: MultipleScalers,
}

impl Default for JobConfig {
    fn default() -> Self {
        Self {
            min_executions: 0,
            max_executions: 100,
            strategy: JobStrategy::Default,
            calculation: MultipleScalers::Max,
        }
    }
}

impl From<&JobScale> for JobConfig {
    fn from(scale: &JobScale) -> Self {
        use cove_model::JobStrategy as Given;
        let strategy = match scale.strategy {
            Given::Default => JobStrategy::Default,
            Given::Accurate => JobStrategy::Accurate,
            Given::Eager => JobStrategy::Eager,
        };
        Self {
            min_executions: scale.min_executions,
            max_executions: scale.max_executions,
            strategy,
            calculation: MultipleScalers::Max,
        }
    }
}

/// KEDA's scaling strategies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JobStrategy {
    /// Queue minus running; right when a message stays in the queue until its execution ends.
    #[default]
    Default,
    /// Queue minus a deduction minus a share of the running ones.
    Custom {
        /// Subtracted from the queue length.
        deduction: i64,
        /// Share of the running executions to subtract; not a number gives [`JobStrategy::Default`].
        running_share: Option<f64>,
    },
    /// Right when a message leaves the queue as soon as it is taken.
    Accurate,
    /// Fills all free places at once.
    Eager,
}

/// `multipleScalersCalculation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MultipleScalers {
    /// The active rule with the longest queue.
    #[default]
    Max,
    /// The active rule with the shortest queue.
    Min,
    /// The mean of the active rules.
    Avg,
    /// The sum of the active rules.
    Sum,
}

/// One rule's reading; a rule that failed is left out by the caller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JobReading {
    /// Queue length.
    pub value: f64,
    /// Messages per execution; 0 or less counts as 1.
    pub target: f64,
    /// Whether the rule is active: its value exceeds its activation.
    pub active: bool,
}

/// Executions to start now. `running` = not finished; `pending` = those of them with no replica that ran yet.
pub fn executions_to_start(config: &JobConfig, readings: &[JobReading], running: u32, pending: u32) -> u32 {
    let max = i64::from(config.max_executions);
    let min = i64::from(config.min_executions).min(max);
    let cap = if i64::from(config.min_executions) > max { max } else { max - min };
    let (running, pending) = (i64::from(running), i64::from(pending));
    if running < min {
        return count(min - running);
    }
    let queue = combine(config.calculation, readings, cap);
    let active = queue.active || config.min_executions > 0;
    if !active {
        return 0;
    }
    let mut scale_to = queue.scale_to;
    let over = running - min;
    let effective = match &config.strategy {
        JobStrategy::Default | JobStrategy::Custom { running_share: None, .. } => queue.max_scale - over,
        JobStrategy::Custom { deduction, running_share: Some(share) } => {
            (queue.max_scale.saturating_sub(*deduction).saturating_sub(whole((over_f64(over) * share).trunc())))
                .min(cap)
        }
        JobStrategy::Accurate if queue.max_scale + over - pending > cap => cap - over,
        JobStrategy::Accurate => queue.max_scale - pending,
        JobStrategy::Eager => {
            scale_to = cap;
            (cap - over - pending).min(queue.max_scale)
        }
    };
    count(scale_to.min(effective.max(0)))
}

struct Queue {
    scale_to: i64,
    max_scale: i64,
    active: bool,
}

fn combine(calculation: MultipleScalers, readings: &[JobReading], cap: i64) -> Queue {
    let cap_f64 = over_f64(cap);
    let active = || {
        readings.iter().filter(|reading| reading.active).map(|reading| {
            let target = if reading.target > 0.0 { reading.target } else { 1.0 };
            (reading.value, (reading.value / target).min(cap_f64))
        })
    };
    let number = active().count();
    let sum = || active().fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let (length, wanted) = match calculation {
        MultipleScalers::Max => active().reduce(|best, one| if one.0 > best.0 { one } else { best }),
        MultipleScalers::Min => active().reduce(|best, one| if one.0 < best.0 { one } else { best }),
        MultipleScalers::Sum => Some(sum()),
        MultipleScalers::Avg => {
            let shares = u32::try_from(number).ok().filter(|number| *number > 0).map(f64::from);
            shares.map(|shares| (sum().0 / shares, sum().1 / shares))
        }
    }
    .unwrap_or((0.0, 0.0));
    Queue { scale_to: whole(length.ceil()), max_scale: whole(wanted.min(cap_f64).ceil()), active: number > 0 }
}

#[expect(clippy::cast_possible_truncation, reason = "`as` saturates, and gives 0 for not-a-number")]
fn whole(value: f64) -> i64 {
    value as i64
}

fn over_f64(value: i64) -> f64 {
    f64::from(i32::try_from(value).unwrap_or(i32::MAX))
}

fn count(value: i64) -> u32 {
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}

/// An execution's settings and what its replicas did so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execution {
    /// Replicas at once, >= 1, default 1.
    pub parallelism: u32,
    /// Successful replicas that complete it, >= 1, default 1.
    pub replica_completion_count: u32,
    /// Failed replica runs it survives, default 0.
    pub replica_retry_limit: u32,
    /// Replicas that succeeded.
    pub succeeded: u32,
    /// Replica runs that failed, or ran longer than the replica timeout.
    pub failed: u32,
    /// Whether it was stopped by a user.
    pub stopped: bool,
}

/// Where an execution stands; ARM's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecutionStatus {
    /// Replicas are to run.
    Running,
    /// Enough replicas succeeded.
    Succeeded,
    /// More replica runs failed than the retry limit allows.
    Failed,
    /// Stopped by a user.
    Stopped,
}

impl Execution {
    /// The status, and how many replicas should run now.
    pub fn status(&self) -> (ExecutionStatus, u32) {
        let missing = self.replica_completion_count.max(1).saturating_sub(self.succeeded);
        if missing == 0 {
            (ExecutionStatus::Succeeded, 0)
        } else if self.stopped {
            (ExecutionStatus::Stopped, 0)
        } else if self.failed > self.replica_retry_limit {
            (ExecutionStatus::Failed, 0)
        } else {
            (ExecutionStatus::Running, self.parallelism.max(1).min(missing))
        }
    }
}
