//! The double of a namespace (AMQP 1.0 on qpid-proton) with checkpoints in Azurite.

use std::sync::Arc;

use expect_test::expect;

use crate::azurite::Azurite;
use crate::python::Script;
use crate::rig;
use crate::source::{ReadError, TokenFuture, Tokens, Trigger};

const KEY: &str = "c2VjcmV0IG9mIHRoZSBuYW1lc3BhY2U=";
/// Three partitions with events, one empty.
const HUBS: &str = r#"{"orders": [[0, 9], [5, 24], [0, 0], [0, -1]]}"#;

fn namespace(files: &[&str]) -> Script {
    let port = rig::free_port().to_string();
    let mut arguments = vec![port.as_str(), KEY, HUBS];
    arguments.extend(files);
    Script::start_by_debian("event_hub.py", &arguments)
}

fn connection(port: u16) -> String {
    format!(
        "Endpoint=sb://inside:{port}/;SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey={KEY};\
         UseDevelopmentEmulator=true"
    )
}

fn trigger(connection: &str, storage: &str, more: &str) -> Trigger {
    let mut trigger = rig::trigger("azure-eventhub", "eventHubName=orders");
    trigger.parameters.insert("connection".to_owned(), connection.to_owned());
    trigger.parameters.insert("storageConnection".to_owned(), storage.to_owned());
    for pair in more.split(' ').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap();
        trigger.parameters.insert(key.to_owned(), value.to_owned());
    }
    trigger
}

async fn read(trigger: &Trigger) -> String {
    let source = rig::scalers().open(trigger, &rig::context()).unwrap();
    rig::read_source(&source, trigger, rig::DEADLINE).await
}

async fn put(azurite: &Azurite, path: &str, body: &str, sequence: Option<&str>) {
    let join = if path.contains('?') { '&' } else { '?' };
    let url = format!("{}/{path}{join}{}", azurite.blobs, azurite.signature());
    let mut request = reqwest::Client::new().put(url).body(body.to_owned());
    request = request.header("x-ms-version", "2021-12-02").header("x-ms-blob-type", "BlockBlob");
    if let Some(sequence) = sequence {
        request = request.header("x-ms-meta-sequencenumber", sequence);
    }
    assert_eq!(request.send().await.unwrap().status().as_u16(), 201, "{path}");
}

#[tokio::test]
async fn checkpoints_of_every_client() {
    let _provider = rustls::crypto::ring::default_provider().install_default();
    let azurite = Azurite::start();
    let server = namespace(&[]);
    for container in ["checkpoints", "azure-webjobs-eventhub"] {
        put(&azurite, &format!("{container}?restype=container"), "", None).await;
    }
    // Partition 0 is at 4 of 9, 1 at 20 of 24 (there since 5), 2 holds its first event.
    for (path, number) in [("0", 4), ("1", 20)] {
        for (name, body) in [
            (
                format!("azure-webjobs-eventhub/inside/orders/$Default/{path}"),
                format!(r#"{{"SequenceNumber": {number}}}"#),
            ),
            (format!("checkpoints/mine/{path}"), format!(r#"{{"sequence_number": {number}}}"#)),
            (format!("checkpoints/{path}"), format!(r#"{{"checkpoint": {{"sequenceNumber": {number}}}}}"#)),
            (
                format!("checkpoints/dapr-orders-mine-{path}"),
                format!(r#"{{"checkpoint": {{"sequenceNumber": {number}}}}}"#),
            ),
        ] {
            put(&azurite, &name, &body, None).await;
        }
        let name = format!("checkpoints/inside/orders/mine/checkpoint/{path}");
        put(&azurite, &name, "x", Some(&number.to_string())).await;
    }
    put(&azurite, "checkpoints/broken/0", "no document", None).await;

    let mut text = String::new();
    for more in [
        "",
        "checkpointStrategy=azureFunction blobContainer=other",
        "checkpointStrategy=blobMetadata blobContainer=checkpoints consumerGroup=Mine",
        "checkpointStrategy=goSdk blobContainer=checkpoints",
        "checkpointStrategy=dapr blobContainer=checkpoints consumerGroup=mine",
        "blobContainer=checkpoints consumerGroup=mine",
        "blobContainer=checkpoints consumerGroup=mine unprocessedEventThreshold=2",
        "blobContainer=checkpoints consumerGroup=mine activationUnprocessedEventThreshold=10",
        "blobContainer=checkpoints consumerGroup=nobody",
        "blobContainer=missing consumerGroup=mine",
        "blobContainer=checkpoints consumerGroup=broken",
        "eventHubName=bills",
    ] {
        let read = read(&trigger(&connection(server.port()), &azurite.connection_string(), more)).await;
        text += &format!("{more}\n  {}\n", read.replace(&azurite.blobs, "BLOBS"));
    }
    expect![[r#"

          10 active
        checkpointStrategy=azureFunction blobContainer=other
          10 active
        checkpointStrategy=blobMetadata blobContainer=checkpoints consumerGroup=Mine
          10 active
        checkpointStrategy=goSdk blobContainer=checkpoints
          10 active
        checkpointStrategy=dapr blobContainer=checkpoints consumerGroup=mine
          10 active
        blobContainer=checkpoints consumerGroup=mine
          10 active
        blobContainer=checkpoints consumerGroup=mine unprocessedEventThreshold=2
          8 active
        blobContainer=checkpoints consumerGroup=mine activationUnprocessedEventThreshold=10
          10 idle
        blobContainer=checkpoints consumerGroup=nobody
          31 active
        blobContainer=missing consumerGroup=mine
          31 active
        blobContainer=checkpoints consumerGroup=broken
          failed: BLOBS/checkpoints/broken/0 gave no JSON: expected ident at line 1 column 2
        eventHubName=bills
          failed: inside: there is no such hub (404): The messaging entity 'bills' could not be found.
    "#]]
    .assert_eq(&text);
}

#[tokio::test]
async fn one_connection_serves_reading_after_reading() {
    let _provider = rustls::crypto::ring::default_provider().install_default();
    let azurite = Azurite::start();
    let mut server = namespace(&[]);
    let trigger = trigger(&connection(server.port()), &azurite.connection_string(), "");
    let scalers = rig::scalers();
    let source = scalers.open(&trigger, &rig::context()).unwrap();
    let other = scalers.open(&trigger, &rig::context()).unwrap();
    let again = || async { rig::read_source(&source, &trigger, rig::DEADLINE).await };
    assert_eq!(again().await, "31 active");
    let both = tokio::join!(again(), rig::read_source(&other, &trigger, rig::DEADLINE));
    assert_eq!(both, ("31 active".to_owned(), "31 active".to_owned()));
    assert_eq!(server.ask(r#"{"orders": [[0, -1], [3, 3]]}"#), "ok");
    assert_eq!(again().await, "0 idle");
    // Given up in the middle, as a late reading is: the next one makes a new connection.
    assert_eq!(rig::read_source(&source, &trigger, std::time::Duration::ZERO).await, "late");
    assert_eq!(again().await, "0 idle");
    assert_eq!(server.ask("{}"), "ok");
    assert!(again().await.contains("there is no such hub (404)"));
    assert_eq!(server.ask(HUBS), "ok");
    assert_eq!(again().await, "31 active");
    drop(server);
    // That the connection is gone may be noticed by the first reading after it, which is late then.
    assert_ne!(rig::read_source(&source, &trigger, std::time::Duration::from_secs(3)).await, "31 active");
    let gone = again().await;
    assert!(gone.starts_with("failed: cannot connect to inside:"), "{gone}");
}

/// Tokens of an identity, as the double knows them.
struct Known;

impl Tokens for Known {
    fn token<'a>(&'a self, identity: &'a str, audience: &'a str) -> TokenFuture<'a> {
        Box::pin(async move {
            if identity == "system" { Ok(format!("a token of {audience}")) } else { Err(ReadError::new("no identity")) }
        })
    }
}

#[tokio::test]
async fn who_may_not_enter_is_told_so() {
    let _provider = rustls::crypto::ring::default_provider().install_default();
    let azurite = Azurite::start();
    let folder = tempfile::tempdir().unwrap();
    let certificate = rcgen::generate_simple_self_signed(["inside".to_owned()]).unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let files = [write("cert", certificate.cert.pem()), write("key", certificate.signing_key.serialize_pem())];
    let server = namespace(&files.each_ref().map(String::as_str));
    let storage = azurite.connection_string();
    let under_tls = connection(server.port()).replace(";UseDevelopmentEmulator=true", "");
    let with_ca = |connection: &str| {
        let mut trigger = trigger(connection, &storage, "");
        trigger.parameters.insert("ca".to_owned(), certificate.cert.pem());
        trigger
    };
    assert_eq!(read(&with_ca(&under_tls)).await, "31 active");
    let port = server.port().to_string();
    let wrong = read(&with_ca(&under_tls.replace(KEY, "d3Jvbmc="))).await.replace(&format!(":{port}"), ":PORT");
    expect!["failed: inside: the hub refuses the login (401): InvalidSignature: The token has an invalid signature."]
        .assert_eq(&wrong);
    let stranger = read(&trigger(&under_tls, &storage, "")).await.replace(&format!(":{port}"), ":PORT");
    expect!["failed: the TLS handshake with inside failed: invalid peer certificate: UnknownIssuer"]
        .assert_eq(&stranger);

    // The token of an identity instead of a key.
    let mut by_identity = with_ca(&format!("Endpoint=sb://inside:{port}/"));
    by_identity.identity = Some("system".to_owned());
    let mut context = rig::context();
    context.tokens = Some(Arc::new(Known));
    let source = rig::scalers().open(&by_identity, &context).unwrap();
    assert_eq!(rig::read_source(&source, &by_identity, rig::DEADLINE).await, "31 active");
    let without = read(&by_identity).await;
    expect!["failed: identity `system` cannot be used: the app has no identities"].assert_eq(&without);
}

#[test]
fn metadata_that_cannot_be_used() {
    let _provider = rustls::crypto::ring::default_provider().install_default();
    let wrong = |connection: &str, storage: &str, more: &str| match rig::scalers()
        .open(&trigger(connection, storage, more), &rig::context())
    {
        Ok(source) => format!("opened: {source:?}"),
        Err(error) => error.to_string(),
    };
    let storage = "UseDevelopmentStorage=true";
    let mut text = String::new();
    for (connection, storage, more) in [
        ("", storage, ""),
        ("SharedAccessKey=hunter2", storage, ""),
        ("Endpoint=sb://h/;SharedAccessKeyName=n", storage, ""),
        ("Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=hunter2", "", ""),
        ("Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=hunter2", storage, "eventHubName="),
        ("Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=hunter2", storage, "checkpointStrategy=goSdk"),
        ("Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=hunter2;EntityPath=e", storage, "eventHubName="),
    ] {
        let said = wrong(connection, storage, more);
        assert!(!said.contains("hunter2"), "{said}");
        text += &format!("{said}\n");
    }
    expect![[r#"
        connection is missing; give the namespace's connection string, or eventHubNamespace and an identity
        the connection string lacks its Endpoint, such as sb://NAME.servicebus.windows.net/
        the connection string lacks SharedAccessKeyName and SharedAccessKey, or a SharedAccessSignature
        storageConnection is missing; give the account's connection string, or storageAccountName and an identity
        eventHubName is missing; give it, or an EntityPath in the connection string
        blobContainer is missing; the checkpointStrategy needs it
        opened: EventHub { address: Address { host: "h", port: 5671 }, hub: "e", .. }
    "#]]
    .assert_eq(&text);
}
