//! The driver on this host with real containers. Needs root and the kernel parts that `cove doctor` lists.

#[path = "host/completion.rs"]
mod completion;
#[path = "host/effects.rs"]
mod effects;
#[path = "host/fixture.rs"]
mod fixture;
#[path = "host/freezing.rs"]
mod freezing;
#[path = "host/handler.rs"]
mod handler;
#[path = "host/hostile.rs"]
mod hostile;
#[path = "host/limits.rs"]
mod limits;
#[path = "host/machine.rs"]
mod machine;
#[path = "host/sandbox.rs"]
mod sandbox;
#[path = "host/shell_image.rs"]
mod shell_image;
#[path = "host/snapshots.rs"]
mod snapshots;
#[path = "host/volumes.rs"]
mod volumes;
#[path = "host/wire.rs"]
mod wire;

use std::{path::Path, sync::Arc, time::Duration};

use cove_images::SAMPLE_IMAGE;
use cove_model::{Bytes, ContainerState, Probe, ProbeAction, ProbeKind, ReplicaPhase, Volume, VolumeKind, VolumeMount};
use cove_runtime::{ExecError, ExecRequest, Runtime, RuntimeError, conformance::Suite};
use fixture::{Host, LIMIT, container, get, spec};
use shell_image::SHELL_IMAGE;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_prepared_started_and_stopped() {
    let mut host = Host::new().await;
    let order = spec("web--v1-a", vec![container("main", &[])]);
    let name = order.name.clone();
    host.runtime().prepare(order).unwrap();
    let slot = host.wait(&name, |seen| seen.phase == ReplicaPhase::Prepared).await;
    assert!(!slot.is_ready && slot.started_at.is_none());
    host.runtime().start(&name).unwrap();
    let seen = host.wait(&name, |seen| seen.is_ready).await;
    let page = get(&seen, 80, "/healthz").await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    let phases = host.runtime().phases(&name).unwrap();
    assert!(phases.listening_at.is_some() && phases.ready_at.is_some(), "{phases:?}");
    host.runtime().stop(&name, Duration::from_secs(20));
    let seen = host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    assert_eq!(seen.containers[0].last_exit.as_ref().unwrap().reason, "Completed");
    assert!(!host.log(&name, "main").is_empty());
    assert_eq!(host.runtime().start(&name), Err(RuntimeError::Gone(name.clone())));
    host.runtime().remove(&name);
    assert_eq!(host.runtime().start(&name), Err(RuntimeError::NotFound(name.clone())));
    let mut reasons = Vec::new();
    while let Ok(event) = host.events.try_recv() {
        reasons.push(event.reason);
    }
    assert_eq!(reasons, ["ContainerCreated", "ContainerStarted", "ReplicaReady", "ContainerTerminated"]);
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_keeps_the_contract() {
    let host = Host::new().await;
    let suite = Suite {
        runtime: host.runtime(),
        image: SAMPLE_IMAGE,
        port: 80,
        missing_image: "cove.local/none:1",
        ending_image: SAMPLE_IMAGE,
        ending_code: 3,
        limit: LIMIT,
    };
    suite.run().await.unwrap();
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_keeps_ending_is_restarted_with_growing_waits() {
    let host = Host::new().await;
    let order = spec("web--v1-a", vec![container("main", &[("SAMPLE_EXIT", "3")])]);
    let seen = host.run(order, |seen| seen.containers[0].restarts >= 2).await;
    let exit = seen.containers[0].last_exit.as_ref().unwrap();
    assert_eq!((exit.code, exit.reason.as_str()), (3, "Error"));
    let ContainerState::Waiting { reason, until } = &seen.containers[0].state else { panic!("{seen:?}") };
    assert_eq!(reason, "CrashLoopBackOff");
    assert!(until.unwrap().duration_since(jiff::Timestamp::now()) > jiff::SignedDuration::from_secs(3));
    assert_eq!(seen.phase, ReplicaPhase::Running);
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_takes_too_much_memory_is_ended_and_restarted() {
    let host = Host::new().await;
    let mut main = container("main", &[]);
    main.resources.memory = Bytes(64 << 20);
    let order = spec("web--v1-a", vec![main]);
    let name = order.name.clone();
    let seen = host.run(order, |seen| seen.is_ready).await;
    get(&seen, 80, "/alloc?mb=256").await;
    let seen = host.wait(&name, |seen| seen.containers[0].restarts == 1 && seen.is_ready).await;
    let exit = seen.containers[0].last_exit.as_ref().unwrap();
    assert_eq!((exit.code, exit.reason.as_str()), (137, "OOMKilled"));
    assert!(exit.message.as_ref().unwrap().contains("64 MiB"));
    assert!(get(&seen, 80, "/healthz").await.starts_with("HTTP/1.1 200"));
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_says_why() {
    let host = Host::new().await;
    for (number, (command, image, words)) in [
        (vec!["/nope"], None, "`/nope` does not exist in the image"),
        (vec!["nope"], None, "`nope` was not found in the image's PATH"),
        (vec!["/etc"], None, "is a folder"),
        (vec![], Some("cove.local/none:1"), "cove.local/none"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut main = container("main", &[]);
        main.command = command.into_iter().map(str::to_owned).collect();
        if let Some(image) = image {
            main.image = image.to_owned();
        }
        let seen = host.run_in_vain(spec(&format!("web--v1-{number}"), vec![main])).await;
        let said = host.runtime().failure(&seen.name).unwrap();
        assert!(said.1.contains(words), "{said:?}");
    }
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_replica_share_network_and_volumes_and_nothing_else() {
    let host = Host::new().await;
    shell_image::import(&host.images, host.dir.path()).await;
    let shell = |name: &str, script: &str| {
        let mut shell = container(name, &[]);
        shell.image = SHELL_IMAGE.to_owned();
        shell.command = ["sh", "-c", script].map(str::to_owned).to_vec();
        shell.volume_mounts =
            vec![VolumeMount { volume: "shared".to_owned(), path: "/shared".to_owned(), sub_path: None }];
        shell
    };
    let look = "cat /shared/order; id -u; id -G; echo dir $PWD home $HOME; cat /etc/hosts; \
        (echo x > /proc/sys/kernel/hostname) 2>/dev/null || echo proc is read-only; \
        (cat /proc/kcore) 2>/dev/null | (read -r x && echo kcore) || echo kcore is masked; \
        ls /proc | while read -r p; do case $p in [0-9]*) echo pid;; esac; done | (read -r a; read -r b; read -r c; read -r d; echo few); \
        cat /secrets/token; cat /proc/self/status; ls /sys/fs/cgroup; exec sleep 1000";
    let mut order = spec("web--v1-a", vec![container("web", &[]), shell("look", look)]);
    order.secrets = [("token".to_owned(), "s3cret\n".to_owned())].into();
    let template = Arc::make_mut(&mut order.template);
    template.init_containers =
        vec![shell("first", "echo first > /shared/order"), shell("second", "echo second >> /shared/order")];
    template.containers[1].volume_mounts.push(VolumeMount {
        volume: "secrets".to_owned(),
        path: "/secrets".to_owned(),
        sub_path: None,
    });
    template.volumes = vec![
        Volume { name: "shared".to_owned(), kind: VolumeKind::EmptyDir },
        Volume { name: "secrets".to_owned(), kind: VolumeKind::Secret(Vec::new()) },
    ];
    let seen = host.run(order, |seen| seen.is_ready).await;
    let init: Vec<_> = seen.containers.iter().map(|c| (c.name.as_str(), c.is_init)).collect();
    assert_eq!(init, [("first", true), ("second", true), ("web", false), ("look", false)]);
    assert_eq!(seen.containers[0].last_exit.as_ref().unwrap().reason, "Completed");
    let exec = host.runtime().exec(ExecRequest {
        replica: seen.name.clone(),
        container: "look".to_owned(),
        command: ["sh", "-c", "cat /shared/order"].map(str::to_owned).to_vec(),
        tty: false,
        is_debug: false,
    });
    let mut session = timeout(LIMIT, exec).await.unwrap().unwrap();
    assert_eq!(timeout(LIMIT, session.output.recv()).await.unwrap(), Some((1, b"first\nsecond\n".to_vec())));
    // The last that it lists: a folder of v1, a file of v2.
    let cgroup_file = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "memory.max" } else { "memory" };
    let all = host.wait_log(&seen.name, "look", cgroup_file).await;
    for line in
        ["first", "second", "1000", "dir /srv/dir home /home/app", "proc is read-only", "kcore is masked", "s3cret"]
    {
        assert!(all.iter().any(|found| found == line), "{line} is missing in {all:#?}");
    }
    let status =
        |name: &str| all.iter().find(|line| line.starts_with(name)).unwrap().split_whitespace().nth(1).unwrap();
    assert_eq!((status("NoNewPrivs:"), status("Seccomp:"), status("CapEff:")), ("1", "2", "0000000000000000"));
    assert!(all.iter().any(|line| line.ends_with("\tweb--v1-a")), "{all:#?}");
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_opened_again_finds_what_runs() {
    let mut host = Host::new().await;
    let running = spec("web--v1-a", vec![container("main", &[])]);
    let slot = spec("web--v1-b", vec![container("main", &[])]);
    let (name, slot_name) = (running.name.clone(), slot.name.clone());
    let before = host.run(running, |seen| seen.is_ready).await;
    host.runtime().prepare(slot).unwrap();
    host.wait(&slot_name, |seen| seen.phase == ReplicaPhase::Prepared).await;
    host.forget();
    assert!(get(&before, 80, "/log?n=3&text=away").await.starts_with("HTTP/1.1 200"), "runs without a driver");
    host.open().await;
    let after = host.wait(&name, |seen| seen.is_ready).await;
    assert_eq!((after.started_at, after.ready_at), (before.started_at, before.ready_at));
    assert_eq!(after.containers[0].restarts, 0);
    assert_eq!(host.log(&name, "main").iter().filter(|line| line.contains("away")).count(), 3);
    host.runtime().start(&slot_name).unwrap();
    let woken = host.wait(&slot_name, |seen| seen.is_ready).await;
    assert!(get(&woken, 80, "/healthz").await.starts_with("HTTP/1.1 200"));
    host.runtime().stop(&name, Duration::from_secs(20));
    host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_end_with_their_helper() {
    let host = Host::new().await;
    let order = spec("web--v1-a", vec![container("main", &[])]);
    let name = order.name.clone();
    let before = host.run(order, |seen| seen.is_ready).await;
    let helper = host.helper_pid(&name);
    nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGKILL).unwrap();
    let seen = host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    let exit = seen.containers[0].last_exit.as_ref().unwrap();
    assert!(exit.message.as_ref().unwrap().contains("helper process was killed"), "{exit:?}");
    let refused = timeout(Duration::from_secs(1), tokio::net::TcpStream::connect((before.address.unwrap(), 80))).await;
    assert!(!matches!(refused, Ok(Ok(_))), "the container must not answer any more");
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_lines_before_an_exit_are_kept() {
    let host = Host::new().await;
    let order = spec("web--v1-a", vec![container("main", &[])]);
    let name = order.name.clone();
    let seen = host.run(order, |seen| seen.is_ready).await;
    get(&seen, 80, "/log?n=20000&text=line").await;
    get(&seen, 80, "/exit?code=7").await;
    let seen = host.wait(&name, |seen| seen.containers[0].restarts == 1).await;
    assert_eq!(seen.containers[0].last_exit.as_ref().unwrap().code, 7);
    assert_eq!(host.log(&name, "main").iter().filter(|line| line.contains("line")).count(), 20_000);
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_ignores_sigterm_is_killed_after_the_grace() {
    let host = Host::new().await;
    let order = spec("web--v1-a", vec![container("main", &[("SAMPLE_IGNORE_TERM", "1")])]);
    let name = order.name.clone();
    host.run(order, |seen| seen.is_ready).await;
    let begun = std::time::Instant::now();
    host.runtime().stop(&name, Duration::from_secs(1));
    let seen = host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(seen.containers[0].last_exit.as_ref().unwrap().code, 137);
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_decide_readiness_and_restarts() {
    let host = Host::new().await;
    let probe = |kind| Probe {
        kind,
        action: ProbeAction::HttpGet {
            port: 80,
            path: "/healthz".to_owned(),
            https: false,
            host: None,
            headers: indexmap::IndexMap::default(),
        },
        initial_delay_secs: 0,
        period_secs: 1,
        timeout_secs: 1,
        success_threshold: 1,
        failure_threshold: 1,
    };
    let mut sick = container("main", &[("SAMPLE_HEALTH", "503")]);
    sick.probes = vec![probe(ProbeKind::Liveness)];
    let seen = host.run(spec("web--v1-a", vec![sick]), |seen| seen.containers[0].restarts >= 1).await;
    assert_eq!(seen.containers[0].last_exit.as_ref().unwrap().reason, "ProbeFailure");
    let mut unready = container("main", &[("SAMPLE_HEALTH", "503")]);
    unready.probes = vec![probe(ProbeKind::Readiness)];
    let seen = host.run(spec("web--v1-b", vec![unready]), |seen| seen.containers[0].is_started).await;
    assert!(!seen.is_ready);
    let mut well = container("main", &[]);
    well.probes = vec![probe(ProbeKind::Startup), probe(ProbeKind::Readiness), probe(ProbeKind::Liveness)];
    host.run(spec("web--v1-c", vec![well]), |seen| seen.is_ready).await;
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_in_a_container() {
    let host = Host::new().await;
    shell_image::import(&host.images, host.dir.path()).await;
    let mut shell = container("main", &[("GREETING", "hello")]);
    shell.image = SHELL_IMAGE.to_owned();
    shell.command = ["sleep", "1000"].map(str::to_owned).to_vec();
    let mut order = spec("web--v1-a", vec![shell]);
    order.target_port = None;
    let seen = host.run(order, |seen| seen.is_ready).await;
    let exec = |command: &[&str], tty| {
        host.runtime().exec(ExecRequest {
            replica: seen.name.clone(),
            container: "main".to_owned(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            tty,
            is_debug: false,
        })
    };
    let mut session =
        exec(&["sh", "-c", "read line; echo $GREETING $line; echo err >&2; exit 5"], false).await.unwrap();
    session.stdin.send(b"world\n".to_vec()).await.unwrap();
    let mut out = [String::new(), String::new()];
    while let Some((stream, bytes)) = timeout(LIMIT, session.output.recv()).await.unwrap() {
        out[usize::from(stream - 1)].push_str(&String::from_utf8(bytes).unwrap());
    }
    assert_eq!(out, ["hello world\n", "err\n"]);
    assert_eq!(timeout(LIMIT, session.exit).await.unwrap(), Ok(5));
    let mut session = exec(&["sh", "-c", "test -t 0 && echo terminal $(id -u)"], true).await.unwrap();
    let mut out = String::new();
    while let Some((_, bytes)) = timeout(LIMIT, session.output.recv()).await.unwrap() {
        out.push_str(&String::from_utf8(bytes).unwrap());
    }
    assert_eq!(out, "terminal 1000\r\n");
    assert!(
        matches!(exec(&["nope"], false).await, Err(ExecError::Failed(text)) if text.contains("`nope` was not found"))
    );
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_begin_at_once_all_run() {
    let host = Host::new().await;
    shell_image::import(&host.images, host.dir.path()).await;
    let mut shell = container("main", &[]);
    shell.image = SHELL_IMAGE.to_owned();
    shell.command = ["sleep", "1000"].map(str::to_owned).to_vec();
    let mut order = spec("web--v1-a", vec![shell]);
    order.target_port = None;
    let seen = host.run(order, |seen| seen.is_ready).await;
    let code = async |code: i32| {
        let session = host.runtime().exec(ExecRequest {
            replica: seen.name.clone(),
            container: "main".to_owned(),
            command: vec!["sh".to_owned(), "-c".to_owned(), format!("exit {code}")],
            tty: false,
            is_debug: false,
        });
        session.await.unwrap().exit.await.unwrap()
    };
    for _ in 0..5 {
        let codes = timeout(LIMIT, futures_util::future::join_all((0..12).map(code))).await.unwrap();
        assert_eq!(codes, (0..12).collect::<Vec<_>>());
    }
    host.finish().await;
}
