//! A new server takes over from the one that runs: listening sockets, state, and what is still open.
//!
//! Both are processes of this machine on one data directory. They talk over a Unix socket in it:
//!
//! 1. The new one asks; the old one gives copies of its listening sockets. None is closed from here on, so no client finds a
//!    port shut: what connects meanwhile waits in the socket's queue or is served by the old server.
//! 2. The old one stops its services (API, controller, autoscaler, logs), closes the state and says so. Its ingress goes on.
//!    Exactly one process writes the state at any time.
//! 3. The new one opens the state, finds the replicas, and says that it serves. The old one takes no connection any more and
//!    finishes those that are open within its grace period.
//! 4. Until then the old one is told routes and endpoints by the new one, asks it for replicas of apps that requests wait
//!    for, and tells what is open where: no replica is stopped under a request of either.
//!
//! When the new one ends between 2 and 3, the old one starts anew inside its own process, by the same way.
//!
//! **Invariant:** whoever is asked gives nothing to a process of another user.
//! **Invariant:** what is told is whole values, newest last, so a lost connection loses nothing but time.

mod new;
mod old;
mod predecessors;
mod wire;

pub(crate) use new::{Inherited, Shared, TakeOver, open_store};
pub use old::Visitor;
pub(crate) use old::{Door, Leaver, SocketCopy, Successor, copy};
pub(crate) use predecessors::Predecessors;
pub(crate) use wire::Role;
