//! Session pools in the planning task: what is known of each session, who waits for one, what is being written.
//!
//! An allocation is decided here, written, and answered when the session is on disk and serves; further requests find it in
//! the [`Sessions`] table without coming here. Writes go to a task of their own, in batches, one at a time.
//!
//! **Invariant:** nobody is given a session before its identifier is on disk; no step is carried out for a session whose
//! newest form is not.
//! **Invariant:** what sessions take of the machine is in the same ledger as what apps and executions take.
//! **Invariant:** a session with an open request is in the table with that request counted; the table says whether it may
//! end for want of requests.

mod entry;
mod keeper;
mod last_use;
mod loader;
mod orders;
mod plan;
mod snapshots;
mod spec;
mod table;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    time::Duration,
};

use cove_base::{Busy, Clock};
use cove_model::{ReplicaName, ResourceId, SESSION_POOL_KIND, SnapshotId};
use cove_reconcile::SessionSettings;
use cove_store::SessionChange;
use jiff::Timestamp;
use tokio::sync::mpsc;

use entry::PoolEntry;
pub(crate) use keeper::{Job as KeeperJob, Keeper};
pub(crate) use loader::{Batch, follow};
pub(crate) use orders::Order;
pub use table::{PoolInfo, SessionInfo, SessionLease, Sessions};

/// Changes that are written together at most; more wait for the next batch.
const WRITES_MAX: usize = 1024;
/// Orders that may wait for the planning task; one more is refused.
const ORDERS_MAX: usize = 4096;
/// Snapshots that wait for their turn.
pub(crate) const KEEPER_JOBS_MAX: usize = 2048;
/// Orders that are taken before the next plan.
const ORDERS_AT_ONCE: usize = 256;

/// What may be set for session pools.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Waiting times and limits of the planner.
    pub settings: SessionSettings,
    /// Longest that a request waits for its session to be made. Default 60 s.
    pub ready_deadline: Duration,
    /// Bytes that all snapshots of sessions may hold together. Default 10 GiB.
    pub snapshot_bytes_max: u64,
    /// Where the ingress sends requests to hosts of pools. `None`: pools have no hosts.
    pub gateway: Option<SocketAddr>,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            settings: SessionSettings::default(),
            ready_deadline: Duration::from_secs(60),
            snapshot_bytes_max: 10 << 30,
            gateway: None,
        }
    }
}

/// A change on its way to the disk: whose, and which form of it.
pub(crate) type Written = (ResourceId, ReplicaName, u64);
/// What is written together.
pub(crate) type Writes = (Vec<SessionChange>, Vec<Written>);

/// What the planning task hears of session pools.
#[derive(Debug)]
pub(crate) enum Notice {
    Loaded(Batch),
    Written(Vec<Written>),
    Orders(Vec<Order>),
}

/// Where it hears it from.
#[derive(Debug)]
pub(crate) struct Feeds {
    pub(crate) loaded: mpsc::Receiver<Batch>,
    pub(crate) written: mpsc::Receiver<Vec<Written>>,
    pub(crate) orders: mpsc::Receiver<Order>,
}

impl Feeds {
    /// The next notice; orders only once the pools are known. Cancel-safe.
    pub(crate) async fn next(&mut self, takes_orders: bool) -> Option<Notice> {
        tokio::select! {
            biased;
            Some(written) = self.written.recv() => Some(Notice::Written(written)),
            Some(batch) = self.loaded.recv() => Some(Notice::Loaded(batch)),
            Some(first) = self.orders.recv(), if takes_orders => {
                let mut orders = vec![first];
                while orders.len() < ORDERS_AT_ONCE && let Ok(order) = self.orders.try_recv() {
                    orders.push(order);
                }
                Some(Notice::Orders(orders))
            }
            else => None,
        }
    }
}

/// All session pools.
#[derive(Debug)]
pub(crate) struct SessionPools {
    pub(crate) entries: HashMap<ResourceId, Box<PoolEntry>>,
    pub(crate) table: Sessions,
    pub(crate) orders: Option<mpsc::Receiver<Order>>,
    /// Pools whose document or secrets are damaged.
    unreadable: HashSet<ResourceId>,
    dirty: BTreeSet<ResourceId>,
    wakes: BTreeSet<(Timestamp, ResourceId)>,
    /// Pools that have sessions to start and may not yet.
    hungry: BTreeSet<ResourceId>,
    /// Sessions that are being started, over all pools.
    starting: u32,
    /// Some of the hungry ones wait for a turn to start, not only for room.
    is_full: bool,
    /// Sessions whose newest form is to be written.
    outbox: BTreeSet<(ResourceId, ReplicaName)>,
    /// Sessions whose row can go.
    forgotten: BTreeSet<ReplicaName>,
    /// Sessions whose last use is written down.
    last_uses: last_use::LastUses,
    /// A batch is being written.
    writing: Option<Busy>,
    writer: Option<mpsc::Sender<Writes>>,
    /// When last accesses are written down.
    touch_at: Option<Timestamp>,
    clock: Clock,
    is_loaded: bool,
    keeper: Option<mpsc::Sender<KeeperJob>>,
    /// Snapshots whose row is to go.
    unwanted: BTreeSet<SnapshotId>,
    /// Some of their rows are on their way out.
    dropping: bool,
    /// Who waits until one of them is gone.
    deletes: Vec<(SnapshotId, snapshots::DeleteAnswer)>,
    /// Files of snapshots may be there that nobody needs.
    is_sweep_due: bool,
}

impl SessionPools {
    pub(crate) fn new(clock: Clock, ready_deadline: Duration) -> Self {
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        Self {
            entries: HashMap::new(),
            table: Sessions::new(sender, clock.clone(), ready_deadline),
            orders: Some(orders),
            unreadable: HashSet::new(),
            dirty: BTreeSet::new(),
            wakes: BTreeSet::new(),
            hungry: BTreeSet::new(),
            starting: 0,
            is_full: false,
            outbox: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            last_uses: last_use::LastUses::default(),
            writing: None,
            writer: None,
            touch_at: None,
            clock,
            is_loaded: false,
            keeper: None,
            unwanted: BTreeSet::new(),
            dropping: false,
            deletes: Vec::new(),
            is_sweep_due: true,
        }
    }

    /// Where batches go to be written.
    pub(crate) fn write_to(&mut self, writer: mpsc::Sender<Writes>) {
        self.writer = Some(writer);
    }

    /// Who takes snapshots.
    pub(crate) fn keep_with(&mut self, keeper: mpsc::Sender<KeeperJob>) {
        self.keeper = Some(keeper);
    }

    /// The disk has all that is known of sessions.
    fn is_all_written(&self) -> bool {
        self.writing.is_none() && self.outbox.is_empty() && self.forgotten.is_empty()
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.is_loaded
    }

    /// When something is to be planned; `now` when at once.
    pub(crate) fn next_wake(&self, now: Timestamp) -> Option<Timestamp> {
        if !self.is_loaded {
            return None;
        }
        if !self.dirty.is_empty() {
            return Some(now);
        }
        self.wakes.first().map(|(at, _)| *at).into_iter().chain(self.touch_at).min()
    }

    /// Hands over what is to be written, unless a batch is on its way. Ends go first: they free identifiers.
    fn flush(&mut self) {
        if self.writing.is_some() || self.outbox.is_empty() && self.forgotten.is_empty() && self.last_uses.is_empty() {
            return;
        }
        let Some(writer) = &self.writer else { return };
        let mut found = Vec::new();
        for (pool, replica) in std::mem::take(&mut self.outbox) {
            let Some(entry) = self.entries.get(&pool).and_then(|pool| pool.sessions.get(&replica)) else { continue };
            found.push((entry.session.clone(), entry.version));
        }
        found.sort_by_key(|(session, _)| session.ended.is_none());
        for (session, _) in found.split_off(found.len().min(WRITES_MAX)) {
            self.outbox.insert((session.pool, session.replica));
        }
        let mut changes = Vec::with_capacity(found.len());
        let mut told = Vec::with_capacity(found.len());
        for (session, version) in found {
            told.push((session.pool.clone(), session.replica.clone(), version));
            changes.push(SessionChange::Save(Box::new(session)));
        }
        let forgotten = std::mem::take(&mut self.forgotten);
        changes.extend(forgotten.into_iter().map(SessionChange::Forget));
        changes.extend(self.last_uses.take());
        match writer.try_send((changes, told)) {
            Ok(()) => self.writing = Some(self.clock.busy("sessions that are written down")),
            // the writer has ended: the server is shutting down, and the next one plans anew
            Err(error) => tracing::debug!(%error, "sessions are not written any more"),
        }
    }
}

/// The id is one of a session pool.
pub(crate) fn is_pool(id: &ResourceId) -> bool {
    id.kind().eq_ignore_ascii_case(SESSION_POOL_KIND)
}
