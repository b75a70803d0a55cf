//! Sandboxed replicas that are machines. Needs Debian's `qemu-system-x86` and `erofs-utils`.
//!
//! A boot in software takes seconds, so each of them shows many things.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail here")]

use std::{fs, sync::Arc, time::Duration};

use cove_model::{Bytes, ReplicaName, ReplicaPhase, Volume, VolumeKind, VolumeMount};
use cove_runtime::{
    ExecError, ExecRequest, ExecSession, ReplicaSpec, RestartPolicy, Runtime as _, RuntimeError, Sandbox, SandboxTier,
};
use tokio::time::timeout;

use crate::{
    fixture::{Host, LIMIT, container},
    sandbox::{ask, sandboxed},
    shell_image::{self, SHELL_IMAGE},
};

/// A replica of the sample that is a machine, without egress.
pub(crate) fn machine(name: &str) -> ReplicaSpec {
    let sandbox = Sandbox { tier: SandboxTier::Vm, ..Sandbox::default() };
    let mut order = ReplicaSpec { sandbox: Some(sandbox), ..sandboxed(name) };
    Arc::make_mut(&mut order.template).containers[0].resources.memory = Bytes(192 << 20);
    order
}

async fn get(host: &Host, name: &ReplicaName, path: &str) -> String {
    ask(host, name, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await.unwrap()
}

async fn run(host: &Host, name: &ReplicaName, command: &[&str], tty: bool) -> ExecSession {
    let request = ExecRequest {
        replica: name.clone(),
        container: "main".to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        tty,
        is_debug: false,
    };
    timeout(LIMIT, host.runtime().exec(request)).await.unwrap().unwrap()
}

/// What a command writes to its two outputs, and its code.
async fn outcome(mut session: ExecSession) -> ([String; 2], i32) {
    let mut out = [String::new(), String::new()];
    while let Some((stream, bytes)) = timeout(LIMIT, session.output.recv()).await.unwrap() {
        out[usize::from(stream - 1)].push_str(&String::from_utf8_lossy(&bytes));
    }
    (out, timeout(LIMIT, session.exit).await.unwrap().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_reached_frozen_adopted_and_ended() {
    let mut host = Host::with_machines().await;
    let tiers = host.runtime().capabilities().sandbox_tiers;
    assert!(tiers.contains(&SandboxTier::Vm), "no machine boots here: {tiers:?}");
    let order = machine("pool--v1-a");
    let name = order.name.clone();
    host.runtime().prepare(order).unwrap();
    host.runtime().start(&name).unwrap();
    host.wait(&name, |seen| seen.phase == ReplicaPhase::Running).await;
    let early = host.runtime().dial(&name, 80).await.unwrap_err();
    assert_eq!(early.kind(), std::io::ErrorKind::ConnectionRefused, "nothing listens inside yet, though QEMU does");
    host.wait(&name, |seen| seen.is_ready).await;
    assert!(get(&host, &name, "/healthz").await.starts_with("HTTP/1.1 200"));
    let helper = host.helper_pid(&name);
    let children = fs::read_to_string(format!("/proc/{helper}/task/{helper}/children")).unwrap();
    let qemu = children.split_whitespace().next().unwrap().to_owned();
    let status = fs::read_to_string(format!("/proc/{qemu}/status")).unwrap();
    for line in ["Name:\tqemu-system-x86", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.lines().any(|found| found == line), "{line} is missing in {status}");
    }
    host.runtime().freeze(&name).unwrap();
    host.wait(&name, |seen| seen.phase == ReplicaPhase::Frozen).await;
    host.runtime().thaw(&name).unwrap();
    assert!(get(&host, &name, "/healthz").await.starts_with("HTTP/1.1 200"));
    host.forget();
    host.open().await;
    host.wait(&name, |seen| seen.is_ready).await;
    assert!(get(&host, &name, "/log?n=3&text=inside").await.starts_with("HTTP/1.1 200"), "a new driver reaches it too");
    host.wait_log(&name, "main", "3 inside").await;
    host.runtime().stop(&name, Duration::from_secs(20));
    let seen = host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    assert_eq!(seen.containers[0].last_exit.as_ref().unwrap().reason, "Completed", "it was asked to end");
    assert_eq!(host.runtime().dial(&name, 80).await.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    host.finish().await;
    assert!(!fs::exists(format!("/proc/{qemu}/exe")).unwrap(), "QEMU is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_and_commands_run_in_a_machine_with_files_users_and_codes() {
    let host = Host::with_machines().await;
    shell_image::import(&host.images, host.dir.path()).await;
    let look = "cat /proc/version; id -u; echo dir $PWD; echo to stderr >&2; cat /secrets/token; echo y > /shared/file; \
        cat /shared/file; echo done; while ! test -e /shared/end; do sleep 0.1; done; exit 7";
    let mut order = ReplicaSpec { target_port: None, restart: RestartPolicy::Never, ..machine("pool--v1-b") };
    order.secrets = [("token".to_owned(), "s3cret\n".to_owned())].into();
    let template = Arc::make_mut(&mut order.template);
    let main = &mut template.containers[0];
    main.image = SHELL_IMAGE.to_owned();
    main.command = ["sh", "-c", look].map(str::to_owned).to_vec();
    main.env = container("main", &[("GREETING", "hello")]).env;
    let mount = |volume: &str| VolumeMount { volume: volume.to_owned(), path: format!("/{volume}"), sub_path: None };
    main.volume_mounts = vec![mount("shared"), mount("secrets")];
    template.volumes = vec![
        Volume { name: "shared".to_owned(), kind: VolumeKind::EmptyDir },
        Volume { name: "secrets".to_owned(), kind: VolumeKind::Secret(Vec::new()) },
    ];
    let name = order.name.clone();
    host.run(order, |seen| seen.is_ready).await;
    let all = host.wait_log(&name, "main", "done").await;
    let own = fs::read_to_string("/proc/version").unwrap();
    assert!(all[0].starts_with("Linux version") && all[0] != own.trim(), "a kernel of its own: {all:?}");
    for line in ["1000", "dir /srv/dir", "to stderr", "s3cret", "y"] {
        assert!(all.iter().any(|found| found == line), "{line} is missing in {all:#?}");
    }
    let session =
        run(&host, &name, &["sh", "-c", "read line; echo $GREETING $line; echo err >&2; exit 5"], false).await;
    session.stdin.send(b"world\n".to_vec()).await.unwrap();
    assert_eq!(outcome(session).await, (["hello world\n".to_owned(), "err\n".to_owned()], 5));
    let session = run(&host, &name, &["sh", "-c", "test -t 0 && echo terminal $(id -u)"], true).await;
    let ([text, _], code) = outcome(session).await;
    assert!(text.contains("terminal 1000") && code == 0, "{text} {code}");
    let mut session = run(&host, &name, &["cat"], false).await;
    let sent: Vec<u8> = (0..1_000_000_u32).map(|number| b'a' + (number % 23) as u8).collect();
    let (stdin, bytes) = (session.stdin, sent.clone());
    tokio::spawn(async move {
        for chunk in bytes.chunks(10_000) {
            stdin.send(chunk.to_vec()).await.unwrap();
        }
    });
    let mut back = Vec::new();
    while let Some((_, bytes)) = timeout(LIMIT, session.output.recv()).await.unwrap() {
        back.extend(bytes);
    }
    assert!(back == sent, "{} bytes of {}", back.len(), sent.len());
    assert!(matches!(host.runtime().root(&name, "main").await, Err(ExecError::NotRunning { .. })), "not of the host");
    outcome(run(&host, &name, &["sh", "-c", "echo x > /shared/end"], false).await).await;
    let seen = host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    assert_eq!(seen.containers[0].last_exit.as_ref().unwrap().code, 7);
    let mut order = machine("pool--v1-c");
    Arc::make_mut(&mut order.template).containers[0].command = vec!["/nope".to_owned()];
    order.restart = RestartPolicy::Never;
    let name = order.name.clone();
    let seen = host.run(order, |seen| seen.phase == ReplicaPhase::Stopped).await;
    let exit = seen.containers[0].last_exit.as_ref().unwrap();
    assert_eq!(exit.reason, "ContainerCannotRun", "{name}: {exit:?}");
    let mut order = machine("pool--v1-d");
    let template = Arc::make_mut(&mut order.template);
    template.init_containers = vec![container("first", &[])];
    assert!(matches!(host.runtime().prepare(order), Err(RuntimeError::Unsupported(_))));
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_in_a_machine_waits_there() {
    let host = Host::with_machines().await;
    shell_image::import(&host.images, host.dir.path()).await;
    let flood = "line=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; n=0; while [ $n -lt 7 ]; do \
        line=$line$line; n=$((n + 1)); done; n=0; while :; do echo $line; n=$((n + 1)); echo $n > /tmp/count; done";
    let mut order = ReplicaSpec { target_port: None, ..machine("pool--v1-f") };
    let main = &mut Arc::make_mut(&mut order.template).containers[0];
    main.image = SHELL_IMAGE.to_owned();
    main.command = ["sh", "-c", flood].map(str::to_owned).to_vec();
    let name = order.name.clone();
    host.run(order, |seen| seen.is_ready).await;
    // more than may be written at once, so it has waited and gone on
    let most = (4 << 20) + (512 << 10);
    let deadline = std::time::Instant::now() + 4 * LIMIT;
    let logged = || {
        let files = fs::read_dir(host.dir.path().join("logs").join(name.as_str())).unwrap().flatten();
        files.map(|file| file.metadata().unwrap().len()).sum::<u64>()
    };
    while logged() < most {
        let seen = host.runtime().observations().snapshot();
        assert!(std::time::Instant::now() < deadline, "{} bytes of {most}: {seen:?}", logged());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (out, code) = outcome(run(&host, &name, &["sh", "-c", "echo still here"], false).await).await;
    assert_eq!((out[0].as_str(), code), ("still here\n", 0), "commands pass by it");
    let seen = host.wait(&name, |_| true).await;
    assert_eq!(seen.containers[0].restarts, 0, "{seen:?}");
    host.finish().await;
}

const LISTENER_IMAGE: &str = "cove.test/listener:latest";

/// An image whose program notes a number of its own and then listens at port 80.
async fn import_listener(host: &Host) {
    let mut layer = tar::Builder::new(Vec::new());
    let busybox = fs::read("/bin/busybox").expect("busybox is needed: apt-get install -y busybox-static");
    shell_image::add(&mut layer, "bin/busybox", &busybox, 0o755);
    shell_image::add(&mut layer, "www/healthz", b"fine\n", 0o644);
    let program =
        "/bin/busybox cat /proc/sys/kernel/random/uuid > /tmp/begun; exec /bin/busybox httpd -f -p 80 -h /www";
    let config = serde_json::json!({ "Cmd": ["/bin/busybox", "sh", "-c", program], "Env": ["PATH=/bin"] });
    let layer = layer.into_inner().unwrap();
    shell_image::import_layer(&host.images, host.dir.path(), LISTENER_IMAGE, &layer, config).await;
}

fn listener(name: &str) -> ReplicaSpec {
    let mut order = ReplicaSpec { restart: RestartPolicy::Never, ..machine(name) };
    Arc::make_mut(&mut order.template).containers[0].image = LISTENER_IMAGE.to_owned();
    order
}

fn templates(host: &Host) -> Vec<std::path::PathBuf> {
    let starts = fs::read_dir(host.dir.path().join("runtime/templates")).unwrap().flatten();
    starts.flat_map(|start| fs::read_dir(start.path()).unwrap().flatten()).map(|entry| entry.path()).collect()
}

async fn shell(host: &Host, name: &ReplicaName, line: &str) -> String {
    let (out, code) = outcome(run(host, name, &["/bin/busybox", "sh", "-c", line], false).await).await;
    assert_eq!(code, 0, "{line}: {out:?}");
    out[0].clone()
}

/// The first event of this reason, which tells of `replica`.
async fn event(host: &mut Host, reason: &str, replica: &ReplicaName) {
    loop {
        let event = timeout(LIMIT, host.events.recv()).await.expect(reason).expect(reason);
        if event.reason == reason && event.replica.as_deref() == Some(replica.as_str()) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn later_machines_begin_as_copies_of_the_first_and_share_nothing() {
    let mut host = Host::with_machines().await;
    import_listener(&host).await;
    let [one, two, three, four] = ["1", "2", "3", "4"].map(|number| listener(&format!("pool--v1-t{number}")));
    let names = [&one, &two, &three, &four].map(|order| order.name.clone());
    let ahead = two.sandbox.clone().map(|sandbox| Sandbox { is_ahead: true, ..sandbox });
    for order in [one, ReplicaSpec { sandbox: ahead, ..two }] {
        let name = order.name.clone();
        host.runtime().prepare(order).unwrap();
        host.runtime().start(&name).unwrap();
        // the first is the one that is saved; the second is ordered while it boots
        host.wait(&names[0], |seen| seen.phase == ReplicaPhase::Running).await;
    }
    host.wait(&names[0], |seen| seen.is_ready).await;
    let seen = host.wait(&names[1], |seen| seen.is_ready).await;
    assert_eq!(seen.containers[0].restarts, 0, "{seen:?}");
    event(&mut host, "MachineSaved", &names[0]).await;
    event(&mut host, "MachineRestored", &names[1]).await;

    let look =
        "cat /tmp/begun /proc/sys/kernel/hostname; grep -c $(hostname) /etc/hosts; env | grep -c HOSTNAME || true";
    let [first, second] = [shell(&host, &names[0], look).await, shell(&host, &names[1], look).await];
    assert_eq!(first.lines().next(), second.lines().next(), "the program was started once");
    for (said, name) in [(&first, &names[0]), (&second, &names[1])] {
        let rest: Vec<_> = said.lines().skip(1).collect();
        assert_eq!(rest, [name.as_str(), "1", "0"], "{said}");
    }
    let draw = "cat /proc/sys/kernel/random/uuid";
    assert_ne!(shell(&host, &names[0], draw).await, shell(&host, &names[1], draw).await, "random numbers of their own");
    for name in &names[..2] {
        shell(&host, name, "! test -e /tmp/note && hostname > /tmp/note").await;
        assert!(get(&host, name, "/healthz").await.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(shell(&host, &names[1], "cat /tmp/note").await.trim(), names[1].as_str());

    let whole = templates(&host);
    assert_eq!(whole.len(), 1, "{whole:?}");
    fs::create_dir(whole[0].with_extension("gone.part")).unwrap();
    // as after a kill of the server
    host.forget();
    host.open().await;
    assert_eq!(templates(&host), whole, "what nobody will finish is gone");
    host.run(three, |seen| seen.is_ready).await;
    event(&mut host, "MachineRestored", &names[2]).await;
    let third = shell(&host, &names[2], "cat /tmp/begun; ! test -e /tmp/note").await;
    assert_eq!(third.lines().next(), first.lines().next(), "it begins as the others did, with nothing of theirs");

    let state = fs::File::options().write(true).open(whole[0].join("state")).unwrap();
    state.set_len(state.metadata().unwrap().len() / 2).unwrap();
    let seen = host.run(four, |seen| seen.is_ready).await;
    assert_eq!(seen.containers[0].restarts, 0, "it boots instead, which is no restart: {seen:?}");
    event(&mut host, "MachineNotRestored", &names[3]).await;
    assert_ne!(shell(&host, &names[3], "cat /tmp/begun").await, third, "a machine of its own");
    assert_eq!(templates(&host).len(), 0, "what cannot be gone on from is gone");
    assert!(get(&host, &names[1], "/healthz").await.starts_with("HTTP/1.1 200"), "the others go on");
    host.finish().await;
}
