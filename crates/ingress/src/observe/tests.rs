//! What noting a request costs, and that a flood of requests is no flood of rows.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::Full;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::Observer;
use crate::{
    access::AccessLogConfig,
    body::ResponseBody,
    config::IngressConfig,
    io::Socket,
    proxy::{Client, Side},
};

async fn client() -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let permit = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
    Client {
        connection: 1,
        peer: [127, 0, 0, 1].into(),
        side: Side::Http,
        socket: Socket::new(stream),
        tls: Arc::default(),
        permit: Arc::new(permit),
        interim: None,
    }
}

fn request() -> Request<()> {
    Request::builder()
        .uri("/some/path?and=query")
        .header("host", "web.env.localhost")
        .header("user-agent", "test/1")
        .header("x-request-id", "0af76519-16cd-43dd-8448-eb211c80319c")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .body(())
        .unwrap()
}

#[tokio::test]
async fn a_flood_of_requests_is_no_flood_of_rows_and_costs_little() {
    const BATCHES: u32 = 400;
    const BATCH: u32 = 50;
    let (client, config) = (client().await, IngressConfig::default());
    for (name, max, is_read) in [("not read", 0, false), ("left out", 0, true), ("kept", 1000, true)] {
        let observer = Observer::new(AccessLogConfig { rows_per_second_max: max, ..AccessLogConfig::default() });
        let mut rows = is_read.then(|| observer.rows().unwrap());
        let (mut kept, mut fastest, begun) = (0, Duration::MAX, Instant::now());
        for _ in 0..BATCHES {
            let mut requests: Vec<Request<()>> = (0..BATCH).map(|_| request()).collect();
            let before = Instant::now();
            for request in &mut requests {
                let seen = observer.begin(&client, request, &config);
                let body = ResponseBody::from(Full::new(Bytes::from_static(b"ok")));
                let mut response = seen.answered(Response::new(body));
                let context = &mut Context::from_waker(Waker::noop());
                assert!(Pin::new(response.body_mut()).poll_frame(context).is_ready());
            }
            // what nothing else on the machine interrupted
            fastest = fastest.min(before.elapsed());
            while rows.as_mut().is_some_and(|rows| rows.try_recv().is_ok()) {
                kept += 1;
            }
        }
        let secs = begun.elapsed().as_secs() + 1;
        println!("{name}: {:?} a request at best, {kept} rows", fastest / BATCH);
        assert!(kept <= u64::from(max) * secs, "{kept} rows in {secs} s");
        let left_out = if is_read { u64::from(BATCHES * BATCH) - kept } else { 0 };
        assert_eq!(observer.left_out_total(), left_out, "{name}");
    }
}
