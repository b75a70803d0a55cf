//! The route table: host name to app to revision. Written by the controller as a whole, read by the ingress.

use std::{collections::BTreeMap, sync::Arc};

use cove_model::{ResourceId, RevisionKey, Transport};
use serde::{Deserialize, Serialize};

/// All hosts that the ingress answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    /// Host name, lower case, without port → app. Revision and label hosts have their own entries.
    pub hosts: BTreeMap<String, Arc<AppRoute>>,
}

/// How requests of one host are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRoute {
    /// The app.
    pub app: ResourceId,
    /// Its environment.
    pub environment: ResourceId,
    /// Reachable from outside the environment; otherwise 404 outside.
    pub external: bool,
    /// Plain HTTP is served instead of redirected.
    pub allow_insecure: bool,
    /// Protocol to the app.
    pub transport: Transport,
    /// Revisions and their shares; weights add up to 100 unless empty.
    pub revisions: Vec<WeightedRevision>,
    /// What to answer when it cannot serve.
    pub state: AppRouteState,
}

/// A revision's share of an app's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightedRevision {
    /// The revision.
    pub revision: RevisionKey,
    /// Percent.
    pub weight: u32,
}

/// Whether an app serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppRouteState {
    /// Yes.
    #[default]
    Active,
    /// Stopped by its user: 404 as Azure does.
    Stopped,
    /// No revision could ever serve; the reason in words: 503.
    Failed {
        /// In words.
        reason: String,
    },
}

impl RouteTable {
    /// The app of a `Host` header or `:authority`; port and case do not matter.
    #[must_use]
    pub fn app(&self, host: &str) -> Option<&Arc<AppRoute>> {
        let name = host
            .rsplit_once(':')
            .map_or(host, |(name, port)| if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host });
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.bytes().any(|b| b.is_ascii_uppercase()) {
            return self.hosts.get(&name.to_ascii_lowercase());
        }
        self.hosts.get(name)
    }
}

impl AppRoute {
    /// The revision for a request, by a random number of its own: each weight gets its share.
    #[must_use]
    pub fn choose(&self, random: u32) -> Option<&RevisionKey> {
        let total: u32 = self.revisions.iter().map(|revision| revision.weight).sum();
        if total == 0 {
            return self.revisions.first().map(|revision| &revision.revision);
        }
        let mut point = random % total;
        for revision in &self.revisions {
            if point < revision.weight {
                return Some(&revision.revision);
            }
            point -= revision.weight;
        }
        None
    }
}
