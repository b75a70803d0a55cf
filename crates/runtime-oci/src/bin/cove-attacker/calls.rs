//! System calls that no program in a sandbox has any use for.
//!
//! tidy: table

#![expect(unsafe_code, reason = "system calls are tried as they are")]

use nix::libc::{self, c_long, syscall};

use crate::{Attempt, Verdict, refused, refused_as};

/// `NULL`.
const NO: c_long = 0;

/// The root directory, as a C string.
fn root() -> *const libc::c_char {
    c"/".as_ptr()
}

/// Makes a call with small numbers, which any kernel that knows it takes at least as far as its permission check.
fn call(number: c_long, arguments: [c_long; 5]) -> Verdict {
    let [a, b, c, d, e] = arguments;
    // SAFETY: numbers and null pointers; the kernel checks both.
    refused(unsafe { syscall(number, a, b, c, d, e) })
}

fn flags(clone: libc::c_int) -> c_long {
    clone.into()
}

/// A child in other namespaces; if it comes about it ends at once.
fn clone_with(wanted: libc::c_int) -> Verdict {
    // SAFETY: without memory of its own the child is a copy, as of fork.
    let result = unsafe { syscall(libc::SYS_clone, flags(wanted | libc::SIGCHLD), NO, NO, NO, NO) };
    if result == 0 {
        // SAFETY: ends this copy without running what belongs to its parent.
        unsafe { libc::_exit(0) };
    }
    refused(result)
}

fn process_memory(number: c_long) -> Verdict {
    let mut byte = [0_u8; 8];
    let ours = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    // SAFETY: both descriptions of memory outlive the call.
    refused(unsafe { syscall(number, 1, &raw const ours, 1, &raw const ours, 1, 0) })
}

fn clone3() -> Verdict {
    let mut arguments = [0_u64; 11];
    arguments[0] = libc::CLONE_NEWUSER.unsigned_abs().into();
    arguments[4] = libc::SIGCHLD.unsigned_abs().into();
    // SAFETY: the arguments outlive the call and have the size that is given.
    let result = unsafe { syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) };
    if result == 0 {
        // SAFETY: ends this copy without running what belongs to its parent.
        unsafe { libc::_exit(0) };
    }
    refused(result)
}

fn join_namespace(kind: &str) -> Verdict {
    let file = match std::fs::File::open(format!("/proc/1/ns/{kind}")) {
        Ok(file) => file,
        Err(error) => return Ok(error.to_string()),
    };
    // SAFETY: a descriptor that is open and a number.
    refused(unsafe { syscall(libc::SYS_setns, std::os::fd::AsRawFd::as_raw_fd(&file), 0) })
}

pub(super) const ALL: &[Attempt] = &[
    ("ptrace-parent", |_| call(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), 1, NO, NO, NO])),
    ("ptrace-traceme", |_| call(libc::SYS_ptrace, [libc::PTRACE_TRACEME.into(), 0, NO, NO, NO])),
    ("process-vm-readv", |_| process_memory(libc::SYS_process_vm_readv)),
    ("process-vm-writev", |_| process_memory(libc::SYS_process_vm_writev)),
    ("pidfd-getfd", |_| call(libc::SYS_pidfd_getfd, [0, 0, 0, NO, NO])),
    ("kcmp", |_| call(libc::SYS_kcmp, [1, 1, 0, 0, 0])),
    ("userfaultfd", |_| call(libc::SYS_userfaultfd, [0, NO, NO, NO, NO])),
    ("bpf", |_| call(libc::SYS_bpf, [0, NO, 0, NO, NO])),
    ("perf-event-open", |_| call(libc::SYS_perf_event_open, [NO, 0, -1, -1, 0])),
    ("io-uring", |_| call(libc::SYS_io_uring_setup, [8, NO, NO, NO, NO])),
    ("add-key", |_| call(libc::SYS_add_key, [NO, NO, NO, 0, -3])),
    ("request-key", |_| call(libc::SYS_request_key, [NO, NO, NO, 0, NO])),
    ("keyctl", |_| call(libc::SYS_keyctl, [0, -3, 1, NO, NO])),
    ("unshare-user", |_| call(libc::SYS_unshare, [flags(libc::CLONE_NEWUSER), NO, NO, NO, NO])),
    ("unshare-network", |_| call(libc::SYS_unshare, [flags(libc::CLONE_NEWNET), NO, NO, NO, NO])),
    ("unshare-mount", |_| call(libc::SYS_unshare, [flags(libc::CLONE_NEWNS), NO, NO, NO, NO])),
    ("clone-user", |_| clone_with(libc::CLONE_NEWUSER)),
    ("clone-pid", |_| clone_with(libc::CLONE_NEWPID)),
    ("clone3-user", |_| clone3()),
    ("setns-network", |_| join_namespace("net")),
    ("setns-mount", |_| join_namespace("mnt")),
    ("mount-tmpfs", |_| {
        // SAFETY: C strings that outlive the call.
        refused(unsafe { syscall(libc::SYS_mount, c"x".as_ptr(), c"/tmp".as_ptr(), c"tmpfs".as_ptr(), 0, NO) })
    }),
    ("remount-root", |_| {
        let flags = libc::MS_REMOUNT | libc::MS_BIND;
        // SAFETY: C strings that outlive the call.
        refused(unsafe { syscall(libc::SYS_mount, NO, root(), NO, flags, NO) })
    }),
    ("umount-proc", |_| {
        // SAFETY: a C string that outlives the call.
        refused(unsafe { syscall(libc::SYS_umount2, c"/proc".as_ptr(), libc::MNT_DETACH) })
    }),
    ("pivot-root", |_| {
        // SAFETY: C strings that outlive the call.
        refused(unsafe { syscall(libc::SYS_pivot_root, root(), root()) })
    }),
    ("chroot", |_| {
        // SAFETY: a C string that outlives the call.
        refused(unsafe { syscall(libc::SYS_chroot, root()) })
    }),
    ("fsopen", |_| {
        // SAFETY: a C string that outlives the call.
        refused(unsafe { syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0) })
    }),
    ("open-tree", |_| {
        // SAFETY: a C string that outlives the call.
        refused(unsafe { syscall(libc::SYS_open_tree, libc::AT_FDCWD, root(), libc::OPEN_TREE_CLONE) })
    }),
    ("move-mount", |_| {
        // SAFETY: C strings that outlive the call.
        refused(unsafe { syscall(libc::SYS_move_mount, libc::AT_FDCWD, root(), libc::AT_FDCWD, root(), 0) })
    }),
    ("mount-setattr", |_| call(libc::SYS_mount_setattr, [libc::AT_FDCWD.into(), NO, 0, NO, 0])),
    ("init-module", |_| call(libc::SYS_init_module, [NO, 0, NO, NO, NO])),
    ("finit-module", |_| call(libc::SYS_finit_module, [0, NO, 0, NO, NO])),
    ("delete-module", |_| call(libc::SYS_delete_module, [NO, 0, NO, NO, NO])),
    ("kexec-load", |_| call(libc::SYS_kexec_load, [0, 0, NO, 0, NO])),
    ("reboot", |_| call(libc::SYS_reboot, [0xfee1_dead, 672_274_793, 0x89ab_cdef, NO, NO])),
    ("settimeofday", |_| call(libc::SYS_settimeofday, [NO, NO, NO, NO, NO])),
    ("clock-settime", |_| {
        let time = libc::timespec { tv_sec: 1, tv_nsec: 0 };
        // SAFETY: a structure that outlives the call.
        refused(unsafe { syscall(libc::SYS_clock_settime, libc::CLOCK_REALTIME, &raw const time) })
    }),
    ("adjtimex", |_| call(libc::SYS_adjtimex, [NO, NO, NO, NO, NO])),
    ("sethostname", |_| {
        // SAFETY: three bytes of a string that outlives the call.
        refused(unsafe { syscall(libc::SYS_sethostname, c"pwn".as_ptr(), 3) })
    }),
    ("swapon", |_| call(libc::SYS_swapon, [NO, 0, NO, NO, NO])),
    ("acct", |_| call(libc::SYS_acct, [NO, NO, NO, NO, NO])),
    ("quotactl", |_| call(libc::SYS_quotactl, [0, NO, 0, NO, NO])),
    ("open-by-handle", |_| call(libc::SYS_open_by_handle_at, [libc::AT_FDCWD.into(), NO, 0, NO, NO])),
    ("name-to-handle", |_| call(libc::SYS_name_to_handle_at, [libc::AT_FDCWD.into(), NO, NO, NO, 0])),
    ("syslog", |_| call(libc::SYS_syslog, [3, NO, 0, NO, NO])),
    ("vmsplice", |_| call(libc::SYS_vmsplice, [0, NO, 0, 0, NO])),
    ("aio", |_| call(libc::SYS_io_setup, [1, NO, NO, NO, NO])),
    ("posix-queue", |_| call(libc::SYS_mq_open, [NO, 0, 0, NO, NO])),
    ("move-pages", |_| call(libc::SYS_move_pages, [1, 0, NO, NO, NO])),
    ("fanotify", |_| call(libc::SYS_fanotify_init, [0, 0, NO, NO, NO])),
    ("personality-no-randomize", |_| call(libc::SYS_personality, [0x004_0000, NO, NO, NO, NO])),
    #[cfg(target_arch = "x86_64")]
    ("io-ports", |_| call(libc::SYS_iopl, [3, NO, NO, NO, NO])),
    #[cfg(target_arch = "x86_64")]
    ("io-permission", |_| call(libc::SYS_ioperm, [0x80, 1, 1, NO, NO])),
    #[cfg(target_arch = "x86_64")]
    ("modify-ldt", |_| call(libc::SYS_modify_ldt, [0, NO, 0, NO, NO])),
    #[cfg(target_arch = "x86_64")]
    ("x32-numbers", |_| call(0x4000_0000 | libc::SYS_ptrace, [0, 0, NO, NO, NO])),
    ("real-time-schedule", |_| {
        let priority = libc::sched_param { sched_priority: 99 };
        // SAFETY: a structure that outlives the call.
        refused(unsafe { syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &raw const priority) })
    }),
    ("better-nice", |_| {
        // SAFETY: numbers only.
        refused(unsafe { syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, -5) })
    }),
    ("raise-limits", |_| {
        let limit = libc::rlimit { rlim_cur: 1 << 30, rlim_max: 1 << 30 };
        // SAFETY: a structure that outlives the call.
        refused(unsafe { syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, &raw const limit, NO) })
    }),
    ("signal-to-the-host", |told| {
        // a process of the host, by its number there: here it is nobody, or one of ours
        let Ok(host) = told.parse::<c_long>() else { return Err("not told of a process".to_owned()) };
        // SAFETY: numbers only.
        refused_as(unsafe { syscall(libc::SYS_kill, host, 0) }, &[libc::ESRCH])
    }),
];
