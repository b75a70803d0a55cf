//! Log streams of apps and environments, and the seams to what other services answer.
//!
//! A stream sends a line per log line, JSON or text, and an empty line after a silence, so that a client that went away is
//! noticed by the failing write; clients skip empty lines. A followed container's stream ends soon after its replica.
//!
//! **Invariant:** a stream holds no request's place and ends with the server.

use std::{convert::Infallible, sync::Arc};

use axum::{Router, body::Body, response::Response};
use bytes::Bytes;
use cove_arm::ArmError;
use cove_model::{EventKind, ReplicaName, ResourceId, RevisionName, SystemEvent};
use cove_runtime::{ExecError, ExecRequest, ExecSession};
use futures_util::{Stream, StreamExt, future::BoxFuture, stream::BoxStream};
use http::{HeaderValue, Method, header};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    answer::{Answer, Refusal},
    apps,
    call::Call,
    control_plane::ControlPlane,
    environments,
    route::Route,
};

/// Lines shown from the past when `tailLines` is absent.
const TAIL_DEFAULT: u32 = 20;
/// Most lines from the past, as Azure's.
const TAIL_MAX: u32 = 300;

/// What to read of a container's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleQuery {
    /// The app.
    pub app: ResourceId,
    /// Its revision.
    pub revision: RevisionName,
    /// The revision's replica, perhaps one that is gone.
    pub replica: ReplicaName,
    /// The replica's container.
    pub container: String,
    /// Lines from the past, 0..=300.
    pub tail: u32,
    /// Whether the stream goes on with what is written from now on.
    pub follow: bool,
    /// Whether the newest lines may be missing, so that nothing is waited for.
    pub as_copied: bool,
}

/// What to read of the system log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemQuery {
    /// An app, or an environment with all its apps.
    pub scope: ResourceId,
    /// Events from the past, 0..=300.
    pub tail: u32,
    /// Whether the stream goes on with what happens from now on.
    pub follow: bool,
}

/// One line of a container's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written.
    pub at: Timestamp,
    /// The line, without its end.
    pub text: String,
}

/// Where log streams and consoles come from; the server connects the monitor and the driver here.
pub trait LogStreams: Send + Sync + 'static {
    /// Lines of a container, oldest first. Ends at the newest line unless `follow`.
    fn console(&self, query: ConsoleQuery) -> BoxStream<'static, LogLine>;

    /// System events, oldest first. Ends at the newest event unless `follow`.
    fn system(&self, query: SystemQuery) -> BoxStream<'static, SystemEvent>;

    /// Keeps an event that the API tells. Never waits: it may be lost when its keeper is far behind.
    fn tell(&self, event: SystemEvent);

    /// Runs a command in a container.
    fn exec(&self, request: ExecRequest) -> BoxFuture<'static, Result<ExecSession, ExecError>>;
}

/// What only Cove has, below `/cove/v1`; the server connects other services here.
pub trait Extensions: Send + Sync + 'static {
    /// Routes relative to `/cove/v1`; they are reached only by those who may call the API. An empty router answers 404.
    fn router(&self) -> Router;
}

pub(crate) fn routes() -> Vec<Route> {
    // the data plane has no `/providers/Microsoft.App` in its paths
    const GROUP: &str = "/subscriptions/{subscription}/resourceGroups/{group}";
    let container = "revisions/{revision}/replicas/{replica}/containers/{container}";
    vec![
        Route::data(Method::GET, format!("{GROUP}/containerApps/{{app}}/{container}/logstream"), console),
        Route::data(Method::GET, format!("{GROUP}/containerApps/{{app}}/eventstream"), app_events),
        Route::data(
            Method::GET,
            format!("{GROUP}/managedEnvironments/{{environment}}/eventstream"),
            environment_events,
        ),
    ]
}

/// What a stream's query asks.
pub(crate) struct Asked {
    pub(crate) tail: u32,
    pub(crate) follow: bool,
    pub(crate) as_text: bool,
}

impl Asked {
    pub(crate) fn of(call: &Call) -> Result<Self, ArmError> {
        let given = |name: &str| call.query(name).filter(|value| !value.is_empty());
        let tail = match given("tailLines") {
            None => TAIL_DEFAULT,
            Some(text) => text.parse().ok().filter(|tail| *tail <= TAIL_MAX).ok_or_else(|| {
                let shown: String = text.chars().take(32).collect();
                ArmError::invalid("tailLines", format!("tailLines '{shown}' is not valid; expected 0 to {TAIL_MAX}."))
            })?,
        };
        let follow = match given("follow").map(str::to_ascii_lowercase).as_deref() {
            None | Some("false" | "0") => false,
            Some("true" | "1") => true,
            Some(_) => return Err(ArmError::invalid("follow", "follow is not valid; expected true or false.")),
        };
        let as_text = match given("output").map(str::to_ascii_lowercase).as_deref() {
            None | Some("json") => false,
            Some("text") => true,
            Some(_) => return Err(ArmError::invalid("output", "output is not valid; expected json or text.")),
        };
        Ok(Self { tail, follow, as_text })
    }
}

pub(crate) fn check_scope(call: &Call, id: &ResourceId) -> Result<(), Refusal> {
    if call.caller.may_read(id.key()) {
        return Ok(());
    }
    Err(ArmError::forbidden(format!(
        "The token was made for another resource than '{}'; call its getAuthToken.",
        id.name()
    ))
    .into())
}

async fn console(plane: ControlPlane, call: Call) -> Answer {
    let app = apps::require(&plane, &call)?;
    check_scope(&call, &app.id)?;
    let asked = Asked::of(&call)?;
    let revision = crate::revisions::require(&plane, &call, &app)?.revision;
    let name = call.name("replica").to_ascii_lowercase();
    let not_found = || ArmError::replica_not_found(revision.name.as_str(), &name.chars().take(100).collect::<String>());
    let replica = ReplicaName::new(&name).map_err(|_| not_found())?;
    let container = call.name("container").to_owned();
    let template = &revision.template;
    if !template.containers.iter().chain(&template.init_containers).any(|known| known.name == container) {
        let shown: String = container.chars().take(100).collect();
        let message = format!("Revision '{}' has no container '{shown}'.", revision.name);
        return Err(ArmError::new(404, "ContainerNotFound", message).into());
    }
    // the lines of a replica that is gone are still there, but there will be no more
    let key = revision.key();
    let store = plane.store().clone();
    let lives = move |replica: &ReplicaName| {
        store.replicas(&key).is_ok_and(|found| found.iter().any(|found| found.name == *replica))
    };
    let is_there = lives(&replica);
    let ours = replica.clone();
    let query = ConsoleQuery {
        app: app.id,
        revision: revision.name.clone(),
        replica,
        container,
        tail: asked.tail,
        follow: asked.follow && is_there,
        as_copied: false,
    };
    let as_text = asked.as_text;
    let lines = plane.streams().console(query).map(move |line| console_line(&line, as_text));
    respond(&plane, lines.boxed(), as_text, Box::new(move || lives(&ours)))
}

/// A line as `az` prints it: the time first, for people.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ConsoleLine<'a> {
    time_stamp: String,
    log: &'a str,
}

/// A line of a console as the stream sends it.
pub(crate) fn console_line(line: &LogLine, as_text: bool) -> String {
    if as_text { text_line(line) } else { json_line(line) }
}

fn json_line(line: &LogLine) -> String {
    serde_json::to_string(&ConsoleLine { time_stamp: line.at.to_string(), log: &line.text })
        .expect("text is plain JSON")
}

/// A carriage return would move the terminal's cursor in the middle of a stream; a line is one line.
fn text_line(line: &LogLine) -> String {
    format!("{}  {}", line.at, line.text.replace(['\n', '\r'], " "))
}

async fn app_events(plane: ControlPlane, call: Call) -> Answer {
    let row = apps::require(&plane, &call)?;
    events(&plane, &call, row.id)
}

async fn environment_events(plane: ControlPlane, call: Call) -> Answer {
    let row = environments::require(&plane, &call)?;
    events(&plane, &call, row.id)
}

pub(crate) fn events(plane: &ControlPlane, call: &Call, scope: ResourceId) -> Answer {
    check_scope(call, &scope)?;
    let asked = Asked::of(call)?;
    let query = SystemQuery { scope, tail: asked.tail, follow: asked.follow };
    let lines = plane.streams().system(query).map(|event| event_line(&event));
    respond(plane, lines.boxed(), false, Box::new(|| true))
}

/// An event with the fields of Azure's system log.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct EventLine<'a> {
    time_stamp: String,
    r#type: &'a str,
    environment_name: &'a str,
    container_app_name: &'a str,
    revision_name: &'a str,
    replica_name: &'a str,
    container_name: &'a str,
    msg: &'a str,
    reason: &'a str,
    event_source: &'a str,
    count: u32,
}

/// The name at the end of a resource id.
fn last_name(id: Option<&str>) -> &str {
    id.and_then(|id| id.rsplit('/').next()).unwrap_or("")
}

pub(crate) fn event_line(event: &SystemEvent) -> String {
    let line = EventLine {
        time_stamp: event.at.to_string(),
        r#type: match event.kind {
            EventKind::Normal => "Normal",
            EventKind::Warning => "Warning",
        },
        environment_name: last_name(event.environment.as_deref()),
        container_app_name: last_name(event.app.as_deref()),
        revision_name: event.revision.as_deref().unwrap_or(""),
        replica_name: event.replica.as_deref().unwrap_or(""),
        container_name: event.container.as_deref().unwrap_or(""),
        msg: &event.message,
        reason: &event.reason,
        event_source: &event.source,
        count: 1,
    };
    serde_json::to_string(&line).expect("text is plain JSON")
}

/// Whether more lines can come; asked at each heartbeat.
pub(crate) type GoesOn = Box<dyn Fn() -> bool + Send>;

/// A chunked answer of lines, with heartbeats; ends when the lines, what writes them, or the server do.
pub(crate) fn respond(
    plane: &ControlPlane,
    lines: BoxStream<'static, String>,
    as_text: bool,
    goes_on: GoesOn,
) -> Answer {
    let permit = Arc::clone(plane.open_streams())
        .try_acquire_owned()
        .map_err(|_| ArmError::too_many_requests("Too many log streams are open; close some and try again."))?;
    let body = Body::from_stream(with_heartbeat(plane.clone(), lines, goes_on, permit));
    let mut response = Response::new(body);
    let kind = if as_text { "text/plain; charset=utf-8" } else { "application/json; charset=utf-8" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn with_heartbeat(
    plane: ControlPlane,
    lines: BoxStream<'static, String>,
    goes_on: GoesOn,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    futures_util::stream::unfold((plane, lines, goes_on, permit), |(plane, mut lines, goes_on, permit)| async move {
        let line = tokio::select! {
            biased;
            () = plane.shutdown().cancelled() => return None,
            line = lines.next() => line?,
            () = tokio::time::sleep(plane.config().heartbeat) => {
                if !goes_on() {
                    return None;
                }
                String::new()
            }
        };
        Some((Ok(Bytes::from(line + "\n")), (plane, lines, goes_on, permit)))
    })
}
