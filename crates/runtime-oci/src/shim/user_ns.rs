//! A command that joins the user namespace of a sandboxed container: libcontainer makes that namespace for a container's
//! first process, and leaves commands that come later outside of it, where root is the machine's.
//!
//! It is entered as the machine's root without any capability, which owns the namespace and so may; the kernel then gives all
//! capabilities inside, which go after the change to the ids that the command is to have.
//!
//! **Invariant:** afterwards the process has the container's ids and no capability, not even inside.

#![expect(unsafe_code, reason = "capset and dropping from the bounding set have no safe wrapper")]

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{BorrowedFd, OwnedFd, RawFd},
        unix::fs::MetadataExt as _,
    },
};

use nix::{
    libc,
    sched::{CloneFlags, setns},
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, Gid, Uid, fork, setgroups, setresgid, setresuid},
};
use serde::{Deserialize, Serialize};

use crate::watches;

/// Who a command is inside the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inside {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

/// The user namespace of a process.
pub(super) fn of(pid: i32) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
}

/// Enters a user namespace and becomes who is asked for. The process has one thread.
pub(super) fn enter(namespace: RawFd, who: &Inside) -> io::Result<()> {
    // SAFETY: the descriptor was opened by `of` in the process that forked this one, which does not close it.
    setns(unsafe { BorrowedFd::borrow_raw(namespace) }, CloneFlags::CLONE_NEWUSER)?;
    let groups: Vec<Gid> = who.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups)?;
    let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    drop_capabilities()
}

/// Bounds what the users of the namespace of `pid` take of what is counted to the machine's root. The process has one thread.
pub(super) fn limit(pid: i32) -> io::Result<()> {
    let namespace = of(pid)?;
    let who = |path: String| fs::metadata(path).map(|file| file.ino());
    if who(format!("/proc/{pid}/ns/user"))? == who("/proc/self/ns/user".to_owned())? {
        // a runtime that isolates in another way; the bounds of this namespace are the machine's
        return Ok(());
    }
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => loop {
            match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
                Ok(WaitStatus::Exited(_, code)) => return Err(io::Error::from_raw_os_error(code)),
                Ok(_) => return Err(io::Error::other("the process that bounds a sandbox was killed")),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        },
        ForkResult::Child => {
            let code = match write_limits(&namespace) {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            // SAFETY: ends this process without running destructors of what belongs to the parent.
            unsafe { libc::_exit(code) }
        }
    }
}

/// The files show the limits of whoever opens them.
fn write_limits(namespace: &OwnedFd) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWUSER)?;
    for (what, most) in watches::OF_A_USER_MAX {
        match fs::write(format!("/proc/sys/user/max_inotify_{what}"), most.to_string()) {
            // a kernel without inotify has none to give away
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}

/// `_LINUX_CAPABILITY_VERSION_3` and the process itself.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

fn drop_capabilities() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: takes a number; the kernel refuses those that it does not know.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if dropped != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 {
                break;
            }
            return Err(error);
        }
    }
    let (header, none) = (Header { version: 0x2008_0522, pid: 0 }, [0_u32; 6]);
    // SAFETY: both are laid out as the kernel reads them, and live for the call.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
