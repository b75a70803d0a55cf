//! How a source is reached: a TCP connection to a host as the rule's environment sees it, plain or under TLS.
//!
//! Scalers whose client library dials by itself use [`resolve`]; the others [`dial`] and [`secure`].
//!
//! **Invariant:** dropping the future closes the connection; nothing runs on behind it.
//! **Invariant:** an error names the host and what failed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::source::{HostResolver, ReadError};

/// A connection, plain or under TLS.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// The addresses of `host`: the environment's own names first, then the system's.
pub(crate) async fn resolve(hosts: &HostResolver, host: &str, port: u16) -> Result<Vec<SocketAddr>, ReadError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Some(address) = bare.parse::<IpAddr>().ok().or_else(|| hosts(bare)) {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let found = tokio::net::lookup_host((bare, port)).await;
    let addresses: Vec<_> = found.map_err(|e| ReadError::new(format!("cannot resolve {host}: {e}")))?.collect();
    if addresses.is_empty() {
        return Err(ReadError::new(format!("cannot resolve {host}: it has no address")));
    }
    Ok(addresses)
}

/// A plain connection.
pub(crate) async fn dial(hosts: &HostResolver, host: &str, port: u16) -> Result<TcpStream, ReadError> {
    let addresses = resolve(hosts, host, port).await?;
    let stream = TcpStream::connect(addresses.as_slice()).await;
    let stream = stream.map_err(|e| ReadError::new(format!("cannot connect to {host}:{port}: {e}")))?;
    // A scaler's question is one small packet; a failure only costs its delay.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// TLS on a connection to `host`.
pub(crate) async fn secure<S: Wire>(
    stream: S,
    config: &Arc<ClientConfig>,
    host: &str,
) -> Result<tokio_rustls::client::TlsStream<S>, ReadError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned())
        .map_err(|_| ReadError::new(format!("`{host}` cannot be the name of a TLS server")))?;
    let connected = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
    connected.map_err(|e| ReadError::new(format!("the TLS handshake with {host} failed: {e}")))
}

/// `host:port`, where the port may be missing. An IPv6 address stands in brackets.
pub(crate) fn host_and_port(text: &str, default_port: u16) -> Option<(String, u16)> {
    let text = text.trim();
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok().filter(|port| *port > 0)?),
        _ => (text, default_port),
    };
    let is_plain = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/');
    is_plain.then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port_or_its_default() {
        for (text, expected) in [
            ("redis:6379", Some(("redis", 6379))),
            ("redis", Some(("redis", 1))),
            ("[::1]:9092", Some(("[::1]", 9092))),
            ("[::1]", Some(("[::1]", 1))),
            ("redis:0", None),
            ("redis:port", None),
            ("http://redis:1", None),
            (":1", None),
        ] {
            let expected = expected.map(|(host, port): (&str, u16)| (host.to_owned(), port));
            assert_eq!(host_and_port(text, 1), expected, "{text}");
        }
    }
}
