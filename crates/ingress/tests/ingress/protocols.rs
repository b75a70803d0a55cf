//! Shapes of requests that must not be misread, limits on heads, and HTTP/2 in.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cove_ingress::IngressConfig;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::{body::Frame, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use crate::world::{Backend, World, raw, reason, revision, route, soon, streamed, text, until};

async fn world() -> (World, Backend) {
    let app = Backend::http(|request| async move {
        let seen = format!("{} {:?}", request.uri(), request.headers().get("cookie"));
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        Response::new(text(format!("{seen} [{}]", String::from_utf8_lossy(&body))))
    })
    .await;
    let world = World::with(IngressConfig { header_timeout: Duration::from_secs(1), ..IngressConfig::default() }).await;
    world.route("web", route("web"));
    world.ready(&revision("web", "v1"), &[app.address]);
    (world, app)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ambiguous_requests_reach_no_app() {
    let (world, _app) = world().await;
    let host = "host: web.env.localhost\r\n";
    for (name, request) in [
        ("two lengths", format!("POST / HTTP/1.1\r\n{host}content-length: 3\r\ncontent-length: 4\r\n\r\nabcd")),
        ("bad length", format!("POST / HTTP/1.1\r\n{host}content-length: +3\r\n\r\nabc")),
        ("length list", format!("POST / HTTP/1.1\r\n{host}content-length: 3, 4\r\n\r\nabc")),
        ("not chunked last", format!("POST / HTTP/1.1\r\n{host}transfer-encoding: chunked, gzip\r\n\r\n")),
        ("unknown coding", format!("POST / HTTP/1.1\r\n{host}transfer-encoding: xchunked\r\n\r\n")),
        ("chunked in 1.0", format!("POST / HTTP/1.0\r\n{host}transfer-encoding: chunked\r\n\r\n0\r\n\r\n")),
        ("folded field", format!("GET / HTTP/1.1\r\n{host}x: a\r\n b: c\r\n\r\n")),
        ("space before colon", format!("GET / HTTP/1.1\r\n{host}content-length : 3\r\n\r\nabc")),
        ("bare carriage return", format!("GET / HTTP/1.1\r\n{host}x: a\rb\r\n\r\n")),
        ("nul in a value", format!("GET / HTTP/1.1\r\n{host}x: a\0b\r\n\r\n")),
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("two hosts", format!("GET / HTTP/1.1\r\n{host}host: other\r\n\r\n")),
        ("two targets", format!("GET http://other/ HTTP/1.1\r\n{host}\r\n")),
        ("bad version", format!("GET / HTTP/3.7\r\n{host}\r\n")),
        ("no request", "\u{1}\u{2}\u{3}\r\n\r\n".to_owned()),
    ] {
        let answer = raw(world.http, &request).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") || answer.is_empty(), "{name}: {answer}");
        assert!(!answer.contains("200 OK"), "{name}: {answer}");
    }
    assert_eq!(world.handle.load(&revision("web", "v1")).arrivals_total, 0);
    let answer = raw(world.http, "CONNECT web.env.localhost:80 HTTP/1.1\r\nhost: web.env.localhost:80\r\n\r\n").await;
    assert_eq!(reason(&answer), "connect-not-supported");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_beside_chunks_means_nothing_and_ends_the_connection() {
    let (world, _app) = world().await;
    // RFC 9112, 6.3: chunks win, and what follows is not read as a request
    for fields in ["content-length: 4\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 4"]
    {
        let request = format!(
            "POST /one HTTP/1.1\r\nhost: web.env.localhost\r\n{fields}\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
             GET /smuggled HTTP/1.1\r\nhost: web.env.localhost\r\n\r\n"
        );
        let answer = raw(world.http, &request).await;
        assert!(answer.contains("/one None [abc]") && !answer.contains("/smuggled"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_body_is_the_clients_fault() {
    let (world, _app) = world().await;
    let host = "host: web.env.localhost\r\ntransfer-encoding: chunked\r\n";
    for chunks in ["zz\r\nabc\r\n0\r\n\r\n", "ffffffffffffffffff\r\n", "3\r\nabcXX0\r\n\r\n", "-3\r\nabc\r\n"] {
        let answer = raw(world.http, &format!("POST / HTTP/1.1\r\n{host}\r\n{chunks}")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{chunks}: {answer}");
        assert_eq!(reason(&answer), "request-body-failed", "{chunks}");
    }
    until("nothing to be open", || world.handle.load(&revision("web", "v1")).open == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_have_limits() {
    let (world, _app) = world().await;
    let many: String = (0..101).map(|index| format!("x-{index}: 1\r\n")).collect();
    let large = format!("x: {}\r\n", "a".repeat(70 << 10));
    for fields in [many, large] {
        let answer = raw(world.http, &format!("GET / HTTP/1.1\r\nhost: web.env.localhost\r\n{fields}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    let long = "a".repeat(70 << 10);
    let answer = raw(world.http, &format!("GET /{long} HTTP/1.1\r\nhost: web.env.localhost\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_speaks_too_slowly_is_left() {
    let (world, _app) = world().await;
    for start in ["", "PRI * HT", "GET / HTTP/1.1\r\nhost: web"] {
        let mut stream = TcpStream::connect(world.http).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        soon("the end of the connection", stream.read_to_end(&mut answer)).await.unwrap();
        assert!(!String::from_utf8_lossy(&answer).contains("200"), "{start}");
    }
}

async fn http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> http2::SendRequest<Full<Bytes>> {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn ask(sender: &mut http2::SendRequest<Full<Bytes>>, scheme: &str, body: &'static str) -> (Version, String) {
    let request = Request::post(format!("{scheme}://web.env.localhost/two"))
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Full::from(body))
        .unwrap();
    let response = soon("the answer", sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    let version = response.version();
    let body = soon("the body", response.into_body().collect()).await.unwrap().to_bytes();
    (version, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_comes_in_plain_and_over_tls() {
    let (world, app) = world().await;
    let expected = (Version::HTTP_2, "/two Some(\"a=1; b=2\") [hello]".to_owned());
    let mut plain = http2(TcpStream::connect(world.http).await.unwrap()).await;
    assert_eq!(ask(&mut plain, "http", "hello").await, expected);

    for alpn in [&b"h2"[..], b"http/1.1"] {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(world.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(world.https).await.unwrap();
        let name = "web.env.localhost".try_into().unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream);
        let mut tls = soon("the handshake", tls).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(alpn));
        if alpn == b"h2" {
            let mut sender = http2(tls).await;
            assert_eq!(ask(&mut sender, "https", "hello").await, expected);
            // many streams at once, one connection
            let mut all = tokio::task::JoinSet::new();
            for _ in 0..100 {
                let mut sender = sender.clone();
                all.spawn(async move { ask(&mut sender, "https", "x").await.0 });
            }
            while let Some(version) = soon("an answer", all.join_next()).await {
                assert_eq!(version.unwrap(), Version::HTTP_2);
            }
        } else {
            tls.write_all(b"GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            soon("the answer", tls.read_to_string(&mut answer)).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    }
    drop(app);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_without_bodies_and_trailers_go_through() {
    let app = Backend::http(|request| async move {
        if request.method() == "HEAD" {
            return Response::builder().header("content-length", "12345").body(text("")).unwrap();
        }
        let body = request.into_body().collect().await.unwrap();
        let sum = body.trailers().and_then(|trailers| trailers.get("x-sum")).cloned().unwrap();
        let trailers = http::HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), sum)]);
        let frames = [Frame::data(body.to_bytes()), Frame::trailers(trailers)].map(Ok);
        Response::builder().header("trailer", "x-sum").body(streamed(futures_util::stream::iter(frames))).unwrap()
    })
    .await;
    let world = World::start().await;
    world.route("web", route("web"));
    world.ready(&revision("web", "v1"), &[app.address]);
    let answer = raw(world.http, "HEAD / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("content-length: 12345\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");

    let stream = TcpStream::connect(world.http).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = |method: &str, frames: Vec<Frame<Bytes>>| {
        Request::builder()
            .method(method)
            .uri("http://web.env.localhost/")
            .header("te", "trailers")
            .header("trailer", "x-sum")
            .body(streamed(futures_util::stream::iter(frames.into_iter().map(Ok))))
            .unwrap()
    };
    let response = soon("the head", sender.send_request(request("HEAD", Vec::new()))).await.unwrap();
    assert_eq!(response.headers()["content-length"], "12345");
    let trailers =
        http::HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), http::HeaderValue::from_static("42"))]);
    let frames = vec![Frame::data(Bytes::from_static(b"abc")), Frame::trailers(trailers.clone())];
    let response = soon("the head", sender.send_request(request("POST", frames))).await.unwrap();
    let body = soon("the body", response.into_body().collect()).await.unwrap();
    assert_eq!(body.trailers(), Some(&trailers));
    assert_eq!(body.to_bytes(), "abc");
}
