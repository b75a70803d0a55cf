//! What the same executable costs without a platform: started bare on the host, and by crun where that is installed.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::bench::request::first_byte_of_new;
use crate::bench::stats::Samples;

/// Times of bare starts.
#[derive(Debug, Default)]
pub(super) struct Baseline {
    program: Option<PathBuf>,
    bare: Vec<Duration>,
    crun: Vec<Duration>,
}

impl Baseline {
    /// Takes the sample's executable out of the server's unpacked layers: the very bytes that replicas run.
    pub(super) fn find_program(&mut self, data_dir: &Path) -> anyhow::Result<()> {
        self.program = Some(program_of(data_dir)?);
        Ok(())
    }

    /// Starts the program `times` times, one after the other; as often with crun when that is there.
    pub(super) fn measure(&mut self, times: usize) -> anyhow::Result<()> {
        let program = self.program.clone().context("the sample was not found before")?;
        for _ in 0..times {
            self.bare.push(bare(&program)?);
        }
        if let Some(crun) = installed("crun") {
            // a thread of its own: it leaves this process's mount namespace for good
            let measured = std::thread::scope(|scope| {
                let series = scope.spawn(|| {
                    hide_unified_cgroup()?;
                    (0..times).map(|_| with_crun(&crun, &program)).collect::<anyhow::Result<Vec<_>>>()
                });
                series.join().map_err(|_| anyhow::anyhow!("the thread that runs crun panicked"))?
            });
            self.crun.extend(measured?);
        }
        Ok(())
    }

    pub(super) fn bare(&self) -> Samples {
        self.bare.iter().copied().collect()
    }

    /// `None` where crun is not installed.
    pub(super) fn crun(&self) -> Option<Samples> {
        (!self.crun.is_empty()).then(|| self.crun.iter().copied().collect())
    }
}

/// The sample's executable among a server's unpacked layers.
pub(in crate::bench) fn program_of(data_dir: &Path) -> anyhow::Result<PathBuf> {
    let layers = data_dir.join("images/layers");
    let found = std::fs::read_dir(&layers)
        .with_context(|| format!("failed to read `{}`", layers.display()))?
        .filter_map(|layer| Some(layer.ok()?.path().join("fs/sample")))
        .find(|path| path.is_file());
    found.context("no unpacked layer holds the sample")
}

fn bare(program: &Path) -> anyhow::Result<Duration> {
    let address = free_address()?;
    let begun = Instant::now();
    let mut child = Ended(
        Command::new(program)
            .env_clear()
            .env("PORT", address.port().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to start the sample")?,
    );
    let passed = first_byte_of_new(address, begun);
    child.end();
    passed
}

/// `crun run` with the namespaces that a replica has but the host's network, and a plain folder as root.
fn with_crun(crun: &Path, program: &Path) -> anyhow::Result<Duration> {
    let address = free_address()?;
    let bundle = tempfile::Builder::new().prefix("cove-crun-").tempdir()?;
    let rootfs = bundle.path().join("rootfs");
    for folder in ["proc", "dev"] {
        std::fs::create_dir_all(rootfs.join(folder))?;
    }
    std::fs::copy(program, rootfs.join("sample"))?;
    std::fs::write(bundle.path().join("config.json"), spec(address.port()).to_string())?;
    let id = bundle.path().file_name().context("a temporary folder has a name")?.to_owned();
    let begun = Instant::now();
    let mut child = Ended(
        Command::new(crun)
            .args(["run", "--detach", "--bundle"])
            .arg(bundle.path())
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to start crun")?,
    );
    let passed = first_byte_of_new(address, begun).context("crun does not work here; remove it or mend it");
    // it ends by itself once its own books are written; only then can it be asked to delete
    let _ended = child.0.wait();
    let deleted = Command::new(crun).args(["delete", "--force"]).arg(&id).status().context("failed to run crun")?;
    ensure!(passed.is_err() || deleted.success(), "`crun delete` failed");
    passed
}

/// crun refuses hosts that mount cgroup v1 and v2 side by side; this thread and what it starts see v1 alone.
pub(in crate::bench) fn hide_unified_cgroup() -> anyhow::Result<()> {
    use nix::mount::{MsFlags, mount, umount};
    let unified = Path::new("/sys/fs/cgroup/unified");
    if !unified.exists() {
        return Ok(());
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).context("failed to make a mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    umount(unified).context("failed to hide cgroup v2 from crun")
}

fn spec(port: u16) -> serde_json::Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": ["/sample"], "cwd": "/",
            "env": ["PATH=/", format!("PORT={port}")], "noNewPrivileges": true,
            "capabilities": {"bounding": ["CAP_NET_BIND_SERVICE"], "effective": ["CAP_NET_BIND_SERVICE"], "permitted": ["CAP_NET_BIND_SERVICE"]},
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
        ],
        "linux": {
            "resources": {"memory": {"limit": 536_870_912}, "cpu": {"quota": 100_000, "period": 100_000}, "pids": {"limit": 1024}},
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/bus", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// Where a program is, if it is.
pub(in crate::bench) fn installed(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// An address that was free a moment ago.
fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?)
}

/// A process that is killed and reaped whatever happens.
struct Ended(Child);

impl Ended {
    fn end(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.end();
    }
}
