//! Connections to one replica: idle HTTP/1 ones, the newest used first so that a quiet app keeps few of them, and shared
//! HTTP/2 ones. Each shard has its own, so that a connection is used by the thread that watches its socket.
//!
//! An HTTP/1 connection has no task of its own while one request uses it: whoever waits for the answer drives it. Only a
//! request whose body goes on after the answer began gets a task, since its two directions wait for different ends.
//!
//! **Invariant:** a closed pool holds nothing and takes nothing back: connections to a replica that left end with their request.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use cove_base::{OnCancel, OnError, TaskKind, Tasks};
use cove_model::Transport;
use futures_util::future::{AbortHandle, abortable};
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{net::TcpStream, task::unconstrained, time::Instant};

use crate::{config::IngressConfig, last_words::LastWords, request_body::RequestBody, shards};

const CONNECTION: TaskKind = TaskKind { name: "ingress-upstream", on_error: OnError::Log, on_cancel: OnCancel::Abort };
const SWEEP: TaskKind = TaskKind { name: "ingress-pool-sweep", on_error: OnError::Log, on_cancel: OnCancel::Abort };

/// Streams on one HTTP/2 connection before another is opened: what most servers allow.
const STREAMS_MAX: usize = 100;
/// What a replica may send ahead on one HTTP/2 stream before it is read: the bound of what a slow client makes us keep.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// The same for a whole connection: no bound besides its streams', so that clients who do not read hold up no others. The
/// library also ends a connection, and with it every call on it, when small frames that nobody has read cost more than half
/// of this: with 4 MiB one client that paused behind 8,000 small messages was enough.
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// A connection to a replica, or a stream on one.
pub(crate) struct Connection {
    sender: Sender,
    /// It served a request before: the replica may have closed it while a request was on its way.
    pub(crate) is_reused: bool,
}

enum Sender {
    Http1(Http1),
    Http2(Stream),
}

/// What moves bytes of an HTTP/1 connection.
type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// An HTTP/1 connection. It ends with this: left to itself it would wait without end to write what a replica does not read,
/// and hold its request's body.
struct Http1 {
    sender: http1::SendRequest<RequestBody>,
    /// `None`: it ended, or a task has it.
    driver: Option<Driver>,
    /// Ends the task that has the driver.
    end: Option<AbortHandle>,
}

impl Drop for Http1 {
    fn drop(&mut self) {
        if let Some(end) = &self.end {
            end.abort();
        }
    }
}

impl Http1 {
    /// Moves what can be moved.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && let Poll::Ready(ended) = driver.as_mut().poll(cx)
        {
            if let Err(error) = ended {
                // the request that was on it is told; here it is only a fact
                tracing::debug!(%error, "connection to a replica ended");
            }
            self.driver = None;
        }
    }

    /// It can take a request now. Looks at its socket without waiting for it.
    fn is_idle(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.sender.is_ready()
    }
}

/// A stream's share of an HTTP/2 connection, given back on drop.
struct Stream {
    sender: http2::SendRequest<RequestBody>,
    open: Arc<AtomicUsize>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a try on a connection gave.
pub(crate) type Sent = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>;

impl Connection {
    /// Sends a request; one that was never written comes back with the error.
    pub(crate) async fn try_send(&mut self, request: Request<RequestBody>) -> Sent {
        let connection = match &mut self.sender {
            Sender::Http2(stream) => return stream.sender.try_send_request(request).await,
            Sender::Http1(connection) => connection,
        };
        // never put off: what puts it off would wake nobody below
        let sending = unconstrained(connection.sender.try_send_request(request));
        tokio::pin!(sending);
        poll_fn(|cx| {
            connection.drive(cx);
            // only what was driven a line above can have brought the answer: nobody else needs to wake us for it
            let own = connection.driver.is_some();
            if own { sending.as_mut().poll(&mut Context::from_waker(Waker::noop())) } else { sending.as_mut().poll(cx) }
        })
        .await
    }

    /// It is for whoever waits for its bytes to move them.
    pub(crate) fn is_driven(&self) -> bool {
        matches!(&self.sender, Sender::Http1(connection) if connection.driver.is_some())
    }

    /// Moves bytes of an HTTP/1 connection; whoever waits for them calls this each time.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Sender::Http1(connection) = &mut self.sender {
            connection.drive(cx);
        }
    }

    /// Lets a task move the bytes from now on, until this is dropped.
    pub(crate) fn let_go(&mut self, tasks: &Tasks) {
        let Sender::Http1(connection) = &mut self.sender else { return };
        let Some(driver) = connection.driver.take() else { return };
        let (driving, end) = abortable(driver);
        connection.end = Some(end);
        tasks.spawn(CONNECTION, async move {
            if let Ok(Err(error)) = driving.await {
                tracing::debug!(%error, "connection to a replica ended");
            }
        });
    }

    /// It is upgraded: it goes on after this.
    pub(crate) fn release(mut self, tasks: &Tasks) {
        self.let_go(tasks);
        if let Sender::Http1(connection) = &mut self.sender {
            connection.end = None;
        }
    }
}

struct Idle {
    connection: Http1,
    expires_at: Instant,
}

/// An HTTP/2 connection that several requests use at once.
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    open: Arc<AtomicUsize>,
    used_at: Instant,
}

impl Shared {
    fn stream(&mut self) -> Option<Stream> {
        if self.sender.is_closed() || self.open.load(Ordering::Relaxed) >= STREAMS_MAX {
            return None;
        }
        self.used_at = Instant::now();
        self.open.fetch_add(1, Ordering::Relaxed);
        Some(Stream { sender: self.sender.clone(), open: Arc::clone(&self.open) })
    }
}

/// Connections to one replica; cheap to clone.
#[derive(Clone)]
pub(crate) struct Pool {
    /// By shard.
    parts: Arc<[Part]>,
    idle_max: usize,
    idle_timeout: Duration,
}

#[derive(Default)]
struct Part {
    inner: Mutex<Inner>,
    /// Held while an HTTP/2 connection is opened: those who come meanwhile share it.
    opening: tokio::sync::Mutex<()>,
}

impl Part {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Inner {
    /// Oldest first.
    idle: Vec<Idle>,
    shared: Vec<Shared>,
    is_closed: bool,
    is_swept: bool,
}

impl Pool {
    pub(crate) fn new(config: &IngressConfig) -> Self {
        Self {
            parts: (0..=config.threads).map(|_| Part::default()).collect(),
            idle_max: config.idle_connections_max.div_ceil(config.threads.max(1)),
            idle_timeout: config.idle_connection_timeout,
        }
    }

    /// The calling thread's.
    fn part(&self) -> &Part {
        self.parts.get(shards::current()).unwrap_or(&self.parts[0])
    }

    /// A connection that still stands: the newest idle one, or a stream on a shared one.
    pub(crate) fn take(&self, transport: Transport) -> Option<Connection> {
        let mut inner = self.part().lock();
        if transport == Transport::Http2 {
            inner.shared.retain(|shared| !shared.sender.is_closed());
            let stream = inner.shared.iter_mut().find_map(Shared::stream)?;
            return Some(Connection { sender: Sender::Http2(stream), is_reused: true });
        }
        let now = Instant::now();
        while let Some(mut idle) = inner.idle.pop() {
            if idle.expires_at > now && idle.connection.is_idle() {
                return Some(Connection { sender: Sender::Http1(idle.connection), is_reused: true });
            }
        }
        None
    }

    /// Opens a connection to the replica at `address`; with HTTP/2 it may be a stream on one that another request just opened.
    ///
    /// # Errors
    /// The connect error, or a time-out.
    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
        transport: Transport,
        limit: Duration,
        tasks: &Tasks,
    ) -> std::io::Result<Connection> {
        if transport != Transport::Http2 {
            let connection = tokio::time::timeout(limit, open_http1(address)).await??;
            return Ok(Connection { sender: Sender::Http1(connection), is_reused: false });
        }
        tokio::time::timeout(limit, async {
            let part = self.part();
            let _others_wait = part.opening.lock().await;
            if let Some(connection) = self.take(transport) {
                return Ok(connection);
            }
            let sender = open_http2(address, tasks).await?;
            let mut shared = Shared { sender, open: Arc::default(), used_at: Instant::now() };
            let stream = shared.stream().ok_or(std::io::ErrorKind::ConnectionReset)?;
            let mut inner = part.lock();
            if !inner.is_closed {
                inner.shared.push(shared);
                self.sweep_later(inner, tasks);
            }
            Ok(Connection { sender: Sender::Http2(stream), is_reused: false })
        })
        .await?
    }

    /// Keeps a connection whose response was read to its end, for at most `keep_alive` if the replica named a limit.
    pub(crate) fn put(&self, connection: Connection, keep_alive: Option<Duration>, tasks: &Tasks) {
        let Sender::Http1(mut connection) = connection.sender else { return };
        let keep = keep_alive.map_or(self.idle_timeout, |limit| limit.min(self.idle_timeout));
        // one that a task drives ends with its request
        if keep.is_zero() || connection.driver.is_none() || !connection.is_idle() {
            return;
        }
        let mut inner = self.part().lock();
        if inner.is_closed || self.idle_max == 0 {
            return;
        }
        if inner.idle.len() >= self.idle_max {
            inner.idle.remove(0);
        }
        inner.idle.push(Idle { connection, expires_at: Instant::now() + keep });
        self.sweep_later(inner, tasks);
    }

    fn sweep_later(&self, mut inner: MutexGuard<'_, Inner>, tasks: &Tasks) {
        if !std::mem::replace(&mut inner.is_swept, true) {
            drop(inner);
            tasks.spawn(SWEEP, self.clone().sweep(shards::current()));
        }
    }

    /// Closes connections whose time is over, until none is left.
    async fn sweep(self, shard: usize) {
        let part = self.parts.get(shard).unwrap_or(&self.parts[0]);
        loop {
            let next = {
                let now = Instant::now();
                let mut inner = part.lock();
                inner.idle.retain_mut(|idle| idle.expires_at > now && idle.connection.is_idle());
                for shared in inner.shared.iter_mut().filter(|shared| shared.open.load(Ordering::Relaxed) > 0) {
                    shared.used_at = now;
                }
                inner.shared.retain(|shared| shared.used_at + self.idle_timeout > now && !shared.sender.is_closed());
                let idle = inner.idle.iter().map(|idle| idle.expires_at);
                let shared = inner.shared.iter().map(|shared| shared.used_at + self.idle_timeout);
                let Some(next) = idle.chain(shared).min() else {
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
        for part in &*self.parts {
            let mut inner = part.lock();
            inner.is_closed = true;
            inner.idle.clear();
            inner.shared.clear();
        }
    }

    /// Takes connections back again.
    pub(crate) fn open(&self) {
        for part in &*self.parts {
            part.lock().is_closed = false;
        }
    }
}

async fn open_tcp(address: SocketAddr) -> std::io::Result<TokioIo<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(stream))
}

async fn open_http1(address: SocketAddr) -> std::io::Result<Http1> {
    let stream = TokioIo::new(LastWords::new(open_tcp(address).await?.into_inner()));
    let (sender, driver) = http1::Builder::new().handshake(stream).await.map_err(std::io::Error::other)?;
    Ok(Http1 { sender, driver: Some(Box::pin(driver.with_upgrades())), end: None })
}

async fn open_http2(address: SocketAddr, tasks: &Tasks) -> std::io::Result<http2::SendRequest<RequestBody>> {
    let stream = open_tcp(address).await?;
    // no pings of ours, neither to keep alive nor to measure: gRPC servers end a connection that pings more than once in
    // five minutes without data (`too_many_pings`), and with it every call on it
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .handshake(stream)
        .await
        .map_err(std::io::Error::other)?;
    tasks.spawn(CONNECTION, async move {
        if let Err(error) = connection.await {
            tracing::debug!(%address, %error, "connection to a replica ended");
        }
    });
    Ok(sender)
}
