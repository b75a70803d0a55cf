//! Measures starts of the sample image on this host, cold and from a slot: `cargo run --example starts -- 40`.
//!
//! Cold is from the order to the first time the target port answered, with a network and a helper from their pools, as
//! for a wake without a slot. Slot is from `start` to the same. Both for an app's replica and for a sandboxed one, and for
//! the latter what one holds while it is frozen and how soon it answers. Everything is removed at the end.

#[path = "../tests/host/fixture.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod fixture;

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use cove_model::{ReplicaPhase, ReplicaPhases};
use cove_runtime::{ReplicaSpec, Runtime as _, Sandbox};
use fixture::{Host, container, spec};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = cove_runtime_oci::shim::main(&args) {
        return code;
    }
    let runtime = tokio::runtime::Runtime::new().expect("this machine can run threads");
    runtime.block_on(measure());
    std::process::ExitCode::SUCCESS
}

async fn measure() {
    let count: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(20);
    let host = Host::new().await;
    // Both kinds in turn, so that a busy moment of the machine is not one kind's alone.
    let kinds = [("app", None), ("sandboxed", Some(Sandbox::default()))];
    let (mut cold, mut slot, mut parts) = ([vec![], vec![]], [vec![], vec![]], [vec![], vec![]]);
    for number in 0..count {
        for (kind, (what, sandbox)) in kinds.iter().enumerate() {
            let order = order(&format!("web--v1-{what}-c{number}"), sandbox.as_ref());
            let name = order.name.clone();
            host.network.wait_for(|status| status.ready >= 2).await;
            host.runtime().helpers_full().await;
            let begun = Instant::now();
            host.run(order, |seen| seen.is_ready).await;
            cold[kind].push(begun.elapsed());
            parts[kind].push(host.runtime().phases(&name).expect("it is known"));
            end(&host, &name).await;

            let order = self::order(&format!("web--v1-{what}-s{number}"), sandbox.as_ref());
            let name = order.name.clone();
            host.runtime().prepare(order).expect("there is room");
            host.wait(&name, |seen| seen.phase == ReplicaPhase::Prepared).await;
            let begun = Instant::now();
            host.runtime().start(&name).expect("it is prepared");
            host.wait(&name, |seen| seen.is_ready).await;
            slot[kind].push(begun.elapsed());
            end(&host, &name).await;
        }
    }
    for (kind, (what, _)) in kinds.iter().enumerate() {
        show(&format!("{what} cold"), &mut cold[kind]);
        show_parts(&parts[kind]);
        show(&format!("{what} slot"), &mut slot[kind]);
    }
    measure_ready(&host, count).await;
    host.finish().await;
}

fn order(name: &str, sandbox: Option<&Sandbox>) -> ReplicaSpec {
    ReplicaSpec { sandbox: sandbox.cloned(), ..spec(name, vec![container("main", &[])]) }
}

/// Sessions as a pool keeps them: started, ready, frozen; what one holds, and how soon it answers.
async fn measure_ready(host: &Host, count: usize) {
    let (mut direct, mut first, mut again) = (Vec::new(), Vec::new(), Vec::new());
    let (mut held, mut helpers) = (0, 0);
    for number in 0..count {
        let order = order(&format!("pool--v1-r{number}"), Some(&Sandbox::default()));
        let name = order.name.clone();
        host.run(order, |seen| seen.is_ready).await;
        ask(host, &name).await;
        let begun = Instant::now();
        ask(host, &name).await;
        direct.push(begun.elapsed());
        host.runtime().freeze(&name).expect("the host can freeze");
        host.wait(&name, |seen| seen.phase == ReplicaPhase::Frozen).await;
        held += host.runtime().usage(&name).and_then(|used| used.memory_bytes).unwrap_or(0);
        helpers += share_of_memory(host.helper_pid(&name));
        let begun = Instant::now();
        host.runtime().thaw(&name).expect("it is frozen");
        ask(host, &name).await;
        first.push(begun.elapsed());
        let begun = Instant::now();
        ask(host, &name).await;
        again.push(begun.elapsed());
    }
    show("dial and first byte, before", &mut direct);
    show("thaw, dial and first byte", &mut first);
    show("dial and first byte, after", &mut again);
    let each = |bytes: u64| bytes as f64 / f64::from(1 << 20) / count as f64;
    let text = format!("{:.1} MiB in its control group, {:.1} MiB of its helper", each(held), each(helpers));
    let _ = writeln!(std::io::stdout(), "a frozen ready session holds {text}");
}

/// Bytes of a process, what it shares with others in parts.
fn share_of_memory(pid: nix::unistd::Pid) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
}

async fn ask(host: &Host, name: &cove_model::ReplicaName) {
    let stream = host.runtime().dial(name, 80).await.expect("it listens");
    let mut stream = tokio::net::TcpStream::from_std(stream).expect("it is a stream");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("it reads");
    assert!(stream.read(&mut [0; 64]).await.expect("it answers") > 0);
}

fn show(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    let (n, out) = (times.len(), &mut std::io::stdout());
    let _ = writeln!(out, "{what}: n={n} p50 {:.2?} p90 {:.2?} p99 {:.2?} max {:.2?}", at(50), at(90), at(99), at(100));
}

fn show_parts(parts: &[ReplicaPhases]) {
    let row = |what: &str, from: fn(&ReplicaPhases) -> Option<(jiff::Timestamp, jiff::Timestamp)>| {
        let mut times: Vec<_> = parts.iter().filter_map(from).map(|(a, b)| b.duration_since(a)).collect();
        times.sort_unstable();
        if let Some(middle) = times.get(times.len() / 2) {
            let _ = writeln!(std::io::stdout(), "  {what}: p50 {middle:#}");
        }
    };
    row("network to created", |p| p.network_at.zip(p.root_at));
    row("created to started", |p| p.root_at.zip(p.started_at));
    row("started to listening", |p| p.started_at.zip(p.listening_at));
    row("listening to ready", |p| p.listening_at.zip(p.ready_at));
}

async fn end(host: &Host, name: &cove_model::ReplicaName) {
    host.runtime().stop(name, Duration::ZERO);
    host.wait(name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    host.runtime().remove(name);
}
