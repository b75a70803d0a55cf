//! Much of something, or too little for too long: bounded memory, an end in time, and others are served meanwhile.

use std::time::Duration;

use cove_ingress::IngressConfig;
use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    HOST, Innocent, StrictApp, at_rest,
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Heard, PING, PRIORITY, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, Wire, block, frame, integer,
    },
    impatient, resident, send, world_of,
};
use crate::world::{Backend, World, reason, revision, route, soon, until};

/// What a flood may cost, both ends in this process.
const MEMORY_MAX: usize = 48 << 20;

fn fields(path: &str) -> Vec<u8> {
    block(&[(":method", "GET"), (":scheme", "http"), (":authority", "web.env.localhost"), (":path", path)])
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields(path))
}

/// The memory that this process grew by while `work` went on is bounded.
async fn bounded<T>(what: &str, work: impl Future<Output = T>) -> T {
    let before = resident();
    let result = work.await;
    let grown = resident().saturating_sub(before);
    assert!(grown < MEMORY_MAX, "{what}: {grown} bytes");
    result
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_that_unpack_to_much_more_are_refused() {
    let app = StrictApp::start().await;
    let world = world_of(impatient(), &app).await;
    let innocent = Innocent::at(world.http);
    // one entry of 4,000 bytes in the table, then a byte for each time that it is meant
    let mut bomb = fields("/bomb");
    bomb.push(0x40);
    integer(&mut bomb, 1);
    bomb.push(b'x');
    integer(&mut bomb, 4000);
    bomb.extend_from_slice(&[b'y'; 4000]);
    bomb.extend_from_slice(&[0xbe; 10_000]);
    assert!(bomb.len() < 16 << 10);
    bounded("HPACK bombs", async {
        for _ in 0..20 {
            let mut wire = Wire::open(world.http, &[]).await;
            wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)).await;
            let heard = wire.heard(1).await;
            assert!(
                matches!(heard, Heard::Status(431) | Heard::Reset(_) | Heard::Away(_) | Heard::Closed),
                "{heard:?}"
            );
        }
    })
    .await;
    assert!(app.seen("/bomb").is_empty());
    innocent.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_without_end_end_the_connection() {
    let app = StrictApp::start().await;
    let world = world_of(impatient(), &app).await;
    let innocent = Innocent::at(world.http);
    let (first, rest) = (fields("/flood"), block(&[("x", "y".repeat(16_000))]));
    for (name, piece) in [
        ("large", frame(CONTINUATION, 0, 1, &rest)),
        ("small", frame(CONTINUATION, 0, 1, &rest[..1])),
        ("empty", frame(CONTINUATION, 0, 1, &[])),
    ] {
        bounded(name, async {
            let mut wire = Wire::open(world.http, &[]).await;
            wire.send(&frame(HEADERS, END_STREAM, 1, &first)).await;
            let sent = wire.flood(&piece.repeat((64 << 10) / piece.len()), 1000).await;
            assert!(sent < 32 << 20, "{name}: {sent} bytes were taken");
            wire.end().await;
        })
        .await;
    }
    assert!(app.seen("/flood").is_empty());
    innocent.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_taken_back_at_once_cost_little() {
    let app = StrictApp::start().await;
    let world = world_of(impatient(), &app).await;
    let innocent = Innocent::at(world.http);
    for (name, kind, payload) in
        [("reset by the client", RST_STREAM, [0, 0, 0, 8]), ("made to be reset by us", WINDOW_UPDATE, [0; 4])]
    {
        bounded(name, async {
            let mut wire = Wire::open(world.http, &[]).await;
            let mut ended = false;
            for turn in 0..200_u32 {
                let pair = |stream: u32| [get(stream, "/rapid"), frame(kind, 0, stream, &payload)].concat();
                let many: Vec<u8> = (0..100).flat_map(|index| pair(2 * (turn * 100 + index) + 1)).collect();
                if wire.flood(&many, 1).await == 0 {
                    ended = true;
                    break;
                }
            }
            let told = if ended { wire.end().await } else { None };
            println!("{name}: ended {ended}, told {told:?}");
        })
        .await;
        at_rest(&world).await;
    }
    let seen = app.seen("/rapid").len();
    assert!(seen < 20_000, "{seen} of 40,000 requests reached the app");
    innocent.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_want_an_answer_are_not_answered_without_end() {
    let app = StrictApp::start().await;
    let world = world_of(impatient(), &app).await;
    let innocent = Innocent::at(world.http);
    let open = frame(HEADERS, END_HEADERS, 1, &fields("/open"));
    for (name, piece) in [
        ("pings", frame(PING, 0, 0, &[0; 8])),
        ("settings", frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("priorities", frame(PRIORITY, 0, 3, &[0, 0, 0, 5, 9])),
        ("windows", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("empty data", frame(DATA, 0, 1, &[])),
        ("unknown frames", frame(0x77, 0, 0, &[0; 64])),
        ("resets of nothing", frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])),
    ] {
        bounded(name, async {
            let mut wire = Wire::open(world.http, &[]).await;
            wire.send(&open).await;
            // answers are not read: who must answer has to wait, or to end it
            let sent = wire.flood(&piece.repeat((64 << 10) / piece.len()), 300).await;
            println!("{name}: {} KiB were taken", sent >> 10);
        })
        .await;
    }
    innocent.unharmed().await;
    at_rest(&world).await;
}

/// Answers every request with a body that never ends.
async fn endless() -> Backend {
    Backend::tcp(|mut stream| async move {
        let _head = stream.read(&mut [0; 4096]).await;
        let mut next = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while next.is_ok() {
            next = stream.write_all(&[b'x'; 16 << 10]).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_opens_no_window_is_left() {
    let app = endless().await;
    let world = World::with(impatient()).await;
    world.route("web", route("web"));
    world.ready(&revision("web", "v1"), &[app.address]);
    let v1 = revision("web", "v1");
    for (name, settings) in [("no window", &[(4, 0)][..]), ("a small window", &[(4, 1000)]), ("the usual window", &[])]
    {
        bounded(name, async {
            let mut wire = Wire::open(world.http, settings).await;
            let all: Vec<u8> = (0..50).flat_map(|index| get(2 * index + 1, "/stall")).collect();
            wire.send(&all).await;
            until("answers to begin", || world.handle.load(&v1).open == 50).await;
            // pings are answered, so that only the stall tells
            let answering =
                tokio::spawn(
                    async move { while !matches!(wire.heard(u32::MAX).await, Heard::Closed | Heard::Away(_)) {} },
                );
            until("the client to be left", || world.handle.load(&v1).open == 0).await;
            soon("its connection to end", answering).await.unwrap();
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_something_now_and_then_is_kept() {
    let app = endless().await;
    let config = IngressConfig { write_stall_timeout: Duration::from_secs(4), ..impatient() };
    let world = World::with(config).await;
    world.route("web", route("web"));
    world.ready(&revision("web", "v1"), &[app.address]);
    let mut wire = Wire::open(world.http, &[(4, 1000)]).await;
    wire.send(&get(1, "/slow")).await;
    assert_eq!(wire.heard(1).await, Heard::Status(200));
    // one window a second, for longer than the limit
    for _ in 0..6 {
        let mut got = 0;
        while got < 1000 {
            let (kind, flags, _, payload) = soon("data", wire.next()).await.expect("the connection goes on");
            match kind {
                DATA => got += payload.len(),
                SETTINGS if flags & 1 == 0 => assert!(wire.send(&frame(SETTINGS, 1, 0, &[])).await),
                PING if flags & 1 == 0 => assert!(wire.send(&frame(PING, 1, 0, &payload)).await),
                _ => {}
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for stream in [0, 1] {
            assert!(wire.send(&frame(WINDOW_UPDATE, 0, stream, &1000_u32.to_be_bytes())).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_without_end_wait_for_the_app_or_are_refused() {
    // reads the head and then nothing
    let deaf = Backend::tcp(|mut stream| async move {
        let _head = stream.read(&mut [0; 1024]).await;
        std::future::pending::<()>().await;
    })
    .await;
    let config =
        IngressConfig { request_timeout: Duration::from_secs(3), request_body_max: Some(8 << 20), ..impatient() };
    let app = StrictApp::start().await;
    let world = world_of(config, &app).await;
    world.route("deaf", route("deaf"));
    world.ready(&revision("deaf", "v1"), &[deaf.address]);
    let innocent = Innocent::at(world.http);
    for (host, code, expected) in [("deaf", "504", "upstream-timeout"), ("web", "413", "request-body-too-large")] {
        bounded(expected, async {
            let mut stream = TcpStream::connect(world.http).await.unwrap();
            let head =
                format!("POST /endless HTTP/1.1\r\nhost: {host}.env.localhost\r\ntransfer-encoding: chunked\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let chunk = [b"10000\r\n".to_vec(), vec![b'x'; 0x10000], b"\r\n".to_vec()].concat();
            let (mut reader, mut writer) = stream.into_split();
            let writing = tokio::spawn(async move {
                let mut sent = 0;
                while writer.write_all(&chunk).await.is_ok() {
                    sent += chunk.len();
                }
                sent
            });
            let mut answer = Vec::new();
            let _reset_is_an_end = soon("the answer", reader.read_to_end(&mut answer)).await;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            drop(reader);
            let sent = soon("the end of the body", writing).await.unwrap();
            println!("{expected}: {} KiB were taken", sent >> 10);
            // what the limit lets through, what is read behind the answer, and buffers
            assert!(sent < (8 + 192 + 56) << 20, "{sent}");
            // a reset may take the answer away that was sent before it
            assert!(
                answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {code} ")) && reason(&answer) == expected,
                "{answer}"
            );
        })
        .await;
        assert!(world.handle.reasons().iter().any(|(reason, count)| reason == expected && *count == 1));
    }
    innocent.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_a_body_too_slowly_is_told_at_the_deadline() {
    let app = StrictApp::start().await;
    let world = world_of(IngressConfig { request_timeout: Duration::from_secs(2), ..impatient() }, &app).await;
    let innocent = Innocent::at(world.http);
    let answers = join_all((0..50).map(|_| async {
        let request =
            format!("POST /slow HTTP/1.1\r\n{HOST}content-length: 1000\r\nconnection: close\r\n\r\nthe begin");
        send("an answer", world.http, request.into_bytes()).await
    }))
    .await;
    for answer in answers {
        assert!(answer.starts_with("HTTP/1.1 504 ") && reason(&answer) == "upstream-timeout", "{answer}");
    }
    assert!(app.seen("/slow").is_empty() && app.wrong().is_empty());
    innocent.unharmed().await;
    at_rest(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_clients_give_their_places_back() {
    let app = StrictApp::start().await;
    let world = world_of(IngressConfig { connections_max: 200, ..impatient() }, &app).await;
    // all places are taken: by nothing, half a head, half a preface
    let mut silent = Vec::new();
    for begin in ["", "GET / HTTP/1.1\r\nhost: w", "PRI * HT", "\r\n"].iter().cycle().take(200) {
        let mut stream = TcpStream::connect(world.http).await.unwrap();
        stream.write_all(begin.as_bytes()).await.unwrap();
        silent.push(stream);
    }
    let innocent = Innocent::at(world.http);
    for mut stream in silent {
        let mut answer = Vec::new();
        let _reset_is_an_end = soon("the end of a silent connection", stream.read_to_end(&mut answer)).await;
        assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    }
    innocent.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_tls_ends_soon() {
    let app = StrictApp::start().await;
    let world = world_of(impatient(), &app).await;
    let innocent = Innocent::at(world.http);
    let hello = [0x16, 3, 1, 0, 5, 1, 0, 0, 1, 3];
    let cases: [(&str, Vec<u8>); 13] = [
        ("nothing", Vec::new()),
        ("plain HTTP", format!("GET /tls HTTP/1.1\r\n{HOST}\r\n").into_bytes()),
        ("noise", (0..=255).cycle().take(5000).collect()),
        ("the hello of SSL 2", vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10]),
        ("half a hello", hello.to_vec()),
        ("a hello of TLS 1.0 without anything", vec![0x16, 3, 1, 0, 4, 1, 0, 0, 0]),
        ("an oversized record", [&[0x16, 3, 1, 0xff, 0xff][..], &[0; 70_000]].concat()),
        ("empty records", [0x16, 3, 1, 0, 0].repeat(5000)),
        ("alerts", [0x15, 3, 3, 0, 2, 1, 90].repeat(5000)),
        ("data before a handshake", [0x17, 3, 3, 0, 5, b'h', b'e', b'l', b'l', b'o'].repeat(100)),
        ("a heartbeat", vec![0x18, 3, 2, 0, 3, 1, 0x40, 0]),
        (
            "a huge message in small records",
            [&[0x16, 3, 3, 0, 4, 1, 0xff, 0xff, 0xff][..], &[0x16, 3, 3, 0, 1, 0].repeat(20_000)].concat(),
        ),
        ("an unknown record", vec![0x63, 3, 3, 0, 1, 0]),
    ];
    bounded(
        "bad TLS",
        join_all(cases.iter().map(|(name, bytes)| async move {
            let answer = send(name, world.https, bytes.clone()).await;
            assert!(!answer.contains("HTTP/1.1"), "{name}: {answer}");
        })),
    )
    .await;
    assert!(app.seen("/tls").is_empty());
    innocent.unharmed().await;
}
