//! Which revision and replica get a request: hosts, weights, labels, endpoints; and what the ingress saw.
//!
//! **Invariant:** nothing here opens a socket or reads a clock; `cove-ingress` does both.

mod access;
mod endpoints;
mod load;
mod paths;
mod routes;
mod shards;
mod wake;

pub use access::{AccessRecord, DURATION_EDGES_US, Ending, Percentiles, RevisionTraffic, is_error};
pub use endpoints::{Endpoint, EndpointState, Endpoints};
pub use load::RevisionLoad;
pub use paths::{PathMatch, PathRoutes, target_name};
pub use routes::{
    AppRoute, AppRouteState, Host, HostCertificate, HostRoute, RouteTable, TcpRoute, WeightedRevision, host_name,
    short_name,
};
pub use shards::{SHARDS, Shard, Shards};
pub use wake::WakeObservation;
