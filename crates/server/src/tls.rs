//! Cove's own certificate authority, the API's certificate, and certificates of apps made when a client first asks.
//!
//! The CA is made once per data directory (`tls/ca.pem`, `tls/ca.key`, mode 0600); clients are told about `ca.pem`.
//!
//! **Invariant:** certificates of apps are made only for hosts that are routed, and a bounded number is kept.

use std::{
    collections::HashMap,
    fs,
    io::Write,
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use cove_base::Backoff;
use cove_ingress::IngressHandle;
use cove_traffic::RouteTable;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{net::TcpListener, sync::watch};

/// App certificates kept in memory; beyond that all are forgotten and made again when asked for.
const KEPT_MAX: usize = 10_000;

/// Signs certificates for this server.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca: CertificateDer<'static>,
    path: PathBuf,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads the authority of a data directory, or makes it.
    ///
    /// # Errors
    /// When the files cannot be read or written, or are damaged.
    pub(crate) fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let dir = data_dir.join("tls");
        fs::create_dir_all(&dir).with_context(|| format!("failed to create `{}`", dir.display()))?;
        let (certificate, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        if !certificate.exists() || !key.exists() {
            let (certificate_pem, key_pem) = make_authority()?;
            write_private(&key, &key_pem)?;
            let temporary = dir.join("ca.pem.tmp");
            fs::write(&temporary, certificate_pem).and_then(|()| fs::rename(&temporary, &certificate))?;
        }
        let damaged = "is damaged; remove both files of the CA and restart, then tell clients the new ca.pem";
        let key_pem = fs::read_to_string(&key).with_context(|| format!("failed to read `{}`", key.display()))?;
        let pem =
            fs::read_to_string(&certificate).with_context(|| format!("failed to read `{}`", certificate.display()))?;
        let key_pair = KeyPair::from_pem(&key_pem).with_context(|| format!("`{}` {damaged}", key.display()))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key_pair)
            .with_context(|| format!("`{}` {damaged}", certificate.display()))?;
        let ca = rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes())
            .map_err(|error| anyhow::anyhow!("`{}` {damaged}: {error}", certificate.display()))?;
        Ok(Self { issuer, ca, path: certificate })
    }

    /// Path of the certificate that clients must trust.
    #[must_use]
    pub(crate) fn ca_path(&self) -> &Path {
        &self.path
    }

    /// A certificate for some names and addresses, valid until 2099.
    ///
    /// # Errors
    /// When a name is not a DNS name.
    pub(crate) fn certify(&self, names: &[String], addresses: &[IpAddr]) -> anyhow::Result<Arc<CertifiedKey>> {
        let (certificate, key) = self.sign(names, addresses)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = rustls::crypto::ring::sign::any_supported_type(&private).context("failed to use the key")?;
        let chain = vec![certificate.der().clone(), self.ca.clone()];
        Ok(Arc::new(CertifiedKey::new(chain, signer)))
    }

    /// The same in PEM, chain and key: a managed certificate of an environment.
    ///
    /// # Errors
    /// When a name is not a DNS name.
    pub(crate) fn issue(&self, names: &[String]) -> anyhow::Result<cove_control_plane::Issued> {
        let (certificate, key) = self.sign(names, &[])?;
        let ca = fs::read_to_string(&self.path).with_context(|| format!("failed to read `{}`", self.path.display()))?;
        let chain_pem = format!("{}{ca}", certificate.pem());
        Ok(cove_control_plane::Issued { chain_pem, key_pem: key.serialize_pem() })
    }

    fn sign(&self, names: &[String], addresses: &[IpAddr]) -> anyhow::Result<(rcgen::Certificate, KeyPair)> {
        let key = KeyPair::generate().context("failed to make a key")?;
        let mut params = CertificateParams::new(names.to_vec()).context("failed to name the certificate")?;
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        params.distinguished_name.push(DnType::CommonName, names.first().map_or("cove", String::as_str));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = rcgen::date_time_ymd(2024, 1, 1);
        params.not_after = rcgen::date_time_ymd(2099, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).context("failed to sign the certificate")?;
        Ok((certificate, key))
    }
}

fn make_authority() -> anyhow::Result<(String, String)> {
    let key = KeyPair::generate().context("failed to make the CA's key")?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Cove local CA");
    params.distinguished_name.push(DnType::OrganizationName, "Cove");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2099, 1, 1);
    let certificate = params.self_signed(&key).context("failed to sign the CA")?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let temporary = path.with_extension("key.tmp");
    let _may_be_missing = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path))?;
    Ok(())
}

/// Serves apps to each other with TLS at an address of the replicas' gateway, once the routes are known. While somebody
/// else has the address, such as the server before this one, it is tried again.
pub(crate) async fn listen_inside(
    address: SocketAddr,
    mut open: Option<TcpListener>,
    ingress: IngressHandle,
    mut loaded: watch::Receiver<bool>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    loop {
        match open.take().map_or_else(|| cove_ingress::bind(address), Ok) {
            Ok(listener) => {
                if loaded.wait_for(|loaded| *loaded).await.is_ok() {
                    ingress.listen_internal_tls(listener);
                }
                return;
            }
            Err(error) => {
                if backoff.tries() == 0 {
                    tracing::warn!(%address, %error, "apps cannot reach each other with TLS yet; it is tried again");
                }
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }
}

/// Whether a server name is what replicas call an app of some environment: a name without dots.
pub(crate) fn is_app_name(table: &RouteTable, name: &str) -> bool {
    !name.contains('.')
        && table.names.iter().any(|(known, _)| known.split_once('@').is_some_and(|(known, _)| known == name))
}

/// What a host shows to TLS clients.
pub(crate) enum Shown {
    /// A certificate of the authority, made for it.
    Made,
    /// One of its environment's.
    Its(Arc<CertifiedKey>),
    /// Nothing: the handshake is refused.
    Nothing,
    /// No app has this host: the one for `localhost`.
    Other,
}

/// Gives each app host its certificate: its own, or one made when first asked for.
pub(crate) struct AppCertificates {
    authority: Arc<Authority>,
    shown: Box<dyn Fn(&str) -> Shown + Send + Sync>,
    kept: Mutex<HashMap<String, Arc<CertifiedKey>>>,
    other: Arc<CertifiedKey>,
}

impl std::fmt::Debug for AppCertificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppCertificates").finish_non_exhaustive()
    }
}

impl AppCertificates {
    /// Certificates as `shown` says of a host.
    ///
    /// # Errors
    /// When no certificate can be made at all.
    pub(crate) fn new(
        authority: Arc<Authority>,
        shown: impl Fn(&str) -> Shown + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let other = authority.certify(&["localhost".to_owned()], &[IpAddr::from([127, 0, 0, 1])])?;
        Ok(Self { authority, shown: Box::new(shown), kept: Mutex::new(HashMap::new()), other })
    }
}

impl ResolvesServerCert for AppCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some(host) = hello.server_name().map(str::to_ascii_lowercase) else { return Some(Arc::clone(&self.other)) };
        match (self.shown)(&host) {
            Shown::Made => {}
            Shown::Its(certificate) => return Some(certificate),
            Shown::Nothing => return None,
            Shown::Other => return Some(Arc::clone(&self.other)),
        }
        if let Some(kept) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&host) {
            return Some(Arc::clone(kept));
        }
        let made = self.authority.certify(std::slice::from_ref(&host), &[]).ok()?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(host, Arc::clone(&made));
        Some(made)
    }
}

#[cfg(test)]
mod tests {
    use cove_model::{ResourceId, Transport};
    use cove_traffic::{AppRoute, AppRouteState, short_name};

    use super::*;

    #[test]
    fn short_names_of_apps_are_known_and_nothing_else() {
        let environment = ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", "env").unwrap();
        let route = AppRoute {
            app: ResourceId::resource("s", "g", "Microsoft.App/containerApps", "web").unwrap(),
            environment: environment.clone(),
            external: false,
            allow_insecure: false,
            transport: Transport::Auto,
            policies: Arc::default(),
            revisions: Vec::new(),
            state: AppRouteState::Active,
        };
        let mut table = RouteTable::default();
        table.names.insert(&short_name(&environment, "web"), Arc::new(route));
        for (name, expected) in [("web", true), ("we", false), ("web.example", false), ("", false)] {
            assert_eq!(is_app_name(&table, name), expected, "{name}");
        }
    }

    #[test]
    fn the_authority_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::open(dir.path()).unwrap();
        let second = Authority::open(dir.path()).unwrap();
        assert_eq!(first.ca, second.ca);
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(dir.path().join("tls/ca.key")).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        second.certify(&["localhost".to_owned()], &[IpAddr::from([127, 0, 0, 1])]).unwrap();
    }
}
