//! The MCP server of a pool: tools for agents, over streamable HTTP (JSON-RPC 2.0, one answer per request).
//!
//! It is opened by the pool's API key (`x-ms-apikey`) instead of a token. An environment is a session whose identifier this
//! module made up, so the key reaches these sessions only, never those that token holders named.
//!
//! **Invariant:** a wrong key learns nothing, not even whether the pool exists.

use std::{sync::Arc, time::Instant};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use cove_model::{SessionContainer, SessionIdentifier};
use http::{HeaderValue, Method, Request, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use super::{
    SECONDS_DEFAULT, SECONDS_MAX, code,
    outcome::{Outcome, Status, Worth},
    room::Room,
    written,
};
use crate::{
    answer::Refused,
    ports::{Lease, PoolInfo},
    service::Service,
};

/// Versions of the protocol that this server speaks, oldest first; others are answered with Azure's.
const VERSIONS: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
const VERSION: &str = "2025-03-26";
/// What environments' identifiers begin with.
const ENVIRONMENT: &str = "mcp-";
/// Messages of one request at most.
const BATCH_MAX: usize = 20;
/// Bytes of a batch's answers after which no more of its messages are looked at.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// JSON-RPC's codes.
const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const METHOD_NOT_FOUND: i32 = -32601;
const INVALID_PARAMS: i32 = -32602;

/// A refusal in JSON-RPC's terms.
struct RpcError(i32, String);

/// The answer to a message, with the room that it takes.
struct Answer {
    bytes: Bytes,
    room: Room,
}

/// What a tool says.
struct Said {
    json: Box<RawValue>,
    room: Room,
}

impl From<Value> for Said {
    fn from(value: Value) -> Self {
        Self { json: raw(&value), room: Room::default() }
    }
}

fn raw(value: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("texts, numbers and what was JSON before can be written")
}

/// Answers a request to `…/mcp`.
pub(super) async fn answer(
    service: &Arc<Service>,
    pool: PoolInfo,
    request: Request<Body>,
) -> Result<Response, Refused> {
    let key = request.headers().get("x-ms-apikey").map(http::HeaderValue::as_bytes).unwrap_or_default();
    if !service.ports.pools.is_mcp_key(&pool.id, key) {
        return Err(wrong_key());
    }
    if request.method() != Method::POST {
        // no stream of the server's own messages, and no transport session to end
        return Err(Refused::new(405, "MethodNotAllowed", "The MCP server takes POST only."));
    }
    let bytes = super::whole(request.into_body()).await?;
    let message = match crate::json::tree(&bytes) {
        Ok(message) => message,
        Err(why) => {
            let error = failed(&Value::Null, RpcError(PARSE_ERROR, why.error.message));
            return Ok((StatusCode::BAD_REQUEST, axum::Json(error)).into_response());
        }
    };
    drop(bytes);
    let answer = match &message {
        Value::Array(messages) if messages.is_empty() || messages.len() > BATCH_MAX => {
            let words = format!("a batch has 1 to {BATCH_MAX} messages");
            Some(Answer::of(&failed(&Value::Null, RpcError(INVALID_REQUEST, words))))
        }
        Value::Array(messages) => batch(service, &pool, messages).await,
        message => one(service, &pool, message).await,
    };
    let Some(Answer { bytes, room }) = answer else { return Ok(StatusCode::ACCEPTED.into_response()) };
    let length = bytes.len();
    let mut response = Response::new(room.into_body(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok(response)
}

/// Answers messages in turn; nothing when none of them asks.
async fn batch(service: &Arc<Service>, pool: &PoolInfo, messages: &[Value]) -> Option<Answer> {
    let (mut whole, mut rooms) = (Vec::new(), Room::default());
    for message in messages {
        let answer = if whole.len() < BATCH_BYTES_MAX {
            one(service, pool, message).await
        } else {
            let words = "the answers of this batch are long already; send this message again";
            message.get("id").map(|id| Answer::of(&failed(id, RpcError(INVALID_REQUEST, words.into()))))
        };
        let Some(answer) = answer else { continue };
        whole.push(if whole.is_empty() { b'[' } else { b',' });
        whole.extend_from_slice(&answer.bytes);
        rooms.join(answer.room);
    }
    (!whole.is_empty()).then(|| {
        whole.push(b']');
        Answer { bytes: Bytes::from(whole.into_boxed_slice()), room: rooms }
    })
}

impl Answer {
    fn of(value: &Value) -> Self {
        Self { bytes: written(value), room: Room::default() }
    }
}

/// What everybody hears who has no right key.
pub(crate) fn wrong_key() -> Refused {
    let words = "The header `x-ms-apikey` is missing or not this pool's key; `fetchMCPServerCredentials` gives it.";
    Refused::new(401, "AuthenticationFailed", words)
}

fn failed(id: &Value, RpcError(code, message): RpcError) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })
}

/// Answers one message; nothing for a notification or an answer.
async fn one(service: &Arc<Service>, pool: &PoolInfo, message: &Value) -> Option<Answer> {
    let invalid = |words: &str| Some(Answer::of(&failed(&Value::Null, RpcError(INVALID_REQUEST, words.into()))));
    if !message.is_object() || message["jsonrpc"] != "2.0" {
        return invalid("a message is an object with `jsonrpc`: `2.0`");
    }
    let Some(method) = message["method"].as_str() else {
        let is_answer = message.get("result").is_some() || message.get("error").is_some();
        return if is_answer { None } else { invalid("`method` is missing") };
    };
    let id = message.get("id")?;
    if !(id.is_string() || id.is_number()) {
        return invalid("`id` must be a text or a number");
    }
    let params = &message["params"];
    let answered = match method {
        "initialize" => Ok(initialize(params).into()),
        "ping" => Ok(json!({}).into()),
        "tools/list" => Ok(json!({ "tools": tools(pool.container) }).into()),
        "tools/call" => call(service, pool, params).await,
        _ => Err(RpcError(METHOD_NOT_FOUND, "this server has initialize, ping, tools/list and tools/call".into())),
    };
    Some(match answered {
        Ok(Said { json, mut room }) => {
            let bytes = written(&Reply { jsonrpc: "2.0", id, result: json });
            room.shrink(bytes.len());
            Answer { bytes, room }
        }
        Err(error) => Answer::of(&failed(id, error)),
    })
}

/// An answer that is no error.
#[derive(Serialize)]
struct Reply<'a> {
    jsonrpc: &'static str,
    id: &'a Value,
    result: Box<RawValue>,
}

fn initialize(params: &Value) -> Value {
    let asked = params["protocolVersion"].as_str().unwrap_or_default();
    let version = VERSIONS.into_iter().find(|known| *known == asked).unwrap_or(VERSION);
    json!({
        "protocolVersion": version,
        "capabilities": { "tools": { "call": true, "list": true } },
        "serverInfo": { "name": "Microsoft Container Apps MCP Server", "version": "1.0.0" },
        "instructions": "Call launchShell first; it gives the environmentId that the other tools take.",
    })
}

/// The tools, which are fixed; Python only where the environment has it as its own.
fn tools(kind: SessionContainer) -> Vec<Value> {
    let text = |words: &str| json!({ "type": "string", "description": words });
    let environment = || text("The environmentId that launchShell gave.");
    let output = |properties: Value| json!({ "type": "object", "properties": properties });
    let mut all = vec![
        json!({
            "name": "launchShell",
            "description": "Launch a new isolated environment. Its files and variables stay until it ends some minutes after the last use.",
            "inputSchema": { "type": "object", "properties": {} },
            "outputSchema": output(json!({ "environmentId": text("Names the environment in the other tools.") })),
        }),
        json!({
            "name": "runShellCommandInRemoteEnvironment",
            "description": "Run a shell command, or a program with arguments, in an environment. Files are below /mnt/data.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "environmentId": environment(),
                    "shellCommand": text("A command for bash; give this or execCommandAndArgs."),
                    "execCommandAndArgs": {
                        "type": "array", "items": { "type": "string" },
                        "description": "A program and its arguments, run without a shell.",
                    },
                    "timeoutInSeconds": { "type": "integer", "minimum": 1, "maximum": SECONDS_MAX },
                },
                "required": ["environmentId"],
            },
            "outputSchema": output(json!({
                "stdout": text("What it wrote."), "stderr": text("What it wrote to stderr."),
                "exitCode": { "type": "integer" },
            })),
        }),
    ];
    if kind == SessionContainer::PythonLts {
        all.push(json!({
            "name": "runPythonCodeInRemoteEnvironment",
            "description": "Run Python code in an environment; variables stay from call to call. numpy, pandas and matplotlib are there.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "environmentId": environment(),
                    "pythonCode": text("The code."),
                    "timeoutInSeconds": { "type": "integer", "minimum": 1, "maximum": SECONDS_MAX },
                },
                "required": ["environmentId", "pythonCode"],
            },
            "outputSchema": output(json!({
                "stdout": text("What it wrote."), "stderr": text("What it wrote to stderr, and the error."),
                "status": text("Succeeded, Failed or TimedOut."), "result": {},
            })),
        }));
    }
    all
}

async fn call(service: &Arc<Service>, pool: &PoolInfo, params: &Value) -> Result<Said, RpcError> {
    let invalid = |words: &str| RpcError(INVALID_PARAMS, words.to_owned());
    let name = params["name"].as_str().ok_or_else(|| invalid("`name` is missing"))?;
    let given = &params["arguments"];
    let text = |name: &str| given[name].as_str().map(str::to_owned);
    let work = match name {
        "launchShell" => return Ok(launch(service, pool).await.into()),
        "runShellCommandInRemoteEnvironment" => match (text("shellCommand"), given.get("execCommandAndArgs")) {
            (Some(command), None | Some(Value::Null)) => json!({ "command": command }),
            (None, Some(program)) => {
                let words = code::words(program).map_err(|refused| invalid(&refused.error.message))?;
                json!({ "program": words })
            }
            _ => return Err(invalid("give `shellCommand` or `execCommandAndArgs`")),
        },
        "runPythonCodeInRemoteEnvironment" if pool.container == SessionContainer::PythonLts => {
            json!({ "code": text("pythonCode").ok_or_else(|| invalid("`pythonCode` is missing"))? })
        }
        _ => return Err(invalid("there is no such tool; tools/list names them")),
    };
    let seconds = match &given["timeoutInSeconds"] {
        Value::Null => SECONDS_DEFAULT,
        value => value
            .as_u64()
            .and_then(|value| u32::try_from(value).ok())
            .filter(|value| (1..=SECONDS_MAX).contains(value))
            .ok_or_else(|| invalid("`timeoutInSeconds` must be 1 to 220"))?,
    };
    let environment = text("environmentId").ok_or_else(|| invalid("`environmentId` is missing; call launchShell"))?;
    Ok(match run(service, pool, &environment, work, seconds).await {
        Ok(mut outcome) => {
            let room = std::mem::take(&mut outcome.room);
            Said { json: done(&outcome, name == "runPythonCodeInRemoteEnvironment"), room }
        }
        Err(refused) => tool_error(&refused).into(),
    })
}

async fn launch(service: &Service, pool: &PoolInfo) -> Value {
    let text = format!("{ENVIRONMENT}{}", uuid::Uuid::new_v4());
    let Ok(identifier) = SessionIdentifier::new(&text) else {
        return tool_error(&Refused::unreachable("its identifier cannot be"));
    };
    match service.ports.pools.allocate(&pool.id, &identifier).await {
        Ok(_lease) => {
            let value = json!({ "environmentId": text });
            json!({ "content": [{ "type": "text", "text": value.to_string() }], "structuredContent": value, "isError": false })
        }
        Err(error) => tool_error(&error.into()),
    }
}

/// The session of an environment, which must be there: one that ended is not made anew in silence, its files would be gone.
async fn lease(service: &Service, pool: &PoolInfo, environment: &str) -> Result<Lease, Refused> {
    let unknown = || {
        let words = "There is no such environment, or it ended; call launchShell for a new one.";
        Refused::new(404, "SessionNotFound", words)
    };
    if !environment.starts_with(ENVIRONMENT) {
        return Err(unknown());
    }
    let identifier = SessionIdentifier::new(environment).map_err(|_| unknown())?;
    service.ports.pools.find(&pool.id, &identifier).ok_or_else(unknown)?;
    Ok(service.ports.pools.allocate(&pool.id, &identifier).await?)
}

async fn run(
    service: &Arc<Service>,
    pool: &PoolInfo,
    environment: &str,
    work: Value,
    seconds: u32,
) -> Result<Outcome, Refused> {
    let lease = lease(service, pool, environment).await?;
    let begun = Instant::now();
    let outcome = service.run(&lease, work, seconds).await;
    tracing::debug!(took = ?begun.elapsed(), "a tool was run in a session");
    outcome
}

/// What became of code, for an agent.
#[derive(Serialize)]
struct Done<'a> {
    stdout: &'a str,
    stderr: &'a str,
    #[serde(rename = "exitCode", skip_serializing_if = "Option::is_none")]
    exit_code: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Worth<'a>>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum Content<'a> {
    Text {
        text: String,
    },
    #[serde(rename_all = "camelCase")]
    Image {
        data: &'a str,
        mime_type: &'static str,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Called<'a> {
    content: Vec<Content<'a>>,
    structured_content: &'a Done<'a>,
    is_error: bool,
}

fn done(outcome: &Outcome, is_python: bool) -> Box<RawValue> {
    let done = Done {
        stdout: &outcome.stdout,
        stderr: &outcome.stderr,
        exit_code: (!is_python).then(|| outcome.exit_code.unwrap_or(124)),
        status: is_python.then(|| format!("{:?}", outcome.status)),
        result: is_python.then(|| outcome.worth()),
    };
    let mut content = vec![Content::Text { text: Box::<str>::from(raw(&done)).into() }];
    if let Some(Worth::Image { format: "png", base64_data, .. }) = &done.result {
        content.push(Content::Image { data: base64_data, mime_type: "image/png" });
    }
    let is_error = outcome.status != Status::Succeeded;
    raw(&Called { content, structured_content: &done, is_error })
}

/// What an agent can read and act upon is no error of the protocol.
fn tool_error(refused: &Refused) -> Value {
    let text = format!("{}: {}", refused.error.code, refused.error.message);
    json!({ "content": [{ "type": "text", "text": text }], "isError": true })
}
