//! `POST /execute` of a sandbox: code in the session's interpreter, answered in lines of JSON.
//!
//! The interpreter answers when the code has ended, so all lines come at once, in their order: output, results, error.

use std::{collections::BTreeMap, sync::Arc};

use axum::{body::Body, response::Response};
use cove_model::SessionContainer;
use http::{HeaderValue, Request, header};
use serde_json::{Map, Value, json};

use super::{E2b, Sandbox, api, not_built};
use crate::{
    answer::Refused,
    interpreter::{self, Outcome},
    service::Service,
};

/// Where the parts of a rich output stand in a result of E2B's.
const FORMATS: [(&str, &str); 10] = [
    ("text/plain", "text"),
    ("text/html", "html"),
    ("text/markdown", "markdown"),
    ("image/svg+xml", "svg"),
    ("image/png", "png"),
    ("image/jpeg", "jpeg"),
    ("application/pdf", "pdf"),
    ("text/latex", "latex"),
    ("application/json", "json"),
    ("application/javascript", "javascript"),
];

impl Service {
    pub(super) async fn e2b_execute(
        self: &Arc<Self>,
        e2b: &Arc<E2b>,
        sandbox: &Sandbox,
        request: Request<Body>,
    ) -> Result<Response, Refused> {
        let asked = api::body(request).await?;
        let code = asked.get("code").and_then(Value::as_str);
        let code = code.ok_or_else(|| Refused::new(400, "InvalidRequestContent", "`code` is missing."))?;
        if asked.get("context_id").is_some_and(|id| !id.is_null()) {
            return Err(not_built("Contexts of code are not built: a sandbox has one, its default"));
        }
        let pool = self.ports.pools.pool(&sandbox.pool).ok_or_else(Refused::unknown_pool)?;
        let language = asked.get("language").and_then(Value::as_str).unwrap_or_default();
        let is_command = is_command(pool.container, language)?;
        let envs = api::pairs(&asked, "env_vars")?;
        api::check_names(&envs)?;
        let lease = self.lease_of(sandbox).await?;
        let outcome = if is_command {
            // the shell of a Python session knows nothing of that interpreter's variables
            let all: BTreeMap<_, _> = sandbox.envs.iter().chain(&envs).collect();
            let set: String =
                all.iter().map(|(name, value)| format!("{name}={} ", interpreter::quoted(value))).collect();
            let line = if set.is_empty() { code.to_owned() } else { format!("export {set}\n{code}") };
            interpreter::run(self, &lease, json!({ "command": line })).await
        } else {
            interpreter::run_with(self, &lease, pool.container, code, &envs).await
        }?;
        let now = e2b.clock.now().as_nanosecond();
        let mut response = Response::new(Body::from(lines(&outcome, is_command, now)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        Ok(response)
    }

    /// A lease of the session that a sandbox began with, and of no other.
    pub(super) async fn lease_of(&self, sandbox: &Sandbox) -> Result<crate::Lease, Refused> {
        let gone = || Refused::new(502, "SandboxNotFound", "The sandbox was not found.");
        let identifier = sandbox.identifier().ok_or_else(gone)?;
        let lease = self.ports.pools.allocate(&sandbox.pool, &identifier).await?;
        if lease.allocation.session.guid == sandbox.guid {
            return Ok(lease);
        }
        // it ended a moment ago; what was made in its place is nobody's
        drop(lease);
        self.ports.pools.stop(&sandbox.pool, &identifier).await;
        Err(gone())
    }
}

/// Whether a language is the shell's; one that the pool does not have is refused.
fn is_command(container: SessionContainer, language: &str) -> Result<bool, Refused> {
    let refused = |words: String| Err(Refused::new(400, "NoSuchLanguage", words));
    let own = match container {
        SessionContainer::PythonLts => &["", "python", "python3"][..],
        SessionContainer::NodeLts => &["", "javascript", "js", "node"][..],
        SessionContainer::Shell => &[""][..],
        SessionContainer::Custom => {
            return refused("Sandboxes of this pool run commands and have files, but no interpreter.".to_owned());
        }
    };
    match language.to_ascii_lowercase().as_str() {
        "bash" | "sh" | "shell" => Ok(true),
        word if own.contains(&word) => Ok(container == SessionContainer::Shell),
        word => {
            let shown: String = word.chars().take(40).collect();
            refused(format!("Sandboxes of this pool do not speak `{shown}`; use bash, or a pool that does."))
        }
    }
}

fn lines(outcome: &Outcome, is_command: bool, now_ns: i128) -> String {
    let mut all = Vec::new();
    let mut output = |kind: &str, text: &str| {
        for line in text.split_inclusive('\n') {
            all.push(json!({ "type": kind, "text": line, "timestamp": i64::try_from(now_ns).unwrap_or(i64::MAX) }));
        }
    };
    output("stdout", &outcome.stdout);
    let said = outcome.error.as_ref().map(|error| format!("{}\n", error.traceback.join("\n"))).unwrap_or_default();
    // the interpreter says an error at the end of stderr as well; here it has a line of its own
    output("stderr", outcome.stderr.strip_suffix(&said).unwrap_or(&outcome.stderr));
    for bundle in outcome.outputs.iter().filter_map(Value::as_object) {
        all.push(result(bundle, outcome.result.as_ref()));
    }
    if let Some(error) = &outcome.error {
        let traceback = error.traceback.join("\n");
        all.push(json!({ "type": "error", "name": error.ename, "value": error.evalue, "traceback": traceback }));
    } else if let Some(code) = outcome.exit_code.filter(|code| is_command && *code != 0) {
        let value = format!("the command ended with exit code {code}");
        all.push(json!({ "type": "error", "name": "CommandFailed", "value": value, "traceback": "" }));
    }
    all.iter().map(|line| format!("{line}\n")).collect()
}

/// A rich output; the main one is the value of the code.
fn result(bundle: &Map<String, Value>, main: Option<&Value>) -> Value {
    let mut fields = Map::new();
    let mut extra = Map::new();
    for (kind, part) in bundle {
        match FORMATS.into_iter().find(|(known, _)| known == kind) {
            Some((_, name)) => fields.insert(name.to_owned(), part.clone()),
            None => extra.insert(kind.clone(), part.clone()),
        };
    }
    if !extra.is_empty() {
        fields.insert("extra".to_owned(), Value::Object(extra));
    }
    let is_main = main.is_some_and(|main| bundle.iter().all(|(kind, part)| main.get(kind) == Some(part)));
    fields.insert("type".to_owned(), "result".into());
    fields.insert("is_main_result".to_owned(), is_main.into());
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn an_outcome_is_lines() {
        let outcome: Outcome = serde_json::from_value(json!({
            "status": "Failed", "stdout": "a\nb", "stderr": "warned\nTraceback\nZeroDivisionError: x\n",
            "outputs": [{ "image/png": "AAAA", "text/plain": "<Figure>" }, { "text/plain": "42" }, { "x/y": "z" }],
            "result": { "text/plain": "42", "application/json": 42 },
            "error": { "ename": "ZeroDivisionError", "evalue": "x", "traceback": ["Traceback", "ZeroDivisionError: x"] },
        }))
        .unwrap();
        expect![[r#"
            {"text":"a\n","timestamp":7,"type":"stdout"}
            {"text":"b","timestamp":7,"type":"stdout"}
            {"text":"warned\n","timestamp":7,"type":"stderr"}
            {"is_main_result":false,"png":"AAAA","text":"<Figure>","type":"result"}
            {"is_main_result":true,"text":"42","type":"result"}
            {"extra":{"x/y":"z"},"is_main_result":false,"type":"result"}
            {"name":"ZeroDivisionError","traceback":"Traceback\nZeroDivisionError: x","type":"error","value":"x"}
        "#]]
        .assert_eq(&lines(&outcome, false, 7));
    }

    #[test]
    fn a_pool_speaks_its_language_and_the_shells() {
        assert!(!is_command(SessionContainer::PythonLts, "").unwrap());
        assert!(!is_command(SessionContainer::NodeLts, "JavaScript").unwrap());
        assert!(is_command(SessionContainer::PythonLts, "bash").unwrap());
        assert!(is_command(SessionContainer::Shell, "").unwrap());
        for (container, language) in
            [(SessionContainer::PythonLts, "r"), (SessionContainer::NodeLts, "python"), (SessionContainer::Custom, "")]
        {
            assert!(is_command(container, language).is_err(), "{language}");
        }
    }
}
