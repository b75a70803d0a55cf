//! What a rule asks of its source, what a source gives, and which module opens which scaler.
//!
//! **Invariant:** [`Scalers::open`] does no IO: a rule on a dead host opens, and its reads fail.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use cove_base::Clock;
use cove_scaling::source::{Answer, MetadataError};
use tokio::sync::watch;

use crate::azure;
use crate::beanstalkd;
use crate::clock;
use crate::etcd;
use crate::eventhub;
use crate::external;
use crate::http::{self, Http};
use crate::kafka;
use crate::nats;
use crate::paced::Paced;
use crate::rabbitmq;
use crate::redis;
use crate::sql;
use crate::tls::Roots;

/// One rule, ready to be read.
#[derive(Clone, PartialEq, Eq)]
pub struct Trigger {
    /// KEDA's trigger type, such as `redis`.
    pub scaler: String,
    /// Metadata, `…FromEnv` keys under the name without that ending, and authentication parameters, which win.
    pub parameters: BTreeMap<String, String>,
    /// What a user's own scaler is told: the metadata, `…FromEnv` keys with the variable's value, nothing of authentication.
    pub metadata: BTreeMap<String, String>,
    /// Client id, resource id or `system` of the identity that reads, where the rule names one.
    pub identity: Option<String>,
    /// The resource group, for a user's own scaler (`ScaledObjectRef.namespace`).
    pub namespace: String,
    /// The revision or job, for a user's own scaler (`ScaledObjectRef.name`).
    pub name: String,
}

impl Trigger {
    /// The trimmed value of a parameter; `None` when it is missing or empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.parameters.get(key).map(|value| value.trim()).filter(|value| !value.is_empty())
    }
}

impl fmt::Debug for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets.
        f.debug_struct("Trigger")
            .field("scaler", &self.scaler)
            .field("parameters", &self.parameters.keys())
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A source did not answer, or its answer has no meaning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReadError(Arc<str>);

impl ReadError {
    /// Says what failed, for people; never with a credential in it.
    pub fn new(reason: impl Into<Arc<str>>) -> Self {
        Self(reason.into())
    }

    /// The reason.
    pub fn reason(&self) -> &Arc<str> {
        &self.0
    }
}

/// A rule cannot be read at all, whatever its source does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No module reads this scaler.
    #[error("scaler `{0}` is not built; the kinds that are: {list}", list = Scalers::KINDS.join(", "))]
    Unknown(String),
    /// Its metadata is wrong.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

impl OpenError {
    /// One thing that is wrong with the metadata.
    pub fn metadata(reason: impl Into<String>) -> Self {
        Self::Metadata(MetadataError { reasons: vec![reason.into()] })
    }
}

/// What [`Source::read`] gives.
pub type ReadFuture<'a> = Pin<Box<dyn Future<Output = Result<Answer, ReadError>> + Send + 'a>>;

/// The event source of one rule.
pub trait Source: fmt::Debug + Send + Sync {
    /// Asks the source once. Dropping the future gives up the question and leaves nothing behind.
    fn read(&self) -> ReadFuture<'_>;

    /// A counter that moves when the source says by itself that it became active or idle (`external-push`): the rule is
    /// then read at once.
    fn pushes(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

/// Where a host's name leads, as seen from inside the environment of the rule; `None` = ask the system.
pub type HostResolver = Arc<dyn Fn(&str) -> Option<IpAddr> + Send + Sync>;

/// What [`Tokens::token`] gives.
pub type TokenFuture<'a> = Pin<Box<dyn Future<Output = Result<String, ReadError>> + Send + 'a>>;

/// Bearer tokens of managed identities.
pub trait Tokens: Send + Sync {
    /// A token of `identity` for `audience`, such as `https://storage.azure.com/`.
    fn token<'a>(&'a self, identity: &'a str, audience: &'a str) -> TokenFuture<'a>;
}

/// What a source needs of its surroundings; cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// Short names and internal hosts of the rule's environment.
    pub hosts: HostResolver,
    /// Tokens of the app's identities; `None` = there are none, and a rule with an identity says so when it is read.
    pub tokens: Option<Arc<dyn Tokens>>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("tokens", &self.tokens.is_some()).finish_non_exhaustive()
    }
}

/// All scalers, with the connections that their sources share.
#[derive(Debug)]
pub struct Scalers {
    beanstalkd: Arc<beanstalkd::Servers>,
    clock: Clock,
    event_hubs: Arc<eventhub::Hubs>,
    externals: Arc<external::Channels>,
    http: Http,
    kafka: Arc<kafka::Brokers>,
    rabbitmq: Arc<rabbitmq::Brokers>,
    redis: Arc<redis::Servers>,
    sql: Arc<sql::Databases>,
}

impl Scalers {
    /// Trigger types that [`Scalers::open`] knows, sorted. `cpu` and `memory` are measured by the autoscaler itself.
    pub const KINDS: &[&str] = &[
        "activemq",
        "apache-kafka",
        "arangodb",
        "artemis-queue",
        "azure-blob",
        "azure-eventhub",
        "azure-log-analytics",
        "azure-pipelines",
        "azure-queue",
        "azure-servicebus",
        "beanstalkd",
        "clickhouse",
        "couchdb",
        "cron",
        "elasticsearch",
        "etcd",
        "external",
        "external-push",
        "github-runner",
        "graphite",
        "influxdb",
        "kafka",
        "loki",
        "metrics-api",
        "mysql",
        "nats-jetstream",
        "opensearch",
        "postgresql",
        "prometheus",
        "pulsar",
        "rabbitmq",
        "redis",
        "redis-cluster",
        "redis-cluster-streams",
        "redis-sentinel",
        "redis-sentinel-streams",
        "redis-streams",
        "solr",
    ];

    /// Without any connection yet.
    pub fn new(clock: Clock) -> Self {
        Self {
            beanstalkd: Arc::default(),
            clock,
            event_hubs: Arc::default(),
            externals: Arc::default(),
            http: Http::default(),
            kafka: Arc::default(),
            rabbitmq: Arc::default(),
            redis: Arc::default(),
            sql: Arc::default(),
        }
    }

    /// Trusts further certificates, beside the system's.
    #[must_use]
    pub fn with_roots(mut self, roots: Roots) -> Self {
        self.sql = Arc::new(sql::Databases::new(roots.clone()));
        self.externals = Arc::new(external::Channels::new(roots.clone()));
        self.event_hubs = Arc::new(eventhub::Hubs::new(roots.clone()));
        self.kafka = Arc::new(kafka::Brokers::new(roots.clone()));
        self.rabbitmq = Arc::new(rabbitmq::Brokers::new(roots.clone()));
        self.redis = Arc::new(redis::Servers::new(roots.clone()));
        self.http = Http::new(roots);
        self
    }

    /// The source of a rule.
    ///
    /// # Errors
    /// A scaler that is not built, or metadata that it cannot use.
    pub fn open(&self, trigger: &Trigger, context: &Context) -> Result<Arc<dyn Source>, OpenError> {
        let source = self.source_of(trigger, context)?;
        if self.clock.is_virtual() { Ok(Arc::new(Paced::new(source, self.clock.clone()))) } else { Ok(source) }
    }

    fn source_of(&self, trigger: &Trigger, context: &Context) -> Result<Arc<dyn Source>, OpenError> {
        match trigger.scaler.as_str() {
            "azure-eventhub" => Ok(Arc::new(eventhub::open(&self.event_hubs, &self.http, trigger, context)?)),
            "cron" => Ok(Arc::new(clock::open(trigger, &self.clock)?)),
            "external" | "external-push" => Ok(Arc::new(external::open(trigger, context, &self.externals)?)),
            "beanstalkd" => Ok(Arc::new(beanstalkd::open(&self.beanstalkd, trigger, context)?)),
            "etcd" => Ok(Arc::new(etcd::open(&self.http, trigger, context)?)),
            "nats-jetstream" => Ok(Arc::new(nats::open(&self.http, trigger, context)?)),
            "mysql" | "postgresql" => sql::open(&self.sql, trigger, context),
            "apache-kafka" | "kafka" => Ok(Arc::new(kafka::open(&self.kafka, trigger, context)?)),
            "rabbitmq" => Ok(Arc::new(rabbitmq::open(&self.rabbitmq, &self.http, trigger, context)?)),
            "redis"
            | "redis-cluster"
            | "redis-cluster-streams"
            | "redis-sentinel"
            | "redis-sentinel-streams"
            | "redis-streams" => Ok(Arc::new(redis::open(&self.redis, trigger, context)?)),
            other => azure::open(&self.http, trigger, context)
                .or_else(|| http::open(&self.http, trigger, context))
                .unwrap_or_else(|| Err(OpenError::Unknown(other.to_owned()))),
        }
    }
}
