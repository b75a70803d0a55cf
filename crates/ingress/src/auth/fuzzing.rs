//! Parsers of what a client or provider says at a login.

use std::time::Duration;

use cove_model::{AllowedPrincipals, AuthOrigin, AuthPolicy, AuthProtocol, AuthProvider, UnauthenticatedAction};
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use reqwest::Url;
use serde_json::Value;

use super::{
    bearer, claims,
    claims::Principal,
    fetch, is_navigation,
    jwt::{self, Expected, KeySet, Token},
    may_be_tenant,
    place::{self, Seen, Site},
    seal::{AuthKey, Sealer, random_text},
    session::{self, LoginState, Session},
};

/// A key of which no signature is known, and a token that it has not signed.
const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
{"kty":"EC","crv":"P-256","kid":"a","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
const ISSUER: &str = "https://op.example/{tenantid}/v2.0";
const NOW_SECS: i64 = 1_900_000_000;

/// A letter for the parser, then its text.
///
/// # Panics
/// Something that must hold does not.
pub fn auth_token(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match kind {
        b'T' => token(text),
        b'K' => keys(text),
        b'C' => told(text),
        b'S' => cookies(text),
        b'J' => sealed(text),
        b'A' => addresses(text),
        b'X' => excluded(text),
        b'Q' => queries(text),
        b'H' => fields(text),
        _ => {}
    }
}

/// Nothing is signed by a key whose other half nobody has.
fn token(text: &str) {
    let Ok(token) = Token::parse(text) else { return };
    let keys = serde_json::from_str(KEYS).ok().and_then(|keys| KeySet::read(&keys)).expect("two good keys");
    assert!(token.verify(&keys).is_err(), "a signature out of nothing");
    let _ = token.claimed_issuer();
}

/// Keys and a token of theirs, each in a line: whatever the keys are, checking ends.
fn keys(text: &str) {
    let (document, token) = text.split_once('\n').unwrap_or((text, ""));
    let Some(keys) = serde_json::from_str(document).ok().and_then(|document| KeySet::read(&document)) else { return };
    if let Ok(token) = Token::parse(token) {
        let _ = token.verify(&keys);
    }
}

/// Claims that pass are of the issuer, for us, of now and of somebody; they come through the headers and the cookie.
fn told(text: &str) {
    let Ok(Value::Object(told)) = serde_json::from_str::<Value>(text) else { return };
    for (nonce, audiences) in [(None, &["me", "api"][..]), (Some("n"), &["me"][..])] {
        let expected = Expected { issuer: ISSUER, audiences, client_id: "me", nonce, now_secs: NOW_SECS };
        if jwt::check(&told, &expected).is_ok() {
            let issuer = told["iss"].as_str().expect("an issuer was compared");
            assert!(issuer == ISSUER || may_be_tenant(ISSUER, issuer), "{issuer}");
            assert!(jwt::seconds(&told, "exp").is_some_and(|end| end > NOW_SECS - 301));
            assert!(!told["sub"].as_str().unwrap_or_default().is_empty());
        }
    }
    for protocol in [AuthProtocol::OpenId, AuthProtocol::OAuth2] {
        let provider = provider(protocol);
        let _ = claims::is_allowed(&provider.allowed, &told, true);
        let Some(principal) = Principal::of(&provider, &told) else { continue };
        let mut headers = HeaderMap::new();
        principal.write(&mut headers);
        assert!(headers.keys().all(claims::is_ours), "{headers:?}");
        claims::remove_ours(&mut headers);
        assert!(headers.is_empty());
        let sealer = sealer();
        let session = Session { principal, expires_secs: 7, id: None, fingerprint: 1 };
        let sealed = session.seal(&sealer);
        let read: Session = sealer.open(&sealed).expect("what was sealed opens");
        assert!(read.principal.claims.len() <= session.principal.claims.len());
        assert!(sealed.len() <= 3800 || read.principal.claims.is_empty(), "{}", sealed.len());
    }
}

/// Cookies that a client made up are no session and bind nobody's login.
fn cookies(text: &str) {
    let Ok(value) = HeaderValue::try_from(text) else { return };
    let headers: HeaderMap = [(header::COOKIE, value.clone()), (session::SESSION_HEADER, value)].into_iter().collect();
    assert_eq!(Session::read(&headers, &sealer()), None);
    let binding = session::binding(&headers);
    assert!(binding.len() == 43 && binding.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    let state = LoginState {
        provider: "own".into(),
        nonce: "n".into(),
        verifier: "v".into(),
        target: "/".into(),
        expires_secs: 100,
        binding: session::hash(&random_text::<32>()),
    };
    assert!(!state.holds(&headers, "own", 7), "a login of another browser");
}

/// A text is no sealed value; what JSON says is the same again once sealed.
fn sealed(text: &str) {
    let sealer = sealer();
    assert!(sealer.open::<Value>(text).is_none() && sealer.open_bytes::<Value>(text.as_bytes()).is_none());
    if let Ok(session) = serde_json::from_str::<Session>(text) {
        let sealed = sealer.seal(&session);
        assert_eq!(sealer.open::<Session>(&sealed), Some(session));
    }
}

/// `wanted`, `host`, `path`, `app path` in lines: a browser that follows the answer stays where it may be.
fn addresses(text: &str) {
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (wanted, host, path, app_path) = (next(), next(), next(), next());
    let mut headers = HeaderMap::new();
    if let Ok(host) = HeaderValue::try_from(host) {
        headers.insert("x-forwarded-host", host);
    }
    let seen = Seen { is_https: false, host: "web.example:8080", path, app_path, headers: &headers };
    let site = Site::of(&AuthOrigin::Forwarded, seen);
    assert!(site.host.parse::<http::uri::Authority>().is_ok() && !site.host.contains('@'), "{}", site.host);
    assert!(site.base.is_empty() || site.base.starts_with('/') && !site.base.ends_with('/'), "{}", site.base);
    let cookie = session::set_cookie("n", "v", &site, Some(5));
    assert_eq!(cookie.as_bytes().iter().filter(|&&byte| byte == b';').count(), 4, "{cookie:?}");
    let site = Site { host: "web.example:8080".to_owned(), ..site };
    let policy = policy(&["https://portal.example/home?x=1"]);
    if let Some(target) = site.target(wanted, &policy) {
        stays(&site, &target);
    }
    if wanted.starts_with('/') && wanted.parse::<Uri>().is_ok() {
        let back = place::return_path("", wanted);
        if back.len() < 2048 && back.is_ascii() {
            let target = site.target(&back, &policy).expect("a path of this site leads to this site");
            stays(&site, &target);
        }
    }
}

/// As browsers read a `Location` (the URL standard), it is of this site or listed.
fn stays(site: &Site, target: &str) {
    assert!(HeaderValue::try_from(target).is_ok());
    let own = Url::parse(&site.origin()).expect("an origin is a URL");
    let Ok(there) = own.join(target) else { return };
    let listed = Url::parse("https://portal.example/home").expect("a URL");
    let is_listed = there.origin() == listed.origin() && there.path().trim_end_matches('/') == listed.path();
    assert!(there.origin() == own.origin() || is_listed, "{target} leads to {there}");
}

/// A path that needs no login is, as an app may read it, still below the excluded one.
fn excluded(path: &str) {
    if !place::is_excluded(path, &["/health".to_owned(), "/public/*".to_owned()]) {
        return;
    }
    let base = Url::parse("http://web.example").expect("a URL");
    let url = base.join(path).expect("an excluded path is a path");
    let decoded = percent_encoding::percent_decode_str(url.path()).decode_utf8_lossy();
    let is_below =
        |path: &str| path.trim_end_matches('/') == "/health" || path == "/public" || path.starts_with("/public/");
    assert!(url.origin() == base.origin() && is_below(url.path()) && is_below(&decoded), "{path} is {url}");
    assert!(!decoded.split('/').any(|part| part == ".."), "{path} is {decoded}");
}

/// What is written into a query is read out of it.
fn queries(text: &str) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    let _ = (place::parameter(text, name), place::parameter(text, "state"));
    if name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        let query = place::query(&[(name, value), ("other!", text)]);
        assert_eq!(place::parameter(&query, name).as_deref(), Some(value));
        let whole = place::with_query("https://op.example/a?x=1#f", &[(name, value)]);
        let url = Url::parse(&whole).expect("an address with more in its query is one");
        assert_eq!((url.host_str(), url.path(), url.fragment()), (Some("op.example"), "/a", Some("f")));
    }
    assert!(fetch::word(text).len() <= 60);
}

/// Values of `Authorization` and of what tells scripts from people.
fn fields(text: &str) {
    let Ok(value) = HeaderValue::try_from(text) else { return };
    let headers: HeaderMap =
        [(header::AUTHORIZATION, value.clone()), (header::CONTENT_TYPE, value)].into_iter().collect();
    if let Some(token) = bearer(&headers) {
        assert!(text.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer")) && text.contains(token));
    }
    let _ = is_navigation(&Method::GET, &headers);
}

fn sealer() -> Sealer {
    Sealer::of_files(&AuthKey::new([7; 32]))
}

fn provider(protocol: AuthProtocol) -> AuthProvider {
    AuthProvider {
        name: "own".to_owned(),
        protocol,
        discovery: None,
        issuer: None,
        authorization_endpoint: None,
        token_endpoint: None,
        keys_endpoint: None,
        user_endpoint: None,
        client_id: "me".to_owned(),
        client_secret: None,
        scopes: Vec::new(),
        login_parameters: Vec::new(),
        name_claim: Some("login".to_owned()),
        audiences: Vec::new(),
        allowed: AllowedPrincipals { groups: vec!["g".to_owned()], ..AllowedPrincipals::default() },
        accepts_bearer: true,
        challenges: true,
    }
}

/// A policy with nothing but these redirects.
pub(super) fn policy(external: &[&str]) -> AuthPolicy {
    AuthPolicy {
        action: UnauthenticatedAction::Return401,
        redirect_to: None,
        excluded_paths: Vec::new(),
        api_prefix: "/.auth".to_owned(),
        logout_path: None,
        requires_https: false,
        origin: AuthOrigin::Request,
        providers: Vec::new(),
        external_redirects: external.iter().map(|&it| it.to_owned()).collect(),
        session_time: None,
        nonce_time: Duration::from_secs(300),
        checks_nonce: true,
        keeps_tokens: false,
        refresh_extension: Duration::ZERO,
        sealing_secrets: Vec::new(),
    }
}
