//! Takes connections in: limits, TLS, which HTTP version, and their gentle end.
//!
//! One task per connection. TLS clients choose HTTP/2 by ALPN, plain ones by its preface; everything else is HTTP/1.
//!
//! **Invariant:** a connection that says nothing, or says it slowly, ends by a limit in each of its stages.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cove_base::{Backoff, OnCancel, OnError, TaskKind};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

use crate::{
    connection::serve,
    io::{Guarded, Socket, sniff},
    proxy::{Client, Proxy, Side},
    proxy_protocol,
    shards::{Place, Shards},
    target, tcp,
    tls::Tls,
};

const CONNECTION: TaskKind =
    TaskKind { name: "ingress-connection", on_error: OnError::Log, on_cancel: OnCancel::Abort };

/// Connections that may wait in the kernel until they are accepted; beyond it a client's first try is dropped for a second.
const BACKLOG: u32 = 4096;

/// Binds a socket for [`crate::IngressListeners`] with a queue that is long enough for a burst.
///
/// # Errors
/// The address is taken or not of this machine.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // a restart must not wait for the last server's connections to be forgotten
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What accept loops share.
pub(crate) struct Doors {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) connections: Arc<Semaphore>,
    /// No new connections; those that are open finish what they do, those that do nothing end.
    pub(crate) drain: CancellationToken,
    /// No new connections here; part of `drain`, or before it when another server takes them: then those that do nothing
    /// may still ask for something, once.
    pub(crate) closed: CancellationToken,
    is_closed: AtomicBool,
    pub(crate) tls: Option<Tls>,
    /// Sockets of exposed ports.
    pub(crate) ports: Arc<tcp::Sockets>,
    /// Who serves connections.
    pub(crate) shards: Shards,
}

impl Doors {
    pub(crate) fn new(proxy: Arc<Proxy>, shards: Shards, tls: Option<Tls>) -> Self {
        let connections_max = proxy.shared.config.connections_max;
        let drain = CancellationToken::new();
        Self {
            proxy,
            connections: Arc::new(Semaphore::new(connections_max)),
            closed: drain.child_token(),
            drain,
            is_closed: AtomicBool::new(false),
            tls,
            ports: Arc::default(),
            shards,
        }
    }

    /// It takes no new connection.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    /// Takes no new connection from now on.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.closed.cancel();
        self.proxy.connections.close();
        self.proxy.tunnels.close();
    }
}

/// Takes connections from a listener until it is closed.
pub(crate) async fn accept(doors: Arc<Doors>, listener: TcpListener, side: Side) {
    if let Err(error) = keep_alive(&listener) {
        tracing::warn!(%error, "failed to turn TCP keep-alive on: clients that vanish may stay counted as open");
    }
    let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
    loop {
        let permit = tokio::select! {
            () = doors.closed.cancelled() => return,
            permit = Arc::clone(&doors.connections).acquire_owned() => permit,
        };
        let Ok(permit) = permit else { return };
        let accepted = tokio::select! {
            () = doors.closed.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                backoff.reset();
                let given = doors.shards.give(stream, |stream, place| {
                    let task = connection(Arc::clone(&doors), stream, peer, side, (permit, place));
                    doors.proxy.shared.tasks.spawn(CONNECTION, task);
                });
                if let Err(error) = given {
                    tracing::warn!(%peer, %error, "failed to take a connection in");
                }
            }
            Err(error) => {
                // the client left already, or files are used up: either passes
                let wait = backoff.next_wait();
                tracing::warn!(%error, ?wait, "failed to accept a connection");
                tokio::select! {
                    () = doors.closed.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
}

/// Lets the kernel find out that a client vanished: an idle WebSocket would keep its replica for ever. Connections inherit
/// it from their listener.
pub(crate) fn keep_alive(listener: &TcpListener) -> nix::Result<()> {
    setsockopt(listener, sockopt::KeepAlive, &true)?;
    setsockopt(listener, sockopt::TcpKeepIdle, &60)?;
    setsockopt(listener, sockopt::TcpKeepInterval, &15)?;
    setsockopt(listener, sockopt::TcpKeepCount, &4)
}

async fn connection(
    doors: Arc<Doors>,
    mut stream: TcpStream,
    peer: SocketAddr,
    side: Side,
    (permit, _place): (OwnedSemaphorePermit, Place),
) {
    let _tracked = doors.proxy.connections.token();
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "failed to set nodelay");
    }
    let config = &doors.proxy.shared.config;
    let limit = config.handshake_timeout;
    let peer = match proxy_protocol::client_of(&mut stream, peer, &config.proxy_protocol_peers, limit).await {
        Ok(client) => client,
        Err(error) => {
            tracing::debug!(%peer, error = &error as &dyn std::error::Error, "a connection was not served");
            return;
        }
    };
    let stream = Socket::new(stream);
    let mut client = Client {
        connection: doors.proxy.observer.next_connection(),
        peer: peer.ip(),
        side,
        socket: stream.clone(),
        tls: Arc::default(),
        permit: Arc::new(permit),
        interim: None,
    };
    let (handshake, stall) = (config.handshake_timeout, config.write_stall_timeout);
    if side.is_tls() {
        let Some(tls) = &doors.tls else { return };
        let inside = doors.proxy.environment(&client);
        let asks = |host: &str| target::asks_certificate(&doors.proxy.snapshot_now(), inside.as_ref(), host);
        let stream = tokio::select! {
            () = doors.drain.cancelled() => return,
            stream = tokio::time::timeout(handshake, tls.accept(stream, asks)) => stream,
        };
        match stream {
            Ok(Ok((stream, protocol, tls))) => {
                client.tls = Arc::new(tls);
                Box::pin(serve(&doors, Guarded::new(stream, stall), protocol, client)).await;
            }
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_late) => tracing::debug!(%peer, "TLS handshake took too long"),
        }
        return;
    }
    let mut stream = Guarded::new(stream, stall);
    let sniffed = tokio::select! {
        () = doors.drain.cancelled() => return,
        sniffed = tokio::time::timeout(config.header_timeout, sniff(&mut stream)) => sniffed,
    };
    match sniffed {
        Ok(Ok(Some(protocol))) => Box::pin(serve(&doors, stream, protocol, client)).await,
        Ok(Ok(None)) => {}
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a connection ended before its first request"),
        Err(_late) => tracing::debug!(%peer, "a connection sent no request in time"),
    }
}
