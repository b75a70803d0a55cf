//! Replicas that are frozen and thawed: the same process, its memory in swap meanwhile, whoever dies.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail here")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use cove_model::{ReplicaName, ReplicaObservation, ReplicaPhase};
use cove_runtime::{ExecError, ExecRequest, Runtime as _, RuntimeError};
use nix::sys::signal::{Signal, kill};
use tokio::time::timeout;

use crate::fixture::{Host, LIMIT, container, get, spec};

/// Longer than anything that runs would take to answer.
const SILENCE: Duration = Duration::from_millis(300);

async fn ready(host: &Host, name: &str) -> (ReplicaName, ReplicaObservation) {
    let order = spec(name, vec![container("main", &[])]);
    let name = order.name.clone();
    let seen = host.run(order, |seen| seen.is_ready).await;
    (name, seen)
}

async fn freeze(host: &Host, name: &ReplicaName) {
    host.runtime().freeze(name).unwrap();
    let seen = host.wait(name, |seen| seen.phase == ReplicaPhase::Frozen).await;
    assert!(!seen.is_ready && seen.address.is_some(), "{seen:?}");
}

async fn thaw(host: &Host, name: &ReplicaName) -> Duration {
    let begun = Instant::now();
    host.runtime().thaw(name).unwrap();
    host.wait(name, |seen| seen.is_ready).await;
    begun.elapsed()
}

/// How many requests it says it has served.
async fn served(seen: &ReplicaObservation) -> u64 {
    let page = get(seen, 80, "/").await;
    let count = page.split("served<dd>").nth(1).unwrap();
    count.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// Waits for an event; others are passed over.
async fn event(host: &mut Host, reason: &str) -> String {
    let wait = async {
        loop {
            let event = host.events.recv().await.unwrap();
            if event.reason == reason {
                return event.message;
            }
        }
    };
    timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("no event {reason}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_knows_is_there_when_it_is_thawed() {
    let mut host = Host::new().await;
    let (name, seen) = ready(&host, "web--v1-frozen").await;
    let process = host.first_process(&name);
    let before = served(&seen).await;
    for round in 1..=2 {
        freeze(&host, &name).await;
        // the kernel takes the connection; nobody answers
        assert!(timeout(SILENCE, get(&seen, 80, "/healthz")).await.is_err(), "a frozen replica answers");
        thaw(&host, &name).await;
        let after = served(&seen).await;
        assert!(after > before && after <= before + 3 * round, "{before}, then {after}");
        assert_eq!(host.first_process(&name), process);
    }
    let phases = host.runtime().phases(&name).unwrap();
    assert!(phases.asked_at.is_some() && phases.asked_at <= phases.thawed_at, "{phases:?}");
    // an order that was overtaken has no effect
    freeze(&host, &name).await;
    host.runtime().thaw(&name).unwrap();
    host.runtime().thaw(&name).unwrap();
    host.wait(&name, |seen| seen.is_ready).await;
    host.runtime().stop(&name, Duration::from_secs(20));
    let seen = host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    assert_eq!(seen.containers[0].last_exit.as_ref().unwrap().reason, "Completed");
    assert_eq!(host.runtime().freeze(&name), Err(RuntimeError::Gone(name.clone())));
    assert!(event(&mut host, "ReplicaFrozen").await.contains("is frozen"));
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_replica_ends_in_order() {
    let host = Host::new().await;
    let (name, _) = ready(&host, "web--v1-ordered").await;
    freeze(&host, &name).await;
    host.runtime().stop(&name, LIMIT);
    let seen = host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    let exit = seen.containers[0].last_exit.as_ref().unwrap();
    assert_eq!((exit.code, exit.reason.as_str()), (0, "Completed"), "it was told to end, not killed");
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_process_dies_frozen_ends_as_a_whole() {
    let host = Host::new().await;
    let (name, _) = ready(&host, "web--v1-killed").await;
    freeze(&host, &name).await;
    let process = host.first_process(&name);
    kill(process, Signal::SIGKILL).unwrap();
    let seen = host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    assert_eq!(seen.containers[0].last_exit.as_ref().unwrap().code, 137);
    assert_eq!(seen.containers[0].restarts, 0);
    assert_eq!(host.runtime().thaw(&name), Err(RuntimeError::Gone(name.clone())));
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_comes_back_finds_it_frozen() {
    let mut host = Host::new().await;
    let (name, seen) = ready(&host, "web--v1-adopted").await;
    let process = host.first_process(&name);
    let before = served(&seen).await;
    freeze(&host, &name).await;
    host.forget();
    host.open().await;
    let seen = host.wait(&name, |seen| seen.phase == ReplicaPhase::Frozen).await;
    assert!(!seen.is_ready, "{seen:?}");
    assert!(timeout(SILENCE, get(&seen, 80, "/healthz")).await.is_err(), "a frozen replica answers");
    thaw(&host, &name).await;
    let after = served(&seen).await;
    assert!(after > before && after <= before + 3, "{before}, then {after}");
    assert_eq!(host.first_process(&name), process);
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_is_run_in_one() {
    let host = Host::new().await;
    let (name, _) = ready(&host, "web--v1-quiet").await;
    freeze(&host, &name).await;
    let request = ExecRequest {
        replica: name.clone(),
        container: "main".to_owned(),
        command: vec!["/sample".to_owned()],
        tty: false,
        is_debug: false,
    };
    match host.runtime().exec(request).await {
        Err(ExecError::Failed(message)) => assert!(message.contains("is frozen"), "{message}"),
        other => panic!("{other:?}"),
    }
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_memory_goes_to_swap_where_there_is_some() {
    let swap = Swap::make();
    let mut host = Host::new().await;
    let (name, seen) = ready(&host, "web--v1-heavy").await;
    assert!(get(&seen, 80, "/alloc?mb=64&keep=1").await.contains("touched 16384 pages"));
    let process = host.first_process(&name);
    let swapped_kib = || {
        let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmSwap:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    freeze(&host, &name).await;
    let message = event(&mut host, "ReplicaFrozen").await;
    if swap.is_there {
        assert!(swapped_kib() > 48 << 10, "only {} KiB are in swap: {message}", swapped_kib());
        assert!(message.contains("were moved to swap"), "{message}");
    } else {
        assert!(message.contains("this machine has no swap"), "{message}");
    }
    thaw(&host, &name).await;
    assert!(get(&seen, 80, "/healthz").await.starts_with("HTTP/1.1 200"));
    if swap.is_there {
        assert!(swapped_kib() > 32 << 10, "a request brings back what it touches, not all");
    }
    host.finish().await;
}

/// The machine's own swap, or some for as long as the test runs: compressed memory. A machine may allow neither.
struct Swap {
    is_there: bool,
    made: Option<PathBuf>,
}

impl Swap {
    fn make() -> Self {
        let has_swap = || fs::read_to_string("/proc/swaps").unwrap().lines().count() > 1;
        if has_swap() {
            return Self { is_there: true, made: None };
        }
        let number = fs::read_to_string("/sys/class/zram-control/hot_add");
        let made = number.ok().map(|number| PathBuf::from(format!("/dev/zram{}", number.trim())));
        let this = Self { is_there: false, made };
        let Some(device) = &this.made else { return this };
        let size = Path::new("/sys/block").join(device.file_name().unwrap()).join("disksize");
        let run =
            |program: &str| Command::new(program).arg(device).output().is_ok_and(|output| output.status.success());
        let is_there = fs::write(size, "256M").is_ok() && run("mkswap") && run("swapon") && has_swap();
        let mut this = this;
        this.is_there = is_there;
        this
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let Some(device) = self.made.take() else { return };
        let _ = Command::new("swapoff").arg(&device).output();
        let number = device.to_string_lossy().trim_start_matches("/dev/zram").to_owned();
        let _ = fs::write("/sys/class/zram-control/hot_remove", number);
    }
}
