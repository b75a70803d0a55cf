//! What every HTTP source has in common: credentials, TLS, bounds, failures.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::Response;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::stub::{Stub, context, measured, once, reply, scalers, trigger};
use crate::rig::{Server, until};
use crate::source::Context;
use crate::tls::Roots;

fn api<'a>(url: &'a str, more: &[(&'a str, &'a str)]) -> crate::Trigger {
    let mut parameters = vec![("url", url), ("valueLocation", "jobs.waiting"), ("targetValue", "5")];
    parameters.extend_from_slice(more);
    trigger("metrics-api", &parameters)
}

type Parameters = &'static [(&'static str, &'static str)];
/// Value and activity, or a part of the error.
type Come = Result<(f64, bool), &'static str>;

const JOBS: &str = r#"{"jobs":{"waiting":7}}"#;

#[tokio::test]
async fn documents_in_every_format() {
    let cases = [
        ("json", JOBS, "jobs.waiting"),
        ("json", r#"{"jobs":[{"waiting":"7"}]}"#, "jobs.0.waiting"),
        ("xml", "<?xml version='1.0'?><jobs><waiting kind='a'>7</waiting></jobs>", "jobs.waiting.#text"),
        ("yaml", "jobs:\n  waiting: 7\n", "jobs.waiting"),
        ("prometheus", "# TYPE w gauge\nw{q=\"a\"} 3\nw{q=\"b\"} 7\n", "w{q=\"b\"}"),
    ];
    for (format, body, place) in cases {
        let stub = Stub::giving(200, body).await;
        let rule = api(&stub.url("/stats?a=b"), &[("format", format), ("valueLocation", place)]);
        assert_eq!(measured(&rule).await, Ok((7.0, true)), "{format} {place}");
        assert_eq!(stub.last().target, "/stats?a=b");
    }
}

#[tokio::test]
async fn nonsense_is_an_error_that_says_where() {
    for (format, body) in [("json", "<html>"), ("yaml", "a: [1"), ("xml", "{}"), ("json", r#"{"jobs":{}}"#)] {
        let stub = Stub::giving(200, body).await;
        let error = measured(&api(&stub.url("/stats"), &[("format", format)])).await.unwrap_err();
        assert!(!error.is_empty(), "{format}");
    }
}

#[tokio::test]
async fn credentials_of_every_mode() {
    let cases: [(Parameters, &str, &str); 6] = [
        (&[("authMode", "basic"), ("username", "u"), ("password", "p")], "authorization", "Basic dTpw"),
        (&[("authMode", "bearer"), ("token", "t1")], "authorization", "Bearer t1"),
        (&[("authModes", "bearer"), ("bearerToken", "t2")], "authorization", "Bearer t2"),
        (&[("authMode", "apiKey"), ("apiKey", "k")], "x-api-key", "k"),
        (&[("authMode", "apiKey"), ("apiKey", "k"), ("keyParamName", "X-Mine")], "x-mine", "k"),
        (&[("authModes", "custom"), ("customAuthHeader", "X-Who"), ("customAuthValue", "me")], "x-who", "me"),
    ];
    let stub = Stub::giving(200, JOBS).await;
    for (more, header, value) in cases {
        assert_eq!(measured(&api(&stub.url("/"), more)).await, Ok((7.0, true)));
        assert_eq!(stub.last().header(header), value);
    }
    let query = [("authMode", "apiKey"), ("apiKey", "k y"), ("method", "query")];
    assert!(measured(&api(&stub.url("/s"), &query)).await.is_ok());
    assert_eq!(stub.last().target, "/s?api_key=k+y");
    let wrong = measured(&api(&stub.url("/"), &[("authMode", "digest")])).await.unwrap_err();
    assert!(wrong.contains("expected apiKey, basic, bearer"), "{wrong}");
    let missing = measured(&api(&stub.url("/"), &[("authMode", "bearer")])).await.unwrap_err();
    assert!(missing.contains("bearerToken"), "{missing}");
}

#[tokio::test]
async fn a_token_by_client_credentials_is_kept_until_it_is_refused() {
    let given = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&given);
    let stub = Stub::start(move |seen| match seen.target.as_str() {
        "/token" => {
            assert_eq!(seen.header("content-type"), "application/x-www-form-urlencoded");
            let form = "grant_type=client_credentials&client_id=id&client_secret=s%26t&scope=read+write";
            assert_eq!(seen.body, form);
            let number = count.fetch_add(1, Ordering::Relaxed) + 1;
            reply(200, &format!(r#"{{"access_token":"t{number}","expires_in":3600}}"#))
        }
        _ if seen.header("authorization") == "Bearer t2" => reply(200, JOBS),
        _ => reply(401, ""),
    })
    .await;
    let uri = stub.url("/token");
    let more = [
        ("authModes", "oauth"),
        ("oauthTokenURI", uri.as_str()),
        ("clientID", "id"),
        ("clientSecret", "s&t"),
        ("scopes", "read,write"),
    ];
    let source = scalers().open(&api(&stub.url("/v"), &more), &context()).unwrap();
    let error = once(source.as_ref()).await.unwrap_err().to_string();
    assert!(error.contains("/v answered 401 Unauthorized; look at the rule's credentials"), "{error}");
    assert!(once(source.as_ref()).await.is_ok(), "a refused token is asked anew");
    assert!(once(source.as_ref()).await.is_ok());
    assert_eq!(given.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn no_error_shows_a_secret() {
    let stub = Stub::giving(403, "").await;
    let url = format!("http://user:hidden1@127.0.0.1:{}/v?key=hidden2", stub.port);
    let more = [("authModes", "apiKey"), ("apiKey", "hidden3"), ("method", "query")];
    let refused = measured(&api(&url, &more)).await.unwrap_err();
    assert_eq!(
        refused,
        format!("http://127.0.0.1:{}/v answered 403 Forbidden; look at the rule's credentials", stub.port)
    );
    let nobody = crate::rig::free_port();
    let dead = measured(&api(&format!("http://u:hidden@127.0.0.1:{nobody}/?key=hidden"), &more)).await.unwrap_err();
    assert_eq!(dead, format!("http://127.0.0.1:{nobody}/: no connection: Connection refused (os error 111)"));
    let source = scalers().open(&api(&url, &more), &context()).unwrap();
    assert!(!format!("{source:?}").contains("hidden"));
}

#[tokio::test]
async fn bounds_of_answers_and_redirects() {
    let huge = Stub::giving(200, "x".repeat(super::BODY_MAX + 1)).await;
    let error = measured(&api(&huge.url("/v"), &[])).await.unwrap_err();
    assert!(error.ends_with("/v gave more than 8 MiB"), "{error}");

    let moved = Stub::start(|seen| match seen.target.as_str() {
        "/old" => Response::builder().status(302).header("location", "/new").body(String::new()).unwrap(),
        "/loop" => Response::builder().status(302).header("location", "/loop").body(String::new()).unwrap(),
        _ => reply(200, JOBS),
    })
    .await;
    assert_eq!(measured(&api(&moved.url("/old"), &[])).await, Ok((7.0, true)));
    let error = measured(&api(&moved.url("/loop"), &[])).await.unwrap_err();
    assert!(error.ends_with("/loop: more than 5 redirects"), "{error}");
}

#[tokio::test]
async fn names_of_the_environment_come_first() {
    let stub = Stub::giving(200, JOBS).await;
    let hosts = |name: &str| (name == "api").then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let inside = Context { hosts: Arc::new(hosts), tokens: None };
    let rule = api(&format!("http://api:{}/v", stub.port), &[]);
    let scalers = scalers();
    assert!(once(scalers.open(&rule, &inside).unwrap().as_ref()).await.is_ok());
    assert_eq!(stub.last().header("host"), format!("api:{}", stub.port));
    // The same name elsewhere is not this one's connection.
    let outside = once(scalers.open(&rule, &context()).unwrap().as_ref()).await.unwrap_err();
    assert!(outside.to_string().contains("the name `api` leads nowhere"), "{outside}");
}

#[tokio::test]
async fn the_rules_own_timeout_counts() {
    // A listener that never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v", silent.local_addr().unwrap());
    let error = measured(&api(&url, &[("timeout", "50")])).await.unwrap_err();
    assert_eq!(error, format!("{url}: it did not answer in time"));
    let error = measured(&api(&url, &[("timeout", "soon")])).await.unwrap_err();
    assert!(error.contains("expected milliseconds"), "{error}");
}

struct Pki {
    ca: String,
    server: ServerConfig,
    client: (String, String),
}

/// A CA, a server that wants a client's certificate, and such a certificate.
fn pki() -> Pki {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let leaf = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        (certificate, key)
    };
    let (server, server_key) = leaf("127.0.0.1");
    let (client, client_key) = leaf("client");
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server.der().clone()], PrivateKeyDer::try_from(server_key.serialize_der()).unwrap())
        .unwrap();
    Pki { ca: ca.pem(), server: config, client: (client.pem(), client_key.serialize_pem()) }
}

#[tokio::test]
async fn certificates_of_both_sides() {
    let Pki { ca, server, client: (cert, key) } = pki();
    let stub = Stub::tls(server, |_| reply(200, JOBS)).await;
    let url = format!("https://127.0.0.1:{}/v", stub.port);
    let client = [("authModes", "tls"), ("cert", cert.as_str()), ("key", key.as_str())];

    let stranger = measured(&api(&url, &client)).await.unwrap_err();
    assert!(stranger.contains("certificate"), "{stranger}");
    let mut trusted = client.to_vec();
    trusted.push(("ca", ca.as_str()));
    assert_eq!(measured(&api(&url, &trusted)).await, Ok((7.0, true)));
    let mut lax = client.to_vec();
    lax.push(("unsafeSsl", "true"));
    assert_eq!(measured(&api(&url, &lax)).await, Ok((7.0, true)));
    let anonymous = measured(&api(&url, &[("ca", ca.as_str())])).await;
    assert!(anonymous.is_err(), "the server wants a certificate");
    let half = measured(&api(&url, &[("authModes", "tls"), ("cert", cert.as_str())])).await.unwrap_err();
    assert!(half.contains("key"), "{half}");
    let broken = measured(&api(&url, &[("ca", "nonsense")])).await.unwrap_err();
    assert!(broken.contains("ca is no certificate"), "{broken}");

    // The server's own configuration is trusted by all rules.
    let scalers = scalers().with_roots(Roots::from_pem(&[ca]).unwrap());
    let source = scalers.open(&api(&url, &client), &context()).unwrap();
    assert!(once(source.as_ref()).await.is_ok());
}

fn query<'a>(server: &'a str, more: &[(&'a str, &'a str)]) -> crate::Trigger {
    let mut parameters = vec![("serverAddress", server), ("query", "sum(rate(x{a=\"b\"}[2m]))"), ("threshold", "5")];
    parameters.extend_from_slice(more);
    trigger("prometheus", &parameters)
}

#[tokio::test]
async fn results_of_prometheus() {
    let vector =
        |values: &str| format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{values}]}}}}"#);
    let one = r#"{"metric":{},"value":[1,"3.5"]}"#;
    let strict: Parameters = &[("ignoreNullValues", "false")];
    let cases: [(String, Parameters, Come); 9] = [
        (vector(one), &[], Ok((3.5, true))),
        (vector(one), &[("activationThreshold", "4")], Ok((3.5, false))),
        (vector(""), &[], Ok((0.0, false))),
        (vector(""), strict, Err("empty")),
        (vector(r#"{"value":[1,"NaN"]}"#), &[], Ok((0.0, false))),
        (vector(r#"{"value":[1,"+Inf"]}"#), strict, Err("infinite")),
        (vector(&format!("{one},{one}")), &[], Err("2 series")),
        (r#"{"data":{"resultType":"scalar","result":[1,"4"]}}"#.to_owned(), &[], Ok((4.0, true))),
        (r#"{"data":{"resultType":"matrix","result":[]}}"#.to_owned(), &[], Err("gave a matrix")),
    ];
    for (body, more, wanted) in cases {
        let stub = Stub::giving(200, body.clone()).await;
        match (measured(&query(&stub.url("/"), more)).await, wanted) {
            (Ok(got), Ok(wanted)) => assert_eq!(got, wanted, "{body}"),
            (Err(got), Err(wanted)) => assert!(got.contains(wanted), "{body}: {got}"),
            (got, wanted) => panic!("{body}: {got:?}, expected {wanted:?}"),
        }
    }
}

#[tokio::test]
async fn the_query_of_prometheus() {
    let stub = Stub::giving(200, r#"{"data":{"resultType":"vector","result":[]}}"#).await;
    let more = [
        ("namespace", "n"),
        ("queryParameters", "dedup=true, x=y z"),
        ("customHeaders", "X-Tenant=t1,X-Other=2"),
        ("authModes", "basic"),
        ("username", "u"),
    ];
    assert_eq!(measured(&query(&stub.url("/prom/"), &more)).await, Ok((0.0, false)));
    let seen = stub.last();
    assert_eq!(
        seen.target,
        "/prom/api/v1/query?query=sum%28rate%28x%7Ba%3D%22b%22%7D%5B2m%5D%29%29&namespace=n&dedup=true&x=y+z"
    );
    assert_eq!((seen.header("x-tenant"), seen.header("x-other")), ("t1", "2"));
    assert_eq!(seen.header("authorization"), "Basic dTo=");
}

#[tokio::test]
async fn a_real_prometheus() {
    let config = "global: {scrape_interval: 1s}\nscrape_configs: []\n";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prometheus.yml");
    std::fs::write(&file, config).unwrap();
    let server = Server::start("prometheus", |dir, port| {
        vec![
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", dir.join("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ]
    })
    .await;
    let url = format!("http://127.0.0.1:{}", server.port());
    let ask = |text: &'static str| {
        let url = url.clone();
        async move {
            measured(&trigger("prometheus", &[("serverAddress", &url), ("query", text), ("threshold", "5")])).await
        }
    };
    // It listens a moment before it answers.
    until("prometheus answers", || async { ask("vector(7)").await.is_ok() }).await;
    assert_eq!(ask("vector(7)").await, Ok((7.0, true)));
    assert_eq!(ask("scalar(vector(3))").await, Ok((3.0, true)));
    assert_eq!(ask("sum(nothing_of_this_name)").await, Ok((0.0, false)));
    assert_eq!(ask("vector(0) / 0").await, Ok((0.0, false)));
    let several = ask("label_replace(vector(1), \"a\", \"b\", \"\", \"\") or vector(2)").await.unwrap_err();
    assert!(several.contains("2 series"), "{several}");
    let broken = ask("sum(").await.unwrap_err();
    assert_eq!(broken, format!("{url}/api/v1/query answered 400 Bad Request"));
}
