//! Jobs: what runs containers to completion, what starts them, and one run of them, the execution.
//!
//! To the drivers an execution is what a revision is: its replicas have the key `{ app: the job's id, name: the
//! execution's name }`. It carries all it needs (template, counts, limits) from its start, so a change of the job reaches
//! later executions only.
//!
//! **Invariant:** a status that [`ExecutionStatus::is_final`] never changes again.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{InvalidName, Registry, ReplicaName, ResourceId, RevisionKey, RevisionName, ScaleRule, Template};

/// Kind of a job's id.
pub const JOB_KIND: &str = "Microsoft.App/jobs";

/// Random characters behind an execution's name, as Azure's: `job-x7k2q9a`.
pub const EXECUTION_SUFFIX_LENGTH: usize = 7;

/// Finished executions that are kept of a job, of either outcome (KEDA's and ACA's default).
pub const EXECUTION_HISTORY_MAX: usize = 100;

/// What the user asked of one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id, of [`JOB_KIND`].
    pub id: ResourceId,
    /// The environment it lives in.
    pub environment: ResourceId,
    /// Workload profile that its replicas run on; `None` is `Consumption`.
    #[serde(default)]
    pub workload_profile: Option<String>,
    /// What a replica runs. `scale` means nothing here: the rules are in the trigger.
    pub template: Template,
    /// What starts it.
    pub trigger: JobTrigger,
    /// Seconds that one replica may run, 1..=2592000; required by Azure, `az` sends 1800 when none is given.
    pub replica_timeout_secs: u32,
    /// Failed replica runs that an execution survives, 0..=1000, default 0; counted per execution, as Kubernetes'
    /// `backoffLimit`.
    pub replica_retry_limit: u32,
    /// Registry logins.
    pub registries: Vec<Registry>,
    /// `suspend`/`resume`: a suspended job starts nothing, by hand or by its trigger; what runs goes on.
    pub is_suspended: bool,
    /// Goes first when machines are short: higher before lower, -1000..=1000, default 0. Azure has no such field.
    #[serde(default)]
    pub priority: i32,
}

impl Job {
    /// An execution of the job as it is now, not yet begun; `template` takes the place of the job's own.
    #[must_use]
    pub fn execution(
        &self,
        name: RevisionName,
        cause: ExecutionCause,
        template: Option<Template>,
        now: Timestamp,
    ) -> Execution {
        Execution {
            job: self.id.clone(),
            name,
            cause,
            environment: self.environment.clone(),
            workload_profile: self.workload_profile.clone(),
            template: Arc::new(template.unwrap_or_else(|| self.template.clone())),
            counts: self.trigger.counts(),
            replica_timeout_secs: self.replica_timeout_secs,
            replica_retry_limit: self.replica_retry_limit,
            priority: self.priority,
            status: ExecutionStatus::default(),
            reason: None,
            message: None,
            created_at: now,
            started_at: None,
            ended_at: None,
            succeeded: 0,
            failed: 0,
            replicas: Vec::new(),
            stop_requested_at: None,
        }
    }
}

/// What starts a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobTrigger {
    /// `start`, by a user.
    Manual(Counts),
    /// The clock (`start` works too).
    Schedule(JobSchedule),
    /// Rules that are polled (`start` works too).
    Event(JobEvent),
}

impl JobTrigger {
    /// How many replicas each execution runs.
    #[must_use]
    pub fn counts(&self) -> Counts {
        match self {
            Self::Manual(counts) => *counts,
            Self::Schedule(schedule) => schedule.counts,
            Self::Event(event) => event.counts,
        }
    }

    /// ARM's `triggerType`.
    #[must_use]
    pub fn as_arm(&self) -> &'static str {
        match self {
            Self::Manual(_) => "Manual",
            Self::Schedule(_) => "Schedule",
            Self::Event(_) => "Event",
        }
    }
}

/// How many replicas an execution runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Replicas at once, 1..=1000, default 1.
    pub parallelism: u32,
    /// Replicas that must succeed (`replicaCompletionCount`), 1..=1000, default 1.
    pub completions: u32,
}

impl Default for Counts {
    fn default() -> Self {
        Self { parallelism: 1, completions: 1 }
    }
}

/// `scheduleTriggerConfig`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSchedule {
    /// The cron expression as the user wrote it; five fields in UTC are Azure's.
    pub cron: String,
    /// IANA name of the zone that the expression is read in; `None` is UTC. Azure has no such field (`coveTimeZone`).
    #[serde(default)]
    pub time_zone: Option<String>,
    /// What a tick does while an execution runs (`coveOverlap`), default [`Overlap::Allow`] as in Azure.
    #[serde(default)]
    pub overlap: Overlap,
    /// What becomes of ticks that passed while nothing looked (`coveMissedRuns`), default [`MissedRuns::Last`].
    #[serde(default)]
    pub missed: MissedRuns,
    /// Seconds after a tick within which it may still be started (`coveStartingDeadlineSeconds`), 1..=86400; `None` is
    /// without a limit, as Kubernetes' `startingDeadlineSeconds`.
    #[serde(default)]
    pub starting_deadline_secs: Option<u32>,
    /// Replicas per execution.
    pub counts: Counts,
}

/// What a tick does while an execution of the job runs; Kubernetes' `concurrencyPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Overlap {
    /// It starts another one.
    #[default]
    Allow,
    /// It is left out.
    Forbid,
    /// The running ones are stopped and it starts.
    Replace,
}

/// What becomes of ticks that passed while the server was down or the clock jumped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MissedRuns {
    /// The last one is started, the earlier ones are left out (Kubernetes' CronJob).
    #[default]
    Last,
    /// None is started.
    Skip,
    /// Each is started, oldest first, at most 100.
    All,
}

/// `eventTriggerConfig`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEvent {
    /// Replicas per execution.
    pub counts: Counts,
    /// Limits and rules.
    pub scale: JobScale,
}

/// `eventTriggerConfig.scale`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobScale {
    /// Seconds between two polls, 1..=86400, default 30.
    pub polling_interval_secs: u32,
    /// Executions kept running, 0..=1000, default 0.
    pub min_executions: u32,
    /// Most executions at once, 1..=1000, default 100.
    pub max_executions: u32,
    /// How running executions count against the queue (`coveStrategy`), default [`JobStrategy::Default`] as in Azure.
    #[serde(default)]
    pub strategy: JobStrategy,
    /// The rules, at least one; never http or tcp.
    pub rules: Vec<ScaleRule>,
}

impl Default for JobScale {
    fn default() -> Self {
        Self {
            polling_interval_secs: 30,
            min_executions: 0,
            max_executions: 100,
            strategy: JobStrategy::Default,
            rules: Vec::new(),
        }
    }
}

/// KEDA's ScaledJob strategies, of which Azure has the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobStrategy {
    /// Queue minus running: right when a message stays in the queue until its execution ends.
    #[default]
    Default,
    /// Right when a message leaves the queue as soon as it is taken.
    Accurate,
    /// Fills all free places at once.
    Eager,
}

/// One run of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// The job.
    pub job: ResourceId,
    /// `<job>-<7 characters>`, unique within the job.
    pub name: RevisionName,
    /// Why it was started.
    pub cause: ExecutionCause,
    /// The job's environment.
    pub environment: ResourceId,
    /// The job's workload profile; `None` is `Consumption`.
    #[serde(default)]
    pub workload_profile: Option<String>,
    /// What its replicas run: the job's template with the override of its start.
    pub template: Arc<Template>,
    /// How many replicas.
    pub counts: Counts,
    /// Seconds that one replica may run, >= 1.
    pub replica_timeout_secs: u32,
    /// Failed replica runs it survives.
    pub replica_retry_limit: u32,
    /// Higher goes first when machines are short, default 0.
    #[serde(default)]
    pub priority: i32,
    /// Where it stands.
    pub status: ExecutionStatus,
    /// Why it stands there, in one word such as `DeadlineExceeded`, `BackoffLimitExceeded`, `Queued`; `None` when there is
    /// nothing to say.
    #[serde(default)]
    pub reason: Option<String>,
    /// The same in words.
    #[serde(default)]
    pub message: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When its first replica was started.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// When it became final.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// Replicas that succeeded.
    #[serde(default)]
    pub succeeded: u32,
    /// Replica runs that failed, ran too long or were lost.
    #[serde(default)]
    pub failed: u32,
    /// Its replicas, oldest first, those that ended too.
    #[serde(default)]
    pub replicas: Vec<ExecutionReplica>,
    /// When a user asked to stop it.
    #[serde(default)]
    pub stop_requested_at: Option<Timestamp>,
}

impl Execution {
    /// What boards, drivers and services key its replicas by.
    #[must_use]
    pub fn key(&self) -> RevisionKey {
        RevisionKey { app: self.job.clone(), name: self.name.clone() }
    }
}

/// One replica of an execution; its name is written before it is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionReplica {
    /// `<execution>-<5 characters>`, never used twice.
    pub name: ReplicaName,
    /// `JOB_COMPLETION_INDEX`: 0..completions; a retry has the index of the run that failed.
    pub index: u32,
    /// When it was started.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// When it was seen to have ended.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// The first exit code that is not 0, else 0; `None` while it runs and when it was lost.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `DeadlineExceeded`, `Stopped`, `Lost`, …; `None` while it runs.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Why an execution was started; one execution per job and [`ExecutionCause::key`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExecutionCause {
    /// By a user; the text is new for each request.
    Manual(String),
    /// By the clock, for this tick.
    Tick(Timestamp),
    /// By a poll of the rules at this time, the n-th of those it started.
    Event {
        /// When the rules were read.
        polled_at: Timestamp,
        /// From 0.
        number: u32,
    },
}

impl ExecutionCause {
    /// What no two executions of a job share.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Manual(request) => format!("manual:{request}"),
            Self::Tick(at) => format!("tick:{}", at.as_second()),
            Self::Event { polled_at, number } => format!("event:{}:{number}", polled_at.as_millisecond()),
        }
    }
}

/// Where an execution stands; ARM's `JobExecutionRunningState`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecutionStatus {
    /// Replicas run.
    Running,
    /// Asked for: it waits for room, or for its first replica.
    #[default]
    Processing,
    /// A user stopped it.
    Stopped,
    /// Runs, and some of its replicas failed.
    Degraded,
    /// More replica runs failed than the retry limit allows.
    Failed,
    /// Not known.
    Unknown,
    /// Enough replicas succeeded.
    Succeeded,
}

impl ExecutionStatus {
    /// ARM's spelling.
    #[must_use]
    pub fn as_arm(self) -> String {
        format!("{self:?}")
    }

    /// It has ended.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed | Self::Succeeded)
    }
}

/// The name of an execution: `<job>-<suffix>`.
///
/// # Errors
/// [`InvalidName`] when the suffix has other characters than `a-z0-9`.
pub fn execution_name(job: &str, suffix: &str) -> Result<RevisionName, InvalidName> {
    RevisionName::new(format!("{job}-{suffix}"))
}

/// The name of an execution's replica: `<execution>-<suffix>`.
///
/// # Errors
/// [`InvalidName`] when the suffix has other characters than `a-z0-9`.
pub fn execution_replica_name(execution: &RevisionName, suffix: &str) -> Result<ReplicaName, InvalidName> {
    ReplicaName::new(format!("{execution}-{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_have_one_key_each() {
        let at: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let causes = [
            ExecutionCause::Manual("a".into()),
            ExecutionCause::Tick(at),
            ExecutionCause::Event { polled_at: at, number: 0 },
            ExecutionCause::Event { polled_at: at, number: 1 },
        ];
        let keys: std::collections::BTreeSet<String> = causes.iter().map(ExecutionCause::key).collect();
        assert_eq!(keys.len(), causes.len());
        assert_eq!(ExecutionCause::Tick(at).key(), "tick:1767323045");
    }

    #[test]
    fn names_fit_the_longest_job() {
        let job = "j".repeat(32);
        let execution = execution_name(&job, "abc1234").unwrap();
        assert_eq!(execution.as_str(), format!("{job}-abc1234"));
        assert!(execution_replica_name(&execution, "x7k2q").is_ok());
        assert!(execution_name("job", "Bad_").is_err());
    }

    #[test]
    fn statuses_end_once() {
        let ends = [ExecutionStatus::Stopped, ExecutionStatus::Failed, ExecutionStatus::Succeeded];
        assert!(ends.iter().all(|status| status.is_final()));
        assert!(!ExecutionStatus::Processing.is_final() && !ExecutionStatus::Degraded.is_final());
        assert_eq!(ExecutionStatus::default().as_arm(), "Processing");
    }
}
