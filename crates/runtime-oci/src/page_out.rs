//! Moves the memory of processes that stand still to swap, a piece at a time.
//!
//! Only private writable memory is moved: that is what a process alone has. Files of its image stay in the page cache,
//! where other replicas use them too, and the kernel drops them by itself when it needs room.
//!
//! **Invariant:** it can be broken off between two pieces of at most [`PIECE_BYTES`], as the process may be let go on at
//! any moment. Moving the memory of a process that runs again costs it time, never its content.

#![expect(unsafe_code, reason = "process_madvise has no safe wrapper")]

use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{errno::Errno, libc, unistd::Pid};

/// Most memory that one call of the kernel moves.
const PIECE_BYTES: u64 = 4 << 20;

/// Memory of some processes, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// In RAM.
    pub(crate) resident: u64,
    /// In swap.
    pub(crate) swapped: u64,
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PagedOut {
    pub(crate) before: Usage,
    pub(crate) after: Usage,
}

/// Bytes that still fit into this machine's swap; 0 when it has none.
pub(crate) fn swap_free() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kilobytes(&text, "SwapFree:")
}

/// Whether the kernel can move another process's memory.
pub(crate) fn is_possible() -> bool {
    let Ok(own) = open(Pid::this()) else { return false };
    // nothing to move: only whether the call is there
    !matches!(advise(&own, &[]), Err(Errno::ENOSYS | Errno::EPERM))
}

/// Moves what `processes` have to swap while `goes_on` says so; blocks for about a second per 200 MiB.
pub(crate) fn page_out(processes: &[Pid], goes_on: impl Fn() -> bool) -> io::Result<PagedOut> {
    let before = usage(processes);
    for pid in processes {
        let Ok(process) = open(*pid) else { continue };
        let Ok(maps) = fs::read_to_string(format!("/proc/{pid}/maps")) else { continue };
        for (from, to) in maps.lines().filter_map(writable) {
            let mut at = from;
            while at < to {
                if !goes_on() {
                    return Ok(PagedOut { before, after: usage(processes) });
                }
                let length = PIECE_BYTES.min(to - at);
                match advise(&process, &[(at, length)]) {
                    // what cannot be moved stays: locked memory, a device's
                    Ok(()) | Err(Errno::EINVAL | Errno::ENOMEM | Errno::EAGAIN) => {}
                    Err(Errno::ESRCH) => break,
                    Err(error) => return Err(error.into()),
                }
                at += length;
            }
        }
    }
    Ok(PagedOut { before, after: usage(processes) })
}

/// The range of a line of `maps` if it is private and writable.
fn writable(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split(' ');
    let (from, to) = words.next()?.split_once('-')?;
    let access = words.next()?;
    if !(access.starts_with("rw") && access.ends_with('p')) {
        return None;
    }
    Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?))
}

/// Memory of processes; those that are gone have none.
pub(crate) fn usage(processes: &[Pid]) -> Usage {
    let mut all = Usage::default();
    for pid in processes {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        all.resident += kilobytes(&text, "VmRSS:");
        all.swapped += kilobytes(&text, "VmSwap:");
    }
    all
}

fn kilobytes(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
    value.unwrap_or(0) << 10
}

fn open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: both arguments are numbers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn advise(process: &OwnedFd, ranges: &[(u64, u64)]) -> Result<(), Errno> {
    let ranges: Vec<libc::iovec> = ranges
        .iter()
        .filter_map(|(at, length)| {
            let at = usize::try_from(*at).ok()?;
            Some(libc::iovec {
                iov_base: std::ptr::without_provenance_mut(at),
                iov_len: usize::try_from(*length).ok()?,
            })
        })
        .collect();
    // SAFETY: the list outlives the call; its addresses are the other process's and are never read by this one.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            process.as_raw_fd(),
            ranges.as_ptr(),
            ranges.len(),
            libc::MADV_PAGEOUT,
            0,
        )
    };
    Errno::result(moved).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_writable_memory_is_moved() {
        for (line, range) in [
            (
                "55d0c7a00000-55d0c7a21000 rw-p 00000000 00:00 0                          [heap]",
                Some((0x55d0_c7a0_0000, 0x55d0_c7a2_1000)),
            ),
            ("7f0000000000-7f0000001000 rwxp 00000000 00:00 0", Some((0x7f00_0000_0000, 0x7f00_0000_1000))),
            ("7f0000000000-7f0000001000 r-xp 00000000 fd:00 12 /bin/sh", None),
            ("7f0000000000-7f0000001000 rw-s 00000000 00:01 12 /memfd:x (deleted)", None),
            ("", None),
        ] {
            assert_eq!(writable(line), range, "{line}");
        }
    }

    #[test]
    fn the_kernel_is_asked_before_it_is_needed() {
        assert!(is_possible(), "this kernel has no process_madvise; Linux 5.10 or newer is needed");
        assert!(usage(&[Pid::this()]).resident > 0);
    }
}
