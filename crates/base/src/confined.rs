//! Opening below a directory that somebody else fills.

use std::{
    os::fd::{AsFd, OwnedFd},
    thread,
};

use nix::{NixPath, errno::Errno, fcntl::OpenHow};

/// Most attempts; what is renamed or mounted without end makes one of a few fail.
const TRIES_MAX: u32 = 256;

/// Opens a path that may not lead out of `dir`, as `openat2` does with `RESOLVE_IN_ROOT` or `RESOLVE_BENEATH` in `how`.
///
/// The kernel refuses to go up (`..`, in the path or in a link on the way) with `EAGAIN` whenever anything was renamed or
/// mounted meanwhile, anywhere on the machine (openat2(2)); it is asked again then.
///
/// # Errors
/// What `openat2` says; `EAGAIN` only when 256 attempts met that.
pub fn open_confined<P: ?Sized + NixPath>(dir: impl AsFd, path: &P, how: OpenHow) -> nix::Result<OwnedFd> {
    let mut tries = 0;
    loop {
        #[expect(clippy::disallowed_methods, reason = "its one user")]
        let opened = nix::fcntl::openat2(dir.as_fd(), path, how);
        tries += 1;
        if tries == TRIES_MAX || opened.as_ref().err() != Some(&Errno::EAGAIN) {
            return opened;
        }
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::atomic::{AtomicBool, Ordering},
    };

    use nix::{
        fcntl::{OFlag, ResolveFlag, open},
        sys::stat::Mode,
    };

    use super::*;

    #[test]
    fn a_path_goes_up_while_others_rename() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        std::os::unix::fs::symlink("../a/../a/../a/../a", dir.path().join("a/link")).unwrap();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(dir.path(), flags, Mode::empty()).unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        fs::create_dir(&one).unwrap();
        let how = |resolve| OpenHow::new().flags(flags).resolve(resolve);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    fs::rename(&one, &other).unwrap();
                    fs::rename(&other, &one).unwrap();
                }
            });
            for resolve in [ResolveFlag::RESOLVE_IN_ROOT, ResolveFlag::RESOLVE_BENEATH] {
                let failed = (0..20_000).filter(|_| open_confined(&root, "a/link/link/link", how(resolve)).is_err());
                let failed = failed.count();
                is_over.store(failed > 0, Ordering::Relaxed);
                assert_eq!(failed, 0, "{resolve:?}");
            }
            is_over.store(true, Ordering::Relaxed);
        });
        let out = open_confined(&root, "a/../../a", how(ResolveFlag::RESOLVE_BENEATH));
        assert_eq!(out.unwrap_err(), Errno::EXDEV);
    }
}
