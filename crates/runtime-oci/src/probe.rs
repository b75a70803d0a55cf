//! Tries out what running containers needs of this machine, for `cove doctor`.
//!
//! **Invariant:** leaves nothing behind and changes nothing of the host but which controllers its first control group
//! passes on.

use std::{path::Path, time::Duration};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::{cgroup::Cgroups, page_out, seccomp, shim::CGROUP_ROOT};

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
    let tried = std::thread::Builder::new().name("cove-probe".to_owned()).spawn(overlay);
    let overlay = match tried.map(std::thread::JoinHandle::join) {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err("the probe ended early".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    probes.push(answer(
        "overlay file system",
        overlay,
        "load the module `overlay` (`modprobe overlay`), or allow mounts to this process",
    ));
    probes
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
    seccomp::Filter::compile().map(|_| "the filter compiles".to_owned()).map_err(|error| error.to_string())
}

fn overlay() -> Result<String, String> {
    let words = |error: nix::Error| error.to_string();
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).map_err(words)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).map_err(words)?;
    mount(Some("tmpfs"), "/tmp", Some("tmpfs"), MsFlags::empty(), Some("size=1m")).map_err(words)?;
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
