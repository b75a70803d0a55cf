//! `cargo xtask bench`: figures of a release build, each printed with its definition and a baseline of the same run.
//!
//! The server under test is a process of its own on free loopback ports with a temporary data directory; load comes from this
//! process. A debug build of this program builds both in release and hands over.
//!
//! **Invariant:** a request that was not answered as it should be is counted and makes the command fail.

mod api;
mod idle;
mod ingress;
mod jobs;
mod request;
mod rollout;
mod scale;
mod sessions;
mod stats;
mod storm;
mod wake;

pub(crate) use stats::Samples;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// The server's program; without it, the server and this program are built in release.
    #[arg(long, global = true, value_name = "PATH")]
    cove: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Time from a request for an app at zero to its first response byte, above bare exec of the same program.
    Wake(wake::WakeArgs),
    /// Memory and CPU of a server with nothing to do, with no app and with many at zero.
    Idle(idle::IdleArgs),
    /// How fast the API answers, alone and with thousands of apps at zero.
    Api(api::ApiArgs),
    /// Throughput, processor time and added latency beside HAProxy, nginx and Envoy.
    Ingress(ingress::IngressArgs),
    /// Executions of a trivial job: until the first line, how many a second, how many starts are accepted, beside `crun run`.
    Jobs(jobs::JobsArgs),
    /// Requests lost while revisions change, replicas leave, and streams stay open.
    Rollout(rollout::RolloutArgs),
    /// CPU, lateness and memory of thousands of scale rules, and how well each mode serves a load.
    Scale(scale::ScaleArgs),
    /// How soon sessions of a pool answer, warm, cold and in a burst, and what a ready one costs.
    Sessions(sessions::SessionsArgs),
    /// Requests lost over every protocol at once, during deploys, scale-ins and restarts of the server.
    Storm(storm::StormArgs),
}

/// What a benchmark found.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// For people: definitions and figures.
    pub(crate) text: String,
    /// For programs: the same figures.
    pub(crate) json: Value,
    /// Whether nothing failed.
    pub(crate) is_clean: bool,
}

/// Measures and prints.
#[expect(clippy::print_stdout, reason = "the figures are the command's output")]
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    if cfg!(debug_assertions) && args.cove.is_none() {
        return in_release();
    }
    let cove = match &args.cove {
        Some(path) => path.clone(),
        None => std::env::current_exe().context("failed to find this program")?.with_file_name("cove"),
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if matches!(args.what, What::Scale(_)) {
        // what is measured runs here
        runtime.worker_threads(2);
    }
    let outcome = runtime.enable_all().build()?.block_on(async {
        match &args.what {
            What::Wake(args) => wake::run(cove, args).await,
            What::Idle(args) => idle::run(cove, args).await,
            What::Api(args) => api::run(cove, args).await,
            What::Ingress(args) => ingress::run(cove, args).await,
            What::Jobs(args) => jobs::run(cove, args).await,
            What::Rollout(args) => rollout::run(cove, args).await,
            What::Scale(args) => scale::run(args).await,
            What::Sessions(args) => sessions::run(cove, args).await,
            What::Storm(args) => storm::run(cove, args).await,
        }
    })?;
    if args.json {
        println!("{:#}", outcome.json);
    } else {
        print!("{}", outcome.text);
    }
    Ok(if outcome.is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the server and this program in release and runs the same command there.
fn in_release() -> anyhow::Result<ExitCode> {
    let own = std::env::current_exe().context("failed to find this program")?;
    let target =
        own.parent().and_then(std::path::Path::parent).context("this program does not lie in a target folder")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--package", "cove-cli", "--package", "xtask", "--target-dir"]).arg(target);
    let built = build.current_dir(crate::root()).status().context("failed to run cargo")?;
    ensure!(built.success(), "the release build failed");
    let arguments = std::env::args_os().skip(1);
    let done = Command::new(target.join("release/xtask"))
        .args(arguments)
        .status()
        .context("failed to run the release build")?;
    Ok(if done.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The machine, in a line: figures mean nothing without it.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown CPU", |(_, name)| name);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    format!(
        "{cores} cores ({model}), Linux {}, load average {load} at the start",
        read("/proc/sys/kernel/osrelease").trim()
    )
}
