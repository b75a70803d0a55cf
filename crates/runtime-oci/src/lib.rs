//! Replicas as OCI containers on this host; one small helper process per replica.
//!
//! [`OciRuntime`] is the driver inside the server: it fetches images, takes networks, hands replicas to helpers, probes
//! them and reports what it sees. A helper ([`shim`]) is a process of its own that owns one replica's containers, so the
//! server may stop, crash and come back without any container noticing.
//!
//! ```text
//! server ── driver ──socket── zygote ──fork── helper (one per replica) ── first process of each container
//!              └────────────────socket──────────┘
//! ```
//!
//! **Invariant:** what a helper needs to go on is in its memory and its replica's folder, never in the server.

mod cgroup;
mod driver;
mod executions;
mod handlers;
mod layer_copy;
mod memory;
mod page_out;
mod probe;
mod protocol;
mod seccomp;
mod shares;
pub mod shim;
mod tree;
mod usage;
mod vm_root;
mod wait;
mod watches;

pub use driver::{CA_FILE, MachinesConfig, OciConfig, OciRuntime, OpenError};
pub use executions::{ExecutionDirs, ExecutionPart};
pub use handlers::{Handler, HandlerConfig, find as find_handlers};
pub use probe::{IsolationMeans, Probe, probe, probe_isolation};
pub use shares::{ShareBinding, ShareTarget, SharesConfig};
pub use watches::make_room_for_watches;
