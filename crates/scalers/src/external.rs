//! `external` and `external-push`: a user's own scaler, asked over gRPC with KEDA's protocol.
//!
//! One reading is `IsActive` and, for each metric of `GetMetricSpec`, its `GetMetrics`. Replicas follow the metric that
//! wants the most of them, so the reading is the largest value per target, and the rule's target is 1. The specification is
//! asked for at every reading: a target that the server changes counts from the next poll, which is what
//! `StreamMetricSpec` is for in KEDA.
//!
//! **Invariant:** one connection per address and TLS settings; the streams of `external-push` share it.
//! **Invariant:** the stream's task ends with its source.

mod grpc;
mod messages;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cove_scaling::milli;
use cove_scaling::source::{Answer, Metric};
use futures_util::future::try_join_all;
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::keys;
use crate::net;
use crate::pool::Pool;
use crate::source::{Context, HostResolver, OpenError, ReadError, ReadFuture, Source, Trigger};
use crate::tls::{Roots, TlsOptions, Trust};
use grpc::{CallError, Channel};
use messages::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
};

/// Metrics that one scaler may have.
const METRICS_MAX: usize = 32;
/// Port of an address without one.
const DEFAULT_PORT: u16 = 443;
/// A server that keeps saying that it is active is believed this often.
const PUSH_STEP: Duration = Duration::from_secs(1);
/// First wait before a broken stream is opened again.
const RETRY_FIRST: Duration = Duration::from_secs(2);
/// Longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A stream that cannot be opened in this time has failed.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// Authentication parameters: for the connection, not for the server to read.
const CREDENTIALS: [&str; 3] = ["caCert", "tlsClientCert", "tlsClientKey"];

/// Connections of all external scalers.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    pool: Pool<Place, Channel>,
    roots: Roots,
}

impl Channels {
    pub(crate) fn new(roots: Roots) -> Self {
        Self { roots, ..Self::default() }
    }
}

/// Where an address leads for the rule's environment: two environments never share a connection by chance.
type Place = (Arc<Address>, Option<IpAddr>);

/// What makes two rules share a connection.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Address {
    host: String,
    port: u16,
    tls: Option<TlsOptions>,
}

/// One rule's scaler.
pub(crate) struct External {
    link: Link,
    push: Option<Push>,
}

/// How the server is asked.
#[derive(Clone)]
struct Link {
    address: Arc<Address>,
    tls: Option<Arc<ClientConfig>>,
    hosts: HostResolver,
    channels: Arc<Channels>,
    of: Arc<ScaledObjectRef>,
}

/// The stream of `external-push`.
struct Push {
    pushes: watch::Sender<u64>,
    /// Begun when somebody first wants to know.
    task: Mutex<Option<AbortHandle>>,
}

/// Opens a rule of `external`, or of `external-push`.
///
/// # Errors
/// An address that is missing or no `host:port`, TLS texts that are no PEM.
pub(crate) fn open(trigger: &Trigger, context: &Context, channels: &Arc<Channels>) -> Result<External, OpenError> {
    let address = trigger.get("scalerAddress").ok_or_else(|| OpenError::metadata("scalerAddress is missing"))?;
    let bare = address.strip_prefix("dns:///").unwrap_or(address);
    let (host, port) = net::host_and_port(bare, DEFAULT_PORT).ok_or_else(|| {
        OpenError::metadata(format!("scalerAddress is `{address}`; expected host:port, without a scheme"))
    })?;
    let [ca, cert, key] = CREDENTIALS.map(|name| trigger.get(name).map(str::to_owned));
    let is_tls = keys::flag(trigger, "enableTLS", false)? || ca.is_some() || cert.is_some() || key.is_some();
    let trust = if keys::flag(trigger, "unsafeSsl", false)? { Trust::Nothing } else { Trust::Full };
    let options = is_tls.then_some(TlsOptions { trust, ca, cert, key, key_password: None });
    let tls = options.as_ref().map(|options| client(options, &channels.roots)).transpose()?;
    let link = Link {
        address: Arc::new(Address { host, port, tls: options }),
        tls,
        hosts: Arc::clone(&context.hosts),
        channels: Arc::clone(channels),
        of: Arc::new(ScaledObjectRef {
            name: trigger.name.clone(),
            namespace: trigger.namespace.clone(),
            scaler_metadata: trigger.metadata.clone(),
        }),
    };
    let push = Push { pushes: watch::Sender::new(0), task: Mutex::new(None) };
    Ok(External { link, push: (trigger.scaler == "external-push").then_some(push) })
}

/// TLS as gRPC wants it.
fn client(options: &TlsOptions, roots: &Roots) -> Result<Arc<ClientConfig>, OpenError> {
    let config = options.client_config(roots);
    let mut config = config.map_err(|error| {
        OpenError::metadata(format!("caCert, tlsClientCert and tlsClientKey (ca, cert and key): {error}"))
    })?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

impl std::fmt::Debug for External {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = &self.link.address;
        f.debug_struct("External").field("host", &address.host).field("port", &address.port).finish_non_exhaustive()
    }
}

impl Source for External {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(self.link.read())
    }

    fn pushes(&self) -> Option<watch::Receiver<u64>> {
        let push = self.push.as_ref()?;
        let mut task = push.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.is_none() {
            *task = Some(tokio::spawn(listen(self.link.clone(), push.pushes.clone())).abort_handle());
        }
        Some(push.pushes.subscribe())
    }
}

impl Drop for Push {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

impl Link {
    fn place(&self) -> Place {
        (Arc::clone(&self.address), (self.hosts)(&self.address.host))
    }

    /// A connection that the server has not closed.
    async fn channel(&self, place: &Place) -> Result<Channel, ReadError> {
        let Address { host, port, .. } = &*self.address;
        let connect = || Channel::connect(&self.hosts, host, *port, self.tls.as_ref());
        let channel = self.channels.pool.get(place, connect).await?;
        if channel.is_usable() {
            return Ok(channel);
        }
        self.channels.pool.forget(place).await;
        self.channels.pool.get(place, connect).await
    }

    async fn read(&self) -> Result<Answer, ReadError> {
        let place = self.place();
        let channel = self.channel(&place).await?;
        let mut unanswered = Unanswered { channel: &channel, is_done: false };
        let asked = self.ask(&channel).await;
        unanswered.is_done = true;
        match asked {
            Ok(metric) => Ok(Answer::External(metric)),
            Err(error) => {
                if let CallError::Broken(_) = &error {
                    self.channels.pool.forget(&place).await;
                }
                Err(ReadError::new(format!("{}:{}: {error}", self.address.host, self.address.port)))
            }
        }
    }

    async fn ask(&self, channel: &Channel) -> Result<Metric, CallError> {
        let (specs, activity) = tokio::try_join!(
            channel.call::<GetMetricSpecResponse>("GetMetricSpec", &*self.of),
            channel.call::<IsActiveResponse>("IsActive", &*self.of),
        )?;
        let specs = specs.metric_specs;
        if specs.is_empty() || specs.len() > METRICS_MAX {
            let text = format!("GetMetricSpec gives {} metrics; expected 1 to {METRICS_MAX}", specs.len());
            return Err(CallError::nonsense(text));
        }
        let asked = specs.iter().map(|spec| async {
            let of = Some(ScaledObjectRef::clone(&self.of));
            let question = GetMetricsRequest { scaled_object_ref: of, metric_name: spec.metric_name.clone() };
            let answer = channel.call::<GetMetricsResponse>("GetMetrics", &question).await?;
            per_target(spec, &answer.metric_values)
        });
        let largest = try_join_all(asked).await?.into_iter().fold(0.0, f64::max);
        Ok(Metric { value: largest, active: activity.result })
    }
}

/// A question that was given up leaves its connection in doubt: the next reading makes a new one.
struct Unanswered<'a> {
    channel: &'a Channel,
    is_done: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.channel.doubt();
        }
    }
}

/// The values of a metric, summed, per target; a thousandth too much rather than too little, so that no replica is lost
/// to rounding.
fn per_target(spec: &MetricSpec, values: &[MetricValue]) -> Result<f64, CallError> {
    let name = &spec.metric_name;
    let target = milli(number(spec.target_size, spec.target_size_float));
    if target == 0 {
        let text = format!("GetMetricSpec gives no target for `{name}`; expected a number above zero");
        return Err(CallError::nonsense(text));
    }
    if values.is_empty() {
        return Err(CallError::nonsense(format!("GetMetrics gives no value of `{name}`")));
    }
    let one = |value: &MetricValue| u128::from(milli(number(value.metric_value, value.metric_value_float)));
    let total: u128 = values.iter().map(one).sum();
    let ratio = (total * 1000).div_ceil(u128::from(target));
    Ok(thousandths(ratio))
}

#[expect(clippy::cast_precision_loss, reason = "a ratio of more than 2^53 needs no exact unit")]
fn thousandths(count: u128) -> f64 {
    count as f64 / 1000.0
}

/// The number with a fraction wins when it is above zero, as in KEDA.
#[expect(clippy::cast_precision_loss, reason = "a count beyond 2^53 needs no exact unit")]
fn number(whole: i64, fraction: f64) -> f64 {
    if fraction > 0.0 { fraction } else { whole as f64 }
}

/// Follows `StreamIsActive` for as long as the source lives.
async fn listen(link: Link, pushes: watch::Sender<u64>) {
    let mut wait = RETRY_FIRST;
    loop {
        let mut heard = false;
        let ended = follow(&link, &pushes, &mut heard).await;
        if let Err(error) = &ended {
            tracing::debug!(host = %link.address.host, %error, "a stream of activity broke");
        }
        if heard || ended.is_ok() {
            wait = RETRY_FIRST;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// One stream, to its end.
async fn follow(link: &Link, pushes: &watch::Sender<u64>, heard: &mut bool) -> Result<(), ReadError> {
    let open = async {
        let channel = link.channel(&link.place()).await?;
        let answers = channel.stream::<IsActiveResponse>("StreamIsActive", &*link.of).await;
        answers.map_err(CallError::into_reason)
    };
    let opened = tokio::time::timeout(OPEN_MAX, open).await;
    let mut answers = opened.map_err(|_| ReadError::new("the server opens no stream"))??;
    let mut is_active = false;
    let mut next_push = Instant::now();
    loop {
        tokio::select! {
            answer = answers.next() => match answer.map_err(CallError::into_reason)? {
                Some(answer) => {
                    *heard = true;
                    is_active |= answer.result;
                }
                None => return Ok(()),
            },
            () = tokio::time::sleep_until(next_push), if is_active => {
                pushes.send_modify(|count| *count += 1);
                is_active = false;
                next_push = Instant::now() + PUSH_STEP;
            }
        }
    }
}

#[cfg(test)]
mod tests;
