//! Resiliency policies and limits of requests, against apps that fail on purpose.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cove_ingress::IngressConfig;
use cove_model::{
    BreakerPolicy, HeaderMatch, IngressPolicies, RequestLimits, Resiliency, RetryOn, RetryPolicy, TextMatch, Transport,
    TryTimeouts,
};
use cove_testing::free_port;
use cove_traffic::AppRoute;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
};

use crate::world::{Backend, World, get, parts, raw, reason, replica, revision, route, soon, text, until};

const HOST: &str = "web.env.localhost";

fn with(resiliency: Resiliency, limits: RequestLimits) -> AppRoute {
    AppRoute {
        policies: Arc::new(IngressPolicies { resiliency, limits, ..IngressPolicies::default() }),
        ..route("web")
    }
}

/// A world with one app that has a policy and these replicas.
async fn world(resiliency: Resiliency, backends: &[&Backend]) -> World {
    let world = World::start().await;
    world.route("web", with(resiliency, RequestLimits::default()));
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    world.ready(&revision("web", "v1"), &addresses);
    world
}

/// Three quick retries.
fn retry(on: &[RetryOn]) -> Resiliency {
    let retry = RetryPolicy { initial_delay_ms: 2, delay_max_ms: 5, on: on.to_vec(), ..RetryPolicy::default() };
    Resiliency { retry: Some(retry), ..Resiliency::default() }
}

/// Answers `status` so many times, then 200 with how often it was asked and what it was told.
async fn failing(times: usize, status: StatusCode) -> Backend {
    let asked = Arc::new(AtomicUsize::new(0));
    Backend::http(move |request| {
        let asked = Arc::clone(&asked);
        async move {
            let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
            let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let told = String::from_utf8_lossy(&body).into_owned();
            let status = if number <= times { status } else { StatusCode::OK };
            Response::builder()
                .status(status)
                .header("x-number", number)
                .body(text(format!("{number} {told}")))
                .unwrap()
        }
    })
    .await
}

fn ask(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n{fields}\r\n{body}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_policy_names_is_tried_again_with_its_body() {
    let app = failing(2, StatusCode::SERVICE_UNAVAILABLE).await;
    let world = world(retry(&[RetryOn::ServerError]), &[&app]).await;
    let answer = raw(world.http, &ask("content-length: 5\r\n", "hello")).await;
    assert_eq!(parts(&answer), (200, "3 hello".to_owned()), "{answer}");
    let counts = world.handle.resilience(&revision("web", "v1"));
    assert_eq!((counts.retries, counts.retry_successes), (2, 1));
    assert_eq!(world.handle.answers(&revision("web", "v1")), [0, 1, 0, 0, 0], "one request, one answer");
    until("nothing is open", || world.handle.load(&revision("web", "v1")).open == 0).await;

    // chunked, with trailers
    let app = failing(1, StatusCode::BAD_GATEWAY).await;
    let world = self::world(retry(&[RetryOn::ServerError]), &[&app]).await;
    let answer =
        raw(world.http, &ask("transfer-encoding: chunked\r\n", "2\r\nab\r\n1\r\nc\r\n0\r\nx-t: 1\r\n\r\n")).await;
    assert_eq!(parts(&answer), (200, "2 abc".to_owned()), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_goes_on_with_a_body_that_still_comes() {
    // the first connection is answered before its body, the next one after all of it
    let count = Arc::new(AtomicUsize::new(0));
    let app = Backend::tcp(move |mut stream| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move {
            let mut seen = Vec::new();
            let is_whole = |seen: &[u8]| {
                let text = String::from_utf8_lossy(seen).into_owned();
                text.split_once("\r\n\r\n").is_some_and(|(_, body)| number == 0 || body.len() == 4)
            };
            while !is_whole(&seen) && stream.read_buf(&mut seen).await.is_ok_and(|count| count > 0) {}
            let status = if number == 0 { "503 Busy" } else { "200 OK" };
            let body = String::from_utf8_lossy(&seen[seen.len() - 4..]).into_owned();
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 4\r\n\r\n{body}");
            let _sent = stream.write_all(answer.as_bytes()).await;
            let _closed = stream.read_buf(&mut seen).await;
        }
    })
    .await;
    let world = world(retry(&[RetryOn::ServerError]), &[&app]).await;
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream.write_all(ask("content-length: 4\r\n", "ab").as_bytes()).await.unwrap();
    until("the second try", || app.connections.load(Ordering::SeqCst) == 2).await;
    stream.write_all(b"cd").await.unwrap();
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(parts(&answer), (200, "abcd".to_owned()), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_have_an_end_and_the_last_answer_is_the_apps() {
    let app = failing(100, StatusCode::INTERNAL_SERVER_ERROR).await;
    let world = world(retry(&[RetryOn::ServerError]), &[&app]).await;
    let answer = raw(world.http, &ask("content-length: 0\r\n", "")).await;
    assert_eq!((parts(&answer), reason(&answer)), ((500, "4 ".to_owned()), ""), "{answer}");
    let counts = world.handle.resilience(&revision("web", "v1"));
    assert_eq!((counts.retries, counts.retry_successes), (3, 0));
    // another status, another word
    for (word, expected) in [(RetryOn::ServerError, 409), (RetryOn::Conflict, 200)] {
        let app = failing(1, StatusCode::CONFLICT).await;
        let world = self::world(retry(&[word]), &[&app]).await;
        assert_eq!(get(world.http, HOST).await.0, expected, "{word:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_an_answer_ask_for_another_try() {
    let app = failing(0, StatusCode::OK).await;
    let header = HeaderMatch { name: "x-number".into(), value: TextMatch::Regex("[12]".into()) };
    let mut policy = retry(&[RetryOn::Headers]);
    policy.retry.as_mut().unwrap().headers.push(header);
    let world = world(policy, &[&app]).await;
    assert_eq!(get(world.http, HOST).await, (200, "3 ".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_was_not_kept_is_not_sent_twice() {
    let long = "x".repeat(2000);
    for fields in ["content-length: 2000\r\n".to_owned(), "transfer-encoding: chunked\r\n".to_owned()] {
        let body = if fields.starts_with("transfer") { format!("7d0\r\n{long}\r\n0\r\n\r\n") } else { long.clone() };
        let app = failing(1, StatusCode::SERVICE_UNAVAILABLE).await;
        let world = World::with(IngressConfig { retry_body_max: 1000, ..IngressConfig::default() }).await;
        world.route("web", with(retry(&[RetryOn::ServerError]), RequestLimits::default()));
        world.ready(&revision("web", "v1"), &[app.address]);
        let answer = raw(world.http, &ask(&fields, &body)).await;
        assert_eq!(parts(&answer), (503, format!("1 {long}")), "{fields}");
        assert_eq!(world.handle.resilience(&revision("web", "v1")).retries, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_is_tried_when_there_is_one() {
    // the older replica is preferred while nothing is open
    let bad = failing(1000, StatusCode::SERVICE_UNAVAILABLE).await;
    let good = Backend::named("good").await;
    let mut policy = retry(&[RetryOn::GatewayError]);
    policy.retry.as_mut().unwrap().retries_max = 1;
    let world = world(policy, &[&bad, &good]).await;
    for _ in 0..20 {
        assert_eq!(get(world.http, HOST).await, (200, "good".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_that_gives_no_answer_is_repeated_by_its_word_only() {
    // reads a request, then hangs up; every second connection answers
    let count = Arc::new(AtomicUsize::new(0));
    let app = Backend::tcp(move |mut stream| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move {
            let mut buffer = [0; 4096];
            let _read = stream.read(&mut buffer).await;
            if number % 2 == 1 {
                let _sent =
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
                let _closed = stream.read(&mut buffer).await;
            }
        }
    })
    .await;
    let world = world(retry(&[RetryOn::Reset]), &[&app]).await;
    let answer = raw(world.http, &ask("content-length: 2\r\n", "hi")).await;
    assert_eq!(parts(&answer), (200, "ok".to_owned()));
    world.route("web", with(retry(&[RetryOn::ConnectFailure]), RequestLimits::default()));
    soon("the other policy", async {
        loop {
            let answer = raw(world.http, &ask("content-length: 2\r\n", "hi")).await;
            if parts(&answer).0 == 502 {
                assert_eq!(reason(&answer), "upstream-closed");
                break;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_has_its_own_time_and_the_request_its_deadline() {
    // the first request is never answered
    let count = Arc::new(AtomicUsize::new(0));
    let app = Backend::http(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move {
            if number == 0 {
                std::future::pending::<()>().await;
            }
            Response::new(text(number.to_string()))
        }
    })
    .await;
    let timeouts = |response_secs| Some(TryTimeouts { response_secs, connect_secs: 5 });
    // the second try is answered within that also on a busy machine
    let policy = Resiliency { timeouts: timeouts(5), ..retry(&[RetryOn::ServerError]) };
    let world = world(policy, &[&app]).await;
    assert_eq!(get(world.http, HOST).await, (200, "1".to_owned()));
    let counts = world.handle.resilience(&revision("web", "v1"));
    assert_eq!((counts.request_timeouts, counts.retries, counts.retry_successes), (1, 1, 1));

    let never = Backend::http(|_| async { std::future::pending::<Response<_>>().await }).await;
    let world = World::start().await;
    world.ready(&revision("web", "v1"), &[never.address]);
    let limits = RequestLimits { request_timeout_secs: Some(2), ..RequestLimits::default() };
    let policy = Resiliency { timeouts: timeouts(1), ..retry(&[RetryOn::ServerError]) };
    world.route("web", with(policy, limits));
    let began = Instant::now();
    let answer = raw(world.http, &ask("content-length: 0\r\n", "")).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "one retry fits in, and the deadline stands");
    assert_eq!((parts(&answer).0, reason(&answer)), (504, "upstream-timeout"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_upload_does_not_use_up_the_time_of_its_answer() {
    let app = failing(0, StatusCode::OK).await;
    // less than the upload takes, more than a busy machine needs for the answer
    let timeouts = Some(TryTimeouts { response_secs: 3, connect_secs: 5 });
    let world = world(Resiliency { timeouts, ..Resiliency::default() }, &[&app]).await;
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream.write_all(ask("content-length: 4\r\n", "s").as_bytes()).await.unwrap();
    for part in ["l", "o", "w"] {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        stream.write_all(part.as_bytes()).await.unwrap();
    }
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(parts(&answer), (200, "1 slow".to_owned()), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_replica_is_left_out_and_comes_back() {
    let bad = failing(3, StatusCode::INTERNAL_SERVER_ERROR).await;
    let good = Backend::named("good").await;
    let breaker = BreakerPolicy { consecutive_errors: 3, interval_secs: 3, ejection_percent_max: 50 };
    let world = world(Resiliency { breaker: Some(breaker), ..Resiliency::default() }, &[&bad, &good]).await;
    let mut ejections = world.handle.ejections().unwrap();
    for _ in 0..3 {
        assert_eq!(get(world.http, HOST).await.0, 500, "the older replica is asked first");
    }
    let key = revision("web", "v1");
    let counts = world.handle.resilience(&key);
    assert_eq!((counts.ejections, counts.ejected), (1, 1));
    let told = soon("the ejection is told", ejections.recv()).await.unwrap();
    assert_eq!((told.replica, told.errors, told.span), (replica(&key, 0), 3, Duration::from_secs(3)));
    assert_eq!(get(world.http, HOST).await, (200, "good".to_owned()));
    until("it is let in again", || world.handle.resilience(&key).ejected == 0).await;
    assert_eq!(get(world.http, HOST).await, (200, "4 ".to_owned()), "and well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_whose_replicas_all_fail_is_cut_off_and_let_in_again() {
    let bad = failing(2, StatusCode::INTERNAL_SERVER_ERROR).await;
    let breaker = BreakerPolicy { consecutive_errors: 2, interval_secs: 5, ejection_percent_max: 100 };
    let world = world(Resiliency { breaker: Some(breaker), ..Resiliency::default() }, &[&bad]).await;
    for _ in 0..2 {
        assert_eq!(get(world.http, HOST).await.0, 500);
    }
    let answer = raw(world.http, &ask("content-length: 0\r\n", "")).await;
    assert_eq!((parts(&answer).0, reason(&answer)), (503, "replicas-ejected"), "{answer}");
    let seconds = answer.lines().find_map(|line| line.strip_prefix("retry-after: ")?.parse::<u32>().ok());
    assert!(seconds.is_some_and(|seconds| (1..=5).contains(&seconds)), "{answer}");
    until("it is let in again", || world.handle.resilience(&revision("web", "v1")).ejected == 0).await;
    assert_eq!(get(world.http, HOST).await, (200, "3 ".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_replicas_may_be_left_out() {
    let [first, second] = [failing(100, StatusCode::BAD_GATEWAY).await, failing(100, StatusCode::BAD_GATEWAY).await];
    let breaker = BreakerPolicy { consecutive_errors: 2, interval_secs: 600, ejection_percent_max: 50 };
    let world = world(Resiliency { breaker: Some(breaker), ..Resiliency::default() }, &[&first, &second]).await;
    for _ in 0..10 {
        assert_eq!(get(world.http, HOST).await.0, 502, "the app's own");
    }
    let counts = world.handle.resilience(&revision("web", "v1"));
    assert_eq!((counts.ejections, counts.ejected), (1, 1));
    assert_eq!(counts.ejections_aborted, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_have_room_for_so_many_requests() {
    let gate = Arc::new(Semaphore::new(0));
    let app = Backend::http({
        let gate = Arc::clone(&gate);
        move |_| {
            let gate = Arc::clone(&gate);
            async move {
                drop(gate.acquire_owned().await);
                Response::new(text("done"))
            }
        }
    })
    .await;
    let policy = Resiliency { http1_requests_max: Some(2), ..Resiliency::default() };
    let world = world(policy, &[&app]).await;
    let key = revision("web", "v1");
    let address = world.http;
    let open: Vec<_> = (0..2).map(|_| tokio::spawn(async move { get(address, HOST).await })).collect();
    until("both are open", || world.handle.load(&key).open == 2).await;
    let answer = raw(world.http, &ask("content-length: 0\r\n", "")).await;
    assert_eq!((parts(&answer).0, reason(&answer)), (503, "pool-overflow"), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    assert_eq!(world.handle.resilience(&key).pool_overflows, 1);
    gate.add_permits(10);
    for request in open {
        assert_eq!(soon("an answer", request).await.unwrap(), (200, "done".to_owned()));
    }
    until("nothing is open", || world.handle.load(&key).open == 0).await;
    assert_eq!(get(world.http, HOST).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_an_app_stand_before_the_servers() {
    let app = failing(0, StatusCode::OK).await;
    let world = World::start().await;
    let limits = RequestLimits { body_bytes_max: Some(10), header_fields_max: Some(5), ..RequestLimits::default() };
    world.route("web", with(Resiliency::default(), limits));
    world.ready(&revision("web", "v1"), &[app.address]);
    let small = raw(world.http, &ask("content-length: 10\r\n", "0123456789")).await;
    assert_eq!(parts(&small).0, 200, "{small}");
    let told = raw(world.http, &ask("content-length: 11\r\n", "0123456789a")).await;
    assert_eq!((parts(&told).0, reason(&told)), (413, "request-body-too-large"), "{told}");
    let streamed = raw(world.http, &ask("transfer-encoding: chunked\r\n", "b\r\n0123456789a\r\n0\r\n\r\n")).await;
    assert_eq!((parts(&streamed).0, reason(&streamed)), (413, "request-body-too-large"), "{streamed}");
    let fields: String = (0..4).map(|number| format!("x-{number}: 1\r\n")).collect();
    let many = raw(world.http, &ask(&fields, "")).await;
    assert_eq!((parts(&many).0, reason(&many)), (431, "too-many-headers"), "{many}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_may_take_more_header_fields_than_the_server_gives() {
    let app = Backend::tcp(|mut stream| async move {
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") && stream.read_buf(&mut seen).await.is_ok_and(|count| count > 0) {}
        let fields = seen.iter().filter(|byte| **byte == b'\n').count() - 2;
        let head = format!("HTTP/1.1 200 OK\r\nx-fields: {fields}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let _sent = stream.write_all(head.as_bytes()).await;
    })
    .await;
    let world = World::start().await;
    world.ready(&revision("web", "v1"), &[app.address]);
    world.route("web", with(Resiliency::default(), RequestLimits::default()));
    let many = |count: usize| (0..count).map(|number| format!("x-{number}: 1\r\n")).collect::<String>();
    assert_eq!(parts(&raw(world.http, &ask(&many(250), "")).await).0, 431);
    let more = RequestLimits { header_fields_max: Some(300), ..RequestLimits::default() };
    world.route("web", with(Resiliency::default(), more));
    // a connection has the number of its begin
    soon("250 fields are let in", async { while parts(&raw(world.http, &ask(&many(250), "")).await).0 != 200 {} })
        .await;
    assert_eq!(parts(&raw(world.http, &ask(&many(400), "")).await).0, 431);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_stops_is_cut_after_the_apps_time() {
    let app = Backend::tcp(|mut stream| async move {
        let mut buffer = [0; 4096];
        let _read = stream.read(&mut buffer).await;
        let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
        let _closed = stream.read(&mut buffer).await;
    })
    .await;
    let world = World::start().await;
    let limits = RequestLimits { idle_timeout_secs: Some(1), ..RequestLimits::default() };
    world.route("web", with(Resiliency::default(), limits));
    world.ready(&revision("web", "v1"), &[app.address]);
    assert_eq!(get(world.http, HOST).await, (200, "half".to_owned()));
}

/// A world with a TCP app at a free port.
async fn tcp_world(policy: Resiliency, addresses: &[SocketAddr]) -> (World, u16) {
    let port = free_port();
    let config = IngressConfig { tcp_external: Some("127.0.0.1".parse().unwrap()), ..IngressConfig::default() };
    let world = World::with(config).await;
    let route = Arc::new(AppRoute { transport: Transport::Tcp, ..with(policy, RequestLimits::default()) });
    world.change(|table| {
        let target = cove_traffic::TcpRoute { route: Arc::clone(&route), external: true, target_port: None };
        Arc::make_mut(&mut table.tcp).insert((port, route.environment.clone()), Arc::new(target));
    });
    world.ready(&revision("web", "v1"), addresses);
    (world, port)
}

/// Connects as soon as the port is open.
async fn connect(port: u16) -> TcpStream {
    soon("the port", async {
        loop {
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await {
                return stream;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

/// Says three bytes and hears them again, or the end.
async fn echoes(stream: &mut TcpStream) -> bool {
    let _gone_already = stream.write_all(b"abc").await;
    let mut heard = [0; 3];
    soon("an echo", stream.read_exact(&mut heard)).await.is_ok() && &heard == b"abc"
}

async fn echo() -> Backend {
    Backend::tcp(|mut stream| async move {
        let (mut reader, mut writer) = stream.split();
        let _ended = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_a_tcp_app_have_a_number() {
    let policy = Resiliency { connections_max: Some(1), ..Resiliency::default() };
    let app = echo().await;
    let (world, port) = tcp_world(policy, &[app.address]).await;
    let key = revision("web", "v1");
    let mut first = connect(port).await;
    assert!(echoes(&mut first).await);
    assert!(!echoes(&mut connect(port).await).await, "one is open");
    assert_eq!(world.handle.resilience(&key).pool_overflows, 1);
    drop(first);
    until("it is free again", || world.handle.load(&key).open == 0).await;
    assert!(echoes(&mut connect(port).await).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tcp_client_gets_so_many_tries() {
    // taken, and nobody listens
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let dead = bound.local_addr().unwrap();
    let app = echo().await;
    for (tries, expected) in [(1, false), (2, true)] {
        let policy = Resiliency { connect_attempts: Some(tries), ..Resiliency::default() };
        // the older replica is tried first
        let (_world, port) = tcp_world(policy, &[dead, app.address]).await;
        assert_eq!(echoes(&mut connect(port).await).await, expected, "{tries}");
    }
}
