//! A storage account: its address, and how a call to it shows who asks.
//!
//! **Invariant:** a call is signed with the machine's own time, also under a virtual clock: the service compares it with
//! its own.
//! **Invariant:** a key leaves this module only as a signature.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use reqwest::Url;
use ring::hmac;

use super::connection::{ConnectionString, Service, endpoint_suffix};
use crate::http::auth::Auth;
use crate::http::{Call, Client, Reply, below, parse_address, place, refused};
use crate::source::{Context, OpenError, ReadError, Trigger};

/// Version of the storage API that calls name.
const API_VERSION: &str = "2021-12-02";
/// Who a token of a managed identity is for.
const AUDIENCE: &str = "https://storage.azure.com/";
/// The emulator's account and its key, which Microsoft publishes.
const EMULATOR_ACCOUNT: &str = "devstoreaccount1";
const EMULATOR_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// One service (queues or blobs) of a storage account.
pub(crate) struct Account {
    client: Client,
    endpoint: Url,
    credential: Credential,
}

enum Credential {
    SharedKey { account: String, key: hmac::Key },
    Signature(Vec<(String, String)>),
    Identity(Auth),
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("endpoint", &place(&self.endpoint)).finish_non_exhaustive()
    }
}

impl Account {
    /// From the connection string in `connection`, or from `account` and the rule's identity.
    ///
    /// # Errors
    /// A connection string that lacks something, or neither of the two.
    pub(crate) fn of(
        client: Client,
        trigger: &Trigger,
        context: &Context,
        service: Service,
        (connection, account): (&str, &str),
    ) -> Result<Self, OpenError> {
        let given = trigger.get(connection).map(ConnectionString::parse).transpose()?;
        if let Some(given) = given {
            let endpoint = endpoint(&given, service)?;
            let credential = Self::credential(&given, trigger, context)?;
            return Ok(Self { client, endpoint, credential });
        }
        if trigger.identity.is_none() {
            return Err(OpenError::metadata(format!(
                "{connection} is missing; give the account's connection string, or {account} and an identity"
            )));
        }
        let name = trigger
            .get(account)
            .filter(|name| name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-'))
            .ok_or_else(|| {
                OpenError::metadata(format!("{account} is missing or no account's name; an identity needs it"))
            })?;
        let suffix = endpoint_suffix(trigger, service)?;
        let endpoint = parse_address("endpointSuffix", &format!("https://{name}.{suffix}"))?;
        Ok(Self { client, endpoint, credential: identity(trigger, context) })
    }

    fn credential(given: &ConnectionString, trigger: &Trigger, context: &Context) -> Result<Credential, OpenError> {
        if let Some(signature) = given.get("sharedaccesssignature") {
            let query = form_urlencoded::parse(signature.trim_start_matches('?').as_bytes());
            return Ok(Credential::Signature(query.into_owned().collect()));
        }
        let development = given.is_true("usedevelopmentstorage");
        let account = given.get("accountname").or_else(|| development.then_some(EMULATOR_ACCOUNT));
        let key = given.get("accountkey").or_else(|| development.then_some(EMULATOR_KEY));
        match (account, key) {
            (Some(account), Some(key)) => {
                let wrong = |_| OpenError::metadata("AccountKey of the connection string is no base64");
                let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(key).map_err(wrong)?);
                Ok(Credential::SharedKey { account: account.to_owned(), key })
            }
            _ if trigger.identity.is_some() => Ok(identity(trigger, context)),
            _ => Err(OpenError::metadata(
                "the connection string lacks AccountName and AccountKey, or a SharedAccessSignature",
            )),
        }
    }

    /// The address of what is below the account; each segment is one, whatever is in it.
    pub(crate) fn url(&self, segments: &[&str]) -> Url {
        below(&self.endpoint, segments)
    }

    /// A GET whose answer must be a success; `what` names what is asked for, such as "the queue `jobs`".
    ///
    /// # Errors
    /// The account cannot be reached, refuses, or has no such thing.
    pub(crate) async fn get(&self, url: Url, what: &str) -> Result<Reply, ReadError> {
        let place = place(&url);
        let reply = self.ask(url).await?;
        if reply.status.is_success() {
            return Ok(reply);
        }
        Err(match reply.status {
            StatusCode::NOT_FOUND => ReadError::new(format!("{place}: there is no {what}{}", code(&reply))),
            status => ReadError::new(format!("{}{}", refused(&place, status), code(&reply))),
        })
    }

    /// A GET of what need not be there.
    ///
    /// # Errors
    /// The account cannot be reached, or refuses.
    pub(crate) async fn find(&self, url: Url) -> Result<Option<Reply>, ReadError> {
        let place = place(&url);
        let reply = self.ask(url).await?;
        match reply.status {
            status if status.is_success() => Ok(Some(reply)),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(ReadError::new(format!("{}{}", refused(&place, status), code(&reply)))),
        }
    }

    async fn ask(&self, url: Url) -> Result<Reply, ReadError> {
        let mut call = Call::get(url);
        call.headers.insert("x-ms-version", HeaderValue::from_static(API_VERSION));
        match &self.credential {
            Credential::SharedKey { account, key } => {
                sign(&mut call, account, key)?;
                self.client.send(call).await
            }
            Credential::Signature(query) => {
                call.url.query_pairs_mut().extend_pairs(query);
                self.client.send(call).await
            }
            Credential::Identity(auth) => auth.send(&self.client, call).await,
        }
    }
}

/// The service's word for what is wrong.
fn code(reply: &Reply) -> String {
    let code = reply.headers.get("x-ms-error-code").and_then(|code| code.to_str().ok());
    code.map(|code| format!(" ({code})")).unwrap_or_default()
}

fn identity(trigger: &Trigger, context: &Context) -> Credential {
    let mut auth = Auth::default();
    auth.identity(trigger, context, AUDIENCE);
    Credential::Identity(auth)
}

fn endpoint(given: &ConnectionString, service: Service) -> Result<Url, OpenError> {
    let (key, name, port) = match service {
        Service::Queue => ("queueendpoint", "queue", 10_001),
        Service::Blob | Service::Bus => ("blobendpoint", "blob", 10_000),
    };
    if let Some(endpoint) = given.get(key) {
        return parse_address("the endpoint of the connection string", endpoint);
    }
    if given.is_true("usedevelopmentstorage") {
        let host = given.get("developmentstorageproxyuri").unwrap_or("http://127.0.0.1").trim_end_matches('/');
        return parse_address("DevelopmentStorageProxyUri", &format!("{host}:{port}/{EMULATOR_ACCOUNT}"));
    }
    let account = given
        .get("accountname")
        .ok_or_else(|| OpenError::metadata(format!("the connection string lacks AccountName (or {name} endpoint)")))?;
    let scheme = given.get("defaultendpointsprotocol").unwrap_or("https");
    let suffix = given.get("endpointsuffix").unwrap_or("core.windows.net");
    parse_address("the connection string", &format!("{scheme}://{account}.{name}.{suffix}"))
}

/// Signs a call by the account's key ("Shared Key" of the blob and queue services).
fn sign(call: &mut Call, account: &str, key: &hmac::Key) -> Result<(), ReadError> {
    let now = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now());
    let now = now.map_err(|error| ReadError::new(format!("the machine's clock is out of range: {error}")))?;
    let text = |text: String| {
        HeaderValue::from_str(&text).map_err(|_| ReadError::new("a signature with characters that no header can have"))
    };
    call.headers.insert("x-ms-date", text(now)?);
    let signature = STANDARD.encode(hmac::sign(key, to_sign(call, account).as_bytes()));
    let mut value = text(format!("SharedKey {account}:{signature}"))?;
    value.set_sensitive(true);
    call.headers.insert(AUTHORIZATION, value);
    Ok(())
}

fn to_sign(call: &Call, account: &str) -> String {
    let standard = [
        "content-encoding",
        "content-language",
        CONTENT_LENGTH.as_str(),
        "content-md5",
        "content-type",
        "date",
        "if-modified-since",
        "if-match",
        "if-none-match",
        "if-unmodified-since",
        "range",
    ];
    let mut text = format!("{}\n", call.method);
    let value = |name: &str| call.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().trim();
    for name in standard {
        text.push_str(value(name));
        text.push('\n');
    }
    let mut own: Vec<&str> =
        call.headers.keys().map(http::HeaderName::as_str).filter(|name| name.starts_with("x-ms-")).collect();
    own.sort_unstable();
    for name in own {
        text.push_str(&format!("{name}:{}\n", value(name)));
    }
    text.push_str(&format!("/{account}{}", call.url.path()));
    let mut query: Vec<(String, String)> =
        call.url.query_pairs().map(|(name, value)| (name.to_ascii_lowercase(), value.into_owned())).collect();
    query.sort();
    for (name, value) in query {
        text.push_str(&format!("\n{name}:{value}"));
    }
    text
}
