//! What is known of identity providers: their configuration and keys, read once and kept.
//!
//! One read at a time per address; who comes meanwhile waits for that one. An address that failed rests a while, so that a
//! provider that is down costs a request nothing but its answer; what was read before is used as long as it may be.
//!
//! **Invariant:** tokens with made-up key names make us read a provider's keys at most once in [`Rests::keys`].
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

/// How long what was read is used, and how long what failed is left alone.
#[derive(Clone, Copy, Debug)]
struct Rests {
    /// How long an answer is used before it is read anew.
    fresh: Duration,
    /// How long an answer is used when the provider is down.
    stale: Duration,
    /// How long an address that failed rests.
    failed: Duration,
    /// Shortest time between two reads of keys because of an unknown key.
    keys: Duration,
}

const RESTS: Rests = Rests {
    fresh: Duration::from_secs(3600),
    stale: Duration::from_secs(24 * 3600),
    failed: Duration::from_secs(5),
    keys: Duration::from_secs(30),
};

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
    rests: Rests,
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
        Self { fetch, documents: Mutex::default(), rests: RESTS }
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
            Err(_is_being_read) => match kept(self.rests.stale).filter(|_| max_age == self.rests.fresh) {
                Some(read) => return Ok(read),
                None => document.reading.lock().await,
            },
        };
        if let Some(read) = kept(max_age) {
            return Ok(read);
        }
        let rests = failed.as_ref().filter(|(at, _)| at.elapsed() < self.rests.failed);
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
        kept(self.rests.stale).ok_or(Failure { why, is_news })
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
            Some(address) => Some(
                self.read(address, Kind::Configuration, self.rests.fresh)
                    .await
                    .map_err(|it| down(it.why, it.is_news))?,
            ),
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
        let mut max_age = self.rests.fresh;
        loop {
            let read = self.read(address, Kind::Keys, max_age).await.map_err(|it| {
                Unverified::Down(ProviderDown { name: provider.name.clone(), why: it.why, is_news: it.is_news })
            })?;
            let Content::Keys(keys) = &read.content else { return Err(Unverified::Token(TokenError::UnknownKey)) };
            match token.verify(keys) {
                Ok(claims) => return Ok(claims.clone()),
                Err(TokenError::UnknownKey) if max_age == self.rests.fresh && read.at.elapsed() >= self.rests.keys => {
                    max_age = self.rests.keys
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

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
    };
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::auth::claims::tests::provider;

    /// A provider's keys behind HTTP; `None` is a provider that is down.
    struct Keys {
        document: Arc<Mutex<Option<Value>>>,
        asked: Arc<Mutex<usize>>,
        endpoints: Endpoints,
        _server: tokio::task::JoinSet<()>,
    }

    impl Keys {
        async fn start() -> Self {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = format!("http://{}/keys", listener.local_addr().unwrap());
            let document: Arc<Mutex<Option<Value>>> = Arc::default();
            let asked: Arc<Mutex<usize>> = Arc::default();
            let mut server = tokio::task::JoinSet::new();
            let (shown, counter) = (Arc::clone(&document), Arc::clone(&asked));
            server.spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let mut head = [0; 4096];
                    let _read = stream.read(&mut head).await;
                    *counter.lock().unwrap() += 1;
                    let (status, body) = match &*shown.lock().unwrap() {
                        Some(document) => (200, document.to_string()),
                        None => (503, String::new()),
                    };
                    let length = body.len();
                    let answer =
                        format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                    let _sent = stream.write_all(answer.as_bytes()).await;
                }
            });
            let endpoints = Endpoints {
                issuer: "https://op".to_owned(),
                authorization: String::new(),
                token: String::new(),
                keys: Some(address),
                user: None,
                end_session: None,
                has_basic_only: false,
            };
            Self { document, asked, endpoints, _server: server }
        }

        fn asked(&self) -> usize {
            *self.asked.lock().unwrap()
        }
    }

    /// A key as a provider shows it, and a token that it signed.
    fn key(id: &str) -> (Value, String) {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        let [x, y] = [x, y].map(|part| URL_SAFE_NO_PAD.encode(part));
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(json!({ "alg": "ES256", "kid": id })), encode(json!({ "sub": "alice" })));
        let signature = pair.sign(&random, signed.as_bytes()).unwrap();
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()));
        (json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": id, "x": x, "y": y }] }), token)
    }

    #[tokio::test]
    async fn new_keys_are_found_and_old_ones_serve_through_an_outage() {
        let server = Keys::start().await;
        let mut providers = Providers::new(Fetch::new(Vec::new()));
        (providers.rests.keys, providers.rests.failed) = (Duration::ZERO, Duration::ZERO);
        let of = provider("own", AuthProtocol::OpenId);
        let ((old_keys, old), (new_keys, new)) = (key("old"), key("new"));
        let verify = async |providers: &Providers, token: &str| {
            providers.verify(&of, &server.endpoints, &Token::parse(token).unwrap()).await
        };
        // an outage before the first answer: told once
        for is_news in [true, false] {
            let outcome = verify(&providers, &old).await;
            assert!(matches!(outcome, Err(Unverified::Down(down)) if down.is_news == is_news));
        }
        *server.document.lock().unwrap() = Some(old_keys);
        assert!(verify(&providers, &old).await.is_ok() && verify(&providers, &old).await.is_ok());
        assert_eq!(server.asked(), 3, "keys are read once");
        *server.document.lock().unwrap() = Some(new_keys);
        assert!(verify(&providers, &new).await.is_ok(), "a rotated key is found at once");
        assert_eq!(server.asked(), 4);
        assert!(matches!(verify(&providers, &old).await, Err(Unverified::Token(TokenError::UnknownKey))));
        *server.document.lock().unwrap() = None;
        assert!(verify(&providers, &new).await.is_ok(), "what was read serves through an outage");
        assert!(matches!(verify(&providers, &old).await, Err(Unverified::Token(TokenError::UnknownKey))));
        (providers.rests.stale, providers.rests.fresh) = (Duration::ZERO, Duration::ZERO);
        assert!(matches!(verify(&providers, &new).await, Err(Unverified::Down(_))), "but not for ever");
    }
}
