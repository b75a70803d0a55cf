//! The key of a session pool's MCP server (`x-ms-apikey`): made when it is first asked for, kept with the pool's secrets.
//!
//! **Invariant:** the key's name cannot be the name of a user's secret, and no answer but the two here shows it.

use std::collections::BTreeMap;

use axum::response::Response;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use cove_arm::{ArmError, session_pool};
use cove_model::{ResourceId, SessionPool};
use cove_store::{Expect, Provisioning, PutResource, ResourceRow, SecretsChange, StoreError};
use http::Method;
use ring::rand::{SecureRandom, SystemRandom};

use crate::{
    answer::{self, Answer, Refusal},
    call::Call,
    control_plane::ControlPlane,
    groups::TRIES_MAX,
    route::Route,
    session_pools::{self, POOL},
};

/// Name of the key among the pool's secrets; users' names have no upper case.
const KEY: &str = "MCP_API_KEY";
/// Random bytes of a key.
const KEY_BYTES: usize = 32;

pub(crate) fn routes() -> Vec<Route> {
    vec![
        Route::arm(Method::POST, format!("{POOL}/fetchMCPServerCredentials"), fetch),
        Route::arm(Method::POST, format!("{POOL}/rotateMCPServerCredentials"), rotate),
    ]
}

/// Takes the key out of a pool's secrets: what is left are the user's.
pub(crate) fn take(secrets: &mut BTreeMap<String, String>) -> Option<(String, String)> {
    secrets.remove_entry(KEY)
}

/// The key as it is; the first one is made now.
async fn fetch(plane: ControlPlane, call: Call) -> Answer {
    let row = require(&plane, &call)?;
    match plane.store().secrets(&row.id)?.remove(KEY) {
        Some(key) => Ok(shown(&key)),
        None => replace(&plane, &call).await,
    }
}

/// Another key; the old one opens nothing from now on.
async fn rotate(plane: ControlPlane, call: Call) -> Answer {
    replace(&plane, &call).await
}

impl ControlPlane {
    /// A session pool as it is stored; none where there is none or it cannot be read.
    #[must_use]
    pub fn session_pool(&self, id: &ResourceId) -> Option<SessionPool> {
        let row = self.store().resource(id).ok()??;
        session_pools::model(&row).ok()
    }

    /// Whether this is the key of a pool's MCP server; false when the pool has none, or none was fetched yet.
    #[must_use]
    pub fn is_mcp_key(&self, pool: &ResourceId, key: &[u8]) -> bool {
        // what can be none costs no look into the store
        if BASE64.decode(key).ok().is_none_or(|bytes| bytes.len() != KEY_BYTES) {
            return false;
        }
        let known = || -> Option<String> {
            let row = self.store().resource(pool).ok()??;
            session_pools::model(&row).ok()?.is_mcp_enabled.then_some(())?;
            self.store().secrets(pool).ok()?.remove(KEY)
        };
        // digests, so that the time says nothing of how much of a guess is right
        let digest = |bytes: &[u8]| ring::digest::digest(&ring::digest::SHA256, bytes);
        known().is_some_and(|known| digest(known.as_bytes()).as_ref() == digest(key).as_ref())
    }
}

/// The pool of the path, which must have an MCP server.
fn require(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
    let row = session_pools::require(plane, call)?;
    if row.provisioning == Provisioning::Deleting {
        return Err(ArmError::operation_in_progress(row.id.as_str()).into());
    }
    if !session_pools::model(&row)?.is_mcp_enabled {
        let message = format!(
            "The session pool '{}' has no key; set properties.mcpServerSettings.isMCPServerEnabled to true.",
            row.id.name()
        );
        return Err(ArmError::conflict("MCPServerNotEnabled", message).into());
    }
    Ok(row)
}

async fn replace(plane: &ControlPlane, call: &Call) -> Answer {
    let mut id = None;
    for _ in 0..TRIES_MAX {
        let row = require(plane, call)?;
        let mut bytes = [0; KEY_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| Refusal::Broken("no random bytes".into()))?;
        let key = BASE64.encode(bytes);
        let mut secrets: BTreeMap<String, Option<String>> =
            plane.store().secrets(&row.id)?.into_keys().map(|name| (name, None)).collect();
        secrets.insert(KEY.to_owned(), Some(key.clone()));
        let put = PutResource {
            id: row.id.clone(),
            doc: row.doc.clone(),
            spec: row.spec.clone(),
            secrets: SecretsChange::Replace(secrets),
            provisioning: row.provisioning,
            operation: None,
            revision: None,
            expect: Expect::Generation(row.generation),
            now: plane.clock().now(),
        };
        match plane.store().put(put).await {
            Ok(_) => return Ok(shown(&key)),
            Err(StoreError::Conflict { .. }) => id = Some(row.id),
            Err(error) => return Err(error.into()),
        }
    }
    Err(id.map_or_else(|| Refusal::Broken("no try was made".into()), |id| StoreError::Conflict { id }.into()))
}

fn shown(key: &str) -> Response {
    let response = answer::json(200, &session_pool::render_credentials(key));
    answer::with_header(response, "cache-control", "no-store")
}
