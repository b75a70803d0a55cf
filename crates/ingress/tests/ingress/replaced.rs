//! Another ingress takes over the sockets of one that runs: no connection is refused, no request is lost.

use std::{os::fd::AsFd, time::Duration};

use cove_ingress::{IngressConfig, bind};
use cove_model::Transport;
use cove_testing::free_port;
use cove_traffic::{AppRoute, TcpRoute};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::world::{Backend, World, environment, get, revision, route, soon, until};

const HOST: &str = "web.env.localhost";
const GRACE: Duration = Duration::from_secs(60);

fn config() -> IngressConfig {
    IngressConfig { tcp_external: Some([127, 0, 0, 1].into()), ..IngressConfig::default() }
}

/// An ingress, and another one on copies of its sockets that is told of other replicas.
async fn pair() -> (World, World, Backend, Backend) {
    let listeners = [(); 3].map(|()| bind("127.0.0.1:0".parse().unwrap()).unwrap());
    let copies = listeners.each_ref().map(|listener| {
        let copy = std::net::TcpListener::from(listener.as_fd().try_clone_to_owned().unwrap());
        copy.set_nonblocking(true).unwrap();
        TcpListener::from_std(copy).unwrap()
    });
    let (old, new) = (Backend::named("old").await, Backend::named("new").await);
    let first = World::on(config(), listeners, Vec::new()).await;
    first.route("web", route("web"));
    first.route("sleeper", route("sleeper"));
    first.ready(&revision("web", "v1"), &[old.address]);
    // it serves, and takes what comes to the sockets of both
    assert_eq!(get(first.http, HOST).await, (200, "old".into()));
    let second = World::on(config(), copies, Vec::new()).await;
    second.route("web", route("web"));
    second.ready(&revision("web", "v1"), &[new.address]);
    (first, second, old, new)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_busy_and_held_requests_of_the_old_one_are_answered() {
    let (first, second, old, _new) = pair().await;
    let address = first.http;
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut idle, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let closed = tokio::spawn(connection);
    let mut ask = async |connection: &str| {
        idle.ready().await.unwrap();
        let request = Request::builder().header("host", HOST).body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = soon("an answer", idle.send_request(request)).await.unwrap();
        let told = response.headers().get("connection").map_or("", |value| value.to_str().unwrap()).to_owned();
        assert_eq!((response.status().as_u16(), told.as_str()), (200, connection));
        response.into_body().collect().await.unwrap().to_bytes()
    };
    let before = ask("").await;
    let is_first = before == "old";
    let held = tokio::spawn(async move { get(address, "sleeper.env.localhost").await });
    let sleeper = revision("sleeper", "v1");
    until("the request is held by one of both", || {
        first.handle.held_total() == 1 || !second.activated.lock().unwrap().is_empty() || held.is_finished()
    })
    .await;
    let retiring = tokio::spawn({
        let handle = first.handle.clone();
        async move { handle.retire(GRACE).await }
    });
    // the old one takes nobody any more: both had the chance until it was told
    until("new connections come to the new one", || !first.handle.is_accepting()).await;
    for _ in 0..20 {
        assert_eq!(get(address, HOST).await, (200, "new".into()));
    }
    if is_first {
        assert_eq!(ask("close").await, "old");
        soon("the end of the connection", closed).await.unwrap().unwrap();
    }
    if first.handle.held_total() == 1 {
        first.ready(&sleeper, &[old.address]);
        assert_eq!(soon("the held answer", held).await.unwrap(), (200, "old".into()));
    }
    drop(idle);
    assert_eq!(soon("the old one ends, long before its grace period does", retiring).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_clients_are_told_to_open_another_connection_and_lose_nothing() {
    let (first, _second, _old, _new) = pair().await;
    let stream = TcpStream::connect(first.http).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let closed = tokio::spawn(connection);
    let ask = |sender: &mut http2::SendRequest<Empty<bytes::Bytes>>| {
        let request = Request::get(format!("http://{HOST}/")).body(Empty::new()).unwrap();
        sender.send_request(request)
    };
    assert_eq!(soon("an answer", ask(&mut sender)).await.unwrap().status(), 200);
    let retiring = tokio::spawn({
        let handle = first.handle.clone();
        async move { handle.retire(GRACE).await }
    });
    let mut answered = 0;
    loop {
        match soon("an answer or the end", ask(&mut sender)).await {
            Ok(response) => {
                assert_eq!(response.status(), 200);
                answered += 1;
                // the connection was accepted by the new one
                if answered > 1000 {
                    return;
                }
            }
            // refused before it was sent: safe to send again
            Err(error) => {
                assert!(error.is_canceled() || error.is_closed() || is_go_away(&error), "{error:?}");
                break;
            }
        }
    }
    drop(sender);
    let _ended = soon("the end of the connection", closed).await.unwrap();
    assert_eq!(soon("the old one ends", retiring).await.unwrap(), 0);
}

fn is_go_away(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exposed_port_stays_open_and_its_connections_go_on() {
    let app = Backend::tcp(|mut stream| async move {
        let (mut reader, mut writer) = stream.split();
        let _gone = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await;
    let port = free_port();
    let expose = |world: &World| {
        let route = AppRoute { transport: Transport::Tcp, ..route("db") };
        let tcp = TcpRoute { route: route.into(), external: true, target_port: None };
        world.change(|table| {
            std::sync::Arc::make_mut(&mut table.tcp).insert((port, environment("env")), tcp.into());
        });
        world.ready(&revision("db", "v1"), &[app.address]);
    };
    let first = World::with(config()).await;
    expose(&first);
    until("the port is open", || first.handle.ports().len() == 1).await;
    let mut before = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let echo = async |stream: &mut TcpStream| {
        stream.write_all(b"hello").await.unwrap();
        let mut answer = [0; 5];
        soon("the echo", stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"hello");
    };
    echo(&mut before).await;
    let ports = first.handle.ports().into_iter().map(|(_, socket)| socket.into()).collect();
    let listeners = [(); 3].map(|()| bind("127.0.0.1:0".parse().unwrap()).unwrap());
    let second = World::on(config(), listeners, ports).await;
    expose(&second);
    until("the new one has it", || second.handle.ports().len() == 1).await;
    let retiring = tokio::spawn({
        let handle = first.handle.clone();
        async move { handle.retire(GRACE).await }
    });
    until("the old one has let it go", || first.handle.ports().is_empty()).await;
    // another route of the old table opens nothing there
    first.change(|table| {
        let copy = table.tcp.values().next().unwrap().clone();
        std::sync::Arc::make_mut(&mut table.tcp).insert((port, environment("other")), copy);
    });
    for _ in 0..20 {
        let mut client = TcpStream::connect(("127.0.0.1", port)).await.expect("never refused");
        echo(&mut client).await;
    }
    assert_eq!(second.handle.load(&revision("db", "v1")).arrivals_total, 20);
    echo(&mut before).await;
    drop(before);
    assert_eq!(soon("the old one ends", retiring).await.unwrap(), 0);
}
