//! Tests of `etcd`: a key, its watch and its users, against a real etcd.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::rig::{self, Server, Silent, read, read_source, scalers, trigger, until, wrong};

async fn etcd() -> Server {
    let peer = format!("http://127.0.0.1:{}", rig::free_port());
    Server::start("etcd", |dir, port| {
        let client = format!("http://127.0.0.1:{port}");
        [
            ("--data-dir", dir.join("data").display().to_string()),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer.clone()),
            ("--initial-cluster", format!("default={peer}")),
            ("--log-level", "error".to_owned()),
        ]
        .into_iter()
        .flat_map(|(key, value)| [key.to_owned(), value])
        .collect()
    })
    .await
}

/// A call of the API.
fn tell(server: &Server, path: &str, body: &serde_json::Value) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (body, host) = (body.to_string(), server.address());
    let head = format!("POST /v3/{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn put(server: &Server, key: &str, value: &str) -> String {
    let pair = json!({ "key": BASE64_STANDARD.encode(key), "value": BASE64_STANDARD.encode(value) });
    tell(server, "kv/put", &pair)
}

#[tokio::test]
async fn the_number_under_a_key() {
    let mut server = etcd().await;
    let scalers = scalers();
    until("etcd has a leader", || async { put(&server, "jobs", "7").contains("revision") }).await;
    put(&server, "word", "many");
    put(&server, "empty", "");
    put(&server, "part", " 2.5 ");
    put(&server, "below", "-3");
    let rule = |rest: &str| format!("endpoints=inside:{}\nvalue=2\n{rest}", server.port());
    for (rest, expected) in [
        ("watchKey=jobs", "7 active"),
        ("watchKey=jobs\nactivationValue=7", "7 idle"),
        ("watchKey=part", "2.5 active"),
        ("watchKey=below", "-3 idle"),
        ("watchKey=gone", "failed: key `gone` does not exist"),
        ("watchKey=word", "failed: key `word`: `many` is no number"),
        ("watchKey=empty", "failed: key `empty`: `` is no number"),
    ] {
        assert_eq!(read(&scalers, "etcd", &rule(rest)).await, expected, "{rest}");
    }
    // The first endpoint may be dead.
    let two = format!("endpoints=127.0.0.1:{},{}\nvalue=2\nwatchKey=jobs", rig::free_port(), server.address());
    assert_eq!(read(&scalers, "etcd", &two).await, "7 active");
    let metadata = rule("watchKey=jobs");
    server.stop();
    let gone = read(&scalers, "etcd", &metadata).await;
    assert!(gone.contains("inside") && gone.contains("refused"), "{gone}");
    server.restart().await;
    until("the rule reads again", || async { read(&scalers, "etcd", &metadata).await == "7 active" }).await;
}

#[tokio::test]
async fn a_change_is_told_at_once() {
    let server = etcd().await;
    let scalers = scalers();
    until("etcd has a leader", || async { put(&server, "jobs", "0").contains("revision") }).await;
    let source = rig::open(&scalers, "etcd", &format!("endpoints={}\nvalue=2\nwatchKey=jobs", server.address()));
    let mut pushes = source.pushes().expect("etcd pushes");
    let mut number = 0;
    // The watch begins a moment after it is asked for.
    until("a change is told", || {
        number += 1;
        put(&server, "jobs", &number.to_string());
        let mut pushes = pushes.clone();
        async move { tokio::time::timeout(Duration::from_millis(100), pushes.changed()).await.is_ok() }
    })
    .await;
    pushes.mark_unchanged();
    put(&server, "jobs", "9");
    tokio::time::timeout(Duration::from_secs(10), pushes.changed()).await.expect("told").expect("it lives");
    put(&server, "other", "9");
    drop(source);
    assert!(pushes.changed().await.is_err() || pushes.changed().await.is_err(), "the watch ends with the rule");
}

#[tokio::test]
async fn users_and_passwords() {
    let server = etcd().await;
    let scalers = scalers();
    until("etcd has a leader", || async { put(&server, "jobs", "7").contains("revision") }).await;
    for (path, body) in [
        ("auth/user/add", json!({ "name": "root", "password": "right" })),
        ("auth/role/add", json!({ "name": "root" })),
        ("auth/user/grant", json!({ "user": "root", "role": "root" })),
        ("auth/enable", json!({})),
    ] {
        let said = tell(&server, path, &body);
        assert!(said.contains("header"), "{path}: {said}");
    }
    let rule = |login: &str| format!("endpoints={}\nvalue=2\nwatchKey=jobs\n{login}", server.address());
    assert_eq!(read(&scalers, "etcd", &rule("username=root\npassword=right")).await, "7 active");
    let place = format!("failed: http://{}/ refused: etcdserver:", server.address());
    let bad = read(&scalers, "etcd", &rule("username=root\npassword=s3cret")).await;
    assert_eq!(bad, format!("{place} authentication failed, invalid user ID or password"));
    let none = read(&scalers, "etcd", &rule("")).await;
    assert_eq!(none, format!("{place} user name is empty"));
}

#[tokio::test]
async fn a_host_that_hangs() {
    let silent = Silent::start();
    let metadata = format!("endpoints={}\nvalue=2\nwatchKey=jobs", silent.address());
    let (rule, source) = (trigger("etcd", &metadata), rig::open(&scalers(), "etcd", &metadata));
    assert_eq!(read_source(&source, &rule, Duration::from_millis(200)).await, "late");
}

#[test]
fn metadata_that_is_wrong() {
    let of = |rest: &str| wrong("etcd", &format!("endpoints=a:1\n{rest}"));
    assert_eq!(wrong("etcd", "watchKey=a"), "endpoints is missing");
    assert_eq!(of(""), "watchKey is missing");
    assert_eq!(of("watchKey=a\nusername=u"), "username and password belong together; one of them is missing");
    assert_eq!(of("watchKey=a\ntls=true"), "tls is `true`; expected enable or disable");
    assert_eq!(
        of("watchKey=a\nwatchProgressNotifyInterval=0"),
        "watchProgressNotifyInterval is 0; expected seconds above 0"
    );
}
