//! `bench scale`: what reading and deciding thousands of rules costs, and how well they are decided.
//!
//! The autoscaler runs in this process, with the scalers of the server, on two threads; the event sources are a process of
//! their own, so that its CPU time does not count. Lateness is taken at the reading of each source against the instant
//! that its first reading sets: it shows delays and drift alike.
//!
//! **Invariant:** a reading that failed is counted and makes the command fail.

mod source;
mod watched;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cove_autoscaler::{Config, Deps, RuleSources, ScaledRevision, Service};
use cove_base::{Board, Clock};
use cove_model::{DesiredCount, ResourceId, RevisionKey, RevisionName, Scale, ScaleRule, ScaleRuleKind};
use cove_scalers::Scalers;
use cove_scaling::{Hold, Input, Reading, ScaleConfig, ScaleSettings, ScaleState, decide};
use jiff::Timestamp;
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::watched::{Seen, watch};
use super::{Outcome, machine};

/// The goals, as the project set them.
const CPU_PERCENT_MAX: f64 = 10.0;
const LATE_MAX: Duration = Duration::from_secs(1);
const DECISION_MAX: Duration = Duration::from_micros(5);
const IDLE_BYTES_MAX: f64 = 10.0 * 1024.0;

/// How much to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct ScaleArgs {
    /// Apps with event rules.
    #[arg(long, default_value_t = 2000)]
    apps: usize,
    /// Event rules of each.
    #[arg(long, default_value_t = 5)]
    rules: usize,
    /// Seconds over which CPU time and lateness are taken, after every rule was read once.
    #[arg(long, default_value_t = 95)]
    seconds: u64,
    /// Apps at zero whose memory is taken.
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Times that each of them was woken before, so that it has a history.
    #[arg(long, default_value_t = 20)]
    wakes: usize,
    /// Seed of the quality table.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Be the event sources: print the port and answer until standard input ends.
    #[arg(long, hide = true)]
    serve_sources: bool,
}

/// What was found.
struct Found {
    cpu_percent: f64,
    reads: u64,
    failed: u64,
    latest: Duration,
    decision: Duration,
    idle_bytes: f64,
}

pub(crate) async fn run(args: &ScaleArgs) -> anyhow::Result<Outcome> {
    if args.serve_sources {
        source::serve().await?;
        return Ok(Outcome { text: String::new(), json: json!({}), is_clean: true });
    }
    let machine = machine();
    let decision = decision_time();
    let idle_bytes = memory_per_idle(args.idle, args.wakes).await?;
    let (reads, failed, latest, cpu_percent) = poll(args).await?;
    let found = Found { cpu_percent, reads, failed, latest, decision, idle_bytes };
    Ok(report(&machine, args, &found, &cove_sim::quality_table(args.seed)))
}

/// A running autoscaler with everything around it.
struct Bench {
    revisions: Board<RevisionKey, Arc<ScaledRevision>>,
    desired: Board<RevisionKey, DesiredCount>,
    handle: cove_autoscaler::Handle,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<Result<(), cove_autoscaler::Error>>,
}

impl Bench {
    fn start(rules: RuleSources) -> Self {
        let (revisions, desired) = (Board::default(), Board::default());
        let (events, mut told) = mpsc::channel(1024);
        tokio::spawn(async move { while told.recv().await.is_some() {} });
        let deps = Deps {
            clock: Clock::real(),
            revisions: revisions.clone(),
            load: Arc::new(|_| cove_traffic::RevisionLoad::default()),
            existing: Arc::new(|_| None),
            rules,
            desired: desired.clone(),
            counts: None,
            decisions: None,
            events,
        };
        let service = Service::new(Config::default(), deps);
        let (handle, stop) = (service.handle(), CancellationToken::new());
        let running = tokio::spawn(service.run(stop.clone()));
        Self { revisions, desired, handle, stop, running }
    }

    fn list(&self, revision: ScaledRevision) {
        self.revisions.set(revision.revision.clone(), Arc::new(revision));
    }

    async fn until_known(&self, count: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.desired.snapshot().len() < count {
            anyhow::ensure!(Instant::now() < deadline, "the autoscaler did not take the list within 60 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn close(self) -> anyhow::Result<()> {
        self.stop.cancel();
        Ok(self.running.await??)
    }
}

fn revision(name: &str, scale: Scale, has_ingress: bool) -> anyhow::Result<ScaledRevision> {
    let app = ResourceId::resource("bench", "bench", "Microsoft.App/containerApps", name)?;
    let name = RevisionName::of(name, "v1")?;
    Ok(ScaledRevision {
        revision: RevisionKey { app, name },
        environment: ResourceId::resource("bench", "bench", "Microsoft.App/managedEnvironments", "env")?,
        scale,
        has_ingress,
        replaces: None,
        activated_at: Timestamp::now(),
        is_active: true,
    })
}

fn rules(count: usize, app: usize, port: u16) -> Vec<ScaleRule> {
    let rule = |number: usize| {
        let url = format!("http://127.0.0.1:{port}/{app}/{number}");
        let metadata = [("url", url.as_str()), ("valueLocation", "queue.length"), ("targetValue", "5")];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let kind = ScaleRuleKind::Custom { scaler: "metrics-api".into(), metadata, auth: Vec::new(), identity: None };
        ScaleRule { name: format!("r{number}"), kind }
    };
    (0..count).map(rule).collect()
}

/// Reads all rules for a while: readings, failed ones, the latest, percent of one core.
async fn poll(args: &ScaleArgs) -> anyhow::Result<(u64, u64, Duration, f64)> {
    let sources = source::Process::start().await?;
    let scalers = Arc::new(Scalers::new(Clock::real()));
    let seen = Arc::new(Seen::default());
    let open = {
        let seen = Arc::clone(&seen);
        Arc::new(move |trigger: &cove_scalers::Trigger, context: &cove_scalers::Context| {
            Ok(watch(scalers.open(trigger, context)?, &seen))
        })
    };
    let bench = Bench::start(RuleSources::of_open(open));
    for app in 0..args.apps {
        let scale = Scale { rules: rules(args.rules, app, sources.port), ..Scale::default() };
        bench.list(revision(&format!("app-{app}"), scale, false)?);
    }
    bench.until_known(args.apps).await?;
    let interval = ScaleSettings::default().polling_interval.unsigned_abs();
    tokio::time::sleep(interval + Duration::from_secs(2)).await;
    seen.reset();
    let (from, cpu_before) = (Instant::now(), cpu()?);
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let cpu_percent = (cpu()? - cpu_before).as_secs_f64() * 100.0 / from.elapsed().as_secs_f64();
    let (reads, failed) = (seen.reads.load(Ordering::Relaxed), seen.failed.load(Ordering::Relaxed));
    let latest = Duration::from_micros(seen.latest_us.load(Ordering::Relaxed));
    bench.close().await?;
    sources.close().await?;
    Ok((reads, failed, latest, cpu_percent))
}

/// Resident bytes that an app at zero adds: its place in the list, its entry, its decisions, its count on the board.
async fn memory_per_idle(count: usize, wakes: usize) -> anyhow::Result<f64> {
    if count == 0 {
        return Ok(0.0);
    }
    let bench = Bench::start(RuleSources::default());
    let before = resident()?;
    for number in 0..count {
        bench.list(revision(&format!("idle-{number}"), Scale::default(), true)?);
    }
    bench.until_known(count).await?;
    for number in 0..count {
        let key = revision(&format!("idle-{number}"), Scale::default(), true)?.revision;
        anyhow::ensure!(bench.handle.end_cooldown(&key), "`{key}` did not go to zero");
        for _ in 0..wakes {
            bench.handle.activate(&key);
            bench.handle.end_cooldown(&key);
        }
    }
    let after = resident()?;
    bench.close().await?;
    Ok(after.saturating_sub(before) as f64 / count as f64)
}

/// The mean of many decisions over five rules, the state's change and the readings' copies included.
fn decision_time() -> Duration {
    const TIMES: u32 = 200_000;
    let scale = Scale { rules: rules(5, 0, 1), ..Scale::default() };
    let config = ScaleConfig::from_scale(&scale, false, &ScaleSettings::default());
    let mut state = ScaleState { current: 1, ..ScaleState::default() };
    let from = Instant::now();
    for time in 0..TIMES {
        let value = u64::from(time % 97) * 500;
        let readings = vec![Reading::Value { milli: value, active: value > 0 }; 5];
        let now = Timestamp::from_second(i64::from(time) * 30).unwrap_or(Timestamp::MAX);
        let input = Input { now, readings: &readings, existing: state.current, in_flight: 0, hold: Hold::None };
        let decision = decide(&config, &state, &input);
        state.apply(&config, &decision);
        std::hint::black_box(&decision);
    }
    from.elapsed() / TIMES
}

/// Processor time of this process.
fn cpu() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("failed to read the processor time")?;
    let time = |value: nix::sys::time::TimeVal| {
        let micros =
            u64::try_from(value.tv_sec()).unwrap_or(0) * 1_000_000 + u64::try_from(value.tv_usec()).unwrap_or(0);
        Duration::from_micros(micros)
    };
    Ok(time(usage.user_time()) + time(usage.system_time()))
}

fn resident() -> anyhow::Result<u64> {
    Ok(crate::process::memory(std::process::id()).context("this process has no memory figures")?.rss)
}

fn report(machine: &str, args: &ScaleArgs, found: &Found, quality: &str) -> Outcome {
    let Found { cpu_percent, reads, failed, latest, decision, idle_bytes } = found;
    let mut text = format!("bench scale on {machine}\n\n");
    text += "cpu:      user and system time of the autoscaler and its scalers, in percent of one core.\n";
    text += "latest:   the farthest that a reading was from the cadence that its rule's first reading in these seconds sets.\n";
    text += "decision: mean of one decision over five rules, its record and the change of state included.\n";
    let _ = writeln!(
        text,
        "memory:   resident bytes that one app at zero, woken {} times, adds to the autoscaler and the lists it is in.\n",
        args.wakes
    );
    let _ = writeln!(
        text,
        "{} rules of {} apps over {} s: {reads} readings, {failed} failed",
        args.apps * args.rules,
        args.apps,
        args.seconds
    );
    let met = |is_met: bool| if is_met { "met" } else { "MISSED" };
    let mut line = |name: &str, value: String, goal: String, is_met: bool| {
        let _ = writeln!(text, "{name:<9} {value:>12}   goal {goal:>9}   {}", met(is_met));
    };
    line("cpu", format!("{cpu_percent:.1} %"), format!("{CPU_PERCENT_MAX} %"), *cpu_percent <= CPU_PERCENT_MAX);
    line("latest", format!("{:.0} ms", latest.as_secs_f64() * 1e3), "1000 ms".into(), *latest <= LATE_MAX);
    line("decision", format!("{} ns", decision.as_nanos()), "5000 ns".into(), *decision <= DECISION_MAX);
    line("memory", format!("{idle_bytes:.0} B"), "10240 B".into(), *idle_bytes <= IDLE_BYTES_MAX);
    let _ = write!(text, "\nquality of the modes, seed {} (see `cove-sim --scaling`)\n{quality}", args.seed);
    let json = json!({
        "machine": machine, "apps": args.apps, "rules": args.apps * args.rules, "seconds": args.seconds,
        "reads": reads, "failed": failed, "cpu_percent": cpu_percent, "latest_seconds": latest.as_secs_f64(),
        "decision_seconds": decision.as_secs_f64(), "idle_app_bytes": idle_bytes, "quality": quality,
    });
    Outcome { text, json, is_clean: *failed == 0 && *reads > 0 }
}

/// The program that plays the sources: this one.
fn own_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("failed to find this program")
}
