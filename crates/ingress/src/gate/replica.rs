//! A replica as the ingress knows it: address, idle connections, how far it is trusted, how many requests it has.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use cove_model::ReplicaName;
use cove_traffic::Endpoint;
use tokio_util::sync::CancellationToken;

use crate::{config::IngressConfig, pool::Pool, resilience::Ejection, sticky};

/// What requests need of a replica; shared by all of them.
pub(crate) struct Replica {
    /// Its name.
    pub(crate) name: ReplicaName,
    /// Address and target port.
    pub(crate) address: SocketAddr,
    /// What an affinity cookie holds of it.
    pub(crate) affinity: u64,
    /// Its idle connections.
    pub(crate) pool: Pool,
    is_trusted: AtomicBool,
    is_draining: AtomicBool,
    /// In a row.
    errors: AtomicU32,
    evicted: CancellationToken,
}

impl Replica {
    pub(super) fn new(endpoint: &Endpoint, config: &IngressConfig) -> Arc<Self> {
        Arc::new(Self {
            name: endpoint.replica.clone(),
            address: endpoint.address,
            affinity: sticky::of_replica(&endpoint.replica),
            pool: Pool::new(config),
            is_trusted: AtomicBool::new(false),
            is_draining: AtomicBool::new(false),
            errors: AtomicU32::new(0),
            evicted: CancellationToken::new(),
        })
    }

    /// It answered before: no need to say so again.
    pub(super) fn is_trusted(&self) -> bool {
        self.is_trusted.load(Ordering::Relaxed)
    }

    pub(super) fn set_trusted(&self, is_trusted: bool) {
        self.is_trusted.store(is_trusted, Ordering::Relaxed);
    }

    /// It gets nothing new and will be stopped.
    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    pub(super) fn set_draining(&self, is_draining: bool) {
        self.is_draining.store(is_draining, Ordering::Relaxed);
    }

    /// It failed; gives how often in a row.
    pub(super) fn count_error(&self) -> u32 {
        self.errors.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// It answered well, or begins anew.
    pub(super) fn forget_errors(&self) {
        if self.errors.load(Ordering::Relaxed) != 0 {
            self.errors.store(0, Ordering::Relaxed);
        }
    }

    /// Its time to drain is over: long-lived connections are told to go.
    pub(super) fn evict(&self) {
        self.evicted.cancel();
    }

    /// Waits until it is evicted.
    pub(crate) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

/// A replica's place in its gate.
pub(super) struct Slot {
    pub(super) replica: Arc<Replica>,
    /// Lower is older.
    pub(super) order: u64,
    pub(super) stage: Stage,
    pub(super) trust: Trust,
    /// Whether the circuit breaker leaves it out.
    pub(super) ejection: Ejection,
    /// Requests it has now.
    pub(super) open: u64,
    trial_requests_max: u64,
}

/// What the controller says of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Takes requests.
    Ready,
    /// Not ready for now, or gone; kept while requests are open.
    Away,
    /// Takes nothing new and is stopped when nothing is open.
    Draining,
}

/// How many requests a replica gets at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// None: it refused a connection a moment ago.
    Suspended,
    /// A few: it has not answered yet, and a thundering herd would bury it.
    Trial,
    /// No limit.
    Full,
}

impl Slot {
    pub(super) fn new(replica: Arc<Replica>, order: u64, trial_requests_max: u64) -> Self {
        Self {
            replica,
            order,
            stage: Stage::Ready,
            trust: Trust::Trial,
            ejection: Ejection::default(),
            open: 0,
            trial_requests_max: trial_requests_max.max(1),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.stage == Stage::Ready
            && self.ejection.until().is_none()
            && match self.trust {
                Trust::Suspended => false,
                Trust::Trial => self.open < self.trial_requests_max,
                Trust::Full => true,
            }
    }
}
