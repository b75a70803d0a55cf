//! Requests for apps at zero: held, released, refused when full, late or hopeless; nothing is left behind.

use std::{sync::atomic::Ordering, time::Duration};

use cove_ingress::IngressConfig;
use cove_traffic::{EndpointState, Endpoints};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

use crate::world::{Backend, World, get, raw, reason, revision, route, soon, until};

const HOST: &str = "web.env.localhost";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_at_zero_waits_for_its_replica() {
    let mut world = World::start().await;
    let app = Backend::named("awake").await;
    let v1 = revision("web", "v1");
    world.route("web", route("web"));
    let address = world.http;
    let request = tokio::spawn(async move { get(address, HOST).await });
    until("the request to be held", || world.handle.load(&v1).held == 1).await;
    until("a replica to be asked for", || world.activated.lock().unwrap().first() == Some(&v1)).await;
    assert_eq!(world.handle.load(&v1).open, 1);
    until("the wish to be repeated", || world.activated.lock().unwrap().len() > 1).await;
    world.ready(&v1, &[app.address]);
    assert_eq!(soon("the answer", request).await.unwrap(), (200, "awake".into()));
    let wake = soon("the wake", world.wakes.recv()).await.unwrap();
    assert_eq!((wake.revision, wake.replica.as_str()), (v1.clone(), "web--v1-0"));
    assert!(wake.accepted_at <= wake.released_at && wake.released_at <= wake.first_byte_at);
    until("nothing to be open", || world.handle.load(&v1).open == 0).await;
    assert_eq!(world.handle.held_total(), 0);
    assert_eq!(get(address, HOST).await.0, 200);
    assert!(world.wakes.try_recv().is_err(), "a request that did not wait is no wake");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_held_for_a_revision_that_is_replaced_goes_to_the_next_one() {
    let world = World::start().await;
    let app = Backend::named("new").await;
    let (v1, v2) = (revision("web", "v1"), revision("web", "v2"));
    world.route("web", route("web"));
    let address = world.http;
    let request = tokio::spawn(async move { get(address, HOST).await });
    until("the request to be held", || world.handle.load(&v1).held == 1).await;
    world.ready(&v2, &[app.address]);
    let mut next = route("web");
    next.revisions[0].revision = v2.clone();
    world.route("web", next);
    let inactive = Endpoints { state: EndpointState::Inactive, ..Endpoints::default() };
    world.endpoints.set(v1.clone(), inactive);
    assert_eq!(soon("the answer", request).await.unwrap(), (200, "new".into()));
    until("nothing to be open", || world.handle.load(&v1).open + world.handle.load(&v2).open == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_request_is_not_given_to_another_app_that_took_the_host() {
    let world = World::start().await;
    let other = Backend::named("other").await;
    let v1 = revision("web", "v1");
    world.route("web", route("web"));
    world.ready(&revision("other", "v1"), &[other.address]);
    let address = world.http;
    let request = tokio::spawn(async move { get(address, HOST).await });
    until("the request to be held", || world.handle.load(&v1).held == 1).await;
    // the other app may have rules that this client was not checked against
    world.route("web", route("other"));
    world.endpoints.set(v1.clone(), Endpoints { state: EndpointState::Inactive, ..Endpoints::default() });
    assert_eq!(soon("the answer", request).await.unwrap().0, 404, "its revision is inactive");
    assert_eq!(world.handle.load(&revision("other", "v1")).arrivals_total, 0);
    assert_eq!(get(address, HOST).await, (200, "other".into()), "a new request goes there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_for_fifty_revisions_are_all_served() {
    let world = World::start().await;
    let app = Backend::named("ok").await;
    let mut clients = JoinSet::new();
    for index in 0..50 {
        let name = format!("app{index}");
        world.route(&name, route(&name));
        for _ in 0..20 {
            let (address, host) = (world.http, format!("{name}.env.localhost"));
            clients.spawn(async move { get(address, &host).await });
        }
    }
    until("all to be held", || world.handle.held_total() == 1000).await;
    for index in 0..50 {
        world.ready(&revision(&format!("app{index}"), "v1"), &[app.address]);
    }
    while let Some(answer) = soon("an answer", clients.join_next()).await {
        assert_eq!(answer.unwrap(), (200, "ok".into()));
    }
    assert_eq!(world.handle.held_total(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_line_is_refused_and_told_when_to_return() {
    for config in [
        IngressConfig { held_per_revision_max: 3, ..IngressConfig::default() },
        IngressConfig { held_total_max: 3, ..IngressConfig::default() },
    ] {
        let world = World::with(config).await;
        let app = Backend::named("ok").await;
        world.route("web", route("web"));
        let mut held = JoinSet::new();
        for _ in 0..3 {
            let address = world.http;
            held.spawn(async move { get(address, HOST).await });
        }
        until("the line to be full", || world.handle.held_total() == 3).await;
        let answer = raw(world.http, "GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1\r\n"), "{answer}");
        assert_eq!(reason(&answer), "hold-queue-full");
        world.ready(&revision("web", "v1"), &[app.address]);
        while let Some(answer) = soon("an answer", held.join_next()).await {
            assert_eq!(answer.unwrap().0, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_past_the_deadline_or_for_a_failed_revision() {
    let config = IngressConfig { request_timeout: Duration::from_millis(200), ..IngressConfig::default() };
    let world = World::with(config).await;
    world.route("web", route("web"));
    let request = "GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n";
    let answer = raw(world.http, request).await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert_eq!(reason(&answer), "activation-timeout");
    assert_eq!(world.handle.held_total(), 0);

    let world = World::start().await;
    let v1 = revision("web", "v1");
    world.route("web", route("web"));
    let address = world.http;
    let held = tokio::spawn(async move { raw(address, request).await });
    until("the request to be held", || world.handle.load(&v1).held == 1).await;
    world.failed(&v1, "the container exits with code 1");
    let answer = soon("the answer", held).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("the container exits with code 1"), "{answer}");
    assert_eq!(reason(&answer), "revision-failed");
    let answer = raw(world.http, request).await;
    assert_eq!(reason(&answer), "revision-failed", "at once from now on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_is_forgotten() {
    clients_leave("GET / HTTP/1.1\r\nhost: web.env.localhost\r\n\r\n").await;
    // behind a body that is not read while held: more than the parser's buffer, less than the kernel's
    let body = "x".repeat(40 << 10);
    let length = body.len();
    clients_leave(&format!("POST / HTTP/1.1\r\nhost: web.env.localhost\r\ncontent-length: {length}\r\n\r\n{body}"))
        .await;
}

async fn clients_leave(head: &str) {
    let world = World::start().await;
    let app = Backend::named("ok").await;
    let v1 = revision("web", "v1");
    world.route("web", route("web"));
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut stream = TcpStream::connect(world.http).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        clients.push(stream);
    }
    until("all to be held", || world.handle.load(&v1).held == 10).await;
    clients.truncate(2);
    until("eight to be gone", || world.handle.load(&v1).held == 2).await;
    drop(clients);
    until("all to be gone", || world.handle.load(&v1).open == 0).await;
    assert_eq!(world.handle.held_total(), 0);
    world.ready(&v1, &[app.address]);
    assert_eq!(get(world.http, HOST).await.0, 200);
    assert_eq!(app.connections.load(Ordering::SeqCst), 1, "nothing was sent for those who left");
}
