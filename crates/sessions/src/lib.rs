//! The data plane of session pools: takes a request for a pool, checks its token, finds the session of its identifier and
//! forwards the request to it; answers what is about sessions themselves.
//!
//! It knows pools, tokens and replicas only through [`Ports`]: the server wires them.
//!
//! **Invariant:** nothing is looked up before the token was believed. **Invariant:** a request reaches the session of its own
//! identifier or none. **Invariant:** a session is counted as used until the last byte of the answer, and of what follows an
//! upgrade. **Invariant:** every wait and every body has a limit.

mod answer;
mod body;
mod connections;
mod e2b;
mod form;
mod forward;
mod interpreter;
mod json;
mod manage;
mod ports;
mod service;
mod snapshots;
mod tools;

pub use answer::Refused;
pub use e2b::{E2bPorts, Exec};
pub use ports::{
    Dial, Fork, Lease, Limits, PoolDetails, PoolInfo, Pools, Ports, SessionInfo, TokenCheck, TokenProblem,
};
pub use service::{Door, Service};
pub use tools::{Answered, ConsoleAsked, LogsAsked, Tools, Whose, replica_of};

#[cfg(test)]
mod tests;
