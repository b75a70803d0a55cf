//! Volumes on storages, parts of volumes, and what reaches into a container from outside.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail here")]

use std::{
    collections::BTreeMap,
    fs,
    os::{fd::AsRawFd as _, unix::fs::symlink},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use cove_model::{
    EnvironmentStorage, ReplicaObservation, ResourceId, Share, StorageVolume, Volume, VolumeKind, VolumeMount,
};
use cove_runtime::{ExecError, ExecRequest, ReplicaSpec, Runtime as _, StorageBinding};
use tokio::time::timeout;

use crate::{
    fixture::{Host, LIMIT, container, spec},
    shell_image::{self, SHELL_IMAGE},
};

fn storage(share: &str, is_read_only: bool) -> StorageBinding {
    let environment = ResourceId::resource("s", "rg", "Microsoft.App/managedEnvironments", "env").unwrap();
    StorageBinding {
        storage: EnvironmentStorage {
            id: environment.child("storages", "files").unwrap(),
            share: Share::AzureFile { account: "acct".to_owned(), share: share.to_owned() },
            is_read_only,
        },
        account_key: None,
    }
}

/// A replica of a shell that sleeps, with the volume `data` on a storage at `/data` (and parts of it elsewhere).
fn order(name: &str, binding: Option<StorageBinding>, options: &str, mounts: &[(&str, Option<&str>)]) -> ReplicaSpec {
    let mut shell = container("main", &[]);
    shell.image = SHELL_IMAGE.to_owned();
    shell.command = ["sleep", "1000"].map(str::to_owned).to_vec();
    let mount = |(path, part): &(&str, Option<&str>)| VolumeMount {
        volume: "data".to_owned(),
        path: (*path).to_owned(),
        sub_path: part.map(str::to_owned),
    };
    shell.volume_mounts = mounts.iter().map(mount).collect();
    let mut order = spec(name, vec![shell]);
    order.target_port = None;
    let kind =
        VolumeKind::Storage(StorageVolume { storage: "Files".to_owned(), is_nfs: false, options: options.to_owned() });
    Arc::make_mut(&mut order.template).volumes = vec![Volume { name: "data".to_owned(), kind }];
    order.storages = binding.map(|binding| ("files".to_owned(), binding)).into_iter().collect::<BTreeMap<_, _>>();
    order
}

/// Standard output, standard error and exit code of a script.
async fn sh(host: &Host, seen: &ReplicaObservation, script: &str) -> (String, i32) {
    run(host, seen, &["sh", "-c", script], false).await.unwrap()
}

async fn run(
    host: &Host,
    seen: &ReplicaObservation,
    command: &[&str],
    is_debug: bool,
) -> Result<(String, i32), ExecError> {
    let request = ExecRequest {
        replica: seen.name.clone(),
        container: "main".to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        tty: false,
        is_debug,
    };
    let mut session = timeout(LIMIT, host.runtime().exec(request)).await.unwrap()?;
    let mut out = String::new();
    while let Some((_, bytes)) = timeout(LIMIT, session.output.recv()).await.unwrap() {
        out.push_str(&String::from_utf8_lossy(&bytes));
    }
    Ok((out, timeout(LIMIT, session.exit).await.unwrap().unwrap()))
}

fn share_dir(host: &Host, share: &str) -> PathBuf {
    host.dir.path().join("shares/acct").join(share)
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_a_storage_that_outlives_them() {
    let host = Host::new().await;
    shell_image::import(&host.images, host.dir.path()).await;
    let mounts = [("/data", None), ("/part", Some("a/b"))];
    let one = host.run(order("web--v1-a", Some(storage("data", false)), "", &mounts), |seen| seen.is_ready).await;
    assert_eq!(
        sh(&host, &one, "echo kept > /data/file; echo inner > /part/file; cat /data/a/b/file").await.0,
        "inner\n"
    );
    let two = host.run(order("web--v1-b", Some(storage("data", false)), "", &mounts), |seen| seen.is_ready).await;
    assert_eq!(sh(&host, &two, "cat /data/file /part/file").await, ("kept\ninner\n".to_owned(), 0));
    for seen in [one, two] {
        host.runtime().stop(&seen.name, Duration::ZERO);
        host.wait(&seen.name, |seen| seen.phase == cove_model::ReplicaPhase::Stopped).await;
        host.runtime().remove(&seen.name);
    }
    assert_eq!(fs::read_to_string(share_dir(&host, "data").join("file")).unwrap(), "kept\n");
    let three = host.run(order("web--v1-c", Some(storage("data", true)), "", &mounts), |seen| seen.is_ready).await;
    let (text, code) = sh(&host, &three, "cat /data/file; echo no > /data/file || echo no > /part/file").await;
    assert!(text.contains("kept\n") && text.contains("Read-only") && code != 0, "{code} {text}");
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_volume_never_leads_out_of_it() {
    let host = Host::new().await;
    shell_image::import(&host.images, host.dir.path()).await;
    let share = share_dir(&host, "data");
    fs::create_dir_all(&share).unwrap();
    let outside = host.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, share.join("away")).unwrap();
    symlink("/", share.join("up")).unwrap();
    let binding = || Some(storage("data", false));
    let seen = host.run_in_vain(order("web--v1-a", binding(), "", &[("/part", Some("away"))])).await;
    let (_, message) = host.runtime().failure(&seen.name).unwrap();
    assert!(message.contains("`away` of volume `data`"), "{message}");
    let mut host = host;
    host.run(order("web--v1-b", binding(), "uid=7,nobrl", &[("/part", Some("up/new"))]), |seen| seen.is_ready).await;
    assert!(share.join("new").is_dir() && share.join("up").is_symlink() && !outside.join("new").exists());
    let mut told = Vec::new();
    while let Ok(event) = host.events.try_recv() {
        told.push((event.reason, event.message));
    }
    assert!(told.iter().any(|(reason, text)| reason == "StorageOptionIgnored" && text.contains("'nobrl'")), "{told:?}");
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_that_is_not_there_fails_the_replica_in_words() {
    let host = Host::new().await;
    shell_image::import(&host.images, host.dir.path()).await;
    let check = async |name: &str, binding, mounts: &[(&str, Option<&str>)], words: &str| {
        let seen = host.run_in_vain(order(name, binding, "", mounts)).await;
        let (reason, message) = host.runtime().failure(&seen.name).unwrap();
        assert!(message.contains(words), "{reason}: {message}");
        reason
    };
    assert_eq!(check("web--v1-a", None, &[("/data", None)], "`env storage set`").await, "StorageNotFound");
    let bad = Some(storage("../up", false));
    assert_eq!(check("web--v1-b", bad, &[("/data", None)], "names of share").await, "StorageMountFailed");
    check("web--v1-c", Some(storage("data", true)), &[("/data", Some("none"))], "read-only and has no `none`").await;
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_mount_is_made_once_and_taken_away() {
    use cove_runtime_oci::{ShareBinding, ShareTarget};
    let mut host = Host::new().await;
    shell_image::import(&host.images, host.dir.path()).await;
    host.forget();
    let target = |kind: &str| ShareTarget::Mount {
        source: "none".to_owned(),
        kind: kind.to_owned(),
        options: "size=1m".to_owned(),
    };
    let binding = |share: &str, kind: &str| ShareBinding {
        owner: "acct".to_owned(),
        share: share.to_owned(),
        target: target(kind),
    };
    host.bindings = vec![binding("data", "tmpfs"), binding("broken", "nosuchfs")];
    host.open().await;
    let one = host.run(order("web--v1-a", Some(storage("data", false)), "", &[("/data", None)]), |s| s.is_ready).await;
    assert_eq!(sh(&host, &one, "echo kept > /data/file").await.1, 0);
    let two = host.run(order("web--v1-b", Some(storage("data", false)), "", &[("/data", None)]), |s| s.is_ready).await;
    assert_eq!(sh(&host, &two, "cat /data/file").await.0, "kept\n");
    let seen = host.run_in_vain(order("web--v1-c", Some(storage("broken", false)), "", &[("/data", None)])).await;
    let (_, message) = host.runtime().failure(&seen.name).unwrap();
    assert!(message.contains("failed to mount share `broken`") && message.contains("nosuchfs"), "{message}");
    host.shares().unmount_all().unwrap();
    assert!(!host.dir.path().join("mounts").exists());
    assert_eq!(sh(&host, &two, "cat /data/file").await.0, "kept\n", "replicas keep what they mounted");
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_is_brought_along_and_the_root_is_seen() {
    let host = Host::new().await;
    let order = spec("web--v1-a", vec![container("main", &[])]);
    let seen = host.run(order, |seen| seen.is_ready).await;
    let missing = run(&host, &seen, &["sh", "-c", "true"], false).await;
    assert!(matches!(missing, Err(ExecError::Failed(_))), "the sample image has no shell: {missing:?}");
    match run(&host, &seen, &["sh", "-c", "id -u; hostname; echo made > /tmp/by-debug; exit 9"], true).await {
        Ok((text, code)) => {
            assert_eq!((text.as_str(), code), ("0\nweb--v1-a\n", 9));
            let root = host.runtime().root(&seen.name, "main").await.unwrap();
            let file = format!("/proc/self/fd/{}/tmp/by-debug", root.as_raw_fd());
            assert_eq!(fs::read_to_string(file).unwrap(), "made\n");
        }
        // a host without a static shell says what to install
        Err(ExecError::NotOnThisHost(text)) => assert!(text.contains("busybox-static")),
        Err(error) => panic!("{error}"),
    }
    let none = host.runtime().root(&seen.name, "other").await;
    assert!(matches!(none, Err(ExecError::NotRunning { .. })), "{none:?}");
    host.finish().await;
}
