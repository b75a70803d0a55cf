//! Files: devices, /proc and /sys, what the platform put there, other mounts, and privileges by files.
//!
//! tidy: table

#![expect(unsafe_code, reason = "system calls are tried as they are")]

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
};

use nix::libc::{self, syscall};

use crate::{Attempt, Verdict, refused, refused_io};

/// What a closed path answers: not permitted, read-only, or not there.
const CLOSED: [i32; 6] = [libc::EPERM, libc::EACCES, libc::EROFS, libc::ENOENT, libc::ENXIO, libc::ENODEV];

fn opens(path: &str) -> Verdict {
    refused_io(OpenOptions::new().read(true).open(path), &CLOSED)
}

fn writes(path: &str, text: &str) -> Verdict {
    // a masked file is the null device: what is written goes nowhere
    if fs::metadata(path).is_ok_and(|found| found.rdev() == libc::makedev(1, 3)) {
        return Ok("it is the null device".to_owned());
    }
    let done = OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    refused_io(done, &CLOSED)
}

/// A file that may be there but must say nothing.
fn says_nothing(path: &str) -> Verdict {
    let mut text = Vec::new();
    match File::open(path).and_then(|file| file.take(4096).read_to_end(&mut text)) {
        Err(error) => Ok(error.to_string()),
        Ok(0) => Ok("it is empty".to_owned()),
        Ok(length) => Err(format!("{length} bytes: {}", String::from_utf8_lossy(&text[..length.min(40)]))),
    }
}

fn makes_device(kind: libc::mode_t, major: u32, minor: u32) -> Verdict {
    let device = libc::makedev(major, minor);
    // SAFETY: a C string that outlives the call, and numbers.
    refused(unsafe { syscall(libc::SYS_mknodat, libc::AT_FDCWD, c"/tmp/node".as_ptr(), kind | 0o666, device) })
}

fn status(name: &str) -> String {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim().to_owned()
}

fn no_capabilities() -> Verdict {
    for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        let set = status(name);
        if !set.trim_start_matches('0').is_empty() || set.is_empty() {
            return Err(format!("{name} {set}"));
        }
    }
    Ok("all sets are empty".to_owned())
}

/// A program that is root's and has the bit that runs it as its owner gives nothing.
fn setuid_program() -> Verdict {
    let path = "/tmp/setuid";
    let made =
        fs::copy("/proc/self/exe", path).and_then(|_| fs::set_permissions(path, fs::Permissions::from_mode(0o6755)));
    let has_none = no_capabilities()?;
    match (made, status("NoNewPrivs:").as_str()) {
        (Ok(()) | Err(_), "1") => Ok(format!("no new privileges; {has_none}")),
        (_, other) => Err(format!("NoNewPrivs is {other}")),
    }
}

/// Root inside that says it is another user is still the same nobody outside.
fn becomes_another() -> Verdict {
    // SAFETY: numbers only.
    let result = unsafe { syscall(libc::SYS_setresuid, 4242, 4242, 4242) };
    let uids = status("Uid:");
    match (result, uids.split_whitespace().next()) {
        (0 | -1, Some("0")) => Ok("it is still root inside".to_owned()),
        _ => Err(format!("it answered {result} and now is {uids}")),
    }
}

fn is_nobody_outside() -> Verdict {
    let map = fs::read_to_string("/proc/self/uid_map").map_err(|error| error.to_string())?;
    let words: Vec<u64> = map.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match words[..] {
        [0, first, 65536] if first >= 65536 => Ok(format!("root is {first}")),
        _ => Err(map),
    }
}

fn follows_link(target: &str) -> Verdict {
    let link = "/tmp/link";
    let _ = fs::remove_file(link);
    symlink(target, link).map_err(|error| error.to_string())?;
    let result = OpenOptions::new().append(true).open(link).and_then(|mut file| file.write_all(b"6.6.6.6 x\n"));
    let _ = fs::remove_file(link);
    refused_io(result, &CLOSED)
}

/// Only its own processes.
fn sees_processes() -> Verdict {
    let entries = fs::read_dir("/proc").map_err(|error| error.to_string())?;
    let pids: Vec<u32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for pid in &pids {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if !name.starts_with("cove-attacker") {
            return Err(format!("process {pid} is {name}"));
        }
    }
    if pids.len() < 10 { Ok(format!("{} processes, all its own", pids.len())) } else { Err(format!("{pids:?}")) }
}

/// Nothing that can be written to lies on a disk, and nothing of the machine but layers is mounted.
fn sees_mounts() -> Verdict {
    let text = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let is_writable = left.split(' ').nth(5).is_some_and(|options| options.split(',').any(|option| option == "rw"));
        let kind = right.split(' ').next().unwrap_or_default();
        let point = left.split(' ').nth(4).unwrap_or_default();
        let is_known = matches!(kind, "overlay" | "tmpfs" | "proc" | "devpts")
            || kind == "devtmpfs" && point.starts_with("/dev/")
            || point.starts_with("/proc/");
        if !is_known || is_writable && matches!(kind, "ext4" | "xfs" | "btrfs") {
            return Err(line.to_owned());
        }
    }
    Ok("memory, layers and devices".to_owned())
}

/// Descriptors that were left open, by which runtimes were escaped from before.
fn finds_descriptors() -> Verdict {
    let entries = fs::read_dir("/proc/1/fd").map_err(|error| error.to_string())?;
    for entry in entries.flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
        let is_own = ["/dev/null", "pipe:[", "socket:["].iter().any(|known| target.starts_with(known));
        if !is_own {
            return Err(format!("{} is {target}", entry.path().display()));
        }
    }
    Ok("a null device, pipes and its socket".to_owned())
}

fn climbs() -> Verdict {
    let up = "../".repeat(40);
    let above = fs::read_dir(&up).map_err(|error| error.to_string())?.flatten();
    let names: Vec<_> = above.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let is_own = names.iter().any(|name| name == "attacker-was-here");
    if is_own { Ok("above the root is the root".to_owned()) } else { Err(format!("{names:?}")) }
}

pub(super) const ALL: &[Attempt] = &[
    ("no-capabilities", |_| no_capabilities()),
    ("nobody-outside", |_| is_nobody_outside()),
    ("setuid-program", |_| setuid_program()),
    ("become-another-user", |_| becomes_another()),
    ("write-id-map", |_| writes("/proc/self/uid_map", "0 0 1")),
    ("make-disk-node", |_| makes_device(libc::S_IFBLK, 254, 0)),
    ("make-memory-node", |_| makes_device(libc::S_IFCHR, 1, 1)),
    ("make-kmsg-node", |_| makes_device(libc::S_IFCHR, 1, 11)),
    ("open-memory", |_| opens("/dev/mem")),
    ("open-kmsg", |_| opens("/dev/kmsg")),
    ("open-kvm", |_| opens("/dev/kvm")),
    ("open-fuse", |_| opens("/dev/fuse")),
    ("open-tun", |_| opens("/dev/net/tun")),
    ("open-disk", |_| opens("/dev/vda").and_then(|_| opens("/dev/sda"))),
    ("open-loop", |_| opens("/dev/loop-control")),
    ("core-pattern", |_| writes("/proc/sys/kernel/core_pattern", "|/tmp/x")),
    ("modprobe-path", |_| writes("/proc/sys/kernel/modprobe", "/tmp/x")),
    ("binfmt-misc", |_| writes("/proc/sys/fs/binfmt_misc/register", ":x:M::x::/tmp/x:")),
    ("sysrq", |_| writes("/proc/sysrq-trigger", "b")),
    ("drop-caches", |_| writes("/proc/sys/vm/drop_caches", "3")),
    ("ip-forward", |_| writes("/proc/sys/net/ipv4/ip_forward", "1")),
    ("host-name", |_| writes("/proc/sys/kernel/hostname", "x")),
    ("interrupts", |_| writes("/proc/irq/default_smp_affinity", "1")),
    ("kernel-memory", |_| says_nothing("/proc/kcore")),
    ("kernel-symbols", |_| says_nothing("/proc/kallsyms")),
    ("kernel-log", |_| says_nothing("/proc/kmsg")),
    ("kernel-modules", |_| says_nothing("/proc/modules")),
    ("kernel-keys", |_| says_nothing("/proc/keys")),
    ("kernel-timers", |_| says_nothing("/proc/timer_list")),
    ("kernel-command-line", |_| says_nothing("/proc/cmdline")),
    ("host-disks", |_| says_nothing("/proc/partitions")),
    ("sys-tree", |_| match fs::read_dir("/sys").map(Iterator::count) {
        Ok(0) => Ok("it is empty".to_owned()),
        Ok(count) => Err(format!("{count} entries")),
        Err(error) => Ok(error.to_string()),
    }),
    ("cgroup-release-agent", |_| writes("/sys/fs/cgroup/release_agent", "/tmp/x")),
    ("cgroup-join-root", |_| writes("/sys/fs/cgroup/cgroup.procs", "0")),
    ("cgroup-raise-limit", |_| writes("/sys/fs/cgroup/memory.max", "max")),
    ("lower-oom-score", |_| writes("/proc/self/oom_score_adj", "-1000")),
    ("write-hosts", |_| writes("/etc/hosts", "6.6.6.6 x")),
    ("write-resolver", |_| writes("/etc/resolv.conf", "nameserver 6.6.6.6")),
    ("replace-resolver", |_| refused_io(fs::rename("/etc/resolv.conf", "/tmp/r"), &[libc::EBUSY, libc::EXDEV])),
    ("link-to-hosts", |_| follows_link("/etc/hosts")),
    ("link-to-core-pattern", |_| follows_link("/proc/sys/kernel/core_pattern")),
    ("other-processes", |_| sees_processes()),
    ("other-mounts", |_| sees_mounts()),
    ("left-descriptors", |_| finds_descriptors()),
    ("climb-above-root", |_| climbs()),
    ("host-file", |told| opens(told.split(' ').next().unwrap_or_default())),
];
