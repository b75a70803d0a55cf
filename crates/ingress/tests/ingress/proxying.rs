//! What passes through: heads, bodies both ways, kept connections, and which failures are repeated.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cove_ingress::IngressConfig;
use http::Response;
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::mpsc,
};

use crate::world::{Backend, World, get, parts, raw, reason, revision, route, soon, streamed, text, until};

const HOST: &str = "web.env.localhost";

/// A world with one app at `backend`.
async fn world(backend: &Backend) -> World {
    world_with(IngressConfig::default(), backend).await
}

/// Every request finds the connections that those before it left.
fn one_thread() -> IngressConfig {
    IngressConfig { threads: 1, ..IngressConfig::default() }
}

async fn world_with(config: IngressConfig, backend: &Backend) -> World {
    let world = World::with(config).await;
    world.route("web", route("web"));
    world.ready(&revision("web", "v1"), &[backend.address]);
    world
}

/// Answers with the request line and its fields, sorted.
async fn echo() -> Backend {
    Backend::http(|request| async move {
        let mut lines: Vec<String> = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .filter(|line| !line.starts_with("x-request-id: ") && !line.starts_with("traceparent: "))
            .collect();
        lines.sort();
        let line = format!("{} {} {:?}", request.method(), request.uri(), request.version());
        let body = request.into_body().collect().await.unwrap();
        let trailers = body.trailers().map(|trailers| format!("\ntrailers: {trailers:?}")).unwrap_or_default();
        let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
        Response::new(text(format!("{line}\n{}\n{body}{trailers}", lines.join("\n"))))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_are_made_safe() {
    let app = echo().await;
    let world = world(&app).await;
    for (request, expected) in [
        (
            "GET /a%20b?c=d HTTP/1.1\r\nhost: web.env.localhost:81\r\nx-forwarded-for: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n\
             connection: close, x-secret\r\nx-secret: 1\r\nte: gzip\r\nkeep-alive: timeout=9\r\ncookie: a=1\r\n\r\n",
            "GET /a%20b?c=d HTTP/1.1\ncookie: a=1\nhost: web.env.localhost:81\nx-forwarded-for: 127.0.0.1\n\
             x-forwarded-host: web.env.localhost:81\nx-forwarded-proto: http\n",
        ),
        (
            "GET http://web.env.localhost/abs HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n",
            "GET /abs HTTP/1.1\nhost: web.env.localhost\nx-forwarded-for: 127.0.0.1\n\
             x-forwarded-host: web.env.localhost\nx-forwarded-proto: http\n",
        ),
        (
            "POST / HTTP/1.1\r\nhost: web.env.localhost\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello",
            "POST / HTTP/1.1\ncontent-length: 5\nhost: web.env.localhost\nx-forwarded-for: 127.0.0.1\n\
             x-forwarded-host: web.env.localhost\nx-forwarded-proto: http\nhello",
        ),
        (
            "GET / HTTP/1.1\r\nhost: web.env.localhost\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
             3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\n\r\n",
            "GET / HTTP/1.1\nhost: web.env.localhost\ntransfer-encoding: chunked\nx-forwarded-for: 127.0.0.1\n\
             x-forwarded-host: web.env.localhost\nx-forwarded-proto: http\nabcde",
        ),
        (
            "GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close, upgrade, http2-settings\r\n\
             upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n",
            "GET / HTTP/1.1\nhost: web.env.localhost\nx-forwarded-for: 127.0.0.1\n\
             x-forwarded-host: web.env.localhost\nx-forwarded-proto: http\n",
        ),
        (
            "GET / HTTP/1.0\r\nhost: web.env.localhost\r\n\r\n",
            "GET / HTTP/1.1\nhost: web.env.localhost\nx-forwarded-for: 127.0.0.1\n\
             x-forwarded-host: web.env.localhost\nx-forwarded-proto: http\n",
        ),
    ] {
        let answer = raw(world.http, request).await;
        assert_eq!(parts(&answer), (200, expected.to_owned()), "{request}\n{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_kept_and_the_newest_is_used_first() {
    let app = Backend::named("ok").await;
    let world = world_with(one_thread(), &app).await;
    for _ in 0..20 {
        assert_eq!(get(world.http, HOST).await.0, 200);
    }
    assert_eq!(app.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_on_a_connection_that_was_just_closed_is_repeated() {
    // answers one request per connection, then closes when the next one arrives
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let requests = Arc::clone(&seen);
    let app = Backend::tcp(move |stream| {
        let requests = Arc::clone(&requests);
        async move {
            let mut stream = BufReader::new(stream);
            for is_first in [true, false] {
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                requests.lock().unwrap().push(head.lines().next().unwrap_or("").to_owned());
                if is_first {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                }
            }
        }
    })
    .await;
    let world = world_with(one_thread(), &app).await;
    assert_eq!(get(world.http, HOST).await.0, 200);
    assert_eq!(get(world.http, HOST).await, (200, "ok".into()), "repeated on a fresh connection");
    assert_eq!(*seen.lock().unwrap(), ["GET / HTTP/1.1"; 3]);
    let post = "POST /pay HTTP/1.1\r\nhost: web.env.localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let answer = raw(world.http, post).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "a payment may have happened: {answer}");
    assert_eq!(reason(&answer), "upstream-closed");
    assert_eq!(seen.lock().unwrap().iter().filter(|line| line.starts_with("POST")).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_connection_leads_to_another_replica() {
    // bound, so that nobody else gets the port, but nobody listens
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let dead = bound.local_addr().unwrap();
    let app = Backend::named("alive").await;
    let world = World::start().await;
    let v1 = revision("web", "v1");
    world.route("web", route("web"));
    world.ready(&v1, &[dead, app.address]);
    let post = "POST / HTTP/1.1\r\nhost: web.env.localhost\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
    for _ in 0..5 {
        assert_eq!(parts(&raw(world.http, post).await), (200, "alive".into()));
    }
    world.ready(&v1, &[dead]);
    let answer = soon("only the dead one to be left", async {
        loop {
            let answer = raw(world.http, post).await;
            if !answer.starts_with("HTTP/1.1 200 ") {
                return answer;
            }
        }
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(reason(&answer), "upstream-connect-failed");
    // the controller notices and starts another: the request goes there
    let (address, http) = (app.address, world.http);
    let waiting = tokio::spawn(async move { raw(http, post).await });
    until("the request to wait", || world.handle.load(&v1).held == 1).await;
    world.endpoints.set(v1.clone(), crate::world::endpoints(&v1, &[dead, address], &[0]));
    assert_eq!(parts(&soon("the answer", waiting).await.unwrap()).0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_answers_are_told_apart() {
    for (answer, code) in [("", "upstream-closed"), ("SSH-2.0-x\r\n\r\n", "upstream-invalid")] {
        let app = Backend::tcp(move |mut stream| async move {
            let _head = stream.read(&mut [0; 1024]).await;
            let _gone = stream.write_all(answer.as_bytes()).await;
        })
        .await;
        let world = world(&app).await;
        let got = raw(world.http, "GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n").await;
        assert!(got.starts_with("HTTP/1.1 502 "), "{got}");
        assert_eq!(reason(&got), code);
    }
    let app = Backend::tcp(|mut stream| async move {
        let mut sink = Vec::new();
        let _until_it_closes = stream.read_to_end(&mut sink).await;
    })
    .await;
    let config = IngressConfig { request_timeout: Duration::from_secs(2), ..IngressConfig::default() };
    let world = world_with(config, &app).await;
    let got = raw(world.http, "GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n").await;
    assert_eq!(reason(&got), "upstream-timeout");
    until("nothing to be open", || world.handle.load(&revision("web", "v1")).open == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_stream_as_they_come() {
    let (sender, receiver) = mpsc::channel::<&'static str>(4);
    let receiver = Arc::new(tokio::sync::Mutex::new(Some(receiver)));
    let app = Backend::http(move |_| {
        let receiver = Arc::clone(&receiver);
        async move {
            let receiver = receiver.lock().await.take().unwrap();
            let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
                let text = receiver.recv().await?;
                Some((Ok(Frame::data(Bytes::from_static(text.as_bytes()))), receiver))
            });
            Response::new(streamed(frames))
        }
    })
    .await;
    let world = world(&app).await;
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    sender.send("first").await.unwrap();
    let mut seen = String::new();
    soon("the first part", async {
        while !seen.contains("first") {
            let mut buffer = [0; 256];
            let count = stream.read(&mut buffer).await.unwrap();
            seen.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
    })
    .await;
    assert_eq!(world.handle.load(&revision("web", "v1")).open, 1, "open while it streams");
    sender.send("last").await.unwrap();
    drop(sender);
    let mut rest = String::new();
    soon("the rest", stream.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.contains("last") && rest.ends_with("0\r\n\r\n"), "{rest}");
    until("nothing to be open", || world.handle.load(&revision("web", "v1")).open == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_asked_for_only_when_a_replica_wants_it() {
    let app = echo().await;
    let v1 = revision("web", "v1");
    let world = World::start().await;
    world.route("web", route("web"));
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: web.env.localhost\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\
                connection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    until("the request to be held", || world.handle.load(&v1).held == 1).await;
    assert!(stream.try_read(&mut [0; 16]).is_err(), "nothing is said while it is held");
    world.ready(&v1, &[app.address]);
    let mut go_on = [0; 25];
    soon("the go-ahead", stream.read_exact(&mut go_on)).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut answer = String::new();
    soon("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\nhello"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_goes_through_without_being_collected() {
    const SIZE: usize = 64 << 20;
    let app = Backend::http(|request| async move {
        let mut body = request.into_body();
        let mut total = 0;
        while let Some(Ok(frame)) = body.frame().await {
            total += frame.data_ref().map_or(0, Bytes::len);
        }
        Response::new(text(total.to_string()))
    })
    .await;
    let world = world(&app).await;
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    let head = format!("PUT / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {SIZE}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let block = vec![b'x'; 1 << 20];
    soon("the upload", async {
        for _ in 0..SIZE / block.len() {
            stream.write_all(&block).await.unwrap();
        }
    })
    .await;
    let mut answer = String::new();
    soon("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(parts(&answer), (200, SIZE.to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_still_carries_a_body_is_not_used_again() {
    let closed = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&closed);
    // answers at the end of the head and leaves the body unread for long
    let app = Backend::tcp(move |stream| {
        let closed = Arc::clone(&counter);
        async move {
            let mut stream = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            let mut rest = Vec::new();
            let _reset_or_end = stream.read_to_end(&mut rest).await;
            closed.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let world = world(&app).await;
    for count in 1..=3 {
        let mut stream = TcpStream::connect(world.http).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 1000000\r\n\r\nthe beginning");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        soon("the early answer", stream.read_exact(&mut status)).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 413");
        drop(stream);
        until("the connection to be closed", || closed.load(Ordering::SeqCst) == count).await;
    }
    assert_eq!(app.connections.load(Ordering::SeqCst), 3);
    until("nothing to be open", || world.handle.load(&revision("web", "v1")).open == 0).await;
}
