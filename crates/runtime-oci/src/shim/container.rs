//! One container of a replica: made, started, observed, ended, made again.
//!
//! **Invariant:** every start has a fresh root, a fresh first process and the same cgroup.
//! **Invariant:** an exit is reported only after the output has been read to its end, or [`DRAIN_LIMIT`] has passed.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    rc::Rc,
    time::{Duration, Instant},
};

use camino::{Utf8Path, Utf8PathBuf};
use cove_model::{ContainerExit, ContainerState};
use cove_runtime::logs::LogStream;
use jiff::Timestamp;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{signal::Signal, socket::MsgFlags},
    unistd::{Gid, Pid, Uid, fchown, pipe2},
};

use super::{
    budget::Budget,
    bundle::Bundle,
    carrier::{Answer, Carrier, FromInit, Order, kill},
    handler::{Commands, DELETE_LIMIT, Handled},
    log::LogWriter,
    machine::{self, Machine},
    memory::Restoring,
    sandbox::Stage,
    zygote::Env,
};
use crate::{
    protocol::{ContainerSpec, ContainerStatus, MachineOrder, ShimSpec, pair, receive},
    seccomp,
};

/// Longest wait for the output of a container that has ended.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// First wait before a restart that is not the first one.
const BACKOFF_MIN: Duration = Duration::from_secs(10);

/// Longest wait before a restart.
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// A container that ran this long starts with the shortest wait again.
const BACKOFF_RESET: Duration = Duration::from_secs(600);

/// Most bytes read from an output before others get their turn.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Calls of `listen` of one start of a sandboxed container that are told.
const LISTENS_TOLD_MAX: u32 = 64;

/// Reads of an output when its drain is over: more than the largest pipe holds.
const LAST_READS_MAX: usize = 64;

/// Where a container stands inside its helper.
#[derive(Debug)]
pub(super) enum Run {
    /// To be made.
    Idle,
    /// A carrier gets into the cgroup, or makes it.
    Making { carrier: Carrier, is_ordered: bool },
    /// CRIU brings its processes back.
    Restoring(Restoring),
    /// Waits for its start.
    Made { pid: Pid },
    /// Runs.
    Running { pid: Pid, since: Instant },
    /// Ended with this code; output is still being read.
    Draining { code: i32, until: Instant, ran: Duration },
    /// Waits for its next try.
    Backoff { until: Instant },
    /// Ended for good.
    Done,
}

#[derive(Debug)]
pub(super) struct Container {
    pub(super) spec: ContainerSpec,
    pub(super) run: Run,
    pub(super) status: ContainerStatus,
    pub(super) cgroup: String,
    index: usize,
    pub(super) generation: u32,
    pub(super) bundle: Option<Bundle>,
    pub(super) notify: Option<File>,
    pub(super) channel: Option<OwnedFd>,
    pub(super) listener: Option<OwnedFd>,
    pub(super) outputs: [Option<File>; 2],
    log: LogWriter,
    cannot_run: Option<String>,
    ended_by: Option<(String, String)>,
    oom_kills: u64,
    failures: u32,
    /// When SIGKILL follows a SIGTERM that was sent to restart it.
    pub(super) kill_at: Option<Instant>,
    /// What may still be written to the console, where that is limited.
    budget: Option<Budget>,
    /// The runtime of this machine that runs its present process.
    pub(super) handler: Option<Handled>,
    /// What that is doing.
    pub(super) commands: Commands,
    /// The machine that its present process is.
    pub(super) machine: Option<Machine>,
    /// Whether it began with the memory that it was to begin with, or why not.
    pub(super) restored: Option<Result<(), String>>,
    /// Its processes go on with what they did: they wait for no start.
    pub(super) is_restored: bool,
    /// Its first machine came to nothing: this one boots, whatever was ordered.
    boots: Again,
}

/// Whether a machine that came to nothing is tried once more.
#[derive(Debug, PartialEq, Eq)]
enum Again {
    /// It would be.
    Possible,
    /// It is, as soon as the first has ended.
    Due,
    /// It was.
    Done,
}

pub(super) const STREAMS: [LogStream; 2] = [LogStream::Stdout, LogStream::Stderr];

impl Container {
    pub(super) fn new(index: usize, spec: ContainerSpec, replica_cgroup: &str, log_dir: &Utf8Path) -> Self {
        let status = ContainerStatus {
            name: spec.name.clone(),
            is_init: spec.is_init,
            state: waiting("ContainerCreating", None),
            restarts: 0,
            last_exit: None,
            listens: 0,
            listening: Vec::new(),
            template: None,
        };
        Self {
            log: LogWriter::new(log_dir, &spec.name),
            cgroup: format!("{replica_cgroup}/c{index}"),
            index,
            spec,
            run: Run::Idle,
            status,
            generation: 0,
            bundle: None,
            notify: None,
            channel: None,
            listener: None,
            outputs: [None, None],
            cannot_run: None,
            ended_by: None,
            oom_kills: 0,
            failures: 0,
            kill_at: None,
            budget: None,
            handler: None,
            commands: Commands::default(),
            machine: None,
            restored: None,
            is_restored: false,
            boots: Again::Possible,
        }
    }

    pub(super) fn id(&self) -> String {
        format!("c{}-{}", self.index, self.generation)
    }

    /// What brings its processes back.
    pub(super) fn restorer(&self) -> Option<Pid> {
        match &self.run {
            Run::Restoring(restoring) => Some(restoring.carrier.pid),
            _ => None,
        }
    }

    pub(super) fn pid(&self) -> Option<Pid> {
        match self.run {
            Run::Made { pid } | Run::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    /// Begins to make it, with a carrier that is in the cgroup already or a new one.
    pub(super) fn begin(&mut self, env: &Rc<Env>, replica: &ShimSpec, carrier: Option<Carrier>) -> io::Result<()> {
        self.run = if let Some(carrier) = carrier {
            Run::Making { carrier, is_ordered: true }
        } else {
            env.cgroups.create(&self.cgroup)?;
            Run::Making { carrier: Carrier::fork(env, &self.cgroup)?, is_ordered: false }
        };
        let machine = replica.sandbox.as_ref().and_then(|sandbox| sandbox.machine.as_deref());
        env.cgroups
            .limit_memory(&self.cgroup, machine.map_or(self.spec.memory_bytes, |order| order.container_bytes))?;
        if machine.is_some_and(|order| order.spec.accel == cove_vm::Accel::Kvm) {
            env.cgroups.allow_kvm(&self.cgroup)?;
        }
        if let Some(sandbox) = &replica.sandbox {
            // From the first moment on: nobody vouches for what it does before it is ready.
            env.cgroups.limit_pids(&self.cgroup, sandbox.pids_max)?;
            env.cgroups.limit_cpu(&self.cgroup, self.spec.cpu_milli)?;
            self.budget.get_or_insert_with(|| Budget::new(Instant::now()));
        }
        self.oom_kills = env.cgroups.oom_kills(&self.cgroup);
        Ok(())
    }

    /// Makes the root and gives the order to the carrier, which is in the cgroup.
    pub(super) fn order(
        &mut self,
        env: &Env,
        (dir, stage): (&Utf8Path, Option<&Stage>),
        replica: &ShimSpec,
        network: &OwnedFd,
    ) -> Result<(), String> {
        let words = |error: io::Error| format!("failed to make the container: {error}");
        self.cannot_run = None;
        self.is_restored = false;
        self.bundle = None;
        let files_dir = stage.map_or(dir, |stage| &stage.dir);
        let bundle_dir = files_dir.join(self.id());
        let order = replica.sandbox.as_ref().and_then(|sandbox| sandbox.machine.as_deref()).map(|order| {
            let template = order.template.clone().filter(|_| self.boots == Again::Possible);
            MachineOrder { template, ..order.clone() }
        });
        let outer = order.as_ref().map(|order| machine::outer(order, &self.spec));
        let spec = outer.as_ref().unwrap_or(&self.spec);
        let made = Bundle::make(&bundle_dir, (files_dir, stage), replica, spec, &env.cgroups, &self.cgroup)?;
        let (uid, gid) = (made.uid, made.gid);
        self.bundle = Some(made);
        let mut monitor = None;
        let stdin = match &order {
            Some(order) => {
                let (machine, theirs, their_monitor) = Machine::new(order, replica, &self.spec)?;
                (self.machine, monitor) = (Some(machine), their_monitor);
                theirs
            }
            None => File::open("/dev/null").map_err(words)?.into(),
        };
        let (ours, [stdout, stderr]) = output_pipes(stage.map(|stage| stage.owner(uid, gid))).map_err(words)?;
        // what reads from the pipe finds its end at once then
        let stdout = monitor.unwrap_or(stdout);
        let (channel_ours, channel) = pair().map_err(words)?;
        let Run::Making { carrier, is_ordered } = &mut self.run else {
            return Err("failed to make the container: it is not being made".to_owned());
        };
        *is_ordered = true;
        let state = state_dir(dir);
        let id = format!("c{}-{}", self.index, self.generation);
        let handler = replica.sandbox.as_ref().and_then(|sandbox| sandbox.handler.clone());
        self.handler = handler.as_ref().map(|spec| Handled::new(spec, state.clone(), id.clone()));
        let order = Order::Create { id, bundle: bundle_dir, state, is_sandboxed: stage.is_some(), handler };
        let fds = [network.as_raw_fd(), stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd(), channel.as_raw_fd()];
        carrier.order(&order, &fds).map_err(words)?;
        self.outputs = ours;
        self.channel = Some(channel_ours);
        Ok(())
    }

    /// The carrier has something to say; `Ok(true)`: it is attached and wants its order.
    pub(super) fn carrier_answers(&mut self, dir: &Utf8Path) -> Result<bool, String> {
        let carrier = match &self.run {
            Run::Making { carrier, .. } => carrier,
            Run::Restoring(restoring) => return restoring.is_attached(),
            _ => return Ok(false),
        };
        match carrier.answer() {
            Ok(Some(Answer::Attached)) => Ok(true),
            Ok(Some(Answer::Made { pid })) => {
                self.run = Run::Made { pid: Pid::from_raw(pid) };
                self.status.state = waiting("ContainerCreated", None);
                if self.handler.is_some() {
                    return Ok(false);
                }
                // Short path to the start socket, whatever the data directory is called.
                let folder = state_dir(dir).join(self.id());
                self.notify =
                    Some(File::open(folder).map_err(|error| format!("failed to make the container: {error}"))?);
                Ok(false)
            }
            Ok(Some(Answer::Failed { message })) => Err(message),
            Ok(None) => Err("the process that makes the container ended; see the server's log".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Starts the program of a container that is made. The wake path: one connect, one write.
    pub(super) fn start(&mut self, now: Timestamp) -> io::Result<()> {
        let Run::Made { pid } = &self.run else { return Ok(()) };
        if let Some(handled) = &self.handler {
            self.commands.start = Some(handled.start()?);
        } else if !self.is_restored {
            let Some(folder) = &self.notify else { return Ok(()) };
            let mut socket = UnixStream::connect(format!("/proc/self/fd/{}/notify.sock", folder.as_raw_fd()))?;
            socket.write_all(b"start")?;
        }
        self.run = Run::Running { pid: *pid, since: Instant::now() };
        self.status.state = ContainerState::Running { since: now };
        // what was brought back may listen already, and its filter tells of nothing any more
        self.status.listens = u32::from(self.is_restored);
        self.status.listening.clear();
        if let Some(machine) = &mut self.machine {
            machine.start(Instant::now());
        }
        Ok(())
    }

    /// Its first process says something; `true` when that changed the status.
    pub(super) fn init_says(&mut self) {
        let Some(channel) = &self.channel else { return };
        match receive::<FromInit>(channel.as_raw_fd(), MsgFlags::MSG_DONTWAIT) {
            Ok(Some((FromInit::Listener, fds))) => self.listener = fds.into_iter().next(),
            Ok(Some((FromInit::CannotRun { message }, _))) => self.cannot_run = Some(message),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => self.channel = None,
        }
    }

    /// It calls `listen`; `true` when that is to be told.
    pub(super) fn listens(&mut self, is_over: bool) -> bool {
        let Some(listener) = &self.listener else { return false };
        if is_over {
            self.listener = None;
            return false;
        }
        match seccomp::let_go_on(listener) {
            // whoever calls it over and over must not keep the driver busy
            Ok(true) if self.budget.is_some() && self.status.listens >= LISTENS_TOLD_MAX => false,
            Ok(true) => {
                self.status.listens = self.status.listens.saturating_add(1);
                true
            }
            Ok(false) => false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => false,
            Err(_) => {
                self.listener = None;
                false
            }
        }
    }

    /// Reads what one of its outputs holds; `true` when there may be more.
    pub(super) fn read_output(&mut self, stream: usize) -> bool {
        let mut buffer = [0; READ_BYTES_MAX];
        let Some(file) = &mut self.outputs[stream] else { return false };
        match file.read(&mut buffer) {
            Ok(0) => self.end_output(stream),
            Ok(length) => {
                self.log_output(stream, &buffer[..length], Instant::now());
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.end_output(stream),
        }
        false
    }

    /// Output goes to the log, and counts.
    pub(super) fn log_output(&mut self, stream: usize, bytes: &[u8], now: Instant) {
        let made = self.log.take(STREAMS[stream], bytes, Timestamp::now());
        if let Some(budget) = &mut self.budget {
            // an empty line costs its writer a byte and the log forty
            budget.take(bytes.len().max(made), now);
        }
    }

    /// Its machine accepts connections at a port; `true` when that is news.
    pub(super) fn listens_at(&mut self, port: u16) -> bool {
        if self.status.listening.contains(&port) || self.status.listens >= LISTENS_TOLD_MAX {
            return false;
        }
        self.status.listening.push(port);
        self.status.listens += 1;
        true
    }

    /// A line of the platform in its log.
    pub(super) fn note(&mut self, text: &str) {
        self.log.note(&format!("cove: {text}"), Timestamp::now());
    }

    /// Its program has ended; what is around it is to end too.
    pub(super) fn end_within(&mut self, kill_at: Instant) {
        self.kill_at = Some(self.kill_at.map_or(kill_at, |old| old.min(kill_at)));
    }

    /// The program that its machine was told of cannot be run.
    pub(super) fn cannot_be_run(&mut self, reason: String, now: Instant) {
        self.cannot_run = Some(reason);
        self.end_within(now);
    }

    /// Its machine is of no use any more.
    pub(super) fn is_broken(&mut self, reason: String, now: Instant) {
        self.ended_by.get_or_insert_with(|| ("Error".to_owned(), reason));
        self.end_within(now);
    }

    /// Its machine is of no use any more; it is made once more, without any template.
    pub(super) fn is_to_begin_again(&mut self, reason: String, now: Instant) {
        if self.boots == Again::Possible {
            self.boots = Again::Due;
        }
        self.is_broken(reason, now);
    }

    /// It has ended and is to be made once more, which counts as no restart; `true` when it is in line for that.
    pub(super) fn begins_again(&mut self, now: Instant) -> bool {
        if self.boots != Again::Due {
            return false;
        }
        self.boots = Again::Done;
        self.generation += 1;
        self.run = Run::Backoff { until: now };
        self.status.state = waiting("ContainerCreating", None);
        true
    }

    fn end_output(&mut self, stream: usize) {
        self.outputs[stream] = None;
        self.log.end(STREAMS[stream], Timestamp::now());
    }

    /// Its first process has ended with this code.
    pub(super) fn exited(&mut self, code: i32) {
        let ran = match self.run {
            Run::Running { since, .. } => since.elapsed(),
            _ => Duration::ZERO,
        };
        self.kill_at = None;
        // a machine's own code says little
        let code = self.machine.as_ref().and_then(|machine| machine.exit).unwrap_or(code);
        if let Some(handled) = &self.handler {
            self.commands.start = None;
            self.commands.delete = handled.delete().ok().map(|pid| (pid, Instant::now() + DELETE_LIMIT));
        }
        self.run = Run::Draining { code, until: Instant::now() + DRAIN_LIMIT, ran };
    }

    /// A command of its runtime has ended; `true` when it was one.
    pub(super) fn command_ended(&mut self, pid: Pid, code: i32, env: &Env) -> bool {
        if self.commands.delete.is_some_and(|(delete, _)| delete == pid) {
            self.commands.delete = None;
            return true;
        }
        if self.commands.start != Some(pid) {
            return false;
        }
        self.commands.start = None;
        if code != 0
            && let Some(handled) = &self.handler
        {
            self.cannot_run = Some(handled.why_not("start"));
            self.kill(env);
        }
        true
    }

    /// Ends draining if all output was read; says how it ended.
    pub(super) fn drained(&mut self, env: &Env, now: Instant) -> Option<ContainerExit> {
        let Run::Draining { code, until, ran } = self.run else { return None };
        if self.commands.delete.is_some_and(|(_, until)| now < until) {
            return None;
        }
        if self.outputs.iter().any(Option::is_some) && now < until {
            return None;
        }
        for stream in 0..STREAMS.len() {
            // a helper that got no turn for that long: what the pipe holds is read all the same
            for _ in 0..LAST_READS_MAX {
                if !self.read_output(stream) {
                    break;
                }
            }
            self.end_output(stream);
        }
        // A program that could not be run says so before it ends.
        self.init_says();
        self.channel = None;
        self.listener = None;
        self.notify = None;
        let exit = self.exit(env, code);
        if let Some(message) = &exit.message {
            self.log.note(&format!("cove: {message}"), exit.at);
        }
        self.status.last_exit = Some(exit.clone());
        if ran >= BACKOFF_RESET {
            self.failures = 0;
        }
        self.run = Run::Done;
        self.status.state = ContainerState::Terminated;
        Some(exit)
    }

    fn exit(&mut self, env: &Env, code: i32) -> ContainerExit {
        let oom_kills = env.cgroups.oom_kills(&self.cgroup);
        let was_oom = oom_kills > self.oom_kills;
        self.oom_kills = oom_kills;
        let (reason, message) = if let Some((reason, message)) = self.ended_by.take() {
            (reason, Some(message))
        } else if let Some(message) = self.cannot_run.take() {
            ("ContainerCannotRun".to_owned(), Some(message))
        } else if was_oom && code != 0 {
            let mib = self.spec.memory_bytes >> 20;
            (
                "OOMKilled".to_owned(),
                Some(format!("the container used more than its {mib} MiB of memory; raise its memory")),
            )
        } else if code == 0 {
            ("Completed".to_owned(), None)
        } else {
            ("Error".to_owned(), None)
        };
        ContainerExit { code, reason, message, at: Timestamp::now() }
    }

    /// It could not be made for a further start: counts as an exit.
    pub(super) fn could_not_be_made(&mut self, message: String) {
        self.log.note(&format!("cove: {message}"), Timestamp::now());
        self.status.last_exit = Some(ContainerExit {
            code: 128,
            reason: "ContainerCannotRun".to_owned(),
            message: Some(message),
            at: Timestamp::now(),
        });
        self.run = Run::Done;
    }

    /// Puts it in line for its next start: at once the first time, then with growing waits.
    pub(super) fn back_off(&mut self, now: Instant) {
        let wait = match self.failures {
            0 => Duration::ZERO,
            n => (BACKOFF_MIN * 2_u32.saturating_pow((n - 1).min(8))).min(BACKOFF_MAX),
        };
        self.failures += 1;
        self.status.restarts += 1;
        self.generation += 1;
        self.run = Run::Backoff { until: now + wait };
        let until = Timestamp::now() + wait;
        self.status.state = waiting("CrashLoopBackOff", Some(until));
    }

    /// Asks the program to end; what is not started is ended at once.
    pub(super) fn terminate(&mut self) {
        match &self.run {
            Run::Running { pid, .. } => {
                let signal = self.spec.stop_signal.as_deref().map_or(Signal::SIGTERM, stop_signal);
                match (&self.handler, &mut self.machine) {
                    (Some(handled), _) => drop(handled.signal(signal.as_str())),
                    (None, Some(machine)) => {
                        if !machine.signal(signal) {
                            // nothing runs in it yet
                            kill(*pid);
                        }
                    }
                    (None, None) => drop(nix::sys::signal::kill(*pid, signal)),
                }
            }
            Run::Made { pid } => kill(*pid),
            Run::Making { carrier, .. } => {
                kill(carrier.pid);
                self.run = Run::Done;
            }
            // its end is waited for
            Run::Restoring(restoring) => kill(restoring.carrier.pid),
            Run::Idle | Run::Backoff { .. } => self.run = Run::Done,
            Run::Draining { .. } | Run::Done => {}
        }
    }

    /// Ends everything in it.
    pub(super) fn kill(&mut self, env: &Env) {
        if let Some(pid) = self.pid() {
            kill(pid);
        }
        env.cgroups.kill(&self.cgroup);
    }

    /// Notes why it is about to be ended.
    pub(super) fn end_because(&mut self, reason: String, message: String, kill_at: Instant) {
        self.ended_by = Some((reason, message));
        self.kill_at = Some(kill_at);
        self.terminate();
    }

    /// When its outputs may be read again; `None`: now.
    pub(super) fn reads_at(&self, now: Instant) -> Option<Instant> {
        // what an ended one left is read to its end: a pipe holds little
        let may_wait = matches!(self.run, Run::Running { .. });
        self.budget.as_ref().filter(|_| may_wait).and_then(|budget| budget.resumes_at(now))
    }

    /// The next moment at which something is due without any event.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let run = match self.run {
            Run::Draining { until, .. } => Some(self.commands.delete.map_or(until, |(_, limit)| limit)),
            Run::Backoff { until } => Some(until),
            Run::Restoring(ref restoring) => restoring.kill_at,
            _ => None,
        };
        let now = Instant::now();
        let machine = self.machine.as_ref().and_then(|machine| machine.wake_at(now));
        let reads_at = self.reads_at(now);
        // its guest waits to be told, and nothing else would wake us
        let held = self.machine.as_ref().filter(|machine| machine.holds() && reads_at.is_none()).map(|_| now);
        [run, self.kill_at, reads_at, held, machine].into_iter().flatten().min()
    }
}

/// Two pipes for what a program writes, of which it may open its ends again by their names, as /dev/stdout: ours, theirs.
pub(super) fn output_pipes(owner: Option<(Uid, Gid)>) -> io::Result<([Option<File>; 2], [OwnedFd; 2])> {
    let (stdout_ours, stdout) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr_ours, stderr) = pipe2(OFlag::O_CLOEXEC)?;
    if let Some((uid, gid)) = owner {
        for theirs in [&stdout, &stderr] {
            fchown(theirs, Some(uid), Some(gid))?;
        }
    }
    for ours in [&stdout_ours, &stderr_ours] {
        fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    Ok(([Some(File::from(stdout_ours)), Some(File::from(stderr_ours))], [stdout, stderr]))
}

/// Where libcontainer keeps its state of a replica's containers.
pub(super) fn state_dir(dir: &Utf8Path) -> Utf8PathBuf {
    dir.join("oci")
}

pub(super) fn waiting(reason: &str, until: Option<Timestamp>) -> ContainerState {
    ContainerState::Waiting { reason: reason.to_owned(), until }
}

/// `SIGQUIT`, `QUIT` or `3`; SIGTERM for what is no signal.
fn stop_signal(text: &str) -> Signal {
    let name = if text.starts_with("SIG") { text.to_owned() } else { format!("SIG{text}") };
    let number = text.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    number.or_else(|| name.parse().ok()).unwrap_or(Signal::SIGTERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_read_in_every_spelling() {
        for (text, signal) in
            [("SIGQUIT", Signal::SIGQUIT), ("INT", Signal::SIGINT), ("9", Signal::SIGKILL), ("x", Signal::SIGTERM)]
        {
            assert_eq!(stop_signal(text), signal, "{text}");
        }
    }
}
