//! Tries out what running containers needs of this machine, for `cove doctor`.
//!
//! **Invariant:** leaves nothing behind and changes nothing of the host but which controllers its first control group
//! passes on.

use std::{collections::BTreeMap, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use camino::Utf8Path;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::{
    HandlerConfig,
    cgroup::Cgroups,
    page_out, seccomp,
    shim::{self, CGROUP_ROOT},
    tree,
};

/// First id of the probe's namespace, which nobody else has.
const PROBE_ID: u32 = 0x6fff_0000;

/// Answer about one need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What was tried, a few words.
    pub name: &'static str,
    /// Whether it works.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty when it works.
    pub remedy: &'static str,
}

fn answer(name: &'static str, result: Result<String, String>, remedy: &'static str) -> Probe {
    match result {
        Ok(detail) => Probe { name, ok: true, detail, remedy: "" },
        Err(detail) => Probe { name, ok: false, detail, remedy },
    }
}

/// Tries everything; blocks for a moment.
#[must_use]
pub fn probe() -> Vec<Probe> {
    let mut probes = vec![
        answer("kernel", kernel(), "use Linux 5.10 or newer"),
        answer("root", root(), "start Cove with `sudo`"),
        answer(
            "control groups",
            cgroups(),
            "mount cgroup v2 at /sys/fs/cgroup, or start Cove on the host and not in a container",
        ),
        answer("seccomp", seccomp_filter(), "use a kernel with CONFIG_SECCOMP_FILTER on x86-64 or arm64"),
        answer(
            "port notices",
            if seccomp::has_notices() {
                Ok("the kernel tells when a port opens".to_owned())
            } else {
                Err("not available: ports are probed instead".to_owned())
            },
            "use Linux 5.5 or newer",
        ),
        answer(
            "freezing",
            freezing(),
            "mount cgroup v2, or the freezer of version 1; without it `coveIdle: frozen` scales to zero",
        ),
        answer("swap", swap(), "use Linux 5.10 or newer; until then what frozen replicas know stays in memory"),
    ];
    // Mounts are tried on a thread with a mount namespace of its own, which ends with it.
    let overlay = on_a_thread(overlay);
    probes.push(answer(
        "untrusted code",
        sandbox(Utf8Path::new("/")),
        "use Linux 5.19 or newer with user namespaces (`sysctl -w user.max_user_namespaces=10000`) and keep the data \
         directory on ext4, xfs or btrfs; without it session pools are refused",
    ));
    probes.push(answer(
        "overlay file system",
        overlay,
        "load the module `overlay` (`modprobe overlay`), or allow mounts to this process",
    ));
    probes
}

/// What a server is told of the means to keep sessions in.
#[derive(Clone, Copy, Debug)]
pub struct IsolationMeans<'a> {
    /// Folder of the guest of virtual machines.
    pub guest: &'a Utf8Path,
    /// OCI runtimes besides the well-known ones.
    pub handlers: &'a BTreeMap<String, HandlerConfig>,
    /// CRIU: a path, or a name on the path of programs.
    pub criu: &'a str,
}

/// Tries what else may stand between a session and this machine: OCI runtimes, virtual machines, memory of forks.
/// Blocks, up to a minute when a machine does not boot.
#[must_use]
pub fn probe_isolation(means: IsolationMeans<'_>) -> Vec<Probe> {
    let found = crate::handlers::find(means.handlers, None);
    let words = |handler: &crate::handlers::Handler| match &handler.found {
        Ok(text) => format!("{} {text}", handler.name),
        Err(text) => format!("{} cannot be used: {text}", handler.name),
    };
    let all = found.iter().map(words).collect::<Vec<_>>().join("; ");
    let runtimes = match (found.is_empty(), found.iter().any(|handler| handler.found.is_ok())) {
        (true, _) => Ok("none is installed, and none is needed".to_owned()),
        (false, true) => Ok(all),
        (false, false) => Err(all),
    };
    let machines = cove_vm::accel::probe(means.guest).map_err(|error| error.to_string()).and_then(|(guest, probed)| {
        cove_vm::guest::program("mkfs.erofs").ok_or("`mkfs.erofs` was not found: apt-get install -y erofs-utils")?;
        let without = probed.without_kvm.map(|why| format!(" (KVM is not used: {why})")).unwrap_or_default();
        Ok(format!("Linux {} booted in {} ms with {}{without}", guest.release, probed.boot_ms, probed.accel.as_str()))
    });
    vec![
        answer("OCI runtimes", runtimes, "install another version of it, or use the isolation `hardened`"),
        answer(
            "virtual machines",
            machines,
            "`apt-get install qemu-system-x86 erofs-utils`, `cove image build-vm-guest`, then start the server again; \
             without it pools with isolation `vm` are refused",
        ),
        answer(
            "memory of forks",
            criu(means.criu),
            "install CRIU, 4.2 or newer for Linux 6.16 and later, or name it with `sessions.criu`; until then forks of \
             sessions have the files and begin anew",
        ),
    ]
}

fn criu(program: &str) -> Result<String, String> {
    let program = crate::memory::find(program)?;
    let version = crate::memory::check(&program)?;
    Ok(format!("CRIU {version} keeps it"))
}

pub(crate) fn on_a_thread(work: impl FnOnce() -> Result<String, String> + Send + 'static) -> Result<String, String> {
    let tried = std::thread::Builder::new().name("cove-probe".to_owned()).spawn(work);
    match tried.map(std::thread::JoinHandle::join) {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err("the probe ended early".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Tries what keeps untrusted code in: a user namespace with ids of its own, and an overlay over layers of the file system
/// at `dir` with their ids shifted as much.
pub(crate) fn sandbox(dir: &Utf8Path) -> Result<String, String> {
    let dir = dir.to_owned();
    let users = shim::user_namespace(PROBE_ID).map_err(|error| error.to_string())?;
    on_a_thread(move || {
        let owner = |path: &str| std::fs::metadata(path).map(|found| found.uid()).map_err(|error| error.to_string());
        let outside = owner(dir.as_str())?;
        let layers = shim::shifted(&dir, &users)
            .map_err(|error| format!("the file system of `{dir}` shifts no ids: {error}"))?;
        in_memory()?;
        for name in ["shifted", "upper", "work", "root"] {
            std::fs::create_dir(Path::new("/tmp").join(name)).map_err(|error| error.to_string())?;
        }
        let shown = Utf8Path::new("/tmp/shifted");
        tree::attach(&layers, shown).map_err(|error| error.to_string())?;
        let options = "lowerdir=/tmp/shifted,upperdir=/tmp/upper,workdir=/tmp/work";
        let mounted = mount(Some("overlay"), "/tmp/root", Some("overlay"), MsFlags::empty(), Some(options));
        mounted.map_err(|error| format!("an overlay takes no layers with shifted ids: {error}"))?;
        let inside = owner(shown.as_str())?;
        for path in ["/tmp/root", "/tmp/shifted"] {
            umount2(path, MntFlags::MNT_DETACH).map_err(|error| error.to_string())?;
        }
        if outside < shim::IDS_PER_REPLICA && inside != PROBE_ID + outside {
            return Err(format!("an id was shifted from {outside} to {inside}"));
        }
        Ok("user namespaces, shifted ids and overlays of them work".to_owned())
    })
}

/// A mount namespace of the calling thread's own with memory at /tmp.
fn in_memory() -> Result<(), String> {
    let words = |error: nix::Error| error.to_string();
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).map_err(words)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).map_err(words)?;
    mount(Some("tmpfs"), "/tmp", Some("tmpfs"), MsFlags::empty(), Some("size=1m")).map_err(words)
}

fn kernel() -> Result<String, String> {
    let name = nix::sys::utsname::uname().map_err(|error| error.to_string())?;
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= (5, 10) => Ok(release),
        _ => Err(release),
    }
}

fn root() -> Result<String, String> {
    let user = nix::unistd::geteuid();
    if user.is_root() { Ok("user 0".to_owned()) } else { Err(format!("user {user}")) }
}

fn cgroups() -> Result<String, String> {
    let cgroups = Cgroups::detect(Path::new(CGROUP_ROOT)).map_err(|error| error.to_string())?;
    let path = format!("cove-probe-{}", std::process::id());
    let made = cgroups.create(&path).and_then(|()| cgroups.limit_memory(&path, 64 << 20));
    let removed = cgroups.remove(&path, Duration::from_secs(2));
    made.and(removed).map_err(|error| error.to_string())?;
    if cgroups.missing.is_empty() {
        return Ok(format!("version {}", cgroups.version()));
    }
    Err(format!("version {}, without {}", cgroups.version(), cgroups.missing_words()))
}

fn freezing() -> Result<String, String> {
    let cgroups = Cgroups::detect(Path::new(CGROUP_ROOT)).map_err(|error| error.to_string())?;
    match cgroups.freezer_words() {
        "" => Err("these control groups have no freezer".to_owned()),
        words => Ok(format!("control groups {words}")),
    }
}

fn swap() -> Result<String, String> {
    let free = page_out::swap_free() >> 20;
    match (free, page_out::is_possible()) {
        // nothing needs it
        (0, _) => Ok("none: what frozen replicas know stays in memory".to_owned()),
        (_, false) => Err(format!("{free} MiB free, but this kernel moves nothing there on demand")),
        (_, true) => Ok(format!("{free} MiB free for what frozen replicas know")),
    }
}

fn seccomp_filter() -> Result<String, String> {
    seccomp::Filters::compile().map(|_| "the filter compiles".to_owned()).map_err(|error| error.to_string())
}

fn overlay() -> Result<String, String> {
    let words = |error: nix::Error| error.to_string();
    in_memory()?;
    for name in ["lower", "upper", "work", "root"] {
        std::fs::create_dir(Path::new("/tmp").join(name)).map_err(|error| error.to_string())?;
    }
    let options = "lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work";
    mount(Some("overlay"), "/tmp/root", Some("overlay"), MsFlags::empty(), Some(options)).map_err(words)?;
    umount2("/tmp/root", MntFlags::MNT_DETACH).map_err(words)?;
    Ok("mounts".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_run_containers() {
        for probe in probe() {
            assert!(probe.ok, "{probe:?}");
            assert!(probe.remedy.is_empty());
        }
    }
}
