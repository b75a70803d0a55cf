//! Rules of the way in: IP restrictions, CORS, affinity, client certificates.

use std::sync::Arc;

use cove_ingress::IngressConfig;
use cove_model::{ClientCertificateMode, CorsPolicy, IngressPolicies, IpRestriction};
use cove_traffic::{AppRoute, WeightedRevision};
use http::Response;
use rustls::pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::world::{Backend, World, parts, raw, reason, revision, route, soon, text, until};

fn with(app: &str, policies: IngressPolicies) -> AppRoute {
    AppRoute { policies: Arc::new(policies), ..route(app) }
}

fn rule(is_allow: bool, range: &str) -> IpRestriction {
    IpRestriction { name: "rule".into(), is_allow, range: range.into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_that_are_not_let_in_get_403_and_wake_nothing() {
    let trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    let world = World::with(IngressConfig { trusted_proxies, ..IngressConfig::default() }).await;
    let app = Backend::named("in").await;
    for (name, rules) in [("allow", rule(true, "192.0.2.0/24")), ("deny", rule(false, "192.0.2.0/24"))] {
        let policies = IngressPolicies { ip_restrictions: vec![rules], ..IngressPolicies::default() };
        world.route(name, with(name, policies));
        world.ready(&revision(name, "v1"), &[app.address]);
    }
    for (name, client, expected) in [
        ("allow", "192.0.2.7", 200),
        ("allow", "198.51.100.1", 403),
        ("deny", "192.0.2.7", 403),
        ("deny", "198.51.100.1", 200),
    ] {
        let request = format!(
            "GET / HTTP/1.1\r\nhost: {name}.env.localhost\r\nx-forwarded-for: {client}\r\nconnection: close\r\n\r\n"
        );
        let answer = raw(world.http, &request).await;
        assert_eq!(parts(&answer).0, expected, "{name} {client}: {answer}");
        if expected == 403 {
            assert_eq!(reason(&answer), "ip-not-allowed");
            assert!(answer.contains("RBAC: access denied"), "{answer}");
        }
    }
    assert_eq!(world.handle.load(&revision("allow", "v1")).arrivals_total, 1);
    let shut = IngressPolicies { ip_restrictions: vec![rule(true, "192.0.2.0/24")], ..IngressPolicies::default() };
    world.route("asleep", with("asleep", shut));
    let answer = raw(world.http, "GET / HTTP/1.1\r\nhost: asleep.env.localhost\r\nconnection: close\r\n\r\n").await;
    assert_eq!(parts(&answer).0, 403);
    let activated = world.activated.lock().unwrap();
    assert!(!activated.contains(&revision("asleep", "v1")), "nobody is woken for who may not call: {activated:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preflights_are_answered_here_and_origins_are_named() {
    let world = World::start().await;
    let app = Backend::http(|request| async move {
        let mut response = Response::new(text(format!("app saw {}", request.method())));
        response.headers_mut().insert("access-control-allow-origin", "https://of-the-app".parse().unwrap());
        response
    })
    .await;
    let cors = CorsPolicy {
        allowed_origins: vec!["https://shop.example".into()],
        allowed_methods: vec!["GET".into(), "PUT".into()],
        allowed_headers: vec!["x-a".into()],
        expose_headers: vec!["x-total".into()],
        max_age_secs: Some(60),
        allow_credentials: true,
    };
    world.route("web", with("web", IngressPolicies { cors: Some(cors), ..IngressPolicies::default() }));
    world.ready(&revision("web", "v1"), &[app.address]);
    let ask = async |method: &str, origin: &str| {
        let request = format!(
            "{method} / HTTP/1.1\r\nhost: web.env.localhost\r\norigin: {origin}\r\n\
             access-control-request-method: PUT\r\nconnection: close\r\n\r\n"
        );
        raw(world.http, &request).await
    };
    let answer = ask("OPTIONS", "https://shop.example").await;
    assert_eq!(parts(&answer), (200, String::new()), "{answer}");
    for field in [
        "access-control-allow-origin: https://shop.example",
        "access-control-allow-methods: GET,PUT",
        "access-control-allow-headers: x-a",
        "access-control-max-age: 60",
        "access-control-allow-credentials: true",
    ] {
        assert!(answer.contains(&format!("{field}\r\n")), "{field}: {answer}");
    }
    assert_eq!(world.handle.load(&revision("web", "v1")).arrivals_total, 0);
    let answer = ask("GET", "https://shop.example").await;
    assert_eq!(parts(&answer), (200, "app saw GET".into()));
    assert!(answer.contains("access-control-allow-origin: https://shop.example\r\n"), "{answer}");
    assert!(
        answer.contains("access-control-expose-headers: x-total\r\n") && !answer.contains("of-the-app"),
        "{answer}"
    );
    let answer = ask("OPTIONS", "https://other.example").await;
    assert_eq!(parts(&answer), (200, "app saw OPTIONS".into()), "what the policy does not name goes to the app");
    assert!(!answer.contains("shop.example"), "{answer}");
}

fn cookie(answer: &str) -> Option<&str> {
    answer.lines().find_map(|line| line.strip_prefix("set-cookie: "))?.split(';').next()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_stays_at_its_replica_and_its_revision() {
    let world = World::start().await;
    let policies = IngressPolicies { is_sticky: true, ..IngressPolicies::default() };
    let (one, two) = (revision("web", "v1"), revision("web", "v2"));
    let share = |revision: &cove_model::RevisionKey, weight| WeightedRevision { revision: revision.clone(), weight };
    let both = vec![share(&one, 50), share(&two, 50)];
    world.route("web", AppRoute { revisions: both.clone(), ..with("web", policies.clone()) });
    let apps = [Backend::named("a").await, Backend::named("b").await, Backend::named("c").await];
    let others = [Backend::named("x").await, Backend::named("y").await];
    world.ready(&one, &[apps[0].address, apps[1].address]);
    world.ready(&two, &[others[0].address, others[1].address]);
    let ask = async |cookie: Option<&str>| {
        let cookie = cookie.map(|cookie| format!("cookie: a=b; {cookie}\r\n")).unwrap_or_default();
        let request = format!("GET / HTTP/1.1\r\nhost: web.env.localhost\r\n{cookie}connection: close\r\n\r\n");
        raw(world.http, &request).await
    };
    // clients of both revisions keep what they got
    let mut of_one = None;
    for _ in 0..8 {
        let first = ask(None).await;
        let (kept, name) = (cookie(&first).unwrap().to_owned(), parts(&first).1);
        assert!(first.contains("; Path=/; HttpOnly\r\n"), "{first}");
        for _ in 0..5 {
            let again = ask(Some(&kept)).await;
            assert_eq!(parts(&again).1, name);
            assert_eq!(cookie(&again), None, "a cookie that holds is not sent anew: {again}");
        }
        if "ab".contains(&name) {
            of_one = Some((kept, name));
        }
    }
    // scale-out moves nobody
    let (kept, name) = of_one.unwrap();
    world.ready(&one, &[apps[0].address, apps[1].address, apps[2].address]);
    for _ in 0..10 {
        assert_eq!(parts(&ask(Some(&kept)).await).1, name);
    }
    // its replica is gone: another of the same revision, and a new cookie
    world.ready(&one, &[others[0].address]);
    until("the change", || world.handle.load(&one).open == 0).await;
    world.endpoints.set(one.clone(), crate::world::endpoints(&one, &[], &[0, 1, 2]));
    let third = Backend::named("d").await;
    let mut endpoints = crate::world::endpoints(&one, &[], &[0, 1, 2]);
    endpoints.ready.push(cove_traffic::Endpoint {
        replica: crate::world::replica(&one, 9),
        address: third.address,
        order: 9,
    });
    world.endpoints.set(one.clone(), endpoints);
    let moved = soon("the new replica", async {
        loop {
            let answer = ask(Some(&kept)).await;
            if parts(&answer).1 == "d" {
                return answer;
            }
        }
    })
    .await;
    let kept = cookie(&moved).unwrap().to_owned();
    assert_eq!(parts(&ask(Some(&kept)).await).1, "d");
    // a revision without a share lets its clients go
    world.route("web", AppRoute { revisions: vec![share(&one, 0), share(&two, 100)], ..with("web", policies) });
    let answer = soon("the other revision", async {
        loop {
            let answer = ask(Some(&kept)).await;
            if parts(&answer).1 != "d" {
                return answer;
            }
        }
    })
    .await;
    assert!(["x", "y"].contains(&parts(&answer).1.as_str()) && cookie(&answer).is_some(), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_is_told_which_app_of_its_environment_calls() {
    let world = World::start().await;
    let app = Backend::http(|request| async move {
        let fields = request.headers().get_all("x-forwarded-client-cert").iter();
        Response::new(text(fields.map(|field| field.to_str().unwrap()).collect::<Vec<_>>().join("|")))
    })
    .await;
    let named = IngressPolicies { names_callers: true, ..IngressPolicies::default() };
    world.route("told", with("told", named.clone()));
    world.route("untold", with("untold", IngressPolicies::default()));
    world.route("far", AppRoute { environment: crate::world::environment("other"), ..with("far", named) });
    for name in ["told", "untold", "far"] {
        world.ready(&revision(name, "v1"), &[app.address]);
    }
    for (from, name, expected) in [
        // what the caller writes there itself reaches nobody
        (world.internal, "told", "By=spiffe://env/app/told;URI=spiffe://env/app/caller"),
        (world.internal, "untold", ""),
        (world.internal, "far", ""),
        (world.http, "told", ""),
    ] {
        let request = format!(
            "GET / HTTP/1.1\r\nhost: {name}.env.localhost\r\nx-forwarded-client-cert: URI=spiffe://env/app/admin\r\n\
             connection: close\r\n\r\n"
        );
        assert_eq!(parts(&raw(from, &request).await), (200, expected.to_owned()), "{name}");
    }
}

struct AnyServer;

impl AnyServer {
    /// A TLS client that trusts the world's certificate.
    fn config(world: &World, certificate: Option<&rcgen::CertifiedKey<rcgen::KeyPair>>) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(world.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match certificate {
            None => builder.with_no_client_auth(),
            Some(made) => {
                let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
                builder.with_client_auth_cert(vec![made.cert.der().clone()], key).unwrap()
            }
        }
    }
}

async fn tls(world: &World, config: &rustls::ClientConfig, name: &'static str, host: &str) -> String {
    let stream = TcpStream::connect(world.https).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config.clone()));
    let mut stream = soon("the handshake", connector.connect(name.try_into().unwrap(), stream)).await.unwrap();
    let request =
        format!("GET / HTTP/1.1\r\nhost: {host}\r\nx-forwarded-client-cert: forged\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _end = soon("the answer", stream.read_to_string(&mut answer)).await;
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_certificates_are_asked_for_where_an_app_wants_them() {
    let world = World::start().await;
    let app = Backend::http(|request| async move {
        let seen = request.headers().get("x-forwarded-client-cert").and_then(|value| value.to_str().ok());
        Response::new(text(seen.unwrap_or("none").to_owned()))
    })
    .await;
    for (name, mode) in [
        ("web", ClientCertificateMode::Require),
        ("accepts", ClientCertificateMode::Accept),
        ("ignores", ClientCertificateMode::Ignore),
    ] {
        world.route(name, with(name, IngressPolicies { client_certificate: mode, ..IngressPolicies::default() }));
        world.ready(&revision(name, "v1"), &[app.address]);
    }
    until("the routes", || world.handle.held_total() == 0).await;
    let made = rcgen::generate_simple_self_signed(vec!["client".to_owned()]).unwrap();
    let (with, without) = (AnyServer::config(&world, Some(&made)), AnyServer::config(&world, None));
    let hash: String = ring_sha256(made.cert.der()).iter().map(|byte| format!("{byte:02x}")).collect();
    // resumed sessions too
    for _ in 0..3 {
        let answer = tls(&world, &with, "web.env.localhost", "web.env.localhost").await;
        let (status, body) = parts(&answer);
        assert_eq!(status, 200, "{answer}");
        assert!(body.starts_with(&format!("Hash={hash};Cert=\"-----BEGIN%20CERTIFICATE-----%0A")), "{body}");
        assert!(body.contains(";Chain=\"-----BEGIN%20CERTIFICATE-----%0A"), "{body}");
        let answer = tls(&world, &without, "web.env.localhost", "web.env.localhost").await;
        assert_eq!((parts(&answer).0, reason(&answer)), (403, "client-certificate-required"), "{answer}");
    }
    // over plain HTTP nobody can show one
    let plain = raw(world.http, "GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: close\r\n\r\n").await;
    assert_eq!((parts(&plain).0, reason(&plain)), (403, "client-certificate-required"), "{plain}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_for_another_host_is_sent_back_where_a_certificate_is_wanted() {
    let world = World::start().await;
    let app = Backend::http(|request| async move {
        let seen = request.headers().contains_key("x-forwarded-client-cert");
        Response::new(text(format!("{seen}")))
    })
    .await;
    let accept = IngressPolicies { client_certificate: ClientCertificateMode::Accept, ..IngressPolicies::default() };
    world.route("web", route("web"));
    world.route("accepts", with("accepts", accept.clone()));
    world.ready(&revision("web", "v1"), &[app.address]);
    world.ready(&revision("accepts", "v1"), &[app.address]);
    let made = rcgen::generate_simple_self_signed(vec!["client".to_owned()]).unwrap();
    let with_one = AnyServer::config(&world, Some(&made));
    let answer = tls(&world, &with_one, "web.env.localhost", "web.env.localhost").await;
    assert_eq!(parts(&answer), (200, "false".into()), "not asked for, a forged field is taken away");
    let answer = tls(&world, &with_one, "web.env.localhost", "accepts.env.localhost").await;
    assert_eq!((parts(&answer).0, reason(&answer)), (421, "misdirected"), "{answer}");
    world.route("web", with("web", accept));
    let answer = soon("the new rule", async {
        loop {
            let answer = tls(&world, &with_one, "web.env.localhost", "web.env.localhost").await;
            if parts(&answer).1 == "true" {
                return answer;
            }
        }
    })
    .await;
    assert_eq!(parts(&answer).0, 200);
    let without = AnyServer::config(&world, None);
    let answer = tls(&world, &without, "web.env.localhost", "web.env.localhost").await;
    assert_eq!(parts(&answer), (200, "false".into()), "accepted, not required");
    world.route("plain", route("plain"));
    world.ready(&revision("plain", "v1"), &[app.address]);
    let answer = tls(&world, &with_one, "web.env.localhost", "plain.env.localhost").await;
    assert_eq!(parts(&answer), (200, "false".into()), "an app that asks for none does not see one given to another");
}

fn ring_sha256(bytes: &[u8]) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().to_vec()
}
