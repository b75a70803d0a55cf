//! Waiting for a program that was started, no longer than a limit.
//!
//! **Invariant:** afterwards the program has ended and was waited for.

#![expect(unsafe_code, reason = "pidfd_open has no safe wrapper")]

use std::{
    io,
    os::fd::{AsFd as _, FromRawFd as _, OwnedFd},
    process::{Child, ExitStatus},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// Waits for a program; `None`: it took too long and was ended.
pub(crate) fn wait(mut child: Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    // SAFETY: numbers only; a number that is not negative is a new descriptor that is ours.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) })?;
    // SAFETY: the kernel has just made it and nobody else knows its number.
    let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) };
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            Ok(0) => {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            Ok(_) => return child.wait().map(Some),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_program_ends_by_itself_or_at_the_limit() {
        let status = wait(Command::new("true").spawn().unwrap(), Duration::from_secs(30)).unwrap();
        assert!(status.unwrap().success());
        let begun = Instant::now();
        let status = wait(Command::new("sleep").arg("1000").spawn().unwrap(), Duration::from_millis(20)).unwrap();
        assert!(status.is_none() && begun.elapsed() < Duration::from_secs(30));
    }
}
