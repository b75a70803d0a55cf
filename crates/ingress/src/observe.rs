//! One request as the ingress sees it, from its head to its last byte; at its end the counts of its revision and its row of
//! the access log.
//!
//! What is seen is noted where it happens. Who still has something to do with the request holds a [`Seen`]: the future that
//! answers it, the answer's body, the ticket, a tunnel. The last one to let go ends it.
//!
//! **Invariant:** each request is counted once. **Invariant:** nothing here waits; the lock is the request's own.

mod red;
mod sketch;
mod tally;

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cove_traffic::{AccessRecord, Ending};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version, header};
use jiff::Timestamp;
use tokio::sync::mpsc;

pub(crate) use self::red::{Ended, Red};
use crate::{
    access::{AccessLog, AccessLogConfig, cut},
    answer::{REASON_HEADER, Refusal},
    body::ResponseBody,
    config::IngressConfig,
    gate::{Gate, Replica},
    headers,
    proxy::Client,
    routes::AppGates,
};

/// Longest host of a row.
const HOST_MAX: usize = 255;
/// Longest path of a row.
const PATH_MAX: usize = 2048;
/// Longest other text of a row.
const TEXT_MAX: usize = 512;

/// What all requests of one ingress are noted by.
pub(crate) struct Observer {
    log: AccessLog,
    reasons: tally::Tally,
    began: Instant,
    connections: AtomicU64,
}

impl Observer {
    pub(crate) fn new(config: AccessLogConfig) -> Arc<Self> {
        Arc::new(Self {
            log: AccessLog::new(config),
            reasons: tally::Tally::default(),
            began: Instant::now(),
            connections: AtomicU64::new(0),
        })
    }

    /// A number for a connection.
    pub(crate) fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Seconds since the ingress began.
    pub(crate) fn now_secs(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    /// Rows of finished requests from now on; `None` when somebody has them already.
    pub(crate) fn rows(&self) -> Option<mpsc::Receiver<AccessRecord>> {
        self.log.reader()
    }

    /// Requests that have no row because there were too many.
    pub(crate) fn left_out_total(&self) -> u64 {
        self.log.left_out_total()
    }

    /// How often Cove answered itself, by reason.
    pub(crate) fn reasons(&self) -> Vec<(String, u64)> {
        self.reasons.read()
    }

    /// Counts an answer to what was no request.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.reasons.count(refusal.status().1);
    }

    /// Begins with a request whose head has been read, and gives it its ids.
    pub(crate) fn begin<B>(
        self: &Arc<Self>,
        client: &Client,
        request: &mut Request<B>,
        config: &IngressConfig,
    ) -> Arc<Seen> {
        headers::identify(request.headers_mut());
        let fields = request.headers();
        let head = self.log.is_read().then(|| Head {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            host: fields.get(header::HOST).cloned(),
            user_agent: fields.get(header::USER_AGENT).cloned(),
            traceparent: fields.get(headers::TRACEPARENT).cloned(),
            client: headers::client_address(fields, client.peer, config),
            connection: client.connection,
        });
        Arc::new(Seen {
            observer: Arc::clone(self),
            started_at: Timestamp::now(),
            started: Instant::now(),
            request_id: fields.get(headers::X_REQUEST_ID).cloned(),
            head,
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            facts: Mutex::default(),
        })
    }
}

/// What the request said of itself; texts share the memory of the request.
struct Head {
    method: Method,
    uri: Uri,
    version: Version,
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    traceparent: Option<HeaderValue>,
    client: IpAddr,
    connection: u64,
}

/// What became of it.
#[derive(Default)]
struct Facts {
    app: Option<Arc<AppGates>>,
    gate: Option<Arc<Gate>>,
    replica: Option<Arc<Replica>>,
    forwarded_for: Option<HeaderValue>,
    attempts: u32,
    wait: Option<Duration>,
    head: Option<Duration>,
    /// 0 until there is an answer.
    status: u16,
    reason: Option<HeaderValue>,
    is_upgraded: bool,
    ending: Option<Ending>,
}

/// One request.
pub(crate) struct Seen {
    observer: Arc<Observer>,
    started_at: Timestamp,
    started: Instant,
    request_id: Option<HeaderValue>,
    head: Option<Head>,
    received: AtomicU64,
    sent: AtomicU64,
    facts: Mutex<Facts>,
}

impl Seen {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When its head had been read.
    pub(crate) fn started_at(&self) -> Timestamp {
        self.started_at
    }

    /// The app of its host.
    pub(crate) fn found(&self, app: &Arc<AppGates>) {
        self.facts().app = Some(Arc::clone(app));
    }

    /// The revision that it counts for.
    pub(crate) fn admitted(&self, gate: &Arc<Gate>) {
        self.facts().gate = Some(Arc::clone(gate));
    }

    /// It is sent to a replica, for the first time or again.
    pub(crate) fn tried(&self, replica: &Arc<Replica>) {
        let waited = self.started.elapsed();
        let mut facts = self.facts();
        facts.attempts += 1;
        facts.wait.get_or_insert(waited);
        facts.replica = Some(Arc::clone(replica));
    }

    /// The fields that the replica gets.
    pub(crate) fn forwarded(&self, fields: &HeaderMap) {
        if self.head.is_some() {
            self.facts().forwarded_for = fields.get(headers::X_FORWARDED_FOR).cloned();
        }
    }

    /// Bytes of its body, or from the client of what it was upgraded to.
    pub(crate) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of the answer's body, or to the client of what it was upgraded to.
    pub(crate) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// From its answer on it is no HTTP any more.
    pub(crate) fn upgraded(&self) {
        self.facts().is_upgraded = true;
    }

    /// The answer's body is over; the first word counts.
    pub(crate) fn over(&self, ending: Ending) {
        self.facts().ending.get_or_insert(ending);
    }

    /// The answer as the client gets it; from here on its body holds what is seen.
    pub(crate) fn answered(self: Arc<Self>, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
        let elapsed = self.started.elapsed();
        let reason = response.headers().get(REASON_HEADER).cloned();
        if reason.is_some()
            && let Some(id) = &self.request_id
        {
            // who asks why can name the request
            response.headers_mut().insert(headers::X_REQUEST_ID, id.clone());
        }
        {
            let mut facts = self.facts();
            facts.head = Some(elapsed);
            facts.status = response.status().as_u16();
            if reason.as_ref().is_some_and(|reason| *reason == Refusal::ClientGone.status().1) {
                (facts.status, facts.ending) = (0, Some(Ending::ClientLeft));
            }
            facts.reason = reason;
        }
        response.map(|body| body.observed(self))
    }

    fn record(&self, head: &Head, facts: &Facts, ending: Ending, duration: Duration) -> AccessRecord {
        let text = |value: Option<&HeaderValue>, max| value.map(|value| cut(value.as_bytes(), max)).unwrap_or_default();
        let (path, query) = (head.uri.path(), head.uri.query().filter(|_| self.observer.log.config.has_query));
        let path = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        let authority = head.uri.authority().map(|authority| cut(authority.as_str().as_bytes(), HOST_MAX));
        let route = facts.app.as_ref().map(|app| &app.route);
        let replica = facts.replica.as_ref();
        let trace = head.traceparent.as_ref().and_then(|value| value.as_bytes().get(3..35));
        AccessRecord {
            started_at: self.started_at,
            environment: route.map(|route| route.environment.to_string()).unwrap_or_default(),
            app: route.map(|route| route.app.to_string()).unwrap_or_default(),
            revision: facts.gate.as_ref().map(|gate| gate.key().name.to_string()).unwrap_or_default(),
            replica: replica.map(|replica| replica.name.to_string()).unwrap_or_default(),
            upstream: replica.map(|replica| replica.address),
            attempts: facts.attempts,
            method: cut(head.method.as_str().as_bytes(), TEXT_MAX),
            authority: authority.unwrap_or_else(|| text(head.host.as_ref(), HOST_MAX)),
            path: cut(path.as_bytes(), PATH_MAX),
            protocol: protocol(head.version).to_owned(),
            user_agent: text(head.user_agent.as_ref(), TEXT_MAX),
            forwarded_for: facts
                .forwarded_for
                .as_ref()
                .map_or_else(|| head.client.to_string(), |chain| text(Some(chain), TEXT_MAX)),
            client: head.client,
            connection: head.connection,
            status: facts.status,
            reason: text(facts.reason.as_ref(), TEXT_MAX),
            ending,
            is_upgraded: facts.is_upgraded,
            received_bytes: self.received.load(Ordering::Relaxed),
            sent_bytes: self.sent.load(Ordering::Relaxed),
            duration_us: micros(duration),
            wait_us: facts.wait.map(micros),
            head_us: facts.head.map(micros),
            request_id: text(self.request_id.as_ref(), TEXT_MAX),
            trace_id: trace.map(|trace| cut(trace, TEXT_MAX)).unwrap_or_default(),
            left_out: 0,
        }
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        let facts = std::mem::take(self.facts.get_mut().unwrap_or_else(PoisonError::into_inner));
        let (duration, now_secs) = (self.started.elapsed(), self.observer.now_secs());
        // a body that is dropped before its end has lost its client; a tunnel ends as its two sides like
        let ending = facts.ending.unwrap_or(if facts.is_upgraded { Ending::Complete } else { Ending::ClientLeft });
        if let Some(gate) = &facts.gate {
            gate.ended(&Ended {
                duration_us: micros(duration),
                now_secs,
                ending,
                is_upgraded: facts.is_upgraded,
                received_bytes: *self.received.get_mut(),
                sent_bytes: *self.sent.get_mut(),
            });
        }
        if let Some(reason) = &facts.reason {
            self.observer.reasons.count(reason.to_str().unwrap_or_default());
        }
        let Some(head) = &self.head else { return };
        let wish = facts.app.as_ref().and_then(|app| app.policy.access_log);
        if self.observer.log.wants(wish, (facts.status, ending), now_secs) {
            self.observer.log.keep(self.record(head, &facts, ending, duration));
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests;
