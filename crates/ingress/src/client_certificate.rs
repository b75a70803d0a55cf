//! Client certificates: asked for at the TLS handshake where an app wants them, passed on in `X-Forwarded-Client-Cert`.
//!
//! As in Azure, the ingress checks that the client holds the certificate's key, not who issued it: the app decides that.
//!
//! **Invariant:** the field reaches an app only with a certificate whose key the client proved to hold.

use std::{fmt::Write, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

/// Characters that stay as they are in a quoted, percent-encoded PEM.
const PEM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Certificates of a chain that are passed on.
const CHAIN_MAX: usize = 10;

/// Asks every client for a certificate, takes whatever it can prove to own, and lets clients without one through: whether
/// one is required is known only when the request names its app.
#[derive(Debug)]
pub(crate) struct AnyOwned {
    provider: Arc<CryptoProvider>,
}

impl AnyOwned {
    pub(crate) fn new(provider: Arc<CryptoProvider>) -> Self {
        Self { provider }
    }
}

impl ClientCertVerifier for AnyOwned {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a TLS connection knows of its client.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsClient {
    /// It was asked for a certificate.
    pub(crate) was_asked: bool,
    /// `X-Forwarded-Client-Cert` for the certificate that it gave.
    pub(crate) forwarded: Option<HeaderValue>,
}

/// The value of `X-Forwarded-Client-Cert`: hash of the leaf, leaf and whole chain as percent-encoded PEM, as Envoy writes it.
pub(crate) fn forwarded(chain: &[CertificateDer<'_>]) -> Option<HeaderValue> {
    let leaf = chain.first()?;
    let mut text = String::from("Hash=");
    for byte in ring::digest::digest(&ring::digest::SHA256, leaf).as_ref() {
        let _to_a_string = write!(text, "{byte:02x}");
    }
    let whole: String = chain.iter().take(CHAIN_MAX).map(pem).collect();
    let _to_a_string = write!(
        text,
        ";Cert=\"{}\";Chain=\"{}\"",
        utf8_percent_encode(&pem(leaf), PEM),
        utf8_percent_encode(&whole, PEM)
    );
    HeaderValue::try_from(text).ok()
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let encoded = STANDARD.encode(certificate);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in encoded.as_bytes().chunks(64) {
        text.extend(line.iter().copied().map(char::from));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}
