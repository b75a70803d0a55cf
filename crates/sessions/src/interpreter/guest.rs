//! Questions to the server in a session, whose answers are not trusted.
//!
//! Code in the session can end that server and answer in its place. So every answer has a limit of size and time, is read as
//! exactly the values that are expected, and everything else is an error of the session, never of this program.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{outcome::Outcome, room::Room};
use crate::{
    answer::Refused,
    body::{AnswerBody, Held},
    connections::{SendError, Sender},
    ports::Lease,
    service::Service,
};

/// What an answer may be long at most: two streams of 1 MiB and 8 MiB of rich output, escaped.
const ANSWER_MAX: usize = 40 << 20;
/// What a refusal may be long at most: a code and a sentence.
const REFUSAL_MAX: usize = 64 << 10;
/// Time for an answer that has room, so that nobody keeps that and says nothing.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// What a session may need beyond the time of an execution: its turn, an interrupt, a restart.
const PATIENCE: Duration = Duration::from_secs(150);
/// Time for what runs no code.
pub(super) const SHORT: Duration = Duration::from_secs(60);

const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'/');

/// One question.
pub(super) struct Question {
    pub(super) method: Method,
    /// Path at the session's server.
    pub(super) route: &'static str,
    /// File or folder it is about.
    pub(super) path: Option<String>,
    pub(super) body: Body,
    /// How long the answer may take.
    pub(super) within: Duration,
}

impl Question {
    /// About a file or folder.
    pub(super) fn file(method: Method, route: &'static str, path: &str) -> Self {
        Self { method, route, path: Some(path.to_owned()), body: Body::empty(), within: SHORT }
    }

    fn into_request(self) -> Result<Request<Limited<Body>>, Refused> {
        let query = self.path.map(|path| format!("?path={}", utf8_percent_encode(&path, QUERY))).unwrap_or_default();
        let uri = format!("{}{query}", self.route);
        let request = Request::builder().method(self.method).uri(uri).header(header::HOST, "session");
        request
            .body(Limited::new(self.body, usize::MAX))
            .map_err(|_| Refused::new(400, "InvalidFileName", "The file name cannot be sent to the session."))
    }
}

/// How the session says no.
#[derive(Deserialize)]
struct Envelope {
    error: Said,
}

#[derive(Deserialize)]
struct Said {
    code: String,
    message: String,
}

impl Service {
    /// Asks and reads the whole answer, which takes the room that comes with it.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        lease: &Lease,
        question: Question,
    ) -> Result<(T, Room), Refused> {
        let within = question.within;
        let until = Instant::now() + within;
        let late = |_| too_late(within);
        let (answer, sender) = timeout_at(until, self.send(lease, question)).await.map_err(late)??;
        let (status, body) = (answer.status(), answer.into_body());
        let (most, mut room) = if status.is_success() {
            // one that does not say its length may have any
            let length = http_body::Body::size_hint(&body).exact().and_then(|length| usize::try_from(length).ok());
            let length = length.unwrap_or(ANSWER_MAX);
            if length > ANSWER_MAX {
                return Err(Refused::unreachable("its answer is too long"));
            }
            (ANSWER_MAX, self.rooms.take(&lease.allocation.session.replica, length, until).await?)
        } else {
            (REFUSAL_MAX, Room::default())
        };
        let read = tokio::time::timeout(READ_WITHIN, Limited::new(body, most).collect()).await;
        let bytes = read.map_err(|_| too_late(READ_WITHIN))?;
        let bytes = bytes.map_err(Refused::unreachable)?.to_bytes();
        self.connections.keep(&lease.allocation.session.replica, sender).await;
        if !status.is_success() {
            return Err(refusal(&bytes));
        }
        room.shrink_to_answer(bytes.len());
        Ok((parsed(&bytes)?, room))
    }

    /// Asks for bytes, which are passed on while they come; the number of them where the session says it.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        lease: Lease,
        question: Question,
    ) -> Result<(Body, Option<u64>), Refused> {
        let within = question.within;
        let sent = tokio::time::timeout(within, self.send(&lease, question)).await;
        let (answer, sender) = sent.map_err(|_| too_late(within))??;
        if !answer.status().is_success() {
            let read = Limited::new(answer.into_body(), REFUSAL_MAX).collect();
            let read = tokio::time::timeout(within, read).await.map_err(|_| too_late(within))?;
            return Err(refusal(&read.map_err(Refused::unreachable)?.to_bytes()));
        }
        let length = http_body::Body::size_hint(answer.body()).exact();
        let connections = Arc::clone(&self.connections);
        let held = Held { replica: lease.allocation.session.replica.clone(), lease, sender, connections };
        let body = AnswerBody::new(answer.into_body(), held, self.limits.idle_timeout);
        Ok((Body::new(body), length))
    }

    async fn send(&self, lease: &Lease, question: Question) -> Result<(Response<Incoming>, Sender), Refused> {
        let session = &lease.allocation.session;
        let at = (&session.replica, lease.allocation.target_port);
        let sent = self.connections.send(&self.ports.dial, at, question.into_request()?).await;
        sent.map_err(|error| match error {
            SendError::Dial(error) => Refused::unreachable(error),
            SendError::Http(error) => Refused::unreachable(error),
        })
    }

    /// Executes in the session; `asked` says what.
    pub(super) async fn run(&self, lease: &Lease, mut asked: Value, seconds: u32) -> Result<Outcome, Refused> {
        asked["seconds"] = seconds.into();
        let within = Duration::from_secs(u64::from(seconds)) + PATIENCE;
        let body = Body::from(asked.to_string());
        drop(asked);
        let question = Question { method: Method::POST, route: "/execute", path: None, body, within };
        let (outcome, room) = self.ask::<Outcome>(lease, question).await?;
        Ok(Outcome { room, ..outcome })
    }
}

fn too_late(within: Duration) -> Refused {
    Refused::new(504, "SessionTimeout", format!("The session did not answer within {} s.", within.as_secs()))
}

fn parsed<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Refused> {
    serde_json::from_slice(bytes).map_err(|_| Refused::unreachable("its answer is none of the interpreter's"))
}

/// What the session refused, in a code that is known.
fn refusal(bytes: &Bytes) -> Refused {
    let Ok(Envelope { error }) = serde_json::from_slice::<Envelope>(bytes) else {
        return Refused::unreachable("its answer is none of the interpreter's");
    };
    // the codes that a session may answer with, and the status that belongs to each
    let code = [
        ("InvalidFileName", 400),
        ("FileNotFound", 404),
        ("FileExists", 409),
        ("FileTooLarge", 413),
        ("TooManyExecutions", 429),
        ("NoSuchLanguage", 400),
        ("SessionDiskFull", 507),
        ("InvalidRequest", 400),
        ("InterpreterFailed", 500),
        ("SessionFailed", 500),
    ];
    let Some((code, status)) = code.into_iter().find(|(code, _)| *code == error.code) else {
        return Refused::unreachable("it refused for a reason that is not known");
    };
    let message: String = error.message.chars().filter(|c| !c.is_control()).take(300).collect();
    Refused::new(status, code, format!("{message}."))
}
