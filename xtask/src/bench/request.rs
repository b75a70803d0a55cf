//! One request on a connection of its own, timed to the first byte of the response.
//!
//! Blocking and without a library, so that both sides of a comparison, ingress and bare program, are asked by the same few
//! system calls.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

/// Longest that one answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Longest that a program may take until it listens.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

/// Connects, asks for `/`, and gives the time from before the connection to the first byte of a 200.
pub(crate) fn time_to_first_byte(address: SocketAddr, host: &str) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let stream = TcpStream::connect(address).context("failed to connect")?;
    ask(stream, host, begun)
}

/// As [`time_to_first_byte`], for a program that does not listen yet: tries again at once until it does.
pub(crate) fn first_byte_of_new(address: SocketAddr, begun: Instant) -> anyhow::Result<Duration> {
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return ask(stream, "localhost", begun),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && begun.elapsed() < LISTEN_LIMIT => {
                std::thread::yield_now();
            }
            Err(error) => bail!("the program did not listen: {error}"),
        }
    }
}

/// Waits until nothing else is runnable on this machine; `false` when `limit` passed before.
pub(crate) async fn quiet(limit: Duration) -> bool {
    let begun = Instant::now();
    let mut in_a_row = 0;
    while in_a_row < 2 {
        if begun.elapsed() > limit {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        // the fourth field is `runnable/all`; this thread is one of them
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let runnable = load.split(' ').nth(3).and_then(|field| field.split('/').next()?.parse::<u32>().ok());
        in_a_row = if runnable.is_some_and(|count| count <= 1) { in_a_row + 1 } else { 0 };
    }
    true
}

fn ask(mut stream: TcpStream, host: &str, begun: Instant) -> anyhow::Result<Duration> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("failed to send the request")?;
    let mut head = [0; 4096];
    let read = stream.read(&mut head).context("no answer")?;
    let passed = begun.elapsed();
    let head = String::from_utf8_lossy(&head[..read]);
    ensure!(head.starts_with("HTTP/1.1 200"), "answered `{}`", head.lines().next().unwrap_or_default());
    // the rest is read away, so that the other side sees a client that is satisfied
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).context("the answer was cut")?;
    Ok(passed)
}
