//! What `/proc` says about a server, its helper processes and the programs in its replicas.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

/// Memory of one process in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) rss: u64,
    pub(crate) pss: u64,
}

/// A process told apart from a later one with the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Clock ticks after boot.
    pub(crate) started: u64,
}

/// User and system time of a process.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let fields = stat(pid).context("the server is gone")?;
    let ticks: u64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on every Linux that Rust runs on
    Ok(Duration::from_millis(ticks * 10))
}

pub(crate) fn memory(pid: u32) -> Option<Memory> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some(Memory { rss: field("Rss:")?, pss: field("Pss:")? })
}

/// Processes whose command line names the data directory, and all that descend from them.
pub(crate) fn of_data_dir(data_dir: &Path) -> Vec<u32> {
    let Some(mark) = data_dir.to_str() else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let all: Vec<(u32, u32, bool)> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let parent = stat(pid)?.get(1)?.parse().ok()?;
            Some((pid, parent, String::from_utf8_lossy(&command).contains(mark)))
        })
        .collect();
    let mut found: Vec<u32> = all.iter().filter(|(_, _, is_marked)| *is_marked).map(|(pid, ..)| *pid).collect();
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        let children = all.iter().filter(|(_, of, _)| *of == parent).map(|(pid, ..)| *pid);
        let new: Vec<u32> = children.filter(|pid| !found.contains(pid)).collect();
        found.extend(new);
        next += 1;
    }
    found
}

/// The sample programs that run in replicas of a data directory, each with its app's name.
pub(crate) fn samples(data_dir: &Path) -> Vec<(String, Process)> {
    let is_sample = |pid: u32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).next() == Some(b"/sample")
    };
    let mut found: Vec<(String, Process)> = of_data_dir(data_dir)
        .into_iter()
        .filter(|pid| is_sample(*pid))
        .filter_map(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
            let app =
                environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"CONTAINER_APP_NAME="))?;
            let started = stat(pid)?.get(19)?.parse().ok()?;
            Some((String::from_utf8_lossy(app).into_owned(), Process { pid, started }))
        })
        .collect();
    found.sort();
    found
}

/// Fields of `/proc/<pid>/stat` from the state on: the name before it may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_ascii_whitespace().map(str::to_owned).collect())
}
