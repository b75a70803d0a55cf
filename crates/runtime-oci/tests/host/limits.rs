//! What the kernel holds about a container's limits, on either version of control groups.
//!
//! Reads and watches the kernel's own files, so it does not depend on what the driver says of itself.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail here")]

use std::{
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cove_model::{Bytes, MilliCpu, ReplicaName, ReplicaPhase};
use cove_runtime::{ReplicaSpec, Runtime as _, Sandbox};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

use crate::{
    fixture::{Host, LIMIT, container, get, spec},
    sandbox::sandboxed,
    shell_image::{self, SHELL_IMAGE},
};

const ROOT: &str = "/sys/fs/cgroup";

/// Whether this machine has version 2 and nothing else.
fn is_v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// The folder of a group in the hierarchy of a controller.
fn folder(controller: &str, group: &str) -> PathBuf {
    let root = Path::new(ROOT);
    if is_v2() { root.join(group) } else { root.join(controller).join(group) }
}

fn read(controller: &str, group: &str, file: &str) -> String {
    let path = folder(controller, group).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

fn pids(group: &str) -> Vec<String> {
    read("pids", group, "cgroup.procs").lines().map(str::to_owned).collect()
}

/// The group of a replica: the one whose first container is a child of the replica's helper.
fn group_of(host: &Host, replica: &ReplicaName) -> String {
    let helper = host.helper_pid(replica);
    let children = fs::read_to_string(format!("/proc/{helper}/task/{helper}/children")).unwrap();
    let parent = format!("cove-{}", host.name());
    let groups = fs::read_dir(folder("pids", &parent)).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let mut groups = groups.map(|entry| format!("{parent}/{}", entry.file_name().into_string().unwrap()));
    groups
        .find(|group| {
            let inside = fs::read_to_string(folder("pids", group).join("c0/cgroup.procs")).unwrap_or_default();
            inside.lines().any(|pid| children.split_whitespace().any(|child| child == pid))
        })
        .unwrap()
}

/// File and content of a container's limits: before it is ready, and after.
fn limits(memory: Bytes, cpu_max_us: u64) -> [Vec<(&'static str, &'static str, String)>; 2] {
    let both = |cpu: String| {
        let memory = memory.0.to_string();
        if is_v2() {
            vec![
                ("memory", "memory.max", memory),
                ("memory", "memory.swap.max", "0".to_owned()),
                ("memory", "memory.oom.group", "1".to_owned()),
                ("pids", "pids.max", "4096".to_owned()),
                ("cpu", "cpu.max", cpu),
            ]
        } else {
            vec![
                ("memory", "memory.limit_in_bytes", memory),
                ("pids", "pids.max", "4096".to_owned()),
                ("cpu", "cpu.cfs_quota_us", cpu),
            ]
        }
    };
    if is_v2() {
        [both("max 100000".to_owned()), both(format!("{cpu_max_us} 100000"))]
    } else {
        [both("-1".to_owned()), both(cpu_max_us.to_string())]
    }
}

/// Notices of writes to one file, which the kernel keeps also when the file is gone.
struct Writes(Inotify);

impl Writes {
    fn to(controller: &str, group: &str, file: &str) -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
        // With the openings: the kernel merges notices that equal the one before them.
        let flags = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_CLOSE_WRITE;
        inotify.add_watch(&folder(controller, group).join(file), flags).unwrap();
        Self(inotify)
    }

    /// How often it was written since the last call; if it was not, waits for that until `deadline`.
    fn count(&self, deadline: Instant) -> usize {
        loop {
            let events = self.0.read_events().unwrap_or_default();
            let count = events.iter().filter(|event| event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE)).count();
            let left = deadline.saturating_duration_since(Instant::now());
            if count > 0 || left.is_zero() {
                return count;
            }
            let left = PollTimeout::try_from(left).unwrap();
            poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], left).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_container_has_its_own_limits_and_those_of_cpu_come_with_readiness() {
    let host = Host::new().await;
    let mut containers = vec![container("first", &[("WHICH", "first")]), container("second", &[("WHICH", "second")])];
    containers[0].resources.cpu = MilliCpu(500);
    containers[0].resources.memory = Bytes(128 << 20);
    containers[1].resources.cpu = MilliCpu(250);
    containers[1].resources.memory = Bytes(96 << 20);
    shell_image::import(&host.images, host.dir.path()).await;
    containers[1].image = SHELL_IMAGE.to_owned();
    containers[1].command = ["sleep", "1000"].map(str::to_owned).to_vec();
    let order = spec("web--v1-a", containers);
    let name = order.name.clone();
    host.runtime().prepare(order).unwrap();
    host.wait(&name, |seen| seen.phase == ReplicaPhase::Prepared).await;
    let group = group_of(&host, &name);
    let groups = [format!("{group}/c0"), format!("{group}/c1")];
    let wanted = [limits(Bytes(128 << 20), 50_000), limits(Bytes(96 << 20), 25_000)];
    let see = |step: usize| {
        for (group, wanted) in groups.iter().zip(&wanted) {
            for (controller, file, content) in &wanted[step] {
                assert_eq!(read(controller, group, file), *content, "{group}/{file}");
            }
        }
    };
    see(0);
    let (controller, cpu_file, _) = wanted[0][0].last().unwrap();
    let writes = groups.each_ref().map(|group| Writes::to(controller, group, cpu_file));
    host.runtime().start(&name).unwrap();
    host.wait(&name, |seen| seen.is_ready).await;
    let counts = tokio::task::block_in_place(|| writes.each_ref().map(|writes| writes.count(Instant::now() + LIMIT)));
    assert_eq!(counts, [1, 1], "writes to {cpu_file}");
    see(1);
    for (group, which) in groups.iter().zip(["first", "second"]) {
        // who made the container was in its group too, and is about to end
        let (deadline, wanted) = (Instant::now() + LIMIT, format!("WHICH={which}"));
        let environments = || {
            let of = |pid: &_| fs::read_to_string(format!("/proc/{pid}/environ")).unwrap_or_default();
            pids(group).iter().map(of).collect::<Vec<String>>()
        };
        while !environments().iter().any(|environment| environment.split('\0').any(|entry| entry == wanted)) {
            assert!(Instant::now() < deadline, "{group}: {wanted} is not in {:?}", environments());
            tokio::task::yield_now().await;
        }
    }
    host.runtime().stop(&name, Duration::from_secs(1));
    host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    assert_eq!(writes.map(|writes| writes.count(Instant::now())), [0, 0], "further writes to {cpu_file}");
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_stays_is_ended_with_all_its_processes() {
    let host = Host::new().await;
    shell_image::import(&host.images, host.dir.path()).await;
    let mut shell = container("main", &[]);
    shell.image = SHELL_IMAGE.to_owned();
    let script = "trap '' TERM; for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo all; while true; do wait; done";
    shell.command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let mut order = spec("web--v1-a", vec![shell]);
    order.target_port = None;
    let name = order.name.clone();
    host.run(order, |seen| seen.is_ready).await;
    host.wait_log(&name, "main", "all").await;
    let group = format!("{}/c0", group_of(&host, &name));
    // who made the container was in its group too, and is about to end
    let deadline = Instant::now() + LIMIT;
    let pids = loop {
        let all = pids(&group);
        if all.len() == 9 {
            break all;
        }
        assert!(Instant::now() < deadline, "a shell and eight children, not {all:?}");
        tokio::task::yield_now().await;
    };
    let kill = is_v2().then(|| Writes::to("pids", &group, "cgroup.kill"));
    host.runtime().stop(&name, Duration::from_millis(200));
    let seen = host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    assert_eq!(seen.containers[0].last_exit.as_ref().unwrap().code, 137);
    if let Some(kill) = kill {
        assert!(kill.count(Instant::now()) > 0, "the group was not ended as one");
    }
    for pid in pids {
        // A number may be given to another process; what counts is that none of ours is left.
        let command = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        assert!(!command.contains(&group), "{pid} is still there: {command}");
    }
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn want_of_memory_ends_one_container_and_not_its_neighbour() {
    let host = Host::new().await;
    let mut containers = vec![container("greedy", &[]), container("modest", &[])];
    containers[0].resources.memory = Bytes(64 << 20);
    shell_image::import(&host.images, host.dir.path()).await;
    containers[1].image = SHELL_IMAGE.to_owned();
    containers[1].command = ["sleep", "1000"].map(str::to_owned).to_vec();
    let order = spec("web--v1-a", containers);
    let name = order.name.clone();
    let seen = host.run(order, |seen| seen.is_ready).await;
    let group = group_of(&host, &name);
    let file = if is_v2() { "memory.events" } else { "memory.oom_control" };
    let kills = |group: &str| {
        let text = read("memory", group, file);
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse::<u64>().ok()).unwrap()
    };
    assert_eq!((kills(&format!("{group}/c0")), kills(&format!("{group}/c1"))), (0, 0));
    get(&seen, 80, "/alloc?mb=256").await;
    let seen = host.wait(&name, |seen| seen.containers[0].restarts == 1).await;
    assert!(kills(&format!("{group}/c0")) > 0);
    assert_eq!(kills(&format!("{group}/c1")), 0);
    assert_eq!(seen.containers[0].last_exit.as_ref().unwrap().reason, "OOMKilled");
    assert_eq!((seen.containers[1].restarts, seen.containers[1].last_exit.as_ref()), (0, None));
    host.finish().await;
}

/// Share of the processor as the kernel has it: that of all, or of what is made ahead.
fn share(group: &str) -> String {
    if is_v2() { read("cpu", group, "cpu.weight") } else { read("cpu", group, "cpu.shares") }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_ahead_gets_the_processor_time_that_others_leave() {
    let (usual, least) = if is_v2() { ("100", "10") } else { ("1024", "102") };
    let mut host = Host::new().await;
    let ahead = |name: &str| {
        let sandbox = Some(Sandbox { is_ahead: true, ..Sandbox::default() });
        ReplicaSpec { sandbox, ..sandboxed(name) }
    };
    let waits = host.run(ahead("pool--v1-a"), |seen| seen.is_ready).await.name;
    let taken = host.run(ahead("pool--v1-b"), |seen| seen.is_ready).await.name;
    let at_once = host.run(sandboxed("pool--v1-c"), |seen| seen.is_ready).await.name;
    let [waits_in, taken_in, at_once_in] = [&waits, &taken, &at_once].map(|name| group_of(&host, name));
    assert_eq!([&waits_in, &taken_in, &at_once_in].map(|group| share(group)), [least, least, usual]);
    for name in [&waits, &taken] {
        host.runtime().freeze(name).unwrap();
        host.wait(name, |seen| seen.phase == ReplicaPhase::Frozen).await;
    }
    host.runtime().thaw(&taken).unwrap();
    assert_eq!([&waits_in, &taken_in].map(|group| share(group)), [least, usual], "it is wanted now");
    host.wait(&taken, |seen| seen.is_ready).await;
    host.forget();
    host.open().await;
    assert_eq!([&waits_in, &taken_in].map(|group| share(group)), [least, usual], "the next driver leaves it so");
    host.finish().await;
}
