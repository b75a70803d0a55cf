//! Which ports are listened at: read from the kernel's tables while somebody waits for one.
//!
//! The emulated network accepts connections before the program does, so only this says that the program is ready.

use std::fs;

/// First and longest time between two looks, milliseconds.
const STEP_MS: i32 = 10;
const STEP_MAX_MS: i32 = 250;
/// Looks at the short step; then each waits a fifth longer.
const SHORT_LOOKS: u32 = 2_000;

/// Ports that are waited for.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    all: Vec<u16>,
    /// Those that nobody listened at so far.
    ports: Vec<u16>,
    looks: u32,
    step_ms: i32,
}

impl Watch {
    pub(crate) fn new(ports: &[u16]) -> Self {
        Self { all: ports.to_vec(), ports: ports.to_vec(), looks: 0, step_ms: STEP_MS }
    }

    /// Tells all of them once more.
    pub(crate) fn again(&mut self) {
        *self = Self::new(&std::mem::take(&mut self.all));
    }

    /// Milliseconds until the next look; `None` when nothing is waited for.
    pub(crate) fn wait_ms(&self) -> Option<i32> {
        (!self.ports.is_empty()).then_some(self.step_ms)
    }

    /// Ports that are listened at now and were not before.
    pub(crate) fn look(&mut self) -> Vec<u16> {
        self.looks = self.looks.saturating_add(1);
        if self.looks > SHORT_LOOKS {
            self.step_ms = (self.step_ms + self.step_ms / 5).min(STEP_MAX_MS);
        }
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let open = reachable(&[read("/proc/net/tcp"), read("/proc/net/tcp6")]);
        let found: Vec<_> = self.ports.iter().copied().filter(|port| open.contains(port)).collect();
        self.ports.retain(|port| !found.contains(port));
        found
    }
}

/// Ports with a listener that the emulated network reaches: on any address or the guest's, not on loopback only.
fn reachable(tables: &[String]) -> Vec<u16> {
    const LISTENS: &str = "0A";
    const LOOPBACK: [&str; 2] = ["0100007F", "00000000000000000000000001000000"];
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    let ports = lines.filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (address, port) = words.next()?.split_once(':')?;
        let is_open = words.nth(1)? == LISTENS && !LOOPBACK.contains(&address);
        u16::from_str_radix(port, 16).ok().filter(|_| is_open)
    });
    ports.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let four = "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n   \
                    1: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n   \
                    2: 0F02000A:0051 0202000A:0000 01 00000000:00000000 00:00000000 00000000     0        0 1\n";
        let six = "   0: 00000000000000000000000000000000:1770 00000000000000000000000000000000:0000 0A 0:0 0\n   \
                   1: 00000000000000000000000001000000:1771 00000000000000000000000000000000:0000 0A 0:0 0\n";
        assert_eq!(reachable(&[format!("{head}{four}"), format!("{head}{six}")]), [8080, 6000]);
        assert!(reachable(&[String::new(), "x\ny: z\n".to_owned()]).is_empty());
    }
}
