//! What the driver gets to make a session's replica.

use std::{collections::BTreeMap, sync::Arc};

use cove_model::{Session, SessionEgress, SessionIsolation};
use cove_runtime::{ReplicaSpec, RestartPolicy, Sandbox, SandboxEgress, SandboxTier};

use super::entry::PoolData;
use crate::storages;

/// The order for one session. Nothing of the platform is in its environment: its code is nobody's friend.
pub(super) fn replica_spec(data: &PoolData, session: &Session) -> ReplicaSpec {
    let pool = &data.pool;
    ReplicaSpec {
        name: session.replica.clone(),
        revision: session.key(),
        environment: data.environment().clone(),
        environment_domain: data.domain.clone(),
        restart_generation: 0,
        template: Arc::clone(&pool.template),
        target_port: Some(session.target_port),
        secrets: data.secrets.clone(),
        platform_env: BTreeMap::new(),
        logins: data.logins.clone(),
        storages: storages::of_template(&data.storages, &pool.template),
        restart: RestartPolicy::Never,
        sandbox: Some(Sandbox {
            egress: match pool.egress {
                SessionEgress::Disabled => SandboxEgress::None,
                SessionEgress::Enabled => SandboxEgress::Internet,
            },
            egress_rules: pool.egress_rules.clone(),
            tier: match &pool.isolation {
                SessionIsolation::Hardened => SandboxTier::Hardened,
                SessionIsolation::Vm => SandboxTier::Vm,
                SessionIsolation::Handler(name) => SandboxTier::Handler(name.clone()),
            },
            snapshot: session.snapshot.clone(),
            is_ahead: session.identifier.is_none(),
            ..Sandbox::default()
        }),
    }
}
