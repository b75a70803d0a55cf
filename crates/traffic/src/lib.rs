//! Which revision and replica get a request: hosts, weights, labels, endpoints; and what the ingress saw.
//!
//! **Invariant:** nothing here opens a socket or reads a clock; `cove-ingress` does both.

mod endpoints;
mod load;
mod routes;
mod wake;

pub use endpoints::{Endpoint, EndpointState, Endpoints};
pub use load::RevisionLoad;
pub use routes::{AppRoute, AppRouteState, RouteTable, WeightedRevision, host_name};
pub use wake::WakeObservation;
