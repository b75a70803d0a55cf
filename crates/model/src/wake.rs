//! The phases of one wake from zero, so that every millisecond has an owner.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ReplicaName, RevisionKey};

/// One wake from zero. Offsets are microseconds since `accepted_at`; a phase that did not occur (a slot was ready) is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeRecord {
    /// The revision that was woken.
    pub revision: RevisionKey,
    /// The replica that answered first.
    pub replica: ReplicaName,
    /// Whether a prepared slot was used.
    pub from_slot: bool,
    /// A frozen replica ran again; then no other phase of a start occurred.
    #[serde(default)]
    pub thawed_us: Option<u64>,
    /// When the first held request had been read.
    pub accepted_at: Timestamp,
    /// The planner chose a replica to start.
    pub planned_us: Option<u64>,
    /// Its network was ready.
    pub network_us: Option<u64>,
    /// Its root file system and processes were ready (OCI created).
    pub root_us: Option<u64>,
    /// Its process was started.
    pub started_us: Option<u64>,
    /// It called `listen`.
    pub listening_us: Option<u64>,
    /// It was found ready.
    pub ready_us: Option<u64>,
    /// The first response byte came back.
    pub first_byte_us: Option<u64>,
}

/// When a driver finished the phases of one replica; absolute times, the wake record makes offsets of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaPhases {
    /// Start was asked.
    pub asked_at: Option<Timestamp>,
    /// Network ready.
    pub network_at: Option<Timestamp>,
    /// OCI created.
    pub root_at: Option<Timestamp>,
    /// Process started.
    pub started_at: Option<Timestamp>,
    /// `listen` seen.
    pub listening_at: Option<Timestamp>,
    /// Ready.
    pub ready_at: Option<Timestamp>,
    /// Seen running again after it had been frozen; `asked_at` is then when that was asked.
    #[serde(default)]
    pub thawed_at: Option<Timestamp>,
}
