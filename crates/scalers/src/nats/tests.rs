//! Tests of `nats`: a consumer's lag, against a real nats-server and doubles of a cluster's members.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::http::stub::Stub;
use crate::rig::{self, Server, Silent, read, read_source, scalers, trigger, until, wrong};

/// A server with JetStream; the second port is that of monitoring.
async fn nats() -> (Server, u16) {
    let monitoring = rig::free_port();
    let server = Server::start("nats-server", |dir, port| {
        let args = ["-js", "-a", "127.0.0.1", "-p"].map(String::from).into_iter();
        let rest = [port.to_string(), "-m".into(), monitoring.to_string(), "-sd".into(), dir.display().to_string()];
        args.chain(rest).collect()
    })
    .await;
    (server, monitoring)
}

/// A client of a few lines.
struct Nats {
    stream: TcpStream,
    lines: BufReader<TcpStream>,
}

impl Nats {
    fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut nats = Self { lines: BufReader::new(stream.try_clone().unwrap()), stream };
        nats.line();
        nats.stream.write_all(b"CONNECT {\"verbose\":false}\r\nSUB inbox 1\r\n").unwrap();
        nats
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    /// Publishes and gives the answer, which JetStream sends for everything it stores.
    fn ask(&mut self, subject: &str, body: &str) -> String {
        self.stream.write_all(format!("PUB {subject} inbox {}\r\n{body}\r\n", body.len()).as_bytes()).unwrap();
        loop {
            let line = self.line();
            if line.starts_with("PING") {
                self.stream.write_all(b"PONG\r\n").unwrap();
            }
            if let Some(rest) = line.strip_prefix("MSG ") {
                let length: usize = rest.trim().rsplit(' ').next().unwrap().parse().unwrap();
                let mut body = vec![0; length + 2];
                self.lines.read_exact(&mut body).unwrap();
                return String::from_utf8(body).unwrap();
            }
            assert!(!line.starts_with("-ERR") && !line.is_empty(), "{line}");
        }
    }
}

#[tokio::test]
async fn the_lag_of_a_consumer() {
    let (mut server, monitoring) = nats().await;
    let scalers = scalers();
    let rule = |rest: &str| format!("natsServerMonitoringEndpoint=inside:{monitoring}\naccount=$G\n{rest}");
    let orders = rule("stream=ORDERS\nconsumer=work");
    assert_eq!(read(&scalers, "nats-jetstream", &orders).await, "failed: account `$G` has no stream `ORDERS`");
    let mut nats = Nats::connect(server.port());
    let made = nats.ask("$JS.API.STREAM.CREATE.ORDERS", r#"{"name":"ORDERS","subjects":["orders.>"]}"#);
    assert!(made.contains("\"created\""), "{made}");
    for _ in 0..4 {
        nats.ask("orders.new", "x");
    }
    // Nobody consumes yet: all that ever came.
    assert_eq!(read(&scalers, "nats-jetstream", &orders).await, "4 active");
    let consumer = r#"{"stream_name":"ORDERS","config":{"durable_name":"work","ack_policy":"explicit"}}"#;
    nats.ask("$JS.API.CONSUMER.DURABLE.CREATE.ORDERS.work", consumer);
    assert_eq!(read(&scalers, "nats-jetstream", &orders).await, "4 active");
    // One is given and not acknowledged: it still counts.
    nats.ask("$JS.API.CONSUMER.MSG.NEXT.ORDERS.work", "1");
    assert_eq!(read(&scalers, "nats-jetstream", &orders).await, "4 active");
    let idle = rule("stream=ORDERS\nconsumer=work\nactivationLagThreshold=4");
    assert_eq!(read(&scalers, "nats-jetstream", &idle).await, "4 idle");
    let other =
        format!("natsServerMonitoringEndpoint=127.0.0.1:{monitoring}\naccount=other\nstream=ORDERS\nconsumer=work");
    assert_eq!(read(&scalers, "nats-jetstream", &other).await, "failed: account `other` has no stream `ORDERS`");
    server.stop();
    let gone = read(&scalers, "nats-jetstream", &orders).await;
    assert!(gone.contains("inside") && gone.contains("refused"), "{gone}");
    server.restart().await;
    until("the rule reads again", || async { read(&scalers, "nats-jetstream", &orders).await == "4 active" }).await;
}

#[tokio::test]
async fn only_the_leader_of_a_cluster_knows() {
    // Two members whose answers are those of nats-server in a cluster of three.
    fn member(name: &'static str, lag: u32) -> impl Fn(&crate::http::stub::Seen) -> http::Response<String> {
        move |seen| {
            let body = if seen.target.starts_with("/varz") {
                format!(r#"{{"server_name":"{name}"}}"#)
            } else {
                format!(
                    r#"{{"meta_cluster":{{"cluster_size":3}},"account_details":[{{"name":"APP","id":"AAA","stream_detail":[
                    {{"name":"S","state":{{"last_seq":90}},"consumer_detail":[{{"name":"c","num_pending":{lag},
                    "num_ack_pending":1,"cluster":{{"leader":"n2"}}}}]}}]}}]}}"#
                )
            };
            http::Response::new(body)
        }
    }
    let (first, second) = (Stub::start(member("n1", 70)).await, Stub::start(member("n2", 5)).await);
    let scalers = scalers();
    let both = format!("127.0.0.1:{},127.0.0.1:{}", first.port, second.port);
    let rule = |endpoint: &str| format!("natsServerMonitoringEndpoint={endpoint}\naccountID=AAA\nstream=S\nconsumer=c");
    assert_eq!(read(&scalers, "nats-jetstream", &rule(&both)).await, "6 active");
    let alone = read(&scalers, "nats-jetstream", &rule(&format!("127.0.0.1:{}", first.port))).await;
    assert_eq!(alone, "failed: the consumer's leader `n2` was not found; 127.0.0.1 does not lead it");
}

#[tokio::test]
async fn a_host_that_hangs_or_talks_nonsense() {
    let scalers = scalers();
    let silent = Silent::start();
    let metadata = format!("natsServerMonitoringEndpoint={}\nstream=S\nconsumer=c", silent.address());
    let (rule, source) = (trigger("nats-jetstream", &metadata), rig::open(&scalers, "nats-jetstream", &metadata));
    assert_eq!(read_source(&source, &rule, Duration::from_millis(200)).await, "late");
    let stub = Stub::giving(200, "<html>").await;
    let metadata = format!("natsServerMonitoringEndpoint=127.0.0.1:{}\nstream=S\nconsumer=c", stub.port);
    let nonsense = read(&scalers, "nats-jetstream", &metadata).await;
    assert!(nonsense.contains("gave no JSON"), "{nonsense}");
}

#[test]
fn metadata_that_is_wrong() {
    let of = |metadata: &str| wrong("nats-jetstream", metadata);
    assert_eq!(of("stream=S\nconsumer=c"), "natsServerMonitoringEndpoint is missing");
    assert_eq!(of("natsServerMonitoringEndpoint=a:1\nconsumer=c"), "stream is missing");
    assert_eq!(of("natsServerMonitoringEndpoint=a:1\nstream=S"), "consumer is missing");
    assert_eq!(of("natsServerMonitoringEndpoint=a:1\nuseHttps=x"), "useHttps is `x`; expected true or false");
}
