//! Sessions that serve, as requests find them: by pool and identifier, with the requests that are open.
//!
//! **Invariant:** a session is in here only while it is on disk with its identifier and has not ended.
//! **Invariant:** whoever ends a session for want of requests takes it out under the same lock under which a request is
//! counted: no request is sent to a session that was just ended for that.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cove_base::Clock;
use cove_model::{
    AllocateError, ResourceId, Session, SessionAllocation, SessionContainer, SessionCounts, SessionIdentifier,
    SessionLifecycle, SessionSnapshot, SnapshotError, SnapshotId,
};
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::Order;

/// Looks for a session that was allocated and is gone again before it could be used; then it is given up.
const TRIES_MAX: usize = 4;

/// What others may ask of session pools; cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    orders: mpsc::Sender<Order>,
    clock: Clock,
    ready_deadline: Duration,
}

#[derive(Debug, Default)]
struct State {
    pools: HashMap<ResourceId, Pool>,
    /// Pools by the host at which they answer, lower case.
    hosts: HashMap<String, ResourceId>,
    /// Sessions whose last access changed since it was written down.
    touched: BTreeSet<(ResourceId, SessionIdentifier)>,
    /// Snapshots that somebody is about to make something of.
    held: BTreeSet<SnapshotId>,
    /// One of them was let go.
    is_sweep_due: bool,
}

#[derive(Debug)]
struct Pool {
    info: Arc<PoolInfo>,
    live: HashMap<SessionIdentifier, Live>,
    /// Kept ones of its sessions, by name and identifier.
    snapshots: Vec<SessionSnapshot>,
    counts: SessionCounts,
}

#[derive(Debug)]
struct Live {
    session: Session,
    calls: u32,
    accessed_at: Timestamp,
}

/// A pool, as far as requests need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// Its id.
    pub id: ResourceId,
    /// What runs in its sessions.
    pub container: SessionContainer,
    /// When its sessions end.
    pub lifecycle: SessionLifecycle,
    /// Sessions that may be allocated at once.
    pub sessions_max: u32,
    /// Its host in its environment, lower case, if it has one.
    pub host: Option<String>,
}

/// An allocated session as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// The session; its `last_accessed_at` is that of this moment.
    pub session: Session,
    /// Requests that are open.
    pub calls: u32,
    /// When it ends if no request comes.
    pub expires_at: Timestamp,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

impl Sessions {
    pub(super) fn new(orders: mpsc::Sender<Order>, clock: Clock, ready_deadline: Duration) -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::default(), orders, clock, ready_deadline }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pool by its id.
    #[must_use]
    pub fn pool(&self, id: &ResourceId) -> Option<Arc<PoolInfo>> {
        self.lock().pools.get(id).map(|pool| Arc::clone(&pool.info))
    }

    /// The pool that answers at a host name, which is in lower case and without a port.
    #[must_use]
    pub fn pool_at(&self, host: &str) -> Option<Arc<PoolInfo>> {
        let state = self.lock();
        let id = state.hosts.get(host)?;
        state.pools.get(id).map(|pool| Arc::clone(&pool.info))
    }

    /// The session of an identifier, allocated if it has none, with one request counted until the lease is dropped. Waits for
    /// a session that is being made, within a limit.
    ///
    /// # Errors
    /// [`AllocateError`].
    pub async fn allocate(
        &self,
        pool: &ResourceId,
        identifier: &SessionIdentifier,
    ) -> Result<SessionLease, AllocateError> {
        let mut is_new = false;
        for _ in 0..TRIES_MAX {
            if let Some(lease) = self.begin(pool, identifier, is_new)? {
                return Ok(lease);
            }
            let (answer, answered) = oneshot::channel();
            let order = Order::Allocate { pool: pool.clone(), identifier: identifier.clone(), answer };
            if self.shared.orders.try_send(order).is_err() {
                return Err(failed("Busy", "too many allocations wait already; try again in a moment"));
            }
            let limit = self.shared.ready_deadline;
            let waited_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            let answered = timeout(limit, answered).await.map_err(|_| AllocateError::NotReadyInTime { waited_ms })?;
            is_new |= answered.map_err(|_| failed("Stopping", "this server is stopping; try again"))??;
        }
        Err(failed("SessionEnded", "the session ended as soon as it was allocated; its container exits at once"))
    }

    /// Counts a request of a session that serves.
    fn begin(
        &self,
        id: &ResourceId,
        identifier: &SessionIdentifier,
        is_new: bool,
    ) -> Result<Option<SessionLease>, AllocateError> {
        let now = self.shared.clock.now();
        let (session, is_first) = {
            let mut state = self.lock();
            let State { pools, touched, .. } = &mut *state;
            let pool = pools.get_mut(id).ok_or(AllocateError::UnknownPool)?;
            let Some(live) = pool.live.get_mut(identifier) else { return Ok(None) };
            live.calls = live.calls.saturating_add(1);
            live.accessed_at = live.accessed_at.max(now);
            let is_first = touched.is_empty();
            touched.insert((id.clone(), identifier.clone()));
            (live.session.clone(), is_first)
        };
        self.note_touched(is_first);
        let target_port = session.target_port;
        let allocation = SessionAllocation { session, target_port, is_new };
        Ok(Some(SessionLease { allocation, sessions: self.clone() }))
    }

    fn end(&self, session: &Session) {
        let Some(identifier) = &session.identifier else { return };
        let now = self.shared.clock.now();
        let is_first = {
            let mut state = self.lock();
            let State { pools, touched, .. } = &mut *state;
            let Some(live) = pools.get_mut(&session.pool).and_then(|pool| pool.live.get_mut(identifier)) else {
                return;
            };
            if live.session.replica != session.replica {
                return;
            }
            live.calls = live.calls.saturating_sub(1);
            live.accessed_at = live.accessed_at.max(now);
            let is_first = touched.is_empty();
            touched.insert((session.pool.clone(), identifier.clone()));
            is_first
        };
        self.note_touched(is_first);
    }

    /// Once per round of the planning task: it takes all that was touched meanwhile.
    fn note_touched(&self, is_first: bool) {
        if is_first && self.shared.orders.try_send(Order::Touched).is_err() {
            tracing::debug!("the planning task is behind; it looks itself when it has caught up");
        }
    }

    /// The session of an identifier that serves, with one request counted until the lease is dropped.
    pub(super) fn lease(
        &self,
        pool: &ResourceId,
        identifier: &SessionIdentifier,
    ) -> Result<SessionLease, SnapshotError> {
        let found = self.begin(pool, identifier, false).map_err(|_| SnapshotError::UnknownPool)?;
        found.ok_or(SnapshotError::UnknownSession)
    }

    /// Where orders to the planning task go.
    pub(crate) fn orders(&self) -> mpsc::Sender<Order> {
        self.shared.orders.clone()
    }

    /// Gives the planning task an order, unless too many wait.
    pub(super) fn send(&self, order: Order) -> Result<(), ()> {
        self.shared.orders.try_send(order).map_err(|_| ())
    }

    /// The snapshots that are kept of sessions of a pool: templates by name, then suspended sessions by identifier.
    #[must_use]
    pub fn snapshots(&self, pool: &ResourceId) -> Vec<SessionSnapshot> {
        self.lock().pools.get(pool).map(|pool| pool.snapshots.clone()).unwrap_or_default()
    }

    pub(super) fn set_snapshots<'a>(&self, pool: &ResourceId, all: impl Iterator<Item = &'a SessionSnapshot>) {
        let mut all: Vec<_> = all.cloned().collect();
        let order = |kept: &SessionSnapshot| {
            let identifier = kept.suspended().map(|(identifier, _)| identifier.clone());
            (identifier, kept.name().map(str::to_owned))
        };
        all.sort_by_key(order);
        if let Some(pool) = self.lock().pools.get_mut(pool) {
            pool.snapshots = all;
        }
    }

    /// Keeps the files of a snapshot, that is not there yet, from being swept away.
    pub(super) fn hold_snapshot(&self, id: SnapshotId) -> SnapshotHold {
        self.lock().held.insert(id.clone());
        SnapshotHold { id, sessions: self.clone() }
    }

    pub(super) fn held_snapshots(&self) -> BTreeSet<SnapshotId> {
        self.lock().held.clone()
    }

    /// Whether one was let go since this was asked last.
    pub(super) fn take_sweep_due(&self) -> bool {
        std::mem::take(&mut self.lock().is_sweep_due)
    }

    /// Ends the session of an identifier; `false` when it has none. Returns when its end is on disk.
    pub async fn stop(&self, pool: &ResourceId, identifier: &SessionIdentifier) -> bool {
        let (answer, answered) = oneshot::channel();
        let order = Order::Stop { pool: pool.clone(), identifier: identifier.clone(), answer };
        if self.shared.orders.send(order).await.is_err() {
            return false;
        }
        matches!(timeout(self.shared.ready_deadline, answered).await, Ok(Ok(true)))
    }

    /// The allocated sessions of a pool, by identifier.
    #[must_use]
    pub fn list(&self, pool: &ResourceId) -> Vec<SessionInfo> {
        let state = self.lock();
        let Some(pool) = state.pools.get(pool) else { return Vec::new() };
        let mut all: Vec<_> = pool.live.values().map(|live| live.shown(&pool.info)).collect();
        all.sort_by(|a, b| a.session.identifier.cmp(&b.session.identifier));
        all
    }

    /// The session of an identifier.
    #[must_use]
    pub fn find(&self, pool: &ResourceId, identifier: &SessionIdentifier) -> Option<SessionInfo> {
        let state = self.lock();
        let pool = state.pools.get(pool)?;
        pool.live.get(identifier).map(|live| live.shown(&pool.info))
    }

    /// How many sessions a pool has; `None` = unknown pool.
    #[must_use]
    pub fn counts(&self, pool: &ResourceId) -> Option<SessionCounts> {
        self.lock().pools.get(pool).map(|pool| pool.counts)
    }

    /// The counts of all pools, by id.
    #[must_use]
    pub fn all_counts(&self) -> Vec<(ResourceId, SessionCounts)> {
        let mut all: Vec<_> = self.lock().pools.iter().map(|(id, pool)| (id.clone(), pool.counts)).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    pub(super) fn set_pool(&self, info: PoolInfo) {
        let mut state = self.lock();
        let id = info.id.clone();
        state.hosts.retain(|_, pool| *pool != id);
        if let Some(host) = &info.host {
            state.hosts.insert(host.clone(), id.clone());
        }
        let info = Arc::new(info);
        match state.pools.get_mut(&id) {
            Some(pool) => pool.info = info,
            None => {
                state.pools.insert(
                    id,
                    Pool { info, live: HashMap::new(), snapshots: Vec::new(), counts: SessionCounts::default() },
                );
            }
        }
    }

    pub(super) fn remove_pool(&self, id: &ResourceId) {
        let mut state = self.lock();
        state.pools.remove(id);
        state.hosts.retain(|_, pool| pool != id);
    }

    pub(super) fn set_counts(&self, id: &ResourceId, counts: SessionCounts) {
        if let Some(pool) = self.lock().pools.get_mut(id) {
            pool.counts = counts;
        }
    }

    /// It serves from now on; one that did already stays as it is.
    pub(super) fn serve(&self, session: &Session, accessed_at: Timestamp) {
        let Some(identifier) = session.identifier.clone() else { return };
        if let Some(pool) = self.lock().pools.get_mut(&session.pool) {
            pool.live.entry(identifier).or_insert_with(|| Live { session: session.clone(), calls: 0, accessed_at });
        }
    }

    /// Open requests and the end of the last one, of a session that serves.
    pub(super) fn use_of(&self, session: &Session) -> Option<(u32, Timestamp)> {
        let state = self.lock();
        let live = state.pools.get(&session.pool)?.live.get(session.identifier.as_ref()?)?;
        (live.session.replica == session.replica).then_some((live.calls, live.accessed_at))
    }

    /// It does not serve any more. One that is to go for want of requests stays when one came meanwhile: `false`.
    pub(super) fn withdraw(&self, session: &Session, only_if_unused_since: Option<Timestamp>) -> bool {
        let Some(identifier) = &session.identifier else { return true };
        let mut state = self.lock();
        let Some(pool) = state.pools.get_mut(&session.pool) else { return true };
        let Some(live) = pool.live.get(identifier).filter(|live| live.session.replica == session.replica) else {
            return true;
        };
        if only_if_unused_since.is_some_and(|since| live.calls > 0 || live.accessed_at > since) {
            return false;
        }
        pool.live.remove(identifier);
        true
    }

    /// There are sessions whose last access changed.
    pub(super) fn has_touched(&self) -> bool {
        !self.lock().touched.is_empty()
    }

    /// Sessions whose last access changed, with that; each once.
    pub(super) fn take_touched(&self) -> Vec<(ResourceId, Session, Timestamp)> {
        let mut state = self.lock();
        let touched = std::mem::take(&mut state.touched);
        let find = |(id, identifier): (ResourceId, SessionIdentifier)| {
            let live = state.pools.get(&id)?.live.get(&identifier)?;
            Some((id, live.session.clone(), live.accessed_at))
        };
        touched.into_iter().filter_map(find).collect()
    }
}

impl Live {
    fn shown(&self, pool: &PoolInfo) -> SessionInfo {
        let secs = |secs: u32| SignedDuration::from_secs(i64::from(secs));
        let expires_at = match pool.lifecycle {
            SessionLifecycle::Timed { cooldown_secs } => self.accessed_at.saturating_add(secs(cooldown_secs)),
            SessionLifecycle::OnContainerExit { max_alive_secs } => {
                self.session.allocated_at.unwrap_or(self.session.created_at).saturating_add(secs(max_alive_secs))
            }
        };
        let session = Session { last_accessed_at: Some(self.accessed_at), ..self.session.clone() };
        SessionInfo { session, calls: self.calls, expires_at: expires_at.unwrap_or(Timestamp::MAX) }
    }
}

fn failed(reason: &str, message: &str) -> AllocateError {
    AllocateError::Failed { reason: reason.to_owned(), message: message.to_owned() }
}

/// A session for one request; its request is over when this is dropped.
#[derive(Debug)]
pub struct SessionLease {
    allocation: SessionAllocation,
    sessions: Sessions,
}

impl SessionLease {
    /// The session.
    #[must_use]
    pub fn allocation(&self) -> &SessionAllocation {
        &self.allocation
    }
}

impl Drop for SessionLease {
    fn drop(&mut self) {
        self.sessions.end(&self.allocation.session);
    }
}

/// A snapshot that is about to be used; its files stay until this is dropped.
#[derive(Debug)]
pub(crate) struct SnapshotHold {
    id: SnapshotId,
    sessions: Sessions,
}

impl SnapshotHold {
    pub(super) fn id(&self) -> &SnapshotId {
        &self.id
    }
}

impl Drop for SnapshotHold {
    fn drop(&mut self) {
        {
            let mut state = self.sessions.lock();
            state.held.remove(&self.id);
            state.is_sweep_due = true;
        }
        // where there is no room for a notice, some other one is waiting already
        let _noticed = self.sessions.send(Order::Touched);
    }
}
