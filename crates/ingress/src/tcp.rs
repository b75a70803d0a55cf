//! TCP ingress: exposed ports whose connections are held while their app starts and are then passed through, byte for byte.
//!
//! While a connection is held nothing is read from it: what the client sends waits in the kernel, bounded by its window.
//!
//! **Invariant:** a connection counts as open at its revision from its acceptance until both directions are done.
//! **Invariant:** an end of stream is passed on in its direction only; the other goes on until it ends too.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cove_base::{Backoff, OnCancel, OnError, TaskKind};
use cove_model::{ReplicaName, Transport};
use cove_traffic::{AppRouteState, RouteTable};
use jiff::Timestamp;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::OwnedSemaphorePermit,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    answer::Refusal,
    config::IngressConfig,
    gate::{Lease, Ticket},
    listen::{self, Doors},
    proxy::{Proxy, REROUTES_MAX},
    resilience::Resilience,
    routes::TcpTarget,
    target::may_connect,
};

const PORT: TaskKind = TaskKind { name: "ingress-tcp-port", on_error: OnError::Log, on_cancel: OnCancel::Abort };
const CONNECTION: TaskKind =
    TaskKind { name: "ingress-tcp-connection", on_error: OnError::Log, on_cancel: OnCancel::Abort };

/// Bytes copied at once, per direction.
const COPY_BYTES: usize = 16 << 10;

/// Listeners of exposed ports; follows the route table.
#[derive(Default)]
pub(crate) struct Ports {
    open: BTreeMap<SocketAddr, CancellationToken>,
}

impl Ports {
    /// Opens ports that are new in the table and closes those that are gone; open connections go on.
    pub(crate) fn follow(&mut self, doors: &Arc<Doors>, table: &RouteTable) {
        let config = &doors.proxy.shared.config;
        let wanted: BTreeSet<SocketAddr> = table
            .tcp
            .iter()
            .flat_map(|((port, _), route)| addresses(config, route.external).map(|ip| SocketAddr::new(ip, *port)))
            .collect();
        self.open.retain(|address, stop| {
            let stays = wanted.contains(address);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for address in wanted {
            self.open.entry(address).or_insert_with(|| {
                let stop = doors.drain.child_token();
                doors.proxy.shared.tasks.spawn(PORT, serve_port(Arc::clone(doors), address, stop.clone()));
                stop
            });
        }
    }
}

/// Where a port is opened: the inner address always, the outer one if the app is external.
fn addresses(config: &IngressConfig, is_external: bool) -> impl Iterator<Item = IpAddr> {
    let outer =
        config.tcp_external.filter(|outer| is_external || config.tcp_internal.is_some() && outer.is_unspecified());
    // an unspecified outer address takes the inner connections too
    let inner = config.tcp_internal.filter(|_| outer.is_none_or(|outer| !outer.is_unspecified()));
    outer.into_iter().chain(inner)
}

/// Listens on a port until `stop`; tries again while something else has it.
async fn serve_port(doors: Arc<Doors>, address: SocketAddr, stop: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let mut was_told = false;
    let listener = loop {
        match listen::bind(address) {
            Ok(listener) => break listener,
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

async fn accept(doors: &Arc<Doors>, listener: &TcpListener, port: u16, stop: &CancellationToken) {
    if let Err(error) = listen::keep_alive(listener) {
        tracing::warn!(%error, "failed to turn TCP keep-alive on: clients that vanish may stay counted as open");
    }
    let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = async {
                let permit = Arc::clone(&doors.connections).acquire_owned().await;
                (permit, listener.accept().await)
            } => accepted,
        };
        match accepted {
            (Ok(permit), Ok((stream, peer))) => {
                backoff.reset();
                let task = connection(Arc::clone(doors), stream, peer.ip().to_canonical(), port, permit);
                doors.proxy.shared.tasks.spawn(CONNECTION, task);
            }
            (Err(_closed), _) => return,
            (_, Err(error)) => {
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

async fn connection(doors: Arc<Doors>, stream: TcpStream, peer: IpAddr, port: u16, permit: OwnedSemaphorePermit) {
    let proxy = &doors.proxy;
    let _tracked = proxy.tunnels.token();
    if let Err(error) = pass(proxy, stream, peer, port).await {
        tracing::debug!(%peer, port, reason = error.status().1, "a TCP connection was not served");
    }
    drop(permit);
}

async fn pass(proxy: &Proxy, mut client: TcpStream, peer: IpAddr, port: u16) -> Result<(), Refusal> {
    // a wake is measured by the machine's clock, also beside a virtual one
    let accepted_at = Timestamp::now();
    let deadline = Instant::now() + proxy.shared.config.request_timeout;
    let is_inside = client.local_addr().is_ok_and(|local| Some(local.ip()) == proxy.shared.config.tcp_internal);
    let find = || find(proxy, peer, port, is_inside);
    let found = find()?;
    let gate = found.app.choose((proxy.random)()).ok_or(Refusal::NoRevision)?;
    let mut ticket = gate.admit(accepted_at);
    found.app.policy.check_open(&ticket, Transport::Tcp)?;
    let mut lease = None;
    for _ in 0..REROUTES_MAX {
        match ticket.lease(None, deadline).await {
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
    let nodelay = client.set_nodelay(true).and_then(|()| app.set_nodelay(true));
    if let Err(error) = nodelay {
        tracing::debug!(%error, "failed to set nodelay");
    }
    let idle = proxy.shared.config.tcp_idle_timeout;
    tokio::select! {
        () = relay(&mut client, &mut app, idle) => {}
        () = lease.replica().evicted() => {}
        () = proxy.evict.cancelled() => {}
    }
    Ok(())
}

/// Who serves a port for a client.
fn find(proxy: &Proxy, peer: IpAddr, port: u16, is_inside: bool) -> Result<TcpTarget, Refusal> {
    let environment = if is_inside { (proxy.environment_of)(peer) } else { None };
    let find_in = |snapshot: &crate::routes::Snapshot| {
        let mut targets = snapshot.tcp(port, environment.as_ref());
        targets.find(|target| is_inside || target.route.external).cloned()
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

/// How a direction ended.
enum End {
    /// The sender had no more to say, or the receiver takes no more.
    Quiet,
    /// The sender is gone.
    Broken,
}

/// Copies both ways until both ends are done, one is gone, or nobody said anything for too long.
async fn relay(client: &mut TcpStream, app: &mut TcpStream, idle: Duration) {
    let last = Mutex::new(Instant::now());
    let (client_reader, client_writer) = client.split();
    let (app_reader, app_writer) = app.split();
    let both = async {
        let up = pump(client_reader, app_writer, &last);
        let down = pump(app_reader, client_writer, &last);
        tokio::pin!(up, down);
        tokio::select! {
            end = &mut up => if matches!(end, End::Quiet) { down.await; },
            end = &mut down => if matches!(end, End::Quiet) { up.await; },
        }
    };
    let silence = async {
        loop {
            let until = *last.lock().unwrap_or_else(PoisonError::into_inner) + idle;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    };
    tokio::select! {
        () = both => {}
        () = silence => tracing::debug!(?idle, "a TCP connection was silent for too long"),
    }
}

async fn pump(mut reader: ReadHalf<'_>, mut writer: WriteHalf<'_>, last: &Mutex<Instant>) -> End {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) => {
                let _gone_already = writer.shutdown().await;
                return End::Quiet;
            }
            Ok(count) => {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                if writer.write_all(&buffer[..count]).await.is_err() {
                    return End::Quiet;
                }
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            }
            Err(_reset) => return End::Broken,
        }
    }
}
