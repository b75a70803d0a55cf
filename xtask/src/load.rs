//! Clients that never stop asking: keep-alive connections through the ingress, every answer judged.
//!
//! A connection that the server closes between two requests is opened again and counted apart: HTTP allows it. A request that
//! was begun and got no 200 is a failure.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Longest that one answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Failures kept with their words; all are counted.
const FAILURES_KEPT: usize = 20;
/// What stands before and behind the revision's name in the sample's page.
const REVISION_MARKS: (&str, &str) = ("<dt>Revision<dd>", "<");

/// What the clients saw so far.
#[derive(Debug, Default)]
struct Seen {
    answered: AtomicU64,
    failed: AtomicU64,
    reconnected: AtomicU64,
    /// Microseconds that each client waits between two requests.
    pace_us: AtomicU64,
    stop: AtomicBool,
    failures: Mutex<Vec<String>>,
    revisions: Mutex<BTreeSet<String>>,
}

/// Clients at work.
#[derive(Debug)]
pub(crate) struct Load {
    seen: Arc<Seen>,
    clients: JoinSet<()>,
}

/// What the clients saw in all.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    /// The first failures in words.
    pub(crate) failures: Vec<String>,
    /// Connections that were closed between two requests.
    pub(crate) reconnected: u64,
    /// Revisions that answered.
    pub(crate) revisions: usize,
}

impl Seen {
    fn note_failure(&self, error: &anyhow::Error) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < FAILURES_KEPT {
            failures.push(format!("{error:#}"));
        }
    }
}

impl Load {
    /// Starts `connections` clients that ask `host` for `/`.
    pub(crate) fn start(ingress: SocketAddr, host: &str, connections: usize) -> Self {
        let seen = Arc::new(Seen::default());
        let mut clients = JoinSet::new();
        for _ in 0..connections {
            let (seen, host) = (Arc::clone(&seen), host.to_owned());
            clients.spawn(async move { client(&seen, ingress, &host).await });
        }
        Self { seen, clients }
    }

    /// Requests answered with 200 so far.
    pub(crate) fn answered(&self) -> u64 {
        self.seen.answered.load(Ordering::Relaxed)
    }

    /// From now on each client waits this long between two requests.
    pub(crate) fn pace(&self, wait: Duration) {
        self.seen.pace_us.store(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Lets every client finish its request and gives what they saw.
    pub(crate) async fn finish(mut self) -> anyhow::Result<Tally> {
        self.seen.stop.store(true, Ordering::Relaxed);
        while let Some(client) =
            tokio::time::timeout(ANSWER_LIMIT * 2, self.clients.join_next()).await.context("a client did not end")?
        {
            client.context("a client panicked")?;
        }
        let seen = &self.seen;
        Ok(Tally {
            answered: seen.answered.load(Ordering::Relaxed),
            failed: seen.failed.load(Ordering::Relaxed),
            failures: seen.failures.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            reconnected: seen.reconnected.load(Ordering::Relaxed),
            revisions: seen.revisions.lock().unwrap_or_else(PoisonError::into_inner).len(),
        })
    }
}

async fn client(seen: &Seen, ingress: SocketAddr, host: &str) {
    let mut open: Option<SendRequest<Empty<Bytes>>> = None;
    let mut revision = String::new();
    while !seen.stop.load(Ordering::Relaxed) {
        let pace = seen.pace_us.load(Ordering::Relaxed);
        if pace > 0 {
            tokio::time::sleep(Duration::from_micros(pace)).await;
        }
        if let Err(error) = request(seen, ingress, host, &mut open, &mut revision).await {
            open = None;
            seen.note_failure(&error);
            // a server that is away answers at once with a refusal: asking a million times says no more
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn request(
    seen: &Seen,
    ingress: SocketAddr,
    host: &str,
    open: &mut Option<SendRequest<Empty<Bytes>>>,
    revision: &mut String,
) -> anyhow::Result<()> {
    let usable = match open {
        Some(sender) => sender.ready().await.is_ok(),
        None => false,
    };
    if !usable {
        if open.is_some() {
            seen.reconnected.fetch_add(1, Ordering::Relaxed);
        }
        *open = Some(connect(ingress).await?);
    }
    let sender = open.as_mut().context("the connection was just opened")?;
    let request = hyper::Request::get("/").header("host", host).body(Empty::new())?;
    let answer = tokio::time::timeout(ANSWER_LIMIT, sender.send_request(request)).await.context("no answer in time")?;
    let answer = answer.context("no answer")?;
    let status = answer.status();
    let reason = answer.headers().get("x-cove-reason").cloned();
    let body =
        tokio::time::timeout(ANSWER_LIMIT, answer.into_body().collect()).await.context("the body did not end")?;
    let body = body.context("the body was cut")?.to_bytes();
    ensure!(status == 200, "answered {status} ({reason:?})");
    seen.answered.fetch_add(1, Ordering::Relaxed);
    let text = String::from_utf8_lossy(&body);
    let named = text.split_once(REVISION_MARKS.0).and_then(|(_, rest)| rest.split(REVISION_MARKS.1).next());
    if let Some(named) = named.filter(|named| *named != revision.as_str()) {
        named.clone_into(revision);
        seen.revisions.lock().unwrap_or_else(PoisonError::into_inner).insert(named.to_owned());
    }
    Ok(())
}

async fn connect(ingress: SocketAddr) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(ingress).await.context("failed to connect")?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.context("no HTTP/1.1 connection")?;
    tokio::spawn(async move {
        // how it ended is told to the request that was on it
        let _ended = connection.await;
    });
    Ok(sender)
}
