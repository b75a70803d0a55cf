//! Users' scalers on grpcio, the library that most of them are written with.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cove_base::Clock;
use expect_test::{Expect, expect};

use super::*;
use crate::python::Script;
use crate::source::Scalers;

fn context() -> Context {
    let hosts = |host: &str| (host == "scaler").then(|| IpAddr::from([127, 0, 0, 1]));
    Context { hosts: Arc::new(hosts), tokens: None }
}

fn trigger(kind: &str, port: u16, more: &[(&str, &str)]) -> Trigger {
    let mut parameters = BTreeMap::from([("scalerAddress".to_owned(), format!("scaler:{port}"))]);
    parameters.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    let [namespace, name] = ["group", "app--1"].map(str::to_owned);
    let mut metadata = parameters.clone();
    metadata.retain(|key, _| !super::CREDENTIALS.contains(&key.as_str()));
    Trigger { scaler: kind.to_owned(), parameters, metadata, identity: None, namespace, name }
}

/// What a reading gives.
async fn read(source: &dyn Source) -> String {
    read_within(source, crate::rig::DEADLINE).await
}

async fn read_within(source: &dyn Source, deadline: Duration) -> String {
    match tokio::time::timeout(deadline, source.read()).await {
        Ok(Ok(Answer::External(metric))) => format!("{}{}", metric.value, if metric.active { " active" } else { "" }),
        Ok(Ok(other)) => format!("{other:?}"),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "late".to_owned(),
    }
}

async fn check(server: &Script, cases: &[&[(&str, &str)]], expected: Expect) {
    let scalers = Scalers::new(Clock::real());
    let mut text = String::new();
    for case in cases {
        let source = scalers.open(&trigger("external", server.port(), case), &context()).unwrap();
        let shown: Vec<_> = case.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let read = read(&*source).await.replace(&format!(":{}", server.port()), ":PORT");
        text += &format!("{}\n  {read}\n", shown.join(" "));
    }
    expected.assert_eq(&text);
}

#[tokio::test]
async fn a_reading_is_the_largest_value_per_target() {
    let server = Script::start("external_scaler.py", &[]);
    check(
        &server,
        &[
            &[("specs", r#"[["a", 5, 0]]"#), ("values", r#"{"a": [[12, 0]]}"#), ("active", "true")],
            &[("specs", r#"[["a", 5, 2.5]]"#), ("values", r#"{"a": [[12, 0.5]]}"#), ("active", "false")],
            &[("specs", r#"[["a", 5, 0], ["b", 1, 0]]"#), ("values", r#"{"a": [[12, 0]], "b": [[3, 0], [4, 0]]}"#)],
            &[("specs", r#"[["a", 1000000, 0]]"#), ("values", r#"{"a": [[1000001, 0]]}"#)],
            &[("specs", r#"[["a", 1, 0]]"#), ("values", r#"{"a": [[-7, 0]]}"#)],
            &[("specs", r#"[["a", 1, 0]]"#), ("values", r#"{"a": [[0, NaN]]}"#)],
            &[("specs", r#"[["a", 1, 0]]"#), ("values", r#"{"a": [[0, Infinity]]}"#)],
            &[("specs", r#"[["a", 1, 0]]"#), ("values", r#"{"a": [[9223372036854775807, 0]]}"#)],
            &[("specs", r#"[["a", 0, 0]]"#), ("values", r#"{"a": [[1, 0]]}"#)],
            &[("specs", r#"[["a", 1, 0]]"#)],
            &[],
        ],
        expect![[r#"
            specs=[["a", 5, 0]] values={"a": [[12, 0]]} active=true
              2.4 active
            specs=[["a", 5, 2.5]] values={"a": [[12, 0.5]]} active=false
              0.2
            specs=[["a", 5, 0], ["b", 1, 0]] values={"a": [[12, 0]], "b": [[3, 0], [4, 0]]}
              7
            specs=[["a", 1000000, 0]] values={"a": [[1000001, 0]]}
              1.001
            specs=[["a", 1, 0]] values={"a": [[-7, 0]]}
              0
            specs=[["a", 1, 0]] values={"a": [[0, NaN]]}
              0
            specs=[["a", 1, 0]] values={"a": [[0, Infinity]]}
              0
            specs=[["a", 1, 0]] values={"a": [[9223372036854775807, 0]]}
              18446744073709550
            specs=[["a", 0, 0]] values={"a": [[1, 0]]}
              scaler:PORT: GetMetricSpec gives no target for `a`; expected a number above zero
            specs=[["a", 1, 0]]
              scaler:PORT: GetMetrics gives no value of `a`

              scaler:PORT: GetMetricSpec gives 0 metrics; expected 1 to 32
        "#]],
    )
    .await;
}

#[tokio::test]
async fn an_error_of_the_server_is_told_in_its_words() {
    let server = Script::start("external_scaler.py", &[]);
    let good = [("specs", r#"[["a", 5, 0]]"#), ("values", r#"{"a": [[12, 0]]}"#)];
    let failing = |method| [good[0], good[1], ("fail", method)];
    check(
        &server,
        &[&failing("GetMetricSpec"), &failing("IsActive"), &failing("GetMetrics"), &good],
        expect![[r#"
            specs=[["a", 5, 0]] values={"a": [[12, 0]]} fail=GetMetricSpec
              scaler:PORT: GetMetricSpec: FAILED_PRECONDITION: group/app--1 says fail, scalerAddress
            specs=[["a", 5, 0]] values={"a": [[12, 0]]} fail=IsActive
              scaler:PORT: IsActive: FAILED_PRECONDITION: group/app--1 says fail, scalerAddress
            specs=[["a", 5, 0]] values={"a": [[12, 0]]} fail=GetMetrics
              scaler:PORT: GetMetrics: FAILED_PRECONDITION: group/app--1 says fail, scalerAddress
            specs=[["a", 5, 0]] values={"a": [[12, 0]]}
              2.4
        "#]],
    )
    .await;
}

#[tokio::test]
async fn a_slow_server_costs_its_own_rule_one_reading() {
    let server = Script::start("external_scaler.py", &[]);
    let scalers = Scalers::new(Clock::real());
    let good = [("specs", r#"[["a", 5, 0]]"#), ("values", r#"{"a": [[12, 0]]}"#)];
    let slow = scalers
        .open(&trigger("external", server.port(), &[good[0], good[1], ("slow", "GetMetrics")]), &context())
        .unwrap();
    let quick = scalers.open(&trigger("external", server.port(), &good), &context()).unwrap();
    assert_eq!(read(&*quick).await, "2.4");
    let (late, in_time) = tokio::join!(read_within(&*slow, Duration::from_secs(3)), read(&*quick));
    assert_eq!((late.as_str(), in_time.as_str()), ("late", "2.4"));
    assert_eq!(read(&*quick).await, "2.4");
}

#[tokio::test]
async fn who_is_no_scaler_is_told_apart() {
    let scalers = Scalers::new(Clock::real());
    // Nobody there.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let source = scalers.open(&trigger("external", port, &[]), &context()).unwrap();
    let read_of = async |source: &dyn Source, port: u16| read(source).await.replace(&format!(":{port}"), ":PORT");
    expect!["cannot connect to scaler:PORT: Connection refused (os error 111)"]
        .assert_eq(&read_of(&*source, port).await);

    // Somebody who speaks HTTP/1.1 only.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let source = scalers.open(&trigger("external", port, &[]), &context()).unwrap();
    let other = async {
        use tokio::io::AsyncWriteExt as _;
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
    };
    let (said, ()) = tokio::join!(read_of(&*source, port), other);
    assert!(said.starts_with("scaler:PORT: ") && said.contains("the connection broke: "), "{said}");
}

#[tokio::test]
async fn a_push_wakes_and_the_stream_ends_with_the_source() {
    let server = Script::start("external_scaler.py", &[]);
    let scalers = Scalers::new(Clock::real());
    let stream = ("stream", "[false, false, true, false, true]");
    let source = scalers.open(&trigger("external-push", server.port(), &[stream]), &context()).unwrap();
    let mut pushes = source.pushes().expect("it pushes");
    let pushed = tokio::time::timeout(Duration::from_secs(10), pushes.wait_for(|count| *count > 0)).await;
    assert!(pushed.is_ok_and(|count| count.is_ok()), "the server said that it is active");
    drop(source);
    let ended = tokio::time::timeout(Duration::from_secs(10), pushes.wait_for(|_| false)).await;
    assert!(ended.is_ok_and(|ended| ended.is_err()), "nothing is left that could push");

    let source = scalers.open(&trigger("external", server.port(), &[stream]), &context()).unwrap();
    assert!(source.pushes().is_none());
}

#[tokio::test]
async fn both_sides_show_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let [ours, theirs, stranger] = [(); 3].map(|()| rcgen::generate_simple_self_signed(["scaler".to_owned()]).unwrap());
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let files = [
        write("cert", theirs.cert.pem()),
        write("key", theirs.signing_key.serialize_pem()),
        write("clients", ours.cert.pem()),
    ];
    let server = Script::start("external_scaler.py", &files.each_ref().map(String::as_str));
    let (cert, key, ca) = (ours.cert.pem(), ours.signing_key.serialize_pem(), theirs.cert.pem());
    let client = [("tlsClientCert", cert.as_str()), ("tlsClientKey", key.as_str())];
    let metric = [("specs", r#"[["a", 5, 0]]"#), ("values", r#"{"a": [[12, 0]]}"#), ("fail", "none")];
    let scalers = Scalers::new(Clock::real());
    let stranger = stranger.cert.pem();
    for (tls, expected) in [
        (&[("caCert", ca.as_str())][..], "2.4"),
        (&[("enableTLS", "true"), ("unsafeSsl", "true")], "2.4"),
        (&[("enableTLS", "true")], "the TLS handshake with scaler failed: invalid peer certificate"),
        (&[("caCert", &stranger)], "the TLS handshake with scaler failed: invalid peer certificate"),
    ] {
        let all: Vec<_> = client.iter().chain(&metric).chain(tls).copied().collect();
        let source = scalers.open(&trigger("external", server.port(), &all), &context()).unwrap();
        let said = read(&*source).await;
        assert!(said.starts_with(expected), "{said} of {:?}", tls.iter().map(|(key, _)| *key).collect::<Vec<_>>());
    }
    // The server is told the metadata, not the key; a client without a certificate is told nothing.
    let told = [client[0], client[1], ("caCert", &ca), ("fail", "IsActive")];
    let source = scalers.open(&trigger("external", server.port(), &told), &context()).unwrap();
    let said = read(&*source).await;
    assert!(said.ends_with("FAILED_PRECONDITION: group/app--1 says fail, scalerAddress"), "{said}");
    let source = scalers.open(&trigger("external", server.port(), &[("caCert", &ca)]), &context()).unwrap();
    let said = read(&*source).await;
    assert!(said.contains("the connection broke"), "{said}");
}

#[test]
fn metadata_that_cannot_be_used() {
    let scalers = Scalers::new(Clock::real());
    let error = |more: &[(&str, &str)]| {
        scalers.open(&trigger("external", 1, more), &context()).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(error(&[]), Ok(()));
    for (more, expected) in [
        (("scalerAddress", ""), "scalerAddress is missing"),
        (
            ("scalerAddress", "http://scaler:80"),
            "scalerAddress is `http://scaler:80`; expected host:port, without a scheme",
        ),
        (("enableTLS", "yes"), "enableTLS is `yes`; expected true or false"),
        (
            ("caCert", "secret"),
            "caCert, tlsClientCert and tlsClientKey (ca, cert and key): ca is no certificate in PEM \
             (-----BEGIN CERTIFICATE----- ...)",
        ),
        (
            ("tlsClientKey", "secret"),
            "caCert, tlsClientCert and tlsClientKey (ca, cert and key): cert and key belong together; one of them is missing",
        ),
    ] {
        assert_eq!(error(&[more]), Err(expected.to_owned()));
    }
}
