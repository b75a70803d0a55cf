//! Who is who on the replicas' network: the environment of an address, the apps of an environment.
//!
//! DNS and the internal side of the ingress ask here. Filled from the driver's observations and the route table.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use cove_model::{ReplicaName, ResourceId, RevisionKey};
use cove_runtime::Runtime;
use cove_traffic::{HostCertificate, RouteTable};
use tokio::sync::watch;

/// Environments: their certificate is that of a DNS suffix, below which apps answer too.
const ENVIRONMENT: &str = "microsoft.app/managedenvironments";

/// Whether a host's name is the environment's: below its default domain or its DNS suffix. Any other is the user's own.
pub(crate) fn is_of_environment(certificate: &HostCertificate) -> bool {
    match certificate {
        HostCertificate::Platform => true,
        HostCertificate::Custom(id) => id.kind().eq_ignore_ascii_case(ENVIRONMENT),
        HostCertificate::Missing => false,
    }
}

/// Answers by address; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    inner: Arc<RwLock<Inner>>,
    routes: watch::Receiver<Arc<RouteTable>>,
    gateway: Ipv4Addr,
    only: Arc<Mutex<Only>>,
}

/// The only environment with apps, of the newest table that was asked for it.
#[derive(Debug, Default)]
struct Only {
    of: Option<Arc<RouteTable>>,
    environment: Option<ResourceId>,
}

#[derive(Debug, Default)]
struct Inner {
    addresses: HashMap<IpAddr, ResourceId>,
    of_revision: BTreeMap<RevisionKey, Vec<(ReplicaName, IpAddr)>>,
}

impl Directory {
    pub(crate) fn new(routes: watch::Receiver<Arc<RouteTable>>, gateway: Ipv4Addr) -> Self {
        Self { inner: Arc::default(), routes, gateway, only: Arc::default() }
    }

    /// Follows the driver's observations; ends only when dropped.
    pub(crate) async fn follow(self, runtime: Arc<dyn Runtime>) {
        let mut changes = runtime.observations().subscribe();
        loop {
            for revision in changes.next().await {
                let seen = runtime.observations().get(&revision).unwrap_or_default();
                let addresses = seen
                    .iter()
                    .filter_map(|replica| Some((replica.name.clone(), IpAddr::from(replica.address?))))
                    .collect::<Vec<_>>();
                let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
                for (_, old) in inner.of_revision.remove(&revision).unwrap_or_default() {
                    // a replica of another app may have the address by now
                    if inner.addresses.get(&old) == Some(&revision.app) {
                        inner.addresses.remove(&old);
                    }
                }
                for (_, address) in &addresses {
                    inner.addresses.insert(*address, revision.app.clone());
                }
                if !addresses.is_empty() {
                    inner.of_revision.insert(revision, addresses);
                }
            }
        }
    }

    /// The environment of the replica with this address; for this machine's own, which reads scale rules, the only one
    /// there is, if it is only one.
    pub(crate) fn environment_of(&self, address: IpAddr) -> Option<ResourceId> {
        if address == IpAddr::V4(self.gateway) {
            return self.only_environment();
        }
        let app = self.app_of(address)?;
        self.routes.borrow().environments.get(app.key()).cloned()
    }

    /// The app of the replica with this address.
    pub(crate) fn app_of(&self, address: IpAddr) -> Option<ResourceId> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).addresses.get(&address).cloned()
    }

    fn only_environment(&self) -> Option<ResourceId> {
        let table = Arc::clone(&self.routes.borrow());
        let mut only = self.only.lock().unwrap_or_else(PoisonError::into_inner);
        if !only.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, &table)) {
            let mut all = table.environments.iter().map(|(_, environment)| environment);
            let first = all.next().cloned();
            only.environment = first.filter(|first| all.all(|other| other == first));
            only.of = Some(Arc::clone(&table));
        }
        only.environment.clone()
    }

    /// What a name means to a replica: every app of its environment is reached at the gateway, where the ingress listens.
    pub(crate) fn lookup(&self, client: Ipv4Addr, name: &str) -> Option<Ipv4Addr> {
        // a host of the user's own is asked of the world: what it serves over TLS is not served at the gateway
        if self.routes.borrow().host(name).is_some_and(|host| is_of_environment(&host.certificate)) {
            return Some(self.gateway);
        }
        let environment = self.environment_of(client.into())?;
        self.routes.borrow().named(&environment, name).is_some().then_some(self.gateway)
    }
}
