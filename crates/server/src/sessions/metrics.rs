//! How many sessions each pool has, as metrics.
//!
//! | metric | labels | what |
//! |---|---|---|
//! | `cove_sessions` | `pool`, `resource_group`, `state` | `ready`, `executing` (allocated), `pending` (being made) |
//! | `cove_PoolReadyPodCount`, `cove_PoolExecutingPodCount`, `cove_PoolPendingPodCount` | `poolName`, `resource_group` | the same by Azure's names |
//! | `cove_session_allocations_total` | `outcome` | requests for a session: `new`, `known`, `full`, `late`, `failed` |
//! | `cove_session_allocation_seconds` | | from such a request to a session that serves, of new ones |
//!
//! **Invariant:** at most [`POOLS_MAX`] pools have series.

use std::{fmt, time::Duration};

use cove_controller::Sessions;
use cove_model::{AllocateError, ResourceId, SessionCounts};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet},
    metrics::{MetricType, counter::Counter, family::Family, histogram::Histogram},
};

use crate::metrics::{EDGES, Metrics};

/// Pools with series.
const POOLS_MAX: usize = 1000;

/// Picks one of a pool's counts.
type CountOf = fn(&SessionCounts) -> u32;

/// What a scrape asks.
#[derive(Debug)]
pub(crate) struct SessionMetrics(pub(crate) Sessions);

impl Collector for SessionMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Sessions of pools by state";
        let mut metric = encoder.encode_descriptor("sessions", help, None, MetricType::Gauge)?;
        for (pool, counts) in self.0.all_counts().into_iter().take(POOLS_MAX) {
            let states = [("ready", counts.ready), ("executing", counts.executing), ("pending", counts.pending)];
            for (state, count) in states {
                let labels = [("pool", pool.name()), ("resource_group", pool.group_name()), ("state", state)];
                metric.encode_family(&labels)?.encode_gauge(&i64::from(count))?;
            }
        }
        let azures: [(&str, &str, CountOf); 3] = [
            ("PoolReadyPodCount", "Ready sessions", |counts| counts.ready),
            ("PoolExecutingPodCount", "Executing sessions", |counts| counts.executing),
            ("PoolPendingPodCount", "Sessions that are being created", |counts| counts.pending),
        ];
        for (name, help, count) in azures {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (pool, counts) in self.0.all_counts().into_iter().take(POOLS_MAX) {
                let labels = [("poolName", pool.name()), ("resource_group", pool.group_name())];
                metric.encode_family(&labels)?.encode_gauge(&i64::from(count(&counts)))?;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Requests for sessions, counted.
#[derive(Clone, Debug)]
pub(crate) struct Allocations {
    outcomes: Family<Outcome, Counter>,
    seconds: Histogram,
}

impl Allocations {
    /// Counts into the server's metrics.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let (outcomes, seconds) = (Family::<Outcome, Counter>::default(), Histogram::new(EDGES));
        metrics.register("session_allocations", "Requests for a session of an identifier", outcomes.clone());
        let help = "From the request of a new identifier to its session";
        metrics.register("session_allocation_seconds", help, seconds.clone());
        Self { outcomes, seconds }
    }

    /// Counts one: whether it was allocated by this request, or why not.
    pub(crate) fn count(&self, pool: &ResourceId, outcome: Result<bool, &AllocateError>, took: Duration) {
        let outcome = match outcome {
            Ok(true) => {
                self.seconds.observe(took.as_secs_f64());
                "new"
            }
            Ok(false) => "known",
            Err(AllocateError::PoolFull { .. }) => "full",
            Err(AllocateError::NotReadyInTime { .. }) => "late",
            Err(AllocateError::UnknownPool | AllocateError::BadIdentifier(_)) => return,
            Err(error @ AllocateError::Failed { .. }) => {
                tracing::debug!(%pool, %error, "an identifier got no session");
                "failed"
            }
        };
        self.outcomes.get_or_create(&Outcome { outcome }).inc();
    }
}
