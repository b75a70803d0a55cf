//! Measures starts of the sample image on this host, cold and from a slot: `cargo run --example starts -- 40`.
//!
//! Cold is from the order to the first time the target port answered, with a network and a helper from their pools, as
//! for a wake without a slot. Slot is from `start` to the same. Everything is removed at the end.

#[path = "../tests/host/fixture.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod fixture;

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use cove_model::ReplicaPhase;
use cove_runtime::Runtime as _;
use fixture::{Host, container, spec};

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
    let (mut cold, mut slot, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..count {
        let order = spec(&format!("web--v1-c{number}"), vec![container("main", &[])]);
        let name = order.name.clone();
        host.network.wait_for(|status| status.ready >= 2).await;
        host.runtime().helpers_full().await;
        let begun = Instant::now();
        host.run(order, |seen| seen.is_ready).await;
        cold.push(begun.elapsed());
        parts.push(host.runtime().phases(&name).expect("it is known"));
        end(&host, &name).await;

        let order = spec(&format!("web--v1-s{number}"), vec![container("main", &[])]);
        let name = order.name.clone();
        host.runtime().prepare(order).expect("there is room");
        host.wait(&name, |seen| seen.phase == ReplicaPhase::Prepared).await;
        let begun = Instant::now();
        host.runtime().start(&name).expect("it is prepared");
        host.wait(&name, |seen| seen.is_ready).await;
        slot.push(begun.elapsed());
        end(&host, &name).await;
    }
    let mut out = std::io::stdout();
    for (what, mut times) in [("cold", cold), ("slot", slot)] {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        let _ = writeln!(
            out,
            "{what}: n={count} p50 {:.2?} p90 {:.2?} p99 {:.2?} max {:.2?}",
            at(50),
            at(90),
            at(99),
            at(100)
        );
    }
    let mut row = |what: &str, from: fn(&cove_model::ReplicaPhases) -> Option<(jiff::Timestamp, jiff::Timestamp)>| {
        let mut times: Vec<_> = parts.iter().filter_map(from).map(|(a, b)| b.duration_since(a)).collect();
        times.sort_unstable();
        if let Some(middle) = times.get(times.len() / 2) {
            let _ = writeln!(out, "  {what}: p50 {middle:#}");
        }
    };
    row("network to created", |p| p.network_at.zip(p.root_at));
    row("created to started", |p| p.root_at.zip(p.started_at));
    row("started to listening", |p| p.started_at.zip(p.listening_at));
    row("listening to ready", |p| p.listening_at.zip(p.ready_at));
    host.finish().await;
}

async fn end(host: &Host, name: &cove_model::ReplicaName) {
    host.runtime().stop(name, Duration::ZERO);
    host.wait(name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    host.runtime().remove(name);
}
