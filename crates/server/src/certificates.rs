//! Certificates of environments, read from the store and ready for handshakes.
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
use cove_model::{CERTIFICATE_KEY_SECRET, Certificate, ResourceId};
use cove_store::Store;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

/// Kinds of resources that hold a certificate.
const KINDS: [&str; 2] =
    ["microsoft.app/managedenvironments/certificates", "microsoft.app/managedenvironments/managedcertificates"];

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
        let made = match spec {
            Some(spec) => {
                let mut secrets = store.secrets(id)?;
                let key = secrets.remove(CERTIFICATE_KEY_SECRET);
                serde_json::from_value::<Certificate>(spec)
                    .context("its stored form cannot be read")
                    .and_then(|certificate| certified(&certificate, key.as_deref()))
                    .inspect_err(|error| tracing::warn!(certificate = %id, error = format!("{error:#}"), "a certificate cannot be used"))
                    .ok()
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

/// Chain and key as rustls uses them.
fn certified(certificate: &Certificate, key_pem: Option<&str>) -> anyhow::Result<Arc<CertifiedKey>> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes())
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
        let certificate = Certificate {
            id: ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", "env").unwrap(),
            chain_pem: made.cert.pem(),
            names: vec!["shop.example".into()],
        };
        certified(&certificate, Some(&made.signing_key.serialize_pem())).unwrap();
        for (key, expected) in [
            (Some(other.signing_key.serialize_pem()), "its private key belongs to another certificate"),
            (Some("no PEM".into()), "its private key is not PEM"),
            (None, "it has no private key"),
        ] {
            assert_eq!(certified(&certificate, key.as_deref()).unwrap_err().to_string(), expected);
        }
    }
}
