//! Keeping what a replica's processes are, and bringing that back in another replica; both by CRIU, a child of this helper.
//!
//! It is kept while the replica is held still, so its memory and its files are of one moment. The images are made in the
//! replica's own folder and taken away from there when they are whole.
//!
//! Brought back it is in a container that was made like any other: the first process, which waits for its start, is ended
//! and CRIU's takes its place. So the root, the folders to mount at and what commands need of the container are there.
//!
//! **Invariant:** the replica that is kept is thawed when CRIU ends, whatever it did; and CRIU ends within a limit.
//! **Invariant:** a container that cannot be brought back begins with its program, once, as others do.

#![expect(unsafe_code, reason = "entering a namespace between fork and exec has no safe wrapper")]

use std::{
    ffi::{CStr, CString},
    fs,
    io::{self, Read as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, MetadataExt as _},
            process::CommandExt as _,
        },
    },
    time::{Duration, Instant},
};

use camino::{Utf8Path, Utf8PathBuf};
use nix::{
    libc,
    mount::{MsFlags, mount},
    sys::socket::MsgFlags,
    unistd::Pid,
};

use super::{
    carrier::{Answer, Carrier, Order, kill},
    container::{Container, Run, output_pipes, state_dir, waiting},
    supervisor::Supervisor,
    user_ns,
};
use crate::{
    memory::{self, FACTS_FILE, MEMORY_DIR, MemoryFacts, PID_FILE, RUN_DIR},
    protocol::{MemoryGiven, MemoryOrder, send, write_atomically},
};

/// Longest time that CRIU may take to keep what is there. Ended in the middle it may take the processes along, so this is for
/// a disk that hardly writes any more.
const DUMP_LIMIT: Duration = Duration::from_secs(120);

/// Most bytes of memory that are kept, bytes: what any disk writes long before [`DUMP_LIMIT`].
const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// Longest time that it may take to bring it back.
const RESTORE_LIMIT: Duration = Duration::from_secs(60);

/// Folder below a bundle where images are shown with the ids of the sandbox.
pub(super) const SHOWN_DIR: &str = "kept";

/// Most bytes of the list of a process's mounts.
const MOUNTS_BYTES_MAX: u64 = 1 << 20;

/// CRIU at work on this replica.
#[derive(Debug)]
pub(super) struct Dump {
    pub(super) pid: Pid,
    /// When it is ended.
    kill_at: Option<Instant>,
    facts: MemoryFacts,
    bytes_max: u64,
    /// Who asked.
    socket: OwnedFd,
}

impl Dump {
    pub(super) fn kill_at(&self) -> Option<Instant> {
        self.kill_at
    }
}

/// A container whose processes are being brought back.
#[derive(Debug)]
pub(super) struct Restoring {
    /// Becomes CRIU.
    pub(super) carrier: Carrier,
    pub(super) is_ordered: bool,
    /// When it is ended.
    pub(super) kill_at: Option<Instant>,
    order: MemoryOrder,
    facts: MemoryFacts,
}

impl Restoring {
    /// Its carrier has something to say; `Ok(true)`: it waits for its order. What else it says its end says too.
    pub(super) fn is_attached(&self) -> Result<bool, String> {
        Ok(!self.is_ordered && matches!(self.carrier.answer(), Ok(Some(Answer::Attached))))
    }
}

impl Supervisor {
    /// Has the memory of its only container kept.
    pub(super) fn give_memory(&mut self, name: &str, program: &Utf8Path, bytes_max: u64, fds: Vec<OwnedFd>) {
        let Some(socket) = fds.into_iter().next() else { return };
        match self.begin_dump(name, program, bytes_max) {
            Ok((pid, facts)) => {
                let kill_at = Some(Instant::now() + DUMP_LIMIT);
                self.dump = Some(Dump { pid, kill_at, facts, bytes_max, socket });
            }
            Err(error) => answer(&socket, Err(error)),
        }
    }

    /// What CRIU has as its /run, in memory; made when it is not there.
    fn run_dir(&self) -> io::Result<Utf8PathBuf> {
        let stage = self.stage.as_ref().ok_or_else(|| io::Error::other("it has no stage"))?;
        let dir = stage.dir.join(RUN_DIR);
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&dir)?;
        Ok(dir)
    }

    fn images_dir(&self) -> Utf8PathBuf {
        self.dir.join(MEMORY_DIR)
    }

    fn begin_dump(&self, name: &str, program: &Utf8Path, bytes_max: u64) -> Result<(Pid, MemoryFacts), String> {
        let mut mains = self.containers.iter().filter(|container| !container.spec.is_init);
        let (Some(container), None) = (mains.next(), mains.next()) else {
            return Err("it has several containers".to_owned());
        };
        let (Run::Running { pid, .. }, true) = (&container.run, container.spec.name == name) else {
            return Err("its container does not run".to_owned());
        };
        let is_plain = container.machine.is_none() && container.handler.is_none() && self.stage.is_some();
        if !is_plain || self.readers.is_empty() || self.dump.is_some() {
            return Err("it is not held still, or nothing of this kind".to_owned());
        }
        if !container.spec.mounts.is_empty() {
            return Err("it has volumes".to_owned());
        }
        if !self.execs.is_empty() {
            return Err("commands run in it besides its program".to_owned());
        }
        let folder = self.env.cgroups.freezer_folder(&self.spec.cgroup).ok_or("this machine has no freezer")?;
        let freezer = folder.to_str().ok_or("the path of its control group is not UTF-8")?;
        let used = self.memory_bytes();
        if used > bytes_max.min(MEMORY_BYTES_MAX) {
            return Err(format!("its memory of {} MiB is more than may be kept", used >> 20));
        }
        let facts = facts_of(container, *pid)?;
        let dir = self.images_dir();
        let words = |error: io::Error| format!("its memory cannot be kept: {error}");
        remove(&dir).map_err(words)?;
        fs::DirBuilder::new().mode(0o700).create(&dir).map_err(words)?;
        let mut command = memory::command(program);
        command.args(memory::dump_arguments(pid.as_raw(), &dir, freezer, &facts));
        let network = self.network.as_raw_fd();
        let run_dir = CString::new(self.run_dir().map_err(words)?.as_str()).map_err(|error| error.to_string())?;
        // SAFETY: between fork and exec calls of the kernel alone, with strings and a descriptor that this process holds.
        unsafe {
            command.pre_exec(move || {
                enter(network)?;
                own_run_dir(&run_dir)
            })
        };
        // the helper's loop waits for all its children
        let child = command.spawn().map_err(|error| format!("`{program}` cannot be run: {error}"))?;
        Ok((Pid::from_raw(i32::try_from(child.id()).map_err(|error| error.to_string())?), facts))
    }

    /// What its processes have for themselves.
    fn memory_bytes(&self) -> u64 {
        let all = self.env.cgroups.processes(&self.spec.cgroup).unwrap_or_default();
        let of = |pid: &Pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let kib = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name))?;
                line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().ok()
            };
            (kib("RssAnon").unwrap_or(0) + kib("RssShmem").unwrap_or(0)) << 10
        };
        all.iter().map(of).sum()
    }

    /// CRIU has ended.
    pub(super) fn dump_ended(&mut self, code: i32) {
        let Some(dump) = self.dump.take() else { return };
        let dir = self.images_dir();
        let images = match (code, dump.kill_at) {
            (0, _) => self.whole(&dir, &dump).map(|()| dir.clone()),
            (_, None) => Err(format!("CRIU did not keep its memory within {} s", DUMP_LIMIT.as_secs())),
            (code, Some(_)) => Err(memory::why_not(&dir, code)),
        };
        if images.is_err() {
            let _ = remove(&dir);
        }
        answer(&dump.socket, images);
        // CRIU leaves a group as it found it, and who held it may have gone meanwhile
        self.go_on_after_readers();
    }

    /// Makes images whole.
    fn whole(&self, dir: &Utf8Path, dump: &Dump) -> Result<(), String> {
        let words = |error: io::Error| format!("its memory cannot be kept: {error}");
        self.run_dir().and_then(|run_dir| memory::copy_kernel_file(&run_dir, dir)).map_err(words)?;
        let bytes = memory::bytes_of(dir).map_err(words)?;
        if bytes > dump.bytes_max {
            return Err(format!("its memory of {} MiB is more than may be kept", bytes >> 20));
        }
        let text = serde_json::to_vec(&dump.facts).map_err(|error| words(error.into()))?;
        write_atomically(&dir.join(FACTS_FILE), &text).and_then(|()| memory::open_up(dir)).map_err(words)
    }

    /// The replica is to end: nobody waits for its memory.
    pub(super) fn end_dump(&mut self) {
        if let Some(dump) = self.dump.take() {
            kill(dump.pid);
            answer(&dump.socket, Err("it ends".to_owned()));
        }
    }

    /// Ends what takes too long.
    pub(super) fn memory_turns(&mut self, now: Instant) {
        let is_due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        if let Some(dump) = &mut self.dump
            && is_due(&mut dump.kill_at)
        {
            kill(dump.pid);
        }
        for container in &mut self.containers {
            if let Run::Restoring(restoring) = &mut container.run
                && is_due(&mut restoring.kill_at)
            {
                kill(restoring.carrier.pid);
            }
        }
    }

    /// A container is made: if it is to begin with memory, that is brought back in it.
    pub(super) fn begin_restore(&mut self, index: usize) {
        let container = &mut self.containers[index];
        let Run::Made { .. } = container.run else { return };
        let Some(order) = container.spec.memory.take() else { return };
        let begun = read_facts(&order.images).and_then(|facts| {
            if facts.layers != container.spec.layers {
                return Err("the image of the pool is another one by now".to_owned());
            }
            let carrier = Carrier::fork(&self.env, &container.cgroup).map_err(|error| error.to_string())?;
            let kill_at = Some(Instant::now() + RESTORE_LIMIT);
            Ok(Restoring { carrier, is_ordered: false, kill_at, order, facts })
        });
        match begun {
            Err(error) => container.restored = Some(Err(error)),
            Ok(restoring) => {
                if let Run::Made { pid } = std::mem::replace(&mut container.run, Run::Restoring(restoring)) {
                    kill(pid);
                }
            }
        }
    }

    /// The carrier is in the control group.
    pub(super) fn order_restore(&mut self, index: usize) {
        let run_dir = self.run_dir();
        let (Some(stage), host_name) = (&self.stage, &self.spec.replica) else { return };
        let container = &mut self.containers[index];
        let (Some(bundle), Run::Restoring(restoring)) = (&container.bundle, &mut container.run) else { return };
        restoring.is_ordered = true;
        let owner = stage.owner(bundle.uid, bundle.gid);
        let work = bundle.dir.join(MEMORY_DIR);
        let ordered = || -> io::Result<[Option<fs::File>; 2]> {
            // CRIU reads them as root inside, too
            let shown = bundle.dir.join(SHOWN_DIR);
            fs::create_dir(&shown)?;
            stage.show_layers(&restoring.order.images, &shown)?;
            fs::DirBuilder::new().mode(0o700).create(&work)?;
            stage.give(&work)?;
            let differs = (stage.owner(0, 0).0.as_raw(), &*name_of(host_name));
            for name in memory::localize(&restoring.order.images, &work, differs)? {
                stage.give(&work.join(&name))?;
                let (own, over) = (work.join(&name), shown.join(&name));
                mount(Some(own.as_std_path()), over.as_std_path(), None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            }
            memory::copy_kernel_file(&restoring.order.images, &run_dir?)?;
            let (ours, [stdout, stderr]) = output_pipes(Some(owner))?;
            let order = Order::Restore {
                program: restoring.order.program.clone(),
                images: shown,
                work: work.clone(),
                root: bundle.dir.join("root"),
                stage: stage.dir.clone(),
                facts: Box::new(restoring.facts.clone()),
            };
            restoring.carrier.order(&order, &[self.network.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()])?;
            Ok(ours)
        };
        match ordered() {
            Ok(ours) => {
                container.outputs = ours;
                (container.channel, container.listener) = (None, None);
            }
            // its end is waited for
            Err(error) => {
                container.restored = Some(Err(error.to_string()));
                kill(restoring.carrier.pid);
            }
        }
    }

    /// CRIU has ended: its processes are there, or the container is made once more.
    pub(super) fn restore_ended(&mut self, index: usize, code: i32) {
        let (is_ending, state) = (self.is_ending(), state_dir(&self.dir));
        let container = &mut self.containers[index];
        let Run::Restoring(restoring) = &container.run else { return };
        let work = container.bundle.as_ref().map(|bundle| bundle.dir.join(MEMORY_DIR)).unwrap_or_default();
        let was_late = restoring.kill_at.is_none();
        let said = match restoring.carrier.answer() {
            Ok(Some(Answer::Failed { message })) => Some(message),
            _ => None,
        };
        let found = match (code, container.restored.take(), said) {
            _ if is_ending => Err("it ends".to_owned()),
            (_, Some(Err(error)), _) | (_, _, Some(error)) => Err(error),
            (0, ..) => take_place(&work, &state.join(container.id()).join("state.json")),
            _ if was_late => Err(format!("CRIU did not bring it back within {} s", RESTORE_LIMIT.as_secs())),
            _ => Err(memory::why_not(&work, code)),
        };
        let found = found.and_then(|pid| {
            let bounded = user_ns::limit(pid.as_raw());
            bounded.map(|()| pid).map_err(|error| format!("failed to bound the sandbox: {error}"))
        });
        container.restored = Some(found.clone().map(drop));
        match found {
            Ok(pid) => {
                container.is_restored = true;
                container.run = Run::Made { pid };
                container.status.state = waiting("ContainerCreated", None);
                self.take_stray(index);
            }
            Err(error) => {
                self.env.cgroups.kill(&container.cgroup);
                container.outputs = [None, None];
                if is_ending {
                    container.run = Run::Done;
                    return;
                }
                container.note(&format!("its memory was not brought back, it begins anew: {error}"));
                container.bundle = None;
                container.generation += 1;
                if let Err(error) = container.begin(&self.env, &self.spec, None) {
                    self.cannot_make(index, error.to_string());
                }
            }
        }
    }
}

/// Gives this process, whose mounts are its own, another /run.
pub(super) fn own_run_dir(dir: &CStr) -> io::Result<()> {
    // SAFETY: strings that live for the call; a bind mount takes neither kind nor options.
    let done = unsafe { libc::mount(dir.as_ptr(), c"/run".as_ptr(), c"".as_ptr(), libc::MS_BIND, std::ptr::null()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts this process into a network, and terminals where CRIU looks for them: helpers have none.
fn enter(network: i32) -> io::Result<()> {
    let (kind, options) = (c"devpts".as_ptr(), c"newinstance,mode=0600,ptmxmode=0600".as_ptr());
    // SAFETY: numbers, and strings that are constants.
    let done = unsafe {
        libc::setns(network, libc::CLONE_NEWNET) == 0
            && libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(kind, c"/dev/pts".as_ptr(), kind, libc::MS_NOSUID | libc::MS_NOEXEC, options.cast()) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn answer(socket: &OwnedFd, images: Result<Utf8PathBuf, String>) {
    let given = MemoryGiven { images };
    // nobody takes them away any more
    if send(socket.as_raw_fd(), &given, &[], MsgFlags::MSG_DONTWAIT).is_err()
        && let Ok(dir) = &given.images
    {
        let _ = remove(dir);
    }
}

fn remove(dir: &Utf8Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The name of a host that a replica of this name is.
fn name_of(replica: &str) -> String {
    replica.chars().take(63).collect::<String>().trim_end_matches('-').to_owned()
}

fn facts_of(container: &Container, pid: Pid) -> Result<MemoryFacts, String> {
    let words = |error: io::Error| format!("its processes cannot be looked at: {error}");
    let mut mounts = String::new();
    let file = fs::File::open(format!("/proc/{pid}/mountinfo")).map_err(words)?;
    file.take(MOUNTS_BYTES_MAX).read_to_string(&mut mounts).map_err(words)?;
    let [Some(stdout), Some(stderr)] = &container.outputs else {
        return Err("it has closed its outputs".to_owned());
    };
    let inode = |file: &fs::File| file.metadata().map(|data| data.ino()).map_err(words);
    Ok(MemoryFacts {
        layers: container.spec.layers.clone(),
        outputs: [inode(stdout)?, inode(stderr)?],
        mounts: memory::outside_mounts(&mounts)?,
    })
}

fn read_facts(images: &Utf8Path) -> Result<MemoryFacts, String> {
    let read = || -> io::Result<MemoryFacts> { Ok(serde_json::from_slice(&fs::read(images.join(FACTS_FILE))?)?) };
    read().map_err(|error| format!("what was kept of its memory cannot be read: {error}"))
}

/// The first process that CRIU has made; libcontainer takes it for the one that it made itself.
fn take_place(work: &Utf8Path, state: &Utf8Path) -> Result<Pid, String> {
    let words = |error: io::Error| format!("what CRIU brought back cannot be found: {error}");
    let text = fs::read_to_string(work.join(PID_FILE)).map_err(words)?;
    let pid: i32 = text.trim().parse().map_err(|error| words(io::Error::other(error)))?;
    let mut known: serde_json::Value =
        serde_json::from_slice(&fs::read(state).map_err(words)?).map_err(|error| words(error.into()))?;
    known["pid"] = pid.into();
    write_atomically(state, known.to_string().as_bytes()).map_err(words)?;
    Ok(Pid::from_raw(pid))
}
