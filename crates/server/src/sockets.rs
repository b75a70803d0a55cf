//! The listening sockets of a server: bound, or taken over from the server before it.

use std::{fs, net::SocketAddr, os::fd::OwnedFd, path::Path};

use anyhow::Context;
use cove_network::{
    Network,
    dns::{DnsBindError, DnsConfig, DnsServer, DnsSockets},
};
use tokio::net::TcpListener;

use crate::{
    config::Config,
    handover::{self, Inherited, Role, SocketCopy, TakeOver},
    serve::Endpoints,
    tls::Authority,
};

/// Sockets of the server.
pub(crate) struct Sockets {
    pub(crate) api: TcpListener,
    pub(crate) identity: TcpListener,
    pub(crate) http: TcpListener,
    pub(crate) https: TcpListener,
    /// Apps, from replicas, with TLS; `None` while something else has the address.
    pub(crate) internal_tls: Option<TcpListener>,
    /// Of the server before this one, until they are wanted.
    pub(crate) inherited: Inherited,
    /// The server before this one.
    pub(crate) old: Option<TakeOver>,
}

impl Sockets {
    /// Those of the configuration, taken over where they fit.
    ///
    /// # Errors
    /// An address is taken.
    pub(crate) fn bind(config: &Config, mut inherited: Inherited) -> anyhow::Result<Self> {
        let mut listen = |role: Role, address: SocketAddr, what: &'static str| {
            if let Some(socket) = inherited.take(role, address) {
                return listener_of(socket);
            }
            cove_ingress::bind(address).with_context(|| {
                format!("failed to listen on {address} for {what}; is another server running? --{what} chooses another address, port 0 any free one")
            })
        };
        Ok(Self {
            api: listen(Role::Api, config.api.bind, "api")?,
            identity: listen(Role::Identity, SocketAddr::from(([127, 0, 0, 1], 0)), "identity")?,
            http: listen(Role::Http, config.ingress.http, "http")?,
            https: listen(Role::Https, config.ingress.https, "https")?,
            internal_tls: None,
            inherited,
            old: None,
        })
    }

    /// Replicas reach apps at the gateway's port 80; without it they reach apps only by the outer address.
    pub(crate) fn internal(&mut self, network: &Network) -> Option<TcpListener> {
        let tls = SocketAddr::from((network.gateway(), 443));
        let inherited = self.inherited.take(Role::InternalTls, tls).map(listener_of);
        // who serves it tries again later, and says so
        self.internal_tls = inherited.unwrap_or_else(|| Ok(cove_ingress::bind(tls)?)).ok();
        let address = SocketAddr::from((network.gateway(), 80));
        if let Some(Ok(listener)) = self.inherited.take(Role::Internal, address).map(listener_of) {
            return Some(listener);
        }
        match cove_ingress::bind(address) {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::warn!(%address, %error, "apps cannot reach each other: something else listens on port 80 of all addresses");
                None
            }
        }
    }

    /// Copies of the listening sockets, for the next server.
    pub(crate) fn copies(&self, internal: Option<&TcpListener>) -> anyhow::Result<Vec<SocketCopy>> {
        let named = [
            (Role::Api, &self.api),
            (Role::Identity, &self.identity),
            (Role::Http, &self.http),
            (Role::Https, &self.https),
        ];
        let internal = internal.map(|listener| (Role::Internal, listener));
        let tls = self.internal_tls.as_ref().map(|listener| (Role::InternalTls, listener));
        named.into_iter().chain(internal).chain(tls).map(|(role, listener)| handover::copy(role, listener)).collect()
    }

    /// Where clients reach the server.
    ///
    /// # Errors
    /// A socket without an address.
    pub(crate) fn endpoints(&self, authority: &Authority, config: &Config) -> anyhow::Result<Endpoints> {
        let url = |scheme: &str, address: SocketAddr| {
            if address.ip().is_loopback() || address.ip().is_unspecified() {
                format!("{scheme}://localhost:{}", address.port())
            } else {
                format!("{scheme}://{address}")
            }
        };
        let api = match config.api.host_names.first() {
            Some(name) => format!("https://{name}:{}", self.api.local_addr()?.port()),
            None => url("https", self.api.local_addr()?),
        };
        Ok(Endpoints {
            api,
            http: url("http", self.http.local_addr()?),
            https: url("https", self.https.local_addr()?),
            ca: fs::canonicalize(authority.ca_path())?,
            pid: std::process::id(),
            identity: url("http", self.identity.local_addr()?),
        })
    }
}

/// A DNS server on the sockets of the server before this one, else on its own.
///
/// # Errors
/// Its address is taken.
pub(crate) async fn dns(config: DnsConfig, inherited: &mut Inherited) -> Result<DnsServer, DnsBindError> {
    let (udp, tcp) = (inherited.take(Role::DnsUdp, config.listen), inherited.take(Role::DnsTcp, config.listen));
    match (udp, tcp) {
        (Some(udp), Some(tcp)) => DnsServer::with(config, DnsSockets { udp: udp.into(), tcp: tcp.into() }),
        _ => DnsServer::bind(config).await,
    }
}

/// Copies of a DNS server's sockets.
///
/// # Errors
/// No descriptor is left.
pub(crate) fn dns_copies(server: &DnsServer) -> anyhow::Result<[SocketCopy; 2]> {
    let DnsSockets { udp, tcp } = server.sockets()?;
    let (udp_address, tcp_address) = (udp.local_addr()?, tcp.local_addr()?);
    Ok([(Role::DnsUdp, udp_address, udp.into()), (Role::DnsTcp, tcp_address, tcp.into())])
}

/// A listening socket of the server before this one.
fn listener_of(socket: OwnedFd) -> anyhow::Result<TcpListener> {
    let socket = std::net::TcpListener::from(socket);
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket).context("failed to use a listening socket of the server before this one")
}

/// Tells clients of this machine where the server is reached.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write_endpoints(data_dir: &Path, endpoints: &Endpoints) -> anyhow::Result<()> {
    let path = data_dir.join("endpoints.json");
    let temporary = data_dir.join("endpoints.json.tmp");
    let text = serde_json::to_string_pretty(endpoints)?;
    fs::write(&temporary, text + "\n")
        .and_then(|()| fs::rename(&temporary, &path))
        .with_context(|| format!("failed to write `{}`", path.display()))
}
