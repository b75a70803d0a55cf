//! What the planner looks at: one app with everything that is known of it. Borrowed, never changed.

use std::collections::BTreeMap;

use cove_model::{ContainerApp, ReplicaName, ReplicaObservation, Revision, RevisionStatus};

use crate::{Room, Settings};

/// One app.
#[derive(Clone, Copy, Debug)]
pub struct AppView<'a> {
    /// What the user asked.
    pub app: &'a ContainerApp,
    /// Of which version.
    pub generation: u64,
    /// Where the stored resource stands.
    pub phase: AppPhase,
    /// Suffix of host names in its environment.
    pub environment_domain: &'a str,
    /// Changes with the values that go into a replica besides its template: secrets, logins, target port. Slots that
    /// were made with other values are not used.
    pub config_hash: u64,
    /// Its revisions, oldest first.
    pub revisions: &'a [RevisionView<'a>],
    /// Open requests per replica, as far as the ingress said.
    pub open: &'a BTreeMap<ReplicaName, u64>,
    /// What the machine and the app's workload profile can still take; what runs of this app is counted as taken.
    pub room: &'a Room,
    /// Why no replica of this app can be frozen now, whatever its template asks: the host, or others that wait for memory.
    pub cannot_freeze: Option<&'a str>,
    /// Waiting times and limits.
    pub settings: &'a Settings,
}

/// Where the stored resource stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppPhase {
    /// An outcome is awaited for this generation.
    InProgress,
    /// The outcome was told; differences are repaired all the same.
    Settled,
    /// To be taken down.
    Deleting,
}

/// One revision.
#[derive(Clone, Copy, Debug)]
pub struct RevisionView<'a> {
    /// The snapshot.
    pub revision: &'a Revision,
    /// What the last plan said of it.
    pub status: &'a RevisionStatus,
    /// How many replicas the autoscaler wants; `None` until it has decided.
    pub desired: Option<u32>,
    /// How many slots it may hold beside its replicas.
    pub slots_wanted: u32,
    /// Where its images stand.
    pub images: &'a Images,
    /// What the driver sees of it.
    pub replicas: &'a [ReplicaObservation],
}

/// Where a revision's images stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Images {
    /// Nobody asked yet.
    #[default]
    Unknown,
    /// On the way.
    Pulling {
        /// 0..=100.
        percent: u8,
    },
    /// All here.
    Ready {
        /// Image → the only TCP port it exposes.
        exposed_ports: BTreeMap<String, Option<u16>>,
    },
    /// Could not be had.
    Failed {
        /// Why, and what would be right.
        message: String,
        /// Whether trying again may help.
        retryable: bool,
    },
}
