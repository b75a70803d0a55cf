//! Limits of a request: its app's own, else its environment's, else the server's.
//!
//! **Invariant:** a limit is looked at before a replica is asked for.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use cove_model::{RequestLimits, Transport};
use http_body::Body;

use crate::{
    answer::Refusal,
    config::IngressConfig,
    gate::{GateShared, Ticket},
    policy::Policy,
    proxy::Proxy,
    request_body::BodyLimits,
    resilience::count,
};

/// What app and environment say; what they leave open is the server's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits(RequestLimits);

impl Limits {
    pub(crate) fn new(limits: RequestLimits) -> Self {
        Self(limits)
    }

    /// From the request's head to the answer's.
    pub(crate) fn request_timeout(self, config: &IngressConfig) -> Duration {
        self.0.request_timeout_secs.map_or(config.request_timeout, seconds)
    }

    /// Longest silence inside an answer.
    pub(crate) fn idle_timeout(self, config: &IngressConfig) -> Duration {
        self.0.idle_timeout_secs.map_or(config.stream_idle_timeout, seconds)
    }

    /// Header fields of a request.
    pub(crate) fn header_fields_max(self, config: &IngressConfig) -> usize {
        self.0.header_fields_max.map_or(config.header_fields_max, |max| max as usize)
    }

    /// How long open requests may go on when the server stops.
    pub(crate) fn drain_grace(self, config: &IngressConfig) -> Duration {
        self.0.drain_grace_secs.map_or(config.drain_grace, seconds)
    }

    fn body_bytes_max(self, config: &IngressConfig) -> u64 {
        self.0.body_bytes_max.or(config.request_body_max).unwrap_or(u64::MAX)
    }
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

impl GateShared {
    /// Header fields that are read at all: the server's number, or the highest that an app was allowed since the start.
    pub(crate) fn header_fields_max(&self) -> usize {
        self.config.header_fields_max.max(self.header_fields_ceiling.load(Ordering::Relaxed))
    }

    /// Lets so many be read from now on.
    pub(crate) fn raise_header_fields(&self, policy: &Policy) {
        self.header_fields_ceiling.fetch_max(policy.limits.header_fields_max(&self.config), Ordering::Relaxed);
    }
}

impl Proxy {
    /// How long open requests may go on when the server stops: the longest that an app with open requests asks for.
    pub(crate) fn drain_grace(&self) -> Duration {
        let config = &self.shared.config;
        let snapshot = self.snapshot.load();
        let open = snapshot.apps().filter(|app| app.is_open());
        open.map(|app| app.policy.limits.drain_grace(config)).max().unwrap_or(config.drain_grace)
    }
}

impl Policy {
    /// How much of a request's body is let through, and how much is kept.
    pub(crate) fn body_limits(&self, shared: &GateShared) -> BodyLimits {
        let config = &shared.config;
        let keep = self.resilience.retry.is_some() && config.retry_body_max > 0;
        BodyLimits {
            bytes_max: self.limits.body_bytes_max(config),
            keep: keep.then(|| (config.retry_body_max, Arc::clone(&shared.kept_bodies))),
        }
    }

    /// Checks a request that was admitted.
    ///
    /// # Errors
    /// Too many header fields, a body that is announced too large, too many open requests.
    pub(crate) fn check<B: Body>(
        &self,
        request: &http::Request<B>,
        (ticket, transport): (&Ticket, Transport),
        config: &IngressConfig,
    ) -> Result<(), Refusal> {
        let max = self.limits.header_fields_max(config);
        if request.headers().len() > max {
            return Err(Refusal::TooManyHeaders { max });
        }
        if request.body().size_hint().lower() > self.limits.body_bytes_max(config) {
            return Err(Refusal::RequestBodyTooLarge);
        }
        self.check_open(ticket, transport)
    }

    /// Checks how much is open beside what was just admitted.
    ///
    /// # Errors
    /// Too much.
    pub(crate) fn check_open(&self, ticket: &Ticket, transport: Transport) -> Result<(), Refusal> {
        match self.resilience.open_max(transport) {
            Some(max) if ticket.gate().open() > max => {
                count(&ticket.gate().counters().pool_overflows);
                Err(Refusal::PoolOverflow { max })
            }
            Some(_) | None => Ok(()),
        }
    }
}
