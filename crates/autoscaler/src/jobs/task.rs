//! The loop of one job's trigger: a step, then a wait for its time, a change or a push.
//!
//! **Invariant:** a bell rung during a step is heard after it.

use std::sync::{Arc, Mutex};

use cove_base::{Busy, Clock};
use cove_model::{JobTrigger, ResourceId};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Shared, TriggeredJob, event::Event, lock, schedule::Schedule};
use crate::service::sleep_until;

const WORK: &str = "trigger of a job";

/// How a job's task is told to look.
#[derive(Debug)]
pub(super) struct Wake {
    job: Mutex<TriggeredJob>,
    bell: Notify,
    /// From the bell until the task hears it no moment of a virtual clock looks quiet.
    ringing: Mutex<Option<Busy>>,
    /// Ends the task.
    pub(super) stop: CancellationToken,
}

impl Wake {
    pub(super) fn new(job: TriggeredJob, clock: &Clock) -> Self {
        let ringing = Mutex::new(Some(clock.busy(WORK)));
        Self { job: Mutex::new(job), bell: Notify::new(), ringing, stop: CancellationToken::new() }
    }

    pub(super) fn ring(&self, clock: &Clock) {
        *lock(&self.ringing) = Some(clock.busy(WORK));
        self.bell.notify_one();
    }

    /// The job is this one now.
    pub(super) fn tell(&self, job: TriggeredJob, clock: &Clock) {
        let old = std::mem::replace(&mut *lock(&self.job), job.clone());
        if old != job {
            self.ring(clock);
        }
    }

    /// Whether somebody listens: a task that panicked does not.
    pub(super) fn has_task(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1
    }

    fn heard(&self) {
        *lock(&self.ringing) = None;
    }
}

/// The task of one job.
#[derive(Debug)]
pub(super) struct Task {
    shared: Arc<Shared>,
    id: ResourceId,
    wake: Arc<Wake>,
    schedule: Schedule,
    event: Event,
}

impl Task {
    pub(super) fn new(shared: Arc<Shared>, id: ResourceId, wake: Arc<Wake>) -> Self {
        Self { shared, id, wake, schedule: Schedule::default(), event: Event::default() }
    }

    pub(super) async fn run(mut self) {
        let (shared, wake) = (Arc::clone(&self.shared), Arc::clone(&self.wake));
        let clock = &shared.deps.clock;
        let mut worker = clock.worker(WORK);
        loop {
            wake.heard();
            let job = lock(&wake.job).clone();
            let step = async {
                match &job.job.trigger {
                    JobTrigger::Manual(_) => None,
                    JobTrigger::Schedule(schedule) => self.schedule.step(&shared, &job, schedule).await,
                    JobTrigger::Event(event) => self.event.step(&shared, &job.job, event).await,
                }
            };
            let next_at = tokio::select! {
                () = wake.stop.cancelled() => return,
                next_at = step => next_at,
            };
            shared.note(&self.id, |triggers| triggers.next_at = next_at);
            let called = async {
                tokio::select! {
                    () = wake.stop.cancelled() => false,
                    () = wake.bell.notified() => true,
                    () = sleep_until(clock, next_at) => true,
                }
            };
            if !worker.wait(called).await {
                return;
            }
        }
    }
}
