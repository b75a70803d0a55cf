//! Connections: TCP, with TLS where the URL asks for it.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    loss::{Failure, LossKind, Remedy},
    plan::Plan,
};

/// One connection.
#[derive(Debug)]
pub(crate) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Where connections lead.
#[derive(Debug)]
pub(crate) struct Dialer {
    addresses: Vec<SocketAddr>,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Dialer {
    /// Looks the host up, once.
    pub(crate) async fn new(plan: &Plan) -> Result<Self, Failure> {
        let target = &plan.target;
        let host = target.host.trim_start_matches('[').trim_end_matches(']');
        let addresses = match plan.address {
            Some(address) => vec![address],
            // names below localhost are this machine, whatever its resolver knows (RFC 6761)
            None if host == "localhost" || host.ends_with(".localhost") => vec![
                SocketAddr::from(([127, 0, 0, 1], target.port)),
                SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, target.port)),
            ],
            None => {
                let found = tokio::time::timeout(plan.timeout, tokio::net::lookup_host((host, target.port))).await;
                let found = found
                    .map_err(|_| Failure::new(LossKind::Connect, format!("`{host}` was not looked up in time")))?;
                let found = found
                    .map_err(|error| Failure::new(LossKind::Connect, format!("failed to look up `{host}`: {error}")))?;
                found.collect()
            }
        };
        if addresses.is_empty() {
            return Err(Failure::new(LossKind::Connect, format!("`{host}` has no address")));
        }
        let tls = match target.is_tls {
            true => {
                let alpn: &[u8] = if plan.protocol.is_http2() { b"h2" } else { b"http/1.1" };
                let name = ServerName::try_from(host.to_owned());
                let name = name.map_err(|_| Failure::new(LossKind::Tls, format!("`{host}` is no name of a server")))?;
                Some((crate::tls::client(&plan.trust, alpn)?, name))
            }
            false => None,
        };
        Ok(Self { addresses, tls })
    }

    /// Opens a connection; the first address that answers is taken.
    pub(crate) async fn connect(&self) -> Result<Wire, Failure> {
        let mut last = None;
        for address in &self.addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return self.secure(stream).await,
                // the first address says most
                Err(error) => last = last.or(Some(error)),
            }
        }
        let error = last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into());
        let is_refused = error.kind() == io::ErrorKind::ConnectionRefused;
        let kind = if is_refused { LossKind::Refused } else { LossKind::Connect };
        let failure = Failure::new(kind, error.to_string());
        Err(if is_refused { Failure { remedy: Remedy::Refused, ..failure } } else { failure })
    }

    async fn secure(&self, stream: TcpStream) -> Result<Wire, Failure> {
        // without it small frames wait for acknowledgements; a connection that is dead already says so when used
        let _dead = stream.set_nodelay(true);
        let Some((config, name)) = &self.tls else { return Ok(Wire::Plain(stream)) };
        let connected = TlsConnector::from(Arc::clone(config)).connect(name.clone(), stream).await;
        let stream = connected.map_err(|error| Failure::new(LossKind::Tls, error.to_string()))?;
        let wanted = config.alpn_protocols.first().map(Vec::as_slice);
        if wanted == Some(b"h2".as_slice()) && stream.get_ref().1.alpn_protocol() != wanted {
            return Err(Failure::new(LossKind::Tls, "the server does not speak HTTP/2"));
        }
        Ok(Wire::Tls(Box::new(stream)))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
