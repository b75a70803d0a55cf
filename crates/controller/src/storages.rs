//! The storages of an environment that an app's volumes name.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash as _, Hasher},
};

use cove_model::{EnvironmentStorage, ResourceId, Revision, RevisionStatus, Template, VolumeKind};
use cove_runtime::StorageBinding;
use cove_store::{Store, StoreError};

/// Kind of storages.
pub(crate) const KIND: &str = "microsoft.app/managedenvironments/storages";
/// Under which name the API keeps a storage's account key.
const ACCOUNT_KEY: &str = "account-key";

/// Storages by their name in lower case.
pub(crate) type Storages = BTreeMap<String, StorageBinding>;

/// Names of the storages that a template's volumes use, in lower case.
fn named(template: &Template) -> impl Iterator<Item = String> {
    template.volumes.iter().filter_map(|volume| match &volume.kind {
        VolumeKind::Storage(volume) => Some(volume.storage.to_ascii_lowercase()),
        VolumeKind::EmptyDir | VolumeKind::Secret(_) | VolumeKind::ExecutionDir | VolumeKind::Artifacts(_) => None,
    })
}

/// The storages that volumes of these revisions name; those that are gone are left out.
pub(crate) fn load(
    store: &Store,
    environment: &ResourceId,
    revisions: &[(Revision, RevisionStatus)],
) -> Result<Storages, StoreError> {
    load_of(store, environment, revisions.iter().map(|(revision, _)| &revision.template))
}

/// The storages that volumes of these templates name; those that are gone are left out.
pub(crate) fn load_of<'a>(
    store: &Store,
    environment: &ResourceId,
    templates: impl Iterator<Item = &'a Template>,
) -> Result<Storages, StoreError> {
    let names: BTreeSet<String> = templates.flat_map(named).collect();
    let mut found = Storages::new();
    for name in names {
        let Ok(id) = environment.child("storages", &name) else { continue };
        let Some(spec) = store.resource(&id)?.and_then(|row| row.spec) else { continue };
        let storage: EnvironmentStorage = serde_json::from_value(spec)?;
        let account_key = store.secrets(&id)?.remove(ACCOUNT_KEY);
        found.insert(name, StorageBinding { storage, account_key });
    }
    Ok(found)
}

/// Those of `all` that a template uses; one that is gone is missed when the replica is made.
pub(crate) fn of_template(all: &Storages, template: &Template) -> Storages {
    named(template).filter_map(|name| all.get(&name).map(|found| (name, found.clone()))).collect()
}

/// Whatever a replica is made of from storages.
pub(crate) fn hash(storages: &Storages, hasher: &mut impl Hasher) {
    for (name, binding) in storages {
        (name, format!("{:?}", binding.storage), &binding.account_key).hash(hasher);
    }
}
