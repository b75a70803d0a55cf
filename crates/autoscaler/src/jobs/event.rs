//! The trigger of an event-driven job: polls its rules and asks for executions.
//!
//! **Invariant:** a rule that cannot be read is left out, and an event says so once; nothing is ever stopped here.

use std::sync::Arc;

use cove_model::{ExecutionCause, Job, JobEvent, RevisionKey, RevisionName, Scale, ScaleRule};
use cove_scaling::job::{JobConfig, JobPoll, PolledRule};
use cove_scaling::{Reading, Rule, ScaledRevision};
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};

use super::{JobDecisionKind, OpenCount, Shared, StartError, StartRequest, news};
use crate::health::Health;
use crate::reader::Reader;

/// An event-driven job's memory.
#[derive(Debug, Default)]
pub(super) struct Event {
    rules: Vec<RuleState>,
    /// What the rules were made for.
    job: Option<Arc<Job>>,
    /// The last poll, and how many causes bear its time.
    polled: Option<(Timestamp, u32)>,
}

#[derive(Debug)]
struct RuleState {
    name: String,
    target: f64,
    /// `None` for kinds that no job has; the API refuses them.
    reader: Option<Arc<Reader>>,
    failures: u32,
    health: Health,
}

impl Event {
    /// Polls once; gives the time of the next poll.
    pub(super) async fn step(&mut self, shared: &Shared, job: &Arc<Job>, given: &JobEvent) -> Option<Timestamp> {
        if job.is_suspended {
            *self = Self::default();
            return None;
        }
        let now = shared.deps.clock.now();
        let interval = SignedDuration::from_secs(given.scale.polling_interval_secs.max(1).into());
        if self.job.as_ref() != Some(job) {
            self.follow(shared, job, given, now);
        }
        let next_at = now.saturating_add(interval).ok();
        match self.poll(shared, job, given, now).await {
            Ok(()) => next_at,
            Err(StartError::Gone) => None,
            Err(StartError::Failed(error)) => {
                tracing::warn!(job = %job.id, %error, "a poll of a job failed; the next one is taken as usual");
                next_at
            }
        }
    }

    /// The job is new or changed: its rules are read afresh, what people know of them stays.
    fn follow(&mut self, shared: &Shared, job: &Arc<Job>, given: &JobEvent, now: Timestamp) {
        let Some(revision) = as_revision(job, given) else { return };
        let revision = Arc::new(revision);
        let known = std::mem::take(&mut self.rules);
        let is_new = self.job.is_none();
        let of_rule = |(index, rule): (usize, &ScaleRule)| {
            let before = known.iter().find(|before| before.name == rule.name);
            RuleState {
                name: rule.name.clone(),
                target: cove_scaling::of_milli(Rule::from_scale_rule(rule).target_milli),
                reader: Reader::new(&revision, index),
                failures: 0,
                health: before.map(|before| before.health).unwrap_or_default(),
            }
        };
        self.rules = given.scale.rules.iter().enumerate().map(of_rule).collect();
        self.job = Some(Arc::clone(job));
        if is_new {
            shared.tell(news::polling(job, now, given));
        }
    }

    async fn poll(
        &mut self,
        shared: &Shared,
        job: &Arc<Job>,
        given: &JobEvent,
        now: Timestamp,
    ) -> Result<(), StartError> {
        let rules = self.read(shared, job, now).await;
        let OpenCount { running, pending } = shared.deps.executions.open(&job.id).await.map_err(StartError::Failed)?;
        let poll = JobPoll::decide(now, JobConfig::from(&given.scale), rules, running, pending);
        if poll.start > 0 {
            let causes = self.causes(now, poll.start);
            let request = StartRequest { job: Arc::clone(job), causes, replaces: false, now };
            let started = shared.deps.executions.start(request).await?;
            shared.tell(news::created(job, now, &started, &poll));
        }
        let (at, kept_max) = (poll.at, shared.deps.decisions_kept);
        shared.note(&job.id, |triggers| triggers.push(at, JobDecisionKind::Poll(Box::new(poll)), kept_max));
        Ok(())
    }

    /// Asks all rules at once, and tells of those that fail.
    async fn read(&mut self, shared: &Shared, job: &Job, now: Timestamp) -> Vec<PolledRule> {
        let deadline = shared.deps.read_deadline.unsigned_abs();
        let reads = self.rules.iter().map(|rule| {
            let reader = rule.reader.clone();
            async move { Some(reader?.read(&shared.readers, deadline).await) }
        });
        let answers = join_all(reads).await;
        let mut polled = Vec::new();
        for (rule, answer) in self.rules.iter_mut().zip(answers) {
            let reading = match answer {
                Some(answer) => {
                    rule.target = answer.target.unwrap_or(rule.target);
                    answer.reading
                }
                None => Reading::error("jobs have no rules of this kind"),
            };
            rule.failures = if matches!(reading, Reading::Error { .. }) { rule.failures.saturating_add(1) } else { 0 };
            if let Some(told) = rule.health.note(now, rule.failures, false) {
                shared.tell(news::rule(job, now, &rule.name, told, &reading));
            }
            polled.push(PolledRule { name: rule.name.clone(), target: rule.target, reading });
        }
        polled
    }

    /// Causes of a poll; polls of one instant share its numbers.
    fn causes(&mut self, polled_at: Timestamp, number: u32) -> Vec<ExecutionCause> {
        let first = match self.polled {
            Some((at, used)) if at.as_millisecond() == polled_at.as_millisecond() => used,
            _ => 0,
        };
        let end = first.saturating_add(number);
        self.polled = Some((polled_at, end));
        (first..end).map(|number| ExecutionCause::Event { polled_at, number }).collect()
    }
}

/// The job as the readers of rules know revisions.
fn as_revision(job: &Job, given: &JobEvent) -> Option<ScaledRevision> {
    let scale = Scale {
        polling_interval_secs: given.scale.polling_interval_secs,
        rules: given.scale.rules.clone(),
        ..Scale::default()
    };
    Some(ScaledRevision {
        revision: RevisionKey { app: job.id.clone(), name: RevisionName::new(job.id.name()).ok()? },
        environment: job.environment.clone(),
        scale,
        has_ingress: false,
        replaces: None,
        activated_at: Timestamp::UNIX_EPOCH,
        is_active: !job.is_suspended,
    })
}
