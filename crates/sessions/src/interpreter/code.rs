//! Execution of code and of shell commands.
//!
//! A pool of kind Shell takes `shellCommand` and answers with the exit code as `status`, as Azure's does; the others take
//! `code`. A result is the value where it has a JSON form, else its text; a plot is an object with the PNG in it.

use std::{sync::Arc, time::Instant};

use axum::response::Response;
use cove_model::SessionContainer;
use http::HeaderValue;
use serde_json::{Map, Value, json};

use super::{
    Call, SECONDS_DEFAULT, SECONDS_MAX, answered,
    guest::{Outcome, Status},
};
use crate::{answer::Refused, service::Service};

/// Images that a result may be, with their names.
const IMAGES: [(&str, &str); 3] = [("image/png", "png"), ("image/jpeg", "jpeg"), ("image/svg+xml", "svg")];

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
            .filter(|value| (1..=SECONDS_MAX).contains(value))
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
        let program = fields.get("execCommandAndArgs").filter(|value| !value.is_null());
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
    if asked.is_asynchronous {
        return Err(invalid("`code/execute` is synchronous only; use `executions` with a later api-version."));
    }
    let lease = call.lease(service).await?;
    let sent = Instant::now();
    let outcome = service.run(&lease, asked.work, asked.seconds).await?;
    let mut properties = json!({
        "status": if outcome.status == Status::Succeeded { "Success" } else { "Failure" },
        "stdout": outcome.stdout,
        "stderr": outcome.stderr,
        "result": result(&outcome),
        "executionResult": result(&outcome),
        "executionTimeInMilliseconds": outcome.milliseconds,
    });
    if let Some(error) = &outcome.error {
        properties["error"] =
            json!({ "name": error.ename, "message": error.evalue, "stackTrace": error.traceback.join("\n") });
    }
    if let Some(code) = outcome.exit_code {
        properties["exitCode"] = code.into();
    }
    Ok(answered(200, &json!({ "properties": properties }), &lease, call.begun, sent))
}

/// `executions`.
pub(super) async fn execute(service: &Arc<Service>, call: Call, body: Value) -> Result<Response, Refused> {
    let asked = asked(call.pool.container, body.get("properties").filter(|inner| inner.is_object()).unwrap_or(&body))?;
    let id = uuid::Uuid::new_v4().to_string();
    let lease = call.lease(service).await?;
    let sent = Instant::now();
    let mut shown = json!({
        "id": id,
        "identifier": call.identifier.as_str(),
        "sessionId": lease.allocation.session.guid,
        "executionType": if asked.is_asynchronous { "Asynchronous" } else { "Synchronous" },
        "status": "Running",
    });
    if !service.executions.begin(&id, &call.pool.id, &call.identifier, shown.clone()) {
        return Err(Refused::new(429, "TooManyExecutions", "Too many executions run; try again when some have ended."));
    }
    let (is_shell, is_asynchronous) = (asked.is_shell, asked.is_asynchronous);
    let answer_of = |lease, status, shown: &Value| answered(status, shown, lease, call.begun, sent);
    if !is_asynchronous {
        // a client that leaves ends the wait, not the code; what became of it is not known then
        let mut unfinished = Unfinished { service, id: &id, shown: Some(&shown) };
        let outcome = service.run(&lease, asked.work, asked.seconds).await;
        unfinished.shown = None;
        drop(unfinished);
        let (ended, bytes) = ended(&shown, &outcome, is_shell);
        service.executions.end(&id, ended.clone(), bytes);
        outcome?;
        return Ok(answer_of(&lease, 200, &ended));
    }
    let mut response = answer_of(&lease, 202, &shown);
    let version = crate::service::parameter(&call.query, "api-version")?.unwrap_or_default();
    let identifier =
        percent_encoding::utf8_percent_encode(call.identifier.as_str(), percent_encoding::NON_ALPHANUMERIC);
    let location = format!("{}/executions/{id}?api-version={version}&identifier={identifier}", call.base);
    if let Ok(value) = HeaderValue::from_str(&location) {
        response.headers_mut().insert("operation-location", value);
    }
    let service = Arc::clone(service);
    tokio::spawn(async move {
        let outcome = service.run(&lease, asked.work, asked.seconds).await;
        let (ended, bytes) = ended(&shown.take(), &outcome, is_shell);
        service.executions.end(&id, ended, bytes);
        drop(lease);
    });
    Ok(response)
}

/// Notes an execution as canceled when nobody waits for it any more.
struct Unfinished<'a> {
    service: &'a Service,
    id: &'a str,
    shown: Option<&'a Value>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let Some(mut shown) = self.shown.cloned() else { return };
        shown["status"] = "Canceled".into();
        self.service.executions.end(self.id, shown, 0);
    }
}

/// `GET executions/{id}`.
pub(super) fn show(service: &Service, call: &Call, id: &str) -> Result<Response, Refused> {
    let Some(shown) = service.executions.find(id, &call.pool.id, &call.identifier) else {
        let words = "This session has no such execution; they are kept for an hour after their end, and not over a restart of the server.";
        return Err(Refused::new(404, "ExecutionNotFound", words));
    };
    let mut response = Response::new(axum::body::Body::from(shown.to_string()));
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    Ok(response)
}

/// An execution that has ended, and about how many bytes it is.
fn ended(shown: &Value, outcome: &Result<Outcome, Refused>, is_shell: bool) -> (Value, usize) {
    let mut shown = shown.clone();
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(refused) => {
            shown["status"] = "Failed".into();
            shown["error"] = refused.error.inner_json();
            return (shown, 1024);
        }
    };
    let mut fields = Map::new();
    fields.insert("stdout".into(), outcome.stdout.as_str().into());
    fields.insert("stderr".into(), outcome.stderr.as_str().into());
    if is_shell {
        let code = outcome.exit_code.unwrap_or(if outcome.status == Status::Succeeded { 0 } else { 124 });
        shown["status"] = code.to_string().into();
    } else {
        shown["status"] = if outcome.status == Status::Succeeded { "Succeeded" } else { "Failed" }.into();
        fields.insert("executionResult".into(), result(outcome));
    }
    fields.insert("executionTimeInMilliseconds".into(), outcome.milliseconds.into());
    shown["result"] = Value::Object(fields);
    if let Some(error) = &outcome.error {
        let code = if outcome.status == Status::TimedOut { "ExecutionTimedOut" } else { "ExecutionFailed" };
        shown["error"] = json!({ "code": code, "message": format!("{}: {}", error.ename, error.evalue) });
    }
    if !is_shell {
        shown["rawResult"] = json!({
            "result": outcome.result,
            "outputs": outcome.outputs,
            "error": outcome.error.as_ref().map(|error| json!({
                "ename": error.ename, "evalue": error.evalue, "traceback": error.traceback,
            })),
        });
    }
    let bytes = shown.to_string().len();
    (shown, bytes)
}

/// The value of an execution: an image, a JSON value or a text; null where there is none.
pub(super) fn result(outcome: &Outcome) -> Value {
    let image = |bundle: &Value| {
        IMAGES.into_iter().find_map(|(kind, name)| {
            let data = bundle.get(kind)?.as_str()?.trim();
            Some(json!({ "type": "image", "format": name, "base64_data": data }))
        })
    };
    // a plot is shown, not returned: what is returned beside it is the text of some object
    if let Some(image) = outcome.outputs.iter().rev().find_map(image) {
        return image;
    }
    let Some(bundle) = &outcome.result else { return Value::Null };
    bundle.get("application/json").or_else(|| bundle.get("text/plain")).cloned().unwrap_or(Value::Null)
}

/// Whether a request would be executed.
#[cfg(test)]
pub(super) fn is_readable(kind: SessionContainer, fields: &Value) -> bool {
    asked(kind, fields).is_ok()
}
