//! Opens, wires, runs and drains one server.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, bail};
use axum::Router;
use camino::Utf8PathBuf;
use cove_base::{Board, Clock, OnCancel, OnError, TaskKind, Tasks};
use cove_control_plane::{Auth, Client, ControlPlane, Extensions};
use cove_images::{ImageStore, RegistryConfig, StoreConfig};
use cove_ingress::{
    AuthSources, Ingress, IngressConfig, IngressError, IngressHandle, IngressListeners, IngressSources,
};
use cove_model::{DesiredCount, ReplicaName, RevisionKey};
use cove_monitor::{HttpLog, HttpLogService, Monitor, MonitorConfig};
use cove_network::{Network, NetworkConfig, dns::DnsConfig};
use cove_runtime::Runtime;
use cove_runtime_oci::{ExecutionDirs, MachinesConfig, OciConfig, OciRuntime, make_room_for_watches};
use cove_scaling::ScaledRevision;
use cove_store::Store;
use cove_traffic::{HostCertificate, RouteTable, WakeObservation};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{
    acme::{self, Acme},
    api_listener, auth,
    certificates::Certificates,
    config::Config,
    directory::Directory,
    ejections, execution_folders, extensions,
    handover::{self, Door, Inherited, Leaver, Predecessors, Successor, TakeOver, Visitor},
    http_logs, job_triggers,
    logs::MonitorStreams,
    metrics::Metrics,
    mirrors, registry_login, sessions,
    sockets::{self, Sockets},
    tcp_ports,
    tls::{self, AppCertificates, Authority, Shown},
    virtual_clock::{self, ClockKind, KeptTime, Mover, Parts},
    wakes,
};

mod autoscaling;

/// Longest that loops get to write down what is left when the server stops.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Longest that the first look at all apps may take.
pub(crate) const LOAD_LIMIT: Duration = Duration::from_secs(60);
/// How long finished operations can be asked for.
const OPERATIONS_KEPT: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);

const ESSENTIAL: TaskKind = TaskKind { name: "service", on_error: OnError::Shutdown, on_cancel: OnCancel::Wait };
pub(crate) const HELPER: TaskKind = TaskKind { name: "helper", on_error: OnError::Log, on_cancel: OnCancel::Abort };

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Configuration, flags laid over it already.
    pub config: Config,
    /// State, images, logs, certificates.
    pub data_dir: PathBuf,
    /// Real or virtual time.
    pub clock: ClockKind,
    /// Program and first arguments of the helper process; `None`: this very program.
    pub shim_program: Option<Vec<String>>,
    /// Take over from the server that runs on the data directory, if one does, without closing a port.
    pub take_over: bool,
}

/// Where a running server is reached: the content of `endpoints.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// ARM API, login, registry.
    pub api: String,
    /// Apps over HTTP.
    pub http: String,
    /// Apps over HTTPS.
    pub https: String,
    /// Certificate that clients must trust.
    pub ca: PathBuf,
    /// Process id of the server.
    pub pid: u32,
    /// Managed-identity endpoint over plain HTTP.
    pub identity: String,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    endpoints: Endpoints,
    tasks: Tasks,
    ingress_stop: CancellationToken,
    ingress: JoinHandle<Result<(), IngressError>>,
    network: Arc<Network>,
    runtime: Arc<OciRuntime>,
    leaver: Leaver,
    http_log: Option<http_logs::Keeper>,
}

/// The network of a data directory: its name is made from the directory's path, so that servers do not meet.
///
/// # Errors
/// When the path cannot be resolved.
pub fn network_config(data_dir: &Path) -> anyhow::Result<NetworkConfig> {
    let path = fs::canonicalize(data_dir).with_context(|| format!("failed to resolve `{}`", data_dir.display()))?;
    let hash =
        path.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    Ok(NetworkConfig::new(path.join("network"), format!("{:06x}", hash >> 40)))
}

/// What is opened before services are made.
struct Opened {
    store: Store,
    monitor: Monitor,
    http_log: HttpLog,
    /// Until the ingress is made, whose rows it takes.
    http_log_service: Option<HttpLogService>,
    network: Arc<Network>,
    images: ImageStore,
    runtime: Arc<OciRuntime>,
    authority: Arc<Authority>,
    clock: Clock,
    kept_time: Option<KeptTime>,
}

/// What services share.
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) boards: Boards,
    pub(crate) metrics: Arc<Metrics>,
    recording: cove_autoscaler::Recording,
    decisions: mpsc::Sender<cove_autoscaler::RevisionDecision>,
    /// The ingress and the autoscaler need each other: the ingress asks through this cell, filled once both are made.
    activate: Arc<OnceLock<cove_autoscaler::Handle>>,
    jobs: job_triggers::JobCell,
    /// The API asks the controller through this cell, filled once it is made.
    controller: Arc<OnceLock<cove_controller::Handle>>,
    /// Scale rules with an identity ask the API for tokens through this cell, filled once it is made.
    pub(crate) plane: Arc<OnceLock<ControlPlane>>,
    /// The address of the API.
    origin: String,
    /// What servers before this one still serve.
    predecessors: Predecessors,
    /// Whether the next server decides about replicas already.
    successor: Successor,
}

impl Shared {
    fn new(
        clock: Clock,
        tasks: Tasks,
        (recording, decisions): (cove_autoscaler::Recording, mpsc::Sender<cove_autoscaler::RevisionDecision>),
        origin: String,
    ) -> Self {
        Self {
            clock,
            tasks,
            boards: Boards::default(),
            metrics: Arc::new(Metrics::new()),
            recording,
            decisions,
            activate: Arc::default(),
            jobs: Arc::default(),
            controller: Arc::default(),
            plane: Arc::default(),
            origin,
            predecessors: Predecessors::default(),
            successor: Successor::default(),
        }
    }

    /// Finishes with the server before this one what is open there. Ends when that one does, also if this one is replaced
    /// before.
    fn follow(&self, old: Option<TakeOver>) {
        let Some(old) = old else { return };
        tokio::spawn(old.serve(handover::Shared {
            routes: self.boards.routes.subscribe(),
            endpoints: self.boards.endpoints.clone(),
            predecessors: self.predecessors.clone(),
            activate: self.activation(),
        }));
    }

    /// What asks for a first replica of a revision; cheap to call.
    fn activation(&self) -> Arc<dyn Fn(&RevisionKey) + Send + Sync> {
        let (autoscaler, successor) = (Arc::clone(&self.activate), self.successor.clone());
        Arc::new(move |revision| {
            if !successor.takes(revision)
                && let Some(autoscaler) = autoscaler.get()
            {
                autoscaler.activate(revision);
            }
        })
    }

    /// Open requests of draining replicas, those of servers before this one included.
    fn drained(&self, ingress: &IngressHandle, has_old: bool) -> Board<ReplicaName, u64> {
        if !has_old {
            return ingress.drained();
        }
        let all = Board::default();
        // it goes on while the next server asks, when the services have stopped
        tokio::spawn(self.predecessors.clone().follow_drained(ingress.drained(), all.clone()));
        all
    }
}

/// Where services meet.
pub(crate) struct Boards {
    desired: Board<RevisionKey, DesiredCount>,
    endpoints: Board<RevisionKey, cove_traffic::Endpoints>,
    routes: watch::Sender<Arc<RouteTable>>,
    scaled: Board<RevisionKey, Arc<ScaledRevision>>,
    jobs: Board<cove_model::ResourceId, cove_autoscaler::TriggeredJob>,
    pub(crate) loaded: watch::Sender<bool>,
}

impl Default for Boards {
    fn default() -> Self {
        Self {
            desired: Board::default(),
            endpoints: Board::default(),
            routes: watch::Sender::new(Arc::default()),
            scaled: Board::default(),
            jobs: Board::default(),
            loaded: watch::Sender::new(false),
        }
    }
}

impl Server {
    /// Opens everything and starts every service; ready when this returns.
    ///
    /// # Errors
    /// With what is wrong and what would be right: a port in use, a second server, no root, a missing kernel part.
    pub async fn start(mut options: Options) -> anyhow::Result<Self> {
        crate::install_crypto();
        options.config.check()?;
        let tasks = Tasks::new(CancellationToken::new());
        fs::create_dir_all(&options.data_dir)
            .with_context(|| format!("failed to create `{}`", options.data_dir.display()))?;
        // helpers have another working directory
        options.data_dir = fs::canonicalize(&options.data_dir)
            .with_context(|| format!("failed to resolve `{}`", options.data_dir.display()))?;
        let old = if options.take_over { TakeOver::ask(&options.data_dir).await? } else { None };
        let Some((mut old, inherited)) = old else {
            let opened = open(&options, &tasks).await?;
            return wire(&options, opened, Sockets::bind(&options.config, Inherited::default())?, tasks).await;
        };
        // what can fail is done before the old server gives its state away
        let mut sockets = Sockets::bind(&options.config, inherited)?;
        old.release().await?;
        sockets.old = Some(old);
        wire(&options, open(&options, &tasks).await?, sockets, tasks).await
    }

    /// Where it is reached.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Cancelled when something essential failed or shutdown began.
    #[must_use]
    pub fn ended(&self) -> CancellationToken {
        self.tasks.shutdown_token()
    }

    /// Waits until a new server asks to take over, and gives it copies of the listening sockets.
    pub async fn visitor(&self) -> Visitor {
        self.leaver.visitor().await
    }

    /// Stops the services and lets `visitor` take over; returns when all that was open here is finished. Calls `abandoned`
    /// when a new server ended before it served: the next one is waited for.
    pub async fn hand_over(self, visitor: Visitor, abandoned: impl Fn()) {
        let Self { tasks, ingress_stop, ingress, network, runtime, leaver, http_log, .. } = self;
        tracing::info!(?visitor, "another server takes over");
        leaver.begin();
        if !tasks.drain(STOP_LIMIT).await {
            tracing::warn!("some services did not stop in time; they cannot write any more");
        }
        runtime.close().await;
        network.close().await;
        close(leaver.store.clone()).await;
        leaver.leave(visitor, abandoned).await;
        ingress_stop.cancel();
        if let Err(error) = ingress.await {
            tracing::error!(%error, "the ingress failed");
        }
        if let Some(http_log) = http_log {
            http_log.finish().await;
        }
    }

    /// Stops accepting, lets open requests finish, writes what is left. Replicas go on.
    pub async fn shutdown(self) {
        let store = self.leaver.store.clone();
        self.leaver.stay_away();
        self.ingress_stop.cancel();
        match self.ingress.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(error = &error as &dyn std::error::Error, "the ingress failed"),
            Err(error) => tracing::error!(%error, "the ingress failed"),
        }
        if let Some(http_log) = self.http_log {
            http_log.finish().await;
        }
        if !self.tasks.drain(STOP_LIMIT).await {
            tracing::warn!("some services did not stop in time");
        }
        self.network.close().await;
        drop(self.runtime);
        close(store).await;
    }
}

/// Ends all writing and unlocks the data directory, whoever else still holds the store.
async fn close(store: Store) {
    if let Err(error) = tokio::task::spawn_blocking(move || store.close()).await {
        tracing::error!(%error, "the state was not closed as it should be");
    }
}

async fn open(options: &Options, tasks: &Tasks) -> anyhow::Result<Opened> {
    let data_dir = &options.data_dir;
    let store = handover::open_store(data_dir, options.take_over).await.map_err(with_causes)?;
    let (clock, kept_time) = virtual_clock::open(options.clock, data_dir)?;
    let authority = Arc::new(Authority::open(data_dir)?);
    make_room_for_watches(); // which what follows needs itself
    let monitor_config = MonitorConfig {
        dir: data_dir.join("logs"),
        source_dir: data_dir.join("console"),
        retention_days: options.config.logs.retention_days,
    };
    let (monitor, service) = Monitor::open(monitor_config).map_err(with_causes)?;
    let (http_log, http_log_service) = http_logs::open(data_dir, &options.config.logs).map_err(with_causes)?;
    let (stop, service) = (tasks.shutdown_token(), service.with_clock(clock.clone()));
    tasks.spawn_fallible(ESSENTIAL, async move { service.run(stop).await });
    let mut network_config = network_config(data_dir)?;
    network_config.pool_size = options.config.runtime.network_pool;
    let network = Network::open(network_config.clone()).await.map_err(with_causes).context("network of replicas")?;
    for warning in &network.capabilities().warnings {
        tracing::warn!("{warning}");
    }
    let images_config = StoreConfig {
        insecure_registries: options.config.runtime.insecure_registries.clone(),
        mirrors: mirrors::of(&options.config.registries.mirrors, store.clone()),
        ..StoreConfig::default()
    };
    let images =
        ImageStore::open(&utf8(data_dir.join("images"))?, images_config).map_err(with_causes).context("images")?;
    let mut oci =
        OciConfig::new(utf8(data_dir.join("replicas"))?, utf8(data_dir.join("console"))?, network_config.name);
    oci.shares = options.config.storage.shares(&utf8(data_dir.clone())?);
    oci.clock = clock.clone();
    oci.ca_certificate = Some(fs::read_to_string(authority.ca_path()).context("the CA's certificate")?);
    if let Some(program) = &options.shim_program {
        oci.shim_program.clone_from(program);
    }
    oci.handlers = Some(options.config.sessions.handlers.clone());
    oci.criu.clone_from(&options.config.sessions.criu);
    let guest = utf8(options.config.sessions.vm_guest.clone())?;
    let templates_bytes_max = options.config.sessions.vm_templates_mib_max << 20;
    oci.machines = Some(MachinesConfig { cache: guest, templates_bytes_max, ..MachinesConfig::new(&oci.dir) });
    let runtime = OciRuntime::open(oci, images.clone(), Arc::clone(&network), monitor.events())
        .await
        .map_err(with_causes)
        .context("runtime")?;
    let http_log_service = Some(http_log_service);
    Ok(Opened { store, monitor, http_log, http_log_service, network, images, runtime, authority, clock, kept_time })
}

/// An error with its causes in one line; `anyhow` prints causes only in its alternate form.
fn with_causes(error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    anyhow::Error::new(error)
}

fn utf8(path: PathBuf) -> anyhow::Result<Utf8PathBuf> {
    Utf8PathBuf::from_path_buf(path)
        .map_err(|path| anyhow::anyhow!("`{}` is not UTF-8; choose another --data-dir", path.display()))
}

async fn wire(options: &Options, mut opened: Opened, mut sockets: Sockets, tasks: Tasks) -> anyhow::Result<Server> {
    let endpoints = sockets.endpoints(&opened.authority, &options.config)?;
    let recording = start_recording(options, &opened.clock, &tasks);
    let shared = Shared::new(opened.clock.clone(), tasks.clone(), recording, endpoints.api.clone());
    let runtime: Arc<dyn Runtime> = opened.runtime.clone();
    let directory = Directory::new(shared.boards.routes.subscribe(), opened.network.gateway());
    tasks.spawn(HELPER, directory.clone().follow(Arc::clone(&runtime)));
    tasks.spawn(HELPER, tcp_ports::follow(shared.boards.routes.subscribe(), Arc::clone(&opened.network)));

    let internal = sockets.internal(&opened.network);
    let mut copies = sockets.copies(internal.as_ref())?;
    let gateway = sessions::Gateway::open(&sockets.https, (opened.store.clone(), opened.monitor.clone()))?;
    let listeners = IngressListeners {
        internal: internal.into_iter().collect(),
        http: vec![sockets.http],
        https: vec![sockets.https],
    };
    let roots = options.config.scalers.roots()?;
    let auth = auth::sources(&opened.store, &options.data_dir, &opened.authority, opened.monitor.events()).await?;
    let (ingress, seen_wakes) = make_ingress(options, &opened, &shared, (&directory, auth), listeners)?;
    shared.metrics.read_ingress(ingress.handle());
    let events = opened.monitor.events();
    tasks.spawn(HELPER, ejections::tell(ingress.handle(), shared.boards.routes.subscribe(), events));
    let http_log = opened.http_log_service.take().map(|service| http_logs::Keeper::start(service, &ingress.handle()));
    ingress.handle().inherit_ports(sockets.inherited.take_ports());
    let drained = shared.drained(&ingress.handle(), sockets.old.is_some());
    let mover = make_mover(&mut opened, &shared, drained.clone());
    let controller = make_controller(options, &opened, &shared, (drained.clone(), &gateway));
    let pools = controller.sessions();
    let _first = shared.controller.set(controller.handle());
    let rules = autoscaling::rule_sources(&opened, &shared, roots);
    autoscaling::start_job_triggers(options, &opened, &shared, rules.clone());
    let autoscaler = autoscaling::make(options, &opened, &shared, &ingress.handle(), &controller.handle(), rules);
    let _first = shared.activate.set(autoscaler.handle());

    let mut loaded = shared.boards.loaded.subscribe();
    let stop = tasks.shutdown_token();
    tasks.spawn_fallible(ESSENTIAL, {
        let stop = stop.clone();
        async move { autoscaler.run(stop).await }
    });
    tasks.spawn(ESSENTIAL, async move { controller.run(stop).await });
    let metrics = Arc::clone(&shared.metrics);
    tasks.spawn(HELPER, wakes::keep(seen_wakes, Arc::clone(&runtime), opened.monitor.clone(), metrics));
    start_dns(&opened.network, &shared, directory, (&mut sockets.inherited, &mut copies)).await;
    let api = api_router(options, &opened, &shared, (Arc::clone(&runtime), mover, &gateway)).await?;
    let api = gateway.serve(pools, runtime, (&shared, &utf8(options.data_dir.clone())?), api)?;
    start_certificates(options, &opened, &shared, &ingress.handle(), sockets.internal_tls.take());
    start_api(options, &opened, sockets.api, sockets.identity, api, &tasks)?;
    tasks.spawn(HELPER, prune(opened.store.clone(), shared.clock.clone()));

    // requests wait in the sockets' queues until the routes are known: a restart answers no 404
    if tokio::time::timeout(LOAD_LIMIT, loaded.wait_for(|loaded| *loaded)).await.is_err() {
        bail!("the apps could not be loaded from the store within {} s; the log says why", LOAD_LIMIT.as_secs());
    }
    let leaver = Leaver {
        door: Door::open(&options.data_dir)?,
        sockets: copies,
        store: opened.store,
        ingress: ingress.handle(),
        routes: shared.boards.routes.clone(),
        endpoints: shared.boards.endpoints.clone(),
        drained,
        predecessors: shared.predecessors.clone(),
        successor: shared.successor.clone(),
        grace: options.config.ingress.drain_grace.0,
    };
    let (ingress_stop, ingress) = run_ingress(ingress, &tasks);
    sockets::write_endpoints(&options.data_dir, &endpoints)?;
    shared.follow(sockets.old);
    let (network, runtime) = (opened.network, opened.runtime);
    Ok(Server { endpoints, tasks, ingress_stop, ingress, network, runtime, leaver, http_log })
}

/// Runs the ingress; it ends before everything else, while replicas, counts and logs are still served.
fn run_ingress(ingress: Ingress, tasks: &Tasks) -> (CancellationToken, JoinHandle<Result<(), IngressError>>) {
    let ingress_stop = CancellationToken::new();
    let ingress = tokio::spawn({
        let (stop, server_stop) = (ingress_stop.clone(), tasks.shutdown_token());
        async move {
            let result = ingress.run(stop).await;
            server_stop.cancel();
            result
        }
    });
    (ingress_stop, ingress)
}

fn make_ingress(
    options: &Options,
    opened: &Opened,
    shared: &Shared,
    (directory, auth): (&Directory, AuthSources),
    listeners: IngressListeners,
) -> anyhow::Result<(Ingress, mpsc::Receiver<WakeObservation>)> {
    let https_port = listeners.https.first().context("there is always an HTTPS listener")?.local_addr()?.port();
    let uploaded = Certificates::load(&opened.store)?;
    shared.tasks.spawn(HELPER, uploaded.clone().follow(opened.store.clone()));
    let certificates = AppCertificates::new(Arc::clone(&opened.authority), {
        let routes = shared.boards.routes.subscribe();
        move |host| {
            let table = Arc::clone(&routes.borrow());
            match table.host(host).map(|host| &host.certificate) {
                Some(HostCertificate::Platform) => Shown::Made,
                Some(HostCertificate::Custom(id)) => uploaded.get(id).map_or(Shown::Nothing, Shown::Its),
                Some(HostCertificate::Missing) => Shown::Nothing,
                None if tls::is_app_name(&table, host) => Shown::Made,
                None => Shown::Other,
            }
        }
    })?;
    let sources = IngressSources {
        routes: shared.boards.routes.subscribe(),
        endpoints: shared.boards.endpoints.clone(),
        activate: shared.activation(),
        clock: shared.clock.clone(),
        certificates: Some(Arc::new(certificates)),
        environment_of: Arc::new({
            let directory = directory.clone();
            move |address| directory.environment_of(address)
        }),
        app_of: Arc::new({
            let directory = directory.clone();
            move |address| directory.app_of(address)
        }),
        random: Arc::new(rand::random),
        auth,
    };
    let config = IngressConfig {
        tcp_internal: Some(opened.network.gateway().into()),
        ..ingress_config(&options.config, https_port)
    };
    Ingress::new(config, sources, listeners).map_err(with_causes)
}

/// TLS between apps, and orders of managed certificates; before the API takes the first.
fn start_certificates(
    options: &Options,
    opened: &Opened,
    shared: &Shared,
    ingress: &IngressHandle,
    internal_tls: Option<TcpListener>,
) {
    let address = SocketAddr::from((opened.network.gateway(), 443));
    let inside = tls::listen_inside(address, internal_tls, ingress.clone(), shared.boards.loaded.subscribe());
    shared.tasks.spawn(HELPER, inside);
    let (store, plane, clock) = (opened.store.clone(), shared.plane.get(), shared.clock.clone());
    if let Some(acme) = Acme::of(&options.config.acme, store, plane, clock, ingress.challenges()) {
        shared.tasks.spawn(HELPER, acme::follow(acme));
    }
}

fn make_controller(
    options: &Options,
    opened: &Opened,
    shared: &Shared,
    (drained, gateway): (Board<ReplicaName, u64>, &sessions::Gateway),
) -> cove_controller::Controller {
    let deps = cove_controller::Deps {
        store: opened.store.clone(),
        runtime: opened.runtime.clone(),
        clock: shared.clock.clone(),
        desired: shared.boards.desired.clone(),
        endpoints: shared.boards.endpoints.clone(),
        routes: shared.boards.routes.clone(),
        drained,
        open: None,
        scaled: shared.boards.scaled.clone(),
        loaded: shared.boards.loaded.clone(),
        events: opened.monitor.events(),
    };
    cove_controller::Controller::new(controller_config(options, gateway), deps)
}

/// The server's limits of requests as apps show them.
fn limit_defaults(section: &crate::config::IngressSection) -> cove_model::RequestLimits {
    let seconds = |span: Duration| u32::try_from(span.as_secs()).ok();
    let fixed = IngressConfig::default();
    cove_model::RequestLimits {
        request_timeout_secs: seconds(section.request_timeout.0),
        idle_timeout_secs: seconds(section.idle_timeout.0),
        body_bytes_max: Some(section.request_body_max.0).filter(|bytes| *bytes > 0),
        header_fields_max: u32::try_from(fixed.header_fields_max).ok(),
        drain_grace_secs: seconds(fixed.drain_grace),
    }
}

fn ingress_config(config: &Config, https_port: u16) -> IngressConfig {
    let section = &config.ingress;
    IngressConfig {
        request_timeout: section.request_timeout.0,
        stream_idle_timeout: section.idle_timeout.0,
        request_body_max: Some(section.request_body_max.0).filter(|bytes| *bytes > 0),
        retry_body_max: usize::try_from(section.retry_body_max.0).unwrap_or(usize::MAX),
        retry_bodies_max: usize::try_from(section.retry_bodies_max.0).unwrap_or(usize::MAX),
        held_total_max: section.held_requests_max,
        held_per_revision_max: section.held_per_revision_max,
        redirect_http: section.redirect_http,
        https_port: Some(https_port),
        websocket_drain_after: config.controller.drain_period.0,
        tcp_external: Some(section.http.ip()),
        tcp_idle_timeout: section.tcp_idle_timeout.0,
        proxy_protocol_peers: section.proxy_protocol_peers.clone(),
        trusted_proxies: section.trusted_proxies.clone(),
        drain_grace: section.drain_grace.0,
        access_log: http_logs::settings(&config.logs),
        threads: section.threads(),
        ..IngressConfig::default()
    }
}

fn controller_config(options: &Options, gateway: &sessions::Gateway) -> cove_controller::Config {
    let section = &options.config.controller;
    let signed = |span: Duration| jiff::SignedDuration::try_from(span).unwrap_or(jiff::SignedDuration::MAX);
    cove_controller::Config {
        slot_budget_bytes: options.config.runtime.slot_memory.0,
        settings: cove_reconcile::Settings {
            provisioning_deadline: signed(section.provisioning_deadline.0),
            drain_period: signed(section.drain_period.0),
            fresh_hold: signed(section.fresh_hold.0),
            ..cove_reconcile::Settings::default()
        },
        jobs: cove_reconcile::JobSettings {
            line_patience: signed(section.line_patience.0),
            ..cove_reconcile::JobSettings::default()
        },
        sessions: gateway.for_controller(&options.config.sessions),
        capacity: options.config.capacity.amount(),
        name_seed: rand::random(),
    }
}

/// Keeps every decision; what reads them, and where they are sent.
fn start_recording(
    options: &Options,
    clock: &Clock,
    tasks: &Tasks,
) -> (cove_autoscaler::Recording, mpsc::Sender<cove_autoscaler::RevisionDecision>) {
    let config = options.config.autoscaler.recording.clone();
    let (recorder, recording, decisions) =
        cove_autoscaler::recording(options.data_dir.join("decisions"), config, clock.clone());
    tasks.spawn(ESSENTIAL, recorder.run(tasks.shutdown_token()));
    (recording, decisions)
}

/// What moves a virtual clock: it asks every board whether it is read.
fn make_mover(opened: &mut Opened, shared: &Shared, drained: Board<ReplicaName, u64>) -> Arc<Mover> {
    let parts = Parts {
        desired: shared.boards.desired.clone(),
        endpoints: shared.boards.endpoints.clone(),
        scaled: shared.boards.scaled.clone(),
        jobs: shared.boards.jobs.clone(),
        drained,
        runtime: opened.runtime.clone(),
        monitor: opened.monitor.clone(),
    };
    Arc::new(Mover::new(shared.clock.clone(), opened.kept_time.take(), parts))
}

async fn start_dns(
    network: &Network,
    shared: &Shared,
    directory: Directory,
    (inherited, copies): (&mut Inherited, &mut Vec<handover::SocketCopy>),
) {
    let mut config = DnsConfig::new(network.gateway(), Arc::new(move |client, name| directory.lookup(client, name)));
    config.subnet = Some(network.subnet());
    config.limits = Some(network.limits());
    match sockets::dns(config, inherited).await {
        Ok(server) => {
            match sockets::dns_copies(&server) {
                Ok(sockets) => copies.extend(sockets),
                Err(error) => {
                    tracing::warn!(%error, "names of apps are not known for a moment when a server takes over")
                }
            }
            let stop = shared.tasks.shutdown_token();
            shared.tasks.spawn(HELPER, server.run(stop));
        }
        Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "replicas have no DNS"),
    }
}

/// The router of what only Cove has.
struct CoveExtensions(Router);

impl Extensions for CoveExtensions {
    fn router(&self) -> Router {
        self.0.clone()
    }
}

async fn api_router(
    options: &Options,
    opened: &Opened,
    shared: &Shared,
    (runtime, mover, gateway): (Arc<dyn Runtime>, Arc<Mover>, &sessions::Gateway),
) -> anyhow::Result<(Router, Router)> {
    let context = extensions::Context {
        store: opened.store.clone(),
        monitor: opened.monitor.clone(),
        autoscaler: shared.activate.get().context("the autoscaler is made before the API")?.clone(),
        recording: shared.recording.clone(),
        jobs: Arc::clone(&shared.jobs),
        images: opened.images.clone(),
        runtime,
        mover,
        metrics: Arc::clone(&shared.metrics),
        http_log: opened.http_log.clone(),
        shutdown: shared.tasks.shutdown_token(),
    };
    let api = &options.config.api;
    let auth = if api.clients.is_empty() {
        Auth::OpenLoopback { allow_anonymous: true }
    } else {
        let client = |client: &crate::config::ClientConfig| Client {
            client_id: client.client_id.clone(),
            secret: client.secret.clone(),
        };
        Auth::Clients(api.clients.iter().map(client).collect())
    };
    let config = cove_control_plane::Config {
        domain: options.config.ingress.domain.clone(),
        auth,
        host_names: api.host_names.clone(),
        retry_after_secs: api.retry_after,
        scale_defaults: options.config.autoscaler.defaults(),
        limit_defaults: limit_defaults(&options.config.ingress),
        sessions: gateway.for_api(&options.config.sessions, &opened.runtime.capabilities()),
        ..cove_control_plane::Config::default()
    };
    let plane = ControlPlane::new(
        config,
        opened.store.clone(),
        shared.clock.clone(),
        Arc::new(MonitorStreams(opened.monitor.clone(), opened.runtime.clone())),
        Arc::new(CoveExtensions(extensions::router(context))),
        shared.tasks.shutdown_token(),
    )
    .await
    .map_err(with_causes)?;
    let _first = shared.plane.set(plane.clone());
    let controller = Arc::clone(&shared.controller);
    plane.set_line(Arc::new(move |execution| controller.get()?.place_in_line(execution)));
    let dirs = ExecutionDirs::new(&utf8(options.data_dir.clone())?);
    plane.set_artifacts(execution_folders::for_api(&dirs));
    let (store, events) = (opened.store.clone(), opened.monitor.events());
    let kept = execution_folders::follow(dirs, store, shared.clock.clone(), events, shared.tasks.shutdown_token());
    shared.tasks.spawn(HELPER, kept);
    let authority = Arc::clone(&opened.authority);
    plane.set_authority(Arc::new(move |names| authority.issue(names).map_err(|error| format!("{error:#}"))));
    shared.tasks.spawn_fallible(ESSENTIAL, plane.clone().run());
    let authorize = registry_login::check(&api.clients);
    let registry = opened.images.registry(RegistryConfig { authorize, ..RegistryConfig::default() });
    let router = cove_control_plane::router(plane.clone()).merge(registry);
    Ok((router, cove_control_plane::identity_router(plane)))
}

fn start_api(
    options: &Options,
    opened: &Opened,
    api: TcpListener,
    identity: TcpListener,
    (router, identity_router): (Router, Router),
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let mut names = vec!["localhost".to_owned()];
    names.extend(options.config.api.host_names.iter().cloned());
    let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)];
    let bound = api.local_addr()?;
    if !bound.ip().is_unspecified() && !addresses.contains(&bound.ip()) {
        addresses.push(bound.ip());
    }
    for name in &names {
        opened.images.add_registry_host(format!("{name}:{}", bound.port()));
    }
    opened.images.add_registry_host(format!("127.0.0.1:{}", bound.port()));
    let certificate = opened.authority.certify(&names, &addresses)?;
    let mut tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certificate)));
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stop = tasks.shutdown_token();
    tasks.spawn(ESSENTIAL, api_listener::serve(api, TlsAcceptor::from(Arc::new(tls)), router, stop.clone()));
    tasks.spawn_fallible(HELPER, async move {
        axum::serve(identity, identity_router).with_graceful_shutdown(stop.cancelled_owned()).await
    });
    Ok(())
}

async fn prune(store: Store, clock: Clock) {
    let mut every = tokio::time::interval(Duration::from_secs(3600));
    loop {
        every.tick().await;
        let before = clock.now().saturating_sub(OPERATIONS_KEPT).unwrap_or(Timestamp::MIN);
        if let Err(error) = store.prune_operations(before).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "old operations were not forgotten");
        }
    }
}
