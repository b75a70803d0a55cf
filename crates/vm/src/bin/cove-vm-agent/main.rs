//! The agent: first process of a session's guest. It makes the image the root, runs the program, passes bytes on.
//!
//! One thread waits for everything at once: the port to the host, the ends of children, the streams of processes. It is
//! compiled alone, static, from the standard library only (`build.rs`), and lies in the guest's initial file system.
//!
//! **Invariant:** the agent never waits for a process: a program that floods, or does not read, stops only itself.
//! **Invariant:** what a process wrote before it ended is sent before its end is.

mod listening;
mod process;
mod setup;
mod sys;
mod users;
#[path = "../../wire.rs"]
#[expect(unreachable_pub, dead_code, reason = "the host's half is not used here, and this is no library")]
mod wire;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, RawFd},
    process::ExitCode,
};

use listening::Watch;
use process::Process;
use sys::{PollFd, READABLE, WRITABLE};
use wire::{Bytes, CHUNK_BYTES_MAX, Decoder, Exec, FromGuest, PROGRAM, Process as What, Run, ToGuest, VERSION, encode};

/// Output is not read while so much waits to be sent.
const OUT_BYTES_MAX: usize = 1 << 20;

struct Agent {
    port: File,
    children: File,
    /// The folder of written files, or why nothing can be run.
    system: Result<File, String>,
    decoder: Decoder,
    out: Vec<u8>,
    processes: BTreeMap<u32, Process>,
    /// What the program is, for commands that do not say.
    program: What,
    watch: Watch,
    /// The machine is about to be saved.
    is_quiet: bool,
    ended_for_memory: u64,
}

fn main() -> ExitCode {
    // The kernel gives up when its first process ends, and the machine turns itself off.
    match Agent::begin().and_then(|mut agent| agent.serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // the console, for whoever looks at a guest that does not boot
            let _ = std::fs::write("/dev/kmsg", format!("<0>cove-vm-agent: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

/// A number that means nothing stands for what is awaited.
enum Awaited {
    Port,
    Children,
    Output(u32, usize),
    Input(u32),
}

impl Agent {
    fn begin() -> Result<Self, String> {
        setup::begin()?;
        let device = setup::port()?;
        let in_words = |error: io::Error| format!("{device}: {error}");
        let port = File::options().read(true).write(true).open(&device).map_err(in_words)?;
        sys::never_wait(port.as_raw_fd()).map_err(in_words)?;
        let children = sys::children_fd().map_err(|error| format!("ends of children: {error}"))?;
        let mut agent = Self {
            port,
            children,
            system: setup::prepare(),
            decoder: Decoder::default(),
            out: Vec::new(),
            processes: BTreeMap::new(),
            program: What::default(),
            watch: Watch::default(),
            is_quiet: false,
            ended_for_memory: 0,
        };
        agent.send(&FromGuest::Hello { version: VERSION });
        Ok(agent)
    }

    fn send(&mut self, frame: &FromGuest) {
        encode(frame, &mut self.out);
    }

    fn serve(&mut self) -> Result<(), String> {
        loop {
            let (mut fds, awaited) = self.awaited();
            let wait_ms = if self.is_quiet { None } else { self.watch.wait_ms() };
            sys::poll(&mut fds, wait_ms.unwrap_or(-1)).map_err(|error| format!("waiting: {error}"))?;
            for (fd, awaited) in fds.iter().zip(awaited).filter(|(fd, _)| fd.came != 0) {
                match awaited {
                    Awaited::Port if fd.came & !WRITABLE != 0 => self.read_port()?,
                    Awaited::Port => {}
                    Awaited::Children => self.reap(),
                    Awaited::Output(id, index) => self.read_output(id, index),
                    Awaited::Input(id) => self.write_input(id),
                }
            }
            if !self.is_quiet {
                if wait_ms.is_some() {
                    for port in self.watch.look() {
                        self.send(&FromGuest::Listening { port });
                    }
                }
                self.finish();
            }
            self.write_port()?;
        }
    }

    fn awaited(&self) -> (Vec<PollFd>, Vec<Awaited>) {
        let mut fds = Vec::new();
        let mut awaited = Vec::new();
        let mut add = |fd: RawFd, events: i16, what: Awaited| {
            fds.push(PollFd { fd, events, came: 0 });
            awaited.push(what);
        };
        let events = if self.out.is_empty() { READABLE } else { READABLE | WRITABLE };
        add(self.port.as_raw_fd(), events, Awaited::Port);
        add(self.children.as_raw_fd(), READABLE, Awaited::Children);
        if self.is_quiet {
            return (fds, awaited);
        }
        for (&id, process) in &self.processes {
            for (index, source) in process.sources.iter().enumerate() {
                let is_wanted = source.room > 0 && self.out.len() < OUT_BYTES_MAX;
                if let Some(file) = source.file.as_ref().filter(|_| is_wanted) {
                    add(file.as_raw_fd(), READABLE, Awaited::Output(id, index));
                }
            }
            if let Some(stdin) = process.stdin.as_ref().filter(|_| process.wants_to_write()) {
                add(stdin.as_raw_fd(), WRITABLE, Awaited::Input(id));
            }
        }
        (fds, awaited)
    }

    fn read_port(&mut self) -> Result<(), String> {
        let mut bytes = vec![0; 64 << 10];
        match self.port.read(&mut bytes) {
            // nobody is at the other end for now
            Ok(0) => {
                sys::poll(&mut [], 1).map_err(|error| format!("waiting: {error}"))?;
                return Ok(());
            }
            Ok(count) => self.decoder.push(&bytes[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(error) => return Err(format!("reading the port: {error}")),
        }
        while let Some(frame) = self.decoder.take::<ToGuest>().map_err(|error| error.to_string())? {
            self.obey(frame);
        }
        Ok(())
    }

    fn write_port(&mut self) -> Result<(), String> {
        while !self.out.is_empty() {
            let length = self.out.len().min(32 << 10);
            match self.port.write(&self.out[..length]) {
                Ok(0) => break,
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("writing to the port: {error}")),
            }
        }
        Ok(())
    }

    fn obey(&mut self, frame: ToGuest) {
        match frame {
            ToGuest::Run { run } => self.run(&run),
            ToGuest::Exec { exec } => self.exec(*exec),
            ToGuest::Stdin { id, bytes } => {
                if let Some(process) = self.processes.get_mut(&id) {
                    process.push_stdin(&bytes.0);
                }
                self.write_input(id);
            }
            ToGuest::StdinEnd { id } => {
                if let Some(process) = self.processes.get_mut(&id) {
                    process.end_stdin();
                }
                self.write_input(id);
            }
            ToGuest::Credit { id, stream, bytes } => {
                if let Some(process) = self.processes.get_mut(&id) {
                    process.credit(stream, bytes as usize);
                }
            }
            ToGuest::Resize { id, terminal } => {
                if let Some(process) = self.processes.get(&id) {
                    process.resize(terminal);
                }
            }
            ToGuest::Signal { id, signal } => {
                // one that ended needs none; its number may be another's
                if let Some(process) = self.processes.get(&id).filter(|process| process.ended.is_none()) {
                    let _ = sys::kill_group(process.pid, signal);
                }
            }
            ToGuest::Refresh { clock_unix_ns, entropy } => self.refresh(clock_unix_ns, &entropy),
            ToGuest::Ping { token } => self.send(&FromGuest::Pong { token }),
            ToGuest::Quiesce {} => {
                self.send(&FromGuest::Quiet {});
                self.is_quiet = true;
            }
            ToGuest::Resume { clock_unix_ns, entropy, hostname, hosts, is_copy } => {
                self.refresh(clock_unix_ns, &entropy);
                self.resume(&hostname, &hosts, is_copy);
            }
        }
    }

    fn run(&mut self, run: &Run) {
        let started = match &self.system {
            Ok(written) => setup::for_run(run, written).and_then(|()| Process::start(&run.process, None, false)),
            Err(error) => Err(error.clone()),
        };
        self.program = run.process.clone();
        self.watch = Watch::new(&run.ports);
        self.ended_for_memory = ended_for_memory();
        self.begun(PROGRAM, started);
    }

    fn exec(&mut self, exec: Exec) {
        let Exec { id, mut process, terminal } = exec;
        if process.env.is_empty() {
            process.env.clone_from(&self.program.env);
        }
        if process.cwd.is_empty() {
            process.cwd.clone_from(&self.program.cwd);
        }
        if process.user.is_empty() {
            process.user.clone_from(&self.program.user);
        }
        let started = Process::start(&process, terminal, true);
        self.begun(id, started);
    }

    fn begun(&mut self, id: u32, started: Result<Process, String>) {
        match started {
            Ok(process) => {
                self.processes.insert(id, process);
                self.send(&FromGuest::Started { id });
            }
            Err(reason) => self.send(&FromGuest::Failed { id, reason }),
        }
    }

    fn refresh(&mut self, clock_unix_ns: u64, entropy: &Bytes) {
        let mut results = vec![sys::set_clock(clock_unix_ns)];
        if !entropy.0.is_empty() {
            results.push(sys::add_entropy(&entropy.0));
        }
        for error in results.into_iter().filter_map(Result::err) {
            self.send(&FromGuest::Note { text: format!("clock or random numbers could not be set: {error}") });
        }
    }

    fn resume(&mut self, hostname: &str, hosts: &str, is_copy: bool) {
        self.is_quiet = false;
        if is_copy {
            for process in self.processes.iter().filter(|(id, _)| **id != PROGRAM).map(|(_, process)| process) {
                // one that ended already is reaped as it is
                let _ = sys::kill_group(process.pid, sys::SIGKILL);
            }
            self.processes.retain(|id, _| *id == PROGRAM);
        }
        for process in self.processes.values_mut() {
            process.renew_windows();
        }
        if let Err(error) = setup::rename(hostname, hosts) {
            self.send(&FromGuest::Note { text: format!("the name could not be set: {error}") });
        }
        if is_copy && self.processes.contains_key(&PROGRAM) {
            self.send(&FromGuest::Started { id: PROGRAM });
            self.watch.again();
        }
    }

    fn read_output(&mut self, id: u32, index: usize) {
        let Some(source) = self.processes.get_mut(&id).and_then(|process| process.sources.get_mut(index)) else {
            return;
        };
        let stream = source.stream;
        if let Some(bytes) = source.read() {
            debug_assert!(bytes.len() <= CHUNK_BYTES_MAX);
            self.send(&FromGuest::Output { id, stream, bytes: Bytes(bytes) });
        }
    }

    fn write_input(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let taken = process.write_stdin();
        if taken > 0 {
            self.send(&FromGuest::StdinTaken { id, bytes: u32::try_from(taken).unwrap_or(u32::MAX) });
        }
    }

    fn reap(&mut self) {
        // what it says is only that there is something to reap
        let mut info = [0; 128];
        while self.children.read(&mut info).is_ok_and(|count| count > 0) {}
        while let Some((pid, code)) = sys::reap() {
            let process = self.processes.values_mut().find(|process| process.pid == pid && process.ended.is_none());
            if let Some(process) = process {
                process.ended = Some(code);
            }
        }
    }

    /// Tells the ends of processes once their output is sent.
    fn finish(&mut self) {
        let ended: Vec<_> =
            { self.processes.iter() }.filter(|(_, process)| process.ended.is_some()).map(|(id, _)| *id).collect();
        for id in ended {
            self.drain(id);
            let Some(code) =
                self.processes.get(&id).filter(|process| process.is_over()).and_then(|process| process.ended)
            else {
                continue;
            };
            self.processes.remove(&id);
            if code == 128 + sys::SIGKILL {
                let ended = ended_for_memory();
                if ended > self.ended_for_memory {
                    self.ended_for_memory = ended;
                    self.send(&FromGuest::Note { text: "out of memory: the kernel ended a process".to_owned() });
                }
            }
            self.send(&FromGuest::Exited { id, code });
        }
    }

    /// Reads what an ended process left behind, as far as there is room.
    fn drain(&mut self, id: u32) {
        let Some(count) = self.processes.get(&id).map(|process| process.sources.len()) else { return };
        for index in 0..count {
            loop {
                let before = self.out.len();
                self.read_output(id, index);
                if self.out.len() == before {
                    break;
                }
            }
        }
    }
}

/// Processes that the kernel ended for memory since it runs.
fn ended_for_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}
