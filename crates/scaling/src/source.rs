//! Event scalers: what a rule's metadata means, and what a source's answer comes to.
//!
//! [`Scaler::parse`] reads the metadata once; at each poll the answer of the source becomes a [`Metric`] by
//! [`Scaler::measure`]. Fetching the answer is the `autoscaler` crate's work. The rules follow KEDA's scalers.
//!
//! **Invariant:** total and pure: the same metadata and answer give the same metric, and no answer makes it panic.

mod azure;
mod counted;
mod cron;
mod document;
mod kafka;
mod params;
mod prometheus;
mod rabbitmq;
mod runners;
mod streams;

pub use azure::{EventHub, EventHubPartition, Operation, PEEK_MAX, ServiceBus, StorageQueue, StorageQueueAnswer};
pub use counted::{Counted, jetstream_lag, number_of, tube_jobs};
pub use cron::{Cron, is_inside};
pub use document::{Document, DocumentFormat, MetricsApi, number_at, quantity, xml_tree};
pub use kafka::{Kafka, KafkaPartition, OffsetReset};
pub use params::MetadataError;
pub use prometheus::Prometheus;
pub use rabbitmq::{RabbitMode, RabbitMq, RabbitQueue};
pub use runners::{AzurePipelines, DemandMatch, GithubJob, GithubRunner, PipelineJob};
pub use streams::{RedisStream, StreamAnswer, StreamGroup, StreamMode};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::number::milli;
use crate::reading::Reading;
use params::Params;

/// What a source's answer comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// The value, compared with the target per replica.
    pub value: f64,
    /// Whether it keeps the revision active.
    pub active: bool,
}

impl Metric {
    fn whole(value: u64, active: bool) -> Self {
        Self { value: float(value), active }
    }
}

impl From<Metric> for Reading {
    fn from(metric: Metric) -> Self {
        Self::Value { milli: milli(metric.value), active: metric.active }
    }
}

/// An answer that gives no metric; the reading fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

impl Unreadable {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// A count as a number; exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "counts beyond 2^53 need no exact unit")]
fn float(count: u64) -> f64 {
    count as f64
}

/// One rule's metadata, read.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaler {
    /// One number: redis lists, SQL queries, etcd, beanstalkd, blobs, JetStream.
    Counted(Counted),
    /// `kafka`, `apache-kafka`.
    Kafka(Kafka),
    /// `rabbitmq`.
    RabbitMq(RabbitMq),
    /// `redis-streams` in its three forms.
    RedisStream(RedisStream),
    /// `prometheus`.
    Prometheus(Prometheus),
    /// `metrics-api`.
    MetricsApi(MetricsApi),
    /// `azure-servicebus`.
    ServiceBus(ServiceBus),
    /// `azure-queue`.
    StorageQueue(StorageQueue),
    /// `azure-eventhub`.
    EventHub(EventHub),
    /// `github-runner`.
    GithubRunner(GithubRunner),
    /// `azure-pipelines`.
    AzurePipelines(AzurePipelines),
    /// `cron`.
    Cron(Cron),
    /// `external`, `external-push`: the user's server gives value, target and activity.
    External,
}

/// What a source said at one poll.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// A number, see [`number_of`], [`tube_jobs`], [`jetstream_lag`].
    Number(f64),
    /// Partitions of a consumer group.
    Kafka(Vec<KafkaPartition>),
    /// Queues that match.
    RabbitMq(Vec<RabbitQueue>),
    /// A stream and its group.
    RedisStream(StreamAnswer),
    /// One value per series.
    Prometheus(Vec<Option<f64>>),
    /// A document.
    Document(Document),
    /// Active messages per entity.
    ServiceBus(Vec<u64>),
    /// A queue's length and peek.
    StorageQueue(StorageQueueAnswer),
    /// Partitions and checkpoints.
    EventHub(Vec<EventHubPartition>),
    /// Jobs of workflow runs.
    GithubJobs(Vec<GithubJob>),
    /// Job requests of a pool.
    PipelineJobs(Vec<PipelineJob>),
    /// The instant and the zone of the calendar.
    Clock(Timestamp, TimeZone),
    /// `GetMetrics` and `IsActive` of a user's server.
    External(Metric),
}

impl Scaler {
    /// Reads the metadata of a custom rule; `lookup` gives a key's value. `Ok(None)` when this crate has no such scaler.
    pub fn parse(scaler: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, MetadataError> {
        let mut params = Params::new(lookup);
        let read = match scaler {
            "kafka" | "apache-kafka" => Self::Kafka(Kafka::parse(&mut params)),
            "rabbitmq" => Self::RabbitMq(RabbitMq::parse(&mut params)),
            "redis-streams" | "redis-cluster-streams" | "redis-sentinel-streams" => {
                Self::RedisStream(RedisStream::parse(&mut params))
            }
            "prometheus" => Self::Prometheus(Prometheus::parse(&mut params)),
            "metrics-api" => Self::MetricsApi(MetricsApi::parse(&mut params)),
            "azure-servicebus" => Self::ServiceBus(ServiceBus::parse(&mut params)),
            "azure-queue" => Self::StorageQueue(StorageQueue::parse(&mut params)),
            "azure-eventhub" => Self::EventHub(EventHub::parse(&mut params)),
            "github-runner" => Self::GithubRunner(GithubRunner::parse(&mut params)),
            "azure-pipelines" => Self::AzurePipelines(AzurePipelines::parse(&mut params)),
            "cron" => Self::Cron(Cron::parse(&mut params)),
            "external" | "external-push" => Self::External,
            other => match Counted::parse(other, &mut params) {
                Some(counted) => Self::Counted(counted),
                None => return Ok(None),
            },
        };
        params.finish(Some(read))
    }

    /// The value per replica; `None` where the source gives it (external).
    #[expect(clippy::cast_precision_loss, reason = "a target is a count of messages")]
    pub fn target(&self) -> Option<f64> {
        Some(match self {
            Self::Counted(scaler) => scaler.target,
            Self::Kafka(scaler) => scaler.lag_threshold as f64,
            Self::RabbitMq(scaler) => scaler.value,
            Self::RedisStream(scaler) => scaler.target,
            Self::Prometheus(scaler) => scaler.threshold,
            Self::MetricsApi(scaler) => scaler.target,
            Self::ServiceBus(scaler) => scaler.message_count,
            Self::StorageQueue(scaler) => scaler.queue_length,
            Self::EventHub(scaler) => scaler.threshold as f64,
            Self::GithubRunner(scaler) => scaler.target,
            Self::AzurePipelines(scaler) => scaler.target,
            Self::Cron(_) => 1.0,
            Self::External => return None,
        })
    }

    /// What the answer comes to; an answer of another source's kind is an error.
    pub fn measure(&self, answer: &Answer) -> Result<Metric, Unreadable> {
        match (self, answer) {
            (Self::Counted(scaler), Answer::Number(number)) => scaler.measure(*number),
            (Self::Kafka(scaler), Answer::Kafka(partitions)) => scaler.measure(partitions),
            (Self::RabbitMq(scaler), Answer::RabbitMq(queues)) => scaler.measure(queues),
            (Self::RedisStream(scaler), Answer::RedisStream(stream)) => scaler.measure(*stream),
            (Self::Prometheus(scaler), Answer::Prometheus(series)) => scaler.measure(series),
            (Self::MetricsApi(scaler), Answer::Document(document)) => scaler.measure(document),
            (Self::ServiceBus(scaler), Answer::ServiceBus(counts)) => scaler.measure(counts),
            (Self::StorageQueue(scaler), Answer::StorageQueue(queue)) => scaler.measure(*queue),
            (Self::EventHub(scaler), Answer::EventHub(partitions)) => scaler.measure(partitions),
            (Self::GithubRunner(scaler), Answer::GithubJobs(jobs)) => scaler.measure(jobs),
            (Self::AzurePipelines(scaler), Answer::PipelineJobs(jobs)) => scaler.measure(jobs),
            (Self::Cron(scaler), Answer::Clock(now, zone)) => scaler.measure(*now, zone),
            (Self::External, Answer::External(metric)) => Ok(*metric),
            _ => Err(Unreadable::new("the answer is not of this scaler's source")),
        }
    }

    /// The reading of one poll, failed where the answer is unreadable.
    pub fn reading(&self, answer: &Answer) -> Reading {
        self.measure(answer).map_or_else(|unreadable| Reading::error(unreadable.to_string()), Reading::from)
    }
}

#[cfg(test)]
mod tests;
