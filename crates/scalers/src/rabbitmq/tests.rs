//! Tests of `rabbitmq`: queues by AMQP and the management API, against a real RabbitMQ.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::Scalers;
use crate::http::stub::{Seen, Stub};
use crate::http::{Call, Http, header};
use crate::rig::{self, Server, Silent, program, read, read_source, scalers, trigger, until, wrong};
use crate::tls::TlsOptions;

/// A broker with its management API. It needs seconds to start, so that all that is asked of it is one test.
struct Rabbit {
    server: Server,
    management: u16,
    /// Erlang's table of nodes, which would otherwise stay behind.
    _nodes: Nodes,
}

/// Ends with the test.
struct Nodes(Child);

impl Drop for Nodes {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn rabbitmq() -> Rabbit {
    let (management, distribution, nodes) = (rig::free_port(), rig::free_port(), rig::free_port().to_string());
    let mut epmd = Command::new(program("epmd"));
    let epmd = epmd.args(["-port", &nodes, "-address", "127.0.0.1"]).stdin(Stdio::null()).spawn().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("plugins"), "[rabbitmq_management].").unwrap();
    let settings = format!(
        "management.tcp.port = {management}\nmanagement.tcp.ip = 127.0.0.1\ncollect_statistics_interval = 500\n\
         vm_memory_high_watermark.absolute = 512MB\ndisk_free_limit.absolute = 10MB\n"
    );
    std::fs::write(path("rabbit.conf"), settings).unwrap();
    let environment = [
        ("HOME", path("")),
        ("RABBITMQ_NODENAME", format!("cove{distribution}@localhost")),
        ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
        ("RABBITMQ_DIST_PORT", distribution.to_string()),
        ("ERL_EPMD_PORT", nodes),
        ("RABBITMQ_MNESIA_BASE", path("mnesia")),
        ("RABBITMQ_LOG_BASE", path("logs")),
        ("RABBITMQ_LOGS", "-".to_owned()),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", path("plugins")),
        ("RABBITMQ_CONFIG_FILE", path("rabbit.conf")),
        ("RABBITMQ_PID_FILE", path("pid")),
        ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
        // The script then becomes the server instead of waiting for it, and ends with it.
        ("RABBITMQ_ALLOW_INPUT", "1".to_owned()),
        ("RABBITMQ_SERVER_START_ARGS", "-noinput".to_owned()),
    ];
    let name = std::fs::canonicalize("/usr/lib/rabbitmq/bin/rabbitmq-server").expect("scripts/test installs RabbitMQ");
    let server = Server::start_with(dir, &name.display().to_string(), |_, port| {
        let port = ("RABBITMQ_NODE_PORT", port.to_string());
        environment.into_iter().chain([port]).map(|(key, value)| (key.to_owned(), value)).collect()
    })
    .await;
    let rabbit = Rabbit { server, management, _nodes: Nodes(epmd) };
    until("the management API answers", || async { rabbit.api("GET", "overview", &Value::Null).await.is_some() }).await;
    rabbit
}

impl Rabbit {
    /// A call of the management API; `None` when it refused.
    async fn api(&self, method: &str, path: &str, body: &Value) -> Option<Value> {
        let url = format!("http://127.0.0.1:{}/api/{path}", self.management).parse().unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut call = Call::post(url, "application/json", body);
        call.method = method.parse().unwrap();
        let (name, value) =
            header("authorization", &format!("Basic {}", BASE64_STANDARD.encode("guest:guest"))).unwrap();
        call.headers.insert(name, value);
        let client = Http::default().client(&TlsOptions::default(), &rig::context()).unwrap();
        let reply = client.fetch(call).await.ok()?;
        Some(serde_json::from_slice(&reply.body).unwrap_or(Value::Null))
    }

    async fn fill(&self, vhost: &str, queue: &str, count: usize) {
        self.api("PUT", &format!("queues/{vhost}/{queue}"), &json!({ "durable": true })).await.unwrap();
        let message = json!({ "properties": {}, "routing_key": queue, "payload": "x", "payload_encoding": "string" });
        for _ in 0..count {
            self.api("POST", &format!("exchanges/{vhost}/amq.default/publish"), &message).await.unwrap();
        }
    }

    fn amqp(&self, rest: &str) -> String {
        format!("host=amqp://guest:guest@inside:{}\nprotocol=auto\nvalue=2\n{rest}", self.server.port())
    }

    fn http(&self, rest: &str) -> String {
        format!("host=http://guest:guest@inside:{}\nprotocol=auto\nvalue=2\n{rest}", self.management)
    }
}

#[tokio::test]
async fn rabbitmq_from_beginning_to_end() {
    let rabbit = rabbitmq().await;
    let scalers = scalers();
    rabbit.fill("%2F", "jobs", 3).await;
    rabbit.fill("%2F", "jobs.late", 4).await;
    rabbit.api("PUT", "vhosts/shop", &Value::Null).await.unwrap();
    rabbit
        .api("PUT", "permissions/shop/guest", &json!({ "configure": ".*", "write": ".*", "read": ".*" }))
        .await
        .unwrap();
    rabbit.fill("shop", "jobs", 1).await;
    // each queue tells its own, twice a second
    for (rest, expected) in [
        ("queueName=jobs", "3 active"),
        ("queueName=jobs.late", "4 active"),
        ("queueName=jobs\nvhostName=shop", "1 active"),
    ] {
        let metadata = rabbit.http(rest);
        until("the statistics are there", || async { read(&scalers, "rabbitmq", &metadata).await == expected }).await;
    }
    by_amqp(&rabbit, &scalers).await;
    by_http(&rabbit, &scalers).await;
    let mut rabbit = rabbit;
    let (amqp, http) = (rabbit.amqp("queueName=jobs"), rabbit.http("queueName=jobs"));
    rabbit.server.stop();
    for metadata in [&amqp, &http] {
        let gone = read(&scalers, "rabbitmq", metadata).await;
        assert!(gone.contains("inside") && gone.contains("onnect"), "{gone}");
    }
}

async fn by_amqp(rabbit: &Rabbit, scalers: &Scalers) {
    let port = rabbit.server.port();
    for (rest, expected) in [
        ("queueName=jobs", "3 active".to_owned()),
        ("queueName=jobs.late", "4 active".to_owned()),
        ("queueName=jobs\nactivationValue=3", "3 idle".to_owned()),
        ("queueName=jobs\nvhostName=shop", "1 active".to_owned()),
        ("queueName=none", format!("failed: inside:{port}: the broker says: NOT_FOUND - no queue 'none' in vhost '/'")),
        // The channel that the broker closed is open again.
        ("queueName=jobs", "3 active".to_owned()),
    ] {
        assert_eq!(read(scalers, "rabbitmq", &rabbit.amqp(rest)).await, expected, "{rest}");
    }
    let with_vhost = format!("host=amqp://guest:guest@127.0.0.1:{port}/shop\nqueueName=jobs\nqueueLength=5");
    assert_eq!(read(scalers, "rabbitmq", &with_vhost).await, "1 active");
    let other = format!("host=amqp://127.0.0.1:{port}/\nusername=guest\npassword=s3cret\nqueueName=jobs\nvalue=2");
    let refused = read(scalers, "rabbitmq", &other).await;
    assert!(refused.contains("ACCESS_REFUSED") && !refused.contains("s3cret"), "{refused}");
    // All of one login share a connection.
    let readings = futures_util::future::join_all((0..50).map(|_| {
        let metadata = rabbit.amqp("queueName=jobs");
        async move { read(scalers, "rabbitmq", &metadata).await }
    }))
    .await;
    assert!(readings.iter().all(|reading| reading == "3 active"), "{readings:?}");
    until("the connections are counted", || async {
        let all = rabbit.api("GET", "connections", &Value::Null).await.unwrap_or_default();
        let to_root = all.as_array().into_iter().flatten().filter(|one| one["vhost"] == "/").count();
        assert!(to_root <= 1, "{all}");
        to_root == 1
    })
    .await;
}

async fn by_http(rabbit: &Rabbit, scalers: &Scalers) {
    let place = format!("http://inside:{}/api/queues", rabbit.management);
    for (rest, expected) in [
        ("queueName=jobs\nvhostName=shop", "1 active".to_owned()),
        ("queueName=^jobs\nuseRegex=true", "7 active".to_owned()),
        ("queueName=^jobs\nuseRegex=true\noperation=max", "4 active".to_owned()),
        ("queueName=^jobs\nuseRegex=true\noperation=avg", "3 active".to_owned()),
        ("queueName=^none\nuseRegex=true", "0 idle".to_owned()),
        (
            "queueName=^jobs\nuseRegex=true\npageSize=1",
            format!("failed: {place}/%2F: more queues match than pageSize allows; raise pageSize"),
        ),
        ("queueName=none", format!("failed: {place}/%2F/none answered 404 Not Found; there is no such thing there")),
    ] {
        assert_eq!(read(scalers, "rabbitmq", &rabbit.http(rest)).await, expected, "{rest}");
    }
    let other = format!(
        "host=http://127.0.0.1:{}\nusername=guest\npassword=s3cret\nqueueName=jobs\nvalue=2",
        rabbit.management
    );
    let refused = read(scalers, "rabbitmq", &other).await;
    assert!(refused.contains("401") && !refused.contains("s3cret"), "{refused}");
    // Two are given and not acknowledged.
    let get = json!({ "count": 2, "ackmode": "ack_requeue_true", "encoding": "auto" });
    rabbit.api("POST", "queues/%2F/jobs/get", &get).await.unwrap();
    let ready = rabbit.http("queueName=jobs\nexcludeUnacknowledged=true");
    // a statistic that was taken while they were out says 1
    until("they are back", || async { read(scalers, "rabbitmq", &ready).await == "3 active" }).await;
}

#[tokio::test]
async fn rates_come_from_the_management_api() {
    let answer = |seen: &Seen| {
        let expected = format!("Basic {}", BASE64_STANDARD.encode("u:p@w"));
        assert_eq!(seen.header("authorization"), expected);
        assert_eq!(seen.target, "/rabbit/api/queues/my%20host/jobs");
        let body = r#"{"name":"jobs","messages":8,"messages_ready":6,"message_stats":
            {"publish_details":{"rate":4.0},"deliver_get_details":{"rate":2.0}}}"#;
        http::Response::new(body.to_owned())
    };
    let stub = Stub::start(answer).await;
    let scalers = scalers();
    for (rest, expected) in [
        ("", "8 active"),
        ("excludeUnacknowledged=true", "6 active"),
        ("mode=MessageRate", "4 active"),
        ("mode=DeliverGetRate", "2 active"),
        ("mode=PublishedToDeliveredRatio", "2 active"),
        ("mode=ExpectedQueueConsumptionTime", "5 active"),
    ] {
        let metadata =
            format!("host=http://u:p%40w@127.0.0.1:{}/rabbit/my%20host\nqueueName=jobs\nvalue=2\n{rest}", stub.port);
        assert_eq!(read(&scalers, "rabbitmq", &metadata).await, expected, "{rest}");
    }
}

#[tokio::test]
async fn hosts_that_hang_or_speak_something_else() {
    let scalers = scalers();
    let silent = Silent::start();
    for scheme in ["amqp", "http"] {
        let metadata = format!("host={scheme}://{}\nqueueName=jobs\nvalue=2", silent.address());
        let (rule, source) = (trigger("rabbitmq", &metadata), rig::open(&scalers, "rabbitmq", &metadata));
        assert_eq!(read_source(&source, &rule, Duration::from_millis(200)).await, "late");
    }
    let stub = Stub::giving(200, "").await;
    let outcome =
        read(&scalers, "rabbitmq", &format!("host=amqp://127.0.0.1:{}\nqueueName=jobs\nvalue=2", stub.port)).await;
    assert!(outcome.starts_with(&format!("failed: 127.0.0.1:{}: ", stub.port)), "{outcome}");
}

#[test]
fn metadata_that_is_wrong() {
    for (metadata, expected) in [
        ("queueName=a", "host is missing"),
        ("host=amqp://a", "queueName is missing"),
        ("host=a\nqueueName=a", "host is no address such as amqp://user:password@host:5672/vhost"),
        ("host=http://a\nprotocol=amqp\nqueueName=a", "host begins with http://; expected amqp://… or amqps://…"),
        ("host=amqp://a\nprotocol=http\nqueueName=a", "host begins with amqp://; expected http://… or https://…"),
        ("host=amqp://a\nprotocol=stomp\nqueueName=a", "protocol is `stomp`; expected auto, amqp or http"),
        ("host=http://a\nqueueName=a\nuseRegex=true\npageSize=0", "pageSize is 0; expected at least 1"),
        (
            "host=http://a\nqueueName=a\nworkloadIdentityResource=x",
            "workloadIdentityResource is not supported; give username and password",
        ),
    ] {
        assert_eq!(wrong("rabbitmq", metadata), expected);
    }
}
