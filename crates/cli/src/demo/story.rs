//! What the demo does and looks for, in order.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Timeline,
    load::Load,
    stage::{APP, GROUP, Stage},
};
use crate::{client::Wait, failure::Failure, scale, wakes};

/// The image that is part of this program: no registry is needed.
const IMAGE: &str = "cove.local/sample:latest";
/// Requests per second that one replica gets.
const SHARE: u32 = 10;
/// Most replicas.
const REPLICAS_MAX: u32 = 5;
/// Seconds without a request until the last replica goes; Azure's default is 300.
const COOLDOWN_SECS: u32 = 4;
/// Time between two looks at the platform.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Longest wait for each thing that is to happen.
const LIMIT: Duration = Duration::from_secs(30);
/// The load goes on at least this long.
const LOAD_MIN: Duration = Duration::from_secs(5);
/// Longest wait for a slot; without one the wake is a cold start, which is no failure.
const SLOT_LIMIT: Duration = Duration::from_secs(5);

/// The app as the demo sees it.
struct Scene<'a> {
    stage: &'a Stage,
    timeline: &'a Timeline,
    http: reqwest::Client,
    url: String,
    app: String,
}

/// Does all of it; the first thing that does not happen is the failure.
pub(super) async fn tell(stage: &Stage, timeline: &Timeline, rate: u32) -> Result<(), Failure> {
    let scene = create(stage, timeline).await?;
    scene.until_zero(None).await?;
    scene.wake("wake 1", 1).await?;
    scene.load(rate).await?;
    scene.wake("wake 2", 2).await?;
    Ok(())
}

async fn create<'a>(stage: &'a Stage, timeline: &'a Timeline) -> Result<Scene<'a>, Failure> {
    let client = &stage.client;
    client.write(Method::PUT, &client.group(GROUP), Some(&json!({ "location": "local" })), Wait::Done).await?;
    let path = client.environment(GROUP, GROUP);
    let body = json!({ "location": "local", "properties": {} });
    let environment = client.write(Method::PUT, &path, Some(&body), Wait::Done).await?;
    timeline.say("environment", environment["name"].as_str().unwrap_or_default());
    let body = json!({
        "location": "local",
        "properties": {
            "environmentId": environment["id"],
            "configuration": { "ingress": { "external": true, "targetPort": 80 } },
            "template": {
                "containers": [{ "name": APP, "image": IMAGE, "resources": { "cpu": 0.25, "memory": "0.5Gi" } }],
                "scale": {
                    "minReplicas": 0, "maxReplicas": REPLICAS_MAX, "cooldownPeriod": COOLDOWN_SECS,
                    "rules": [{ "name": "http", "http": { "metadata": { "concurrentRequests": SHARE.to_string() } } }],
                },
            },
        },
    });
    let path = client.app(GROUP, APP);
    let app = client.write(Method::PUT, &path, Some(&body), Wait::Done).await?;
    let fqdn = app["properties"]["configuration"]["ingress"]["fqdn"].as_str();
    let fqdn = fqdn.ok_or_else(|| Failure::new("the app has no host name"))?;
    let url = client.app_url(fqdn);
    timeline.say("app", &url);
    timeline.more(&format!("the built-in sample, 0 to {REPLICAS_MAX} replicas, {SHARE} requests/s each"));
    timeline.more("for this demo the autoscaler looks every 1 s, not 15 s,");
    timeline.more(&format!("and goes to zero after {COOLDOWN_SECS} s without requests, not 300 s"));
    let id = app["id"].as_str().unwrap_or_default().to_owned();
    Ok(Scene { stage, timeline, http: http_client(&url, fqdn)?, url, app: id })
}

/// A client for the app: its host name is on this machine, whatever DNS says.
fn http_client(url: &str, fqdn: &str) -> Result<reqwest::Client, Failure> {
    let port = url.trim_end_matches('/').rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(80);
    let address = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port));
    let client = reqwest::Client::builder().tls_certs_only([]).no_proxy().resolve(fqdn, address).build();
    client.map_err(|error| Failure::new(format!("no HTTP client: {error}")))
}

impl Scene<'_> {
    /// Replicas that run, by the API.
    async fn replicas(&self) -> Result<u32, Failure> {
        let revisions = self.stage.client.list(&format!("{}/revisions", self.app)).await?;
        let name = revisions[0]["name"].as_str().unwrap_or_default();
        let replicas = self.stage.client.list(&format!("{}/revisions/{name}/replicas", self.app)).await?;
        let running = replicas.as_array().map_or(&[][..], Vec::as_slice).iter();
        let running = running.filter(|replica| replica["properties"]["runningState"] == "Running");
        Ok(u32::try_from(running.count()).unwrap_or(u32::MAX))
    }

    /// The newest decision's reason, for people.
    async fn reason(&self) -> Result<String, Failure> {
        let revisions = scale::explain(&self.stage.client, &self.app).await?;
        let decisions = revisions[0]["decisions"].as_array().cloned().unwrap_or_default();
        let changed = decisions
            .iter()
            .rev()
            .map(|kept| &kept["record"]["decision"])
            .find(|decision| decision["current"] != decision["new"]);
        Ok(changed.and_then(|decision| decision["reason"].as_str()).unwrap_or_default().to_owned())
    }

    /// Looks until no replica runs and, where the driver has slots, one is prepared.
    async fn until_zero(&self, from: Option<u32>) -> Result<(), Failure> {
        let since = Instant::now();
        let mut last = from;
        let mut every = tokio::time::interval(LOOK_EVERY);
        loop {
            every.tick().await;
            let count = self.replicas().await?;
            if last.is_some_and(|last| last != count) || (last.is_none() && count == 0) {
                self.say_count(last, count).await?;
                last = Some(count);
            }
            if count == 0 {
                break;
            }
            if since.elapsed() > LIMIT {
                return Err(Failure::new(format!(
                    "the app was not back at zero within {} s: {count} replicas run",
                    LIMIT.as_secs()
                )));
            }
        }
        let since = Instant::now();
        while since.elapsed() < SLOT_LIMIT {
            if self.stage.client.get("/cove/v1/health").await?["slots"].as_u64() > Some(0) {
                self.timeline.more("a slot is prepared: all is made, nothing runs yet");
                return Ok(());
            }
            every.tick().await;
        }
        Ok(())
    }

    async fn say_count(&self, last: Option<u32>, count: u32) -> Result<(), Failure> {
        let reason = self.reason().await?;
        let what = match last {
            _ if count == 0 => "at zero",
            Some(last) if last > count => "scaled in",
            _ => "scaled out",
        };
        let change = last.map_or_else(|| "no replica runs".to_owned(), |last| format!("{last} -> {count} replicas"));
        self.timeline.say(what, &format!("{change} ({reason})"));
        Ok(())
    }

    /// One request to the sleeping app; `expected` wakes are on record afterwards.
    async fn wake(&self, what: &str, expected: usize) -> Result<(), Failure> {
        let since = Instant::now();
        let answer = self.http.get(&self.url).timeout(LIMIT).send().await;
        let took_us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let answer = answer.map_err(|error| Failure::new(format!("{what}: the request was not answered: {error}")))?;
        if !answer.status().is_success() {
            let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
            return Err(Failure::new(format!("{what}: the request was answered {status}: {text}")));
        }
        self.timeline.say(
            what,
            &format!("a request was answered {} after {} ms", answer.status().as_u16(), wakes::millis(took_us)),
        );
        let mut every = tokio::time::interval(LOOK_EVERY);
        let since = Instant::now();
        loop {
            every.tick().await;
            let found = wakes::fetch(&self.stage.client, Some(&self.app), 10).await?;
            if let Some(wake) = found.as_array().filter(|wakes| wakes.len() >= expected).and_then(|wakes| wakes.first())
            {
                let from = if wake["from_slot"] == true { "from a slot" } else { "cold start" };
                self.say_phases(from, wake);
                return Ok(());
            }
            if since.elapsed() > LIMIT {
                return Err(Failure::new(format!("{what}: no wake was recorded within {} s", LIMIT.as_secs())));
            }
        }
    }

    /// The phases, in lines that fit 80 columns.
    fn say_phases(&self, from: &str, wake: &Value) {
        const WIDTH: usize = 56;
        let text = format!("{from}: {}", wakes::phases(wake));
        let mut line = String::new();
        for part in text.split(" · ") {
            if !line.is_empty() && line.chars().count() + part.chars().count() + 3 > WIDTH {
                self.timeline.more(&line);
                line = format!("  {part}");
            } else if line.is_empty() {
                part.clone_into(&mut line);
            } else {
                line = format!("{line} · {part}");
            }
        }
        self.timeline.more(&line);
    }

    /// Load until it has scaled out, then none until the app is back at zero.
    async fn load(&self, rate: u32) -> Result<(), Failure> {
        let goal = rate.div_ceil(SHARE).min(REPLICAS_MAX);
        self.timeline.say("load", &format!("{rate} requests/s of 20 ms each begin"));
        let load = Load::start(self.http.clone(), format!("{}slow?ms=20", self.url), rate);
        let grown = self.until_grown(goal).await;
        let (answered, failed) = load.stop().await;
        let count = grown?;
        self.timeline.say("load", &format!("ends: {answered} requests answered, {failed} failed"));
        if failed > 0 {
            return Err(Failure::new(format!("{failed} of {} requests failed", answered + failed)));
        }
        self.until_zero(Some(count)).await
    }

    /// Looks until the app has `goal` replicas and the load went on for a while.
    async fn until_grown(&self, goal: u32) -> Result<u32, Failure> {
        let since = Instant::now();
        let mut last = 1;
        let mut every = tokio::time::interval(LOOK_EVERY);
        loop {
            every.tick().await;
            let count = self.replicas().await?;
            if count != last && count > 0 {
                self.say_count(Some(last), count).await?;
                last = count;
            }
            if count >= goal && since.elapsed() > LOAD_MIN {
                return Ok(count);
            }
            if since.elapsed() > LIMIT {
                return Err(Failure::new(format!(
                    "the app has {count} replicas after {} s of load, not {goal}",
                    LIMIT.as_secs()
                )));
            }
        }
    }
}
