//! Sandboxed replicas that an OCI runtime of this machine runs. Needs Debian's `crun`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail here")]

use std::{sync::Arc, time::Duration};

use cove_model::{ReplicaName, ReplicaPhase, Volume, VolumeKind, VolumeMount};
use cove_runtime::{ExecRequest, ReplicaSpec, RestartPolicy, Runtime as _, Sandbox, SandboxTier};
use tokio::time::timeout;

use crate::{
    fixture::{Host, LIMIT, container},
    sandbox::{ask, sandboxed},
    shell_image::{self, SHELL_IMAGE},
};

/// A replica of the sample that `crun` runs, without egress.
pub(crate) fn by_crun(name: &str) -> ReplicaSpec {
    let sandbox = Sandbox { tier: SandboxTier::Handler("crun".to_owned()), ..Sandbox::default() };
    ReplicaSpec { sandbox: Some(sandbox), ..sandboxed(name) }
}

/// The same of a shell.
fn shell(name: &str, script: &str) -> ReplicaSpec {
    let mut shell = container("look", &[("GREETING", "hello")]);
    shell.image = SHELL_IMAGE.to_owned();
    shell.command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let mut order = ReplicaSpec { target_port: None, ..by_crun(name) };
    Arc::make_mut(&mut order.template).containers = vec![shell];
    order
}

async fn get(host: &Host, name: &ReplicaName, path: &str) -> String {
    ask(host, name, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_of_this_machine_runs_freezes_and_ends_sessions() {
    let mut host = Host::with_handlers().await;
    let tiers = host.runtime().capabilities().sandbox_tiers;
    assert!(tiers.contains(&SandboxTier::Handler("crun".to_owned())), "`apt-get install crun`: {tiers:?}");
    let order = by_crun("pool--v1-a");
    let name = order.name.clone();
    host.run(order, |seen| seen.is_ready).await;
    assert!(get(&host, &name, "/healthz").await.starts_with("HTTP/1.1 200"));
    host.runtime().freeze(&name).unwrap();
    host.wait(&name, |seen| seen.phase == ReplicaPhase::Frozen).await;
    host.runtime().thaw(&name).unwrap();
    assert!(get(&host, &name, "/healthz").await.starts_with("HTTP/1.1 200"));
    host.forget();
    host.open().await;
    host.wait(&name, |seen| seen.is_ready).await;
    assert!(get(&host, &name, "/healthz").await.starts_with("HTTP/1.1 200"), "a new driver reaches it too");
    host.runtime().stop(&name, Duration::from_secs(20));
    let seen = host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    assert_eq!(seen.containers[0].last_exit.as_ref().unwrap().reason, "Completed", "it was asked to end");
    assert!(!host.log(&name, "main").is_empty());
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_containers_have_what_hardened_ones_have() {
    let host = Host::with_handlers().await;
    shell_image::import(&host.images, host.dir.path()).await;
    let look = "cat /proc/self/uid_map; id -u; echo dir $PWD; \
        (echo z > /etc/hosts) 2>/dev/null || echo hosts are read-only; echo to stderr > /dev/stderr; cat /secrets/token; \
        (cat /proc/kcore) 2>/dev/null | (read -r x && echo kcore) || echo kcore is masked; \
        cat /proc/self/status; ls /sys; echo done; exec sleep 1000";
    let mut order = shell("pool--v1-b", look);
    order.secrets = [("token".to_owned(), "s3cret\n".to_owned())].into();
    let template = Arc::make_mut(&mut order.template);
    template.containers[0].volume_mounts =
        vec![VolumeMount { volume: "secrets".to_owned(), path: "/secrets".to_owned(), sub_path: None }];
    template.volumes = vec![Volume { name: "secrets".to_owned(), kind: VolumeKind::Secret(Vec::new()) }];
    let seen = host.run(order, |seen| seen.is_ready).await;
    let all = host.wait_log(&seen.name, "look", "done").await;
    for line in ["1000", "dir /srv/dir", "hosts are read-only", "to stderr", "s3cret", "kcore is masked"] {
        assert!(all.iter().any(|found| found == line), "{line} is missing in {all:#?}");
    }
    let status =
        |name: &str| all.iter().find(|line| line.starts_with(name)).unwrap().split_whitespace().nth(1).unwrap();
    assert_eq!((status("NoNewPrivs:"), status("Seccomp:"), status("CapBnd:")), ("1", "2", "0000000000000000"));
    // what is said to stderr may come before it
    let numbers = |line: &String| line.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>().ok();
    let map = all.iter().filter_map(numbers).find(|numbers| numbers.len() == 3).expect("the user map is told");
    assert!(map[0] == 0 && map[1] >= 0x7000_0000 && map[2] == 65536, "{map:?}");
    let exec = |command: &str, tty| {
        host.runtime().exec(ExecRequest {
            replica: seen.name.clone(),
            container: "look".to_owned(),
            command: ["sh", "-c", command].map(str::to_owned).to_vec(),
            tty,
            is_debug: false,
        })
    };
    let mut session =
        exec("read line; echo $GREETING $line; echo err >&2; cat /proc/self/status; exit 5", false).await.unwrap();
    session.stdin.send(b"world\n".to_vec()).await.unwrap();
    let mut out = [String::new(), String::new()];
    while let Some((stream, bytes)) = timeout(LIMIT, session.output.recv()).await.unwrap() {
        out[usize::from(stream - 1)].push_str(&String::from_utf8(bytes).unwrap());
    }
    assert!(out[0].starts_with("hello world\n"), "{out:?}");
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(out[0].lines().any(|found| found == line), "{line} is missing in {}", out[0]);
    }
    assert_eq!((out[1].as_str(), timeout(LIMIT, session.exit).await.unwrap()), ("err\n", Ok(5)));
    let mut session = exec("test -t 0 && echo terminal $(id -u)", true).await.unwrap();
    let mut text = String::new();
    while let Some((_, bytes)) = timeout(LIMIT, session.output.recv()).await.unwrap() {
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    assert!(text.contains("terminal 1000"), "{text}");
    assert_eq!(timeout(LIMIT, session.exit).await.unwrap(), Ok(0));
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_failures_and_the_end_of_a_helper_are_told() {
    let host = Host::with_handlers().await;
    shell_image::import(&host.images, host.dir.path()).await;
    let mut order = shell("pool--v1-c", "echo last words; exit 7");
    order.restart = RestartPolicy::Never;
    let seen = host.run(order, |seen| seen.phase == ReplicaPhase::Stopped).await;
    assert_eq!(seen.containers[0].last_exit.as_ref().unwrap().code, 7);
    assert!(host.log(&seen.name, "look").iter().any(|line| line == "last words"));
    let mut order = shell("pool--v1-d", "");
    Arc::make_mut(&mut order.template).containers[0].command = vec!["/nope".to_owned()];
    let seen = host.run_in_vain(order).await;
    let said = host.runtime().failure(&seen.name).unwrap();
    assert!(said.1.contains("/nope") || said.1.contains("executable"), "{said:?}");
    let order = by_crun("pool--v1-e");
    let name = order.name.clone();
    host.run(order, |seen| seen.is_ready).await;
    let helper = host.helper_pid(&name);
    let child = host.first_process(&name);
    nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGKILL).unwrap();
    host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    host.runtime().remove(&name);
    let deadline = std::time::Instant::now() + LIMIT;
    while std::fs::exists(format!("/proc/{child}")).unwrap() {
        assert!(std::time::Instant::now() < deadline, "process {child} is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    host.finish().await;
}
