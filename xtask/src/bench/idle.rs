//! `bench idle`: what a server costs while nothing happens.
//!
//! Helper processes of prepared slots are counted apart: they have a budget of their own and are switched off with `--no-slots`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Outcome, machine};
use crate::cove::{Cove, Options, sample_template};
use crate::process::{Memory, cpu, memory, of_data_dir};

const CONFIG: &str = "[api]\nretry_after = 0\n[controller]\ndrain_period = \"1s\"\nfresh_hold = \"1s\"\n";
/// Apps that are made at the same time.
const AT_ONCE: usize = 8;

/// How much to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct IdleArgs {
    /// Apps at zero.
    #[arg(long, default_value_t = 1000)]
    apps: usize,
    /// Seconds over which CPU time is counted.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Keep no prepared slots.
    #[arg(long)]
    no_slots: bool,
}

/// One look at the server and its helpers.
#[derive(Debug)]
struct Look {
    title: String,
    server: Memory,
    helpers: Vec<Memory>,
    slots: u64,
    cpu: Duration,
}

pub(crate) async fn run(binary: PathBuf, args: &IdleArgs) -> anyhow::Result<Outcome> {
    let machine = machine();
    let size = std::fs::metadata(&binary).with_context(|| format!("failed to look at `{}`", binary.display()))?.len();
    let arguments = if args.no_slots { vec!["--no-slots".to_owned()] } else { Vec::new() };
    let cove = Cove::start(Options { binary, config: CONFIG.to_owned(), arguments }).await?;
    let over = Duration::from_secs(args.seconds);
    let mut looks = vec![look(&cove, "no app".into(), over).await?];
    if args.apps > 0 {
        create(&cove, args.apps).await.with_context(|| format!("the server's log ends with\n{}", cove.log_tail()))?;
        looks.push(look(&cove, format!("{} apps at zero", args.apps), over).await?);
    }
    cove.close().await?;
    Ok(report(&machine, size, over, &looks))
}

/// Makes apps a few at a time, lets each go to zero, and waits until slots no longer change.
async fn create(cove: &Cove, count: usize) -> anyhow::Result<()> {
    cove.create_environment().await?;
    let mut all = Vec::new();
    for first in (0..count).step_by(AT_ONCE) {
        let made = (first..count.min(first + AT_ONCE))
            .map(|number| async move { cove.create_app(&format!("idle-{number}"), sample_template(0, 1, &[])).await });
        for app in futures_util::future::join_all(made).await {
            let app = app?;
            cove.scale_to_zero(&app).await?;
            all.push(app);
        }
    }
    for app in &all {
        while !cove.replicas(app).await?.is_empty() {
            cove.scale_to_zero(app).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    settle(cove).await
}

/// Until three looks in a row, a second apart, see the same number of slots.
async fn settle(cove: &Cove) -> anyhow::Result<()> {
    let mut same = 0;
    let mut last = None;
    for _ in 0..120 {
        let slots = cove.ask("GET", "/cove/v1/health", None).await?["slots"].as_u64();
        same = if slots == last { same + 1 } else { 0 };
        if same == 3 {
            return Ok(());
        }
        last = slots;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    anyhow::bail!("the number of slots did not settle")
}

async fn look(cove: &Cove, title: String, over: Duration) -> anyhow::Result<Look> {
    // what the requests before this left to do
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = cpu(cove.pid())?;
    tokio::time::sleep(over).await;
    let cpu = cpu(cove.pid())?.saturating_sub(before);
    let server = memory(cove.pid()).context("the server has no memory figures")?;
    let helpers =
        of_data_dir(&cove.data_dir()).into_iter().filter(|pid| *pid != cove.pid()).filter_map(memory).collect();
    let slots = cove.ask("GET", "/cove/v1/health", None).await?["slots"].as_u64().unwrap_or(0);
    Ok(Look { title, server, helpers, slots, cpu })
}

fn report(machine: &str, size: u64, over: Duration, looks: &[Look]) -> Outcome {
    let mib = |bytes: u64| (bytes * 10 / (1024 * 1024)) as f64 / 10.0;
    let mut text = format!("bench idle on {machine}\n\n");
    text += "server:  RSS and PSS of the `cove serve` process.\n";
    text += "helpers: the same, summed over all processes of replicas and prepared slots, and the one they are forked from.\n";
    let _ = writeln!(text, "cpu:     user and system time of the server over {} s without requests.\n", over.as_secs());
    let _ = writeln!(text, "binary: {:.1} MiB stripped", mib(size));
    let mut json = json!({"machine": machine, "binary_bytes": size, "looks": []});
    for look in looks {
        let sum = |of: fn(&Memory) -> u64| look.helpers.iter().map(of).sum::<u64>();
        let (rss, pss) = (sum(|memory| memory.rss), sum(|memory| memory.pss));
        let _ = writeln!(
            text,
            "{}: server RSS {:.1} MiB, PSS {:.1} MiB; cpu {:.2} s; {} slots, {} helper processes with PSS {:.1} MiB (RSS {:.1} MiB)",
            look.title,
            mib(look.server.rss),
            mib(look.server.pss),
            look.cpu.as_secs_f64(),
            look.slots,
            look.helpers.len(),
            mib(pss),
            mib(rss),
        );
        let entry = json!({
            "title": look.title, "server_rss_bytes": look.server.rss, "server_pss_bytes": look.server.pss,
            "cpu_seconds": look.cpu.as_secs_f64(), "slots": look.slots, "helpers": look.helpers.len(),
            "helpers_pss_bytes": pss, "helpers_rss_bytes": rss,
        });
        if let Value::Array(all) = &mut json["looks"] {
            all.push(entry);
        }
    }
    Outcome { text, json, is_clean: true }
}
