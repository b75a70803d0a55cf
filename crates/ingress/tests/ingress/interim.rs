//! What comes before an answer, and answers that come before their time: early hints, refusals in the middle of a body.

use std::sync::Arc;

use cove_model::Transport;
use cove_traffic::AppRoute;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::Notify,
};

use crate::world::{Backend, World, raw, revision, route, soon};

async fn world(app: &Backend) -> World {
    let world = World::start().await;
    world.route("web", AppRoute { transport: Transport::Auto, ..route("web") });
    world.ready(&revision("web", "v1"), &[app.address]);
    world
}

/// Reads heads of requests and says `answer` to each.
async fn says(answer: &'static [&'static str]) -> Backend {
    Backend::tcp(move |stream| async move {
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        loop {
            loop {
                match lines.next_line().await {
                    Ok(Some(line)) if line.is_empty() => break,
                    Ok(Some(_)) => {}
                    _ => return,
                }
            }
            for part in answer {
                if writer.write_all(part.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nlink: </b.js>; rel=preload\r\n\
                     connection: x-private\r\nx-private: 1\r\nx-cove-reason: not-ours\r\n\r\n";
const FINAL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_hints_come_before_the_answer_is_there() {
    let gate = Arc::new(Notify::new());
    let app = {
        let gate = Arc::clone(&gate);
        Backend::tcp(move |mut stream| {
            let gate = Arc::clone(&gate);
            async move {
                let mut head = vec![0; 4096];
                let _asked = stream.read(&mut head).await;
                let _gone = stream.write_all(HINTS.as_bytes()).await;
                gate.notified().await;
                let _gone = stream.write_all(FINAL.as_bytes()).await;
                let _until_closed = stream.read(&mut head).await;
            }
        })
        .await
    };
    let world = world(&app).await;
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut told = Vec::new();
    while !told.ends_with(b"\r\n\r\n") {
        soon("the hints", stream.read_buf(&mut told)).await.unwrap();
    }
    let expected = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nlink: </b.js>; rel=preload\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&told), expected);
    gate.notify_one();
    let mut rest = String::new();
    soon("the answer", stream.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.ends_with("done"), "{rest}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_never_mix_with_answers_of_pipelined_requests() {
    let app = says(&[HINTS, FINAL]).await;
    let world = world(&app).await;
    let ask = "GET / HTTP/1.1\r\nhost: web.env.localhost\r\n\r\n";
    let last = "GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n";
    let answer = raw(world.http, &(ask.repeat(50) + last)).await;
    let (mut hints, mut answers) = (0, 0);
    for piece in answer.split("HTTP/1.1 ").skip(1) {
        let is_hint =
            piece.starts_with("103 Early Hints\r\nlink: </a.css>; rel=preload\r\nlink: </b.js>; rel=preload\r\n\r\n");
        let is_answer = piece.starts_with("200 OK\r\n") && piece.ends_with("\r\n\r\ndone");
        assert!(is_hint || is_answer, "{piece}");
        (hints, answers) = (hints + usize::from(is_hint), answers + usize::from(is_answer));
    }
    assert_eq!((hints, answers), (51, 51));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http_1_0_gets_no_interim_answer() {
    let app = says(&[HINTS, FINAL]).await;
    let world = world(&app).await;
    let answer = raw(world.http, "GET / HTTP/1.0\r\nhost: web.env.localhost\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("done") && !answer.contains("103"),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http_1_0_keeps_its_connection_if_it_asks() {
    let app = says(&[FINAL]).await;
    let world = world(&app).await;
    let ask = "GET / HTTP/1.0\r\nhost: web.env.localhost\r\nconnection: keep-alive\r\n\r\n";
    let last = "GET / HTTP/1.0\r\nhost: web.env.localhost\r\n\r\n";
    let answer = raw(world.http, &(ask.repeat(2) + last)).await;
    assert_eq!(answer.matches("HTTP/1.0 200 OK\r\n").count(), 3, "{answer}");
    assert_eq!(answer.to_lowercase().matches("connection: keep-alive\r\n").count(), 2, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_refuses_a_body_and_closes_is_heard() {
    let app = Backend::tcp(|mut stream| async move {
        let mut head = vec![0; 1024];
        let _asked = stream.read(&mut head).await;
        let _gone = stream
            .write_all(b"HTTP/1.1 413 Payload Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")
            .await;
        // closed with much that was not read: the kernel resets the connection
    })
    .await;
    let world = world(&app).await;
    for round in 0..30 {
        let stream = TcpStream::connect(world.http).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let sending = tokio::spawn(async move {
            let head = "POST / HTTP/1.1\r\nhost: web.env.localhost\r\ncontent-length: 33554432\r\n\r\n";
            let _gone = writer.write_all(head.as_bytes()).await;
            let block = vec![b'x'; 1 << 16];
            while writer.write_all(&block).await.is_ok() {}
        });
        let mut told = Vec::new();
        while !told.ends_with(b"no") {
            let count = soon("the refusal", reader.read_buf(&mut told)).await.unwrap_or(0);
            assert!(count > 0, "round {round}: {}", String::from_utf8_lossy(&told));
        }
        assert!(told.starts_with(b"HTTP/1.1 413 "), "round {round}: {}", String::from_utf8_lossy(&told));
        drop(reader);
        sending.abort();
    }
}
