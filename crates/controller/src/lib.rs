//! Runs the reconcile loops: observe, plan, execute, write status.
//!
//! One task plans every app, from values that it holds in memory: what the store said last (read by the loader), what
//! the driver observed, what the autoscaler wants, what the ingress reported drained. It gives orders to the driver
//! directly, publishes endpoints and routes, and hands everything durable to the writer. So the way from a wanted count
//! to a start order has no store access and no wait in it.
//!
//! **Invariant:** the planning task never waits for IO. **Invariant:** first start, restart after `kill -9`, change and
//! repair are the same code: a plan of what is there.

mod auth;
mod capacity;
mod edge;
mod entry;
mod events;
mod execute;
mod frozen;
mod jobs;
mod loader;
mod orphans;
mod ports;
mod saver;
mod scaled;
mod service;
mod sessions;
mod slots;
mod spec;
mod storages;
mod writer;

pub use ports::{Config, Deps, Handle, OpenSource};
pub use service::Controller;
pub use sessions::{PoolInfo, SessionConfig, SessionInfo, SessionLease, Sessions};

#[cfg(test)]
mod tests;
