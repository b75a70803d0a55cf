//! `bench wake`: what Cove adds to the start of a program when a request finds its app at zero.
//!
//! Apps are woken one after the other; before each wake the server has no work left (every app at zero has its slot), because
//! the figure is what a request pays, not what a busy machine makes of it. Bare starts of the same executable are spread
//! over the same rounds.

pub(super) mod baseline;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::request::{quiet, time_to_first_byte};
use super::stats::{Samples, ms};
use super::{Outcome, machine};
use crate::cove::{App, Cove, Options, sample_template};
use baseline::Baseline;

/// Scale-in without the usual wait for clients: there are none left.
const CONFIG: &str = "[api]\nretry_after = 0\n[controller]\ndrain_period = \"1s\"\nfresh_hold = \"1s\"\n";
/// Phases of a wake record in their order, with what ends each.
const PHASES: [(&str, &str); 8] = [
    ("planned_us", "planned: request read to replica chosen"),
    ("thawed_us", "thawed: the frozen replica runs again"),
    ("network_us", "network: namespace ready"),
    ("root_us", "root: file system, cgroup, OCI created"),
    ("started_us", "started: the image's command runs"),
    ("listening_us", "listening: the program listens"),
    ("ready_us", "ready: the driver knows"),
    ("first_byte_us", "first byte: route released, request sent, answered"),
];

/// How much to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct WakeArgs {
    /// Wakes from a prepared slot.
    #[arg(long, default_value_t = 1000)]
    wakes: usize,
    /// Wakes with no slot.
    #[arg(long, default_value_t = 200)]
    cold: usize,
    /// What the last replica of an app does: `frozen` also measures wakes of frozen replicas, as many as from slots.
    #[arg(long, default_value = "zero", value_parser = ["zero", "frozen"])]
    idle: String,
    /// Memory that each app of the frozen ones holds, MiB.
    #[arg(long, default_value_t = 0)]
    hold_mib: u64,
    /// Apps that are woken in turn, and all at once in the burst.
    #[arg(long, default_value_t = 50)]
    apps: usize,
    /// Count only wakes that began while nothing else was runnable on the machine; others are done and counted apart.
    #[arg(long)]
    quiet: bool,
}

/// Longest wait for a quiet moment.
const QUIET_LIMIT: Duration = Duration::from_millis(500);

/// What the apps of a series wake from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Slot,
    Nothing,
    Frozen,
}

impl From {
    fn title(self) -> (&'static str, &'static str) {
        match self {
            Self::Slot => ("slot", "from a prepared slot"),
            Self::Nothing => ("cold", "with no slot"),
            Self::Frozen => ("frozen", "from a frozen replica"),
        }
    }
}

/// What one server gave.
struct Series {
    wakes: Samples,
    failed: Vec<String>,
    /// Wakes that found other work on the machine.
    disturbed: usize,
    records: Vec<Value>,
    bursts: Samples,
    bursts_failed: Vec<String>,
    warm: Samples,
}

pub(crate) async fn run(cove: PathBuf, args: &WakeArgs) -> anyhow::Result<Outcome> {
    ensure!(args.apps > 0, "--apps must be at least 1");
    let machine = machine();
    let mut baseline = Baseline::default();
    let mut all = vec![(From::Slot, series(&cove, args.wakes, args, From::Slot, &mut baseline).await?)];
    if args.cold > 0 {
        all.push((From::Nothing, series(&cove, args.cold, args, From::Nothing, &mut baseline).await?));
    }
    if args.idle == "frozen" {
        all.push((From::Frozen, series(&cove, args.wakes, args, From::Frozen, &mut baseline).await?));
    }
    Ok(report(&machine, &all, &baseline))
}

async fn series(
    binary: &Path,
    wakes: usize,
    args: &WakeArgs,
    from: From,
    baseline: &mut Baseline,
) -> anyhow::Result<Series> {
    let arguments = if from == From::Slot { Vec::new() } else { vec!["--no-slots".to_owned()] };
    let options = Options { binary: binary.to_owned(), config: CONFIG.to_owned(), arguments };
    let cove = Cove::start(options).await?;
    match measure(&cove, wakes, args, from, baseline).await {
        Ok(series) => cove.close().await.map(|()| series),
        Err(error) => Err(error.context(format!("the server's log ends with\n{}", cove.log_tail()))),
    }
}

async fn measure(
    cove: &Cove,
    wakes: usize,
    args: &WakeArgs,
    from: From,
    baseline: &mut Baseline,
) -> anyhow::Result<Series> {
    let ingress: SocketAddr = cove.ingress().parse().context("the ingress has no address")?;
    let count = args.apps;
    cove.create_environment().await?;
    let mut template = sample_template(0, 1, &[]);
    if from == From::Frozen {
        template["scale"]["coveIdle"] = "frozen".into();
    }
    let mut apps = Vec::new();
    for number in 0..count {
        let app = cove.create_app(&format!("wake-{number}"), template.clone()).await?;
        if from == From::Frozen && args.hold_mib > 0 {
            let path = format!("/alloc?keep=1&mb={}", args.hold_mib);
            ensure!(cove.address().get_app(&app.host, &path).await? == 200, "`{path}` failed");
        }
        apps.push(app);
    }
    baseline.find_program(&cove.data_dir())?;
    let mut times = Vec::new();
    let mut failed = Vec::new();
    let mut warm = Vec::new();
    let mut disturbed = 0;
    let mut asked = 0;
    while asked < wakes {
        to_zero(cove, &apps, from).await?;
        if args.quiet {
            quiet(QUIET_LIMIT).await;
        }
        tokio::task::block_in_place(|| baseline.measure(10))?;
        for (woken, app) in apps.iter().take(wakes - asked).enumerate() {
            // an app with one replica at most needs no slot while that runs: nothing is left to prepare
            let left = u64::try_from(count - woken)?;
            match from {
                From::Slot => cove.until_counted("slots", left).await?,
                From::Frozen => cove.until_counted("frozen", left).await?,
                From::Nothing => {}
            }
            asked += 1;
            let counts = !args.quiet || quiet(QUIET_LIMIT).await;
            match tokio::task::block_in_place(|| time_to_first_byte(ingress, &app.host)) {
                Ok(time) if counts => times.push(time),
                Ok(_) => disturbed += 1,
                Err(error) => failed.push(format!("{}: {error:#}", app.host)),
            }
        }
        warm.extend(tokio::task::block_in_place(|| time_to_first_byte(ingress, &apps[0].host)).ok());
    }
    let limit = wakes.min(10_000);
    let listed = cove.ask("GET", &format!("/cove/v1/wakes?limit={limit}"), None).await?;
    let records = listed["value"].as_array().cloned().unwrap_or_default();
    to_zero(cove, &apps, from).await?;
    let (bursts, bursts_failed) = burst(ingress, &apps).await;
    Ok(Series {
        wakes: times.into_iter().collect(),
        failed,
        disturbed,
        records,
        bursts,
        bursts_failed,
        warm: warm.into_iter().collect(),
    })
}

async fn to_zero(cove: &Cove, apps: &[App], from: From) -> anyhow::Result<()> {
    for app in apps {
        cove.scale_to_zero(app).await?;
    }
    let count = u64::try_from(apps.len())?;
    match from {
        From::Slot => cove.until_at_zero(apps, count).await,
        From::Nothing => cove.until_at_zero(apps, 0).await,
        From::Frozen => cove.until_counted("frozen", count).await,
    }
}

/// Every app is asked at the same moment, each by a thread of its own.
async fn burst(ingress: SocketAddr, apps: &[App]) -> (Samples, Vec<String>) {
    let asked: Vec<_> = apps
        .iter()
        .map(|app| {
            let host = app.host.clone();
            tokio::task::spawn_blocking(move || time_to_first_byte(ingress, &host))
        })
        .collect();
    let mut times = Vec::new();
    let mut failed = Vec::new();
    for (one, app) in asked.into_iter().zip(apps) {
        match one.await {
            Ok(Ok(time)) => times.push(time),
            Ok(Err(error)) => failed.push(format!("{}: {error:#}", app.host)),
            Err(error) => failed.push(format!("{}: {error}", app.host)),
        }
    }
    (times.into_iter().collect(), failed)
}

fn report(machine: &str, all: &[(From, Series)], baseline: &Baseline) -> Outcome {
    let bare = baseline.bare();
    let base = bare.percentile(50);
    let mut text = format!("bench wake on {machine}\n\n");
    text += "wake:   a client connects to the ingress and asks an app at zero; until the first byte of its 200.\n";
    text +=
        "bare:   fork and exec of the same executable on the host, connect until it listens; until the first byte.\n";
    let _ = writeln!(text, "added:  wake less the median of bare ({:.2} ms).\n", ms(base));
    let _ = writeln!(text, "bare exec          {bare}");
    if let Some(crun) = baseline.crun() {
        let _ = writeln!(text, "crun run           {crun}");
    } else {
        text += "crun run           not installed\n";
    }
    let warm: &Samples = &all[0].1.warm;
    let _ = writeln!(text, "running app        {warm}\n");
    let mut json = json!({"machine": machine, "bare": bare.to_json(), "crun": baseline.crun().map(|crun| crun.to_json()), "running": warm.to_json()});
    let mut is_clean = true;
    for (from, series) in all {
        let (name, title) = from.title();
        let added = series.wakes.above(base);
        let from_slot = series.records.iter().filter(|record| record["from_slot"] == true).count();
        let _ = writeln!(
            text,
            "{title}: {} failed; {from_slot} of {} records used a slot",
            series.failed.len(),
            series.records.len()
        );
        if series.disturbed > 0 {
            let _ = writeln!(
                text,
                "  {} wakes found other work on the machine and are not in the figures",
                series.disturbed
            );
        }
        let _ = writeln!(text, "  wake             {}\n  added            {added}", series.wakes);
        let phases = phases(&series.records);
        for (phase, description) in PHASES {
            if let Some(samples) = phases.iter().find(|(known, _)| *known == phase).map(|(_, samples)| samples) {
                let _ = writeln!(text, "    {samples}  {description}");
            }
        }
        let first = offsets(&series.records, "first_byte_us");
        let _ = writeln!(text, "    {first}  all of them: request read to first byte");
        let _ = writeln!(
            text,
            "  burst            {}  all apps at once, {} failed\n",
            series.bursts,
            series.bursts_failed.len()
        );
        for failure in series.failed.iter().chain(&series.bursts_failed).take(10) {
            let _ = writeln!(text, "  failed: {failure}");
        }
        is_clean &= series.failed.is_empty() && series.bursts_failed.is_empty();
        let phases: serde_json::Map<String, Value> =
            phases.iter().map(|(name, samples)| ((*name).to_owned(), samples.to_json())).collect();
        json[name] = json!({
            "failed": series.failed.len(), "disturbed": series.disturbed, "from_slot": from_slot, "records": series.records.len(), "wake": series.wakes.to_json(),
            "added": added.to_json(), "phases": phases, "burst": series.bursts.to_json(), "burst_failed": series.bursts_failed.len(),
        });
    }
    Outcome { text, json, is_clean }
}

fn offsets(records: &[Value], phase: &str) -> Samples {
    records.iter().filter_map(|record| record[phase].as_u64()).map(Duration::from_micros).collect()
}

/// How long each phase took: its offset less that of the phase before it that the record has.
fn phases(records: &[Value]) -> Vec<(&'static str, Samples)> {
    let mut all: Vec<(&'static str, Vec<Duration>)> = PHASES.iter().map(|(name, _)| (*name, Vec::new())).collect();
    for record in records {
        let mut before = 0;
        for (phase, durations) in &mut all {
            if let Some(at) = record[*phase].as_u64() {
                durations.push(Duration::from_micros(at.saturating_sub(before)));
                before = at;
            }
        }
    }
    all.into_iter()
        .filter(|(_, some)| !some.is_empty())
        .map(|(name, some)| (name, some.into_iter().collect()))
        .collect()
}
