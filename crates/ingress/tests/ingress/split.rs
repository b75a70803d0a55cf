//! Shares of the traffic, counted at the apps; and changes of weights and labels under load, of which no answer is wrong.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use cove_traffic::{AppRoute, WeightedRevision};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::world::{Backend, World, get, revision, route, soon};

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
    const ROUNDS: usize = 50;
    const AT_ONCE: usize = 50;
    let world = World::start().await;
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
                while heads(&read) < AT_ONCE || read.ends_with(HEAD_END) {
                    assert!(stream.read_buf(&mut read).await.unwrap() > 0, "the connection stays open");
                }
                assert_eq!(read.windows(12).filter(|window| window == b"HTTP/1.1 200").count(), AT_ONCE);
            }
        });
    }
    let all = tokio::time::timeout(std::time::Duration::from_secs(120), clients.join_all()).await;
    assert_eq!(all.expect("the requests are answered").len(), CLIENTS);
    let (most, few) = (of_most.load(Ordering::SeqCst), of_few.load(Ordering::SeqCst));
    assert_eq!(most + few, (CLIENTS * ROUNDS * AT_ONCE) as u64, "each request reached one app, once");
    assert!((950..=1_050).contains(&few), "10 % of 10,000 were {few}");
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
