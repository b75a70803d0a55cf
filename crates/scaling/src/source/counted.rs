//! Scalers that read one number: a row of this table each.
//!
//! **Invariant:** the value is the number as read, and it is active when it exceeds the activation.

use super::params::Params;
use super::{Metric, Unreadable};

/// One row: which keys hold target and activation, and the target's default (`None` = required).
struct Row {
    scaler: &'static str,
    target: &'static str,
    target_default: Option<f64>,
    activation: &'static str,
    activation_default: f64,
}

const fn row(scaler: &'static str, target: &'static str, default: Option<f64>, activation: &'static str) -> Row {
    Row { scaler, target, target_default: default, activation, activation_default: 0.0 }
}

const TABLE: &[Row] = &[
    row("activemq", "targetQueueSize", Some(10.0), "activationTargetQueueSize"),
    row("arangodb", "queryValue", None, "activationQueryValue"),
    Row { activation_default: 10.0, ..row("artemis-queue", "queueLength", Some(10.0), "activationQueueLength") },
    row("azure-blob", "blobCount", Some(5.0), "activationBlobCount"),
    row("azure-log-analytics", "threshold", None, "activationThreshold"),
    row("beanstalkd", "value", None, "activationValue"),
    row("clickhouse", "targetQueryValue", None, "activationTargetQueryValue"),
    row("couchdb", "queryValue", None, "activationQueryValue"),
    row("elasticsearch", "targetValue", None, "activationTargetValue"),
    row("etcd", "value", None, "activationValue"),
    row("graphite", "threshold", Some(100.0), "activationThreshold"),
    row("influxdb", "thresholdValue", None, "activationThresholdValue"),
    row("loki", "threshold", None, "activationThreshold"),
    row("mysql", "queryValue", None, "activationQueryValue"),
    row("nats-jetstream", "lagThreshold", Some(10.0), "activationLagThreshold"),
    row("opensearch", "targetValue", None, "activationTargetValue"),
    row("postgresql", "targetQueryValue", None, "activationTargetQueryValue"),
    row("pulsar", "msgBacklogThreshold", Some(10.0), "activationMsgBacklogThreshold"),
    row("redis", "listLength", Some(5.0), "activationListLength"),
    row("redis-cluster", "listLength", Some(5.0), "activationListLength"),
    row("redis-sentinel", "listLength", Some(5.0), "activationListLength"),
    row("solr", "targetQueryValue", None, "activationTargetQueryValue"),
];

/// Metadata of a rule whose source gives one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counted {
    /// Per replica.
    pub target: f64,
    /// The number must exceed this; default 0, of `artemis-queue` 10.
    pub activation: f64,
}

impl Counted {
    /// `None` when the table has no such scaler.
    pub(super) fn parse(scaler: &str, params: &mut Params<'_>) -> Option<Self> {
        let row = TABLE.iter().find(|row| row.scaler == scaler)?;
        Some(Self {
            target: params.target(row.target, row.target_default),
            activation: params.number(row.activation, Some(row.activation_default), f64::MIN),
        })
    }

    /// The number itself; what is no number fails.
    pub fn measure(&self, number: f64) -> Result<Metric, Unreadable> {
        if number.is_nan() {
            return Err(Unreadable::new("the source gave something that is no number"));
        }
        Ok(Metric { value: number, active: number > self.activation })
    }
}

/// The number in an answer's text: an etcd value, the first column of the first row of a query.
pub fn number_of(text: &str) -> Result<f64, Unreadable> {
    text.trim().parse().map_err(|_| Unreadable::new(format!("`{}` is no number", short(text))))
}

/// Ready jobs of a beanstalkd tube, and the delayed ones where the rule asks for them.
pub fn tube_jobs(ready: u64, delayed: u64, include_delayed: bool) -> f64 {
    super::float(if include_delayed { ready.saturating_add(delayed) } else { ready })
}

/// Messages of a JetStream consumer that nobody has acknowledged.
pub fn jetstream_lag(pending: u64, ack_pending: u64) -> f64 {
    super::float(pending.saturating_add(ack_pending))
}

/// The start of a text that is shown to people.
pub(super) fn short(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
