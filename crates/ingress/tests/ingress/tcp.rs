//! TCP ports: held while the app starts, half-closed, silent, drained, refused.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use cove_ingress::IngressConfig;
use cove_model::{IngressPolicies, IpRestriction, ProxyProtocol, Transport};
use cove_testing::free_port;
use cove_traffic::{AppRoute, TcpRoute};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::world::{Backend, World, endpoints, environment, parts, raw, reason, revision, route, soon, until};

/// Outside and inside of the world's ports.
const OUTSIDE: [u8; 4] = [127, 0, 0, 1];
const INSIDE: [u8; 4] = [127, 0, 0, 2];

async fn world(idle: Duration) -> World {
    let config = IngressConfig {
        tcp_external: Some(OUTSIDE.into()),
        tcp_internal: Some(INSIDE.into()),
        tcp_idle_timeout: idle,
        ..IngressConfig::default()
    };
    World::with(config).await
}

fn expose(world: &World, port: u16, route: AppRoute, target_port: Option<u16>) {
    let external = route.external;
    let tcp = TcpRoute { route: Arc::new(route), external, target_port };
    world.change(|table| {
        Arc::make_mut(&mut table.tcp).insert((port, environment("env")), Arc::new(tcp));
    });
}

fn db() -> AppRoute {
    AppRoute { transport: Transport::Tcp, ..route("db") }
}

async fn connect(ip: [u8; 4], port: u16) -> TcpStream {
    soon("a connection", async {
        loop {
            match TcpStream::connect(SocketAddr::from((ip, port))).await {
                Ok(stream) => return stream,
                Err(_not_open_yet) => tokio::task::yield_now().await,
            }
        }
    })
    .await
}

/// Answers with the reverse of all that it was sent once the client has said everything.
async fn reverser() -> Backend {
    Backend::tcp(|mut stream| async move {
        let mut said = Vec::new();
        if stream.read_to_end(&mut said).await.is_ok() {
            said.reverse();
            let _gone = stream.write_all(&said).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_held_until_the_app_runs_and_may_be_half_closed() {
    let world = world(Duration::from_secs(60)).await;
    let (port, key) = (free_port(), revision("db", "v1"));
    expose(&world, port, db(), None);
    let mut client = connect(OUTSIDE, port).await;
    let said: Vec<u8> = (0..200_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let (mut reader, mut writer) = client.split();
    let expected: Vec<u8> = said.iter().rev().copied().collect();
    let speak = async {
        writer.write_all(&said).await.unwrap();
        writer.shutdown().await.unwrap();
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let app = reverser().await;
    let wake = async {
        until("the wake", || !world.activated.lock().unwrap().is_empty()).await;
        let load = world.handle.load(&key);
        assert_eq!((load.open, load.held, load.arrivals_total), (1, 1, 1));
        world.ready(&key, &[app.address]);
    };
    let (answer, ()) = soon("the answer", async { tokio::join!(speak, wake) }).await;
    assert_eq!(answer, expected, "every byte, after the client had closed its side");
    until("it is closed", || world.handle.load(&key).open == 0).await;
    let plain = raw(world.http, "GET / HTTP/1.1\r\nhost: none\r\nconnection: close\r\n\r\n").await;
    assert_eq!(parts(&plain).0, 404);
    world.route("db", db());
    until("a wake record", || !world.wakes.is_empty()).await;
    let answer = raw(world.http, "GET / HTTP/1.1\r\nhost: db.env.localhost\r\nconnection: close\r\n\r\n").await;
    assert_eq!((parts(&answer).0, reason(&answer)), (404, "tcp-only"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn internal_ports_answer_inside_only_and_lead_to_their_own_port() {
    let world = world(Duration::from_secs(60)).await;
    let (port, key) = (free_port(), revision("db", "v1"));
    let app = reverser().await;
    // the app's target port is elsewhere; this mapping names its own
    expose(&world, port, AppRoute { external: false, ..db() }, Some(app.address.port()));
    world.ready(&key, &["127.0.0.1:1".parse().unwrap()]);
    let mut client = connect(INSIDE, port).await;
    client.write_all(b"abc").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    soon("the answer", client.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "cba");
    assert!(TcpStream::connect(SocketAddr::from((OUTSIDE, port))).await.is_err(), "not open outside");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_clients_silent_ones_and_closed_ports() {
    let world = world(Duration::from_secs(3)).await;
    let key = revision("db", "v1");
    let app = Backend::tcp(|mut stream| async move {
        let mut byte = [0];
        while stream.read(&mut byte).await.is_ok_and(|count| count > 0) {
            if stream.write_all(&byte).await.is_err() {
                return;
            }
        }
    })
    .await;
    world.ready(&key, &[app.address]);
    let (shut, open) = (free_port(), free_port());
    let rule = IpRestriction { name: "office".into(), is_allow: true, range: "192.0.2.0/24".into() };
    let policies = IngressPolicies { ip_restrictions: vec![rule], ..IngressPolicies::default() };
    expose(&world, shut, AppRoute { policies: Arc::new(policies), ..db() }, None);
    expose(&world, open, db(), None);
    let mut refused = connect(OUTSIDE, shut).await;
    let mut byte = [0];
    let ended = soon("the end", refused.read(&mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "not let in");
    assert_eq!(world.handle.load(&key).arrivals_total, 0);
    let mut client = connect(OUTSIDE, open).await;
    client.write_all(b"x").await.unwrap();
    soon("the echo", client.read_exact(&mut byte)).await.unwrap();
    assert_eq!(world.handle.load(&key).open, 1);
    let ended = soon("the silence's end", client.read(&mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "silent for too long");
    // a port that is gone takes nobody new; who is in stays
    let mut client = connect(OUTSIDE, open).await;
    client.write_all(b"y").await.unwrap();
    soon("the echo", client.read_exact(&mut byte)).await.unwrap();
    world.change(|table| {
        Arc::make_mut(&mut table.tcp).remove(&(open, environment("env")));
    });
    soon("the port is closed", async {
        while TcpStream::connect(SocketAddr::from((OUTSIDE, open))).await.is_ok() {
            client.write_all(b"z").await.unwrap();
            client.read_exact(&mut byte).await.unwrap();
        }
    })
    .await;
    client.write_all(b"!").await.unwrap();
    soon("the echo", client.read_exact(&mut byte)).await.unwrap();
    assert_eq!(&byte, b"!");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_replica_ends_its_connections_when_its_time_is_over() {
    let world = world(Duration::from_secs(60)).await;
    let (port, key) = (free_port(), revision("db", "v1"));
    let app = reverser().await;
    expose(&world, port, db(), None);
    world.ready(&key, &[app.address]);
    let mut client = connect(OUTSIDE, port).await;
    client.write_all(b"x").await.unwrap();
    until("it is open", || app.connections.load(std::sync::atomic::Ordering::SeqCst) == 1).await;
    world.endpoints.set(key.clone(), endpoints(&key, &[], &[0]));
    let drained = world.handle.drained();
    let name = crate::world::replica(&key, 0);
    until("it drains", || drained.get(&name) == Some(1)).await;
    // gone from the list: its time is over
    world.endpoints.set(key.clone(), endpoints(&key, &[], &[]));
    let mut byte = [0];
    let ended = soon("the end", client.read(&mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)));
    until("it is closed", || world.handle.load(&key).open == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_peer_speaks_for_its_client_and_the_app_is_told() {
    let config = IngressConfig {
        tcp_external: Some(OUTSIDE.into()),
        proxy_protocol_peers: vec!["127.0.0.1/32".parse().unwrap()],
        ..IngressConfig::default()
    };
    let world = World::with(config).await;
    let (port, key) = (free_port(), revision("db", "v1"));
    let app = reverser().await;
    let policies = IngressPolicies { proxy_protocol: Some(ProxyProtocol::V1), ..IngressPolicies::default() };
    expose(&world, port, AppRoute { policies: Arc::new(policies), ..db() }, None);
    world.ready(&key, &[app.address]);
    let mut client = connect(OUTSIDE, port).await;
    client.write_all(b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 5432\r\nabc").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = Vec::new();
    soon("the answer", client.read_to_end(&mut answer)).await.unwrap();
    answer.reverse();
    let expected = format!("PROXY TCP4 203.0.113.7 127.0.0.1 4711 {port}\r\nabc");
    assert_eq!(String::from_utf8(answer).unwrap(), expected);
    // who is trusted and says nothing of the kind could be anybody
    let mut silent = connect(OUTSIDE, port).await;
    silent.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let ended = soon("the end", silent.read(&mut [0])).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "not served");

    let seen = Backend::http(|request| async move {
        let client = request.headers()["x-forwarded-for"].to_str().unwrap().to_owned();
        http::Response::new(crate::world::text(client))
    })
    .await;
    world.route("web", route("web"));
    world.ready(&revision("web", "v1"), &[seen.address]);
    let request = "GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n";
    let answer = raw(world.http, &format!("PROXY TCP4 203.0.113.9 198.51.100.1 1 80\r\n{request}")).await;
    assert_eq!(parts(&answer), (200, "203.0.113.9".into()));
    assert_eq!(raw(world.http, request).await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inside_a_port_leads_to_its_own_environment_or_to_what_is_external() {
    let world = world(Duration::from_secs(60)).await;
    let port = free_port();
    let say = |name: &'static str| {
        Backend::tcp(move |mut stream| async move {
            let _gone = stream.write_all(name.as_bytes()).await;
        })
    };
    let add = |app: &str, of: &str, external| {
        let route = AppRoute { external, environment: environment(of), transport: Transport::Tcp, ..route(app) };
        let tcp = TcpRoute { route: Arc::new(route), external, target_port: None };
        world.change(|table| {
            Arc::make_mut(&mut table.tcp).insert((port, environment(of)), Arc::new(tcp));
        });
    };
    let ask = async || {
        let mut answer = String::new();
        let mut client = connect(INSIDE, port).await;
        let _reset = soon("the answer", client.read_to_string(&mut answer)).await;
        answer
    };
    let (other, outer, own) = (say("other").await, say("outer").await, say("own").await);
    // the first by name, and of no concern to clients of `env`
    add("other", "aaa", false);
    world.ready(&revision("other", "v1"), &[other.address]);
    assert_eq!(ask().await, "");
    add("outer", "zzz", true);
    world.ready(&revision("outer", "v1"), &[outer.address]);
    assert_eq!(ask().await, "outer");
    add("own", "env", false);
    world.ready(&revision("own", "v1"), &[own.address]);
    assert_eq!(ask().await, "own");
    assert_eq!(world.handle.load(&revision("other", "v1")).arrivals_total, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_at_which_nobody_calls_take_no_place_of_others() {
    // one place for each of the world's three listeners, one for a client
    let config = IngressConfig { tcp_external: Some(OUTSIDE.into()), connections_max: 4, ..IngressConfig::default() };
    let world = World::with(config).await;
    let app = reverser().await;
    let ports: Vec<u16> = (0..6).map(|_| free_port()).collect();
    for port in &ports {
        expose(&world, *port, db(), None);
    }
    world.ready(&revision("db", "v1"), &[app.address]);
    until("all are open", || world.handle.ports().len() == ports.len()).await;
    for port in ports {
        let mut client = connect(OUTSIDE, port).await;
        client.write_all(b"abc").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        soon("the answer", client.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer, "cba");
        until("its place is free", || world.handle.load(&revision("db", "v1")).open == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_broken_off_is_broken_off_on_the_other_side_too() {
    let world = world(Duration::from_secs(60)).await;
    let (port, key) = (free_port(), revision("db", "v1"));
    expose(&world, port, db(), None);
    // while it is held: nobody is left to wake the app for
    let mut held = connect(OUTSIDE, port).await;
    held.write_all(b"abc").await.unwrap();
    until("it is held", || world.handle.load(&key).held == 1).await;
    held.set_zero_linger().unwrap();
    drop(held);
    until("it is gone", || world.handle.load(&key).open == 0).await;
    // by the app, in the middle of what it says
    let app = Backend::tcp(|mut stream| async move {
        let _gone = stream.write_all(b"half of").await;
        let _told = stream.read(&mut [0]).await;
        let _only_nicer = stream.set_zero_linger();
    })
    .await;
    world.ready(&key, &[app.address]);
    let mut client = connect(OUTSIDE, port).await;
    let mut heard = [0; 7];
    soon("the half", client.read_exact(&mut heard)).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let ended = soon("the end", client.read(&mut heard)).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "it must not look complete");
}
