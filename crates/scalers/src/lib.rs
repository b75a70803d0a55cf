//! Reads the event sources of scale rules: one module per family of KEDA scalers.
//!
//! What the metadata means and what an answer comes to is pure and lives in `cove_scaling::source`; this crate fetches
//! the answer. [`Scalers::open`] takes a [`Trigger`] whose secrets are in place and gives a [`Source`]; the autoscaler
//! calls [`Source::read`] at each poll, under its own deadline.
//!
//! **Invariant:** connections are shared by all rules that name the same address and credentials ([`Pool`]); a dead host
//! is tried by one rule at a time, with a growing wait, and the others get its error at once.
//! **Invariant:** no error names a password, a key or a token.

mod azure;
#[cfg(test)]
mod azurite;
mod beanstalkd;
mod clock;
mod dial;
mod etcd;
mod eventhub;
mod external;
mod http;
mod kafka;
mod keys;
mod nats;
mod net;
mod paced;
mod pipe;
mod pool;
#[cfg(test)]
mod python;
mod rabbitmq;
mod redis;
#[cfg(test)]
mod rig;
mod source;
mod sql;
mod tls;
mod xml;

pub use pool::Pool;
pub use source::{
    Context, HostResolver, OpenError, ReadError, ReadFuture, Scalers, Source, TokenFuture, Tokens, Trigger,
};
pub use tls::Roots;
