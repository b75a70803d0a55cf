//! One ask of a probe: a connection, or one HTTP request of our own over it.
//!
//! **Invariant:** reads at most [`HEAD_BYTES_MAX`]; the caller sets the time limit.

use std::{io, net::Ipv4Addr, sync::Arc};

use cove_model::{ProbeAction, ReplicaName};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

/// Longest status line, bytes.
const HEAD_BYTES_MAX: usize = 1024;

use crate::driver::{Inner, sandbox};

/// How a replica is reached.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// Over its network.
    Address(Ipv4Addr),
    /// From inside its network namespace.
    Inside(Arc<Inner>, ReplicaName),
}

impl Way {
    fn address(&self) -> Ipv4Addr {
        match self {
            Self::Address(address) => *address,
            Self::Inside(..) => Ipv4Addr::LOCALHOST,
        }
    }

    async fn connect(&self, port: u16) -> Result<TcpStream, String> {
        let connected: io::Result<TcpStream> = match self {
            Self::Address(address) => TcpStream::connect((*address, port)).await,
            Self::Inside(inner, name) => {
                sandbox::dial(Arc::clone(inner), name.clone(), port).await.and_then(TcpStream::from_std)
            }
        };
        connected.map_err(|error| format!("connection to {}:{port} failed: {error}", self.address()))
    }
}

/// Asks once; the error is for the system log.
pub(super) async fn ask(way: &Way, action: &ProbeAction) -> Result<(), String> {
    match action {
        ProbeAction::Tcp { port } => way.connect(*port).await.map(drop),
        ProbeAction::HttpGet { port, path, https, host, headers } => {
            let address = way.address();
            let stream = way.connect(*port).await?;
            let mut head = format!("GET {} HTTP/1.1\r\n", path_of(path));
            let host = host.clone().unwrap_or_else(|| format!("{address}:{port}"));
            head.push_str(&line("Host", &host));
            if !headers.keys().any(|name| name.eq_ignore_ascii_case("user-agent")) {
                head.push_str(&line("User-Agent", "cove-probe/1.0"));
            }
            for (name, value) in headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
                head.push_str(&line(name, value));
            }
            head.push_str("Accept: */*\r\nConnection: close\r\n\r\n");
            let status = if *https {
                request(tls::wrap(stream, address).await?, &head).await?
            } else {
                request(stream, &head).await?
            };
            if (200..400).contains(&status) {
                return Ok(());
            }
            Err(format!("HTTP probe failed with statuscode: {status}"))
        }
    }
}

/// The path with a slash in front, without what would end the line.
fn path_of(path: &str) -> String {
    let clean: String = path.chars().filter(|c| !c.is_ascii_control() && *c != ' ').collect();
    if clean.starts_with('/') { clean } else { format!("/{clean}") }
}

fn line(name: &str, value: &str) -> String {
    let clean = |text: &str| text.chars().filter(|c| !c.is_ascii_control()).collect::<String>();
    format!("{}: {}\r\n", clean(name), clean(value))
}

async fn request(mut stream: impl AsyncRead + AsyncWrite + Unpin, head: &str) -> Result<u16, String> {
    let failed = |error: std::io::Error| format!("the HTTP request failed: {error}");
    stream.write_all(head.as_bytes()).await.map_err(failed)?;
    let mut bytes = Vec::new();
    while !bytes.contains(&b'\n') && bytes.len() < HEAD_BYTES_MAX {
        let mut buffer = [0; 256];
        match stream.read(&mut buffer).await.map_err(failed)? {
            0 => break,
            length => bytes.extend_from_slice(&buffer[..length]),
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut words = text.split_whitespace();
    match (words.next(), words.next().and_then(|word| word.parse().ok())) {
        (Some(version), Some(status)) if version.starts_with("HTTP/1.") => Ok(status),
        _ => Err("the answer is not HTTP".to_owned()),
    }
}

/// TLS without any check of the certificate, as probes do: the peer is ours, found by its address.
mod tls {
    use std::{net::Ipv4Addr, sync::Arc};

    use rustls::{
        ClientConfig, DigitallySignedStruct, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, ServerName, UnixTime},
    };
    use tokio::net::TcpStream;
    use tokio_rustls::{TlsConnector, client::TlsStream};

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
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }

    pub(super) async fn wrap(stream: TcpStream, address: Ipv4Addr) -> Result<TlsStream<TcpStream>, String> {
        let failed = |error: &dyn std::fmt::Display| format!("the TLS handshake failed: {error}");
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        let name = ServerName::IpAddress(std::net::IpAddr::V4(address).into());
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_wrote_cannot_add_lines() {
        assert_eq!(path_of("a b\r\nX: y"), "/abX:y");
        assert_eq!(line("X\n", "1\r\n2"), "X: 12\r\n");
    }

    #[tokio::test]
    async fn a_status_decides() {
        for (answer, is_ok) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", true),
            ("HTTP/1.0 302 Found\r\n\r\n", true),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", false),
            ("SSH-2.0-x\r\n", false),
            ("", false),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let action = ProbeAction::HttpGet {
                port,
                path: "/".to_owned(),
                https: false,
                host: None,
                headers: indexmap::IndexMap::default(),
            };
            let server = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                assert!(stream.read(&mut buffer).await.unwrap() > 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let (result, ()) = tokio::join!(ask(&Way::Address(Ipv4Addr::LOCALHOST), &action), server);
            assert_eq!(result.is_ok(), is_ok, "{answer:?}: {result:?}");
        }
    }
}
