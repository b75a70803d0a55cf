//! The trigger of a scheduled job: settles its ticks, and remembers up to which.
//!
//! **Invariant:** what is settled rests on executions that are written down; it is saved after them.
//! **Invariant:** ticks of a suspended job, or of an expression that is not its any more, are never started later.

use std::sync::Arc;
use std::time::Duration;

use cove_base::Backoff;
use cove_model::{ExecutionCause, Job, JobSchedule};
use cove_scaling::schedule::{self as cron, Due, InvalidSchedule, Look, Policy};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{JobDecisionKind, Shared, StartError, StartRequest, Tick, TriggeredJob, news};
use crate::ports::BoxError;

/// Shortest and longest wait after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What is remembered of a schedule over restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobState {
    /// Expression and zone that `settled` belongs to.
    pub schedule: String,
    /// Ticks up to this instant are started, or left out for good.
    pub settled: Timestamp,
    /// The job was suspended when this was written.
    pub is_suspended: bool,
}

/// A scheduled job's memory.
#[derive(Debug)]
pub(super) struct Schedule {
    /// As it was saved; `None` = not loaded yet.
    state: Option<JobState>,
    parsed: Option<(String, Result<cron::Schedule, InvalidSchedule>)>,
    backoff: Backoff,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { state: None, parsed: None, backoff: Backoff::new(RETRY.0, RETRY.1) }
    }
}

impl Schedule {
    /// Looks at the clock once; gives the time of the next look.
    pub(super) async fn step(
        &mut self,
        shared: &Shared,
        job: &TriggeredJob,
        schedule: &JobSchedule,
    ) -> Option<Timestamp> {
        match self.settle(shared, job, schedule).await {
            Ok(next_at) => {
                self.backoff.reset();
                next_at
            }
            Err(StartError::Gone) => None,
            Err(StartError::Failed(error)) => {
                tracing::warn!(job = %job.job.id, %error, "the schedule of a job could not be followed; trying again");
                let wait = SignedDuration::try_from(self.backoff.next_wait()).unwrap_or(SignedDuration::from_secs(30));
                shared.deps.clock.now().saturating_add(wait).ok()
            }
        }
    }

    async fn settle(
        &mut self,
        shared: &Shared,
        job: &TriggeredJob,
        given: &JobSchedule,
    ) -> Result<Option<Timestamp>, StartError> {
        let now = shared.deps.clock.now();
        let settled = self.settled(shared, job, given, now).await.map_err(StartError::Failed)?;
        if job.job.is_suspended {
            return Ok(None);
        }
        let Some(schedule) = self.parsed(shared, &job.job, given, now) else { return Ok(None) };
        let open = shared.deps.executions.open(&job.job.id).await.map_err(StartError::Failed)?;
        let look = Look { settled, now, is_running: open.running > 0 };
        let due = cron::due(&schedule, &Policy::from(given), &look);
        if due.settled != settled || !due.start.is_empty() {
            self.take(shared, &job.job, now, &due).await?;
        }
        Ok(due.next_at)
    }

    /// Up to when ticks are settled; written down when it is new.
    async fn settled(
        &mut self,
        shared: &Shared,
        job: &TriggeredJob,
        given: &JobSchedule,
        now: Timestamp,
    ) -> Result<Timestamp, BoxError> {
        let (text, is_suspended) = (text(given), job.job.is_suspended);
        if self.state.is_none() {
            self.state = shared.deps.executions.state(&job.job.id).await?;
        }
        let settled = match &self.state {
            Some(state) if state.schedule == text && state.is_suspended == is_suspended => return Ok(state.settled),
            // It was resumed: what passed meanwhile is not made up for.
            Some(state) if state.schedule == text && state.is_suspended => job.changed_at.min(now).max(state.settled),
            Some(state) if state.schedule == text => state.settled,
            // It is new, or says something else than before.
            _ => job.changed_at.min(now),
        };
        self.save(shared, &job.job, JobState { schedule: text, settled, is_suspended }).await?;
        Ok(settled)
    }

    async fn save(&mut self, shared: &Shared, job: &Job, state: JobState) -> Result<(), BoxError> {
        shared.deps.executions.save(&job.id, state.clone()).await?;
        self.state = Some(state);
        Ok(())
    }

    /// The expression; one that cannot be read is told of once. The API refuses those, but a zone may go.
    fn parsed(&mut self, shared: &Shared, job: &Job, given: &JobSchedule, now: Timestamp) -> Option<cron::Schedule> {
        let text = text(given);
        if self.parsed.as_ref().is_none_or(|(known, _)| *known != text) {
            let parsed = parse(given);
            if let Err(error) = &parsed {
                shared.tell(news::cannot_follow(job, now, &text, error));
            }
            self.parsed = Some((text, parsed));
        }
        self.parsed.as_ref().and_then(|(_, parsed)| parsed.as_ref().ok()).cloned()
    }

    /// Starts what is due, then writes down that it is settled.
    async fn take(&mut self, shared: &Shared, job: &Arc<Job>, now: Timestamp, due: &Due) -> Result<(), StartError> {
        if !due.start.is_empty() {
            let causes = due.start.iter().map(|tick| ExecutionCause::Tick(*tick)).collect();
            let request = StartRequest { job: Arc::clone(job), causes, replaces: due.replaces, now };
            shared.deps.executions.start(request).await?;
        }
        let Some(state) = self.state.clone() else { return Ok(()) };
        let state = JobState { settled: due.settled, ..state };
        self.save(shared, job, state).await.map_err(StartError::Failed)?;
        for left in &due.left_out {
            shared.tell(news::left_out(job, now, left));
        }
        let tick = Tick { started: due.start.clone(), replaced: due.replaces, left_out: due.left_out.clone() };
        let kept_max = shared.deps.decisions_kept;
        if !tick.started.is_empty() || !tick.left_out.is_empty() {
            shared.note(&job.id, |triggers| triggers.push(now, JobDecisionKind::Tick(tick), kept_max));
        }
        Ok(())
    }
}

/// Expression and zone as one text.
fn text(given: &JobSchedule) -> String {
    format!("{} {}", given.cron.trim(), given.time_zone.as_deref().unwrap_or("UTC"))
}

fn parse(given: &JobSchedule) -> Result<cron::Schedule, InvalidSchedule> {
    let zone = match given.time_zone.as_deref() {
        None => TimeZone::UTC,
        Some(name) => TimeZone::get(name).map_err(|_| InvalidSchedule::unknown_zone(name))?,
    };
    cron::Schedule::parse(&given.cron, zone)
}
