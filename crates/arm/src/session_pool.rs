//! `Microsoft.App/sessionPools`: checks a body into the model, and shows a pool.
//!
//! As for apps, the canonical document (Azure's spelling, no defaults) and the model (all defaults) are both stored. What
//! Azure lacks has names that begin with `cove`: `coveIsolation`, `coveSnapshot`, `coveSuspend`.
//!
//! **Invariant:** a document from [`parse_put`] holds no secret value and no read-only property, and parsing it again gives
//! the same pool.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use cove_model::{ResourceId, RevisionName, SessionIsolation, SessionPool, SnapshotId};
use serde_json::Value;

use crate::{
    ArmError, Errors,
    container_app::align_identities,
    schema::{Nulls, normalise},
};

mod check;
mod egress;
mod properties;
mod render;
mod snapshots;
#[cfg(test)]
mod tests;

pub use render::{View, render, render_credentials};

/// What a pool's PUT needs to know.
#[derive(Clone, Copy, Debug)]
pub struct PoolContext<'a> {
    /// The id in the URL.
    pub id: &'a ResourceId,
    /// Names of the secrets that are stored already: those may come without a value.
    pub known_secrets: &'a BTreeSet<String>,
    /// Isolation of a pool that does not say.
    pub default_isolation: &'a SessionIsolation,
    /// What this machine can do.
    pub isolations: &'a [SessionIsolation],
    /// Snapshots that sessions may begin with: those of this pool by name, those of others of the group as `pool/name`.
    pub snapshots: &'a BTreeMap<String, SnapshotId>,
    /// Name for the pool as it is asked for; the caller keeps the old one where nothing changes inside.
    pub generation: &'a RevisionName,
}

/// A checked PUT or PATCH of a pool; its `Debug` text has the names of secrets only.
#[derive(Clone, PartialEq)]
pub struct ParsedPool {
    /// What is asked, with all defaults.
    pub pool: SessionPool,
    /// The document to store.
    pub doc: Value,
    /// All secrets the pool has after this request; `None` keeps the stored value.
    pub secrets: BTreeMap<String, Option<String>>,
}

impl fmt::Debug for ParsedPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets = self.secrets.keys();
        f.debug_struct("ParsedPool").field("doc", &self.doc).field("secrets", &secrets).finish_non_exhaustive()
    }
}

/// Checks a PUT. That the environment and the identities exist is for the caller to check.
///
/// # Errors
/// Every problem at once: 400, or 501 when all that is asked for exists in Azure but not here yet.
pub fn parse_put(body: &Value, context: &PoolContext<'_>) -> Result<ParsedPool, ArmError> {
    let mut errors = Errors::new();
    let mut doc = normalise(body, &properties::POOL, Nulls::Drop, &mut errors);
    properties::strip_read_only(&mut doc);
    let parsed = check::pool(doc, context, &mut errors);
    errors.into_result()?;
    Ok(parsed)
}

/// Merges a PATCH into the stored document and checks the outcome. Another `lifecycleType` leaves the period of the old one
/// behind.
///
/// # Errors
/// As [`parse_put`].
pub fn parse_patch(stored: &Value, patch: &Value, context: &PoolContext<'_>) -> Result<ParsedPool, ArmError> {
    const LIFECYCLE: &str = "/properties/dynamicPoolConfiguration/lifecycleConfiguration";
    let mut errors = Errors::new();
    let mut patch = normalise(patch, &properties::POOL, Nulls::Keep, &mut errors);
    errors.into_result()?;
    let mut doc = stored.clone();
    align_identities(&doc, &mut patch);
    properties::lift_old_lifecycle(&mut patch);
    if let Some(kind) = patch.pointer(&format!("{LIFECYCLE}/lifecycleType")).and_then(Value::as_str)
        && let Some(fields) = doc.pointer_mut(LIFECYCLE).and_then(Value::as_object_mut)
    {
        fields.remove(if kind == "Timed" { "maxAlivePeriodInSeconds" } else { "cooldownPeriodInSeconds" });
    }
    crate::patch::merge(&mut doc, &patch);
    parse_put(&doc, context)
}
