//! What `bench sessions` prints.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use super::{Figures, SessionsArgs, Tier};
use crate::bench::{Outcome, Samples, stats::ms};

pub(super) fn report(machine: &str, args: &SessionsArgs, figures: Figures) -> Outcome {
    let all = |values: Vec<Duration>| values.into_iter().collect::<Samples>();
    let (rounds, cold) = (figures.rounds, figures.cold);
    let (direct, same, warm) = (all(rounds.direct), all(rounds.same), all(rounds.warm));
    let (burst, whole, live) = (all(rounds.burst), all(rounds.bursts_whole), all(rounds.live));
    let base = direct.percentile(50);
    let refill = median(rounds.refills_per_s);
    let mut text = format!("bench sessions on {machine}\n\n");
    let lines = [
        ("direct", "one request over a socket inside the session's network", direct.to_string()),
        ("same session", "the same through the pool's host at the ingress", same.to_string()),
        ("above direct", "that less the direct p50", same.above(base).to_string()),
        ("warm allocation", "first request of a new identifier, from a ready session", warm.to_string()),
        ("above direct", "that less the direct p50", warm.above(base).to_string()),
        ("burst, each", "the same, all of the ready pool at once", burst.to_string()),
        ("burst, all", "until all of the ready pool were answered, per round", whole.to_string()),
        ("cold", "first request of a new identifier, no session ready", cold.to_string()),
        ("during refill", "requests to another session while the pool is filled again", live.to_string()),
    ];
    for (name, what, value) in lines {
        let _infallible = writeln!(text, "{name:16} {value}   {what}");
    }
    let ratio = |of: &Samples| of.percentile(50).as_secs_f64() / base.as_secs_f64().max(f64::EPSILON);
    let _infallible = writeln!(
        text,
        "ratio            {:.1} times the direct p50 in the same session, {:.1} times with an allocation",
        ratio(&same),
        ratio(&warm)
    );
    let _infallible = writeln!(text, "refill           {refill:.1} sessions/s, median of the rounds");
    let _infallible = writeln!(
        text,
        "memory           {:.2} MiB per ready session: what its processes, its helper among them, have for themselves and their \
         share of the rest (PSS); {:.3} MiB more in the server ({} sessions)",
        mib(figures.weight.processes),
        mib(figures.weight.server),
        args.ready
    );
    let mut forks = serde_json::Map::new();
    for (count, took) in &figures.forks.0 {
        let name = format!("fork into {count}");
        let what = "until all are ready and one has answered";
        let _infallible = writeln!(text, "{name:16} {took}   {what}");
        forks.insert(count.to_string(), took.to_json());
    }
    let tiers = tiers(&figures.tiers, &mut text);
    let json: Value = json!({
        "direct": direct.to_json(),
        "same": same.to_json(),
        "warm": warm.to_json(),
        "burst": burst.to_json(),
        "burst_whole": whole.to_json(),
        "cold": cold.to_json(),
        "during_refill": live.to_json(),
        "added_p50_ms": ms(warm.percentile(50).saturating_sub(base)),
        "refill_per_s": refill,
        "bytes_per_ready": figures.weight.processes,
        "server_bytes_per_ready": figures.weight.server,
        "forks": forks,
        "isolations": tiers,
    });
    Outcome { text, json, is_clean: true }
}

/// A line and a value for each isolation.
fn tiers(all: &[Tier], text: &mut String) -> serde_json::Map<String, Value> {
    let mut tiers = serde_json::Map::new();
    for tier in all {
        match &tier.figures {
            Ok((cold, warm)) => {
                let _infallible = writeln!(text, "{:16} warm {warm}\n{:16} cold {cold}", tier.name, "");
                tiers.insert(tier.name.clone(), json!({"warm": warm.to_json(), "cold": cold.to_json()}));
            }
            Err(why) => {
                let _infallible = writeln!(text, "{:16} not measured: {why}", tier.name);
            }
        }
    }
    tiers
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn mib(bytes: i64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
