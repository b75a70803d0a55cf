//! What tests of several crates need. Only ever a development dependency; `cargo xtask tidy` sees to that.
//!
//! **Invariant:** nothing here waits, and nothing depends on what else the machine does.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// First port of tests, below those that the kernel gives to whoever names none, and how many there are.
const PORTS: (u16, u16) = (20_000, 12_000);
/// How many a process has for itself, next to processes that were started at about the same time.
const PORTS_OWN: u32 = 16;

/// A port that nobody has, and that no other test of this moment is given.
///
/// # Panics
/// When 12,000 ports are taken.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (first, count) = PORTS;
    let one = |_| {
        let number = std::process::id().wrapping_mul(PORTS_OWN).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        first + u16::try_from(number % u32::from(count)).expect("it is below the count")
    };
    let mut ports = (0..count).map(one);
    ports.find(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok()).expect("tests have free ports")
}

/// Processor time of this thread, to 10 ms: whatever else the machine does meanwhile is not in it.
///
/// # Panics
/// On a machine without `/proc`.
#[must_use]
pub fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("the kernel tells it");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses comes before");
    let hundredths: u64 = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(10 * hundredths)
}
