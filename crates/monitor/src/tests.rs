//! Ingest, tail and follow on real files.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
    time::Duration,
};

use cove_model::{EventKind, ResourceId, SystemEvent};
use cove_runtime::logs::{CriLine, ENDED_MARK, LogContainer, LogMeta, LogStream, META_FILE, write_cri_line};
use futures_util::StreamExt;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{ConsoleQuery, Monitor, MonitorConfig, SystemQuery};

const LIMIT: Duration = Duration::from_secs(20);

fn app() -> ResourceId {
    ResourceId::resource("s", "g", "Microsoft.App/containerApps", "Web").unwrap()
}

fn replica_dir(root: &Path, replica: &str) -> std::path::PathBuf {
    let dir = root.join("source").join(replica);
    fs::create_dir_all(&dir).unwrap();
    let meta = LogMeta {
        app: app().to_string(),
        environment: "/subscriptions/s/resourceGroups/g/providers/Microsoft.App/managedEnvironments/env".into(),
        revision: "web--1".into(),
        replica: replica.into(),
        containers: vec![LogContainer { name: "main".into(), image: "image".into(), is_init: false }],
        created_at: Timestamp::UNIX_EPOCH,
    };
    fs::write(dir.join(META_FILE), serde_json::to_vec(&meta).unwrap()).unwrap();
    dir
}

fn append(dir: &Path, text: &str, is_partial: bool) {
    let mut file = OpenOptions::new().create(true).append(true).open(dir.join("main.log")).unwrap();
    let at = Timestamp::from_second(1_800_000_000).unwrap();
    let line = CriLine { at, stream: LogStream::Stdout, is_partial, text: text.as_bytes() };
    let mut bytes = Vec::new();
    write_cri_line(&line, &mut bytes);
    file.write_all(&bytes).unwrap();
}

struct Server {
    monitor: Monitor,
    shutdown: CancellationToken,
    ended: tokio::task::JoinHandle<Result<(), crate::MonitorError>>,
}

fn start(root: &Path) -> Server {
    let config = MonitorConfig { dir: root.join("days"), source_dir: root.join("source"), retention_days: 30000 };
    let (monitor, service) = Monitor::open(config).unwrap();
    let shutdown = CancellationToken::new();
    let ended = tokio::spawn(service.run(shutdown.clone()));
    Server { monitor, shutdown, ended }
}

async fn lines(monitor: &Monitor, count: usize) -> Vec<String> {
    let query = ConsoleQuery { app: app().to_string(), tail: 100_000, follow: true, ..ConsoleQuery::default() };
    let rows = monitor.console(&query).take(count).map(|row| row.unwrap().log).collect::<Vec<_>>();
    tokio::time::timeout(LIMIT, rows).await.expect("the lines arrive")
}

#[tokio::test]
async fn lines_are_copied_once_over_restarts_rotation_and_the_end() {
    let root = tempfile::tempdir().unwrap();
    let dir = replica_dir(root.path(), "web--1-a");
    for n in 0..1000 {
        append(&dir, &format!("line {n}"), false);
    }
    let server = start(root.path());
    assert_eq!(lines(&server.monitor, 1000).await[999], "line 999");
    server.shutdown.cancel();
    server.ended.await.unwrap().unwrap();
    drop(server.monitor);

    // a crash: the kept place is lost, everything is read again
    fs::remove_file(dir.join(".ingested.json")).unwrap();
    fs::rename(dir.join("main.log"), dir.join("main.log.1")).unwrap();
    append(&dir, "a long ", true);
    append(&dir, "line", false);
    // another one was being removed, or was never finished
    let rest = root.path().join("source/web--1-rest");
    fs::create_dir(&rest).unwrap();
    append(&rest, "of nobody", false);
    fs::write(rest.join(ENDED_MARK), "").unwrap();
    let server = start(root.path());
    let all = lines(&server.monitor, 1001).await;
    assert_eq!(all[1000], "a long line");
    append(&dir, "last words", false);
    fs::write(dir.join(ENDED_MARK), "").unwrap();
    let all = lines(&server.monitor, 1002).await;
    let expected: Vec<String> =
        (0..1000).map(|n| format!("line {n}")).chain(["a long line".to_owned(), "last words".to_owned()]).collect();
    assert_eq!(all, expected);
    let gone = async {
        while dir.exists() || rest.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("an ended replica's files are deleted once they are copied");
    server.shutdown.cancel();
    server.ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_was_written_before_it_is_asked_for_is_in_the_answer() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path());
    let query = ConsoleQuery { app: app().to_string(), tail: 1, ..ConsoleQuery::default() };
    for n in 0..200 {
        // the last words of a replica that has just ended: a folder of its own, of which the server does not know yet
        append(&replica_dir(root.path(), &format!("web--1-{}", n / 10)), &format!("line {n}"), false);
        let last = server.monitor.console(&query).map(|row| row.unwrap().log).collect::<Vec<_>>();
        assert_eq!(tokio::time::timeout(LIMIT, last).await.expect("it is answered"), [format!("line {n}")]);
    }
    // one that was never finished was removed by the driver, and is made under the same name
    let dir = replica_dir(root.path(), "web--1-again");
    assert_eq!(server.monitor.console(&query).count().await, 1, "the folder is known");
    fs::remove_dir_all(&dir).unwrap();
    let dir = replica_dir(root.path(), "web--1-again");
    assert_eq!(server.monitor.console(&query).count().await, 1, "so is the new one");
    append(&dir, "again", false);
    let last = server.monitor.console(&query).map(|row| row.unwrap().log).collect::<Vec<_>>();
    assert_eq!(tokio::time::timeout(LIMIT, last).await.expect("it is answered"), ["again"]);
    server.shutdown.cancel();
    server.ended.await.unwrap().unwrap();
    let last = server.monitor.console(&query).map(|row| row.unwrap().log).collect::<Vec<_>>();
    assert_eq!(tokio::time::timeout(LIMIT, last).await.expect("it is answered when nobody copies"), ["again"]);
}

#[tokio::test]
async fn a_replica_that_writes_much_does_not_keep_the_others_waiting() {
    let root = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    for n in 0..20_000 {
        let at = Timestamp::from_second(1_800_000_000 + n).unwrap();
        write_cri_line(&CriLine { at, stream: LogStream::Stdout, is_partial: false, text: b"much" }, &mut bytes);
    }
    fs::write(replica_dir(root.path(), "web--1-a").join("main.log"), bytes).unwrap();
    append(&replica_dir(root.path(), "web--1-b"), "little", false);
    let server = start(root.path());
    assert_eq!(lines(&server.monitor, 20_001).await.len(), 20_001);
    server.shutdown.cancel();
    server.ended.await.unwrap().unwrap();
    let days = &server.monitor.days;
    let db = days.reader(days.list()[0]).unwrap().unwrap();
    let count: i64 = db
        .query_row(
            "SELECT count(*) FROM console WHERE seq < (SELECT seq FROM console WHERE log = 'little')",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(count, 2000, "one batch of the other one was before it");
}

#[tokio::test]
async fn of_a_session_s_output_so_much_is_kept_and_no_more() {
    keeps_of_a_session(&"x".repeat(10_000), 2000, 1600..1680).await;
}

#[tokio::test]
async fn an_empty_line_of_a_session_weighs_what_it_takes() {
    keeps_of_a_session("", 60_000, 54_000..60_000).await;
}

/// Writes `count` times `line`; of these as many as `expected` says are kept.
async fn keeps_of_a_session(line: &str, count: usize, expected: std::ops::Range<usize>) {
    let root = tempfile::tempdir().unwrap();
    let dir = replica_dir(root.path(), "pool--1-a");
    let meta = fs::read_to_string(dir.join(META_FILE)).unwrap();
    let pool = "/subscriptions/s/resourceGroups/g/providers/Microsoft.App/sessionPools/pool";
    fs::write(dir.join(META_FILE), meta.replace(app().as_str(), pool)).unwrap();
    let mut bytes = Vec::new();
    let at = Timestamp::from_second(1_800_000_000).unwrap();
    for _ in 0..count {
        write_cri_line(
            &CriLine { at, stream: LogStream::Stdout, is_partial: false, text: line.as_bytes() },
            &mut bytes,
        );
    }
    fs::write(dir.join("main.log"), &bytes).unwrap();
    let server = start(root.path());
    let query = ConsoleQuery { app: pool.to_owned(), tail: 100_000, follow: true, ..ConsoleQuery::default() };
    let mut rows = server.monitor.console(&query);
    let mut kept = 0;
    let last = async {
        loop {
            match rows.next().await.unwrap().unwrap().log {
                text if text == line => kept += 1,
                text => return text,
            }
        }
    };
    let last = tokio::time::timeout(LIMIT, last).await.expect("the end of what is kept");
    assert_eq!(last, "cove: what it printed beyond 16 MiB is not kept");
    assert!(expected.contains(&kept), "{kept}");
    // what is not kept is not read again either
    fs::write(dir.join(ENDED_MARK), "").unwrap();
    let gone = async {
        while dir.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("its files are deleted");
    server.shutdown.cancel();
    server.ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_follower_sees_the_tail_and_then_what_arrives() {
    let root = tempfile::tempdir().unwrap();
    let dir = replica_dir(root.path(), "web--1-b");
    for n in 0..50 {
        append(&dir, &format!("{n}"), false);
    }
    let server = start(root.path());
    lines(&server.monitor, 50).await;
    let query = ConsoleQuery {
        app: app().to_string().to_uppercase(),
        container: Some("main".into()),
        tail: 3,
        follow: true,
        ..ConsoleQuery::default()
    };
    let mut rows = server.monitor.console(&query);
    let mut seen = Vec::new();
    while seen.len() < 5 {
        if seen.len() == 3 {
            append(&dir, "new 1", false);
            append(&dir, "new 2", false);
        }
        seen.push(tokio::time::timeout(LIMIT, rows.next()).await.unwrap().unwrap().unwrap().log);
    }
    assert_eq!(seen, ["47", "48", "49", "new 1", "new 2"]);
    server.shutdown.cancel();
    server.ended.await.unwrap().unwrap();
}

fn event(reason: &str) -> SystemEvent {
    SystemEvent {
        at: Timestamp::now(),
        kind: EventKind::Normal,
        reason: reason.into(),
        message: "m".into(),
        environment: None,
        app: Some(app().to_string()),
        revision: None,
        replica: None,
        container: None,
        source: "test".into(),
    }
}

#[tokio::test]
async fn system_events_are_kept_and_followed() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path());
    server.monitor.events().send(event("A")).await.unwrap();
    let query = SystemQuery { app: Some(app().to_string()), tail: 10, follow: true, ..SystemQuery::default() };
    let mut rows = server.monitor.system(&query);
    assert_eq!(tokio::time::timeout(LIMIT, rows.next()).await.unwrap().unwrap().unwrap().reason, "A");
    server.monitor.events().send(event("B")).await.unwrap();
    assert_eq!(tokio::time::timeout(LIMIT, rows.next()).await.unwrap().unwrap().unwrap().reason, "B");
    server.shutdown.cancel();
    server.ended.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_caught_up_has_told_every_event() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path());
    let mut heard = server.monitor.listen();
    for number in 0..200 {
        server.monitor.events().send(event(&number.to_string())).await.unwrap();
        tokio::time::timeout(LIMIT, async {
            while !server.monitor.is_caught_up() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        assert_eq!(heard.try_recv().unwrap().reason, number.to_string());
    }
    server.shutdown.cancel();
    server.ended.await.unwrap().unwrap();
}
