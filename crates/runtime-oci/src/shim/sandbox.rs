//! What a sandboxed replica's containers stand on: host ids of their own, and files in memory in a place of their own.
//!
//! Root inside is nobody outside: the replica's user namespace maps ids 0 to 65535 to a range that no other replica has.
//! The image's layers are shown through one mount that shifts ids by as much (nothing is copied or changed), and what is
//! written goes to memory that is limited and counts to the container.
//!
//! All of it is mounted in the helper's own mount namespace, below a folder that the ids inside may pass: the data
//! directory is closed to them, and nothing of it but the layers is shown.
//!
//! **Invariant:** nothing that a sandboxed container can write to is on a disk.

#![expect(unsafe_code, reason = "fork and mount_setattr have no safe wrapper")]

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd, OwnedFd},
};

use camino::{Utf8Path, Utf8PathBuf};
use nix::{
    errno::Errno,
    libc,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Gid, Uid, chown, fork, pipe2},
};

use super::CGROUP_ROOT;
use crate::{protocol::SandboxSpec, tree};

/// Ids that a replica has.
pub(crate) const IDS_PER_REPLICA: u32 = 1 << 16;

/// Most files and directories that a container may make.
const FILES_MAX: u64 = 1 << 20;

/// The place of a sandboxed replica.
#[derive(Debug)]
pub(super) struct Stage {
    /// Holds what the containers are made of.
    pub(super) dir: Utf8PathBuf,
    spec: SandboxSpec,
    users: OwnedFd,
}

impl Stage {
    /// Makes it, in the mount namespace of the caller.
    pub(super) fn set_up(spec: &SandboxSpec) -> io::Result<Self> {
        let dir = Utf8PathBuf::from(CGROUP_ROOT);
        // Over the zygote's empty mount there: that one all helpers share, this one is ours alone.
        let options = "mode=711,size=8m,nr_inodes=4096";
        mount_memory(&dir, options)?;
        Ok(Self { dir, spec: spec.clone(), users: user_namespace(spec.first_id)? })
    }

    /// Host ids of ids inside.
    pub(super) fn owner(&self, uid: u32, gid: u32) -> (Uid, Gid) {
        let shifted = |id: u32| self.spec.first_id + id.min(IDS_PER_REPLICA - 1);
        (Uid::from_raw(shifted(uid)), Gid::from_raw(shifted(gid)))
    }

    /// Lets root inside own a directory.
    pub(super) fn give(&self, path: &Utf8Path) -> io::Result<()> {
        let (uid, gid) = self.owner(0, 0);
        Ok(chown(path.as_std_path(), Some(uid), Some(gid))?)
    }

    /// Memory for files at `path`, as much as a container may write; root inside owns it.
    pub(super) fn mount_disk(&self, path: &Utf8Path, memory_bytes: u64, mode: u32) -> io::Result<()> {
        let bytes = disk_bytes(self.spec.disk_bytes, memory_bytes);
        let files = (bytes / 4096).clamp(1024, FILES_MAX);
        mount_memory(path, &format!("mode={mode:o},size={bytes},nr_inodes={files}"))?;
        self.give(path)
    }

    /// A node of the machine's `/dev/kvm` that root inside may open, at `kvm/kvm`.
    pub(super) fn make_kvm_node(&self) -> io::Result<()> {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        let dir = self.dir.join("kvm");
        fs::create_dir(&dir)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), dir.as_std_path(), Some("tmpfs"), flags, Some("mode=755,size=4k,nr_inodes=4"))?;
        let node = dir.join("kvm");
        mknod(node.as_std_path(), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(10, 232))?;
        fs::set_permissions(&node, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        self.give(&node)
    }

    /// Shows the folder of layers at `path`, read-only and with ids shifted.
    pub(super) fn show_layers(&self, layers: &Utf8Path, path: &Utf8Path) -> io::Result<()> {
        tree::attach(&shifted(layers, &self.users)?, path)
    }
}

/// What a container may write: never more than half of its memory, so that a full disk is an error and no end.
fn disk_bytes(disk_bytes: u64, memory_bytes: u64) -> u64 {
    disk_bytes.min(memory_bytes / 2).max(1 << 20)
}

fn mount_memory(path: &Utf8Path, options: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(mount(Some("tmpfs"), path.as_std_path(), Some("tmpfs"), flags, Some(options))?)
}

/// A copy of what is at a path, read-only, with its ids shifted as a user namespace has it.
pub(crate) fn shifted(path: &Utf8Path, users: &OwnedFd) -> io::Result<OwnedFd> {
    let copy = tree::clone_one(path)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(users.as_raw_fd()).map_err(io::Error::other)?,
    };
    // SAFETY: the path is a C string and the attributes a structure of the size that is given; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            copy.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result)?;
    Ok(copy)
}

/// A user namespace whose ids from 0 on are host ids from `first_id` on.
pub(crate) fn user_namespace(first_id: u32) -> io::Result<OwnedFd> {
    let (ready, says_ready) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let (may_end, holds) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: the child makes system calls only: it allocates nothing and takes no lock, whatever other threads do.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let made = unshare(CloneFlags::CLONE_NEWUSER).is_ok();
            let byte = [u8::from(made)];
            // SAFETY: writes and reads one byte of a live array; ends without running what belongs to the parent.
            unsafe {
                libc::close(holds.as_raw_fd());
                libc::write(says_ready.as_raw_fd(), byte.as_ptr().cast(), 1);
                let mut end = [0_u8];
                libc::read(may_end.as_raw_fd(), end.as_mut_ptr().cast(), 1);
                libc::_exit(0)
            }
        }
        ForkResult::Parent { child } => {
            drop((says_ready, may_end));
            let made = || {
                let mut byte = [0];
                File::from(ready).read_exact(&mut byte)?;
                if byte != [1] {
                    return Err(io::Error::other("user namespaces are turned off on this machine"));
                }
                for map in ["uid_map", "gid_map"] {
                    let text = format!("0 {first_id} {IDS_PER_REPLICA}\n");
                    fs::OpenOptions::new()
                        .write(true)
                        .open(format!("/proc/{child}/{map}"))?
                        .write_all(text.as_bytes())?;
                }
                Ok(File::open(format!("/proc/{child}/ns/user"))?.into())
            };
            let made = made();
            drop(holds);
            if made.is_err() {
                let _ = kill(child, Signal::SIGKILL);
            }
            let _ = waitpid(child, None);
            made
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_never_takes_all_memory() {
        assert_eq!(disk_bytes(1 << 30, 512 << 20), 256 << 20);
        assert_eq!(disk_bytes(64 << 20, 512 << 20), 64 << 20);
        assert_eq!(disk_bytes(0, 0), 1 << 20);
    }
}
