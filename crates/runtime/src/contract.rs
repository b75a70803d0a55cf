//! The trait and the values that cross it.

use std::{collections::BTreeMap, fmt::Debug, os::fd::OwnedFd, sync::Arc, time::Duration};

use cove_base::Board;
use cove_model::{
    EnvironmentStorage, ReplicaName, ReplicaObservation, ReplicaPhases, ResourceId, RevisionKey, Template,
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

    /// What was seen, per revision: slots, replicas and ended ones that were not removed yet. Each change is a notice.
    fn observations(&self) -> &Board<RevisionKey, Arc<Vec<ReplicaObservation>>>;

    /// When a replica went through the phases of its start.
    fn phases(&self, replica: &ReplicaName) -> Option<ReplicaPhases>;

    /// What a replica that has not ended uses now; `None` where it is not known. Reads some small files of the kernel.
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
    /// Window size changes: columns, rows.
    pub resize: mpsc::Sender<(u16, u16)>,
    /// Its exit code, once.
    pub exit: tokio::sync::oneshot::Receiver<i32>,
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
