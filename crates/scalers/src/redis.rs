//! `redis` and `redis-streams`, each also through a cluster or sentinels.
//!
//! The list form reads the length of a list, set, hash or sorted set, whichever the key holds; the stream form reads
//! length, pending entries or lag. KEDA asks both by Lua scripts; the same commands are asked here one by one, which needs
//! no right to run scripts and gives the same numbers.
//!
//! **Invariant:** nothing is ever written; the commands are `TYPE`, `LLEN`, `SCARD`, `HLEN`, `ZCARD`, `XLEN`, `XPENDING`,
//! `XINFO GROUPS`, and for the connection `AUTH`, `SELECT`, `ASKING`, `SENTINEL get-master-addr-by-name`.
//! **Invariant:** rules of one environment with the same server, user, password, database and TLS share a connection.

mod connection;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;

use cove_scaling::source::{Answer, StreamAnswer, StreamGroup, StreamMode};

use crate::dial::Address;
use crate::keys;
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};
pub(crate) use connection::Servers;
use connection::{Form, Login, Nodes};
use wire::Reply;

/// Redis' usual port.
const PORT: u16 = 6379;

/// What is asked about a key.
#[derive(Debug)]
enum Question {
    /// How many entries it has.
    Length,
    /// A number of its stream.
    Stream(StreamMode, Option<String>),
}

/// One rule's key.
#[derive(Debug)]
pub(crate) struct Redis {
    nodes: Nodes,
    key: String,
    question: Question,
}

/// Reads where the key is and what is asked about it.
///
/// # Errors
/// Every key of the metadata that is wrong.
pub(crate) fn open(servers: &Arc<Servers>, trigger: &Trigger, context: &Context) -> Result<Redis, OpenError> {
    let scaler = trigger.scaler.as_str();
    let is_stream = scaler.ends_with("streams");
    let key = keys::required(trigger, if is_stream { "stream" } else { "listName" })?.to_owned();
    let question = if is_stream {
        let group = trigger.get("consumerGroup").map(str::to_owned);
        let mode = match (trigger.get("lagCount"), &group) {
            (Some(_), None) => return Err(OpenError::metadata("lagCount needs a consumerGroup")),
            (Some(_), Some(_)) => StreamMode::Lag,
            (None, Some(_)) => StreamMode::Pending,
            (None, None) => StreamMode::Length,
        };
        Question::Stream(mode, group)
    } else {
        Question::Length
    };
    let nodes = Nodes::new(Arc::clone(servers), context.clone(), addresses(trigger)?, login(trigger)?, form(trigger)?);
    Ok(Redis { nodes, key, question })
}

/// `address`, `addresses`, or `host`/`hosts` with as many `port`/`ports`.
fn addresses(trigger: &Trigger) -> Result<Vec<Address>, OpenError> {
    let list = |one: &str, many: &str| keys::list(trigger.get(one).or_else(|| trigger.get(many)).unwrap_or_default());
    let whole = list("address", "addresses");
    if !whole.is_empty() {
        return whole.iter().map(|text| Address::parse(text, Some(PORT))).collect();
    }
    let (hosts, ports) = (list("host", "hosts"), list("port", "ports"));
    if hosts.is_empty() {
        return Err(OpenError::metadata("no address: give address (host:port), or host and port"));
    }
    if hosts.len() != ports.len() {
        let (hosts, ports) = (hosts.len(), ports.len());
        return Err(OpenError::metadata(format!("{hosts} hosts and {ports} ports; expected a port for each host")));
    }
    hosts.iter().zip(ports).map(|(host, port)| Address::parse(&format!("{host}:{port}"), None)).collect()
}

fn login(trigger: &Trigger) -> Result<Login, OpenError> {
    let is_enabled = keys::flag(trigger, "enableTLS", false)?;
    let tls = keys::tls_switch(trigger, "tls")?;
    if is_enabled && trigger.get("tls").is_some() {
        return Err(OpenError::metadata("enableTLS and tls are two ways to say the same; give one of them"));
    }
    let tls = if is_enabled || tls { Some(keys::tls(trigger)?) } else { None };
    let database = keys::whole(trigger, "databaseIndex", 0)?;
    let secret = |key: &str| trigger.parameters.get(key).filter(|value| !value.is_empty()).cloned();
    Ok(Login { username: secret("username"), password: secret("password"), database, tls })
}

fn form(trigger: &Trigger) -> Result<Form, OpenError> {
    let scaler = trigger.scaler.as_str();
    if scaler.starts_with("redis-cluster") {
        return Ok(Form::Cluster);
    }
    if !scaler.starts_with("redis-sentinel") {
        return Ok(Form::Single);
    }
    let secret = |key: &str| trigger.parameters.get(key).filter(|value| !value.is_empty()).cloned();
    Ok(Form::Sentinel {
        master: keys::required(trigger, "sentinelMaster")?.to_owned(),
        username: secret("sentinelUsername"),
        password: secret("sentinelPassword"),
    })
}

impl Redis {
    async fn answer(&self) -> Result<Answer, ReadError> {
        match &self.question {
            Question::Length => self.length().await,
            Question::Stream(mode, group) => {
                let stream = self.stream(*mode, group.as_deref().unwrap_or_default()).await?;
                Ok(Answer::RedisStream(stream))
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a length beyond 2^53 needs no exact unit")]
    async fn length(&self) -> Result<Answer, ReadError> {
        let kind = match self.ask(&["TYPE", &self.key]).await? {
            Reply::Text(kind) => kind,
            other => return Err(self.strange("TYPE", &other)),
        };
        let command = match kind.as_str() {
            "list" => "LLEN",
            "set" => "SCARD",
            "hash" => "HLEN",
            "zset" => "ZCARD",
            "none" => return Ok(Answer::Number(0.0)),
            other => {
                let key = &self.key;
                return Err(ReadError::new(format!("`{key}` is a {other}; expected a list, set, hash or sorted set")));
            }
        };
        match self.ask(&[command, &self.key]).await? {
            Reply::Number(length) => Ok(Answer::Number(length as f64)),
            other => Err(self.strange(command, &other)),
        }
    }

    async fn stream(&self, mode: StreamMode, group: &str) -> Result<StreamAnswer, ReadError> {
        let key = self.key.as_str();
        match mode {
            StreamMode::Length => Ok(StreamAnswer { length: Some(self.stream_length().await?), group: None }),
            StreamMode::Pending => match self.ask(&["XPENDING", key, group]).await? {
                Reply::Error(text) if text.starts_with("NOGROUP") => Ok(StreamAnswer::default()),
                Reply::Array(summary) => match summary.first() {
                    Some(Reply::Number(pending)) => {
                        let group = StreamGroup { pending: u64::try_from(*pending).unwrap_or(0), lag: None };
                        Ok(StreamAnswer { length: None, group: Some(group) })
                    }
                    _ => Err(self.strange("XPENDING", &Reply::Array(summary))),
                },
                other => Err(self.strange("XPENDING", &other)),
            },
            StreamMode::Lag => match self.ask(&["XINFO", "GROUPS", key]).await? {
                Reply::Error(text) if text.contains("no such key") => Ok(StreamAnswer::default()),
                Reply::Array(groups) => {
                    let found = groups.iter().find_map(|row| stream_group(row, group));
                    // Without the group the whole stream lags.
                    let length = if found.is_some() { 0 } else { self.stream_length().await? };
                    Ok(StreamAnswer { length: Some(length), group: found })
                }
                other => Err(self.strange("XINFO GROUPS", &other)),
            },
        }
    }

    async fn stream_length(&self) -> Result<u64, ReadError> {
        match self.ask(&["XLEN", &self.key]).await? {
            Reply::Number(length) => Ok(u64::try_from(length).unwrap_or(0)),
            other => Err(self.strange("XLEN", &other)),
        }
    }

    async fn ask(&self, words: &[&str]) -> Result<Reply, ReadError> {
        self.nodes.ask(words).await
    }

    fn strange(&self, command: &str, reply: &Reply) -> ReadError {
        let key = &self.key;
        match reply {
            Reply::Error(text) => ReadError::new(format!("Redis says to {command} {key}: {}", keys::short(text))),
            _ => ReadError::new(format!("Redis answered {command} {key} with something unexpected")),
        }
    }
}

/// The group `name` in a row of `XINFO GROUPS`: names and values in turn.
fn stream_group(row: &Reply, name: &str) -> Option<StreamGroup> {
    let Reply::Array(fields) = row else { return None };
    let field = |wanted: &str| {
        fields.chunks_exact(2).find_map(|pair| (pair[0] == Reply::Text(wanted.to_owned())).then_some(&pair[1]))
    };
    let number = |wanted: &str| match field(wanted) {
        Some(Reply::Number(number)) => u64::try_from(*number).ok(),
        _ => None,
    };
    (field("name") == Some(&Reply::Text(name.to_owned())))
        .then(|| StreamGroup { pending: number("pending").unwrap_or(0), lag: number("lag") })
}

impl Source for Redis {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(self.answer())
    }
}
