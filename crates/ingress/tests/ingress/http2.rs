//! HTTP/2 to apps: gRPC's shapes (trailers, streams both ways), shared connections, apps that do not speak it.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use cove_model::{IngressPolicies, Resiliency, RetryPolicy, Transport};
use cove_traffic::AppRoute;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    sync::{Barrier, mpsc},
    task::JoinSet,
};

use crate::world::{Backend, Body, World, parts, raw, reason, revision, route, soon, streamed, text, until};

async fn http2_app<F, R>(answer: F) -> Backend
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    Backend::tcp(move |stream| {
        let answer = answer.clone();
        async move {
            let service = service_fn(move |request| {
                let response = answer(request);
                async move { Ok::<_, Infallible>(response.await) }
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            let _the_client_left = connection.await;
        }
    })
    .await
}

async fn world(app: &Backend) -> World {
    let world = World::start().await;
    world.route("web", AppRoute { transport: Transport::Http2, ..route("web") });
    world.ready(&revision("web", "v1"), &[app.address]);
    world
}

async fn client(world: &World) -> http2::SendRequest<Body> {
    let stream = TcpStream::connect(world.http).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn grpc(body: Body) -> Request<Body> {
    Request::post("http://web.env.localhost/pkg.Service/Method")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

/// Echoes every message at once and ends with trailers, as a bidirectional gRPC method does.
async fn echo_stream(request: Request<Incoming>) -> Response<Body> {
    assert_eq!((request.version(), request.headers()["te"].to_str().unwrap()), (Version::HTTP_2, "trailers"));
    assert_eq!(request.uri().authority().unwrap(), "web.env.localhost");
    assert!(!request.headers().contains_key("host") && request.headers().contains_key("x-forwarded-for"));
    let (sender, receiver) = mpsc::channel::<Frame<Bytes>>(1);
    tokio::spawn(async move {
        let mut body = request.into_body();
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data()
                && sender.send(Frame::data(data)).await.is_err()
            {
                return;
            }
        }
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
        let _gone = sender.send(Frame::trailers(trailers)).await;
    });
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let frame = receiver.recv().await?;
        Some((Ok(frame), receiver))
    });
    Response::builder().header("content-type", "application/grpc").body(streamed(frames)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_flow_both_ways_while_a_call_is_open_and_end_with_trailers() {
    let app = http2_app(echo_stream).await;
    let world = world(&app).await;
    let mut sender = client(&world).await;
    let (messages, receiver) = mpsc::channel::<Frame<Bytes>>(1);
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let frame = receiver.recv().await?;
        Some((Ok(frame), receiver))
    });
    let response = soon("the head", sender.send_request(grpc(streamed(frames)))).await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
    let mut body = response.into_body();
    for round in 0..10_u8 {
        let message = Bytes::from(vec![round; 1000]);
        messages.send(Frame::data(message.clone())).await.unwrap();
        let mut seen = Vec::new();
        while seen.len() < message.len() {
            let frame = soon("the echo", body.frame()).await.unwrap().unwrap();
            seen.extend_from_slice(&frame.into_data().unwrap());
        }
        assert_eq!(seen, message, "an answer comes while the call is open");
    }
    assert_eq!(world.handle.load(&revision("web", "v1")).open, 1);
    drop(messages);
    let last = soon("the trailers", body.frame()).await.unwrap().unwrap();
    assert_eq!(last.into_trailers().unwrap()["grpc-status"], "0");
    assert!(soon("the end", body.frame()).await.is_none());
    until("it is closed", || world.handle.load(&revision("web", "v1")).open == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_share_few_connections() {
    // a new replica is tried with 40; then the other 200 are open at once
    let (count, first, rest) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(40)), Arc::new(Barrier::new(200)));
    let app = http2_app(move |request| {
        let company = if count.fetch_add(1, Ordering::SeqCst) < 40 { &first } else { &rest };
        let company = Arc::clone(company);
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            company.wait().await;
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "5".parse().unwrap())]);
            let frames = [Ok(Frame::data(body)), Ok(Frame::trailers(trailers))];
            Response::new(streamed(futures_util::stream::iter(frames)))
        }
    })
    .await;
    let world = world(&app).await;
    let sender = client(&world).await;
    let mut calls = JoinSet::new();
    for number in 0..240 {
        let mut sender = sender.clone();
        calls.spawn(async move {
            let response = sender.send_request(grpc(text(format!("call {number}")))).await.unwrap();
            let collected = response.into_body().collect().await.unwrap();
            assert_eq!(collected.trailers().unwrap()["grpc-status"], "5");
            assert_eq!(collected.to_bytes(), format!("call {number}"));
        });
    }
    while let Some(done) = soon("a call", calls.join_next()).await {
        done.unwrap();
    }
    let connections = app.connections.load(Ordering::SeqCst);
    assert!((2..=4).contains(&connections), "{connections} connections for 240 calls of 100 each");
    assert_eq!(world.handle.load(&revision("web", "v1")).open, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_clients_reach_an_app_that_speaks_only_http2() {
    let app = http2_app(|request| async move {
        let seen = format!("{:?} {} {:?}", request.version(), request.uri(), request.headers().get("content-length"));
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(text(format!("{seen} {}", String::from_utf8_lossy(&body))))
    })
    .await;
    let world = world(&app).await;
    for (request, expected) in [
        (
            "GET /a?b HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n",
            "HTTP/2.0 http://web.env.localhost/a?b None ",
        ),
        (
            "POST / HTTP/1.1\r\nhost: web.env.localhost\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
             3\r\nabc\r\n0\r\n\r\n",
            "HTTP/2.0 http://web.env.localhost/ None abc",
        ),
        (
            "GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close, upgrade\r\nupgrade: websocket\r\n\r\n",
            "HTTP/2.0 http://web.env.localhost/ None ",
        ),
    ] {
        let answer = raw(world.http, request).await;
        assert_eq!(parts(&answer), (200, expected.to_owned()), "{request}\n{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_does_not_speak_http2_is_told_so() {
    let app = Backend::named("http1").await;
    let world = world(&app).await;
    let answer = raw(world.http, "GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n").await;
    assert_eq!((parts(&answer).0, reason(&answer)), (502, "upstream-not-http2"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_wakes_an_app_at_zero() {
    let app = http2_app(|_| async { Response::new(text("awake")) }).await;
    let world = World::start().await;
    world.route("web", AppRoute { transport: Transport::Http2, ..route("web") });
    let mut sender = client(&world).await;
    let key = revision("web", "v1");
    let (response, ()) = tokio::join!(sender.send_request(grpc(Full::from("x").boxed_unsync())), async {
        until("the wake", || !world.activated.lock().unwrap().is_empty()).await;
        world.ready(&key, &[app.address]);
    });
    let body = soon("the body", response.unwrap().into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(body, "awake");
    let _kept: Arc<_> = Arc::clone(&app.connections);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_over_http2_sends_the_whole_body_again() {
    let asked = Arc::new(AtomicUsize::new(0));
    let app = http2_app(move |request| {
        let number = asked.fetch_add(1, Ordering::SeqCst);
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut response = Response::new(text(format!("{number} {}", String::from_utf8_lossy(&body))));
            if number < 2 {
                *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            }
            response
        }
    })
    .await;
    let world = World::start().await;
    let retry = RetryPolicy { initial_delay_ms: 1, delay_max_ms: 2, ..RetryPolicy::default() };
    let resiliency = Resiliency { retry: Some(retry), ..Resiliency::default() };
    let policies = Arc::new(IngressPolicies { resiliency, ..IngressPolicies::default() });
    world.route("web", AppRoute { transport: Transport::Http2, policies, ..route("web") });
    world.ready(&revision("web", "v1"), &[app.address]);
    let head = "POST / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n";
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    assert_eq!(parts(&raw(world.http, &chunked).await), (200, "2 abcde".to_owned()));
    let counts = world.handle.resilience(&revision("web", "v1"));
    assert_eq!((counts.retries, counts.retry_successes), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_pauses_behind_small_messages_ends_no_call() {
    const MESSAGES: usize = 30_000;
    let (told, mut all_said) = mpsc::channel(1);
    let app = http2_app(move |request| {
        let told = told.clone();
        async move {
            if request.headers().contains_key("x-short") {
                return echo_stream(request).await;
            }
            let frames = futures_util::stream::unfold(0, move |count| {
                let told = told.clone();
                async move {
                    if count == MESSAGES {
                        told.send(()).await.unwrap();
                        return None;
                    }
                    Some((Ok(Frame::data(Bytes::from_static(b"small"))), count + 1))
                }
            });
            Response::new(streamed(frames))
        }
    })
    .await;
    let world = world(&app).await;
    let stream = TcpStream::connect(world.http).await.unwrap();
    // what this client takes without reading is little
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(16 << 10)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let response = soon("the head", sender.send_request(grpc(text("")))).await.unwrap();
    soon("all of the answer is on its way", all_said.recv()).await.unwrap();
    let mut short = grpc(text("another call"));
    short.headers_mut().insert("x-short", "1".parse().unwrap());
    let other = soon("another call", sender.send_request(short)).await.unwrap();
    assert_eq!(soon("its end", other.into_body().collect()).await.unwrap().to_bytes(), "another call");
    let read = soon("every message", response.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(read.len(), MESSAGES * 5);
}
