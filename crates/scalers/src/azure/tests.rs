//! Storage against Azurite, Service Bus against the double of the acceptance tests.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;

use cove_scaling::source::{Answer, StorageQueueAnswer};

use crate::azurite::Azurite;
use crate::http::stub::{Stub, context, measured, once, read, reply, scalers, trigger};
use crate::source::{ReadError, TokenFuture, Tokens};
use crate::tls::Roots;
use crate::{Context, Trigger};

fn rule(scaler: &str, parameters: &[(&str, &str)]) -> Trigger {
    trigger(scaler, parameters)
}

/// Asks Azurite for something, by the account's signature.
async fn ask(azurite: &Azurite, method: &str, address: &str, body: &str) -> (u16, String) {
    let join = if address.contains('?') { '&' } else { '?' };
    let url = format!("{address}{join}{}", azurite.signature());
    let request = reqwest::Client::new().request(method.parse().unwrap(), url).body(body.to_owned());
    let reply =
        request.header("x-ms-version", "2021-12-02").header("x-ms-blob-type", "BlockBlob").send().await.unwrap();
    (reply.status().as_u16(), reply.text().await.unwrap())
}

async fn send(azurite: &Azurite, queue: &str, count: u32) {
    for _ in 0..count {
        let message = "<QueueMessage><MessageText>aGk=</MessageText></QueueMessage>";
        let address = format!("{}/{queue}/messages", azurite.queues);
        assert_eq!(ask(azurite, "POST", &address, message).await.0, 201);
    }
}

#[tokio::test]
async fn lengths_of_storage_queues() {
    let _provider = rustls::crypto::ring::default_provider().install_default();
    let azurite = Azurite::start();
    let (connection, queues) = (azurite.connection_string(), azurite.queues.clone());
    assert_eq!(ask(&azurite, "PUT", &format!("{queues}/jobs"), "").await.0, 201);
    send(&azurite, "jobs", 5).await;
    // One is taken by a consumer and invisible to others.
    assert_eq!(ask(&azurite, "GET", &format!("{queues}/jobs/messages?visibilitytimeout=300"), "").await.0, 200);

    let all = rule("azure-queue", &[("connection", &connection), ("queueName", "jobs")]);
    assert_eq!(measured(&all).await, Ok((5.0, true)));
    let visible = [("connection", connection.as_str()), ("queueName", "jobs"), ("queueLengthStrategy", "visibleonly")];
    assert_eq!(measured(&rule("azure-queue", &visible)).await, Ok((4.0, true)));
    send(&azurite, "jobs", 40).await;
    let full = StorageQueueAnswer { approximate: 45, peeked: 32 };
    assert_eq!(read(&rule("azure-queue", &visible)).await, Ok(Answer::StorageQueue(full)));
    assert_eq!(measured(&rule("azure-queue", &visible)).await, Ok((45.0, true)));

    let signature = format!("QueueEndpoint={queues};SharedAccessSignature={}", azurite.signature());
    let by_signature = rule("azure-queue", &[("connection", &signature), ("queueName", "jobs")]);
    assert_eq!(measured(&by_signature).await, Ok((45.0, true)));

    let missing = rule("azure-queue", &[("connection", &connection), ("queueName", "other")]);
    let error = measured(&missing).await.unwrap_err();
    assert_eq!(error, format!("{queues}/other: there is no queue `other` (QueueNotFound)"));
    let forged = connection.replace("Eby8", "Ebz8");
    let error = measured(&rule("azure-queue", &[("connection", &forged), ("queueName", "jobs")])).await.unwrap_err();
    assert!(error.contains("403 Forbidden; look at the rule's credentials"), "{error}");
    assert!(!error.contains("Ebz8"), "{error}");
}

#[tokio::test]
async fn blobs_of_a_container() {
    let _provider = rustls::crypto::ring::default_provider().install_default();
    let azurite = Azurite::start();
    let (connection, blobs) = (azurite.connection_string(), azurite.blobs.clone());
    assert_eq!(ask(&azurite, "PUT", &format!("{blobs}/inbox?restype=container"), "").await.0, 201);
    for name in ["a.csv", "b.txt", "in/a.csv", "in/b&lt;.csv", "in/deep/c.csv", "in/deep/d.txt", "index"] {
        let (status, _) = ask(&azurite, "PUT", &format!("{blobs}/inbox/{name}"), "x").await;
        assert_eq!(status, 201, "{name}");
    }
    let cases: [(&[(&str, &str)], f64); 8] = [
        (&[], 3.0),
        (&[("recursive", "true")], 7.0),
        (&[("blobPrefix", "in")], 2.0),
        (&[("blobPrefix", "in"), ("recursive", "true")], 5.0),
        (&[("blobPrefix", "none")], 0.0),
        (&[("globPattern", "in/**/*.csv")], 1.0),
        (&[("blobPrefix", "in"), ("globPattern", "*.csv")], 3.0),
        (&[("blobDelimiter", "e"), ("blobPrefix", "ind")], 1.0),
    ];
    for (more, count) in cases {
        let mut parameters = vec![("connection", connection.as_str()), ("blobContainerName", "inbox")];
        parameters.extend_from_slice(more);
        assert_eq!(measured(&rule("azure-blob", &parameters)).await, Ok((count, count > 0.0)), "{more:?}");
    }
    let none = rule("azure-blob", &[("connection", &connection), ("blobContainerName", "other")]);
    let error = measured(&none).await.unwrap_err();
    assert_eq!(error, format!("{blobs}/other: there is no container `other` (ContainerNotFound)"));
}

#[tokio::test]
async fn lists_of_blobs_are_read_to_their_end() {
    let page = |names: &[&str], next: &str| {
        let blobs: String = names.iter().map(|name| format!("<Blob><Name>{name}</Name></Blob>")).collect();
        format!(
            "\u{feff}<?xml version=\"1.0\"?><EnumerationResults><Blobs>{blobs}</Blobs><NextMarker>{next}</NextMarker></EnumerationResults>"
        )
    };
    let stub = Stub::start(move |seen| {
        let is_first = !seen.target.contains("marker");
        reply(200, &if is_first { page(&["a", "b"], "m&amp;1") } else { page(&["c"], "") })
    })
    .await;
    let connection = format!("BlobEndpoint={};AccountName=acc;AccountKey=a2V5", stub.url("/acc"));
    let blobs = rule("azure-blob", &[("connection", &connection), ("blobContainerName", "inbox")]);
    assert_eq!(measured(&blobs).await, Ok((3.0, true)));
    assert!(stub.last().target.ends_with("&marker=m%261"), "{}", stub.last().target);
}

#[test]
fn connection_strings_that_lack_something() {
    let open = |scaler: &str, parameters: &[(&str, &str)]| {
        let error = scalers().open(&rule(scaler, parameters), &context()).err().map(|error| error.to_string());
        error.expect("it cannot be opened")
    };
    let queue = |connection: &str| open("azure-queue", &[("queueName", "q"), ("connection", connection)]);
    assert!(queue("").contains("connection is missing; give the account's connection string"));
    assert!(queue("nonsense").contains("no connection string"));
    assert!(queue("AccountName=a").contains("lacks AccountName and AccountKey"));
    assert!(queue("AccountKey=a").contains("lacks AccountName"));
    assert!(queue("AccountName=a;AccountKey=%").contains("no base64"));
    assert!(open("azure-queue", &[("connection", "UseDevelopmentStorage=true")]).contains("queueName is missing"));
    let bus = |parameters: &[(&str, &str)]| open("azure-servicebus", parameters);
    assert!(bus(&[]).contains("give queueName, or topicName and subscriptionName"));
    assert!(bus(&[("queueName", "a"), ("topicName", "b")]).contains("not both"));
    assert!(bus(&[("topicName", "b")]).contains("needs a subscriptionName"));
    assert!(bus(&[("queueName", "a"), ("subscriptionName", "b")]).contains("belongs to a topicName"));
    assert!(bus(&[("queueName", "a")]).contains("connection is missing"));
    assert!(bus(&[("queueName", "(")]).contains("connection is missing"));
    assert!(bus(&[("queueName", "("), ("useRegex", "true")]).contains("no regular expression"));
    assert!(bus(&[("queueName", "a"), ("connection", "Endpoint=sb://n/")]).contains("lacks SharedAccessKeyName"));
}

/// The double, as a program of its own.
struct Double {
    child: Child,
    _input: ChildStdin,
    port: u16,
    control: String,
    client: reqwest::Client,
    ca: String,
}

impl Double {
    fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/acceptance/servicebus.py");
        let mut command = Command::new("python3");
        command.arg("-B").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 starts");
        let input = child.stdin.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("it says where it is");
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, port, control, ca] = words[..] else { panic!("the double said {line:?}") };
        Self {
            child,
            _input: input,
            port: port.parse().expect("a port"),
            control: format!("http://127.0.0.1:{control}"),
            client: reqwest::Client::new(),
            ca: std::fs::read_to_string(ca).expect("its certificate"),
        }
    }

    async fn put(&self, what: &str) {
        let reply = self.client.put(format!("{}/{what}", self.control)).send().await.unwrap();
        assert!(reply.status().is_success(), "{what}");
    }

    fn connection(&self, key: &str) -> String {
        format!(
            "Endpoint=sb://127.0.0.1:{}/;SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey={key}",
            self.port
        )
    }

    /// What a rule reads with the double's certificate in the server's configuration.
    async fn counts(&self, parameters: &[(&str, &str)]) -> Result<Answer, ReadError> {
        self.counts_with(&self.connection(KEY), parameters).await
    }

    async fn counts_with(&self, connection: &str, parameters: &[(&str, &str)]) -> Result<Answer, ReadError> {
        let mut all = vec![("connection", connection)];
        all.extend_from_slice(parameters);
        let scalers = scalers().with_roots(Roots::from_pem(std::slice::from_ref(&self.ca)).unwrap());
        let source = scalers.open(&rule("azure-servicebus", &all), &context()).unwrap();
        once(source.as_ref()).await
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        let _ = self._input.flush();
        // It ends when its input ends; a kill in case that it hangs.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const KEY: &str = "Y292ZS1kb3VibGUtb2Ytc2VydmljZS1idXMtMDAwMDE=";

#[tokio::test]
async fn messages_of_service_bus() {
    let _provider = rustls::crypto::ring::default_provider().install_default();
    let double = Double::start();
    double.put("queues/orders?active=12&dead=3&scheduled=4").await;
    assert_eq!(double.counts(&[("queueName", "orders")]).await, Ok(Answer::ServiceBus(vec![12])));
    double.put("topics/sales/subscriptions/europe?active=7").await;
    double.put("topics/sales/subscriptions/asia?active=2").await;
    let one = [("topicName", "sales"), ("subscriptionName", "europe")];
    assert_eq!(double.counts(&one).await, Ok(Answer::ServiceBus(vec![7])));
    let pattern = [("topicName", "sales"), ("subscriptionName", "europe|asia"), ("useRegex", "true")];
    assert_eq!(double.counts(&pattern).await, Ok(Answer::ServiceBus(vec![2, 7])));

    for number in 0..120 {
        double.put(&format!("queues/many{number:03}?active=1")).await;
    }
    let pattern = [("queueName", "many.*"), ("useRegex", "true")];
    assert_eq!(double.counts(&pattern).await, Ok(Answer::ServiceBus(vec![1; 120])), "two pages");
    // The whole name must match.
    let pattern = [("queueName", "order"), ("useRegex", "true")];
    assert_eq!(double.counts(&pattern).await, Ok(Answer::ServiceBus(vec![])));
}

#[tokio::test]
async fn failures_of_service_bus() {
    let _provider = rustls::crypto::ring::default_provider().install_default();
    let double = Double::start();
    double.put("queues/orders?active=1").await;
    let at = format!("https://127.0.0.1:{}", double.port);
    let queue = [("queueName", "orders")];
    let say = |result: Result<Answer, ReadError>| result.unwrap_err().to_string();

    assert_eq!(say(double.counts(&[("queueName", "none")]).await), format!("{at}/none: there is no queue `none`"));
    let none = [("topicName", "none"), ("subscriptionName", "s")];
    let error = say(double.counts(&none).await);
    assert_eq!(error, format!("{at}/none/Subscriptions/s: there is no subscription `s` of the topic `none`"));

    let refused = format!("{at}/orders answered 401 Unauthorized; look at the rule's credentials");
    assert_eq!(say(double.counts_with(&double.connection("wrong"), &queue).await), refused);
    // The key was changed; a rule with the new one reads again.
    double.put("keys/RootManageSharedAccessKey?key=new").await;
    assert_eq!(say(double.counts(&queue).await), refused);
    assert!(double.counts_with(&double.connection("new"), &queue).await.is_ok());

    double.put("faults?status=503").await;
    let error = say(double.counts_with(&double.connection("new"), &queue).await);
    assert_eq!(error, format!("{at}/orders answered 503 Service Unavailable"));
    double.put("faults?delay_ms=60000").await;
    let given_up = std::time::Duration::from_secs(3);
    let late = tokio::time::timeout(given_up, double.counts_with(&double.connection("new"), &queue)).await;
    assert!(late.is_err(), "{late:?}");
    double.put("faults?delay_ms=0").await;
    assert!(double.counts_with(&double.connection("new"), &queue).await.is_ok());

    let stranger = rule("azure-servicebus", &[("connection", &double.connection("new")), ("queueName", "orders")]);
    let error = measured(&stranger).await.unwrap_err();
    assert!(error.starts_with(&format!("{at}/orders: ")) && error.contains("certificate"), "{error}");
}

/// Tokens that name what they are for.
struct Named;

impl Tokens for Named {
    fn token<'a>(&'a self, identity: &'a str, audience: &'a str) -> TokenFuture<'a> {
        Box::pin(async move { Ok(format!("{identity}@{audience}")) })
    }
}

#[tokio::test]
async fn identities_show_a_token() {
    let stub = Stub::start(|_| {
        http::Response::builder().header("x-ms-approximate-messages-count", "3").body(String::new()).unwrap()
    })
    .await;
    let endpoint = format!("QueueEndpoint={}", stub.url("/acc"));
    let mut rule = rule("azure-queue", &[("connection", &endpoint), ("queueName", "jobs")]);
    rule.identity = Some("system".to_owned());
    let with = Context { tokens: Some(Arc::new(Named)), ..context() };
    let scalers = scalers();
    let source = scalers.open(&rule, &with).unwrap();
    assert!(once(source.as_ref()).await.is_ok());
    let seen = stub.last();
    assert_eq!(seen.header("authorization"), "Bearer system@https://storage.azure.com/");
    assert_eq!(seen.target, "/acc/jobs?comp=metadata");
    let without = scalers.open(&rule, &context()).unwrap();
    let error = once(without.as_ref()).await.unwrap_err();
    assert_eq!(error.to_string(), "the app has no tokens of the identity `system`");
    // Without a connection string the account's name gives the address.
    let mut named = trigger("azure-queue", &[("accountName", "acc"), ("queueName", "jobs")]);
    named.identity = Some("system".to_owned());
    let opened = format!("{:?}", scalers.open(&named, &with).unwrap());
    assert!(opened.contains("https://acc.queue.core.windows.net"), "{opened}");
}
