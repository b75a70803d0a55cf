//! Copies of mounts as descriptors, and paths that are resolved inside one directory.
//!
//! A path in a volume is another party's: whoever writes to the volume may put links into it at any moment. So a path is
//! resolved once, by the kernel, with the volume as its root, and the result is mounted by its descriptor.
//!
//! **Invariant:** nothing here follows a link out of the directory it was given.

#![expect(unsafe_code, reason = "open_tree and move_mount have no safe wrapper")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::PermissionsExt as _,
    },
    path::Path,
};

use camino::Utf8Path;
use cove_base::open_confined;
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open},
    libc,
    mount::{MntFlags, umount2},
    sys::stat::{Mode, fstat, mkdirat, stat},
};

/// `MOVE_MOUNT_F_EMPTY_PATH` of the kernel.
const FROM_DESCRIPTOR: libc::c_uint = 4;

const PATH_ONLY: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// A copy of what is mounted at a path of this machine, attached nowhere.
pub(crate) fn clone_at(path: &Utf8Path) -> io::Result<OwnedFd> {
    open_tree(libc::AT_FDCWD, path.as_str(), libc::AT_RECURSIVE)
}

/// The same without what is mounted below it.
pub(crate) fn clone_one(path: &Utf8Path) -> io::Result<OwnedFd> {
    open_tree(libc::AT_FDCWD, path.as_str(), 0)
}

/// A copy of an open directory or file, attached nowhere.
pub(crate) fn clone_of(found: &OwnedFd) -> io::Result<OwnedFd> {
    open_tree(found.as_raw_fd(), "", libc::AT_RECURSIVE)
}

/// Opens a directory below `root`, made where it is missing; says whether the last part is new. A link on the way is an
/// error.
pub(crate) fn make_beneath(root: &Utf8Path, path: &Utf8Path) -> io::Result<(OwnedFd, bool)> {
    let mut dir = open(root.as_std_path(), PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let how = OpenHow::new().flags(PATH_ONLY | OFlag::O_DIRECTORY).resolve(resolve);
    let mut is_new = false;
    for part in path.as_str().split('/') {
        dir = match open_confined(&dir, part, how) {
            Err(Errno::ENOENT) => {
                is_new = match mkdirat(&dir, part, Mode::from_bits_truncate(0o755)) {
                    Ok(()) => true,
                    Err(Errno::EEXIST) => false,
                    Err(error) => return Err(error.into()),
                };
                open_confined(&dir, part, how)?
            }
            found => {
                is_new = false;
                found?
            }
        };
    }
    Ok((dir, is_new))
}

fn open_tree(at: RawFd, path: &str, depth: libc::c_int) -> io::Result<OwnedFd> {
    let path = CString::new(path)?;
    let flags =
        libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | depth.unsigned_abs() | libc::AT_EMPTY_PATH.unsigned_abs();
    // SAFETY: the path is a C string that outlives the call; the rest are numbers.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, at, path.as_ptr(), flags) };
    let fd = RawFd::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a copy at a path, in this process's mount namespace.
pub(crate) fn attach(tree: &OwnedFd, target: &Utf8Path) -> io::Result<()> {
    let target = CString::new(target.as_str())?;
    // SAFETY: both paths are C strings that outlive the call; the rest are numbers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            FROM_DESCRIPTOR,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// Whether a path is the root of a mount.
pub(crate) fn is_mounted(path: &Utf8Path) -> io::Result<bool> {
    let Some(parent) = path.parent() else { return Ok(true) };
    match (stat(path.as_std_path()), stat(parent.as_std_path())) {
        (Ok(own), Ok(parent)) => Ok(own.st_dev != parent.st_dev),
        // a server that is gone: the mount is there and answers nothing
        (Err(Errno::ESTALE | Errno::EHOSTDOWN | Errno::ENOTCONN), _) => {
            umount2(path.as_std_path(), MntFlags::MNT_DETACH)?;
            Ok(false)
        }
        (Err(error), _) | (_, Err(error)) => Err(error.into()),
    }
}

/// Makes `path` below `root` where it is missing; links are followed as inside a container.
pub(crate) fn make_dir_inside(root: &Path, path: &str, mode: u32) -> io::Result<()> {
    let root = open(root, PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty())?;
    let mut done = String::new();
    for part in path.split('/').filter(|part| !matches!(*part, "" | "." | "..")) {
        let parent = find(&root, &done, OFlag::O_DIRECTORY)?;
        done = if done.is_empty() { part.to_owned() } else { format!("{done}/{part}") };
        if matches!(find(&root, &done, OFlag::empty()), Err(Errno::ENOENT)) {
            match mkdirat(&parent, part, Mode::from_bits_truncate(0o755)) {
                Ok(()) if mode != 0o755 => {
                    let made = find(&root, &done, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)?;
                    let by_number = format!("/proc/self/fd/{}", made.as_raw_fd());
                    std::fs::set_permissions(by_number, std::fs::Permissions::from_mode(mode))?;
                }
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn find(root: &OwnedFd, path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    open_confined(
        root,
        if path.is_empty() { "." } else { path },
        OpenHow::new().flags(PATH_ONLY | flags).resolve(resolve),
    )
}

/// Attaches a part of the directory `root` at `target`, which is made as a file or directory as the part is.
pub(crate) fn attach_part(root: &Utf8Path, part: &str, target: &Utf8Path) -> io::Result<()> {
    let root = open(root.as_std_path(), PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty())?;
    let found = find(&root, part, OFlag::empty())?;
    let is_dir = fstat(found.as_fd())?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    let tree = clone_of(&found)?;
    // left of an earlier start of the same container
    while umount2(target.as_std_path(), MntFlags::MNT_DETACH).is_ok() {}
    if target.exists() && target.is_dir() != is_dir {
        if target.is_dir() { std::fs::remove_dir(target)? } else { std::fs::remove_file(target)? }
    }
    if is_dir {
        std::fs::create_dir_all(target)?;
    } else {
        std::fs::OpenOptions::new().create(true).append(true).open(target)?;
    }
    attach(&tree, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_inside_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::os::unix::fs::symlink("/", root.join("up")).unwrap();
        std::os::unix::fs::symlink(dir.path(), root.join("away")).unwrap();
        make_dir_inside(&root, "up/a/b", 0o777).unwrap();
        assert_eq!(std::fs::metadata(root.join("a/b")).unwrap().permissions().mode() & 0o7777, 0o777);
        assert!(make_dir_inside(&root, "away/c", 0o777).is_err());
        assert!(!dir.path().join("c").exists());
    }
}
