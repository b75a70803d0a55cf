//! HTTP/1.1 and server-sent events: every way to lose a request is told apart.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Method;
use tokio::net::{TcpListener, TcpSocket};

use super::{PATIENCE, accept, answer, plan, request, run, server, shown};
use crate::{Content, Load, Pace, Plan, Protocol, Trust};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Asks a server once that answers each request with `text` and then closes, or keeps the connection.
async fn asked(text: &'static str, closes: bool, change: impl FnOnce(Plan) -> Plan) -> String {
    let address = server(move |mut stream, _| async move {
        while request(&mut stream).await.is_some() {
            answer(&mut stream, text).await;
            if closes {
                return;
            }
        }
    })
    .await;
    shown(&run(change(plan(address, Protocol::Http1))).await)
}

#[tokio::test]
async fn answers_that_are_whole_are_counted() {
    let address = server(|mut stream, _| async move {
        while request(&mut stream).await.is_some() {
            answer(&mut stream, "HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n").await;
            answer(
                &mut stream,
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\na: b\r\n\r\n",
            )
            .await;
        }
    })
    .await;
    let report = run(Plan { requests: Some(500), pace: Pace::Connections(5), ..plan(address, Protocol::Http1) }).await;
    assert_eq!(shown(&report), "500 answered, 0 lost");
    assert_eq!((report.bytes, report.connections), (2500, 5));
    assert_eq!(report.statuses.get(&200), Some(&500));
    assert!(report.latency_ms.p50 > 0.0 && report.latency_ms.p50 <= report.latency_ms.max);
    assert_eq!(report.timeline.iter().map(|moment| moment.answered).sum::<u64>(), 500);
}

#[tokio::test]
async fn every_fault_has_its_name() {
    let same = |plan: Plan| plan;
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello";
    assert_eq!(asked(cut, true, same).await, "0 answered, 1 lost (Truncated: 1)");
    let cut = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    assert_eq!(asked(cut, true, same).await, "0 answered, 1 lost (Truncated: 1)");
    assert_eq!(asked("HTTP/1.1 200 O", true, same).await, "0 answered, 1 lost (Truncated: 1)");
    assert_eq!(asked("", true, same).await, "0 answered, 1 lost (Closed: 1)");
    let soon = |plan: Plan| Plan { timeout: Duration::from_millis(50), ..plan };
    assert_eq!(asked("", false, soon).await, "0 answered, 1 lost (Timeout: 1)");
    assert_eq!(asked("220 mail ready\r\n\r\n", true, same).await, "0 answered, 1 lost (Malformed: 1)");
    assert_eq!(
        asked("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok and more", true, same).await,
        "0 answered, 1 lost (Malformed: 1)"
    );
    let failed = "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(asked(failed, true, same).await, "0 answered, 1 lost (Status: 1)");
    assert_eq!(asked(OK, true, |plan| Plan { status: Some(201), ..plan }).await, "0 answered, 1 lost (Status: 1)");
    assert_eq!(asked("HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", true, same).await, "1 answered, 0 lost");
    let echo = |body: &'static str| {
        move |plan: Plan| Plan {
            method: Method::POST,
            body: Bytes::from_static(body.as_bytes()),
            content: Content::Echo,
            ..plan
        }
    };
    assert_eq!(asked(OK, true, echo("ok")).await, "1 answered, 0 lost");
    assert_eq!(asked(OK, true, echo("ok!")).await, "0 answered, 1 lost (Content: 1)");
    assert_eq!(asked(OK, true, echo("no")).await, "0 answered, 1 lost (Content: 1)");
}

/// A server that reads a second request on a connection and closes it without a word.
async fn idle_closed(change: impl FnOnce(Plan) -> Plan) -> String {
    let address = server(|mut stream, number| async move {
        let mut count = 0;
        while request(&mut stream).await.is_some() {
            count += 1;
            if number == 0 && count == 2 {
                return;
            }
            answer(&mut stream, OK).await;
        }
    })
    .await;
    shown(&run(change(Plan { requests: Some(5), ..plan(address, Protocol::Http1) })).await)
}

#[tokio::test]
async fn only_what_http_allows_is_sent_again() {
    assert_eq!(idle_closed(|plan| plan).await, "5 answered, 0 lost repeated (IdleClosed: 1)");
    assert_eq!(idle_closed(|plan| Plan { is_strict: true, ..plan }).await, "4 answered, 1 lost (Closed: 1)");
    assert_eq!(idle_closed(|plan| Plan { method: Method::POST, ..plan }).await, "4 answered, 1 lost (Closed: 1)");
}

#[tokio::test]
async fn a_refused_connection_is_tried_again_and_counted() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let load = Load::start(Plan { requests: Some(3), ..plan(address, Protocol::Http1) }).await.unwrap();
    let controls = load.controls();
    let begun = Instant::now();
    while controls.counts().refused == 0 {
        assert!(begun.elapsed() < PATIENCE, "no connection was refused");
        tokio::task::yield_now().await;
    }
    let listener: TcpListener = socket.listen(16).unwrap();
    tokio::spawn(accept(listener, |mut stream, _| async move {
        while request(&mut stream).await.is_some() {
            answer(&mut stream, OK).await;
        }
    }));
    let report = load.finish().await;
    assert_eq!(shown(&report), "3 answered, 0 lost");
    assert_eq!(report.counts.refused, 1);

    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = plan(socket.local_addr().unwrap(), Protocol::Http1);
    let report = run(Plan { timeout: Duration::from_millis(100), ..nobody.clone() }).await;
    assert_eq!(shown(&report), "0 answered, 1 lost (Refused: 1)");
    let report = run(Plan { is_strict: true, ..nobody }).await;
    assert_eq!((shown(&report), report.counts.refused), ("0 answered, 1 lost (Refused: 1)".to_owned(), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_is_seen_by_every_request_that_was_due_in_it() {
    const STALL: Duration = Duration::from_millis(400);
    let address = server(|mut stream, _| async move {
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        while request(&mut stream).await.is_some() {
            if SEEN.fetch_add(1, Ordering::Relaxed) == 20 {
                tokio::time::sleep(STALL).await;
            }
            answer(&mut stream, OK).await;
        }
    })
    .await;
    let pace = Pace::Rate { per_second: 200.0, connections_max: 1 };
    let report = run(Plan { pace, requests: Some(200), ..plan(address, Protocol::Http1) }).await;
    assert_eq!(shown(&report), "200 answered, 0 lost");
    // a closed loop would see one slow request; 80 were due while the server stood still
    assert!(report.latency_ms.p90 > 100.0, "{:?}", report.latency_ms);
    assert!(report.service_ms.p95 < 100.0, "{:?}", report.service_ms);
    assert!(report.wait_ms.p90 > 100.0, "{:?}", report.wait_ms);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_loop_takes_as_many_connections_as_it_needs() {
    let address = server(|mut stream, _| async move {
        while request(&mut stream).await.is_some() {
            tokio::time::sleep(Duration::from_millis(200)).await;
            answer(&mut stream, OK).await;
        }
    })
    .await;
    let pace = Pace::Rate { per_second: 200.0, connections_max: 100 };
    let report = run(Plan { pace, requests: Some(200), ..plan(address, Protocol::Http1) }).await;
    assert_eq!(shown(&report), "200 answered, 0 lost");
    assert!((30..=100).contains(&report.connections), "{} connections", report.connections);
    assert!(report.latency_ms.p50 < 1000.0, "{:?}", report.latency_ms);
    assert_eq!(report.unsent, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_due_and_never_sent_is_told() {
    let address = server(|mut stream, _| async move { while request(&mut stream).await.is_some() {} }).await;
    let pace = Pace::Rate { per_second: 1000.0, connections_max: 2 };
    // long after the end of the load: a place that is free then is not taken any more
    let timeout = Duration::from_secs(3);
    let plan = Plan {
        pace,
        duration: Some(Duration::from_millis(200)),
        requests: None,
        timeout,
        ..plan(address, Protocol::Http1)
    };
    let report = run(plan).await;
    assert_eq!(report.counts.sent, 2);
    assert_eq!(shown(&report), "0 answered, 2 lost (Timeout: 2)");
    assert!((100..=200).contains(&report.unsent), "{} unsent", report.unsent);
}

#[tokio::test]
async fn a_load_that_is_cut_short_says_what_was_open() {
    let address = server(|mut stream, _| async move { while request(&mut stream).await.is_some() {} }).await;
    let plan = Plan { pace: Pace::Connections(3), requests: None, timeout: PATIENCE, ..plan(address, Protocol::Http1) };
    let load = Load::start(plan).await.unwrap();
    let controls = load.controls();
    let begun = Instant::now();
    while controls.counts().sent < 3 {
        assert!(begun.elapsed() < PATIENCE, "nothing was sent");
        tokio::task::yield_now().await;
    }
    let mark = controls.mark("cut");
    controls.cut();
    controls.end_mark(mark);
    let report = load.finish().await;
    assert!(begun.elapsed() < PATIENCE / 2);
    assert_eq!((report.unfinished, report.counts.lost), (3, 0));
    assert_eq!(report.marks.len(), 1);
}

#[tokio::test]
async fn events_that_are_missing_are_lost() {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n";
    let events = |messages: Option<u64>| move |plan: Plan| Plan { protocol: Protocol::Events, messages, ..plan };
    let whole = |body: &str| -> &'static str {
        Box::leak(format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).into_boxed_str())
    };
    let three = "id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\ndata: c\n\n";
    assert_eq!(asked(whole(three), false, events(None)).await, "1 answered, 0 lost");
    assert_eq!(asked(whole(three), false, events(Some(3))).await, "1 answered, 0 lost");
    assert_eq!(asked(whole(three), false, events(Some(4))).await, "0 answered, 1 lost (Content: 1)");
    assert_eq!(asked(whole("id: 1\n\nid: 3\n\n"), false, events(None)).await, "0 answered, 1 lost (Content: 1)");
    let cut: &'static str = Box::leak(format!("{head}7\r\nid: 1\n\n\r\n").into_boxed_str());
    assert_eq!(asked(cut, true, events(None)).await, "0 answered, 1 lost (Truncated: 1)");
    let soon = |plan: Plan| Plan { protocol: Protocol::Events, timeout: Duration::from_millis(50), ..plan };
    assert_eq!(asked(cut, false, soon).await, "0 answered, 1 lost (Timeout: 1)");
    // a stream without an end is right as far as it came
    let endless = |plan: Plan| Plan { protocol: Protocol::Events, duration: Some(Duration::from_secs(2)), ..plan };
    assert_eq!(asked(cut, false, endless).await, "1 answered, 0 lost");
}

#[tokio::test]
async fn tls_is_spoken_and_certificates_are_checked() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let address = server(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut buffer = [0; 4096];
            while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {
                let _gone = stream.write_all(OK.as_bytes()).await;
            }
        }
    })
    .await;
    let target = crate::Target::parse(&format!("https://localhost:{}/", address.port())).unwrap();
    let trusting =
        |trust: Trust| Plan { target: target.clone(), trust, requests: Some(3), ..plan(address, Protocol::Http1) };
    assert_eq!(shown(&run(trusting(Trust::System)).await), "0 answered, 3 lost (Tls: 3)");
    assert_eq!(shown(&run(trusting(Trust::Anyone)).await), "3 answered, 0 lost");
    let pem = made.cert.pem().into_bytes();
    assert_eq!(shown(&run(trusting(Trust::And(pem))).await), "3 answered, 0 lost");
}
