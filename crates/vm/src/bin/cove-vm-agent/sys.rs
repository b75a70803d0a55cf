//! The kernel's calls that the standard library lacks, each behind a safe function.
//!
//! Declared by hand since the agent is compiled with nothing but the standard library. Numbers are those of Linux.
//!
//! **Invariant:** a failed call is an `io::Error`; no descriptor leaves here that is not owned.
#![expect(unsafe_code, reason = "the calls of the kernel have no safe form in the standard library")]

use std::{
    ffi::{CString, c_char, c_int, c_long, c_uint, c_ulong, c_void},
    fs::File,
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, RawFd},
    path::Path,
};

mod c {
    use super::{c_char, c_int, c_long, c_uint, c_ulong, c_void};

    unsafe extern "C" {
        pub(super) fn mount(
            source: *const c_char,
            target: *const c_char,
            kind: *const c_char,
            flags: c_ulong,
            data: *const c_void,
        ) -> c_int;
        pub(super) fn chroot(path: *const c_char) -> c_int;
        pub(super) fn mknod(path: *const c_char, mode: c_uint, device: u64) -> c_int;
        pub(super) fn syscall(number: c_long, ...) -> c_long;
        pub(super) fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
        pub(super) fn poll(fds: *mut super::PollFd, count: c_ulong, timeout_ms: c_int) -> c_int;
        pub(super) fn signalfd(fd: c_int, mask: *const [u64; 16], flags: c_int) -> c_int;
        pub(super) fn sigprocmask(how: c_int, set: *const [u64; 16], old: *mut [u64; 16]) -> c_int;
        pub(super) fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
        pub(super) fn kill(pid: c_int, signal: c_int) -> c_int;
        pub(super) fn setsid() -> c_int;
        pub(super) fn setgroups(count: usize, groups: *const c_uint) -> c_int;
        pub(super) fn setgid(id: c_uint) -> c_int;
        pub(super) fn setuid(id: c_uint) -> c_int;
        pub(super) fn prctl(option: c_int, ...) -> c_int;
        pub(super) fn setpriority(which: c_int, who: c_uint, value: c_int) -> c_int;
        pub(super) fn sethostname(name: *const c_char, length: usize) -> c_int;
        pub(super) fn clock_settime(clock: c_int, time: *const super::Timespec) -> c_int;
        pub(super) fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    }
}

/// `MS_NOSUID`, `MS_NODEV`, `MS_NOEXEC`, `MS_RDONLY`, `MS_REMOUNT`, `MS_MOVE`.
pub(crate) const NOSUID: c_ulong = 2;
pub(crate) const NODEV: c_ulong = 4;
pub(crate) const NOEXEC: c_ulong = 8;
pub(crate) const READ_ONLY: c_ulong = 1;
pub(crate) const REMOUNT: c_ulong = 32;
pub(crate) const MOVE: c_ulong = 8192;

pub(crate) const READABLE: i16 = 1;
pub(crate) const WRITABLE: i16 = 4;

pub(crate) const SIGKILL: i32 = 9;
const SIGCHLD: u32 = 17;

/// What is awaited of a descriptor, and what came.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PollFd {
    pub(crate) fd: c_int,
    pub(crate) events: i16,
    pub(crate) came: i16,
}

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

fn text(value: &str) -> io::Result<CString> {
    CString::new(value).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a zero byte in a name"))
}

fn done(code: c_int) -> io::Result<()> {
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(crate) fn mount(source: &str, target: &str, kind: &str, flags: c_ulong, options: &str) -> io::Result<()> {
    let (source, target, kind, options) = (text(source)?, text(target)?, text(kind)?, text(options)?);
    // SAFETY: four texts that end in zero and live until the call returns.
    done(unsafe { c::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) })
}

pub(crate) fn chroot(path: &str) -> io::Result<()> {
    let path = text(path)?;
    // SAFETY: a text that ends in zero.
    done(unsafe { c::chroot(path.as_ptr()) })
}

/// Makes a character device that everybody may use.
pub(crate) fn make_device(path: &str, major: u64, minor: u64) -> io::Result<()> {
    const CHARACTER: c_uint = 0o020_000;
    let path = text(path)?;
    // SAFETY: a text that ends in zero.
    done(unsafe { c::mknod(path.as_ptr(), CHARACTER | 0o666, major << 8 | minor) })
}

/// Gives a module of the kernel to the kernel.
pub(crate) fn load_module(path: &Path) -> io::Result<()> {
    const FINIT_MODULE: c_long = if cfg!(target_arch = "x86_64") { 313 } else { 273 };
    let file = File::open(path)?;
    // SAFETY: an open file, an empty text, no flags.
    let code = unsafe { c::syscall(FINIT_MODULE, file.as_raw_fd(), c"".as_ptr(), 0) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Waits until something came; false after `timeout_ms` (negative: never).
pub(crate) fn poll(fds: &mut [PollFd], timeout_ms: c_int) -> io::Result<bool> {
    // SAFETY: the kernel's layout, and the length is the slice's.
    let count = unsafe { c::poll(fds.as_mut_ptr(), fds.len() as c_ulong, timeout_ms) };
    match done(count) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        other => other.map(|()| count > 0),
    }
}

/// Ends of children become readable here, and no longer interrupt.
pub(crate) fn children_fd() -> io::Result<File> {
    const BLOCK: c_int = 0;
    const CLOSE_ON_EXEC: c_int = 0o2_000_000;
    const NON_BLOCKING: c_int = 0o4_000;
    let mut mask = [0u64; 16];
    mask[0] = 1 << (SIGCHLD - 1);
    // SAFETY: a mask of the C library's size that lives until the calls return.
    done(unsafe { c::sigprocmask(BLOCK, &raw const mask, std::ptr::null_mut()) })?;
    // SAFETY: as above.
    let fd = unsafe { c::signalfd(-1, &raw const mask, CLOSE_ON_EXEC | NON_BLOCKING) };
    done(fd)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// A child that ended and its exit code (128 + signal), if there is one.
pub(crate) fn reap() -> Option<(i32, i32)> {
    const NO_HANG: c_int = 1;
    let mut status = 0;
    // SAFETY: a place for the status.
    let pid = unsafe { c::waitpid(-1, &raw mut status, NO_HANG) };
    let code = if status & 0x7f == 0 { (status >> 8) & 0xff } else { 128 + (status & 0x7f) };
    (pid > 0).then_some((pid, code))
}

/// Sends a signal to a group of processes.
pub(crate) fn kill_group(leader: i32, signal: i32) -> io::Result<()> {
    if leader <= 1 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: two numbers.
    done(unsafe { c::kill(-leader, signal) })
}

/// Whom a process becomes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ids {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// Between fork and exec: a session of its own, no signal blocked, ordinary priority, fewer capabilities, the user.
pub(crate) fn become_process(ids: &Ids, terminal: Option<RawFd>) -> io::Result<()> {
    const SET_MASK: c_int = 2;
    const BOUNDING_DROP: c_int = 24;
    const SET_TERMINAL: c_ulong = 0x540e;
    // CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_BOOT, CAP_SYSLOG: what reaches for the machine beneath; CAP_SYS_PTRACE: who
    // has it may stop the agent. Processes of its own kind are traced without it.
    const DROPPED: [c_int; 5] = [16, 17, 19, 22, 34];
    let none = [0u64; 16];
    // SAFETY: numbers, and a mask and a list that live until the calls return; the agent has one thread.
    unsafe {
        done(c::setsid())?;
        done(c::sigprocmask(SET_MASK, &raw const none, std::ptr::null_mut()))?;
        if let Some(fd) = terminal {
            done(c::ioctl(fd, SET_TERMINAL, 0))?;
        }
        done(c::setpriority(0, 0, 0))?;
        std::fs::write("/proc/self/oom_score_adj", "0")?;
        for capability in DROPPED {
            done(c::prctl(BOUNDING_DROP, capability, 0, 0, 0))?;
        }
        done(c::setgroups(ids.groups.len(), ids.groups.as_ptr()))?;
        done(c::setgid(ids.gid))?;
        done(c::setuid(ids.uid))
    }
}

/// The agent goes before everything else, and is not ended for memory.
pub(crate) fn prefer_self() -> io::Result<()> {
    // SAFETY: three numbers.
    done(unsafe { c::setpriority(0, 0, -20) })?;
    std::fs::write("/proc/self/oom_score_adj", "-1000")
}

pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: a text and its length.
    done(unsafe { c::sethostname(name.as_ptr().cast(), name.len()) })
}

pub(crate) fn set_clock(unix_ns: u64) -> io::Result<()> {
    let seconds = i64::try_from(unix_ns / 1_000_000_000).unwrap_or(i64::MAX);
    let time = Timespec { seconds, nanoseconds: i64::try_from(unix_ns % 1_000_000_000).unwrap_or(0) };
    // SAFETY: the kernel's layout.
    done(unsafe { c::clock_settime(0, &raw const time) })
}

/// Mixes bytes into the kernel's random numbers as if they were good ones, and draws a new key from them at once.
pub(crate) fn add_entropy(bytes: &[u8]) -> io::Result<()> {
    const ADD: c_ulong = 0x4008_5203;
    const RESEED: c_ulong = 0x5207;
    const BYTES_MAX: usize = 512;
    #[repr(C)]
    struct Pool {
        bits: c_int,
        bytes: c_int,
        content: [u8; BYTES_MAX],
    }
    let bytes = &bytes[..bytes.len().min(BYTES_MAX)];
    let length = c_int::try_from(bytes.len()).unwrap_or(0);
    let mut pool = Pool { bits: length * 8, bytes: length, content: [0; BYTES_MAX] };
    pool.content[..bytes.len()].copy_from_slice(bytes);
    let random = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel's layout with at least as many bytes as it says; then a call without a value.
    unsafe {
        done(c::ioctl(random.as_raw_fd(), ADD, &raw const pool))?;
        done(c::ioctl(random.as_raw_fd(), RESEED, 0))
    }
}

/// No read or write of it waits.
pub(crate) fn never_wait(fd: RawFd) -> io::Result<()> {
    const SET_FLAGS: c_int = 4;
    const GET_FLAGS: c_int = 3;
    const NON_BLOCKING: c_int = 0o4_000;
    // SAFETY: numbers.
    unsafe {
        let flags = c::fcntl(fd, GET_FLAGS);
        done(flags)?;
        done(c::fcntl(fd, SET_FLAGS, flags | NON_BLOCKING))
    }
}

/// A new terminal: our end and the process's.
pub(crate) fn terminal() -> io::Result<(File, File)> {
    const UNLOCK: c_ulong = 0x4004_5431;
    const PEER: c_ulong = 0x5441;
    const READ_WRITE_NO_TERMINAL: c_int = 0o2 | 0o400 | 0o2_000_000;
    let ours = File::options().read(true).write(true).open("/dev/ptmx")?;
    let unlocked: c_int = 0;
    // SAFETY: a number to read; then a call that makes a descriptor.
    let theirs = unsafe {
        done(c::ioctl(ours.as_raw_fd(), UNLOCK, &raw const unlocked))?;
        c::ioctl(ours.as_raw_fd(), PEER, READ_WRITE_NO_TERMINAL)
    };
    done(theirs)?;
    // SAFETY: the kernel has just made it for us.
    Ok((ours, unsafe { File::from_raw_fd(theirs) }))
}

pub(crate) fn resize(terminal: &File, columns: u16, rows: u16) -> io::Result<()> {
    const SET_SIZE: c_ulong = 0x5414;
    let size = [rows, columns, 0, 0];
    // SAFETY: four numbers, the kernel's layout.
    done(unsafe { c::ioctl(terminal.as_raw_fd(), SET_SIZE, &raw const size) })
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Address {
    family: u16,
    port: u16,
    address: [u8; 4],
    rest: [u8; 8],
}

impl Address {
    fn of(address: Ipv4Addr) -> Self {
        Self { family: 2, port: 0, address: address.octets(), rest: [0; 8] }
    }
}

#[repr(C)]
struct Interface<T> {
    name: [u8; 16],
    value: T,
    rest: [u8; 8],
}

/// Sets what `request` sets of an interface.
fn set_interface<T>(socket: &UdpSocket, name: &str, request: c_ulong, value: T) -> io::Result<()> {
    let mut bytes = [0; 16];
    bytes[..name.len().min(15)].copy_from_slice(&name.as_bytes()[..name.len().min(15)]);
    let interface = Interface { name: bytes, value, rest: [0; 8] };
    // SAFETY: the kernel reads 40 bytes: a name, then at most 16, and what is not used of them is in `rest` or not read.
    done(unsafe { c::ioctl(socket.as_raw_fd(), request, &raw const interface) })
}

/// Brings an interface up, with an address (/24) unless it is loopback.
pub(crate) fn bring_up(name: &str, address: Option<Ipv4Addr>) -> io::Result<()> {
    const SET_ADDRESS: c_ulong = 0x8916;
    const SET_MASK: c_ulong = 0x891c;
    const SET_FLAGS: c_ulong = 0x8914;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    if let Some(address) = address {
        set_interface(&socket, name, SET_ADDRESS, Address::of(address))?;
        set_interface(&socket, name, SET_MASK, Address::of(Ipv4Addr::new(255, 255, 255, 0)))?;
    }
    // up and running; 16 bytes as all values
    set_interface(&socket, name, SET_FLAGS, [0x41u16, 0, 0, 0, 0, 0, 0, 0])
}

/// Sends everything beyond through `gateway`.
pub(crate) fn add_default_route(gateway: Ipv4Addr) -> io::Result<()> {
    const ADD_ROUTE: c_ulong = 0x890b;
    const UP_THROUGH_GATEWAY: u16 = 3;
    #[repr(C)]
    struct Route {
        pad1: c_ulong,
        to: Address,
        gateway: Address,
        mask: Address,
        flags: u16,
        pad2: i16,
        pad3: c_ulong,
        pad4: [u64; 1],
        metric: i16,
        device: *const c_char,
        limits: [c_ulong; 2],
        time: u16,
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let any = Address::of(Ipv4Addr::UNSPECIFIED);
    let route = Route {
        pad1: 0,
        to: any,
        gateway: Address::of(gateway),
        mask: any,
        flags: UP_THROUGH_GATEWAY,
        pad2: 0,
        pad3: 0,
        pad4: [0],
        metric: 0,
        device: std::ptr::null(),
        limits: [0; 2],
        time: 0,
    };
    // SAFETY: the kernel's layout.
    done(unsafe { c::ioctl(socket.as_raw_fd(), ADD_ROUTE, &raw const route) })
}
