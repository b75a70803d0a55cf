//! The driver inside the server.
//!
//! Orders only change what is wanted and return; tasks bring it about and write what they see into one table, from which
//! the observations of a revision are published. The way from `start` to a running program is one message on a socket
//! that is open already.
//!
//! **Invariant:** no lock is held across an await.
//! **Invariant:** dropping the driver ends no replica; opening it again finds every one.

mod adopt;
mod conn;
mod exec;
mod freeze;
mod health;
mod helpers;
mod images;
mod link;
mod machine;
mod memory;
mod prepare;
mod sandbox;
mod snapshot;
mod stamps;
mod templates;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{Ipv4Addr, TcpStream},
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use camino::Utf8PathBuf;
use cove_base::{Board, Clock};
use cove_images::{Image, ImageStore};
use cove_model::{
    ContainerObservation, ContainerState, EventKind, ReplicaName, ReplicaObservation, ReplicaPhase, ReplicaPhases,
    RevisionKey, SnapshotId, SystemEvent,
};
use cove_network::{NetnsId, Network, inside::Inside};
use cove_runtime::{
    Capabilities, ExecError, ExecRequest, ExecSession, ImagesState, RegistryLogin, ReplicaSpec, ReplicaUse, Runtime,
    RuntimeError, SandboxTier, SnapshotFacts, SnapshotFailure, SnapshotOrder,
};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    cgroup::Cgroups,
    executions::ExecutionDirs,
    handlers::HandlerConfig,
    protocol::{HandlerSpec, ShimState, ToShim},
    shares::SharesConfig,
    shim::CGROUP_ROOT,
};
use conn::Conn;
use health::Health;
use helpers::Helpers;
pub use machine::MachinesConfig;

/// Bytes of memory that one slot costs: a helper and a first process, as measured (proportional set size).
const SLOT_BYTES: u64 = 4 << 20;

/// How to open the driver.
#[derive(Clone, Debug)]
pub struct OciConfig {
    /// Folder of the driver's own files; made when missing.
    pub dir: Utf8PathBuf,
    /// Folder of snapshots; on the file system of the data directory. Default: beside the driver's own.
    pub snapshots_dir: Utf8PathBuf,
    /// Folder of container logs: `<log_dir>/<replica>/<container>.log`.
    pub log_dir: Utf8PathBuf,
    /// Unique on this machine: all cgroups are below `cove-<name>`.
    pub name: String,
    /// Program and arguments before [`crate::shim::ZYGOTE_COMMAND`]: usually this very program.
    pub shim_program: Vec<String>,
    /// Helpers kept ready. Default 4.
    pub helpers_spare: usize,
    /// Replicas prepared at once; more wait in line. Default twice the cores.
    pub prepares_max: usize,
    /// Replicas and slots at most. Default 2000.
    pub replicas_max: usize,
    /// Where the shares of storages are. Default: in folders beside the driver's.
    pub shares: SharesConfig,
    /// Where the folders of executions are. Default: beside the driver's own.
    pub executions: ExecutionDirs,
    /// Whose time observations and events carry and which probes follow. Default: the machine's.
    pub clock: Clock,
    /// Certificate in PEM of the authority that signs apps' own certificates: a file that containers find at
    /// [`CA_FILE`]. Default none.
    pub ca_certificate: Option<String>,
    /// OCI runtimes of this machine that sessions may be given to, besides the well-known ones that are installed. Default
    /// `None`: none is looked for.
    pub handlers: Option<BTreeMap<String, HandlerConfig>>,
    /// What machines around sessions are made of. Default `None`: none is offered.
    pub machines: Option<MachinesConfig>,
    /// CRIU, which keeps the memory of sessions that are forked: a path, or a name on the path of programs. Default `criu`.
    pub criu: String,
}

/// Where containers find the certificate of the authority that signs apps' own certificates; the variable `COVE_CA_FILE`
/// names it.
pub const CA_FILE: &str = "/etc/cove-ca.pem";

impl OciConfig {
    /// The defaults; the helper is this very program.
    #[must_use]
    pub fn new(dir: impl Into<Utf8PathBuf>, log_dir: impl Into<Utf8PathBuf>, name: impl Into<String>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let dir = dir.into();
        Self {
            shares: SharesConfig::new(dir.parent().unwrap_or(&dir)),
            executions: ExecutionDirs::new(dir.parent().unwrap_or(&dir)),
            snapshots_dir: dir.parent().unwrap_or(&dir).join("snapshots"),
            dir,
            log_dir: log_dir.into(),
            name: name.into(),
            shim_program: vec!["/proc/self/exe".to_owned()],
            helpers_spare: 4,
            prepares_max: 2 * cores,
            replicas_max: 2000,
            clock: Clock::real(),
            ca_certificate: None,
            handlers: None,
            machines: None,
            criu: "criu".to_owned(),
        }
    }
}

/// Why the driver could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A folder cannot be used.
    #[error("failed to use `{path}`")]
    Folder {
        /// The folder.
        path: Utf8PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// No control groups.
    #[error(
        "no control groups were found at {CGROUP_ROOT}; mount them, or start Cove on the host and not in a container"
    )]
    NoCgroups {
        /// Cause.
        source: std::io::Error,
    },
    /// Not root.
    #[error("containers can only be run as root; start Cove with `sudo`, or see `cove doctor`")]
    NotRoot,
    /// The helper program does not start.
    #[error("failed to start the helper process `{program}`: {message}")]
    Helper {
        /// Program.
        program: String,
        /// What it said.
        message: String,
    },
}

/// Runs replicas on this host.
#[derive(Debug)]
pub struct OciRuntime {
    inner: Arc<Inner>,
}

/// What all tasks share.
struct Inner {
    config: OciConfig,
    images: ImageStore,
    /// Revisions whose images are looked for at the same time: after a restart there may be thousands.
    looks: tokio::sync::Semaphore,
    /// Replicas whose memory is moved to swap at the same time: the disk is the same.
    page_outs: tokio::sync::Semaphore,
    network: Arc<Network>,
    events: mpsc::Sender<SystemEvent>,
    board: Board<RevisionKey, Arc<Vec<ReplicaObservation>>>,
    cgroups: Cgroups,
    helpers: Arc<Helpers>,
    state: Mutex<State>,
    capabilities: Capabilities,
    /// OCI runtimes of this machine that can be used, by name.
    handlers: BTreeMap<String, HandlerSpec>,
    /// What machines are made of, where they can be run.
    machines: Option<Arc<machine::Machines>>,
    stop: CancellationToken,
    /// Nothing more is begun.
    is_closing: AtomicBool,
    /// Something that was being made is made.
    prepared: Notify,
    execs: AtomicU64,
    snapshots: snapshot::Snapshots,
    /// CRIU, once it was found and tried.
    criu: tokio::sync::OnceCell<Utf8PathBuf>,
    templates: templates::Templates,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("config", &self.config).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    replicas: BTreeMap<ReplicaName, Replica>,
    revisions: BTreeMap<RevisionKey, BTreeSet<ReplicaName>>,
    images: BTreeMap<RevisionKey, images::RevisionImages>,
    /// Started ones before slots.
    queue_wanted: VecDeque<ReplicaName>,
    queue_slots: VecDeque<ReplicaName>,
    preparing: usize,
}

/// A replica as the driver knows it.
struct Replica {
    spec: Arc<ReplicaSpec>,
    created_at: Timestamp,
    /// Start was asked, then.
    asked_at: Option<Timestamp>,
    /// Stop was asked, with this grace.
    stop: Option<Duration>,
    conn: Option<Arc<Conn>>,
    shim: Option<ShimState>,
    address: Option<Ipv4Addr>,
    netns: Option<NetnsId>,
    /// Its network namespace, once somebody dialed or it was made here.
    namespace: Option<Arc<Inside>>,
    /// First of its own host ids.
    first_id: Option<u32>,
    cgroup: Option<String>,
    /// Nothing of it runs any more.
    ended: Option<ReplicaPhase>,
    /// Why it ended without its helper saying so.
    failure: Option<(String, String)>,
    health: Vec<Health>,
    freezing: freeze::Freezing,
    is_ready: bool,
    ready_at: Option<Timestamp>,
    /// Told when the helper has left `Preparing`.
    prepared: Arc<Notify>,
    /// Commands that wait for an answer.
    execs: BTreeMap<u64, exec::Waiting>,
    /// Kept so that garbage collection leaves its layers alone.
    held: Vec<Arc<Image>>,
    is_removed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Replica {
    fn new(spec: Arc<ReplicaSpec>, created_at: Timestamp) -> Self {
        let containers = spec.template.init_containers.len() + spec.template.containers.len();
        Self {
            spec,
            created_at,
            asked_at: None,
            stop: None,
            conn: None,
            shim: None,
            address: None,
            netns: None,
            namespace: None,
            first_id: None,
            cgroup: None,
            ended: None,
            failure: None,
            health: (0..containers).map(|_| Health::default()).collect(),
            freezing: freeze::Freezing::default(),
            is_ready: false,
            ready_at: None,
            prepared: Arc::new(Notify::new()),
            execs: BTreeMap::new(),
            held: Vec::new(),
            is_removed: false,
        }
    }

    fn phase(&self) -> ReplicaPhase {
        if let Some(phase) = self.ended {
            return phase;
        }
        match self.shim.as_ref().map(|shim| shim.phase) {
            // The helper ends now; what is left is being cleared away.
            Some(ReplicaPhase::Stopped | ReplicaPhase::Failed) => ReplicaPhase::Stopping,
            Some(ReplicaPhase::Prepared | ReplicaPhase::Running | ReplicaPhase::Frozen) if self.stop.is_some() => {
                ReplicaPhase::Stopping
            }
            Some(phase) => phase,
            None => ReplicaPhase::Preparing,
        }
    }

    fn observe(&self) -> ReplicaObservation {
        let phase = self.phase();
        let is_ready = self.is_ready && phase == ReplicaPhase::Running && self.freezing.is_settled();
        ReplicaObservation {
            name: self.spec.name.clone(),
            revision: self.spec.revision.clone(),
            restart_generation: self.spec.restart_generation,
            phase,
            is_ready,
            address: self.address,
            containers: self.containers(phase),
            created_at: self.created_at,
            started_at: self.shim.as_ref().and_then(|shim| shim.phases.started_at),
            ready_at: self.ready_at,
        }
    }

    fn containers(&self, phase: ReplicaPhase) -> Vec<ContainerObservation> {
        let is_over = matches!(phase, ReplicaPhase::Stopped | ReplicaPhase::Failed);
        let Some(shim) = &self.shim else {
            let template = &self.spec.template;
            let init = template.init_containers.iter().map(|container| (container, true));
            let all = init.chain(template.containers.iter().map(|container| (container, false)));
            return all
                .map(|(container, is_init)| ContainerObservation {
                    name: container.name.clone(),
                    is_init,
                    state: self.waiting_state(is_over),
                    is_ready: false,
                    is_started: false,
                    restarts: 0,
                    last_exit: self.failure.as_ref().map(|(reason, message)| cove_model::ContainerExit {
                        code: 128,
                        reason: reason.clone(),
                        message: Some(message.clone()),
                        at: self.created_at,
                    }),
                })
                .collect();
        };
        shim.containers
            .iter()
            .zip(&self.health)
            .map(|(status, health)| ContainerObservation {
                name: status.name.clone(),
                is_init: status.is_init,
                state: if is_over { ContainerState::Terminated } else { status.state.clone() },
                is_ready: health.is_ready && !is_over,
                is_started: health.is_started,
                restarts: status.restarts,
                last_exit: status.last_exit.clone(),
            })
            .collect()
    }

    fn waiting_state(&self, is_over: bool) -> ContainerState {
        if is_over {
            return ContainerState::Terminated;
        }
        let reason = if self.address.is_none() { "ContainerCreating" } else { "PodInitializing" };
        ContainerState::Waiting { reason: reason.to_owned(), until: None }
    }
}

impl Inner {
    fn replica_dir(&self, name: &ReplicaName) -> Utf8PathBuf {
        self.config.dir.join("replicas").join(name.as_str())
    }

    /// Changes one replica and publishes its revision; `None` when there is no such replica.
    fn update<T>(&self, name: &ReplicaName, change: impl FnOnce(&mut Replica) -> T) -> Option<T> {
        let mut state = lock(&self.state);
        let replica = state.replicas.get_mut(name)?;
        let result = change(replica);
        let revision = replica.spec.revision.clone();
        self.publish(&state, &revision);
        Some(result)
    }

    fn publish(&self, state: &State, revision: &RevisionKey) {
        let Some(names) = state.revisions.get(revision) else {
            self.board.remove(revision);
            return;
        };
        let mut all: Vec<_> = names.iter().filter_map(|name| state.replicas.get(name)).map(Replica::observe).collect();
        if self.config.clock.is_virtual() {
            all.iter_mut().for_each(|replica| stamps::translate(replica, &self.config.clock));
        }
        self.board.set(revision.clone(), Arc::new(all));
    }

    /// A row of the system log. When nobody takes them they are dropped: orders never wait for readers.
    fn event(&self, spec: &ReplicaSpec, container: Option<&str>, kind: EventKind, reason: &str, message: String) {
        let event = SystemEvent {
            at: self.config.clock.now(),
            kind,
            reason: reason.to_owned(),
            message,
            environment: Some(spec.environment.to_string()),
            app: Some(spec.revision.app.to_string()),
            revision: Some(spec.revision.name.to_string()),
            replica: Some(spec.name.to_string()),
            container: container.map(str::to_owned),
            source: "ContainerAppController".to_owned(),
        };
        if self.events.try_send(event).is_err() {
            tracing::warn!(replica = %spec.name, reason, "a system event was dropped");
        }
    }
}

impl OciRuntime {
    /// Opens the driver: starts the zygote, finds the replicas that run, clears away what is left of others.
    ///
    /// # Errors
    /// [`OpenError`] says what the host lacks.
    pub async fn open(
        config: OciConfig,
        images: ImageStore,
        network: Arc<Network>,
        events: mpsc::Sender<SystemEvent>,
    ) -> Result<Arc<Self>, OpenError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(OpenError::NotRoot);
        }
        for path in [&config.dir, &config.log_dir, &config.dir.join("replicas"), &config.dir.join("cgroup")] {
            std::fs::create_dir_all(path).map_err(|source| OpenError::Folder { path: path.clone(), source })?;
        }
        let cgroups = Cgroups::detect(Path::new(CGROUP_ROOT)).map_err(|source| OpenError::NoCgroups { source })?;
        let snapshots = snapshot::Snapshots::open(&config.snapshots_dir)
            .map_err(|source| OpenError::Folder { path: config.snapshots_dir.clone(), source })?;
        let templates_dir = config.dir.join("templates");
        let templates_max = config.machines.as_ref().map_or(0, |machines| machines.templates_bytes_max);
        let templates = templates::Templates::open(&templates_dir, templates_max)
            .map_err(|source| OpenError::Folder { path: templates_dir, source })?;
        let helpers = Arc::new(Helpers::open(&config).await?);
        let mut capabilities = capabilities(&cgroups, &network, &config);
        let handlers = sandbox::find_handlers(&config, &mut capabilities).await;
        let machines = machine::find(&config, &mut capabilities).await;
        let inner = Arc::new(Inner {
            config,
            images,
            looks: tokio::sync::Semaphore::new(images::LOOKS_MAX),
            page_outs: tokio::sync::Semaphore::new(1),
            network,
            events,
            board: Board::default(),
            cgroups,
            helpers,
            state: Mutex::default(),
            capabilities,
            handlers,
            machines,
            stop: CancellationToken::new(),
            is_closing: AtomicBool::new(false),
            prepared: Notify::new(),
            // commands of earlier drivers may run still, and their helpers know them by number
            execs: AtomicU64::new((u64::from(rand::random::<u32>()) << 20) + 1),
            snapshots,
            criu: tokio::sync::OnceCell::new(),
            templates,
        });
        adopt::adopt(&inner).await;
        templates::sweep(&inner);
        helpers::refill(&inner);
        Ok(Arc::new(Self { inner }))
    }

    /// Why a replica could not be made or ended without its own doing: reason and words.
    #[must_use]
    pub fn failure(&self, name: &ReplicaName) -> Option<(String, String)> {
        lock(&self.inner.state).replicas.get(name)?.failure.clone()
    }

    /// Waits until as many helpers as configured wait for a replica; the caller sets a limit. For measurements.
    pub async fn helpers_full(&self) {
        self.inner.helpers.full(self.inner.config.helpers_spare).await;
    }

    /// Ends all this driver does and leaves the replicas to the next one, whoever else still holds it: nothing is made,
    /// watched or removed from here any more. What is being made is finished first, within a limit.
    pub async fn close(&self) {
        prepare::close(&self.inner).await;
        self.inner.helpers.close().await;
    }

    /// Ends every replica and removes all that was made: processes, cgroups, folders. For tests and `cove purge`.
    pub async fn purge(&self) {
        adopt::purge(&self.inner).await;
    }
}

impl Drop for OciRuntime {
    fn drop(&mut self) {
        self.inner.stop.cancel();
    }
}

fn capabilities(cgroups: &Cgroups, network: &Network, config: &OciConfig) -> Capabilities {
    let mut warnings = network.capabilities().warnings.clone();
    // Without limits a fork bomb or a full memory would be everybody's.
    let is_limited = cgroups.has("memory") && cgroups.has("cpu") && cgroups.has("pids");
    let sandbox_tiers = match crate::probe::sandbox(&config.dir) {
        Ok(_) if is_limited => vec![SandboxTier::Hardened],
        Ok(_) => Vec::new(),
        Err(error) => {
            warnings.push(format!("untrusted code cannot be kept in: {error}; session pools are refused"));
            Vec::new()
        }
    };
    if !cgroups.missing.is_empty() {
        warnings.push(format!(
            "CPU, memory or process limits are not enforced, as cgroup controllers are missing: {}",
            cgroups.missing_words()
        ));
    }
    if !crate::seccomp::has_notices() {
        warnings.push(
            "the kernel cannot tell when a port opens: replicas are probed instead; use Linux 5.5 or newer".to_owned(),
        );
    }
    warnings.push(
        "ephemeral storage limits are not enforced: the container's files share the disk of the data directory"
            .to_owned(),
    );
    Capabilities {
        driver: "oci".to_owned(),
        slots: true,
        slot_bytes: SLOT_BYTES,
        limits: cgroups.has("memory") && cgroups.has("cpu"),
        egress: network.capabilities().nat,
        freezes: cgroups.can_freeze(),
        sandbox_tiers,
        warnings,
    }
}

impl Runtime for OciRuntime {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities.clone()
    }

    fn ensure_images(&self, revision: &RevisionKey, images: &[String], logins: &[RegistryLogin]) {
        templates::claim(&self.inner, revision);
        images::ensure(&self.inner, revision, images, logins);
    }

    fn forget_images(&self, revision: &RevisionKey) {
        lock(&self.inner.state).images.remove(revision);
        templates::forget(&self.inner, revision);
    }

    fn images(&self, revision: &RevisionKey) -> ImagesState {
        lock(&self.inner.state).images.get(revision).map(|images| images.state.clone()).unwrap_or_default()
    }

    fn prepare(&self, spec: ReplicaSpec) -> Result<(), RuntimeError> {
        sandbox::check(&self.inner.capabilities, &spec)?;
        prepare::order(&self.inner, spec)
    }

    fn start(&self, name: &ReplicaName) -> Result<(), RuntimeError> {
        let mut state = lock(&self.inner.state);
        let replica = state.replicas.get_mut(name).ok_or_else(|| RuntimeError::NotFound(name.clone()))?;
        if replica.ended.is_some() || replica.stop.is_some() {
            return Err(RuntimeError::Gone(name.clone()));
        }
        if replica.asked_at.is_some() {
            return Ok(());
        }
        let asked_at = Timestamp::now();
        replica.asked_at = Some(asked_at);
        if let Some(conn) = &replica.conn {
            // A broken connection shows in its own loop, which gives the order again after connecting anew.
            let _ = conn.send(&ToShim::Start { asked_at }, &[]);
        } else if let Some(at) = state.queue_slots.iter().position(|queued| queued == name) {
            state.queue_slots.remove(at);
            state.queue_wanted.push_back(name.clone());
        }
        Ok(())
    }

    fn freeze(&self, name: &ReplicaName) -> Result<(), RuntimeError> {
        freeze::freeze(&self.inner, name)
    }

    fn thaw(&self, name: &ReplicaName) -> Result<(), RuntimeError> {
        freeze::thaw(&self.inner, name)
    }

    fn stop(&self, name: &ReplicaName, grace: Duration) {
        let grace = self.inner.update(name, |replica| {
            if replica.ended.is_some() {
                return None;
            }
            let grace = replica.stop.map_or(grace, |old| old.min(grace));
            replica.stop = Some(grace);
            if let Some(conn) = &replica.conn {
                let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                let _ = conn.send(&ToShim::Stop { grace_ms }, &[]);
            }
            Some(replica.conn.is_none())
        });
        if grace == Some(Some(true)) {
            prepare::abandon_queued(&self.inner, name);
        }
    }

    fn remove(&self, name: &ReplicaName) {
        link::remove(&self.inner, name);
    }

    fn observations(&self) -> &Board<RevisionKey, Arc<Vec<ReplicaObservation>>> {
        &self.inner.board
    }

    fn phases(&self, name: &ReplicaName) -> Option<ReplicaPhases> {
        let state = lock(&self.inner.state);
        let replica = state.replicas.get(name)?;
        let mut phases = replica.shim.as_ref().map(|shim| shim.phases.clone()).unwrap_or_default();
        phases.asked_at = phases.asked_at.or(replica.asked_at);
        phases.ready_at = phases.ready_at.or(replica.ready_at);
        if let Some(thaw_asked_at) = replica.freezing.thaw_asked_at {
            phases.asked_at = Some(thaw_asked_at);
            phases.thawed_at = replica.freezing.thawed_at;
        }
        Some(phases)
    }

    fn usage(&self, name: &ReplicaName) -> Option<ReplicaUse> {
        let path = {
            let state = lock(&self.inner.state);
            let replica = state.replicas.get(name)?;
            let told = replica.shim.as_ref().and_then(|shim| shim.cpu_us_total);
            if told.is_some() || replica.ended.is_some() {
                return told.map(|cpu_us| ReplicaUse { cpu_us_total: Some(cpu_us), memory_bytes: None });
            }
            replica.cgroup.clone()?
        };
        Some(self.inner.cgroups.usage(&path))
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'static, Result<ExecSession, ExecError>> {
        let number = self.inner.execs.fetch_add(1, Ordering::Relaxed);
        Box::pin(exec::run(Arc::clone(&self.inner), number, request))
    }

    fn snapshot(
        &self,
        replica: &ReplicaName,
        order: SnapshotOrder,
    ) -> BoxFuture<'static, Result<SnapshotFacts, SnapshotFailure>> {
        Box::pin(snapshot::take(Arc::clone(&self.inner), replica.clone(), order))
    }

    fn restored(&self, replica: &ReplicaName) -> Option<Result<(), String>> {
        memory::restored(&self.inner, replica)
    }

    fn snapshots(&self) -> BTreeMap<SnapshotId, SnapshotFacts> {
        self.inner.snapshots.all()
    }

    fn remove_snapshot(&self, snapshot: &SnapshotId) -> BoxFuture<'static, io::Result<()>> {
        Box::pin(snapshot::remove(Arc::clone(&self.inner), snapshot.clone()))
    }

    fn dial(&self, replica: &ReplicaName, port: u16) -> BoxFuture<'static, io::Result<TcpStream>> {
        Box::pin(sandbox::dial(Arc::clone(&self.inner), replica.clone(), port))
    }

    fn root(&self, replica: &ReplicaName, container: &str) -> BoxFuture<'static, Result<OwnedFd, ExecError>> {
        Box::pin(exec::root(Arc::clone(&self.inner), replica.clone(), container.to_owned()))
    }
}
