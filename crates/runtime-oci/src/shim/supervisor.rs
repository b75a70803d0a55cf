//! The life of one replica: makes all its containers, starts them in order, restarts and ends them.
//!
//! One loop over one `poll`: every event changes a container's state, then [`Supervisor::advance`] does whatever the
//! states as a whole ask for. There is no other path, so a late or repeated order does no harm.
//!
//! **Invariant:** nothing here waits but the one `poll`.
//! **Invariant:** peers are told at once; the state in the replica's folder follows as soon as no event is waiting.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    rc::Rc,
    time::{Duration, Instant},
};

use camino::{Utf8Path, Utf8PathBuf};
use cove_model::{ReplicaPhase, ReplicaPhases};
use cove_runtime::RestartPolicy;
use jiff::Timestamp;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::Signal,
        signalfd::SignalFd,
        socket::{AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    bundle::make_shared,
    carrier::{Carrier, own},
    container::{Container, Run, state_dir},
    exec::{self, Command, EXECS_MAX, Exec, Step},
    handler,
    memory::Dump,
    sandbox::Stage,
    zygote::Env,
};
use crate::protocol::{
    FromShim, RootGiven, SOCKET_FILE, SPEC_FILE, STATE_FILE, ShimSpec, ShimState, ToShim, receive, send,
    write_atomically,
};

/// Most drivers connected at once: the one that was there, and the one that is opened after it.
const PEERS_MAX: usize = 4;

/// CPU limits apply this long after the start even if the replica never became ready.
const BOOST_LIMIT: Duration = Duration::from_secs(60);

/// Between SIGTERM and SIGKILL for a container that is restarted, and for a helper that gets SIGTERM itself.
const RESTART_GRACE: Duration = Duration::from_secs(30);

/// Ends of processes that nobody asked about yet.
const STRAYS_MAX: usize = 64;

pub(super) struct Supervisor {
    pub(super) env: Rc<Env>,
    pub(super) dir: Utf8PathBuf,
    pub(super) spec: ShimSpec,
    /// Where a sandboxed replica's files are.
    pub(super) stage: Option<Stage>,
    pub(super) network: OwnedFd,
    signals: SignalFd,
    socket: OwnedFd,
    peers: Vec<OwnedFd>,
    pub(super) containers: Vec<Container>,
    pub(super) execs: Vec<Exec>,
    strays: VecDeque<(Pid, i32)>,
    pub(super) phase: ReplicaPhase,
    pub(super) phases: ReplicaPhases,
    failure: Option<(String, String)>,
    is_start_asked: bool,
    boost_until: Option<Instant>,
    is_limited: bool,
    pub(super) freeze_error: Option<String>,
    /// Orders to thaw it that were carried out.
    pub(super) thaws: u64,
    /// Sockets of those who read what was written: nothing runs until all of them are closed.
    pub(super) readers: Vec<OwnedFd>,
    /// CRIU, which keeps the memory.
    pub(super) dump: Option<Dump>,
    kill_at: Option<Instant>,
    last: Option<ShimState>,
    is_unsaved: bool,
}

#[derive(Clone, Copy)]
enum Source {
    Signals,
    Socket,
    Peer(usize),
    Carrier(usize),
    Channel(usize),
    Listener(usize),
    Output(usize, usize),
    Exec(usize),
    Reader(usize),
    /// A machine, which has its turn anyway.
    Machine,
}

impl Supervisor {
    pub(super) fn new(
        env: Rc<Env>,
        dir: Utf8PathBuf,
        (network, shares): (OwnedFd, Vec<OwnedFd>),
        signals: SignalFd,
        connection: OwnedFd,
        carrier: Carrier,
    ) -> io::Result<Self> {
        let spec: ShimSpec = serde_json::from_slice(&std::fs::read(dir.join(SPEC_FILE))?)?;
        let socket = bind_socket(&dir)?;
        let containers = spec
            .containers
            .iter()
            .enumerate()
            .map(|(index, container)| Container::new(index, container.clone(), &spec.cgroup, &spec.log_dir))
            .collect();
        let phases = ReplicaPhases { network_at: Some(spec.network_at), ..ReplicaPhases::default() };
        if spec.sandbox.as_ref().is_some_and(|sandbox| sandbox.handler.is_some()) {
            handler::become_reaper()?;
        }
        let mut this = Self {
            env,
            dir,
            spec,
            stage: None,
            network,
            signals,
            socket,
            peers: vec![connection],
            containers,
            execs: Vec::new(),
            strays: VecDeque::new(),
            phase: ReplicaPhase::Preparing,
            phases,
            failure: None,
            is_start_asked: false,
            boost_until: None,
            is_limited: false,
            freeze_error: None,
            thaws: 0,
            readers: Vec::new(),
            dump: None,
            kill_at: None,
            last: None,
            is_unsaved: false,
        };
        this.prepare(carrier, &shares);
        Ok(this)
    }

    fn prepare(&mut self, carrier: Carrier, shares: &[OwnedFd]) {
        let staged = self.spec.sandbox.as_ref().map(Stage::set_up).transpose();
        let made = staged.and_then(|stage| {
            self.stage = stage;
            std::fs::create_dir_all(state_dir(&self.dir))?;
            make_shared(&self.dir, self.stage.as_ref(), &self.spec, shares)
        });
        if let Err(error) = made {
            self.fail("ContainerCannotRun", format!("failed to make the replica's files: {error}"));
            return;
        }
        let mut carrier = Some(carrier);
        for index in 0..self.containers.len() {
            let is_attached = carrier.is_some();
            let begun = self.containers[index].begin(&self.env, &self.spec, carrier.take());
            match begun {
                Err(error) => self.fail("ContainerCannotRun", error.to_string()),
                Ok(()) if is_attached => self.order(index),
                Ok(()) => {}
            }
        }
    }

    fn order(&mut self, index: usize) {
        if matches!(self.containers[index].run, Run::Restoring(_)) {
            return self.order_restore(index);
        }
        let ordered =
            self.containers[index].order(&self.env, (&self.dir, self.stage.as_ref()), &self.spec, &self.network);
        if let Err(message) = ordered {
            self.cannot_make(index, message);
        }
    }

    pub(super) fn cannot_make(&mut self, index: usize, message: String) {
        let container = &mut self.containers[index];
        container.could_not_be_made(message.clone());
        if self.phase == ReplicaPhase::Preparing {
            let name = self.containers[index].spec.name.clone();
            self.fail("ContainerCannotRun", format!("container `{name}`: {message}"));
        } else if !self.is_ending() {
            self.containers[index].back_off(Instant::now());
        }
    }

    fn fail(&mut self, reason: &str, message: String) {
        self.failure.get_or_insert_with(|| (reason.to_owned(), message));
        self.stop(Duration::ZERO);
    }

    pub(super) fn is_ending(&self) -> bool {
        matches!(self.phase, ReplicaPhase::Stopping) || self.failure.is_some()
    }

    /// Runs until nothing of the replica is left.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            self.advance(Instant::now());
            self.tell();
            if matches!(self.phase, ReplicaPhase::Stopped | ReplicaPhase::Failed) {
                self.save();
                return Ok(());
            }
            let mut events = self.wait(if self.is_unsaved { PollTimeout::ZERO } else { self.timeout() })?;
            if events.is_empty() && self.is_unsaved {
                self.save();
                events = self.wait(self.timeout())?;
            }
            for (source, flags) in events {
                self.handle(source, flags);
            }
        }
    }

    fn wait(&self, timeout: PollTimeout) -> io::Result<Vec<(Source, PollFlags)>> {
        let now = Instant::now();
        let mut sources = vec![(Source::Signals, self.signals.as_fd()), (Source::Socket, self.socket.as_fd())];
        let mut flags = Vec::new();
        sources.extend(self.peers.iter().enumerate().map(|(index, peer)| (Source::Peer(index), peer.as_fd())));
        for (index, container) in self.containers.iter().enumerate() {
            if let Run::Making { carrier, .. } = &container.run {
                sources.push((Source::Carrier(index), carrier.socket.as_fd()));
            }
            if let Run::Restoring(restoring) = &container.run
                && !restoring.is_ordered
            {
                sources.push((Source::Carrier(index), restoring.carrier.socket.as_fd()));
            }
            sources.extend(container.channel.iter().map(|fd| (Source::Channel(index), fd.as_fd())));
            sources.extend(container.listener.iter().map(|fd| (Source::Listener(index), fd.as_fd())));
            if container.reads_at(now).is_some() {
                continue;
            }
            for (stream, output) in container.outputs.iter().enumerate() {
                sources.extend(output.iter().map(|file| (Source::Output(index, stream), file.as_fd())));
            }
        }
        for (index, exec) in self.execs.iter().enumerate() {
            sources.extend(exec.carrier.iter().map(|carrier| (Source::Exec(index), carrier.socket.as_fd())));
        }
        sources.extend(self.readers.iter().enumerate().map(|(index, reader)| (Source::Reader(index), reader.as_fd())));
        let readable = sources.len();
        for machine in self.containers.iter().filter_map(|container| container.machine.as_ref()) {
            for (fd, wanted) in machine.waits_for() {
                sources.push((Source::Machine, fd));
                flags.push(wanted);
            }
        }
        let flags = std::iter::repeat_n(PollFlags::POLLIN, readable).chain(flags);
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().zip(flags).map(|((_, fd), flags)| PollFd::new(*fd, flags)).collect();
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let ready = |fd: &PollFd<'_>| fd.revents().filter(|flags| !flags.is_empty());
        // The last first: removing one then leaves the numbers of those before it as they are.
        Ok(sources.iter().zip(&fds).rev().filter_map(|((source, _), fd)| Some((*source, ready(fd)?))).collect())
    }

    fn timeout(&self) -> PollTimeout {
        let boost = self.boost_until.filter(|_| !self.is_limited);
        let due = self.containers.iter().filter_map(Container::wake_at).chain(boost).chain(self.kill_at);
        let due = due.chain(self.dump.as_ref().and_then(Dump::kill_at)).min();
        let Some(due) = due else { return PollTimeout::NONE };
        let wait = due.saturating_duration_since(Instant::now());
        // One more millisecond, so that it is due when we wake.
        PollTimeout::try_from(wait.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX)
    }

    fn handle(&mut self, source: Source, flags: PollFlags) {
        match source {
            Source::Signals => self.take_signals(),
            Source::Socket => self.accept(),
            Source::Peer(index) => self.take_orders(index),
            Source::Carrier(index) => {
                let answer = self.containers[index].carrier_answers(&self.dir);
                match answer {
                    Ok(true) => self.order(index),
                    Ok(false) => {
                        self.take_stray(index);
                        self.begin_restore(index);
                    }
                    Err(message) => self.cannot_make(index, message),
                }
            }
            Source::Channel(index) => self.containers[index].init_says(),
            Source::Listener(index) => {
                if self.containers[index].listens(!flags.contains(PollFlags::POLLIN)) {
                    self.phases.listening_at.get_or_insert_with(Timestamp::now);
                }
            }
            Source::Output(index, stream) => drop(self.containers[index].read_output(stream)),
            Source::Exec(index) => self.exec_answers(index),
            Source::Reader(index) => self.reader_left(index),
            Source::Machine => {}
        }
    }

    /// Does what the states as a whole ask for.
    fn advance(&mut self, now: Instant) {
        self.machine_turns(now);
        self.memory_turns(now);
        self.take_exits(now);
        self.end_if_over();
        if self.is_ending() {
            self.end(now);
            return;
        }
        for container in &mut self.containers {
            if container.kill_at.is_some_and(|at| at <= now) {
                container.kill_at = None;
                container.kill(&self.env);
            }
        }
        for index in 0..self.containers.len() {
            if let Run::Backoff { until } = self.containers[index].run
                && until <= now
            {
                let begun = self.containers[index].begin(&self.env, &self.spec, None);
                if let Err(error) = begun {
                    self.cannot_make(index, error.to_string());
                }
            }
        }
        if self.phase == ReplicaPhase::Preparing && self.containers.iter().all(|c| matches!(c.run, Run::Made { .. })) {
            self.phase = ReplicaPhase::Prepared;
            self.phases.root_at = Some(Timestamp::now());
        }
        if self.is_start_asked && matches!(self.phase, ReplicaPhase::Prepared | ReplicaPhase::Running) {
            self.start_due(now);
        }
        if !self.is_limited && self.boost_until.is_some_and(|until| until <= now) {
            self.limit_cpu();
        }
    }

    fn start_due(&mut self, now: Instant) {
        if self.phase == ReplicaPhase::Prepared {
            self.phase = ReplicaPhase::Running;
            self.boost_until = Some(now + BOOST_LIMIT);
        }
        let init_runs = self.containers.iter().any(|c| c.spec.is_init && !matches!(c.run, Run::Done));
        for index in 0..self.containers.len() {
            let container = &mut self.containers[index];
            if container.spec.is_init != init_runs || matches!(container.run, Run::Done) {
                continue;
            }
            if let Run::Made { .. } = container.run {
                let at = Timestamp::now();
                match container.start(at) {
                    Ok(()) => {
                        if !init_runs {
                            self.phases.started_at.get_or_insert(at);
                        }
                    }
                    Err(error) => {
                        container.kill(&self.env);
                        container.could_not_be_made(format!("failed to start the container: {error}"));
                        if self.spec.restart == RestartPolicy::Always {
                            container.back_off(now);
                        }
                    }
                }
            }
            if init_runs {
                return;
            }
        }
    }

    fn take_exits(&mut self, now: Instant) {
        let is_ending = self.is_ending();
        for container in &mut self.containers {
            let Some(exit) = container.drained(&self.env, now) else { continue };
            if !is_ending && container.begins_again(now) {
                continue;
            }
            let is_over = is_ending || (container.spec.is_init && exit.code == 0);
            if !is_over && self.spec.restart == RestartPolicy::Always {
                container.back_off(now);
            }
        }
    }

    /// A replica whose containers are not started again ends with the last of them, or with an init container that failed.
    fn end_if_over(&mut self) {
        if self.spec.restart == RestartPolicy::Always || self.phase != ReplicaPhase::Running {
            return;
        }
        let is_done = |container: &Container| matches!(container.run, Run::Done);
        let failed = |container: &Container| container.status.last_exit.as_ref().is_some_and(|exit| exit.code != 0);
        let init_failed = self.containers.iter().any(|c| c.spec.is_init && is_done(c) && failed(c));
        if init_failed || self.containers.iter().all(is_done) {
            self.stop(Duration::ZERO);
        }
    }

    fn end(&mut self, now: Instant) {
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            for container in &mut self.containers {
                container.kill(&self.env);
            }
        }
        let is_over = self.containers.iter().all(|container| matches!(container.run, Run::Done));
        if is_over {
            for exec in &self.execs {
                exec.end();
            }
            self.phase = if self.failure.is_some() { ReplicaPhase::Failed } else { ReplicaPhase::Stopped };
        }
    }

    fn stop(&mut self, grace: Duration) {
        let at = Instant::now() + grace;
        self.kill_at = Some(self.kill_at.map_or(at, |old| old.min(at)));
        if matches!(self.phase, ReplicaPhase::Stopping) {
            return;
        }
        self.end_readers();
        self.let_go_on();
        if self.failure.is_none() {
            self.phase = ReplicaPhase::Stopping;
        }
        for container in &mut self.containers {
            container.terminate();
        }
    }

    fn limit_cpu(&mut self) {
        self.is_limited = true;
        for container in &self.containers {
            // A host without the controller is reported by the driver's capabilities.
            let _ = self.env.cgroups.limit_cpu(&container.cgroup, container.spec.cpu_milli);
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if i32::try_from(info.ssi_signo).is_ok_and(|signal| signal == Signal::SIGTERM as i32) {
                self.stop(RESTART_GRACE);
            }
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => self.child_ended(pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => self.child_ended(pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn child_ended(&mut self, pid: Pid, code: i32) {
        if self.dump.as_ref().is_some_and(|dump| dump.pid == pid) {
            self.dump_ended(code);
        } else if let Some(index) = self.containers.iter().position(|container| container.restorer() == Some(pid)) {
            self.restore_ended(index, code);
        } else if let Some(index) = self.containers.iter().position(|container| container.pid() == Some(pid)) {
            // what its machine said last
            self.machine_turn(index, Instant::now());
            self.containers[index].exited(code);
            if self.phase == ReplicaPhase::Frozen {
                // nobody waits for it, and a start anew is cheaper than a restart of half of it
                self.stop(RESTART_GRACE);
            }
        } else if self.containers.iter_mut().any(|container| container.command_ended(pid, code, &self.env)) {
            // a runtime has done what it was told
        } else if let Some(index) = self.execs.iter().position(|exec| exec.pid == Some(pid)) {
            let exec = self.execs.remove(index);
            self.broadcast(&FromShim::ExecEnded { id: exec.id, code, error: None });
        } else {
            if self.strays.len() >= STRAYS_MAX {
                self.strays.pop_front();
            }
            self.strays.push_back((pid, code));
        }
    }

    /// The first process of a container may end before its carrier has told its number.
    pub(super) fn take_stray(&mut self, index: usize) {
        let Some(pid) = self.containers[index].pid() else { return };
        if let Some(at) = self.strays.iter().position(|(stray, _)| *stray == pid)
            && let Some((_, code)) = self.strays.remove(at)
        {
            self.containers[index].exited(code);
        }
    }

    fn accept(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let Ok(fd) = accept4(self.socket.as_raw_fd(), flags) else { return };
        if self.peers.len() >= PEERS_MAX {
            self.peers.remove(0);
        }
        self.peers.push(own(fd));
        self.last = None;
    }

    fn take_orders(&mut self, index: usize) {
        let Some(peer) = self.peers.get(index) else { return };
        match receive::<ToShim>(peer.as_raw_fd(), MsgFlags::MSG_DONTWAIT) {
            Ok(Some((order, fds))) => self.take_order(order, fds),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Ok(None) | Err(_) => drop(self.peers.remove(index)),
        }
    }

    fn take_order(&mut self, order: ToShim, fds: Vec<OwnedFd>) {
        match order {
            ToShim::Assign { .. } => {}
            ToShim::Start { asked_at } => {
                self.is_start_asked = true;
                self.phases.asked_at.get_or_insert(asked_at);
            }
            ToShim::Ready { at } => {
                self.phases.ready_at.get_or_insert(at);
                if !self.is_limited {
                    self.limit_cpu();
                }
            }
            ToShim::Freeze => self.freeze(),
            ToShim::Thaw => self.thaw(),
            ToShim::Stop { grace_ms } => {
                let is_slot = matches!(self.phase, ReplicaPhase::Preparing | ReplicaPhase::Prepared);
                self.stop(if is_slot { Duration::ZERO } else { Duration::from_millis(grace_ms) });
            }
            ToShim::Restart { container, restarts, reason, message } => {
                let running = self.containers.iter_mut().find(|c| c.spec.name == container);
                if let Some(running) = running.filter(|_| self.phase != ReplicaPhase::Frozen)
                    && running.status.restarts == restarts
                    && running.kill_at.is_none()
                    && matches!(running.run, Run::Running { .. })
                {
                    running.end_because(reason, message, Instant::now() + RESTART_GRACE);
                }
            }
            ToShim::Exec { id, container, command, tty, is_debug } => {
                self.exec(id, &container, &Command { words: command, tty, is_debug }, fds);
            }
            ToShim::Root { container } => self.give_root(&container, &fds),
            ToShim::Written { container } => self.give_written(&container, fds),
            ToShim::Memory { container, program, bytes_max } => {
                self.give_memory(&container, &program, bytes_max, fds);
            }
            ToShim::Network => {
                if let Some(socket) = fds.first() {
                    let network = [self.network.as_raw_fd()];
                    // A peer that went away has no use for the answer.
                    let _ = send(socket.as_raw_fd(), &RootGiven { error: None }, &network, MsgFlags::MSG_DONTWAIT);
                }
            }
            ToShim::ExecEnd { id } => {
                if let Some(exec) = self.execs.iter().find(|exec| exec.id == id) {
                    exec.end();
                }
                for machine in self.containers.iter_mut().filter_map(|container| container.machine.as_mut()) {
                    machine.exec_end(id);
                }
            }
        }
    }

    fn give_root(&self, name: &str, fds: &[OwnedFd]) {
        let Some(socket) = fds.first() else { return };
        let running = self.containers.iter().find(|c| c.spec.name == name && matches!(c.run, Run::Running { .. }));
        let root = match running.and_then(Container::pid) {
            Some(_) if running.is_some_and(|container| container.machine.is_some()) => {
                Err(format!("the files of container `{name}` are inside its machine"))
            }
            Some(pid) => exec::root_of(pid).map_err(|error| error.to_string()),
            None => Err(format!("container `{name}` is not running")),
        };
        // A peer that went away has no use for the answer.
        let _ = match root {
            Ok(root) => {
                send(socket.as_raw_fd(), &RootGiven { error: None }, &[root.as_raw_fd()], MsgFlags::MSG_DONTWAIT)
            }
            Err(error) => send(socket.as_raw_fd(), &RootGiven { error: Some(error) }, &[], MsgFlags::MSG_DONTWAIT),
        };
    }

    fn exec(&mut self, id: u64, name: &str, command: &Command, stdio: Vec<OwnedFd>) {
        let running = |c: &&Container| c.spec.name == name && matches!(c.run, Run::Running { .. });
        let is_full = self.execs_under_way() >= EXECS_MAX;
        if let Some(machine) = self.containers.iter_mut().find(|c| running(&&**c)).and_then(|c| c.machine.as_mut())
            && self.phase != ReplicaPhase::Frozen
            && !is_full
        {
            if let Err(error) = machine.exec(id, command, stdio) {
                self.broadcast(&FromShim::ExecEnded { id, code: 126, error: Some(error) });
            }
            return;
        }
        let begun = match self.containers.iter().find(running) {
            _ if is_full => Err(format!("{EXECS_MAX} commands run in this replica; end one first")),
            Some(_) if self.phase == ReplicaPhase::Frozen => {
                Err("the replica is frozen; a request to the app thaws it".to_owned())
            }
            None => Err(format!("container `{name}` is not running")),
            Some(container) => Exec::begin(&self.env, (&self.dir, self.stage.as_ref()), container, id, command, stdio),
        };
        match begun {
            Ok(exec) => self.execs.push(exec),
            Err(error) => self.broadcast(&FromShim::ExecEnded { id, code: 126, error: Some(error) }),
        }
    }

    fn exec_answers(&mut self, index: usize) {
        let Some(exec) = self.execs.get_mut(index) else { return };
        let id = exec.id;
        match exec.carrier_answers(&self.network) {
            Step::Nothing => {}
            Step::Failed(error) => {
                drop(self.execs.remove(index));
                self.broadcast(&FromShim::ExecEnded { id, code: 126, error: Some(error) });
            }
            Step::Started(pid) => {
                self.broadcast(&FromShim::ExecStarted { id });
                if let Some(at) = self.strays.iter().position(|(stray, _)| *stray == pid)
                    && let Some((_, code)) = self.strays.remove(at)
                {
                    drop(self.execs.remove(index));
                    self.broadcast(&FromShim::ExecEnded { id, code, error: None });
                }
            }
        }
    }

    fn state(&self) -> ShimState {
        ShimState {
            phase: self.phase,
            failure: self.failure.clone(),
            containers: self.containers.iter().map(|container| container.status.clone()).collect(),
            phases: self.phases.clone(),
            is_start_asked: self.is_start_asked,
            freezes: self.env.cgroups.can_freeze(),
            freeze_error: self.freeze_error.clone(),
            thaws: Some(self.thaws),
            gives_written: self.env.cgroups.can_freeze(),
            gives_memory: self.env.cgroups.can_freeze(),
            restored: self.containers.iter().find_map(|container| Some(container.restored.as_ref()?.is_ok())),
            restore_error: self.containers.iter().find_map(|container| container.restored.clone()?.err()),
            cpu_us_total: self.cpu_us_total(),
        }
    }

    /// What it used as a whole: read once, while its control group is still there.
    fn cpu_us_total(&self) -> Option<u64> {
        if !matches!(self.phase, ReplicaPhase::Stopped | ReplicaPhase::Failed) {
            return None;
        }
        let told = self.last.as_ref().and_then(|last| last.cpu_us_total);
        told.or_else(|| self.env.cgroups.usage(&self.spec.cgroup).cpu_us_total)
    }

    /// Tells peers what changed.
    fn tell(&mut self) {
        let state = self.state();
        if self.last.as_ref() == Some(&state) {
            return;
        }
        self.broadcast(&FromShim::State(Box::new(state.clone())));
        self.last = Some(state);
        self.is_unsaved = true;
    }

    fn save(&mut self) {
        self.is_unsaved = false;
        if let Some(text) = self.last.as_ref().and_then(|state| serde_json::to_vec(state).ok()) {
            // A full disk: the next driver learns the state from the socket; only the end of all would be lost.
            let _ = write_atomically(&self.dir.join(STATE_FILE), &text);
        }
    }

    /// A peer that does not read its messages is dropped; it connects again and gets the newest state.
    pub(super) fn broadcast(&mut self, message: &FromShim) {
        self.peers.retain(|peer| send(peer.as_raw_fd(), message, &[], MsgFlags::MSG_DONTWAIT).is_ok());
    }
}

/// Binds from inside the folder, as socket paths are short.
fn bind_socket(dir: &Utf8Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    let folder = File::open(dir)?;
    let _ = std::fs::remove_file(dir.join(SOCKET_FILE));
    bind(fd.as_raw_fd(), &UnixAddr::new(format!("/proc/self/fd/{}/{SOCKET_FILE}", folder.as_raw_fd()).as_str())?)?;
    listen(&fd, Backlog::new(8)?)?;
    Ok(fd)
}
