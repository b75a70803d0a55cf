//! A session's machine, as its helper sees it: QEMU is the process of the container, and the agent in the guest does what
//! for other containers the helper does itself: runs the program and commands, brings their output, tells of ports.
//!
//! The link to the agent is one socket, QEMU's standard input. Everything here is non-blocking: one [`Machine::turn`]
//! reads and writes what can be, and says what happened.
//!
//! **Invariant:** nothing of the guest is trusted: what breaks the protocol ends the machine; output is held back by
//! windows, so a flood waits in the guest.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use camino::{Utf8Path, Utf8PathBuf};
use cove_vm::{
    Link, LinkEvent,
    wire::{self, Bytes, File as GuestFile, PROGRAM, Process, Run, Stream},
};
use nix::{poll::PollFlags, sys::signal::Signal};
use serde_json::{Value, json};

use super::{exec::Command, guest_exec::GuestExec, sandbox::Stage, template::Work};
use crate::{
    protocol::{ContainerSpec, MachineOrder, ShimSpec, TemplateNews, TemplateOrder, VolumeSpec},
    tree,
};

/// Whom QEMU runs as, inside: nobody in particular.
const QEMU_USER: &str = "1000:1000";

/// Folder of the machine's parts, as QEMU sees it.
pub(crate) const PARTS_DIR: &str = "/machine";

/// A machine whose agent has said nothing for so long after its start is ended.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// Most bytes for the guest that are sent as files, variables and arguments.
const RUN_BYTES_MAX: usize = wire::FRAME_BYTES_MAX - (256 << 10);

/// Bytes of one read.
const READ_BYTES: usize = 64 << 10;

/// Most reads of one turn, so that others get theirs.
const READS_MAX: usize = 8;

/// Random bytes that a guest gets.
const ENTROPY_BYTES: usize = 64;

/// Something that its helper must act on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Happened {
    /// Bytes of the program.
    Output(usize, Vec<u8>),
    /// The program accepts connections at this port.
    Listening(u16),
    /// The program has ended; its machine is about to.
    Exited(i32),
    /// The program could not be run.
    CannotRun(String),
    /// The machine is of no use any more.
    Broken(String),
    /// The same, but it may be tried once more, as if there were no template.
    Again(String),
    /// What became of the template that it was to be, or to begin as.
    Template(TemplateNews),
    /// A line for the log.
    Note(String),
    /// A command runs.
    ExecStarted(u64),
    /// A command has ended, or could not be run.
    ExecEnded { id: u64, code: i32, error: Option<String> },
}

/// The helper's end of a machine.
#[derive(Debug)]
pub(super) struct Machine {
    socket: Option<UnixStream>,
    pub(super) link: Link,
    /// Sent when it was started and is up.
    run: Option<Run>,
    started_at: Option<Instant>,
    /// Output of the program that is not given back yet, by stream.
    held: [usize; 2],
    /// Code of the program.
    pub(super) exit: Option<i32>,
    execs: Vec<GuestExec>,
    env: Vec<String>,
    /// Something waits to be written.
    has_more: bool,
    /// What is being done with a template.
    pub(super) work: Option<Work>,
    /// Ports that are told once it was saved.
    pub(super) held_back: Vec<u16>,
    /// Its name and its `/etc/hosts`.
    names: (String, String),
}

/// What runs in the container instead of the program: QEMU, on what it needs and nothing else.
pub(super) fn outer(order: &MachineOrder, inner: &ContainerSpec) -> ContainerSpec {
    let spec = cove_vm::MachineSpec {
        // standard output: a machine says nothing there
        monitor_fd: order.template.is_some().then_some(1),
        is_restored: matches!(order.template, Some(TemplateOrder::Restore { .. })),
        ..order.spec.clone()
    };
    ContainerSpec {
        layers: order.layers.clone(),
        args: spec.argv(),
        env: vec!["PATH=/usr/bin:/bin".to_owned(), "HOME=/".to_owned()],
        cwd: "/".to_owned(),
        user: QEMU_USER.to_owned(),
        memory_bytes: order.container_bytes,
        mounts: Vec::new(),
        snapshot: None,
        stop_signal: None,
        ..inner.clone()
    }
}

/// Shows the machine's parts in the replica's place, for [`mounts`].
pub(super) fn attach_parts(order: &MachineOrder, stage: &Stage) -> io::Result<()> {
    let dir = stage.dir.join("machine");
    fs::create_dir(&dir)?;
    for (source, name) in &order.parts {
        let at = dir.join(name);
        File::create(&at)?;
        tree::attach(&tree::clone_one(source)?, &at)?;
    }
    if order.spec.accel == cove_vm::Accel::Kvm {
        stage.make_kvm_node()?;
    }
    Ok(())
}

/// The mounts of the parts, read-only.
pub(super) fn mounts(order: &MachineOrder, stage_dir: &Utf8Path) -> Vec<Value> {
    let bind = |source: Utf8PathBuf, destination: String, options: &[&str]| json!({ "destination": destination, "type": "bind", "source": source, "options": options });
    let read_only = ["bind", "rprivate", "nosuid", "nodev", "noexec", "ro"];
    let parts = order.parts.iter();
    let mut all: Vec<_> = parts
        .map(|(_, name)| bind(stage_dir.join("machine").join(name), format!("{PARTS_DIR}/{name}"), &read_only))
        .collect();
    if order.spec.accel == cove_vm::Accel::Kvm {
        all.push(bind(stage_dir.join("kvm/kvm"), "/dev/kvm".to_owned(), &["bind", "rprivate", "nosuid", "noexec"]));
    }
    all
}

impl Machine {
    /// Makes the link; gives QEMU's end of it, and of its monitor if it needs one. `spec` is the program's own, `uid` says
    /// nothing here: the guest looks it up.
    pub(super) fn new(
        order: &MachineOrder,
        replica: &ShimSpec,
        spec: &ContainerSpec,
    ) -> Result<(Self, OwnedFd, Option<OwnedFd>), String> {
        let in_words = |error: io::Error| error.to_string();
        let (ours, theirs) = UnixStream::pair().map_err(in_words)?;
        ours.set_nonblocking(true).map_err(in_words)?;
        let run = run_of(order, replica, spec)?;
        let (mut work, mut their_monitor) = (None, None);
        if let Some(template) = &order.template {
            let (ours, theirs) = UnixStream::pair().map_err(in_words)?;
            work = Some(Work::of(order, template, &replica.replica, ours).map_err(in_words)?);
            their_monitor = Some(theirs.into());
        }
        let is_copy = matches!(order.template, Some(TemplateOrder::Restore { .. }));
        let machine = Self {
            socket: Some(ours),
            link: if is_copy { Link::to_restored() } else { Link::new() },
            env: run.process.env.clone(),
            names: (run.hostname.clone(), run.hosts.clone()),
            run: Some(run).filter(|_| !is_copy),
            started_at: None,
            held: [0; 2],
            exit: None,
            execs: Vec::new(),
            has_more: false,
            work,
            held_back: Vec::new(),
        };
        Ok((machine, theirs.into(), their_monitor))
    }

    /// QEMU was started.
    pub(super) fn start(&mut self, now: Instant) {
        self.started_at = Some(now);
        self.begin_work(now);
    }

    /// Lets the agent go on with the right time, numbers of its own and its own names: all windows are new.
    pub(super) fn say_resume(&mut self) {
        let (hostname, hosts) = self.names.clone();
        self.held = [0; 2];
        self.link.resume(clock_unix_ns(), entropy(), hostname, hosts);
    }

    fn is_busy(&self) -> bool {
        self.work.as_ref().is_some_and(Work::is_busy)
    }

    /// Whether the program was told to run.
    pub(super) fn runs(&self) -> bool {
        self.link.is_up() && self.run.is_none() && self.exit.is_none() && !self.is_busy()
    }

    /// Sends a signal to the program; `false`: there is none yet.
    pub(super) fn signal(&mut self, signal: Signal) -> bool {
        if self.runs() {
            self.link.signal(PROGRAM, signal as i32);
        }
        self.runs()
    }

    /// It stood still: its clock is wrong.
    pub(super) fn refresh(&mut self) {
        if self.link.is_up() && !self.is_busy() {
            self.link.refresh(clock_unix_ns(), entropy());
        }
    }

    /// Runs a command; `stdio` are the ends that the driver made.
    pub(super) fn exec(&mut self, id: u64, command: &Command, stdio: Vec<OwnedFd>) -> Result<(), String> {
        if command.is_debug {
            return Err("a machine takes no shell of this machine along; use an image with one".to_owned());
        }
        // nothing of a user may be in a template
        if !self.runs() || self.work.is_some() {
            return Err("the machine is still starting; try again in a moment".to_owned());
        }
        let mut exec = GuestExec::new(id, command.tty, stdio).map_err(|error| error.to_string())?;
        let mut process = Process { args: command.words.clone(), ..Process::default() };
        if command.tty {
            process.env = self.env.clone();
            process.env.push("TERM=xterm".to_owned());
        }
        exec.link =
            self.link.exec(process, exec.terminal()).ok_or("too many commands run in the machine; end one first")?;
        self.execs.push(exec);
        Ok(())
    }

    /// Ends a command whose peer is gone.
    pub(super) fn exec_end(&mut self, id: u64) {
        if let Some(exec) = self.execs.iter().find(|exec| exec.id == id) {
            self.link.signal(exec.link, Signal::SIGKILL as i32);
        }
    }

    /// Ends all commands and says which there were.
    pub(super) fn end_execs(&mut self) -> Vec<Happened> {
        let ended = self.execs.drain(..).map(|exec| {
            self.link.signal(exec.link, Signal::SIGKILL as i32);
            Happened::ExecEnded { id: exec.id, code: 137, error: None }
        });
        ended.collect()
    }

    /// Output was passed on that the guest was not told of yet.
    pub(super) fn holds(&self) -> bool {
        self.held != [0; 2]
    }

    pub(super) fn execs(&self) -> usize {
        self.execs.len()
    }

    /// The descriptors that it waits for.
    pub(super) fn waits_for(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let mut all = Vec::new();
        if let Some(socket) = &self.socket {
            let flags = if self.has_more { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
            all.push((socket.as_fd(), flags));
        }
        all.extend(self.work.iter().flat_map(Work::waits_for).map(|fd| (fd, PollFlags::POLLIN)));
        for exec in &self.execs {
            all.extend(exec.waits_for(self.link.stdin_room(exec.link) > 0));
        }
        all
    }

    /// When it is to have a turn without any event.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let boot = self.started_at.filter(|_| !self.link.is_up()).map(|at| at + BOOT_LIMIT);
        let sizes = self.execs.iter().filter_map(|exec| exec.wake_at(now)).min();
        let work = self.work.as_ref().and_then(|work| work.wake_at(now));
        [boot, sizes, work].into_iter().flatten().min()
    }

    /// Does what can be done without waiting. `may_take`: more output may come.
    pub(super) fn turn(&mut self, now: Instant, may_take: bool) -> Vec<Happened> {
        let mut happened = Vec::new();
        if !self.link.is_up() && self.started_at.is_some_and(|at| now >= at + BOOT_LIMIT) {
            self.started_at = None;
            let reason = format!("the machine did not start within {} s", BOOT_LIMIT.as_secs());
            if self.work.take().is_some() {
                // who waits for its template need not wait longer
                happened.push(Happened::Template(TemplateNews::NotSaved { reason: reason.clone() }));
            }
            happened.push(Happened::Again(reason));
        }
        self.work_turn(now, &mut happened);
        self.read(now, &mut happened);
        let link = &mut self.link;
        self.execs.retain_mut(|exec| match exec.turn(link, now) {
            Some(code) => {
                happened.push(Happened::ExecEnded { id: exec.id, code, error: None });
                false
            }
            None => true,
        });
        if may_take && !self.is_busy() {
            for (stream, held) in [Stream::Out, Stream::Err].into_iter().zip(&mut self.held) {
                self.link.taken(PROGRAM, stream, std::mem::take(held));
            }
        }
        self.write();
        happened
    }

    fn read(&mut self, now: Instant, happened: &mut Vec<Happened>) {
        let mut buffer = [0; READ_BYTES];
        for _ in 0..READS_MAX {
            let Some(socket) = &mut self.socket else { return };
            let length = match socket.read(&mut buffer) {
                Ok(0) => {
                    self.socket = None;
                    return;
                }
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.socket = None;
                    return;
                }
            };
            match self.link.receive(&buffer[..length]) {
                Ok(events) => events.into_iter().for_each(|event| self.take(event, now, happened)),
                Err(error) => {
                    self.socket = None;
                    happened.push(Happened::Broken(error.to_string()));
                    return;
                }
            }
        }
    }

    fn take(&mut self, event: LinkEvent, now: Instant, happened: &mut Vec<Happened>) {
        let exec = |execs: &mut Vec<GuestExec>, id: u32| execs.iter().position(|exec| exec.link == id);
        match event {
            LinkEvent::Up => {
                if let Some(mut run) = self.run.take() {
                    run.clock_unix_ns = clock_unix_ns();
                    run.entropy = Bytes(entropy());
                    self.link.run(run);
                }
            }
            LinkEvent::Output { id: PROGRAM, stream, bytes } => {
                let stream = usize::from(stream == Stream::Err);
                self.held[stream] += bytes.len();
                happened.push(Happened::Output(stream, bytes));
            }
            LinkEvent::Output { id, stream, bytes } => match exec(&mut self.execs, id) {
                Some(at) => self.execs[at].output(stream, &bytes),
                // its peer is gone: what it still writes is read for nobody
                None => self.link.taken(id, stream, bytes.len()),
            },
            LinkEvent::Listening { port } if self.work.as_ref().is_some_and(Work::holds_back) => {
                self.hold_back(port, now)
            }
            LinkEvent::Listening { port } => happened.push(Happened::Listening(port)),
            LinkEvent::Quiet => self.quiet(happened),
            LinkEvent::Started { id: PROGRAM } => self.restored(now, happened),
            LinkEvent::Exited { id: PROGRAM, code } => {
                self.exit = Some(code);
                happened.push(Happened::Exited(code));
            }
            LinkEvent::Failed { id: PROGRAM, reason } => happened.push(Happened::CannotRun(reason)),
            LinkEvent::Exited { id, code } => {
                if let Some(at) = exec(&mut self.execs, id) {
                    self.execs[at].exited(code);
                }
            }
            LinkEvent::Failed { id, reason } => {
                if let Some(at) = exec(&mut self.execs, id) {
                    let id = self.execs.remove(at).id;
                    happened.push(Happened::ExecEnded { id, code: 126, error: Some(reason) });
                }
            }
            LinkEvent::Started { id } => {
                if let Some(at) = exec(&mut self.execs, id) {
                    happened.push(Happened::ExecStarted(self.execs[at].id));
                }
            }
            LinkEvent::Note { text } => happened.push(Happened::Note(text)),
            LinkEvent::Writable { .. } | LinkEvent::Pong { .. } => {}
        }
    }

    fn write(&mut self) {
        loop {
            let Some(socket) = &mut self.socket else { return };
            let bytes = self.link.outgoing();
            self.has_more = !bytes.is_empty();
            if bytes.is_empty() {
                return;
            }
            match socket.write(bytes) {
                Ok(length) => self.link.sent(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // reading tells when it is over
                Err(_) => return,
            }
        }
    }
}

fn run_of(order: &MachineOrder, replica: &ShimSpec, spec: &ContainerSpec) -> Result<Run, String> {
    if spec.snapshot.is_some() {
        return Err("a machine cannot begin with a snapshot".to_owned());
    }
    let mut files = Vec::new();
    let mut empty_dirs = Vec::new();
    let mut add = |path: String, content: &str| {
        files.push(GuestFile { path, mode: 0o444, content: Bytes(content.as_bytes().to_vec()) });
    };
    if let Some(certificate) = &replica.ca_certificate {
        add(crate::CA_FILE.to_owned(), certificate);
    }
    for (volume, path, sub_path) in &spec.mounts {
        match replica.volumes.get(volume) {
            Some(VolumeSpec::Files(all)) => {
                for (name, content) in all {
                    match inner_name(name, sub_path.as_deref()) {
                        Some("") => add(path.clone(), content),
                        Some(name) => add(format!("{}/{name}", path.trim_end_matches('/')), content),
                        None => {}
                    }
                }
            }
            Some(VolumeSpec::EmptyDir) => empty_dirs.push(path.clone()),
            Some(VolumeSpec::Share { .. }) | None => return Err(format!("volume `{volume}` cannot be in a machine")),
        }
    }
    let bytes = files.iter().map(|file| file.content.0.len() + file.path.len()).sum::<usize>()
        + spec.env.iter().chain(&spec.args).map(String::len).sum::<usize>();
    if bytes > RUN_BYTES_MAX {
        return Err(format!(
            "its secrets, variables and arguments have {bytes} bytes; a machine takes {RUN_BYTES_MAX}"
        ));
    }
    let process =
        Process { args: spec.args.clone(), env: spec.env.clone(), cwd: spec.cwd.clone(), user: spec.user.clone() };
    Ok(Run {
        process,
        hostname: replica.replica.chars().take(63).collect::<String>().trim_end_matches('-').to_owned(),
        hosts: replica.hosts.clone(),
        resolv_conf: order.resolv_conf.clone().unwrap_or_else(|| replica.resolv_conf.clone()),
        files,
        empty_dirs,
        disk_bytes: order.disk_bytes,
        clock_unix_ns: 0,
        entropy: Bytes::default(),
        ports: order.spec.ports.clone(),
        tasks_max: order.tasks_max,
    })
}

/// Name of a volume's file where a part of the volume is mounted: empty when it is that part itself.
fn inner_name<'a>(name: &'a str, part: Option<&str>) -> Option<&'a str> {
    let Some(part) = part else { return Some(name) };
    let rest = name.strip_prefix(part.trim_end_matches('/'))?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('/') }
}

fn clock_unix_ns() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}

/// From the kernel: a generator of this process would be the same in all helpers.
fn entropy() -> Vec<u8> {
    let mut bytes = vec![0; ENTROPY_BYTES];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    if read.is_err() {
        // the guest's own generator goes on as it is
        bytes.clear();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_volumes_are_named() {
        let check = |name, part| inner_name(name, part);
        assert_eq!(check("a/b", None), Some("a/b"));
        assert_eq!(check("a/b", Some("a")), Some("b"));
        assert_eq!(check("a", Some("a")), Some(""));
        assert_eq!(check("ab", Some("a")), None);
    }
}
