//! What must change so that one execution of a job comes to its end.
//!
//! [`plan_execution`] looks at an execution as it is stored and at what the driver observes of it; it gives the execution as
//! it is to be stored, and steps. Whoever calls it stores the execution first, then carries the steps out, and calls it
//! again when anything changed. Nothing else is remembered: after a crash at any point the next plan goes on.
//!
//! **Invariant:** a replica's name is in the execution before the step that starts it; a name is started once.
//! **Invariant:** never more than `parallelism` replicas at once, never more successes than `completions`.
//! **Invariant:** a run that failed is counted once; more of them than the retry limit end the execution.
//! **Invariant:** an execution becomes final only when none of its replicas is left running.
//! **Invariant:** an ended replica is removed from the driver only after its end is in the execution.

mod indexes;
mod observed;

use std::{collections::BTreeSet, fmt, time::Duration};

use cove_model::{
    Execution, ExecutionReplica, ExecutionStatus, ReplicaName, ReplicaObservation, ReplicaPhase, execution_replica_name,
};
use jiff::{SignedDuration, Timestamp};

use crate::{Images, names::letters};
use indexes::Indexes;

/// The run was ended because it took longer than the job's `replicaTimeout`.
pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
/// More runs failed than the job's `replicaRetryLimit`.
pub const BACKOFF_LIMIT_EXCEEDED: &str = "BackoffLimitExceeded";
/// Ended at a user's wish.
pub const STOPPED: &str = "Stopped";
/// It waits for room.
pub const QUEUED: &str = "Queued";
/// Its images could not be had.
pub const IMAGE_PULL_FAILURE: &str = "ImagePullFailure";
/// Its maker was killed before it was started, with the server or by the kernel: no run, neither good nor bad.
const INTERRUPTED: &str = "Interrupted";
/// Interrupted replicas of an execution; the next ones count as failed runs.
const INTERRUPTED_MAX: usize = 8;
/// It was running and nothing is known of it any more: the machine went down.
const LOST: &str = "Lost";

/// Waiting times of executions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSettings {
    /// Wait before the second retry of a completion index; it doubles. The first retry follows at once. Default 1 s.
    pub retry_wait_first: SignedDuration,
    /// Longest wait before a retry. Default 5 min.
    pub retry_wait_most: SignedDuration,
    /// Time between two tries to get images that could not be had. Default 10 s.
    pub images_retry: SignedDuration,
    /// How long images that may yet come (a registry that cannot be reached) are tried for. Default 5 min.
    pub images_patience: SignedDuration,
    /// An order that the driver refused is given again after this. Default 1 s.
    pub order_retry: SignedDuration,
    /// How long others may pass an execution that waits for room, because they need less or their group runs less; then
    /// what ends is kept for it. Default 5 min, 0 and more.
    pub line_patience: SignedDuration,
}

impl Default for JobSettings {
    fn default() -> Self {
        Self {
            retry_wait_first: SignedDuration::from_secs(1),
            retry_wait_most: SignedDuration::from_mins(5),
            images_retry: SignedDuration::from_secs(10),
            images_patience: SignedDuration::from_mins(5),
            order_retry: SignedDuration::from_secs(1),
            line_patience: SignedDuration::from_mins(5),
        }
    }
}

/// What the planner looks at.
#[derive(Clone, Copy, Debug)]
pub struct ExecutionView<'a> {
    /// As stored.
    pub execution: &'a Execution,
    /// Where its images stand.
    pub images: &'a Images,
    /// What the driver sees of it.
    pub replicas: &'a [ReplicaObservation],
    /// How many more of its replicas there is room for.
    pub room: u32,
    /// What is short when there is no room, in words.
    pub shortage: Option<&'a str>,
    /// Its job is being deleted: it ends as if stopped.
    pub is_job_deleted: bool,
    /// Waiting times.
    pub settings: &'a JobSettings,
}

/// What the planner remembers; may be lost at any time, which costs an order given twice or a longer wait.
#[derive(Clone, Debug, Default)]
pub struct ExecutionMemory {
    asked: BTreeSet<ReplicaName>,
    images_asked_at: Option<Timestamp>,
    images_failing_since: Option<Timestamp>,
    refused_until: Option<Timestamp>,
}

impl ExecutionMemory {
    /// The driver did not take an order for this replica; it is given again a little later.
    pub fn order_refused(&mut self, replica: &ReplicaName, settings: &JobSettings, now: Timestamp) {
        self.asked.remove(replica);
        self.refused_until = Some(later(now, settings.order_retry));
    }
}

/// One thing to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobAction {
    /// Get the images.
    EnsureImages,
    /// Make this replica and start it; both may have been asked before.
    Start {
        /// Its name, in the stored execution already.
        replica: ReplicaName,
        /// Its `JOB_COMPLETION_INDEX`.
        index: u32,
    },
    /// End it.
    Stop {
        /// Which.
        replica: ReplicaName,
        /// Between SIGTERM and SIGKILL.
        grace: Duration,
    },
    /// Forget what is left of it.
    Remove {
        /// Which.
        replica: ReplicaName,
    },
}

/// An action and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStep {
    /// What.
    pub action: JobAction,
    /// Why, in words.
    pub reason: String,
}

impl fmt::Display for JobStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            JobAction::EnsureImages => write!(f, "get images: {}", self.reason),
            JobAction::Start { replica, index } => write!(f, "start {replica} (index {index}): {}", self.reason),
            JobAction::Stop { replica, grace } => write!(f, "stop {replica} within {grace:?}: {}", self.reason),
            JobAction::Remove { replica } => write!(f, "remove {replica}: {}", self.reason),
        }
    }
}

/// Something users should be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobEvent {
    /// Something went wrong.
    pub is_warning: bool,
    /// One word.
    pub reason: &'static str,
    /// In words.
    pub message: String,
    /// The replica it is about.
    pub replica: Option<ReplicaName>,
}

/// What is to be stored, done, told, and when to look again.
#[derive(Clone, Debug)]
pub struct ExecutionPlan {
    /// As it is to be stored, before any step.
    pub execution: Execution,
    /// To be carried out in this order.
    pub steps: Vec<JobStep>,
    /// To be told once the execution is stored.
    pub events: Vec<JobEvent>,
    /// Replicas that take room: started or to be started, and not ended.
    pub live: u32,
    /// Replicas that wait for room.
    pub missing: u32,
    /// The next moment at which something is due without any notice.
    pub wake_at: Option<Timestamp>,
}

struct Planner<'a> {
    view: &'a ExecutionView<'a>,
    memory: &'a mut ExecutionMemory,
    now: Timestamp,
    plan: ExecutionPlan,
}

/// Plans one execution.
#[must_use]
pub fn plan_execution(view: &ExecutionView<'_>, memory: &mut ExecutionMemory, now: Timestamp) -> ExecutionPlan {
    let plan = ExecutionPlan {
        execution: view.execution.clone(),
        steps: Vec::new(),
        events: Vec::new(),
        live: 0,
        missing: 0,
        wake_at: None,
    };
    let mut planner = Planner { view, memory, now, plan };
    planner.look();
    if !planner.plan.execution.status.is_final() {
        planner.go_on();
    }
    let replicas = &planner.plan.execution.replicas;
    let live = replicas.iter().filter(|replica| replica.ended_at.is_none()).count();
    planner.plan.live = u32::try_from(live).unwrap_or(u32::MAX);
    planner.plan
}

impl Planner<'_> {
    fn step(&mut self, action: JobAction, reason: impl Into<String>) {
        self.plan.steps.push(JobStep { action, reason: reason.into() });
    }

    fn tell(&mut self, is_warning: bool, reason: &'static str, message: String, replica: Option<&ReplicaName>) {
        self.plan.events.push(JobEvent { is_warning, reason, message, replica: replica.cloned() });
    }

    fn wake(&mut self, at: Timestamp) {
        self.plan.wake_at = Some(self.plan.wake_at.map_or(at, |old| old.min(at)));
    }

    fn has_live(&self) -> bool {
        self.plan.execution.replicas.iter().any(|replica| replica.ended_at.is_none())
    }

    /// Decides how it goes on, from what is known of its replicas now.
    fn go_on(&mut self) {
        let execution = &self.plan.execution;
        let is_enough = execution.succeeded >= execution.counts.completions;
        let is_too_bad = execution.failed > execution.replica_retry_limit;
        if is_enough {
            self.end(ExecutionStatus::Succeeded, STOPPED, "the execution has succeeded");
        } else if execution.stop_requested_at.is_some() || self.view.is_job_deleted {
            self.end(ExecutionStatus::Stopped, STOPPED, "the execution was stopped");
        } else if is_too_bad {
            self.end(ExecutionStatus::Failed, STOPPED, "the execution has failed");
        } else {
            self.end_late();
            self.start_missing();
            self.set_status();
        }
    }

    /// Ends what runs; when nothing is left, the execution is final.
    fn end(&mut self, status: ExecutionStatus, noted: &str, reason: &str) {
        let grace = self.grace();
        for at in 0..self.plan.execution.replicas.len() {
            let replica = &self.plan.execution.replicas[at];
            if replica.ended_at.is_some() {
                continue;
            }
            let name = replica.name.clone();
            let phase = self.seen(&name).map(|seen| seen.phase);
            let replica = &mut self.plan.execution.replicas[at];
            replica.reason.get_or_insert_with(|| noted.to_owned());
            match phase {
                // never made: the next plan does not make it either
                None => replica.ended_at = Some(self.now),
                Some(ReplicaPhase::Stopping) => {}
                Some(_) => self.step(JobAction::Stop { replica: name, grace }, reason),
            }
        }
        if self.has_live() {
            return;
        }
        let (word, message) = self.verdict(status);
        let execution = &mut self.plan.execution;
        execution.status = status;
        execution.ended_at = Some(self.now);
        execution.reason = word;
        execution.message = message.clone();
        let name = execution.name.clone();
        let message = message.map(|message| format!(": {message}")).unwrap_or_default();
        match status {
            ExecutionStatus::Succeeded => {
                self.tell(false, "ExecutionSucceeded", format!("Execution '{name}' has succeeded"), None);
            }
            ExecutionStatus::Stopped => {
                self.tell(false, "ExecutionStopped", format!("Execution '{name}' was stopped{message}"), None);
            }
            _ => self.tell(true, "ExecutionFailed", format!("Execution '{name}' has failed{message}"), None),
        }
    }

    /// Why it ended so: a word and a sentence.
    fn verdict(&self, status: ExecutionStatus) -> (Option<String>, Option<String>) {
        let execution = &self.plan.execution;
        match status {
            ExecutionStatus::Stopped if self.view.is_job_deleted => {
                (Some(STOPPED.to_owned()), Some("its job was deleted".to_owned()))
            }
            ExecutionStatus::Stopped => (Some(STOPPED.to_owned()), None),
            ExecutionStatus::Failed if execution.failed > execution.replica_retry_limit => {
                let last = execution.replicas.iter().rfind(|replica| is_failed(replica));
                let is_late = last.is_some_and(|last| last.reason.as_deref() == Some(DEADLINE_EXCEEDED));
                let word = if is_late { DEADLINE_EXCEEDED } else { BACKOFF_LIMIT_EXCEEDED };
                let mut message = format!(
                    "{} failed runs are more than the retry limit of {}",
                    execution.failed, execution.replica_retry_limit
                );
                if let Some(last) = last {
                    message = format!("{message}; the last, '{}', {}", last.name, how_it_ended(last, execution));
                }
                (Some(word.to_owned()), Some(message))
            }
            _ => (None, None),
        }
    }

    fn grace(&self) -> Duration {
        Duration::from_secs(u64::from(self.plan.execution.template.termination_grace_period_secs))
    }

    /// Ends runs that take longer than they may.
    fn end_late(&mut self) {
        let limit = SignedDuration::from_secs(i64::from(self.plan.execution.replica_timeout_secs));
        let grace = self.grace();
        for at in 0..self.plan.execution.replicas.len() {
            let replica = &self.plan.execution.replicas[at];
            let (None, Some(started_at)) = (replica.ended_at, replica.started_at) else { continue };
            let due = later(started_at, limit);
            if due > self.now && replica.reason.is_none() {
                self.wake(due);
                continue;
            }
            let name = replica.name.clone();
            if replica.reason.is_none() {
                self.plan.execution.replicas[at].reason = Some(DEADLINE_EXCEEDED.to_owned());
                let message = format!(
                    "Replica '{name}' ran longer than its {} s and is ended",
                    self.plan.execution.replica_timeout_secs
                );
                self.tell(true, DEADLINE_EXCEEDED, message, Some(&name));
            }
            if self.seen(&name).is_some_and(|seen| seen.phase != ReplicaPhase::Stopping) {
                self.step(JobAction::Stop { replica: name, grace }, "it ran longer than its `replicaTimeout`");
            }
        }
    }

    /// Gives names to the replicas that are missing and can be started now; asks again for those that do not show.
    fn start_missing(&mut self) {
        if let Some(until) = self.memory.refused_until {
            if until > self.now {
                self.wake(until);
                return;
            }
            self.memory.refused_until = None;
        }
        self.ask_again();
        let execution = &self.plan.execution;
        let needed = execution.counts.completions.saturating_sub(execution.succeeded).min(execution.counts.parallelism);
        let live = execution.replicas.iter().filter(|replica| replica.ended_at.is_none()).count();
        let missing = needed.saturating_sub(u32::try_from(live).unwrap_or(u32::MAX));
        if missing == 0 || !self.are_images_here() {
            return;
        }
        let due = Indexes::of(&self.plan.execution).due(self.view.settings, self.now);
        if let Some(at) = due.next_at {
            self.wake(at);
        }
        let mut room = self.view.room;
        for index in due.now.into_iter().take(usize::try_from(missing).unwrap_or(usize::MAX)) {
            if room == 0 {
                self.plan.missing += 1;
                continue;
            }
            room -= 1;
            let name = self.new_name();
            let is_retry = self.plan.execution.replicas.iter().any(|replica| replica.index == index);
            let reason = if is_retry { "its last run failed" } else { "it is to run" };
            self.plan.execution.replicas.push(ExecutionReplica {
                name: name.clone(),
                index,
                started_at: None,
                ended_at: None,
                exit_code: None,
                reason: None,
            });
            self.memory.asked.insert(name.clone());
            self.step(JobAction::Start { replica: name, index }, reason);
        }
    }

    /// Replicas that have a name, and are not known to have been asked for or not to have been started.
    fn ask_again(&mut self) {
        for at in 0..self.plan.execution.replicas.len() {
            let replica = &self.plan.execution.replicas[at];
            if replica.ended_at.is_some() || replica.reason.is_some() {
                continue;
            }
            let (name, index) = (replica.name.clone(), replica.index);
            let phase = self.seen(&name).map(|seen| seen.phase);
            let is_waiting = matches!(phase, None | Some(ReplicaPhase::Preparing | ReplicaPhase::Prepared));
            if is_waiting && self.memory.asked.insert(name.clone()) {
                self.step(JobAction::Start { replica: name, index }, "it was to be started");
            }
        }
    }

    /// Asks for the images; an execution whose images cannot be had fails.
    fn are_images_here(&mut self) -> bool {
        match self.view.images {
            Images::Ready { .. } => {
                self.memory.images_failing_since = None;
                return true;
            }
            Images::Pulling { .. } => {}
            Images::Unknown => {
                self.memory.images_asked_at = Some(self.now);
                self.step(JobAction::EnsureImages, "they are needed");
            }
            Images::Failed { message, retryable } => {
                let since = *self.memory.images_failing_since.get_or_insert(self.now);
                let is_over = !retryable || later(since, self.view.settings.images_patience) <= self.now;
                if is_over && !self.has_live() {
                    self.images_failed(message.clone());
                    return false;
                }
                let asked_at = self.memory.images_asked_at.unwrap_or(since);
                let again = later(asked_at, self.view.settings.images_retry);
                if again <= self.now {
                    self.memory.images_asked_at = Some(self.now);
                    self.step(JobAction::EnsureImages, "they could not be had the last time");
                } else {
                    self.wake(again);
                }
            }
        }
        false
    }

    fn images_failed(&mut self, message: String) {
        let execution = &mut self.plan.execution;
        execution.status = ExecutionStatus::Failed;
        execution.ended_at = Some(self.now);
        execution.reason = Some(IMAGE_PULL_FAILURE.to_owned());
        let text = format!("Execution '{}' has failed: {message}", execution.name);
        execution.message = Some(message);
        self.tell(true, "ExecutionFailed", text, None);
    }

    /// Where it stands while it has not ended.
    fn set_status(&mut self) {
        if self.plan.execution.status.is_final() {
            return;
        }
        let execution = &self.plan.execution;
        let was_queued = execution.reason.as_deref() == Some(QUEUED);
        let has_run = execution.replicas.iter().any(|replica| replica.started_at.is_some());
        let is_queued = self.plan.missing > 0 && !self.has_live();
        let (status, reason, message) = if is_queued && !has_run {
            let words = self.view.shortage.unwrap_or("there is no room for it now");
            (ExecutionStatus::Processing, Some(QUEUED.to_owned()), Some(words.to_owned()))
        } else if !has_run {
            let message = match self.view.images {
                Images::Failed { message, .. } => Some(message.clone()),
                _ => None,
            };
            (ExecutionStatus::Processing, message.is_some().then(|| IMAGE_PULL_FAILURE.to_owned()), message)
        } else if execution.failed > 0 {
            (ExecutionStatus::Degraded, None, None)
        } else {
            (ExecutionStatus::Running, None, None)
        };
        if reason.as_deref() == Some(QUEUED) && !was_queued {
            let text =
                format!("Execution '{}' waits for room: {}", execution.name, message.as_deref().unwrap_or_default());
            self.tell(true, "ExecutionQueued", text, None);
        }
        let execution = &mut self.plan.execution;
        if reason.as_deref() == Some(QUEUED) && was_queued {
            // the words change with every replica that ends anywhere; what was written first is kept
            return;
        }
        (execution.status, execution.reason, execution.message) = (status, reason, message);
    }

    /// A name that no replica of it has or had.
    fn new_name(&self) -> ReplicaName {
        let execution = &self.plan.execution;
        let mut counter = u64::try_from(execution.replicas.len()).unwrap_or(u64::MAX);
        loop {
            let suffix = letters(&format!("{}/{}", execution.job.key(), execution.name), counter, 5);
            let name = execution_replica_name(&execution.name, &suffix)
                .expect("an execution's name and six more of the same alphabet");
            if execution.replicas.iter().all(|replica| replica.name != name) {
                return name;
            }
            counter = counter.wrapping_add(0x1_0001);
        }
    }
}

/// The run counts as failed.
pub(crate) fn is_failed(replica: &ExecutionReplica) -> bool {
    replica.ended_at.is_some() && !matches!(replica.reason.as_deref(), Some("Completed" | STOPPED | INTERRUPTED))
}

fn how_it_ended(replica: &ExecutionReplica, execution: &Execution) -> String {
    match (replica.reason.as_deref(), replica.exit_code) {
        (Some(DEADLINE_EXCEEDED), _) => format!("ran longer than its {} s", execution.replica_timeout_secs),
        (Some(LOST), _) => "was lost".to_owned(),
        (Some(reason), Some(code)) => format!("ended with exit code {code} ({reason})"),
        (Some(reason), None) => format!("ended ({reason})"),
        (None, _) => "ended".to_owned(),
    }
}

fn later(at: Timestamp, span: SignedDuration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
