//! What can go wrong with replica networking, in the words an operator needs.
//!
//! **Invariant:** every variant says what was attempted; the cause is in `source`.

use std::io;
use std::path::PathBuf;

use ipnet::Ipv4Net;

/// Why the network of a replica, or the whole network, could not be had.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The packet filter could not be changed.
    #[error("failed to change the packet filter: {reason}")]
    PacketFilter {
        /// In `nft`'s words.
        reason: String,
    },
    /// The name would not fit into an interface name or an nftables identifier.
    #[error("`{name}` is not a network name: 1 to 8 characters of a-z and 0-9 are")]
    InvalidName {
        /// The refused name.
        name: String,
    },
    /// The subnet is too small, too large or not private.
    #[error("`{subnet}` cannot be the subnet of replicas: a private range of prefix /16 to /26 can")]
    InvalidSubnet {
        /// The refused subnet.
        subnet: Ipv4Net,
    },
    /// The configured subnet is already routed elsewhere on this machine.
    #[error("subnet `{subnet}` overlaps `{taken}`, which this machine already uses; choose another subnet")]
    SubnetTaken {
        /// The configured subnet.
        subnet: Ipv4Net,
        /// The address range or route in the way.
        taken: Ipv4Net,
    },
    /// Every candidate range is already routed on this machine.
    #[error("no free /20 was found in 10.64.0.0/10 or 172.16.0.0/12; set the subnet in the configuration")]
    NoFreeSubnet,
    /// An interface with the bridge's name exists and is something else.
    #[error("interface `{name}` exists and is not a bridge; remove it or use another network name")]
    BridgeNameTaken {
        /// Name of the interface.
        name: String,
    },
    /// A file of the network's own state could not be read or written.
    #[error("failed to use `{}`", path.display())]
    State {
        /// File or folder.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The remembered state does not parse.
    #[error("`{}` is damaged; remove it to choose a subnet anew", path.display())]
    StateFormat {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: serde_json::Error,
    },
    /// The kernel refused a change of links, addresses, routes or neighbours.
    #[error("failed to {action}")]
    Kernel {
        /// What was attempted.
        action: String,
        /// The kernel's answer; `EPERM` means that CAP_NET_ADMIN or CAP_SYS_ADMIN is missing.
        source: io::Error,
    },
    /// The bridge cannot take another port.
    #[error("the network holds {limit} replicas, as many as its bridge and subnet can; remove some first")]
    Full {
        /// Replicas at most.
        limit: usize,
    },
    /// Too many callers already wait for a namespace.
    #[error("{waiting} callers already wait for a network namespace; try again later")]
    Busy {
        /// Callers waiting.
        waiting: usize,
    },
    /// The network was closed, or its worker thread ended.
    #[error("the network is closed")]
    Closed,
}

impl NetworkError {
    pub(crate) fn kernel(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Kernel { action, source }
    }

    pub(crate) fn state(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::State { path, source }
    }
}
