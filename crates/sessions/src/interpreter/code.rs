//! Execution of code and of shell commands.
//!
//! A pool of kind Shell takes `shellCommand` and answers with the exit code as `status`, as Azure's does; the others take
//! `code`. A result is the value where it has a JSON form, else its text; a plot is an object with the PNG in it.

use std::{sync::Arc, time::Instant};

use axum::response::Response;
use bytes::Bytes;
use cove_model::SessionContainer;
use http::HeaderValue;
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use super::{
    Call, SECONDS_DEFAULT, SECONDS_MAX, answered,
    outcome::{Failure, Outcome, Status, Worth},
    room::Room,
    written,
};
use crate::{answer::Refused, service::Service};

/// What is to be executed.
struct Asked {
    /// In the words of the session's server.
    work: Value,
    seconds: u32,
    is_asynchronous: bool,
    is_shell: bool,
}

fn invalid(message: impl Into<String>) -> Refused {
    Refused::new(400, "InvalidRequestContent", message)
}

/// Reads a request; `fields` is where the older generation has `properties`.
fn asked(kind: SessionContainer, fields: &Value) -> Result<Asked, Refused> {
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(invalid(format!("`{name}` must be a text."))),
    };
    let seconds = match fields.get("timeoutInSeconds") {
        None | Some(Value::Null) => SECONDS_DEFAULT,
        Some(value) => value
            .as_u64()
            .and_then(|value| u32::try_from(value).ok())
            .filter(|value| *value >= 1)
            // Azure's own examples of shells ask for more than there is
            .map(|value| if kind == SessionContainer::Shell { value.min(SECONDS_MAX) } else { value })
            .filter(|value| *value <= SECONDS_MAX)
            .ok_or_else(|| invalid(format!("`timeoutInSeconds` must be a whole number from 1 to {SECONDS_MAX}.")))?,
    };
    let is_asynchronous = match text("executionType")?.map(|word| word.to_ascii_lowercase()).as_deref() {
        None | Some("synchronous") => false,
        Some("asynchronous") => true,
        Some(_) => return Err(invalid("`executionType` must be `synchronous` or `asynchronous`.")),
    };
    if let Some(kind) = text("codeInputType")?
        && !kind.eq_ignore_ascii_case("inline")
    {
        return Err(invalid("`codeInputType` must be `inline`."));
    }
    if kind == SessionContainer::Shell {
        let command = text("shellCommand")?.or(text("code")?);
        // the first previews called the list `command`
        let given = |name: &str| fields.get(name).filter(|value| !value.is_null());
        let program = given("execCommandAndArgs").or_else(|| given("command"));
        let work = match (command, program) {
            (Some(command), None) => json!({ "command": command }),
            (None, Some(program)) => json!({ "program": words(program)? }),
            _ => return Err(invalid("Give `shellCommand`, or `execCommandAndArgs` with a program and its arguments.")),
        };
        return Ok(Asked { work, seconds, is_asynchronous, is_shell: true });
    }
    let code = text("code")?.or(text("pythonCode")?).ok_or_else(|| invalid("`code` is missing."))?;
    Ok(Asked { work: json!({ "code": code }), seconds, is_asynchronous, is_shell: false })
}

/// A program and its arguments.
pub(super) fn words(value: &Value) -> Result<Vec<String>, Refused> {
    let wrong = || invalid("`execCommandAndArgs` must be a list of texts: a program and its arguments.");
    let list = value.as_array().filter(|list| !list.is_empty() && list.len() <= 1000).ok_or_else(wrong)?;
    list.iter().map(|word| word.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
}

/// `code/execute`.
pub(super) async fn execute_older(service: &Arc<Service>, call: &Call, body: Value) -> Result<Response, Refused> {
    let fields = body.get("properties").filter(|fields| fields.is_object()).unwrap_or(&body);
    let asked = asked(call.pool.container, fields)?;
    drop(body);
    if asked.is_asynchronous {
        return Err(invalid("`code/execute` is synchronous only; use `executions`."));
    }
    let lease = call.lease(service).await?;
    let sent = Instant::now();
    let mut outcome = service.run(&lease, asked.work, asked.seconds).await?;
    let room = std::mem::take(&mut outcome.room);
    let bytes = written(&Properties { properties: older(&outcome) });
    drop(outcome);
    Ok(answered(200, (bytes, room), &lease, call.begun, sent))
}

/// What the older generation wraps everything in.
#[derive(Serialize)]
struct Properties<T> {
    properties: T,
}

/// An execution in the older generation's words.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Older<'a> {
    status: &'static str,
    stdout: &'a str,
    stderr: &'a str,
    result: Worth<'a>,
    execution_result: Worth<'a>,
    execution_time_in_milliseconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i64>,
}

fn older(outcome: &Outcome) -> Older<'_> {
    let error = |error: &Failure| json!({ "name": error.ename, "message": error.evalue, "stackTrace": error.traceback.join("\n") });
    Older {
        status: if outcome.status == Status::Succeeded { "Success" } else { "Failure" },
        stdout: &outcome.stdout,
        stderr: &outcome.stderr,
        result: outcome.worth(),
        execution_result: outcome.worth(),
        execution_time_in_milliseconds: outcome.milliseconds,
        error: outcome.error.as_ref().map(error),
        exit_code: outcome.exit_code,
    }
}

/// What an execution is from its begin on.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Begun {
    id: String,
    identifier: String,
    session_id: String,
    execution_type: &'static str,
}

/// An execution as it is shown.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    #[serde(flatten)]
    begun: &'a Begun,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Fields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_result: Option<RawResult<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a> {
    stdout: &'a str,
    stderr: &'a str,
    /// A command has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    execution_result: Option<Worth<'a>>,
    execution_time_in_milliseconds: u64,
}

/// All that the session showed, as it came.
#[derive(Serialize)]
struct RawResult<'a> {
    result: Option<&'a RawValue>,
    outputs: &'a [Box<RawValue>],
    error: Option<&'a Failure>,
}

impl Begun {
    /// What there is to say without an outcome.
    fn shown(&self, status: &str, error: Option<Value>) -> Bytes {
        written(&Shown { begun: self, status, result: None, raw_result: None, error })
    }
}

/// `executions`.
pub(super) async fn execute(service: &Arc<Service>, call: Call, body: Value) -> Result<Response, Refused> {
    let asked = asked(call.pool.container, body.get("properties").filter(|inner| inner.is_object()).unwrap_or(&body))?;
    drop(body);
    let id = uuid::Uuid::new_v4().to_string();
    let lease = call.lease(service).await?;
    let sent = Instant::now();
    let begun = Begun {
        id: id.clone(),
        identifier: call.identifier.as_str().to_owned(),
        session_id: lease.allocation.session.guid.clone(),
        execution_type: if asked.is_asynchronous { "Asynchronous" } else { "Synchronous" },
    };
    let running = begun.shown("Running", None);
    if !service.executions.begin(&id, &call.pool.id, &call.identifier, running.clone()) {
        return Err(Refused::new(429, "TooManyExecutions", "Too many executions run; try again when some have ended."));
    }
    let Asked { work, seconds, is_asynchronous, is_shell } = asked;
    if !is_asynchronous {
        // a client that leaves ends the wait, not the code; what became of it is not known then
        let mut unfinished = Unfinished { service, begun: Some(&begun) };
        let outcome = service.run(&lease, work, seconds).await;
        unfinished.begun = None;
        drop(unfinished);
        let (bytes, room) = end(service, &begun, outcome, is_shell)?;
        return Ok(answered(200, (bytes, room), &lease, call.begun, sent));
    }
    let mut response = answered(202, (running, Room::default()), &lease, call.begun, sent);
    let version = crate::service::parameter(&call.query, "api-version")?.unwrap_or_default();
    let identifier =
        percent_encoding::utf8_percent_encode(call.identifier.as_str(), percent_encoding::NON_ALPHANUMERIC);
    let location = format!("{}/executions/{id}?api-version={version}&identifier={identifier}", call.base);
    if let Ok(value) = HeaderValue::from_str(&location) {
        response.headers_mut().insert("operation-location", value);
    }
    let service = Arc::clone(service);
    tokio::spawn(async move {
        let outcome = service.run(&lease, work, seconds).await;
        // a refusal is in what is kept
        let _ = end(&service, &begun, outcome, is_shell);
        drop(lease);
    });
    Ok(response)
}

/// Notes how an execution ended; how that is shown.
fn end(
    service: &Service,
    begun: &Begun,
    outcome: Result<Outcome, Refused>,
    is_shell: bool,
) -> Result<(Bytes, Room), Refused> {
    match outcome {
        Ok(mut outcome) => {
            let room = std::mem::take(&mut outcome.room);
            let bytes = ended(begun, &outcome, is_shell);
            service.executions.end(&begun.id, bytes.clone());
            Ok((bytes, room))
        }
        Err(refused) => {
            service.executions.end(&begun.id, begun.shown("Failed", Some(refused.error.inner_json())));
            Err(refused)
        }
    }
}

/// Notes an execution as canceled when nobody waits for it any more.
struct Unfinished<'a> {
    service: &'a Service,
    begun: Option<&'a Begun>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let Some(begun) = self.begun else { return };
        self.service.executions.end(&begun.id, begun.shown("Canceled", None));
    }
}

/// `GET executions/{id}`.
pub(super) fn show(service: &Service, call: &Call, id: &str) -> Result<Response, Refused> {
    let Some(shown) = service.executions.find(id, &call.pool.id, &call.identifier) else {
        let words = "This session has no such execution; they are kept for an hour after their end, and not over a restart of the server.";
        return Err(Refused::new(404, "ExecutionNotFound", words));
    };
    let mut response = Response::new(axum::body::Body::from(shown));
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    Ok(response)
}

/// An execution that has ended.
fn ended(begun: &Begun, outcome: &Outcome, is_shell: bool) -> Bytes {
    let is_good = outcome.status == Status::Succeeded;
    let code = outcome.exit_code.unwrap_or(if is_good { 0 } else { 124 }).to_string();
    let status = match (is_shell, is_good) {
        (true, _) => code.as_str(),
        (false, true) => "Succeeded",
        (false, false) => "Failed",
    };
    let fields = Fields {
        stdout: &outcome.stdout,
        stderr: &outcome.stderr,
        execution_result: (!is_shell).then(|| outcome.worth()),
        execution_time_in_milliseconds: outcome.milliseconds,
    };
    let raw_result = (!is_shell).then(|| RawResult {
        result: outcome.result.as_deref(),
        outputs: &outcome.outputs,
        error: outcome.error.as_ref(),
    });
    let error = outcome.error.as_ref().map(|error| {
        let code = if outcome.status == Status::TimedOut { "ExecutionTimedOut" } else { "ExecutionFailed" };
        json!({ "code": code, "message": format!("{}: {}", error.ename, error.evalue) })
    });
    written(&Shown { begun, status, result: Some(fields), raw_result, error })
}

/// Whether a request would be executed.
#[cfg(test)]
pub(super) fn is_readable(kind: SessionContainer, fields: &Value) -> bool {
    asked(kind, fields).is_ok()
}
