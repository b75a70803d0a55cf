//! The sample application as a process: its paths, its faults, its way to stop.

mod http2;

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

/// Nothing here takes longer on any machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running sample; killed when dropped.
struct Sample {
    child: Child,
    lines: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
    port: u16,
}

impl Drop for Sample {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sample {
    fn start(environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(concat!(env!("OUT_DIR"), "/sample"))
            .env_clear()
            .env("PORT", "0")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let mut sample = Self { child, lines: std::io::BufRead::lines(std::io::BufReader::new(stdout)), port: 0 };
        let line = sample.line();
        sample.port = line.rsplit(' ').next().and_then(|port| port.parse().ok()).unwrap_or(0);
        sample
    }

    /// The next line it logs; blocks until it comes or the process ends.
    fn line(&mut self) -> String {
        self.lines.next().map(|line| line.unwrap()).unwrap_or_default()
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    /// Sends a request as it stands and reads the answer to the end of the connection.
    async fn send(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0), body.to_owned())
    }

    fn terminate(&self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    }

    async fn ended(mut self) -> ExitStatus {
        let waiting = tokio::task::spawn_blocking(move || {
            let status = self.child.wait().unwrap();
            // Its output ends with it.
            while !self.line().is_empty() {}
            status
        });
        tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn it_answers_on_every_path() {
    let mut sample = Sample::start(&[("CONTAINER_APP_REVISION", "web--1<"), ("SAMPLE_HEALTH", "503")]);
    let (code, page) = sample.get("/").await;
    assert!(code == 200 && page.contains("<dt>Revision<dd>web--1&lt;"), "{page}");
    assert_eq!(sample.get("/healthz").await.0, 503);
    assert!(sample.get("/env").await.1.contains("SAMPLE_HEALTH=503\n"));
    assert_eq!(sample.get("/headers").await.1, "host: a\nconnection: close\n");
    assert_eq!(sample.get("/status?code=418").await.0, 418);
    assert_eq!(sample.get("/bytes?n=100000").await.1.len(), 100_000);
    assert_eq!(sample.get("/slow?ms=1").await.1, "done\n");
    assert_eq!(sample.get("/stream?n=2&ms=1").await.1, "2\r\n1\n\r\n2\r\n2\n\r\n0\r\n\r\n");
    assert_eq!(sample.get("/alloc?mb=2").await.1, "touched 512 pages\n");
    assert_eq!(sample.get("/absent").await.0, 404);
    assert_eq!(sample.get("/log?n=2&text=a%20b+c").await.1, "logged\n");
    assert_eq!((sample.line(), sample.line()), ("1 a b c".into(), "2 a b c".into()));
    assert_eq!(sample.send("rubbish\r\n\r\n").await.split(' ').nth(1), Some("400"));
    // Two requests on one connection, the second with a body in chunks and a trailer.
    let two = "HEAD / HTTP/1.1\r\n\r\nPOST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
               3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\ntrailer: 1\r\n\r\n";
    let answers = sample.send(two).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers}");
    assert!(answers.ends_with("3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"), "{answers}");
    let echoed = sample.send("POST /echo HTTP/1.1\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc").await;
    assert!(echoed.contains("content-length: 3\r\n") && echoed.ends_with("abc"), "{echoed}");
    sample.get("/exit?code=7").await;
    assert_eq!(sample.ended().await.code(), Some(7));
}

#[tokio::test]
async fn it_echoes_websocket_messages() {
    let sample = Sample::start(&[]);
    let (mut socket, _) = tokio_tungstenite::client_async("ws://sample/ws", sample.connect().await).await.unwrap();
    for length in [0, 125, 126, 70_000] {
        let message = Message::text("x".repeat(length));
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket.send(Message::Ping("p".into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("p".into()));
    // Stopping waits for it; the client's close ends both.
    sample.terminate();
    socket.send(Message::binary(vec![1, 2])).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::binary(vec![1, 2]));
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    assert_eq!(sample.ended().await.code(), Some(0));
}

#[tokio::test]
async fn it_finishes_open_requests_before_it_stops() {
    let mut sample = Sample::start(&[("SAMPLE_LOG", "1")]);
    let mut idle = sample.connect().await;
    let mut busy = sample.connect().await;
    busy.write_all(b"GET /slow?ms=300 HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(sample.line(), "GET /slow?…");
    sample.terminate();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, busy.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    assert_eq!(idle.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(sample.ended().await.code(), Some(0));
}

#[tokio::test]
async fn it_fails_as_asked() {
    let crashing = Sample::start(&[]);
    crashing.get("/crash").await;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&crashing.ended().await), Some(6));
    assert_eq!(Sample::start(&[("SAMPLE_EXIT", "3")]).ended().await.code(), Some(3));
    let deaf = Sample::start(&[("SAMPLE_NEVER_LISTEN", "1")]);
    assert_eq!(deaf.port, 0);
    deaf.terminate();
    assert_eq!(deaf.ended().await.code(), Some(0));
    let mut stubborn = Sample::start(&[("SAMPLE_IGNORE_TERM", "1"), ("SAMPLE_START_DELAY_MS", "10")]);
    stubborn.terminate();
    assert!(stubborn.line().contains("SIGTERM ignored"));
    assert_eq!(stubborn.get("/healthz").await.0, 200);
}

#[tokio::test]
async fn it_holds_many_connections() {
    let sample = Sample::start(&[]);
    let mut open = Vec::new();
    for _ in 0..800 {
        open.push(sample.connect().await);
    }
    for stream in &mut open {
        stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").await.unwrap();
    }
    for stream in &mut open {
        let mut start = [0; 15];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut start)).await.unwrap().unwrap();
        assert_eq!(&start, b"HTTP/1.1 200 OK");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", sample.child.id())).unwrap();
    let resident_kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|text| text.trim().trim_end_matches(" kB").parse().ok())
        .unwrap();
    assert!(resident_kib < 64 * 1024, "{resident_kib} KiB for 800 connections");
}
