//! A managed environment: the boundary that holds apps, logs and network.

use serde::{Deserialize, Serialize};

use crate::ResourceId;

/// What the user asked of one environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Its id.
    pub id: ResourceId,
    /// Suffix of its apps' host names: `<name>.localhost` by default. Unique on this server.
    pub default_domain: String,
    /// Log Analytics workspace, if any: its customer id.
    pub log_workspace: Option<String>,
    /// Workload profile names; `Consumption` is always there.
    pub workload_profiles: Vec<String>,
}
