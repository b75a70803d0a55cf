//! `etcd`: the number stored under a key, over the JSON form of etcd's API; a change is told at once.
//!
//! Several endpoints are tried in turn, beginning with the one that answered last. With `username` the server gives a token,
//! which is kept until it is refused.
//!
//! **Invariant:** a key that does not exist, or holds no number, fails the reading, as in KEDA.
//! **Invariant:** the watch ends with the rule; it only says that something changed, the number is read as always.

#[cfg(test)]
mod tests;
mod watching;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cove_scaling::source::{Answer, number_of};
use reqwest::Url;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::http::{self, Call, Client, Http, Reply};
use crate::keys;
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};
use crate::tls::{Roots, TlsOptions};

/// Seconds between etcd's signs of life on a watch, default of the rule.
const PROGRESS_SECONDS: u32 = 600;

/// One rule's key.
#[derive(Debug)]
pub(crate) struct Etcd {
    link: Arc<Link>,
    pushes: watch::Sender<u64>,
    /// Begun when somebody first wants to know.
    watching: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// How the key is reached.
struct Link {
    client: Client,
    context: Context,
    endpoints: Vec<Url>,
    /// The endpoint that is tried first.
    first: AtomicUsize,
    key: String,
    login: Option<(String, String)>,
    token: Mutex<Option<String>>,
    tls: Option<TlsOptions>,
    roots: Roots,
    /// Without a sign of life for twice this long, another endpoint is watched.
    progress: Duration,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("endpoints", &self.endpoints.len()).field("key", &self.key).finish_non_exhaustive()
    }
}

/// Reads endpoints and key.
///
/// # Errors
/// Metadata that cannot be used.
pub(crate) fn open(http: &Http, trigger: &Trigger, context: &Context) -> Result<Etcd, OpenError> {
    let tls = keys::tls_switch(trigger, "tls")?.then(|| TlsOptions::of(trigger, false)).transpose()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let names = keys::list(keys::required(trigger, "endpoints")?);
    let endpoints: Result<Vec<_>, _> = names
        .into_iter()
        .map(|name| if name.contains("://") { name.to_owned() } else { format!("{scheme}://{name}") })
        .map(|text| http::parse_address("endpoints", &text))
        .collect();
    let secret = |key: &str| trigger.parameters.get(key).filter(|value| !value.is_empty()).cloned();
    let login = match (secret("username"), secret("password")) {
        (Some(username), Some(password)) => Some((username, password)),
        (None, None) => None,
        _ => return Err(OpenError::metadata("username and password belong together; one of them is missing")),
    };
    let progress = keys::whole(trigger, "watchProgressNotifyInterval", PROGRESS_SECONDS)?;
    if progress == 0 {
        return Err(OpenError::metadata("watchProgressNotifyInterval is 0; expected seconds above 0"));
    }
    let link = Link {
        client: http.client(&tls.clone().unwrap_or_default(), context)?,
        context: context.clone(),
        endpoints: endpoints?,
        first: AtomicUsize::new(0),
        key: keys::required(trigger, "watchKey")?.to_owned(),
        login,
        token: Mutex::new(None),
        tls,
        roots: http.roots().clone(),
        progress: Duration::from_secs(progress.into()),
    };
    Ok(Etcd { link: Arc::new(link), pushes: watch::Sender::new(0), watching: Mutex::new(None) })
}

impl Source for Etcd {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(self.link.answer())
    }

    fn pushes(&self) -> Option<watch::Receiver<u64>> {
        let mut watching = self.watching.lock().unwrap_or_else(PoisonError::into_inner);
        if watching.is_none() {
            let task = watching::watch(Arc::clone(&self.link), self.pushes.clone());
            *watching = Some(AbortOnDropHandle::new(tokio::spawn(task)));
        }
        Some(self.pushes.subscribe())
    }
}

impl Link {
    async fn answer(&self) -> Result<Answer, ReadError> {
        let body = json!({ "key": BASE64_STANDARD.encode(&self.key) });
        let reply = self.ask("kv/range", &body).await?;
        let key = &self.key;
        let value = reply["kvs"][0].as_object().ok_or_else(|| ReadError::new(format!("key `{key}` does not exist")))?;
        // An empty value is left out of the answer.
        let value = value.get("value").and_then(Value::as_str).unwrap_or_default();
        let bytes = BASE64_STANDARD.decode(value).map_err(|_| ReadError::new("etcd gave a value that is no base64"))?;
        let number = number_of(&String::from_utf8_lossy(&bytes));
        number.map(Answer::Number).map_err(|error| ReadError::new(format!("key `{key}`: {error}")))
    }

    /// Asks the endpoints in turn until one answers.
    async fn ask(&self, path: &str, body: &Value) -> Result<Value, ReadError> {
        let count = self.endpoints.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut failed = None;
        for turn in 0..count {
            let index = (first + turn) % count;
            // If this one hangs until the caller gives up, the next read begins behind it.
            self.first.store((index + 1) % count, Ordering::Relaxed);
            match self.ask_at(&self.endpoints[index], path, body).await {
                Ok(reply) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(reply);
                }
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| ReadError::new("no endpoint is given")))
    }

    async fn ask_at(&self, endpoint: &Url, path: &str, body: &Value) -> Result<Value, ReadError> {
        let place = http::place(endpoint);
        let known = self.token().clone();
        let token = match (&known, &self.login) {
            (None, Some(_)) => self.log_in(endpoint).await?,
            _ => known.clone(),
        };
        let mut reply = self.post(endpoint, path, body, token.as_deref()).await?;
        // A token ends after some minutes, and with the server that gave it.
        if known.is_some() && !reply.status.is_success() {
            let token = self.log_in(endpoint).await?;
            reply = self.post(endpoint, path, body, token.as_deref()).await?;
        }
        said(&place, &reply)
    }

    async fn log_in(&self, endpoint: &Url) -> Result<Option<String>, ReadError> {
        let Some((name, password)) = &self.login else { return Ok(None) };
        let body = json!({ "name": name, "password": password });
        let place = http::place(endpoint);
        let reply = self.post(endpoint, "auth/authenticate", &body, None).await?;
        let reply = said(&place, &reply)?;
        let token = reply["token"].as_str().ok_or_else(|| ReadError::new(format!("{place} gave no token")))?;
        *self.token() = Some(token.to_owned());
        Ok(Some(token.to_owned()))
    }

    async fn post(&self, endpoint: &Url, path: &str, body: &Value, token: Option<&str>) -> Result<Reply, ReadError> {
        let parts: Vec<&str> = std::iter::once("v3").chain(path.split('/')).collect();
        let mut call = Call::post(http::below(endpoint, &parts), "application/json", body.to_string());
        if let Some(token) = token {
            let (name, value) =
                http::header("authorization", token).map_err(|error| ReadError::new(error.to_string()))?;
            call.headers.insert(name, value);
        }
        self.client.send(call).await
    }

    fn token(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer, or what etcd says is wrong.
fn said(place: &str, reply: &Reply) -> Result<Value, ReadError> {
    let answer = reply.json(place);
    if reply.status.is_success() {
        return answer;
    }
    let answer = answer.unwrap_or_default();
    let reason = answer["message"].as_str().or_else(|| answer["error"].as_str());
    Err(match reason {
        Some(reason) => ReadError::new(format!("{place} refused: {}", keys::short(reason))),
        None => http::refused(place, reply.status),
    })
}
