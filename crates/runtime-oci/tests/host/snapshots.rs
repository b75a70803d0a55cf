//! What a sandboxed replica wrote, as others find it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail here")]

use std::sync::Arc;

use cove_model::{ReplicaPhase, SnapshotId};
use cove_runtime::{ExecRequest, ReplicaSpec, Runtime as _, Sandbox, SnapshotFailure, SnapshotOrder};
use tokio::time::timeout;

use crate::{
    fixture::{Host, LIMIT, container},
    sandbox::sandboxed,
    shell_image,
};

/// A shell that runs as root inside, which may write where it likes.
const IMAGE: &str = "cove.test/root-shell:latest";

async fn import(host: &Host) {
    let config = serde_json::json!({ "WorkingDir": "/srv/dir", "Cmd": ["sh"], "Env": ["PATH=/bin"] });
    shell_image::import_layer(&host.images, host.dir.path(), IMAGE, &shell_image::layer(), config).await;
}

fn id(digit: &str) -> SnapshotId {
    SnapshotId::new(&digit.repeat(32)).unwrap()
}

fn order(into: SnapshotId) -> SnapshotOrder {
    SnapshotOrder { into, bytes_max: 64 << 20, is_for_good: false, memory: false }
}

/// A replica that sleeps, with files of its own from a snapshot.
fn sleeper(name: &str, snapshot: Option<SnapshotId>) -> ReplicaSpec {
    let mut shell = container("main", &[]);
    shell.image = IMAGE.to_owned();
    shell.command = ["sh", "-c", "exec sleep 1000"].map(str::to_owned).to_vec();
    let sandbox = Some(Sandbox { snapshot, ..Sandbox::default() });
    let mut spec = ReplicaSpec { target_port: None, sandbox, ..sandboxed(name) };
    Arc::make_mut(&mut spec.template).containers = vec![shell];
    spec
}

/// What a command in a replica says.
async fn run(host: &Host, name: &str, words: &str) -> String {
    let request = ExecRequest {
        replica: cove_model::ReplicaName::new(name).unwrap(),
        container: "main".to_owned(),
        command: ["sh", "-c", words].map(str::to_owned).to_vec(),
        tty: false,
        is_debug: false,
    };
    let mut session = timeout(LIMIT, host.runtime().exec(request)).await.unwrap().unwrap();
    let mut text = String::new();
    while let Some((_, bytes)) = timeout(LIMIT, session.output.recv()).await.unwrap() {
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_from_one_to_others_and_on_to_theirs() {
    let mut host = Host::new().await;
    import(&host).await;
    let source = host.run(sleeper("pool--v1-a", None), |seen| seen.is_ready).await.name;
    assert_eq!(run(&host, "pool--v1-a", "echo first > own; echo x > gone; ls").await, "gone\nown\n");
    let facts = timeout(LIMIT, host.runtime().snapshot(&source, order(id("a")))).await.unwrap().unwrap();
    assert!(facts.bytes >= 8 && facts.files >= 4, "{facts:?}");
    host.wait(&source, |seen| seen.is_ready).await;
    assert_eq!(run(&host, "pool--v1-a", "echo later > own; cat own").await, "later\n", "the source goes on");

    for name in ["pool--v1-b", "pool--v1-c"] {
        host.run(sleeper(name, Some(id("a"))), |seen| seen.is_ready).await;
        assert_eq!(run(&host, name, "cat own; ls -ln own; echo mine > own; cat own").await.lines().count(), 3);
    }
    assert_eq!(run(&host, "pool--v1-b", "cat own gone").await, "mine\nx\n");
    let owner = run(&host, "pool--v1-c", "ls -ln gone").await;
    assert!(owner.contains(" 0 0 "), "{owner}");

    // the fork's own snapshot has all of both, also for a driver that was opened anew
    run(&host, "pool--v1-b", "> gone; echo second > more").await;
    host.forget();
    host.open().await;
    let fork = host.wait(&cove_model::ReplicaName::new("pool--v1-b").unwrap(), |seen| seen.is_ready).await.name;
    assert_eq!(host.runtime().snapshots().into_keys().collect::<Vec<_>>(), [id("a")]);
    timeout(LIMIT, host.runtime().snapshot(&fork, order(id("b")))).await.unwrap().unwrap();
    host.run(sleeper("pool--v1-d", Some(id("b"))), |seen| seen.is_ready).await;
    assert_eq!(run(&host, "pool--v1-d", "cat own gone more").await, "mine\nsecond\n");

    let small = SnapshotOrder { bytes_max: 1, ..order(id("c")) };
    let refused = timeout(LIMIT, host.runtime().snapshot(&fork, small)).await.unwrap();
    assert!(matches!(refused, Err(SnapshotFailure::NoRoom(_))), "{refused:?}");
    assert_eq!(run(&host, "pool--v1-b", "cat more").await, "second\n", "it goes on after a refusal");
    let left: Vec<_> = std::fs::read_dir(host.dir.path().join("snapshots")).unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_one_stays_frozen_and_halves_are_cleared_away() {
    let mut host = Host::new().await;
    import(&host).await;
    let name = host.run(sleeper("pool--v1-e", None), |seen| seen.is_ready).await.name;
    run(&host, "pool--v1-e", "echo kept > own").await;
    host.runtime().freeze(&name).unwrap();
    host.wait(&name, |seen| seen.phase == ReplicaPhase::Frozen).await;
    timeout(LIMIT, host.runtime().snapshot(&name, order(id("a")))).await.unwrap().unwrap();
    host.wait(&name, |seen| seen.phase == ReplicaPhase::Frozen).await;
    host.runtime().thaw(&name).unwrap();
    host.wait(&name, |seen| seen.is_ready).await;
    assert_eq!(run(&host, "pool--v1-e", "cat own").await, "kept\n");

    let dir = host.dir.path().join("snapshots");
    std::fs::create_dir_all(dir.join(format!("{}.part/roots/main", id("b")))).unwrap();
    std::fs::create_dir_all(dir.join(id("c").as_str())).unwrap();
    host.forget();
    host.open().await;
    assert_eq!(host.runtime().snapshots().into_keys().collect::<Vec<_>>(), [id("a")]);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    host.runtime().remove_snapshot(&id("a")).await.unwrap();
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    host.finish().await;
}
