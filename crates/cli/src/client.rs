//! The client of the API: finds the server, logs in, calls, waits for long-running operations as az does.
//!
//! **Invariant:** every wait has a limit.

mod upgrade;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::{Method, Response, StatusCode, header::HeaderMap};
use serde_json::{Value, json};

use crate::{failure::Failure, place::Place, progress::Progress, text};

/// api-version of `Microsoft.App`, az's.
const APP_VERSION: &str = "2025-07-01";
/// api-version of everything else.
const ARM_VERSION: &str = "2024-11-01";
/// api-versions of the other namespaces, as az sends them.
const VERSIONS: [(&str, &str); 4] = [
    ("/microsoft.app/", APP_VERSION),
    ("/microsoft.resources/deployments", "2025-04-01"),
    ("/microsoft.managedidentity/", "2023-01-31"),
    ("/microsoft.authorization/", "2022-04-01"),
];
/// `POST`s that change nothing; `--dry-run` sends them.
const QUESTIONS: [&str; 8] = [
    "listsecrets",
    "getauthtoken",
    "checknameavailability",
    "listcustomhostnameanalysis",
    "getcustomdomainverificationid",
    "validate",
    "whatif",
    "exporttemplate",
];
/// Longest wait for one answer; streams have no limit.
const ANSWER_LIMIT: Duration = Duration::from_secs(100);
/// Longest wait for an operation, as az's.
const OPERATION_LIMIT: Duration = Duration::from_secs(1200);
/// Shortest pause between two polls, where the server says `Retry-After: 0`.
const POLL_MIN: Duration = Duration::from_millis(50);
/// Pause between two polls where the server says nothing.
const POLL_DEFAULT: Duration = Duration::from_secs(2);
/// Longest pause between two polls, whatever the server says.
const POLL_MAX: Duration = Duration::from_secs(30);

/// A connection to a server.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    /// What the server's certificate must be signed by.
    certificate: Option<reqwest::Certificate>,
    api: String,
    /// Ingress of the apps, where the server told it.
    ingress: String,
    token: String,
    user: String,
    subscription: String,
    /// Writes are printed instead of sent.
    is_dry_run: bool,
    /// Requests are told on stderr.
    is_verbose: bool,
    /// Whether a write was printed.
    has_shown: Arc<AtomicBool>,
}

/// How connections to the server at `api` are made.
fn builder(certificate: Option<&reqwest::Certificate>, api: &str) -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder()
        .tls_certs_only(certificate.cloned())
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(5));
    match local_port(api) {
        Some(port) => builder.resolve("localhost", SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        None => builder,
    }
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Until the operation has ended.
    Done,
    /// Until the server has accepted it (`--no-wait`).
    Accepted,
}

impl Wait {
    /// From `--no-wait`.
    pub(crate) fn unless(no_wait: bool) -> Self {
        if no_wait { Self::Accepted } else { Self::Done }
    }
}

impl Client {
    /// Finds the server and logs in.
    pub(crate) async fn connect(place: &Place) -> Result<Self, Failure> {
        cove_server::install_crypto();
        let found = place.find()?;
        let ca = std::fs::read(&found.ca).map_err(|error| {
            Failure::new(format!("failed to read the CA certificate `{}`: {error}", found.ca.display()))
                .hint("start a server with: cove serve")
        })?;
        let certificate = reqwest::Certificate::from_pem(&ca)
            .map_err(|error| Failure::new(format!("`{}` is not a certificate: {error}", found.ca.display())))?;
        let http = builder(Some(&certificate), &found.api).build().map_err(|error| Failure::new(causes(&error)))?;
        let mut client = Self {
            http,
            certificate: Some(certificate),
            api: found.api,
            ingress: found.http,
            token: String::new(),
            user: place.client_id.clone().unwrap_or_else(|| "cove-cli".to_owned()),
            subscription: String::new(),
            is_dry_run: place.is_dry_run,
            is_verbose: place.is_verbose,
            has_shown: Arc::default(),
        };
        let audience = client.api.clone();
        client.log_in(place, &audience).await?;
        client.subscription = match &place.subscription {
            Some(subscription) => subscription.clone(),
            None => client.first_subscription().await?,
        };
        Ok(client)
    }

    /// Gets a token for an audience; all further requests carry it.
    pub(crate) async fn log_in(&mut self, place: &Place, audience: &str) -> Result<(), Failure> {
        let (id, secret) = (place.client_id.as_deref().unwrap_or("cove-cli"), place.client_secret.as_deref());
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", id),
            ("client_secret", secret.unwrap_or("local")),
            ("scope", &format!("{audience}/.default")),
        ]
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .join("&");
        let request = self
            .http
            .post(format!("{}/organizations/oauth2/v2.0/token", self.api))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form)
            .timeout(ANSWER_LIMIT);
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let is_ok = response.status().is_success();
        let answer: Value = response.json().await.unwrap_or_default();
        match answer["access_token"].as_str() {
            Some(token) if is_ok => {
                token.clone_into(&mut self.token);
                Ok(())
            }
            _ => {
                let why = answer["error_description"].as_str().unwrap_or("the server gave no token");
                Err(Failure::new(format!("login as `{id}` failed: {why}"))
                    .hint("set COVE_CLIENT_ID and COVE_CLIENT_SECRET to one of the server's `[[api.clients]]`"))
            }
        }
    }

    async fn first_subscription(&self) -> Result<String, Failure> {
        let answer = self.get("/subscriptions").await?;
        let id = answer["value"][0]["subscriptionId"].as_str();
        id.map(str::to_owned).ok_or_else(|| Failure::new("the server has no subscription"))
    }

    /// URL of an app by its host name.
    pub(crate) fn app_url(&self, fqdn: &str) -> String {
        match self.ingress.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok_and(|port| port != 80) => format!("http://{fqdn}:{port}/"),
            _ => format!("http://{fqdn}/"),
        }
    }

    /// Who is logged in.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    /// A path of this server, from a path or its own URL; the token goes nowhere else.
    pub(crate) fn own(&self, url: &str) -> Result<String, Failure> {
        let path = url.strip_prefix(&self.api).unwrap_or(url);
        if path.starts_with('/') {
            return Ok(path.to_owned());
        }
        if path.contains("://") {
            return Err(Failure::usage(format!("`{url}` is not a URL of this server, which is {}", self.api)));
        }
        Ok(format!("/{path}"))
    }

    /// The subscription in use.
    pub(crate) fn subscription(&self) -> &str {
        &self.subscription
    }

    /// Path of a resource group.
    pub(crate) fn group(&self, group: &str) -> String {
        format!("/subscriptions/{}/resourceGroups/{}", self.subscription, encode(group))
    }

    /// Path below the subscription's `Microsoft.App`.
    pub(crate) fn provider(&self, rest: &str) -> String {
        format!("/subscriptions/{}/providers/Microsoft.App/{rest}", self.subscription)
    }

    /// Path of a resource of `Microsoft.App`; an id is taken as it is.
    pub(crate) fn resource(&self, group: &str, kind: &str, name: &str) -> String {
        if name.starts_with('/') {
            return name.to_owned();
        }
        format!("{}/providers/Microsoft.App/{kind}/{}", self.group(group), encode(name))
    }

    /// Path of a resource of another namespace, such as `Microsoft.ManagedIdentity/userAssignedIdentities`.
    pub(crate) fn of(&self, group: &str, kind: &str, name: &str) -> String {
        if name.starts_with('/') {
            return name.to_owned();
        }
        format!("{}/providers/{kind}/{}", self.group(group), encode(name))
    }

    /// Path of a user-assigned identity.
    pub(crate) fn identity(&self, group: &str, name: &str) -> String {
        self.of(group, "Microsoft.ManagedIdentity/userAssignedIdentities", name)
    }

    /// Path of a container app.
    pub(crate) fn app(&self, group: &str, name: &str) -> String {
        self.resource(group, "containerApps", name)
    }

    /// Path of an environment.
    pub(crate) fn environment(&self, group: &str, name: &str) -> String {
        self.resource(group, "managedEnvironments", name)
    }

    /// `GET`.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        let response = self.send(Method::GET, path, None).await?;
        body_of(response).await
    }

    /// `GET` of what may be absent.
    pub(crate) async fn find(&self, path: &str) -> Result<Option<Value>, Failure> {
        match self.get(path).await {
            Ok(value) => Ok(Some(value)),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// All items of a list, over its pages.
    pub(crate) async fn list(&self, path: &str) -> Result<Value, Failure> {
        const PAGES_MAX: usize = 1000;
        let mut items = Vec::new();
        let mut next = path.to_owned();
        for _ in 0..PAGES_MAX {
            let mut page = self.get(&next).await?;
            if let Value::Array(values) = page["value"].take() {
                items.extend(values);
            }
            match page["nextLink"].as_str().filter(|link| !link.is_empty()) {
                Some(link) => link.clone_into(&mut next),
                None => return Ok(Value::Array(items)),
            }
        }
        Err(Failure::new(format!("the list has more than {PAGES_MAX} pages")))
    }

    /// `POST` that answers at once.
    pub(crate) async fn post(&self, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        if self.is_dry_run && !is_question(path) {
            self.show(&Method::POST, path, body);
            return Ok(Value::Null);
        }
        let response = self.send(Method::POST, path, body).await?;
        body_of(response).await
    }

    /// `POST` that may take a while; its final answer.
    pub(crate) async fn question(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let mut response = self.send(Method::POST, path, Some(body)).await?;
        let deadline = Instant::now() + OPERATION_LIMIT;
        while response.status() == StatusCode::ACCEPTED {
            let headers = response.headers().clone();
            let url = headers.get("location").and_then(|value| value.to_str().ok()).map(str::to_owned);
            let url =
                url.ok_or_else(|| Failure::new("the server accepted it and does not say where its answer will be"))?;
            if Instant::now() > deadline {
                return Err(Failure::new(format!("no answer within {} s", OPERATION_LIMIT.as_secs())));
            }
            tokio::time::sleep(pause_of(&headers)).await;
            response = self.send(Method::GET, &url, None).await?;
        }
        body_of(response).await
    }

    /// `PUT`, `PATCH` or `POST` of a resource; gives the resource as it is afterwards.
    pub(crate) async fn write(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        wait: Wait,
    ) -> Result<Value, Failure> {
        let is_action = method == Method::POST;
        if self.is_dry_run && !is_question(path) {
            return self.dry_write(&method, path, body).await;
        }
        let response = self.send(method, path, body).await?;
        let headers = response.headers().clone();
        let status = response.status();
        let accepted = body_of(response).await?;
        if wait == Wait::Accepted || (status == StatusCode::OK && !is_long_running(&headers)) {
            return Ok(accepted);
        }
        self.finish(path, &headers).await?;
        let resource = if is_action { path.rsplit_once('/').map_or(path, |(resource, _)| resource) } else { path };
        self.get(resource).await
    }

    /// `DELETE`; deleting what is not there is success.
    pub(crate) async fn delete(&self, path: &str, wait: Wait) -> Result<(), Failure> {
        if self.is_dry_run {
            self.show(&Method::DELETE, path, None);
            return Ok(());
        }
        let response = self.send(Method::DELETE, path, None).await?;
        let headers = response.headers().clone();
        if response.status() != StatusCode::ACCEPTED || wait == Wait::Accepted {
            return Ok(());
        }
        self.finish(path, &headers).await
    }

    /// Whether writes are printed instead of sent.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.is_dry_run
    }

    /// Whether a write was printed instead of sent.
    pub(crate) fn has_shown(&self) -> bool {
        self.has_shown.load(Ordering::Relaxed)
    }

    /// Any request, whose answer is given as it is; `None` when it was only shown.
    pub(crate) async fn raw(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Option<Value>, Failure> {
        if self.is_dry_run && method != Method::GET && method != Method::HEAD && !is_question(path) {
            self.show(&method, path, body);
            return Ok(None);
        }
        let response = self.send(method, path, body).await?;
        body_of(response).await.map(Some)
    }

    /// Any request, whose answer is given as text; `None` when it was only shown.
    pub(crate) async fn text(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Option<String>, Failure> {
        if self.is_dry_run && method != Method::GET && method != Method::HEAD {
            self.show(&method, path, body);
            return Ok(None);
        }
        let response = self.send(method, path, body).await?;
        let text = response.text().await.map_err(|error| self.unreachable(&error))?;
        Ok(Some(text))
    }

    /// Shows a write and gives what the resource would be, as far as the body tells.
    async fn dry_write(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        self.show(method, path, body);
        if *method == Method::POST {
            return Ok(Value::Null);
        }
        let mut resource = match (method == Method::PATCH, self.find(path).await) {
            (true, Ok(Some(old))) => old,
            _ => json!({}),
        };
        if let Some(body) = body {
            merge(&mut resource, body);
        }
        resource["id"] = path.into();
        Ok(resource)
    }

    /// Prints a request that is not sent.
    fn show(&self, method: &Method, path: &str, body: Option<&Value>) {
        let mut request = json!({ "method": method.as_str(), "url": self.url(path) });
        if let Some(body) = body {
            request["body"] = body.clone();
            hide_secrets(&mut request["body"]);
        }
        text::out(&format!("{request:#}\n"));
        self.has_shown.store(true, Ordering::Relaxed);
    }

    /// Waits for the operation that an answer's headers name.
    async fn finish(&self, path: &str, headers: &HeaderMap) -> Result<(), Failure> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut progress = Progress::start(self, path);
        let deadline = Instant::now() + OPERATION_LIMIT;
        let (url, has_status) = match (text("azure-asyncoperation"), text("location")) {
            (Some(url), _) => (url, true),
            (None, Some(url)) => (url, false),
            (None, None) => return Ok(()),
        };
        let mut pause = pause_of(headers);
        loop {
            progress.show().await;
            let response = self.send(Method::GET, &url, None).await?;
            let (status, headers) = (response.status(), response.headers().clone());
            let body = body_of(response).await?;
            progress.pulled(body["percentComplete"].as_u64());
            if has_status {
                match body["status"].as_str().unwrap_or_default() {
                    "Succeeded" => return Ok(()),
                    state @ ("Failed" | "Canceled") => return Err(operation_failure(state, &body["error"])),
                    _ => {}
                }
            } else if status != StatusCode::ACCEPTED {
                return Ok(());
            }
            if Instant::now() > deadline {
                let text = format!("the operation has not ended within {} s", OPERATION_LIMIT.as_secs());
                return Err(Failure::new(text).hint("the server goes on with it; look at the resource with `show`"));
            }
            tokio::time::sleep(pause).await;
            pause = pause_of(&headers);
        }
    }

    /// A request whose answer is read piece by piece.
    pub(crate) async fn stream(&self, path: &str) -> Result<Response, Failure> {
        let request = self.http.get(self.url(path)).bearer_auth(&self.token);
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        refused(response).await
    }

    /// `POST` whose answer may take this long.
    pub(crate) async fn post_within(
        &self,
        path: &str,
        body: &Value,
        limit: Duration,
    ) -> Result<Option<Value>, Failure> {
        if self.is_dry_run {
            self.show(&Method::POST, path, Some(body));
            return Ok(None);
        }
        body_of(self.send_within(Method::POST, path, Some(body), limit).await?).await.map(Some)
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Response, Failure> {
        self.send_within(method, path, body, ANSWER_LIMIT).await
    }

    async fn send_within(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Response, Failure> {
        if self.is_verbose {
            text::err(&format!("{method} {}", self.url(path)));
        }
        let mut request = self.http.request(method, self.url(path)).timeout(limit);
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        refused(response).await
    }

    fn url(&self, path: &str) -> String {
        if path.starts_with("https://") {
            return path.to_owned();
        }
        if path.starts_with("/cove/") || path.contains("api-version=") {
            return format!("{}{path}", self.api);
        }
        let lower = path.to_ascii_lowercase();
        // the last namespace is the resource's own: an assignment may be of an app
        let known = VERSIONS.iter().filter_map(|(part, version)| Some((lower.rfind(part)?, version)));
        let version = known.max_by_key(|(at, _)| *at).map_or(ARM_VERSION, |(_, version)| version);
        let separator = if path.contains('?') { '&' } else { '?' };
        format!("{}{path}{separator}api-version={version}", self.api)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        if error.is_connect() {
            return Failure::new(format!("no server answers at {}: {}", self.api, last_cause(error)))
                .hint("start one with: cove serve");
        }
        if error.is_timeout() {
            return Failure::new(format!("{} did not answer in time", self.api));
        }
        Failure::new(format!("the connection to {} broke: {}", self.api, causes(error)))
    }
}

/// Whether a `POST` only asks.
fn is_question(path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    QUESTIONS.iter().any(|question| last.eq_ignore_ascii_case(question))
}

/// JSON merge patch.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(known) = target.as_object_mut() else { return };
    for (name, value) in fields {
        if value.is_null() {
            known.remove(name);
        } else {
            merge(known.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Keys whose texts are never shown.
const HIDDEN: [&str; 6] =
    ["sharedkey", "accountkey", "password", "certificatepassword", "clientsecret", "certificatevalue"];

/// Puts stars where a request holds a secret.
fn hide_secrets(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(hide_secrets),
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                if HIDDEN.contains(&name.to_ascii_lowercase().as_str()) && value.is_string() {
                    *value = "***".into();
                }
                if name == "secrets"
                    && let Some(secrets) = value.as_array_mut()
                {
                    for secret in secrets.iter_mut().filter(|secret| secret["value"].is_string()) {
                        secret["value"] = "***".into();
                    }
                }
                hide_secrets(value);
            }
        }
        _ => {}
    }
}

/// A path segment or query value.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn local_port(api: &str) -> Option<u16> {
    api.strip_prefix("https://localhost:")?.trim_end_matches('/').parse().ok()
}

fn is_long_running(headers: &HeaderMap) -> bool {
    headers.contains_key("azure-asyncoperation") || headers.contains_key("location")
}

fn pause_of(headers: &HeaderMap) -> Duration {
    let seconds = headers.get("retry-after").and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    seconds.map_or(POLL_DEFAULT, Duration::from_secs).clamp(POLL_MIN, POLL_MAX)
}

/// The answer when it is one, the failure it stands for otherwise.
async fn refused(response: Response) -> Result<Response, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = response.text().await.unwrap_or_default();
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    let error = &body["error"];
    let message = match (error["code"].as_str(), error["message"].as_str()) {
        (Some(code), Some(message)) => format!("({code}) {message}{}", details(error)),
        _ => format!("the server answered {status} {}", text.chars().take(200).collect::<String>()),
    };
    Err(match status {
        StatusCode::NOT_FOUND => Failure::not_found(message),
        StatusCode::UNAUTHORIZED => Failure::new(message)
            .hint("set COVE_CLIENT_ID and COVE_CLIENT_SECRET to one of the server's `[[api.clients]]`"),
        _ => Failure::new(message),
    })
}

/// Further messages of one error, a line each.
fn details(error: &Value) -> String {
    let said = error["message"].as_str().unwrap_or_default();
    let details = error["details"].as_array().map_or(&[][..], Vec::as_slice);
    let lines = details.iter().filter_map(|detail| {
        let (code, message) = (detail["code"].as_str()?, detail["message"].as_str()?);
        let target = detail["target"].as_str().map(|target| format!(" at {target}")).unwrap_or_default();
        (!said.contains(message)).then(|| format!("\n  ({code}) {message}{target}"))
    });
    lines.collect()
}

fn operation_failure(state: &str, error: &Value) -> Failure {
    match (error["code"].as_str(), error["message"].as_str()) {
        (Some(code), Some(message)) => Failure::new(format!("({code}) {message}{}", details(error))),
        _ => Failure::new(format!("the operation ended as {state}")),
    }
}

async fn body_of(response: Response) -> Result<Value, Failure> {
    let text =
        response.text().await.map_err(|error| Failure::new(format!("the answer broke off: {}", causes(&error))))?;
    if text.trim().is_empty() {
        return Ok(json!(null));
    }
    serde_json::from_str(&text).map_err(|error| Failure::new(format!("the answer is not JSON: {error}")))
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn last_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_follow_the_namespace() {
        let client = Client {
            http: {
                cove_server::install_crypto();
                reqwest::Client::new()
            },
            certificate: None,
            api: "https://localhost:1".into(),
            ingress: "http://localhost:8080".into(),
            token: String::new(),
            user: "cove-cli".into(),
            subscription: "s".into(),
            is_dry_run: false,
            is_verbose: false,
            has_shown: Arc::default(),
        };
        assert_eq!(client.app_url("web.env.localhost"), "http://web.env.localhost:8080/");
        assert_eq!(client.url("/cove/v1/wakes"), "https://localhost:1/cove/v1/wakes");
        assert_eq!(
            client.url(&client.app("g", "a b")),
            "https://localhost:1/subscriptions/s/resourceGroups/g/providers/Microsoft.App/containerApps/a%20b?api-version=2025-07-01"
        );
        assert_eq!(client.url("/subscriptions?x=1"), "https://localhost:1/subscriptions?x=1&api-version=2024-11-01");
        assert_eq!(client.url("https://localhost:1/x?y"), "https://localhost:1/x?y");
        let assignment = format!("{}/providers/Microsoft.Authorization/roleAssignments/r", client.app("g", "a"));
        assert!(client.url(&assignment).ends_with("?api-version=2022-04-01"));
    }

    #[test]
    fn pauses_are_bounded() {
        let pause = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", text.parse().unwrap());
            pause_of(&headers)
        };
        assert_eq!(pause("0"), POLL_MIN);
        assert_eq!(pause("5"), Duration::from_secs(5));
        assert_eq!(pause("5000"), POLL_MAX);
        assert_eq!(pause_of(&HeaderMap::new()), POLL_DEFAULT);
    }

    #[test]
    fn a_shown_request_holds_no_secret() {
        let mut body = json!({"properties": {"configuration": {"secrets": [{"name": "a", "value": "x"}]},
            "azureFile": {"accountKey": "k", "shareName": "s"}, "template": {"env": [{"name": "A", "value": "1"}]}}});
        hide_secrets(&mut body);
        assert_eq!(
            body,
            json!({"properties": {"configuration": {"secrets": [{"name": "a", "value": "***"}]},
                "azureFile": {"accountKey": "***", "shareName": "s"}, "template": {"env": [{"name": "A", "value": "1"}]}}})
        );
        assert!(is_question("/x/listSecrets?api-version=1") && !is_question("/x/restart"));
    }

    #[test]
    fn details_add_what_the_message_does_not_say() {
        let error = json!({"code": "A", "message": "m", "details": [
            {"code": "A", "message": "m"}, {"code": "B", "message": "other", "target": "properties.x"}
        ]});
        assert_eq!(operation_failure("Failed", &error).text, "(A) m\n  (B) other at properties.x");
    }
}
