//! Numbered log lines: what an app was asked to write and said it wrote must be in the logs once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cove::Address;

/// What each line says before its number.
const MARK: &str = "line-";
/// Time between two lines.
const EVERY: Duration = Duration::from_millis(5);
/// Longest until the last line has been taken into the logs.
const ARRIVE_LIMIT: Duration = Duration::from_secs(30);
const END_LIMIT: Duration = Duration::from_secs(60);

/// A client that asks for lines.
pub(super) struct Lines {
    stop: watch::Sender<bool>,
    task: JoinHandle<Asked>,
}

/// Which lines were asked for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    acknowledged: BTreeSet<u64>,
    last: u64,
}

impl Lines {
    pub(super) fn start(address: watch::Receiver<Address>, host: &str) -> Self {
        let (stop, stopped) = watch::channel(false);
        Self { stop, task: tokio::spawn(ask(address, host.to_owned(), stopped)) }
    }

    pub(super) async fn finish(self) -> anyhow::Result<Asked> {
        self.stop.send_replace(true);
        tokio::time::timeout(END_LIMIT, self.task)
            .await
            .context("the client of lines did not end")?
            .context("it panicked")
    }
}

async fn ask(address: watch::Receiver<Address>, host: String, stop: watch::Receiver<bool>) -> Asked {
    let mut asked = Asked::default();
    while !*stop.borrow() {
        tokio::time::sleep(EVERY).await;
        asked.last += 1;
        let server = address.borrow().clone();
        // a server that is away or dies in between leaves the line open: it may be there or not
        if server.get_app(&host, &format!("/log?text={MARK}{}", asked.last)).await.is_ok_and(|status| status == 200) {
            asked.acknowledged.insert(asked.last);
        }
    }
    asked
}

/// Looks into the log files until every acknowledged line is there; gives their number.
pub(super) async fn check(data_dir: &Path, app: &str, asked: &Asked) -> anyhow::Result<usize> {
    ensure!(!asked.acknowledged.is_empty(), "`{app}` acknowledged no line at all");
    let deadline = Instant::now() + ARRIVE_LIMIT;
    loop {
        let found = tokio::task::block_in_place(|| lines(&data_dir.join("logs")))?;
        let doubled: Vec<_> = found.iter().filter(|(_, times)| **times > 1).take(5).collect();
        ensure!(doubled.is_empty(), "lines are in the logs more than once: {doubled:?}");
        let lost: Vec<u64> = asked.acknowledged.iter().filter(|line| !found.contains_key(line)).copied().collect();
        if lost.is_empty() {
            return Ok(asked.acknowledged.len());
        }
        ensure!(
            Instant::now() < deadline,
            "{} of {} acknowledged lines are not in the logs, such as {:?}",
            lost.len(),
            asked.acknowledged.len(),
            &lost[..lost.len().min(5)]
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How often each numbered line stands in the files of all days.
fn lines(folder: &Path) -> anyhow::Result<BTreeMap<u64, usize>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("failed to read `{}`", folder.display()))? {
        let path = entry?.path();
        // what SQLite keeps beside a database comes and goes; requests have a folder of their own
        if path.extension().is_none_or(|extension| extension != "db") {
            continue;
        }
        let day = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        day.busy_timeout(Duration::from_secs(5))?;
        let mut rows = day.prepare("SELECT log FROM console WHERE log LIKE '%' || ?1 || '%'")?;
        for text in rows.query_map([MARK], |row| row.get::<_, String>(0))? {
            let text = text?;
            let number = text.split_once(MARK).and_then(|(_, number)| number.trim().parse().ok());
            *found.entry(number.with_context(|| format!("`{text}` is not a line that was asked for"))?).or_default() +=
                1;
        }
    }
    Ok(found)
}
