//! The seccomp filter of containers: an allow list, and a notice of every `listen`.
//!
//! Compiled once, in the zygote, and inherited: compiling it per container (as libseccomp-based runtimes do) costs more
//! than all the rest of a start. `listen` is answered through the filter's notification descriptor, so the platform
//! learns that a port opens without polling for it; the call itself goes on unchanged.
//!
//! **Invariant:** what is not in the table fails with `EPERM`; `clone3` with `ENOSYS`, so that the C library falls back
//! to `clone`, whose flags can be looked at.
//! **Invariant:** a process of another architecture is killed.

#![expect(unsafe_code, reason = "seccomp and its ioctls have no safe wrapper")]

mod oci;
mod table;

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use nix::libc;
pub(crate) use oci::profile;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// Flags of `clone` that make namespaces: refused.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// `AF_VSOCK`: reaches the hypervisor, refused.
const AF_VSOCK: u64 = 40;

/// `personality` values that are harmless: Linux, 32 bit, no randomisation is not among them.
const PERSONALITIES: [u64; 4] = [0x0, 0x0008, 0x2_0000, 0xffff_ffff];

/// Kinds of sockets that a sandboxed container may make: streams, datagrams, sequenced packets; never raw ones.
const SOCKET_KINDS: [u64; 3] = [1, 2, 5];

/// `AF_UNIX`: the only family that pairs are made of. The kernel makes both sockets of any family, and loads its module,
/// before it finds that there are no pairs of it.
const AF_UNIX: u64 = 1;

/// `AF_INET`, `AF_INET6`.
const INET_FAMILIES: [u64; 2] = [2, 10];

/// What they may speak: the family's own choice, ICMP (echoes only), TCP, UDP, ICMPv6; not SCTP, DCCP, L2TP, MPTCP, which
/// hardly a program uses and which may be modules that the kernel loads for whoever asks.
const INET_PROTOCOLS: [u64; 5] = [0, 1, 6, 17, 58];

/// `AF_NETLINK`, for its first protocol alone: programs ask it for their addresses.
const AF_NETLINK: u64 = 16;

/// The filters of containers.
#[derive(Clone, Debug)]
pub(crate) struct Filters {
    pub(crate) app: Filter,
    /// Of a sandboxed program that does not run as root.
    pub(crate) sandboxed: Filter,
    /// Of one that does: it has no capability, so changes of its user, its groups and the owner of files are answered as
    /// done and change nothing. Images that begin as root and step down work so, without any power to step anywhere.
    pub(crate) sandboxed_root: Filter,
}

impl Filters {
    /// Compiles the filters for this machine.
    pub(crate) fn compile() -> Result<Self, FilterError> {
        let app = Filter::compile()?;
        let pairs = vec![SeccompRule::new(vec![equal(0, AF_UNIX)?])?];
        let strict = compile(sandboxed().map(|(_, call)| call), sandbox_sockets()?, pairs)?;
        let answered = |is_root| table::answered(is_root).map(|(_, call)| call).collect::<Vec<_>>();
        Ok(Self {
            app,
            sandboxed: Filter::of(&strict, &answered(false))?,
            sandboxed_root: Filter::of(&strict, &answered(true))?,
        })
    }
}

fn allowed() -> impl Iterator<Item = table::Call> {
    table::ALLOWED.iter().chain(table::ALLOWED_NEW).chain(table::ALLOWED_HERE).copied()
}

/// What a sandboxed container may call.
fn sandboxed() -> impl Iterator<Item = table::Call> {
    allowed().filter(|call| !table::SANDBOX_DENIED.contains(call))
}

fn equal(index: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

/// Family, kind and protocol of what a sandboxed container may make of the internet's: streams and datagrams.
fn inet_sockets() -> impl Iterator<Item = (u64, u64, u64)> {
    let with =
        |family| [1, 2].into_iter().flat_map(move |kind| INET_PROTOCOLS.map(|protocol| (family, kind, protocol)));
    INET_FAMILIES.into_iter().flat_map(with)
}

fn sandbox_sockets() -> Result<Vec<SeccompRule>, FilterError> {
    let mut rules = Vec::new();
    let is_kind = |kind| SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(0xf), kind);
    for kind in SOCKET_KINDS {
        rules.push(SeccompRule::new(vec![equal(0, AF_UNIX)?, is_kind(kind)?])?);
    }
    for (family, kind, protocol) in inet_sockets() {
        rules.push(SeccompRule::new(vec![equal(0, family)?, is_kind(kind)?, equal(2, protocol)?])?);
    }
    rules.push(SeccompRule::new(vec![equal(0, AF_NETLINK)?, equal(2, 0)?])?);
    Ok(rules)
}

/// The list of calls as a program; `sockets` says which sockets may be made, `pairs` which pairs of them (none: any).
fn compile(
    calls: impl Iterator<Item = libc::c_long>,
    sockets: Vec<SeccompRule>,
    pairs: Vec<SeccompRule>,
) -> Result<BpfProgram, FilterError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = calls.map(|call| (call, Vec::new())).collect();
    let no_namespaces = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(CLONE_NAMESPACES), 0)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![no_namespaces])?]);
    rules.insert(libc::SYS_socket, sockets);
    rules.insert(libc::SYS_socketpair, pairs);
    let personalities = PERSONALITIES.map(|value| SeccompRule::new(vec![equal(0, value)?]));
    rules.insert(libc::SYS_personality, personalities.into_iter().collect::<Result<_, _>>()?);
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    Ok(SeccompFilter::new(rules, refused, SeccompAction::Allow, arch()?)?.try_into()?)
}

fn arch() -> Result<TargetArch, FilterError> {
    TargetArch::try_from(std::env::consts::ARCH).map_err(|_| FilterError::Architecture)
}

/// A compiled filter.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    with_notice: BpfProgram,
    without_notice: BpfProgram,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterError {
    #[error("there is no system call table for this architecture")]
    Architecture,
    #[error("failed to compile the seccomp filter")]
    Compile(#[from] seccompiler::BackendError),
}

impl Filter {
    /// Compiles the filter for this machine.
    pub(crate) fn compile() -> Result<Self, FilterError> {
        let no_vsock = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, AF_VSOCK)?;
        Self::of(&compile(allowed().map(|(_, call)| call), vec![SeccompRule::new(vec![no_vsock])?], Vec::new())?, &[])
    }

    /// Puts in front of a list what it cannot say: calls that are `answered` as done, and those that are told of.
    fn of(list: &BpfProgram, answered: &[libc::c_long]) -> Result<Self, FilterError> {
        let arch = audit_arch(arch()?);
        let prologue = |notify: bool| {
            let mut head = vec![load(NR_OFFSET), jump_unless(number(libc::SYS_clone3), 1)];
            head.push(answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()));
            head.push(jump_unless(if notify { number(libc::SYS_listen) } else { u32::MAX }, 1));
            head.push(answer(libc::SECCOMP_RET_USER_NOTIF));
            for call in answered {
                head.extend([jump_unless(number(*call), 1), answer(libc::SECCOMP_RET_ERRNO)]);
            }
            // of another architecture the numbers mean something else: the list ends that process
            let skip = u8::try_from(head.len()).expect("a handful of calls is answered");
            let mut program = vec![load(ARCH_OFFSET), jump_unless(arch, skip)];
            program.extend(head);
            program.extend(list.iter().cloned());
            program
        };
        Ok(Self { with_notice: prologue(true), without_notice: prologue(false) })
    }

    /// Installs the filter on this thread for good; gives the descriptor that tells of `listen`, if the kernel has that.
    pub(crate) fn install(&self) -> io::Result<Option<OwnedFd>> {
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        match set(&self.with_notice, flags) {
            // SAFETY: a non-negative answer with this flag is a new descriptor that is ours.
            Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
            Err(_) => set(&self.without_notice, 0).map(|_| None),
        }
    }
}

const ARCH_OFFSET: u32 = 4;
const NR_OFFSET: u32 = 0;

fn audit_arch(arch: TargetArch) -> u32 {
    match arch {
        TargetArch::x86_64 => 0xc000_003e,
        TargetArch::aarch64 => 0xc000_00b7,
        TargetArch::riscv64 => 0xc000_00f3,
    }
}

fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).expect("system call numbers are small and not negative")
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: 0x20, jt: 0, jf: 0, k: offset }
}

fn jump_unless(value: u32, skip: u8) -> sock_filter {
    sock_filter { code: 0x15, jt: 0, jf: skip, k: value }
}

fn answer(value: u32) -> sock_filter {
    sock_filter { code: 0x06, jt: 0, jf: 0, k: value }
}

fn set(program: &[sock_filter], flags: libc::c_ulong) -> io::Result<i32> {
    let length = u16::try_from(program.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the seccomp filter is too long"))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies `program` and what it points to, both live until the call returns, and changes neither.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    i32::try_from(answer).ok().filter(|answer| *answer >= 0).ok_or_else(io::Error::last_os_error)
}

/// Whether the kernel can tell of system calls.
pub(crate) fn has_notices() -> bool {
    let mut sizes = libc::seccomp_notif_sizes { seccomp_notif: 0, seccomp_notif_resp: 0, seccomp_data: 0 };
    // SAFETY: the kernel writes three numbers into `sizes`, which is that large.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0, &raw mut sizes) };
    answer == 0
}

const NOTIF_RECV: libc::c_ulong = 0xc050_2100;
const NOTIF_SEND: libc::c_ulong = 0xc018_2101;

/// Takes one notice and lets the call go on; `false` when the caller is gone already.
pub(crate) fn let_go_on(listener: &OwnedFd) -> io::Result<bool> {
    // SAFETY: all bit patterns, zeros included, are valid for these plain kernel structures.
    let mut request: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills in the structure that the ioctl is defined for.
    if unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV, &raw mut request) } != 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ENOENT) { Ok(false) } else { Err(error) };
    }
    let mut response = libc::seccomp_notif_resp {
        id: request.id,
        val: 0,
        error: 0,
        flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE.try_into().unwrap_or(1),
    };
    // SAFETY: the kernel reads the structure that the ioctl is defined for.
    if unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND, &raw mut response) } != 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ENOENT) { Ok(false) } else { Err(error) };
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_fit() {
        let filters = Filters::compile().unwrap();
        for filter in [&filters.app, &filters.sandboxed, &filters.sandboxed_root] {
            assert!(filter.with_notice.len() < 4096, "the kernel takes 4096 instructions at most");
            assert_eq!(filter.with_notice.len(), filter.without_notice.len());
        }
        assert!(has_notices());
    }

    #[test]
    fn what_is_denied_or_answered_was_allowed_before() {
        let all: Vec<_> = allowed().collect();
        for call in table::SANDBOX_DENIED.iter().copied().chain(table::answered(true)) {
            assert!(all.contains(&call), "{call:?}");
        }
    }
}
