//! What the driver gets to make a replica of an execution.

use std::{collections::BTreeMap, sync::Arc};

use cove_model::ReplicaName;
use cove_runtime::{ReplicaSpec, RestartPolicy};

use super::entry::{ExecutionEntry, JobData};
use crate::storages;

/// The order for one replica.
pub(super) fn replica_spec(job: &JobData, entry: &ExecutionEntry, name: ReplicaName, index: u32) -> ReplicaSpec {
    let execution = &entry.stored;
    ReplicaSpec {
        revision: entry.key.clone(),
        environment: job.environment.clone(),
        environment_domain: job.domain.clone(),
        restart_generation: 0,
        template: Arc::clone(&execution.template),
        target_port: None,
        secrets: job.secrets.clone(),
        platform_env: platform_env(job, entry, &name, index),
        logins: job.logins.clone(),
        storages: storages::of_template(&job.storages, &execution.template),
        restart: RestartPolicy::Never,
        sandbox: None,
        name,
    }
}

/// The variables that Azure documents as built in for jobs, and Kubernetes' index of the run.
fn platform_env(job: &JobData, entry: &ExecutionEntry, replica: &ReplicaName, index: u32) -> BTreeMap<String, String> {
    [
        ("CONTAINER_APP_JOB_NAME", job.id.name().to_owned()),
        ("CONTAINER_APP_JOB_EXECUTION_NAME", entry.key.name.to_string()),
        ("CONTAINER_APP_REPLICA_NAME", replica.to_string()),
        ("CONTAINER_APP_ENV_DNS_SUFFIX", job.domain.clone()),
        ("JOB_COMPLETION_INDEX", index.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}
