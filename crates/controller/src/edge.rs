//! Entries of the route table: which hosts, names and ports an app or a path routing has, and how a change is put in.
//!
//! The work of a change follows the number of its own entries, not that of all apps.
//!
//! **Invariant:** an entry belongs to who had it first until that one gives it up; nobody takes over another's host.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use cove_model::{
    ContainerApp, CustomDomain, Ingress, ReplicaName, ResourceId, RevisionKey, RevisionName, SessionPool, Transport,
};
use cove_traffic::{
    AppRoute, AppRouteState, Endpoint, Endpoints, Host, HostCertificate, HostRoute, PathRoutes, RouteTable, TcpRoute,
    WeightedRevision, short_name,
};

use crate::loader::PathRoutesData;

/// What one resource has in the route table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    hosts: Vec<String>,
    names: Vec<String>,
    environment: bool,
    ports: Vec<(u16, ResourceId)>,
}

/// What one resource should have in it.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    hosts: BTreeMap<String, Host>,
    names: BTreeMap<String, Arc<AppRoute>>,
    environment: Option<ResourceId>,
    ports: BTreeMap<(u16, ResourceId), Arc<TcpRoute>>,
}

impl Wanted {
    /// Nothing at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.names.is_empty() && self.ports.is_empty()
    }

    /// Every host right below `domain` answers below `suffix` too, with the certificate of the environment.
    pub(crate) fn answer_below(&mut self, suffix: &str, domain: &str, environment: &ResourceId) {
        let domain = domain.to_ascii_lowercase();
        let below = |host: &str| {
            let name = host.strip_suffix(&domain)?.strip_suffix('.')?;
            (!name.contains('.')).then(|| format!("{name}.{suffix}"))
        };
        let certificate = HostCertificate::Custom(environment.clone());
        let more: Vec<(String, Host)> = self
            .hosts
            .iter()
            .filter(|(_, host)| host.certificate == HostCertificate::Platform)
            .filter_map(|(name, host)| Some((below(name)?, Host { certificate: certificate.clone(), ..host.clone() })))
            .collect();
        self.hosts.extend(more);
    }
}

/// The entries of an app, from its hosts in the default domain.
pub(crate) fn of_app(app: &ContainerApp, domain: &str, routes: BTreeMap<String, AppRoute>) -> Wanted {
    let mut wanted = Wanted { environment: Some(app.environment.clone()), ..Wanted::default() };
    let Some(ingress) = &app.ingress else { return wanted };
    let domain = domain.to_ascii_lowercase();
    // hosts that lead to the same share one route, here and in whatever is made of it
    let mut shared: Vec<Arc<AppRoute>> = Vec::new();
    for (host, route) in routes {
        let known = shared.iter().find(|known| ***known == route).cloned();
        let route = known.unwrap_or_else(|| {
            shared.push(Arc::new(route));
            Arc::clone(shared.last().expect("pushed a moment ago"))
        });
        if let Some(name) = host.strip_suffix(&domain).and_then(|name| name.strip_suffix('.'))
            && !name.contains('.')
        {
            wanted.names.insert(short_name(&app.environment, name), Arc::clone(&route));
        }
        wanted.hosts.insert(host, Host::platform(route));
    }
    let own_name = short_name(&app.environment, &app.id.name().to_ascii_lowercase());
    let Some(route) = wanted.names.get(&own_name).cloned() else { return wanted };
    for domain in &ingress.custom_domains {
        let host = custom_host(domain, HostRoute::App(Arc::clone(&route)));
        wanted.hosts.insert(domain.name.to_ascii_lowercase(), host);
    }
    for (port, external, target_port) in ports(ingress) {
        let route = TcpRoute { route: Arc::clone(&route), external, target_port };
        wanted.ports.insert((port, app.environment.clone()), Arc::new(route));
    }
    wanted
}

/// Exposed ports: number, whether reachable from outside, port in the replica if not the target port.
fn ports(ingress: &Ingress) -> Vec<(u16, bool, Option<u16>)> {
    let own = ingress.exposed_port.or(ingress.target_port).filter(|_| ingress.transport == Transport::Tcp);
    let more = ingress.additional_ports.iter().map(|more| (more.exposed_port, more.external, Some(more.target_port)));
    own.map(|port| (port, ingress.external, None)).into_iter().chain(more).collect()
}

/// The entries of a path routing.
pub(crate) fn of_paths(data: PathRoutesData) -> Wanted {
    let PathRoutesData { config, environment, domain, suffix } = data;
    let routes = PathRoutes { config: config.id.clone(), environment: environment.clone(), rules: config.rules };
    let routes = Arc::new(routes);
    let own = format!("{}.{domain}", config.id.name()).to_ascii_lowercase();
    let mut wanted = Wanted::default();
    let host = Host { route: HostRoute::Paths(Arc::clone(&routes)), certificate: HostCertificate::Platform };
    wanted.hosts.insert(own, host);
    if let Some(suffix) = suffix {
        wanted.answer_below(&suffix, &domain, &environment);
    }
    for domain in &config.custom_domains {
        let host = custom_host(domain, HostRoute::Paths(Arc::clone(&routes)));
        wanted.hosts.insert(domain.name.to_ascii_lowercase(), host);
    }
    wanted
}

/// Under which revision the ingress knows the door to a pool's sessions.
pub(crate) fn gateway_key(pool: &ResourceId) -> RevisionKey {
    RevisionKey { app: pool.clone(), name: RevisionName::new("sessions").expect("letters only") }
}

/// Where the ingress sends requests to a pool's host.
pub(crate) fn gateway_of(pool: &ResourceId, address: SocketAddr) -> (RevisionKey, Endpoints) {
    let replica = ReplicaName::new("sessions").expect("letters only");
    let endpoints = Endpoints { ready: vec![Endpoint { replica, address, order: 0 }], ..Endpoints::default() };
    (gateway_key(pool), endpoints)
}

/// The entry of a session pool: its host in its environment, answered by the door to all sessions.
pub(crate) fn of_pool(pool: &SessionPool, host: Option<String>) -> Wanted {
    let mut wanted = Wanted::default();
    let (Some(host), Some(environment)) = (host, pool.environment.clone()) else { return wanted };
    let route = AppRoute {
        app: pool.id.clone(),
        environment,
        external: true,
        allow_insecure: true,
        transport: Transport::Auto,
        policies: Arc::default(),
        revisions: vec![WeightedRevision { revision: gateway_key(&pool.id), weight: 100 }],
        state: AppRouteState::Active,
    };
    wanted.hosts.insert(host, Host::platform(Arc::new(route)));
    wanted
}

fn custom_host(domain: &CustomDomain, route: HostRoute) -> Host {
    let certificate = domain.certificate.clone().map_or(HostCertificate::Missing, HostCertificate::Custom);
    Host { route, certificate }
}

fn owner(host: &Host) -> &ResourceId {
    match &host.route {
        HostRoute::App(app) => &app.app,
        HostRoute::Paths(paths) => &paths.config,
    }
}

/// What putting entries in led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The table is another than before.
    pub(crate) is_changed: bool,
    /// What was not put in because another resource has it, in words.
    pub(crate) conflicts: Vec<String>,
}

/// Makes the table say what is wanted of `id`.
pub(crate) fn publish(
    table: &mut RouteTable,
    published: &mut Published,
    id: &ResourceId,
    mut wanted: Wanted,
) -> Outcome {
    let (mut is_changed, mut conflicts) = (false, Vec::new());
    for host in published.hosts.drain(..) {
        is_changed |= !wanted.hosts.contains_key(&host) && table.hosts.remove(&host).is_some();
    }
    for name in published.names.drain(..) {
        is_changed |= !wanted.names.contains_key(&name) && table.names.remove(&name).is_some();
    }
    for (name, host) in wanted.hosts {
        if let Some(other) = table.hosts.get(&name).map(owner).filter(|owner| *owner != id) {
            conflicts.push(format!("The host name '{name}' belongs to '{other}' already."));
            continue;
        }
        is_changed |= table.hosts.insert(&name, host);
        published.hosts.push(name);
    }
    for (name, route) in wanted.names {
        is_changed |= table.names.insert(&name, route);
        published.names.push(name);
    }
    let had_environment = std::mem::replace(&mut published.environment, wanted.environment.is_some());
    match wanted.environment {
        Some(environment) => is_changed |= table.environments.insert(id.key(), environment),
        None if had_environment => is_changed |= table.environments.remove(id.key()).is_some(),
        None => {}
    }
    wanted.ports.retain(|port, route| {
        let other = table.tcp.iter().find(|(known, it)| {
            let is_shared = *known == port || known.0 == port.0 && it.external && route.external;
            is_shared && it.route.app != *id
        });
        if let Some((_, other)) = other {
            conflicts.push(format!("The TCP port {} belongs to '{}' already.", port.0, other.route.app));
        }
        other.is_none()
    });
    is_changed |= publish_ports(table, published, wanted.ports);
    Outcome { is_changed, conflicts }
}

fn publish_ports(
    table: &mut RouteTable,
    published: &mut Published,
    ports: BTreeMap<(u16, ResourceId), Arc<TcpRoute>>,
) -> bool {
    let is_same =
        published.ports.iter().eq(ports.keys()) && ports.iter().all(|(key, it)| table.tcp.get(key) == Some(it));
    if is_same {
        return false;
    }
    let tcp = Arc::make_mut(&mut table.tcp);
    for port in published.ports.drain(..) {
        tcp.remove(&port);
    }
    published.ports.extend(ports.keys().cloned());
    tcp.extend(ports);
    true
}
