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
    unistd::{Pid, pipe2},
};

use super::{
    bundle::Bundle,
    carrier::{Answer, Carrier, FromInit, Order, kill},
    log::LogWriter,
    zygote::Env,
};
use crate::{
    protocol::{ContainerSpec, ContainerStatus, ShimSpec, pair, receive},
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

/// Where a container stands inside its helper.
#[derive(Debug)]
pub(super) enum Run {
    /// To be made.
    Idle,
    /// A carrier gets into the cgroup, or makes it.
    Making { carrier: Carrier, is_ordered: bool },
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
    generation: u32,
    pub(super) bundle: Option<Bundle>,
    notify: Option<File>,
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
        }
    }

    pub(super) fn id(&self) -> String {
        format!("c{}-{}", self.index, self.generation)
    }

    pub(super) fn pid(&self) -> Option<Pid> {
        match self.run {
            Run::Made { pid } | Run::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    /// Begins to make it, with a carrier that is in the cgroup already or a new one.
    pub(super) fn begin(&mut self, env: &Rc<Env>, carrier: Option<Carrier>) -> io::Result<()> {
        self.run = if let Some(carrier) = carrier {
            Run::Making { carrier, is_ordered: true }
        } else {
            env.cgroups.create(&self.cgroup)?;
            Run::Making { carrier: Carrier::fork(env, &self.cgroup)?, is_ordered: false }
        };
        env.cgroups.limit_memory(&self.cgroup, self.spec.memory_bytes)?;
        self.oom_kills = env.cgroups.oom_kills(&self.cgroup);
        Ok(())
    }

    /// Makes the root and gives the order to the carrier, which is in the cgroup.
    pub(super) fn order(
        &mut self,
        env: &Env,
        dir: &Utf8Path,
        replica: &ShimSpec,
        network: &OwnedFd,
    ) -> Result<(), String> {
        let words = |error: io::Error| format!("failed to make the container: {error}");
        self.cannot_run = None;
        self.bundle = None;
        let bundle_dir = dir.join(self.id());
        self.bundle = Some(Bundle::make(&bundle_dir, dir, replica, &self.spec, &env.cgroups, &self.cgroup)?);
        let stdin = File::open("/dev/null").map_err(words)?;
        let (stdout_ours, stdout) = pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from).map_err(words)?;
        let (stderr_ours, stderr) = pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from).map_err(words)?;
        let (channel_ours, channel) = pair().map_err(words)?;
        for ours in [&stdout_ours, &stderr_ours] {
            fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(io::Error::from).map_err(words)?;
        }
        let Run::Making { carrier, is_ordered } = &mut self.run else {
            return Err("failed to make the container: it is not being made".to_owned());
        };
        *is_ordered = true;
        let state = state_dir(dir);
        let order = Order::Create { id: format!("c{}-{}", self.index, self.generation), bundle: bundle_dir, state };
        let fds = [network.as_raw_fd(), stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd(), channel.as_raw_fd()];
        carrier.order(&order, &fds).map_err(words)?;
        self.outputs = [Some(File::from(stdout_ours)), Some(File::from(stderr_ours))];
        self.channel = Some(channel_ours);
        Ok(())
    }

    /// The carrier has something to say; `Ok(true)`: it is attached and wants its order.
    pub(super) fn carrier_answers(&mut self, dir: &Utf8Path) -> Result<bool, String> {
        let Run::Making { carrier, .. } = &self.run else { return Ok(false) };
        match carrier.answer() {
            Ok(Some(Answer::Attached)) => Ok(true),
            Ok(Some(Answer::Made { pid })) => {
                self.run = Run::Made { pid: Pid::from_raw(pid) };
                self.status.state = waiting("ContainerCreated", None);
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
        let (Run::Made { pid }, Some(folder)) = (&self.run, &self.notify) else { return Ok(()) };
        let mut socket = UnixStream::connect(format!("/proc/self/fd/{}/notify.sock", folder.as_raw_fd()))?;
        socket.write_all(b"start")?;
        self.run = Run::Running { pid: *pid, since: Instant::now() };
        self.status.state = ContainerState::Running { since: now };
        self.status.listens = 0;
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

    /// Reads what one of its outputs holds.
    pub(super) fn read_output(&mut self, stream: usize) {
        let mut buffer = [0; READ_BYTES_MAX];
        let Some(file) = &mut self.outputs[stream] else { return };
        match file.read(&mut buffer) {
            Ok(0) => self.end_output(stream),
            Ok(length) => self.log.take(STREAMS[stream], &buffer[..length], Timestamp::now()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.end_output(stream),
        }
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
        self.run = Run::Draining { code, until: Instant::now() + DRAIN_LIMIT, ran };
    }

    /// Ends draining if all output was read; says how it ended.
    pub(super) fn drained(&mut self, env: &Env, now: Instant) -> Option<ContainerExit> {
        let Run::Draining { code, until, ran } = self.run else { return None };
        if self.outputs.iter().any(Option::is_some) && now < until {
            return None;
        }
        for stream in 0..STREAMS.len() {
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
                let _ = nix::sys::signal::kill(*pid, signal);
            }
            Run::Made { pid } => kill(*pid),
            Run::Making { carrier, .. } => {
                kill(carrier.pid);
                self.run = Run::Done;
            }
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

    /// The next moment at which something is due without any event.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let run = match self.run {
            Run::Draining { until, .. } | Run::Backoff { until } => Some(until),
            _ => None,
        };
        [run, self.kill_at].into_iter().flatten().min()
    }
}

/// Where libcontainer keeps its state of a replica's containers.
pub(super) fn state_dir(dir: &Utf8Path) -> Utf8PathBuf {
    dir.join("oci")
}

fn waiting(reason: &str, until: Option<Timestamp>) -> ContainerState {
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
