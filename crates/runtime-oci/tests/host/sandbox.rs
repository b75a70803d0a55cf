//! Sandboxed replicas as they are used: reached from inside, frozen, thawed, adopted, and refused where something lacks.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail here")]

use std::{fs, sync::Arc, time::Duration};

use cove_model::{ReplicaName, ReplicaPhase, Volume, VolumeKind, VolumeMount};
use cove_runtime::{
    ExecRequest, ReplicaSpec, Runtime as _, RuntimeError, Sandbox, SandboxEgress, SandboxTier,
    logs::{ENDED_MARK, META_FILE},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    fixture::{Host, LIMIT, container, spec},
    shell_image::{self, SHELL_IMAGE},
};

/// A sandboxed replica of the sample, without egress.
pub(crate) fn sandboxed(name: &str) -> ReplicaSpec {
    ReplicaSpec { sandbox: Some(Sandbox::default()), ..spec(name, vec![container("main", &[])]) }
}

/// Asks a replica from inside its network namespace.
pub(crate) async fn ask(host: &Host, name: &ReplicaName, request: &str) -> std::io::Result<String> {
    let stream = host.runtime().dial(name, 80).await?;
    let mut stream = TcpStream::from_std(stream)?;
    stream.write_all(request.as_bytes()).await?;
    let mut text = Vec::new();
    // what ends without a farewell has still said what it said
    let _ = timeout(LIMIT, stream.read_to_end(&mut text)).await;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

async fn get(host: &Host, name: &ReplicaName, path: &str) -> String {
    ask(host, name, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandboxed_replica_is_reached_from_inside_frozen_and_adopted() {
    let mut host = Host::new().await;
    let order = sandboxed("pool--v1-a");
    let name = order.name.clone();
    let seen = host.run(order, |seen| seen.is_ready).await;
    assert_eq!(seen.address, None, "it has no network");
    assert!(get(&host, &name, "/healthz").await.starts_with("HTTP/1.1 200"));
    host.runtime().freeze(&name).unwrap();
    host.wait(&name, |seen| seen.phase == ReplicaPhase::Frozen).await;
    // a frozen one takes the connection and answers when it is thawed
    let stream = host.runtime().dial(&name, 80).await.unwrap();
    drop(stream);
    host.runtime().thaw(&name).unwrap();
    assert!(get(&host, &name, "/healthz").await.starts_with("HTTP/1.1 200"));
    host.wait(&name, |seen| seen.is_ready).await;
    host.forget();
    // the last driver was killed while the logs of one were being removed, and while it made another one
    let logs = host.dir.path().join("logs");
    for (folder, file) in [("pool--v1-gone", "main.log.1"), ("pool--v1-made", META_FILE)] {
        std::fs::create_dir(logs.join(folder)).unwrap();
        std::fs::write(logs.join(folder).join(file), "").unwrap();
    }
    host.open().await;
    assert!(logs.join("pool--v1-gone").join(ENDED_MARK).exists(), "whoever reads logs may remove these");
    assert!(!logs.join("pool--v1-made").exists(), "it may be made again, with logs that nobody removes");
    assert!(!logs.join(name.as_str()).join(ENDED_MARK).exists());
    host.wait(&name, |seen| seen.is_ready).await;
    assert!(get(&host, &name, "/healthz").await.starts_with("HTTP/1.1 200"), "a new driver reaches it too");
    assert_eq!(host.runtime().dial(&name, 81).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    host.runtime().stop(&name, Duration::from_secs(20));
    host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    assert_eq!(host.runtime().dial(&name, 80).await.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_of_any_user_run_with_files_of_their_own() {
    let host = Host::new().await;
    shell_image::import(&host.images, host.dir.path()).await;
    let look = "cat /proc/self/uid_map; id -u; id -G; echo dir $PWD; echo x > own && echo the directory is writable; \
        echo y > /shared/file && cat /shared/file; (echo z > /etc/hosts) 2>/dev/null || echo hosts are read-only; \
        echo to stderr > /dev/stderr; cat /secrets/token; ls -ln /bin/sh; cat /proc/self/status; echo done; exec sleep 1000";
    let mut shell = container("look", &[]);
    shell.image = SHELL_IMAGE.to_owned();
    shell.command = ["sh", "-c", look].map(str::to_owned).to_vec();
    let mount = |volume: &str| VolumeMount { volume: volume.to_owned(), path: format!("/{volume}"), sub_path: None };
    shell.volume_mounts = vec![mount("shared"), mount("secrets")];
    let mut order = ReplicaSpec { target_port: None, ..sandboxed("pool--v1-b") };
    order.secrets = [("token".to_owned(), "s3cret\n".to_owned())].into();
    let template = Arc::make_mut(&mut order.template);
    template.containers = vec![shell];
    template.volumes = vec![
        Volume { name: "shared".to_owned(), kind: VolumeKind::EmptyDir },
        Volume { name: "secrets".to_owned(), kind: VolumeKind::Secret(Vec::new()) },
    ];
    let seen = host.run(order, |seen| seen.is_ready).await;
    let all = host.wait_log(&seen.name, "look", "done").await;
    for line in ["1000", "dir /srv/dir", "y", "hosts are read-only", "to stderr", "s3cret"] {
        assert!(all.iter().any(|found| found == line), "{line} is missing in {all:#?}");
    }
    let status =
        |name: &str| all.iter().find(|line| line.starts_with(name)).unwrap().split_whitespace().nth(1).unwrap();
    assert_eq!((status("NoNewPrivs:"), status("Seccomp:"), status("CapBnd:")), ("1", "2", "0000000000000000"));
    assert!(all.iter().any(|line| line.starts_with("-rwxr-xr-x 1 0 0 ")), "the image's files are root's: {all:#?}");
    let request = |command: &[&str], is_debug| ExecRequest {
        replica: seen.name.clone(),
        container: "look".to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        tty: false,
        is_debug,
    };
    let look = "cat /proc/self/status /proc/self/uid_map; cat /shared/file; id -u";
    let exec = host.runtime().exec(request(&["sh", "-c", look], false));
    let mut session = timeout(LIMIT, exec).await.unwrap().unwrap();
    let mut text = String::new();
    while let Some((_, bytes)) = timeout(LIMIT, session.output.recv()).await.unwrap() {
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "y"] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in {text}");
    }
    let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let is_shifted = |line: &Vec<&str>| matches!(line[..], ["0", first, "65536"] if first != "0");
    assert!(words.iter().any(is_shifted), "a command is in the sandbox's own user namespace: {text}");
    assert!(words.iter().any(|line| line[..] == ["1000"]), "as the image's user: {text}");
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_this_host_lacks_is_refused() {
    let host = Host::new().await;
    assert_eq!(host.runtime().capabilities().sandbox_tiers, [SandboxTier::Hardened]);
    let with = |sandbox: Sandbox| ReplicaSpec { sandbox: Some(sandbox), ..sandboxed("pool--v1-c") };
    for tier in [SandboxTier::Vm, SandboxTier::Handler("runsc".to_owned())] {
        let refused = host.runtime().prepare(with(Sandbox { tier: tier.clone(), ..Sandbox::default() }));
        assert!(matches!(refused, Err(RuntimeError::Unsupported(_))), "{tier:?}: {refused:?}");
    }
    let mut order = sandboxed("pool--v1-d");
    let kind = VolumeKind::Storage(cove_model::StorageVolume {
        storage: "files".to_owned(),
        is_nfs: false,
        options: String::new(),
    });
    Arc::make_mut(&mut order.template).volumes = vec![Volume { name: "share".to_owned(), kind }];
    assert!(matches!(host.runtime().prepare(order), Err(RuntimeError::Unsupported(_))));
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_sandboxed_replica_is_left_and_ids_are_its_own() {
    let host = Host::new().await;
    let names = ["pool--v1-e", "pool--v1-f"].map(|name| sandboxed(name).name);
    let mut first_ids = Vec::new();
    for name in &names {
        let order = if *name == names[0] {
            sandboxed(name.as_str())
        } else {
            let egress = SandboxEgress::Internet;
            ReplicaSpec { sandbox: Some(Sandbox { egress, ..Sandbox::default() }), ..sandboxed(name.as_str()) }
        };
        host.run(order, |seen| seen.is_ready).await;
        assert!(get(&host, name, "/healthz").await.starts_with("HTTP/1.1 200"));
        let child = host.first_process(name);
        let map = fs::read_to_string(format!("/proc/{child}/uid_map")).unwrap();
        let words: Vec<u32> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert_eq!((words[0], words[2]), (0, 65536));
        first_ids.push((words[1], child));
    }
    assert_ne!(first_ids[0].0, first_ids[1].0);
    for name in &names {
        host.runtime().stop(name, Duration::from_secs(20));
        host.wait(name, |seen| seen.phase == ReplicaPhase::Stopped).await;
        host.runtime().remove(name);
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("pool--v1"), "{mounts}");
    for (_, child) in &first_ids {
        assert!(!fs::exists(format!("/proc/{child}")).unwrap(), "process {child} is still there");
    }
    host.finish().await;
}
