//! TCP ingress: exposed ports whose connections are held while their app starts and are then passed through, byte for byte.
//!
//! While a connection is held nothing is read from it: what the client sends waits in the kernel, bounded by its window.
//!
//! **Invariant:** a connection counts as open at its revision from its acceptance until both directions are done.
//! **Invariant:** a port leads an app of one environment to the apps of its own, and to others only where they are external.

mod ports;
mod relay;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use cove_base::{Backoff, OnCancel, OnError, TaskKind};
use cove_model::{ReplicaName, Transport};
use cove_traffic::AppRouteState;
use jiff::Timestamp;
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::{TcpListener, TcpStream},
    sync::OwnedSemaphorePermit,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::ports::{Ports, Sockets};
use self::relay::{Outcome, relay};
use crate::{
    answer::Refusal,
    gate::{Lease, Ticket},
    listen::{self, Doors},
    proxy::{Proxy, REROUTES_MAX},
    proxy_protocol::{self, Ends},
    resilience::Resilience,
    routes::{Snapshot, TcpTarget},
    shards::Place,
    target::may_connect,
};

const CONNECTION: TaskKind =
    TaskKind { name: "ingress-tcp-connection", on_error: OnError::Log, on_cancel: OnCancel::Abort };

/// A client of a port.
#[derive(Clone, Copy, Debug)]
struct Client {
    /// Its address, as a trusted peer says it where there is one.
    address: SocketAddr,
    /// What it connected to.
    local: SocketAddr,
    /// It came by the address at which replicas reach ports.
    is_inside: bool,
}

/// Listens on a port until `stop`; tries again while something else has it.
async fn serve_port(doors: Arc<Doors>, address: SocketAddr, stop: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let mut was_told = false;
    let (listener, _shown) = loop {
        match doors.ports.open(address) {
            Ok(opened) => break opened,
            Err(error) => {
                if !std::mem::replace(&mut was_told, true) {
                    tracing::warn!(%address, %error, "an app's exposed port cannot be opened; it is tried again");
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(backoff.next_wait()) => {}
                }
            }
        }
    };
    tracing::info!(%address, "an exposed port is open");
    accept(&doors, &listener, address.port(), &stop).await;
}

/// Takes connections in. A connection is accepted first and then waits for its share of those allowed: a port at which
/// nobody calls takes none.
async fn accept(doors: &Arc<Doors>, listener: &TcpListener, port: u16, stop: &CancellationToken) {
    if let Err(error) = listen::keep_alive(listener) {
        tracing::warn!(%error, "failed to turn TCP keep-alive on: clients that vanish may stay counted as open");
    }
    let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                backoff.reset();
                // who was accepted is served, also when the port closes meanwhile
                let Ok(permit) = Arc::clone(&doors.connections).acquire_owned().await else { return };
                let given = doors.shards.give(stream, |stream, place| {
                    let task = connection(Arc::clone(doors), stream, peer, port, (permit, place));
                    doors.proxy.shared.tasks.spawn(CONNECTION, task);
                });
                if let Err(error) = given {
                    tracing::warn!(%peer, %error, "failed to take a TCP connection in");
                }
            }
            Err(error) => {
                let wait = backoff.next_wait();
                tracing::warn!(%error, ?wait, "failed to accept a connection");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
}

async fn connection(
    doors: Arc<Doors>,
    mut stream: TcpStream,
    peer: SocketAddr,
    port: u16,
    (permit, _place): (OwnedSemaphorePermit, Place),
) {
    let proxy = &doors.proxy;
    let _tracked = proxy.tunnels.token();
    let config = &proxy.shared.config;
    let limit = config.handshake_timeout;
    let address = match proxy_protocol::client_of(&mut stream, peer, &config.proxy_protocol_peers, limit).await {
        Ok(address) => address,
        Err(error) => {
            tracing::debug!(%peer, port, error = &error as &dyn std::error::Error, "a TCP connection was not served");
            return;
        }
    };
    let Ok(local) = stream.local_addr() else { return };
    let client = Client { address, local, is_inside: Some(local.ip().to_canonical()) == config.tcp_internal };
    if let Err(error) = pass(proxy, stream, client, port).await {
        tracing::debug!(%peer, port, reason = error.status().1, "a TCP connection was not served");
    }
    drop(permit);
}

async fn pass(proxy: &Proxy, mut stream: TcpStream, client: Client, port: u16) -> Result<(), Refusal> {
    // a wake is measured by the machine's clock, also beside a virtual one
    let accepted_at = Timestamp::now();
    let deadline = Instant::now() + proxy.shared.config.request_timeout;
    let find = || find(proxy, client, port);
    let found = find()?;
    let gate = found.app.choose((proxy.random)()).ok_or(Refusal::NoRevision)?;
    let mut ticket = gate.admit(accepted_at);
    found.app.policy.check_open(&ticket, Transport::Tcp)?;
    let mut lease = None;
    for _ in 0..REROUTES_MAX {
        let leased = tokio::select! {
            leased = ticket.lease(None, deadline) => leased,
            () = reset(&stream) => return Err(Refusal::ClientGone),
        };
        match leased {
            Err(Refusal::RevisionInactive) => {
                let gate = find()?.app.choose((proxy.random)()).ok_or(Refusal::NoRevision)?.clone();
                ticket = gate.admit(accepted_at);
            }
            answer => {
                lease = Some(answer?);
                break;
            }
        }
    }
    let lease = lease.ok_or(Refusal::RevisionInactive)?;
    let resilience = &found.app.policy.resilience;
    let (mut app, lease) = connect((proxy, resilience), &ticket, lease, found.route.target_port, deadline).await?;
    let nodelay = stream.set_nodelay(true).and_then(|()| app.set_nodelay(true));
    if let Err(error) = nodelay {
        tracing::debug!(%error, "failed to set nodelay");
    }
    if let Some(version) = found.app.route.policies.proxy_protocol {
        let header = proxy_protocol::encode(version, Ends { source: client.address, destination: client.local });
        app.write_all(&header).await.map_err(|_gone| Refusal::UpstreamClosed)?;
    }
    let idle = proxy.shared.config.tcp_idle_timeout;
    let outcome = tokio::select! {
        outcome = relay(&mut stream, &mut app, idle) => outcome,
        () = lease.replica().evicted() => Outcome::Done,
        () = proxy.evict.cancelled() => Outcome::Done,
    };
    match outcome {
        Outcome::Done => {}
        Outcome::Silent => tracing::debug!(?idle, "a TCP connection was silent for too long"),
        Outcome::Reset => {
            // whoever is left is told that it was broken off: a plain close would look like the end of all there is
            let told = stream.set_zero_linger().and_then(|()| app.set_zero_linger());
            tracing::debug!(?told, "a TCP connection was broken off");
        }
    }
    Ok(())
}

/// Waits until the client broke its connection off. One that only ended its stream still wants an answer.
async fn reset(stream: &TcpStream) {
    match stream.ready(Interest::ERROR).await {
        Ok(ready) if ready.is_error() || ready.is_write_closed() => {}
        Ok(_) | Err(_) => std::future::pending().await,
    }
}

/// Who serves a port for a client.
fn find(proxy: &Proxy, client: Client, port: u16) -> Result<TcpTarget, Refusal> {
    let peer = client.address.ip();
    let is_machine = Some(peer) == proxy.shared.config.tcp_internal;
    let environment = if client.is_inside { (proxy.environment_of)(peer) } else { None };
    let find_in = |snapshot: &Snapshot| {
        let external = || snapshot.tcp(port, None).find(|target| target.route.external);
        let found = match &environment {
            Some(own) => snapshot.tcp(port, Some(own)).next().or_else(external),
            // this machine itself reaches what no other app of that port can be meant by
            None if client.is_inside && is_machine => external().or_else(|| {
                let mut all = snapshot.tcp(port, None);
                all.next().filter(|_| all.next().is_none())
            }),
            None => external(),
        };
        found.cloned()
    };
    let found = find_in(&proxy.snapshot_now()).ok_or(Refusal::UnknownHost)?;
    match &found.app.route.state {
        AppRouteState::Active => {}
        AppRouteState::Stopped => return Err(Refusal::AppStopped),
        AppRouteState::Failed { reason } => return Err(Refusal::RevisionFailed { reason: reason.clone() }),
    }
    if may_connect(&found.app, peer) { Ok(found) } else { Err(Refusal::IpNotAllowed) }
}

/// Connects to the leased replica, or to another one of the revision when it refuses.
async fn connect(
    (proxy, resilience): (&Proxy, &Resilience),
    ticket: &Ticket,
    first: Lease,
    port: Option<u16>,
    deadline: Instant,
) -> Result<(TcpStream, Lease), Refusal> {
    let config = &proxy.shared.config;
    let connect_timeout = resilience.connect_timeout.unwrap_or(config.connect_timeout);
    let mut lease = first;
    let mut woken_at = lease.woken_at;
    for _ in 0..resilience.connect_attempts.unwrap_or(config.connect_attempts_max) {
        let mut address = lease.replica().address;
        if let Some(port) = port {
            address.set_port(port);
        }
        let limit = connect_timeout.min(deadline.saturating_duration_since(Instant::now()));
        match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                lease.answered();
                let replica: &ReplicaName = &lease.replica().name;
                proxy.note_wake(ticket, replica, woken_at);
                return Ok((stream, lease));
            }
            Ok(Err(_)) | Err(_) => {
                tracing::debug!(replica = %lease.replica().name, %address, "failed to connect to a replica");
                if let Some(breaker) = &resilience.breaker {
                    lease.note(breaker, true);
                }
                lease.refused();
                lease = ticket.lease(None, deadline).await?;
                woken_at = woken_at.or(lease.woken_at);
            }
        }
    }
    Err(Refusal::UpstreamConnectFailed)
}
