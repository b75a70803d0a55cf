//! Session pools, wired: sessions of the controller, tokens of the API, connections of the driver; and the two doors.
//!
//! Requests to a pool's own host come through the ingress, which knows the door as the only replica of the pool: a port of
//! this machine's loopback, which asks for the same tokens as the door at the API's address.

mod meter;
mod metrics;
mod tools;
pub(crate) mod usage;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, TcpListener as StdListener},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use axum::{Router, extract::Request, middleware::Next};
use camino::Utf8Path;
use cove_control_plane::{ControlPlane, SessionTokenError};
use cove_model::{
    AllocateError, ResourceId, SessionEgress, SessionIdentifier, SessionIsolation, SessionSnapshot, SnapshotError,
};
use cove_monitor::Monitor;
use cove_runtime::{Capabilities, ImagesState, Runtime, Sandbox, SandboxTier};
use cove_runtime_oci::HandlerConfig;
use cove_sessions::{
    Door, E2bPorts, Fork, Lease, Limits, PoolDetails, PoolInfo, Pools, Ports, Service, SessionInfo, TokenProblem,
};
use cove_store::Store;
use futures_util::{FutureExt, future::BoxFuture};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::{
    config::HumanDuration,
    reach::Reach,
    serve::{HELPER, LOAD_LIMIT, Shared},
};

/// `[sessions]`: session pools.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionsSection {
    /// Isolation of a pool that does not say: `hardened`, `vm` or the name of an OCI runtime. Default `hardened`.
    pub default_isolation: String,
    /// OCI runtimes of this machine, by the name that pools use, besides the well-known ones that are installed. Default
    /// none.
    pub handlers: BTreeMap<String, HandlerConfig>,
    /// Folder of the guest of virtual machines, as `cove image build-vm-guest` fills it. Default
    /// `/var/cache/cove/vm`.
    pub vm_guest: PathBuf,
    /// Mebibytes of saved machines that later ones of the same pool begin as copies of, 0..=1048576; 0: every machine boots.
    /// Default 8192.
    pub vm_templates_mib_max: u64,
    /// Sessions that are started at once, over all pools, 1..=1000. Default 4.
    pub starts_max: u32,
    /// Longest that a request waits for its session to be made, 1 s..=10 min. Default `"60s"`.
    pub ready_deadline: HumanDuration,
    /// Mebibytes that all snapshots of sessions may hold together, 0..=1048576. Default 10240.
    pub snapshots_mib_max: u64,
    /// CRIU, which keeps the memory of sessions that are forked: a path, or a name on the path of programs. Default `criu`.
    pub criu: String,
}

impl Default for SessionsSection {
    fn default() -> Self {
        let ready_deadline = HumanDuration(Duration::from_secs(60));
        Self {
            default_isolation: "hardened".to_owned(),
            handlers: BTreeMap::new(),
            vm_guest: PathBuf::from(cove_vm::guest::CACHE),
            vm_templates_mib_max: 8192,
            starts_max: 4,
            ready_deadline,
            snapshots_mib_max: 10_240,
            criu: "criu".to_owned(),
        }
    }
}

impl SessionsSection {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// What is wrong and what would be right.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=1000).contains(&self.starts_max), "`sessions.starts_max` must be 1 to 1000");
        let is_wait = (1..=600).contains(&self.ready_deadline.0.as_secs());
        ensure!(is_wait, "`sessions.ready_deadline` must be between 1s and 10m");
        ensure!(!self.criu.is_empty(), "`sessions.criu` must be a path, or the name of a program");
        ensure!(self.vm_templates_mib_max <= 1 << 20, "`sessions.vm_templates_mib_max` must be 0 to 1048576");
        ensure!(self.snapshots_mib_max <= 1 << 20, "`sessions.snapshots_mib_max` must be 0 to 1048576");
        ensure!(
            !self.default_isolation.is_empty(),
            "`sessions.default_isolation` must be `hardened`, `vm` or an OCI runtime"
        );
        Ok(())
    }
}

/// Where the ingress brings requests to hosts of pools, before it is served.
#[derive(Debug)]
pub(crate) struct Gateway {
    listener: StdListener,
    https_port: u16,
    store: Store,
    monitor: Monitor,
}

impl Gateway {
    /// Takes a free port of the loopback; `https` is where the ingress takes requests.
    pub(crate) fn open(https: &TcpListener, (store, monitor): (Store, Monitor)) -> anyhow::Result<Self> {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a port for requests to sessions")?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, https_port: https.local_addr()?.port(), store, monitor })
    }

    /// What the API is told: defaults, what this machine can do, where hosts answer.
    pub(crate) fn for_api(&self, section: &SessionsSection, host: &Capabilities) -> cove_control_plane::Sessions {
        let isolation = |tier: &SandboxTier| match tier {
            SandboxTier::Hardened => SessionIsolation::Hardened,
            SandboxTier::Vm => SessionIsolation::Vm,
            SandboxTier::Handler(name) => SessionIsolation::Handler(name.clone()),
        };
        cove_control_plane::Sessions {
            default_isolation: match section.default_isolation.as_str() {
                "hardened" => SessionIsolation::Hardened,
                "vm" => SessionIsolation::Vm,
                name => SessionIsolation::Handler(name.strip_prefix("handler:").unwrap_or(name).to_owned()),
            },
            isolations: host.sandbox_tiers.iter().map(isolation).collect(),
            https_port: Some(self.https_port),
        }
    }

    /// What the controller is told.
    pub(crate) fn for_controller(&self, section: &SessionsSection) -> cove_controller::SessionConfig {
        let settings = cove_reconcile::SessionSettings::default();
        // a session is not given up while a request may still wait for it
        let waits = jiff::SignedDuration::from_secs(i64::try_from(section.ready_deadline.0.as_secs()).unwrap_or(0));
        cove_controller::SessionConfig {
            settings: cove_reconcile::SessionSettings {
                starts_max: section.starts_max,
                start_deadline: settings.start_deadline.max(waits),
                ..settings
            },
            ready_deadline: section.ready_deadline.0,
            snapshot_bytes_max: section.snapshots_mib_max << 20,
            gateway: self.listener.local_addr().ok(),
        }
    }

    /// Consoles, files, logs, the meter, and how far images are.
    fn begin_tools(&self, plane: &ControlPlane, runtime: &Arc<dyn Runtime>, shared: &Shared) -> tools::SessionTools {
        let stop = shared.tasks.shutdown_token();
        shared.tasks.spawn(HELPER, meter::run(self.store.clone(), Arc::clone(runtime), shared.clock.clone(), stop));
        let pulled = Arc::clone(runtime);
        plane.set_pulled_percent(Arc::new(move |pool| match pulled.images(pool) {
            ImagesState::Pulling { percent } => Some(percent),
            ImagesState::Unknown | ImagesState::Ready { .. } | ImagesState::Failed { .. } => None,
        }));
        tools::SessionTools {
            plane: plane.clone(),
            runtime: Arc::clone(runtime),
            store: self.store.clone(),
            monitor: self.monitor.clone(),
            reach: Reach::new(Arc::clone(runtime)),
        }
    }

    /// Serves it, and gives the API's router with the other door in front of it.
    pub(crate) fn serve(
        self,
        sessions: cove_controller::Sessions,
        runtime: Arc<dyn Runtime>,
        (shared, data_dir): (&Shared, &Utf8Path),
        (router, identity_router): (Router, Router),
    ) -> anyhow::Result<(Router, Router)> {
        let plane = shared.plane.get().context("the API is made before its doors")?.clone();
        shared.metrics.collect(Box::new(metrics::SessionMetrics(sessions.clone())));
        let e2b = E2bPorts {
            exec: {
                let runtime = Arc::clone(&runtime);
                Arc::new(move |request| runtime.exec(request))
            },
            clock: shared.clock.clone(),
            dir: data_dir.join("sandboxes"),
        };
        let allocations = metrics::Allocations::new(&shared.metrics);
        let tools = self.begin_tools(&plane, &runtime, shared);
        let ports = Ports {
            tools: Some(Arc::new(tools)),
            pools: Arc::new(Known(sessions, plane.clone(), allocations, Arc::clone(&runtime))),
            check: Arc::new(move |headers| plane.check_session_token(headers).map_err(problem)),
            dial: Arc::new(move |replica, port| runtime.dial(replica, port)),
        };
        let service = Service::with_e2b(ports, Limits::default(), Some(e2b));
        let listener = TcpListener::from_std(self.listener)?;
        let (host_router, stop) = (service.router(), shared.tasks.shutdown_token());
        shared.tasks.spawn_fallible(HELPER, async move {
            axum::serve(listener, host_router).with_graceful_shutdown(stop.cancelled_owned()).await
        });
        let loaded = shared.boards.loaded.subscribe();
        shared.tasks.spawn(HELPER, {
            let (service, mut loaded) = (Arc::clone(&service), loaded.clone());
            let stop = shared.tasks.shutdown_token();
            async move {
                let known = async { drop(loaded.wait_for(|loaded| *loaded).await) };
                service.keep_sandboxes(known, stop.cancelled_owned()).await;
            }
        });
        let router = router.layer(axum::middleware::from_fn(move |request: Request, next: Next| {
            let (service, mut loaded) = (Arc::clone(&service), loaded.clone());
            async move {
                if Service::is_for_sessions(request.uri()) {
                    // the API answers before the pools are known; when they never are, the server ends
                    drop(tokio::time::timeout(LOAD_LIMIT, loaded.wait_for(|loaded| *loaded)).await);
                    service.handle(Door::Path, request).await
                } else {
                    next.run(request).await
                }
            }
        }));
        Ok((router, identity_router))
    }
}

fn problem(error: SessionTokenError) -> TokenProblem {
    match error {
        SessionTokenError::Missing => TokenProblem::Missing,
        SessionTokenError::Invalid(why) => TokenProblem::Invalid(why),
        SessionTokenError::Expired => TokenProblem::Expired,
        SessionTokenError::Audience(audience) => TokenProblem::Audience(audience),
        SessionTokenError::Tenant => TokenProblem::Tenant,
    }
}

/// The controller's sessions, as the data plane sees them.
struct Known(cove_controller::Sessions, ControlPlane, metrics::Allocations, Arc<dyn Runtime>);

fn pool_info(pool: &cove_controller::PoolInfo) -> PoolInfo {
    PoolInfo { id: pool.id.clone(), container: pool.container, sessions_max: pool.sessions_max }
}

fn session_info(info: cove_controller::SessionInfo) -> SessionInfo {
    SessionInfo { session: info.session, expires_at: info.expires_at }
}

impl Pools for Known {
    fn pool(&self, id: &ResourceId) -> Option<PoolInfo> {
        self.0.pool(id).map(|pool| pool_info(&pool))
    }

    fn pool_at(&self, host: &str) -> Option<PoolInfo> {
        self.0.pool_at(host).map(|pool| pool_info(&pool))
    }

    fn is_mcp_key(&self, pool: &ResourceId, key: &[u8]) -> bool {
        self.1.is_mcp_key(pool, key)
    }

    fn pool_with_key(&self, key: &[u8]) -> Option<PoolInfo> {
        let pools = self.0.all_counts().into_iter().map(|(id, _)| id);
        let found = pools.filter(|id| self.1.is_mcp_key(id, key)).last()?;
        self.pool(&found)
    }

    fn details(&self, pool: &ResourceId) -> Option<PoolDetails> {
        let pool = self.1.session_pool(pool)?;
        let container = pool.template.containers.first()?;
        let memory_bytes = container.resources.memory.0;
        Some(PoolDetails {
            container: container.name.clone(),
            cpu_milli: container.resources.cpu.0,
            memory_bytes,
            // as the sandbox has it
            disk_bytes: Sandbox::default().disk_bytes.min(memory_bytes / 2),
            has_egress: pool.egress == SessionEgress::Enabled,
        })
    }

    fn allocate<'a>(
        &'a self,
        pool: &'a ResourceId,
        identifier: &'a SessionIdentifier,
    ) -> BoxFuture<'a, Result<Lease, AllocateError>> {
        let (allocated, begun) = (self.0.allocate(pool, identifier), Instant::now());
        async move {
            let allocated = allocated.await;
            self.2.count(pool, allocated.as_ref().map(|lease| lease.allocation().is_new), begun.elapsed());
            let lease = allocated?;
            Ok(Lease { allocation: lease.allocation().clone(), guard: Box::new(lease) })
        }
        .boxed()
    }

    fn stop<'a>(&'a self, pool: &'a ResourceId, identifier: &'a SessionIdentifier) -> BoxFuture<'a, bool> {
        self.0.stop(pool, identifier).boxed()
    }

    fn fork<'a>(
        &'a self,
        pool: &'a ResourceId,
        source: &'a SessionIdentifier,
        targets: &'a [SessionIdentifier],
        memory: bool,
    ) -> BoxFuture<'a, Result<Vec<Fork>, SnapshotError>> {
        let made = async move {
            let made = self.0.fork(pool, source, targets, memory).await?;
            let known = self.3.snapshots();
            let fork = |session: &cove_model::Session| {
                let info = self.find(pool, session.identifier.as_ref()?)?;
                let kept = session.snapshot.as_ref().and_then(|id| known.get(id));
                let kept = match kept.map(|facts| (facts.memory, &facts.memory_error)) {
                    Some((true, _)) => {
                        self.3.restored(&session.replica).unwrap_or_else(|| Err("it is not known".to_owned()))
                    }
                    Some((false, Some(error))) => Err(error.clone()),
                    _ if memory => Err("the runtime keeps no memory".to_owned()),
                    _ => Err("it was not asked for".to_owned()),
                };
                Some(Fork { info, memory: kept })
            };
            Ok(made.iter().filter_map(fork).collect())
        };
        made.boxed()
    }

    fn keep_snapshot<'a>(
        &'a self,
        pool: &'a ResourceId,
        source: &'a SessionIdentifier,
        name: &'a str,
    ) -> BoxFuture<'a, Result<SessionSnapshot, SnapshotError>> {
        self.0.keep(pool, source, name).boxed()
    }

    fn suspend<'a>(
        &'a self,
        pool: &'a ResourceId,
        source: &'a SessionIdentifier,
    ) -> BoxFuture<'a, Result<SessionSnapshot, SnapshotError>> {
        self.0.suspend(pool, source).boxed()
    }

    fn snapshots(&self, pool: &ResourceId) -> Vec<SessionSnapshot> {
        self.0.snapshots(pool)
    }

    fn delete_snapshot<'a>(&'a self, pool: &'a ResourceId, name: &'a str) -> BoxFuture<'a, Result<(), SnapshotError>> {
        self.0.delete_snapshot(pool, name).boxed()
    }

    fn list(&self, pool: &ResourceId) -> Vec<SessionInfo> {
        self.0.list(pool).into_iter().map(session_info).collect()
    }

    fn find(&self, pool: &ResourceId, identifier: &SessionIdentifier) -> Option<SessionInfo> {
        self.0.find(pool, identifier).map(session_info)
    }
}
