//! What resiliency policies did, as metrics and as JSON for `cove ingress stats`.
//!
//! | metric | labels | what |
//! |---|---|---|
//! | `cove_ingress_resiliency_total` | `app`, `resource_group`, `revision`, `event` | `retry`, `retry_success`, `connect_timeout`, `request_timeout`, `ejection`, `ejection_aborted`, `pool_overflow` |
//! | `cove_ingress_ejected_replicas` | `app`, `resource_group`, `revision` | replicas that are left out now |
//!
//! **Invariant:** a revision has series only once its policy did something, and at most [`REVISIONS_MAX`] have.

use std::fmt;

use cove_ingress::{IngressHandle, ResilienceCounts};
use cove_model::RevisionKey;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};
use serde_json::{Value, json};

/// Revisions with series.
const REVISIONS_MAX: usize = 2000;

/// What a scrape asks.
pub(crate) struct ResilienceMetrics(pub(crate) IngressHandle);

impl fmt::Debug for ResilienceMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResilienceMetrics").finish_non_exhaustive()
    }
}

impl Collector for ResilienceMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        encode(encoder, &self.0.resilience_of_all())
    }
}

fn encode(mut encoder: DescriptorEncoder<'_>, all: &[(RevisionKey, ResilienceCounts)]) -> Result<(), fmt::Error> {
    let help = "What resiliency policies did";
    let mut metric = encoder.encode_descriptor("ingress_resiliency", help, None, MetricType::Counter)?;
    for (key, counts) in all.iter().take(REVISIONS_MAX) {
        for (event, count) in events(counts).into_iter().filter(|(_, count)| *count > 0) {
            let [app, group, revision] = labels(key);
            let labels = [app, group, revision, ("event", event)];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
    }
    let help = "Replicas that circuit breakers leave out now";
    let mut metric = encoder.encode_descriptor("ingress_ejected_replicas", help, None, MetricType::Gauge)?;
    for (key, counts) in all.iter().take(REVISIONS_MAX).filter(|(_, counts)| counts.ejections > 0) {
        metric.encode_family(&labels(key))?.encode_gauge(&counts.ejected)?;
    }
    Ok(())
}

fn labels(key: &RevisionKey) -> [(&'static str, &str); 3] {
    [("app", key.app.name()), ("resource_group", key.app.group_name()), ("revision", key.name.as_str())]
}

fn events(counts: &ResilienceCounts) -> [(&'static str, u64); 7] {
    [
        ("retry", counts.retries),
        ("retry_success", counts.retry_successes),
        ("connect_timeout", counts.connect_timeouts),
        ("request_timeout", counts.request_timeouts),
        ("ejection", counts.ejections),
        ("ejection_aborted", counts.ejections_aborted),
        ("pool_overflow", counts.pool_overflows),
    ]
}

/// The numbers of one revision; nothing when its policy did nothing.
pub(crate) fn stats(counts: ResilienceCounts) -> Option<Value> {
    (counts != ResilienceCounts::default()).then(|| {
        json!({
            "retries": counts.retries,
            "retrySuccesses": counts.retry_successes,
            "connectTimeouts": counts.connect_timeouts,
            "requestTimeouts": counts.request_timeouts,
            "ejections": counts.ejections,
            "ejectionsAborted": counts.ejections_aborted,
            "ejectedReplicas": counts.ejected,
            "poolOverflows": counts.pool_overflows,
        })
    })
}

#[cfg(test)]
mod tests {
    use cove_model::{ResourceId, RevisionName};
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;

    #[derive(Debug)]
    struct Fixed(Vec<(RevisionKey, ResilienceCounts)>);

    impl Collector for Fixed {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
            encode(encoder, &self.0)
        }
    }

    #[test]
    fn what_happened_is_told_and_nothing_else() {
        let app = ResourceId::resource("s", "g", "Microsoft.App/containerApps", "web").unwrap();
        let key = RevisionKey { app, name: RevisionName::of("web", "v1").unwrap() };
        let counts = ResilienceCounts { retries: 3, ejections: 2, ejected: 1, ..ResilienceCounts::default() };
        let mut registry = Registry::with_prefix("cove");
        registry.register_collector(Box::new(Fixed(vec![(key, counts)])));
        let mut told = String::new();
        text::encode(&mut told, &registry).unwrap();
        let of = r#"app="web",resource_group="g",revision="web--v1""#;
        let lines: Vec<&str> = told.lines().filter(|line| !line.starts_with('#')).collect();
        let expected = [
            format!("cove_ingress_resiliency_total{{{of},event=\"retry\"}} 3"),
            format!("cove_ingress_resiliency_total{{{of},event=\"ejection\"}} 2"),
            format!("cove_ingress_ejected_replicas{{{of}}} 1"),
        ];
        assert_eq!(lines, expected);
        assert_eq!(stats(ResilienceCounts::default()), None);
        assert_eq!(stats(counts).unwrap()["ejectedReplicas"], 1);
    }
}
