//! Reading what containers wrote: every step is resolved by the kernel below one directory, and no link is followed.
//!
//! **Invariant:** only regular files are opened to be read, and no open waits.
//! **Invariant:** a walk ends: its files and its depth have a bound.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
};

use camino::Utf8Path;
use cove_base::open_confined;
use cove_control_plane::{ARTIFACT_DEPTH_MAX, Artifact};
use jiff::Timestamp;
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open as open_at, openat},
    sys::stat::{Mode, SFlag, fstatat},
};

/// Files and directories that a walk looks at.
pub(super) const ENTRIES_MAX: u64 = 100_000;

/// Bytes of a block in `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// Regular files that can be named in a request, as many as were asked for.
    pub(super) files: Vec<Artifact>,
    /// Bytes that all of it takes on the disk.
    pub(super) bytes: u64,
    /// Files, directories and links.
    pub(super) entries: u64,
    /// Something was not looked at, or not listed.
    pub(super) is_cut: bool,
}

fn root_of(path: &Utf8Path) -> io::Result<OwnedFd> {
    Ok(open_at(
        path.as_std_path(),
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens a regular file below a directory.
///
/// # Errors
/// `NotFound`; `InvalidInput` with words for a link, a directory, a pipe, and a path that leads out.
pub(super) fn open(root: &Utf8Path, path: &str) -> io::Result<(File, u64)> {
    let refused = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let root = root_of(root)?;
    let find = |flags: OFlag| {
        let how = OpenHow::new().flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(resolve);
        open_confined(&root, path, how).map_err(|error| match error {
            Errno::ELOOP => refused("it is a link, or behind one"),
            Errno::EXDEV => refused("it leads out of the artifacts"),
            Errno::ENOTDIR => io::ErrorKind::NotFound.into(),
            other => other.into(),
        })
    };
    // a pipe or a device is not even opened
    if !File::from(find(OFlag::O_PATH)?).metadata()?.is_file() {
        return Err(refused("it is no regular file"));
    }
    let file = File::from(find(OFlag::O_RDONLY | OFlag::O_NONBLOCK)?);
    let data = file.metadata()?;
    if !data.is_file() {
        return Err(refused("it is no regular file"));
    }
    Ok((file, data.size()))
}

/// Looks at all that is below a directory, and lists the first `files_max` files by path; `None` when it is not there.
pub(super) fn walk(root: &Utf8Path, files_max: usize) -> io::Result<Option<Walked>> {
    let root = match root_of(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        root => root?,
    };
    let mut walked = Walked::default();
    walk_dir(&root, "", 1, files_max, &mut walked)?;
    walked.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Some(walked))
}

fn walk_dir(dir: &OwnedFd, above: &str, depth: usize, files_max: usize, walked: &mut Walked) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listed = Dir::from_fd(openat(dir, ".", flags, Mode::empty())?)?;
    for entry in listed.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if walked.entries == ENTRIES_MAX {
            walked.is_cut = true;
            return Ok(());
        }
        walked.entries += 1;
        let stat = match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => continue,
            stat => stat?,
        };
        walked.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK_BYTES;
        // what cannot be named in a URL counts and is not listed
        let path = name.to_str().ok().filter(|name| !name.chars().any(char::is_control));
        let path = path.map(|name| if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") });
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR if depth < ARTIFACT_DEPTH_MAX => {
                let inner = openat(dir, name, flags | OFlag::O_NOFOLLOW, Mode::empty());
                match (inner, path) {
                    (Ok(inner), Some(path)) => walk_dir(&inner, &path, depth + 1, files_max, walked)?,
                    (Ok(inner), None) => {
                        walked.is_cut = true;
                        walk_dir(&inner, "", depth + 1, 0, walked)?;
                    }
                    (Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP), _) => {}
                    (Err(error), _) => return Err(error.into()),
                }
            }
            SFlag::S_IFDIR => walked.is_cut = true,
            SFlag::S_IFREG => match path.filter(|_| walked.files.len() < files_max) {
                Some(path) => walked.files.push(Artifact {
                    path,
                    bytes: u64::try_from(stat.st_size).unwrap_or(0),
                    modified_at: Timestamp::from_second(stat.st_mtime).unwrap_or(Timestamp::UNIX_EPOCH),
                }),
                None => walked.is_cut = true,
            },
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn names(walked: &Walked) -> Vec<&str> {
        walked.files.iter().map(|file| file.path.as_str()).collect()
    }

    #[test]
    fn files_are_listed_and_links_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap().join("artifacts");
        assert!(walk(&root, 10).unwrap().is_none());
        fs::create_dir_all(root.join("out/deep")).unwrap();
        fs::write(root.join("out/deep/b"), "bb").unwrap();
        fs::write(root.join("a"), "a").unwrap();
        fs::write(root.join("bad\nname"), "x").unwrap();
        symlink("/etc/passwd", root.join("link")).unwrap();
        symlink("/etc", root.join("away")).unwrap();
        nix::unistd::mkfifo(root.join("pipe").as_std_path(), Mode::from_bits_truncate(0o600)).unwrap();
        let walked = walk(&root, 10).unwrap().unwrap();
        assert_eq!((names(&walked), walked.is_cut, walked.entries), (vec!["a", "out/deep/b"], true, 8));
        assert!(walked.bytes > 0);
        let few = walk(&root, 1).unwrap().unwrap();
        assert_eq!((few.files.len(), few.is_cut), (1, true));
    }

    #[test]
    fn only_files_below_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap().join("artifacts");
        fs::create_dir_all(root.join("out")).unwrap();
        fs::write(root.join("out/a"), "abc").unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        symlink("../secret", root.join("up")).unwrap();
        symlink("out", root.join("inside")).unwrap();
        nix::unistd::mkfifo(root.join("pipe").as_std_path(), Mode::from_bits_truncate(0o600)).unwrap();
        let (file, bytes) = open(&root, "out/a").unwrap();
        assert_eq!((io::read_to_string(file).unwrap().as_str(), bytes), ("abc", 3));
        let kind = |path: &str| open(&root, path).unwrap_err().kind();
        for path in ["up", "inside/a", "../secret", "out/../../secret", "pipe", "out", "/etc/passwd"] {
            assert_eq!(kind(path), io::ErrorKind::InvalidInput, "{path}");
        }
        for path in ["none", "out/a/b"] {
            assert_eq!(kind(path), io::ErrorKind::NotFound, "{path}");
        }
    }
}
