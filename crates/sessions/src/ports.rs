//! What this service needs from others: closures and values of core types.

use std::{any::Any, fmt, io, net::TcpStream, sync::Arc, time::Duration};

use cove_model::{
    AllocateError, ReplicaName, ResourceId, Session, SessionAllocation, SessionContainer, SessionIdentifier,
    SessionSnapshot, SnapshotError,
};
use futures_util::future::BoxFuture;
use http::HeaderMap;
use jiff::Timestamp;

/// A pool, as far as requests need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// Its id.
    pub id: ResourceId,
    /// What runs in its sessions.
    pub container: SessionContainer,
    /// Sessions that may be allocated at once.
    pub sessions_max: u32,
}

/// What the sessions of a pool are made of, as it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolDetails {
    /// Name of the container, for commands in it.
    pub container: String,
    /// Thousandths of a core.
    pub cpu_milli: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes that a session may write.
    pub disk_bytes: u64,
    /// Sessions reach the internet.
    pub has_egress: bool,
}

/// An allocated session as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// The session.
    pub session: Session,
    /// When it ends if no request comes.
    pub expires_at: Timestamp,
}

/// A session that was made of another one.
#[derive(Clone, Debug)]
pub struct Fork {
    /// It.
    pub info: SessionInfo,
    /// Whether it went on with the memory of the other one, or why it has the files alone.
    pub memory: Result<(), String>,
}

/// A session for one request; its request is over when this is dropped.
pub struct Lease {
    /// The session.
    pub allocation: SessionAllocation,
    /// What counts the request as open.
    pub guard: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({})", self.allocation.session.replica)
    }
}

/// Who knows pools and gives sessions.
pub trait Pools: Send + Sync + 'static {
    /// A pool by its id.
    fn pool(&self, id: &ResourceId) -> Option<PoolInfo>;

    /// The pool that answers at a host name: lower case, no port.
    fn pool_at(&self, host: &str) -> Option<PoolInfo>;

    /// Whether this is the key of the pool's MCP server; false when the pool has none. Must take the same time for every
    /// wrong key.
    fn is_mcp_key(&self, _pool: &ResourceId, _key: &[u8]) -> bool {
        false
    }

    /// The pool whose MCP server has this key; none for a key of no pool.
    fn pool_with_key(&self, _key: &[u8]) -> Option<PoolInfo> {
        None
    }

    /// What the sessions of a pool are made of.
    fn details(&self, _pool: &ResourceId) -> Option<PoolDetails> {
        None
    }

    /// The session of an identifier, allocated if it has none.
    fn allocate<'a>(
        &'a self,
        pool: &'a ResourceId,
        identifier: &'a SessionIdentifier,
    ) -> BoxFuture<'a, Result<Lease, AllocateError>>;

    /// Ends the session of an identifier; `false` when it has none.
    fn stop<'a>(&'a self, pool: &'a ResourceId, identifier: &'a SessionIdentifier) -> BoxFuture<'a, bool>;

    /// Allocates sessions for identifiers that have none, with the files of the source's session, and with `memory` what it has
    /// in memory where that can be kept: all, ready, or none.
    fn fork<'a>(
        &'a self,
        pool: &'a ResourceId,
        source: &'a SessionIdentifier,
        targets: &'a [SessionIdentifier],
        memory: bool,
    ) -> BoxFuture<'a, Result<Vec<Fork>, SnapshotError>> {
        let _ = (pool, source, targets, memory);
        Box::pin(async { Err(no_snapshots()) })
    }

    /// Keeps the files of a session under a name.
    fn keep_snapshot<'a>(
        &'a self,
        pool: &'a ResourceId,
        source: &'a SessionIdentifier,
        name: &'a str,
    ) -> BoxFuture<'a, Result<SessionSnapshot, SnapshotError>> {
        let _ = (pool, source, name);
        Box::pin(async { Err(no_snapshots()) })
    }

    /// Ends a session and keeps its files for its next request.
    fn suspend<'a>(
        &'a self,
        pool: &'a ResourceId,
        source: &'a SessionIdentifier,
    ) -> BoxFuture<'a, Result<SessionSnapshot, SnapshotError>> {
        let _ = (pool, source);
        Box::pin(async { Err(no_snapshots()) })
    }

    /// What is kept of sessions of a pool: templates and suspended sessions.
    fn snapshots(&self, pool: &ResourceId) -> Vec<SessionSnapshot> {
        let _ = pool;
        Vec::new()
    }

    /// Deletes a template that no pool uses.
    fn delete_snapshot<'a>(&'a self, pool: &'a ResourceId, name: &'a str) -> BoxFuture<'a, Result<(), SnapshotError>> {
        let _ = (pool, name);
        Box::pin(async { Err(no_snapshots()) })
    }

    /// The allocated sessions of a pool, by identifier.
    fn list(&self, pool: &ResourceId) -> Vec<SessionInfo>;

    /// The session of an identifier.
    fn find(&self, pool: &ResourceId, identifier: &SessionIdentifier) -> Option<SessionInfo>;
}

fn no_snapshots() -> SnapshotError {
    SnapshotError::Unsupported("these pools have no snapshots".to_owned())
}

/// Why a request's token does not open a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenProblem {
    /// There is none.
    Missing,
    /// It is none of this server, or not one at all; in words.
    Invalid(String),
    /// Its time has passed.
    Expired,
    /// It is for something else: its audience.
    Audience(String),
    /// It is of another tenant.
    Tenant,
}

/// Checks the token among a request's headers. Must not block.
pub type TokenCheck = Arc<dyn Fn(&HeaderMap) -> Result<(), TokenProblem> + Send + Sync>;

/// Connects to a port of a session from inside of it.
pub type Dial = Arc<dyn Fn(&ReplicaName, u16) -> BoxFuture<'static, io::Result<TcpStream>> + Send + Sync>;

/// What the server wires.
#[derive(Clone)]
pub struct Ports {
    /// Pools and sessions.
    pub pools: Arc<dyn Pools>,
    /// Tokens.
    pub check: TokenCheck,
    /// Connections.
    pub dial: Dial,
    /// Consoles, files and logs; `None`: this server has none.
    pub tools: Option<Arc<dyn crate::Tools>>,
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ports").finish_non_exhaustive()
    }
}

/// Limits of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body. Default 128 MiB, as Azure's limit of an upload; then 413.
    pub body_bytes_max: u64,
    /// From the request's head to the head of the session's answer, its allocation not included. Default 240 s, as the
    /// ingress; then 504.
    pub answer_timeout: Duration,
    /// Longest silence of the session inside an answer, or of both sides after an upgrade. Default 240 s; then it is cut.
    pub idle_timeout: Duration,
    /// Requests at once over all pools, until their answers have been read. Default 4096; then 429.
    pub requests_max: usize,
    /// Idle connections kept per session. Default 8.
    pub connections_max: usize,
    /// How long an idle connection is kept. Default 30 s.
    pub connection_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 128 << 20,
            answer_timeout: Duration::from_secs(240),
            idle_timeout: Duration::from_secs(240),
            requests_max: 4096,
            connections_max: 8,
            connection_idle: Duration::from_secs(30),
        }
    }
}
