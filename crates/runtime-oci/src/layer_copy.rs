//! Copies what a replica has written into a folder that can be one more layer of other replicas.
//!
//! What was written is the upper directory of an overlay: files as they are, and marks for what was removed (a device 0:0)
//! or replaced as a whole (an attribute of a directory). A layer has the same marks, so the copy keeps them. A replica that
//! began with a snapshot itself has only the difference in its upper directory: the copy then begins as hard links to the
//! files of that snapshot, and the difference is laid over it. So a snapshot never needs another one.
//!
//! The tree was made by code that nobody vouches for: nothing here follows a link, and depth, number and bytes are limited.
//!
//! **Invariant:** a file of the snapshot that was begun with is never written to: what replaces it is a new file.
//! **Invariant:** ids are those of inside: 0 is root inside, as in other layers.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
};

use cove_runtime::SnapshotFacts;
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    libc,
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, mkdirat,
            mknodat, utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, Whence, fchown, fchownat, linkat, lseek, mkfifoat, symlinkat, unlinkat},
};
use xattr::FileExt as _;

use crate::shim::IDS_PER_REPLICA;

/// Deepest nesting of directories that is copied; each level holds two descriptors.
const DEPTH_MAX: usize = 128;

/// Most files, directories and links of a snapshot: as many as a replica may make in memory.
const FILES_MAX: u64 = 1 << 20;

/// Bytes copied at once.
const COPY_BYTES: usize = 1 << 20;

/// Whose files are whose that nobody inside can be.
const NOBODY: u32 = 65_534;

/// Of a directory: nothing of what is below it is seen.
const OPAQUE: &str = "trusted.overlay.opaque";

/// Of a directory: what is below it lies elsewhere. Sandboxed replicas are mounted so that this is never made.
const REDIRECT: &str = "trusted.overlay.redirect";

const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Why nothing was copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// More than is allowed, or than the disk has room for; in words.
    #[error("{0}")]
    NoRoom(String),
    /// The tree is one that no layer can hold, or an input or output failed.
    #[error("{0}")]
    Failed(#[from] io::Error),
}

impl From<Errno> for CopyError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::ENOSPC | Errno::EDQUOT => {
                Self::NoRoom("the disk of the data directory is full: free some space".to_owned())
            }
            other => Self::Failed(other.into()),
        }
    }
}

type Done<T> = Result<T, CopyError>;

/// A copy on its way.
#[derive(Debug)]
pub(crate) struct LayerCopy {
    /// The first host id of the replica.
    first_id: u32,
    bytes_max: u64,
    done: SnapshotFacts,
}

/// A folder of each side, and how deep they are.
struct At<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    depth: usize,
}

impl LayerCopy {
    /// Of a replica whose ids begin at `first_id`.
    pub(crate) fn new(first_id: u32, bytes_max: u64) -> Self {
        Self { first_id, bytes_max, done: SnapshotFacts::default() }
    }

    /// What was copied.
    pub(crate) fn facts(&self) -> SnapshotFacts {
        self.done.clone()
    }

    /// Begins an empty folder with what a snapshot holds.
    pub(crate) fn begin_with(&mut self, base: &OwnedFd, to: &OwnedFd) -> Done<()> {
        self.link_all(&At { from: base.as_fd(), to: to.as_fd(), depth: 0 })?;
        like_folder(base.as_fd(), to.as_fd(), |uid, gid| (uid, gid))
    }

    /// Lays an upper directory over what is there.
    pub(crate) fn lay_over(&mut self, upper: &OwnedFd, to: &OwnedFd) -> Done<()> {
        self.merge_all(&At { from: upper.as_fd(), to: to.as_fd(), depth: 0 })?;
        let first_id = self.first_id;
        like_folder(upper.as_fd(), to.as_fd(), |uid, gid| (inside(first_id, uid), inside(first_id, gid)))
    }

    fn count(&mut self, depth: usize) -> Done<()> {
        self.done.files += 1;
        if self.done.files > FILES_MAX {
            return Err(CopyError::NoRoom(format!("a snapshot holds at most {FILES_MAX} files")));
        }
        if depth >= DEPTH_MAX {
            let text = format!("a snapshot holds folders that are nested at most {DEPTH_MAX} deep");
            return Err(CopyError::Failed(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        Ok(())
    }

    fn weigh(&mut self, bytes: u64) -> Done<()> {
        self.done.bytes = self.done.bytes.saturating_add(bytes);
        if self.done.bytes > self.bytes_max {
            let most = self.bytes_max >> 20;
            return Err(CopyError::NoRoom(format!("there is room for {most} MiB in this snapshot, and it has more")));
        }
        Ok(())
    }

    fn link_all(&mut self, at: &At<'_>) -> Done<()> {
        for name in names(at.from)? {
            let name = name.as_c_str();
            let found = fstatat(at.from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            self.count(at.depth)?;
            if kind(&found) != SFlag::S_IFDIR {
                self.weigh(size_of_file(&found))?;
                match linkat(at.from, name, at.to, name, AtFlags::empty()) {
                    // of one that has as many links as a file may have
                    Err(Errno::EMLINK) if kind(&found) == SFlag::S_IFREG => {
                        copy_file(at, name, &found, |_| Ok(()), |uid, gid| (uid, gid))?;
                    }
                    linked => linked?,
                }
                continue;
            }
            let (from, to) = (openat(at.from, name, FOLDER, Mode::empty())?, make_folder(at.to, name)?);
            self.link_all(&At { from: from.as_fd(), to: to.as_fd(), depth: at.depth + 1 })?;
            like_folder(from.as_fd(), to.as_fd(), |uid, gid| (uid, gid))?;
        }
        Ok(())
    }

    fn merge_all(&mut self, at: &At<'_>) -> Done<()> {
        for name in names(at.from)? {
            let name = name.as_c_str();
            let found = fstatat(at.from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            self.count(at.depth)?;
            if kind(&found) == SFlag::S_IFDIR {
                self.merge_folder(at, name)?;
                continue;
            }
            if let Some(old) = stat_of(at.to, name)? {
                remove(at.to, name, &old, 0)?;
            }
            self.copy_one(at, name, &found)?;
        }
        Ok(())
    }

    fn merge_folder(&mut self, at: &At<'_>, name: &std::ffi::CStr) -> Done<()> {
        let from = openat(at.from, name, FOLDER, Mode::empty())?;
        let attributes = File::from(from.try_clone()?);
        if attributes.get_xattr(REDIRECT)?.is_some() {
            let text = "a folder of the image was renamed; that cannot be kept";
            return Err(CopyError::Failed(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        let mut is_opaque = attributes.get_xattr(OPAQUE)?.as_deref() == Some(b"y");
        if let Some(old) = stat_of(at.to, name)? {
            let is_folder = kind(&old) == SFlag::S_IFDIR;
            // what was no folder hid what is below it, and so does what takes its place
            is_opaque |= !is_folder;
            if is_opaque {
                remove(at.to, name, &old, 0)?;
            }
        }
        let to = match openat(at.to, name, FOLDER, Mode::empty()) {
            Err(Errno::ENOENT) => make_folder(at.to, name)?,
            found => found?,
        };
        if is_opaque {
            File::from(to.try_clone()?).set_xattr(OPAQUE, b"y")?;
        }
        self.merge_all(&At { from: from.as_fd(), to: to.as_fd(), depth: at.depth + 1 })?;
        let first_id = self.first_id;
        like_folder(from.as_fd(), to.as_fd(), |uid, gid| (inside(first_id, uid), inside(first_id, gid)))
    }

    /// Copies what is no folder to where nothing is.
    fn copy_one(&mut self, at: &At<'_>, name: &std::ffi::CStr, found: &FileStat) -> Done<()> {
        let first_id = self.first_id;
        let ids = |uid, gid| (inside(first_id, uid), inside(first_id, gid));
        match kind(found) {
            SFlag::S_IFREG => return copy_file(at, name, found, |bytes| self.weigh(bytes), ids),
            SFlag::S_IFLNK => symlinkat(readlinkat(at.from, name)?.as_os_str(), at.to, name)?,
            SFlag::S_IFIFO => {
                // the process's own mask takes bits away
                let mode = Mode::from_bits_truncate(found.st_mode & 0o7777);
                mkfifoat(at.to, name, mode)?;
                fchmodat(at.to, name, mode, FchmodatFlags::FollowSymlink)?;
            }
            // the mark of something that was removed
            SFlag::S_IFCHR if found.st_rdev == 0 => {
                return Ok(mknodat(at.to, name, SFlag::S_IFCHR, Mode::empty(), 0)?);
            }
            // a socket is of nobody any more, and a program that starts anew could not make it again
            _ => return Ok(()),
        }
        let (uid, gid) = ids(found.st_uid, found.st_gid);
        fchownat(at.to, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let (accessed, changed) = times(found);
        Ok(utimensat(at.to, name, &accessed, &changed, UtimensatFlags::NoFollowSymlink)?)
    }
}

/// The id inside of a host id.
fn inside(first_id: u32, id: u32) -> u32 {
    id.checked_sub(first_id).filter(|id| *id < IDS_PER_REPLICA).unwrap_or(NOBODY)
}

fn kind(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode & libc::S_IFMT)
}

fn size_of_file(found: &FileStat) -> u64 {
    if kind(found) == SFlag::S_IFREG { u64::try_from(found.st_blocks).unwrap_or(0).saturating_mul(512) } else { 0 }
}

fn times(found: &FileStat) -> (TimeSpec, TimeSpec) {
    (TimeSpec::new(found.st_atime, found.st_atime_nsec), TimeSpec::new(found.st_mtime, found.st_mtime_nsec))
}

/// What a folder holds; read whole, so that removing from it changes nothing.
fn names(folder: BorrowedFd<'_>) -> Done<Vec<CString>> {
    // opened anew: a descriptor has one position for all who read by it
    let own = openat(folder, ".", FOLDER, Mode::empty())?;
    let mut all = Vec::new();
    for entry in Dir::from_fd(own)?.iter() {
        let name = entry?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            all.push(name);
        }
    }
    Ok(all)
}

fn stat_of(folder: BorrowedFd<'_>, name: &std::ffi::CStr) -> Done<Option<FileStat>> {
    match fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn make_folder(parent: BorrowedFd<'_>, name: &std::ffi::CStr) -> Done<OwnedFd> {
    mkdirat(parent, name, Mode::from_bits_truncate(0o700))?;
    Ok(openat(parent, name, FOLDER, Mode::empty())?)
}

fn remove(parent: BorrowedFd<'_>, name: &std::ffi::CStr, found: &FileStat, depth: usize) -> Done<()> {
    if kind(found) != SFlag::S_IFDIR {
        return Ok(unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?);
    }
    if depth > DEPTH_MAX {
        return Err(CopyError::Failed(io::Error::other("folders are nested too deep")));
    }
    let folder = openat(parent, name, FOLDER, Mode::empty())?;
    for inner in names(folder.as_fd())? {
        let found = fstatat(&folder, inner.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        remove(folder.as_fd(), &inner, &found, depth + 1)?;
    }
    Ok(unlinkat(parent, name, UnlinkatFlags::RemoveDir)?)
}

/// Makes a folder like another: owner, mode, times, attributes. Last, as what is put into it changes its time.
fn like_folder(from: BorrowedFd<'_>, to: BorrowedFd<'_>, ids: impl Fn(u32, u32) -> (u32, u32)) -> Done<()> {
    let found = nix::sys::stat::fstat(from)?;
    let (source, target) = (File::from(from.try_clone_to_owned()?), File::from(to.try_clone_to_owned()?));
    if source.get_xattr(OPAQUE)?.is_some() {
        target.set_xattr(OPAQUE, b"y")?;
    }
    like(&source, &target, &found, ids)
}

fn like(from: &File, to: &File, found: &FileStat, ids: impl Fn(u32, u32) -> (u32, u32)) -> Done<()> {
    for name in from.list_xattr()? {
        if name.as_bytes().starts_with(b"user.")
            && let Some(value) = from.get_xattr(&name)?
        {
            set_user_attribute(to, &name, &value)?;
        }
    }
    let (uid, gid) = ids(found.st_uid, found.st_gid);
    fchown(to, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    fchmod(to, Mode::from_bits_truncate(found.st_mode & 0o7777))?;
    let (accessed, changed) = times(found);
    Ok(futimens(to, &accessed, &changed)?)
}

/// A file system may have less room for them than memory has; a file is still the same without.
fn set_user_attribute(to: &File, name: &OsStr, value: &[u8]) -> Done<()> {
    match to.set_xattr(name, value) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTSUP | libc::E2BIG | libc::ERANGE)) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => Ok(()),
        done => Ok(done?),
    }
}

/// Copies a file to where nothing is; what nobody wrote stays a hole.
fn copy_file(
    at: &At<'_>,
    name: &std::ffi::CStr,
    found: &FileStat,
    mut weigh: impl FnMut(u64) -> Done<()>,
    ids: impl Fn(u32, u32) -> (u32, u32),
) -> Done<()> {
    let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let write = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let from = File::from(openat(at.from, name, read, Mode::empty())?);
    let to = File::from(openat(at.to, name, write, Mode::from_bits_truncate(0o600))?);
    let size = u64::try_from(found.st_size).unwrap_or(0);
    let room =
        |error: io::Error| error.raw_os_error().map_or(CopyError::Failed(error), |code| Errno::from_raw(code).into());
    to.set_len(size).map_err(room)?;
    let mut buffer = vec![0; COPY_BYTES.min(usize::try_from(size).unwrap_or(COPY_BYTES))];
    let mut position = 0;
    while position < size {
        let Some((begin, end)) = next_data(&from, position, size)? else { break };
        position = begin;
        while position < end {
            let most = usize::try_from(end - position).unwrap_or(COPY_BYTES).min(buffer.len());
            let length = from.read_at(&mut buffer[..most], position).map_err(room)?;
            if length == 0 {
                break;
            }
            weigh(length as u64)?;
            to.write_all_at(&buffer[..length], position).map_err(room)?;
            position += length as u64;
        }
        position = position.max(end);
    }
    like(&from, &to, found, ids)
}

/// The next part of a file that was written, from `position` on.
fn next_data(file: &File, position: u64, size: u64) -> Done<Option<(u64, u64)>> {
    let offset = libc::off_t::try_from(position).map_err(io::Error::other)?;
    let begin = match lseek(file, offset, Whence::SeekData) {
        Err(Errno::ENXIO) => return Ok(None),
        found => found?,
    };
    let end = lseek(file, begin, Whence::SeekHole)?;
    let number = |offset: libc::off_t| u64::try_from(offset).unwrap_or(size).min(size);
    Ok(Some((number(begin), number(end))))
}

/// Opens a folder of ours.
pub(crate) fn open_folder(path: &camino::Utf8Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(path.as_std_path(), FOLDER, Mode::empty())?)
}

/// Removes a folder with all that is in it. Unlike the standard library's, its depth is limited; it follows no link either.
pub(crate) fn remove_tree(path: &camino::Utf8Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let parent = open_folder(parent)?;
    let name = CString::new(name)?;
    let Some(found) = stat_of(parent.as_fd(), &name).map_err(plain)? else { return Ok(()) };
    remove(parent.as_fd(), &name, &found, 0).map_err(plain)
}

fn plain(error: CopyError) -> io::Error {
    match error {
        CopyError::NoRoom(text) => io::Error::new(io::ErrorKind::StorageFull, text),
        CopyError::Failed(error) => error,
    }
}

/// Waits until all of a file system that was written is on the disk.
#[expect(unsafe_code, reason = "syncfs has no safe wrapper")]
pub(crate) fn sync(folder: &OwnedFd) -> io::Result<()> {
    // SAFETY: a number, of a descriptor that is open.
    Errno::result(unsafe { libc::syncfs(folder.as_raw_fd()) })?;
    Ok(())
}

/// Bytes that are free on the disk of a folder.
pub(crate) fn free_bytes(folder: &OwnedFd) -> io::Result<u64> {
    let found = nix::sys::statvfs::fstatvfs(folder)?;
    Ok(found.blocks_available().saturating_mul(found.fragment_size()))
}

#[cfg(test)]
mod tests;
