//! `POST /execute` of a sandbox: code in the session's interpreter, answered in lines of JSON.
//!
//! The interpreter answers when the code has ended, so all lines come at once, in their order: output, results, error.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use cove_model::SessionContainer;
use http::{HeaderValue, Request, header};
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::{Value, value::RawValue};

use super::{E2b, Sandbox, api, not_built};
use crate::{
    answer::Refused,
    interpreter::{self, Bundle, Outcome},
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

/// Lines of output that have a message each; what follows is one message, since clients put the texts together.
const LINES_MAX: usize = 1000;

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
        let mut outcome = if is_command {
            // the shell of a Python session knows nothing of that interpreter's variables
            interpreter::run_command(self, &lease, code, &envs, &sandbox.envs).await
        } else {
            interpreter::run_with(self, &lease, code, &envs, &sandbox.envs).await
        }?;
        let now = e2b.clock.now().as_nanosecond();
        let room = std::mem::take(&mut outcome.room);
        let lines = lines(&outcome, is_command, now);
        drop(outcome);
        let mut response = Response::new(room.into_body(lines.into()));
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

/// A piece of output.
#[derive(Serialize)]
struct Output<'a> {
    text: &'a str,
    timestamp: i64,
    r#type: &'static str,
}

/// The error that ended code.
#[derive(Serialize)]
struct Failed<'a> {
    name: &'a str,
    traceback: &'a str,
    r#type: &'static str,
    value: &'a str,
}

/// A rich output in E2B's words; the main one is the value of the code.
struct Shown<'a> {
    bundle: Bundle<'a>,
    is_main: bool,
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let name = |kind: &str| FORMATS.into_iter().find(|(known, _)| *known == kind).map(|(_, name)| name);
        let mut fields = to.serialize_map(None)?;
        let extra: Vec<_> = self.bundle.iter().filter(|(kind, _)| name(kind).is_none()).collect();
        if !extra.is_empty() {
            fields.serialize_entry("extra", &Extra(extra))?;
        }
        fields.serialize_entry("is_main_result", &self.is_main)?;
        for (kind, part) in self.bundle.iter() {
            if let Some(name) = name(kind) {
                fields.serialize_entry(name, part)?;
            }
        }
        fields.serialize_entry("type", "result")?;
        fields.end()
    }
}

struct Extra<'a>(Vec<(&'a str, &'a RawValue)>);

impl Serialize for Extra<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().copied())
    }
}

fn lines(outcome: &Outcome, is_command: bool, now_ns: i128) -> Vec<u8> {
    let mut all = Vec::new();
    let timestamp = i64::try_from(now_ns).unwrap_or(i64::MAX);
    let mut output = |kind: &'static str, mut rest: &str| {
        for count in 1.. {
            let end = rest.find('\n').filter(|_| count <= LINES_MAX).map_or(rest.len(), |at| at + 1);
            let (text, behind) = rest.split_at(end);
            if text.is_empty() {
                break;
            }
            line(&mut all, &Output { text, timestamp, r#type: kind });
            rest = behind;
        }
    };
    output("stdout", &outcome.stdout);
    let traceback = outcome.error.as_ref().map(|error| error.traceback.join("\n"));
    // the interpreter says an error at the end of stderr as well; here it has a line of its own
    let said = traceback.as_ref().and_then(|said| outcome.stderr.strip_suffix('\n')?.strip_suffix(said.as_str()));
    output("stderr", said.unwrap_or(&outcome.stderr));
    let main = outcome.result.as_deref().and_then(Bundle::of);
    for bundle in outcome.outputs.iter().filter_map(|output| Bundle::of(output)) {
        let is_part = |(kind, part): (&str, &RawValue)| {
            main.as_ref().and_then(|main| main.get(kind)).is_some_and(|main| main.get() == part.get())
        };
        let is_main = main.is_some() && bundle.iter().all(is_part);
        line(&mut all, &Shown { bundle, is_main });
    }
    if let (Some(error), Some(traceback)) = (&outcome.error, &traceback) {
        line(&mut all, &Failed { name: &error.ename, traceback, r#type: "error", value: &error.evalue });
    } else if let Some(code) = outcome.exit_code.filter(|code| is_command && *code != 0) {
        let value = format!("the command ended with exit code {code}");
        line(&mut all, &Failed { name: "CommandFailed", traceback: "", r#type: "error", value: &value });
    }
    all
}

/// Adds a line of JSON.
fn line(all: &mut Vec<u8>, shown: &impl Serialize) {
    let begin = all.len();
    serde_json::to_writer(&mut *all, shown).expect("texts, numbers and what was JSON before can be written");
    // where a session broke its JSON into lines; texts have none, they are escaped
    for byte in &mut all[begin..] {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    all.push(b'\n');
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use serde_json::json;

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
        .assert_eq(&text(&outcome));
    }

    fn text(outcome: &Outcome) -> String {
        String::from_utf8(lines(outcome, false, 7)).unwrap()
    }

    #[test]
    fn many_lines_are_few_messages() {
        let mut outcome: Outcome =
            serde_json::from_value(json!({ "status": "Succeeded", "stdout": "", "stderr": "" })).unwrap();
        assert_eq!(text(&outcome), "");
        for (count, messages) in [(LINES_MAX, LINES_MAX), (1_000_000, LINES_MAX + 1)] {
            outcome.stdout = "\n".repeat(count);
            let all = text(&outcome);
            let all: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(all.len(), messages);
            let texts: String = all.iter().map(|line| line["text"].as_str().unwrap()).collect();
            assert!(texts == outcome.stdout, "the texts are what was printed");
        }
    }

    #[test]
    fn what_a_session_broke_into_lines_is_one_line() {
        let outcome: Outcome = serde_json::from_str(
            "{\"status\": \"Succeeded\", \"stdout\": \"\", \"stderr\": \"\", \"outputs\": [[1], {\"text/plain\":\r\n{\"a\":\n1}}]}",
        )
        .unwrap();
        assert_eq!(text(&outcome), "{\"is_main_result\":false,\"text\":{\"a\": 1},\"type\":\"result\"}\n");
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
