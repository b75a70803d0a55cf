//! `containerapp resiliency`: the policy of calls to an app, with the flags of az's extension.

use std::path::PathBuf;

use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::{
    client::{Wait, encode},
    failure::Failure,
    file,
    output::View,
    session::{GroupArg, Session},
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ResiliencyCommand {
    /// List the policies of an app; there is at most one.
    List(AppArgs),
    /// Show a policy.
    Show(PolicyRef),
    /// Create a policy or replace it.
    Create {
        #[command(flatten)]
        policy: PolicyRef,
        /// What Azure recommends: time limits, three retries of 5xx, a circuit breaker.
        #[arg(long, conflicts_with = "yaml")]
        recommended: bool,
        #[command(flatten)]
        parts: Box<Parts>,
    },
    /// Change parts of a policy; the others stay.
    Update {
        #[command(flatten)]
        policy: PolicyRef,
        #[command(flatten)]
        parts: Box<Parts>,
    },
    /// Delete a policy.
    Delete {
        #[command(flatten)]
        policy: PolicyRef,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
}

/// The app of a policy.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AppArgs {
    /// Name of the app.
    #[arg(long, value_name = "NAME")]
    container_app_name: String,
    #[command(flatten)]
    group: GroupArg,
}

impl AppArgs {
    fn path(&self, session: &Session) -> String {
        let app = session.client.resource(&self.group.group, "containerApps", &self.container_app_name);
        format!("{app}/resiliencyPolicies")
    }
}

/// A policy.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PolicyRef {
    /// Name of the policy.
    #[arg(short, long)]
    name: String,
    #[command(flatten)]
    app: AppArgs,
}

impl PolicyRef {
    fn path(&self, session: &Session) -> String {
        format!("{}/{}", self.app.path(session), encode(&self.name))
    }
}

/// What a policy says, by flags or from a file.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Parts {
    /// All of it as YAML, in place of flags.
    #[arg(long, value_name = "FILE")]
    yaml: Option<PathBuf>,
    /// Seconds until the head of an answer, in one try.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// Seconds to connect to a replica.
    #[arg(long, value_name = "SECONDS")]
    timeout_connect: Option<u32>,
    /// Tries after the first.
    #[arg(long, value_name = "N")]
    http_retries: Option<u32>,
    /// Milliseconds before the first of them.
    #[arg(long, value_name = "MS")]
    http_delay: Option<u32>,
    /// Longest wait before one, in milliseconds.
    #[arg(long, value_name = "MS")]
    http_interval: Option<u32>,
    /// Statuses that are tried again, for retriable-status-codes.
    #[arg(long, num_args = 1.., value_name = "STATUS")]
    http_codes: Vec<u16>,
    /// What is tried again: 5xx, reset, connect-failure, retriable-4xx, ...
    #[arg(long, num_args = 1.., value_name = "WORD")]
    http_errors: Vec<String>,
    /// Connections tried for a client of a TCP app.
    #[arg(long, value_name = "N")]
    tcp_retries: Option<u32>,
    /// Connections of a TCP app open at once.
    #[arg(long, value_name = "N")]
    tcp_connections: Option<u32>,
    /// Requests over HTTP/1.1 open at once.
    #[arg(long, value_name = "N")]
    http1_pending: Option<u32>,
    /// Requests over HTTP/2 open at once.
    #[arg(long, value_name = "N")]
    http2_parallel: Option<u32>,
    /// Errors in a row that put a replica out.
    #[arg(long, value_name = "N")]
    cb_sequential_errors: Option<u32>,
    /// Seconds for which it is out.
    #[arg(long, value_name = "SECONDS")]
    cb_interval: Option<u32>,
    /// Most replicas out at once, in percent.
    #[arg(long, value_name = "PERCENT")]
    cb_max_ejection: Option<u32>,
}

impl Parts {
    /// The properties that the flags or the file name.
    fn properties(&self) -> Result<Value, Failure> {
        let mut properties = match &self.yaml {
            Some(path) => match file::yaml(path)? {
                Value::Object(mut fields) => fields.remove("properties").unwrap_or(Value::Object(fields)),
                _ => return Err(Failure::new(format!("`{}` is no policy", path.display()))),
            },
            None => json!({}),
        };
        let numbers = [
            ("/timeoutPolicy/responseTimeoutInSeconds", self.timeout),
            ("/timeoutPolicy/connectionTimeoutInSeconds", self.timeout_connect),
            ("/httpRetryPolicy/maxRetries", self.http_retries),
            ("/httpRetryPolicy/retryBackOff/initialDelayInMilliseconds", self.http_delay),
            ("/httpRetryPolicy/retryBackOff/maxIntervalInMilliseconds", self.http_interval),
            ("/tcpRetryPolicy/maxConnectAttempts", self.tcp_retries),
            ("/tcpConnectionPool/maxConnections", self.tcp_connections),
            ("/httpConnectionPool/http1MaxPendingRequests", self.http1_pending),
            ("/httpConnectionPool/http2MaxRequests", self.http2_parallel),
            ("/circuitBreakerPolicy/consecutiveErrors", self.cb_sequential_errors),
            ("/circuitBreakerPolicy/intervalInSeconds", self.cb_interval),
            ("/circuitBreakerPolicy/maxEjectionPercent", self.cb_max_ejection),
        ];
        for (path, number) in numbers {
            if let Some(number) = number {
                put(&mut properties, path, json!(number));
            }
        }
        if !self.http_codes.is_empty() {
            put(&mut properties, "/httpRetryPolicy/matches/httpStatusCodes", json!(self.http_codes));
        }
        if !self.http_errors.is_empty() {
            put(&mut properties, "/httpRetryPolicy/matches/errors", json!(self.http_errors));
        }
        Ok(properties)
    }
}

/// Puts a value below objects that are made as needed.
fn put(target: &mut Value, path: &str, value: Value) {
    let place = path.split('/').skip(1).fold(target, |place, name| {
        if !place.is_object() {
            *place = json!({});
        }
        &mut place[name]
    });
    *place = value;
}

/// What `--recommended` means, in az and here.
fn recommended() -> Value {
    json!({
        "timeoutPolicy": { "responseTimeoutInSeconds": 60, "connectionTimeoutInSeconds": 5 },
        "httpRetryPolicy": {
            "maxRetries": 3,
            "retryBackOff": { "initialDelayInMilliseconds": 1000, "maxIntervalInMilliseconds": 10_000 },
            "matches": { "errors": ["5xx"] },
        },
        "tcpRetryPolicy": { "maxConnectAttempts": 3 },
        "circuitBreakerPolicy": { "consecutiveErrors": 5, "intervalInSeconds": 10, "maxEjectionPercent": 100 },
    })
}

pub(super) async fn run(session: &Session, command: ResiliencyCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        ResiliencyCommand::List(app) => session.print(client.list(&app.path(session)).await?, View::Plain),
        ResiliencyCommand::Show(policy) => session.print(client.get(&policy.path(session)).await?, View::Plain),
        ResiliencyCommand::Create { policy, recommended: is_recommended, parts } => {
            let mut properties = if is_recommended { recommended() } else { json!({}) };
            lay(&mut properties, parts.properties()?);
            write(session, Method::PUT, &policy, properties).await
        }
        ResiliencyCommand::Update { policy, parts } => {
            write(session, Method::PATCH, &policy, parts.properties()?).await
        }
        ResiliencyCommand::Delete { policy, yes } => {
            session.confirm(&format!("Delete the resiliency policy `{}`?", policy.name), yes)?;
            let path = policy.path(session);
            client.get(&path).await?;
            client.delete(&path, Wait::Done).await
        }
    }
}

async fn write(session: &Session, method: Method, policy: &PolicyRef, properties: Value) -> Result<(), Failure> {
    if properties.as_object().is_none_or(Map::is_empty) {
        return Err(Failure::usage("the policy says nothing").hint("add --recommended, or such as --timeout 20"));
    }
    let body = json!({ "properties": properties });
    let written = session.client.write(method, &policy.path(session), Some(&body), Wait::Done).await?;
    session.print(written, View::Plain)
}

/// Lays objects over objects.
fn lay(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (name, value) in above {
                lay(below.entry(name).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_name_parts_and_lie_over_what_is_recommended() {
        let parts =
            Parts { timeout: Some(20), http_errors: vec!["reset".into()], cb_interval: Some(5), ..Parts::default() };
        let named = json!({
            "timeoutPolicy": { "responseTimeoutInSeconds": 20 },
            "httpRetryPolicy": { "matches": { "errors": ["reset"] } },
            "circuitBreakerPolicy": { "intervalInSeconds": 5 },
        });
        let properties = parts.properties().unwrap_or_default();
        assert_eq!(properties, named);
        let mut whole = recommended();
        lay(&mut whole, properties);
        assert_eq!(whole["timeoutPolicy"], json!({ "responseTimeoutInSeconds": 20, "connectionTimeoutInSeconds": 5 }));
        assert_eq!(whole["httpRetryPolicy"]["matches"]["errors"], json!(["reset"]));
        assert_eq!(whole["httpRetryPolicy"]["maxRetries"], 3);
    }
}
