//! The load tools: wrk and h2load of Debian, and WebSocket clients of this process.

use std::{
    net::SocketAddr,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{net::TcpStream, process::Command, task::JoinSet, time::timeout};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

/// How a case reaches the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Http,
    Tls,
    Grpc,
    Tcp,
}

/// What makes the load.
#[derive(Clone, Copy, Debug)]
enum Tool {
    /// HTTP/1.1 without TLS.
    Wrk {
        path: &'static str,
        connections: u32,
    },
    H2load {
        path: &'static str,
        connections: u32,
        streams: u32,
        is_http1: bool,
        is_grpc: bool,
    },
    WebSocket {
        connections: u32,
    },
}

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) way: Way,
    tool: Tool,
}

const SMALL: &str = "/healthz";
const LARGE: &str = "/bytes?n=1048576";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "h1",
        what: "HTTP/1.1, 3 bytes, 64 kept connections",
        way: Way::Http,
        tool: Tool::Wrk { path: SMALL, connections: 64 },
    },
    Case {
        name: "h1-1mb",
        what: "HTTP/1.1, 1 MiB, 16 kept connections",
        way: Way::Http,
        tool: Tool::Wrk { path: LARGE, connections: 16 },
    },
    Case {
        name: "tls",
        what: "HTTP/1.1 over TLS, 3 bytes, 64 kept connections; the direct way has no TLS",
        way: Way::Tls,
        tool: Tool::H2load { path: SMALL, connections: 64, streams: 1, is_http1: true, is_grpc: false },
    },
    Case {
        name: "h2",
        what: "HTTP/2 over TLS, 3 bytes, 8 connections of 16 streams; the direct way is HTTP/1.1 without TLS",
        way: Way::Tls,
        tool: Tool::H2load { path: SMALL, connections: 8, streams: 16, is_http1: false, is_grpc: false },
    },
    Case {
        name: "grpc",
        what: "unary calls of gRPC's shape, 100 bytes each way, HTTP/2 without TLS on both sides, 8 connections of 16 streams",
        way: Way::Grpc,
        tool: Tool::H2load { path: "/echo", connections: 8, streams: 16, is_http1: false, is_grpc: true },
    },
    Case {
        name: "ws",
        what: "WebSocket, 100 bytes echoed, 32 connections",
        way: Way::Http,
        tool: Tool::WebSocket { connections: 32 },
    },
    Case {
        name: "tcp",
        what: "TCP passed through, carrying HTTP/1.1, 3 bytes, 64 kept connections",
        way: Way::Tcp,
        tool: Tool::Wrk { path: SMALL, connections: 64 },
    },
];

/// Where load goes.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) at: SocketAddr,
    pub(super) host: String,
    pub(super) is_tls: bool,
}

/// What a tool saw.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) done: u64,
    pub(super) failed: u64,
    /// Per second.
    pub(super) rate: f64,
    /// Microseconds, in order.
    latencies: Vec<u64>,
}

impl Measured {
    /// Microseconds; zero without any.
    pub(super) fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.latencies.len() * percent).div_ceil(100).max(1);
        #[expect(clippy::cast_precision_loss, reason = "microseconds")]
        self.latencies.get(rank - 1).map_or(0.0, |us| *us as f64)
    }
}

/// Whether the tools are there.
pub(super) fn check() -> anyhow::Result<()> {
    for (program, package) in [("wrk", "wrk"), ("h2load", "nghttp2-client"), ("openssl", "openssl")] {
        let found =
            std::process::Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        ensure!(found.is_ok(), "`{program}` is missing: apt-get install {package}");
    }
    Ok(())
}

/// As many requests as are answered.
pub(super) async fn saturate(case: &Case, target: &Target, time: Duration) -> anyhow::Result<Measured> {
    match case.tool {
        Tool::Wrk { path, connections } => wrk(target, path, connections, time).await,
        Tool::H2load { .. } => h2load(case, target, None, time).await,
        Tool::WebSocket { connections } => sockets(target, connections, None, time).await,
    }
}

/// So many requests a second.
pub(super) async fn paced(case: &Case, target: &Target, rate: f64, time: Duration) -> anyhow::Result<Measured> {
    match case.tool {
        Tool::Wrk { .. } | Tool::H2load { .. } => h2load(case, target, Some(rate), time).await,
        Tool::WebSocket { connections } => sockets(target, connections, Some(rate), time).await,
    }
}

async fn output(command: &mut Command, time: Duration) -> anyhow::Result<String> {
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let done = timeout(time * 2 + Duration::from_secs(20), running).await.context("the load tool did not end")??;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.success(), "{text}{}", String::from_utf8_lossy(&done.stderr));
    Ok(text)
}

async fn wrk(target: &Target, path: &str, connections: u32, time: Duration) -> anyhow::Result<Measured> {
    let mut command = Command::new("wrk");
    command.args(["-t1", &format!("-c{connections}"), &format!("-d{}s", time.as_secs())]);
    command.args(["-H", &format!("Host: {}", target.host), &format!("http://{}{path}", target.at)]);
    let text = output(&mut command, time).await?;
    let number_before = |mark: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.contains(mark))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let after = |mark: &str| text.lines().find_map(|line| line.trim().strip_prefix(mark).map(str::trim));
    let rate = after("Requests/sec:").and_then(|rate| rate.parse().ok()).with_context(|| text.clone())?;
    let refused: u64 = after("Non-2xx or 3xx responses:").and_then(|count| count.parse().ok()).unwrap_or(0);
    let errors: u64 = after("Socket errors:")
        .map_or(0, |line| line.split(',').filter_map(|part| part.split_whitespace().last()?.parse::<u64>().ok()).sum());
    let done = number_before(" requests in ").with_context(|| text.clone())?;
    Ok(Measured { done, failed: refused + errors, rate, latencies: Vec::new() })
}

async fn h2load(case: &Case, target: &Target, rate: Option<f64>, time: Duration) -> anyhow::Result<Measured> {
    let (path, connections, streams, is_http1, is_grpc) = match case.tool {
        Tool::H2load { path, connections, streams, is_http1, is_grpc } => {
            // the direct way of a case over TLS
            (path, connections, streams, is_http1 || (!is_grpc && !target.is_tls), is_grpc)
        }
        Tool::Wrk { path, connections } => (path, connections, 1, true, false),
        Tool::WebSocket { .. } => bail!("h2load speaks no WebSocket"),
    };
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let mut command = Command::new("h2load");
    command.args(["-t1", &format!("-c{connections}"), &format!("-D{}", time.as_secs())]);
    if is_http1 {
        // without streams a connection carries one request after the other
        command.arg("--h1");
    } else {
        command.arg(format!("-m{streams}"));
    }
    if let Some(rate) = rate {
        command.arg(format!("--rps={:.1}", rate / f64::from(connections)));
        command.arg(format!("--log-file={}", log.display()));
    }
    if is_grpc {
        let body = folder.path().join("body");
        let mut message = vec![0, 0, 0, 0, 95];
        message.resize(100, b'x');
        std::fs::write(&body, message)?;
        command.arg("-d").arg(&body).args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
    }
    let scheme = if target.is_tls { "https" } else { "http" };
    command.arg(format!("--connect-to={}", target.at));
    command.arg(format!("{scheme}://{}:{}{path}", target.host, target.at.port()));
    let text = output(&mut command, time).await?;
    let line = |mark: &str| text.lines().find_map(|line| line.strip_prefix(mark)).with_context(|| text.clone());
    let counts: Vec<u64> = line("status codes:")?.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let requests = line("requests:")?;
    let word_before = |mark: &str| -> Option<u64> {
        let words: Vec<&str> = requests.split_whitespace().collect();
        let at = words.iter().position(|word| word.trim_end_matches(',') == mark)?;
        words.get(at.checked_sub(1)?)?.parse().ok()
    };
    let broken = word_before("failed").unwrap_or(0) + word_before("errored").unwrap_or(0);
    let done = counts.first().copied().unwrap_or(0);
    let mut latencies = Vec::new();
    if rate.is_some() {
        for row in std::fs::read_to_string(&log)?.lines() {
            let mut columns = row.split('\t').skip(1);
            if columns.next() == Some("200") {
                latencies.extend(columns.next().and_then(|us| us.parse::<u64>().ok()));
            }
        }
        latencies.sort_unstable();
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
    let rate = done as f64 / time.as_secs_f64();
    Ok(Measured { done, failed: counts.iter().skip(1).sum::<u64>() + broken, rate, latencies })
}

type Socket = WebSocketStream<TcpStream>;

async fn sockets(target: &Target, connections: u32, rate: Option<f64>, time: Duration) -> anyhow::Result<Measured> {
    let mut open = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(target.at).await?;
        stream.set_nodelay(true)?;
        let (socket, _) = client_async(format!("ws://{}/ws", target.host), stream).await.context("no WebSocket")?;
        open.push(socket);
    }
    let begun = Instant::now();
    let pause = rate.map(|rate| Duration::from_secs_f64(f64::from(connections) / rate));
    let message = Arc::new("m".repeat(100));
    let mut tasks = JoinSet::new();
    for (number, socket) in open.into_iter().enumerate() {
        let message = Arc::clone(&message);
        let first = begun + pause.unwrap_or_default().mul_f64(number as f64 / f64::from(connections));
        tasks.spawn(echo(socket, message, first, pause, begun + time));
    }
    let mut all = Measured::default();
    while let Some(done) = timeout(time + Duration::from_secs(20), tasks.join_next()).await.context("no echo")? {
        let latencies = done??;
        all.done += latencies.len() as u64;
        all.latencies.extend(latencies);
    }
    all.latencies.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "a count of messages")]
    let rate = all.done as f64 / begun.elapsed().as_secs_f64();
    all.rate = rate;
    Ok(all)
}

/// Sends and waits for the same, again and again; microseconds of each, from when it should have been sent.
async fn echo(
    mut socket: Socket,
    message: Arc<String>,
    first: Instant,
    pause: Option<Duration>,
    end: Instant,
) -> anyhow::Result<Vec<u64>> {
    let mut latencies = Vec::new();
    let mut due = first;
    while Instant::now() < end {
        match pause {
            Some(_) => tokio::time::sleep_until(due.into()).await,
            None => due = Instant::now(),
        }
        socket.send(Message::text(message.as_str())).await?;
        match socket.next().await.context("it was closed")?? {
            Message::Text(text) if text.as_str() == message.as_str() => {}
            other => bail!("{other:?} is no echo"),
        }
        latencies.push(u64::try_from(due.elapsed().as_micros())?);
        due += pause.unwrap_or_default();
    }
    socket.close(None).await?;
    Ok(latencies)
}
