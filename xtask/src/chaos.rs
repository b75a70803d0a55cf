//! `cargo xtask chaos`: `kill -9` of the server at random moments while apps are made, changed and deleted and serve requests.
//!
//! What must hold afterwards: every acknowledged change is there; the platform settles by itself; each app has the replicas it
//! should have and no process is left over; replicas that ran all the time are the very processes they were; every line that
//! an app wrote and acknowledged is in the logs exactly once.
//!
//! A change that was asked for but not acknowledged may be there or not: both are right.

mod lines;
mod writers;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::cove::{App, Cove, Options, sample_template};
use crate::process::{Process, of_data_dir, samples};
use writers::{Known, Writers};

const CONFIG: &str = "[api]\nretry_after = 0\n[controller]\ndrain_period = \"1s\"\nfresh_hold = \"1s\"\n";
/// The app that must never notice anything.
const STEADY: &str = "steady";
const STEADY_REPLICAS: u32 = 2;
/// Time that a server gets before it is killed.
const LIFE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(2000));
/// Longest until everything is as it should be after the last start.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);

/// How hard to try.
#[derive(Debug, clap::Args)]
pub(crate) struct ChaosArgs {
    /// How often the server is killed.
    #[arg(long, default_value_t = 50)]
    kills: u32,
    /// Clients that change apps at the same time.
    #[arg(long, default_value_t = 3)]
    writers: u32,
    /// Seed of the random moments; without it, one is made up and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// The server's program; without it, `cove` beside this program.
    #[arg(long, value_name = "PATH")]
    cove: Option<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "the report is the command's output")]
pub(crate) fn run(args: &ChaosArgs) -> anyhow::Result<ExitCode> {
    let binary = match &args.cove {
        Some(path) => path.clone(),
        None => std::env::current_exe().context("failed to find this program")?.with_file_name("cove"),
    };
    let seed = args.seed.unwrap_or_else(rand::random);
    println!("chaos: {} kills, {} writers, seed {seed}", args.kills, args.writers);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        let cove = Cove::start(Options { binary, config: CONFIG.to_owned(), arguments: Vec::new() }).await?;
        let mut shared = cove;
        match torment(&mut shared, args, seed).await {
            Ok(report) => shared.close().await.map(|()| report),
            Err(error) => Err(error.context(format!("seed {seed}; the server's log ends with\n{}", shared.log_tail()))),
        }
    })?;
    print!("{report}");
    Ok(ExitCode::SUCCESS)
}

/// Runs the whole story and gives the report; an error says which promise was broken.
async fn torment(cove: &mut Cove, args: &ChaosArgs, seed: u64) -> anyhow::Result<String> {
    let mut random = StdRng::seed_from_u64(seed);
    cove.create_environment().await?;
    let steady = cove.create_app(STEADY, sample_template(STEADY_REPLICAS, STEADY_REPLICAS, &[])).await?;
    until_replicas(cove, &steady, STEADY_REPLICAS).await?;
    let before = running(cove, STEADY);
    ensure!(before.len() == usize::try_from(STEADY_REPLICAS)?, "`{STEADY}` has {} processes", before.len());

    let (address, _) = tokio::sync::watch::channel(cove.address());
    let writers = Writers::start(args.writers, address.subscribe(), random.random());
    let lines = lines::Lines::start(address.subscribe(), &steady.host);
    let mut restarts = Vec::new();
    for _ in 0..args.kills {
        tokio::time::sleep(random.random_range(LIFE.0..LIFE.1)).await;
        cove.kill().await?;
        let begun = Instant::now();
        cove.start_again().await?;
        restarts.push(begun.elapsed());
        address.send_replace(cove.address());
        let now = running(cove, STEADY);
        ensure!(now == before, "processes of `{STEADY}` changed: {before:?} became {now:?}");
    }
    let asked = lines.finish().await?;
    let known = writers.finish().await?;
    let settled = settle(cove, &known).await?;
    ensure!(running(cove, STEADY) == before, "processes of `{STEADY}` changed after the last start");
    let logged = lines::check(&cove.data_dir(), STEADY, &asked).await?;
    let restarts: crate::bench::Samples = restarts.into_iter().collect();
    let (certain, open) = known.count();
    Ok(format!(
        "{} kills; a start took {restarts}\n\
         {} changes acknowledged, {} without an answer; {certain} apps checked exactly, {open} either way\n\
         settled {:.1} s after the last start; no replica left over, missing or doubled\n\
         {} replicas of `{STEADY}` are the processes they were; {logged} acknowledged log lines, each there once\n",
        args.kills,
        known.acknowledged,
        known.unanswered,
        settled.as_secs_f64(),
        before.len(),
    ))
}

fn running(cove: &Cove, app: &str) -> Vec<Process> {
    samples(&cove.data_dir()).into_iter().filter(|(name, _)| name == app).map(|(_, process)| process).collect()
}

async fn until_replicas(cove: &Cove, app: &App, count: u32) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLE_LIMIT;
    while running(cove, STEADY).len() < usize::try_from(count)?
        || cove.replicas(app).await?.len() < usize::try_from(count)?
    {
        ensure!(Instant::now() < deadline, "`{}` did not reach {count} replicas", app.id);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Waits until the world is what was acknowledged; the last difference is the error.
async fn settle(cove: &Cove, known: &Known) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    loop {
        match difference(cove, known).await? {
            None => return Ok(begun.elapsed()),
            Some(difference) => {
                ensure!(begun.elapsed() < SETTLE_LIMIT, "did not settle within {SETTLE_LIMIT:?}: {difference}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// What is not yet, or not any more, as it should be.
async fn difference(cove: &Cove, known: &Known) -> anyhow::Result<Option<String>> {
    let mut wanted_processes = vec![(STEADY.to_owned(), usize::try_from(STEADY_REPLICAS)?)];
    let apps = cove.apps().await?;
    for app in &apps {
        let name = app["name"].as_str().unwrap_or_default().to_owned();
        if name == STEADY {
            continue;
        }
        let state = app["properties"]["provisioningState"].as_str().unwrap_or_default();
        if state != "Succeeded" {
            return Ok(Some(format!("`{name}` is {state}")));
        }
        let version = app["properties"]["template"]["containers"][0]["env"][0]["value"].as_str().unwrap_or_default();
        known.check_present(&name, version)?;
        wanted_processes.push((name, 1));
    }
    let names: Vec<&str> = apps.iter().filter_map(|app| app["name"].as_str()).collect();
    known.check_absent(&names)?;
    let found = samples(&cove.data_dir());
    for (name, count) in &wanted_processes {
        let running = found.iter().filter(|(app, _)| app == name).count();
        if running != *count {
            return Ok(Some(format!("`{name}` has {running} processes instead of {count}")));
        }
    }
    if let Some((name, process)) = found.iter().find(|(app, _)| !wanted_processes.iter().any(|(name, _)| name == app)) {
        return Ok(Some(format!("process {} of `{name}` is left over", process.pid)));
    }
    let slots = cove.ask("GET", "/cove/v1/health", None).await?["slots"].as_u64().unwrap_or(0);
    let folders = std::fs::read_dir(cove.data_dir().join("replicas/replicas"))
        .context("failed to read the replicas' folder")?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().contains("--"))
        .count();
    let wanted = found.len() + usize::try_from(slots)?;
    if folders != wanted {
        let processes = of_data_dir(&cove.data_dir()).len();
        return Ok(Some(format!("{folders} replica folders for {wanted} replicas and slots ({processes} processes)")));
    }
    Ok(None)
}
