//! The route table as requests use it: host to app to gates, in one snapshot that is read without a lock.
//!
//! **Invariant:** a snapshot is never changed; the router task swaps it as a whole.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cove_model::{ResourceId, RevisionKey};
use cove_traffic::{AppRoute, RouteTable};

use crate::gate::{Gate, GateShared};

/// An app's route with the gates of its revisions, in the order of `route.revisions`.
pub(crate) struct AppGates {
    pub(crate) route: Arc<AppRoute>,
    gates: Vec<Arc<Gate>>,
}

impl AppGates {
    /// The gate for a request, by a random number of its own.
    pub(crate) fn choose(&self, random: u32) -> Option<&Arc<Gate>> {
        self.gates.get(self.route.choose_index(random)?)
    }
}

/// What requests look their host up in.
#[derive(Default)]
pub(crate) struct Snapshot {
    /// What it was made of.
    table: Arc<RouteTable>,
    hosts: HashMap<String, Arc<AppGates>>,
    /// Environment and app name: what `http://<app>` means inside an environment.
    short_names: HashMap<(ResourceId, String), Arc<AppGates>>,
}

impl Snapshot {
    /// It was made of this very table.
    pub(crate) fn is_of(&self, table: &Arc<RouteTable>) -> bool {
        Arc::ptr_eq(&self.table, table)
    }

    /// The app of a host name as [`cove_traffic::host_name`] gives it.
    pub(crate) fn host(&self, host: &str) -> Option<&Arc<AppGates>> {
        self.hosts.get(host)
    }

    /// The app of a name without dots inside an environment.
    pub(crate) fn short_name(&self, environment: &ResourceId, name: &str) -> Option<&Arc<AppGates>> {
        if name.contains('.') {
            return None;
        }
        self.short_names.get(&(environment.clone(), name.to_owned()))
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

    /// Forgets gates of revisions that `is_known` denies and that have nothing open.
    pub(crate) fn forget(&self, is_known: impl Fn(&RevisionKey) -> bool) {
        self.lock().retain(|revision, gate| is_known(revision) || !gate.is_idle());
    }

    /// The snapshot of a route table; what did not change is taken from the last one.
    pub(crate) fn snapshot(&self, table: &Arc<RouteTable>, last: &Snapshot) -> Snapshot {
        let mut snapshot = Snapshot { table: Arc::clone(table), ..Snapshot::default() };
        for (host, route) in &table.hosts {
            let same = last.hosts.get(host).filter(|app| Arc::ptr_eq(&app.route, route) || app.route == *route);
            let app = same.map_or_else(|| self.app_gates(route), Arc::clone);
            // revision and label hosts have entries of their own; the app's name is its first label
            if host.split('.').next() == Some(route.app.name()) {
                let name = (route.environment.clone(), route.app.name().to_owned());
                snapshot.short_names.insert(name, Arc::clone(&app));
            }
            snapshot.hosts.insert(host.clone(), app);
        }
        snapshot
    }

    fn app_gates(&self, route: &Arc<AppRoute>) -> Arc<AppGates> {
        let gates = route.revisions.iter().map(|revision| self.ensure(&revision.revision)).collect();
        Arc::new(AppGates { route: Arc::clone(route), gates })
    }
}
