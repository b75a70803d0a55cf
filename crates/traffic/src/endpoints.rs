//! Where a revision's requests can go now. Written by the controller, read by the ingress.

use std::net::SocketAddr;

use cove_model::ReplicaName;
use serde::{Deserialize, Serialize};

/// A replica that takes requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The replica.
    pub replica: ReplicaName,
    /// Its address and target port.
    pub address: SocketAddr,
    /// Rises with age: lower is older; idle packing prefers the oldest.
    pub order: u64,
}

/// Where a revision's requests can go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Ready replicas, oldest first.
    pub ready: Vec<Endpoint>,
    /// Replicas that get nothing new and are stopped when their open requests end; the ingress reports them drained.
    pub draining: Vec<ReplicaName>,
    /// What to do when none is ready.
    pub state: EndpointState,
}

/// What a request finds when no replica is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndpointState {
    /// Hold it and ask for a replica.
    #[default]
    Hold,
    /// Fail it at once: the revision cannot start; the reason in words.
    Failed {
        /// In words.
        reason: String,
    },
    /// The app is stopped or the revision inactive: 404.
    Inactive,
}
