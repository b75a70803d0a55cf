//! Calls to identity providers.
//!
//! **Invariant:** a call has a time, its answer a size, and only so many calls are under way; none follows a redirect.
//! **Invariant:** an error names the address without its query, and no secret.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::place::{encoded, query};

/// How long a call may take, the wait for its turn included.
const CALL_TIME: Duration = Duration::from_secs(10);
/// How long a connection may take to come up.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read at most.
const BODY_MAX: usize = 1 << 20;
/// Calls under way, over all providers.
const CALLS_MAX: usize = 64;

/// Why a provider's answer is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FetchError {
    /// No connection, no answer in time, or no JSON.
    #[error("{0}")]
    Unreachable(String),
    /// It answered that it will not.
    #[error("{place} answered {status} {code}")]
    Refused {
        /// Address without query.
        place: String,
        /// Of the answer.
        status: u16,
        /// `error` of its JSON, if there was one.
        code: String,
    },
}

/// An HTTP client for all providers.
pub(crate) struct Fetch {
    roots: Vec<CertificateDer<'static>>,
    client: OnceLock<Result<reqwest::Client, String>>,
    turns: Semaphore,
}

/// One call.
pub(crate) enum Call<'a> {
    /// `GET`, with an access token if there is one.
    Get { token: Option<&'a str> },
    /// A form, with client id and secret in `Authorization` if there are any.
    Post { form: &'a [(&'a str, &'a str)], login: Option<(&'a str, &'a str)> },
}

/// Names below `localhost` are this machine (RFC 6761), whatever its resolver thinks; all else is asked of the system.
struct Names;

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let host = name.as_str();
            if host == "localhost" || host.ends_with(".localhost") {
                let local: Addrs = Box::new(std::iter::once(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))));
                return Ok(local);
            }
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host, 0)).await?.collect();
            let all: Addrs = Box::new(found.into_iter());
            Ok(all)
        })
    }
}

impl Fetch {
    /// A client that trusts the system's authorities and these.
    pub(crate) fn new(roots: Vec<CertificateDer<'static>>) -> Self {
        Self { roots, client: OnceLock::new(), turns: Semaphore::new(CALLS_MAX) }
    }

    /// Made at the first call: reading the system's authorities takes a while, and most servers need none.
    fn client(&self) -> Result<&reqwest::Client, FetchError> {
        let made = self.client.get_or_init(|| make_client(&self.roots));
        made.as_ref().map_err(|error| FetchError::Unreachable(error.clone()))
    }

    /// The JSON of a provider's answer.
    ///
    /// # Errors
    /// There is none, or it says no.
    pub(crate) async fn json(&self, address: &str, call: Call<'_>) -> Result<Value, FetchError> {
        let url = Url::parse(address).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let url = url.ok_or_else(|| FetchError::Unreachable(format!("`{address:.200}` is no address of HTTP")))?;
        let place = place(&url);
        let called = tokio::time::timeout(CALL_TIME, self.call(url, &place, call)).await;
        called.unwrap_or_else(|_| {
            Err(FetchError::Unreachable(format!("{place} did not answer within {} s", CALL_TIME.as_secs())))
        })
    }

    async fn call(&self, url: Url, place: &str, call: Call<'_>) -> Result<Value, FetchError> {
        let unreachable = |what: String| FetchError::Unreachable(format!("{place}: {what}"));
        let _turn = self.turns.acquire().await.map_err(|_| unreachable("the server stops".to_owned()))?;
        let client = self.client()?;
        let request = match call {
            Call::Get { token: None } => client.get(url),
            Call::Get { token: Some(token) } => client.get(url).bearer_auth(token),
            Call::Post { form, login } => {
                let body = query(form);
                let request = client.post(url).header("content-type", "application/x-www-form-urlencoded").body(body);
                match login {
                    // RFC 6749, 2.3.1: both are encoded as in a form first
                    Some((user, password)) => request.basic_auth(encoded(user), Some(encoded(password))),
                    None => request,
                }
            }
        };
        let sent = request.header("accept", "application/json").send().await;
        let mut response = sent.map_err(|error| unreachable(cause(&error)))?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(|error| unreachable(cause(&error)))? {
            if body.len() + part.len() > BODY_MAX {
                return Err(unreachable(format!("its answer is longer than {BODY_MAX} bytes")));
            }
            body.extend_from_slice(&part);
        }
        let answer = serde_json::from_slice::<Value>(&body);
        if status.is_server_error() {
            return Err(unreachable(format!("it answered {}", status.as_u16())));
        }
        // GitHub tells errors with 200
        let code = answer.as_ref().ok().and_then(|answer| answer.get("error")).and_then(Value::as_str);
        if !status.is_success() || code.is_some() {
            let code = word(code.unwrap_or_default());
            return Err(FetchError::Refused { place: place.to_owned(), status: status.as_u16(), code });
        }
        answer.map_err(|_| unreachable("its answer is no JSON".to_owned()))
    }
}

/// An error code of OAuth 2.0 as it may be shown: what others wrote is cut to a word.
pub(crate) fn word(code: &str) -> String {
    code.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')).take(60).collect()
}

fn make_client(roots: &[CertificateDer<'static>]) -> Result<reqwest::Client, String> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    store.add_parsable_certificates(roots.iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS to identity providers cannot be set up: {error}"))?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .dns_resolver(Names)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIME)
        .timeout(CALL_TIME)
        .pool_idle_timeout(Duration::from_secs(60))
        .user_agent(concat!("cove/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| format!("calls to identity providers cannot be set up: {error}"))
}

/// An address without user, query and fragment.
fn place(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

/// The innermost cause, which says what happened; the outer ones repeat the address with its query.
fn cause(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(next) = inner.source() {
        inner = next;
    }
    if error.is_timeout() { "it did not answer in time".to_owned() } else { inner.to_string() }
}
