//! What the ingress saw of one wake from zero: the part of [`cove_model::WakeRecord`] that only it knows.

use cove_model::{ReplicaName, RevisionKey};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The first request that was held for a revision without a replica, and how it was served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeObservation {
    /// The revision that was woken.
    pub revision: RevisionKey,
    /// The replica that answered.
    pub replica: ReplicaName,
    /// When the request's head had been read.
    pub accepted_at: Timestamp,
    /// When it was given a replica: it was held from `accepted_at` until then.
    pub released_at: Timestamp,
    /// When the head of the response had been read from the replica.
    pub first_byte_at: Timestamp,
}
