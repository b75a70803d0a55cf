//! Sessions that wait: whether they are frozen, and what they weigh.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::ensure;

use super::pool::{Pool, READY_LIMIT};
use crate::{
    cove::{Address, Cove},
    process::{memory, of_data_dir},
};

/// The ready sessions of a pool.
pub(super) struct Ready {
    data: PathBuf,
    count: u16,
}

impl Ready {
    pub(super) fn new(cove: &Cove, count: u16) -> Self {
        Self { data: cove.data_dir(), count }
    }

    /// Waits until there are so many ready sessions, all of them frozen, and nothing is left of others.
    pub(super) async fn until(&self, pool: &Pool, address: &Address) -> anyhow::Result<()> {
        pool.until_counted(address, self.count).await?;
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let all = samples(&self.data);
            let frozen = all.iter().filter(|pid| is_frozen(**pid)).count();
            // beside them only the session that is asked directly
            if frozen == usize::from(self.count) && all.len() <= frozen + 1 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{frozen} of {} sessions are frozen, not {}", all.len(), self.count);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Processes of the sample.
fn samples(data: &Path) -> Vec<u32> {
    let is_sample = |pid: &u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).next() == Some(b"/sample")
    };
    of_data_dir(data).into_iter().filter(is_sample).collect()
}

/// By version 2 of control groups, or by the freezer of version 1.
fn is_frozen(pid: u32) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups.lines().any(|line| {
        let Some((controllers, path)) = line.split_once(':').and_then(|(_, rest)| rest.split_once(':')) else {
            return false;
        };
        let says = |mount: &str, file: &str, word: &str| {
            fs::read_to_string(format!("/sys/fs/cgroup{mount}{path}/{file}")).is_ok_and(|text| text.contains(word))
        };
        match controllers {
            "" => ["", "/unified"].iter().any(|mount| says(mount, "cgroup.events", "frozen 1")),
            "freezer" => says("/freezer", "freezer.state", "FROZEN"),
            _ => false,
        }
    })
}

/// Memory of processes, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weight {
    /// Of all processes but the server: each page divided by the processes that share it.
    pub(super) processes: i64,
    /// Of the server.
    pub(super) server: i64,
}

/// What the server and the processes of its data directory weigh now.
pub(super) fn weigh(cove: &Cove) -> Weight {
    let pss = |pid: u32| memory(pid).and_then(|memory| i64::try_from(memory.pss).ok()).unwrap_or(0);
    let others = of_data_dir(&cove.data_dir()).into_iter().filter(|pid| *pid != cove.pid());
    Weight { processes: others.map(pss).sum(), server: pss(cove.pid()) }
}

impl Weight {
    pub(super) fn less(self, before: &Self) -> Self {
        Self { processes: self.processes - before.processes, server: self.server - before.server }
    }

    pub(super) fn of_one(self, count: u16) -> Self {
        Self { processes: self.processes / i64::from(count), server: self.server / i64::from(count) }
    }
}
