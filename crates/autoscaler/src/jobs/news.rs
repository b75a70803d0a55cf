//! Rows of the system log about triggers of jobs, in the words of KEDA and of Kubernetes' CronJob.
//!
//! **Invariant:** an event never holds a secret.

use cove_model::{EventKind, Job, JobEvent, RevisionName, SystemEvent};
use cove_scaling::Reading;
use cove_scaling::job::JobPoll;
use cove_scaling::schedule::{InvalidSchedule, LeftOut, Why};
use jiff::Timestamp;

use crate::health::News;

fn event(job: &Job, at: Timestamp, kind: EventKind, reason: &str, message: String, source: &str) -> SystemEvent {
    SystemEvent {
        at,
        kind,
        reason: reason.to_owned(),
        message,
        environment: Some(job.environment.as_str().to_owned()),
        app: Some(job.id.as_str().to_owned()),
        revision: None,
        replica: None,
        container: None,
        source: source.to_owned(),
    }
}

/// The rules began to be polled.
pub(super) fn polling(job: &Job, at: Timestamp, given: &JobEvent) -> SystemEvent {
    let rules: Vec<String> = given.scale.rules.iter().map(|rule| format!("`{}`", rule.name)).collect();
    let (scale, name) = (&given.scale, job.id.name());
    let message = format!(
        "Rules {} of job `{name}` are read every {} s, {} to {} executions",
        rules.join(", "),
        scale.polling_interval_secs,
        scale.min_executions,
        scale.max_executions
    );
    event(job, at, EventKind::Normal, "KEDAScalersStarted", message, "KEDA")
}

/// A rule cannot be read any more, or can be read again.
pub(super) fn rule(job: &Job, at: Timestamp, rule: &str, news: News, reading: &Reading) -> SystemEvent {
    let name = job.id.name();
    match (news, reading) {
        (News::Fails, Reading::Error { reason }) => {
            let message =
                format!("Rule `{rule}` of job `{name}` cannot be read: {reason}. It starts no executions until it can");
            event(job, at, EventKind::Warning, "KEDAScalerFailed", message, "KEDA")
        }
        (News::Fails | News::Recovered, _) => {
            let message = format!("Rule `{rule}` of job `{name}` can be read again");
            event(job, at, EventKind::Normal, "KEDAScalersStarted", message, "KEDA")
        }
    }
}

/// A poll started executions.
pub(super) fn created(job: &Job, at: Timestamp, started: &[RevisionName], poll: &JobPoll) -> SystemEvent {
    const NAMED_MAX: usize = 10;
    let mut names: Vec<String> = started.iter().take(NAMED_MAX).map(|name| format!("`{name}`")).collect();
    if started.len() > NAMED_MAX {
        names.push(format!("{} more", started.len() - NAMED_MAX));
    }
    let message = format!("Job `{}` {}; executions {}", job.id.name(), poll.words(), names.join(", "));
    event(job, at, EventKind::Normal, "KEDAJobsCreated", message, "KEDA")
}

/// Ticks were not started.
pub(super) fn left_out(job: &Job, at: Timestamp, left: &LeftOut) -> SystemEvent {
    let reason = match left.why {
        Why::Missed | Why::TooLate => "MissSchedule",
        Why::Overlap => "JobAlreadyActive",
    };
    let ticks = if left.number == 1 { "1 tick".to_owned() } else { format!("{} ticks", left.number) };
    let message = format!("Job `{}` left out {ticks} until {}: {}", job.id.name(), left.last, left.why.words());
    event(job, at, EventKind::Warning, reason, message, "JobController")
}

/// The expression cannot be read here.
pub(super) fn cannot_follow(job: &Job, at: Timestamp, schedule: &str, error: &InvalidSchedule) -> SystemEvent {
    let message = format!("The schedule `{schedule}` of job `{}` cannot be followed: {error}", job.id.name());
    event(job, at, EventKind::Warning, "InvalidSchedule", message, "JobController")
}
