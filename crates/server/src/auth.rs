//! What authentication in front of apps needs from the server: a key that outlives restarts, a folder, authorities, events.
//!
//! **Invariant:** the key is in the store, sealed, before anything is sealed with it.

use std::{fs, path::Path, sync::Arc};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use cove_ingress::{AuthKey, AuthSources};
use cove_model::SystemEvent;
use cove_store::Store;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::sync::mpsc;

use crate::tls::Authority;

/// Setting that holds the key.
const KEY_SETTING: &str = "ingress.auth_key";
/// Folder of the token store in the data directory.
const SESSIONS_DIR: &str = "auth-sessions";

/// Reads or makes what logins need.
///
/// # Errors
/// When the store cannot be read or written, or holds a damaged key.
pub(crate) async fn sources(
    store: &Store,
    data_dir: &Path,
    authority: &Authority,
    events: mpsc::Sender<SystemEvent>,
) -> anyhow::Result<AuthSources> {
    // a provider that is itself an app of this server shows a certificate of its authority
    let pem =
        fs::read(authority.ca_path()).with_context(|| format!("failed to read `{}`", authority.ca_path().display()))?;
    let roots = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().context("Cove's own CA")?;
    Ok(AuthSources {
        key: key(store).await?,
        tokens: Some(data_dir.join(SESSIONS_DIR)),
        roots,
        tell: Arc::new(move |event| {
            if events.try_send(event).is_err() {
                tracing::debug!("a system event was dropped: its reader is behind or gone");
            }
        }),
    })
}

async fn key(store: &Store) -> anyhow::Result<AuthKey> {
    if let Some(text) = store.sealed_setting(KEY_SETTING)? {
        let bytes = BASE64.decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let bytes = bytes.with_context(|| {
            format!("the key of logins in the store is damaged; remove `{KEY_SETTING}` from `sealed_settings`, then all log in again")
        })?;
        return Ok(AuthKey::new(bytes));
    }
    let bytes: [u8; 32] = rand::random();
    store.set_sealed_setting(KEY_SETTING.to_owned(), BASE64.encode(bytes)).await?;
    Ok(AuthKey::new(bytes))
}
