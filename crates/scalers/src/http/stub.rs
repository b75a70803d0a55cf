//! An HTTP server of a test, plain or under TLS: answers by a closure and keeps what it was asked.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{HeaderMap, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::task::AbortOnDropHandle;

use crate::source::{Context, ReadError, Source, Trigger};
use cove_scaling::source::Answer;

/// One request, as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Seen {
    /// The value of a header; empty when it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// The server; ends when dropped.
pub(crate) struct Stub {
    pub port: u16,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    _task: AbortOnDropHandle<()>,
}

type Handler = Arc<dyn Fn(&Seen) -> Response<String> + Send + Sync>;

impl Stub {
    pub(crate) async fn start(answer: impl Fn(&Seen) -> Response<String> + Send + Sync + 'static) -> Self {
        Self::listen(None, Arc::new(answer)).await
    }

    /// A server that always gives this.
    pub(crate) async fn giving(status: u16, body: impl Into<String>) -> Self {
        let body = body.into();
        Self::start(move |_| reply(status, &body)).await
    }

    pub(crate) async fn tls(
        config: ServerConfig,
        answer: impl Fn(&Seen) -> Response<String> + Send + Sync + 'static,
    ) -> Self {
        Self::listen(Some(TlsAcceptor::from(Arc::new(config))), Arc::new(answer)).await
    }

    async fn listen(tls: Option<TlsAcceptor>, handler: Handler) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, handler, log) = (tls.clone(), Arc::clone(&handler), Arc::clone(&log));
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(request, Arc::clone(&handler), Arc::clone(&log)));
                    let server = hyper::server::conn::http1::Builder::new();
                    // A client that goes away is no failure of the test.
                    if let Some(tls) = tls {
                        if let Ok(stream) = tls.accept(stream).await {
                            let _ = server.serve_connection(TokioIo::new(stream), service).await;
                        }
                    } else {
                        let _ = server.serve_connection(TokioIo::new(stream), service).await;
                    }
                });
            }
        });
        Self { port, seen, _task: AbortOnDropHandle::new(task) }
    }

    /// The address with a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The last request.
    pub(crate) fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().expect("it was asked").clone()
    }
}

/// An answer.
pub(crate) fn reply(status: u16, body: &str) -> Response<String> {
    Response::builder().status(status).body(body.to_owned()).unwrap()
}

async fn answer(
    request: hyper::Request<Incoming>,
    handler: Handler,
    log: Arc<Mutex<Vec<Seen>>>,
) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let seen = Seen {
        method: head.method.to_string(),
        target: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        headers: head.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    log.lock().unwrap().push(seen.clone());
    Ok(handler(&seen).map(|body| Full::new(bytes::Bytes::from(body))))
}

/// A rule of a test.
pub(crate) fn trigger(scaler: &str, parameters: &[(&str, &str)]) -> Trigger {
    Trigger {
        scaler: scaler.to_owned(),
        parameters: parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        metadata: BTreeMap::new(),
        identity: None,
        namespace: "group".to_owned(),
        name: "app--1".to_owned(),
    }
}

/// Surroundings without names and tokens.
pub(crate) fn context() -> Context {
    Context { hosts: Arc::new(|_| None), tokens: None }
}

/// All scalers, with the machine's clock.
pub(crate) fn scalers() -> crate::Scalers {
    crate::Scalers::new(cove_base::Clock::real())
}

/// Opens a rule and reads it once; an error of either as text.
pub(crate) async fn read(trigger: &Trigger) -> Result<Answer, String> {
    let source = scalers().open(trigger, &context()).map_err(|error| error.to_string())?;
    once(source.as_ref()).await.map_err(|error| error.to_string())
}

/// Reads once.
pub(crate) async fn once(source: &dyn Source) -> Result<Answer, ReadError> {
    tokio::time::timeout(crate::rig::DEADLINE, source.read()).await.expect("an answer or an error")
}

/// What a rule's reading comes to: value and activity, or the error.
pub(crate) async fn measured(trigger: &Trigger) -> Result<(f64, bool), String> {
    let answer = read(trigger).await?;
    let scaler = cove_scaling::source::Scaler::parse(&trigger.scaler, &|key| trigger.get(key).map(str::to_owned));
    let scaler = scaler.map_err(|error| error.to_string())?.expect("a known scaler");
    let metric = scaler.measure(&answer).map_err(|error| error.to_string())?;
    Ok((metric.value, metric.active))
}
