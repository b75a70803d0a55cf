//! TLS at the edge: certificates by server name, and a client certificate where an app of that name wants one.
//!
//! The client's hello is read first; only then is it known whether its host asks for a certificate.
//!
//! Sessions are resumed by tickets, which the client keeps: a resumed handshake costs no signature. The key of the tickets
//! lives in memory, is made anew every six hours and opens tickets of the six hours before it; after a restart of the server
//! handshakes are full ones. Early data (0-RTT) is not taken: it can be replayed.
//!
//! **Invariant:** a session begun without being asked for a certificate is never resumed where one is asked for: each kind of
//! handshake has its own tickets and cache.
//! **Invariant:** a ticket does not stand in for a certificate: where the resolver has none for the host, a resumed handshake
//! is refused as a full one is.

use std::sync::Arc;

use cove_traffic::host_name;
use rustls::{
    ServerConfig,
    server::{Acceptor, ResolvesServerCert},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::{
    client_certificate::{AnyOwned, TlsClient, forwarded},
    io::Protocol,
};

/// Both kinds of handshake.
pub(crate) struct Tls {
    plain: Arc<ServerConfig>,
    asking: Arc<ServerConfig>,
}

impl Tls {
    /// # Errors
    /// Settings that rustls refuses.
    pub(crate) fn new(certificates: Arc<dyn ResolvesServerCert>) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            || ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let mut plain = builder()?.with_no_client_auth().with_cert_resolver(Arc::clone(&certificates));
        let verifier = Arc::new(AnyOwned::new(Arc::clone(&provider)));
        let mut asking = builder()?.with_client_cert_verifier(verifier).with_cert_resolver(certificates);
        for config in [&mut plain, &mut asking] {
            config.alpn_protocols = ["h2", "http/1.1", "http/1.0"].map(|name| name.as_bytes().to_vec()).into();
            config.ticketer = rustls::crypto::ring::Ticketer::new()?;
        }
        Ok(Self { plain: Arc::new(plain), asking: Arc::new(asking) })
    }

    /// Takes a handshake; `asks` says of a host whether its clients are asked for a certificate.
    ///
    /// # Errors
    /// Those of the stream, and handshakes that fail.
    pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        asks: impl FnOnce(&str) -> bool,
    ) -> std::io::Result<(TlsStream<S>, Protocol, TlsClient)> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let was_asked = start.client_hello().server_name().is_some_and(|name| asks(&host_name(name)));
        let config = if was_asked { &self.asking } else { &self.plain };
        let stream = start.into_stream(Arc::clone(config)).await?;
        let connection = stream.get_ref().1;
        let protocol = match connection.alpn_protocol() {
            Some(b"h2") => Protocol::Http2,
            _ => Protocol::Http1,
        };
        let client = TlsClient { was_asked, forwarded: connection.peer_certificates().and_then(forwarded) };
        Ok((stream, protocol, client))
    }
}
