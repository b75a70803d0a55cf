//! How long a connection has answered nothing: one timer per connection, which a request does not touch.
//!
//! **Invariant:** a connection on which an answer is under way is never called quiet.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// What a connection is doing.
#[derive(Debug)]
pub(crate) struct Activity {
    began: Instant,
    /// Answers under way.
    answers: AtomicUsize,
    /// When the last one ended, in milliseconds since the begin.
    quiet_since_ms: AtomicU64,
}

/// An answer that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Answering(Arc<Activity>);

impl Activity {
    /// Of a connection that begins now.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), answers: 0.into(), quiet_since_ms: 0.into() })
    }

    /// A request came.
    pub(crate) fn answering(self: &Arc<Self>) -> Answering {
        self.answers.fetch_add(1, Ordering::Relaxed);
        Answering(Arc::clone(self))
    }

    /// Waits until nothing was answered for `limit`.
    pub(crate) async fn quiet_for(&self, limit: Duration) {
        let mut until = self.began + limit;
        loop {
            tokio::time::sleep_until(until).await;
            match self.until(limit, Instant::now()) {
                Some(later) => until = later,
                None => return,
            }
        }
    }

    /// When to look again; `None`: it was quiet for `limit`.
    fn until(&self, limit: Duration, now: Instant) -> Option<Instant> {
        if self.answers.load(Ordering::Acquire) > 0 {
            // it ends later than now, so its time is not over before that
            return Some(now + limit);
        }
        let until = self.began + Duration::from_millis(self.quiet_since_ms.load(Ordering::Acquire)) + limit;
        (until > now).then_some(until)
    }

    fn ended(&self, now: Instant) {
        let ms = u64::try_from((now - self.began).as_millis()).unwrap_or(u64::MAX);
        // first the time: whoever sees no answer sees when it ended
        self.quiet_since_ms.store(ms, Ordering::Release);
        self.answers.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.ended(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_runs_from_the_last_answers_end() {
        let activity = Activity::new();
        let (at, limit) = (|secs| activity.began + Duration::from_secs(secs), Duration::from_secs(30));
        assert_eq!(activity.until(limit, at(30)), None, "no request ever came");
        activity.answers.store(2, Ordering::Relaxed);
        assert_eq!(activity.until(limit, at(30)), Some(at(60)));
        activity.ended(at(35));
        assert_eq!(activity.until(limit, at(60)), Some(at(90)), "one is still under way");
        activity.ended(at(80));
        assert_eq!(activity.until(limit, at(90)), Some(at(110)));
        assert_eq!(activity.until(limit, at(110)), None);
    }
}
