//! The route table as requests use it: host to app to gates, in one snapshot that is read without a lock.
//!
//! A snapshot is made shard by shard: what did not change since the last one is shared with it, so that the change of one app
//! among ten thousand costs as much as the few shards it touches.
//!
//! **Invariant:** a snapshot is never changed; the router task swaps it as a whole.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cove_model::{ResourceId, RevisionKey};
use cove_traffic::{
    AppRoute, Host, HostCertificate, HostRoute, PathRoutes, RouteTable, Shard, Shards, TcpRoute, short_name,
};

use crate::{
    gate::{Gate, GateShared},
    policy::Policy,
};

/// An app's route with the gates of its revisions, in the order of `route.revisions`.
pub(crate) struct AppGates {
    pub(crate) route: Arc<AppRoute>,
    pub(crate) policy: Policy,
    gates: Vec<Arc<Gate>>,
}

impl AppGates {
    /// The gate for a request, by a random number of its own.
    pub(crate) fn choose(&self, random: u32) -> Option<&Arc<Gate>> {
        self.gates.get(self.route.choose_index(random)?)
    }

    /// Requests or connections of it are open.
    pub(crate) fn is_open(&self) -> bool {
        self.gates.iter().any(|gate| gate.open() > 0)
    }

    /// The gates of revisions that get a share of the requests.
    pub(crate) fn with_share(&self) -> impl Iterator<Item = &Arc<Gate>> {
        let shares = self.route.revisions.iter().zip(&self.gates);
        shares.filter(|(share, _)| share.weight > 0).map(|(_, gate)| gate)
    }
}

/// What answers at a host.
#[derive(Clone)]
pub(crate) enum Target {
    /// One app.
    App(Arc<AppGates>),
    /// Several, by path.
    Paths(Arc<PathRoutes>),
}

/// A host name's entry.
#[derive(Clone)]
pub(crate) struct HostEntry {
    pub(crate) target: Target,
    /// There is a certificate to show.
    pub(crate) has_tls: bool,
}

/// A TCP port with its app.
#[derive(Clone)]
pub(crate) struct TcpTarget {
    pub(crate) route: Arc<TcpRoute>,
    pub(crate) app: Arc<AppGates>,
}

/// What requests look their host up in.
pub(crate) struct Snapshot {
    /// What it was made of.
    table: Arc<RouteTable>,
    hosts: Index<Host, HostEntry>,
    /// What `http://<name>` means inside an environment.
    names: Index<Arc<AppRoute>, Arc<AppGates>>,
    tcp: Arc<BTreeMap<(u16, ResourceId), TcpTarget>>,
}

impl Default for Snapshot {
    fn default() -> Self {
        let table: Arc<RouteTable> = Arc::default();
        let (hosts, names) = (Index::new(&table.hosts), Index::new(&table.names));
        Self { table, hosts, names, tcp: Arc::default() }
    }
}

impl Snapshot {
    /// It was made of this very table.
    pub(crate) fn is_of(&self, table: &Arc<RouteTable>) -> bool {
        Arc::ptr_eq(&self.table, table)
    }

    /// What answers at a host name as [`cove_traffic::host_name`] gives it.
    pub(crate) fn host(&self, host: &str) -> Option<&HostEntry> {
        self.hosts.get(host)
    }

    /// The app of a name without dots inside an environment.
    pub(crate) fn short_name(&self, environment: &ResourceId, name: &str) -> Option<&Arc<AppGates>> {
        if name.contains('.') {
            return None;
        }
        self.names.get(&short_name(environment, name))
    }

    /// Every app that has a host or a port; one with several hosts comes several times.
    pub(crate) fn apps(&self) -> impl Iterator<Item = &Arc<AppGates>> {
        let hosts =
            self.hosts.shards.iter().flat_map(|(_, made)| made.values()).filter_map(|host| match &host.target {
                Target::App(app) => Some(app),
                Target::Paths(_) => None,
            });
        hosts.chain(self.tcp.values().map(|target| &target.app))
    }

    /// Who serves a TCP port in an environment; without one, in the first that has it.
    pub(crate) fn tcp(&self, port: u16, environment: Option<&ResourceId>) -> impl Iterator<Item = &TcpTarget> {
        let of_port = self.tcp.iter().filter(move |((number, _), _)| *number == port);
        let inside = of_port.filter(move |((_, of), _)| environment.is_none_or(|environment| of == environment));
        inside.map(|(_, target)| target)
    }
}

/// Values made of one shard's.
type Made<T> = Arc<HashMap<Arc<str>, T>>;

/// Values made of those of a [`Shards`], shard by shard.
struct Index<S, T> {
    shards: Vec<(Arc<Shard<S>>, Made<T>)>,
}

impl<S, T> Index<S, T> {
    fn new(source: &Shards<S>) -> Self {
        let empty: Made<T> = Arc::default();
        Self { shards: source.shards().iter().map(|shard| (Arc::clone(shard), Arc::clone(&empty))).collect() }
    }

    fn get(&self, name: &str) -> Option<&T> {
        self.shards[Shards::<S>::place(name)].1.get(name)
    }

    /// The index of newer values; `make` gets the last value made for a name, and what it was made of, if there was one.
    fn next(&self, source: &Shards<S>, make: impl Fn(&S, Option<(&S, &T)>) -> T) -> Self {
        let shards = source.shards().iter().zip(&self.shards).map(|(shard, (old, made))| {
            if Arc::ptr_eq(shard, old) {
                return (Arc::clone(old), Arc::clone(made));
            }
            let value = |(name, value): (&Arc<str>, &S)| {
                let last = old.get(name).zip(made.get(name));
                (Arc::clone(name), make(value, last))
            };
            (Arc::clone(shard), Arc::new(shard.iter().map(value).collect()))
        });
        Self { shards: shards.collect() }
    }
}

/// All gates by revision.
pub(crate) struct Gates {
    shared: Arc<GateShared>,
    by_revision: Mutex<HashMap<RevisionKey, Arc<Gate>>>,
}

impl Gates {
    pub(crate) fn new(shared: Arc<GateShared>) -> Self {
        Self { shared, by_revision: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RevisionKey, Arc<Gate>>> {
        self.by_revision.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A revision's gate, if there is one.
    pub(crate) fn get(&self, revision: &RevisionKey) -> Option<Arc<Gate>> {
        self.lock().get(revision).cloned()
    }

    /// A revision's gate, made if need be.
    pub(crate) fn ensure(&self, revision: &RevisionKey) -> Arc<Gate> {
        let mut gates = self.lock();
        if let Some(gate) = gates.get(revision) {
            return Arc::clone(gate);
        }
        let gate = Gate::new(revision.clone(), Arc::clone(&self.shared));
        gates.insert(revision.clone(), Arc::clone(&gate));
        gate
    }

    /// All gates.
    pub(crate) fn all(&self) -> Vec<Arc<Gate>> {
        self.lock().values().cloned().collect()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Forgets gates of revisions that `is_known` denies, that have nothing open and that no snapshot or request holds.
    pub(crate) fn forget(&self, is_known: impl Fn(&RevisionKey) -> bool) {
        self.lock().retain(|revision, gate| is_known(revision) || !gate.is_idle() || Arc::strong_count(gate) > 1);
    }

    /// The snapshot of a route table; what did not change is taken from the last one.
    pub(crate) fn snapshot(&self, table: &Arc<RouteTable>, last: &Snapshot) -> Snapshot {
        // hosts and names that share a route share its gates; routes live as long as the table, so their place is theirs
        let made: RefCell<HashMap<*const AppRoute, Arc<AppGates>>> = RefCell::default();
        let make = |route: &Arc<AppRoute>| {
            Arc::clone(made.borrow_mut().entry(Arc::as_ptr(route)).or_insert_with(|| self.app_gates(route)))
        };
        let hosts = last.hosts.next(&table.hosts, |host, before| {
            let target = match (&host.route, before.map(|(_, entry)| &entry.target)) {
                (HostRoute::Paths(paths), _) => Target::Paths(Arc::clone(paths)),
                (HostRoute::App(route), Some(Target::App(made))) if made.is_of(route) => Target::App(Arc::clone(made)),
                (HostRoute::App(route), _) => Target::App(make(route)),
            };
            HostEntry { target, has_tls: host.certificate != HostCertificate::Missing }
        });
        let names = last.names.next(&table.names, |route, before| match before {
            Some((_, made)) if made.is_of(route) => Arc::clone(made),
            Some(_) | None => make(route),
        });
        let tcp = if Arc::ptr_eq(&table.tcp, &last.table.tcp) {
            Arc::clone(&last.tcp)
        } else {
            let target = |route: &Arc<TcpRoute>| TcpTarget { route: Arc::clone(route), app: make(&route.route) };
            Arc::new(table.tcp.iter().map(|(port, route)| (port.clone(), target(route))).collect())
        };
        Snapshot { table: Arc::clone(table), hosts, names, tcp }
    }

    fn app_gates(&self, route: &Arc<AppRoute>) -> Arc<AppGates> {
        let gates = route.revisions.iter().map(|revision| self.ensure(&revision.revision)).collect();
        let policy = Policy::new(&route.policies);
        self.shared.raise_header_fields(&policy);
        Arc::new(AppGates { route: Arc::clone(route), policy, gates })
    }
}

impl AppGates {
    fn is_of(&self, route: &Arc<AppRoute>) -> bool {
        Arc::ptr_eq(&self.route, route) || self.route == *route
    }
}

#[cfg(test)]
mod tests {
    use cove_model::{RevisionName, Transport};
    use cove_traffic::{AppRouteState, WeightedRevision};

    use super::*;

    fn gates() -> Gates {
        Gates::new(Arc::new(GateShared::for_tests()))
    }

    fn route(app: &str, suffix: &str) -> Arc<AppRoute> {
        let id = ResourceId::resource("s", "g", "Microsoft.App/containerApps", app).unwrap();
        let revision = RevisionKey { app: id.clone(), name: RevisionName::of(app, suffix).unwrap() };
        Arc::new(AppRoute {
            app: id,
            environment: ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", "env").unwrap(),
            external: true,
            allow_insecure: true,
            transport: Transport::Auto,
            policies: Arc::default(),
            revisions: vec![WeightedRevision { revision, weight: 100 }],
            state: AppRouteState::Active,
        })
    }

    #[test]
    fn the_change_of_one_app_among_many_leaves_the_others_as_they_are() {
        const APPS: usize = 10_000;
        let gates = gates();
        let mut table = RouteTable::default();
        for number in 0..APPS {
            let app = format!("app{number}");
            table.hosts.insert(&format!("{app}.env.localhost"), Host::platform(route(&app, "v1")));
        }
        let first = gates.snapshot(&Arc::new(table.clone()), &Snapshot::default());
        table.hosts.insert("app7.env.localhost", Host::platform(route("app7", "v2")));
        let begin = std::time::Instant::now();
        let second = gates.snapshot(&Arc::new(table.clone()), &first);
        println!("one change among {APPS} apps: {:?}", begin.elapsed());
        let shared =
            first.hosts.shards.iter().zip(&second.hosts.shards).filter(|(old, new)| Arc::ptr_eq(&old.1, &new.1));
        assert_eq!(shared.count(), cove_traffic::SHARDS - 1);
        for number in 0..APPS {
            let host = format!("app{number}.env.localhost");
            let same = match (&first.host(&host).unwrap().target, &second.host(&host).unwrap().target) {
                (Target::App(old), Target::App(new)) => Arc::ptr_eq(old, new),
                _ => false,
            };
            assert_eq!(same, number != 7, "{host}");
        }
        // what nobody holds any more is forgotten
        let is_v2 = |revision: &RevisionKey| revision.name.as_str().ends_with("v2");
        gates.forget(is_v2);
        assert_eq!(gates.count(), APPS + 1, "both snapshots hold theirs");
        drop((first, second));
        gates.forget(is_v2);
        assert_eq!(gates.count(), 1);
    }
}
