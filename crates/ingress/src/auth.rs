//! Authentication in front of apps: who calls, and whether who has no login may pass (`authConfigs`, Azure's "Easy Auth").
//!
//! It comes after the app's other rules and before its gate: nobody without a login wakes an app that wants one. A caller is
//! known by a bearer token of one of the app's providers, else by the session's cookie. Paths below `/.auth` are answered
//! here ([`login`]).
//!
//! **Invariant:** the headers that tell the app who calls are the platform's alone, see [`claims`].
//! **Invariant:** a rule or provider that cannot be used lets nobody in.
//! **Invariant:** only logins and tokens with new keys talk to a provider; they hold up no other request.

pub(crate) mod claims;
mod fetch;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod jwt;
mod login;
mod place;
mod provider;
mod refusal;
pub(crate) mod seal;
mod session;
mod tokens;

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use cove_model::{AuthOrigin, AuthPolicy, AuthProvider, EventKind, ResourceId, SystemEvent, UnauthenticatedAction};
use cove_traffic::AppRoute;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use http_body_util::Full;
use jiff::Timestamp;
use ring::digest;
use rustls::pki_types::CertificateDer;

pub(crate) use self::refusal::AuthRefusal;
use self::{
    claims::Principal,
    fetch::Fetch,
    jwt::{Expected, Token, TokenError},
    place::{Seen, Site},
    provider::{ProviderDown, Providers, Unverified},
    seal::{AuthKey, Sealer},
    session::Session,
    tokens::{Record, TokenStore},
};
use crate::{
    answer::{self, Refusal},
    proxy::{Client, Proxy, Side},
    target::Found,
    unread::ClientBody,
};

/// Tells an event of an app.
pub type Tell = Arc<dyn Fn(SystemEvent) + Send + Sync>;

/// What authentication needs from the server.
pub struct AuthSources {
    /// The key that sessions are sealed with.
    pub key: AuthKey,
    /// Directory of the token store, made when it is needed; `None` keeps tokens in memory.
    pub tokens: Option<PathBuf>,
    /// Authorities that certificates of providers may be signed by, besides the system's.
    pub roots: Vec<CertificateDer<'static>>,
    /// Takes events such as a provider that is down.
    pub tell: Tell,
}

impl Default for AuthSources {
    /// A key that is forgotten with the process, tokens in memory, events nowhere.
    fn default() -> Self {
        Self { key: AuthKey::random(), tokens: None, roots: Vec::new(), tell: Arc::new(|_| {}) }
    }
}

impl std::fmt::Debug for AuthSources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthSources").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

/// What all apps' authentication shares.
pub(crate) struct AuthShared {
    key: AuthKey,
    providers: Providers,
    tokens: TokenStore,
    tell: Tell,
}

impl AuthShared {
    pub(crate) fn new(sources: AuthSources) -> Self {
        let AuthSources { key, tokens, roots, tell } = sources;
        let tokens = TokenStore::new(&key, tokens);
        Self { key, providers: Providers::new(Fetch::new(roots)), tokens, tell }
    }
}

/// One app's authentication, made ready for requests.
pub(crate) struct Auth {
    policy: Arc<AuthPolicy>,
    /// Of each provider's settings, in the order of the policy's.
    fingerprints: Vec<u64>,
    sealers: OnceLock<Sealers>,
}

struct Sealers {
    session: Sealer,
    state: Sealer,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// What becomes of a request.
pub(crate) enum Verdict {
    /// It goes on to the app; its headers say who calls.
    Pass,
    /// It is answered here.
    Answer(Box<Response<Full<bytes::Bytes>>>),
}

/// Where a request came to.
#[derive(Clone, Copy)]
pub(crate) struct Arrival<'a> {
    pub(crate) client: &'a Client,
    pub(crate) host: &'a str,
    pub(crate) route: &'a AppRoute,
    /// The path that the app is asked for, if it is another than the client's.
    pub(crate) app_path: Option<&'a str>,
}

/// One request and what it is judged by.
struct Visit<'a> {
    shared: &'a AuthShared,
    auth: &'a Auth,
    route: &'a AppRoute,
    sealers: &'a Sealers,
    site: Site,
    /// As the app gets it.
    path: String,
    now: Timestamp,
}

/// Who calls.
struct Identity {
    principal: Principal,
    /// What its provider gave, where it is kept.
    record: Option<Arc<Record>>,
}

impl Auth {
    pub(crate) fn new(policy: &Arc<AuthPolicy>) -> Self {
        let fingerprints = policy.providers.iter().map(fingerprint).collect();
        Self { policy: Arc::clone(policy), fingerprints, sealers: OnceLock::new() }
    }

    fn provider(&self, name: &str) -> Option<(&AuthProvider, u64)> {
        let mut all = self.policy.providers.iter().zip(&self.fingerprints);
        all.find(|(provider, _)| provider.name.eq_ignore_ascii_case(name)).map(|(provider, print)| (provider, *print))
    }

    /// Judges a request; one that passes has the platform's headers.
    ///
    /// # Errors
    /// Why it does not pass.
    pub(crate) async fn check(
        &self,
        shared: &AuthShared,
        arrival: Arrival<'_>,
        request: &mut Request<ClientBody>,
    ) -> Result<Verdict, Refusal> {
        claims::remove_ours(request.headers_mut());
        let Arrival { client, host, route, app_path } = arrival;
        let sealers = self.sealers.get_or_init(|| {
            let of = |purpose| Sealer::new(&shared.key, purpose, &route.app, &self.policy.sealing_secrets);
            Sealers { session: of("session"), state: of("state") }
        });
        let path = app_path.unwrap_or_else(|| request.uri().path()).to_owned();
        let seen = Seen {
            is_https: client.side.is_tls(),
            host,
            path: request.uri().path(),
            app_path: &path,
            headers: request.headers(),
        };
        let site = Site::of(&self.policy.origin, seen);
        let visit = Visit { shared, auth: self, route, sealers, site, path, now: Timestamp::now() };
        if self.policy.requires_https && !visit.site.is_https {
            return Err(AuthRefusal::HttpsRequired.into());
        }
        if let Some(place) = visit.own_place() {
            let answer = visit.answer(&place, request).await?;
            return Ok(Verdict::Answer(Box::new(answer)));
        }
        let (identity, why) = visit.identify(request.headers()).await?;
        match identity {
            Some(identity) => {
                identity.write(request.headers_mut());
                Ok(Verdict::Pass)
            }
            None => visit.without_login(request, why),
        }
    }
}

impl Proxy {
    /// Judges a request by the app's authentication, if it has any.
    ///
    /// # Errors
    /// Why it does not pass.
    pub(crate) async fn authenticate(
        &self,
        client: &Client,
        host: &str,
        found: &Found,
        request: &mut Request<ClientBody>,
    ) -> Result<Verdict, Refusal> {
        let Some(auth) = &found.app.policy.auth else { return Ok(Verdict::Pass) };
        let is_plain = client.side == Side::Http && auth.policy.origin == AuthOrigin::Request;
        if auth.policy.requires_https && is_plain && found.has_tls {
            let location = self.https_location(host, request.uri())?;
            return Ok(Verdict::Answer(Box::new(answer::redirect(request.method(), location))));
        }
        let arrival = Arrival { client, host, route: &found.app.route, app_path: found.path.as_deref() };
        // most apps have none: their requests carry no room for it
        Box::pin(auth.check(&self.auth, arrival, request)).await
    }
}

impl Visit<'_> {
    fn policy(&self) -> &AuthPolicy {
        &self.auth.policy
    }

    fn app(&self) -> &ResourceId {
        &self.route.app
    }

    /// The path below the platform's prefix, if the request is for the platform.
    fn own_place(&self) -> Option<String> {
        if self.policy().logout_path.as_deref() == Some(self.path.as_str()) {
            return Some("/logout".to_owned());
        }
        let place = self.path.strip_prefix(self.policy().api_prefix.as_str())?;
        (place.is_empty() || place.starts_with('/')).then(|| place.to_owned())
    }

    /// Who calls, or why a token does not count.
    async fn identify(&self, headers: &HeaderMap) -> Result<(Option<Identity>, Option<AuthRefusal>), Refusal> {
        let mut why = None;
        if let Some(text) = bearer(headers) {
            match self.of_bearer(text).await {
                Ok(Some(principal)) => return Ok((Some(Identity { principal, record: None }), None)),
                // a token of the app's own, which it may know what to do with
                Ok(None) => {}
                Err(AuthRefusal::TokenInvalid(error)) => why = Some(AuthRefusal::TokenInvalid(error)),
                Err(refusal) => return Err(refusal.into()),
            }
        }
        Ok((self.of_session(headers).await.map(|(identity, _)| identity), why))
    }

    /// Who a bearer token is of; `None` when none of the app's providers made it.
    async fn of_bearer(&self, text: &str) -> Result<Option<Principal>, AuthRefusal> {
        let Ok(token) = Token::parse(text) else { return Ok(None) };
        let Some(issuer) = token.claimed_issuer() else { return Ok(None) };
        for provider in self.policy().providers.iter().filter(|provider| provider.accepts_bearer) {
            let endpoints = match self.shared.providers.endpoints(provider).await {
                Ok(endpoints) => endpoints,
                // whether it made the token cannot be known: the others are asked first
                Err(down) if self.policy().providers.len() > 1 => {
                    self.note(&down);
                    continue;
                }
                Err(down) => return Err(self.noted(down)),
            };
            if endpoints.issuer != issuer && !may_be_tenant(&endpoints.issuer, issuer) {
                continue;
            }
            let mut audiences: Vec<&str> = provider.audiences.iter().map(String::as_str).collect();
            audiences.push(&provider.client_id);
            let claims = match self.shared.providers.verify(provider, &endpoints, &token).await {
                Ok(claims) => claims,
                Err(Unverified::Token(error)) => return Err(AuthRefusal::TokenInvalid(error)),
                Err(Unverified::Down(down)) => return Err(self.noted(down)),
            };
            let expected = Expected {
                issuer: &endpoints.issuer,
                audiences: &audiences,
                client_id: &provider.client_id,
                nonce: None,
                now_secs: self.now.as_second(),
            };
            jwt::check(&claims, &expected).map_err(AuthRefusal::TokenInvalid)?;
            if !claims::is_allowed(&provider.allowed, &claims, true) {
                return Err(AuthRefusal::PrincipalNotAllowed);
            }
            let principal = Principal::of(provider, &claims);
            return principal.map(Some).ok_or(AuthRefusal::TokenInvalid(TokenError::Subject));
        }
        Ok(None)
    }

    /// Who a session is of, if it holds.
    async fn of_session(&self, headers: &HeaderMap) -> Option<(Identity, Session)> {
        let session = Session::read(headers, &self.sealers.session)?;
        if session.expires_secs <= self.now.as_second() || !self.is_of_these_settings(&session) {
            return None;
        }
        let record = match &session.id {
            // a session that the store has no more was ended
            Some(id) => Some(self.shared.tokens.load(id, self.app().key()).await?),
            None => None,
        };
        let principal = record.as_ref().map_or(&session.principal, |record| &record.principal).clone();
        Some((Identity { principal, record }, session))
    }

    /// Whether the provider is still there and its settings are those of the login.
    fn is_of_these_settings(&self, session: &Session) -> bool {
        let provider = self.auth.provider(&session.principal.provider);
        provider.is_some_and(|(_, fingerprint)| fingerprint == session.fingerprint)
    }

    /// What a client without a login gets.
    fn without_login(&self, request: &Request<ClientBody>, why: Option<AuthRefusal>) -> Result<Verdict, Refusal> {
        let policy = self.policy();
        if place::is_excluded(&self.path, &policy.excluded_paths) {
            return Ok(Verdict::Pass);
        }
        let is_challenged = policy.providers.iter().any(|it| it.accepts_bearer && it.challenges);
        // who sent a token wants to hear what is wrong with it, not to see a page
        let has_token = why.is_some();
        let required = why.unwrap_or(AuthRefusal::LoginRequired { is_challenged });
        match policy.action {
            UnauthenticatedAction::AllowAnonymous => Ok(Verdict::Pass),
            UnauthenticatedAction::Return401 => Err(required.into()),
            UnauthenticatedAction::Return403 => Err(AuthRefusal::LoginForbidden.into()),
            UnauthenticatedAction::RedirectToLoginPage => match self.login_page() {
                Some(provider) if !has_token && is_navigation(request.method(), request.headers()) => {
                    let wanted = request.uri().path_and_query().map_or("/", |it| it.as_str());
                    let target = place::return_path("", wanted);
                    let page = format!("{}{}/login/{provider}", self.site.base, policy.api_prefix);
                    let location = place::with_query(&page, &[("post_login_redirect_uri", &target)]);
                    Ok(Verdict::Answer(Box::new(login::redirect(&location)?)))
                }
                Some(_) | None => Err(required.into()),
            },
        }
    }

    /// The provider that browsers are sent to.
    fn login_page(&self) -> Option<&str> {
        let wanted = match &self.policy().redirect_to {
            Some(name) => self.auth.provider(name).map(|(provider, _)| provider),
            None => self.policy().providers.first(),
        };
        wanted.map(|provider| provider.name.as_str())
    }

    /// Tells of an outage that nobody was told of yet.
    fn note(&self, down: &ProviderDown) {
        if !down.is_news {
            return;
        }
        tracing::warn!(app = %self.app(), provider = down.name, error = down.why, "an identity provider cannot be asked");
        (self.shared.tell)(SystemEvent {
            at: self.now,
            kind: EventKind::Warning,
            reason: "IdentityProviderUnavailable".to_owned(),
            message: format!("{down}; requests that need it are answered 503 until it is back"),
            environment: Some(self.route.environment.to_string()),
            app: Some(self.app().to_string()),
            revision: None,
            replica: None,
            container: None,
            source: "Ingress".to_owned(),
        });
    }

    fn noted(&self, down: ProviderDown) -> AuthRefusal {
        self.note(&down);
        down.into()
    }
}

impl Identity {
    /// Writes the headers that tell the app who calls, and its provider's tokens where they are kept.
    fn write(&self, headers: &mut HeaderMap) {
        self.principal.write(headers);
        let Some(record) = &self.record else { return };
        let tokens = &record.tokens;
        let expires = tokens.expires_secs.and_then(|secs| Timestamp::from_second(secs).ok()).map(|at| at.to_string());
        let all = [
            ("access-token", &tokens.access_token),
            ("id-token", &tokens.id_token),
            ("refresh-token", &tokens.refresh_token),
            ("expires-on", &expires),
        ];
        for (name, text) in all {
            let name = format!("x-ms-token-{}-{name}", self.principal.provider.to_ascii_lowercase());
            let (Ok(name), Some(Ok(mut value))) =
                (name.parse::<HeaderName>(), text.as_ref().map(HeaderValue::try_from))
            else {
                continue;
            };
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
}

/// Of what decides whom a provider's logins are of.
fn fingerprint(provider: &AuthProvider) -> u64 {
    let mut context = digest::Context::new(&digest::SHA256);
    let of = [&provider.discovery, &provider.issuer, &provider.keys_endpoint, &provider.user_endpoint];
    let allowed = format!("{:?}", provider.allowed);
    let texts =
        of.map(|it| it.as_deref().unwrap_or("")).into_iter().chain([provider.client_id.as_str(), allowed.as_str()]);
    for text in texts {
        context.update(&(text.len() as u64).to_be_bytes());
        context.update(text.as_bytes());
    }
    let hash = context.finish();
    u64::from_be_bytes(hash.as_ref()[..8].try_into().expect("a hash of 32 bytes begins with 8"))
}

/// The bearer token of a request.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let (first, None) = (fields.next()?, fields.next()) else { return None };
    let (scheme, token) = first.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whether an issuer could be that of a tenant; which one, its checked claims say.
fn may_be_tenant(pattern: &str, issuer: &str) -> bool {
    let Some((begin, end)) = pattern.split_once("{tenantid}") else { return false };
    issuer.len() > begin.len() + end.len() && issuer.starts_with(begin) && issuer.ends_with(end)
}

/// Whether somebody looks at a page, rather than a script that cannot log in.
fn is_navigation(method: &Method, headers: &HeaderMap) -> bool {
    let is = |name: &str, text: &str| {
        headers.get(name).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(text.as_bytes()))
    };
    let is_script = is("x-requested-with", "XMLHttpRequest")
        || headers.contains_key("sec-fetch-mode") && !is("sec-fetch-mode", "navigate")
        || headers.contains_key(header::UPGRADE)
        || headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    (method == Method::GET || method == Method::HEAD) && !is_script
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn scripts_are_not_sent_to_a_page() {
        for (method, headers, expected) in [
            (Method::GET, &[][..], true),
            (Method::HEAD, &[("accept", "*/*")], true),
            (Method::GET, &[("sec-fetch-mode", "navigate")], true),
            (Method::GET, &[("sec-fetch-mode", "cors")], false),
            (Method::GET, &[("x-requested-with", "XMLHttpRequest")], false),
            (Method::GET, &[("upgrade", "websocket")], false),
            (Method::POST, &[], false),
        ] {
            assert_eq!(is_navigation(&method, &fields(headers)), expected, "{method} {headers:?}");
        }
    }

    #[test]
    fn a_bearer_token_is_one_and_alone() {
        assert_eq!(bearer(&fields(&[("authorization", "Bearer a.b.c")])), Some("a.b.c"));
        assert_eq!(bearer(&fields(&[("authorization", "bearer  a.b.c ")])), Some("a.b.c"));
        assert_eq!(bearer(&fields(&[("authorization", "Basic a.b.c")])), None);
        assert_eq!(bearer(&fields(&[("authorization", "Bearer")])), None);
        let mut two = fields(&[("authorization", "Bearer a.b.c")]);
        two.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer d.e.f"));
        assert_eq!(bearer(&two), None);
    }

    #[test]
    fn only_the_same_settings_keep_a_login() {
        let provider = claims::tests::provider("own", cove_model::AuthProtocol::OpenId);
        let print = fingerprint(&provider);
        let scopes = AuthProvider { scopes: vec!["x".into()], ..provider.clone() };
        assert_eq!(fingerprint(&scopes), print);
        let client = AuthProvider { client_id: "other".into(), ..provider.clone() };
        assert_ne!(fingerprint(&client), print);
        let mut allowed = provider;
        allowed.allowed.identities.push("alice".into());
        assert_ne!(fingerprint(&allowed), print);
    }
}
