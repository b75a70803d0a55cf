//! Shares of the traffic, counted at the apps; changes of weights and labels under load, of which no answer is wrong; clients
//! that stay at their replica while others come.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use cove_model::IngressPolicies;
use cove_traffic::{AppRoute, WeightedRevision};
use http::Response;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Barrier,
    task::JoinSet,
};

use crate::world::{Backend, World, get, parts, raw, revision, route, soon, text};

const HEAD_END: &[u8] = b"\r\n\r\n";

fn heads(bytes: &[u8]) -> usize {
    bytes.windows(HEAD_END.len()).filter(|window| *window == HEAD_END).count()
}

/// An app that counts its requests and costs next to nothing.
async fn counting() -> (Backend, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let backend = Backend::tcp(move |mut stream| {
        let count = Arc::clone(&counted);
        async move {
            let mut read = Vec::new();
            while stream.read_buf(&mut read).await.is_ok_and(|bytes| bytes > 0) {
                let requests = heads(&read);
                if requests > 0 {
                    read.clear();
                    count.fetch_add(requests as u64, Ordering::SeqCst);
                    let answers = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx".repeat(requests);
                    if stream.write_all(&answers).await.is_err() {
                        return;
                    }
                }
            }
        }
    })
    .await;
    (backend, count)
}

fn weights(of: &[(&str, u32)]) -> AppRoute {
    let revisions = of
        .iter()
        .map(|(suffix, weight)| WeightedRevision { revision: revision("web", suffix), weight: *weight })
        .collect();
    AppRoute { revisions, ..route("web") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ninety_to_ten_is_met_within_half_a_point() {
    const CLIENTS: usize = 4;
    const ROUNDS: usize = 250;
    const AT_ONCE: usize = 100;
    let world = World::by_chance().await;
    let ((most, of_most), (few, of_few)) = (counting().await, counting().await);
    world.route("web", weights(&[("v1", 90), ("v2", 10)]));
    world.ready(&revision("web", "v1"), &[most.address]);
    world.ready(&revision("web", "v2"), &[few.address]);
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let address = world.http;
        clients.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let requests = b"GET / HTTP/1.1\r\nhost: web.env.localhost\r\n\r\n".repeat(AT_ONCE);
            let mut read = Vec::new();
            for _ in 0..ROUNDS {
                stream.write_all(&requests).await.unwrap();
                read.clear();
                let (mut seen, mut count) = (0, 0);
                while count < AT_ONCE || read.ends_with(HEAD_END) {
                    assert!(stream.read_buf(&mut read).await.unwrap() > 0, "the connection stays open");
                    // only what is new is searched
                    count += heads(&read[seen..]);
                    seen = read.len().saturating_sub(HEAD_END.len() - 1);
                }
                assert_eq!(read.windows(12).filter(|window| window == b"HTTP/1.1 200").count(), AT_ONCE);
            }
        });
    }
    let all = tokio::time::timeout(std::time::Duration::from_secs(280), clients.join_all()).await;
    assert_eq!(all.expect("the requests are answered").len(), CLIENTS);
    let (most, few) = (of_most.load(Ordering::SeqCst), of_few.load(Ordering::SeqCst));
    assert_eq!(most + few, (CLIENTS * ROUNDS * AT_ONCE) as u64, "each request reached one app, once");
    // by chance: half a point is more than five standard deviations
    assert!((9_500..=10_500).contains(&few), "10 % of 100,000 were {few}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_and_labels_change_under_load_without_a_wrong_answer() {
    let world = Arc::new(World::start().await);
    let apps = [Backend::named("v1").await, Backend::named("v2").await, Backend::named("v3").await];
    for (suffix, app) in ["v1", "v2", "v3"].iter().zip(&apps) {
        world.ready(&revision("web", suffix), &[app.address]);
    }
    // the app's weights, a label, and a revision's own host, which never changes
    let set = |label: &str, most: &str, few: &str| {
        world.route("web", weights(&[(most, 90), (few, 10)]));
        world.route("web---green", AppRoute { ..weights(&[(label, 100)]) });
    };
    world.route("web--v3", weights(&[("v3", 100)]));
    set("v1", "v1", "v2");
    let is_over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for (host, allowed) in [("web", "v1 v2"), ("web---green", "v1 v2"), ("web--v3", "v3")] {
        let (world, is_over) = (Arc::clone(&world), Arc::clone(&is_over));
        clients.spawn(async move {
            let mut asked = 0;
            while !is_over.load(Ordering::SeqCst) {
                let (status, name) = get(world.http, &format!("{host}.env.localhost")).await;
                assert!(status == 200 && allowed.contains(&name), "{host}: {status} {name}");
                asked += 1;
            }
            asked
        });
    }
    for turn in 0..60 {
        let (label, other) = if turn % 2 == 0 { ("v2", "v1") } else { ("v1", "v2") };
        set(label, other, label);
        let follows = async { while get(world.http, "web---green.env.localhost").await.1 != label {} };
        soon("the label to lead to its revision", follows).await;
        for _ in 0..3 {
            assert_eq!(get(world.http, "web---green.env.localhost").await.1, label, "and it stays there");
        }
    }
    is_over.store(true, Ordering::SeqCst);
    while let Some(asked) = clients.join_next().await {
        assert!(asked.unwrap() > 0);
    }
}

/// Asks for a path with a cookie: who answered, and the cookie that came.
async fn visit(http: SocketAddr, path: &str, cookie: &str) -> (String, Option<String>) {
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: web.env.localhost\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n");
    let answer = raw(http, &request).await;
    assert_eq!(parts(&answer).0, 200, "{answer}");
    let set = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).and_then(|set| set.split(';').next());
    (parts(&answer).1, set.map(str::to_owned))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_stays_where_it_is_while_five_replicas_come() {
    let world = World::start().await;
    let policies = Arc::new(IngressPolicies { is_sticky: true, ..IngressPolicies::default() });
    world.route("web", AppRoute { policies, ..route("web") });
    // a path per count: its answers come when there are as many requests, so that each goes to a replica of its own
    let together: Arc<Vec<Barrier>> = Arc::new((0..=5).map(|count| Barrier::new(count.max(1))).collect());
    let mut apps = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        let together = Arc::clone(&together);
        let answer = move |request: http::Request<hyper::body::Incoming>| {
            let (count, together) = (request.uri().path()[1..].parse::<usize>().unwrap(), Arc::clone(&together));
            async move {
                together[count].wait().await;
                Response::new(text(name))
            }
        };
        apps.push(Backend::http(answer).await);
    }
    let mut clients: Vec<(String, String)> = Vec::new();
    for count in 1..=apps.len() {
        let addresses: Vec<_> = apps[..count].iter().map(|app| app.address).collect();
        world.ready(&revision("web", "v1"), &addresses);
        let come = async {
            loop {
                let (http, path) = (world.http, format!("/{count}"));
                let visits = (0..count).map(|_| visit(http, &path, "none=1"));
                let came = futures_util::future::join_all(visits).await;
                let names: std::collections::BTreeSet<_> = came.iter().map(|(name, _)| name.clone()).collect();
                clients
                    .extend(came.into_iter().map(|(name, cookie)| (name, cookie.expect("a cookie for who has none"))));
                if names.len() == count {
                    return;
                }
            }
        };
        soon("a client at each replica", come).await;
        for (name, cookie) in &clients {
            // alone it waits for nobody
            let (again, set) = visit(world.http, "/1", cookie).await;
            assert_eq!((&again, set), (name, None), "at {count} replicas");
        }
    }
    assert!(clients.len() >= 15);
}
