//! What the driver gets to make a replica: template, secrets, logins, and the variables that the platform adds.

use std::{collections::BTreeMap, sync::Arc};

use cove_model::{ReplicaName, Revision};
use cove_runtime::{ReplicaSpec, RestartPolicy};

use crate::{
    entry::{Entry, KnownRevision},
    storages,
};

/// The order for one replica.
pub(crate) fn replica_spec(
    entry: &Entry,
    known: &KnownRevision,
    name: ReplicaName,
    target_port: Option<u16>,
) -> ReplicaSpec {
    let revision = &known.revision;
    ReplicaSpec {
        revision: known.key.clone(),
        environment: entry.data.app.environment.clone(),
        environment_domain: entry.data.domain.clone(),
        restart_generation: revision.restart_generation,
        template: Arc::new(revision.template.clone()),
        target_port,
        secrets: entry.data.secrets.clone(),
        platform_env: platform_env(entry, revision, &name, target_port),
        logins: entry.data.logins.clone(),
        storages: storages::of_template(&entry.data.storages, &revision.template),
        restart: RestartPolicy::Always,
        sandbox: None,
        name,
    }
}

/// The variables that Azure documents as built in.
fn platform_env(
    entry: &Entry,
    revision: &Revision,
    replica: &ReplicaName,
    target_port: Option<u16>,
) -> BTreeMap<String, String> {
    let domain = &entry.data.domain;
    let mut env: BTreeMap<String, String> = [
        ("CONTAINER_APP_NAME", entry.data.app.id.name().to_owned()),
        ("CONTAINER_APP_REVISION", revision.name.to_string()),
        ("CONTAINER_APP_REPLICA_NAME", replica.to_string()),
        ("CONTAINER_APP_ENV_DNS_SUFFIX", domain.clone()),
        ("CONTAINER_APP_HOSTNAME", format!("{}.{domain}", revision.name)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    if let Some(port) = target_port {
        env.insert("CONTAINER_APP_PORT".to_owned(), port.to_string());
    }
    env
}
