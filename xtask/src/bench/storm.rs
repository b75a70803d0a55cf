//! `bench storm`: every protocol at once while apps are deployed, scale in, and the server itself is restarted. The right
//! answer is that nothing was lost.
//!
//! Open loops at a steady rate, so the platform is loaded while it changes, and what a change costs is seen in the latency.

mod changes;
mod loads;

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cove_load::Report;
use serde_json::json;

use super::stats::Samples;
use super::{Outcome, machine};
use crate::cove::{Cove, Options};
use changes::Changes;
use loads::{Apps, Loads};

/// Short windows: with the autoscaler's own, one scale-in would take five minutes. A server that goes waits for its
/// WebSockets, which stay open; everything else that is open has ended long before. The one that comes holds what arrives
/// until it knows its replicas: at this rate more than the thousand of one revision that are the default.
const CONFIG: &str = "[api]\nretry_after = 0\n[ingress]\ndrain_grace = \"10s\"\nheld_per_revision_max = 10000\n\
                      [autoscaler.settings]\nload_sampling = \"1s\"\nscale_down_window = \"2s\"\n";
/// Between two looks at whether all requests were answered.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How much of what.
#[derive(Debug, clap::Args)]
pub(crate) struct StormArgs {
    /// The load goes on until so many requests were answered.
    #[arg(long, default_value_t = 1_000_000)]
    requests: u64,
    /// New revisions meanwhile.
    #[arg(long, default_value_t = 200)]
    deploys: u32,
    /// Times that an app is scaled out and in meanwhile.
    #[arg(long, default_value_t = 20)]
    scale_ins: u32,
    /// Restarts of the server meanwhile.
    #[arg(long, default_value_t = 3)]
    restarts: u32,
    /// Restart by SIGTERM and a new start instead of a new server that takes over: connections are refused meanwhile.
    #[arg(long)]
    cold_restarts: bool,
    /// Requests per second, over all protocols.
    #[arg(long, default_value_t = 2500)]
    rps: u32,
    /// Write a picture per protocol into this folder.
    #[arg(long, value_name = "FOLDER")]
    svg: Option<PathBuf>,
}

pub(crate) async fn run(binary: PathBuf, args: &StormArgs) -> anyhow::Result<Outcome> {
    ensure!(args.rps >= 100, "--rps must be 100 or more, for a share to each protocol");
    let machine = machine();
    // the same after every restart
    let [api, http, https] = free_ports()?;
    let at = |port: u16| format!("127.0.0.1:{port}");
    let arguments = vec!["--api".into(), at(api), "--http".into(), at(http), "--https".into(), at(https)];
    let mut cove = Cove::start(Options { binary, config: CONFIG.to_owned(), arguments }).await?;
    let ingress = SocketAddr::from(([127, 0, 0, 1], http));
    match storm(&mut cove, args, ingress).await {
        Ok((changes, reports)) => {
            cove.close().await?;
            pictures(args, &reports)?;
            Ok(outcome(args, &machine, &changes, &reports))
        }
        Err(error) => Err(error.context(format!("the server's log ends with\n{}", cove.log_tail()))),
    }
}

/// Ports that were free a moment ago, below those that the kernel gives to connections.
fn free_ports() -> anyhow::Result<[u16; 3]> {
    const TRIES: usize = 1000;
    let (mut listeners, mut ports) = (Vec::new(), [0; 3]);
    for port in &mut ports {
        let mut tried = (0..TRIES).map(|_| TcpListener::bind(("127.0.0.1", rand::random_range(20_000..32_000))));
        let listener = tried.find_map(Result::ok).context("no port is free")?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

async fn storm(
    cove: &mut Cove,
    args: &StormArgs,
    ingress: SocketAddr,
) -> anyhow::Result<(Changes, Vec<(&'static str, Report)>)> {
    cove.create_environment().await?;
    let apps = Apps::create(cove).await?;
    let loads = Loads::start(&apps, ingress, args.rps).await?;
    let changed = changes::make(cove, args, &apps, &loads).await;
    let answered = match &changed {
        Ok(_) => until_answered(&loads, args.requests).await,
        Err(_) => Ok(()),
    };
    let reports = loads.finish().await;
    let changes = changed.with_context(|| format!("the load until then:\n{}", table(&reports)))?;
    answered.with_context(|| format!("the load until then:\n{}", table(&reports)))?;
    Ok((changes, reports))
}

/// Waits until so many requests were answered; a load that stands still is an error.
async fn until_answered(loads: &Loads, requests: u64) -> anyhow::Result<()> {
    const STILL_MAX: Duration = Duration::from_secs(60);
    let (mut before, mut since) = (0, Instant::now());
    loop {
        let answered = loads.answered();
        if answered >= requests {
            return Ok(());
        }
        if answered > before {
            (before, since) = (answered, Instant::now());
        }
        ensure!(since.elapsed() < STILL_MAX, "no request was answered for {STILL_MAX:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn pictures(args: &StormArgs, reports: &[(&'static str, Report)]) -> anyhow::Result<()> {
    let Some(folder) = &args.svg else { return Ok(()) };
    std::fs::create_dir_all(folder)?;
    for (name, report) in reports {
        std::fs::write(folder.join(format!("{}.svg", name.replace(' ', "-"))), cove_load::svg(report))?;
    }
    Ok(())
}

/// A row per protocol and their sum.
fn table(reports: &[(&'static str, Report)]) -> String {
    let mut text = String::from(
        "load                  sent    answered    lost  refused  repeated  unsent      p50      p99     p99.9        max ms\n",
    );
    let mut sums = [0_u64; 6];
    for (name, report) in reports {
        let counts = report.counts;
        let repeated = report.repeated.values().sum();
        let row =
            [counts.sent, counts.answered, counts.lost + report.unfinished, counts.refused, repeated, report.unsent];
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        let latency = report.latency_ms;
        let _infallible = writeln!(
            text,
            "{name:<14}{:>12}{:>12}{:>8}{:>9}{:>10}{:>8}{:>9.2}{:>9.2}{:>10.2}{:>14.2}",
            row[0], row[1], row[2], row[3], row[4], row[5], latency.p50, latency.p99, latency.p999, latency.max
        );
    }
    let [sent, answered, lost, refused, repeated, unsent] = sums;
    let _infallible =
        writeln!(text, "{:<14}{sent:>12}{answered:>12}{lost:>8}{refused:>9}{repeated:>10}{unsent:>8}", "all");
    for (name, report) in reports {
        for lost in &report.lost_first {
            let _infallible = writeln!(text, "{name}: lost at {lost}");
        }
        for (reason, count) in &report.repeated {
            let _infallible = writeln!(text, "{name}: {count} sent again: {}", reason.words());
        }
    }
    text
}

fn outcome(args: &StormArgs, machine: &str, changes: &Changes, reports: &[(&'static str, Report)]) -> Outcome {
    let mut text = format!("{machine}\n\n");
    text += "lost: a request that was begun and got no full and right answer within 30 s. Not lost, and counted apart: a connection\n\
             that was refused and tried again (refused); a request that its protocol calls safe to send again (repeated).\n\n";
    for (name, times) in
        [("deploys", &changes.deploys), ("scale-ins", &changes.scale_ins), ("restarts", &changes.restarts)]
    {
        if times.len() > 0 {
            let _infallible = writeln!(text, "{name:<10} {times}");
        }
    }
    text.push('\n');
    text += &table(reports);
    let mut json = json!({
        "machine": machine, "rps": args.rps,
        "deploys": changes.deploys.to_json(), "scale_ins": changes.scale_ins.to_json(), "restarts": changes.restarts.to_json(),
    });
    for (name, report) in reports {
        json["loads"][*name] = json!(report);
    }
    let is_clean = reports.iter().all(|(_, report)| report.counts.lost == 0 && report.unfinished == 0);
    let verdict = if is_clean { "nothing was lost" } else { "FAILED: requests were lost" };
    let _infallible = writeln!(text, "\n{verdict}");
    Outcome { text, json, is_clean }
}

impl Changes {
    pub(super) fn new(deploys: Vec<Duration>, scale_ins: Vec<Duration>, restarts: Vec<Duration>) -> Self {
        let samples = |times: Vec<Duration>| times.into_iter().collect::<Samples>();
        Self { deploys: samples(deploys), scale_ins: samples(scale_ins), restarts: samples(restarts) }
    }
}
