//! TLS at the edge: sessions that are resumed, certificates that change, calls from inside, questions of authorities.

use std::sync::Arc;

use cove_model::{ClientCertificateMode, IngressPolicies};
use cove_traffic::AppRoute;
use http::Response;
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    client::Resumption,
    pki_types::CertificateDer,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::world::{Backend, World, bound, get, made_certificate, parts, revision, route, soon, text, until};

const HOST: &str = "web.env.localhost";

async fn world() -> (World, Backend) {
    let app = Backend::http(|request| async move {
        let proto = request.headers()["x-forwarded-proto"].to_str().unwrap().to_owned();
        Response::new(text(proto))
    })
    .await;
    let world = World::start().await;
    world.route("web", route("web"));
    world.ready(&revision("web", "v1"), &[app.address]);
    (world, app)
}

/// A client that trusts `root` and keeps its sessions.
fn client(root: &CertificateDer<'static>, version: &'static SupportedProtocolVersion) -> TlsConnector {
    let mut store = RootCertStore::empty();
    store.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
    let mut config = builder.with_root_certificates(store).with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(8);
    TlsConnector::from(Arc::new(config))
}

async fn connect(
    connector: &TlsConnector,
    address: std::net::SocketAddr,
    name: &'static str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await.unwrap();
    soon("the handshake", connector.connect(name.try_into().unwrap(), stream)).await
}

/// One request on an open connection, which stays open.
async fn ask(stream: &mut TlsStream<TcpStream>, host: &str) -> (u16, String) {
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let mut byte = [0; 256];
        let read = soon("the answer", stream.read(&mut byte)).await.unwrap();
        answer.extend_from_slice(&byte[..read]);
        let text = String::from_utf8_lossy(&answer).into_owned();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && (read == 0 || length.is_some_and(|length| body.len() >= length))
        {
            return parts(&text);
        }
        assert!(read > 0, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_resumed_by_tickets() {
    let (world, _app) = world().await;
    for version in [&TLS12, &TLS13] {
        let connector = client(&world.certificate, version);
        let mut kinds = Vec::new();
        for _ in 0..3 {
            let mut stream = connect(&connector, world.https, HOST).await.unwrap();
            // the ticket of TLS 1.3 comes with the first bytes of the answer
            assert_eq!(ask(&mut stream, HOST).await, (200, "https".to_owned()));
            kinds.push(stream.get_ref().1.handshake_kind().unwrap());
        }
        assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed], "{version:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_at_once_and_drops_no_connection() {
    let (world, _app) = world().await;
    let old = client(&world.certificate, &TLS13);
    let mut open = Vec::new();
    for _ in 0..10 {
        let mut stream = connect(&old, world.https, HOST).await.unwrap();
        assert_eq!(ask(&mut stream, HOST).await.0, 200);
        open.push(stream);
    }
    let (certificate, key) = made_certificate(HOST);
    *world.shown.lock().unwrap() = Some(key);
    let new = client(&certificate, &TLS13);
    let mut stream = connect(&new, world.https, HOST).await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap(), [certificate]);
    assert_eq!(ask(&mut stream, HOST).await.0, 200);
    // who trusts only the old one and has no session is refused; what is open goes on
    let strict = client(&world.certificate, &TLS13);
    assert!(connect(&strict, world.https, HOST).await.is_err());
    for stream in &mut open {
        assert_eq!(ask(stream, HOST).await.0, 200);
    }
    // without a certificate nothing begins, not even with a ticket
    *world.shown.lock().unwrap() = None;
    assert!(connect(&old, world.https, HOST).await.is_err());
    for stream in &mut open {
        assert_eq!(ask(stream, HOST).await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_reach_apps_with_tls_too() {
    let (world, _app) = world().await;
    let mut inner = route("web");
    inner.external = false;
    world.route("web", inner);
    let (listener, address) = bound();
    world.handle.listen_internal_tls(listener);
    let (certificate, key) = made_certificate("web");
    *world.shown.lock().unwrap() = Some(key);
    let connector = client(&certificate, &TLS13);
    let mut stream = connect(&connector, address, "web").await.unwrap();
    assert_eq!(ask(&mut stream, "web").await, (200, "https".to_owned()), "by its short name");
    assert_eq!(ask(&mut stream, HOST).await.0, 200, "by its whole name");
    assert_eq!(get(world.http, HOST).await.0, 404, "not from outside");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_is_asked_for_inside_too() {
    let (world, _app) = world().await;
    let client_certificate = ClientCertificateMode::Require;
    let policies = Arc::new(IngressPolicies { client_certificate, ..IngressPolicies::default() });
    world.route("web", AppRoute { policies, ..route("web") });
    let (listener, address) = bound();
    world.handle.listen_internal_tls(listener);
    let (certificate, key) = made_certificate("web");
    *world.shown.lock().unwrap() = Some(key);
    let mut stream = connect(&client(&certificate, &TLS13), address, "web").await.unwrap();
    // by its short name: asked, and none given; it is not told to open another connection
    assert_eq!(ask(&mut stream, "web").await.0, 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_of_authorities_are_answered_before_any_app() {
    let (world, _app) = world().await;
    let challenges = world.handle.challenges();
    let ask = |host: &'static str, token: &'static str| {
        let request =
            format!("GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let address = world.http;
        async move { parts(&crate::world::raw(address, &request).await) }
    };
    let expected = challenges.expect("shop.example", "tok", "tok.thumb").unwrap();
    assert_eq!(ask("shop.example", "tok").await, (200, "tok.thumb".to_owned()), "no app has this host");
    assert_eq!(ask(HOST, "tok").await, (200, "http".to_owned()), "not this host's: the app's own");
    drop(expected);
    assert_eq!(ask("shop.example", "tok").await.0, 404);

    // an app at zero stays there
    world.route("asleep", route("asleep"));
    let _expected = challenges.expect("asleep.env.localhost", "tok", "tok.thumb").unwrap();
    assert_eq!(ask("asleep.env.localhost", "tok").await, (200, "tok.thumb".to_owned()));
    assert!(world.activated.lock().unwrap().is_empty());
    until("nothing to be held", || world.handle.held_total() == 0).await;
}
