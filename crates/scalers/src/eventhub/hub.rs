//! What a hub says of its partitions: `READ` of `$management` over AMQP 1.0, after a token was put to `$cbs`.
//!
//! **Invariant:** one connection per hub and login, shared by rules; questions of one reading are sent together, and an
//! answer is known by the number of its question.
//! **Invariant:** a reading that is given up leaves a connection that nobody uses again.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{AmqpValue, ApplicationProperties, Body, Message, MessageId, Properties};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Mutex;

use crate::keys;
use crate::net::Wire;
use crate::source::ReadError;

/// Partitions of a hub; the largest that Azure sells has 2000.
const PARTITIONS_MAX: usize = 2048;
/// A token is put again when it is this old; both kinds live for longer.
const TOKEN_FRESH: Duration = Duration::from_secs(600);
const TOKEN_NODE: &str = "$cbs";
const MANAGEMENT_NODE: &str = "$management";

/// A hub's token, and the word for its kind.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) kind: &'static str,
    pub(super) text: String,
    /// What it opens: `amqps://host/hub`.
    pub(super) audience: String,
}

/// What a hub says of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    pub(super) id: String,
    /// Last enqueued sequence number; -1 = empty.
    pub(super) last: i64,
    /// First one kept.
    pub(super) beginning: i64,
}

/// A connection to one hub.
pub(super) struct Hub {
    host: String,
    doubted: AtomicBool,
    links: Mutex<Links>,
}

/// Fields are dropped in their order: links before their session, the session before its connection.
struct Links {
    tokens: Pair,
    management: Pair,
    asked: u64,
    token_at: Option<Instant>,
    _session: SessionHandle<()>,
    connection: ConnectionHandle<()>,
}

/// A node is asked on one link and answers on the other.
struct Pair {
    node: &'static str,
    sender: Sender,
    receiver: Receiver,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Hub {
    /// Opens connection, session and links over `wire`.
    ///
    /// # Errors
    /// The other side speaks no AMQP, or refuses.
    pub(super) async fn open(wire: Box<dyn Wire>, host: &str) -> Result<Self, ReadError> {
        let failed = |what: &str, error: &dyn fmt::Display| {
            ReadError::new(format!("{host}: {what} over AMQP: {}", keys::short(&error.to_string())))
        };
        let opened = Connection::builder()
            .container_id(format!("cove-{}", uuid::Uuid::new_v4()))
            .hostname(host)
            .sasl_profile(SaslProfile::Anonymous)
            .open_with_stream(Stream(wire))
            .await;
        let mut connection = opened.map_err(|error| failed("no connection", &error))?;
        let mut session = Session::begin(&mut connection).await.map_err(|error| failed("no session", &error))?;
        let tokens = Pair::attach(&mut session, TOKEN_NODE).await.map_err(|error| failed("no tokens", &error))?;
        let management = Pair::attach(&mut session, MANAGEMENT_NODE).await;
        let management = management.map_err(|error| failed("no management", &error))?;
        let links = Links { tokens, management, asked: 0, token_at: None, _session: session, connection };
        Ok(Self { host: host.to_owned(), doubted: AtomicBool::new(false), links: Mutex::new(links) })
    }

    /// Whether another connection is better.
    pub(super) fn is_stale(&self) -> bool {
        self.doubted.load(Ordering::Relaxed) || self.links.try_lock().is_ok_and(|links| links.connection.is_closed())
    }

    /// What the hub says of all its partitions.
    ///
    /// # Errors
    /// The connection broke, the token is refused, or there is no such hub.
    pub(super) async fn partitions(&self, hub: &str, token: &Token) -> Result<Vec<Partition>, ReadError> {
        let mut links = self.links.lock().await;
        // Taken back when everything went well: whoever gives up in the middle leaves answers behind.
        self.doubted.store(true, Ordering::Relaxed);
        let read = links.partitions(hub, token).await;
        if read.is_ok() {
            self.doubted.store(false, Ordering::Relaxed);
        }
        read.map_err(|error| ReadError::new(format!("{}: {error}", self.host)))
    }
}

impl Links {
    async fn partitions(&mut self, hub: &str, token: &Token) -> Result<Vec<Partition>, ReadError> {
        if self.token_at.is_none_or(|at| at.elapsed() > TOKEN_FRESH) {
            let properties = vec![
                ("operation", "put-token".to_owned()),
                ("type", token.kind.to_owned()),
                ("name", token.audience.clone()),
            ];
            let body = Value::String(token.text.clone());
            self.tokens.ask(&mut self.asked, vec![(properties, body)]).await?;
            self.token_at = Some(Instant::now());
        }
        let question = |kind: &str, partition: Option<&str>| {
            let mut properties = vec![
                ("operation", "READ".to_owned()),
                ("name", hub.to_owned()),
                ("type", format!("com.microsoft:{kind}")),
                ("security_token", token.text.clone()),
            ];
            properties.extend(partition.map(|partition| ("partition", partition.to_owned())));
            (properties, Value::Null)
        };
        let answers = self.management.ask(&mut self.asked, vec![question("eventhub", None)]).await?;
        let ids = answers.first().map(|hub| texts(hub, "partition_ids")).unwrap_or_default();
        if ids.is_empty() || ids.len() > PARTITIONS_MAX {
            let text = format!("hub `{hub}` has {} partitions; expected 1 to {PARTITIONS_MAX}", ids.len());
            return Err(ReadError::new(text));
        }
        let questions = ids.iter().map(|id| question("partition", Some(id))).collect();
        let answers = self.management.ask(&mut self.asked, questions).await?;
        ids.into_iter()
            .zip(answers)
            .map(|(id, answer)| {
                let number = |key: &str| {
                    whole(&answer, key)
                        .ok_or_else(|| ReadError::new(format!("partition {id} of hub `{hub}` has no {key}")))
                };
                let (last, beginning) = (number("last_enqueued_sequence_number")?, number("begin_sequence_number")?);
                Ok(Partition { id, last, beginning })
            })
            .collect()
    }
}

type Question = (Vec<(&'static str, String)>, Value);

impl Pair {
    async fn attach(session: &mut SessionHandle<()>, node: &'static str) -> Result<Self, AttachError> {
        let name = format!("cove{node}");
        let sender = Sender::builder().name(format!("{name}-ask")).target(node).attach(session).await;
        let sender = sender.map_err(|error| AttachError(error.to_string()))?;
        let receiver = Receiver::builder().name(format!("{name}-answer")).source(node).target(reply_to(node));
        let receiver = receiver.attach(session).await.map_err(|error| AttachError(error.to_string()))?;
        Ok(Self { node, sender, receiver })
    }

    /// Asks all questions together; the answers come in the order of the questions.
    async fn ask(&mut self, asked: &mut u64, questions: Vec<Question>) -> Result<Vec<Value>, ReadError> {
        let node = self.node;
        let broken = |error: &dyn fmt::Display| {
            ReadError::new(format!("{node}: the connection broke: {}", keys::short(&error.to_string())))
        };
        let first = *asked;
        let mut sent = Vec::with_capacity(questions.len());
        for (properties, body) in questions {
            let message = message(*asked, node, properties, body);
            *asked += 1;
            sent.push(self.sender.send_batchable(message).await.map_err(|error| broken(&error))?);
        }
        for outcome in sent {
            let outcome = outcome.await.map_err(|error| broken(&error))?;
            outcome.accepted_or(()).map_err(|()| ReadError::new(format!("{node} does not take the question")))?;
        }
        let mut answers = BTreeMap::new();
        while first + answers.len() as u64 != *asked {
            let delivery = self.receiver.recv::<Body<Value>>().await.map_err(|error| broken(&error))?;
            self.receiver.accept(&delivery).await.map_err(|error| broken(&error))?;
            let answer = delivery.into_message();
            let id = answer.properties.and_then(|properties| properties.correlation_id);
            // An answer to nobody is no concern.
            let Some(MessageId::Ulong(id)) = id else { continue };
            if !(first..*asked).contains(&id) {
                continue;
            }
            check(node, answer.application_properties.as_ref())?;
            let body = match answer.body {
                Body::Value(AmqpValue(value)) => value,
                _ => Value::Null,
            };
            answers.insert(id, body);
        }
        Ok(answers.into_values().collect())
    }
}

/// A link was not made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct AttachError(String);

fn reply_to(node: &str) -> String {
    format!("cove{node}-client")
}

fn message(id: u64, node: &str, properties: Vec<(&'static str, String)>, body: Value) -> Message<AmqpValue<Value>> {
    let own = properties.into_iter().map(|(key, value)| (key.to_owned(), SimpleValue::String(value)));
    Message::builder()
        .properties(Properties::builder().message_id(id).reply_to(reply_to(node)).build())
        .application_properties(ApplicationProperties(own.collect()))
        .value(body)
        .build()
}

/// Whether an answer is a yes; it says so like HTTP.
fn check(node: &str, properties: Option<&ApplicationProperties>) -> Result<(), ReadError> {
    let find = |names: [&str; 2]| properties.and_then(|all| names.into_iter().find_map(|name| all.0.get(name)));
    let status = match find(["status-code", "statusCode"]) {
        Some(SimpleValue::Int(status)) => *status,
        _ => return Err(ReadError::new(format!("{node}: an answer without a status"))),
    };
    if (200..300).contains(&status) {
        return Ok(());
    }
    let said = match find(["status-description", "statusDescription"]) {
        Some(SimpleValue::String(text)) => format!(": {}", keys::short(text)),
        _ => String::new(),
    };
    Err(ReadError::new(match (node, status) {
        (TOKEN_NODE, _) => format!("the hub refuses the login ({status}){said}"),
        (_, 404) => format!("there is no such hub (404){said}"),
        _ => format!("{node} answered {status}{said}"),
    }))
}

fn field<'a>(answer: &'a Value, key: &str) -> Option<&'a Value> {
    let Value::Map(map) = answer else { return None };
    map.get(&Value::String(key.to_owned())).or_else(|| map.get(&Value::Symbol(key.into())))
}

fn texts(answer: &Value, key: &str) -> Vec<String> {
    let all: &[Value] = match field(answer, key) {
        Some(Value::Array(array)) => &array.0,
        Some(Value::List(list)) => list,
        _ => &[],
    };
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        _ => None,
    };
    all.iter().filter_map(text).collect()
}

fn whole(answer: &Value, key: &str) -> Option<i64> {
    match field(answer, key)? {
        Value::Long(number) => Some(*number),
        Value::Int(number) => Some((*number).into()),
        _ => None,
    }
}

/// A wire that shows nothing of itself.
struct Stream(Box<dyn Wire>);

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(context)
    }
}

/// Shared by the rules of a hub.
pub(super) type SharedHub = Arc<Hub>;
