//! `rabbitmq`: length of a queue by AMQP 0-9-1, or length and rates of one or more queues by the management API.
//!
//! `protocol` is `amqp`, `http`, or `auto`: what the scheme of `host` says. The path of `host` is the virtual host, unless
//! `vhostName` names another. `username` and `password` win over those in `host`.
//!
//! **Invariant:** a queue is only looked at (a passive declaration, a GET), never made or emptied.
//! **Invariant:** errors name the host without its user.

mod amqp;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cove_scaling::source::{Answer, RabbitQueue};
use percent_encoding::percent_decode_str;
use reqwest::Url;
use serde_json::Value;

use crate::dial::{Address, Peer};
use crate::http::{self, Call, Client, Http};
use crate::keys;
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};
pub(crate) use amqp::Brokers;
use amqp::Login;

/// Queues of one page of the management API, default of `pageSize`.
const PAGE: u32 = 100;

/// One rule's queue, or queues.
#[derive(Debug)]
pub(crate) enum RabbitMq {
    Amqp(Amqp),
    Http(Management),
}

/// By AMQP.
#[derive(Debug)]
pub(crate) struct Amqp {
    brokers: Arc<Brokers>,
    context: Context,
    address: Address,
    login: Login,
    queue: String,
}

/// By the management API.
#[derive(Debug)]
pub(crate) struct Management {
    client: Client,
    call: Call,
    is_pattern: bool,
}

/// What `host` and its companions say.
struct Host {
    url: Url,
    username: String,
    password: String,
    vhost: String,
}

/// Reads where the queue is and how it is asked about.
///
/// # Errors
/// Metadata that cannot be used.
pub(crate) fn open(
    brokers: &Arc<Brokers>,
    http: &Http,
    trigger: &Trigger,
    context: &Context,
) -> Result<RabbitMq, OpenError> {
    let host = host(trigger)?;
    if trigger.get("workloadIdentityResource").is_some() {
        return Err(OpenError::metadata("workloadIdentityResource is not supported; give username and password"));
    }
    let queue = keys::required(trigger, "queueName")?;
    let scheme = host.url.scheme();
    let is_amqp = match trigger.get("protocol").unwrap_or("auto") {
        "amqp" => true,
        "http" => false,
        "auto" => scheme.starts_with("amqp"),
        other => return Err(OpenError::metadata(format!("protocol is `{other}`; expected auto, amqp or http"))),
    };
    let fits = if is_amqp { matches!(scheme, "amqp" | "amqps") } else { matches!(scheme, "http" | "https") };
    if !fits {
        let expected = if is_amqp { "amqp://… or amqps://…" } else { "http://… or https://…" };
        return Err(OpenError::metadata(format!("host begins with {scheme}://; expected {expected}")));
    }
    if is_amqp {
        return Ok(RabbitMq::Amqp(by_amqp(brokers, trigger, context, &host, queue)?));
    }
    Ok(RabbitMq::Http(by_http(http, trigger, context, host, queue)?))
}

fn host(trigger: &Trigger) -> Result<Host, OpenError> {
    let wrong = || OpenError::metadata("host is no address such as amqp://user:password@host:5672/vhost");
    let url = Url::parse(keys::required(trigger, "host")?).map_err(|_| wrong())?;
    if !url.has_host() {
        return Err(wrong());
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(String::from).map_err(|_| wrong());
    let secret = |key: &str| trigger.parameters.get(key).filter(|value| !value.is_empty()).cloned();
    let or_guest = |text: String| if text.is_empty() { "guest".to_owned() } else { text };
    let username = secret("username").map_or_else(|| decoded(url.username()), Ok)?;
    let password = secret("password").map_or_else(|| decoded(url.password().unwrap_or_default()), Ok)?;
    let last = url.path().rsplit('/').next().unwrap_or_default();
    let vhost = trigger.get("vhostName").map_or_else(|| decoded(last), |name| Ok(name.to_owned()))?;
    let vhost = if vhost.is_empty() { "/".to_owned() } else { vhost };
    Ok(Host { username: or_guest(username), password: or_guest(password), vhost, url })
}

fn by_amqp(
    brokers: &Arc<Brokers>,
    trigger: &Trigger,
    context: &Context,
    host: &Host,
    queue: &str,
) -> Result<Amqp, OpenError> {
    let is_tls = host.url.scheme() == "amqps" || keys::tls_switch(trigger, "tls")?;
    let name = host.url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let address = Address { host: name, port: host.url.port().unwrap_or(if is_tls { 5671 } else { 5672 }) };
    let login = Login {
        username: host.username.clone(),
        password: host.password.clone(),
        vhost: host.vhost.clone(),
        tls: if is_tls { Some(keys::tls(trigger)?) } else { None },
    };
    if [queue, login.vhost.as_str()].iter().any(|text| text.len() > 255) {
        return Err(OpenError::metadata("queueName and vhostName have at most 255 bytes"));
    }
    Ok(Amqp { brokers: Arc::clone(brokers), context: context.clone(), address, login, queue: queue.to_owned() })
}

fn by_http(
    http: &Http,
    trigger: &Trigger,
    context: &Context,
    host: Host,
    queue: &str,
) -> Result<Management, OpenError> {
    keys::tls_switch(trigger, "tls")?;
    let tls = keys::tls(trigger)?;
    let is_pattern = keys::flag(trigger, "useRegex", false)?;
    let mut base = host.url;
    // Neither may fail: the scheme is http or https.
    let _ = (base.set_username(""), base.set_password(None));
    let above = base.path().rsplit_once('/').map(|(above, _)| above.to_owned()).unwrap_or_default();
    base.set_path(&above);
    base.set_query(None);
    let mut url = if is_pattern {
        http::below(&base, &["api", "queues", &host.vhost])
    } else {
        http::below(&base, &["api", "queues", &host.vhost, queue])
    };
    if is_pattern {
        let page = keys::whole(trigger, "pageSize", PAGE)?;
        if page == 0 {
            return Err(OpenError::metadata("pageSize is 0; expected at least 1"));
        }
        url.query_pairs_mut()
            .append_pair("page", "1")
            .append_pair("use_regex", "true")
            .append_pair("pagination", "false")
            .append_pair("name", queue)
            .append_pair("page_size", &page.to_string());
    }
    let mut call = Call::get(url);
    call.timeout = http::timeout(trigger)?;
    let pair = BASE64_STANDARD.encode(format!("{}:{}", host.username, host.password));
    let (name, value) = http::header("authorization", &format!("Basic {pair}"))?;
    call.headers.insert(name, value);
    Ok(Management { client: http.client(&tls, context)?, call, is_pattern })
}

impl Amqp {
    async fn answer(&self) -> Result<Answer, ReadError> {
        let peer = Peer::new(self.address.clone(), &self.context);
        let messages = self.brokers.messages(peer, &self.login, &self.queue).await?;
        let messages = u64::from(messages);
        Ok(Answer::RabbitMq(vec![RabbitQueue { messages, ready: messages, ..RabbitQueue::default() }]))
    }
}

impl Management {
    async fn answer(&self) -> Result<Answer, ReadError> {
        let place = http::place(&self.call.url);
        let answer = self.client.fetch(self.call.clone()).await?.json(&place)?;
        if !self.is_pattern {
            return Ok(Answer::RabbitMq(vec![queue(&answer, &place)?]));
        }
        if answer["page_count"].as_u64().is_some_and(|pages| pages > 1) {
            return Err(ReadError::new(format!("{place}: more queues match than pageSize allows; raise pageSize")));
        }
        let items = answer["items"].as_array().or_else(|| answer.as_array());
        let items = items.ok_or_else(|| ReadError::new(format!("{place} gave no queues")))?;
        let queues: Result<Vec<_>, _> = items.iter().map(|item| queue(item, &place)).collect();
        Ok(Answer::RabbitMq(queues?))
    }
}

/// A queue that was just made has no counts yet.
fn queue(item: &Value, place: &str) -> Result<RabbitQueue, ReadError> {
    if !item.is_object() || item["name"].as_str().is_none() {
        return Err(ReadError::new(format!("{place} gave something that is no queue")));
    }
    let rate = |of: &str| item["message_stats"][of]["rate"].as_f64().unwrap_or(0.0);
    Ok(RabbitQueue {
        messages: item["messages"].as_u64().unwrap_or(0),
        ready: item["messages_ready"].as_u64().unwrap_or(0),
        publish_rate: rate("publish_details"),
        deliver_get_rate: rate("deliver_get_details"),
    })
}

impl Source for RabbitMq {
    fn read(&self) -> ReadFuture<'_> {
        match self {
            Self::Amqp(amqp) => Box::pin(amqp.answer()),
            Self::Http(management) => Box::pin(management.answer()),
        }
    }
}
