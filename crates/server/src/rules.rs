//! What event, cpu and memory rules read: variables and secrets from the store, names as an environment has them, use from
//! the runtime.
//!
//! Scale rules are read by the server, which is in no environment. A name of the rule's environment leads to the gateway,
//! where the ingress answers and wakes; an app with a plain TCP port that is up is reached at its replica, since at the
//! gateway one port may belong to apps of several environments.
//!
//! **Invariant:** a name that the environment does not have is asked of the system.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use cove_autoscaler::{ReplicaUsage, RuleSources, Surroundings};
use cove_base::{Board, Clock};
use cove_control_plane::ControlPlane;
use cove_model::{Bytes, JOB_KIND, Job, MilliCpu, ReplicaObservation, ReplicaPhase, ResourceId, RevisionKey};
use cove_runtime::Runtime;
use cove_scalers::{Context, HostResolver, ReadError, Roots, Scalers, TokenFuture, Tokens};
use cove_scaling::resource;
use cove_store::Store;
use cove_traffic::{AppRoute, Endpoints, HostRoute, RouteTable};
use tokio::sync::watch;

use crate::directory::is_of_environment;

/// What the sources are made of.
pub(crate) struct Parts {
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) routes: watch::Receiver<Arc<RouteTable>>,
    pub(crate) endpoints: Board<RevisionKey, Endpoints>,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) roots: Roots,
    /// Filled when the API is made, which is later.
    pub(crate) plane: Arc<OnceLock<ControlPlane>>,
    /// The address of the API.
    pub(crate) origin: String,
}

/// Everything that the autoscaler needs to read rules.
pub(crate) fn sources(parts: Parts) -> RuleSources {
    let Parts { clock, store, runtime, routes, endpoints, gateway, roots, plane, origin } = parts;
    let scalers = Arc::new(Scalers::new(clock).with_roots(roots));
    let resolvers = Mutex::new(HashMap::<ResourceId, HostResolver>::new());
    RuleSources {
        open: Arc::new(move |trigger, context| scalers.open(trigger, context)),
        surroundings: Arc::new({
            let store = store.clone();
            move |revision| {
                let template = if revision.app.kind().eq_ignore_ascii_case(JOB_KIND) {
                    store.snapshot::<Job>(&revision.app)?.and_then(|job| job.spec).map(|job| job.template)
                } else {
                    store.revision(&revision.app, revision.name.as_str())?.map(|row| row.revision.template)
                };
                let env = template.and_then(|template| template.containers.into_iter().next()).map(|first| first.env);
                Ok(Surroundings { env: env.unwrap_or_default(), secrets: store.secrets(&revision.app)? })
            }
        }),
        context: Arc::new(move |revision, environment| {
            // One resolver per environment: sources share connections by it.
            let mut resolvers = resolvers.lock().unwrap_or_else(PoisonError::into_inner);
            if !resolvers.contains_key(environment) {
                resolvers.retain(|_, resolver| Arc::strong_count(resolver) > 1);
            }
            let resolver = resolvers
                .entry(environment.clone())
                .or_insert_with(|| hosts(environment.clone(), routes.clone(), endpoints.clone(), gateway));
            let tokens = AppTokens { plane: Arc::clone(&plane), app: revision.app.clone(), origin: origin.clone() };
            Context { hosts: Arc::clone(resolver), tokens: Some(Arc::new(tokens)) }
        }),
        usage: Arc::new(move |revision| usage(&store, &runtime, revision)),
    }
}

/// Tokens of the identities of one app.
struct AppTokens {
    plane: Arc<OnceLock<ControlPlane>>,
    app: ResourceId,
    origin: String,
}

impl Tokens for AppTokens {
    fn token<'a>(&'a self, identity: &'a str, audience: &'a str) -> TokenFuture<'a> {
        let plane = self.plane.get();
        let token = plane.map(|plane| plane.identity_token(&self.app, identity, audience, &self.origin));
        let token = token.unwrap_or_else(|| Err("the API is not up yet".to_owned()));
        Box::pin(std::future::ready(token.map_err(ReadError::new)))
    }
}

/// Names as the apps of an environment see them.
fn hosts(
    environment: ResourceId,
    routes: watch::Receiver<Arc<RouteTable>>,
    endpoints: Board<RevisionKey, Endpoints>,
    gateway: Ipv4Addr,
) -> HostResolver {
    Arc::new(move |name| {
        let table = Arc::clone(&routes.borrow());
        let app = match table.host(name) {
            // a host of the user's own is asked of the world, as replicas do
            Some(host) if !is_of_environment(&host.certificate) => return None,
            Some(host) => match &host.route {
                HostRoute::App(app) => Some(Arc::clone(app)),
                HostRoute::Paths(_) => None,
            },
            None => Some(Arc::clone(table.named(&environment, name)?)),
        };
        let replica = app.and_then(|app| tcp_replica(&table, &endpoints, &app));
        Some(replica.unwrap_or(IpAddr::V4(gateway)))
    })
}

/// A ready replica of an app whose exposed TCP ports are those of its replicas.
fn tcp_replica(table: &RouteTable, endpoints: &Board<RevisionKey, Endpoints>, app: &AppRoute) -> Option<IpAddr> {
    let address = endpoints.get(&app.choose(0)?.clone())?.ready.first()?.address;
    let mut ports = table.tcp.iter().filter(|(_, route)| route.route.app == app.app).peekable();
    ports.peek()?;
    let same = ports.all(|((port, _), route)| *port == route.target_port.unwrap_or_else(|| address.port()));
    same.then_some(address.ip())
}

/// What the replicas of a revision use and request.
fn usage(store: &Store, runtime: &Arc<dyn Runtime>, revision: &RevisionKey) -> Vec<ReplicaUsage> {
    let seen = runtime.observations().get(revision).unwrap_or_default();
    if seen.is_empty() {
        return Vec::new();
    }
    let template = match store.revision(&revision.app, revision.name.as_str()) {
        Ok(row) => row.map(|row| row.revision.template),
        Err(error) => {
            tracing::warn!(%revision, error = &error as &dyn std::error::Error, "requests of replicas are not known");
            None
        }
    };
    let containers = template.map(|template| template.containers).unwrap_or_default();
    let cpu_request = MilliCpu(containers.iter().map(|container| container.resources.cpu.0).sum());
    let memory_request = Bytes(containers.iter().map(|container| container.resources.memory.0).sum());
    let of_replica = |replica: &ReplicaObservation| {
        let used = runtime.usage(&replica.name);
        ReplicaUsage {
            name: replica.name.clone(),
            phase: phase(replica.phase),
            is_leaving: replica.phase == ReplicaPhase::Stopping,
            started_at: replica.started_at,
            is_ready: Some(replica.is_ready),
            ready_at: replica.ready_at,
            cpu_us_total: used.and_then(|used| used.cpu_us_total),
            cpu_taken_at: Some(jiff::Timestamp::now()),
            memory_bytes: used.and_then(|used| used.memory_bytes),
            cpu_request,
            memory_request,
        }
    };
    // a slot is no replica yet
    seen.iter().filter(|replica| replica.started_at.is_some()).map(of_replica).collect()
}

fn phase(phase: ReplicaPhase) -> resource::ReplicaPhase {
    match phase {
        ReplicaPhase::Preparing | ReplicaPhase::Prepared => resource::ReplicaPhase::Pending,
        ReplicaPhase::Running | ReplicaPhase::Stopping => resource::ReplicaPhase::Running,
        ReplicaPhase::Frozen | ReplicaPhase::Stopped | ReplicaPhase::Failed => resource::ReplicaPhase::Terminated,
    }
}
