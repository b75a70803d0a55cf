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
use cove_model::{SessionContainer, SessionIdentifier};
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use super::{SECONDS_DEFAULT, SECONDS_MAX, code, guest::Outcome, guest::Status};
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

/// JSON-RPC's codes.
const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const METHOD_NOT_FOUND: i32 = -32601;
const INVALID_PARAMS: i32 = -32602;

/// A refusal in JSON-RPC's terms.
struct RpcError(i32, String);

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
    let Ok(message) = serde_json::from_slice::<Value>(&bytes) else {
        let error = failed(&Value::Null, RpcError(PARSE_ERROR, "the body is no JSON".into()));
        return Ok((StatusCode::BAD_REQUEST, axum::Json(error)).into_response());
    };
    let answers = match &message {
        Value::Array(messages) if messages.is_empty() || messages.len() > BATCH_MAX => {
            let words = format!("a batch has 1 to {BATCH_MAX} messages");
            Some(failed(&Value::Null, RpcError(INVALID_REQUEST, words)))
        }
        Value::Array(messages) => {
            let mut answers = Vec::new();
            for message in messages {
                answers.extend(one(service, &pool, message).await);
            }
            (!answers.is_empty()).then_some(Value::Array(answers))
        }
        message => one(service, &pool, message).await,
    };
    Ok(answers.map_or_else(|| StatusCode::ACCEPTED.into_response(), |value| axum::Json(value).into_response()))
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
async fn one(service: &Arc<Service>, pool: &PoolInfo, message: &Value) -> Option<Value> {
    let invalid = |words: &str| Some(failed(&Value::Null, RpcError(INVALID_REQUEST, words.into())));
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
        "initialize" => Ok(initialize(params)),
        "ping" => Ok(json!({})),
        "tools/list" => Ok(json!({ "tools": tools(pool.container) })),
        "tools/call" => call(service, pool, params).await,
        _ => Err(RpcError(METHOD_NOT_FOUND, "this server has initialize, ping, tools/list and tools/call".into())),
    };
    Some(match answered {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(error) => failed(id, error),
    })
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

async fn call(service: &Arc<Service>, pool: &PoolInfo, params: &Value) -> Result<Value, RpcError> {
    let invalid = |words: &str| RpcError(INVALID_PARAMS, words.to_owned());
    let name = params["name"].as_str().ok_or_else(|| invalid("`name` is missing"))?;
    let given = &params["arguments"];
    let text = |name: &str| given[name].as_str().map(str::to_owned);
    let work = match name {
        "launchShell" => return Ok(launch(service, pool).await),
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
        Ok(outcome) => done(&outcome, name == "runPythonCodeInRemoteEnvironment"),
        Err(refused) => tool_error(&refused),
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

fn done(outcome: &Outcome, is_python: bool) -> Value {
    let mut value = json!({ "stdout": outcome.stdout, "stderr": outcome.stderr });
    if is_python {
        value["status"] = format!("{:?}", outcome.status).into();
        value["result"] = code::result(outcome);
    } else {
        value["exitCode"] = outcome.exit_code.unwrap_or(124).into();
    }
    let mut content = Vec::new();
    if value["result"]["type"] == "image" && value["result"]["format"] == "png" {
        let data = value["result"]["base64_data"].clone();
        content.push(json!({ "type": "image", "data": data, "mimeType": "image/png" }));
    }
    content.insert(0, json!({ "type": "text", "text": value.to_string() }));
    let is_error = outcome.status != Status::Succeeded;
    json!({ "content": content, "structuredContent": value, "isError": is_error })
}

/// What an agent can read and act upon is no error of the protocol.
fn tool_error(refused: &Refused) -> Value {
    let text = format!("{}: {}", refused.error.code, refused.error.message);
    json!({ "content": [{ "type": "text", "text": text }], "isError": true })
}
