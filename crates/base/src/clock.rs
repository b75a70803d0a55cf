//! Time for the shell: real, or virtual and moved by hand (`cove serve --clock virtual`, `cove clock advance 5m`).
//!
//! Whoever moves a virtual clock wants to know two things: which instant somebody waits for next, and whether everybody has
//! done what the present instant asks. So a virtual clock knows its sleepers, and those who work: a loop waits through a
//! [`Worker`], a task that is under way holds a [`Busy`]. On the real clock both cost nothing.
//!
//! **Invariant:** a virtual clock never moves by itself and never goes back; moving it wakes every sleeper whose time has
//! come.
//! **Invariant:** a sleeper whose time has come counts as unrest until its task has seen it, so no instant looks quiet
//! before its work has begun.

mod moves;
mod rest;

use std::{future::Future, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};

pub use rest::{Busy, Worker};

use moves::Virtual;

/// Where services get `now` and sleeps from; cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Real,
    Virtual(Arc<Virtual>),
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn real() -> Self {
        Self(Kind::Real)
    }

    /// A clock that stands at `start` until it is moved.
    #[must_use]
    pub fn virtual_at(start: Timestamp) -> Self {
        Self(Kind::Virtual(Arc::new(Virtual::new(start))))
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
            Kind::Virtual(clock) => clock.now(),
        }
    }

    /// What this clock showed when the machine's clock showed `machine`: for stamps that another process took. An instant
    /// before the first move that is remembered gives the time before it.
    #[must_use]
    pub fn at_machine_time(&self, machine: Timestamp) -> Timestamp {
        match &self.0 {
            Kind::Real => machine,
            Kind::Virtual(clock) => clock.at_machine_time(machine),
        }
    }

    /// Moves a virtual clock forward and gives its new time; `None` for the real one, which nobody moves.
    pub fn advance(&self, by: SignedDuration) -> Option<Timestamp> {
        self.advance_to(self.now().saturating_add(by.max(SignedDuration::ZERO)).unwrap_or(Timestamp::MAX))
    }

    /// Moves a virtual clock to an instant, unless that is past, and gives its new time; `None` for the real one.
    pub fn advance_to(&self, to: Timestamp) -> Option<Timestamp> {
        match &self.0 {
            Kind::Real => None,
            Kind::Virtual(clock) => Some(clock.advance_to(to)),
        }
    }

    /// The next instant that somebody waits for on a virtual clock.
    #[must_use]
    pub fn next_due(&self) -> Option<Timestamp> {
        match &self.0 {
            Kind::Real => None,
            Kind::Virtual(clock) => clock.next_due(),
        }
    }

    /// What is not at rest on a virtual clock: workers and tasks by name, each once, and sleepers that were not seen to
    /// wake. Empty = quiet.
    #[must_use]
    pub fn unrest(&self) -> Vec<&'static str> {
        match &self.0 {
            Kind::Real => Vec::new(),
            Kind::Virtual(clock) => clock.unrest(),
        }
    }

    /// Waits until something may have come to rest; for one waiter. Cancel-safe.
    pub async fn rested(&self) {
        match &self.0 {
            Kind::Real => std::future::pending().await,
            Kind::Virtual(clock) => clock.rested().await,
        }
    }

    /// A loop that waits for notices and timers: see [`Worker`].
    #[must_use]
    pub fn worker(&self, name: &'static str) -> Worker {
        Worker::new(self, name)
    }

    /// Work that has begun and is over when the guard is dropped: a virtual clock is not moved on meanwhile.
    pub fn busy(&self, name: &'static str) -> Busy {
        Busy::new(self, name)
    }

    /// Waits until `at`; at once when that is past. Cancel-safe.
    pub fn sleep_until(&self, at: Timestamp) -> impl Future<Output = ()> + Send + 'static {
        let kind = self.0.clone();
        async move {
            match kind {
                Kind::Real => sleep_really_until(at).await,
                Kind::Virtual(clock) => moves::Sleep::new(clock, at).await,
            }
        }
    }

    /// Waits for a span of this clock's time; setting the machine's clock does not change it. Cancel-safe.
    pub fn sleep(&self, span: Duration) -> impl Future<Output = ()> + Send + 'static {
        let kind = self.0.clone();
        let signed = SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
        let until = self.now().saturating_add(signed).unwrap_or(Timestamp::MAX);
        async move {
            match kind {
                Kind::Real => tokio::time::sleep(span).await,
                Kind::Virtual(clock) => moves::Sleep::new(clock, until).await,
            }
        }
    }
}

async fn sleep_really_until(at: Timestamp) {
    loop {
        // the wall clock may be set while we sleep: look again at least once a minute
        let left = at.duration_since(Timestamp::now());
        if left <= SignedDuration::ZERO {
            return;
        }
        tokio::time::sleep(left.unsigned_abs().min(Duration::from_secs(60))).await;
    }
}

#[cfg(test)]
mod tests;
