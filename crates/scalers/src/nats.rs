//! `nats-jetstream`: messages of a consumer that nobody has acknowledged, from the servers' monitoring endpoint `/jsz`.
//!
//! In a cluster only the consumer's leader knows the number. The endpoint that the rule names is asked first; when the
//! leader is another server, that one is looked for as KEDA does: under the addresses that the server tells its clients, or
//! as `LEADER.HOST`, and, since short names are hosts in an environment, as `LEADER` itself.
//!
//! **Invariant:** without the consumer the stream's last sequence is the lag, as in KEDA; without the stream the reading
//! fails.

#[cfg(test)]
mod tests;

use cove_scaling::source::{Answer, jetstream_lag};
use reqwest::Url;
use serde_json::Value;

use crate::http::{self, Call, Client, Http};
use crate::keys;
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};
use crate::tls::TlsOptions;

/// Servers of a cluster that are asked for the leader in one reading.
const SERVERS_MAX: usize = 9;

/// One rule's consumer.
#[derive(Debug)]
pub(crate) struct Consumer {
    client: Client,
    /// `http://host:port`, as the rule names it.
    endpoints: Vec<Url>,
    /// Name or id.
    account: String,
    stream: String,
    consumer: String,
}

/// What one server says.
enum Found {
    /// It leads the consumer, or is alone.
    Lag(f64),
    /// Another server leads it.
    Elsewhere(String),
    /// The stream is there and the consumer is not: its last sequence.
    NoConsumer(f64),
    /// There is no such stream.
    NoStream,
}

/// Reads where the consumer is.
///
/// # Errors
/// Metadata that cannot be used.
pub(crate) fn open(http: &Http, trigger: &Trigger, context: &Context) -> Result<Consumer, OpenError> {
    let scheme = if keys::flag(trigger, "useHttps", false)? { "https" } else { "http" };
    let names = keys::required(trigger, "natsServerMonitoringEndpoint")?;
    let endpoints: Result<Vec<_>, _> = keys::list(names)
        .into_iter()
        .map(|name| http::parse_address("natsServerMonitoringEndpoint", &format!("{scheme}://{name}")))
        .collect();
    let account = trigger.get("accountID").or_else(|| trigger.get("account"));
    Ok(Consumer {
        client: http.client(&TlsOptions::default(), context)?,
        endpoints: endpoints?,
        account: account.unwrap_or("$G").to_owned(),
        stream: keys::required(trigger, "stream")?.to_owned(),
        consumer: keys::required(trigger, "consumer")?.to_owned(),
    })
}

impl Consumer {
    async fn answer(&self) -> Result<Answer, ReadError> {
        let (mut without_consumer, mut failed, mut leader) = (None, None, None);
        for endpoint in &self.endpoints {
            match self.ask(endpoint).await {
                Ok(Found::Lag(lag)) => return Ok(Answer::Number(lag)),
                Ok(Found::Elsewhere(name)) => leader = Some((endpoint, name)),
                Ok(Found::NoConsumer(last)) => without_consumer = Some((endpoint, last)),
                Ok(Found::NoStream) => {}
                Err(error) => failed = Some(error),
            }
        }
        if let Some((endpoint, name)) = leader {
            return self.ask_leader(endpoint, &name).await;
        }
        match (without_consumer, failed) {
            // Another server of the cluster may know the consumer.
            (Some((endpoint, last)), _) => match self.ask_cluster(endpoint, None).await {
                Ok(Some(lag)) => Ok(Answer::Number(lag)),
                _ => Ok(Answer::Number(last)),
            },
            (None, Some(error)) => Err(error),
            (None, None) => {
                let (stream, account) = (&self.stream, &self.account);
                Err(ReadError::new(format!("account `{account}` has no stream `{stream}`")))
            }
        }
    }

    async fn ask_leader(&self, endpoint: &Url, leader: &str) -> Result<Answer, ReadError> {
        if let Ok(Some(lag)) = self.ask_cluster(endpoint, Some(leader)).await {
            return Ok(Answer::Number(lag));
        }
        let host = endpoint.host_str().unwrap_or_default();
        for name in [format!("{leader}.{host}"), leader.to_owned()] {
            let mut url = endpoint.clone();
            if url.set_host(Some(&name)).is_ok()
                && let Ok(Found::Lag(lag)) = self.ask(&url).await
            {
                return Ok(Answer::Number(lag));
            }
        }
        Err(ReadError::new(format!("the consumer's leader `{leader}` was not found; {host} does not lead it")))
    }

    /// Asks the servers that `endpoint` tells its clients of.
    async fn ask_cluster(&self, endpoint: &Url, leader: Option<&str>) -> Result<Option<f64>, ReadError> {
        let about = self.fetch(&http::below(endpoint, &["varz"])).await?;
        let hosts = about["connect_urls"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let hosts: Vec<&str> = hosts.filter_map(|url| url.rsplit_once(':')).map(|(host, _)| host).collect();
        for host in hosts.into_iter().take(SERVERS_MAX) {
            let mut url = endpoint.clone();
            if url.set_host(Some(host)).is_err() || (leader.is_none() && url.host() == endpoint.host()) {
                continue;
            }
            if let Ok(Found::Lag(lag)) = self.ask(&url).await {
                return Ok(Some(lag));
            }
        }
        Ok(None)
    }

    async fn ask(&self, endpoint: &Url) -> Result<Found, ReadError> {
        let mut url = http::below(endpoint, &["jsz"]);
        url.query_pairs_mut()
            .append_pair("acc", &self.account)
            .append_pair("consumers", "true")
            .append_pair("config", "true");
        let answer = self.fetch(&url).await?;
        let named = |name: &'static str, wanted: &str| {
            let wanted = wanted.to_owned();
            move |entry: &&Value| entry[name].as_str() == Some(wanted.as_str())
        };
        let accounts = answer["account_details"].as_array().map(Vec::as_slice).unwrap_or_default();
        let account = accounts
            .iter()
            .find(named("name", &self.account))
            .or_else(|| accounts.iter().find(named("id", &self.account)));
        let streams = account.and_then(|account| account["stream_detail"].as_array());
        let Some(stream) = streams.and_then(|streams| streams.iter().find(named("name", &self.stream))) else {
            return Ok(Found::NoStream);
        };
        let consumers = stream["consumer_detail"].as_array();
        let Some(consumer) = consumers.and_then(|all| all.iter().find(named("name", &self.consumer))) else {
            let last = stream["state"]["last_seq"].as_u64().unwrap_or(0);
            return Ok(Found::NoConsumer(jetstream_lag(last, 0)));
        };
        if answer["meta_cluster"]["cluster_size"].as_u64().unwrap_or(1) > 1
            && let Some(leader) = consumer["cluster"]["leader"].as_str()
        {
            let about = self.fetch(&http::below(endpoint, &["varz"])).await?;
            if about["server_name"].as_str() != Some(leader) {
                return Ok(Found::Elsewhere(leader.to_owned()));
            }
        }
        let count = |name: &str| {
            consumer[name].as_u64().ok_or_else(|| ReadError::new(format!("{} gave no {name}", http::place(&url))))
        };
        Ok(Found::Lag(jetstream_lag(count("num_pending")?, count("num_ack_pending")?)))
    }

    async fn fetch(&self, url: &Url) -> Result<Value, ReadError> {
        self.client.fetch(Call::get(url.clone())).await?.json(&http::place(url))
    }
}

impl Source for Consumer {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(self.answer())
    }
}
