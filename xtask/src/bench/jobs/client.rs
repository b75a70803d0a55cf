//! What a client of the API does with jobs: makes them, starts executions, reads their first line, waits for their end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{LINE, VARIABLES};
use crate::cove::{Address, Cove, SAMPLE, environment_id, job_id, versioned};

/// Longest that an execution may take to its end, when many were started.
const END_LIMIT: Duration = Duration::from_secs(300);
/// Between two looks at one execution whose first line is awaited.
const LINE_POLL: Duration = Duration::from_millis(1);
/// Between two looks at one execution whose end is awaited; at first, and at most.
const END_POLL: Duration = Duration::from_millis(2);
const END_POLL_MOST: Duration = Duration::from_millis(32);

/// A job of the server.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) id: String,
    /// For log streams.
    token: String,
}

/// An execution that was started.
#[derive(Clone, Debug)]
pub(super) struct Started {
    pub(super) job: Job,
    pub(super) name: String,
}

/// When the line of an execution came, counted from before the start was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstLine {
    /// The helper process read it from the container.
    pub(super) written: Duration,
    /// This client had it from the log stream.
    pub(super) seen: Duration,
}

/// Starts sent at once.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    /// Until the answer, each.
    pub(super) answers: Vec<Duration>,
    pub(super) started: Vec<Started>,
    pub(super) failed: Vec<String>,
    /// From the first start to the last answer.
    pub(super) whole: Duration,
}

impl Job {
    /// Makes one whose executions run so many replicas, so many at once.
    pub(super) async fn create(cove: &Cove, name: &str, replicas: u32, parallelism: u32) -> anyhow::Result<Self> {
        let id = job_id(name);
        let env: Vec<Value> = VARIABLES.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let resources = json!({"cpu": 0.25, "memory": "0.5Gi"});
        let body = json!({
            "location": "westeurope",
            "properties": {
                "environmentId": environment_id(),
                "configuration": {
                    "triggerType": "Manual", "replicaTimeout": 600, "replicaRetryLimit": 0,
                    "manualTriggerConfig": {"parallelism": parallelism, "replicaCompletionCount": replicas},
                },
                "template": {"containers": [{"name": "main", "image": SAMPLE, "env": env, "resources": resources}]},
            },
        });
        cove.ask("PUT", &versioned(&id), Some(&body)).await?;
        cove.until_provisioned(&id).await?;
        let token = cove.ask("POST", &versioned(&format!("{id}/getAuthToken")), None).await?;
        let token = token["properties"]["token"].as_str().context("the job has no stream token")?.to_owned();
        Ok(Self { id, token })
    }

    /// Starts an execution.
    pub(super) async fn start(&self, address: &Address) -> anyhow::Result<Started> {
        let (status, answer) = address.call("POST", &versioned(&format!("{}/start", self.id)), None).await?;
        ensure!(matches!(status, 200 | 202), "`start` was answered {status}: {answer}");
        let name = answer["name"].as_str().context("the answer of `start` has no name")?.to_owned();
        Ok(Started { job: self.clone(), name })
    }
}

impl Started {
    /// The execution as the API shows it.
    pub(super) async fn show(&self, address: &Address) -> anyhow::Result<Value> {
        let path = versioned(&format!("{}/executions/{}", self.job.id, self.name));
        let (status, value) = address.call("GET", &path, None).await?;
        ensure!(status == 200, "`{path}` was answered {status}: {value}");
        Ok(value)
    }

    /// Waits for its end, which must be good, with as many replicas as were asked for and no more.
    pub(super) async fn until_ended(&self, address: &Address, replicas: usize) -> anyhow::Result<()> {
        // a long wait looks less often: the looks are work for the machine that is measured
        let mut pause = END_POLL;
        let deadline = Instant::now() + END_LIMIT;
        loop {
            let shown = self.show(address).await?;
            let properties = &shown["properties"];
            match properties["status"].as_str() {
                Some("Succeeded") => {
                    let ran = properties["detailedStatus"]["replicas"].as_array().map_or(0, Vec::len);
                    let good = properties["coveSucceeded"].as_u64();
                    let is_right = ran == replicas && good == u64::try_from(replicas).ok();
                    ensure!(is_right, "`{}` has {ran} replicas, {good:?} good, not {replicas}", self.name);
                    return Ok(());
                }
                Some("Processing" | "Running") => {}
                _ => bail!("`{}` did not succeed: {properties}", self.name),
            }
            ensure!(Instant::now() < deadline, "`{}` did not end in time: {properties}", self.name);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(END_POLL_MOST);
        }
    }

    /// Follows its log until the line; `begun` is when the start was sent, by both clocks.
    pub(super) async fn first_line(&self, address: &Address, begun: (Instant, Timestamp)) -> anyhow::Result<FirstLine> {
        let deadline = begun.0 + END_LIMIT;
        loop {
            ensure!(Instant::now() < deadline, "`{}` wrote no line in time", self.name);
            let shown = self.show(address).await?;
            let Some(replica) = shown["properties"]["detailedStatus"]["replicas"][0]["name"].as_str() else {
                tokio::time::sleep(LINE_POLL).await;
                continue;
            };
            let path = self.stream_path(replica, true)?;
            let Some(line) = address.first_line(&path, &self.job.token).await? else { continue };
            let seen = begun.0.elapsed();
            let line: Value = serde_json::from_str(&line).context("a line of a log stream is JSON")?;
            ensure!(line["Log"] == LINE, "`{}` wrote {}", self.name, line["Log"]);
            let written: Timestamp = line["TimeStamp"].as_str().context("a line has its time")?.parse()?;
            let written = Duration::try_from(written.duration_since(begun.1)).unwrap_or_default();
            return Ok(FirstLine { written, seen });
        }
    }

    /// How many lines its only replica wrote.
    pub(super) async fn count_lines(&self, address: &Address) -> anyhow::Result<usize> {
        let shown = self.show(address).await?;
        let replica = shown["properties"]["detailedStatus"]["replicas"][0]["name"].as_str();
        let path = self.stream_path(replica.context("the execution has no replica")?, false)?;
        let text = address.text(&path, &self.job.token).await?;
        Ok(text.lines().filter(|line| !line.is_empty()).count())
    }

    fn stream_path(&self, replica: &str, follow: bool) -> anyhow::Result<String> {
        let (group, rest) = self.job.id.split_once("/providers/Microsoft.App").context("a job's id has a provider")?;
        Ok(format!(
            "{group}{rest}/executions/{}/replicas/{replica}/containers/main/logstream?follow={follow}&tailLines=300",
            self.name
        ))
    }
}

/// Sends `count` starts over all jobs in turn, `at_once` under way at the same time, on connections that are kept.
pub(super) async fn start_many(
    address: &Address,
    jobs: &[Job],
    count: usize,
    at_once: usize,
) -> anyhow::Result<Accepted> {
    let taken = Arc::new(AtomicUsize::new(0));
    let jobs: Arc<[Job]> = jobs.into();
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..at_once.min(count) {
        let (address, jobs, taken) = (address.clone(), Arc::clone(&jobs), Arc::clone(&taken));
        clients.spawn(async move {
            let mut own = Accepted::default();
            loop {
                let number = taken.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return own;
                }
                let sent = Instant::now();
                match jobs[number % jobs.len()].start(&address).await {
                    Ok(started) => {
                        own.answers.push(sent.elapsed());
                        own.started.push(started);
                    }
                    Err(error) => own.failed.push(format!("{error:#}")),
                }
            }
        });
    }
    let mut all = Accepted::default();
    while let Some(own) = clients.join_next().await {
        let own = own.context("a client panicked")?;
        all.answers.extend(own.answers);
        all.started.extend(own.started);
        all.failed.extend(own.failed);
    }
    all.whole = begun.elapsed();
    Ok(all)
}
