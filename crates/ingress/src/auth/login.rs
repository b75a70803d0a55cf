//! The paths that the platform answers itself: login, callback, logout, `me`, `refresh`.
//!
//! A login is an authorization code with PKCE (RFC 6749, RFC 7636, OpenID Connect Core 3.1): the browser goes to the provider
//! with a sealed state, comes back with a code, and the code is exchanged here for tokens.
//!
//! **Invariant:** nobody is logged in by an answer that this very browser did not ask for.
//! **Invariant:** no answer of these paths is kept by a cache.

use std::time::Duration;

use bytes::Bytes;
use cove_model::{AuthProtocol, AuthProvider};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AuthRefusal, Identity, Visit,
    claims::{self, Principal},
    fetch::{self, Call},
    jwt::{self, Claims, Expected, Token},
    place::{parameter, with_query},
    provider::{Endpoints, Unverified},
    refusal::of_login,
    seal::random_text,
    session::{BINDING_COOKIE, LoginState, LogoutState, SESSION_COOKIE, Session, binding, hash, set_cookie},
    tokens::{Record, TokenStore, Tokens},
};
use crate::{
    answer::{REASON_HEADER, Refusal},
    unread::ClientBody,
};

/// Bytes of a body that one of these paths reads.
const BODY_MAX: usize = 64 << 10;
/// How long a client may take to send one.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Session of a provider that tells no end of its tokens.
const SESSION_TIME_UNKNOWN: i64 = 3600;

type Answer = Response<Full<Bytes>>;

/// What a provider told at the end of a login.
struct Told {
    claims: Claims,
    tokens: Tokens,
}

impl Visit<'_> {
    /// Answers a path below the prefix.
    pub(super) async fn answer(&self, place: &str, request: &mut Request<ClientBody>) -> Result<Answer, Refusal> {
        let method = request.method().clone();
        let reads = method == Method::GET || method == Method::HEAD;
        let parts: Vec<&str> = place.trim_start_matches('/').split('/').collect();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let answer = match parts.as_slice() {
            ["login", "done"] if reads => Ok(page("You have signed in.", &self.site.base)),
            ["logout", "complete"] if reads => self.logged_out(&query),
            ["login", name] if reads => self.begin_login(name, &query, request.headers()).await,
            ["login", name] if method == Method::POST => self.login_with_token(name, request).await,
            ["login", name, "callback"] if reads => self.end_login(name, &query, request.headers()).await,
            ["logout"] if reads || method == Method::POST => self.logout(&query, request.headers()).await,
            ["refresh"] if reads || method == Method::POST => self.refresh(request.headers()).await,
            ["me"] if reads => return self.me(request.headers()).await,
            ["login", _] | ["login", _, "callback"] | ["logout" | "me" | "refresh"] | ["logout", "complete"] => {
                Err(AuthRefusal::MethodNotAllowed)
            }
            _ => Err(AuthRefusal::PathUnknown),
        };
        answer.map_err(Refusal::from)
    }

    fn named(&self, name: &str) -> Result<(&AuthProvider, u64), AuthRefusal> {
        self.auth.provider(name).ok_or(AuthRefusal::ProviderUnknown)
    }

    fn callback(&self, provider: &AuthProvider) -> String {
        self.site.address(&format!("{}/login/{}/callback", self.policy().api_prefix, provider.name))
    }

    /// The address below the prefix, or the one that the request asks to be led to.
    fn wanted(&self, query: &str, names: [&str; 2], default: &str) -> Result<String, AuthRefusal> {
        match names.iter().find_map(|name| parameter(query, name)) {
            Some(wanted) => self.site.target(&wanted, self.policy()).ok_or(AuthRefusal::RedirectNotAllowed),
            None => Ok(format!("{}{}{default}", self.site.base, self.policy().api_prefix)),
        }
    }

    /// Sends the browser to the provider.
    async fn begin_login(&self, name: &str, query: &str, headers: &HeaderMap) -> Result<Answer, AuthRefusal> {
        let (provider, _) = self.named(name)?;
        let target = self.wanted(query, ["post_login_redirect_uri", "post_login_redirect_url"], "/login/done")?;
        let endpoints = self.endpoints(provider).await?;
        let browser = binding(headers);
        let life = self.policy().nonce_time;
        let state = LoginState {
            provider: provider.name.clone(),
            nonce: random_text::<16>(),
            verifier: random_text::<32>(),
            target,
            expires_secs: self.later(life),
            binding: hash(&browser),
        };
        let (callback, scopes) = (self.callback(provider), provider.scopes.join(" "));
        let (sealed, challenge) = (self.sealers.state.seal(&state), hash(&state.verifier));
        let mut pairs = vec![
            ("response_type", "code"),
            ("client_id", provider.client_id.as_str()),
            ("redirect_uri", callback.as_str()),
            ("scope", scopes.as_str()),
            ("state", sealed.as_str()),
            ("code_challenge", challenge.as_str()),
            ("code_challenge_method", "S256"),
        ];
        if provider.protocol == AuthProtocol::OpenId {
            pairs.push(("nonce", state.nonce.as_str()));
        }
        // what is ours cannot be set by a parameter of the user's
        let is_free = |name: &str| !pairs.iter().any(|(ours, _)| *ours == name);
        let more: Vec<(&str, &str)> = provider
            .login_parameters
            .iter()
            .filter(|(name, _)| is_free(name))
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        pairs.extend(more);
        let mut answer = redirect(&with_query(&endpoints.authorization, &pairs)).map_err(|_| {
            AuthRefusal::LoginFailed(format!("the address of the identity provider `{}` is unusable", provider.name))
        })?;
        let cookie = set_cookie(BINDING_COOKIE, &browser, &self.site, Some(life.as_secs()));
        answer.headers_mut().append(header::SET_COOKIE, cookie);
        Ok(answer)
    }

    /// Takes the browser back from the provider.
    async fn end_login(&self, name: &str, query: &str, headers: &HeaderMap) -> Result<Answer, AuthRefusal> {
        let (provider, fingerprint) = self.named(name)?;
        let state = parameter(query, "state").and_then(|text| self.sealers.state.open::<LoginState>(&text));
        let state = state.filter(|state| state.holds(headers, &provider.name, self.now.as_second()));
        let state = state.ok_or(AuthRefusal::LoginStateInvalid)?;
        if let Some(code) = parameter(query, "error") {
            let (name, code) = (&provider.name, fetch::word(&code));
            return Err(AuthRefusal::LoginFailed(format!("the identity provider `{name}` answered `{code}`")));
        }
        let code = parameter(query, "code").ok_or(AuthRefusal::LoginStateInvalid)?;
        let endpoints = self.endpoints(provider).await?;
        // RFC 9207: an answer that another provider sent by way of this one's
        let is_other =
            |issuer: &String| *issuer != endpoints.issuer && !super::may_be_tenant(&endpoints.issuer, issuer);
        if parameter(query, "iss").filter(|_| provider.protocol == AuthProtocol::OpenId).is_some_and(|it| is_other(&it))
        {
            return Err(AuthRefusal::LoginFailed("the answer is of another identity provider".to_owned()));
        }
        let callback = self.callback(provider);
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code.as_str()),
            ("redirect_uri", callback.as_str()),
            ("code_verifier", state.verifier.as_str()),
        ];
        let answer = self.shared.providers.tokens(provider, &endpoints, &form).await;
        let answer = answer.map_err(|error| of_login(&provider.name, &error))?;
        let nonce = self.policy().checks_nonce.then_some(state.nonce.as_str());
        let told = self.read_tokens(provider, &endpoints, &answer, nonce).await?;
        let session = self.keep(provider, fingerprint, told, None).await?;
        let mut answer = redirect(&state.target).map_err(|_| AuthRefusal::RedirectNotAllowed)?;
        self.set_session(&mut answer, &session);
        Ok(answer)
    }

    /// Logs in a client that has a token of the provider already (`POST`), as mobile apps do.
    async fn login_with_token(&self, name: &str, request: &mut Request<ClientBody>) -> Result<Answer, AuthRefusal> {
        let (provider, fingerprint) = self.named(name)?;
        if provider.protocol != AuthProtocol::OpenId {
            // an access token does not say whom it was given to
            return Err(AuthRefusal::MethodNotAllowed);
        }
        let body = Limited::new(request.body_mut(), BODY_MAX).collect();
        let body = tokio::time::timeout(BODY_TIME, body).await.map_err(|_late| AuthRefusal::BodyInvalid)?;
        let body = body.map_err(|_| AuthRefusal::BodyInvalid)?;
        let body: Value = serde_json::from_slice(&body.to_bytes()).map_err(|_| AuthRefusal::BodyInvalid)?;
        if body.get("id_token").and_then(Value::as_str).is_none() {
            return Err(AuthRefusal::BodyInvalid);
        }
        let endpoints = self.endpoints(provider).await?;
        let told = self.read_tokens(provider, &endpoints, &body, None).await?;
        let session = self.keep(provider, fingerprint, told, None).await?;
        let sealed = session.seal(&self.sealers.session);
        Ok(document(&json!({ "authenticationToken": sealed, "user": { "userId": session.principal.id } })))
    }

    async fn endpoints(&self, provider: &AuthProvider) -> Result<Endpoints, AuthRefusal> {
        self.shared.providers.endpoints(provider).await.map_err(|down| self.noted(down))
    }

    /// Reads what a token endpoint answered: who the user is, and what is kept of it.
    async fn read_tokens(
        &self,
        provider: &AuthProvider,
        endpoints: &Endpoints,
        answer: &Value,
        nonce: Option<&str>,
    ) -> Result<Told, AuthRefusal> {
        let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
        let lasts = answer.get("expires_in").and_then(|it| it.as_i64().or_else(|| it.as_str()?.parse().ok()));
        let tokens = Tokens {
            id_token: text("id_token"),
            access_token: text("access_token"),
            refresh_token: text("refresh_token"),
            expires_secs: lasts.map(|secs| self.now.as_second().saturating_add(secs)),
        };
        let failed = |why: &str| AuthRefusal::LoginFailed(format!("the identity provider `{}` {why}", provider.name));
        let claims = match provider.protocol {
            AuthProtocol::OpenId => {
                let id_token = tokens.id_token.as_deref().ok_or_else(|| failed("gave no ID token"))?;
                self.read_id_token(provider, endpoints, id_token, nonce).await?
            }
            AuthProtocol::OAuth2 => {
                let token = tokens.access_token.as_deref().ok_or_else(|| failed("gave no access token"))?;
                let address = endpoints.user.as_deref().ok_or_else(|| failed("tells nothing of its users"))?;
                let user = self.shared.providers.fetch.json(address, Call::Get { token: Some(token) }).await;
                match user.map_err(|error| of_login(&provider.name, &error))? {
                    Value::Object(user) => user,
                    _ => return Err(failed("told nothing of its user")),
                }
            }
        };
        if !claims::is_allowed(&provider.allowed, &claims, false) {
            return Err(AuthRefusal::PrincipalNotAllowed);
        }
        Ok(Told { claims, tokens })
    }

    async fn read_id_token(
        &self,
        provider: &AuthProvider,
        endpoints: &Endpoints,
        text: &str,
        nonce: Option<&str>,
    ) -> Result<Claims, AuthRefusal> {
        let wrong = |error| AuthRefusal::LoginFailed(format!("the ID token is not accepted: {error}"));
        let token = Token::parse(text).map_err(wrong)?;
        let claims = match self.shared.providers.verify(provider, endpoints, &token).await {
            Ok(claims) => claims,
            Err(Unverified::Token(error)) => return Err(wrong(error)),
            Err(Unverified::Down(down)) => return Err(self.noted(down)),
        };
        let expected = Expected {
            issuer: &endpoints.issuer,
            audiences: &[&provider.client_id],
            client_id: &provider.client_id,
            nonce,
            now_secs: self.now.as_second(),
        };
        jwt::check(&claims, &expected).map_err(wrong)?;
        Ok(claims)
    }

    /// Makes a session; its tokens go into the store where there is one. `id` is that of a session that is renewed.
    async fn keep(
        &self,
        provider: &AuthProvider,
        fingerprint: u64,
        told: Told,
        id: Option<String>,
    ) -> Result<Session, AuthRefusal> {
        let Told { claims, tokens } = told;
        let mut principal = Principal::of(provider, &claims).ok_or_else(|| {
            AuthRefusal::LoginFailed(format!("the identity provider `{}` named nobody", provider.name))
        })?;
        let policy = self.policy();
        let expires_secs = match policy.session_time {
            Some(time) => self.later(time),
            None => jwt::seconds(&claims, "exp")
                .or(tokens.expires_secs)
                .unwrap_or_else(|| self.now.as_second().saturating_add(SESSION_TIME_UNKNOWN)),
        };
        let mut session_id = None;
        if policy.keeps_tokens {
            let id = id.unwrap_or_else(TokenStore::new_id);
            let extension = i64::try_from(policy.refresh_extension.as_secs()).unwrap_or(i64::MAX);
            let record = Record {
                app: self.app().key().to_owned(),
                principal: principal.clone(),
                tokens,
                kept_until_secs: expires_secs.saturating_add(extension),
            };
            let saved = self.shared.tokens.save(id.clone(), record).await;
            saved.map_err(|error| {
                tracing::error!(app = %self.app(), %error, "failed to write a session's tokens");
                AuthRefusal::NotKept
            })?;
            // the store has them; the cookie stays small
            principal.claims = Vec::new();
            session_id = Some(id);
        }
        Ok(Session { principal, expires_secs, id: session_id, fingerprint })
    }

    fn set_session(&self, answer: &mut Answer, session: &Session) {
        let sealed = session.seal(&self.sealers.session);
        answer.headers_mut().append(header::SET_COOKIE, set_cookie(SESSION_COOKIE, &sealed, &self.site, None));
    }

    /// Who is logged in, as a page's script asks for it.
    async fn me(&self, headers: &HeaderMap) -> Result<Answer, Refusal> {
        let (identity, why) = self.identify(headers).await?;
        let Some(Identity { principal, record }) = identity else {
            return Err(why.unwrap_or(AuthRefusal::LoginRequired { is_challenged: false }).into());
        };
        let mut user = json!({
            "provider_name": principal.provider,
            "user_id": principal.name,
            "user_claims": principal.claim_list(),
        });
        if let Some(record) = record {
            let tokens = &record.tokens;
            let expires = tokens.expires_secs.and_then(|secs| Timestamp::from_second(secs).ok());
            for (name, text) in [
                ("access_token", tokens.access_token.clone()),
                ("id_token", tokens.id_token.clone()),
                ("expires_on", expires.map(|at| at.to_string())),
            ] {
                if let Some(text) = text {
                    user[name] = text.into();
                }
            }
        }
        Ok(document(&json!([user])))
    }

    /// Gets new tokens of the provider, and a session from now.
    async fn refresh(&self, headers: &HeaderMap) -> Result<Answer, AuthRefusal> {
        let session = Session::read(headers, &self.sealers.session).filter(|it| self.is_of_these_settings(it));
        let session = session.ok_or(AuthRefusal::LoginRequired { is_challenged: false })?;
        let id = session.id.clone().ok_or(AuthRefusal::NoRefreshToken)?;
        let record = self.shared.tokens.load(&id, self.app().key()).await;
        let record = record.filter(|record| record.kept_until_secs > self.now.as_second());
        let record = record.ok_or(AuthRefusal::LoginRequired { is_challenged: false })?;
        let refresh_token = record.tokens.refresh_token.as_deref().ok_or(AuthRefusal::NoRefreshToken)?;
        let (provider, fingerprint) = self.named(&session.principal.provider)?;
        let endpoints = self.endpoints(provider).await?;
        let form = [("grant_type", "refresh_token"), ("refresh_token", refresh_token)];
        let mut answer = match self.shared.providers.tokens(provider, &endpoints, &form).await {
            Ok(answer) => answer,
            Err(error) => return Err(of_login(&provider.name, &error)),
        };
        // what it does not give anew stays
        for (name, old) in [("refresh_token", &record.tokens.refresh_token), ("id_token", &record.tokens.id_token)] {
            if answer.get(name).is_none_or(Value::is_null)
                && let (Some(fields), Some(old)) = (answer.as_object_mut(), old)
            {
                fields.insert(name.to_owned(), old.as_str().into());
            }
        }
        let is_old_token = answer.get("id_token").and_then(Value::as_str) == record.tokens.id_token.as_deref();
        let session = if is_old_token && provider.protocol == AuthProtocol::OpenId {
            self.renew(&record, fingerprint, &answer, id).await?
        } else {
            let told = self.read_tokens(provider, &endpoints, &answer, None).await?;
            let same = Principal::of(provider, &told.claims).is_some_and(|it| it.id == record.principal.id);
            if !same {
                return Err(AuthRefusal::LoginFailed("the new tokens are of somebody else".to_owned()));
            }
            self.keep(provider, fingerprint, told, Some(id)).await?
        };
        let mut answer = document(&json!({}));
        self.set_session(&mut answer, &session);
        Ok(answer)
    }

    /// A session from now with a new access token only: its user is known from the login.
    async fn renew(
        &self,
        record: &Record,
        fingerprint: u64,
        answer: &Value,
        id: String,
    ) -> Result<Session, AuthRefusal> {
        let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
        let lasts = answer.get("expires_in").and_then(Value::as_i64);
        let tokens = Tokens {
            id_token: text("id_token"),
            access_token: text("access_token"),
            refresh_token: text("refresh_token"),
            expires_secs: lasts.map(|secs| self.now.as_second().saturating_add(secs)),
        };
        let policy = self.policy();
        let derived = tokens.expires_secs.unwrap_or_else(|| self.now.as_second().saturating_add(SESSION_TIME_UNKNOWN));
        let expires_secs = policy.session_time.map_or(derived, |time| self.later(time));
        let extension = i64::try_from(policy.refresh_extension.as_secs()).unwrap_or(i64::MAX);
        let renewed = Record { tokens, kept_until_secs: expires_secs.saturating_add(extension), ..record.clone() };
        self.shared.tokens.save(id.clone(), renewed).await.map_err(|error| {
            tracing::error!(app = %self.app(), %error, "failed to write a session's tokens");
            AuthRefusal::NotKept
        })?;
        let principal = Principal { claims: Vec::new(), ..record.principal.clone() };
        Ok(Session { principal, expires_secs, id: Some(id), fingerprint })
    }

    /// Ends the session here, then at the provider where it has a place for that.
    async fn logout(&self, query: &str, headers: &HeaderMap) -> Result<Answer, AuthRefusal> {
        let target =
            self.wanted(query, ["post_logout_redirect_uri", "post_logout_redirect_url"], "/logout/complete")?;
        let session = Session::read(headers, &self.sealers.session);
        let mut hint = None;
        if let Some(id) = session.as_ref().and_then(|session| session.id.as_deref()) {
            let record = self.shared.tokens.load(id, self.app().key()).await;
            hint = record.and_then(|record| record.tokens.id_token.clone());
            self.shared.tokens.remove(id).await;
        }
        let provider = session.as_ref().and_then(|session| self.auth.provider(&session.principal.provider));
        let end = match provider {
            // a provider that is down keeps nobody from leaving
            Some((provider, _)) => {
                self.shared.providers.endpoints(provider).await.ok().and_then(|it| Some((provider, it.end_session?)))
            }
            None => None,
        };
        let location = match end {
            Some((provider, address)) => {
                let back = self.site.address(&format!("{}/logout/complete", self.policy().api_prefix));
                let state = self.sealers.state.seal(&LogoutState { target });
                let mut pairs = vec![
                    ("client_id", provider.client_id.as_str()),
                    ("post_logout_redirect_uri", back.as_str()),
                    ("state", state.as_str()),
                ];
                pairs.extend(hint.as_deref().map(|token| ("id_token_hint", token)));
                with_query(&address, &pairs)
            }
            None => target,
        };
        let mut answer = redirect(&location).map_err(|_| AuthRefusal::RedirectNotAllowed)?;
        answer.headers_mut().append(header::SET_COOKIE, set_cookie(SESSION_COOKIE, "", &self.site, Some(0)));
        Ok(answer)
    }

    /// Takes the browser back from the provider's logout.
    fn logged_out(&self, query: &str) -> Result<Answer, AuthRefusal> {
        let state = parameter(query, "state").and_then(|text| self.sealers.state.open::<LogoutState>(&text));
        let own = format!("{}/logout/complete", self.policy().api_prefix);
        match state {
            Some(state) if !state.target.ends_with(&own) => {
                redirect(&state.target).map_err(|_| AuthRefusal::RedirectNotAllowed)
            }
            Some(_) | None => Ok(page("You have signed out.", &self.site.base)),
        }
    }

    fn later(&self, time: Duration) -> i64 {
        self.now.as_second().saturating_add(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
    }
}

/// Sends a browser somewhere.
///
/// # Errors
/// An address that no header can hold.
pub(super) fn redirect(location: &str) -> Result<Answer, Refusal> {
    let location = HeaderValue::try_from(location).map_err(|_| Refusal::Auth(AuthRefusal::RedirectNotAllowed))?;
    let mut answer = own(StatusCode::FOUND, Bytes::new(), None);
    answer.headers_mut().insert(header::LOCATION, location);
    Ok(answer)
}

fn document(value: &Value) -> Answer {
    own(StatusCode::OK, Bytes::from(value.to_string()), Some("application/json"))
}

fn page(text: &str, base: &str) -> Answer {
    let base: String = base.chars().filter(|c| c.is_ascii_alphanumeric() || "/-_.~".contains(*c)).collect();
    let page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{text}</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:15vh auto;padding:0 1rem}}</style>\
         <h1>{text}</h1><p><a href=\"{base}/\">Go to the app</a></html>\n"
    );
    own(StatusCode::OK, Bytes::from(page), Some("text/html; charset=utf-8"))
}

fn own(status: StatusCode, body: Bytes, kind: Option<&'static str>) -> Answer {
    let length = HeaderValue::from(body.len());
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(REASON_HEADER, HeaderValue::from_static("authentication"));
    if let Some(kind) = kind {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    answer
}
