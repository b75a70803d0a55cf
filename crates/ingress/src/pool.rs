//! Idle keep-alive connections to one replica, the newest used first so that a quiet app keeps few of them.
//!
//! **Invariant:** a closed pool holds nothing and takes nothing back: connections to a replica that left end with their request.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cove_base::{OnCancel, OnError, TaskKind, Tasks};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::Instant};

use crate::{body::RequestBody, config::IngressConfig};

const CONNECTION: TaskKind = TaskKind { name: "ingress-upstream", on_error: OnError::Log, on_cancel: OnCancel::Abort };
const SWEEP: TaskKind = TaskKind { name: "ingress-pool-sweep", on_error: OnError::Log, on_cancel: OnCancel::Abort };

/// A connection to a replica.
pub(crate) struct Connection {
    pub(crate) sender: SendRequest<RequestBody>,
    /// It served a request before: the replica may have closed it while a request was on its way.
    pub(crate) is_reused: bool,
}

struct Idle {
    connection: Connection,
    expires_at: Instant,
}

/// Idle connections to one replica; cheap to clone.
#[derive(Clone)]
pub(crate) struct Pool {
    inner: Arc<Mutex<Inner>>,
    idle_max: usize,
    idle_timeout: Duration,
}

#[derive(Default)]
struct Inner {
    /// Oldest first.
    idle: Vec<Idle>,
    is_closed: bool,
    is_swept: bool,
}

impl Pool {
    pub(crate) fn new(config: &IngressConfig) -> Self {
        Self {
            inner: Arc::default(),
            idle_max: config.idle_connections_max,
            idle_timeout: config.idle_connection_timeout,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest idle connection that still stands.
    pub(crate) fn take(&self) -> Option<Connection> {
        let now = Instant::now();
        let mut inner = self.lock();
        let mut index = inner.idle.len();
        while index > 0 {
            index -= 1;
            let idle = &inner.idle[index];
            if idle.connection.sender.is_closed() || idle.expires_at <= now {
                inner.idle.remove(index);
            } else if idle.connection.sender.is_ready() {
                return Some(inner.idle.remove(index).connection);
            }
            // neither closed nor ready: it is just finishing its last request; an older one will do
        }
        None
    }

    /// Keeps a connection whose response was read to its end, for at most `keep_alive` if the replica named a limit.
    pub(crate) fn put(&self, mut connection: Connection, keep_alive: Option<Duration>, tasks: &Tasks) {
        connection.is_reused = true;
        let keep = keep_alive.map_or(self.idle_timeout, |limit| limit.min(self.idle_timeout));
        if keep.is_zero() || connection.sender.is_closed() {
            return;
        }
        let mut inner = self.lock();
        if inner.is_closed || self.idle_max == 0 {
            return;
        }
        if inner.idle.len() >= self.idle_max {
            inner.idle.remove(0);
        }
        inner.idle.push(Idle { connection, expires_at: Instant::now() + keep });
        if !std::mem::replace(&mut inner.is_swept, true) {
            drop(inner);
            tasks.spawn(SWEEP, self.clone().sweep());
        }
    }

    /// Closes idle connections whose time is over, until none is left.
    async fn sweep(self) {
        loop {
            let next = {
                let now = Instant::now();
                let mut inner = self.lock();
                inner.idle.retain(|idle| idle.expires_at > now && !idle.connection.sender.is_closed());
                let Some(next) = inner.idle.iter().map(|idle| idle.expires_at).min() else {
                    inner.is_swept = false;
                    return;
                };
                next.max(now + Duration::from_secs(1))
            };
            tokio::time::sleep_until(next).await;
        }
    }

    /// Closes idle connections and those that would come back.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.is_closed = true;
        inner.idle.clear();
    }

    /// Takes connections back again.
    pub(crate) fn open(&self) {
        self.lock().is_closed = false;
    }
}

/// Opens a connection to a replica.
///
/// # Errors
/// The connect error, or a time-out.
pub(crate) async fn connect(address: SocketAddr, limit: Duration, tasks: &Tasks) -> std::io::Result<Connection> {
    let stream = tokio::time::timeout(limit, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    let (sender, connection) =
        http1::Builder::new().max_headers(256).handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    tasks.spawn(CONNECTION, async move {
        if let Err(error) = connection.with_upgrades().await {
            // the request that was on it is told; here it is only a fact
            tracing::debug!(%address, %error, "connection to a replica ended");
        }
    });
    Ok(Connection { sender, is_reused: false })
}
