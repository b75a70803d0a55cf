//! A control plane on a store in a temporary directory, and requests to it as text.

use std::sync::{Arc, Mutex};

use axum::{Router, body::Body, routing};
use cove_base::Clock;
use cove_model::{EventKind, ResourceId, SystemEvent};
use cove_runtime::{ExecError, ExecRequest, ExecSession};
use cove_store::{Failure, Store};
use futures_util::{StreamExt, future::BoxFuture, stream, stream::BoxStream};
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::{
    Config, ConsoleQuery, ControlPlane, Extensions, LogLine, LogStreams, SystemQuery, identity_router, router,
};

pub(super) const SUB: &str = "/subscriptions/00000000-0000-0000-0000-0000000000aa";
pub(super) const RG: &str = "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG";
pub(super) const V: &str = "?api-version=2025-07-01";
/// When it is.
pub(super) const NOW: &str = "2026-01-01T00:00:00Z";

pub(super) struct World {
    pub(super) router: Router,
    pub(super) identity: Router,
    pub(super) plane: ControlPlane,
    pub(super) store: Store,
    pub(super) shutdown: CancellationToken,
    pub(super) console: Arc<Mutex<Vec<ConsoleQuery>>>,
    /// What the API told.
    pub(super) events: Arc<Mutex<Vec<SystemEvent>>>,
    _dir: TempDir,
}

/// An answer, read to its end.
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Answered {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(super) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or("").to_owned()
    }
}

struct Streams(Arc<Mutex<Vec<ConsoleQuery>>>, Arc<Mutex<Vec<SystemEvent>>>);

fn at() -> Timestamp {
    NOW.parse().unwrap()
}

impl LogStreams for Streams {
    fn console(&self, query: ConsoleQuery) -> BoxStream<'static, LogLine> {
        let lines: Vec<LogLine> =
            ["hello", "a \"quoted\"\rline"].map(|text| LogLine { at: at(), text: text.to_owned() }).into();
        let past = stream::iter(lines).take(query.tail as usize);
        let follow = query.follow;
        self.0.lock().unwrap().push(query);
        if follow { past.chain(stream::pending()).boxed() } else { past.boxed() }
    }

    fn system(&self, query: SystemQuery) -> BoxStream<'static, SystemEvent> {
        let event = SystemEvent {
            at: at(),
            kind: EventKind::Normal,
            reason: "RevisionReady".into(),
            message: "Successfully provisioned revision 'web--v1'".into(),
            environment: None,
            app: Some(query.scope.to_string()),
            revision: Some("web--v1".into()),
            replica: None,
            container: None,
            source: "ContainerAppController".into(),
        };
        stream::iter([event]).boxed()
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'static, Result<ExecSession, ExecError>> {
        Box::pin(super::exec::run(request))
    }

    fn tell(&self, event: SystemEvent) {
        self.1.lock().unwrap().push(event);
    }
}

struct OnlyHealth;

impl Extensions for OnlyHealth {
    fn router(&self) -> Router {
        Router::new()
            .route("/health", routing::get(|| async { "fine" }))
            .route("/panic", routing::get(|| async { panic!("on purpose") as &str }))
    }
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(Config { retry_after_secs: 0, ..Config::default() }).await
    }

    pub(super) async fn with(config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let console = Arc::new(Mutex::new(Vec::new()));
        let events = Arc::new(Mutex::new(Vec::new()));
        let shutdown = CancellationToken::new();
        let plane = ControlPlane::new(
            config,
            store.clone(),
            Clock::virtual_at(at()),
            Arc::new(Streams(Arc::clone(&console), Arc::clone(&events))),
            Arc::new(OnlyHealth),
            shutdown.clone(),
        )
        .await
        .unwrap();
        let (router, identity) = (router(plane.clone()), identity_router(plane.clone()));
        Self { router, identity, plane, store, shutdown, console, events, _dir: dir }
    }

    /// The data directory.
    pub(super) fn directory(&self) -> &std::path::Path {
        self._dir.path()
    }

    /// The next server's API on the same store, as if this one had been killed.
    pub(super) async fn restarted(&self) -> Self {
        let streams = Streams(Arc::clone(&self.console), Arc::clone(&self.events));
        let (config, clock) = (self.plane.config().clone(), self.plane.clock().clone());
        let shutdown = CancellationToken::new();
        let store = self.store.clone();
        let plane =
            ControlPlane::new(config, store.clone(), clock, Arc::new(streams), Arc::new(OnlyHealth), shutdown.clone());
        let plane = plane.await.unwrap();
        let (router, identity) = (router(plane.clone()), identity_router(plane.clone()));
        let (console, events) = (Arc::clone(&self.console), Arc::clone(&self.events));
        Self { router, identity, plane, store, shutdown, console, events, _dir: tempfile::tempdir().unwrap() }
    }

    /// A world with the group `MyRG` and the environment `env`.
    pub(super) async fn with_environment() -> Self {
        Self::with_environment_and(Config { retry_after_secs: 0, ..Config::default() }).await
    }

    /// The same with other settings.
    pub(super) async fn with_environment_and(config: Config) -> Self {
        let world = Self::with(config).await;
        assert_eq!(world.put(RG, json!({"location": "eastus"})).await.status, 201);
        let env = format!("{RG}/providers/Microsoft.App/managedEnvironments/env");
        assert_eq!(world.put(&env, json!({"location": "eastus", "properties": {}})).await.status, 201);
        world
    }

    /// Sends any request.
    pub(super) async fn send(&self, request: Request<Body>) -> Answered {
        self.send_to(&self.router, request).await
    }

    pub(super) async fn send_to(&self, router: &Router, request: Request<Body>) -> Answered {
        let response = router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        Answered { status, headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    /// Sends a request with a body; adds an api-version where the path has no query.
    pub(super) async fn ask(&self, method: Method, path: &str, body: impl Into<Body>) -> Answered {
        let path = if path.contains('?') { path.to_owned() } else { format!("{path}{V}") };
        let request = Request::builder().method(method).uri(path).header("host", "localhost:8443");
        self.send(request.body(body.into()).unwrap()).await
    }

    pub(super) async fn get(&self, path: &str) -> Answered {
        self.ask(Method::GET, path, "").await
    }

    pub(super) async fn put(&self, path: &str, body: Value) -> Answered {
        self.ask(Method::PUT, path, body.to_string()).await
    }

    pub(super) async fn patch(&self, path: &str, body: Value) -> Answered {
        self.ask(Method::PATCH, path, body.to_string()).await
    }

    pub(super) async fn post(&self, path: &str) -> Answered {
        self.ask(Method::POST, path, "").await
    }

    pub(super) async fn delete(&self, path: &str) -> Answered {
        self.ask(Method::DELETE, path, "").await
    }

    /// Follows a link that an answer gave.
    pub(super) async fn follow(&self, link: &str) -> Answered {
        let path = link.strip_prefix("https://localhost:8443").unwrap_or_else(|| panic!("foreign link `{link}`"));
        self.get(path).await
    }

    /// Ends the operations of an app as the controller does.
    pub(super) async fn finish(&self, path: &str, failure: Option<(&str, &str)>) {
        let id = ResourceId::parse(path).unwrap();
        let row = self.store.resource(&id).unwrap().unwrap();
        let failure = failure.map(|(code, message)| Failure { code: code.into(), message: message.into() });
        self.store.finish(id, row.generation, failure, at()).await.unwrap();
    }

    /// One request and its answer as text, random ids masked.
    pub(super) async fn transcript(&self, method: Method, path: &str, body: Value) -> String {
        let sent = if body.is_null() { String::new() } else { body.to_string() };
        let answered = self.ask(method.clone(), path, sent).await;
        let mut text = format!("{method} {path}\n{}\n", answered.status);
        for name in ["azure-asyncoperation", "location", "retry-after", "allow", "www-authenticate"] {
            if !answered.header(name).is_empty() {
                text.push_str(&format!("{name}: {}\n", answered.header(name)));
            }
        }
        if !answered.text.is_empty() {
            text.push_str(&serde_json::to_string_pretty(&answered.json()).unwrap());
            text.push('\n');
        }
        mask(&text)
    }
}

/// The body of an app with a suffix, so that the revision's name is known.
pub(super) fn app_body(image: &str, suffix: &str) -> Value {
    json!({
        "location": "East US",
        "properties": {
            "environmentId": format!("{RG}/providers/Microsoft.App/managedEnvironments/env"),
            "configuration": { "ingress": { "external": true, "targetPort": 8080 } },
            "template": {
                "revisionSuffix": suffix,
                "containers": [{ "name": "web", "image": image, "resources": { "cpu": 0.25, "memory": "0.5Gi" } }],
            },
        },
    })
}

pub(super) const WEB: &str =
    "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/containerApps/web";

/// Replaces random GUIDs and fingerprints; those of the configuration begin with zeros.
fn mask(text: &str) -> String {
    let is_hex = |b: u8| b.is_ascii_hexdigit();
    let bytes = text.as_bytes();
    let is_guid = |at: usize| {
        bytes.get(at..at + 36).is_some_and(|part| {
            part.iter().enumerate().all(|(i, b)| if [8, 13, 18, 23].contains(&i) { *b == b'-' } else { is_hex(*b) })
        })
    };
    let is_long_hex = |at: usize| bytes.get(at..at + 64).is_some_and(|part| part.iter().all(|b| is_hex(*b)));
    let (mut out, mut at) = (String::new(), 0);
    while at < bytes.len() {
        if is_guid(at) && !text[at..].starts_with("00000000-") {
            out.push_str("<guid>");
            at += 36;
        } else if is_long_hex(at) {
            out.push_str("<hex>");
            at += 64;
        } else {
            let c = text[at..].chars().next().unwrap();
            out.push(c);
            at += c.len_utf8();
        }
    }
    out
}
