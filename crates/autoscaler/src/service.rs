//! The loop: follow the list of revisions, tick what is due, hand on what was decided.
//!
//! **Invariant:** no lock is held while a source is called or across an await.

use std::collections::BTreeSet;
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
use crate::poll::{Poll, look_again};
use crate::ports::{BoxError, Deps, ExistingSource, LoadSource};
use crate::reader::Readers;
use crate::saver;
use crate::table::{Activation, Listed, Message, RevisionScale, Table};

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
    readers: Arc<Readers>,
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
    pub(crate) clock: cove_base::Clock,
    desired: Board<RevisionKey, DesiredCount>,
    /// Something was decided outside the loop: timers may have moved, the outbox is not empty.
    rearm: Notify,
    rearming: Mutex<Option<cove_base::Busy>>,
    /// Something is to be written down.
    pub(crate) changed: Notify,
}

impl Shared {
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was decided outside the loop. Until the loop has set its timer anew a virtual clock is not at rest.
    pub(crate) fn rearm(&self) {
        if self.clock.is_virtual() {
            let busy = self.clock.busy("autoscaler");
            *self.rearming.lock().unwrap_or_else(PoisonError::into_inner) = Some(busy);
        }
        self.rearm.notify_one();
    }

    fn rearmed(&self) {
        *self.rearming.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
            self.shared.rearm();
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
        self.shared.rearm();
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
            rearming: Mutex::new(None),
            changed: Notify::new(),
        };
        let shared = Arc::new(shared);
        let told = Arc::downgrade(&shared);
        let pushed = move |key: &RevisionKey| {
            let Some(shared) = told.upgrade() else { return };
            shared.table().push(key, shared.clock.now());
            shared.rearm();
        };
        let readers = Arc::new(Readers::new(deps.rules.clone(), Box::new(pushed)));
        Self { config, deps, shared, readers }
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
        // polls end with the loop
        let stopped = shutdown.child_token();
        let _stops = stopped.clone().drop_guard();
        let mut worker = self.deps.clock.worker("autoscaler");
        let mut revisions = self.deps.revisions.subscribe();
        let mut sweep_at = self.next_sweep(self.deps.clock.now());
        loop {
            self.shared.rearmed();
            self.follow(&revisions.take());
            let now = self.deps.clock.now();
            self.round(now, &stopped);
            if now >= sweep_at {
                self.sweep(now);
                sweep_at = self.next_sweep(now);
            }
            self.hand_on();
            let wake_at = self.wake_at(sweep_at);
            let wake = async {
                tokio::select! {
                    () = shutdown.cancelled() => None,
                    changed = revisions.next() => Some(changed),
                    () = self.shared.rearm.notified() => Some(BTreeSet::new()),
                    () = sleep_until(&self.deps.clock, wake_at) => Some(BTreeSet::new()),
                }
            };
            let Some(changed) = worker.wait(wake).await else { return };
            self.follow(&changed);
        }
    }

    /// Takes over what changed in the list of revisions.
    fn follow(&self, changed: &BTreeSet<RevisionKey>) {
        let now = self.deps.clock.now();
        let listed = |key: &RevisionKey| Listed {
            key: key.clone(),
            revision: self.deps.revisions.get(key),
            existing: (self.deps.existing)(key),
        };
        let changed: Vec<Listed> = changed.iter().map(listed).collect();
        let added = self.shared.table().take_changes(&changed, now);
        for key in added {
            let load = (self.deps.load)(&key);
            let mut table = self.shared.table();
            table.start_counting(&key, &load);
            if load.open > 0 {
                table.activate(&key, now, load.open);
            }
        }
    }

    /// Reads and decides for every revision whose tick has come.
    fn round(&self, now: Timestamp, stopped: &CancellationToken) {
        let due = self.shared.table().take_due(now);
        for (key, due) in due {
            let (load, existing) = ((self.deps.load)(&key), (self.deps.existing)(&key));
            let usage = if due.usage { (self.deps.rules.usage)(&key) } else { Vec::new() };
            let to_zero = self.shared.table().tick(&key, &due, &load, usage, existing);
            if to_zero {
                look_again(&self.shared, &self.deps.load, &key, now);
            }
            if !due.readers.is_empty() {
                let poll = Poll {
                    _busy: self.deps.clock.busy("poll of event rules"),
                    shared: Arc::clone(&self.shared),
                    readers: Arc::clone(&self.readers),
                    load: Arc::clone(&self.deps.load),
                    existing: Arc::clone(&self.deps.existing),
                    key,
                };
                tokio::spawn(poll.run(due, stopped.clone()));
            }
        }
    }

    /// Looks at every revision that sleeps at zero: a lost signal costs one step, not the request.
    fn sweep(&self, now: Timestamp) {
        let sleeping = self.shared.table().sleeping();
        for key in sleeping {
            look_again(&self.shared, &self.deps.load, &key, now);
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

pub(crate) async fn sleep_until(clock: &cove_base::Clock, at: Option<Timestamp>) {
    let Some(at) = at else { return std::future::pending().await };
    if clock.is_virtual() {
        clock.sleep_until(at).await;
    } else {
        let _woken = tokio::time::timeout(LOOK_AGAIN, clock.sleep_until(at)).await;
    }
}

#[cfg(test)]
mod tests;
