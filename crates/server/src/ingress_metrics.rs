//! Metrics of the ingress, read from it at each scrape, and the same numbers as JSON for `cove ingress stats`.
//!
//! | metric | labels | what |
//! |---|---|---|
//! | `cove_ingress_requests_total` | `app`, `resource_group`, `revision`, `status_class` | answers |
//! | `cove_ingress_request_duration_seconds` | `app`, `resource_group`, `revision` | from a request's head to its answer's end; upgraded connections are left out |
//! | `cove_ingress_open_requests`, `cove_ingress_held_requests` | the same | now |
//! | `cove_ingress_cut_total` | the same and `by` | answers that the client or the app did not let end |
//! | `cove_ingress_received_bytes_total`, `cove_ingress_sent_bytes_total` | the same | bytes of bodies |
//! | `cove_ingress_reasons_total` | `reason` | answers of Cove itself |
//! | `cove_ingress_access_rows_left_out_total` | | requests without a row in the access log |
//!
//! **Invariant:** a revision has series only once a request ended for it, and only until its gate is forgotten with it; of more
//! than [`REVISIONS_MAX`] the quietest are added up under empty names.

use std::fmt;

use cove_ingress::IngressHandle;
use cove_model::{ResourceId, RevisionKey};
use cove_traffic::{DURATION_EDGES_US, RevisionTraffic};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};
use serde_json::{Value, json};

use crate::resilience_metrics;

/// Revisions with series of their own.
const REVISIONS_MAX: usize = 2000;
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// One number of a revision.
type Read = fn(&RevisionTraffic) -> u64;

/// What a scrape asks.
pub(crate) struct IngressMetrics(pub(crate) IngressHandle);

impl fmt::Debug for IngressMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IngressMetrics").finish_non_exhaustive()
    }
}

impl Collector for IngressMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        encode(encoder, &named(self.0.traffic()), &self.0.reasons(), self.0.access_log_left_out())
    }
}

/// A revision's numbers under the names of their labels; names are empty for all that have no series of their own.
#[derive(Debug, Default)]
struct Named {
    app: String,
    group: String,
    revision: String,
    traffic: RevisionTraffic,
}

fn named(mut all: Vec<(RevisionKey, RevisionTraffic)>) -> Vec<Named> {
    let total = |traffic: &RevisionTraffic| traffic.answers.iter().sum::<u64>();
    if all.len() > REVISIONS_MAX {
        all.sort_by_key(|(_, traffic)| std::cmp::Reverse(total(traffic)));
    }
    let rest = all.split_off(all.len().min(REVISIONS_MAX));
    let mut named: Vec<Named> = all
        .into_iter()
        .map(|(key, traffic)| Named {
            app: key.app.name().to_owned(),
            group: key.app.group_name().to_owned(),
            revision: key.name.to_string(),
            traffic,
        })
        .collect();
    named.sort_by(|a, b| (&a.group, &a.app, &a.revision).cmp(&(&b.group, &b.app, &b.revision)));
    if !rest.is_empty() {
        let traffic = rest.into_iter().fold(RevisionTraffic::default(), |sum, (_, traffic)| added(sum, &traffic));
        named.push(Named { traffic, ..Named::default() });
    }
    named
}

fn added(mut sum: RevisionTraffic, more: &RevisionTraffic) -> RevisionTraffic {
    sum.answers.iter_mut().zip(more.answers).for_each(|(sum, more)| *sum += more);
    sum.durations.iter_mut().zip(more.durations).for_each(|(sum, more)| *sum += more);
    sum.duration_us_total += more.duration_us_total;
    sum.client_left += more.client_left;
    sum.app_cut += more.app_cut;
    sum.received_bytes += more.received_bytes;
    sum.sent_bytes += more.sent_bytes;
    sum.open += more.open;
    sum.held += more.held;
    sum
}

fn encode(
    mut encoder: DescriptorEncoder<'_>,
    all: &[Named],
    reasons: &[(String, u64)],
    left_out: u64,
) -> Result<(), fmt::Error> {
    counters(&mut encoder, all)?;
    durations(&mut encoder, all)?;
    gauge(&mut encoder, "ingress_open_requests", "Requests that are open now", all, |traffic| traffic.open)?;
    gauge(&mut encoder, "ingress_held_requests", "Requests that wait for a replica now", all, |traffic| traffic.held)?;
    let mut metric =
        encoder.encode_descriptor("ingress_reasons", "Answers of Cove itself, by reason", None, MetricType::Counter)?;
    for (reason, count) in reasons {
        let labels = [("reason", reason.as_str())];
        metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
    }
    encoder
        .encode_descriptor(
            "ingress_access_rows_left_out",
            "Requests without a row in the access log because there were too many",
            None,
            MetricType::Counter,
        )?
        .encode_counter::<NoLabelSet, _, u64>(&left_out, None)
}

fn labels(named: &Named) -> [(&'static str, &str); 3] {
    [("app", &named.app), ("resource_group", &named.group), ("revision", &named.revision)]
}

/// One label more.
fn and<'a>(
    [app, group, revision]: [(&'static str, &'a str); 3],
    more: (&'static str, &'a str),
) -> [(&'static str, &'a str); 4] {
    [app, group, revision, more]
}

fn counters(encoder: &mut DescriptorEncoder<'_>, all: &[Named]) -> Result<(), fmt::Error> {
    let mut metric =
        encoder.encode_descriptor("ingress_requests", "Answers by class of status", None, MetricType::Counter)?;
    for one in all {
        for (class, count) in CLASSES.iter().zip(&one.traffic.answers).filter(|(_, count)| **count > 0) {
            let labels = and(labels(one), ("status_class", class));
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
        }
    }
    let help = "Answers that the client left or the app broke off before their end";
    let mut metric = encoder.encode_descriptor("ingress_cut", help, None, MetricType::Counter)?;
    for one in all {
        for (by, count) in [("client", one.traffic.client_left), ("app", one.traffic.app_cut)] {
            let labels = and(labels(one), ("by", by));
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
    }
    let bytes: [(&str, &str, Read); 2] = [
        ("ingress_received_bytes", "Bytes of requests' bodies", |traffic| traffic.received_bytes),
        ("ingress_sent_bytes", "Bytes of answers' bodies", |traffic| traffic.sent_bytes),
    ];
    for (name, help, read) in bytes {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for one in all {
            metric.encode_family(&labels(one))?.encode_counter::<NoLabelSet, _, u64>(&read(&one.traffic), None)?;
        }
    }
    Ok(())
}

fn durations(encoder: &mut DescriptorEncoder<'_>, all: &[Named]) -> Result<(), fmt::Error> {
    let help = "From a request's head to the end of its answer";
    let mut metric =
        encoder.encode_descriptor("ingress_request_duration_seconds", help, None, MetricType::Histogram)?;
    for one in all {
        let edges = DURATION_EDGES_US.iter().map(|edge| seconds(*edge)).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = edges.zip(one.traffic.durations).collect();
        let count = one.traffic.durations.iter().sum();
        let sum = seconds(one.traffic.duration_us_total);
        metric.encode_family(&labels(one))?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    Ok(())
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: &[Named],
    read: Read,
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for one in all {
        metric.encode_family(&labels(one))?.encode_gauge(&read(&one.traffic))?;
    }
    Ok(())
}

fn seconds(us: u64) -> f64 {
    std::time::Duration::from_micros(us).as_secs_f64()
}

/// The numbers of one app's revisions, or of all, as JSON.
pub(crate) fn stats(ingress: &IngressHandle, app: Option<&ResourceId>) -> Value {
    let mut all = ingress.traffic();
    all.retain(|(key, _)| app.is_none_or(|app| key.app == *app));
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    let with_resiliency = |(key, traffic): &(RevisionKey, RevisionTraffic)| {
        let mut stats = stats_of(key, traffic);
        if let Some(counts) = resilience_metrics::stats(ingress.resilience(key)) {
            stats["resiliency"] = counts;
        }
        stats
    };
    let value: Vec<Value> = all.iter().map(with_resiliency).collect();
    let reasons: Vec<Value> =
        ingress.reasons().into_iter().map(|(reason, count)| json!({"reason": reason, "count": count})).collect();
    json!({"value": value, "reasons": reasons, "accessRowsLeftOut": ingress.access_log_left_out()})
}

fn stats_of(key: &RevisionKey, traffic: &RevisionTraffic) -> Value {
    let answers: serde_json::Map<String, Value> =
        CLASSES.iter().zip(traffic.answers).map(|(class, count)| ((*class).to_owned(), count.into())).collect();
    let timed: u64 = traffic.durations.iter().sum();
    json!({
        "app": key.app.as_str(),
        "revision": key.name.as_str(),
        "requests": traffic.answers.iter().sum::<u64>(),
        "answers": answers,
        "open": traffic.open,
        "held": traffic.held,
        "clientLeft": traffic.client_left,
        "appCut": traffic.app_cut,
        "receivedBytes": traffic.received_bytes,
        "sentBytes": traffic.sent_bytes,
        "meanUs": traffic.duration_us_total.checked_div(timed),
        "recent": traffic.recent,
    })
}

#[cfg(test)]
mod tests {
    use cove_model::RevisionName;
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;

    #[derive(Debug)]
    struct Fixed(Vec<Named>);

    impl Collector for Fixed {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
            encode(encoder, &self.0, &[("unknown-host".to_owned(), 4)], 5)
        }
    }

    fn key(number: usize) -> RevisionKey {
        let app = ResourceId::resource("s", "rg", "Microsoft.App/containerApps", &format!("app{number}")).unwrap();
        RevisionKey { app, name: RevisionName::of(&format!("app{number}"), "v1").unwrap() }
    }

    fn traffic(requests: u64) -> RevisionTraffic {
        let mut durations = [0; DURATION_EDGES_US.len() + 1];
        durations[1] = requests;
        RevisionTraffic {
            answers: [0, requests, 0, 0, 0],
            durations,
            duration_us_total: requests * 2_000,
            client_left: 1,
            open: 2,
            ..RevisionTraffic::default()
        }
    }

    #[test]
    fn a_scrape_has_a_series_per_revision() {
        let mut registry = Registry::with_prefix("cove");
        registry.register_collector(Box::new(Fixed(named(vec![(key(1), traffic(3))]))));
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"cove_ingress_requests_total{app="app1",resource_group="rg",revision="app1--v1",status_class="2xx"} 3"#,
            r#"cove_ingress_request_duration_seconds_count{app="app1",resource_group="rg",revision="app1--v1"} 3"#,
            r#"cove_ingress_request_duration_seconds_sum{app="app1",resource_group="rg",revision="app1--v1"} 0.006"#,
            r#"cove_ingress_request_duration_seconds_bucket{le="0.001",app="app1",resource_group="rg",revision="app1--v1"} 0"#,
            r#"cove_ingress_request_duration_seconds_bucket{le="0.0025",app="app1",resource_group="rg",revision="app1--v1"} 3"#,
            r#"cove_ingress_open_requests{app="app1",resource_group="rg",revision="app1--v1"} 2"#,
            r#"cove_ingress_cut_total{app="app1",resource_group="rg",revision="app1--v1",by="client"} 1"#,
            r#"cove_ingress_reasons_total{reason="unknown-host"} 4"#,
            "cove_ingress_access_rows_left_out_total 5",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
    }

    #[test]
    fn thousands_of_revisions_are_added_up() {
        let all: Vec<_> = (0..REVISIONS_MAX + 10).map(|number| (key(number), traffic(number as u64))).collect();
        let named = named(all);
        assert_eq!(named.len(), REVISIONS_MAX + 1);
        let rest = &named[REVISIONS_MAX];
        assert_eq!((rest.app.as_str(), rest.traffic.answers[1], rest.traffic.open), ("", 45, 20));
    }
}
