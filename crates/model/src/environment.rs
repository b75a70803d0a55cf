//! A managed environment: the boundary that holds apps, logs and network.

use serde::{Deserialize, Serialize};

use crate::{RequestLimits, ResourceId};

/// What the user asked of one environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Its id.
    pub id: ResourceId,
    /// Suffix of its apps' host names: `<name>.localhost` by default. Unique on this server.
    pub default_domain: String,
    /// Log Analytics workspace, if any: its customer id.
    pub log_workspace: Option<String>,
    /// Workload profiles; `Consumption` is always there.
    pub workload_profiles: Vec<WorkloadProfile>,
    /// Limits of requests to its apps, from `ingressConfiguration`; an app's own win.
    #[serde(default)]
    pub limits: RequestLimits,
    /// A domain of the user's own below which all apps answer too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffix: Option<DnsSuffix>,
    /// `peerAuthentication.mtls.enabled`: its apps are told who of them calls.
    #[serde(default)]
    pub names_callers: bool,
}

/// `customDomainConfiguration`: apps answer at `<app>.<name>` besides the default domain. The certificate's private key is
/// a secret of the environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsSuffix {
    /// The domain, lower case: `apps.example.com`.
    pub name: String,
    /// Certificate chain in PEM, leaf first, for `*.<name>`.
    pub chain_pem: String,
}

/// One of an environment's workload profiles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredProfile")]
pub struct WorkloadProfile {
    /// Its name in this environment.
    pub name: String,
    /// Type as the catalogue spells it: `Consumption`, `D4`, `Consumption-GPU-NC24-A100`, …
    pub kind: String,
    /// Nodes that are always there, dedicated types only.
    pub min_nodes: u32,
    /// Most nodes, dedicated types only; 0 for types without nodes.
    pub max_nodes: u32,
}

/// What older servers stored: the name alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum StoredProfile {
    Name(String),
    Full { name: String, kind: String, min_nodes: u32, max_nodes: u32 },
}

impl From<StoredProfile> for WorkloadProfile {
    fn from(stored: StoredProfile) -> Self {
        match stored {
            StoredProfile::Name(name) => Self { name, kind: "Consumption".to_owned(), min_nodes: 0, max_nodes: 0 },
            StoredProfile::Full { name, kind, min_nodes, max_nodes } => Self { name, kind, min_nodes, max_nodes },
        }
    }
}
