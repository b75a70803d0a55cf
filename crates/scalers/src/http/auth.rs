//! How a rule shows who it is: `authMode`/`authModes` of KEDA's HTTP scalers.
//!
//! `basic`, `bearer`, `apiKey`, `custom` and `tls` are ready when the rule is opened; `oauth` asks for a token by client
//! credentials, keeps it until shortly before its end, and asks anew when the source refuses it.
//!
//! **Invariant:** a secret is in headers that are marked sensitive, in the query, or in the body; never in an error.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue, StatusCode};
use reqwest::Url;

use super::{Call, Client, Reply, header, pairs, parse_address, place, refused, required};
use crate::source::{Context, OpenError, ReadError, Tokens, Trigger};

/// A token is renewed this long before its end.
const TOKEN_SPARE: Duration = Duration::from_secs(60);
/// A token that does not say how long it lives is taken to live this long.
const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(300);

/// What a rule shows.
#[derive(Default)]
pub(crate) struct Auth {
    headers: Vec<(HeaderName, HeaderValue)>,
    query: Option<(String, String)>,
    token: Option<TokenSource>,
    is_set: bool,
}

/// Who gives a bearer token when a call is made.
enum TokenSource {
    OAuth(OAuth),
    Identity { tokens: Option<Arc<dyn Tokens>>, identity: String, audience: String },
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("token", &self.token.is_some()).finish_non_exhaustive()
    }
}

impl Auth {
    /// Reads `authMode` or `authModes` and the parameters of each mode.
    ///
    /// # Errors
    /// An unknown mode, or one whose parameters are missing.
    pub(crate) fn of(trigger: &Trigger) -> Result<Self, OpenError> {
        let modes = trigger.get("authModes").or_else(|| trigger.get("authMode")).unwrap_or_default();
        let mut auth = Self::default();
        for mode in modes.split(',').map(str::trim).filter(|mode| !mode.is_empty()) {
            auth.is_set = true;
            match mode {
                "basic" => auth.basic(required(trigger, "username")?, trigger.get("password").unwrap_or_default())?,
                "bearer" => {
                    let token = trigger.get("bearerToken").or_else(|| trigger.get("token"));
                    let missing = || OpenError::metadata("authMode bearer needs bearerToken or token");
                    auth.bearer(token.ok_or_else(missing)?)?;
                }
                "apiKey" => auth.api_key(trigger)?,
                "custom" => {
                    auth.header(required(trigger, "customAuthHeader")?, required(trigger, "customAuthValue")?)?;
                }
                "oauth" => auth.oauth(OAuth::of(trigger)?),
                // The certificate is part of the TLS settings.
                "tls" => {
                    required(trigger, "cert")?;
                    required(trigger, "key")?;
                }
                other => {
                    return Err(OpenError::metadata(format!(
                        "authMode `{other}` is not known; expected apiKey, basic, bearer, custom, oauth or tls"
                    )));
                }
            }
        }
        Ok(auth)
    }

    /// Whether the rule names any mode.
    pub(crate) fn is_set(&self) -> bool {
        self.is_set
    }

    /// Shows a user and a password.
    ///
    /// # Errors
    /// None in practice: base64 is always a header's value.
    pub(crate) fn basic(&mut self, user: &str, password: &str) -> Result<(), OpenError> {
        let pair = STANDARD.encode(format!("{user}:{password}"));
        self.header(AUTHORIZATION.as_str(), &format!("Basic {pair}"))
    }

    /// Shows a token.
    ///
    /// # Errors
    /// A token with characters that no header can have.
    pub(crate) fn bearer(&mut self, token: &str) -> Result<(), OpenError> {
        self.header(AUTHORIZATION.as_str(), &format!("Bearer {token}"))
    }

    /// Shows a header.
    ///
    /// # Errors
    /// A name or value that no header can have.
    pub(crate) fn header(&mut self, name: &str, value: &str) -> Result<(), OpenError> {
        self.headers.push(header(name, value)?);
        Ok(())
    }

    /// Shows a token that client credentials give.
    pub(crate) fn oauth(&mut self, oauth: OAuth) {
        self.token = Some(TokenSource::OAuth(oauth));
    }

    /// Shows a token of the rule's identity for `audience`; nothing where the rule names none.
    pub(crate) fn identity(&mut self, trigger: &Trigger, context: &Context, audience: &str) {
        if let Some(identity) = &trigger.identity {
            let (identity, audience) = (identity.clone(), audience.to_owned());
            self.token = Some(TokenSource::Identity { tokens: context.tokens.clone(), identity, audience });
        }
    }

    fn api_key(&mut self, trigger: &Trigger) -> Result<(), OpenError> {
        let key = required(trigger, "apiKey")?;
        let name = trigger.get("keyParamName");
        match trigger.get("method").unwrap_or("header") {
            "header" => self.header(name.unwrap_or("X-API-KEY"), key)?,
            "query" => self.query = Some((name.unwrap_or("api_key").to_owned(), key.to_owned())),
            other => return Err(OpenError::metadata(format!("method is `{other}`; expected header or query"))),
        }
        Ok(())
    }

    /// Makes a call with what the rule shows; its answer must be a success.
    ///
    /// # Errors
    /// As [`Client::fetch`], and a token that cannot be had.
    pub(crate) async fn fetch(&self, client: &Client, call: Call) -> Result<Reply, ReadError> {
        let place = place(&call.url);
        let reply = self.send(client, call).await?;
        if reply.status.is_success() { Ok(reply) } else { Err(refused(&place, reply.status)) }
    }

    /// Makes a call with what the rule shows, whatever its status.
    ///
    /// # Errors
    /// As [`Client::send`], and a token that cannot be had.
    pub(crate) async fn send(&self, client: &Client, mut call: Call) -> Result<Reply, ReadError> {
        for (name, value) in &self.headers {
            call.headers.insert(name.clone(), value.clone());
        }
        if let Some((name, value)) = &self.query {
            call.url.query_pairs_mut().append_pair(name, value);
        }
        match &self.token {
            None => {}
            Some(TokenSource::OAuth(oauth)) => {
                call.headers.insert(AUTHORIZATION, oauth.token(client).await?);
            }
            Some(TokenSource::Identity { tokens, identity, audience }) => {
                let missing = || ReadError::new(format!("the app has no tokens of the identity `{identity}`"));
                let token = tokens.as_ref().ok_or_else(missing)?.token(identity, audience).await?;
                let value = bearer(&token).ok_or_else(|| ReadError::new("the identity's token is no header"))?;
                call.headers.insert(AUTHORIZATION, value);
            }
        }
        let reply = client.send(call).await?;
        if let (Some(TokenSource::OAuth(oauth)), StatusCode::UNAUTHORIZED) = (&self.token, reply.status) {
            oauth.forget();
        }
        Ok(reply)
    }
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Tokens by client credentials (RFC 6749, 4.4).
pub(crate) struct OAuth {
    url: Url,
    /// Credentials included.
    form: String,
    token: Mutex<Option<(HeaderValue, Instant)>>,
}

impl OAuth {
    fn of(trigger: &Trigger) -> Result<Self, OpenError> {
        let url = parse_address("oauthTokenURI", required(trigger, "oauthTokenURI")?)?;
        let scopes = trigger.get("scopes").unwrap_or_default().replace(',', " ");
        let more = pairs(trigger, "endpointParams")?;
        Ok(Self::new(url, required(trigger, "clientID")?, required(trigger, "clientSecret")?, &scopes, &more))
    }

    /// Client credentials for `scope`.
    pub(crate) fn new(url: Url, id: &str, secret: &str, scope: &str, more: &[(String, String)]) -> Self {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        form.append_pair("client_id", id).append_pair("client_secret", secret);
        if !scope.trim().is_empty() {
            form.append_pair("scope", scope.trim());
        }
        form.extend_pairs(more);
        Self { url, form: form.finish(), token: Mutex::new(None) }
    }

    async fn token(&self, client: &Client) -> Result<HeaderValue, ReadError> {
        let known = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((token, _)) = known.filter(|(_, end)| Instant::now() < *end) {
            return Ok(token);
        }
        let place = place(&self.url);
        let call = Call::post(self.url.clone(), "application/x-www-form-urlencoded", self.form.clone());
        let answer = client.fetch(call).await?.json(&place)?;
        let token = answer.get("access_token").and_then(serde_json::Value::as_str).and_then(bearer);
        let token = token.ok_or_else(|| ReadError::new(format!("{place} gave no access_token")))?;
        let seconds = |life: &serde_json::Value| life.as_u64().or_else(|| life.as_str()?.parse().ok());
        let life = answer.get("expires_in").and_then(seconds);
        let life = life.map_or(TOKEN_LIFE_DEFAULT, |seconds| Duration::from_secs(seconds.min(86_400)));
        let end = Instant::now() + life.saturating_sub(TOKEN_SPARE);
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some((token.clone(), end));
        Ok(token)
    }

    fn forget(&self) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
