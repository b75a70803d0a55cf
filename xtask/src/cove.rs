//! A `cove serve` of one's own and a client of its API: what the benchmarks and the chaos test drive.
//!
//! Free ports, a temporary data directory, every app deleted and the server ended when it is dropped or closed.
//!
//! **Invariant:** nothing outlives [`Cove::close`]; a [`Cove`] that is dropped without it purges its replicas too.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Longest that a server may take until it is ready.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Longest that a server may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(180);
/// Longest that one resource may take to be made or removed.
const OPERATION_LIMIT: Duration = Duration::from_secs(120);
const SUBSCRIPTION: &str = "/subscriptions/00000000-0000-0000-0000-0000000000aa";
const GROUP: &str = "bench";
const API_VERSION: &str = "2025-07-01";
/// The image that is part of every server.
pub(crate) const SAMPLE: &str = "cove.local/sample:latest";

/// Where the server said it is.
#[derive(Clone, Debug, Deserialize)]
struct Endpoints {
    api: String,
    http: String,
    https: String,
    ca: PathBuf,
    pid: u32,
}

/// How to start a server.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The program.
    pub(crate) binary: PathBuf,
    /// Its `cove.toml`.
    pub(crate) config: String,
    /// Further arguments of `cove serve`.
    pub(crate) arguments: Vec<String>,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Cove {
    options: Options,
    // the directory goes last
    process: Child,
    endpoints: Endpoints,
    http: reqwest::Client,
    directory: tempfile::TempDir,
}

/// Where a server is, apart from the server itself: for clients that outlive one.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    api: String,
    ingress: String,
    http: reqwest::Client,
}

/// One app of the server.
#[derive(Clone, Debug)]
pub(crate) struct App {
    /// Its resource id.
    pub(crate) id: String,
    /// Its host name.
    pub(crate) host: String,
}

impl Cove {
    /// Starts a server in a new data directory.
    pub(crate) async fn start(options: Options) -> anyhow::Result<Self> {
        ensure!(options.binary.exists(), "`{}` does not exist; build it first", options.binary.display());
        let directory = tempfile::Builder::new().prefix("cove-bench-").tempdir().context("failed to make a folder")?;
        std::fs::write(directory.path().join("cove.toml"), &options.config)?;
        let (process, endpoints) = launch(&options, directory.path()).await?;
        let http = client(&endpoints.ca)?;
        Ok(Self { options, process, endpoints, http, directory })
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill().await.context("failed to kill the server")
    }

    /// Starts the server again that was killed.
    pub(crate) async fn start_again(&mut self) -> anyhow::Result<()> {
        (self.process, self.endpoints) = launch(&self.options, self.directory.path()).await?;
        Ok(())
    }

    /// SIGTERM, and a new server on the same data once the old one has ended.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        signal(self.endpoints.pid, nix::sys::signal::Signal::SIGTERM)?;
        let ended = tokio::time::timeout(STOP_LIMIT, self.process.wait()).await;
        ended.context("the server did not end in time")??;
        self.start_again().await
    }

    /// A new server takes over from this one; done when the old one has drained and ended.
    pub(crate) async fn take_over(&mut self) -> anyhow::Result<()> {
        let mut options = self.options.clone();
        options.arguments.push("--take-over".to_owned());
        let (process, endpoints) = launch(&options, self.directory.path()).await?;
        let mut old = std::mem::replace(&mut self.process, process);
        self.endpoints = endpoints;
        let ended = tokio::time::timeout(STOP_LIMIT, old.wait()).await;
        ended.context("the server that was taken over from did not end in time")??;
        Ok(())
    }

    /// Process id of the server.
    pub(crate) fn pid(&self) -> u32 {
        self.endpoints.pid
    }

    /// `host:port` of the ingress.
    pub(crate) fn ingress(&self) -> &str {
        self.endpoints.http.trim_start_matches("http://").trim_end_matches('/')
    }

    /// `host:port` of the ingress with TLS.
    pub(crate) fn ingress_tls(&self) -> &str {
        self.endpoints.https.trim_start_matches("https://").trim_end_matches('/')
    }

    /// The server's data directory.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Where the server's own log is.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.path().join("serve.log")
    }

    /// Where the server is now; a restart moves it.
    pub(crate) fn address(&self) -> Address {
        Address { api: self.endpoints.api.clone(), ingress: self.ingress().to_owned(), http: self.http.clone() }
    }

    /// A request to the API: status and JSON.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<(u16, Value)> {
        self.address().call(method, path, body).await
    }

    /// A request that must succeed.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let (status, value) = self.call(method, path, body).await?;
        ensure!((200..300).contains(&status), "`{method} {path}` was answered {status}: {value}");
        Ok(value)
    }

    /// Makes the resource group and the environment that all apps of a benchmark share.
    pub(crate) async fn create_environment(&self) -> anyhow::Result<()> {
        let group = format!("{SUBSCRIPTION}/resourceGroups/{GROUP}?api-version=2024-11-01");
        self.ask("PUT", &group, Some(&json!({"location": "westeurope"}))).await?;
        let id = environment_id();
        self.ask("PUT", &versioned(&id), Some(&json!({"location": "westeurope", "properties": {}}))).await?;
        self.until_provisioned(&id).await.map(drop)
    }

    /// Asks for an app and waits until it is there.
    pub(crate) async fn create_app(&self, name: &str, template: Value) -> anyhow::Result<App> {
        let id = app_id(name);
        self.put_app(name, template).await?;
        let value = self.until_provisioned(&id).await?;
        let host =
            value["properties"]["configuration"]["ingress"]["fqdn"].as_str().context("the app has no host name")?;
        Ok(App { id, host: host.to_owned() })
    }

    /// Asks for an app and does not wait.
    pub(crate) async fn put_app(&self, name: &str, template: Value) -> anyhow::Result<()> {
        self.ask("PUT", &versioned(&app_id(name)), Some(&app_body(template))).await.map(drop)
    }

    /// Waits until `id` is `Succeeded`.
    pub(crate) async fn until_provisioned(&self, id: &str) -> anyhow::Result<Value> {
        let deadline = Instant::now() + OPERATION_LIMIT;
        loop {
            let value = self.ask("GET", &versioned(id), None).await?;
            match value["properties"]["provisioningState"].as_str() {
                Some("Succeeded") => return Ok(value),
                Some("Failed" | "Canceled") => bail!("`{id}` failed: {}", value["properties"]["deploymentErrors"]),
                _ if Instant::now() > deadline => bail!("`{id}` was not provisioned in time: {value}"),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Asks for the deletion of an app and waits until it is gone.
    pub(crate) async fn delete_app(&self, id: &str) -> anyhow::Result<()> {
        let (status, value) = self.call("DELETE", &versioned(id), None).await?;
        ensure!(status < 300 || status == 404, "deleting `{id}` was answered {status}: {value}");
        let deadline = Instant::now() + OPERATION_LIMIT;
        while self.call("GET", &versioned(id), None).await?.0 != 404 {
            ensure!(Instant::now() < deadline, "`{id}` was not deleted in time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Names of all apps with their ids.
    pub(crate) async fn apps(&self) -> anyhow::Result<Vec<Value>> {
        let value =
            self.ask("GET", &versioned(&format!("{SUBSCRIPTION}/providers/Microsoft.App/containerApps")), None).await?;
        Ok(value["value"].as_array().cloned().unwrap_or_default())
    }

    /// Replicas of an app's latest revision, as the API lists them.
    pub(crate) async fn replicas(&self, app: &App) -> anyhow::Result<Vec<Value>> {
        let shown = self.ask("GET", &versioned(&app.id), None).await?;
        let revision = shown["properties"]["latestRevisionName"].as_str().context("the app has no revision")?;
        let listed = self.ask("GET", &versioned(&format!("{}/revisions/{revision}/replicas", app.id)), None).await?;
        Ok(listed["value"].as_array().cloned().unwrap_or_default())
    }

    /// Ends the cool-down of an app: it goes to zero when no request is open.
    pub(crate) async fn scale_to_zero(&self, app: &App) -> anyhow::Result<()> {
        self.ask("POST", &format!("/cove/v1/scale/zero?app={}", app.id), None).await.map(drop)
    }

    /// Waits until no replica of these apps runs and `slots` replicas are prepared.
    pub(crate) async fn until_at_zero(&self, apps: &[App], slots: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + OPERATION_LIMIT;
        for app in apps {
            while !self.replicas(app).await?.is_empty() {
                ensure!(Instant::now() < deadline, "`{}` did not go to zero in time", app.id);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        self.until_slots(slots).await
    }

    /// Waits until `slots` replicas are prepared.
    pub(crate) async fn until_slots(&self, slots: u64) -> anyhow::Result<()> {
        self.until_counted("slots", slots).await
    }

    /// Waits until the server counts so many replicas that are prepared (`slots`) or `frozen`.
    pub(crate) async fn until_counted(&self, what: &str, count: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + OPERATION_LIMIT;
        loop {
            let health = self.ask("GET", "/cove/v1/health", None).await?;
            if health[what].as_u64() == Some(count) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "`{what}` was to be {count}, it is {}", health[what]);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Deletes every app and ends the server.
    pub(crate) async fn close(mut self) -> anyhow::Result<()> {
        let mut apps = Vec::new();
        for app in self.apps().await? {
            if let Some(id) = app["id"].as_str() {
                self.call("DELETE", &versioned(id), None).await?;
                apps.push(id.to_owned());
            }
        }
        for id in apps {
            self.delete_app(&id).await?;
        }
        signal(self.endpoints.pid, nix::sys::signal::Signal::SIGTERM)?;
        let ended = tokio::time::timeout(STOP_LIMIT, self.process.wait()).await;
        ended.context("the server did not end in time")??;
        self.purge()
    }

    /// Ends what is left of a server that has ended: slots of apps just deleted, its bridge, its cgroups.
    fn purge(&self) -> anyhow::Result<()> {
        let done = std::process::Command::new(&self.options.binary)
            .args(["purge", "--yes", "--data-dir"])
            .arg(self.data_dir())
            .stdin(Stdio::null())
            .output()
            .context("failed to run `cove purge`")?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "`cove purge` failed: {}", said.trim());
        Ok(())
    }

    /// The last lines of the server's log, for a failure's text.
    pub(crate) fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Address {
    /// A request to the API: status and JSON.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<(u16, Value)> {
        let method = method.parse().context("not an HTTP method")?;
        let mut request = self.http.request(method, format!("{}{path}", self.api));
        request = match body {
            Some(body) => request.json(body),
            None => request.header("content-length", "0"),
        };
        let answer = request.send().await.with_context(|| format!("failed to call `{path}`"))?;
        let status = answer.status().as_u16();
        let text = answer.text().await.with_context(|| format!("failed to read the answer of `{path}`"))?;
        let value = if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? };
        Ok((status, value))
    }

    /// The first line of a log stream that is not empty; `None` when the stream ended without one.
    pub(crate) async fn first_line(&self, path: &str, token: &str) -> anyhow::Result<Option<String>> {
        let mut answer = self.stream(path, token).await?;
        let mut text = Vec::new();
        while let Some(part) = answer.chunk().await.with_context(|| format!("`{path}` was cut"))? {
            text.extend_from_slice(&part);
            let mut whole = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
            if let Some(line) = whole.find(|line| line.len() > 1) {
                return Ok(Some(String::from_utf8(line.to_vec())?));
            }
        }
        Ok(None)
    }

    /// All of a log stream that ends.
    pub(crate) async fn text(&self, path: &str, token: &str) -> anyhow::Result<String> {
        let answer = self.stream(path, token).await?;
        answer.text().await.with_context(|| format!("`{path}` was cut"))
    }

    async fn stream(&self, path: &str, token: &str) -> anyhow::Result<reqwest::Response> {
        let request = self.http.get(format!("{}{path}", self.api)).bearer_auth(token);
        let answer = request.send().await.with_context(|| format!("failed to call `{path}`"))?;
        let status = answer.status();
        ensure!(status == 200, "`{path}` was answered {status}: {}", answer.text().await.unwrap_or_default());
        Ok(answer)
    }

    /// A token for an audience, as a program gets one.
    pub(crate) async fn token(&self, audience: &str) -> anyhow::Result<String> {
        let form = format!("grant_type=client_credentials&client_id=bench&client_secret=any&scope={audience}/.default");
        let path = format!("{}/00000000-0000-0000-0000-0000000000bb/oauth2/v2.0/token", self.api);
        let request = self.http.post(path).header("content-type", "application/x-www-form-urlencoded").body(form);
        let text = request.send().await?.text().await?;
        let value: Value = serde_json::from_str(&text)?;
        value["access_token"].as_str().map(str::to_owned).with_context(|| format!("no token: {text}"))
    }

    /// A `GET` of a session through the ingress, read to its end: the status and which session answered.
    pub(crate) async fn session(&self, host: &str, path: &str, token: &str) -> anyhow::Result<(u16, Option<String>)> {
        self.session_call("GET", host, path, token).await
    }

    /// A request to a session through the ingress, read to its end: the status and which session answered.
    pub(crate) async fn session_call(
        &self,
        method: &str,
        host: &str,
        path: &str,
        token: &str,
    ) -> anyhow::Result<(u16, Option<String>)> {
        let request = self.http.request(method.parse()?, format!("http://{}{path}", self.ingress));
        let answer = request.header("host", host).bearer_auth(token).send().await?;
        let guid = answer.headers().get("x-ms-session-guid").and_then(|guid| guid.to_str().ok()).map(str::to_owned);
        let status = answer.status().as_u16();
        answer.bytes().await?;
        Ok((status, guid))
    }

    /// The same, with the answer's body as JSON.
    pub(crate) async fn session_json(
        &self,
        method: &str,
        host: &str,
        path: &str,
        token: &str,
    ) -> anyhow::Result<(u16, serde_json::Value)> {
        let request = self.http.request(method.parse()?, format!("http://{}{path}", self.ingress));
        let answer = request.header("host", host).bearer_auth(token).send().await?;
        let status = answer.status().as_u16();
        Ok((status, serde_json::from_slice(&answer.bytes().await?)?))
    }

    /// The server's metrics as text.
    pub(crate) async fn metrics(&self) -> anyhow::Result<String> {
        Ok(self.http.get(format!("{}/cove/v1/metrics", self.api)).send().await?.text().await?)
    }

    /// A `GET` of an app through the ingress, read to its end: the status.
    pub(crate) async fn get_app(&self, host: &str, path: &str) -> anyhow::Result<u16> {
        let answer = self.http.get(format!("http://{}{path}", self.ingress)).header("host", host).send().await?;
        let status = answer.status().as_u16();
        answer.bytes().await?;
        Ok(status)
    }
}

impl Drop for Cove {
    fn drop(&mut self) {
        // after `close` there is nothing left; after a failure the replicas are
        let running = self.process.try_wait().ok().flatten().is_none();
        if running {
            let _gone = self.process.start_kill();
            // until it is dead: it holds the data directory
            if let Ok(pid) = i32::try_from(self.endpoints.pid) {
                let _reaped = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
            }
            if let Err(error) = self.purge() {
                eprintln!("warning: replicas of `{}` may be left: {error:#}", self.data_dir().display());
            }
        }
    }
}

/// Sends a signal to a process that this program started.
pub(crate) fn signal(pid: u32, signal: nix::sys::signal::Signal) -> anyhow::Result<()> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
    nix::sys::signal::kill(pid, signal).with_context(|| format!("failed to signal process {pid}"))
}

/// The resource id of an app by its name.
pub(crate) fn app_id(name: &str) -> String {
    format!("{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App/containerApps/{name}")
}

/// The resource id of a job by its name.
pub(crate) fn job_id(name: &str) -> String {
    format!("{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App/jobs/{name}")
}

/// The resource id of a session pool by its name.
pub(crate) fn pool_id(name: &str) -> String {
    format!("{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App/sessionPools/{name}")
}

/// The resource id of the environment that everything is in.
pub(crate) fn environment_id() -> String {
    format!("{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App/managedEnvironments/env")
}

/// Where all apps of the group are listed.
pub(crate) fn list_path() -> String {
    versioned(&format!("{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App/containerApps"))
}

/// A path with the api-version that Cove's own client uses.
pub(crate) fn versioned(id: &str) -> String {
    format!("{id}?api-version={API_VERSION}")
}

/// The body of an app with outer ingress on port 80.
pub(crate) fn app_body(template: Value) -> Value {
    json!({
        "location": "westeurope",
        "properties": {
            "environmentId": environment_id(),
            "configuration": {"ingress": {"external": true, "targetPort": 80, "allowInsecure": true}},
            "template": template,
        },
    })
}

/// The template of an app that runs the sample.
pub(crate) fn sample_template(min: u32, max: u32, env: &[(&str, &str)]) -> Value {
    let env: Vec<Value> = env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    json!({
        "containers": [{
            "name": "main", "image": SAMPLE, "env": env, "resources": {"cpu": 0.25, "memory": "0.5Gi"},
        }],
        "scale": {"minReplicas": min, "maxReplicas": max},
    })
}

async fn launch(options: &Options, directory: &Path) -> anyhow::Result<(Child, Endpoints)> {
    let data = directory.join("data");
    let log = std::fs::OpenOptions::new().append(true).create(true).open(directory.join("serve.log"))?;
    let mut process = Command::new(&options.binary)
        .args(["serve", "--api", "127.0.0.1:0", "--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--config"])
        .arg(directory.join("cove.toml"))
        .arg("--data-dir")
        .arg(&data)
        .args(&options.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .with_context(|| format!("failed to start `{}`", options.binary.display()))?;
    let stdout = process.stdout.take().context("stdout is a pipe")?;
    let mut lines = BufReader::new(stdout).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await? {
            if line.starts_with("cove ready") {
                return anyhow::Ok(true);
            }
        }
        Ok(false)
    };
    if !matches!(tokio::time::timeout(START_LIMIT, ready).await, Ok(Ok(true))) {
        let _gone = process.kill().await;
        let said = std::fs::read_to_string(directory.join("serve.log")).unwrap_or_default();
        bail!("`cove serve` did not become ready:\n{said}");
    }
    let text = std::fs::read_to_string(data.join("endpoints.json")).context("failed to read `endpoints.json`")?;
    let mut endpoints: Endpoints = serde_json::from_str(&text)?;
    // names cost a look-up, and may stand for ::1 first
    for url in [&mut endpoints.api, &mut endpoints.http, &mut endpoints.https] {
        *url = url.replace("localhost", "127.0.0.1");
    }
    Ok((process, endpoints))
}

fn client(ca: &Path) -> anyhow::Result<reqwest::Client> {
    // already set when a second server is started in this process
    let _set = rustls::crypto::ring::default_provider().install_default();
    let pem = std::fs::read(ca).with_context(|| format!("failed to read `{}`", ca.display()))?;
    let builder = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(&pem)?])
        .no_proxy()
        .timeout(Duration::from_secs(60));
    Ok(builder.build()?)
}
