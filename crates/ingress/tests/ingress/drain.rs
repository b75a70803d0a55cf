//! Nothing is lost while replicas come and go or the server stops.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use cove_ingress::IngressConfig;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
};

use crate::world::{Backend, World, endpoints, get, replica, revision, route, soon, text, until};

const HOST: &str = "web.env.localhost";

/// Keep-alive clients that send `total` requests together; gives how many were not answered 200.
async fn load(world: &World, clients: usize, total: usize, sent: &Arc<AtomicUsize>) -> usize {
    let mut all = JoinSet::new();
    for client in 0..clients {
        let (address, sent) = (world.http, Arc::clone(sent));
        all.spawn(async move {
            let stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            let connection = tokio::spawn(connection);
            let mut failed = 0;
            for index in 0..total / clients {
                let request = Request::builder().header("host", HOST);
                let request = if (client + index) % 2 == 0 {
                    request.body(Full::<Bytes>::default())
                } else {
                    request.method("POST").body(Full::from("a body"))
                };
                sender.ready().await.unwrap();
                let response = sender.send_request(request.unwrap()).await.unwrap();
                failed += usize::from(response.status() != 200);
                let _body: Bytes = response.into_body().collect().await.unwrap().to_bytes();
                sent.fetch_add(1, Ordering::Relaxed);
            }
            drop(sender);
            let _closed = connection.await;
            failed
        });
    }
    let mut failed = 0;
    while let Some(count) = tokio::time::timeout(Duration::from_secs(120), all.join_next()).await.unwrap() {
        failed += count.unwrap();
    }
    failed
}

async fn answering() -> Backend {
    Backend::http(|request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(text(body))
    })
    .await
}

/// Replaces the only replica by the next, as the controller does: the new one is ready, the old one drains, and is stopped
/// only when the ingress says that nothing is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_replaced_under_load_without_a_lost_request() {
    const TOTAL: usize = 10_000;
    let world = World::start().await;
    let v1 = revision("web", "v1");
    world.route("web", route("web"));
    let mut current = (0, answering().await);
    world.endpoints.set(v1.clone(), only(&v1, 0, &current.1, None));
    let sent = Arc::new(AtomicUsize::new(0));
    let is_over = AtomicBool::new(false);
    let started = Instant::now();
    let replace = async {
        let drained = world.handle.drained();
        let mut replaced = 0;
        while !is_over.load(Ordering::SeqCst) {
            let next = (current.0 + 1, answering().await);
            world.endpoints.set(v1.clone(), only(&v1, next.0, &next.1, Some(current.0)));
            let old = replica(&v1, current.0);
            until("the old replica to be drained", || drained.get(&old) == Some(0)).await;
            // stopped with every connection that it still had
            current = next;
            replaced += 1;
        }
        replaced
    };
    let run = async {
        let failed = load(&world, 16, TOTAL, &sent).await;
        is_over.store(true, Ordering::SeqCst);
        failed
    };
    let (failed, replaced) = tokio::join!(run, replace);
    let rate = TOTAL as f64 / started.elapsed().as_secs_f64();
    println!("{TOTAL} requests over {replaced} replacements, {rate:.0} per second, {failed} failed");
    assert_eq!(failed, 0);
    assert!(replaced >= 20, "replaced only {replaced} times");
    until("nothing to be open", || world.handle.load(&v1).open == 0).await;
}

fn only(
    revision: &cove_model::RevisionKey,
    index: usize,
    backend: &Backend,
    draining: Option<usize>,
) -> cove_traffic::Endpoints {
    let mut endpoints = endpoints(revision, &[backend.address], &[]);
    endpoints.ready[0].replica = replica(revision, index);
    endpoints.ready[0].order = index as u64;
    endpoints.draining = draining.map(|index| replica(revision, index)).into_iter().collect();
    endpoints
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_replica_finishes_and_gets_nothing_new() {
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&gate);
    let slow = Backend::http(move |_| {
        let waiting = Arc::clone(&waiting);
        async move {
            waiting.acquire().await.unwrap().forget();
            Response::new(text("slow"))
        }
    })
    .await;
    let fast = Backend::named("fast").await;
    let world = World::start().await;
    let v1 = revision("web", "v1");
    world.route("web", route("web"));
    world.ready(&v1, &[slow.address]);
    let address = world.http;
    let open = tokio::spawn(async move { get(address, HOST).await });
    until("the request to be at the replica", || slow.connections.load(Ordering::SeqCst) == 1).await;
    let drained = world.handle.drained();
    let name = replica(&v1, 0);
    world.endpoints.set(v1.clone(), only(&v1, 1, &fast, Some(0)));
    until("the drain to be reported", || drained.get(&name) == Some(1)).await;
    for _ in 0..5 {
        assert_eq!(get(address, HOST).await, (200, "fast".into()));
    }
    assert_eq!(drained.get(&name), Some(1));
    gate.add_permits(1);
    assert_eq!(soon("the open request", open).await.unwrap(), (200, "slow".into()));
    until("it to be drained", || drained.get(&name) == Some(0)).await;
    world.endpoints.set(v1.clone(), only(&v1, 1, &fast, None));
    until("the report to be taken back", || drained.get(&name).is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_replica_is_not_buried_by_those_who_waited() {
    let gate = Arc::new(Semaphore::new(0));
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let app = {
        let (gate, now, most) = (Arc::clone(&gate), Arc::clone(&now), Arc::clone(&most));
        Backend::http(move |_| {
            let (gate, now, most) = (Arc::clone(&gate), Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                now.fetch_sub(1, Ordering::SeqCst);
                Response::new(text("ok"))
            }
        })
        .await
    };
    let config =
        IngressConfig { trial_time: Duration::from_secs(600), trial_requests_max: 4, ..IngressConfig::default() };
    let world = World::with(config).await;
    let v1 = revision("web", "v1");
    world.route("web", route("web"));
    let mut clients = JoinSet::new();
    for _ in 0..20 {
        let address = world.http;
        clients.spawn(async move { get(address, HOST).await });
    }
    until("all to be held", || world.handle.load(&v1).held == 20).await;
    world.ready(&v1, &[app.address]);
    until("the first to be sent", || now.load(Ordering::SeqCst) == 4).await;
    assert_eq!((world.handle.load(&v1).held, most.load(Ordering::SeqCst)), (16, 4));
    gate.add_permits(1);
    until("the rest to be sent after the first answer", || world.handle.load(&v1).held == 0).await;
    gate.add_permits(100);
    while let Some(answer) = soon("an answer", clients.join_next()).await {
        assert_eq!(answer.unwrap().0, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_finishes_what_is_open() {
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&gate);
    let app = Backend::http(move |_| {
        let waiting = Arc::clone(&waiting);
        async move {
            waiting.acquire().await.unwrap().forget();
            Response::new(text("done"))
        }
    })
    .await;
    let world = World::start().await;
    let v1 = revision("web", "v1");
    world.route("web", route("web"));
    world.ready(&v1, &[app.address]);
    let mut idle = TcpStream::connect(world.http).await.unwrap();
    let mut open = TcpStream::connect(world.http).await.unwrap();
    open.write_all(b"GET / HTTP/1.1\r\nhost: web.env.localhost\r\n\r\n").await.unwrap();
    until("the request to be at the replica", || app.connections.load(Ordering::SeqCst) == 1).await;
    let handle = world.handle.clone();
    let stopping = tokio::spawn(async move { handle.shutdown(Duration::from_secs(60)).await });
    assert_eq!(soon("the idle one to be closed", idle.read(&mut [0; 16])).await.unwrap(), 0);
    until("the listener to be closed", || std::net::TcpStream::connect(world.http).is_err()).await;
    assert!(!stopping.is_finished());
    gate.add_permits(1);
    let mut answer = String::new();
    soon("the answer", open.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    assert_eq!(soon("the shutdown", stopping).await.unwrap(), 0);
}
