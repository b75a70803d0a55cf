//! The DNS server that replicas ask: names of apps from Cove, everything else from the resolvers of this machine.
//!
//! What an app name means is the caller's business: a closure answers with an address, usually the gateway where the
//! ingress listens. Nothing is cached, so one replica can never spoil another's answers, and a change of apps shows at
//! once; the resolvers behind have caches of their own.
//!
//! **Invariant:** every query gets an answer within [`FORWARD_TIMEOUT`]: a record, or an error code.
//! **Invariant:** names under a local suffix never leave this machine.

mod confined;
mod connections;
mod forward;
mod limited;
mod message;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use ipnet::Ipv4Net;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use connections::Connections;
use forward::Upstreams;
use message::{Plan, Query};

use crate::layout::NetnsClass;
use crate::limits::Limits;

pub use forward::FORWARD_TIMEOUT;

/// Queries being forwarded at a time; one more is answered SERVFAIL at once.
pub const FORWARDED_MAX: usize = 1024;

/// Of these, queries of one replica.
pub const FORWARDED_PER_CLIENT_MAX: usize = 128;

/// TCP connections at a time; for one more, the oldest of the client with most is ended.
pub const CONNECTIONS_MAX: usize = 256;

/// Of these, connections of one replica; one more is closed at once.
pub const CONNECTIONS_PER_CLIENT_MAX: usize = 16;

/// How long a TCP connection may stay silent.
const CONNECTION_IDLE: Duration = Duration::from_secs(10);

/// How long a TCP connection may stay open, however busy it is; clients open another one.
pub const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);

/// Answers the address of a name (lower case, no final dot) for the replica that asks, or none if it is no app's.
pub type Lookup = Arc<dyn Fn(Ipv4Addr, &str) -> Option<Ipv4Addr> + Send + Sync>;

/// How to serve DNS.
#[derive(Clone)]
pub struct DnsConfig {
    /// Where to listen, UDP and TCP: port 53 of the gateway. Port 0 takes a free one, the same for both.
    pub listen: SocketAddr,
    /// Names of apps.
    pub lookup: Lookup,
    /// Domains that only `lookup` knows: other names below them do not exist. Lower case, without dots around;
    /// default `localhost`.
    pub local_suffixes: Vec<String>,
    /// Reverse names of these addresses do not exist, instead of asking the world about private ones. Replicas in the part
    /// of confined ones are told of no app.
    pub subnet: Option<Ipv4Net>,
    /// Names of limited replicas, which are those in the limited part of `subnet`. None: they are told of no name.
    pub limits: Option<Arc<Limits>>,
    /// File that names the resolvers of this machine, read again when it changes; default `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// How long a TCP connection may stay open, however busy it is; default [`CONNECTION_LIFETIME`].
    pub connection_lifetime: Duration,
}

impl DnsConfig {
    /// The defaults, for a gateway and a way to look up apps.
    pub fn new(gateway: Ipv4Addr, lookup: Lookup) -> Self {
        Self {
            listen: SocketAddr::from((gateway, 53)),
            lookup,
            local_suffixes: vec!["localhost".to_owned()],
            subnet: None,
            limits: None,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            connection_lifetime: CONNECTION_LIFETIME,
        }
    }
}

impl fmt::Debug for DnsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsConfig").field("listen", &self.listen).field("suffixes", &self.local_suffixes).finish()
    }
}

/// The address to listen on cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "failed to serve DNS at {listen}; stop the program that listens on all addresses there, or name other ones to it"
)]
pub struct DnsBindError {
    /// The address.
    pub listen: SocketAddr,
    /// Cause.
    pub source: io::Error,
}

/// A DNS server with its sockets open.
#[derive(Debug)]
pub struct DnsServer {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    shared: Arc<Shared>,
}

/// How a question came, which is how it is passed on.
#[derive(Clone, Copy, Debug)]
enum Transport {
    Udp,
    Tcp,
}

#[derive(Debug)]
struct Shared {
    config: DnsConfig,
    upstreams: Upstreams,
    forwards: Arc<Semaphore>,
    per_client: Mutex<HashMap<Ipv4Addr, usize>>,
}

/// The app a name means within the environment `domain`: `<app>`, `<app>.<domain>` or `<app>.internal.<domain>`.
///
/// `name` and `domain` are lower case, without a final dot.
pub fn app_label<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let label = match name.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.')) {
        Some(rest) => rest.strip_suffix(".internal").unwrap_or(rest),
        None => name,
    };
    (!label.is_empty() && !label.contains('.')).then_some(label)
}

/// The sockets of a DNS server, which may be another process's too: questions wait in them while nobody reads.
#[derive(Debug)]
pub struct DnsSockets {
    /// For questions in one datagram.
    pub udp: std::net::UdpSocket,
    /// For longer ones.
    pub tcp: std::net::TcpListener,
}

impl DnsServer {
    /// Opens the sockets; the address must exist, so open the network first.
    pub async fn bind(config: DnsConfig) -> Result<Self, DnsBindError> {
        let listen = config.listen;
        let open = async {
            let tcp = TcpListener::bind(listen).await?;
            let udp = UdpSocket::bind(tcp.local_addr()?).await?;
            io::Result::Ok((udp, tcp))
        };
        let (udp, tcp) = open.await.map_err(|source| DnsBindError { listen, source })?;
        Ok(Self::on(config, udp, tcp))
    }

    /// Serves on sockets that are open already.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn with(config: DnsConfig, sockets: DnsSockets) -> Result<Self, DnsBindError> {
        let DnsSockets { udp, tcp } = sockets;
        let listen = config.listen;
        let take = || {
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            io::Result::Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?))
        };
        let (udp, tcp) = take().map_err(|source| DnsBindError { listen, source })?;
        Ok(Self::on(config, udp, tcp))
    }

    /// Copies of its sockets.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn sockets(&self) -> io::Result<DnsSockets> {
        Ok(DnsSockets {
            udp: self.udp.as_fd().try_clone_to_owned()?.into(),
            tcp: self.tcp.as_fd().try_clone_to_owned()?.into(),
        })
    }

    fn on(config: DnsConfig, udp: UdpSocket, tcp: TcpListener) -> Self {
        let listen = config.listen;
        let own = tcp.local_addr().unwrap_or(listen);
        let upstreams = Upstreams::new(config.resolv_conf.clone(), own);
        let shared = Shared {
            config,
            upstreams,
            forwards: Arc::new(Semaphore::new(FORWARDED_MAX)),
            per_client: Mutex::new(HashMap::new()),
        };
        Self { udp: Arc::new(udp), tcp, shared: Arc::new(shared) }
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until `shutdown`; queries being forwarded then are dropped.
    pub async fn run(self, shutdown: CancellationToken) {
        let serve = async {
            tokio::join!(serve_udp(&self.udp, &self.shared), serve_tcp(&self.tcp, &self.shared));
        };
        shutdown.run_until_cancelled(serve).await;
    }
}

async fn serve_udp(socket: &Arc<UdpSocket>, shared: &Arc<Shared>) {
    let mut forwarding = JoinSet::new();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                pause_after("receive a DNS query", &error).await;
                continue;
            }
        };
        while forwarding.try_join_next().is_some() {}
        match shared.plan(&buffer[..length], client.ip()) {
            Plan::Ignore => {}
            Plan::Answer(answer) => send(socket, &answer, client).await,
            Plan::Forward(query) => match shared.permit(client.ip()) {
                None => send(socket, &query.error(ResponseCode::ServFail), client).await,
                Some(permit) => {
                    let (socket, shared) = (Arc::clone(socket), Arc::clone(shared));
                    forwarding.spawn(async move {
                        let answer = shared.forward(&query, client.ip(), Transport::Udp).await;
                        send(&socket, &answer, client).await;
                        drop(permit);
                    });
                }
            },
        }
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(answer, client).await {
        tracing::debug!(%client, %error, "failed to send a DNS answer");
    }
}

async fn serve_tcp(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let serve = serve_connection(stream, client.ip(), Arc::clone(shared));
                let lifetime = shared.config.connection_lifetime;
                connections.add(v4(client.ip()), async move {
                    let _ended = tokio::time::timeout(lifetime, serve).await;
                });
            }
            Err(error) => pause_after("accept a DNS connection", &error).await,
        }
    }
}

/// Answers one query after the other; ends when the client stays silent or goes away.
async fn serve_connection(mut stream: TcpStream, client: IpAddr, shared: Arc<Shared>) -> io::Result<()> {
    loop {
        let read = async {
            let length = stream.read_u16().await?;
            let mut query = vec![0; usize::from(length)];
            stream.read_exact(&mut query).await?;
            io::Result::Ok(query)
        };
        let query = tokio::time::timeout(CONNECTION_IDLE, read).await??;
        let answer = match shared.plan(&query, client) {
            Plan::Ignore => return Ok(()),
            Plan::Answer(answer) => answer,
            Plan::Forward(query) => match shared.permit(client) {
                None => query.error(ResponseCode::ServFail),
                Some(_permit) => shared.forward(&query, client, Transport::Tcp).await,
            },
        };
        let framed = message::framed(&answer);
        tokio::time::timeout(CONNECTION_IDLE, stream.write_all(&framed)).await??;
    }
}

/// An error of a listening socket is the machine's (memory, descriptors): let others run before trying again.
async fn pause_after(action: &str, error: &io::Error) {
    tracing::debug!(%error, "failed to {action}");
    tokio::time::sleep(Duration::from_millis(20)).await;
}

fn v4(client: IpAddr) -> Ipv4Addr {
    match client {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => address.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED),
    }
}

impl Shared {
    fn plan(&self, query: &[u8], client: IpAddr) -> Plan {
        match Query::parse(query) {
            Ok(query) => query.plan(&self.config, v4(client)),
            Err(plan) => plan,
        }
    }

    /// The answer of the resolvers of this machine, as far as this client is told of it; never empty.
    async fn forward(&self, query: &Query, client: IpAddr, transport: Transport) -> Vec<u8> {
        if query.asker() == NetnsClass::Limited {
            return limited::answer(query, v4(client), self.config.limits.as_deref(), &self.upstreams).await;
        }
        let answer = match transport {
            Transport::Udp => self.upstreams.ask_udp(query).await,
            Transport::Tcp => self.upstreams.ask_tcp(query).await,
        };
        if query.asker() == NetnsClass::Confined { confined::cleaned(query, answer) } else { answer }
    }

    /// A place among the queries being forwarded; none when this client, or all, have too many.
    fn permit(self: &Arc<Self>, client: IpAddr) -> Option<Permit> {
        let client = v4(client);
        let global = Arc::clone(&self.forwards).try_acquire_owned().ok()?;
        let mut per_client = self.per_client.lock().unwrap_or_else(PoisonError::into_inner);
        let count = per_client.entry(client).or_insert(0);
        if *count >= FORWARDED_PER_CLIENT_MAX {
            return None;
        }
        *count += 1;
        Some(Permit { shared: Arc::clone(self), client, _global: global })
    }
}

/// Held while a query is forwarded.
struct Permit {
    shared: Arc<Shared>,
    client: Ipv4Addr,
    _global: OwnedSemaphorePermit,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut per_client = self.shared.per_client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = per_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                per_client.remove(&self.client);
            }
        }
    }
}
