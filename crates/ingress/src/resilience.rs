//! What an app's resiliency policy asks of each request, made ready for requests. Everything here is decided without IO and
//! without a clock: `upstream` does what comes out.
//!
//! **Invariant:** an app without a policy pays nothing: no copy of its requests is made, nothing is counted per answer.

mod breaker;
mod counts;
mod ejected;
mod retry;

use std::time::Duration;

use cove_model::{Resiliency, Transport};

pub(crate) use self::{
    breaker::{Breaker, Ejection, may_eject},
    counts::{Counters, count},
    ejected::Ejections,
    retry::{Failure, Retry, Tried},
};
pub use self::{counts::ResilienceCounts, ejected::Ejected};

/// One app's policy.
#[derive(Debug, Default)]
pub(crate) struct Resilience {
    /// From a request's last byte to the head of its answer, in one try.
    pub(crate) response_timeout: Option<Duration>,
    /// To open a connection; `None`: the server's.
    pub(crate) connect_timeout: Option<Duration>,
    /// When a request is tried again.
    pub(crate) retry: Option<Retry>,
    /// When a replica is left out.
    pub(crate) breaker: Option<Breaker>,
    /// Connections tried for one client of a TCP app; `None`: the server's number.
    pub(crate) connect_attempts: Option<u32>,
    http1_open_max: Option<u64>,
    http2_open_max: Option<u64>,
    tcp_open_max: Option<u64>,
}

impl Resilience {
    pub(crate) fn new(policy: &Resiliency) -> Self {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        Self {
            response_timeout: policy.timeouts.map(|timeouts| seconds(timeouts.response_secs)),
            connect_timeout: policy.timeouts.map(|timeouts| seconds(timeouts.connect_secs)),
            retry: policy.retry.as_ref().map(Retry::new),
            breaker: policy.breaker.map(Breaker::new),
            connect_attempts: policy.connect_attempts,
            http1_open_max: policy.http1_requests_max.map(u64::from),
            http2_open_max: policy.http2_requests_max.map(u64::from),
            tcp_open_max: policy.connections_max.map(u64::from),
        }
    }

    /// Requests or connections that a revision may have open at once.
    pub(crate) fn open_max(&self, transport: Transport) -> Option<u64> {
        match transport {
            Transport::Auto | Transport::Http => self.http1_open_max,
            Transport::Http2 => self.http2_open_max,
            Transport::Tcp => self.tcp_open_max,
        }
    }
}
