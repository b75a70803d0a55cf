//! What the planning task holds of one pool and of each of its sessions.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use cove_model::{
    AllocateError, Environment, ReplicaName, ResourceId, RevisionName, Session, SessionIdentifier, SessionPool,
    SessionSnapshot, SnapshotId,
};
use cove_reconcile::{Amount, PoolMemory};
use cove_runtime::RegistryLogin;
use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::{edge::Published, storages::Storages};

/// What is loaded of a pool besides its sessions; its `Debug` text has no secrets.
#[derive(Clone)]
pub(crate) struct PoolData {
    pub(crate) pool: SessionPool,
    /// Of the stored resource: rises with each write.
    pub(crate) generation: u64,
    pub(crate) phase: PoolPhase,
    pub(crate) environment: Option<Environment>,
    pub(crate) domain: String,
    pub(crate) secrets: BTreeMap<String, String>,
    pub(crate) logins: Vec<RegistryLogin>,
    pub(crate) storages: Storages,
}

/// Where the stored resource stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolPhase {
    /// An outcome is awaited.
    InProgress,
    /// Nothing is awaited.
    Settled,
    /// It has failed; it is tried on, and becomes what it should be without being written again.
    Failed,
    /// Its sessions are to be ended, then it goes.
    Deleting,
}

impl fmt::Debug for PoolData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolData")
            .field("id", &self.pool.id)
            .field("generation", &self.generation)
            .field("secrets", &self.secrets.keys())
            .finish_non_exhaustive()
    }
}

impl PoolData {
    /// Where its sessions run; a pool without an environment is its own.
    pub(crate) fn environment(&self) -> &ResourceId {
        self.pool.environment.as_ref().unwrap_or(&self.pool.id)
    }

    /// Images of its containers, each once.
    pub(crate) fn images(&self) -> Vec<String> {
        let template = &self.pool.template;
        let mut images: Vec<String> = Vec::new();
        for container in template.init_containers.iter().chain(&template.containers) {
            if !images.contains(&container.image) {
                images.push(container.image.clone());
            }
        }
        images
    }
}

/// Who is told that a session was allocated: by this call or before it.
pub(crate) type AllocateAnswer = oneshot::Sender<Result<bool, AllocateError>>;

/// One pool.
#[derive(Debug)]
pub(crate) struct PoolEntry {
    pub(crate) data: PoolData,
    pub(crate) sessions: BTreeMap<ReplicaName, SessionEntry>,
    /// Snapshots of its sessions that are kept by themselves; all are on disk.
    pub(crate) snapshots: BTreeMap<SnapshotId, SessionSnapshot>,
    pub(crate) memory: PoolMemory,
    /// What one session asks for.
    pub(crate) need: Amount,
    /// Those who wait for the session of an identifier, and whether it was allocated for them.
    pub(crate) waiters: BTreeMap<SessionIdentifier, Vec<(AllocateAnswer, bool)>>,
    /// Those who wait until an end is on disk.
    pub(crate) stops: Vec<(ReplicaName, oneshot::Sender<bool>)>,
    /// Generations whose images were asked for.
    pub(crate) generations: BTreeSet<RevisionName>,
    /// The generation of the resource whose outcome was handed to the writer.
    pub(crate) told: Option<u64>,
    /// It had failed and works now, which was handed to the writer.
    pub(crate) is_mended: bool,
    /// Set in the timer.
    pub(crate) wake_at: Option<Timestamp>,
    /// Sessions that are being started, as of the last plan.
    pub(crate) starting: u32,
    /// Its entries in the route table.
    pub(crate) published: Published,
}

/// One session.
#[derive(Debug)]
pub(crate) struct SessionEntry {
    pub(crate) session: Session,
    /// Rises with each change.
    pub(crate) version: u64,
    /// The version that is on disk.
    pub(crate) written: u64,
    /// Put in by this server.
    pub(crate) is_new: bool,
}

impl PoolEntry {
    pub(crate) fn new(data: PoolData, (sessions, snapshots): (Vec<Session>, Vec<SessionSnapshot>), seed: u64) -> Self {
        let loaded = |session: Session| {
            let entry = SessionEntry { session, version: 0, written: 0, is_new: false };
            (entry.session.replica.clone(), entry)
        };
        Self {
            need: Amount::of(&data.pool.template),
            data,
            sessions: sessions.into_iter().map(loaded).collect(),
            snapshots: snapshots.into_iter().map(|one| (one.id.clone(), one)).collect(),
            memory: PoolMemory::new(seed),
            waiters: BTreeMap::new(),
            stops: Vec::new(),
            generations: BTreeSet::new(),
            told: None,
            is_mended: false,
            wake_at: None,
            starting: 0,
            published: Published::default(),
        }
    }

    /// Takes the newest form of a session.
    pub(crate) fn change(&mut self, session: Session) {
        match self.sessions.get_mut(&session.replica) {
            Some(entry) => {
                entry.version += 1;
                entry.session = session;
            }
            None => {
                let entry = SessionEntry { version: 1, written: 0, is_new: true, session };
                self.sessions.insert(entry.session.replica.clone(), entry);
            }
        }
    }

    /// The session of an identifier that has not ended.
    pub(crate) fn of(&self, identifier: &SessionIdentifier) -> Option<&SessionEntry> {
        let is_its = |entry: &&SessionEntry| {
            entry.session.ended.is_none() && entry.session.identifier.as_ref() == Some(identifier)
        };
        self.sessions.values().find(is_its)
    }

    /// Its suspended sessions: their snapshots, and when they are given up.
    pub(crate) fn suspended(&self) -> BTreeMap<SessionIdentifier, (SnapshotId, Timestamp)> {
        let all = self.snapshots.values().filter_map(|kept| {
            let (identifier, expires_at) = kept.suspended()?;
            Some((identifier.clone(), (kept.id.clone(), expires_at)))
        });
        all.collect()
    }

    /// The snapshot of an identifier whose session is suspended.
    pub(crate) fn suspended_of(&self, identifier: &SessionIdentifier) -> Option<&SessionSnapshot> {
        self.snapshots.values().find(|kept| kept.suspended().is_some_and(|(known, _)| known == identifier))
    }
}
