//! Sessions as virtual machines: everything about the machine itself.
//!
//! QEMU runs as the process of an ordinary sandboxed container, so this crate starts no machine by itself: it says how
//! ([`machine`]), of what ([`guest`], [`disk`]), and what is said to the agent inside ([`wire`], [`link`]). The runtime's
//! helper starts it, holds the other end of the agent's port and of the monitor ([`talk`], or [`monitor`] for who may wait).
//!
//! **Invariant:** nothing of a guest is trusted: what it sends is bounded and checked, what it is given is read-only.

pub mod accel;
pub mod disk;
pub mod guest;
pub mod link;
pub mod local;
pub mod machine;
pub mod monitor;
pub mod talk;
pub mod wire;

pub use link::{Link, LinkError, LinkEvent};
pub use machine::{Accel, Backing, MachineSpec, Network, OVERHEAD_BYTES};

#[cfg(test)]
mod wire_tests;

/// The agent: first process of every guest, static, for the initial file system. Empty where machines are not x86-64.
pub const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));
