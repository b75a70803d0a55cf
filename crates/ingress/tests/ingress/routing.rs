//! Which app, which revision, which replica; and who is refused.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use cove_ingress::IngressConfig;
use cove_model::ResourceId;
use cove_traffic::{AppRoute, AppRouteState, WeightedRevision};
use http::Response;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::world::{Backend, World, endpoints, environment, get, raw, reason, revision, route, soon, text, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_leads_to_its_app() {
    let world = World::start().await;
    let (one, two) = (Backend::named("one").await, Backend::named("two").await);
    world.route("web", route("web"));
    world.route("api", route("api"));
    world.ready(&revision("web", "v1"), &[one.address]);
    world.ready(&revision("api", "v1"), &[two.address]);
    assert_eq!(get(world.http, "web.env.localhost").await, (200, "one".into()));
    assert_eq!(get(world.http, "API.env.localhost:8080").await, (200, "two".into()));
    let load = world.handle.load(&revision("web", "v1"));
    assert_eq!((load.open, load.held, load.arrivals_total), (0, 0, 1));
    assert_eq!(world.handle.answers(&revision("web", "v1")), [0, 1, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_be_served_learns_why() {
    let world = World::with(IngressConfig { redirect_http: true, ..IngressConfig::default() }).await;
    world.route("stopped", AppRoute { state: AppRouteState::Stopped, ..route("stopped") });
    world.route("internal", AppRoute { external: false, ..route("internal") });
    world.route("empty", AppRoute { revisions: Vec::new(), ..route("empty") });
    world.route("secure", AppRoute { allow_insecure: false, ..route("secure") });
    let bad = AppRouteState::Failed { reason: "image `x` was not found".into() };
    world.route("bad", AppRoute { state: bad, ..route("bad") });
    let https = world.https.port();
    for (method, host, status, code) in [
        ("GET", "nobody.env.localhost", 404, "unknown-host"),
        ("GET", "stopped.env.localhost", 404, "app-stopped"),
        ("GET", "internal.env.localhost", 404, "app-internal"),
        ("GET", "empty.env.localhost", 404, "no-revision"),
        ("GET", "bad.env.localhost", 503, "revision-failed"),
        ("GET", "secure.env.localhost", 301, "insecure-not-allowed"),
        ("POST", "secure.env.localhost", 308, "insecure-not-allowed"),
    ] {
        let request =
            format!("{method} /a?b HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let answer = raw(world.http, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
        assert_eq!(reason(&answer), code, "{host}");
        if status < 400 {
            assert!(answer.contains(&format!("location: https://secure.env.localhost:{https}/a?b\r\n")), "{answer}");
        }
    }
    assert!(get(world.http, "bad.env.localhost").await.1.contains("image `x` was not found"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn internal_apps_answer_inside_their_environment() {
    let world = World::start().await;
    let app = Backend::named("inside").await;
    world.route("db", AppRoute { external: false, ..route("db") });
    let elsewhere: ResourceId = environment("other");
    world.route("far", AppRoute { external: false, environment: elsewhere, ..route("far") });
    world.ready(&revision("db", "v1"), &[app.address]);
    assert_eq!(get(world.internal, "db.env.localhost").await, (200, "inside".into()));
    assert_eq!(get(world.internal, "db").await, (200, "inside".into()), "short name");
    assert_eq!(get(world.internal, "far.env.localhost").await.0, 404);
    assert_eq!(get(world.internal, "far").await.0, 404);
    assert_eq!(get(world.http, "db").await.0, 404, "short names mean nothing outside");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_split_requests() {
    let world = World::start().await;
    let (one, two) = (Backend::named("one").await, Backend::named("two").await);
    let (v1, v2) = (revision("web", "v1"), revision("web", "v2"));
    let revisions = vec![
        WeightedRevision { revision: v1.clone(), weight: 80 },
        WeightedRevision { revision: v2.clone(), weight: 20 },
    ];
    world.route("web", AppRoute { revisions, ..route("web") });
    world.ready(&v1, &[one.address]);
    world.ready(&v2, &[two.address]);
    for _ in 0..200 {
        assert_eq!(get(world.http, "web.env.localhost").await.0, 200);
    }
    let share = world.handle.load(&v2).arrivals_total;
    assert!((38..=42).contains(&share), "20 % of 200 were {share}");
    assert_eq!(share + world.handle.load(&v1).arrivals_total, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_busy_replica_is_chosen_and_the_oldest_of_equals() {
    let (gate, arrived) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let backend = |name: &'static str| {
        let (gate, arrived) = (Arc::clone(&gate), Arc::clone(&arrived));
        Backend::http(move |request| {
            let (gate, arrived) = (Arc::clone(&gate), Arc::clone(&arrived));
            async move {
                if request.uri() == "/slow" {
                    arrived.fetch_add(1, Ordering::SeqCst);
                    gate.acquire().await.unwrap().forget();
                }
                Response::new(text(name))
            }
        })
    };
    let (young, middle, old) = (backend("young").await, backend("middle").await, backend("old").await);
    let v1 = revision("web", "v1");
    let world = World::start().await;
    world.route("web", route("web"));
    let mut endpoints = endpoints(&v1, &[young.address, middle.address, old.address], &[]);
    for (endpoint, order) in endpoints.ready.iter_mut().zip([30, 20, 10]) {
        endpoint.order = order;
    }
    world.endpoints.set(v1.clone(), endpoints);
    let mut slow = JoinSet::new();
    for (busy, expected) in ["old", "middle", "young", "old"].into_iter().enumerate() {
        for _ in 0..3 {
            assert_eq!(get(world.http, "web.env.localhost").await, (200, expected.into()), "an idle app stays packed");
        }
        let address = world.http;
        slow.spawn(async move {
            raw(address, "GET /slow HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n").await
        });
        until("the slow one to arrive", || arrived.load(Ordering::SeqCst) == busy + 1).await;
    }
    gate.add_permits(4);
    while let Some(answer) = soon("an answer", slow.join_next()).await {
        assert!(answer.unwrap().starts_with("HTTP/1.1 200 "));
    }
}
