//! A load at work: those who send, those who stop them, and the report at the end.
//!
//! **Invariant:** each request that is begun is recorded once, also when the load is cut short.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    events::Events,
    grpc,
    http1::{self, Http1},
    http2::{self, Http2, Shared},
    loss::{Answer, Failure, LossKind, Remedy},
    plan::{Content, Pace, Plan, PlanError, Protocol},
    recorder::{Counts, Recorder},
    report::Report,
    schedule::Schedule,
    websocket::{self, WebSocket},
    wire::{Dialer, Wire},
};

/// Pause before a refused connection is tried again.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);
/// Most times that one request is sent again.
const REPEATS_MAX: u32 = 3;
/// Senders that an open loop begins with.
const SENDERS_FIRST: usize = 8;
/// How much later than its requests a load may end.
const END_SLACK: Duration = Duration::from_secs(5);
/// How long requests that are open get when a load is cut short.
const CUT_LIMIT: Duration = Duration::from_secs(1);

/// What all senders share.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) plan: Plan,
    dialer: Dialer,
    /// HTTP/1.1: the bytes of every request.
    pub(crate) request: Vec<u8>,
    pub(crate) http2_request: Request<()>,
    pub(crate) grpc_message: Bytes,
    /// WebSocket: the end of every message.
    pub(crate) text: String,
    schedule: Schedule,
    recorder: Recorder,
    /// Nothing more is sent.
    stop: CancellationToken,
    /// Nothing more is waited for.
    cut: CancellationToken,
}

/// One of those who send.
#[derive(Debug)]
enum Sender {
    Http1(Http1),
    Http2(Http2),
    WebSocket(Box<WebSocket>),
    Events(Http1),
    Grpc(Http2),
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    run: Arc<Run>,
    work: tokio::task::JoinHandle<Duration>,
}

/// What can be done to a running load, from anywhere.
#[derive(Clone, Debug)]
pub struct Controls {
    run: Arc<Run>,
}

/// Why a load did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The plan makes no sense.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A request cannot be made of it.
    #[error("the request cannot be written: {0}")]
    Request(#[from] http::Error),
    /// The server cannot be found, or the certificates to trust cannot be read.
    #[error("{0}")]
    Target(String),
    /// The system gives no thread.
    #[error("failed to start the thread that keeps the schedule")]
    Thread(#[from] std::io::Error),
}

impl Load {
    /// Checks the plan, looks the host up, and begins to send.
    ///
    /// # Errors
    /// When the plan makes no sense or the host has no address; a server that does not answer is part of the load.
    pub async fn start(plan: Plan) -> Result<Self, StartError> {
        plan.check()?;
        let dialer = Dialer::new(&plan).await.map_err(|failure| StartError::Target(failure.text))?;
        let rate = match plan.pace {
            Pace::Rate { per_second, .. } => Some(per_second),
            Pace::Connections(_) => None,
        };
        let stop = CancellationToken::new();
        let schedule = Schedule::new(rate, plan.requests, stop.clone());
        let http2_request = http2::request(&plan)?;
        let begun = Instant::now();
        let run = Arc::new(Run {
            request: http1::request(&plan),
            http2_request,
            grpc_message: grpc::framed(&plan.body),
            text: websocket::text(&plan.body),
            schedule,
            recorder: Recorder::new(begun),
            stop,
            cut: CancellationToken::new(),
            dialer,
            plan,
        });
        if run.schedule.is_open() {
            let paced = Arc::clone(&run);
            // ends within a blink of the stop
            thread::Builder::new().name("cove-load-pacer".to_owned()).spawn(move || {
                let end = paced.plan.duration.map(|duration| begun + duration);
                let unsent = paced.schedule.pace(begun, end);
                paced.recorder.lock().unsent = unsent;
            })?;
        }
        let work = tokio::spawn(supervise(Arc::clone(&run)));
        Ok(Self { run, work })
    }

    /// What can be done to it while it runs.
    #[must_use]
    pub fn controls(&self) -> Controls {
        Controls { run: Arc::clone(&self.run) }
    }

    /// Waits until it has ended.
    pub async fn finish(self) -> Report {
        // senders do not panic; if the supervisor did, what was recorded until then is still true
        let passed = self.work.await.unwrap_or_else(|_| self.run.recorder.begun().elapsed());
        Report::new(&self.run.plan, &self.run.recorder.lock(), passed)
    }
}

impl Controls {
    /// Sends nothing more; open requests are waited for.
    pub fn stop(&self) {
        self.run.stop.cancel();
    }

    /// Sends nothing more and waits a second at most for what is open; that is then `unfinished`.
    pub fn cut(&self) {
        self.run.stop.cancel();
        self.run.cut.cancel();
    }

    /// From now on so many times slower than planned; 1 is as planned.
    pub fn slow_down(&self, times: f64) {
        self.run.schedule.slow_down(times);
    }

    /// Something begins that the picture should show; gives its number.
    #[must_use]
    pub fn mark(&self, label: &str) -> usize {
        self.run.recorder.mark(label)
    }

    /// It ended.
    pub fn end_mark(&self, number: usize) {
        self.run.recorder.end_mark(number);
    }

    /// Requests so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.run.recorder.lock().counts
    }

    /// Waits until nothing more is sent.
    pub async fn stopped(&self) {
        self.run.stop.cancelled().await;
    }
}

/// Lets senders work until the end, and gives how long that took.
async fn supervise(run: Arc<Run>) -> Duration {
    let plan = &run.plan;
    let begun = run.recorder.begun();
    let senders_max = plan.open_max();
    let per_connection = if plan.protocol.is_http2() { plan.streams } else { 1 };
    let shared: Vec<Arc<Shared>> = (0..senders_max.div_ceil(per_connection)).map(|_| Arc::default()).collect();
    let mut senders = JoinSet::new();
    let mut started = 0;
    let mut spawn = |senders: &mut JoinSet<()>| {
        if started < senders_max {
            let shared = Arc::clone(&shared[started / per_connection]);
            senders.spawn(send(Arc::clone(&run), Sender::new(plan.protocol, shared)));
            started += 1;
        }
    };
    let first = if run.schedule.is_open() { SENDERS_FIRST.min(senders_max) } else { senders_max };
    (0..first).for_each(|_| spawn(&mut senders));
    let end = async {
        match plan.duration {
            Some(duration) => tokio::time::sleep_until((begun + duration).into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => run.stop.cancel(),
            () = run.stop.cancelled() => {}
            () = run.schedule.short() => {
                spawn(&mut senders);
                continue;
            }
            joined = senders.join_next() => {
                if joined.is_some() {
                    continue;
                }
                // all requests were sent
                run.stop.cancel();
            }
        }
        break;
    }
    let ended = async { while senders.join_next().await.is_some() {} };
    let cut = async {
        run.cut.cancelled().await;
        tokio::time::sleep(CUT_LIMIT).await;
    };
    tokio::select! {
        () = ended => {}
        () = cut => {}
        () = tokio::time::sleep(plan.timeout + END_SLACK) => {}
    }
    let passed = begun.elapsed();
    senders.shutdown().await;
    passed
}

async fn send(run: Arc<Run>, mut sender: Sender) {
    while let Some(due) = run.schedule.next().await {
        let sent = Instant::now();
        run.recorder.sent();
        match sender.request(&run).await {
            Ok(Some(answer)) => run.recorder.answered(due, sent, answer),
            Ok(None) => run.recorder.withdrawn(),
            Err(failure) => run.recorder.lost(due, &failure),
        }
        run.schedule.rest(sent.elapsed()).await;
    }
    sender.close().await;
}

impl Run {
    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Result<Wire, Failure> {
        let wire = self.dialer.connect().await?;
        self.recorder.connected();
        Ok(wire)
    }

    pub(crate) fn websocket_request(&self) -> Result<Request<()>, http::Error> {
        websocket::request(&self.plan)
    }

    fn judge(&self, answer: Answer) -> Result<Answer, Failure> {
        let is_right = match self.plan.status {
            Some(wanted) => answer.status == wanted,
            None => answer.status < 500,
        };
        if is_right { Ok(answer) } else { Err(Failure::status(answer.status, format!("answered {}", answer.status))) }
    }
}

impl Sender {
    fn new(protocol: Protocol, shared: Arc<Shared>) -> Self {
        match protocol {
            Protocol::Http1 => Self::Http1(Http1::default()),
            Protocol::Http2 => Self::Http2(Http2::new(shared)),
            Protocol::WebSocket => Self::WebSocket(Box::default()),
            Protocol::Events => Self::Events(Http1::default()),
            Protocol::Grpc => Self::Grpc(Http2::new(shared)),
        }
    }

    /// One request with all its tries, within its time; none when the end of the load came before anything else.
    async fn request(&mut self, run: &Run) -> Result<Option<Answer>, Failure> {
        let timeout = run.plan.timeout;
        let begun = Instant::now();
        let mut was_refused = false;
        let mut repeats = 0;
        loop {
            let failure = match self.within(run, timeout.saturating_sub(begun.elapsed())).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            match failure.remedy {
                Remedy::Refused if !run.plan.is_strict && begun.elapsed() + REFUSED_PAUSE < timeout => {
                    if !was_refused {
                        was_refused = true;
                        run.recorder.refused();
                    }
                    tokio::time::sleep(REFUSED_PAUSE).await;
                    // with less time than a pause left, a try would only hide that it was refused until now
                    if run.cut.is_cancelled() || begun.elapsed() + REFUSED_PAUSE > timeout {
                        return Err(failure);
                    }
                }
                Remedy::Repeat(reason) if !run.plan.is_strict && repeats < REPEATS_MAX => {
                    repeats += 1;
                    run.recorder.repeated(reason);
                }
                _ => return Err(failure),
            }
        }
    }

    /// One try. A stream of events is bounded by its silences, not as a whole.
    async fn within(&mut self, run: &Run, limit: Duration) -> Result<Option<Answer>, Failure> {
        if matches!(self, Self::Events(_)) {
            return self.attempt(run).await;
        }
        let tried = tokio::time::timeout(limit, self.attempt(run)).await;
        tried.unwrap_or_else(|_late| {
            let text = format!("no full answer within {} s", run.plan.timeout.as_secs_f64());
            Err(Failure::new(LossKind::Timeout, text))
        })
    }

    async fn attempt(&mut self, run: &Run) -> Result<Option<Answer>, Failure> {
        let mut body = Body::new(&run.plan);
        let answer = match self {
            Self::Http1(client) => {
                let answer = client.exchange(run, &mut |bytes| body.take(bytes)).await?;
                run.judge(answer).and_then(|answer| body.end().map(|()| answer))
            }
            Self::Http2(client) => {
                let sent = run.plan.body.clone();
                let heads = client.exchange(run, sent, &mut |bytes| body.take(bytes)).await?;
                run.judge(heads.answer).and_then(|answer| body.end().map(|()| answer))
            }
            Self::WebSocket(client) => client.exchange(run).await,
            Self::Events(client) => return stream_of_events(client, run).await,
            Self::Grpc(client) => grpc::call(client, run).await,
        };
        answer.map(Some)
    }

    async fn close(self) {
        match self {
            Self::Http1(mut client) | Self::Events(mut client) => client.close(),
            Self::Http2(client) | Self::Grpc(client) => client.close().await,
            Self::WebSocket(mut client) => client.close().await,
        }
    }
}

/// One stream to its end, or to the end of the load: what came until then was right.
async fn stream_of_events(client: &mut Http1, run: &Run) -> Result<Option<Answer>, Failure> {
    let mut events = Events::default();
    let ended = {
        let mut take = |bytes: &[u8]| events.take(bytes);
        tokio::select! {
            ended = client.exchange(run, &mut take) => Some(ended?),
            () = run.stop.cancelled() => None,
        }
    };
    let counted = Answer { status: 200, messages: events.count, at: events.first_at, ..Answer::default() };
    match ended {
        Some(answer) => {
            let answer = run.judge(Answer { bytes: answer.bytes, status: answer.status, ..counted })?;
            events.end(run.plan.messages)?;
            Ok(Some(answer))
        }
        None => Ok((counted.messages > 0).then_some(counted)),
    }
}

/// The body of an answer, compared to what it must be.
struct Body<'a> {
    /// What is still to come.
    rest: Option<&'a [u8]>,
    is_other: bool,
}

impl<'a> Body<'a> {
    fn new(plan: &'a Plan) -> Self {
        Self { rest: (plan.content == Content::Echo).then_some(&plan.body[..]), is_other: false }
    }

    #[expect(clippy::unnecessary_wraps, reason = "other bodies are refused as they come")]
    fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if let Some(rest) = self.rest {
            match rest.strip_prefix(bytes) {
                Some(rest) => self.rest = Some(rest),
                None => self.is_other = true,
            }
        }
        Ok(())
    }

    fn end(&self) -> Result<(), Failure> {
        match self.rest {
            Some(_) if self.is_other => Err(Failure::new(LossKind::Content, "the body is not what was sent")),
            Some(rest) if !rest.is_empty() => {
                Err(Failure::new(LossKind::Content, format!("the body lacks {} bytes of what was sent", rest.len())))
            }
            _ => Ok(()),
        }
    }
}
