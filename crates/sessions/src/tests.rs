//! The service with real sockets: a session is a server of this test, pools and tokens are made up.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use axum::{Router, body::Body, extract::Request, response::IntoResponse};
use cove_model::{
    AllocateError, ReplicaName, ResourceId, SESSION_POOL_KIND, Session, SessionAllocation, SessionContainer,
    SessionIdentifier, generation_name,
};
use futures_util::{SinkExt, StreamExt, future::BoxFuture};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use jiff::Timestamp;

use crate::{Door, Lease, Limits, PoolDetails, PoolInfo, Pools, Ports, Service, SessionInfo, TokenProblem};

mod e2b;

/// Pools whose sessions are all one server.
struct World {
    kind: SessionContainer,
    max: usize,
    sessions: Mutex<BTreeMap<String, Session>>,
    open: Arc<AtomicU32>,
    dials: AtomicU32,
    /// How often a session was looked for.
    finds: AtomicU32,
    /// No session is known yet.
    is_blank: AtomicBool,
    /// No session becomes ready.
    is_stuck: AtomicBool,
}

struct Open(Arc<AtomicU32>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An allocated session.
pub(crate) fn session(identifier: &str) -> Session {
    Session {
        pool: pool_id(),
        generation: generation_name("pool", "abc1234").unwrap(),
        replica: ReplicaName::new("pool--abc1234-0").unwrap(),
        guid: "guid-0".to_owned(),
        snapshot: None,
        target_port: 80,
        identifier: Some(SessionIdentifier::new(identifier).unwrap()),
        created_at: Timestamp::UNIX_EPOCH,
        allocated_at: Some(Timestamp::UNIX_EPOCH),
        last_accessed_at: None,
        ended: None,
    }
}

fn pool_id() -> ResourceId {
    ResourceId::resource("s", "g", SESSION_POOL_KIND, "pool").unwrap()
}

impl World {
    fn info(&self) -> PoolInfo {
        PoolInfo { id: pool_id(), container: self.kind, sessions_max: 2 }
    }
}

impl Pools for World {
    fn pool(&self, id: &ResourceId) -> Option<PoolInfo> {
        (*id == pool_id()).then(|| self.info())
    }

    fn pool_at(&self, host: &str) -> Option<PoolInfo> {
        (host == "pool.env.localhost").then(|| self.info())
    }

    fn pool_with_key(&self, key: &[u8]) -> Option<PoolInfo> {
        (key == b"key").then(|| self.info())
    }

    fn details(&self, _: &ResourceId) -> Option<PoolDetails> {
        Some(PoolDetails::default())
    }

    fn allocate<'a>(
        &'a self,
        pool: &'a ResourceId,
        identifier: &'a SessionIdentifier,
    ) -> BoxFuture<'a, Result<Lease, AllocateError>> {
        Box::pin(async move {
            if self.is_stuck.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let mut sessions = self.sessions.lock().unwrap();
            let count = sessions.len();
            if !sessions.contains_key(identifier.as_str()) && count >= self.max {
                return Err(AllocateError::PoolFull { max: 2 });
            }
            let session = sessions.entry(identifier.as_str().to_owned()).or_insert_with(|| Session {
                pool: pool.clone(),
                generation: generation_name("pool", "abc1234").unwrap(),
                replica: ReplicaName::new(format!("pool--abc1234-{count}")).unwrap(),
                guid: format!("guid-{count}"),
                snapshot: None,
                target_port: 80,
                identifier: Some(identifier.clone()),
                created_at: Timestamp::UNIX_EPOCH,
                allocated_at: Some(Timestamp::UNIX_EPOCH),
                last_accessed_at: None,
                ended: None,
            });
            self.open.fetch_add(1, Ordering::SeqCst);
            let allocation = SessionAllocation { session: session.clone(), target_port: 80, is_new: false };
            Ok(Lease { allocation, guard: Box::new(Open(Arc::clone(&self.open))) })
        })
    }

    fn stop<'a>(&'a self, _: &'a ResourceId, identifier: &'a SessionIdentifier) -> BoxFuture<'a, bool> {
        Box::pin(async move { self.sessions.lock().unwrap().remove(identifier.as_str()).is_some() })
    }

    fn list(&self, _: &ResourceId) -> Vec<SessionInfo> {
        let shown = |session: &Session| SessionInfo { session: session.clone(), expires_at: Timestamp::UNIX_EPOCH };
        self.sessions.lock().unwrap().values().map(shown).collect()
    }

    fn find(&self, pool: &ResourceId, identifier: &SessionIdentifier) -> Option<SessionInfo> {
        self.finds.fetch_add(1, Ordering::SeqCst);
        let mut known = if self.is_blank.load(Ordering::SeqCst) { Vec::new() } else { self.list(pool) }.into_iter();
        known.find(|info| info.session.identifier.as_ref() == Some(identifier))
    }
}

/// What the session answers: what it was asked, or the body back.
async fn echo(request: Request) -> impl IntoResponse {
    let (head, body) = request.into_parts();
    let names: Vec<_> = head.headers.keys().map(ToString::to_string).collect();
    if head.uri.path() == "/body" {
        return (HeaderMap::new(), body);
    }
    let text = format!("{} {} {}", head.method, head.uri, names.join(","));
    let mut headers = HeaderMap::new();
    headers.insert("x-ms-session-guid", "a lie".parse().unwrap());
    headers.insert(header::CONNECTION, "x-own".parse().unwrap());
    headers.insert("x-own", "gone".parse().unwrap());
    (headers, Body::from(text))
}

async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn world(kind: SessionContainer, limits: Limits) -> (Arc<Service>, Arc<World>) {
    let address = serve(Router::new().fallback(echo)).await;
    world_at(address, kind, limits)
}

fn world_at(address: SocketAddr, kind: SessionContainer, limits: Limits) -> (Arc<Service>, Arc<World>) {
    let (ports, world) = ports_at(address, kind);
    (Service::new(ports, limits), world)
}

fn ports_at(address: SocketAddr, kind: SessionContainer) -> (Ports, Arc<World>) {
    let world = Arc::new(World {
        kind,
        max: 2,
        sessions: Mutex::default(),
        open: Arc::default(),
        dials: AtomicU32::default(),
        finds: AtomicU32::default(),
        is_blank: AtomicBool::default(),
        is_stuck: AtomicBool::default(),
    });
    let counted = Arc::clone(&world);
    let ports = Ports {
        pools: Arc::clone(&world) as Arc<dyn Pools>,
        check: Arc::new(|headers| match headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap()) {
            None => Err(TokenProblem::Missing),
            Some("Bearer good") => Ok(()),
            Some("Bearer old") => Err(TokenProblem::Expired),
            Some("Bearer api") => Err(TokenProblem::Audience("api".to_owned())),
            Some("Bearer foreign") => Err(TokenProblem::Tenant),
            Some(_) => Err(TokenProblem::Invalid("it is none".to_owned())),
        }),
        dial: Arc::new(move |_, port| {
            assert_eq!(port, 80);
            counted.dials.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move { tokio::net::TcpStream::connect(address).await?.into_std() })
        }),
        tools: None,
    };
    (ports, world)
}

const BASE: &str = "/subscriptions/s/resourceGroups/g/sessionPools/pool";

async fn ask(service: &Arc<Service>, method: &str, target: &str, token: &str, body: &'static str) -> (u16, String) {
    let mut request = http::Request::builder().method(method).uri(format!("{BASE}{target}")).header("x-own", "yes");
    if !token.is_empty() {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let answer = service.handle(Door::Path, request.body(Body::from(body)).unwrap()).await;
    let (status, guid) = (answer.status().as_u16(), answer.headers().get("x-ms-session-guid").cloned());
    let own = answer.headers().contains_key("x-own");
    let text = String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(!own, "what `Connection` names is not passed on");
    (status, guid.map_or_else(|| text.clone(), |guid| format!("{} {text}", guid.to_str().unwrap())))
}

fn code_of(text: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    value["error"]["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_request_goes_to_the_session_of_its_identifier() {
    let (service, world) = world(SessionContainer::Custom, Limits::default()).await;
    for (method, target, told) in [
        ("GET", "/a/b?identifier=one-1&x=%2F", "guid-0 GET /a/b?identifier=one-1&x=%2F x-own,host"),
        ("PUT", "?identifier=two-2", "guid-1 PUT /?identifier=two-2 x-own,host"),
        ("DELETE", "//x?identifier=one-1", "guid-0 DELETE //x?identifier=one-1 x-own,host"),
    ] {
        assert_eq!(ask(&service, method, target, "good", "").await, (200, told.to_owned()));
    }
    let (status, text) = ask(&service, "GET", "/a?identifier=three", "good", "").await;
    assert_eq!((status, code_of(&text).as_str()), (404, "SessionPoolFull"));
    assert_eq!(
        ask(&service, "POST", "/body?identifier=one-1", "good", "hello").await,
        (200, "guid-0 hello".to_owned())
    );
    assert_eq!(world.open.load(Ordering::SeqCst), 0, "every request is over");
    assert!(world.dials.load(Ordering::SeqCst) <= 4, "connections are used again");
}

#[tokio::test]
async fn who_has_no_right_token_learns_nothing() {
    let (service, world) = world(SessionContainer::Custom, Limits::default()).await;
    for (token, status, code) in [
        ("", 401, "AuthenticationFailed"),
        ("bad", 401, "AuthenticationFailed"),
        ("old", 401, "AuthenticationFailed"),
        ("api", 401, "AuthenticationFailed"),
        ("foreign", 403, "AuthorizationFailed"),
    ] {
        for target in ["/x?identifier=one-1", "/x", "/.management/listSessions"] {
            let (seen, text) = ask(&service, "GET", target, token, "").await;
            assert_eq!((seen, code_of(&text).as_str()), (status, code), "{token} {target}");
        }
    }
    assert!(world.sessions.lock().unwrap().is_empty());
    let other = http::Request::builder()
        .uri("/subscriptions/s/resourceGroups/g/sessionPools/other/x?identifier=one-1")
        .header(header::AUTHORIZATION, "Bearer good");
    let answer = service.handle(Door::Path, other.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn limits_hold() {
    let limits = Limits { body_bytes_max: 3, ..Limits::default() };
    let (service, _) = world(SessionContainer::Custom, limits).await;
    assert_eq!(ask(&service, "POST", "/body?identifier=one-1", "good", "abc").await.0, 200);
    let (status, text) = ask(&service, "POST", "/body?identifier=one-1", "good", "abcd").await;
    assert_eq!((status, code_of(&text).as_str()), (413, "RequestEntityTooLarge"));
    let stream = futures_util::stream::iter([Ok::<_, std::io::Error>("ab"), Ok("cd")]);
    let request = http::Request::builder()
        .method("POST")
        .uri(format!("{BASE}/body?identifier=one-1"))
        .header(header::AUTHORIZATION, "Bearer good");
    let answer = service.handle(Door::Path, request.body(Body::from_stream(stream)).unwrap()).await;
    // the session may have begun to answer already: then the answer breaks off
    let is_refused = answer.status() == StatusCode::PAYLOAD_TOO_LARGE;
    assert!(is_refused || answer.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_request_is_open_until_its_answer_was_read() {
    let (service, _) = world(SessionContainer::Custom, Limits { requests_max: 1, ..Limits::default() }).await;
    let request = http::Request::builder()
        .uri(format!("{BASE}/x?identifier=one-1"))
        .header(header::AUTHORIZATION, "Bearer good")
        .body(Body::empty());
    let unread = service.handle(Door::Path, request.unwrap()).await;
    assert_eq!(unread.status(), 200);
    let (status, text) = ask(&service, "GET", "/x?identifier=one-1", "good", "").await;
    assert_eq!((status, code_of(&text).as_str()), (429, "TooManyRequests"));
    unread.into_body().collect().await.unwrap();
    assert_eq!(ask(&service, "GET", "/x?identifier=one-1", "good", "").await.0, 200);
}

#[tokio::test]
async fn a_session_that_is_gone_is_unreachable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (service, world) = world_at(address, SessionContainer::Custom, Limits::default());
    let (status, text) = ask(&service, "GET", "/x?identifier=one-1", "good", "").await;
    assert_eq!((status, code_of(&text).as_str()), (502, "SessionUnreachable"));
    assert_eq!(world.open.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn sessions_are_shown_and_stopped() {
    let (service, _) = world(SessionContainer::Custom, Limits::default()).await;
    ask(&service, "GET", "/x?identifier=one-1", "good", "").await;
    let (status, text) = ask(&service, "GET", "/.management/listSessions", "good", "").await;
    let listed: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &listed["value"][0]["identifier"]), (200, &serde_json::json!("one-1")));
    assert_eq!(ask(&service, "GET", "/.management/session?identifier=one-1", "good", "").await.0, 200);
    let (status, text) = ask(&service, "GET", "/session?identifier=one-1", "good", "").await;
    assert_eq!(status, 200);
    assert!(text.starts_with("guid-0 GET /session"), "the container's own path: {text}");
    assert_eq!(ask(&service, "POST", "/.management/stopSession?identifier=one-1", "good", "").await.0, 200);
    for (method, target) in [("POST", "/.management/stopSession"), ("DELETE", "/.management/session")] {
        let (status, text) = ask(&service, method, &format!("{target}?identifier=one-1"), "good", "").await;
        assert_eq!((status, code_of(&text).as_str()), (404, "SessionNotFound"));
    }
    let (service, world) = world_at("127.0.0.1:1".parse().unwrap(), SessionContainer::PythonLts, Limits::default());
    assert_eq!(ask(&service, "GET", "/unknown?identifier=one-1", "good", "").await.0, 404);
    assert!(world.sessions.lock().unwrap().is_empty(), "nothing was allocated for it");
    assert_eq!(ask(&service, "GET", "/listSessions", "good", "").await.0, 200);
}

#[tokio::test]
async fn a_long_list_has_pages_with_links() {
    let (service, world) = world(SessionContainer::Custom, Limits::default()).await;
    ask(&service, "GET", "/x?identifier=one-1", "good", "").await;
    {
        let mut sessions = world.sessions.lock().unwrap();
        let one = sessions["one-1"].clone();
        for number in 0..100 {
            let identifier = SessionIdentifier::new(format!("more-{number}")).unwrap();
            sessions.insert(identifier.to_string(), Session { identifier: Some(identifier), ..one.clone() });
        }
    }
    let target = "/.management/listSessions?api-version=2025-10-02-preview";
    let (_, text) = ask(&service, "GET", target, "good", "").await;
    let listed: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((listed["value"].as_array().unwrap().len(), &listed["count"]), (100, &serde_json::json!(101)));
    let next = listed["nextLink"].as_str().unwrap();
    assert_eq!(next, format!("https://localhost{BASE}{target}&skip=100"));
    let (_, text) =
        ask(&service, "GET", next.strip_prefix(&format!("https://localhost{BASE}")).unwrap(), "good", "").await;
    let rest: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((rest["value"].as_array().unwrap().len(), rest.get("nextLink")), (1, None));
}

#[tokio::test]
async fn a_websocket_passes_at_the_pools_own_host() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() || socket.send(message).await.is_err() {
                break;
            }
        }
    });
    let (service, world) = world_at(address, SessionContainer::Custom, Limits::default());
    let door = serve(service.router()).await;
    let request = http::Request::builder()
        .uri("ws://pool.env.localhost/ws?identifier=one-1")
        .header(header::HOST, "Pool.env.localhost:8443")
        .header(header::AUTHORIZATION, "Bearer good")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(())
        .unwrap();
    let stream = tokio::net::TcpStream::connect(door).await.unwrap();
    let (mut socket, answer) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(answer.headers()["x-ms-session-guid"], "guid-0");
    for text in ["hello", "again"] {
        socket.send(text.into()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap(), text);
    }
    assert_eq!(world.open.load(Ordering::SeqCst), 1, "the session is in use while the socket is open");
    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    drop(socket);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while world.open.load(Ordering::SeqCst) > 0 {
        assert!(tokio::time::Instant::now() < deadline, "the session is free again");
        tokio::task::yield_now().await;
    }
}

/// Asks for code to be executed by a session that answers with `said`.
async fn execute(said: (u16, String)) -> (Arc<Service>, http::Response<Body>) {
    let answer = move || {
        let (status, text) = said.clone();
        async move { (StatusCode::from_u16(status).unwrap(), text) }
    };
    let address = serve(Router::new().route("/execute", axum::routing::post(answer))).await;
    let (service, _) = world_at(address, SessionContainer::PythonLts, Limits::default());
    let request = http::Request::builder()
        .method("POST")
        .uri(format!("{BASE}/executions?api-version=2025-10-02-preview&identifier=one-1"))
        .header(header::AUTHORIZATION, "Bearer good");
    let answer = service.handle(Door::Path, request.body(Body::from(r#"{"code":"1"}"#)).unwrap()).await;
    (service, answer)
}

#[tokio::test]
async fn what_a_session_shows_is_passed_on_as_it_came() {
    let bundle = r#"{"a/b": [1e5 , {"x":1.50}], "text/plain": "'x'"}"#;
    let said = format!(
        r#"{{"status":"Succeeded","stdout":"","stderr":"","milliseconds":5,"outputs":[{bundle}],"result":{bundle}}}"#
    );
    let (service, answer) = execute((200, said)).await;
    assert_eq!(answer.status(), 200);
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    let text = std::str::from_utf8(&bytes).unwrap();
    assert_eq!(text.matches(bundle).count(), 2, "{text}");
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(
        (&value["status"], &value["result"]["executionResult"], &value["rawResult"]["error"]),
        (&"Succeeded".into(), &"'x'".into(), &serde_json::Value::Null)
    );
    let path = format!("/executions/{}?api-version=2025-10-02-preview&identifier=one-1", value["id"].as_str().unwrap());
    assert_eq!(ask(&service, "GET", &path, "good", "").await, (200, text.to_owned()));
}

#[tokio::test]
async fn a_long_answer_takes_room_until_it_was_read() {
    let long = "x".repeat(1 << 20);
    let said = format!(r#"{{"status":"Succeeded","stdout":"{long}","stderr":""}}"#);
    let (service, answer) = execute((200, said)).await;
    assert_eq!(answer.status(), 200);
    let length: usize = answer.headers()[header::CONTENT_LENGTH].to_str().unwrap().parse().unwrap();
    assert_eq!(service.rooms.taken(), length);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), length);
    assert_eq!(service.rooms.taken(), 0);
}

#[tokio::test]
async fn a_session_that_answers_too_much_is_unreachable() {
    for said in [(200, "0,".repeat(21 << 20)), (500, "0,".repeat(1 << 20))] {
        let (service, answer) = execute(said).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["x-ms-error-code"]),
            (502, &"SessionUnreachable".parse().unwrap())
        );
        assert_eq!(service.rooms.taken(), 0);
    }
}

#[tokio::test]
async fn what_a_session_refuses_is_said_in_its_words() {
    for (said, status, code) in [
        (500, 500, "SessionFailed"),
        (500, 500, "InterpreterFailed"),
        (400, 400, "InvalidRequest"),
        (429, 429, "TooManyExecutions"),
        // a code that sessions do not have
        (500, 502, "AuthenticationFailed"),
    ]
    .map(|(said, status, code)| {
        ((said, format!(r#"{{"error":{{"code":"{code}","message":"it\nfailed"}}}}"#)), status, code)
    }) {
        let (_, answer) = execute(said).await;
        assert_eq!(answer.status().as_u16(), status, "{code}");
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        if status == 502 {
            assert_eq!(value["error"]["code"], "SessionUnreachable");
        } else {
            assert_eq!((&value["error"]["code"], &value["error"]["message"]), (&code.into(), &"itfailed.".into()));
        }
    }
}
