//! The loop: follow the list of revisions, tick what is due, hand on what was decided.
//!
//! **Invariant:** no lock is held while a source is called or across an await.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cove_base::Board;
use cove_model::{DesiredCount, RevisionKey};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::ports::{BoxError, Deps, ExistingSource, LoadSource};
use crate::saver;
use crate::table::{Activation, Message, RevisionScale, Table};

/// Longest sleep on the machine's clock: one that was set back is noticed after this.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Why the autoscaler ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Going on would start every app afresh.
    #[error("failed to load the counts saved before the start")]
    Load(#[source] BoxError),
    /// Its own fault.
    #[error("the thread that loads saved counts panicked")]
    Panicked,
}

/// The autoscaler; [`Service::run`] is the whole of it.
#[derive(Debug)]
pub struct Service {
    config: Config,
    deps: Deps,
    shared: Arc<Shared>,
}

/// Asks the autoscaler; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    load: LoadSource,
    existing: ExistingSource,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("shared", &self.shared).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(crate) struct Shared {
    table: Mutex<Table>,
    clock: cove_base::Clock,
    desired: Board<RevisionKey, DesiredCount>,
    /// Something was decided outside the loop: timers may have moved, the outbox is not empty.
    pub(crate) rearm: Notify,
    /// Something is to be written down.
    pub(crate) changed: Notify,
}

impl Shared {
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    /// A request or connection waits for a revision: its count is at least 1 when this returns, if a rule allows it.
    ///
    /// Synchronous and short: one lock, no IO. Calling it again changes nothing. Count the request as open *before*
    /// calling: a step to zero that happens at the same time looks at the open requests once more afterwards.
    pub fn activate(&self, revision: &RevisionKey) -> Activation {
        let activation = self.shared.table().activate(revision, self.shared.clock.now(), 1);
        if activation == Activation::Activated {
            self.shared.rearm.notify_one();
        }
        activation
    }

    /// Decides now as if the cool-down of a revision had ended and nothing had arrived since; open requests keep it
    /// running. Says whether its count is zero. For tests and benchmarks; the decision is recorded like any other.
    pub fn end_cooldown(&self, revision: &RevisionKey) -> bool {
        let load = (self.load)(revision);
        let existing = (self.existing)(revision);
        let now = self.shared.clock.now();
        let count = self.shared.table().end_cooldown(revision, now, &load, existing);
        self.shared.rearm.notify_one();
        if count != Some(0) {
            return false;
        }
        let open = (self.load)(revision).open;
        // the same second look as after a tick to zero: a request may have come in between
        open == 0 || self.shared.table().activate(revision, now, open) != Activation::Activated
    }

    /// Count, last activity, next tick and decisions of an active revision.
    pub fn scale_of(&self, revision: &RevisionKey) -> Option<RevisionScale> {
        self.shared.table().scale_of(revision)
    }

    /// The board of counts.
    pub fn desired(&self) -> Board<RevisionKey, DesiredCount> {
        self.shared.desired.clone()
    }
}

impl Service {
    /// An autoscaler that decides nothing until it runs.
    pub fn new(config: Config, deps: Deps) -> Self {
        let table = Table::new(config.clone(), deps.desired.clone(), deps.clock.now());
        let shared = Shared {
            table: Mutex::new(table),
            clock: deps.clock.clone(),
            desired: deps.desired.clone(),
            rearm: Notify::new(),
            changed: Notify::new(),
        };
        Self { config, deps, shared: Arc::new(shared) }
    }

    /// A handle to it.
    pub fn handle(&self) -> Handle {
        Handle {
            shared: Arc::clone(&self.shared),
            load: Arc::clone(&self.deps.load),
            existing: Arc::clone(&self.deps.existing),
        }
    }

    /// Runs until `shutdown`, then writes down what changed.
    ///
    /// # Errors
    /// [`Error::Load`] when the counts from before the start cannot be read.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let stopped = CancellationToken::new();
        let saving = match &self.deps.counts {
            None => None,
            Some(store) => {
                let (loading, store) = (Arc::clone(store), Arc::clone(store));
                let saved = tokio::task::spawn_blocking(move || loading.load()).await;
                self.shared.table().restore(saved.map_err(|_| Error::Panicked)?.map_err(Error::Load)?);
                let after = self.config.save_after.unsigned_abs();
                Some(saver::run(Arc::clone(&self.shared), store, after, stopped.clone()))
            }
        };
        let ticking = async {
            self.tick_until(shutdown).await;
            stopped.cancel();
        };
        match saving {
            None => ticking.await,
            Some(saving) => {
                tokio::join!(ticking, saving);
            }
        }
        Ok(())
    }

    async fn tick_until(&self, shutdown: CancellationToken) {
        let mut revisions = self.deps.revisions.clone();
        // An empty list that nobody has sent yet says nothing about the revisions there are.
        let mut list = Some(Arc::clone(&revisions.borrow_and_update())).filter(|list| !list.is_empty());
        let mut listing = true;
        let mut sweep_at = self.next_sweep(self.deps.clock.now());
        loop {
            if let Some(list) = list.take() {
                self.follow(&list);
            }
            let now = self.deps.clock.now();
            self.round(now);
            if now >= sweep_at {
                self.sweep(now);
                sweep_at = self.next_sweep(now);
            }
            self.hand_on();
            let wake_at = self.wake_at(sweep_at);
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = revisions.changed(), if listing => {
                    listing = changed.is_ok();
                    list = changed.is_ok().then(|| Arc::clone(&revisions.borrow_and_update()));
                }
                () = self.shared.rearm.notified() => {}
                () = sleep_until(&self.deps.clock, wake_at) => {}
            }
        }
    }

    fn follow(&self, list: &[cove_scaling::ScaledRevision]) {
        let now = self.deps.clock.now();
        let existing: Vec<Option<u32>> = list.iter().map(|revision| (self.deps.existing)(&revision.revision)).collect();
        let synced = self.shared.table().sync(list, &existing, now);
        for key in synced.added {
            let load = (self.deps.load)(&key);
            let mut table = self.shared.table();
            table.start_counting(&key, &load);
            if load.open > 0 {
                table.activate(&key, now, load.open);
            }
        }
    }

    /// Decides for every revision whose tick has come.
    fn round(&self, now: Timestamp) {
        let due = self.shared.table().take_due(now);
        for key in due {
            let (load, existing) = ((self.deps.load)(&key), (self.deps.existing)(&key));
            let to_zero = self.shared.table().tick(&key, now, &load, existing);
            if to_zero {
                self.look_again(&key, now);
            }
        }
    }

    /// A request that came while a revision went to zero counted itself as open before it asked for activation.
    fn look_again(&self, key: &RevisionKey, now: Timestamp) {
        let load = (self.deps.load)(key);
        if load.open > 0 {
            self.shared.table().activate(key, now, load.open);
        }
    }

    /// Looks at every revision that sleeps at zero: a lost signal costs one step, not the request.
    fn sweep(&self, now: Timestamp) {
        let sleeping = self.shared.table().sleeping();
        for key in sleeping {
            self.look_again(&key, now);
        }
    }

    fn next_sweep(&self, now: Timestamp) -> Timestamp {
        let step = self.config.settings.load_sampling.max(SignedDuration::from_millis(10));
        now.saturating_add(step).unwrap_or(Timestamp::MAX)
    }

    /// The next tick, or the next look at those that sleep; `None` when there is nothing to wait for.
    fn wake_at(&self, sweep_at: Timestamp) -> Option<Timestamp> {
        let table = self.shared.table();
        let sweep_at = table.has_sleepers().then_some(sweep_at);
        table.next_due().into_iter().chain(sweep_at).min()
    }

    /// Sends events and decisions on; a full channel loses them, and says how many.
    fn hand_on(&self) {
        let (outbox, mut dropped) = {
            let mut table = self.shared.table();
            if table.has_unsaved() {
                self.shared.changed.notify_one();
            }
            table.take_outbox()
        };
        for message in outbox {
            let full = match message {
                Message::Event(event) => matches!(self.deps.events.try_send(*event), Err(TrySendError::Full(_))),
                Message::Decision(decision) => match &self.deps.decisions {
                    Some(decisions) => matches!(decisions.try_send(decision), Err(TrySendError::Full(_))),
                    None => false,
                },
            };
            dropped += u64::from(full);
        }
        if dropped > 0 {
            tracing::warn!(dropped, "scaling events and decisions were lost: their reader is too slow");
        }
    }
}

async fn sleep_until(clock: &cove_base::Clock, at: Option<Timestamp>) {
    let Some(at) = at else { return std::future::pending().await };
    if clock.is_virtual() {
        clock.sleep_until(at).await;
    } else {
        let _woken = tokio::time::timeout(LOOK_AGAIN, clock.sleep_until(at)).await;
    }
}

#[cfg(test)]
mod tests;
