//! What hostile code in a machine of its own comes to outside: judged by effect.
//!
//! A guest has a kernel of its own, which may well let its root mount, load modules, or make raw packets: that is its own
//! business. So for the tier `vm` an attempt is contained when
//!
//! | of | contained means |
//! |---|---|
//! | [`STRICT`] (other machines, files, sockets and processes of the host, the console) | it failed, as in every tier; a refused connection counts, as QEMU refuses those itself |
//! | all others (calls, mounts, devices, `/proc`, bombs) | it failed, or it came about inside and [`Machine::is_as_it_was`]: nothing of the host has changed, QEMU is in its jail and within its limits |
//! | frames ([`is_leak`]) | none of the attempts' was captured on any interface of the host |

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail here")]

use std::{
    fs,
    io::Write as _,
    time::{Duration, Instant, SystemTime},
};

use cove_model::ReplicaName;
use cove_runtime::{Runtime as _, SandboxTier};

use crate::fixture::{Host, LIMIT};

/// Attempts that must fail whatever kernel makes them: what they reach for is outside.
const STRICT: [&str; 16] = [
    "signal-to-the-host",
    "host-file",
    "abstract-socket",
    "metadata",
    "machine-and-neighbours",
    "private-10",
    "private-172",
    "private-192",
    "shared-100",
    "ipv6-unique-local",
    "internet-tcp",
    "internet-udp",
    "internet-ipv6",
    "dns-tunnel",
    "console-flood",
    "console-endless-lines",
];

/// What hostile code would change of the host if it could.
const FILES: [&str; 12] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/kernel/randomize_va_space",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/vm/overcommit_memory",
    "/proc/irq/default_smp_affinity",
    "/proc/swaps",
    "/proc/self/uid_map",
    "/etc/hosts",
    "/etc/resolv.conf",
];

/// Longest wait for a container that was ended: a machine boots again, and after a few ends it waits before.
pub(crate) fn start_limit(tier: &SandboxTier) -> Duration {
    if *tier == SandboxTier::Vm { 4 * LIMIT } else { LIMIT }
}

/// The host as it was.
pub(crate) struct Machine {
    files: Vec<Option<String>>,
    clock: (Instant, SystemTime),
}

impl Machine {
    pub(crate) fn of_host() -> Self {
        Self {
            files: FILES.map(|path| fs::read_to_string(path).ok().map(|text| lasting(path, &text))).to_vec(),
            clock: (Instant::now(), SystemTime::now()),
        }
    }

    /// Whether the host is as it was and what runs the code is where it belongs; in words what is not.
    pub(crate) fn is_as_it_was(&self, host: &Host, name: &ReplicaName, tier: &SandboxTier) -> Result<(), String> {
        let now = Self::of_host();
        for ((path, before), after) in FILES.iter().zip(&self.files).zip(&now.files) {
            if before != after {
                return Err(format!("{path} was {before:?} and is {after:?}"));
            }
        }
        let expected = self.clock.1 + now.clock.0.duration_since(self.clock.0);
        let moved = expected.duration_since(now.clock.1).unwrap_or_else(|error| error.duration());
        if moved > Duration::from_secs(5) {
            return Err(format!("the clock moved by {moved:?}"));
        }
        if *tier == SandboxTier::Vm { is_in_jail(host, name) } else { Ok(()) }
    }
}

/// What of a file stays as it is unless somebody changes it. How much of a swap is used changes by itself, and another test
/// has compressed memory for swap for a while.
fn lasting(path: &str, text: &str) -> String {
    if path != "/proc/swaps" {
        return text.to_owned();
    }
    let names = text.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| !name.starts_with("/dev/zram")).collect::<Vec<_>>().join("\n")
}

/// QEMU has no more than it began with.
fn is_in_jail(host: &Host, name: &ReplicaName) -> Result<(), String> {
    let helper = host.helper_pid(name);
    let children = fs::read_to_string(format!("/proc/{helper}/task/{helper}/children")).unwrap();
    for child in children.split_whitespace() {
        let Ok(status) = fs::read_to_string(format!("/proc/{child}/status")) else { continue };
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            line.split_whitespace().next().unwrap_or_default().to_owned()
        };
        if value("Name:") != "qemu-system-x86" {
            // a carrier, or a machine that has just ended
            continue;
        }
        let none = "0000000000000000".to_owned();
        let found = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:"].map(value);
        let wanted = [none.clone(), none.clone(), none.clone(), none.clone(), none, "1".to_owned(), "2".to_owned()];
        let user: u32 = value("Uid:").parse().unwrap_or(0);
        let threads: u32 = value("Threads:").parse().unwrap_or(u32::MAX);
        if found != wanted || user < 0x7000_0000 || threads > 128 {
            return Err(format!("QEMU is user {user} with {threads} threads: {found:?}"));
        }
    }
    let used = host.runtime().usage(name).and_then(|used| used.memory_bytes).unwrap_or(0);
    let limit = (256 << 20) + cove_vm::OVERHEAD_BYTES;
    if used > limit { Err(format!("the machine has {used} bytes of {limit}")) } else { Ok(()) }
}

/// Whether an attempt sent a frame: to 203.0.113.0/24, which is nobody's, or with the name that is to be smuggled out.
pub(crate) fn is_leak(frame: &[u8]) -> bool {
    is_of_nobody(frame) || frame.windows(12).any(|part| part == b"secret-value")
}

/// Whether the head of a frame, of IPv4 or ARP, names 203.0.113.0/24. Three bytes of anything else that the machine sends
/// meanwhile may be these by chance.
fn is_of_nobody(frame: &[u8]) -> bool {
    let is_at = |place: usize| frame.get(place..place + 3) == Some(&[203, 0, 113][..]);
    match frame.get(12..14) {
        Some([0x08, 0x00]) => is_at(26) || is_at(30),
        Some([0x08, 0x06]) => is_at(28) || is_at(38),
        _ => false,
    }
}

/// Judges the answers of attempts in a machine; each was looked at from outside when it was made.
pub(crate) fn judge(answers: &[(String, String)]) {
    let mut out = std::io::stdout();
    let is_own = |answer: &str| answer.starts_with("contained");
    for (attempt, answer) in answers {
        let inside = if is_own(answer) { "" } else { "inside its machine: " };
        let _ = writeln!(out, "{attempt:28} {inside}{answer}");
    }
    let escaped: Vec<_> = answers
        .iter()
        // the emulated network refuses by itself; the neighbour's open port is among those that were tried
        .filter(|(attempt, answer)| {
            STRICT.contains(&attempt.as_str()) && !is_own(answer) && !answer.contains("Connection refused")
        })
        .collect();
    assert!(escaped.is_empty(), "{escaped:#?}");
}
