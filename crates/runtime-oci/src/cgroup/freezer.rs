//! Stops every process of a group in its tracks, and lets them go on.
//!
//! Version 2 freezes a group in place. Beside version 1 its tree is usually mounted too, without controllers, and can
//! freeze all the same; a process frozen there still dies when it is killed. Only where it is missing, version 1's own
//! freezer is used. Neither costs anything before the first freeze: processes are moved into the freezer's tree then.
//!
//! **Invariant:** after [`Cgroups::freeze`] no process of the group is outside of the frozen group: one that was started
//! while the others were moved is found by looking again once nothing can start any more.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use nix::unistd::Pid;

use super::{Cgroups, Kind, at, subtree};

/// Passes over a group until every process is moved; each finds only what the last one's processes started.
const PASSES_MAX: usize = 16;

/// Which tree freezes.
#[derive(Clone, Debug)]
pub(super) enum Freezer {
    /// The one tree of version 2.
    Own,
    /// Version 2's tree beside version 1, mounted here.
    Beside(PathBuf),
    /// Version 1's freezer, mounted here.
    V1(PathBuf),
}

impl Freezer {
    /// The mount point where it is not the one of the limits.
    pub(super) fn mount(&self) -> Option<&PathBuf> {
        match self {
            Self::Own => None,
            Self::Beside(point) | Self::V1(point) => Some(point),
        }
    }
}

impl Cgroups {
    /// Whether this machine can freeze.
    pub(crate) fn can_freeze(&self) -> bool {
        self.freezer.is_some()
    }

    /// By what, in words; empty when it cannot.
    pub(crate) fn freezer_words(&self) -> &'static str {
        match self.freezer {
            Some(Freezer::Own | Freezer::Beside(_)) => "version 2",
            Some(Freezer::V1(_)) => "version 1",
            None => "",
        }
    }

    /// The folder of a group in the tree that freezes.
    pub(crate) fn freezer_folder(&self, path: &str) -> Option<PathBuf> {
        match (self.freezer.as_ref()?, &self.kind) {
            (Freezer::Own, Kind::V2(mount)) | (Freezer::Beside(mount) | Freezer::V1(mount), _) => {
                Some(mount.join(path))
            }
            (Freezer::Own, Kind::V1(_)) => None,
        }
    }

    /// Freezes every process of a group and below it.
    ///
    /// # Errors
    /// When the kernel refuses; some may be frozen then, and [`Cgroups::thaw`] undoes that.
    pub(crate) fn freeze(&self, path: &str) -> io::Result<()> {
        match &self.freezer {
            None => Err(io::Error::new(io::ErrorKind::Unsupported, "this machine has no freezer")),
            Some(Freezer::Own) => {
                self.let_swap(path, true);
                self.set_frozen(path, true)
            }
            Some(Freezer::Beside(mount) | Freezer::V1(mount)) => {
                let folder = mount.join(path);
                fs::create_dir_all(&folder).map_err(|error| at(&folder, &error))?;
                // what runs is moved first; what that starts meanwhile is caught when it can start nothing any more
                self.move_in(path, &folder)?;
                self.set_frozen(path, true)?;
                self.gather(path, &folder)
            }
        }
    }

    /// Lets a group go on; one that is not frozen is fine. The wake path.
    pub(crate) fn thaw(&self, path: &str) -> io::Result<()> {
        match self.set_frozen(path, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
        if let Some(Freezer::Own) = self.freezer {
            self.let_swap(path, false);
        }
        Ok(())
    }

    /// Lets everything below a group go on, where a frozen process could not be killed otherwise.
    pub(super) fn thaw_to_kill(&self, path: &str) {
        if let Some(Freezer::V1(mount)) = &self.freezer {
            for folder in subtree(&mount.join(path)) {
                let _ = fs::write(folder.join("freezer.state"), "THAWED");
            }
        }
    }

    /// Processes of a group and of those below it.
    pub(crate) fn processes(&self, path: &str) -> io::Result<Vec<Pid>> {
        let Some(mount) = self.mounts().first().map(|mount| mount.join(path)) else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for folder in subtree(&mount) {
            all.extend(listed(&folder)?);
        }
        Ok(all.into_iter().map(Pid::from_raw).collect())
    }

    fn set_frozen(&self, path: &str, is_frozen: bool) -> io::Result<()> {
        let file = match (&self.freezer, &self.kind) {
            (Some(Freezer::Own), Kind::V2(mount)) | (Some(Freezer::Beside(mount)), _) => {
                mount.join(path).join("cgroup.freeze")
            }
            (Some(Freezer::V1(mount)), _) => {
                let file = mount.join(path).join("freezer.state");
                return fs::write(&file, if is_frozen { "FROZEN" } else { "THAWED" })
                    .map_err(|error| at(&file, &error));
            }
            (Some(Freezer::Own), Kind::V1(_)) | (None, _) => return Ok(()),
        };
        fs::write(&file, if is_frozen { "1" } else { "0" }).map_err(|error| at(&file, &error))
    }

    /// Moves the processes of a frozen group into its folder of the freezer's tree, until none is left outside.
    fn gather(&self, path: &str, folder: &Path) -> io::Result<()> {
        for _ in 0..PASSES_MAX {
            if !self.move_in(path, folder)? {
                return Ok(());
            }
        }
        Err(io::Error::other(format!("the processes of {path} start others faster than they can be frozen")))
    }

    /// Moves those that are outside of the folder in; says whether there were any.
    fn move_in(&self, path: &str, folder: &Path) -> io::Result<bool> {
        let all = self.processes(path)?;
        // read after the others: whoever is started in between is inside
        let inside: BTreeSet<i32> = listed(folder)?.into_iter().collect();
        let mut was_any = false;
        for pid in all.into_iter().map(Pid::as_raw).filter(|pid| !inside.contains(pid)) {
            let file = folder.join("cgroup.procs");
            match fs::write(&file, pid.to_string()) {
                // it ended meanwhile
                Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => continue,
                moved => moved.map_err(|error| at(&file, &error))?,
            }
            // one that is just ending is listed until it is gone, is left where it is, and starts nothing any more
            was_any |= !is_ending(pid);
        }
        Ok(was_any)
    }

    /// Limits of version 2 keep running containers out of the swap; a frozen one may go there.
    fn let_swap(&self, path: &str, is_let: bool) {
        let Some(folder) = self.controller("memory", path) else { return };
        for folder in subtree(&folder).into_iter().filter(|found| *found != folder) {
            let _ = fs::write(folder.join("memory.swap.max"), if is_let { "max" } else { "0" });
        }
    }
}

/// Its first thread has ended or is about to; the others were moved.
fn is_ending(pid: i32) -> bool {
    /// `PF_EXITING` of the kernel.
    const ENDING: u64 = 0x4;
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, rest)) = text.rsplit_once(") ") else { return true };
    let fields: Vec<&str> = rest.split(' ').collect();
    let flags = fields.get(6).and_then(|flags| flags.parse::<u64>().ok()).unwrap_or(0);
    matches!(fields.first(), Some(&"Z" | &"X")) || flags & ENDING != 0
}

/// Processes right in a folder; none when it is gone.
fn listed(folder: &Path) -> io::Result<Vec<i32>> {
    let file = folder.join("cgroup.procs");
    match fs::read_to_string(&file) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        // a group below version 2's threaded ones has no list; none of ours is
        Err(error) => Err(at(&file, &error)),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Child, Command},
        time::{Duration, Instant},
    };

    use super::*;

    /// Longest wait for a process; the machine may be busy with other tests.
    const LIMIT: Duration = Duration::from_secs(60);

    fn pid(child: &Child) -> i32 {
        i32::try_from(child.id()).unwrap()
    }

    #[test]
    fn a_group_is_frozen_though_one_of_its_processes_is_just_ending() {
        let cgroups = Cgroups::detect(Path::new("/sys/fs/cgroup")).unwrap();
        let group = format!("cove-test-freezer-{}", std::process::id());
        cgroups.create(&group).unwrap();
        let mut sleeps = Command::new("sleep").arg("600").spawn().unwrap();
        let mut ended = Command::new("true").spawn().unwrap();
        cgroups.attach(&group, Pid::from_raw(pid(&sleeps))).unwrap();
        // nobody asks for its end before the group is frozen
        let _ended_already = cgroups.attach(&group, Pid::from_raw(pid(&ended)));
        let deadline = Instant::now() + LIMIT;
        while !is_ending(pid(&ended)) {
            assert!(Instant::now() < deadline, "`true` does not end");
            std::thread::yield_now();
        }
        assert!(!is_ending(pid(&sleeps)) && is_ending(i32::MAX));
        let frozen = cgroups.freeze(&group);
        ended.wait().unwrap();
        let thawed = cgroups.thaw(&group);
        cgroups.kill(&group);
        sleeps.wait().unwrap();
        cgroups.remove(&group, LIMIT).unwrap();
        frozen.unwrap();
        thawed.unwrap();
    }
}
