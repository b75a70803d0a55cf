//! `prometheus`: an instant query, also of servers that speak the same (Thanos, Mimir, VictoriaMetrics).
//!
//! **Invariant:** the query is sent as written and asked for the server's own now, so that clocks need not agree.

use cove_scaling::source::Answer;
use serde_json::Value;

use super::auth::Auth;
use super::{Call, Client, Http, address, below, header, pairs, place, required, timeout, tls};
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};

/// Who a token of a managed identity is for, where the rule names an identity (Azure Monitor's Prometheus).
const AUDIENCE: &str = "https://prometheus.monitor.azure.com";

/// One query of one server.
#[derive(Debug)]
pub(crate) struct Prometheus {
    client: Client,
    auth: Auth,
    call: Call,
}

/// Reads the metadata of a `prometheus` rule.
pub(crate) fn open(http: &Http, trigger: &Trigger, context: &Context) -> Result<Prometheus, OpenError> {
    let mut url = below(&address(trigger, "serverAddress")?, &["api", "v1", "query"]);
    url.query_pairs_mut().append_pair("query", required(trigger, "query")?);
    if let Some(namespace) = trigger.get("namespace") {
        url.query_pairs_mut().append_pair("namespace", namespace);
    }
    url.query_pairs_mut().extend_pairs(pairs(trigger, "queryParameters")?);
    let mut call = Call::get(url);
    for (name, value) in pairs(trigger, "customHeaders")? {
        let (name, value) = header(&name, &value)?;
        call.headers.append(name, value);
    }
    call.timeout = timeout(trigger)?;
    let mut auth = Auth::of(trigger)?;
    if !auth.is_set() {
        auth.identity(trigger, context, AUDIENCE);
    }
    let client = http.client(&tls(trigger)?, context)?;
    Ok(Prometheus { client, auth, call })
}

impl Source for Prometheus {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(async {
            let reply = self.auth.fetch(&self.client, self.call.clone()).await?;
            let place = place(&self.call.url);
            series(&reply.json(&place)?).map_err(|why| ReadError::new(format!("{place} {why}")))
        })
    }
}

/// The values of a query's result: vectors, and scalars as a series of their own.
pub(super) fn series(answer: &Value) -> Result<Answer, String> {
    let data = answer.get("data").ok_or("gave no query result")?;
    let sample = |sample: &Value| -> Result<Option<f64>, String> {
        match sample.as_array().map(Vec::as_slice) {
            None | Some([]) => Ok(None),
            Some([_, Value::Null, ..]) => Ok(None),
            Some([_, Value::String(text), ..]) => {
                number(text).map(Some).ok_or_else(|| "gave a value that is no number".to_owned())
            }
            Some(_) => Err("gave a sample without a value".to_owned()),
        }
    };
    let result = data.get("result").unwrap_or(&Value::Null);
    let values = match (data.get("resultType").and_then(Value::as_str), result) {
        (Some("scalar"), one) => vec![sample(one)?],
        (Some("vector") | None, Value::Array(series)) => {
            series.iter().map(|one| sample(one.get("value").unwrap_or(&Value::Null))).collect::<Result<_, _>>()?
        }
        (Some("vector") | None, Value::Null) => Vec::new(),
        (Some(other), _) => return Err(format!("gave a {}; the query must give one value", short(other))),
        (None, _) => return Err("gave no query result".to_owned()),
    };
    Ok(Answer::Prometheus(values))
}

/// Prometheus writes `NaN`, `+Inf` and `-Inf` for what is no number.
fn number(text: &str) -> Option<f64> {
    text.parse().ok()
}

fn short(text: &str) -> String {
    text.chars().take(30).collect()
}
