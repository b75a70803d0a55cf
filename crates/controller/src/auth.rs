//! Authentication in front of an app, as its `authConfigs/current` says it, with the secrets that it names.
//!
//! **Invariant:** a configuration that is there is never taken for none: what it cannot give lets nobody in.

use std::{collections::BTreeMap, sync::Arc};

use cove_model::{AuthPolicy, ResourceId};
use cove_store::{Store, StoreError};

/// Kind of the configurations.
pub(crate) const KIND: &str = "microsoft.app/containerapps/authconfigs";

/// What is asked of an app's callers; `None` when nothing is.
pub(crate) fn load(
    store: &Store,
    app: &ResourceId,
    secrets: &BTreeMap<String, String>,
) -> Result<Option<Arc<AuthPolicy>>, StoreError> {
    let Ok(id) = app.child("authConfigs", cove_arm::auth_config::NAME) else { return Ok(None) };
    let row = store.resource(&id)?;
    Ok(row.and_then(|row| cove_arm::auth_config::policy(&row.doc, secrets)).map(Arc::new))
}
