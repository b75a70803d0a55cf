//! WebSockets: through, counted, and closed gently when their replica goes.

use std::time::Duration;

use cove_ingress::IngressConfig;
use cove_traffic::AppRoute;
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, accept_async, connect_async,
    tungstenite::{Message, protocol::frame::coding::CloseCode},
};

use crate::world::{Backend, World, endpoints, replica, revision, route, soon, until};

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

async fn say(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>, message: Message) {
    socket.send(message.clone()).await.unwrap();
    assert_eq!(soon("the echo", socket.next()).await.unwrap().unwrap(), message);
}

async fn expect_going_away(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) {
    match soon("a close frame", socket.next()).await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(frame.code, CloseCode::Away),
        other => panic!("a close frame was expected, not {other:?}"),
    }
    assert!(soon("the end", socket.next()).await.is_none(), "then the stream ends");
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
    let world =
        world(IngressConfig { websocket_drain_after: Duration::from_millis(300), ..IngressConfig::default() }, &app)
            .await;
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
    let stopping = tokio::spawn(async move { handle.shutdown(Duration::from_millis(300)).await });
    until("the listener to be closed", || std::net::TcpStream::connect(world.http).is_err()).await;
    say(&mut socket, Message::text("within the grace period")).await;
    expect_going_away(&mut socket).await;
    assert_eq!(soon("the shutdown", stopping).await.unwrap(), 1);
    assert!(connect_async(format!("ws://{}/", world.http)).await.is_err());
}
