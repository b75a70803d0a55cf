//! Metrics of the server in OpenMetrics text: `GET /cove/v1/metrics`.
//!
//! | metric | labels | unit |
//! |---|---|---|
//! | `cove_wakes_total` | `from_slot` | wakes from zero that were answered |
//! | `cove_wake_phase_seconds` | `phase` | from the first held request to the end of the phase |
//!
//! Those of the ingress are in [`crate::ingress_metrics`].
//!
//! **Invariant:** the number of series has a bound, however many apps there are.

use std::sync::{Mutex, OnceLock, PoisonError};

use cove_ingress::IngressHandle;
use cove_model::{ResourceId, WakeRecord};
use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};
use serde_json::Value;

use crate::{
    ingress_metrics::{self, IngressMetrics},
    resilience_metrics::ResilienceMetrics,
};

/// Upper edges in seconds: from a slot's wake to a cold start of a large program.
pub(crate) const EDGES: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Source {
    from_slot: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: &'static str,
}

/// All metrics and their registry.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    wakes: Family<Source, Counter>,
    phases: Family<Phase, Histogram, fn() -> Histogram>,
    ingress: OnceLock<IngressHandle>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let wakes = Family::<Source, Counter>::default();
        let phases: Family<Phase, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(EDGES));
        let mut registry = Registry::with_prefix("cove");
        registry.register("wakes", "Wakes from zero that were answered", wakes.clone());
        registry.register(
            "wake_phase_seconds",
            "From the first held request of a wake to the end of a phase",
            phases.clone(),
        );
        Self { registry: Mutex::new(registry), wakes, phases, ingress: OnceLock::new() }
    }

    /// Reads the ingress too from now on.
    pub(crate) fn read_ingress(&self, ingress: IngressHandle) {
        if self.ingress.set(ingress.clone()).is_ok() {
            let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
            registry.register_collector(Box::new(ResilienceMetrics(ingress.clone())));
            registry.register_collector(Box::new(IngressMetrics(ingress)));
        }
    }

    /// Asks this too at each scrape.
    pub(crate) fn collect(&self, collector: Box<dyn Collector>) {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).register_collector(collector);
    }

    /// Shows this too.
    pub(crate) fn register(&self, name: &str, help: &str, metric: impl prometheus_client::registry::Metric) {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).register(name, help, metric);
    }

    /// What the ingress counted, of one app or of all.
    pub(crate) fn ingress_stats(&self, app: Option<&ResourceId>) -> Value {
        self.ingress.get().map_or(Value::Null, |ingress| ingress_metrics::stats(ingress, app))
    }

    /// Counts a wake; phases that did not occur (a slot had them) are left out.
    pub(crate) fn wake(&self, wake: &WakeRecord) {
        self.wakes.get_or_create(&Source { from_slot: wake.from_slot.to_string() }).inc();
        let phases = [
            ("planned", wake.planned_us),
            ("thawed", wake.thawed_us),
            ("network", wake.network_us),
            ("root", wake.root_us),
            ("started", wake.started_us),
            ("listening", wake.listening_us),
            ("ready", wake.ready_us),
            ("first_byte", wake.first_byte_us),
        ];
        for (phase, micros) in phases {
            if let Some(micros) = micros {
                let seconds = std::time::Duration::from_micros(micros).as_secs_f64();
                self.phases.get_or_create(&Phase { phase }).observe(seconds);
            }
        }
    }

    /// Everything as OpenMetrics text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        encode(&mut text, &registry).expect("writing to a String cannot fail");
        text
    }
}

#[cfg(test)]
mod tests {
    use cove_model::{ReplicaName, ResourceId, RevisionKey, RevisionName};

    use super::*;

    #[test]
    fn a_wake_is_counted_by_phase() {
        let metrics = Metrics::new();
        let app = ResourceId::resource("s", "g", "Microsoft.App/containerApps", "web").unwrap();
        metrics.wake(&WakeRecord {
            revision: RevisionKey { app, name: RevisionName::new("web--1").unwrap() },
            replica: ReplicaName::new("web--1-a").unwrap(),
            from_slot: true,
            thawed_us: None,
            accepted_at: jiff::Timestamp::UNIX_EPOCH,
            planned_us: Some(90),
            network_us: None,
            root_us: None,
            started_us: Some(170),
            listening_us: Some(2_000),
            ready_us: Some(2_600),
            first_byte_us: Some(3_700),
        });
        let text = metrics.text();
        assert!(text.contains("cove_wakes_total{from_slot=\"true\"} 1"), "{text}");
        assert!(text.contains("cove_wake_phase_seconds_bucket{le=\"0.005\",phase=\"first_byte\"} 1"), "{text}");
        assert!(!text.contains("network"), "{text}");
    }
}
