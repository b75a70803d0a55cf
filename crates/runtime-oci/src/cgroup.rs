//! Control groups of replicas, on cgroup v2, v1 and the hybrid of both.
//!
//! Written by hand and not with libcontainer's manager: that one attaches to every controller there is, one kernel-wide
//! wait each, on the path where a request is waiting. Here only the controllers whose limits we set are used, and the
//! process that will become the container is attached while its helper is still idle.
//!
//! **Invariant:** paths are relative (`cove-<name>/<helper>/c0`); nothing outside `cove-<name>` is ever written to but
//! the list of enabled controllers above it.
//! **Invariant:** [`Cgroups::remove`] ends whatever still runs inside.

mod freezer;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use freezer::Freezer;

/// Processes and threads a container may have.
pub(crate) const PIDS_MAX: u32 = 4096;

/// Length of a CPU period, microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// Controllers that limits need; `devices` (v1) keeps device nodes of other kinds shut.
const V1_CONTROLLERS: [&str; 5] = ["memory", "cpu", "cpuacct", "pids", "devices"];
const V2_CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// Device nodes a container may use (v1): null, zero, full, random, urandom, tty, ptmx, pts, and making any node.
const DEVICES_ALLOWED: [&str; 10] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// The control groups of this machine.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    kind: Kind,
    freezer: Option<Freezer>,
    /// Controllers that cannot be used.
    pub(crate) missing: Vec<Missing>,
}

/// A controller whose limits are not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) controller: &'static str,
    /// What is in the way and what to do about it.
    pub(crate) why: String,
}

/// How much of the processor a group gets beside others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    /// As all others.
    Usual,
    /// A tenth of that: little, and not so little that a start never ends.
    Least,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Mount point per controller; controllers mounted together share one.
    V1(BTreeMap<&'static str, PathBuf>),
    /// Mount point.
    V2(PathBuf),
}

impl Cgroups {
    /// Finds the hierarchies mounted at or below `root` (`/sys/fs/cgroup`).
    ///
    /// # Errors
    /// When mounts cannot be read, or there is no hierarchy at all.
    pub(crate) fn detect(root: &Path) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mut v1 = BTreeMap::new();
        let (mut v2, mut v2_beside, mut v1_freezer) = (None, None, None);
        for line in mounts.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(point) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            if !point.starts_with(root) {
                continue;
            }
            let mut right = right.split(' ');
            let kind = right.next();
            let options = right.nth(1).unwrap_or("");
            if kind == Some("cgroup2") && point == root {
                v2 = Some(point);
            } else if kind == Some("cgroup2") {
                v2_beside = Some(point);
            } else if kind == Some("cgroup") {
                if options.split(',').any(|option| option == "freezer") {
                    v1_freezer = Some(point.clone());
                }
                for name in V1_CONTROLLERS {
                    if options.split(',').any(|option| option == name) {
                        v1.entry(name).or_insert_with(|| point.clone());
                    }
                }
            }
        }
        if let Some(root) = v2 {
            let missing = missing_v2(&root)?;
            return Ok(Self { kind: Kind::V2(root), freezer: Some(Freezer::Own), missing });
        }
        if v1.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no cgroup is mounted at {}", root.display())));
        }
        let missing = V1_CONTROLLERS
            .into_iter()
            .filter(|name| !v1.contains_key(name))
            .map(|controller| Missing { controller, why: NOT_ENABLED.to_owned() })
            .collect();
        let freezer = v2_beside.map(Freezer::Beside).or_else(|| v1_freezer.map(Freezer::V1));
        Ok(Self { kind: Kind::V1(v1), freezer, missing })
    }

    /// Mounts the same hierarchies below `dir` and gives them as found there.
    ///
    /// Their names there are not those of controllers: libcontainer looks for mounts that end in those.
    pub(crate) fn bind_to(&self, dir: &Path) -> io::Result<Self> {
        let bind = |from: &Path, name: &str| -> io::Result<PathBuf> {
            let to = dir.join(format!("cove-{name}"));
            fs::create_dir_all(&to)?;
            mount(Some(from), &to, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(to)
        };
        let kind = match &self.kind {
            Kind::V2(root) => Kind::V2(bind(root, "v2")?),
            Kind::V1(mounts) => {
                let mut bound: BTreeMap<&Path, PathBuf> = BTreeMap::new();
                let mut all = BTreeMap::new();
                for (name, point) in mounts {
                    if !bound.contains_key(point.as_path()) {
                        bound.insert(point, bind(point, name)?);
                    }
                    all.insert(*name, bound[point.as_path()].clone());
                }
                Kind::V1(all)
            }
        };
        let freezer = match &self.freezer {
            None => None,
            Some(Freezer::Own) => Some(Freezer::Own),
            Some(Freezer::Beside(point)) => Some(Freezer::Beside(bind(point, "freezer")?)),
            Some(Freezer::V1(point)) => Some(Freezer::V1(bind(point, "freezer")?)),
        };
        Ok(Self { kind, freezer, missing: self.missing.clone() })
    }

    /// `v1` or `v2`.
    pub(crate) fn version(&self) -> &'static str {
        match self.kind {
            Kind::V1(_) => "v1",
            Kind::V2(_) => "v2",
        }
    }

    /// Whether limits of a controller are kept.
    pub(crate) fn has(&self, controller: &str) -> bool {
        self.missing.iter().all(|missing| missing.controller != controller)
    }

    /// What is missing and why, in words; empty when nothing is.
    pub(crate) fn missing_words(&self) -> String {
        let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for missing in &self.missing {
            reasons.entry(&missing.why).or_default().push(missing.controller);
        }
        let each = reasons.iter().map(|(why, names)| format!("{} ({why})", names.join(", ")));
        each.collect::<Vec<_>>().join("; ")
    }

    fn mounts(&self) -> Vec<&PathBuf> {
        match &self.kind {
            Kind::V1(mounts) => {
                let mut all: Vec<_> = mounts.values().collect();
                all.sort();
                all.dedup();
                all
            }
            Kind::V2(root) => vec![root],
        }
    }

    /// The mounts of the limits, and that of the freezer.
    fn all_mounts(&self) -> Vec<&PathBuf> {
        let mut all = self.mounts();
        all.extend(self.freezer.as_ref().and_then(Freezer::mount));
        all
    }

    pub(crate) fn controller(&self, name: &str, path: &str) -> Option<PathBuf> {
        match &self.kind {
            Kind::V1(mounts) => mounts.get(name).map(|mount| mount.join(path)),
            Kind::V2(root) => Some(root.join(path)),
        }
    }

    /// What a container should see under `/sys/fs/cgroup`: name below it (empty for v2) and folder here.
    pub(crate) fn views(&self, path: &str) -> Vec<(&'static str, PathBuf)> {
        match &self.kind {
            Kind::V1(mounts) => mounts
                .iter()
                .filter(|(name, _)| **name != "devices")
                .map(|(name, mount)| (*name, mount.join(path)))
                .collect(),
            Kind::V2(root) => vec![("", root.join(path))],
        }
    }

    /// Makes a group with all above it; an existing one is fine.
    pub(crate) fn create(&self, path: &str) -> io::Result<()> {
        for mount in self.mounts() {
            let mut folder = mount.clone();
            for part in path.split('/') {
                if let Kind::V2(_) = self.kind {
                    for name in V2_CONTROLLERS.into_iter().filter(|name| self.has(name)) {
                        // One that cannot be enabled is reported by the limit that needs it.
                        let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{name}"));
                    }
                }
                folder.push(part);
                match fs::create_dir(&folder) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(&folder, &error)),
                    _ => {}
                }
            }
        }
        self.write("pids", path, "pids.max", &PIDS_MAX.to_string())?;
        if let (Kind::V1(mounts), Some(folder)) = (&self.kind, self.controller("devices", path))
            && mounts.contains_key("devices")
        {
            fs::write(folder.join("devices.deny"), "a").map_err(|error| at(&folder, &error))?;
            for rule in DEVICES_ALLOWED {
                fs::write(folder.join("devices.allow"), rule).map_err(|error| at(&folder, &error))?;
            }
        }
        Ok(())
    }

    /// Lets a group use `/dev/kvm`, where groups say which devices may be used.
    pub(crate) fn allow_kvm(&self, path: &str) -> io::Result<()> {
        match (&self.kind, self.controller("devices", path)) {
            (Kind::V1(_), Some(folder)) => {
                fs::write(folder.join("devices.allow"), "c 10:232 rwm").map_err(|error| at(&folder, &error))
            }
            _ => Ok(()),
        }
    }

    /// Puts a process into a group. On v1 this waits for the kernel once per hierarchy.
    pub(crate) fn attach(&self, path: &str, pid: Pid) -> io::Result<()> {
        for mount in self.mounts() {
            let file = mount.join(path).join("cgroup.procs");
            fs::write(&file, pid.to_string()).map_err(|error| at(&file, &error))?;
        }
        Ok(())
    }

    /// Limits memory, bytes; swap does not come on top where the kernel can count it.
    pub(crate) fn limit_memory(&self, path: &str, bytes: u64) -> io::Result<()> {
        match self.kind {
            Kind::V1(_) => {
                self.write("memory", path, "memory.limit_in_bytes", &bytes.to_string())?;
                if let Some(folder) = self.controller("memory", path) {
                    let _ = fs::write(folder.join("memory.memsw.limit_in_bytes"), bytes.to_string());
                }
            }
            Kind::V2(_) => {
                self.write("memory", path, "memory.max", &bytes.to_string())?;
                if let Some(folder) = self.controller("memory", path) {
                    let _ = fs::write(folder.join("memory.swap.max"), "0");
                    let _ = fs::write(folder.join("memory.oom.group"), "1");
                }
            }
        }
        Ok(())
    }

    /// Limits processes and threads.
    pub(crate) fn limit_pids(&self, path: &str, count: u32) -> io::Result<()> {
        self.write("pids", path, "pids.max", &count.min(PIDS_MAX).to_string())
    }

    /// Limits CPU, thousandths of a core.
    pub(crate) fn limit_cpu(&self, path: &str, milli: u32) -> io::Result<()> {
        let quota = (u64::from(milli) * CPU_PERIOD_US / 1000).max(1000);
        match self.kind {
            Kind::V1(_) => self.write("cpu", path, "cpu.cfs_quota_us", &quota.to_string()),
            Kind::V2(_) => self.write("cpu", path, "cpu.max", &format!("{quota} {CPU_PERIOD_US}")),
        }
    }

    /// What a group gets of the processor while others want it too: the usual share, or what those leave.
    pub(crate) fn weigh(&self, path: &str, weight: Weight) -> io::Result<()> {
        match (&self.kind, weight) {
            (Kind::V1(_), Weight::Usual) => self.write("cpu", path, "cpu.shares", "1024"),
            (Kind::V1(_), Weight::Least) => self.write("cpu", path, "cpu.shares", "102"),
            (Kind::V2(_), Weight::Usual) => self.write("cpu", path, "cpu.weight", "100"),
            (Kind::V2(_), Weight::Least) => self.write("cpu", path, "cpu.weight", "10"),
        }
    }

    /// How many processes of a group the kernel has killed for want of memory.
    pub(crate) fn oom_kills(&self, path: &str) -> u64 {
        let file = match self.kind {
            Kind::V1(_) => "memory.oom_control",
            Kind::V2(_) => "memory.events",
        };
        let Some(folder) = self.controller("memory", path) else { return 0 };
        fs::read_to_string(folder.join(file))
            .ok()
            .and_then(|text| text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()))
            .unwrap_or(0)
    }

    /// A missing controller is no error: [`Cgroups::missing`] says so once, at the start.
    fn write(&self, controller: &str, path: &str, file: &str, value: &str) -> io::Result<()> {
        if !self.has(controller) {
            return Ok(());
        }
        let Some(folder) = self.controller(controller, path) else { return Ok(()) };
        let file = folder.join(file);
        fs::write(&file, value).map_err(|error| at(&file, &error))
    }

    /// Ends every process in a group and below it.
    pub(crate) fn kill(&self, path: &str) {
        self.thaw_to_kill(path);
        for mount in self.mounts() {
            let folder = mount.join(path);
            if let Kind::V2(_) = self.kind
                && fs::write(folder.join("cgroup.kill"), "1").is_ok()
            {
                continue;
            }
            for folder in subtree(&folder) {
                let Ok(list) = fs::read_to_string(folder.join("cgroup.procs")) else { continue };
                for pid in list.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
    }

    /// Removes a group and all below it after ending what runs there; blocks for at most `limit`.
    ///
    /// # Errors
    /// When something is still alive after `limit` (a process stuck in the kernel), or the kernel refuses.
    pub(crate) fn remove(&self, path: &str, limit: Duration) -> io::Result<()> {
        let deadline = std::time::Instant::now() + limit;
        loop {
            self.kill(path);
            let result = self.remove_once(path);
            if result.is_ok() || std::time::Instant::now() >= deadline {
                return result;
            }
            // The kernel gives no event for the last process on v1; tear-down is on nobody's path.
            let _ = nix::poll::poll(&mut [], 2_u16);
        }
    }

    fn remove_once(&self, path: &str) -> io::Result<()> {
        let mut result = Ok(());
        for mount in self.all_mounts() {
            for folder in subtree(&mount.join(path)) {
                match fs::remove_dir(&folder) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => result = Err(at(&folder, &error)),
                    _ => {}
                }
            }
        }
        result
    }

    /// Removes a group that holds nothing; one that does stays.
    pub(crate) fn remove_if_empty(&self, path: &str) {
        for mount in self.all_mounts() {
            let _ = fs::remove_dir(mount.join(path));
        }
    }

    /// Names of the groups right below `path`.
    pub(crate) fn children(&self, path: &str) -> Vec<String> {
        let mut names: Vec<_> = self
            .all_mounts()
            .into_iter()
            .filter_map(|mount| fs::read_dir(mount.join(path)).ok())
            .flat_map(|entries| entries.flatten())
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Why a controller is not there.
const NOT_ENABLED: &str = "this machine does not have it; enable it on the kernel's command line";

/// Controllers of version 2 that cannot be passed on to groups below `root`; passes on all others.
///
/// A group other than the machine's first may have processes or pass on controllers, not both. With processes in it some
/// controllers could still be passed on, and then no process could enter a group below: so none is.
fn missing_v2(root: &Path) -> io::Result<Vec<Missing>> {
    let read = |name: &str| fs::read_to_string(root.join(name)).map_err(|error| at(&root.join(name), &error));
    let (available, enabled) = (read("cgroup.controllers")?, read("cgroup.subtree_control")?);
    let has = |list: &str, name: &str| list.split_whitespace().any(|found| found == name);
    // The machine's first group has no type.
    let is_first = !root.join("cgroup.type").exists();
    let is_taken =
        !is_first && V2_CONTROLLERS.iter().any(|name| !has(&enabled, name)) && !read("cgroup.procs")?.is_empty();
    let why = |name: &str| {
        if !has(&available, name) {
            Some(NOT_ENABLED.to_owned())
        } else if is_taken {
            Some(format!(
                "{} is not the machine's own and holds processes; start Cove on the host, or its container with `--cgroupns=host`",
                root.display()
            ))
        } else {
            let file = root.join("cgroup.subtree_control");
            fs::write(&file, format!("+{name}")).err().map(|error| at(&file, &error).to_string())
        }
    };
    Ok(V2_CONTROLLERS
        .into_iter()
        .filter_map(|controller| Some(Missing { controller, why: why(controller)? }))
        .collect())
}

/// A folder and all below it, the deepest first.
fn subtree(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    if let Ok(entries) = fs::read_dir(folder) {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            all.extend(subtree(&entry.path()));
        }
    }
    all.push(folder.to_owned());
    all
}

#[cfg(test)]
mod tests {
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
    fn a_group_is_made_limited_killed_and_removed() {
        let cgroups = Cgroups::detect(Path::new("/sys/fs/cgroup")).unwrap();
        let group = Group(&cgroups, format!("cove-test-cgroup-{}", std::process::id()));
        let leaf = format!("{}/h1/c0", group.1);
        cgroups.create(&leaf).unwrap();
        cgroups.create(&leaf).unwrap();
        cgroups.limit_memory(&leaf, 64 << 20).unwrap();
        cgroups.limit_cpu(&leaf, 250).unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        cgroups.attach(&leaf, Pid::from_raw(child.id().try_into().unwrap())).unwrap();
        assert_eq!(cgroups.children(&group.1), ["h1"]);
        let waiter = std::thread::spawn(move || child.wait().unwrap());
        cgroups.remove(&group.1, LIMIT).unwrap();
        assert!(!waiter.join().unwrap().success());
        assert!(cgroups.all_mounts().iter().all(|mount| !mount.join(&group.1).exists()));
    }

    #[test]
    fn a_group_with_processes_passes_nothing_on() {
        let cgroups = Cgroups::detect(Path::new("/sys/fs/cgroup")).unwrap();
        assert_eq!((cgroups.missing_words().as_str(), &cgroups.missing), ("", &Vec::new()));
        let group = Group(&cgroups, format!("cove-test-taken-{}", std::process::id()));
        let taken = format!("{}/taken", group.1);
        cgroups.create(&taken).unwrap();
        let Kind::V2(root) = &cgroups.kind else {
            // Version 1 has no such rule: groups with processes have limited groups below them.
            let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
            cgroups.attach(&taken, Pid::from_raw(child.id().try_into().unwrap())).unwrap();
            cgroups.create(&format!("{taken}/c0")).unwrap();
            cgroups.limit_memory(&format!("{taken}/c0"), 64 << 20).unwrap();
            cgroups.kill(&taken);
            assert!(!child.wait().unwrap().success());
            return;
        };
        assert_eq!(missing_v2(&root.join(&taken)).unwrap(), []);
        let inner = format!("{taken}/inner");
        cgroups.create(&inner).unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        cgroups.attach(&inner, Pid::from_raw(child.id().try_into().unwrap())).unwrap();
        let missing = missing_v2(&root.join(&inner)).unwrap();
        assert_eq!(missing.iter().map(|missing| missing.controller).collect::<Vec<_>>(), V2_CONTROLLERS);
        let inside = Cgroups { kind: Kind::V2(root.join(&inner)), freezer: Some(Freezer::Own), missing };
        assert!(inside.missing_words().starts_with("memory, cpu, pids ("), "{}", inside.missing_words());
        // Without limits, but it works.
        inside.create("c0").unwrap();
        inside.limit_memory("c0", 64 << 20).unwrap();
        inside.attach("c0", Pid::from_raw(child.id().try_into().unwrap())).unwrap();
        inside.kill("c0");
        assert!(!child.wait().unwrap().success());
    }

    /// What version 1's freezer and version 2's do alike, with whatever this machine has.
    #[test]
    fn a_group_is_frozen_with_all_it_starts_and_killed() {
        let all = Cgroups::detect(Path::new("/sys/fs/cgroup")).unwrap();
        assert!(all.can_freeze(), "this machine has no freezer at /sys/fs/cgroup");
        let mut kinds = vec![all.clone()];
        let v1 = Path::new("/sys/fs/cgroup/freezer");
        if let (Kind::V1(_), true) = (&all.kind, v1.join("cgroup.procs").exists()) {
            kinds.push(Cgroups { freezer: Some(Freezer::V1(v1.to_owned())), ..all });
        }
        for (number, cgroups) in kinds.iter().enumerate() {
            let group = Group(cgroups, format!("cove-test-freezer-{}-{number}", std::process::id()));
            let leaf = format!("{}/c0", group.1);
            cgroups.create(&leaf).unwrap();
            // counts in a file, each time with a new process
            let file = tempfile::NamedTempFile::new().unwrap();
            let script = format!("while :; do /bin/ls -d / >> {}; done", file.path().display());
            let mut child = std::process::Command::new("sh").args(["-c", &script]).spawn().unwrap();
            cgroups.attach(&leaf, Pid::from_raw(child.id().try_into().unwrap())).unwrap();
            let length = || file.as_file().metadata().unwrap().len();
            let grows_from = |from: u64| {
                let deadline = std::time::Instant::now() + LIMIT;
                while length() <= from {
                    assert!(std::time::Instant::now() < deadline, "it does not run");
                    std::thread::yield_now();
                }
            };
            grows_from(0);
            for _ in 0..2 {
                cgroups.freeze(&group.1).unwrap();
                let pid = child.id();
                let stands_still = || {
                    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
                    let ticks = |stat: &str| stat.rsplit(')').next().unwrap().split(' ').nth(12).map(str::to_owned);
                    let before = (length(), ticks(&stat));
                    let begun = std::time::Instant::now();
                    while begun.elapsed() < Duration::from_millis(50) {
                        std::thread::yield_now();
                    }
                    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
                    before == (length(), ticks(&stat))
                };
                let deadline = std::time::Instant::now() + LIMIT;
                while !stands_still() {
                    assert!(std::time::Instant::now() < deadline, "it still runs");
                }
                let before = length();
                cgroups.thaw(&group.1).unwrap();
                grows_from(before);
            }
            cgroups.freeze(&group.1).unwrap();
            cgroups.remove(&group.1, LIMIT).unwrap();
            assert!(!child.wait().unwrap().success());
        }
    }
}
