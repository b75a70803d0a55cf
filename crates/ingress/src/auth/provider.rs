//! What is known of identity providers: their configuration and keys, read once and kept.
//!
//! One read at a time per address; who comes meanwhile waits for that one. An address that failed rests a while, so that a
//! provider that is down costs a request nothing but its answer; what was read before is used as long as it may be.
//!
//! **Invariant:** tokens with made-up key names make us read a provider's keys at most once in [`KEYS_REST`].
//! **Invariant:** an outage is told once, when it begins.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use cove_model::{AuthProtocol, AuthProvider};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    fetch::{Call, Fetch, FetchError},
    jwt::{Claims, KeySet, Token, TokenError},
};

/// How long an answer is used before it is read anew.
const FRESH: Duration = Duration::from_secs(3600);
/// How long an answer is used when the provider is down.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// How long an address that failed rests.
const FAILED_REST: Duration = Duration::from_secs(5);
/// Shortest time between two reads of keys because of an unknown key.
const KEYS_REST: Duration = Duration::from_secs(30);
/// Addresses whose answers are kept; beyond that all are forgotten and read again.
const ADDRESSES_MAX: usize = 512;

/// Where a provider answers what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoints {
    /// `iss` of its tokens.
    pub(crate) issuer: String,
    pub(crate) authorization: String,
    pub(crate) token: String,
    pub(crate) keys: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) end_session: Option<String>,
    /// Client id and secret go into `Authorization`, since it does not take them in the form.
    pub(crate) has_basic_only: bool,
}

/// A provider that cannot be asked; the text is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the identity provider `{name}` cannot be asked: {why}")]
pub(crate) struct ProviderDown {
    pub(crate) name: String,
    pub(crate) why: String,
    /// Nobody was told of this outage yet.
    pub(crate) is_news: bool,
}

/// Why a token was not accepted.
#[derive(Debug)]
pub(crate) enum Unverified {
    /// The token is no good.
    Token(TokenError),
    /// It cannot be known.
    Down(ProviderDown),
}

/// All that is known of providers.
pub(crate) struct Providers {
    pub(crate) fetch: Fetch,
    documents: Mutex<HashMap<String, Arc<Document>>>,
}

/// What an address answered.
#[derive(Default)]
struct Document {
    value: ArcSwapOption<Read>,
    /// Held while it is read; when and why the last try failed.
    reading: tokio::sync::Mutex<Option<(Instant, String)>>,
}

struct Read {
    at: Instant,
    content: Content,
}

enum Content {
    Configuration(Value),
    Keys(KeySet),
}

/// What an address is expected to answer.
#[derive(Clone, Copy)]
enum Kind {
    Configuration,
    Keys,
}

/// Why an address has no answer.
struct Failure {
    why: String,
    is_news: bool,
}

impl Providers {
    pub(crate) fn new(fetch: Fetch) -> Self {
        Self { fetch, documents: Mutex::default() }
    }

    fn document(&self, address: &str) -> Arc<Document> {
        let mut all = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(address) {
            return Arc::clone(known);
        }
        if all.len() >= ADDRESSES_MAX {
            all.clear();
        }
        Arc::clone(all.entry(address.to_owned()).or_default())
    }

    /// The answer of an address, no older than `max_age` unless it cannot be read.
    async fn read(&self, address: &str, kind: Kind, max_age: Duration) -> Result<Arc<Read>, Failure> {
        let document = self.document(address);
        let kept = |age: Duration| document.value.load_full().filter(|read| read.at.elapsed() < age);
        if let Some(read) = kept(max_age) {
            return Ok(read);
        }
        let mut failed = match document.reading.try_lock() {
            Ok(failed) => failed,
            Err(_is_being_read) => match kept(STALE).filter(|_| max_age == FRESH) {
                Some(read) => return Ok(read),
                None => document.reading.lock().await,
            },
        };
        if let Some(read) = kept(max_age) {
            return Ok(read);
        }
        let rests = failed.as_ref().filter(|(at, _)| at.elapsed() < FAILED_REST);
        let (why, is_news) = match rests {
            Some((_, why)) => (why.clone(), false),
            None => match self.fetch_content(address, kind).await {
                Ok(content) => {
                    *failed = None;
                    let read = Arc::new(Read { at: Instant::now(), content });
                    document.value.store(Some(Arc::clone(&read)));
                    return Ok(read);
                }
                Err(why) => {
                    let was = failed.replace((Instant::now(), why.clone()));
                    (why, was.is_none())
                }
            },
        };
        kept(STALE).ok_or(Failure { why, is_news })
    }

    async fn fetch_content(&self, address: &str, kind: Kind) -> Result<Content, String> {
        let answer = self.fetch.json(address, Call::Get { token: None }).await.map_err(|error| error.to_string())?;
        match kind {
            Kind::Configuration => Ok(Content::Configuration(answer)),
            Kind::Keys => KeySet::read(&answer).map(Content::Keys).ok_or_else(|| "its keys cannot be read".to_owned()),
        }
    }

    /// Where a provider answers; what its settings name comes before what it tells itself.
    ///
    /// # Errors
    /// [`ProviderDown`], also when something is missing that nothing works without.
    pub(crate) async fn endpoints(&self, provider: &AuthProvider) -> Result<Endpoints, ProviderDown> {
        let down = |why: String, is_news| ProviderDown { name: provider.name.clone(), why, is_news };
        let told = match &provider.discovery {
            Some(address) => {
                Some(self.read(address, Kind::Configuration, FRESH).await.map_err(|it| down(it.why, it.is_news))?)
            }
            None => None,
        };
        let told = told.as_ref().and_then(|read| match &read.content {
            Content::Configuration(value) => Some(value),
            Content::Keys(_) => None,
        });
        let text = |name: &str| told?.get(name)?.as_str().filter(|it| !it.is_empty()).map(str::to_owned);
        let needed = |set: &Option<String>, name: &str| {
            let found = set.clone().or_else(|| text(name));
            found.ok_or_else(|| down(format!("its configuration has no `{name}`"), false))
        };
        let is_open_id = provider.protocol == AuthProtocol::OpenId;
        let methods = told.and_then(|told| told.get("token_endpoint_auth_methods_supported")).and_then(Value::as_array);
        let takes = |method: &str| methods.is_some_and(|all| all.iter().any(|it| it == method));
        Ok(Endpoints {
            issuer: if is_open_id { needed(&provider.issuer, "issuer")? } else { String::new() },
            authorization: needed(&provider.authorization_endpoint, "authorization_endpoint")?,
            token: needed(&provider.token_endpoint, "token_endpoint")?,
            keys: if is_open_id { Some(needed(&provider.keys_endpoint, "jwks_uri")?) } else { None },
            user: provider.user_endpoint.clone().or_else(|| text("userinfo_endpoint")),
            end_session: text("end_session_endpoint"),
            has_basic_only: takes("client_secret_basic") && !takes("client_secret_post"),
        })
    }

    /// The claims of a token that one of the provider's keys signed. An unknown key makes us look for newer ones.
    ///
    /// # Errors
    /// The token is no good, or the provider cannot be asked for its keys.
    pub(crate) async fn verify(
        &self,
        provider: &AuthProvider,
        endpoints: &Endpoints,
        token: &Token<'_>,
    ) -> Result<Claims, Unverified> {
        let Some(address) = &endpoints.keys else { return Err(Unverified::Token(TokenError::UnknownKey)) };
        let mut max_age = FRESH;
        loop {
            let read = self.read(address, Kind::Keys, max_age).await.map_err(|it| {
                Unverified::Down(ProviderDown { name: provider.name.clone(), why: it.why, is_news: it.is_news })
            })?;
            let Content::Keys(keys) = &read.content else { return Err(Unverified::Token(TokenError::UnknownKey)) };
            match token.verify(keys) {
                Ok(claims) => return Ok(claims.clone()),
                Err(TokenError::UnknownKey) if max_age == FRESH && read.at.elapsed() >= KEYS_REST => {
                    max_age = KEYS_REST
                }
                Err(error) => return Err(Unverified::Token(error)),
            }
        }
    }

    /// Asks a provider for tokens.
    ///
    /// # Errors
    /// It says no, or cannot be asked.
    pub(crate) async fn tokens(
        &self,
        provider: &AuthProvider,
        endpoints: &Endpoints,
        form: &[(&str, &str)],
    ) -> Result<Value, FetchError> {
        let mut form = form.to_vec();
        let secret = provider.client_secret.as_ref().map(cove_model::SecretText::reveal);
        let login = secret.filter(|_| endpoints.has_basic_only).map(|secret| (provider.client_id.as_str(), secret));
        if login.is_none() {
            form.push(("client_id", provider.client_id.as_str()));
            form.extend(secret.map(|secret| ("client_secret", secret)));
        }
        self.fetch.json(&endpoints.token, Call::Post { form: &form, login }).await
    }
}
