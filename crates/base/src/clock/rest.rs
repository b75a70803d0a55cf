//! Who is at work beside a virtual clock.
//!
//! **Invariant:** a [`Worker`] counts as at work from before it looks at what it waits for until it has nothing to do: there
//! is no moment at which a notice was taken and nobody seems to work on it.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
};

use super::{Clock, Kind, moves::Virtual};

/// A loop beside a clock. It waits only through [`Worker::wait`]; everything else that it does counts as work. Made at
/// work, ends at rest.
#[derive(Debug)]
pub struct Worker {
    clock: Option<Arc<Virtual>>,
    name: &'static str,
    is_at_work: bool,
}

impl Worker {
    pub(super) fn new(clock: &Clock, name: &'static str) -> Self {
        let clock = shared(clock);
        let mut worker = Self { clock, name, is_at_work: false };
        worker.set(true);
        worker
    }

    /// Waits: the loop is at rest while this is pending. Cancel-safe if the future is.
    pub async fn wait<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        poll_fn(|context| {
            self.set(true);
            let poll = future.as_mut().poll(context);
            if poll.is_pending() {
                self.set(false);
            }
            poll
        })
        .await
    }

    fn set(&mut self, is_at_work: bool) {
        let Some(clock) = &self.clock else { return };
        if self.is_at_work == is_at_work {
            return;
        }
        self.is_at_work = is_at_work;
        if is_at_work {
            clock.begin(self.name);
        } else {
            clock.end(self.name);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// Work under way; over when dropped.
#[derive(Debug)]
#[must_use = "the work is over when this is dropped"]
pub struct Busy {
    clock: Option<Arc<Virtual>>,
    name: &'static str,
}

impl Busy {
    pub(super) fn new(clock: &Clock, name: &'static str) -> Self {
        let clock = shared(clock);
        if let Some(clock) = &clock {
            clock.begin(name);
        }
        Self { clock, name }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(clock) = &self.clock {
            clock.end(self.name);
        }
    }
}

fn shared(clock: &Clock) -> Option<Arc<Virtual>> {
    match &clock.0 {
        Kind::Real => None,
        Kind::Virtual(clock) => Some(Arc::clone(clock)),
    }
}
