//! Rows of the access log, counts and reasons: what each kind of request leaves behind.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cove_ingress::{AccessLogConfig, IngressConfig};
use cove_model::{AccessLog, IngressPolicies};
use cove_traffic::{AccessRecord, AppRoute, Ending};
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::{body::Frame, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_tungstenite::{MaybeTlsStream, accept_async, client_async, tungstenite::Message};

use crate::world::{Backend, World, get, parts, raw, revision, route, soon, streamed, text, until};

const HOST: &str = "web.env.localhost";

/// A world whose rows are read, with one app at `backend`.
struct Observed {
    world: World,
    rows: mpsc::Receiver<AccessRecord>,
}

impl Observed {
    async fn with(config: IngressConfig, backend: &Backend) -> Self {
        let world = World::with(config).await;
        let rows = world.handle.access_log().unwrap();
        assert!(world.handle.access_log().is_none(), "rows have one reader");
        world.route("web", route("web"));
        world.ready(&revision("web", "v1"), &[backend.address]);
        Self { world, rows }
    }

    async fn start(backend: &Backend) -> Self {
        Self::with(IngressConfig::default(), backend).await
    }

    async fn row(&mut self) -> AccessRecord {
        soon("a row", self.rows.recv()).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_leaves_one_row_that_tells_all_of_it() {
    let app = Backend::http(|request| async move {
        let _body = request.into_body().collect().await;
        Response::builder().status(201).header("x-cove-reason", "forged").body(text("created")).unwrap()
    })
    .await;
    let mut observed = Observed::start(&app).await;
    let request = "POST /a/b?token=secret HTTP/1.1\r\nhost: web.env.localhost:81\r\ncontent-length: 5\r\nuser-agent: test/1\r\n\
                   x-request-id: id-1\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
                   connection: close\r\n\r\nhello";
    let answer = raw(observed.world.http, request).await;
    assert_eq!(parts(&answer).0, 201);
    assert!(!answer.contains("x-cove-reason"), "an app cannot speak for Cove: {answer}");
    let row = observed.row().await;
    let expected = AccessRecord {
        started_at: row.started_at,
        environment: route("web").environment.to_string(),
        app: route("web").app.to_string(),
        revision: "web--v1".into(),
        replica: "web--v1-0".into(),
        upstream: Some(app.address),
        attempts: 1,
        method: "POST".into(),
        authority: "web.env.localhost:81".into(),
        path: "/a/b".into(),
        protocol: "HTTP/1.1".into(),
        user_agent: "test/1".into(),
        forwarded_for: "127.0.0.1".into(),
        client: "127.0.0.1".parse().unwrap(),
        connection: row.connection,
        status: 201,
        reason: String::new(),
        ending: Ending::Complete,
        is_upgraded: false,
        received_bytes: 5,
        sent_bytes: 7,
        duration_us: row.duration_us,
        wait_us: row.wait_us,
        head_us: row.head_us,
        request_id: "id-1".into(),
        trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
        left_out: 0,
    };
    assert_eq!(row, expected);
    assert!(row.wait_us.unwrap() <= row.head_us.unwrap() && row.head_us.unwrap() <= row.duration_us, "{row:?}");
    assert!(observed.rows.try_recv().is_err(), "one row");
    let traffic = observed.world.handle.traffic();
    let (key, traffic) = &traffic[0];
    assert_eq!(
        (key, traffic.answers, traffic.received_bytes, traffic.sent_bytes),
        (&revision("web", "v1"), [0, 1, 0, 0, 0], 5, 7)
    );
    assert_eq!((traffic.durations.iter().sum::<u64>(), traffic.recent.unwrap().count), (1, 1));
    assert_eq!(observed.world.handle.reasons(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cove_answers_itself_has_a_reason_and_an_id() {
    let app = Backend::named("ok").await;
    let mut observed = Observed::start(&app).await;
    let answer = raw(observed.world.http, "GET / HTTP/1.1\r\nhost: nobody\r\nconnection: close\r\n\r\n").await;
    let row = observed.row().await;
    assert_eq!((row.status, row.reason.as_str(), row.app.as_str(), row.attempts), (404, "unknown-host", "", 0));
    assert_eq!((row.wait_us, row.authority.as_str()), (None, "nobody"));
    assert!(answer.contains(&format!("x-request-id: {}\r\n", row.request_id)), "{answer}");
    assert_eq!(row.trace_id.len(), 32);
    observed.world.failed(&revision("web", "v1"), "image `x` was not found");
    while get(observed.world.http, HOST).await.0 == 200 {
        assert_eq!(observed.row().await.status, 200, "a replica still had room");
    }
    let row = observed.row().await;
    assert_eq!((row.status, row.reason.as_str(), row.revision.as_str()), (503, "revision-failed", "web--v1"));
    let reasons = observed.world.handle.reasons();
    assert_eq!(reasons, [("revision-failed".to_owned(), 1), ("unknown-host".to_owned(), 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_did_not_let_an_answer_end_is_told() {
    // says as much as it is told to
    let (says, said) = mpsc::channel::<usize>(4);
    let said = Arc::new(tokio::sync::Mutex::new(said));
    let app = Backend::tcp(move |mut stream| {
        let said = Arc::clone(&said);
        async move {
            let _head = stream.read(&mut [0; 1024]).await;
            let _ok = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await;
            while let Some(bytes) = said.lock().await.recv().await {
                if bytes == 0 || stream.write_all(&vec![b'x'; bytes]).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let mut observed = Observed::start(&app).await;
    says.send(300).await.unwrap();
    says.send(0).await.unwrap();
    let answer =
        raw(observed.world.http, "GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n").await;
    assert_eq!(parts(&answer).0, 200);
    let row = observed.row().await;
    assert_eq!((row.status, row.ending, row.sent_bytes), (200, Ending::AppCut, 300));
    // the client leaves in the middle
    let mut stream = TcpStream::connect(observed.world.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web.env.localhost\r\n\r\n").await.unwrap();
    says.send(400).await.unwrap();
    soon("what was said", async {
        let mut read = Vec::new();
        while !read.ends_with(&[b'x'; 400]) {
            stream.read_buf(&mut read).await.unwrap();
        }
    })
    .await;
    drop(stream);
    let row = observed.row().await;
    assert_eq!((row.status, row.ending, row.sent_bytes), (200, Ending::ClientLeft, 400));
    let (_, traffic) = observed.world.handle.traffic().remove(0);
    assert_eq!((traffic.app_cut, traffic.client_left, traffic.answers[1]), (1, 1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_answer_is_told_from_one_that_was_cut() {
    let app = Backend::http(|_| async move {
        let first = futures_util::stream::once(async { Ok(Frame::data(Bytes::from_static(b"first"))) });
        Response::new(streamed(first.chain(futures_util::stream::pending())))
    })
    .await;
    let config = IngressConfig { stream_idle_timeout: Duration::from_millis(100), ..IngressConfig::default() };
    let mut observed = Observed::with(config, &app).await;
    raw(observed.world.http, "GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n").await;
    let row = observed.row().await;
    assert_eq!((row.ending, row.sent_bytes), (Ending::AppSilent, 5));
    assert!(row.is_error());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_request_tells_how_long_it_waited() {
    let app = Backend::named("awake").await;
    let world = World::start().await;
    let mut rows = world.handle.access_log().unwrap();
    let v1 = revision("web", "v1");
    world.route("web", route("web"));
    let address = world.http;
    // one that gives up, and one that waits
    let mut gives_up = TcpStream::connect(address).await.unwrap();
    gives_up.write_all(b"GET /gone HTTP/1.1\r\nhost: web.env.localhost\r\n\r\n").await.unwrap();
    until("the request to be held", || world.handle.load(&v1).held == 1).await;
    drop(gives_up);
    let row = soon("a row", rows.recv()).await.unwrap();
    assert_eq!((row.path.as_str(), row.status, row.ending), ("/gone", 0, Ending::ClientLeft));
    assert_eq!((row.revision.as_str(), row.attempts, row.head_us), ("web--v1", 0, None));
    let request = tokio::spawn(async move { get(address, HOST).await });
    until("the request to be held", || world.handle.load(&v1).held == 1).await;
    let held_since = std::time::Instant::now();
    until("a while to pass", || held_since.elapsed() > Duration::from_millis(20)).await;
    world.ready(&v1, &[app.address]);
    assert_eq!(soon("the answer", request).await.unwrap().0, 200);
    let row = soon("a row", rows.recv()).await.unwrap();
    assert!(row.wait_us.unwrap() >= 20_000 && row.wait_us <= row.head_us, "{row:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_try_is_counted() {
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let app = Backend::named("alive").await;
    let mut observed = Observed::start(&app).await;
    let v1 = revision("web", "v1");
    observed.world.ready(&v1, &[bound.local_addr().unwrap(), app.address]);
    let row = soon("a request that is tried again", async {
        loop {
            assert_eq!(get(observed.world.http, HOST).await.0, 200);
            let row = observed.row().await;
            if row.attempts > 1 {
                return row;
            }
        }
    })
    .await;
    assert_eq!((row.attempts, row.upstream, row.replica.as_str()), (2, Some(app.address), "web--v1-1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_has_its_row_at_its_end() {
    let app = Backend::tcp(|stream| async move {
        let Ok(mut socket) = accept_async(stream).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() && socket.send(message).await.is_err() {
                return;
            }
        }
    })
    .await;
    let mut observed = Observed::start(&app).await;
    let stream = TcpStream::connect(observed.world.http).await.unwrap();
    let url = format!("ws://{HOST}/chat");
    let (mut socket, _) = soon("the handshake", client_async(url, MaybeTlsStream::Plain(stream))).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    soon("the echo", socket.next()).await.unwrap().unwrap();
    assert!(observed.rows.try_recv().is_err(), "it is open");
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = soon("the end", socket.next()).await {}
    let row = observed.row().await;
    assert_eq!((row.status, row.ending, row.is_upgraded, row.path.as_str()), (101, Ending::Complete, true, "/chat"));
    // two frames of a head and a text each way: masked ones of the client, then the close frames
    assert_eq!((row.received_bytes, row.sent_bytes), (6 + 5 + 6, 2 + 5 + 2));
    let (_, traffic) = observed.world.handle.traffic().remove(0);
    assert_eq!((traffic.answers[0], traffic.durations.iter().sum::<u64>()), (1, 0), "its time is no latency");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apps_say_what_is_logged_of_them() {
    let app = Backend::named("ok").await;
    let access_log = AccessLogConfig { has_query: true, ..AccessLogConfig::default() };
    let mut observed = Observed::with(IngressConfig { access_log, ..IngressConfig::default() }, &app).await;
    for (name, wish) in [("quiet", AccessLog::Off), ("broken", AccessLog::Errors)] {
        let policies = Arc::new(IngressPolicies { access_log: Some(wish), ..IngressPolicies::default() });
        observed.world.route(name, AppRoute { policies, ..route(name) });
        observed.world.ready(&revision(name, "v1"), &[app.address]);
        assert_eq!(get(observed.world.http, &format!("{name}.env.localhost")).await.0, 200);
    }
    let request = "GET /last?a=b HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(parts(&raw(observed.world.http, request).await).0, 200);
    assert_eq!(observed.row().await.path, "/last?a=b", "the others left no row");
    assert_eq!(observed.world.handle.access_log_left_out(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_stops_nobody() {
    let app = Backend::named("ok").await;
    let access_log = AccessLogConfig { rows_per_second_max: 5, ..AccessLogConfig::default() };
    let mut observed = Observed::with(IngressConfig { access_log, ..IngressConfig::default() }, &app).await;
    let left_out = soon("rows to be left out", async {
        while observed.world.handle.access_log_left_out() == 0 {
            assert_eq!(get(observed.world.http, HOST).await.0, 200);
        }
        observed.world.handle.access_log_left_out()
    })
    .await;
    let told = soon("a row that tells it", async {
        loop {
            assert_eq!(get(observed.world.http, HOST).await.0, 200);
            while let Ok(row) = observed.rows.try_recv() {
                if row.left_out > 0 {
                    return row.left_out;
                }
            }
        }
    })
    .await;
    assert!(told >= left_out);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_http2_have_rows_of_their_own() {
    let app = Backend::http(|request| async move {
        let is_endless = request.uri().path() == "/endless";
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let first = futures_util::stream::once(async { Ok(Frame::data(body)) });
        if is_endless {
            return Response::new(streamed(first.chain(futures_util::stream::pending())));
        }
        let trailers = Frame::trailers([("x-end".parse().unwrap(), "1".parse().unwrap())].into_iter().collect());
        let last = futures_util::stream::once(async { Ok(trailers) });
        Response::builder().header("trailer", "x-end").body(streamed(first.chain(last))).unwrap()
    })
    .await;
    let mut observed = Observed::start(&app).await;
    let stream = TcpStream::connect(observed.world.http).await.unwrap();
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = |path| {
        let uri = format!("http://{HOST}{path}");
        Request::post(uri).header("te", "trailers").body(text("hello")).unwrap()
    };
    let answer = soon("the head", client.send_request(request("/whole"))).await.unwrap();
    assert_eq!(soon("the body", answer.into_body().collect()).await.unwrap().to_bytes(), "hello");
    let whole = observed.row().await;
    assert_eq!((whole.protocol.as_str(), whole.authority.as_str(), whole.path.as_str()), ("HTTP/2", HOST, "/whole"));
    assert_eq!((whole.ending, whole.received_bytes, whole.sent_bytes), (Ending::Complete, 5, 5));
    // one stream is reset; the connection stays
    let mut answer = soon("the head", client.send_request(request("/endless"))).await.unwrap();
    soon("the first frame", answer.body_mut().frame()).await.unwrap().unwrap();
    drop(answer);
    let reset = observed.row().await;
    assert_eq!((reset.ending, reset.sent_bytes, reset.status), (Ending::ClientLeft, 5, 200));
    assert_eq!(reset.connection, whole.connection);
}
