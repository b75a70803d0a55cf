//! The load test: sends requests on a schedule or as fast as they are answered, and says what became of each.
//!
//! An open loop (`Pace::Rate`) has a schedule that does not wait for answers: a request's latency counts from the time at
//! which it should have been sent, so a server that stalls cannot slow its own test down (no coordinated omission). A closed
//! loop (`Pace::Connections`) sends the next request when the last one was answered.
//!
//! **Lost** is every request that was begun and got no full and right answer in time, after the repeats that the protocol
//! itself calls safe; [`LossKind`] says how. Repeats are counted apart, by their reason ([`Repeat`]).
//!
//! **Invariant:** memory does not grow with the number of requests. **Invariant:** a load ends by itself: at its end every
//! open request has at most its timeout left.

mod events;
mod grpc;
mod http1;
mod http2;
mod loss;
mod picture;
mod plan;
mod recorder;
mod report;
mod run;
mod schedule;
mod timeline;
mod tls;
mod websocket;
mod wire;

#[cfg(test)]
mod tests;

pub use loss::{LossKind, Repeat};
pub use picture::{svg, terminal};
pub use plan::{Content, Pace, Plan, PlanError, Protocol, Target, Trust};
pub use recorder::Counts;
pub use report::{Latency, Mark, Moment, Report};
pub use run::{Controls, Load, StartError};
