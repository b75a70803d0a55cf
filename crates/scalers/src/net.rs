//! How a source is reached: a TCP connection to a host as the rule's environment sees it, plain or under TLS.
//!
//! Scalers whose client library dials by itself use [`resolve`]; the others [`dial`] and [`secure`].
//!
//! **Invariant:** dropping the future closes the connection; nothing runs on behind it.
//! **Invariant:** an error names the host and what failed, never a certificate's key.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::source::{HostResolver, OpenError, ReadError};

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

/// What a rule says about TLS; texts are PEM.
#[derive(Clone, Copy, Default)]
pub(crate) struct TlsSettings<'a> {
    /// Authorities beside the system's own.
    pub(crate) ca: Option<&'a str>,
    /// The client's certificate and those above it.
    pub(crate) cert: Option<&'a str>,
    /// Its key.
    pub(crate) key: Option<&'a str>,
    /// Any certificate of the server will do.
    pub(crate) is_unsafe: bool,
    /// Protocols by ALPN, best first.
    pub(crate) protocols: &'a [&'a [u8]],
}

impl TlsSettings<'_> {
    /// The client's side of TLS by these settings.
    ///
    /// # Errors
    /// Text that is no PEM, or a certificate without its key.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, OpenError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| OpenError::metadata(format!("TLS cannot be set up: {e}")))?;
        let builder = if self.is_unsafe {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        } else {
            builder.with_root_certificates(self.roots()?)
        };
        let mut config = match (self.cert, self.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let chain = certificates(cert).ok_or_else(|| OpenError::metadata("the client certificate is not PEM"))?;
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| {
                    OpenError::metadata("the client key is not a PEM key without a password (PKCS#8, PKCS#1 or SEC1)")
                })?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|e| OpenError::metadata(format!("the client certificate does not fit its key: {e}")))?
            }
            _ => return Err(OpenError::metadata("give both the client certificate and its key, or neither")),
        };
        config.alpn_protocols = self.protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, OpenError> {
        let mut roots = RootCertStore::empty();
        // A system without authorities is no failure: the rule may bring its own.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(ca) = self.ca {
            let given = certificates(ca).ok_or_else(|| OpenError::metadata("the ca certificate is not PEM"))?;
            for certificate in given {
                roots.add(certificate).map_err(|e| OpenError::metadata(format!("the ca certificate is wrong: {e}")))?;
            }
        }
        Ok(roots)
    }
}

impl fmt::Debug for TlsSettings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSettings").field("is_unsafe", &self.is_unsafe).finish_non_exhaustive()
    }
}

/// The certificates of a PEM text; `None` where there is none or one is broken.
fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    all.ok().filter(|all| !all.is_empty())
}

/// `unsafeSsl`: the server may be anybody, but it must hold the key it shows.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
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

    #[test]
    fn tls_says_what_is_wrong_with_it() {
        let of = |settings: TlsSettings<'_>| settings.config().map(drop).unwrap_err().to_string();
        assert_eq!(of(TlsSettings { ca: Some("x"), ..TlsSettings::default() }), "the ca certificate is not PEM");
        assert_eq!(
            of(TlsSettings { cert: Some("x"), ..TlsSettings::default() }),
            "give both the client certificate and its key, or neither"
        );
        TlsSettings { is_unsafe: true, ..TlsSettings::default() }.config().unwrap();
    }
}
