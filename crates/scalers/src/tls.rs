//! TLS of event sources: which certificates are trusted, and the client's own.
//!
//! `ca`, `cert`, `key` and `keyPassword` are PEM texts, as in KEDA. A `ca` is trusted beside the system's authorities, and
//! so are those of the server's configuration ([`Roots`]).
//!
//! **Invariant:** [`TlsOptions::check`] finds unreadable PEM when the rule is opened, not at its first read.
//! **Invariant:** an error names the parameter, never its content.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::source::{OpenError, Trigger};

/// Authorities of the server's configuration that all event sources may be signed by, beside the system's.
#[derive(Clone, Debug, Default)]
pub struct Roots(Arc<Vec<CertificateDer<'static>>>);

impl Roots {
    /// Reads certificates from PEM texts.
    ///
    /// # Errors
    /// A text that holds no certificate.
    pub fn from_pem(texts: &[String]) -> Result<Self, OpenError> {
        let mut all = Vec::new();
        for text in texts {
            all.extend(certificates("ca_certificates", text)?);
        }
        Ok(Self(Arc::new(all)))
    }

    /// The system's authorities and these, for a client that keeps its own store.
    pub(crate) fn store_certificates(&self) -> Vec<CertificateDer<'static>> {
        let is_usable = |root: &CertificateDer<'static>| RootCertStore::empty().add(root.clone()).is_ok();
        let system = rustls_native_certs::load_native_certs().certs;
        system.into_iter().chain(self.0.iter().cloned()).filter(is_usable).collect()
    }

    /// The system's authorities and these.
    fn store(&self) -> RootCertStore {
        static SYSTEM: OnceLock<RootCertStore> = OnceLock::new();
        let load = || {
            let mut store = RootCertStore::empty();
            // A system without authorities is no failure: the rule or the server may bring its own.
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            store
        };
        let mut store = SYSTEM.get_or_init(load).clone();
        store.add_parsable_certificates(self.0.iter().cloned());
        store
    }
}

/// How far the server's certificate is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Trust {
    /// Its signatures and its name.
    #[default]
    Full,
    /// Its signatures only (`sslmode=verify-ca`).
    Chain,
    /// Not at all (`unsafeSsl`, `sslmode=require`).
    Nothing,
}

/// What a rule says about TLS; part of the key of a shared connection.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct TlsOptions {
    pub(crate) trust: Trust,
    /// PEM of further authorities.
    pub(crate) ca: Option<String>,
    /// PEM of the client's chain.
    pub(crate) cert: Option<String>,
    /// PEM of the client's key.
    pub(crate) key: Option<String>,
    /// Of an encrypted PKCS #8 key.
    pub(crate) key_password: Option<String>,
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions").field("trust", &self.trust).finish_non_exhaustive()
    }
}

impl TlsOptions {
    /// Reads `ca`, `cert`, `key`, `keyPassword`; `unsafe_ssl` trusts every server.
    ///
    /// # Errors
    /// Unreadable PEM, or a certificate without its key.
    pub(crate) fn of(trigger: &Trigger, unsafe_ssl: bool) -> Result<Self, OpenError> {
        let text = |key: &str| trigger.get(key).map(str::to_owned);
        let options = Self {
            trust: if unsafe_ssl { Trust::Nothing } else { Trust::Full },
            ca: text("ca"),
            cert: text("cert").or_else(|| text("Cert")),
            key: text("key"),
            key_password: text("keyPassword"),
        };
        options.check()?;
        Ok(options)
    }

    /// # Errors
    /// Unreadable PEM, or a certificate without its key.
    pub(crate) fn check(&self) -> Result<(), OpenError> {
        if let Some(ca) = &self.ca {
            certificates("ca", ca)?;
        }
        self.client_auth().map(drop)
    }

    /// The client's chain and key.
    fn client_auth(&self) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, OpenError> {
        let (cert, key) = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => (cert, key),
            (None, None) => return Ok(None),
            _ => return Err(OpenError::metadata("cert and key belong together; one of them is missing")),
        };
        Ok(Some((certificates("cert", cert)?, private_key(key, self.key_password.as_deref())?)))
    }

    /// The settings of a TLS client. No protocol is offered by ALPN; who needs one sets it.
    ///
    /// # Errors
    /// Unreadable PEM, or a key that does not fit.
    pub(crate) fn client_config(&self, roots: &Roots) -> Result<ClientConfig, OpenError> {
        let wrong = |error: rustls::Error| OpenError::metadata(format!("TLS cannot be set up: {error}"));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self.verifier(roots, provider)?));
        match self.client_auth()? {
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| OpenError::metadata(format!("cert and key cannot be used: {error}"))),
            None => Ok(builder.with_no_client_auth()),
        }
    }

    fn verifier(&self, roots: &Roots, provider: Arc<CryptoProvider>) -> Result<Verifier, OpenError> {
        let algorithms = provider.signature_verification_algorithms;
        if self.trust == Trust::Nothing {
            return Ok(Verifier { trust: self.trust, inner: None, algorithms });
        }
        let mut store = roots.store();
        if let Some(ca) = &self.ca {
            for certificate in certificates("ca", ca)? {
                store
                    .add(certificate)
                    .map_err(|error| OpenError::metadata(format!("a certificate of ca cannot be used: {error}")))?;
            }
        }
        let inner = if store.is_empty() {
            None
        } else {
            let built = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build();
            Some(built.map_err(|error| OpenError::metadata(format!("TLS cannot be set up: {error}")))?)
        };
        Ok(Verifier { trust: self.trust, inner, algorithms })
    }
}

/// The certificates of a PEM text; at least one.
pub(crate) fn certificates(key: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, OpenError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    all.ok()
        .filter(|all| !all.is_empty())
        .ok_or_else(|| OpenError::metadata(format!("{key} is no certificate in PEM (-----BEGIN CERTIFICATE----- ...)")))
}

fn private_key(pem: &str, password: Option<&str>) -> Result<PrivateKeyDer<'static>, OpenError> {
    let wrong = || OpenError::metadata("key is no private key in PEM");
    if !pem.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") {
        return PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| wrong());
    }
    let password = password.ok_or_else(|| OpenError::metadata("key is encrypted and keyPassword is missing"))?;
    let (_, der) = pkcs8::SecretDocument::from_pem(pem).map_err(|_| wrong())?;
    let sealed = pkcs8::EncryptedPrivateKeyInfoRef::try_from(der.as_bytes()).map_err(|_| wrong())?;
    let open = sealed.decrypt(password).map_err(|_| OpenError::metadata("keyPassword does not open key"))?;
    PrivateKeyDer::try_from(open.as_bytes().to_vec()).map_err(|_| wrong())
}

/// Checks a server as far as [`Trust`] says; `inner` is missing where nobody can be trusted, or all are.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    inner: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = match &self.inner {
            _ if self.trust == Trust::Nothing => return Ok(ServerCertVerified::assertion()),
            None => return Err(CertificateError::UnknownIssuer.into()),
            Some(inner) => inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
        };
        match verified {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.trust == Trust::Chain => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_when_the_rule_is_opened() {
        let of = |options: TlsOptions| options.check().unwrap_err().to_string();
        let text = |text: &str| Some(text.to_owned());
        assert!(of(TlsOptions { ca: text("x"), ..TlsOptions::default() }).starts_with("ca is no certificate in PEM"));
        let half = TlsOptions { cert: text("x"), ..TlsOptions::default() };
        assert_eq!(of(half), "cert and key belong together; one of them is missing");
    }
}
