//! Ten thousand requests for five hundred apps at zero: held, released or refused, in bounded memory.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cove_ingress::IngressConfig;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, task::JoinSet};

use crate::world::{Backend, World, revision, route, until};

const APPS: usize = 500;
const PER_APP: usize = 20;
const CONNECTIONS: usize = 50;
/// What ten thousand held requests may cost, clients of this process included.
const MEMORY_MAX: usize = 400 << 20;
const LIMIT: Duration = Duration::from_secs(120);

fn name(app: usize) -> String {
    format!("app{app}")
}

/// Resident memory of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

async fn clients(world: &World) -> Vec<http2::SendRequest<Empty<Bytes>>> {
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(world.http).await.unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        all.push(sender);
    }
    all
}

/// One answer: app, status, reason, when.
type Answer = (usize, u16, String, Instant);

/// Sends `count` requests to an app over the connections in turn.
fn ask(answers: &mut JoinSet<Answer>, clients: &[http2::SendRequest<Empty<Bytes>>], app: usize, count: usize) {
    for turn in 0..count {
        let mut sender = clients[(app + turn) % clients.len()].clone();
        answers.spawn(async move {
            sender.ready().await.unwrap();
            let request = Request::get(format!("http://{}.env.localhost/", name(app))).body(Empty::new()).unwrap();
            let response = sender.send_request(request).await.unwrap();
            let at = Instant::now();
            let status = response.status().as_u16();
            let reason = response.headers().get("x-cove-reason").map_or("", |reason| reason.to_str().unwrap());
            let reason = reason.to_owned();
            response.into_body().collect().await.unwrap();
            (app, status, reason, at)
        });
    }
}

async fn next(answers: &mut JoinSet<Answer>) -> Option<Answer> {
    tokio::time::timeout(LIMIT, answers.join_next()).await.expect("an answer in time").map(Result::unwrap)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_held_requests_of_all_apps_are_served_as_their_apps_wake() {
    // a connection per request to an app, each with both ends in this process
    let config = IngressConfig { idle_connections_max: 1, ..IngressConfig::default() };
    let world = World::with(config).await;
    let backend = Backend::named("ok").await;
    (0..APPS).for_each(|app| world.route(&name(app), route(&name(app))));
    let before = resident();
    let clients = clients(&world).await;
    let mut answers = JoinSet::new();
    (0..APPS).for_each(|app| ask(&mut answers, &clients, app, PER_APP));
    tokio::time::timeout(LIMIT, until("all are held", || world.handle.held_total() == APPS * PER_APP)).await.unwrap();
    let grown = resident().saturating_sub(before);
    println!("{} held requests: {} MiB", APPS * PER_APP, grown >> 20);
    assert!(grown < MEMORY_MAX, "{grown} bytes");
    // each app wakes on its own: the release of one is not the wait of another
    let mut slowest = Duration::ZERO;
    for app in 0..APPS {
        let ready_at = Instant::now();
        world.ready(&revision(&name(app), "v1"), &[backend.address]);
        let (woken, status, reason, at) = next(&mut answers).await.unwrap();
        assert_eq!((status, reason.as_str()), (200, ""), "{woken}");
        slowest = slowest.max(at.saturating_duration_since(ready_at));
    }
    println!("slowest first answer after an app is ready: {slowest:?}");
    while let Some((app, status, reason, _)) = next(&mut answers).await {
        assert_eq!((status, reason.as_str()), (200, ""), "{app}");
    }
    assert_eq!(world.handle.held_total(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowds_leave_places_and_everybody_is_told_at_the_deadline() {
    let config = IngressConfig {
        held_total_max: 640,
        held_per_revision_max: 200,
        request_timeout: Duration::from_secs(8),
        ..IngressConfig::default()
    };
    let world = World::with(config).await;
    (0..20).for_each(|app| world.route(&name(app), route(&name(app))));
    let clients = clients(&world).await;
    let mut crowd = JoinSet::new();
    (0..4).for_each(|app| ask(&mut crowd, &clients, app, 250));
    let mut refused = 0;
    while refused < 4 * 250 - 640 {
        let (app, status, reason, _) = next(&mut crowd).await.unwrap();
        assert_eq!((status, reason.as_str()), (503, "hold-queue-full"), "{app}");
        refused += 1;
    }
    until("the crowds have what they get", || world.handle.held_total() >= 600).await;
    // others still get in, and are served as soon as their app is there
    let backend = Backend::named("ok").await;
    for app in 4..14 {
        let mut one = JoinSet::new();
        ask(&mut one, &clients, app, 1);
        until("it is held", || world.handle.load(&revision(&name(app), "v1")).held == 1).await;
        world.ready(&revision(&name(app), "v1"), &[backend.address]);
        assert_eq!(next(&mut one).await.unwrap().1, 200);
    }
    let mut late = 0;
    while let Some((app, status, reason, _)) = next(&mut crowd).await {
        match status {
            504 => {
                assert_eq!(reason, "activation-timeout", "{app}");
                late += 1;
            }
            _ => assert_eq!((status, reason.as_str()), (503, "hold-queue-full"), "{app}"),
        }
    }
    assert!(late >= 600, "{late} were told at the deadline");
    assert_eq!(world.handle.held_total(), 0);
}
