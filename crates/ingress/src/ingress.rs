//! The service: its inputs, its router task, its handle, its drain.
//!
//! **Invariant:** routes and endpoints are level-triggered: the router applies the newest value, however many it missed.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use cove_base::{Board, Clock, OnCancel, OnError, TaskKind, Tasks};
use cove_model::{ReplicaName, ResourceId, RevisionKey};
use cove_traffic::{AccessRecord, Endpoints, HostRoute, RevisionLoad, RevisionTraffic, RouteTable, WakeObservation};
use jiff::Timestamp;
use rustls::server::ResolvesServerCert;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    auth::{AuthShared, AuthSources},
    challenge::Challenges,
    config::IngressConfig,
    gate::{Activate, GateShared},
    listen::{self, Doors},
    observe::Observer,
    proxy::{Proxy, Side},
    request_body::Budget,
    resilience::{Ejected, Ejections, ResilienceCounts},
    routes::Gates,
    shards::Shards,
    tcp::Ports,
    tls::Tls,
};

const ROUTER: TaskKind = TaskKind { name: "ingress-router", on_error: OnError::Shutdown, on_cancel: OnCancel::Abort };
const ACCEPT: TaskKind = TaskKind { name: "ingress-accept", on_error: OnError::Shutdown, on_cancel: OnCancel::Abort };

/// Wake observations that may wait for their reader.
const WAKES_MAX: usize = 4096;
/// Gates that one change of the route table pays the look at.
const GATES_PER_CHANGE: usize = 64;
/// How long connections get after the grace period to flush their last bytes, close frames among them.
const FLUSH_TIME: Duration = Duration::from_secs(5);
/// How long connections whose tunnels have ended get to write what the tunnels left to them.
const LAST_BYTES_TIME: Duration = Duration::from_secs(1);
/// How long connections that do nothing get to end after the grace period of a server that was replaced.
const IDLE_TIME: Duration = Duration::from_secs(1);

/// Where the ingress gets what it needs from the rest of the server.
pub struct IngressSources {
    /// Hosts, apps, revisions.
    pub routes: watch::Receiver<Arc<RouteTable>>,
    /// Replicas of revisions, written by the controller.
    pub endpoints: Board<RevisionKey, Endpoints>,
    /// Makes a revision's count at least one; called while requests are held, so it must be cheap and may be called often.
    pub activate: Arc<dyn Fn(&RevisionKey) + Send + Sync>,
    /// Time of arrivals and wakes.
    pub clock: Clock,
    /// Certificates for the HTTPS listeners; `None` when there are none.
    pub certificates: Option<Arc<dyn ResolvesServerCert>>,
    /// The environment of a replica by its address: what `http://<app>` means on an internal listener, and whose internal
    /// apps answer there. `None` for an address that is no replica's, such as the machine itself: all of them answer.
    pub environment_of: Arc<dyn Fn(IpAddr) -> Option<ResourceId> + Send + Sync>,
    /// The app of a replica by its address: who calls, where an environment wants that told. `None` for any other address.
    pub app_of: Arc<dyn Fn(IpAddr) -> Option<ResourceId> + Send + Sync>,
    /// Random numbers for traffic weights: `rand::random`, or a sequence in tests.
    pub random: Arc<dyn Fn() -> u32 + Send + Sync>,
    /// Keys, files and events of authentication in front of apps.
    pub auth: AuthSources,
}

/// Bound sockets.
#[derive(Debug, Default)]
pub struct IngressListeners {
    /// From outside, plain HTTP.
    pub http: Vec<TcpListener>,
    /// From outside, TLS.
    pub https: Vec<TcpListener>,
    /// From replicas, plain HTTP: here apps answer also when they are not external.
    pub internal: Vec<TcpListener>,
}

/// Why the ingress cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum IngressError {
    /// HTTPS without certificates.
    #[error("there are HTTPS listeners but no certificates")]
    NoCertificates,
    /// TLS settings that rustls refuses.
    #[error("failed to set up TLS")]
    Tls(#[source] rustls::Error),
    /// The router or an accept loop panicked; the log says where.
    #[error("a part of the ingress ended unexpectedly")]
    TaskFailed,
    /// A listener without an address.
    #[error("failed to read a listener's address")]
    Listener(#[source] std::io::Error),
    /// A thread that serves connections could not be started.
    #[error("failed to start a thread for connections")]
    Threads(#[source] std::io::Error),
}

/// The ingress, ready to run.
pub struct Ingress {
    doors: Arc<Doors>,
    endpoints: Board<RevisionKey, Endpoints>,
    listeners: IngressListeners,
}

/// What others may ask of a running ingress; cheap to clone.
#[derive(Clone)]
pub struct IngressHandle {
    doors: Arc<Doors>,
}

impl std::fmt::Debug for IngressSources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IngressSources").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Ingress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingress").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for IngressHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IngressHandle").finish_non_exhaustive()
    }
}

impl Ingress {
    /// Makes an ingress that takes no connection before [`Self::run`]; also gives the wakes that it will see.
    ///
    /// # Errors
    /// HTTPS listeners without usable certificates.
    pub fn new(
        config: IngressConfig,
        sources: IngressSources,
        listeners: IngressListeners,
    ) -> Result<(Self, mpsc::Receiver<WakeObservation>), IngressError> {
        let (wakes, wakes_reader) = mpsc::channel(WAKES_MAX);
        let tls = sources.certificates.map(Tls::new).transpose().map_err(IngressError::Tls)?;
        if tls.is_none() && !listeners.https.is_empty() {
            return Err(IngressError::NoCertificates);
        }
        let https_port = std::sync::OnceLock::new();
        if let Some(port) = config.https_port {
            https_port.get_or_init(|| port);
        } else if let Some(listener) = listeners.https.first() {
            let port = listener.local_addr().map_err(IngressError::Listener)?.port();
            https_port.get_or_init(|| port);
        }
        let shards = Shards::start(config.threads).map_err(IngressError::Threads)?;
        let observer = Observer::new(config.access_log);
        let kept_bodies = Arc::new(Budget::new(config.retry_bodies_max));
        let shared = Arc::new(GateShared {
            config: Arc::new(config),
            clock: sources.clock,
            tasks: Tasks::default(),
            activate: sources.activate as Activate,
            drained: Board::default(),
            held_total: 0.into(),
            kept_bodies,
            ejections: Ejections::default(),
            header_fields_ceiling: 0.into(),
        });
        let gates = Gates::new(Arc::clone(&shared));
        let proxy = Arc::new(Proxy {
            gates,
            shared,
            routes: sources.routes,
            snapshot: ArcSwap::default(),
            random: sources.random,
            wakes,
            environment_of: sources.environment_of,
            app_of: sources.app_of,
            evict: CancellationToken::new(),
            connections: TaskTracker::new(),
            tunnels: TaskTracker::new(),
            https_port,
            challenges: Challenges::default(),
            observer,
            auth: AuthShared::new(sources.auth),
        });
        let doors = Arc::new(Doors::new(proxy, shards, tls));
        Ok((Self { doors, endpoints: sources.endpoints, listeners }, wakes_reader))
    }

    /// For the rest of the server.
    #[must_use]
    pub fn handle(&self) -> IngressHandle {
        IngressHandle { doors: Arc::clone(&self.doors) }
    }

    /// Serves until `shutdown`, then drains within `drain_grace`.
    ///
    /// # Errors
    /// [`IngressError::TaskFailed`], also after a drain, when a part that nothing works without ended by itself.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), IngressError> {
        let handle = self.handle();
        let tasks = &self.doors.proxy.shared.tasks;
        tasks.spawn(ROUTER, route(Arc::clone(&self.doors), self.endpoints));
        let sides = [
            (Side::Http, self.listeners.http),
            (Side::Https, self.listeners.https),
            (Side::Internal, self.listeners.internal),
        ];
        for (side, listeners) in sides {
            for listener in listeners {
                tasks.spawn(ACCEPT, listen::accept(Arc::clone(&self.doors), listener, side));
            }
        }
        let failed = tasks.shutdown_token();
        let result = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            // also after `IngressHandle::shutdown`, which asked for it
            () = failed.cancelled() => if self.doors.drain.is_cancelled() { Ok(()) } else { Err(IngressError::TaskFailed) },
        };
        handle.shutdown(self.doors.proxy.drain_grace()).await;
        self.doors.shards.stop().await;
        result
    }
}

/// Applies route tables and endpoints as they change.
async fn route(doors: Arc<Doors>, endpoints: Board<RevisionKey, Endpoints>) {
    let proxy = &doors.proxy;
    let mut ports = Ports::default();
    let mut routes = proxy.routes.clone();
    routes.mark_changed();
    let mut changes = endpoints.subscribe();
    let mut is_open = true;
    let mut changes_seen = 0;
    loop {
        tokio::select! {
            changed = routes.changed(), if is_open => {
                is_open = changed.is_ok();
                let table = routes.borrow_and_update().clone();
                let next = proxy.gates.snapshot(&table, &proxy.snapshot.load());
                proxy.snapshot.store(Arc::new(next));
                ports.follow(&doors, &table);
                forget(proxy, &table, &endpoints, &mut changes_seen);
            }
            revisions = changes.next() => {
                for revision in &revisions {
                    match endpoints.get(revision) {
                        Some(value) => proxy.gates.ensure(revision).update(Some(&value)),
                        None => {
                            if let Some(gate) = proxy.gates.get(revision) {
                                gate.update(None);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Forgets gates of revisions that neither a route nor an endpoint names any more, once enough changed that the look at all
/// of them is paid for.
fn forget(proxy: &Proxy, table: &RouteTable, endpoints: &Board<RevisionKey, Endpoints>, changes: &mut usize) {
    *changes += 1;
    if *changes * GATES_PER_CHANGE < proxy.gates.count() {
        return;
    }
    *changes = 0;
    let hosts = table.hosts.iter().filter_map(|(_, host)| match &host.route {
        HostRoute::App(app) => Some(app),
        HostRoute::Paths(_) => None,
    });
    let names = table.names.iter().map(|(_, app)| app);
    let apps = hosts.chain(names).chain(table.tcp.values().map(|port| &port.route));
    let routed: std::collections::HashSet<&RevisionKey> =
        apps.flat_map(|route| &route.revisions).map(|revision| &revision.revision).collect();
    proxy.gates.forget(|revision| routed.contains(revision) || endpoints.get(revision).is_some());
}

impl IngressHandle {
    /// What was seen of a revision so far; all zero when it never had a route.
    #[must_use]
    pub fn load(&self, revision: &RevisionKey) -> RevisionLoad {
        self.doors.proxy.gates.get(revision).map_or_else(RevisionLoad::default, |gate| gate.load())
    }

    /// Requests for a revision that arrived in `[from, to)`, exact to 10 ms for the last 16 s.
    #[must_use]
    pub fn arrivals_between(&self, revision: &RevisionKey, from: Timestamp, to: Timestamp) -> u64 {
        self.doors.proxy.gates.get(revision).map_or(0, |gate| gate.arrivals_between(from, to))
    }

    /// Answers to requests for a revision by class of status: 1xx, 2xx, 3xx, 4xx, 5xx. Only grows.
    #[must_use]
    pub fn answers(&self, revision: &RevisionKey) -> [u64; 5] {
        self.doors.proxy.gates.get(revision).map_or([0; 5], |gate| gate.answers())
    }

    /// What a revision's resiliency policy did so far; all zero without one.
    #[must_use]
    pub fn resilience(&self, revision: &RevisionKey) -> ResilienceCounts {
        self.doors.proxy.gates.get(revision).map_or_else(ResilienceCounts::default, |gate| gate.resilience())
    }

    /// A row per finished request from now on; `None` when somebody has them already. Before the first call there are none.
    #[must_use]
    pub fn access_log(&self) -> Option<mpsc::Receiver<AccessRecord>> {
        self.doors.proxy.observer.rows()
    }

    /// Requests that have no row in the access log because there were too many.
    #[must_use]
    pub fn access_log_left_out(&self) -> u64 {
        self.doors.proxy.observer.left_out_total()
    }

    /// Rate, errors and durations of every revision that a request ended for since the ingress started.
    #[must_use]
    pub fn traffic(&self) -> Vec<(RevisionKey, RevisionTraffic)> {
        let (gates, now_secs) = (self.doors.proxy.gates.all(), self.doors.proxy.observer.now_secs());
        gates.iter().filter_map(|gate| Some((gate.key().clone(), gate.traffic(now_secs)?))).collect()
    }

    /// How often Cove answered itself, by the reason in `x-cove-reason`. Only grows.
    #[must_use]
    pub fn reasons(&self) -> Vec<(String, u64)> {
        self.doors.proxy.observer.reasons()
    }

    /// Replicas that circuit breakers leave out, as it happens, for whoever asks first.
    #[must_use]
    pub fn ejections(&self) -> Option<mpsc::Receiver<Ejected>> {
        self.doors.proxy.shared.ejections.take()
    }

    /// The same of every revision whose policy did something, by revision.
    #[must_use]
    pub fn resilience_of_all(&self) -> Vec<(RevisionKey, ResilienceCounts)> {
        let counts = self.doors.proxy.gates.all().into_iter().map(|gate| (gate.key().clone(), gate.resilience()));
        let mut all: Vec<_> = counts.filter(|(_, counts)| *counts != ResilienceCounts::default()).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// Open requests of draining replicas: set when a replica begins to drain, and again when the count reaches 0. From the
    /// first value on it gets no new request.
    #[must_use]
    pub fn drained(&self) -> Board<ReplicaName, u64> {
        self.doors.proxy.shared.drained.clone()
    }

    /// Requests held now, over all revisions.
    #[must_use]
    pub fn held_total(&self) -> usize {
        self.doors.proxy.shared.held_total.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Serves another internal listener, such as the gateway of an environment that was just made.
    pub fn listen_internal(&self, listener: TcpListener) {
        let doors = Arc::clone(&self.doors);
        self.doors.proxy.shared.tasks.spawn(ACCEPT, listen::accept(doors, listener, Side::Internal));
    }

    /// What was seen of every revision so far.
    #[must_use]
    pub fn loads(&self) -> Vec<(RevisionKey, RevisionLoad)> {
        self.doors.proxy.gates.all().iter().map(|gate| (gate.key().clone(), gate.load())).collect()
    }

    /// Whether new connections are taken here.
    #[must_use]
    pub fn is_accepting(&self) -> bool {
        !self.doors.closed.is_cancelled()
    }

    /// Listening sockets of exposed ports of the server before this one: used in place of new ones where a route wants them.
    /// To be called before [`Ingress::run`].
    pub fn inherit_ports(&self, sockets: Vec<std::net::TcpListener>) {
        self.doors.ports.inherit(sockets);
    }

    /// Copies of the listening sockets of exposed ports, for the server after this one.
    #[must_use]
    pub fn ports(&self) -> Vec<(SocketAddr, OwnedFd)> {
        self.doors.ports.copies()
    }

    /// Leaves new connections to another server that has the same sockets, and lets those that are open go on for `grace`:
    /// each may finish what it does, and what its client sent meanwhile is answered. Then ends what is left, as
    /// [`Self::shutdown`] does. Says how many requests were still open then.
    pub async fn retire(&self, grace: Duration) -> u64 {
        let proxy = &self.doors.proxy;
        self.doors.close();
        let all_closed = async { tokio::join!(proxy.connections.wait(), proxy.tunnels.wait()) };
        let _late = tokio::time::timeout(grace, all_closed).await;
        self.shutdown(IDLE_TIME).await
    }

    /// The same with TLS.
    pub fn listen_internal_tls(&self, listener: TcpListener) {
        let doors = Arc::clone(&self.doors);
        self.doors.proxy.shared.tasks.spawn(ACCEPT, listen::accept(doors, listener, Side::InternalTls));
    }

    /// What is answered to certificate authorities that ask whose a domain is.
    #[must_use]
    pub fn challenges(&self) -> Challenges {
        self.doors.proxy.challenges.clone()
    }

    /// Stops accepting, lets open requests go on for `grace`, then ends what is left: WebSockets with a close frame, the
    /// rest by closing. Says how many requests were still open then.
    pub async fn shutdown(&self, grace: Duration) -> u64 {
        let doors = &self.doors;
        doors.close();
        doors.drain.cancel();
        let all_closed = async { tokio::join!(doors.proxy.connections.wait(), doors.proxy.tunnels.wait()) };
        let in_time = tokio::time::timeout(grace, all_closed).await.is_ok();
        let open = if in_time { 0 } else { doors.proxy.gates.all().iter().map(|gate| gate.load().open).sum() };
        if !in_time {
            tracing::warn!(open, "requests were still open at the end of the grace period");
            let had_tunnels = !doors.proxy.tunnels.is_empty();
            doors.proxy.evict.cancel();
            let _flushed = tokio::time::timeout(FLUSH_TIME, doors.proxy.tunnels.wait()).await;
            if had_tunnels {
                // the last bytes of a tunnel over HTTP/2 are written by its connection, which ends when nothing is left open
                let _written = tokio::time::timeout(LAST_BYTES_TIME, doors.proxy.connections.wait()).await;
            }
        }
        doors.proxy.shared.tasks.drain(FLUSH_TIME).await;
        open
    }
}
