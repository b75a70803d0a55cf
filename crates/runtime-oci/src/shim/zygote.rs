//! The zygote: forks helpers on demand.
//!
//! **Invariant:** it ends when the driver's socket closes, and nothing depends on it living longer.
//! **Invariant:** its mount namespace holds no mount of a replica or a network namespace, so neither it nor any helper
//! keeps one alive.

#![expect(unsafe_code, reason = "fork and signal dispositions have no safe wrapper")]

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    rc::Rc,
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{SigHandler, Signal, signal},
        socket::MsgFlags,
    },
    unistd::{ForkResult, dup2_stdin, fork, setsid},
};

use super::{carrier, helper};
use crate::{
    cgroup::Cgroups,
    protocol::{FromShim, ToZygote, receive, send},
    seccomp::Filters,
};

/// First argument of the zygote; then the folder where it puts the cgroup mounts. Its socket is its stdin.
pub const ZYGOTE_COMMAND: &str = "shim-zygote";

/// Where cgroups are mounted.
pub(crate) const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// What every helper inherits.
#[derive(Debug)]
pub(super) struct Env {
    pub(super) cgroups: Cgroups,
    pub(super) filters: Rc<Filters>,
}

pub(super) fn run(args: &[String]) -> io::Result<()> {
    let usage = || io::Error::new(io::ErrorKind::InvalidInput, "is started by `cove serve`");
    let [cgroup_dir] = args else { return Err(usage()) };
    // The driver gives its socket as our stdin; containers must not get it as theirs.
    let socket = fcntl(io::stdin(), FcntlArg::F_DUPFD_CLOEXEC(3)).map(carrier::own)?;
    dup2_stdin(File::open("/dev/null")?)?;
    let env = match set_up(Path::new(cgroup_dir)) {
        Ok(env) => Rc::new(env),
        Err(error) => {
            send(socket.as_raw_fd(), &FromShim::Broken { message: error.to_string() }, &[], MsgFlags::empty())?;
            return Err(error);
        }
    };
    send(socket.as_raw_fd(), &FromShim::Blank, &[], MsgFlags::empty())?;
    loop {
        let Some((ToZygote::Fork { cgroup }, fds)) = receive(socket.as_raw_fd(), MsgFlags::empty())? else {
            return Ok(());
        };
        let Some(connection) = fds.into_iter().next() else { continue };
        fork_helper(&env, connection, &cgroup)?;
    }
}

fn fork_helper(env: &Rc<Env>, connection: OwnedFd, cgroup: &str) -> io::Result<()> {
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => Ok(()),
        ForkResult::Child => {
            carrier::close_all_but(connection.as_raw_fd());
            let code = i32::from(helper::run(env, connection, cgroup).is_err());
            // SAFETY: ends this process without running destructors of what belongs to the parent.
            unsafe { libc::_exit(code) }
        }
    }
}

fn set_up(cgroup_dir: &Path) -> io::Result<Env> {
    // Its own session: what is typed at the server's terminal is not for helpers. Fails only if it leads one already.
    let _ = setsid();
    // SAFETY: no handler is installed; children that end are not waited for.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    detach_foreign_mounts()?;
    // Our cgroup code finds the hierarchies here; where libcontainer looks there is nothing to attach to.
    let cgroups = Cgroups::detect(Path::new(CGROUP_ROOT))?.bind_to(cgroup_dir)?;
    umount2(CGROUP_ROOT, MntFlags::MNT_DETACH)?;
    mount(Some("tmpfs"), CGROUP_ROOT, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some("size=64k"))?;
    let filters = Filters::compile().map_err(io::Error::other)?;
    Ok(Env { cgroups, filters: Rc::new(filters) })
}

/// Detaches what no container is made of.
///
/// A copy of a network namespace's mount would keep that namespace alive for as long as we live; and libcontainer reads
/// the list of all mounts many times for each container.
fn detach_foreign_mounts() -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4) else { continue };
        let holds_no_files =
            ["/dev/", "/sys/kernel/", "/sys/firmware/", "/proc/"].iter().any(|at| point.starts_with(at));
        if right.starts_with("nsfs ") || point.ends_with("/netns") || holds_no_files {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
    Ok(())
}
