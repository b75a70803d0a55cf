//! The trait and the values that cross it.

use std::{collections::BTreeMap, fmt::Debug, io, net::TcpStream, os::fd::OwnedFd, sync::Arc, time::Duration};

use cove_base::Board;
use cove_model::{
    EnvironmentStorage, ReplicaName, ReplicaObservation, ReplicaPhases, ResourceId, RevisionKey, SnapshotId, Template,
};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// What runs replicas. Orders return at once and are idempotent; outcomes show in [`Runtime::observations`].
pub trait Runtime: Send + Sync + Debug + 'static {
    /// What this driver can do on this host.
    fn capabilities(&self) -> Capabilities;

    /// Begins (or goes on) making a revision's images available; asking again after a failure tries again.
    fn ensure_images(&self, revision: &RevisionKey, images: &[String], logins: &[RegistryLogin]);

    /// Where [`Runtime::ensure_images`] stands; changes are told through [`Runtime::observations`].
    fn images(&self, revision: &RevisionKey) -> ImagesState;

    /// Makes a slot: all that a replica needs, but nothing started. Ends in phase `Prepared` or `Failed`.
    ///
    /// # Errors
    /// [`RuntimeError`] when the order cannot be taken at all; what goes wrong later is a `Failed` observation.
    fn prepare(&self, spec: ReplicaSpec) -> Result<(), RuntimeError>;

    /// Starts a replica; one that is still `Preparing` starts the moment it is prepared. The wake path: must not block.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] for a name that was never prepared, [`RuntimeError::Gone`] for one that ended.
    fn start(&self, replica: &ReplicaName) -> Result<(), RuntimeError>;

    /// Freezes a running replica: none of its processes runs until [`Runtime::thaw`], its memory and its connections stay.
    /// What is in its memory is moved to swap in the background where the host has some. It is asked nothing meanwhile.
    /// Ends in phase `Frozen`; one whose process ends while it is frozen ends as a whole.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], [`RuntimeError::Gone`], or [`RuntimeError::Unsupported`] with what the host lacks.
    fn freeze(&self, replica: &ReplicaName) -> Result<(), RuntimeError> {
        let _ = replica;
        Err(RuntimeError::Unsupported("this driver cannot freeze".to_owned()))
    }

    /// Lets a frozen replica run again; it is ready at once if it was before. The wake path: must not block. One that is
    /// not frozen goes on as it is.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] or [`RuntimeError::Gone`].
    fn thaw(&self, replica: &ReplicaName) -> Result<(), RuntimeError> {
        let _ = replica;
        Err(RuntimeError::Unsupported("this driver cannot freeze".to_owned()))
    }

    /// Ends a replica, a frozen one too: SIGTERM now, SIGKILL after `grace`; a slot is simply dismantled. Unknown names are fine.
    fn stop(&self, replica: &ReplicaName, grace: Duration);

    /// Forgets an ended replica and frees what is left of it (not its logs). Unknown names are fine.
    fn remove(&self, replica: &ReplicaName);

    /// Forgets what was found out about a revision's images when it is not going to have any more replicas.
    fn forget_images(&self, revision: &RevisionKey) {
        let _ = revision;
    }

    /// What was seen, per revision: slots, replicas and ended ones that were not removed yet. Each change is a notice.
    fn observations(&self) -> &Board<RevisionKey, Arc<Vec<ReplicaObservation>>>;

    /// When a replica went through the phases of its start.
    fn phases(&self, replica: &ReplicaName) -> Option<ReplicaPhases>;

    /// What a replica uses now, and of one that has ended and was not removed what it used; `None` where it is not known.
    /// Reads some small files of the kernel.
    fn usage(&self, replica: &ReplicaName) -> Option<ReplicaUse> {
        let _ = replica;
        None
    }

    /// Runs a command in a running container, with a terminal if asked.
    fn exec(&self, request: ExecRequest) -> BoxFuture<'static, Result<ExecSession, ExecError>>;

    /// The root directory of a running container as the container sees it, its volumes included. Paths below it must be
    /// resolved inside it (`RESOLVE_IN_ROOT`).
    fn root(&self, replica: &ReplicaName, container: &str) -> BoxFuture<'static, Result<OwnedFd, ExecError>> {
        let _ = (replica, container);
        Box::pin(async { Err(ExecError::Unsupported) })
    }

    /// Copies what a running sandboxed replica has written to its files, on top of the snapshot that it began with, so that
    /// others can begin with it ([`Sandbox::snapshot`]). None of its processes runs meanwhile; those of a frozen one go on not
    /// running. All or nothing: what is cut off leaves no snapshot.
    ///
    /// # Errors
    /// [`SnapshotFailure`].
    fn snapshot(
        &self,
        replica: &ReplicaName,
        order: SnapshotOrder,
    ) -> BoxFuture<'static, Result<SnapshotFacts, SnapshotFailure>> {
        let _ = (replica, order);
        Box::pin(async { Err(SnapshotFailure::Unsupported("this driver takes no snapshots".to_owned())) })
    }

    /// Whether a replica that was to begin with the memory of a snapshot did, or why it began with the files alone; `None`:
    /// there was no memory to begin with, or it is not known yet.
    fn restored(&self, replica: &ReplicaName) -> Option<Result<(), String>> {
        let _ = replica;
        None
    }

    /// All whole snapshots that this driver has.
    fn snapshots(&self) -> BTreeMap<SnapshotId, SnapshotFacts> {
        BTreeMap::new()
    }

    /// Removes a snapshot that no replica stands on any more. Unknown ones are fine.
    ///
    /// # Errors
    /// When its files cannot be removed; it is in [`Runtime::snapshots`] until they are.
    fn remove_snapshot(&self, snapshot: &SnapshotId) -> BoxFuture<'static, io::Result<()>> {
        let _ = snapshot;
        Box::pin(async { Ok(()) })
    }

    /// Connects to a port of a replica's loopback address *from inside its network namespace*, so a replica that nothing
    /// can reach over a network is reached too. The stream does not block. A frozen replica takes the connection and
    /// answers when it was thawed. Ends within [`DIAL_LIMIT`].
    ///
    /// # Errors
    /// `NotFound`: no such replica, or it has ended; `ConnectionRefused`: nothing listens there; `TimedOut`;
    /// `Unsupported`: this driver cannot.
    fn dial(&self, replica: &ReplicaName, port: u16) -> BoxFuture<'static, io::Result<TcpStream>> {
        let _ = (replica, port);
        Box::pin(async { Err(io::Error::new(io::ErrorKind::Unsupported, "this driver cannot dial")) })
    }
}

/// Longest time that [`Runtime::dial`] takes.
pub const DIAL_LIMIT: Duration = Duration::from_secs(5);

/// A snapshot that is to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotOrder {
    /// What it is called from then on.
    pub into: SnapshotId,
    /// Bytes that it may hold at most.
    pub bytes_max: u64,
    /// It is on disk when it is told, and outlives the machine's end; else only this program's.
    pub is_for_good: bool,
    /// What the processes have in memory is wanted too; where that cannot be kept, the files are.
    pub memory: bool,
}

/// What a snapshot holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFacts {
    /// Bytes of its files, and of its memory.
    pub bytes: u64,
    /// Files, folders and links.
    pub files: u64,
    /// It holds what the processes had in memory: those that begin with it go on where they were.
    #[serde(default)]
    pub memory: bool,
    /// Why it does not, where that was wanted.
    #[serde(default)]
    pub memory_error: Option<String>,
}

/// Why no snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotFailure {
    /// There is no such replica, or it does not run.
    #[error("the replica does not run")]
    NotRunning,
    /// It holds more than was allowed, or the disk is full.
    #[error("{0}")]
    NoRoom(String),
    /// What keeps the replica in takes no snapshots.
    #[error("{0}")]
    Unsupported(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// How a replica is kept from everything else: for code that nobody vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Where it may connect to.
    pub egress: SandboxEgress,
    /// With [`SandboxEgress::Internet`]: with any rule it reaches what they name and nothing else. Default none.
    #[serde(default)]
    pub egress_rules: Vec<cove_model::EgressRule>,
    /// What keeps it in.
    pub tier: SandboxTier,
    /// Processes and threads of each of its containers at most. Usual 256; 16 to 4096.
    pub pids_max: u32,
    /// Bytes that each of its containers may write to its files at most, kept in memory that counts to the container.
    /// Usual 1 GiB; 1 MiB or more.
    pub disk_bytes: u64,
    /// What it finds in its files besides the image: a snapshot of another replica. Default none.
    #[serde(default)]
    pub snapshot: Option<SnapshotId>,
    /// Nobody waits for it yet: until [`Runtime::thaw`] it gets the processor time that others leave. Default no.
    #[serde(default)]
    pub is_ahead: bool,
}

impl Default for Sandbox {
    fn default() -> Self {
        let tier = SandboxTier::Hardened;
        let (egress, egress_rules) = (SandboxEgress::None, Vec::new());
        Self { egress, egress_rules, tier, pids_max: 256, disk_bytes: 1 << 30, snapshot: None, is_ahead: false }
    }
}

/// Where a sandboxed replica may connect to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxEgress {
    /// Nowhere: its network namespace has its own loopback and nothing else. It is reached by [`Runtime::dial`] only.
    #[default]
    None,
    /// The internet, never this machine, its neighbours, link-local or private addresses; names are resolved by a
    /// resolver that knows of the internet only.
    Internet,
}

/// What keeps a sandboxed replica in.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SandboxTier {
    /// The kernel's own means: a user namespace without capabilities, a short list of system calls, limits.
    #[default]
    Hardened,
    /// A virtual machine of its own.
    Vm,
    /// An OCI runtime of this name that is installed on the host, e.g. `runsc`.
    Handler(String),
}

/// What a replica uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaUse {
    /// Processor time of its containers since it was made, in microseconds; `None` = not known.
    pub cpu_us_total: Option<u64>,
    /// Memory in bytes that cannot be taken back from it, as Kubernetes' working set; `None` = not known.
    pub memory_bytes: Option<u64>,
}

/// What a driver can do on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Name of the driver, e.g. `oci`.
    pub driver: String,
    /// Whether slots can be prepared ahead.
    pub slots: bool,
    /// Bytes of memory one slot costs, as measured or estimated.
    pub slot_bytes: u64,
    /// CPU and memory limits are enforced.
    pub limits: bool,
    /// Replicas reach the outside.
    pub egress: bool,
    /// Replicas can be frozen.
    #[serde(default)]
    pub freezes: bool,
    /// What can keep a sandboxed replica in on this host; a spec that asks for another is refused by `prepare`.
    #[serde(default)]
    pub sandbox_tiers: Vec<SandboxTier>,
    /// What is missing on this host, in words with a remedy.
    pub warnings: Vec<String>,
}

/// Everything a driver needs to make a replica.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaSpec {
    /// Name, used once.
    pub name: ReplicaName,
    /// Its revision.
    pub revision: RevisionKey,
    /// The environment it runs in.
    pub environment: ResourceId,
    /// DNS suffix of that environment.
    pub environment_domain: String,
    /// The revision's restart generation.
    pub restart_generation: u64,
    /// What to run.
    pub template: Arc<Template>,
    /// The port that ingress sends to; without probes the replica is ready when it answers. `None`: no ingress.
    pub target_port: Option<u16>,
    /// Values of the secrets that the template names.
    pub secrets: BTreeMap<String, String>,
    /// Variables that the platform adds (`CONTAINER_APP_NAME`, …); the template's own win.
    pub platform_env: BTreeMap<String, String>,
    /// Registry logins for the images.
    pub logins: Vec<RegistryLogin>,
    /// The environment's storages that the template's volumes name.
    #[serde(default)]
    pub storages: BTreeMap<String, StorageBinding>,
    /// What happens when a container ends by itself. Default: it is started again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How it is kept from everything else. Default: as an app's replica, not at all beyond a container's limits.
    #[serde(default)]
    pub sandbox: Option<Sandbox>,
}

/// What happens when a container ends by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// It is started again, after growing waits.
    #[default]
    Always,
    /// It stays ended. When all of a replica's containers have ended, or an init container has failed, the replica ends in
    /// phase `Stopped`, its exits observed and its logs complete.
    Never,
}

impl Debug for ReplicaSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicaSpec")
            .field("name", &self.name)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

/// A storage with what it takes to reach it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageBinding {
    /// The storage.
    pub storage: EnvironmentStorage,
    /// Key of the storage account, for shares that are mounted over the network.
    pub account_key: Option<String>,
}

impl Debug for StorageBinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StorageBinding").field("storage", &self.storage).finish_non_exhaustive()
    }
}

/// A registry login, resolved.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryLogin {
    /// Host, with a port if any.
    pub server: String,
    /// User.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl Debug for RegistryLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegistryLogin({}@{})", self.username, self.server)
    }
}

/// Where a revision's images stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImagesState {
    /// Nobody asked.
    #[default]
    Unknown,
    /// On the way; percent of the bytes that are known.
    Pulling {
        /// 0..=100.
        percent: u8,
    },
    /// All here; for each image as written, the port it exposes if it is exactly one.
    Ready {
        /// Image → the only exposed TCP port.
        exposed_ports: BTreeMap<String, Option<u16>>,
    },
    /// Could not be had; the message says what would be right.
    Failed {
        /// ACA's reason: `ImagePullFailure`, `ImageArchitectureMismatch`, …
        reason: String,
        /// In words.
        message: String,
        /// Whether trying again may help (registry down) or not (no such tag).
        retryable: bool,
    },
}

/// Why an order could not be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// No such replica.
    #[error("replica `{0}` was not found")]
    NotFound(ReplicaName),
    /// It ended.
    #[error("replica `{0}` has ended")]
    Gone(ReplicaName),
    /// The driver is at a limit.
    #[error("the runtime is at its limit of {limit} {what}")]
    Full {
        /// Limit.
        limit: u64,
        /// Of what.
        what: &'static str,
    },
    /// The host lacks something.
    #[error("this host cannot run replicas: {0}")]
    Unsupported(String),
}

/// A command to run in a container.
#[derive(Clone, Debug)]
pub struct ExecRequest {
    /// The replica.
    pub replica: ReplicaName,
    /// The container.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Allocate a terminal.
    pub tty: bool,
    /// Run it as root by a shell that is brought along, for images that have none; the command's first word is `sh`.
    pub is_debug: bool,
}

/// A running command: bytes in, bytes out, then its exit code.
#[derive(Debug)]
pub struct ExecSession {
    /// To its stdin; closing ends it.
    pub stdin: mpsc::Sender<Vec<u8>>,
    /// Its output: `(1, bytes)` stdout, `(2, bytes)` stderr.
    pub output: mpsc::Receiver<(u8, Vec<u8>)>,
    /// Sets the size of its terminal; without one it does nothing.
    pub resize: Resize,
    /// Its exit code, once.
    pub exit: tokio::sync::oneshot::Receiver<i32>,
}

/// Sets the size of a terminal, at once: what is written to stdin afterwards finds the new size.
#[derive(Clone)]
pub struct Resize(Arc<dyn Fn(u16, u16) + Send + Sync>);

impl Resize {
    /// `set` takes columns and rows; it must not wait.
    #[must_use]
    pub fn new(set: impl Fn(u16, u16) + Send + Sync + 'static) -> Self {
        Self(Arc::new(set))
    }

    /// Sets the size in characters.
    pub fn set(&self, columns: u16, rows: u16) {
        (self.0)(columns, rows);
    }
}

impl Debug for Resize {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Resize")
    }
}

/// Why a command could not be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// No such replica or container, or it does not run.
    #[error("container `{container}` of replica `{replica}` is not running")]
    NotRunning {
        /// Replica.
        replica: ReplicaName,
        /// Container.
        container: String,
    },
    /// It could not be started.
    #[error("failed to run the command: {0}")]
    Failed(String),
    /// The host lacks what it takes; says what.
    #[error("{0}")]
    NotOnThisHost(String),
    /// This driver has no exec.
    #[error("this runtime cannot run commands in containers")]
    Unsupported,
}
