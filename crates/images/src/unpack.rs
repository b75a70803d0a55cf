//! Unpacks one layer's tar into a directory that overlayfs can use as a lower directory.
//!
//! A layer is written by a stranger and unpacked by root, so nothing here follows a path outside the layer's directory:
//! parents are opened with `openat2(RESOLVE_IN_ROOT)`, which resolves symbolic links of the layer as if its directory were
//! `/`, and the last component is never followed. Whiteouts become what overlayfs wants: `.wh.x` a character device 0:0
//! named `x`, `.wh..wh..opq` the attribute `trusted.overlay.opaque` of its directory.
//!
//! **Invariant:** every system call here names a single component below a descriptor that was opened in the root.
//!
//! **Invariant:** no `trusted.*` attribute of a layer is taken over: with those a layer could steer overlayfs.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use camino::{Utf8Path, Utf8PathBuf};
use cove_base::open_confined;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, makedev, mkdirat,
    mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};
use tar::EntryType;
use xattr::FileExt as _;

use crate::digest::Digest;
use crate::error::ImageError;

/// Most entries of one layer; the largest known images have some hundred thousand.
const ENTRIES_MAX: u64 = 4_000_000;

/// Unpacks the tar stream `reader` into the existing, empty directory `root` and returns the bytes of all files.
pub(crate) fn unpack(reader: impl Read, root: &Utf8Path, layer: &Digest) -> Result<u64, ImageError> {
    let root_fd = File::open(root).map_err(|error| ImageError::io("open", root, error))?;
    let mut unpacker = Unpacker {
        root_fd: root_fd.into(),
        root: root.to_owned(),
        layer,
        parent: None,
        directory_times: Vec::new(),
        buffer: vec![0; 128 * 1024],
        size: 0,
    };
    let mut archive = tar::Archive::new(reader);
    let broken = |error: io::Error| ImageError::invalid(format!("layer {layer}"), error);
    let mut count = 0;
    for entry in archive.entries().map_err(broken)? {
        unpacker.entry(entry.map_err(broken)?)?;
        count += 1;
        if count > ENTRIES_MAX {
            return Err(ImageError::invalid(
                format!("layer {layer}"),
                format!("it has more than {ENTRIES_MAX} entries"),
            ));
        }
    }
    unpacker.finish()
}

struct Unpacker<'a> {
    root_fd: OwnedFd,
    root: Utf8PathBuf,
    layer: &'a Digest,
    /// The directory of the last entry: most entries share it with their neighbour.
    parent: Option<(Vec<OsString>, OwnedFd)>,
    /// Set at the end, because every new child changes them.
    directory_times: Vec<(Vec<OsString>, TimeSpec)>,
    buffer: Vec<u8>,
    size: u64,
}

/// What is written onto every entry.
struct Meta {
    mode: Mode,
    owner: (Uid, Gid),
    modified: TimeSpec,
    attributes: Vec<(OsString, Vec<u8>)>,
}

impl Unpacker<'_> {
    fn entry(&mut self, mut entry: tar::Entry<'_, impl Read>) -> Result<(), ImageError> {
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let broken = |error: io::Error| ImageError::invalid(format!("entry `{shown}`"), error);
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let mut path = components(&entry.path_bytes()).map_err(|reason| self.unsafe_entry(&shown, reason))?;
        let meta = meta(&mut entry).map_err(broken)?;
        let Some(name) = path.pop() else {
            let root = self.root_fd.try_clone().map_err(|error| ImageError::io("open", &self.root, error))?;
            return self.directory_meta(root, Vec::new(), &meta, &shown);
        };
        let root = self.root.clone();
        let io = |error: Errno| self_io(&root, &shown, error);
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            let hidden = OsStr::from_bytes(hidden).to_owned();
            return self.whiteout(path, &hidden, &shown);
        }
        let parent = self.parent(&path, &shown)?;
        let replaced_whiteout = self.make_room(&parent, &name, kind == EntryType::Directory, &shown)?;
        match kind {
            EntryType::Directory => {
                match mkdirat(&parent, name.as_os_str(), Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(io(error)),
                }
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let directory = openat(&parent, name.as_os_str(), flags, Mode::empty()).map_err(io)?;
                if replaced_whiteout {
                    set_opaque(&directory).map_err(|error| ImageError::io("mark", &self.root.join(&shown), error))?;
                }
                let mut whole = path;
                whole.push(name);
                return self.put_back(parent, whole.len() - 1, &whole).directory_meta(directory, whole, &meta, &shown);
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(&parent, &name, &mut entry, &meta, &shown)?;
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.hard_link(&parent, &name, &target, &shown)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                symlinkat(OsStr::from_bytes(&target), &parent, name.as_os_str()).map_err(io)?;
                self.node_meta(&parent, &name, &meta, false).map_err(io)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let flag = match kind {
                    EntryType::Char => SFlag::S_IFCHR,
                    EntryType::Block => SFlag::S_IFBLK,
                    _ => SFlag::S_IFIFO,
                };
                let number = |part: io::Result<Option<u32>>| u64::from(part.ok().flatten().unwrap_or(0));
                let device = makedev(number(entry.header().device_major()), number(entry.header().device_minor()));
                mknodat(&parent, name.as_os_str(), flag, Mode::empty(), device).map_err(io)?;
                self.node_meta(&parent, &name, &meta, true).map_err(io)?;
            }
            other => return Err(self.unsafe_entry(&shown, format!("is of the unknown kind {other:?}"))),
        }
        self.parent = Some((path, parent));
        Ok(())
    }

    /// Keeps an opened parent for the next entry.
    fn put_back(&mut self, parent: OwnedFd, length: usize, whole: &[OsString]) -> &mut Self {
        self.parent = Some((whole[..length].to_vec(), parent));
        self
    }

    /// Opens the directory `path` inside the root and makes what is missing of it.
    fn parent(&mut self, path: &[OsString], shown: &str) -> Result<OwnedFd, ImageError> {
        if let Some((known, fd)) = self.parent.take()
            && known == path
        {
            return Ok(fd);
        }
        let io = |error: Errno| self_io(&self.root, shown, error);
        if path.is_empty() {
            return self.root_fd.try_clone().map_err(|error| ImageError::io("open", &self.root, error));
        }
        match self.open_in_root(path) {
            Err(Errno::ENOENT) => {}
            Err(Errno::ENOTDIR) => return Err(self.unsafe_entry(shown, "lies below something that is no directory")),
            Err(Errno::ELOOP) => return Err(self.unsafe_entry(shown, "lies below a loop of symbolic links")),
            other => return other.map_err(io),
        }
        for length in 1..=path.len() {
            let (above, name) = (&path[..length - 1], &path[length - 1]);
            match self.open_in_root(&path[..length]) {
                Ok(_) => continue,
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(io(error)),
            }
            let above = self.open_in_root(above).map_err(io)?;
            let mode = Mode::from_bits_truncate(0o755);
            match mkdirat(&above, name.as_os_str(), mode) {
                // Again, because the process may have a strict umask.
                Ok(()) => fchmodat(&above, name.as_os_str(), mode, FchmodatFlags::FollowSymlink).map_err(io)?,
                Err(Errno::EEXIST) => return Err(self.unsafe_entry(shown, "lies below a symbolic link to nowhere")),
                Err(error) => return Err(io(error)),
            }
        }
        self.open_in_root(path).map_err(io)
    }

    fn open_in_root(&self, path: &[OsString]) -> nix::Result<OwnedFd> {
        let joined = if path.is_empty() { OsString::from(".") } else { path.join(OsStr::new("/")) };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        open_confined(&self.root_fd, joined.as_os_str(), how)
    }

    /// Removes what an earlier entry put under this name; a directory stays for a directory. True if it was a whiteout.
    fn make_room(&self, parent: &OwnedFd, name: &OsStr, for_directory: bool, shown: &str) -> Result<bool, ImageError> {
        let io = |error: Errno| self_io(&self.root, shown, error);
        let Some(found) = lookup(parent, name).map_err(io)? else { return Ok(false) };
        if is_kind(&found, SFlag::S_IFDIR) {
            if !for_directory {
                let path = format!("/proc/self/fd/{}/", parent.as_raw_fd());
                let path = std::path::Path::new(&path).join(name);
                std::fs::remove_dir_all(path)
                    .map_err(|error| ImageError::io("replace", &self.root.join(shown), error))?;
            }
            return Ok(false);
        }
        unlinkat(parent, name, UnlinkatFlags::NoRemoveDir).map_err(io)?;
        Ok(is_kind(&found, SFlag::S_IFCHR) && found.st_rdev == 0)
    }

    fn whiteout(&mut self, path: Vec<OsString>, hidden: &OsStr, shown: &str) -> Result<(), ImageError> {
        let parent = self.parent(&path, shown)?;
        let io = |error: Errno| self_io(&self.root, shown, error);
        if hidden == ".wh..opq" {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let directory = openat(&parent, ".", flags, Mode::empty()).map_err(io)?;
            set_opaque(&directory).map_err(|error| ImageError::io("mark", &self.root.join(shown), error))?;
        } else if hidden.as_bytes().starts_with(b".wh.") {
            // Bookkeeping of aufs, of no meaning to anyone else.
        } else if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err(self.unsafe_entry(shown, "hides nothing that has a name"));
        } else {
            match lookup(&parent, hidden).map_err(io)? {
                None => mknodat(&parent, hidden, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).map_err(io)?,
                // Hides only what lies below: the directory of this layer shows nothing of it then.
                Some(found) if is_kind(&found, SFlag::S_IFDIR) => {
                    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                    let directory = openat(&parent, hidden, flags, Mode::empty()).map_err(io)?;
                    set_opaque(&directory).map_err(|error| ImageError::io("mark", &self.root.join(shown), error))?;
                }
                // A file of this layer hides what lies below by itself.
                Some(_) => {}
            }
        }
        self.parent = Some((path, parent));
        Ok(())
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        content: &mut impl Read,
        meta: &Meta,
        shown: &str,
    ) -> Result<(), ImageError> {
        let path = self.root.join(shown);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(parent, name, flags, Mode::from_bits_truncate(0o600))
            .map_err(|error| self_io(&self.root, shown, error))?;
        let mut file = File::from(fd);
        loop {
            let count = match content.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ImageError::invalid(format!("layer {}", self.layer), error)),
            };
            file.write_all(&self.buffer[..count]).map_err(|error| ImageError::io("write", &path, error))?;
            self.size += count as u64;
        }
        set_meta(&file, meta).map_err(|error| ImageError::io("write", &path, error))?;
        futimens(&file, &meta.modified, &meta.modified).map_err(|error| self_io(&self.root, shown, error))
    }

    fn hard_link(&mut self, parent: &OwnedFd, name: &OsStr, target: &[u8], shown: &str) -> Result<(), ImageError> {
        let mut path = components(target).map_err(|reason| self.unsafe_entry(shown, reason))?;
        let missing = |unpacker: &Self| {
            let target = String::from_utf8_lossy(target);
            unpacker.unsafe_entry(shown, format!("is a hard link to `{target}`, which is not in the layer before it"))
        };
        let Some(target_name) = path.pop() else { return Err(missing(self)) };
        let target_parent = match self.open_in_root(&path) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Err(missing(self)),
            Err(error) => return Err(self_io(&self.root, shown, error)),
        };
        match linkat(&target_parent, target_name.as_os_str(), parent, name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::ENOENT) => Err(missing(self)),
            Err(Errno::EPERM) => Err(self.unsafe_entry(shown, "is a hard link to something that cannot have one")),
            Err(error) => Err(self_io(&self.root, shown, error)),
        }
    }

    fn directory_meta(
        &mut self,
        directory: OwnedFd,
        path: Vec<OsString>,
        meta: &Meta,
        shown: &str,
    ) -> Result<(), ImageError> {
        let file = File::from(directory);
        set_meta(&file, meta).map_err(|error| ImageError::io("write", &self.root.join(shown), error))?;
        self.directory_times.push((path, meta.modified));
        Ok(())
    }

    /// Owner, mode and time of a link or device, which is never opened.
    fn node_meta(&self, parent: &OwnedFd, name: &OsStr, meta: &Meta, with_mode: bool) -> nix::Result<()> {
        fchownat(parent, name, Some(meta.owner.0), Some(meta.owner.1), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if with_mode {
            // Not a link: it was made by `mknodat` just now.
            fchmodat(parent, name, meta.mode, FchmodatFlags::FollowSymlink)?;
        }
        utimensat(parent, name, &meta.modified, &meta.modified, UtimensatFlags::NoFollowSymlink)
    }

    fn finish(self) -> Result<u64, ImageError> {
        for (path, modified) in self.directory_times.iter().rev() {
            // A later entry may have replaced the directory.
            if let Ok(directory) = self.open_in_root(path) {
                let _ = utimensat(&directory, ".", modified, modified, UtimensatFlags::NoFollowSymlink);
            }
        }
        Ok(self.size)
    }

    fn unsafe_entry(&self, entry: &str, reason: impl Into<String>) -> ImageError {
        ImageError::UnsafeLayer { layer: self.layer.clone(), entry: entry.to_owned(), reason: reason.into() }
    }
}

fn self_io(root: &Utf8Path, shown: &str, error: Errno) -> ImageError {
    ImageError::io("unpack", &root.join(shown.trim_start_matches('/')), error.into())
}

/// Splits a path of the tar; `.` and empty parts mean nothing, a leading `/` is the layer's own root.
fn components(path: &[u8]) -> Result<Vec<OsString>, &'static str> {
    let mut parts = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("names a directory above with `..`"),
            part if part.contains(&0) => return Err("has a zero byte in its name"),
            part => parts.push(OsStr::from_bytes(part).to_owned()),
        }
    }
    Ok(parts)
}

fn meta(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Meta> {
    let mut attributes = Vec::new();
    let mut modified = None;
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            let key = extension.key_bytes();
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                if name.starts_with(b"user.") || name == b"security.capability" {
                    attributes.push((OsStr::from_bytes(name).to_owned(), extension.value_bytes().to_vec()));
                }
            } else if key == b"mtime" {
                modified = extension.value().ok().and_then(pax_time);
            }
        }
    }
    let header = entry.header();
    let id = |value: io::Result<u64>| value.ok().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
    Ok(Meta {
        mode: Mode::from_bits_truncate(header.mode().unwrap_or(0o755) & 0o7777),
        owner: (Uid::from_raw(id(header.uid())), Gid::from_raw(id(header.gid()))),
        modified: modified.unwrap_or_else(|| TimeSpec::new(i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), 0)),
        attributes,
    })
}

/// A PAX time: seconds with an optional fraction.
fn pax_time(text: &str) -> Option<TimeSpec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(TimeSpec::new(seconds.parse().ok()?, nanos.parse().ok()?))
}

/// Owner before mode, because a change of owner clears the set-id bits, and before capabilities for the same reason.
fn set_meta(file: &File, meta: &Meta) -> io::Result<()> {
    fchown(file.as_fd(), Some(meta.owner.0), Some(meta.owner.1))?;
    fchmod(file.as_fd(), meta.mode)?;
    for (name, value) in &meta.attributes {
        match file.set_xattr(name, value) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Err(error),
            // Best effort: some file systems keep no such attributes.
            Err(error) => tracing::debug!(attribute = ?name, %error, "extended attribute not set"),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn set_opaque(directory: &OwnedFd) -> io::Result<()> {
    File::from(directory.try_clone()?).set_xattr("trusted.overlay.opaque", b"y")
}

fn lookup(parent: &OwnedFd, name: &OsStr) -> nix::Result<Option<FileStat>> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_kind(found: &FileStat, kind: SFlag) -> bool {
    found.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}
