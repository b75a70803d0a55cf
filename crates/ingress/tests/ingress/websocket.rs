//! WebSockets: through, counted, and closed gently when their replica goes.

use std::time::Duration;

use cove_ingress::IngressConfig;
use cove_traffic::AppRoute;
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, Response};
use hyper::{body::Incoming, client::conn::http2, ext::Protocol, upgrade::Upgraded};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, accept_async, accept_hdr_async, connect_async,
    tungstenite::{
        Message,
        handshake::server::{Request as Asked, Response as Answer},
        protocol::{Role, frame::coding::CloseCode},
    },
};

use crate::world::{Backend, Body, World, endpoints, replica, revision, route, soon, text, until};

/// Long enough to say something within it, on a busy machine too.
const GRACE: Duration = Duration::from_secs(3);

/// Says everything back; `shout` is answered with a large message in many fragments of bytes.
async fn echo() -> Backend {
    Backend::tcp(|stream| async move {
        let Ok(mut socket) = accept_async(stream).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn connect(world: &World) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
    let url = format!("ws://web.env.localhost:{}/chat", world.http.port());
    let connecting = async {
        let stream = TcpStream::connect(world.http).await.unwrap();
        tokio_tungstenite::client_async(url, MaybeTlsStream::Plain(stream)).await.unwrap()
    };
    soon("the handshake", connecting).await.0
}

async fn say(socket: &mut WebSocketStream<impl AsyncRead + AsyncWrite + Unpin>, message: Message) {
    socket.send(message.clone()).await.unwrap();
    assert_eq!(soon("the echo", socket.next()).await.unwrap().unwrap(), message);
}

async fn expect_going_away(socket: &mut WebSocketStream<impl AsyncRead + AsyncWrite + Unpin>) {
    match soon("a close frame", socket.next()).await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(frame.code, CloseCode::Away),
        other => panic!("a close frame was expected, not {other:?}"),
    }
    let end = soon("the end", socket.next()).await;
    // RFC 9113, 8.1: a server that has said all may end a stream by a reset without error; this client's library tells of
    // that when the reset overtakes its own close frame
    let is_no_error = matches!(&end, Some(Err(error)) if format!("{error:?}").contains("Reason(NO_ERROR)"));
    assert!(end.is_none() || is_no_error, "the stream ends after that, it does not say {end:?}");
}

async fn world(config: IngressConfig, app: &Backend) -> World {
    let world = World::with(config).await;
    world.route("web", AppRoute { ..route("web") });
    world.ready(&revision("web", "v1"), &[app.address]);
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_both_ways_and_count_as_open() {
    let app = echo().await;
    let v1 = revision("web", "v1");
    let world = world(IngressConfig::default(), &app).await;
    let mut socket = connect(&world).await;
    say(&mut socket, Message::text("hello")).await;
    say(&mut socket, Message::binary(vec![7; 300 << 10])).await;
    assert_eq!(world.handle.load(&v1).open, 1);
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = soon("the end", socket.next()).await {}
    until("it to be closed", || world.handle.load(&v1).open == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_replica_keeps_its_websocket_until_its_time_is_over() {
    let app = echo().await;
    let v1 = revision("web", "v1");
    let world = world(IngressConfig { websocket_drain_after: GRACE, ..IngressConfig::default() }, &app).await;
    let mut socket = connect(&world).await;
    say(&mut socket, Message::text("before")).await;
    let drained = world.handle.drained();
    world.endpoints.set(v1.clone(), endpoints(&v1, &[], &[0]));
    until("the drain to be reported", || drained.get(&replica(&v1, 0)) == Some(1)).await;
    say(&mut socket, Message::text("while draining")).await;
    expect_going_away(&mut socket).await;
    until("it to be drained", || drained.get(&replica(&v1, 0)) == Some(0)).await;
    assert_eq!(world.handle.load(&v1).open, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_stopped_while_draining_says_goodbye() {
    let app = echo().await;
    let v1 = revision("web", "v1");
    let world = world(IngressConfig::default(), &app).await;
    // once by leaving the board, once by its process ending
    for by_board in [true, false] {
        let app = echo().await;
        world.ready(&v1, &[app.address]);
        let mut socket = connect(&world).await;
        say(&mut socket, Message::text("before")).await;
        world.endpoints.set(v1.clone(), endpoints(&v1, &[], &[0]));
        let drained = world.handle.drained();
        until("the drain to be reported", || drained.get(&replica(&v1, 0)) == Some(1)).await;
        if by_board {
            world.endpoints.remove(&v1);
        } else {
            drop(app);
        }
        expect_going_away(&mut socket).await;
        until("it to be closed", || world.handle.load(&v1).open == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_closes_websockets_after_the_grace() {
    let app = echo().await;
    let world = world(IngressConfig::default(), &app).await;
    let mut socket = connect(&world).await;
    say(&mut socket, Message::text("before")).await;
    let handle = world.handle.clone();
    let stopping = tokio::spawn(async move { handle.shutdown(GRACE).await });
    until("the listener to be closed", || std::net::TcpStream::connect(world.http).is_err()).await;
    say(&mut socket, Message::text("within the grace period")).await;
    expect_going_away(&mut socket).await;
    assert_eq!(soon("the shutdown", stopping).await.unwrap(), 1);
    assert!(connect_async(format!("ws://{}/", world.http)).await.is_err());
}

async fn http2_client(world: &World) -> http2::SendRequest<Body> {
    let stream = TcpStream::connect(world.http).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends an extended CONNECT (RFC 8441) for `protocol`, or a plain one without.
async fn bootstrap(sender: &mut http2::SendRequest<Body>, protocol: Option<&'static str>) -> Response<Incoming> {
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(if protocol.is_some() { "http://web.env.localhost/chat?a=b" } else { "web.env.localhost" })
        .body(text(""))
        .unwrap();
    if let Some(protocol) = protocol {
        request.extensions_mut().insert(Protocol::from_static(protocol));
        let fields = request.headers_mut();
        fields.insert("sec-websocket-version", "13".parse().unwrap());
        fields.insert("sec-websocket-protocol", "chat, other".parse().unwrap());
    }
    soon("the answer", sender.send_request(request)).await.unwrap()
}

/// Echoes as [`echo`] does, and speaks the subprotocol `chat`.
async fn chat() -> Backend {
    Backend::tcp(|stream| async move {
        #[expect(clippy::result_large_err, reason = "the library's signature")]
        let look = |asked: &Asked, mut answer: Answer| {
            assert_eq!(asked.uri(), "/chat?a=b");
            assert_eq!(asked.headers()["sec-websocket-protocol"], "chat, other");
            answer.headers_mut().insert("sec-websocket-protocol", "chat".parse().unwrap());
            Ok(answer)
        };
        let Ok(mut socket) = accept_hdr_async(stream, look).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn tunnel(response: Response<Incoming>) -> WebSocketStream<TokioIo<Upgraded>> {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    for name in ["sec-websocket-accept", "upgrade", "connection"] {
        assert!(!response.headers().contains_key(name), "{name} is of HTTP/1.1");
    }
    let upgraded = soon("the stream", hyper::upgrade::on(response)).await.unwrap();
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_http2_carry_websockets() {
    let app = chat().await;
    let v1 = revision("web", "v1");
    let world = world(IngressConfig::default(), &app).await;
    let mut sender = http2_client(&world).await;
    let mut first = tunnel(bootstrap(&mut sender, Some("websocket")).await).await;
    let mut second = tunnel(bootstrap(&mut sender, Some("websocket")).await).await;
    say(&mut first, Message::text("hello")).await;
    say(&mut second, Message::binary(vec![7; 300 << 10])).await;
    say(&mut first, Message::binary(vec![8; 300 << 10])).await;
    assert_eq!(world.handle.load(&v1).open, 2);
    // the answer may come while the last of it is still written
    let _crossed = first.close(None).await;
    while let Some(Ok(_)) = soon("the end", first.next()).await {}
    until("one is closed", || world.handle.load(&v1).open == 1).await;
    // a client that breaks off frees its replica
    drop(second);
    until("both are closed", || world.handle.load(&v1).open == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_closes_websockets_of_http2_too() {
    let app = chat().await;
    let world = world(IngressConfig::default(), &app).await;
    let mut sender = http2_client(&world).await;
    let mut socket = tunnel(bootstrap(&mut sender, Some("websocket")).await).await;
    let handle = world.handle.clone();
    let stopping = tokio::spawn(async move { handle.shutdown(GRACE).await });
    until("the listener to be closed", || std::net::TcpStream::connect(world.http).is_err()).await;
    say(&mut socket, Message::text("within the grace period")).await;
    expect_going_away(&mut socket).await;
    assert_eq!(soon("the shutdown", stopping).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_app_that_switches_opens_a_tunnel() {
    let wrong_key = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                     sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let no_switch = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    let refused = "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno";
    for (said, status, reason) in
        [(wrong_key, 502, Some("upstream-invalid")), (no_switch, 502, Some("upstream-invalid")), (refused, 403, None)]
    {
        let app = Backend::tcp(move |mut stream| async move {
            let mut head = vec![0; 4096];
            let _asked = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await;
            let _gone = tokio::io::AsyncWriteExt::write_all(&mut stream, said.as_bytes()).await;
            let _until_closed = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await;
        })
        .await;
        let world = world(IngressConfig::default(), &app).await;
        let response = bootstrap(&mut http2_client(&world).await, Some("websocket")).await;
        let told = response.headers().get("x-cove-reason").map(|value| value.to_str().unwrap());
        assert_eq!((response.status().as_u16(), told), (status, reason), "{said}");
    }
    let app = Backend::named("never asked").await;
    let world = world(IngressConfig::default(), &app).await;
    let mut sender = http2_client(&world).await;
    for protocol in [None, Some("connect-udp")] {
        let response = bootstrap(&mut sender, protocol).await;
        let reason = response.headers()["x-cove-reason"].to_str().unwrap();
        assert_eq!((response.status().as_u16(), reason), (405, "connect-not-supported"), "{protocol:?}");
    }
}
