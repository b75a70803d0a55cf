//! `azure-eventhub`: events of a hub that a consumer group has not processed yet.
//!
//! The hub says over AMQP where each partition begins and ends; the group's checkpoints lie in blobs of a storage account.
//! What these come to is `cove_scaling::source::EventHub`'s to say.
//!
//! **Invariant:** the key of a namespace leaves this module only as a signature.

mod checkpoint;
mod hub;

use std::fmt;
use std::sync::Arc;

use cove_scaling::source::{Answer, EventHubPartition};
use futures_util::future::try_join_all;
use jiff::Timestamp;
use ring::hmac;

use crate::azure::connection::{ConnectionString, Service, endpoint_suffix};
use crate::azure::servicebus::signature;
use crate::azure::storage::Account;
use crate::dial::{Address, Peer};
use crate::http::{Http, required, tls};
use crate::pool::Pool;
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};
use crate::tls::{Roots, TlsOptions};
use checkpoint::Checkpoints;
use hub::{Hub, SharedHub, Token};

/// AMQP under TLS.
const TLS_PORT: u16 = 5671;
/// AMQP of the emulator.
const EMULATOR_PORT: u16 = 5672;
/// Who a token of a managed identity is for.
const AUDIENCE: &str = "https://eventhubs.azure.net/";
/// How long a signature is good; a connection lives on with fresh ones.
const SIGNATURE_LIFE_S: i64 = 3600;

/// The connections to all hubs.
#[derive(Debug, Default)]
pub(crate) struct Hubs {
    pool: Pool<Key, SharedHub>,
    roots: Roots,
}

impl Hubs {
    pub(crate) fn new(roots: Roots) -> Self {
        Self { roots, ..Self::default() }
    }
}

/// What makes two rules share a connection.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    peer: Peer,
    hub: String,
    tls: Option<TlsOptions>,
    login: Login,
}

/// How a rule shows who asks.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Login {
    Key {
        name: String,
        key: String,
    },
    Signature(String),
    /// Of the app that is named beside it: `system` is another identity for each.
    Identity {
        identity: String,
        app: String,
    },
}

/// One group on one hub.
pub(crate) struct EventHub {
    hubs: Arc<Hubs>,
    context: Context,
    address: Address,
    hub: String,
    tls: Option<TlsOptions>,
    login: Login,
    checkpoints: Checkpoints,
}

impl fmt::Debug for EventHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventHub").field("address", &self.address).field("hub", &self.hub).finish_non_exhaustive()
    }
}

/// Opens a rule of `azure-eventhub`.
///
/// # Errors
/// Connection strings or names that are missing or wrong.
pub(crate) fn open(hubs: &Arc<Hubs>, http: &Http, trigger: &Trigger, context: &Context) -> Result<EventHub, OpenError> {
    let given = trigger.get("connection").map(ConnectionString::parse).transpose()?.unwrap_or_default();
    let is_emulator = given.is_true("usedevelopmentemulator");
    let address = address(&given, trigger, is_emulator)?;
    let hub = given.get("entitypath").or_else(|| trigger.get("eventHubName"));
    let hub = hub.ok_or_else(|| {
        OpenError::metadata("eventHubName is missing; give it, or an EntityPath in the connection string")
    })?;
    let options = tls(trigger)?;
    // Its own suffix, where the hub has one too.
    let mut storage = trigger.clone();
    storage.parameters.remove("endpointSuffix");
    if let Some(suffix) = trigger.get("storageEndpointSuffix") {
        storage.parameters.insert("endpointSuffix".to_owned(), format!("blob.{suffix}"));
    }
    let names = ("storageConnection", "storageAccountName");
    let client = http.client(&options, context)?;
    let account = Account::of(client, &storage, context, Service::Blob, names)?;
    Ok(EventHub {
        hubs: Arc::clone(hubs),
        context: context.clone(),
        checkpoints: Checkpoints::new(account, trigger, &address.host, hub)?,
        address,
        hub: hub.to_owned(),
        tls: (!is_emulator).then_some(options),
        login: login(&given, trigger)?,
    })
}

fn address(given: &ConnectionString, trigger: &Trigger, is_emulator: bool) -> Result<Address, OpenError> {
    let port = if is_emulator { EMULATOR_PORT } else { TLS_PORT };
    if let Some(endpoint) = given.get("endpoint") {
        let host = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest).trim_end_matches('/');
        return Address::parse(host, Some(port));
    }
    if trigger.get("connection").is_some() {
        return Err(OpenError::metadata(
            "the connection string lacks its Endpoint, such as sb://NAME.servicebus.windows.net/",
        ));
    }
    if trigger.identity.is_none() {
        return Err(OpenError::metadata(
            "connection is missing; give the namespace's connection string, or eventHubNamespace and an identity",
        ));
    }
    let namespace = required(trigger, "eventHubNamespace")?;
    let suffix = endpoint_suffix(trigger, Service::Bus)?;
    Address::parse(&format!("{namespace}.{suffix}"), Some(port))
}

fn login(given: &ConnectionString, trigger: &Trigger) -> Result<Login, OpenError> {
    match (given.get("sharedaccesskeyname"), given.get("sharedaccesskey"), given.get("sharedaccesssignature")) {
        (Some(name), Some(key), _) => Ok(Login::Key { name: name.to_owned(), key: key.to_owned() }),
        (_, _, Some(signature)) => Ok(Login::Signature(signature.to_owned())),
        _ => {
            let identity = trigger.identity.clone().ok_or_else(|| {
                OpenError::metadata(
                    "the connection string lacks SharedAccessKeyName and SharedAccessKey, or a SharedAccessSignature",
                )
            })?;
            Ok(Login::Identity { identity, app: format!("{}/{}", trigger.namespace, trigger.name) })
        }
    }
}

impl Source for EventHub {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(async {
            let partitions = self.partitions().await?;
            let known = partitions.iter().map(|one| async {
                // Of an empty partition nothing can be left.
                if one.last < 0 { Ok(None) } else { self.checkpoints.of(&one.id).await }
            });
            let checkpoints = try_join_all(known).await?;
            let both = partitions.iter().zip(checkpoints).map(|(one, checkpoint)| EventHubPartition {
                last: one.last,
                beginning: one.beginning,
                checkpoint,
            });
            Ok(Answer::EventHub(both.collect()))
        })
    }
}

impl EventHub {
    async fn partitions(&self) -> Result<Vec<hub::Partition>, ReadError> {
        let key = Key {
            peer: Peer::new(self.address.clone(), &self.context),
            hub: self.hub.clone(),
            tls: self.tls.clone(),
            login: self.login.clone(),
        };
        let hubs = &self.hubs;
        let connect = || async {
            let wire = key.peer.connect(self.tls.as_ref(), &hubs.roots).await?;
            Hub::open(wire, &self.address.host).await.map(Arc::new)
        };
        let mut hub = hubs.pool.get(&key, connect).await?;
        if hub.is_stale() {
            hubs.pool.forget_if(&key, |other| Arc::ptr_eq(other, &hub)).await;
            hub = hubs.pool.get(&key, connect).await?;
        }
        let read = hub.partitions(&self.hub, &self.token().await?).await;
        if read.is_err() {
            hubs.pool.forget_if(&key, |other| Arc::ptr_eq(other, &hub)).await;
        }
        read
    }

    async fn token(&self) -> Result<Token, ReadError> {
        let scheme = if self.tls.is_some() { "amqps" } else { "amqp" };
        let audience = format!("{scheme}://{}/{}", self.address.host, self.hub);
        let signed = "servicebus.windows.net:sastoken";
        Ok(match &self.login {
            Login::Key { name, key } => {
                let until = Timestamp::now().as_second() + SIGNATURE_LIFE_S;
                let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
                Token { kind: signed, text: signature(&audience, name, &key, until), audience }
            }
            Login::Signature(text) => Token { kind: signed, text: text.clone(), audience },
            Login::Identity { identity, .. } => {
                let tokens = self.context.tokens.as_ref();
                let tokens = tokens.ok_or_else(|| {
                    ReadError::new(format!("identity `{identity}` cannot be used: the app has no identities"))
                })?;
                Token { kind: "jwt", text: tokens.token(identity, AUDIENCE).await?, audience }
            }
        })
    }
}

#[cfg(test)]
mod tests;
