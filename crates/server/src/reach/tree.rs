//! Files of a container as a tar stream, out and in.
//!
//! The container may change its files, and put links among them, at any moment. So a path is given to the kernel whole, to
//! be resolved with the container's root as the root, or one name at a time below a directory that is held open.
//!
//! **Invariant:** nothing outside of the container's root is read, made or changed.
//! **Invariant:** no device, socket or pipe is opened or made, and nothing is written to the kernel's own file systems.
//! **Invariant:** memory does not grow with what arrives: an entry's head has a bound, its content goes to the file at once.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use cove_base::open_confined;
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, readlinkat},
    sys::{
        stat::{FileStat, Mode, SFlag, fchmod, fstatat, mkdirat},
        statfs::{self, fstatfs},
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, symlinkat, unlinkat},
};

/// Deepest directory that is packed.
const DEPTH_MAX: usize = 128;
/// Bytes of an arriving archive from the content of one entry to that of the next: names, links and attributes, which are
/// kept in memory, and maps of sparse files. A longer head is refused.
const HEAD_MAX_BYTES: usize = 1 << 20;

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unpacked {
    /// Files, directories and links.
    pub(super) files: u64,
    /// Bytes of files.
    pub(super) bytes: u64,
    /// Devices, pipes and hard links that were left out.
    pub(super) skipped: u64,
}

fn in_root(root: &OwnedFd, path: &str, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let path = path.trim_start_matches('/');
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(resolve);
    Ok(open_confined(root, if path.is_empty() { "." } else { path }, how)?)
}

/// What is at a path, links followed.
pub(super) fn find(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    in_root(root, path, OFlag::O_PATH, Mode::empty())
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Writes what was found at a path, under the last part of that path.
pub(super) fn pack(root: &OwnedFd, found: &OwnedFd, path: &str, out: &mut impl Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    tar.mode(tar::HeaderMode::Complete);
    let name = path.trim_end_matches('/').rsplit('/').next().filter(|name| !matches!(*name, "" | "." | ".."));
    let name = name.unwrap_or("root");
    let stat = nix::sys::stat::fstat(found)?;
    match kind(&stat) {
        SFlag::S_IFDIR => {
            let dir = in_root(root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
            pack_dir(&mut tar, &dir, name, 0)?;
        }
        SFlag::S_IFREG => {
            let file = in_root(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty())?;
            pack_file(&mut tar, file, name)?;
        }
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "is neither a file nor a directory")),
    }
    tar.finish()
}

fn pack_file(tar: &mut tar::Builder<impl Write>, file: OwnedFd, name: &str) -> io::Result<()> {
    let file = File::from(file);
    let data = file.metadata()?;
    if !data.is_file() {
        return Ok(());
    }
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&data);
    // it may grow or shrink while it is read, and the header has gone out
    let exactly = (&file).take(data.size()).chain(io::repeat(0)).take(data.size());
    tar.append_data(&mut header, name, exactly)
}

fn pack_dir(tar: &mut tar::Builder<impl Write>, dir: &OwnedFd, name: &str, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("is nested deeper than {DEPTH_MAX}")));
    }
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&File::from(dir.try_clone()?).metadata()?);
    tar.append_data(&mut header, format!("{name}/"), io::empty())?;
    if is_of_the_kernel(dir)? {
        return Ok(());
    }
    let mut listed =
        Dir::from_fd(openat(dir, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)?;
    let mut names = Vec::new();
    for entry in listed.iter() {
        let entry = entry?;
        // a name that is not UTF-8 cannot be said in JSON or on a command line either
        if let Ok(name) = entry.file_name().to_str()
            && !matches!(name, "." | "..")
        {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    for entry in names {
        pack_entry(tar, dir, &entry, &format!("{name}/{entry}"), depth)?;
    }
    Ok(())
}

fn pack_entry(
    tar: &mut tar::Builder<impl Write>,
    dir: &OwnedFd,
    entry: &str,
    name: &str,
    depth: usize,
) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let stat = match fstatat(dir, entry, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => return Ok(()),
        stat => stat?,
    };
    match kind(&stat) {
        SFlag::S_IFDIR => match openat(dir, entry, flags | OFlag::O_DIRECTORY, Mode::empty()) {
            Ok(inner) => pack_dir(tar, &inner, name, depth + 1),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
            Err(error) => Err(error.into()),
        },
        SFlag::S_IFREG => match openat(dir, entry, flags, Mode::empty()) {
            Ok(file) => pack_file(tar, file, name),
            Err(Errno::ENOENT | Errno::ELOOP) => Ok(()),
            Err(error) => Err(error.into()),
        },
        SFlag::S_IFLNK => {
            let target = readlinkat(dir, entry)?;
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            header.set_mode(0o777);
            header.set_uid(stat.st_uid.into());
            header.set_gid(stat.st_gid.into());
            header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
            tar.append_link(&mut header, name, target)
        }
        _ => Ok(()),
    }
}

/// `/proc`, `/sys` and alike: not files of the container, and without an end.
fn is_of_the_kernel(at: &OwnedFd) -> io::Result<bool> {
    let found = fstatfs(at)?.filesystem_type();
    Ok([statfs::PROC_SUPER_MAGIC, statfs::SYSFS_MAGIC, statfs::CGROUP_SUPER_MAGIC, statfs::CGROUP2_SUPER_MAGIC]
        .contains(&found))
}

/// Unpacks a tar stream into a directory, which is made when missing. All belongs to the owner of the directory.
pub(super) fn unpack(root: &OwnedFd, path: &str, reader: impl Read) -> io::Result<Unpacked> {
    make_dirs(root, path, None)?;
    let target = in_root(root, path, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?;
    let stat = nix::sys::stat::fstat(&target)?;
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let mut done = Unpacked::default();
    let head_left = Cell::new(None);
    let mut archive = tar::Archive::new(Headed { reader, head_left: &head_left });
    let mut entries = archive.entries()?;
    let mut next = || {
        head_left.set(Some(HEAD_MAX_BYTES));
        let entry = entries.next().transpose();
        head_left.set(None);
        entry
    };
    while let Some(mut entry) = next()? {
        unpack_entry(root, path, owner, &mut entry, &mut done)?;
        // what was not taken of its content is no part of the next one's head
        io::copy(&mut entry, &mut io::sink())?;
    }
    Ok(done)
}

fn unpack_entry(
    root: &OwnedFd,
    path: &str,
    owner: (Uid, Gid),
    entry: &mut tar::Entry<'_, impl Read>,
    done: &mut Unpacked,
) -> io::Result<()> {
    let name = inner_name(&entry.path()?)?;
    let entry_type = entry.header().entry_type();
    if name.is_empty() {
        // its holes have no bound, and would be read to get past it
        return if entry_type.is_gnu_sparse() { Err(invalid("a sparse file without a name")) } else { Ok(()) };
    }
    let full = format!("{}/{name}", path.trim_end_matches('/'));
    let (parent, last) = full.rsplit_once('/').unwrap_or(("", &full));
    let mode = Mode::from_bits_truncate(entry.header().mode().unwrap_or(0o644) & 0o777);
    match entry_type {
        tar::EntryType::Directory => make_dirs(root, &full, Some(owner))?,
        tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
            make_dirs(root, parent, Some(owner))?;
            done.bytes += write_file(root, &full, mode, owner, entry)?;
        }
        tar::EntryType::Symlink => {
            make_dirs(root, parent, Some(owner))?;
            let link = entry.link_name()?.ok_or_else(|| invalid("a link without a target"))?;
            let dir = in_root(root, parent, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?;
            make_link(&dir, last, link.as_os_str(), owner)?;
        }
        _ => {
            done.skipped += 1;
            return Ok(());
        }
    }
    done.files += 1;
    Ok(())
}

/// The reader under an archive, which takes the heads of entries whole into memory, however long they say they are.
struct Headed<'a, R> {
    reader: R,
    /// Bytes that the head may still have; `None` while content is read, which has no bound here.
    head_left: &'a Cell<Option<usize>>,
}

impl<R: Read> Read for Headed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(left) = self.head_left.get() else { return self.reader.read(buffer) };
        if left == 0 && !buffer.is_empty() {
            let message = format!("the head of an entry is longer than {} MiB", HEAD_MAX_BYTES >> 20);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        let room = buffer.len().min(left);
        let length = self.reader.read(&mut buffer[..room])?;
        self.head_left.set(Some(left.saturating_sub(length)));
        Ok(length)
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the tar stream holds {what}"))
}

/// An entry's name without `.` and slashes around it; `..` is refused.
fn inner_name(path: &std::path::Path) -> io::Result<String> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(part) => {
                parts.push(part.to_str().ok_or_else(|| invalid("a name that is not UTF-8"))?);
            }
            std::path::Component::CurDir => {}
            std::path::Component::RootDir | std::path::Component::ParentDir | std::path::Component::Prefix(_) => {
                return Err(invalid("a name that leads out of its directory"));
            }
        }
    }
    Ok(parts.join("/"))
}

fn make_dirs(root: &OwnedFd, path: &str, owner: Option<(Uid, Gid)>) -> io::Result<()> {
    let mut done = String::new();
    for part in path.split('/').filter(|part| !matches!(*part, "" | ".")) {
        let parent = in_root(root, &done, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?;
        done = format!("{done}/{part}");
        match in_root(root, &done, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                mkdirat(&parent, part, Mode::from_bits_truncate(0o755))?;
                let stat = nix::sys::stat::fstat(&parent)?;
                let (uid, gid) = owner.unwrap_or_else(|| (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid)));
                fchownat(&parent, part, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            }
            found => drop(found?),
        }
    }
    Ok(())
}

fn write_file(
    root: &OwnedFd,
    path: &str,
    mode: Mode,
    (uid, gid): (Uid, Gid),
    content: &mut impl Read,
) -> io::Result<u64> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let fd = in_root(root, path, flags, mode)?;
    if kind(&nix::sys::stat::fstat(&fd)?) != SFlag::S_IFREG {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("'{path}' is there and is no file")));
    }
    if is_of_the_kernel(&fd)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("'{path}' is a file of the kernel's")));
    }
    let mut file = File::from(fd);
    file.set_len(0)?;
    let length = io::copy(content, &mut file)?;
    fchown(file.as_fd(), Some(uid), Some(gid))?;
    fchmod(file.as_fd(), mode)?;
    Ok(length)
}

fn make_link(dir: &OwnedFd, name: &str, target: &std::ffi::OsStr, (uid, gid): (Uid, Gid)) -> io::Result<()> {
    match symlinkat(target, dir, name) {
        Err(Errno::EEXIST) => {
            // a directory in its place stays
            unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
            symlinkat(target, dir, name)?;
        }
        done => done?,
    }
    Ok(fchownat(dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
        path::Path,
    };

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap()
    }

    fn packed(root: &OwnedFd, path: &str) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        pack(root, &find(root, path)?, path, &mut out)?;
        Ok(out)
    }

    fn names(tar: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(tar);
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
    }

    #[test]
    fn a_tree_goes_out_and_in_again() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("srv/app/sub")).unwrap();
        fs::create_dir_all(to.join("data")).unwrap();
        fs::write(from.join("srv/app/run"), "run").unwrap();
        fs::set_permissions(from.join("srv/app/run"), fs::Permissions::from_mode(0o750)).unwrap();
        symlink("run", from.join("srv/app/link")).unwrap();
        nix::unistd::mkfifo(&from.join("srv/app/pipe"), Mode::from_bits_truncate(0o600)).unwrap();
        std::os::unix::fs::chown(to.join("data"), Some(1000), Some(1001)).unwrap();
        let tar = packed(&open(&from), "/srv/app").unwrap();
        assert_eq!(names(&tar), ["app/", "app/link", "app/run", "app/sub/"]);
        let done = unpack(&open(&to), "/data/new", &tar[..]).unwrap();
        assert_eq!(done, Unpacked { files: 4, bytes: 3, skipped: 0 });
        let run = fs::metadata(to.join("data/new/app/run")).unwrap();
        assert_eq!((run.uid(), run.gid(), run.mode() & 0o777), (1000, 1001, 0o750));
        assert_eq!(fs::read_link(to.join("data/new/app/link")).unwrap(), Path::new("run"));
        // again over what is there
        assert_eq!(unpack(&open(&to), "/data/new", &tar[..]).unwrap(), done);
        assert_eq!(names(&packed(&open(&to), "data/new/app/run").unwrap()), ["run"]);
    }

    #[test]
    fn links_do_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        symlink("../secret", root.join("up")).unwrap();
        symlink(dir.path(), root.join("away")).unwrap();
        symlink("/etc", root.join("inside")).unwrap();
        let fd = open(&root);
        for path in ["up", "away/secret", "../secret", "away"] {
            assert_eq!(packed(&fd, path).err().map(|error| error.kind()), Some(io::ErrorKind::NotFound), "{path}");
        }
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        tar.append_data(&mut header, "file", &b"x"[..]).unwrap();
        let tar = tar.into_inner().unwrap();
        unpack(&fd, "inside", &tar[..]).unwrap();
        assert!(root.join("etc/file").exists());
        assert!(unpack(&fd, "away", &tar[..]).is_err());
        assert!(!dir.path().join("file").exists());
        // what is the kernel's is not written, wherever a link leads to it
        let host = open(Path::new("/"));
        let written =
            write_file(&host, "/proc/self/comm", Mode::empty(), (Uid::current(), Gid::current()), &mut &b"x"[..]);
        assert!(written.unwrap_err().to_string().contains("of the kernel"));
        // a link where the file goes is not followed
        symlink("/etc/other", root.join("etc/link")).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_data(&mut header, "link", &b"x"[..]).unwrap();
        assert!(unpack(&fd, "etc", &tar.into_inner().unwrap()[..]).is_err());
    }

    #[test]
    fn heads_have_a_bound() {
        use tar::EntryType as E;
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let head = |entry_type, size| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(entry_type);
            header.set_path("name").unwrap();
            header.set_size(size);
            header.set_cksum();
            header.as_bytes().to_vec()
        };
        for entry_type in [E::GNULongName, E::GNULongLink, E::XHeader] {
            let mut zeros = io::repeat(0).take(u64::MAX);
            let tar = head(entry_type, 8 << 30);
            let error = unpack(&root, "data", tar.as_slice().chain(zeros.by_ref())).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{entry_type:?}: {error}");
            let read = u64::MAX - zeros.limit();
            assert!(read < 2 * HEAD_MAX_BYTES as u64, "{entry_type:?}: {read}");
        }
        // the map of a sparse file is a part of its head
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(E::GNUSparse);
        header.set_path("name").unwrap();
        header.set_size(0);
        header.as_gnu_mut().unwrap().set_is_extended(true);
        header.set_cksum();
        let mut more = tar::GnuExtSparseHeader::new();
        more.set_is_extended(true);
        let tar = [header.as_bytes().as_slice(), &more.as_bytes().repeat(HEAD_MAX_BYTES / 256)].concat();
        assert_eq!(unpack(&root, "data", tar.as_slice()).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn long_names_and_content_are_no_long_heads() {
        let dir = tempfile::tempdir().unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut append = |entry_type, name: &str, size: usize| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(entry_type);
            header.set_size(size as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, io::repeat(b'x').take(size as u64)).unwrap();
        };
        // neither what is left out nor what is written counts
        append(tar::EntryType::Directory, "./", 2 * HEAD_MAX_BYTES);
        append(tar::EntryType::Fifo, "pipe", 2 * HEAD_MAX_BYTES);
        append(tar::EntryType::Regular, "large", 2 * HEAD_MAX_BYTES);
        let long = ["n".repeat(200).as_str(); 15].join("/");
        append(tar::EntryType::Regular, &long, 1);
        let tar = tar.into_inner().unwrap();
        let done = unpack(&open(dir.path()), "data", &tar[..]).unwrap();
        assert_eq!(done, Unpacked { files: 2, bytes: 2 * HEAD_MAX_BYTES as u64 + 1, skipped: 1 });
        assert_eq!(fs::read(dir.path().join("data").join(long)).unwrap(), b"x");
    }

    #[test]
    fn a_sparse_file_without_a_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_path("./").unwrap();
        header.set_size(0);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(1 << 60);
        gnu.sparse[0].set_offset(1 << 60);
        gnu.sparse[0].set_length(0);
        header.set_cksum();
        let error = unpack(&open(dir.path()), "data", header.as_bytes().as_slice()).unwrap_err();
        assert!(error.to_string().contains("a sparse file without a name"), "{error}");
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["../x", "/x", "a/../../x"] {
            assert!(inner_name(Path::new(name)).is_err(), "{name}");
        }
        assert_eq!(inner_name(Path::new("./a//b/.")).unwrap(), "a/b");
    }
}
