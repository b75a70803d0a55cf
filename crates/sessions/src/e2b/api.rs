//! The REST API: sandboxes are made, listed, shown, prolonged and killed.
//!
//! Errors are `{"code": status, "message": …}`. What sandboxes of Cove cannot do is refused where it is asked for, and not
//! answered as if it were done.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{Method, Request, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::{E2b, ENVD_VERSION, Sandbox, not_built, text};
use crate::{
    answer::Refused,
    interpreter, json,
    ports::{PoolDetails, PoolInfo},
    service::Service,
};

/// Names of templates that mean: the pool of the key. They are what the SDKs ask for by themselves.
const ANY_POOL: [&str; 2] = ["code-interpreter-v1", "base"];
/// Seconds that a sandbox lives when nobody says, and at most.
const SECONDS_DEFAULT: u64 = 15;
const SECONDS_CONNECT: u64 = 300;
const SECONDS_MAX: u64 = 86_400;
/// Entries and bytes of metadata, and of variables.
const PAIRS_MAX: usize = 100;
const PAIRS_BYTES_MAX: usize = 64 << 10;

impl Service {
    pub(super) async fn e2b_api(
        self: &Arc<Self>,
        e2b: &Arc<E2b>,
        path: &str,
        request: Request<Body>,
    ) -> Result<Response, Refused> {
        let pool = self.ports.pools.pool_with_key(text(request.headers(), "x-api-key").as_bytes());
        let pool = pool.ok_or_else(|| {
            let words = "`X-API-Key` is missing or of no pool; `cove sessionpool` with an MCP server and `fetchMCPServerCredentials` give one.";
            Refused::new(401, "AuthenticationFailed", words)
        })?;
        let all: Vec<&str> = path.split('/').collect();
        // both generations of the API differ in nothing that is here
        let parts = if all.first() == Some(&"v2") { &all[1..] } else { &all[..] };
        let own = |id: &str| {
            let found = e2b.boxes.find(id).filter(|sandbox| sandbox.pool == pool.id && self.is_alive(e2b, sandbox));
            found.ok_or_else(|| Refused::new(404, "SandboxNotFound", format!("Sandbox `{id}` was not found.")))
        };
        match (request.method().clone(), parts) {
            (Method::POST, ["sandboxes"]) => self.create_sandbox(e2b, &pool, body(request).await?).await,
            (Method::GET, ["sandboxes"]) => Ok(self.list_sandboxes(e2b, &pool, request.uri().query())),
            (Method::GET, ["sandboxes", id]) => Ok(axum::Json(self.shown(&*own(id)?)).into_response()),
            (Method::DELETE, ["sandboxes", id]) => {
                let sandbox = own(id)?;
                self.kill(e2b, &sandbox).await;
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            (Method::POST, ["sandboxes", id, "connect"]) => {
                let sandbox = own(id)?;
                let seconds = seconds(&body(request).await?, "timeout", SECONDS_CONNECT)?;
                // who connects never makes it shorter
                let end = after(e2b, seconds).max(sandbox.end_at);
                prolong(e2b, &sandbox, end).await?;
                Ok((StatusCode::OK, axum::Json(credentials(&sandbox))).into_response())
            }
            (Method::POST, ["sandboxes", id, "timeout"]) => {
                let sandbox = own(id)?;
                let seconds = seconds(&body(request).await?, "timeout", SECONDS_DEFAULT)?;
                prolong(e2b, &sandbox, after(e2b, seconds)).await?;
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            (Method::POST, ["sandboxes", id, "refreshes"]) => {
                let sandbox = own(id)?;
                let seconds = seconds(&body(request).await?, "duration", SECONDS_DEFAULT)?;
                prolong(e2b, &sandbox, after(e2b, seconds).max(sandbox.end_at)).await?;
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            (
                _,
                ["sandboxes", _, what @ ("pause" | "resume" | "snapshots" | "fork" | "logs" | "metrics" | "network")],
            ) => Err(not_built(&format!("`{what}` of a sandbox is not built for E2B's API"))),
            (_, ["sandboxes", "metrics"] | ["templates" | "volumes" | "snapshots" | "secrets", ..]) => {
                Err(not_built("This part of E2B's API is not built"))
            }
            _ => Err(Refused::new(404, "NotFound", "The API has no such path, or not with this method.")),
        }
    }

    async fn create_sandbox(
        self: &Arc<Self>,
        e2b: &Arc<E2b>,
        pool: &PoolInfo,
        asked: Map<String, Value>,
    ) -> Result<Response, Refused> {
        let template = asked.get("templateID").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !ANY_POOL.contains(&template.as_str()) && !template.eq_ignore_ascii_case(pool.id.name()) {
            let words =
                format!("The key is of pool `{}`: name that as the template, or `{}`.", pool.id.name(), ANY_POOL[0]);
            return Err(Refused::new(404, "TemplateNotFound", words));
        }
        let details = self.ports.pools.details(&pool.id).ok_or_else(Refused::unknown_pool)?;
        check_unbuilt(&asked, &details)?;
        let seconds = seconds(&asked, "timeout", SECONDS_DEFAULT)?;
        let (metadata, envs) = (pairs(&asked, "metadata")?, pairs(&asked, "envVars")?);
        check_names(&envs)?;
        let secret = || uuid::Uuid::new_v4().simple().to_string();
        let mut sandbox = Sandbox {
            id: secret(),
            pool: pool.id.clone(),
            template,
            guid: String::new(),
            token: format!("{}{}", secret(), secret()),
            started_at: e2b.clock.now(),
            end_at: after(e2b, seconds),
            metadata,
            envs,
        };
        let identifier = sandbox.identifier().ok_or_else(Refused::unknown_session)?;
        let lease = self.ports.pools.allocate(&pool.id, &identifier).await.map_err(full)?;
        sandbox.guid.clone_from(&lease.allocation.session.guid);
        // what it waited for does not count
        sandbox.started_at = e2b.clock.now();
        sandbox.end_at = after(e2b, seconds);
        let answer = credentials(&sandbox);
        e2b.boxes.sweep(&pool.id, pool.sessions_max, &*self.ports.pools);
        if let Err(error) = e2b.boxes.add(sandbox, lease).await {
            self.ports.pools.stop(&pool.id, &identifier).await;
            return Err(disk(&error));
        }
        Ok((StatusCode::CREATED, axum::Json(answer)).into_response())
    }

    fn list_sandboxes(&self, e2b: &E2b, pool: &PoolInfo, query: Option<&str>) -> Response {
        let asked: Vec<(String, String)> = form(query.unwrap_or_default());
        let value = |name: &str| asked.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let wanted: Vec<(String, String)> = value("metadata").map(form).unwrap_or_default();
        let states: Vec<&str> =
            asked.iter().filter(|(key, _)| key == "state").map(|(_, state)| state.as_str()).collect();
        // none is ever paused
        let is_running = states.is_empty() || states.iter().any(|state| state.split(',').any(|one| one == "running"));
        let fits = |sandbox: &Sandbox| {
            is_running && wanted.iter().all(|(key, value)| sandbox.metadata.get(key) == Some(value))
        };
        let mut all = e2b.boxes.of_pool(&pool.id);
        all.retain(|sandbox| self.is_alive(e2b, sandbox) && fits(sandbox));
        all.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.started_at));
        let shown: Vec<Value> = all.iter().map(|sandbox| self.shown(sandbox)).collect();
        axum::Json(shown).into_response()
    }

    /// A sandbox in full, without its token.
    fn shown(&self, sandbox: &Sandbox) -> Value {
        let details = self.ports.pools.details(&sandbox.pool).unwrap_or_default();
        json!({
            "templateID": sandbox.template,
            "alias": sandbox.pool.name(),
            "sandboxID": sandbox.id,
            "clientID": "cove",
            "startedAt": sandbox.started_at.to_string(),
            "endAt": sandbox.end_at.to_string(),
            "envdVersion": ENVD_VERSION,
            "cpuCount": details.cpu_milli.div_ceil(1000),
            "memoryMB": details.memory_bytes >> 20,
            "diskSizeMB": details.disk_bytes >> 20,
            "state": "running",
            "metadata": sandbox.metadata,
            "allowInternetAccess": details.has_egress,
        })
    }

    async fn kill(&self, e2b: &E2b, sandbox: &Sandbox) {
        e2b.boxes.remove(&sandbox.id).await;
        e2b.processes.forget(&sandbox.id);
        if let Some(identifier) = sandbox.identifier() {
            self.ports.pools.stop(&sandbox.pool, &identifier).await;
        }
    }
}

/// What opens a sandbox.
fn credentials(sandbox: &Sandbox) -> Value {
    json!({
        "templateID": sandbox.template,
        "alias": sandbox.pool.name(),
        "sandboxID": sandbox.id,
        "clientID": "cove",
        "envdVersion": ENVD_VERSION,
        "envdAccessToken": sandbox.token,
    })
}

async fn prolong(e2b: &E2b, sandbox: &Sandbox, end: Timestamp) -> Result<(), Refused> {
    if e2b.boxes.end_at(&sandbox.id, end).await.map_err(|error| disk(&error))? {
        return Ok(());
    }
    Err(Refused::new(404, "SandboxNotFound", format!("Sandbox `{}` was not found.", sandbox.id)))
}

fn disk(error: &std::io::Error) -> Refused {
    let words = format!("The sandbox could not be kept: {error}; look at the server's data directory.");
    Refused::new(507, "InsufficientStorage", words)
}

/// A full pool is what E2B calls its limit of sandboxes at once.
fn full(error: cove_model::AllocateError) -> Refused {
    let is_full = matches!(error, cove_model::AllocateError::PoolFull { .. });
    let refused = Refused::from(error);
    if is_full { Refused::new(429, "SessionPoolFull", refused.error.message.clone()) } else { refused }
}

fn after(e2b: &E2b, seconds: u64) -> Timestamp {
    let span = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    e2b.clock.now().saturating_add(span).unwrap_or(Timestamp::MAX)
}

fn invalid(message: impl Into<String>) -> Refused {
    Refused::new(400, "InvalidRequestContent", message)
}

/// The body as an object; an empty one is none.
pub(super) async fn body(request: Request<Body>) -> Result<Map<String, Value>, Refused> {
    let bytes = interpreter::whole(request.into_body()).await?;
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    match json::tree(&bytes)? {
        Value::Object(fields) => Ok(fields),
        _ => Err(invalid("The body must be a JSON object.")),
    }
}

fn seconds(asked: &Map<String, Value>, name: &str, default: u64) -> Result<u64, Refused> {
    match asked.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_u64()
            .filter(|seconds| (0..=SECONDS_MAX).contains(seconds))
            .ok_or_else(|| invalid(format!("`{name}` must be a whole number of seconds, 0 to {SECONDS_MAX}."))),
    }
}

/// An object of texts.
pub(super) fn pairs(asked: &Map<String, Value>, name: &str) -> Result<BTreeMap<String, String>, Refused> {
    let wrong = || {
        let kib = PAIRS_BYTES_MAX >> 10;
        invalid(format!("`{name}` must be an object of at most {PAIRS_MAX} texts, {kib} KiB in all."))
    };
    let fields = match asked.get(name) {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(fields)) if fields.len() <= PAIRS_MAX => fields,
        Some(_) => return Err(wrong()),
    };
    let pair = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    let pairs: Option<BTreeMap<_, _>> = fields.iter().map(pair).collect();
    let bytes =
        |pairs: &BTreeMap<String, String>| pairs.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    pairs.filter(|pairs| bytes(pairs) <= PAIRS_BYTES_MAX).ok_or_else(wrong)
}

/// Variables have names that every shell takes.
pub(super) fn check_names(envs: &BTreeMap<String, String>) -> Result<(), Refused> {
    let is_name = |name: &str| {
        let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        starts && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let bad = envs.iter().find(|(name, value)| !is_name(name) || value.contains('\0'));
    bad.map_or(Ok(()), |(name, _)| {
        let shown: String = name.chars().take(100).collect();
        Err(invalid(format!("`{shown}` is no variable: names have letters, digits and `_`, values no zero byte.")))
    })
}

/// Refuses what would otherwise be promised and not done.
fn check_unbuilt(asked: &Map<String, Value>, details: &PoolDetails) -> Result<(), Refused> {
    let is_true = |name: &str| asked.get(name).and_then(Value::as_bool) == Some(true);
    let is_filled = |name: &str| match asked.get(name) {
        Some(Value::Object(fields)) => !fields.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        _ => false,
    };
    if is_true("autoPause") {
        return Err(not_built("A sandbox is killed at its timeout; pausing it is not built for E2B's API"));
    }
    if let Some(name) = ["network", "volumeMounts", "mcp", "iam"].into_iter().find(|name| is_filled(name)) {
        return Err(not_built(&format!("`{name}` is not built: the pool says what its sandboxes reach")));
    }
    if asked.get("allow_internet_access").and_then(Value::as_bool) == Some(false) && details.has_egress {
        let words = "The pool's sandboxes reach the internet (`EgressEnabled`); use a pool with `EgressDisabled`.";
        return Err(invalid(words));
    }
    Ok(())
}

/// Pairs of a query.
fn form(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).take(PAIRS_MAX);
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn what_cannot_be_given_is_refused() {
        let closed = PoolDetails::default();
        let open = PoolDetails { has_egress: true, ..PoolDetails::default() };
        assert!(check_unbuilt(&object(json!({ "allow_internet_access": true })), &closed).is_ok());
        assert!(check_unbuilt(&object(json!({ "allow_internet_access": false })), &closed).is_ok());
        assert!(check_unbuilt(&object(json!({ "network": {}, "volumeMounts": [], "mcp": null })), &open).is_ok());
        for (body, status) in [
            (json!({ "allow_internet_access": false }), 400),
            (json!({ "autoPause": true }), 501),
            (json!({ "network": { "denyOut": ["0.0.0.0/0"] } }), 501),
            (json!({ "volumeMounts": [{ "name": "x" }] }), 501),
        ] {
            assert_eq!(check_unbuilt(&object(body.clone()), &open).unwrap_err().error.status, status, "{body}");
        }
    }

    #[test]
    fn numbers_and_pairs_have_limits() {
        assert_eq!(seconds(&object(json!({})), "timeout", 15).unwrap(), 15);
        assert_eq!(seconds(&object(json!({ "timeout": 300 })), "timeout", 15).unwrap(), 300);
        for bad in [json!(-1), json!(1.5), json!("300"), json!(86_401)] {
            assert!(seconds(&object(json!({ "timeout": bad })), "timeout", 15).is_err(), "{bad}");
        }
        assert_eq!(pairs(&object(json!({ "m": { "a": "b" } })), "m").unwrap().len(), 1);
        for bad in [json!([]), json!({ "a": 1 }), json!({ "a": "x".repeat(PAIRS_BYTES_MAX) })] {
            assert!(pairs(&object(json!({ "m": bad })), "m").is_err());
        }
        for (name, is_good) in
            [("PATH_2", true), ("_x", true), ("2x", false), ("a-b", false), ("", false), ("a b", false)]
        {
            assert_eq!(check_names(&BTreeMap::from([(name.to_owned(), String::new())])).is_ok(), is_good, "{name}");
        }
        assert_eq!(
            form("metadata=a%3Db%26c%3Dd+e&x"),
            [("metadata".to_owned(), "a=b&c=d e".to_owned()), ("x".to_owned(), String::new())]
        );
    }
}
