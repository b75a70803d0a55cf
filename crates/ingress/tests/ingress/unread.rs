//! Answers that come before their request's body: what is left of it costs the client neither the answer nor its connection.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::world::{Backend, World, raw, revision, route, soon};

const HOST: &str = "web.env.localhost";
/// More than all buffers between client and app hold.
const BODY_BYTES: usize = 24 << 20;
const BLOCK_BYTES: usize = 1 << 16;

/// An app that answers a `POST` at the end of its head, and what it is asked for otherwise.
async fn hasty(answer: &'static str) -> Backend {
    Backend::tcp(move |mut stream| async move {
        let mut asked = Vec::new();
        while !asked.windows(4).any(|window| window == b"\r\n\r\n") {
            if stream.read_buf(&mut asked).await.unwrap_or(0) == 0 {
                return;
            }
        }
        if asked.starts_with(b"GET") {
            let _gone =
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello").await;
            return;
        }
        let _gone = stream.write_all(answer.as_bytes()).await;
        if !answer.contains("close") {
            // the rest stays unread for as long as the other side holds on
            std::future::pending::<()>().await;
        }
    })
    .await
}

/// Sends the begin of a body, reads the whole answer, and gives what is left to be sent.
async fn refused(world: &World, host: &str, status: &str) -> (TcpStream, usize) {
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: {BODY_BYTES}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&[b'x'; BLOCK_BYTES]).await.unwrap();
    let mut told = Vec::new();
    let end = loop {
        if let Some(at) = told.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        assert!(soon("the answer", stream.read_buf(&mut told)).await.unwrap() > 0, "{told:?}");
    };
    let text = String::from_utf8_lossy(&told[..end]).to_lowercase();
    assert!(text.starts_with(&format!("http/1.1 {status} ")), "{text}");
    assert!(!text.contains("connection: close"), "{text}");
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse::<usize>().unwrap();
    while told.len() < end + length {
        assert!(soon("its body", stream.read_buf(&mut told)).await.unwrap() > 0, "{told:?}");
    }
    (stream, BODY_BYTES - BLOCK_BYTES)
}

/// Sends the rest of a body and, behind it, a request; gives what is answered to that.
async fn ask_again(mut stream: TcpStream, mut left: usize) -> String {
    let block = vec![b'x'; BLOCK_BYTES];
    while left > 0 {
        let bytes = left.min(BLOCK_BYTES);
        soon("the rest is taken", stream.write_all(&block[..bytes])).await.unwrap();
        left -= bytes;
    }
    let next = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
    stream.write_all(next.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("the next answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

async fn world(app: &Backend) -> World {
    let world = World::start().await;
    world.route("web", route("web"));
    world.ready(&revision("web", "v1"), &[app.address]);
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_body_leaves_the_connection() {
    let app = hasty("").await;
    let world = world(&app).await;
    let (stream, left) = refused(&world, "nobody.env.localhost", "404").await;
    let answer = ask_again(stream, left).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hello"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_one_that_the_app_did_not_read() {
    for answer in [
        "HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno",
        "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno",
    ] {
        let app = hasty(answer).await;
        let world = world(&app).await;
        let (stream, left) = refused(&world, HOST, "401").await;
        let answer = ask_again(stream, left).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hello"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_for_its_framing_ends_the_connection() {
    let app = hasty("").await;
    let world = world(&app).await;
    let two = format!(
        "POST / HTTP/1.1\r\nhost: {HOST}\r\nx-a: 1\r\ncontent-length: 100\r\nhost: other\r\n\r\nGET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n"
    );
    let answer = raw(world.http, &two).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_ends_does_not_wait_for_it() {
    let app = hasty("").await;
    let world = world(&app).await;
    let (mut stream, _left) = refused(&world, "nobody.env.localhost", "404").await;
    drop(world);
    let mut rest = Vec::new();
    let _reset_is_an_end = soon("the connection ends", stream.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
}
