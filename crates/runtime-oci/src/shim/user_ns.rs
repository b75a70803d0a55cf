//! A command that joins the user namespace of a sandboxed container: libcontainer makes that namespace for a container's
//! first process, and leaves commands that come later outside of it, where root is the machine's.
//!
//! It is entered as the machine's root without any capability, which owns the namespace and so may; the kernel then gives all
//! capabilities inside, which go after the change to the ids that the command is to have.
//!
//! **Invariant:** afterwards the process has the container's ids and no capability, not even inside.

#![expect(unsafe_code, reason = "capset and dropping from the bounding set have no safe wrapper")]

use std::{
    fs::File,
    io,
    os::fd::{BorrowedFd, OwnedFd, RawFd},
};

use nix::{
    libc,
    sched::{CloneFlags, setns},
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use serde::{Deserialize, Serialize};

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
