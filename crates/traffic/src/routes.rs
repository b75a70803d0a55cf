//! The route table: host name to app to revision. Written by the controller as a whole, read by the ingress.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use cove_model::{IngressPolicies, ResourceId, RevisionKey, Transport};
use serde::{Deserialize, Serialize};

use crate::{PathRoutes, Shards};

/// Everything that the ingress answers; cheap to clone. Its written form is what one server tells the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    /// Host name, lower case, without port. Revision and label hosts have their own entries.
    pub hosts: Shards<Host>,
    /// What `http://<name>` means inside an environment: apps, their revisions and labels, by [`short_name`].
    pub names: Shards<Arc<AppRoute>>,
    /// The environment of an app, by [`ResourceId::key`] of the app.
    pub environments: Shards<ResourceId>,
    /// TCP ports by number and environment.
    #[serde(with = "tcp_as_list")]
    pub tcp: Arc<BTreeMap<(u16, ResourceId), Arc<TcpRoute>>>,
}

/// Keys of two parts are no names of members.
mod tcp_as_list {
    use std::{collections::BTreeMap, sync::Arc};

    use cove_model::ResourceId;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::TcpRoute;

    type Ports = BTreeMap<(u16, ResourceId), Arc<TcpRoute>>;

    pub(super) fn serialize<S: Serializer>(ports: &Arc<Ports>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ports.iter())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Ports>, D::Error> {
        let all = Vec::<((u16, ResourceId), Arc<TcpRoute>)>::deserialize(deserializer)?;
        Ok(Arc::new(all.into_iter().collect()))
    }
}

/// A host name's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// What answers.
    pub route: HostRoute,
    /// What is shown to TLS clients.
    pub certificate: HostCertificate,
}

/// What answers at a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostRoute {
    /// One app.
    App(Arc<AppRoute>),
    /// Several, by path.
    Paths(Arc<PathRoutes>),
}

/// What a TLS client of a host is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostCertificate {
    /// The platform's own for its default domain.
    Platform,
    /// A certificate of the environment.
    Custom(ResourceId),
    /// None: plain HTTP only.
    Missing,
}

/// A TCP port and who serves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpRoute {
    /// App, revisions, policies.
    pub route: Arc<AppRoute>,
    /// Reachable from outside the environment.
    pub external: bool,
    /// Port in the replica; `None`: the app's target port.
    pub target_port: Option<u16>,
}

/// The key of a name inside an environment in [`RouteTable::names`].
#[must_use]
pub fn short_name(environment: &ResourceId, name: &str) -> String {
    format!("{name}@{}", environment.key())
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
    /// Who may call, from where, and how replicas are kept.
    #[serde(default)]
    pub policies: Arc<IngressPolicies>,
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
        match &self.host(host)?.route {
            HostRoute::App(app) => Some(app),
            HostRoute::Paths(_) => None,
        }
    }

    /// The entry of a `Host` header, `:authority` or TLS server name; port and case do not matter.
    #[must_use]
    pub fn host(&self, host: &str) -> Option<&Host> {
        self.hosts.get(&host_name(host))
    }

    /// The app of a name inside an environment.
    #[must_use]
    pub fn named(&self, environment: &ResourceId, name: &str) -> Option<&Arc<AppRoute>> {
        self.names.get(&short_name(environment, name))
    }
}

impl Host {
    /// A host of the default domain.
    #[must_use]
    pub fn platform(app: Arc<AppRoute>) -> Self {
        Self { route: HostRoute::App(app), certificate: HostCertificate::Platform }
    }
}

impl AppRoute {
    /// The revision for a request, by a random number of its own: each weight gets its share.
    #[must_use]
    pub fn choose(&self, random: u32) -> Option<&RevisionKey> {
        self.choose_index(random).map(|index| &self.revisions[index].revision)
    }

    /// The place in [`Self::revisions`] of the revision for a request; `None` only when there is no revision.
    #[must_use]
    pub fn choose_index(&self, random: u32) -> Option<usize> {
        let total: u64 = self.revisions.iter().map(|revision| u64::from(revision.weight)).sum();
        if total == 0 {
            return (!self.revisions.is_empty()).then_some(0);
        }
        // the high half of the product spreads `random` evenly over the total
        let mut point = (u64::from(random) * total) >> 32;
        for (index, revision) in self.revisions.iter().enumerate() {
            let weight = u64::from(revision.weight);
            if point < weight {
                return Some(index);
            }
            point -= weight;
        }
        None
    }
}

/// The host name in a `Host` header or `:authority`: without port and trailing dot, lower case.
#[must_use]
pub fn host_name(authority: &str) -> Cow<'_, str> {
    let name = authority
        .rsplit_once(':')
        .map_or(authority, |(name, port)| if port.bytes().all(|b| b.is_ascii_digit()) { name } else { authority });
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Cow::Owned(name.to_ascii_lowercase());
    }
    Cow::Borrowed(name)
}

#[cfg(test)]
mod tests {
    use cove_model::RevisionName;

    use super::*;

    fn route(weights: &[u32]) -> AppRoute {
        let app = ResourceId::resource("s", "g", "Microsoft.App/containerApps", "web").unwrap();
        let revision = |suffix: usize| RevisionKey {
            app: app.clone(),
            name: RevisionName::of("web", &format!("v{suffix}")).unwrap(),
        };
        AppRoute {
            app: app.clone(),
            environment: ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", "env").unwrap(),
            external: true,
            allow_insecure: true,
            transport: Transport::Auto,
            policies: Arc::default(),
            revisions: weights
                .iter()
                .enumerate()
                .map(|(index, &weight)| WeightedRevision { revision: revision(index), weight })
                .collect(),
            state: AppRouteState::Active,
        }
    }

    #[test]
    fn each_weight_gets_its_share() {
        for (weights, expected) in [
            (vec![100], vec![10_000]),
            (vec![0, 100], vec![0, 10_000]),
            (vec![80, 20], vec![8_000, 2_000]),
            (vec![1, 0, 99], vec![100, 0, 9_900]),
            (vec![0, 0], vec![10_000, 0]),
        ] {
            let route = route(&weights);
            let mut counts = vec![0; weights.len()];
            for step in 0..10_000_u64 {
                // evenly spread over all of u32
                let random = u32::try_from(step * (u64::from(u32::MAX) + 1) / 10_000).unwrap();
                counts[route.choose_index(random).unwrap()] += 1;
            }
            for (count, want) in counts.iter().zip(&expected) {
                assert!(i32::abs(count - want) <= 1, "{weights:?}: {counts:?}");
            }
        }
        assert_eq!(route(&[]).choose(7), None);
    }

    #[test]
    fn ninety_to_ten_is_met_over_a_hundred_thousand_requests() {
        let (route, mut state) = (route(&[90, 10]), 7_u64);
        // splitmix64, its upper half
        let mut random = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            u32::try_from((mixed ^ (mixed >> 31)) >> 32).unwrap()
        };
        let few = (0..100_000).filter(|_| route.choose_index(random()) == Some(1)).count();
        assert!((9_500..=10_500).contains(&few), "10 % of 100,000 were {few}");
    }

    #[test]
    fn hosts_are_compared_without_port_dot_and_case() {
        let mut table = RouteTable::default();
        table.hosts.insert("web.env.localhost", Host::platform(Arc::new(route(&[100]))));
        for host in ["web.env.localhost", "Web.Env.LocalHost:8080", "web.env.localhost.", "web.env.localhost.:80"] {
            assert!(table.app(host).is_some(), "{host}");
        }
        for host in ["", "env.localhost", "web.env.localhost:x", "[::1]:80"] {
            assert!(table.app(host).is_none(), "{host}");
        }
    }
}
