//! When requests are due.
//!
//! In an open loop a thread of its own (the pacer) puts due times into a queue; whoever sends takes the oldest. The queue is
//! bounded, and a full one stops the pacer but not the schedule: due times go on from the last one, so what is late stays
//! late. A thread, because the runtime's timers are a millisecond coarse and a request that is sent late by the tool would
//! look like a slow server.
//!
//! In a closed loop a request is due when its connection is free.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

/// Due times that wait at once.
const QUEUE_MAX: usize = 1 << 16;
/// How long the pacer looks away when the queue is full or must be emptied.
const QUEUE_PAUSE: Duration = Duration::from_millis(1);
/// Longest the pacer sleeps at once: a changed pace is seen after it.
const SLEEP_MAX: Duration = Duration::from_millis(50);
/// Longest pause between two requests of a closed loop that is slowed down.
const REST_MAX: Duration = Duration::from_secs(1);

/// Due times of one load.
#[derive(Debug)]
pub(crate) struct Schedule {
    kind: Kind,
    /// Requests that may still become due; all bits set: no end.
    left: AtomicU64,
    /// Times slower than planned, in thousandths.
    slower_milli: AtomicU32,
    stop: CancellationToken,
}

#[derive(Debug)]
enum Kind {
    Open(Box<Queue>),
    Closed,
}

#[derive(Debug)]
struct Queue {
    interval: Duration,
    due: Mutex<VecDeque<Instant>>,
    /// A permit for each entry of `due`; closed at the end.
    ready: Semaphore,
    /// Senders that wait for a permit.
    idle: AtomicUsize,
    /// Nobody waits any more: another sender is wanted.
    short: Notify,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Instant>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Schedule {
    /// Closed, or open with so many requests per second; ends after `requests` or when `stop` is cancelled.
    pub(crate) fn new(per_second: Option<f64>, requests: Option<u64>, stop: CancellationToken) -> Self {
        let kind = match per_second {
            Some(per_second) => Kind::Open(Box::new(Queue {
                interval: Duration::from_secs_f64(1.0 / per_second),
                due: Mutex::new(VecDeque::new()),
                ready: Semaphore::new(0),
                idle: AtomicUsize::new(0),
                short: Notify::new(),
            })),
            None => Kind::Closed,
        };
        Self { kind, left: AtomicU64::new(requests.unwrap_or(u64::MAX)), slower_milli: AtomicU32::new(1000), stop }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.kind, Kind::Open(_))
    }

    /// From now on so many times slower than planned.
    pub(crate) fn slow_down(&self, times: f64) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range of the type")]
        let milli = (times * 1000.0).clamp(1.0, f64::from(u32::MAX)) as u32;
        self.slower_milli.store(milli, Ordering::Relaxed);
    }

    fn slower(&self) -> f64 {
        f64::from(self.slower_milli.load(Ordering::Relaxed)) / 1000.0
    }

    /// When the next request is due, once it is; none at the end. Cancel-safe only where no request is wanted any more.
    pub(crate) async fn next(&self) -> Option<Instant> {
        if self.stop.is_cancelled() {
            return None;
        }
        let Kind::Open(queue) = &self.kind else {
            return self.take_one().then(Instant::now);
        };
        queue.idle.fetch_add(1, Ordering::Relaxed);
        let permit = queue.ready.acquire().await;
        let was_last = queue.idle.fetch_sub(1, Ordering::Relaxed) == 1;
        permit.ok()?.forget();
        if was_last {
            queue.short.notify_one();
        }
        queue.lock().pop_front()
    }

    /// Waits until a request finds nobody to send it; never in a closed loop.
    pub(crate) async fn short(&self) {
        match &self.kind {
            Kind::Open(queue) => queue.short.notified().await,
            Kind::Closed => std::future::pending().await,
        }
    }

    /// Rests as a closed loop that is slowed down does, after a request that took `passed`.
    pub(crate) async fn rest(&self, passed: Duration) {
        let slower = self.slower();
        if slower > 1.0 && !self.is_open() {
            let rest = passed.mul_f64(slower - 1.0).min(REST_MAX);
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    fn take_one(&self) -> bool {
        let take = |left: u64| if left == u64::MAX { Some(left) } else { left.checked_sub(1) };
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Puts due times into the queue until the stop; how many were due and not taken. At `end` and after it nothing is due,
    /// however late the stop is. Blocks its thread.
    pub(crate) fn pace(&self, begun: Instant, end: Option<Instant>) -> u64 {
        let Kind::Open(queue) = &self.kind else { return 0 };
        // 50 microseconds of slack by default; without the right to change it, it is only less exact
        let _less_exact = nix::sys::prctl::set_timerslack(1);
        let mut due = begun;
        while !self.stop.is_cancelled() {
            let now = Instant::now();
            let is_over = end.is_some_and(|end| due >= end);
            if is_over || due > now {
                thread::park_timeout(if is_over { SLEEP_MAX } else { (due - now).min(SLEEP_MAX) });
                continue;
            }
            let mut waiting = queue.lock();
            if waiting.len() >= QUEUE_MAX {
                drop(waiting);
                thread::park_timeout(QUEUE_PAUSE);
                continue;
            }
            if !self.take_one() {
                break;
            }
            waiting.push_back(due);
            drop(waiting);
            queue.ready.add_permits(1);
            due += queue.interval.mul_f64(self.slower());
        }
        let is_due = |waiting: &VecDeque<Instant>| !waiting.is_empty();
        while !self.stop.is_cancelled() && is_due(&queue.lock()) {
            thread::park_timeout(QUEUE_PAUSE);
        }
        queue.ready.close();
        let last = end.map_or_else(Instant::now, |end| end.min(Instant::now()));
        let behind = last.saturating_duration_since(due).as_secs_f64() / queue.interval.as_secs_f64();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float saturates")]
        let behind = if self.stop.is_cancelled() { behind as u64 } else { 0 };
        behind.min(self.left.load(Ordering::Relaxed)) + queue.lock().drain(..).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_schedule_does_not_wait_for_those_who_send() {
        let schedule = std::sync::Arc::new(Schedule::new(Some(1000.0), Some(100), CancellationToken::new()));
        let begun = Instant::now();
        let pacer = thread::spawn({
            let schedule = std::sync::Arc::clone(&schedule);
            move || schedule.pace(begun, None)
        });
        let mut due = Vec::new();
        while let Some(at) = schedule.next().await {
            due.push(at.duration_since(begun));
            assert!(Instant::now() >= at, "a request is not sent early");
            if due.len() == 1 {
                // one who is slow
                tokio::time::timeout(Duration::from_millis(40), std::future::pending::<()>()).await.unwrap_err();
            }
        }
        let wanted: Vec<Duration> = (0..100).map(Duration::from_millis).collect();
        assert_eq!(due, wanted);
        assert_eq!(pacer.join().unwrap(), 0);
    }

    #[tokio::test]
    async fn what_nobody_sent_is_counted() {
        let stop = CancellationToken::new();
        let schedule = std::sync::Arc::new(Schedule::new(Some(10_000.0), None, stop.clone()));
        let begun = Instant::now();
        let pacer = thread::spawn({
            let schedule = std::sync::Arc::clone(&schedule);
            move || schedule.pace(begun, None)
        });
        while begun.elapsed() < Duration::from_millis(50) {
            assert!(schedule.next().await.is_some());
        }
        let taken_at = begun.elapsed();
        tokio::time::timeout(Duration::from_millis(50), std::future::pending::<()>()).await.unwrap_err();
        stop.cancel();
        let unsent = pacer.join().unwrap();
        assert!(schedule.next().await.is_none());
        let least = (begun.elapsed() - taken_at).as_millis() * 10 / 2;
        assert!(u128::from(unsent) > least.min(250), "{unsent} unsent");
    }

    #[tokio::test]
    async fn a_closed_loop_ends_after_its_requests() {
        let schedule = Schedule::new(None, Some(3), CancellationToken::new());
        let mut count = 0;
        while schedule.next().await.is_some() {
            count += 1;
        }
        assert_eq!(count, 3);
    }
}
