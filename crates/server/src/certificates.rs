//! Certificates of environments, read from the store and ready for handshakes: uploaded ones, managed ones, and those of
//! environments' own DNS suffixes.
//!
//! **Invariant:** a certificate that was changed or removed is not shown in any handshake that begins after the change was
//! seen; connections that stand go on.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::Context;
use cove_base::Backoff;
use cove_model::{CERTIFICATE_KEY_SECRET, Certificate, Environment, ResourceId};
use cove_store::Store;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

/// Environments, which have one when they have a DNS suffix.
const ENVIRONMENT: &str = "microsoft.app/managedenvironments";
/// Kinds of resources that hold a certificate.
const KINDS: [&str; 3] = [
    "microsoft.app/managedenvironments/certificates",
    "microsoft.app/managedenvironments/managedcertificates",
    ENVIRONMENT,
];

/// Certificates by resource id; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Certificates {
    by_id: Arc<RwLock<HashMap<ResourceId, Arc<CertifiedKey>>>>,
}

impl Certificates {
    /// Those that are in the store now.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn load(store: &Store) -> anyhow::Result<Self> {
        let certificates = Self::default();
        for kind in KINDS {
            for row in store.resources(kind, None)? {
                certificates.refresh(store, &row.id)?;
            }
        }
        Ok(certificates)
    }

    /// The certificate of a resource.
    pub(crate) fn get(&self, id: &ResourceId) -> Option<Arc<CertifiedKey>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Follows the store; ends only when dropped.
    pub(crate) async fn follow(self, store: Store) {
        let mut changes = store.changes();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut todo: BTreeSet<ResourceId> = BTreeSet::new();
        loop {
            if todo.is_empty() {
                todo = changes.next().await;
            }
            todo.retain(|id| KINDS.contains(&id.kind().to_ascii_lowercase().as_str()));
            if todo.is_empty() {
                continue;
            }
            let (certificates, store, ids) = (self.clone(), store.clone(), todo.clone());
            let read =
                tokio::task::spawn_blocking(move || ids.iter().try_for_each(|id| certificates.refresh(&store, id)));
            match read.await {
                Ok(Ok(())) => {
                    todo.clear();
                    backoff.reset();
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "changed certificates could not be read; it is tried again");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
                Err(_stopped) => return,
            }
        }
    }

    /// Reads one anew. What cannot be used is logged and taken out: its hosts refuse TLS rather than show something old.
    fn refresh(&self, store: &Store, id: &ResourceId) -> anyhow::Result<()> {
        let spec = store.resource(id)?.and_then(|row| row.spec);
        let unusable = |error: &anyhow::Error| {
            tracing::warn!(certificate = %id, error = format!("{error:#}"), "a certificate cannot be used");
        };
        let chain = spec.and_then(|spec| chain_of(id, spec).inspect_err(unusable).ok().flatten());
        let made = match chain {
            Some(chain) => {
                let key = store.secrets(id)?.remove(CERTIFICATE_KEY_SECRET);
                certified(&chain, key.as_deref()).inspect_err(unusable).ok()
            }
            None => None,
        };
        let mut by_id = self.by_id.write().unwrap_or_else(PoisonError::into_inner);
        match made {
            Some(made) => by_id.insert(id.clone(), made),
            None => by_id.remove(id),
        };
        Ok(())
    }
}

/// The chain in PEM of a stored resource; `None` when there is none, or none yet.
fn chain_of(id: &ResourceId, spec: serde_json::Value) -> anyhow::Result<Option<String>> {
    let damaged = "its stored form cannot be read";
    if id.kind().eq_ignore_ascii_case(ENVIRONMENT) {
        let environment: Environment = serde_json::from_value(spec).context(damaged)?;
        return Ok(environment.suffix.map(|suffix| suffix.chain_pem));
    }
    let certificate: Certificate = serde_json::from_value(spec).context(damaged)?;
    Ok(Some(certificate.chain_pem).filter(|chain| !chain.is_empty()))
}

/// Chain and key as rustls uses them.
fn certified(chain_pem: &str, key_pem: Option<&str>) -> anyhow::Result<Arc<CertifiedKey>> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .context("its chain is not PEM")?;
    anyhow::ensure!(!chain.is_empty(), "its chain has no certificate");
    let key = key_pem.context("it has no private key")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("its private key is not PEM")?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).context("its private key is of an unknown kind")?;
    let made = CertifiedKey::new(chain, key);
    made.keys_match().context("its private key belongs to another certificate")?;
    Ok(Arc::new(made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_and_key_must_belong_together() {
        let made = rcgen::generate_simple_self_signed(vec!["shop.example".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(vec!["shop.example".to_owned()]).unwrap();
        let chain = made.cert.pem();
        certified(&chain, Some(&made.signing_key.serialize_pem())).unwrap();
        for (key, expected) in [
            (Some(other.signing_key.serialize_pem()), "its private key belongs to another certificate"),
            (Some("no PEM".into()), "its private key is not PEM"),
            (None, "it has no private key"),
        ] {
            assert_eq!(certified(&chain, key.as_deref()).unwrap_err().to_string(), expected);
        }
    }
}
