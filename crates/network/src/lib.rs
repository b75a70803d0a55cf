//! Replica networking: bridge, pooled network namespaces, NAT, DNS of environments.
//!
//! One [`Network`] is one bridge with one private subnet. Each replica gets a network namespace of its own, used
//! once, with a veth pair into the bridge. Ports are isolated from each other: replicas reach one another only
//! through the ingress on the gateway address, which is also where scale-from-zero needs the traffic.
//!
//! **Invariant:** after `kill -9` the next [`Network::open`] finds everything in the kernel again and
//! [`Network::adopt`] removes what nobody uses.
//! **Invariant:** no program but `nft` is ever started: once per open, and for limited replicas, whose rules differ.

pub mod dns;
mod error;
pub mod files;
pub mod inside;
mod kernel;
mod layout;
mod limits;
mod netns;
mod network;
mod nft;
mod pool;
mod probe;

#[cfg(test)]
mod tests;

pub use error::NetworkError;
pub use ipnet::Ipv4Net;
pub use layout::{MAC_PREFIX, Mac, NetnsClass, NetnsId, NetnsLease, ParseNetnsIdError};
pub use limits::{LEARNED_CEILING, LEARNED_FLOOR, LEARNED_MAX, Limits};
pub use network::{Adopted, Capabilities, Network, NetworkConfig};
pub use pool::{PoolStatus, REPLICAS_MAX};
pub use probe::{Probe, probe};
