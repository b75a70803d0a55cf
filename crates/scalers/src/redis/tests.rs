//! Tests of `redis`: lists, streams, clusters, sentinels and certificates, against real Redis servers.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use bytes::BytesMut;
use tokio_util::codec::Decoder as _;

use super::wire::{Replies, Reply, command};
use crate::rig::{self, Server, Silent, read, read_source, scalers, trigger, until, wrong};

async fn redis(extra: &[&str]) -> Server {
    Server::start("redis-server", |dir, port| {
        let mut args = vec!["--port".into(), port.to_string(), "--bind".into(), "127.0.0.1".into(), "--save".into()];
        args.extend([String::new(), "--dir".into(), dir.display().to_string()]);
        args.extend(extra.iter().map(|&arg| arg.to_owned()));
        args
    })
    .await
}

/// One command over a connection of its own.
fn tell(port: u16, line: &str) -> Reply {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(&command(&line.split(' ').collect::<Vec<_>>())).unwrap();
    let (mut input, mut part) = (BytesMut::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut part).unwrap();
        assert!(count > 0, "{line}: closed");
        input.extend_from_slice(&part[..count]);
        if let Some(reply) = Replies.decode(&mut input).unwrap() {
            return reply;
        }
    }
}

fn list(server: &Server, rest: &str) -> String {
    format!("address={}\n{rest}", server.address())
}

#[tokio::test]
async fn the_length_of_whatever_the_key_holds() {
    let server = redis(&[]).await;
    let scalers = scalers();
    for line in [
        "RPUSH list a b c",
        "SADD set a b",
        "HSET hash a 1 b 2 c 3 d 4",
        "ZADD sorted 1 a",
        "SET text hello",
        "XADD stream * a 1",
    ] {
        tell(server.port(), line);
    }
    for (key, expected) in [
        ("list", "3 active"),
        ("set", "2 active"),
        ("hash", "4 active"),
        ("sorted", "1 active"),
        ("missing", "0 idle"),
        ("text", "failed: `text` is a string; expected a list, set, hash or sorted set"),
        ("stream", "failed: `stream` is a stream; expected a list, set, hash or sorted set"),
    ] {
        assert_eq!(read(&scalers, "redis", &list(&server, &format!("listName={key}"))).await, expected, "{key}");
    }
    assert_eq!(read(&scalers, "redis", &list(&server, "listName=list\nactivationListLength=3")).await, "3 idle");
    // Host and port apart, and a name that only the environment knows.
    let apart = format!("host=inside\nport={}\nlistName=list", server.port());
    assert_eq!(read(&scalers, "redis", &apart).await, "3 active");
    // Each database has its own keys.
    assert_eq!(read(&scalers, "redis", &list(&server, "listName=list\ndatabaseIndex=3")).await, "0 idle");
    assert_eq!(
        read(&scalers, "redis", &list(&server, "listName=list\ndatabaseIndex=99")).await,
        format!("failed: {} refused the choice of the database: ERR DB index is out of range", server.address())
    );
}

#[tokio::test]
async fn streams() {
    let server = redis(&[]).await;
    let scalers = scalers();
    for entry in 0..5 {
        tell(server.port(), &format!("XADD orders * id {entry}"));
    }
    tell(server.port(), "XGROUP CREATE orders workers 0");
    tell(server.port(), "XREADGROUP GROUP workers w1 COUNT 2 STREAMS orders >");
    for (metadata, expected) in [
        ("stream=orders", "5 active"),
        ("stream=orders\nconsumerGroup=workers", "2 active"),
        ("stream=orders\nconsumerGroup=workers\nlagCount=1", "3 active"),
        ("stream=orders\nconsumerGroup=workers\nlagCount=1\nactivationLagCount=3", "3 idle"),
        ("stream=orders\nconsumerGroup=others\nlagCount=1", "5 active"),
        ("stream=none\nconsumerGroup=workers\nlagCount=1", "0 idle"),
        ("stream=none", "0 idle"),
        ("stream=none\nconsumerGroup=workers", "unreadable: there is no such stream or consumer group"),
    ] {
        assert_eq!(read(&scalers, "redis-streams", &list(&server, metadata)).await, expected, "{metadata}");
    }
    // The server cannot tell the lag once entries in the middle are gone.
    let Reply::Array(first) = tell(server.port(), "XRANGE orders - + COUNT 4") else { panic!("no range") };
    let Reply::Array(fourth) = &first[3] else { panic!("no entry") };
    let Reply::Text(id) = &fourth[0] else { panic!("no id") };
    tell(server.port(), &format!("XDEL orders {id}"));
    let lag = read(&scalers, "redis-streams", &list(&server, "stream=orders\nconsumerGroup=workers\nlagCount=1")).await;
    assert_eq!(lag, "unreadable: Redis cannot tell the lag; it needs Redis 7");
    tell(server.port(), "SET text a");
    assert_eq!(
        read(&scalers, "redis-streams", &list(&server, "stream=text")).await,
        "failed: Redis says to XLEN text: WRONGTYPE Operation against a key holding the wrong kind of value"
    );
}

#[tokio::test]
async fn passwords() {
    let server = redis(&["--requirepass", "right", "--user", "cove", "on", ">pass", "~jobs", "+type", "+llen"]).await;
    let scalers = scalers();
    let address = server.address();
    for (login, expected) in [
        ("password=right", "0 idle".to_owned()),
        ("username=cove\npassword=pass", "0 idle".to_owned()),
        (
            "password=s3cret",
            format!(
                "failed: {address} refused the login: WRONGPASS invalid username-password pair or user is disabled."
            ),
        ),
        ("", "failed: Redis says to TYPE jobs: NOAUTH Authentication required.".to_owned()),
    ] {
        let outcome = read(&scalers, "redis", &list(&server, &format!("listName=jobs\n{login}"))).await;
        assert!(outcome == expected || expected.contains("TYPE") && outcome.contains("NOAUTH"), "{login}: {outcome}");
    }
    let other = read(&scalers, "redis", &list(&server, "listName=other\nusername=cove\npassword=pass")).await;
    assert!(other.starts_with("failed: Redis answered TYPE") || other.contains("NOPERM"), "{other}");
}

#[tokio::test]
async fn certificates_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    std::fs::write(path("cert.pem"), &cert).unwrap();
    std::fs::write(path("key.pem"), &key).unwrap();
    let mut seal = std::process::Command::new(rig::program("openssl"));
    let sealed = seal.args(["pkcs8", "-topk8", "-in", &path("key.pem"), "-passout", "pass:open"]).output().unwrap();
    let sealed = String::from_utf8(sealed.stdout).unwrap();
    assert!(sealed.contains("ENCRYPTED"), "{sealed}");
    let server = Server::start("redis-server", |_, port| {
        let files =
            [("--tls-cert-file", "cert.pem"), ("--tls-key-file", "key.pem"), ("--tls-ca-cert-file", "cert.pem")];
        let files = files.into_iter().flat_map(|(flag, name)| [flag.to_owned(), path(name)]);
        let rest = ["--port", "0", "--bind", "127.0.0.1", "--tls-port"].map(String::from).into_iter();
        rest.chain([port.to_string()]).chain(files).collect()
    })
    .await;
    let scalers = scalers();
    let outcome = async |host: &str, more: &[(&str, &str)]| {
        let mut rule = trigger("redis", &format!("address={host}:{}\nlistName=jobs\nenableTLS=true", server.port()));
        rule.parameters.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        match scalers.open(&rule, &rig::context()) {
            Ok(source) => read_source(&source, &rule, rig::DEADLINE).await,
            Err(error) => error.to_string(),
        }
    };
    let own = [("cert", cert.as_str()), ("key", sealed.as_str()), ("keyPassword", "open")];
    let with_ca = [own[0], own[1], own[2], ("ca", cert.as_str())];
    assert_eq!(outcome("localhost", &with_ca).await, "0 idle");
    assert_eq!(outcome("127.0.0.1", &[own[0], own[1], own[2], ("unsafeSsl", "true")]).await, "0 idle");
    // Nobody vouches for it; it is for another name; we show no certificate; the password is wrong.
    assert!(outcome("localhost", &own).await.contains("UnknownIssuer"));
    assert!(outcome("127.0.0.1", &with_ca).await.contains("not valid for name"));
    assert!(outcome("localhost", &[("ca", cert.as_str())]).await.starts_with("failed: localhost"));
    let wrong = [own[0], own[1], ("keyPassword", "shut"), with_ca[3]];
    assert_eq!(outcome("localhost", &wrong).await, "keyPassword does not open key");
}

#[tokio::test]
async fn a_server_that_goes_and_comes_back() {
    let mut server = redis(&[]).await;
    let scalers = scalers();
    let metadata = list(&server, "listName=jobs");
    assert_eq!(read(&scalers, "redis", &metadata).await, "0 idle");
    server.stop();
    let gone = read(&scalers, "redis", &metadata).await;
    assert!(gone.contains("closed the connection") || gone.contains("onnection refused"), "{gone}");
    server.restart().await;
    tell(server.port(), "RPUSH jobs a");
    until("the rule reads again", || async { read(&scalers, "redis", &metadata).await == "1 active" }).await;
    // A restart between two polls is not noticed at all.
    server.restart().await;
    until("the rule reads again", || async { read(&scalers, "redis", &metadata).await == "0 idle" }).await;
}

#[tokio::test]
async fn rules_share_a_connection() {
    let server = redis(&[]).await;
    let scalers = scalers();
    let many = (0..200).map(|index| {
        let metadata = list(&server, &format!("listName=list{index}"));
        let scalers = &scalers;
        async move { read(scalers, "redis", &metadata).await }
    });
    let readings = futures_util::future::join_all(many).await;
    assert!(readings.iter().all(|reading| reading == "0 idle"), "{readings:?}");
    let Reply::Text(clients) = tell(server.port(), "CLIENT LIST") else { panic!("no list") };
    assert_eq!(clients.lines().filter(|line| line.contains("cmd=type")).count(), 1, "{clients}");
}

#[tokio::test]
async fn a_host_that_hangs_costs_a_deadline_and_then_nothing() {
    let silent = Silent::start();
    let scalers = rig::scalers_at_rest();
    let metadata = format!("address={}\nlistName=jobs\npassword=x", silent.address());
    let rule = trigger("redis", &metadata);
    let source = rig::open(&scalers, "redis", &metadata);
    assert_eq!(read_source(&source, &rule, Duration::from_millis(200)).await, "late");
    assert_eq!(read_source(&source, &rule, rig::DEADLINE).await, "failed: the source did not answer in time");
}

#[tokio::test]
async fn a_connection_that_went_silent_is_replaced() {
    let server = redis(&[]).await;
    let scalers = scalers();
    let metadata = list(&server, "listName=jobs");
    let (rule, source) = (trigger("redis", &metadata), rig::open(&scalers, "redis", &metadata));
    assert_eq!(read_source(&source, &rule, rig::DEADLINE).await, "0 idle");
    server.pause();
    assert_eq!(read_source(&source, &rule, Duration::from_millis(200)).await, "late");
    // The old connection owes an answer that nobody waits for: a new one is made.
    server.resume();
    assert_eq!(read_source(&source, &rule, rig::DEADLINE).await, "0 idle");
}

#[tokio::test]
async fn something_that_is_not_redis() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
    });
    let outcome = read(&scalers(), "redis", &format!("address={address}\nlistName=jobs")).await;
    assert_eq!(outcome, format!("failed: {address}: the server closed the connection"));
    server.await.unwrap();
}

#[tokio::test]
async fn a_cluster_says_where_the_key_is() {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let bus = rig::free_port().to_string();
        // no node fails here, however late it answers on a busy machine
        let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "60000"];
        nodes.push(redis(&cluster).await);
    }
    let addresses: Vec<String> = nodes.iter().map(Server::address).collect();
    let mut create = std::process::Command::new(rig::program("redis-cli"));
    create.args(["--cluster", "create"]).args(&addresses).arg("--cluster-yes");
    let created = create.output().unwrap();
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));
    let is_up =
        |node: &Server| matches!(tell(node.port(), "CLUSTER INFO"), Reply::Text(t) if t.contains("cluster_state:ok"));
    until("the cluster is up", || async { nodes.iter().all(is_up) }).await;

    let scalers = scalers();
    for key in ["a", "b", "c", "d", "e"] {
        // Whoever owns the key takes it; the others send us on.
        let taken: Vec<_> = nodes.iter().map(|node| tell(node.port(), &format!("RPUSH {key} 1 2"))).collect();
        assert_eq!(taken.iter().filter(|reply| **reply == Reply::Number(2)).count(), 1, "{taken:?}");
        let metadata = format!("addresses={}\nlistName={key}", addresses.join(","));
        assert_eq!(read(&scalers, "redis-cluster", &metadata).await, "2 active", "{key}");
    }
    tell(nodes[0].port(), "XADD s * a 1");
    tell(nodes[1].port(), "XADD s * a 1");
    tell(nodes[2].port(), "XADD s * a 1");
    let metadata = format!("addresses={}\nstream=s", addresses.join(","));
    let source = rig::open(&scalers, "redis-cluster-streams", &metadata);
    let rule = trigger("redis-cluster-streams", &metadata);
    assert_eq!(read_source(&source, &rule, rig::DEADLINE).await, "1 active");
    assert_eq!(read_source(&source, &rule, rig::DEADLINE).await, "1 active");
    // The first address may be dead.
    let some = format!("addresses=127.0.0.1:{},{}\nstream=s", rig::free_port(), addresses[1]);
    assert_eq!(read(&scalers, "redis-cluster-streams", &some).await, "1 active");
}

#[tokio::test]
async fn sentinels_name_the_master() {
    let (mut first, second) = (redis(&[]).await, redis(&[]).await);
    tell(second.port(), &format!("REPLICAOF 127.0.0.1 {}", first.port()));
    let master = first.port().to_string();
    let sentinel = Server::start("redis-server", |dir, port| {
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor main 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds main 10000\nsentinel failover-timeout main 3000\n",
            dir.display()
        );
        let file = dir.join("sentinel.conf");
        std::fs::write(&file, text).unwrap();
        vec![file.display().to_string(), "--sentinel".into()]
    })
    .await;
    let scalers = scalers();
    let metadata = format!("addresses={}\nsentinelMaster=main\nlistName=jobs", sentinel.address());
    assert_eq!(tell(first.port(), "RPUSH jobs a b"), Reply::Number(2), "it is the master still");
    assert_eq!(read(&scalers, "redis-sentinel", &metadata).await, "2 active");
    tell(first.port(), "XADD s * a 1");
    let stream = format!("addresses={}\nsentinelMaster=main\nstream=s", sentinel.address());
    assert_eq!(read(&scalers, "redis-sentinel-streams", &stream).await, "1 active");
    let unknown = format!("addresses={}\nsentinelMaster=other\nlistName=jobs", sentinel.address());
    assert_eq!(read(&scalers, "redis-sentinel", &unknown).await, "failed: the sentinels know no master `other`");

    let is_known =
        || async { matches!(tell(sentinel.port(), "SENTINEL replicas main"), Reply::Array(r) if !r.is_empty()) };
    until("the sentinel knows the replica", is_known).await;
    until("the replica has the data", || async { tell(second.port(), "LLEN jobs") == Reply::Number(2) }).await;
    first.stop();
    until("the new master took over", || async { tell(second.port(), "RPUSH jobs c") == Reply::Number(3) }).await;
    until("the rule follows", || async { read(&scalers, "redis-sentinel", &metadata).await == "3 active" }).await;
}

#[test]
fn metadata_that_is_wrong() {
    for (scaler, metadata, expected) in [
        ("redis", "address=a:1", "listName is missing"),
        ("redis", "listName=a", "no address: give address (host:port), or host and port"),
        ("redis", "listName=a\nhosts=a,b\nports=1", "2 hosts and 1 ports; expected a port for each host"),
        ("redis", "listName=a\naddress=a:x", "`a:x` is no address; expected host:port"),
        ("redis", "listName=a\naddress=a:1\ndatabaseIndex=x", "databaseIndex is `x`; expected a whole number"),
        ("redis", "listName=a\naddress=a:1\ntls=yes", "tls is `yes`; expected enable or disable"),
        ("redis-sentinel", "listName=a\naddress=a:1", "sentinelMaster is missing"),
        ("redis-streams", "address=a:1", "stream is missing"),
        ("redis-streams", "address=a:1\nstream=a\nlagCount=1", "lagCount needs a consumerGroup"),
    ] {
        assert_eq!(wrong(scaler, metadata), expected);
    }
}
