//! Authentication in front of an app, with an OpenID Connect provider in the test's hands.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use cove_ingress::IngressConfig;
use cove_model::{
    AllowedPrincipals, AuthOrigin, AuthPolicy, AuthProtocol, AuthProvider, HttpRoute, HttpRouteRule, HttpRouteTarget,
    IngressPolicies, PathMatcher, SecretText, UnauthenticatedAction,
};
use cove_traffic::{AppRoute, Host, HostCertificate, HostRoute, PathRoutes};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use ring::{
    digest,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use serde_json::{Value, json};

use crate::world::{Backend, Body, World, environment, parts, raw, reason, revision, route, soon, text};

/// A provider: what it does wrong is up to the test.
struct Provider {
    backend: Backend,
    state: Arc<State>,
}

struct State {
    key: EcdsaKeyPair,
    address: Mutex<Option<SocketAddr>>,
    /// Nonce and PKCE challenge by code.
    codes: Mutex<BTreeMap<String, (String, String)>>,
    /// Laid over the claims of ID tokens.
    claims: Mutex<Value>,
    /// Requests by path.
    asked: Mutex<BTreeMap<String, usize>>,
    is_down: Mutex<bool>,
}

impl State {
    fn issuer(&self) -> String {
        format!("http://{}", self.address.lock().unwrap().unwrap())
    }

    fn sign(&self, claims: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&json!({ "alg": "ES256", "kid": "k1" })), encode(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    fn claims(&self, more: &Value) -> Value {
        let mut claims = json!({ "iss": self.issuer(), "aud": "client", "sub": "alice", "exp": 4_000_000_000_u64,
            "email": "alice@example.org", "roles": ["reader"] });
        for part in [&*self.claims.lock().unwrap(), more] {
            for (name, value) in part.as_object().into_iter().flatten() {
                claims[name] = value.clone();
            }
        }
        claims
    }

    fn keys(&self) -> Value {
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "k1", "x": x, "y": y }] })
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        *self.asked.lock().unwrap().entry(path.clone()).or_default() += 1;
        if *self.is_down.lock().unwrap() {
            return Response::builder().status(500).body(text("down")).unwrap();
        }
        let query = request.uri().query().unwrap_or_default().to_owned();
        let issuer = self.issuer();
        let document = |value: Value| Response::new(text(value.to_string()));
        match path.as_str() {
            "/.well-known/openid-configuration" => document(json!({
                "issuer": issuer,
                "authorization_endpoint": format!("{issuer}/authorize"),
                "token_endpoint": format!("{issuer}/token"),
                "jwks_uri": format!("{issuer}/keys"),
                "end_session_endpoint": format!("{issuer}/end"),
            })),
            "/keys" => document(self.keys()),
            "/authorize" => {
                let code = format!("code{}", self.codes.lock().unwrap().len());
                let asked = (field(&query, "nonce"), field(&query, "code_challenge"));
                self.codes.lock().unwrap().insert(code.clone(), asked);
                let back = format!("{}?code={code}&state={}", field(&query, "redirect_uri"), field(&query, "state"));
                Response::builder().status(302).header("location", back).body(text("")).unwrap()
            }
            "/token" => {
                let form = request.into_body().collect().await.unwrap().to_bytes();
                self.token(&String::from_utf8_lossy(&form))
            }
            "/user" => document(json!({ "id": 7, "login": "alice-h", "name": null })),
            _ => Response::builder().status(404).body(text("")).unwrap(),
        }
    }

    fn token(&self, form: &str) -> Response<Body> {
        let refuse =
            |code: &str| Response::builder().status(400).body(text(json!({ "error": code }).to_string())).unwrap();
        if field(form, "client_id") != "client" || field(form, "client_secret") != "s3cret" {
            return refuse("invalid_client");
        }
        if field(form, "grant_type") == "refresh_token" {
            return match field(form, "refresh_token").as_str() {
                "refresh-1" => Response::new(text(json!({ "access_token": "access-2", "expires_in": 60 }).to_string())),
                _ => refuse("invalid_grant"),
            };
        }
        let Some((nonce, challenge)) = self.codes.lock().unwrap().remove(&field(form, "code")) else {
            return refuse("invalid_grant");
        };
        let verifier = digest::digest(&digest::SHA256, field(form, "code_verifier").as_bytes());
        if URL_SAFE_NO_PAD.encode(verifier) != challenge {
            return refuse("invalid_grant");
        }
        let id_token = self.sign(&self.claims(&json!({ "nonce": nonce })));
        Response::new(text(
            json!({ "id_token": id_token, "access_token": "access-1", "refresh_token": "refresh-1", "expires_in": 3600 })
                .to_string(),
        ))
    }
}

/// A value of a query or form, decoded.
fn field(pairs: &str, name: &str) -> String {
    let value = pairs.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name));
    let value = value.map_or("", |(_, value)| value);
    percent_encoding::percent_decode_str(value).decode_utf8().unwrap().into_owned()
}

impl Provider {
    async fn start() -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
        let state = Arc::new(State {
            key,
            address: Mutex::default(),
            codes: Mutex::default(),
            claims: Mutex::new(json!({})),
            asked: Mutex::default(),
            is_down: Mutex::default(),
        });
        let backend = Backend::http({
            let state = Arc::clone(&state);
            move |request| Arc::clone(&state).answer(request)
        })
        .await;
        *state.address.lock().unwrap() = Some(backend.address);
        Self { backend, state }
    }

    fn settings(&self) -> AuthProvider {
        AuthProvider {
            name: "own".into(),
            protocol: AuthProtocol::OpenId,
            discovery: Some(format!("http://{}/.well-known/openid-configuration", self.backend.address)),
            issuer: None,
            authorization_endpoint: None,
            token_endpoint: None,
            keys_endpoint: None,
            user_endpoint: None,
            client_id: "client".into(),
            client_secret: Some(SecretText::new("s3cret".into())),
            scopes: vec!["openid".into(), "email".into()],
            login_parameters: Vec::new(),
            name_claim: None,
            audiences: vec!["api://client".into()],
            allowed: AllowedPrincipals::default(),
            accepts_bearer: true,
            challenges: true,
        }
    }

    fn policy(&self, action: UnauthenticatedAction) -> AuthPolicy {
        AuthPolicy {
            action,
            redirect_to: None,
            excluded_paths: vec!["/open/*".into()],
            api_prefix: "/.auth".into(),
            logout_path: None,
            requires_https: false,
            origin: AuthOrigin::Request,
            providers: vec![self.settings()],
            external_redirects: Vec::new(),
            session_time: Some(Duration::from_secs(3600)),
            nonce_time: Duration::from_secs(300),
            checks_nonce: true,
            keeps_tokens: false,
            refresh_extension: Duration::from_secs(3600),
            sealing_secrets: Vec::new(),
        }
    }

    fn asked(&self, path: &str) -> usize {
        self.state.asked.lock().unwrap().get(path).copied().unwrap_or(0)
    }
}

/// An app that tells the headers that it got.
async fn echo() -> Backend {
    Backend::http(|request| async move {
        let lines = request.headers().iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()));
        Response::new(text(format!("{}\n{}", request.uri(), lines.collect::<String>())))
    })
    .await
}

async fn world_with(policy: AuthPolicy) -> (World, Backend) {
    let world = World::with(IngressConfig::default()).await;
    let app = echo().await;
    world.route("web", guarded(policy));
    world.ready(&revision("web", "v1"), &[app.address]);
    (world, app)
}

fn guarded(policy: AuthPolicy) -> AppRoute {
    let policies = IngressPolicies { auth: Some(Arc::new(policy)), ..IngressPolicies::default() };
    AppRoute { policies: Arc::new(policies), ..route("web") }
}

/// A browser: it keeps cookies and follows no redirect by itself.
#[derive(Default)]
struct Browser {
    cookies: BTreeMap<String, String>,
}

impl Browser {
    async fn get(&mut self, world: &World, path: &str) -> String {
        self.send(world, "GET", path, "").await
    }

    async fn send(&mut self, world: &World, method: &str, path: &str, more: &str) -> String {
        let cookies: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: web.env.localhost\r\ncookie: {}\r\n{more}connection: close\r\n\r\n",
            cookies.join("; ")
        );
        let answer = raw(world.http, &request).await;
        for line in answer.lines().filter_map(|line| line.strip_prefix("set-cookie: ")) {
            assert!(line.contains("; HttpOnly; SameSite=Lax"), "{line}");
            let (name, rest) = line.split_once('=').unwrap();
            let value = rest.split(';').next().unwrap();
            match value {
                "" => self.cookies.remove(name),
                value => self.cookies.insert(name.to_owned(), value.to_owned()),
            };
        }
        answer
    }

    /// Goes to the provider and back; the last answer.
    async fn log_in(&mut self, world: &World, provider: &Provider, path: &str) -> String {
        let answer = self.get(world, path).await;
        let back = at_provider(provider, location(&answer)).await;
        self.get(world, &back).await
    }
}

fn location(answer: &str) -> &str {
    answer.lines().find_map(|line| line.strip_prefix("location: ")).unwrap_or_else(|| panic!("no location: {answer}"))
}

/// Where the provider sends a browser back to, as the ingress's path.
async fn at_provider(provider: &Provider, address: &str) -> String {
    let path = address.strip_prefix(&provider.state.issuer()).unwrap_or_else(|| panic!("not the provider: {address}"));
    let request = format!("GET {path} HTTP/1.1\r\nhost: op\r\nconnection: close\r\n\r\n");
    let answer = raw(provider.backend.address, &request).await;
    location(&answer).strip_prefix("http://web.env.localhost").unwrap().to_owned()
}

/// Asks until the answer has this reason: a new route counts a moment after it was published.
async fn eventually(wanted: &str, ask: impl AsyncFn() -> String) -> String {
    soon(wanted, async {
        loop {
            let answer = ask().await;
            if reason(&answer) == wanted {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

fn status(answer: &str) -> u16 {
    parts(answer).0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_logs_in_and_out() {
    let provider = Provider::start().await;
    let (world, _app) = world_with(provider.policy(UnauthenticatedAction::RedirectToLoginPage)).await;
    let mut browser = Browser::default();
    let answer = browser.get(&world, "/shop?item=1&x=%22").await;
    assert_eq!(status(&answer), 302, "{answer}");
    let page = location(&answer).to_owned();
    assert_eq!(page, "/.auth/login/own?post_login_redirect_uri=%2Fshop%3Fitem%3D1%26x%3D%2522");
    assert!(world.activated.lock().unwrap().is_empty());
    let answer = browser.log_in(&world, &provider, &page).await;
    assert_eq!((status(&answer), location(&answer)), (302, "/shop?item=1&x=%22"), "{answer}");
    assert!(answer.contains("cache-control: no-store"));
    let (code, told) = parts(&browser.get(&world, "/shop").await);
    assert_eq!(code, 200, "{told}");
    for line in [
        "x-ms-client-principal-id: alice\n",
        "x-ms-client-principal-name: alice@example.org\n",
        "x-ms-client-principal-idp: own\n",
    ] {
        assert!(told.contains(line), "{line}{told}");
    }
    let (_, me) = parts(&browser.get(&world, "/.auth/me").await);
    let me: Value = serde_json::from_str(&me).unwrap();
    assert_eq!(me[0]["user_id"], "alice@example.org");
    assert!(me[0]["user_claims"].as_array().unwrap().contains(&json!({ "typ": "roles", "val": "reader" })));
    let answer = browser.get(&world, "/.auth/logout?post_logout_redirect_uri=/bye").await;
    assert!(location(&answer).starts_with(&format!("{}/end?client_id=client&", provider.state.issuer())), "{answer}");
    let state = field(location(&answer).split_once('?').unwrap().1, "state");
    let answer = browser.get(&world, &format!("/.auth/logout/complete?state={state}")).await;
    assert_eq!(location(&answer), "/bye");
    assert_eq!(status(&browser.get(&world, "/shop").await), 302);
    assert_eq!((provider.asked("/.well-known/openid-configuration"), provider.asked("/keys")), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_is_good_for_its_own_browser_once_and_as_asked() {
    let provider = Provider::start().await;
    let (world, _app) = world_with(provider.policy(UnauthenticatedAction::Return401)).await;
    // a link that another browser's login left behind
    let mut attacker = Browser::default();
    let answer = attacker.get(&world, "/.auth/login/own").await;
    let back = at_provider(&provider, location(&answer)).await;
    let answer = Browser::default().get(&world, &back).await;
    assert_eq!((status(&answer), reason(&answer)), (400, "login-state-invalid"), "{answer}");
    assert_eq!(status(&attacker.get(&world, &back).await), 302);
    let answer = attacker.get(&world, &back).await;
    assert_eq!((status(&answer), reason(&answer)), (401, "login-failed"), "a code is used once: {answer}");
    assert!(answer.contains("invalid_grant"));
    // a token of another login
    for (claims, words) in [
        (json!({ "nonce": "other" }), "another login"),
        (json!({ "aud": "other" }), "another audience"),
        (json!({ "exp": 1 }), "has expired"),
        (json!({ "iss": "https://evil.example" }), "issuer"),
    ] {
        let mut browser = Browser::default();
        let answer = browser.get(&world, "/.auth/login/own").await;
        let back = at_provider(&provider, location(&answer)).await;
        // the nonce is laid over what `/token` puts in
        let code = field(back.split_once('?').unwrap().1, "code");
        if claims.get("nonce").is_some() {
            provider.state.codes.lock().unwrap().get_mut(&code).unwrap().0 = "other".into();
        } else {
            *provider.state.claims.lock().unwrap() = claims;
        }
        let answer = browser.get(&world, &back).await;
        *provider.state.claims.lock().unwrap() = json!({});
        assert_eq!((status(&answer), reason(&answer)), (401, "login-failed"), "{answer}");
        assert!(answer.contains(words), "{words}: {answer}");
        assert!(!browser.cookies.contains_key("AppServiceAuthSession"));
    }
    for query in ["", "?state=x&code=y", "?error=access_denied", "?code=y"] {
        let answer = Browser::default().get(&world, &format!("/.auth/login/own/callback{query}")).await;
        assert_eq!(reason(&answer), "login-state-invalid", "{query}");
    }
    for wanted in ["//evil.example", "https://evil.example", "/%5Cevil.example", "%2F%2Fevil.example"] {
        let answer =
            Browser::default().get(&world, &format!("/.auth/login/own?post_login_redirect_uri={wanted}")).await;
        assert_eq!(reason(&answer), "redirect-not-allowed", "{wanted}");
        let answer = Browser::default().get(&world, &format!("/.auth/logout?post_logout_redirect_uri={wanted}")).await;
        assert_eq!(reason(&answer), "redirect-not-allowed", "{wanted}");
    }
    for (path, expected) in
        [("/.auth", 404), ("/.auth/", 404), ("/.auth/login/none", 404), ("/.auth/me", 401), ("/.authority", 401)]
    {
        assert_eq!(status(&Browser::default().get(&world, path).await), expected, "{path}");
    }
    assert_eq!(status(&Browser::default().send(&world, "DELETE", "/.auth/me", "").await), 405);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_login_wakes_nothing_unless_it_may_pass() {
    let provider = Provider::start().await;
    for (action, expected, code) in [
        (UnauthenticatedAction::Return401, 401, "login-required"),
        (UnauthenticatedAction::Return403, 403, "login-forbidden"),
        (UnauthenticatedAction::RedirectToLoginPage, 302, "authentication"),
    ] {
        let world = World::start().await;
        world.route("web", guarded(provider.policy(action)));
        let answer = Browser::default().get(&world, "/").await;
        assert_eq!((status(&answer), reason(&answer)), (expected, code), "{answer}");
        let answer = Browser::default().get(&world, "/open/../admin").await;
        assert_eq!(status(&answer), expected, "{answer}");
        let script = Browser::default().send(&world, "GET", "/", "x-requested-with: XMLHttpRequest\r\n").await;
        assert_eq!(status(&script), if expected == 302 { 401 } else { expected });
        assert!(world.activated.lock().unwrap().is_empty());
        assert_eq!(world.handle.load(&revision("web", "v1")).arrivals_total, 0);
    }
    let (world, _app) = world_with(provider.policy(UnauthenticatedAction::Return401)).await;
    assert_eq!(status(&Browser::default().get(&world, "/open/a").await), 200);
    let (world, _app) = world_with(provider.policy(UnauthenticatedAction::AllowAnonymous)).await;
    let spoofed = "X-MS-CLIENT-PRINCIPAL-ID: admin\r\nx_ms_client_principal: e30=\r\nX-MS-TOKEN-AAD-ID-TOKEN: t\r\nauthorization: Bearer of-my-own\r\n";
    let (code, told) = parts(&Browser::default().send(&world, "GET", "/", spoofed).await);
    assert_eq!(code, 200);
    assert!(
        !told.to_lowercase().contains("ms-client") && !told.contains("ms_client") && !told.contains("x-ms-token"),
        "{told}"
    );
    assert!(told.contains("authorization: Bearer of-my-own"), "{told}");
    let mut browser = Browser::default();
    browser.log_in(&world, &provider, "/.auth/login/own").await;
    let taken = "connection: X-MS-CLIENT-PRINCIPAL-ID, x-ms-client-principal\r\nx-ms-client-principal-id: admin\r\n";
    let (_, told) = parts(&browser.send(&world, "GET", "/", taken).await);
    assert!(told.contains("x-ms-client-principal-id: alice"), "a client cannot take the headers away: {told}");
    browser.cookies.get_mut("AppServiceAuthSession").unwrap().replace_range(20..24, "AAAA");
    let (_, told) = parts(&browser.get(&world, "/").await);
    assert!(!told.contains("x-ms-client-principal"), "a forged cookie names nobody: {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bearer_token_is_checked() {
    let provider = Provider::start().await;
    let (world, _app) = world_with(provider.policy(UnauthenticatedAction::RedirectToLoginPage)).await;
    let call = async |token: &str| {
        Browser::default().send(&world, "GET", "/api", &format!("authorization: Bearer {token}\r\n")).await
    };
    let sign = |more: Value| provider.state.sign(&provider.state.claims(&more));
    let (code, told) = parts(&call(&sign(json!({ "aud": "api://client" }))).await);
    assert_eq!(code, 200, "{told}");
    assert!(told.contains("x-ms-client-principal-id: alice"), "{told}");
    for claims in [json!({ "aud": "other" }), json!({ "exp": 1 }), json!({ "sub": "" })] {
        let answer = call(&sign(claims.clone())).await;
        assert_eq!((status(&answer), reason(&answer)), (401, "token-invalid"), "{claims}");
        assert!(answer.contains("www-authenticate: Bearer error=\"invalid_token\""), "{answer}");
    }
    let token = sign(json!({}));
    let (signed, _) = token.rsplit_once('.').unwrap();
    let (_, payload) = signed.split_once('.').unwrap();
    for forged in [
        format!("{signed}.{}", "A".repeat(86)),
        format!("{}.{payload}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#)),
        format!("{}.{payload}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","kid":"k1"}"#), "A".repeat(43)),
    ] {
        assert_eq!(reason(&call(&forged).await), "token-invalid", "{forged}");
    }
    // made-up key names make nobody ask the provider again and again
    let before = provider.asked("/keys");
    for n in 0..20 {
        let header = URL_SAFE_NO_PAD.encode(json!({ "alg": "ES256", "kid": format!("made-up-{n}") }).to_string());
        assert_eq!(reason(&call(&format!("{header}.{payload}.{}", "A".repeat(86))).await), "token-invalid");
    }
    assert_eq!(provider.asked("/keys"), before);
    let mut policy = provider.policy(UnauthenticatedAction::Return401);
    policy.providers[0].allowed.identities.push("bob".into());
    world.route("web", guarded(policy));
    let answer = eventually("principal-not-allowed", async || call(&token).await).await;
    assert_eq!(status(&answer), 403, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_kept_refreshed_and_forgotten() {
    let provider = Provider::start().await;
    let policy = AuthPolicy { keeps_tokens: true, ..provider.policy(UnauthenticatedAction::Return401) };
    let (world, _app) = world_with(policy).await;
    let mut browser = Browser::default();
    browser.log_in(&world, &provider, "/.auth/login/own").await;
    assert!(browser.cookies["AppServiceAuthSession"].len() < 500, "the cookie is small");
    let (_, told) = parts(&browser.get(&world, "/").await);
    assert!(
        told.contains("x-ms-token-own-access-token: access-1") && told.contains("x-ms-token-own-id-token: ey"),
        "{told}"
    );
    let (_, me) = parts(&browser.get(&world, "/.auth/me").await);
    assert!(me.contains("access-1") && !me.contains("refresh-1"), "{me}");
    assert_eq!(status(&browser.get(&world, "/.auth/refresh").await), 200);
    let (_, told) = parts(&browser.get(&world, "/").await);
    assert!(told.contains("access-token: access-2") && told.contains("principal-id: alice"), "{told}");
    // what is ended here is worth nothing to who copied the cookie
    let mut thief = Browser { cookies: browser.cookies.clone() };
    assert_eq!(status(&browser.get(&world, "/.auth/logout").await), 302);
    assert_eq!(status(&thief.get(&world, "/").await), 401);
    assert_eq!(status(&thief.get(&world, "/.auth/refresh").await), 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_a_token_gets_a_session() {
    let provider = Provider::start().await;
    let (world, _app) = world_with(provider.policy(UnauthenticatedAction::Return401)).await;
    let body = json!({ "id_token": provider.state.sign(&provider.state.claims(&json!({}))) }).to_string();
    let post = async |body: &str| {
        let request = format!(
            "POST /.auth/login/own HTTP/1.1\r\nhost: web.env.localhost\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        raw(world.http, &request).await
    };
    let answer: Value = serde_json::from_str(&parts(&post(&body).await).1).unwrap();
    let session = answer["authenticationToken"].as_str().unwrap();
    let answer = Browser::default().send(&world, "GET", "/", &format!("x-zumo-auth: {session}\r\n")).await;
    assert!(answer.contains("x-ms-client-principal-id: alice"), "{answer}");
    let other = json!({ "id_token": provider.state.sign(&provider.state.claims(&json!({ "aud": "another-app" }))) });
    assert_eq!(reason(&post(&other.to_string()).await), "login-failed");
    assert_eq!(reason(&post("{}").await), "auth-body-invalid");
    assert_eq!(reason(&post(&"x".repeat(100_000)).await), "auth-body-invalid");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_is_down_is_told_and_left_alone() {
    let provider = Provider::start().await;
    let (world, _app) = world_with(provider.policy(UnauthenticatedAction::Return401)).await;
    *provider.state.is_down.lock().unwrap() = true;
    let mut answers = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let address = world.http;
        answers.spawn(async move {
            raw(address, "GET /.auth/login/own HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n").await
        });
    }
    while let Some(answer) = soon("an answer", answers.join_next()).await {
        let answer = answer.unwrap();
        assert_eq!((status(&answer), reason(&answer)), (503, "identity-provider-unavailable"), "{answer}");
    }
    assert_eq!(provider.asked("/.well-known/openid-configuration"), 1, "fifty requests ask it once");
    let told = world.told.lock().unwrap().iter().map(|event| event.reason.clone()).collect::<Vec<_>>();
    assert_eq!(told, ["IdentityProviderUnavailable"], "an outage is told once");
    // who needs no provider is served
    assert_eq!(status(&Browser::default().get(&world, "/open/a").await), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_without_id_tokens_tells_its_user_by_its_api() {
    let provider = Provider::start().await;
    let address = provider.state.issuer();
    let hub = AuthProvider {
        name: "github".into(),
        protocol: AuthProtocol::OAuth2,
        discovery: None,
        authorization_endpoint: Some(format!("{address}/authorize")),
        token_endpoint: Some(format!("{address}/token")),
        user_endpoint: Some(format!("{address}/user")),
        name_claim: Some("login".into()),
        accepts_bearer: false,
        ..provider.settings()
    };
    let policy = AuthPolicy { providers: vec![hub], ..provider.policy(UnauthenticatedAction::RedirectToLoginPage) };
    let (world, _app) = world_with(policy).await;
    let mut browser = Browser::default();
    let answer = browser.log_in(&world, &provider, "/.auth/login/GitHub?post_login_redirect_uri=/in").await;
    assert_eq!((status(&answer), location(&answer)), (302, "/in"), "{answer}");
    let (_, told) = parts(&browser.get(&world, "/in").await);
    for line in ["x-ms-client-principal-id: 7\n", "principal-name: alice-h\n", "principal-idp: github\n"] {
        assert!(told.contains(line), "{line}{told}");
    }
    // an access token does not say whom it was given to: it logs nobody in
    let answer = Browser::default().send(&world, "POST", "/.auth/login/github", "content-length: 0\r\n").await;
    assert_eq!((status(&answer), reason(&answer)), (405, "auth-method-not-allowed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_below_a_path_logs_in_below_it() {
    let provider = Provider::start().await;
    let (world, _app) = world_with(provider.policy(UnauthenticatedAction::RedirectToLoginPage)).await;
    let target = HttpRouteTarget { app: "web".into(), revision: None, label: None, weight: None };
    let route = HttpRoute {
        matcher: PathMatcher::PathSeparatedPrefix("/shop".into()),
        is_case_sensitive: true,
        prefix_rewrite: Some("/".into()),
    };
    let routes = PathRoutes {
        config: environment("env").child("httpRouteConfigs", "site").unwrap(),
        environment: environment("env"),
        rules: vec![HttpRouteRule { routes: vec![route], targets: vec![target] }],
    };
    world.change(|table| {
        let host = Host { route: HostRoute::Paths(Arc::new(routes)), certificate: HostCertificate::Platform };
        table.hosts.insert("site.env.localhost", host);
    });
    let get = async |path: &str| {
        raw(world.http, &format!("GET {path} HTTP/1.1\r\nhost: site.env.localhost:8080\r\nconnection: close\r\n\r\n"))
            .await
    };
    let answer = get("/shop/cart?a=b").await;
    assert_eq!(location(&answer), "/shop/.auth/login/own?post_login_redirect_uri=%2Fshop%2Fcart%3Fa%3Db");
    let answer = get(location(&answer)).await;
    let asked = location(&answer).split_once('?').unwrap().1;
    assert_eq!(field(asked, "redirect_uri"), "http://site.env.localhost:8080/shop/.auth/login/own/callback");
    assert!(answer.contains("AppServiceAuthNonce=") && answer.contains("; Path=/shop;"), "{answer}");
    assert_eq!(status(&get("/shop/open/a").await), 200);
    assert_eq!(status(&get("/shop/open/../a").await), 302);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_is_asked_for_where_the_app_wants_it() {
    let provider = Provider::start().await;
    let policy = AuthPolicy { requires_https: true, ..provider.policy(UnauthenticatedAction::AllowAnonymous) };
    let (world, _app) = world_with(policy.clone()).await;
    let answer = Browser::default().get(&world, "/a?b").await;
    assert_eq!((status(&answer), reason(&answer)), (301, "insecure-not-allowed"), "{answer}");
    assert_eq!(location(&answer), format!("https://web.env.localhost:{}/a?b", world.https.port()));
    // behind a proxy that speaks HTTPS
    world.route("web", guarded(AuthPolicy { origin: AuthOrigin::Forwarded, ..policy }));
    let answer = eventually("https-required", async || Browser::default().get(&world, "/").await).await;
    assert_eq!(status(&answer), 403, "{answer}");
    let proxied = "x-forwarded-proto: https\r\nx-forwarded-host: shop.example\r\n";
    assert_eq!(status(&Browser::default().send(&world, "GET", "/", proxied).await), 200);
    let answer = Browser::default().send(&world, "GET", "/.auth/login/own", proxied).await;
    let asked = location(&answer).split_once('?').unwrap().1;
    assert_eq!(field(asked, "redirect_uri"), "https://shop.example/.auth/login/own/callback");
    assert!(answer.contains("; SameSite=Lax; Secure"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_ends_and_the_platform_s_paths_can_be_moved() {
    let provider = Provider::start().await;
    let policy = AuthPolicy {
        keeps_tokens: true,
        session_time: Some(Duration::ZERO),
        api_prefix: "/platform".into(),
        logout_path: Some("/bye".into()),
        ..provider.policy(UnauthenticatedAction::Return401)
    };
    let (world, _app) = world_with(policy.clone()).await;
    assert_eq!(status(&Browser::default().get(&world, "/.auth/login/own").await), 401, "an ordinary path now");
    let mut browser = Browser::default();
    let answer = browser.log_in(&world, &provider, "/platform/login/own?post_login_redirect_uri=/in").await;
    assert_eq!(location(&answer), "/in");
    assert_eq!(status(&browser.get(&world, "/in").await), 401, "its time is over");
    assert_eq!(status(&browser.get(&world, "/platform/refresh").await), 200, "it can still be refreshed");
    let answer = browser.get(&world, "/bye").await;
    assert!(location(&answer).contains("/end?"), "{answer}");
    assert_eq!(status(&browser.get(&world, "/platform/refresh").await), 401);
}
