//! One HTTP call, as every source that speaks HTTP makes it.
//!
//! **Invariant:** connections are shared by the rules of one environment that say the same of TLS: names of another
//! environment never lead to a connection of this one.
//! **Invariant:** a host that cannot be reached is tried by one rule at a time and rests in between ([`Pool`]).
//! **Invariant:** an answer is read up to [`BODY_MAX`]; at most [`LANES`] calls to a host are under way; redirects are
//! few and never lead from https to http.
//! **Invariant:** errors name the address without its query and without a user.

pub(crate) mod auth;
mod github;
mod metrics_api;
mod pipelines;
mod prometheus;
#[cfg(test)]
mod runners_tests;
#[cfg(test)]
pub(crate) mod stub;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::Url;
use reqwest::dns::{Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use crate::pool::Pool;
use crate::source::{Context, HostResolver, OpenError, ReadError, Source, Trigger};
use crate::tls::{Roots, TlsOptions};

/// Bytes of an answer that are read at most.
const BODY_MAX: usize = 8 << 20;
/// Calls to one host at the same time.
const LANES: usize = 64;
/// Redirects that are followed.
const REDIRECTS_MAX: usize = 5;
/// How long a connection may take to come up; below the read deadline, so that the rule learns which of the two it was.
const CONNECT_MAX: Duration = Duration::from_millis(2500);
/// How long a call may take, whoever waits for it.
const CALL_MAX: Duration = Duration::from_secs(60);
/// How long an idle connection is kept: rules are polled every 30 s.
const IDLE_MAX: Duration = Duration::from_secs(90);

/// The source of a rule that is read over HTTP; `None` when its type is none of these.
///
/// # Errors
/// Metadata that it cannot use.
pub(crate) fn open(http: &Http, trigger: &Trigger, context: &Context) -> Option<Result<Arc<dyn Source>, OpenError>> {
    fn shared<S: Source + 'static>(source: Result<S, OpenError>) -> Result<Arc<dyn Source>, OpenError> {
        source.map(|source| Arc::new(source) as Arc<dyn Source>)
    }
    Some(match trigger.scaler.as_str() {
        "azure-pipelines" => shared(pipelines::open(http, trigger, context)),
        "github-runner" => shared(github::open(http, trigger, context)),
        "metrics-api" => shared(metrics_api::open(http, trigger, context)),
        "prometheus" => shared(prometheus::open(http, trigger, context)),
        _ => shared(table::open(http, trigger, context)?),
    })
}

/// All HTTP clients of the scalers.
#[derive(Debug, Default)]
pub(crate) struct Http {
    roots: Roots,
    clients: Mutex<HashMap<ClientKey, Weak<Inner>>>,
}

/// The environment by the address of its resolver, which the client keeps alive.
type ClientKey = (TlsOptions, usize);

/// A client with its connections; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Client(Arc<Inner>);

struct Inner {
    client: reqwest::Client,
    hosts: HostResolver,
    lanes: Pool<(String, u16), Arc<Semaphore>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// One call.
#[derive(Clone)]
pub(crate) struct Call {
    /// GET unless said otherwise.
    pub method: Method,
    /// Where.
    pub url: Url,
    /// What goes with it.
    pub headers: HeaderMap,
    /// Empty for none.
    pub body: Bytes,
    /// Of the whole call, where the rule says one.
    pub timeout: Option<Duration>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Of the last redirect.
    pub status: StatusCode,
    /// Of the last redirect.
    pub headers: HeaderMap,
    /// At most [`BODY_MAX`].
    pub body: Bytes,
}

impl Http {
    /// Without any client yet.
    pub(crate) fn new(roots: Roots) -> Self {
        Self { roots, clients: Mutex::default() }
    }

    /// Whom all clients trust beside the system's authorities.
    pub(crate) fn roots(&self) -> &Roots {
        &self.roots
    }

    /// The client of all rules of this environment that say the same of TLS.
    ///
    /// # Errors
    /// TLS settings that cannot be used.
    pub(crate) fn client(&self, tls: &TlsOptions, context: &Context) -> Result<Client, OpenError> {
        let key = (tls.clone(), Arc::as_ptr(&context.hosts).cast::<()>().addr());
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inner) = clients.get(&key).and_then(Weak::upgrade) {
            return Ok(Client(inner));
        }
        clients.retain(|_, client| client.strong_count() > 0);
        let mut config = tls.client_config(&self.roots)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .dns_resolver(Names(Arc::clone(&context.hosts)))
            .redirect(reqwest::redirect::Policy::custom(follow))
            .no_proxy()
            .connect_timeout(CONNECT_MAX)
            .pool_idle_timeout(IDLE_MAX)
            .user_agent(concat!("cove/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| OpenError::metadata(format!("HTTP cannot be set up: {error}")))?;
        let inner = Arc::new(Inner { client, hosts: Arc::clone(&context.hosts), lanes: Pool::default() });
        clients.insert(key, Arc::downgrade(&inner));
        Ok(Client(inner))
    }
}

impl Client {
    /// Makes a call, whatever its status.
    ///
    /// # Errors
    /// The host cannot be reached or does not speak HTTP.
    pub(crate) async fn send(&self, call: Call) -> Result<Reply, ReadError> {
        let place = place(&call.url);
        let host = call.url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let key = (host, call.url.port_or_known_default().unwrap_or(80));
        // Whether anybody listens is asked apart from the call, so that a slow answer never counts as a dead host.
        let reach = || async {
            reach(&self.0.hosts, &key.0, key.1).await.map_err(|why| ReadError::new(format!("{place}: {why}")))?;
            Ok(Arc::new(Semaphore::new(LANES)))
        };
        let lanes = self.0.lanes.get(&key, reach).await?;
        let _lane =
            lanes.acquire().await.map_err(|_| ReadError::new(format!("{place}: its connections are closed")))?;
        let timeout = call.timeout.unwrap_or(CALL_MAX);
        let request = self.0.client.request(call.method, call.url).headers(call.headers).body(call.body);
        match request.timeout(timeout).send().await {
            Ok(response) => read(response, &place).await,
            Err(error) => {
                if error.is_connect() {
                    self.0.lanes.forget(&key).await;
                }
                Err(ReadError::new(format!("{place}: {}", cause(&error))))
            }
        }
    }

    /// Makes a call whose answer must be a success.
    ///
    /// # Errors
    /// As [`Client::send`], and any other status.
    pub(crate) async fn fetch(&self, call: Call) -> Result<Reply, ReadError> {
        let place = place(&call.url);
        let reply = self.send(call).await?;
        if reply.status.is_success() { Ok(reply) } else { Err(refused(&place, reply.status)) }
    }
}

impl Call {
    /// A GET of `url`.
    pub(crate) fn get(url: Url) -> Self {
        Self { method: Method::GET, url, headers: HeaderMap::new(), body: Bytes::new(), timeout: None }
    }

    /// A POST of `body`.
    pub(crate) fn post(url: Url, media_type: &'static str, body: impl Into<Bytes>) -> Self {
        let mut call = Self { method: Method::POST, body: body.into(), ..Self::get(url) };
        call.headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        call
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers and queries may hold secrets.
        f.debug_struct("Call").field("method", &self.method).field("place", &place(&self.url)).finish_non_exhaustive()
    }
}

impl Reply {
    /// The body as text; what is no UTF-8 is replaced.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn json(&self, place: &str) -> Result<serde_json::Value, ReadError> {
        serde_json::from_slice(&self.body).map_err(|error| ReadError::new(format!("{place} gave no JSON: {error}")))
    }
}

/// An address as errors show it: without user, query and fragment.
pub(crate) fn place(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

/// The error of a status that is no success.
pub(crate) fn refused(place: &str, status: StatusCode) -> ReadError {
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; look at the rule's credentials",
        StatusCode::NOT_FOUND => "; there is no such thing there",
        StatusCode::TOO_MANY_REQUESTS => "; it is asked too often",
        _ => "",
    };
    ReadError::new(format!("{place} answered {status}{hint}"))
}

/// Reads `key` of a rule as an address of HTTP; required.
///
/// # Errors
/// It is missing or no such address.
pub(crate) fn address(trigger: &Trigger, key: &str) -> Result<Url, OpenError> {
    let text = trigger.get(key).ok_or_else(|| OpenError::metadata(format!("{key} is missing")))?;
    parse_address(key, text)
}

/// Reads a text as an address of HTTP.
///
/// # Errors
/// It is none.
pub(crate) fn parse_address(key: &str, text: &str) -> Result<Url, OpenError> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    // The text may hold a password: it is not shown.
    url.ok_or_else(|| OpenError::metadata(format!("{key} is no address such as http://host:port/path")))
}

/// `base` with more path segments; each is one segment, whatever is in it.
pub(crate) fn below(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

/// A header of a rule.
///
/// # Errors
/// A name or value that no header can have.
pub(crate) fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), OpenError> {
    let wrong = |what: &str| {
        OpenError::metadata(format!("`{name}` is no header: its {what} has a character that is not allowed"))
    };
    let parsed = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| wrong("name"))?;
    let mut value = HeaderValue::from_str(value.trim()).map_err(|_| wrong("value"))?;
    value.set_sensitive(true);
    Ok((parsed, value))
}

/// `a=b,c=d` of a rule, in its order.
///
/// # Errors
/// A part without `=`.
pub(crate) fn pairs(trigger: &Trigger, key: &str) -> Result<Vec<(String, String)>, OpenError> {
    let text = trigger.get(key).unwrap_or_default();
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let pair = |part: &str| {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| OpenError::metadata(format!("{key} must be name=value pairs between commas")))?;
        Ok((name.trim().to_owned(), value.trim().to_owned()))
    };
    parts.map(pair).collect()
}

/// `true` or `false` of a rule.
///
/// # Errors
/// Another word.
pub(crate) fn flag(trigger: &Trigger, key: &str, default: bool) -> Result<bool, OpenError> {
    match trigger.get(key).map(str::to_ascii_lowercase).as_deref() {
        None => Ok(default),
        Some("true" | "1" | "t") => Ok(true),
        Some("false" | "0" | "f") => Ok(false),
        Some(_) => Err(OpenError::metadata(format!("{key} must be true or false"))),
    }
}

/// `ca`, `cert`, `key`, `keyPassword` and `unsafeSsl` of a rule.
///
/// # Errors
/// What is no PEM.
pub(crate) fn tls(trigger: &Trigger) -> Result<TlsOptions, OpenError> {
    TlsOptions::of(trigger, flag(trigger, "unsafeSsl", false)?)
}

/// Required text of a rule.
///
/// # Errors
/// It is missing.
pub(crate) fn required<'a>(trigger: &'a Trigger, key: &str) -> Result<&'a str, OpenError> {
    trigger.get(key).ok_or_else(|| OpenError::metadata(format!("{key} is missing")))
}

/// `timeout` of a rule: milliseconds, or a number with a unit (`500ms`, `2s`); at most [`CALL_MAX`].
///
/// # Errors
/// Something else.
pub(crate) fn timeout(trigger: &Trigger) -> Result<Option<Duration>, OpenError> {
    let Some(text) = trigger.get("timeout") else { return Ok(None) };
    let (number, unit_ms) = match text.strip_suffix("ms") {
        Some(number) => (number, 1.0),
        None => text.strip_suffix('s').map_or((text, 1.0), |number| (number, 1000.0)),
    };
    let given = number.trim().parse::<f64>().ok().map(|number| number * unit_ms);
    match given.filter(|ms| *ms >= 1.0 && ms.is_finite()) {
        Some(ms) => Ok(Some(Duration::from_secs_f64(ms / 1000.0).min(CALL_MAX))),
        None => Err(OpenError::metadata(format!("timeout is `{text}`; expected milliseconds, or a time such as 2s"))),
    }
}

async fn read(mut response: reqwest::Response, place: &str) -> Result<Reply, ReadError> {
    let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(Reply { status, headers, body: body.into() }),
            Ok(Some(chunk)) if body.len() + chunk.len() <= BODY_MAX => body.extend_from_slice(&chunk),
            Ok(Some(_)) => return Err(ReadError::new(format!("{place} gave more than {} MiB", BODY_MAX >> 20))),
            Err(error) => return Err(ReadError::new(format!("{place}: {}", cause(&error)))),
        }
    }
}

/// Whether anybody listens there.
async fn reach(hosts: &HostResolver, host: &str, port: u16) -> Result<(), String> {
    let connect = async {
        let addresses = resolve(hosts, host, port).await?;
        let mut why = format!("`{host}` has no address");
        for address in addresses {
            match tokio::net::TcpStream::connect(address).await {
                Ok(_) => return Ok(()),
                Err(error) => why = format!("no connection: {error}"),
            }
        }
        Err(why)
    };
    let late = |_| Err(format!("no connection within {} ms", CONNECT_MAX.as_millis()));
    tokio::time::timeout(CONNECT_MAX, connect).await.unwrap_or_else(late)
}

async fn resolve(hosts: &HostResolver, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    if let Some(address) = hosts(host) {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let found = tokio::net::lookup_host((host, port)).await;
    found.map(Iterator::collect).map_err(|error| format!("the name `{host}` leads nowhere: {error}"))
}

/// Names as seen from inside an environment.
struct Names(HostResolver);

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let hosts = Arc::clone(&self.0);
        Box::pin(async move {
            // Port 0 stands for the one of the address.
            let found = resolve(&hosts, name.as_str(), 0).await?;
            Ok(Box::new(found.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

fn follow(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let was_https = attempt.previous().last().is_some_and(|before| before.scheme() == "https");
    if attempt.previous().len() > REDIRECTS_MAX {
        attempt.error(format!("more than {REDIRECTS_MAX} redirects"))
    } else if was_https && attempt.url().scheme() != "https" {
        attempt.error("a redirect from https to http is not followed")
    } else {
        attempt.follow()
    }
}

/// The innermost reason of an error, which never holds the address.
fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
