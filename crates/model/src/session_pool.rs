//! Session pools: the sandboxes that wait ready to be given to identifiers, and one of them, the session.
//!
//! To the drivers a session is what a replica of a revision is: its key is `{ app: the pool's id, name: the generation }`.
//! A generation is everything that a session's container can see; a change of it makes new sessions, and those that are
//! allocated keep what they began with.
//!
//! **Invariant:** an identifier belongs to at most one session of a pool that has not ended, and a session never changes its
//! identifier.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    InvalidName, PoolSnapshot, Registry, ReplicaName, ResourceId, RevisionKey, RevisionName, SnapshotId, SuspendRule,
    Template,
};

/// Kind of a session pool's id.
pub const SESSION_POOL_KIND: &str = "Microsoft.App/sessionPools";

/// Random characters behind a generation's name: `pool--x7k2q9a`.
pub const GENERATION_SUFFIX_LENGTH: usize = 7;

/// Random characters behind the name of a session's replica: `pool--x7k2q9a-b2c3d4e5f6`.
pub const SESSION_SUFFIX_LENGTH: usize = 10;

/// Characters of a pool's name that stand in the names of its generations and sessions; the rest is left out.
const POOL_IN_NAME_MAX: usize = 40;

/// Session pool names. Azure's model says letters and digits only, its documentation uses `my-session-pool`; both are taken.
pub const SESSION_POOL_NAME_RULE: &str = "use 3 to 63 lower case letters, digits and `-`, start with a letter, end with a letter or digit, and do not use `--`";

/// Shortest and longest identifier of a session, in characters.
pub const IDENTIFIER_LENGTH: std::ops::RangeInclusive<usize> = 4..=128;

/// The rule of [`SessionIdentifier::new`] in words.
pub const IDENTIFIER_RULE: &str =
    "use 4 to 128 characters of A-Z a-z 0-9 and | - & ^ % $ # ( ) { } [ ] ; < > _ . : @ + = ~ ! *";

/// Checks a session pool's name.
///
/// # Errors
/// [`InvalidName`] with [`SESSION_POOL_NAME_RULE`].
pub fn check_session_pool_name(text: &str) -> Result<(), InvalidName> {
    let chars_ok = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let shape_ok = text.starts_with(|c: char| c.is_ascii_lowercase()) && !text.ends_with('-') && !text.contains("--");
    if (3..=63).contains(&text.len()) && chars_ok && shape_ok {
        return Ok(());
    }
    Err(InvalidName { what: "session pool", text: text.to_owned(), rule: SESSION_POOL_NAME_RULE })
}

/// What the user asked of one session pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionPool {
    /// Its id, of [`SESSION_POOL_KIND`].
    pub id: ResourceId,
    /// The environment it lives in; pools of the built-in kinds need none.
    pub environment: Option<ResourceId>,
    /// Workload profile that its sessions run on; `None` is `Consumption`.
    #[serde(default)]
    pub workload_profile: Option<String>,
    /// What runs in a session.
    pub container: SessionContainer,
    /// What a session runs: at least one container. `scale` means nothing here.
    pub template: Arc<Template>,
    /// Port in the session that requests are forwarded to, 1..=65535.
    pub target_port: u16,
    /// When an allocated session ends.
    pub lifecycle: SessionLifecycle,
    /// Allocated sessions at once (`maxConcurrentSessions`), 1..=[`SESSIONS_MAX`], default 10.
    pub sessions_max: u32,
    /// Sessions kept ready and not allocated (`readySessionInstances`), 0..=`sessions_max`, default 5 or `sessions_max` when
    /// that is less. Ready sessions do not count against `sessions_max`.
    pub sessions_ready: u32,
    /// What a session may reach, default [`SessionEgress::Disabled`].
    pub egress: SessionEgress,
    /// What of the internet with [`SessionEgress::Enabled`]: with any rule only what they name. At most
    /// [`EGRESS_RULES_MAX`](crate::EGRESS_RULES_MAX); none = all.
    #[serde(default)]
    pub egress_rules: Vec<crate::EgressRule>,
    /// What stands between a session and the machine.
    pub isolation: SessionIsolation,
    /// Registry logins.
    pub registries: Vec<Registry>,
    /// `managedIdentitySettings`, as they were given.
    #[serde(default)]
    pub managed_identities: Vec<SessionIdentity>,
    /// `mcpServerSettings.isMCPServerEnabled`, default false: there is a key, and for built-in kinds an MCP server.
    #[serde(default)]
    pub is_mcp_enabled: bool,
    /// What its sessions begin with besides the image (`coveSnapshot`).
    #[serde(default)]
    pub snapshot: Option<PoolSnapshot>,
    /// When idle sessions are suspended instead of ended (`coveSuspend`); `None`: never by themselves.
    #[serde(default)]
    pub suspend: Option<SuspendRule>,
    /// What new sessions are of; new when anything that their containers see changes, secrets' values included.
    pub generation: RevisionName,
}

/// Most sessions that a pool may be asked to run at once. Azure: 600 for the built-in kinds.
pub const SESSIONS_MAX: u32 = 600;

impl SessionPool {
    /// What boards, drivers and services key the sessions of the current generation by.
    #[must_use]
    pub fn key(&self) -> RevisionKey {
        RevisionKey { app: self.id.clone(), name: self.generation.clone() }
    }

    /// Sessions of both look the same from inside, as far as the two values tell; the values of secrets are not in them.
    #[must_use]
    pub fn is_same_inside(&self, other: &Self) -> bool {
        self.container == other.container
            && self.template == other.template
            && self.target_port == other.target_port
            && self.egress == other.egress
            && self.egress_rules == other.egress_rules
            && self.isolation == other.isolation
            && self.workload_profile == other.workload_profile
            && self.managed_identities == other.managed_identities
            && self.snapshot.as_ref().map(|known| &known.id) == other.snapshot.as_ref().map(|known| &known.id)
    }
}

/// What runs in a pool's sessions; ARM's `containerType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SessionContainer {
    /// The user's image; every path is forwarded to it.
    Custom,
    /// Cove's Python interpreter.
    PythonLts,
    /// Cove's Node interpreter.
    NodeLts,
    /// Cove's shell.
    Shell,
}

impl SessionContainer {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Custom, Self::PythonLts, Self::NodeLts, Self::Shell];

    /// ARM's spelling.
    #[must_use]
    pub fn as_arm(self) -> &'static str {
        match self {
            Self::Custom => "CustomContainer",
            Self::PythonLts => "PythonLTS",
            Self::NodeLts => "NodeLTS",
            Self::Shell => "Shell",
        }
    }

    /// The kind of this ARM spelling.
    #[must_use]
    pub fn from_arm(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_arm() == text)
    }
}

impl SessionContainer {
    /// The image of a built-in kind, which `cove image build-interpreter` makes; `None` for the user's own.
    #[must_use]
    pub fn interpreter_image(self) -> Option<&'static str> {
        match self {
            Self::Custom => None,
            Self::PythonLts => Some("cove.local/interpreter-python:latest"),
            Self::NodeLts => Some("cove.local/interpreter-node:latest"),
            Self::Shell => Some("cove.local/interpreter-shell:latest"),
        }
    }
}

/// When an allocated session ends, besides by `stopSession` and with its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionLifecycle {
    /// So long after the end of its last request, or when its container exits.
    Timed {
        /// `cooldownPeriodInSeconds`, 300..=3600, default 300.
        cooldown_secs: u32,
    },
    /// When its container exits, at the latest so long after its allocation.
    OnContainerExit {
        /// `maxAlivePeriodInSeconds`, 60..=86400, default 3600.
        max_alive_secs: u32,
    },
}

impl SessionLifecycle {
    /// ARM's `lifecycleType`.
    #[must_use]
    pub fn as_arm(self) -> &'static str {
        match self {
            Self::Timed { .. } => "Timed",
            Self::OnContainerExit { .. } => "OnContainerExit",
        }
    }
}

impl Default for SessionLifecycle {
    fn default() -> Self {
        Self::Timed { cooldown_secs: 300 }
    }
}

/// What a session may reach; ARM's `sessionNetworkConfiguration.status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SessionEgress {
    /// Nothing: no route, no name service.
    #[default]
    Disabled,
    /// The internet by NAT; never the host, the control plane, metadata, private ranges or neighbours.
    Enabled,
}

impl SessionEgress {
    /// ARM's spelling.
    #[must_use]
    pub fn as_arm(self) -> &'static str {
        match self {
            Self::Disabled => "EgressDisabled",
            Self::Enabled => "EgressEnabled",
        }
    }
}

/// What stands between a session and the machine; Cove's field `coveIsolation`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SessionIsolation {
    /// The kernel's means: user namespace, no capabilities, system call filter, read-only system, limits.
    #[default]
    Hardened,
    /// A virtual machine per session.
    Vm,
    /// An OCI runtime that is installed on the machine, such as `runsc`.
    Handler(String),
}

impl SessionIsolation {
    /// `hardened`, `vm` or the handler's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Hardened => "hardened",
            Self::Vm => "vm",
            Self::Handler(name) => name,
        }
    }
}

impl fmt::Display for SessionIsolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An entry of `managedIdentitySettings`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionIdentity {
    /// `system` or the id of a user-assigned identity.
    pub identity: String,
    /// `Main`: the session's containers may use it; false is `None`: only for pulling images.
    pub is_for_main: bool,
}

/// Who a session is for: checked text, sensitive (whoever knows it and has a token reaches the session).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionIdentifier(Arc<str>);

/// Why a text is not an identifier; the text itself is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session identifier is not valid: {IDENTIFIER_RULE}")]
pub struct InvalidIdentifier;

impl SessionIdentifier {
    /// Checks and keeps an identifier; case counts.
    ///
    /// # Errors
    /// [`InvalidIdentifier`] with [`IDENTIFIER_RULE`].
    pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidIdentifier> {
        const MARKS: &[u8] = b"|-&^%$#(){}[];<>_.:@+=~!*";
        let text = text.as_ref();
        let is_valid = IDENTIFIER_LENGTH.contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || MARKS.contains(&b));
        if is_valid { Ok(Self(text.into())) } else { Err(InvalidIdentifier) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SessionIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for SessionIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SessionIdentifier {
    type Error = InvalidIdentifier;
    fn try_from(text: String) -> Result<Self, InvalidIdentifier> {
        Self::new(text)
    }
}

impl From<SessionIdentifier> for String {
    fn from(identifier: SessionIdentifier) -> Self {
        identifier.0.as_ref().to_owned()
    }
}

/// One session: a replica that waits ready, or belongs to an identifier, or has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The pool.
    pub pool: ResourceId,
    /// What it was made of.
    pub generation: RevisionName,
    /// Its replica; the name is written before it is started and never used twice.
    pub replica: ReplicaName,
    /// What clients see of it (`x-ms-session-guid`), a UUID.
    pub guid: String,
    /// Port in it that requests are forwarded to, as its generation says.
    pub target_port: u16,
    /// What it begins with besides the image: the files of the session that it was forked or resumed from, or its pool's
    /// template.
    #[serde(default)]
    pub snapshot: Option<SnapshotId>,
    /// Who it belongs to; `None` while it waits.
    #[serde(default)]
    pub identifier: Option<SessionIdentifier>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it got its identifier.
    #[serde(default)]
    pub allocated_at: Option<Timestamp>,
    /// When its last request ended (or began, while one is in flight).
    #[serde(default)]
    pub last_accessed_at: Option<Timestamp>,
    /// When and why it ended.
    #[serde(default)]
    pub ended: Option<SessionEnded>,
}

impl Session {
    /// What boards, drivers and services key its replica by.
    #[must_use]
    pub fn key(&self) -> RevisionKey {
        RevisionKey { app: self.pool.clone(), name: self.generation.clone() }
    }

    /// It belongs to an identifier and has not ended.
    #[must_use]
    pub fn is_allocated(&self) -> bool {
        self.identifier.is_some() && self.ended.is_none()
    }
}

/// When and why a session ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEnded {
    /// When it was decided.
    pub at: Timestamp,
    /// Why.
    pub reason: SessionEndReason,
    /// The same in words, when there is more to say.
    #[serde(default)]
    pub message: Option<String>,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SessionEndReason {
    /// No request for the pool's cool-down.
    CooledDown,
    /// It lived for the pool's longest time.
    MaxAlive,
    /// A user stopped it.
    Stopped,
    /// Its container exited.
    ContainerExited,
    /// It was not allocated and the pool has another generation now.
    Replaced,
    /// It was not allocated and the pool keeps fewer ready.
    Surplus,
    /// The pool was deleted.
    PoolDeleted,
    /// It could not be made or did not become ready.
    Failed,
    /// Its processes were gone.
    Lost,
    /// Its files are kept for its next request.
    Suspended,
}

impl SessionEndReason {
    /// The word for events and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CooledDown => "CooledDown",
            Self::MaxAlive => "MaxAlive",
            Self::Stopped => "Stopped",
            Self::ContainerExited => "ContainerExited",
            Self::Replaced => "Replaced",
            Self::Surplus => "Surplus",
            Self::PoolDeleted => "PoolDeleted",
            Self::Failed => "Failed",
            Self::Lost => "Lost",
            Self::Suspended => "Suspended",
        }
    }
}

/// An answer to "give me the session of this identifier".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionAllocation {
    /// The session, allocated and on disk.
    pub session: Session,
    /// Port in it that requests go to.
    pub target_port: u16,
    /// It was allocated by this very call.
    pub is_new: bool,
}

/// Why an identifier got no session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// There is no such pool, or it is being deleted.
    #[error("the session pool does not exist")]
    UnknownPool,
    /// `sessions_max` sessions are allocated.
    #[error("all {max} sessions of the pool are allocated")]
    PoolFull {
        /// The pool's `maxConcurrentSessions`.
        max: u32,
    },
    /// A session is being made and did not become ready in time.
    #[error("no session became ready within {waited_ms} ms")]
    NotReadyInTime {
        /// How long was waited, in milliseconds.
        waited_ms: u64,
    },
    /// Sessions of the pool cannot be made now.
    #[error("a session could not be made: {message}")]
    Failed {
        /// One word, such as `ImagePullFailure`.
        reason: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// No identifier, or not one.
    #[error(transparent)]
    BadIdentifier(#[from] InvalidIdentifier),
}

/// How many sessions a pool has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCounts {
    /// Ready, not allocated.
    pub ready: u32,
    /// Allocated.
    pub executing: u32,
    /// Being made.
    pub pending: u32,
}

/// The name of a pool's generation: `<pool>--<suffix>`, of a long pool's name the first 40 characters.
///
/// # Errors
/// [`InvalidName`] when the suffix has other characters than `a-z0-9`.
pub fn generation_name(pool: &str, suffix: &str) -> Result<RevisionName, InvalidName> {
    let short: String = pool.chars().take(POOL_IN_NAME_MAX).collect();
    RevisionName::of(short.trim_end_matches('-'), suffix)
}

/// The name of a session's replica: `<generation>-<suffix>`.
///
/// # Errors
/// [`InvalidName`] when the suffix has other characters than `a-z0-9`.
pub fn session_replica_name(generation: &RevisionName, suffix: &str) -> Result<ReplicaName, InvalidName> {
    ReplicaName::new(format!("{generation}-{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_pools_are_azures_and_those_of_its_documentation() {
        for good in ["abc", "mypool1", "my-session-pool", &"p".repeat(63)] {
            assert!(check_session_pool_name(good).is_ok(), "{good}");
        }
        for bad in ["", "ab", "1pool", "-pool", "pool-", "my--pool", "Pool", "po_ol", "pöol", &"p".repeat(64)] {
            assert!(check_session_pool_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_fit_the_longest_pool() {
        let generation = generation_name(&"p".repeat(63), "abc1234").unwrap();
        assert_eq!(generation.as_str(), format!("{}--abc1234", "p".repeat(40)));
        assert!(session_replica_name(&generation, &"x".repeat(SESSION_SUFFIX_LENGTH)).is_ok());
        let cut = generation_name(&format!("{}-tail", "p".repeat(39)), "abc1234").unwrap();
        assert_eq!(cut.as_str(), format!("{}--abc1234", "p".repeat(39)));
    }

    #[test]
    fn identifiers_have_a_length_and_no_separators() {
        for good in ["abcd", "user@example.com", "A|b-c&d^e%f$g#h", &"i".repeat(128)] {
            assert_eq!(SessionIdentifier::new(good).unwrap().as_str(), good);
        }
        for bad in
            ["", "abc", "a/bc", "a\\bc", "ab cd", "ab\ncd", "ab\0cd", "größe", "ab'cd", "../../x", &"i".repeat(129)]
        {
            assert!(SessionIdentifier::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn kinds_have_one_spelling() {
        for kind in SessionContainer::ALL {
            assert_eq!(SessionContainer::from_arm(kind.as_arm()), Some(kind));
        }
        assert_eq!(SessionContainer::from_arm("pythonlts"), None);
    }
}
