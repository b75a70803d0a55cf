//! Time for the shell: real, or virtual and moved by hand (`cove serve --clock virtual`, `cove clock advance 5m`).
//!
//! **Invariant:** a virtual clock never moves by itself; advancing it wakes every sleeper whose time has come.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

/// Where services get `now` and sleeps from; cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Real,
    Virtual(Arc<Mutex<watch::Sender<Timestamp>>>),
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn real() -> Self {
        Self(Kind::Real)
    }

    /// A clock that stands at `start` until advanced.
    #[must_use]
    pub fn virtual_at(start: Timestamp) -> Self {
        Self(Kind::Virtual(Arc::new(Mutex::new(watch::Sender::new(start)))))
    }

    /// Whether it is moved by hand.
    #[must_use]
    pub fn is_virtual(&self) -> bool {
        matches!(self.0, Kind::Virtual(_))
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Kind::Real => Timestamp::now(),
            Kind::Virtual(sender) => *sender.lock().unwrap_or_else(PoisonError::into_inner).borrow(),
        }
    }

    /// Moves a virtual clock forward and gives its new time; `None` for the real one, which nobody moves.
    pub fn advance(&self, by: SignedDuration) -> Option<Timestamp> {
        let Kind::Virtual(sender) = &self.0 else { return None };
        let sender = sender.lock().unwrap_or_else(PoisonError::into_inner);
        let now = sender.borrow().saturating_add(by.max(SignedDuration::ZERO)).unwrap_or(Timestamp::MAX);
        sender.send_replace(now);
        Some(now)
    }

    /// Waits until `at`; at once when that is past. Cancel-safe.
    pub fn sleep_until(&self, at: Timestamp) -> impl Future<Output = ()> + Send + 'static {
        let kind = self.0.clone();
        async move {
            match kind {
                Kind::Real => loop {
                    // the wall clock may be set while we sleep: look again at least once a minute
                    let left = at.duration_since(Timestamp::now());
                    if left <= SignedDuration::ZERO {
                        return;
                    }
                    tokio::time::sleep(left.unsigned_abs().min(Duration::from_secs(60))).await;
                },
                Kind::Virtual(sender) => {
                    let mut now = sender.lock().unwrap_or_else(PoisonError::into_inner).subscribe();
                    let _closed_means_no_more_time = now.wait_for(|now| *now >= at).await;
                }
            }
        }
    }

    /// Waits for a span of this clock's time. Cancel-safe.
    pub fn sleep(&self, span: Duration) -> impl Future<Output = ()> + Send + 'static {
        let span = SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
        self.sleep_until(self.now().saturating_add(span).unwrap_or(Timestamp::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_virtual_clock_moves_only_by_hand() {
        let clock = Clock::virtual_at(Timestamp::UNIX_EPOCH);
        let sleeper = tokio::spawn(clock.sleep(Duration::from_secs(300)));
        clock.advance(SignedDuration::from_secs(299));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(SignedDuration::from_secs(1));
        sleeper.await.unwrap();
        assert_eq!(clock.now().as_second(), 300);
    }
}
