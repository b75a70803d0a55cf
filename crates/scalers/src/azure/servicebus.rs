//! `azure-servicebus`: active messages of a queue or of a topic's subscription, by the management interface (ATOM over
//! HTTPS).
//!
//! **Invariant:** a queue that is not there fails the read; no entity that matches a pattern is 0.

use std::fmt;

use cove_scaling::source::Answer;
use http::header::AUTHORIZATION;
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use regex::Regex;
use reqwest::Url;
use ring::hmac;
use serde_json::Value;

use super::connection::{ConnectionString, Service, endpoint_suffix};
use crate::http::auth::Auth;
use crate::http::{Call, Client, Http, below, flag, parse_address, place, refused, required, tls};
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};
use crate::xml;

/// Version of the management interface that calls name.
const API_VERSION: &str = "2021-05";
/// Who a token of a managed identity is for.
const AUDIENCE: &str = "https://servicebus.azure.net/";
/// How long a signature is good; each read makes its own.
const SIGNATURE_LIFE_S: i64 = 1200;
/// Entities of one page of a list.
const PAGE: usize = 100;
/// Entities that are looked at: what a namespace can hold.
const ENTITIES_MAX: usize = 10_000;
/// Where the emulator listens for management calls.
const EMULATOR_PORT: u16 = 5300;
/// What stays as it is in a signature's parts (RFC 3986, unreserved).
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One entity of a namespace, or those of a pattern.
#[derive(Debug)]
pub(crate) struct ServiceBus {
    client: Client,
    endpoint: Url,
    credential: Credential,
    entity: Entity,
}

#[derive(Debug)]
enum Entity {
    Queue(String),
    Queues(Regex),
    Subscription(String, String),
    Subscriptions(String, Regex),
}

enum Credential {
    Key { name: String, key: hmac::Key },
    Signature(HeaderValue),
    Identity(Auth),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

/// Reads the metadata of an `azure-servicebus` rule.
pub(crate) fn open(http: &Http, trigger: &Trigger, context: &Context) -> Result<ServiceBus, OpenError> {
    let entity = entity(trigger)?;
    let (endpoint, credential) = match trigger.get("connection") {
        Some(text) => connection(&ConnectionString::parse(text)?, trigger, context)?,
        None if trigger.identity.is_some() => {
            let namespace = required(trigger, "namespace")?;
            let suffix = endpoint_suffix(trigger, Service::Bus)?;
            let endpoint = parse_address("namespace", &format!("https://{namespace}.{suffix}"))?;
            (endpoint, identity(trigger, context))
        }
        None => {
            return Err(OpenError::metadata(
                "connection is missing; give the namespace's connection string, or namespace and an identity",
            ));
        }
    };
    let client = http.client(&tls(trigger)?, context)?;
    Ok(ServiceBus { client, endpoint, credential, entity })
}

fn entity(trigger: &Trigger) -> Result<Entity, OpenError> {
    let is_pattern = flag(trigger, "useRegex", false)?;
    let whole = |key: &str, text: &str| {
        let wrong = |_| OpenError::metadata(format!("{key} is no regular expression: `{text}`"));
        Regex::new(&format!("^(?:{text})$")).map_err(wrong)
    };
    match (trigger.get("queueName"), trigger.get("topicName"), trigger.get("subscriptionName")) {
        (Some(_), Some(_), _) => Err(OpenError::metadata("give either queueName or topicName, not both")),
        (Some(_), None, Some(_)) => {
            Err(OpenError::metadata("subscriptionName belongs to a topicName, not to a queueName"))
        }
        (Some(queue), None, None) if is_pattern => Ok(Entity::Queues(whole("queueName", queue)?)),
        (Some(queue), None, None) => Ok(Entity::Queue(queue.to_owned())),
        (None, Some(topic), Some(one)) if is_pattern => {
            Ok(Entity::Subscriptions(topic.to_owned(), whole("subscriptionName", one)?))
        }
        (None, Some(topic), Some(one)) => Ok(Entity::Subscription(topic.to_owned(), one.to_owned())),
        (None, Some(_), None) => Err(OpenError::metadata("topicName needs a subscriptionName")),
        (None, None, _) => Err(OpenError::metadata("give queueName, or topicName and subscriptionName")),
    }
}

fn connection(given: &ConnectionString, trigger: &Trigger, context: &Context) -> Result<(Url, Credential), OpenError> {
    let endpoint = given.get("endpoint").ok_or_else(|| OpenError::metadata("the connection string lacks Endpoint"))?;
    let host = endpoint.split_once("://").map_or(endpoint, |(_, host)| host).trim_end_matches('/');
    let is_emulator = given.is_true("usedevelopmentemulator");
    let scheme = if is_emulator { "http" } else { "https" };
    let mut endpoint = parse_address("Endpoint", &format!("{scheme}://{host}"))?;
    if is_emulator && endpoint.port().is_none() {
        let set = endpoint.set_port(Some(EMULATOR_PORT));
        set.map_err(|()| OpenError::metadata("Endpoint of the connection string cannot have a port"))?;
    }
    let credential =
        match (given.get("sharedaccesskeyname"), given.get("sharedaccesskey"), given.get("sharedaccesssignature")) {
            (Some(name), Some(key), _) => {
                Credential::Key { name: name.to_owned(), key: hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()) }
            }
            (_, _, Some(signature)) => {
                let wrong = |_| OpenError::metadata("SharedAccessSignature has a character that no header can have");
                Credential::Signature(secret(signature).map_err(wrong)?)
            }
            _ if trigger.identity.is_some() => identity(trigger, context),
            _ => {
                return Err(OpenError::metadata(
                    "the connection string lacks SharedAccessKeyName and SharedAccessKey, or a SharedAccessSignature",
                ));
            }
        };
    Ok((endpoint, credential))
}

fn identity(trigger: &Trigger, context: &Context) -> Credential {
    let mut auth = Auth::default();
    auth.identity(trigger, context, AUDIENCE);
    Credential::Identity(auth)
}

impl Source for ServiceBus {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(async {
            let counts = match &self.entity {
                Entity::Queue(name) => vec![self.one(&[name], "QueueDescription", &format!("queue `{name}`")).await?],
                Entity::Subscription(topic, name) => {
                    let what = format!("subscription `{name}` of the topic `{topic}`");
                    vec![self.one(&[topic, "Subscriptions", name], "SubscriptionDescription", &what).await?]
                }
                Entity::Queues(pattern) => {
                    self.all(&["$Resources", "Queues"], "QueueDescription", pattern, "list of queues").await?
                }
                Entity::Subscriptions(topic, pattern) => {
                    let what = format!("topic `{topic}`");
                    self.all(&[topic, "Subscriptions"], "SubscriptionDescription", pattern, &what).await?
                }
            };
            Ok(Answer::ServiceBus(counts))
        })
    }
}

impl ServiceBus {
    async fn one(&self, path: &[&str], kind: &str, what: &str) -> Result<u64, ReadError> {
        let url = below(&self.endpoint, path);
        let place = place(&url);
        let tree = self.get(url, what).await?;
        // Azure answers a feed without entries where there is no such entity.
        let entry = xml::child(&tree, "entry").ok_or_else(|| ReadError::new(format!("{place}: there is no {what}")))?;
        active(entry, kind).ok_or_else(|| ReadError::new(format!("{place} gave no ActiveMessageCount")))
    }

    async fn all(&self, path: &[&str], kind: &str, pattern: &Regex, what: &str) -> Result<Vec<u64>, ReadError> {
        let mut counts = Vec::new();
        for skip in (0..ENTITIES_MAX).step_by(PAGE) {
            let mut url = below(&self.endpoint, path);
            url.query_pairs_mut().append_pair("$skip", &skip.to_string()).append_pair("$top", &PAGE.to_string());
            let place = place(&url);
            let tree = self.get(url, what).await?;
            let feed =
                xml::child(&tree, "feed").ok_or_else(|| ReadError::new(format!("{place}: there is no {what}")))?;
            let mut seen = 0;
            for entry in xml::children(feed, "entry") {
                seen += 1;
                let name = xml::child(entry, "title").map(xml::text).unwrap_or_default();
                if pattern.is_match(name) {
                    let count = active(entry, kind);
                    counts.push(count.ok_or_else(|| ReadError::new(format!("{place} gave no ActiveMessageCount")))?);
                }
            }
            if seen < PAGE {
                break;
            }
        }
        Ok(counts)
    }

    async fn get(&self, mut url: Url, what: &str) -> Result<Value, ReadError> {
        let place = place(&url);
        url.query_pairs_mut().append_pair("api-version", API_VERSION);
        let mut call = Call::get(url);
        let reply = match &self.credential {
            Credential::Key { name, key } => {
                let until = Timestamp::now().as_second().saturating_add(SIGNATURE_LIFE_S);
                let value = secret(&signature(&place, name, key, until));
                let value =
                    value.map_err(|_| ReadError::new("SharedAccessKeyName has a character that is not allowed"))?;
                call.headers.insert(AUTHORIZATION, value);
                self.client.send(call).await?
            }
            Credential::Signature(value) => {
                call.headers.insert(AUTHORIZATION, value.clone());
                self.client.send(call).await?
            }
            Credential::Identity(auth) => auth.send(&self.client, call).await?,
        };
        match reply.status {
            status if status.is_success() => xml::read(&reply.text(), &place),
            StatusCode::NOT_FOUND => Err(ReadError::new(format!("{place}: there is no {what}"))),
            status => Err(refused(&place, status)),
        }
    }
}

/// `SharedAccessSignature` of a resource, good until `until` (seconds since 1970).
pub(crate) fn signature(resource: &str, name: &str, key: &hmac::Key, until: i64) -> String {
    use base64::Engine;
    let resource = utf8_percent_encode(&resource.to_ascii_lowercase(), PLAIN).to_string();
    let signed = hmac::sign(key, format!("{resource}\n{until}").as_bytes());
    let signed = base64::engine::general_purpose::STANDARD.encode(signed);
    let encode = |text: &str| utf8_percent_encode(text, PLAIN).to_string();
    format!("SharedAccessSignature sr={resource}&sig={}&se={until}&skn={}", encode(&signed), encode(name))
}

fn secret(text: &str) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(text)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Active messages in the description of an entity; what the service cannot mean is 0.
fn active(entry: &Value, kind: &str) -> Option<u64> {
    let description = xml::child(xml::child(entry, "content")?, kind)?;
    let count = xml::text(xml::child(xml::child(description, "CountDetails")?, "ActiveMessageCount")?);
    count.trim().parse::<i64>().ok().map(|count| u64::try_from(count).unwrap_or(0))
}
