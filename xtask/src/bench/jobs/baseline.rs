//! What the same command costs without a platform: `crun run` in a loop, alone and many at once.
//!
//! The bundle has the root file system of the image that the jobs run (one executable), the same variables, limits and
//! namespaces but the network's: the containers of crun stay in the host's, which is less work than a replica has.
//!
//! **Invariant:** a run that does not print its line or does not end with 0 is an error.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::{LINE, VARIABLES};
use crate::bench::wake::baseline::{hide_unified_cgroup, installed, program_of};

/// A bundle that crun runs again and again.
#[derive(Debug)]
pub(super) struct Baseline {
    crun: PathBuf,
    bundle: tempfile::TempDir,
    /// Number of the next container.
    next: AtomicUsize,
}

/// What one loop of `crun run` gave.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// From before the program is started to the container's line.
    pub(super) to_line: Vec<Duration>,
    /// All runs, one after the other or side by side.
    pub(super) whole: Duration,
}

impl Baseline {
    /// Makes the bundle from what the server unpacked.
    pub(super) fn new(data_dir: &Path) -> anyhow::Result<Self> {
        let crun = installed("crun").context("`crun` is not installed; `apt-get install crun` brings it")?;
        let bundle = tempfile::Builder::new().prefix("cove-crun-").tempdir().context("failed to make a folder")?;
        let root = bundle.path().join("rootfs");
        for folder in ["proc", "dev"] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        std::fs::copy(program_of(data_dir)?, root.join("sample")).context("failed to copy the sample")?;
        std::fs::write(bundle.path().join("config.json"), config().to_string())?;
        Ok(Self { crun, bundle, next: AtomicUsize::new(0) })
    }

    /// Runs `count` containers, `at_once` at the same time.
    pub(super) fn run(&self, count: usize, at_once: usize) -> anyhow::Result<Runs> {
        // a thread of its own: it leaves this process's mount namespace for good, and so do the threads that it starts
        std::thread::scope(|scope| {
            let all = scope.spawn(|| {
                hide_unified_cgroup()?;
                self.side_by_side(count, at_once)
            });
            all.join().map_err(|_| anyhow::anyhow!("the thread that runs crun panicked"))?
        })
    }

    fn side_by_side(&self, count: usize, at_once: usize) -> anyhow::Result<Runs> {
        let taken = AtomicUsize::new(0);
        let begun = Instant::now();
        let to_line = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..at_once.min(count))
                .map(|_| {
                    scope.spawn(|| {
                        let mut times = Vec::new();
                        while taken.fetch_add(1, Ordering::Relaxed) < count {
                            times.push(self.one()?);
                        }
                        anyhow::Ok(times)
                    })
                })
                .collect();
            let mut all = Vec::new();
            for worker in workers {
                all.extend(worker.join().map_err(|_| anyhow::anyhow!("a thread that runs crun panicked"))??);
            }
            anyhow::Ok(all)
        })?;
        Ok(Runs { to_line, whole: begun.elapsed() })
    }

    /// Until the line; returns when crun has cleaned up behind the container.
    fn one(&self) -> anyhow::Result<Duration> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = format!("cove-bench-{}-{number}", std::process::id());
        let begun = Instant::now();
        let mut child = Command::new(&self.crun)
            .args(["run", "--bundle"])
            .arg(self.bundle.path())
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("failed to start crun")?;
        let stderr = child.stderr.take().context("stderr is a pipe")?;
        let mut line = String::new();
        let read = BufReader::new(stderr).read_line(&mut line);
        let passed = begun.elapsed();
        let status = child.wait().context("crun cannot be waited for")?;
        read.context("failed to read what crun's container says")?;
        ensure!(status.success() && line.trim_end() == LINE, "`crun run` does not work here ({status}): {line}");
        Ok(passed)
    }
}

fn config() -> serde_json::Value {
    let variables = VARIABLES.iter().map(|(name, value)| format!("{name}={value}"));
    let env: Vec<String> = std::iter::once("PATH=/".to_owned()).chain(variables).collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": ["/sample"], "cwd": "/", "env": env,
            "noNewPrivileges": true,
            "capabilities": {"bounding": ["CAP_NET_BIND_SERVICE"], "effective": ["CAP_NET_BIND_SERVICE"], "permitted": ["CAP_NET_BIND_SERVICE"]},
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
        ],
        "linux": {
            "resources": {"memory": {"limit": 536_870_912}, "cpu": {"quota": 25_000, "period": 100_000}, "pids": {"limit": 1024}},
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/bus", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
