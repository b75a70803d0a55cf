//! Rows are written, read back as they were, followed, and forgotten when there are too many.

use std::path::Path;

use cove_traffic::{AccessRecord, Ending};
use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{HttpLog, HttpLogConfig, HttpQuery, segments::Segments};
use crate::{MonitorError, query::Files};

const LIMIT: std::time::Duration = std::time::Duration::from_secs(20);
const APP: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.App/containerApps/Web";

pub(super) fn row(status: u16) -> AccessRecord {
    AccessRecord {
        started_at: Timestamp::from_second(1_800_000_000).unwrap(),
        environment: "/subscriptions/s/resourceGroups/g/providers/Microsoft.App/managedEnvironments/env".into(),
        app: APP.into(),
        revision: "web--1".into(),
        replica: "web--1-a".into(),
        upstream: Some("10.0.0.7:80".parse().unwrap()),
        attempts: 1,
        method: "GET".into(),
        authority: "web.env.localhost".into(),
        path: "/".into(),
        protocol: "HTTP/1.1".into(),
        user_agent: "curl/8".into(),
        forwarded_for: "127.0.0.1".into(),
        client: "127.0.0.1".parse().unwrap(),
        connection: 7,
        status,
        reason: String::new(),
        ending: Ending::Complete,
        is_upgraded: false,
        received_bytes: 3,
        sent_bytes: 5,
        duration_us: 12_345,
        wait_us: Some(100),
        head_us: None,
        request_id: "id".into(),
        trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
        left_out: 2,
    }
}

struct Server {
    log: HttpLog,
    rows: mpsc::Sender<AccessRecord>,
    shutdown: CancellationToken,
    ended: JoinHandle<Result<(), MonitorError>>,
}

fn start(dir: &Path, disk_max_bytes: u64) -> Server {
    let config = HttpLogConfig { dir: dir.to_owned(), disk_max_bytes, retention_days: 30_000 };
    let (log, service) = HttpLog::open(config).unwrap();
    let (rows, received) = mpsc::channel(10_000);
    let shutdown = CancellationToken::new();
    let ended = tokio::spawn(service.run(received, shutdown.clone()));
    Server { log, rows, shutdown, ended }
}

impl Server {
    async fn stop(self) {
        self.shutdown.cancel();
        self.ended.await.unwrap().unwrap();
    }

    async fn read(&self, query: HttpQuery) -> Vec<AccessRecord> {
        let rows = self.log.rows(&query).map(|row| row.unwrap()).collect();
        tokio::time::timeout(LIMIT, rows).await.expect("the rows are read")
    }
}

#[tokio::test]
async fn rows_come_back_as_they_were_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let other = AccessRecord { app: APP.replace("Web", "api"), upstream: None, wait_us: None, ..row(404) };
    let nobody = AccessRecord { app: String::new(), ending: Ending::ClientLeft, ..row(0) };
    let server = start(dir.path(), 1 << 30);
    for row in [row(200), other.clone(), nobody.clone()] {
        server.rows.send(row).await.unwrap();
    }
    server.stop().await;
    let server = start(dir.path(), 1 << 30);
    let all = HttpQuery { tail: 10, ..HttpQuery::default() };
    assert_eq!(server.read(all.clone()).await, [row(200), other.clone(), nobody.clone()]);
    assert_eq!(server.read(HttpQuery { tail: 1, ..all.clone() }).await, std::slice::from_ref(&nobody));
    assert_eq!(server.read(HttpQuery { only_errors: true, ..all.clone() }).await, [other, nobody]);
    let app = Some(APP.to_ascii_uppercase());
    assert_eq!(server.read(HttpQuery { app: app.clone(), ..all.clone() }).await, [row(200)]);
    assert_eq!(server.read(HttpQuery { app, revision: Some("web--2".into()), ..all }).await, []);
    server.stop().await;
}

#[tokio::test]
async fn who_follows_is_given_the_rows_of_its_app() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), 1 << 30);
    let query = HttpQuery { app: Some(APP.into()), tail: 10, follow: true, ..HttpQuery::default() };
    let mut followed = server.log.rows(&query).map(|row| row.unwrap());
    for status in [200, 500] {
        server.rows.send(row(status)).await.unwrap();
        server.rows.send(AccessRecord { app: "other".into(), ..row(200) }).await.unwrap();
        let next = tokio::time::timeout(LIMIT, followed.next()).await.expect("the row arrives").unwrap();
        assert_eq!(next.status, status);
    }
    server.stop().await;
}

#[tokio::test]
async fn the_oldest_rows_go_when_there_are_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), 0);
    let path = "x".repeat(2000);
    for n in 0..8000 {
        server.rows.send(AccessRecord { path: path.clone(), connection: n, ..row(200) }).await.unwrap();
    }
    let query = HttpQuery { tail: 1, ..HttpQuery::default() };
    let newest = async {
        while server.read(query.clone()).await.first().is_none_or(|row| row.connection < 7999) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, newest).await.expect("all rows are written");
    let kept = server.read(HttpQuery { tail: 10_000, ..HttpQuery::default() }).await;
    assert!(kept.len() > 1000 && kept.len() < 8000, "{} rows are kept", kept.len());
    let numbers: Vec<u64> = kept.iter().map(|row| row.connection).collect();
    let oldest = 8000 - kept.len() as u64;
    assert_eq!(numbers, (oldest..8000).collect::<Vec<_>>(), "in order, over all files");
    let files = Segments::new(dir.path()).list();
    assert!(files.len() > 1 && files.len() <= 9, "{files:?}");
    server.stop().await;
}
