//! `bench rollout`: what clients notice while revisions change, replicas leave and streams stay open. The right answer is
//! nothing.
//!
//! Three parts, each with a server of its own: deploys under load, scale-in under load, WebSockets over a deploy.

mod sockets;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::stats::{Samples, ms};
use super::{Outcome, machine};
use crate::cove::{App, Cove, Options, sample_template, versioned};
use crate::load::{Load, Tally};

const CONFIG: &str = "[api]\nretry_after = 0\n";
/// The autoscaler's own windows would make one scale-in last five minutes.
const FAST_SCALING: &str = "[autoscaler.settings]\nload_sampling = \"1s\"\nscale_down_window = \"2s\"\n";
/// Longest that a deploy or a change of count may take.
const CHANGE_LIMIT: Duration = Duration::from_secs(120);
/// Requests per second that one replica is asked to carry in the scale-in part: few, so that a slow machine makes enough for
/// three.
const REQUESTS_PER_REPLICA: u32 = 50;
const REPLICAS_MAX: u32 = 6;

/// How much to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct RolloutArgs {
    /// Deploys under load.
    #[arg(long, default_value_t = 100)]
    deploys: u32,
    /// Keep-alive connections of the load.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// The load goes on until so many requests were answered.
    #[arg(long, default_value_t = 200_000)]
    requests: u64,
    /// Times that the app is scaled out and in again under load.
    #[arg(long, default_value_t = 5)]
    scale_ins: u32,
    /// WebSockets that are open over a deploy.
    #[arg(long, default_value_t = 32)]
    sockets: usize,
}

/// What one part found.
struct Part {
    title: String,
    lines: Vec<String>,
    json: Value,
    is_clean: bool,
}

pub(crate) async fn run(binary: PathBuf, args: &RolloutArgs) -> anyhow::Result<Outcome> {
    let machine = machine();
    let mut parts = Vec::new();
    if args.deploys > 0 {
        let cove = start(&binary, CONFIG.to_owned()).await?;
        let part = deploys(&cove, args).await;
        parts.push(finish(cove, part).await?);
    }
    if args.scale_ins > 0 {
        let cove = start(&binary, format!("{CONFIG}{FAST_SCALING}")).await?;
        let part = scale_ins(&cove, args).await;
        parts.push(finish(cove, part).await?);
    }
    if args.sockets > 0 {
        let cove = start(&binary, CONFIG.to_owned()).await?;
        let part = sockets::over_a_deploy(&cove, args.sockets).await;
        parts.push(finish(cove, part).await?);
    }
    let mut text = format!("bench rollout on {machine}\n\n");
    text += "failed: a request that was begun and not answered 200 in full, or a WebSocket that ended without a close frame.\n\n";
    let mut json = json!({"machine": machine});
    for part in &parts {
        let _ = writeln!(text, "{}: {}", part.title, if part.is_clean { "nothing failed" } else { "FAILED" });
        for line in &part.lines {
            let _ = writeln!(text, "  {line}");
        }
        json[part.title.split(' ').next().unwrap_or_default()] = part.json.clone();
    }
    Ok(Outcome { text, json, is_clean: parts.iter().all(|part| part.is_clean) })
}

async fn start(binary: &Path, config: String) -> anyhow::Result<Cove> {
    let cove = Cove::start(Options { binary: binary.to_owned(), config, arguments: Vec::new() }).await?;
    cove.create_environment().await?;
    Ok(cove)
}

async fn finish(cove: Cove, part: anyhow::Result<Part>) -> anyhow::Result<Part> {
    match part {
        Ok(part) => cove.close().await.map(|()| part),
        Err(error) => Err(error.context(format!("the server's log ends with\n{}", cove.log_tail()))),
    }
}

fn ingress(cove: &Cove) -> anyhow::Result<SocketAddr> {
    cove.ingress().parse().context("the ingress has no address")
}

async fn deploys(cove: &Cove, args: &RolloutArgs) -> anyhow::Result<Part> {
    let app = cove.create_app("rollout", sample_template(1, 1, &[("VERSION", "0")])).await?;
    let load = Load::start(ingress(cove)?, &app.host, args.connections);
    let begun = Instant::now();
    let mut times = Vec::new();
    for deploy in 1..=args.deploys {
        let before = Instant::now();
        this_deploy(cove, &app, "rollout", deploy).await.with_context(|| format!("deploy {deploy} failed"))?;
        times.push(before.elapsed());
    }
    while load.answered() < args.requests {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let passed = begun.elapsed();
    let tally = load.finish().await?;
    let times: Samples = times.into_iter().collect();
    let seen_all = tally.revisions >= usize::try_from(args.deploys)?;
    let title = format!("deploys ({} deploys, {} connections)", args.deploys, args.connections);
    let mut part = part(title, &tally, passed);
    part.lines.insert(1, format!("{} revisions answered; a deploy took {times}", tally.revisions));
    part.json["deploys"] = json!(args.deploys);
    part.json["deploy"] = times.to_json();
    if !seen_all {
        part.lines.push(format!("{} deploys were done but only {} revisions answered", args.deploys, tally.revisions));
        part.is_clean = false;
    }
    Ok(part)
}

/// Changes an environment variable and waits until the new revision is in charge.
async fn this_deploy(cove: &Cove, app: &App, name: &str, version: u32) -> anyhow::Result<()> {
    let before = cove.ask("GET", &versioned(&app.id), None).await?;
    let before = before["properties"]["latestReadyRevisionName"].clone();
    cove.put_app(name, sample_template(1, 1, &[("VERSION", &version.to_string())])).await?;
    let deadline = Instant::now() + CHANGE_LIMIT;
    loop {
        let shown = cove.until_provisioned(&app.id).await?;
        let ready = &shown["properties"]["latestReadyRevisionName"];
        if *ready != before && *ready == shown["properties"]["latestRevisionName"] {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the new revision was not ready in time: {shown}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn scale_ins(cove: &Cove, args: &RolloutArgs) -> anyhow::Result<Part> {
    let mut template = sample_template(1, REPLICAS_MAX, &[]);
    template["scale"]["rules"] =
        json!([{"name": "http", "http": {"metadata": {"concurrentRequests": REQUESTS_PER_REPLICA.to_string()}}}]);
    let app = cove.create_app("scaled", template).await?;
    let load = Load::start(ingress(cove)?, &app.host, args.connections);
    let begun = Instant::now();
    let connections = u32::try_from(args.connections)?;
    // a fifth of what one replica is asked to carry, over all connections
    let slow = Duration::from_secs(1) * connections * 5 / REQUESTS_PER_REPLICA;
    let mut times = Vec::new();
    for _ in 0..args.scale_ins {
        load.pace(Duration::ZERO);
        until_replicas(cove, &app, |count| count >= 3).await.context("the app did not scale out")?;
        load.pace(slow);
        let before = Instant::now();
        until_replicas(cove, &app, |count| count == 1).await.context("the app did not scale in")?;
        times.push(before.elapsed());
    }
    let passed = begun.elapsed();
    let tally = load.finish().await?;
    let times: Samples = times.into_iter().collect();
    let mut part =
        part(format!("scale-in ({} times, {} connections)", args.scale_ins, args.connections), &tally, passed);
    part.lines.insert(1, format!("from 3 or more replicas to 1: {times}"));
    part.json["scale_ins"] = json!(args.scale_ins);
    part.json["scale_in"] = times.to_json();
    Ok(part)
}

async fn until_replicas(cove: &Cove, app: &App, wanted: impl Fn(usize) -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + CHANGE_LIMIT;
    loop {
        let replicas = cove.replicas(app).await?;
        if wanted(replicas.len()) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "there are {} replicas", replicas.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn part(title: String, tally: &Tally, passed: Duration) -> Part {
    let mut lines = vec![format!(
        "{} requests answered, {} failed, {} connections closed between requests, in {:.1} s",
        tally.answered,
        tally.failed,
        tally.reconnected,
        passed.as_secs_f64()
    )];
    lines.extend(tally.failures.iter().take(10).map(|failure| format!("failed: {failure}")));
    let json = json!({
        "answered": tally.answered, "failed": tally.failed, "reconnected": tally.reconnected, "passed_ms": ms(passed),
        "revisions": tally.revisions,
    });
    Part { title, lines, json, is_clean: tally.failed == 0 }
}
