//! What the processes of a control group use.
//!
//! **Invariant:** a figure that the kernel does not give is `None`, never zero.

use std::{fs, path::Path};

use cove_runtime::ReplicaUse;

use crate::cgroup::Cgroups;

impl Cgroups {
    /// What a group and all below it use now.
    pub(crate) fn usage(&self, path: &str) -> ReplicaUse {
        let cpu = |path: &Path| match self.version() {
            "v1" => number(&path.join("cpuacct.usage")).map(|nanos| nanos / 1000),
            _ => field(&path.join("cpu.stat"), "usage_usec"),
        };
        let memory = |path: &Path| {
            let (all, inactive) = match self.version() {
                "v1" => ("memory.usage_in_bytes", "total_inactive_file"),
                _ => ("memory.current", "inactive_file"),
            };
            // The pages of files that were not used lately can be taken back, so nothing counts them as used.
            let inactive = field(&path.join("memory.stat"), inactive).unwrap_or(0);
            Some(number(&path.join(all))?.saturating_sub(inactive))
        };
        ReplicaUse {
            cpu_us_total: self.controller("cpuacct", path).and_then(|folder| cpu(&folder)),
            memory_bytes: self.controller("memory", path).and_then(|folder| memory(&folder)),
        }
    }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The value behind a name in a file of such lines.
fn field(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, process::Stdio, time::Duration};

    use nix::unistd::Pid;

    use super::*;

    /// Longest wait for a process; the machine may be busy with other tests.
    const LIMIT: Duration = Duration::from_secs(60);

    /// Removes its group also when the test fails.
    struct Group<'a>(&'a Cgroups, String);
    impl Drop for Group<'_> {
        fn drop(&mut self) {
            let _ = self.0.remove(&self.1, LIMIT);
        }
    }

    #[test]
    fn processor_time_and_memory_of_a_group_and_those_below_it() {
        let cgroups = Cgroups::detect(Path::new("/sys/fs/cgroup")).unwrap();
        assert_eq!(cgroups.usage("cove-no-such-group"), ReplicaUse::default());
        let group = Group(&cgroups, format!("cove-test-usage-{}", std::process::id()));
        let leaf = format!("{}/c0", group.1);
        cgroups.create(&leaf).unwrap();
        // Waits for a line, so that all it does is counted; then works, says so, and waits again.
        let script = "read go; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done; read end";
        let mut child = std::process::Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cgroups.attach(&leaf, Pid::from_raw(child.id().try_into().unwrap())).unwrap();
        let before = cgroups.usage(&group.1).cpu_us_total.unwrap();
        child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        let used = cgroups.usage(&group.1);
        cgroups.remove(&group.1, LIMIT).unwrap();
        child.wait().unwrap();
        assert!(used.cpu_us_total.unwrap() > before + 10_000, "{before} {used:?}");
        assert!(used.memory_bytes.is_some_and(|bytes| bytes < 64 << 20), "{used:?}");
    }
}
