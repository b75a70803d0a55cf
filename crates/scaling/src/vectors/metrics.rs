//! Vectors of metrics: a source's answer, and the value and activity it comes to.
//!
//! Keys that are a scaler's metadata go through the same reader as a user's; the others are the answer.
//!
//! **Invariant:** a field that is not understood makes the vector unsupported; none is skipped.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Unsupported;
use super::decisions::at;
use crate::measure::{arrivals_in_window, load_reading};
use crate::source::{
    Answer, Cron, Document, EventHubPartition, GithubJob, KafkaPartition, Metric, PipelineJob, RabbitQueue, Scaler,
    StorageQueueAnswer, StreamAnswer, StreamGroup, is_inside,
};
use crate::{Reading, ScaleSettings, milli};

/// A reading of one scaler.
pub(super) fn metric(given: Value) -> Result<Value, Unsupported> {
    let name = given.get("metric").and_then(Value::as_str).unwrap_or("(none)").to_owned();
    match name.as_str() {
        "http" | "tcp" => load(given),
        "cron" => cron(given),
        _ => event(&name, given),
    }
}

fn load(given: Value) -> Result<Value, Unsupported> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Load {
        #[serde(rename = "metric")]
        _metric: String,
        t: f64,
        arrivals: Vec<(f64, u64)>,
        #[serde(default)]
        in_flight: u64,
    }
    let given: Load = serde_json::from_value(given)?;
    let arrivals = given.arrivals.iter().map(|(t, count)| Ok((at(*t)?, *count)));
    let arrivals = arrivals.collect::<Result<Vec<_>, Unsupported>>()?;
    let window = ScaleSettings::default().load_sampling;
    let arrived = arrivals_in_window(arrivals, at(given.t)?, window);
    Ok(match load_reading(arrived, given.in_flight, window) {
        Reading::Value { milli, active } => json!({ "milli": milli, "active": active }),
        other => json!({ "error": format!("{other:?}") }),
    })
}

fn cron(given: Value) -> Result<Value, Unsupported> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Given {
        #[serde(rename = "metric")]
        _metric: String,
        next_start: f64,
        next_end: f64,
        desired_replicas: u64,
    }
    let given: Given = serde_json::from_value(given)?;
    let inside = is_inside(at(given.next_start)?, at(given.next_end)?);
    Ok(shown(Cron::value(given.desired_replicas, inside), None))
}

/// A metric read from a source's answer.
fn event(name: &str, given: Value) -> Result<Value, Unsupported> {
    let Value::Object(mut given) = given else { return Err(Unsupported::new("a metric without fields")) };
    given.remove("metric");
    let mut metadata = Map::new();
    if let Some(Value::Object(keys)) = given.remove("metadata") {
        metadata = keys;
    }
    let answer = answer(name, &mut given)?;
    if name == "redis-streams" {
        // A lag is a mode of metadata; the group is there only when the answer has its row.
        metadata.entry("stream").or_insert("s".into());
    }
    metadata.append(&mut given);
    let needs_topic = matches!(name, "kafka" | "apache-kafka");
    if needs_topic {
        metadata.entry("topic").or_insert("t".into());
    }
    if name == "prometheus" {
        metadata.entry("threshold").or_insert(1.into());
    }
    if name == "azure-pipelines" {
        metadata.entry("poolID").or_insert(1.into());
    }
    let named_value = name == "rabbitmq" && !metadata.contains_key("value") && !metadata.contains_key("queueLength");
    if named_value {
        metadata.insert("value".to_owned(), 20.into());
    }
    known(name, &metadata)?;
    let lookup = |key: &str| metadata.get(key).map(plain);
    let scaler = match Scaler::parse(name, &lookup) {
        Ok(Some(scaler)) => scaler,
        Ok(None) => return Err(Unsupported::new(format!("the metric `{name}`"))),
        Err(error) => return Ok(json!({ "error": error.to_string() })),
    };
    Ok(match scaler.measure(&answer) {
        Ok(metric) => shown(metric, scaler.target()),
        Err(error) => json!({ "error": error.to_string() }),
    })
}

/// Every metadata key must be one of the scaler's.
fn known(scaler: &str, metadata: &Map<String, Value>) -> Result<(), Unsupported> {
    match metadata.keys().find(|key| !crate::validate::reads(scaler, key)) {
        Some(key) => Err(Unsupported::new(format!("the key `{key}` of the metric `{scaler}`"))),
        None => Ok(()),
    }
}

/// Takes the answer's fields out of `given`; what remains is metadata.
fn answer(name: &str, given: &mut Map<String, Value>) -> Result<Answer, Unsupported> {
    Ok(match name {
        "kafka" | "apache-kafka" => Answer::Kafka(rows(given, "partitions", |row| {
            let keys = ["end", "committed", "committedBefore"];
            let [end, committed, committed_before] = whole_numbers(row, keys)?;
            Ok(KafkaPartition { end, committed, committed_before })
        })?),
        "azure-eventhub" => Answer::EventHub(rows(given, "partitions", |row| {
            let [last, beginning, checkpoint] = whole_numbers(row, ["last", "beginning", "checkpoint"])?;
            let last = last.ok_or_else(|| Unsupported::new("a partition without `last`"))?;
            Ok(EventHubPartition { last, beginning: beginning.unwrap_or(0), checkpoint })
        })?),
        "rabbitmq" => {
            let messages = take::<u64>(given, "messages")?.unwrap_or(0);
            let ready = take::<u64>(given, "ready")?.unwrap_or(messages);
            let publish_rate = take(given, "publishRate")?.unwrap_or(0.0);
            let deliver_get_rate = take(given, "deliverGetRate")?.unwrap_or(0.0);
            Answer::RabbitMq(vec![RabbitQueue { messages, ready, publish_rate, deliver_get_rate }])
        }
        "redis-streams" => {
            let pending = take::<u64>(given, "pending")?;
            let lag = take::<u64>(given, "lag")?;
            let exists = pending.is_some() || lag.is_some();
            let group = exists.then(|| StreamGroup { pending: pending.unwrap_or(0), lag });
            Answer::RedisStream(StreamAnswer { length: take(given, "length")?, group })
        }
        "prometheus" => Answer::Prometheus(take(given, "result")?.unwrap_or_default()),
        "metrics-api" => match take::<Value>(given, "document")?.unwrap_or_default() {
            Value::String(text) => Answer::Document(Document::Text(text)),
            tree => Answer::Document(Document::Tree(tree)),
        },
        "azure-servicebus" => Answer::ServiceBus(take(given, "activeMessageCounts")?.unwrap_or_default()),
        "azure-queue" => Answer::StorageQueue(StorageQueueAnswer {
            approximate: take(given, "approximateCount")?.unwrap_or(0),
            peeked: take(given, "peeked")?.unwrap_or(0),
        }),
        "nats-jetstream" => Answer::Number(crate::source::jetstream_lag(
            take(given, "numPending")?.unwrap_or(0),
            take(given, "numAckPending")?.unwrap_or(0),
        )),
        "github-runner" => Answer::GithubJobs(rows(given, "jobs", |row| {
            let status = take(row, "status")?.unwrap_or_default();
            Ok(GithubJob { status, labels: take(row, "labels")?.unwrap_or_default() })
        })?),
        "azure-pipelines" => Answer::PipelineJobs(rows(given, "jobs", |row| {
            let is_finished = take(row, "finished")?.unwrap_or(false);
            let demands = take(row, "demands")?.unwrap_or_default();
            Ok(PipelineJob { is_finished, demands, matched_agents: take(row, "matchedAgents")?.unwrap_or_default() })
        })?),
        _ => match take::<f64>(given, "number")? {
            Some(number) => Answer::Number(number),
            None => return Err(Unsupported::new(format!("the metric `{name}`"))),
        },
    })
}

fn take<T: serde::de::DeserializeOwned>(given: &mut Map<String, Value>, key: &str) -> Result<Option<T>, Unsupported> {
    given.remove(key).filter(|value| !value.is_null()).map(serde_json::from_value).transpose().map_err(Into::into)
}

fn rows<T>(
    given: &mut Map<String, Value>,
    key: &str,
    read: impl Fn(&mut Map<String, Value>) -> Result<T, Unsupported>,
) -> Result<Vec<T>, Unsupported> {
    let rows: Vec<Map<String, Value>> = take(given, key)?.unwrap_or_default();
    let read = |mut row| {
        let value = read(&mut row)?;
        match row.keys().next() {
            Some(key) => Err(Unsupported::new(format!("the field `{key}`"))),
            None => Ok(value),
        }
    };
    rows.into_iter().map(read).collect()
}

fn whole_numbers<const N: usize>(
    row: &mut Map<String, Value>,
    keys: [&str; N],
) -> Result<[Option<i64>; N], Unsupported> {
    let mut numbers = [None; N];
    for (number, key) in numbers.iter_mut().zip(keys) {
        *number = take(row, key)?;
    }
    Ok(numbers)
}

fn shown(metric: Metric, target: Option<f64>) -> Value {
    let mut shown = json!({ "milli": milli(metric.value), "active": metric.active });
    if let Some(target) = target {
        shown["target"] = target.into();
    }
    shown
}

/// Metadata values as they would be written.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
