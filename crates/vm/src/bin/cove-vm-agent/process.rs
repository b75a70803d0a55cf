//! A process of the guest and its streams.
//!
//! **Invariant:** output is read only as far as the host gave room for it; input is held within its window.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Command, Stdio},
};

use crate::{
    sys, users,
    wire::{CHUNK_BYTES_MAX, Process as What, Stream, Terminal, WINDOW_BYTES},
};

/// Where a process's output comes from.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) stream: Stream,
    /// `None` once it ended.
    pub(crate) file: Option<File>,
    /// Bytes that may be sent.
    pub(crate) room: usize,
    /// Nothing more was there when it was read last.
    is_dry: bool,
}

/// A process that runs, or whose output is not sent yet.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) sources: Vec<Source>,
    /// Exit code, once it ended.
    pub(crate) ended: Option<i32>,
    pub(crate) stdin: Option<File>,
    pending: VecDeque<u8>,
    /// Bytes of `pending` that the host does not count, since its windows are newer.
    uncounted: usize,
    is_stdin_over: bool,
    terminal: Option<File>,
}

fn never_wait(file: impl Into<OwnedFd>) -> io::Result<File> {
    let file = File::from(file.into());
    sys::never_wait(file.as_raw_fd())?;
    Ok(file)
}

impl Process {
    /// Starts it. With `has_stdin` its standard input comes from the host, otherwise it is empty.
    pub(crate) fn start(what: &What, terminal: Option<Terminal>, has_stdin: bool) -> Result<Self, String> {
        let (program, arguments) = what.args.split_first().ok_or("there is no program to run")?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear();
        let user = users::resolve(&what.user)?;
        // as container engines do: the image's user has a home unless the environment names one
        if let Some(home) = &user.home {
            command.env("HOME", home);
        }
        for variable in &what.env {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            command.env(name, value);
        }
        let cwd = if what.cwd.is_empty() { "/" } else { &what.cwd };
        fs::create_dir_all(cwd).map_err(|error| format!("the working directory `{cwd}`: {error}"))?;
        command.current_dir(cwd);
        let ids = user.ids;
        let failed = |error: io::Error| format!("`{program}` could not be started: {error}");
        let terminal = terminal.map(|size| open_terminal(size, &ids)).transpose().map_err(failed)?;
        let controlling = terminal.as_ref().map(|(_, theirs)| theirs.as_raw_fd());
        if let Some((_, theirs)) = &terminal {
            let end = || theirs.try_clone().map(Stdio::from);
            command.stdin(end().map_err(failed)?).stdout(end().map_err(failed)?).stderr(end().map_err(failed)?);
        } else {
            command.stdin(if has_stdin { Stdio::piped() } else { Stdio::null() });
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        before_exec(&mut command, ids, controlling);
        let mut child = command.spawn().map_err(failed)?;
        let pid = i32::try_from(child.id()).expect("process ids fit");
        let mut process = Self {
            pid,
            sources: Vec::new(),
            ended: None,
            stdin: None,
            pending: VecDeque::new(),
            uncounted: 0,
            is_stdin_over: false,
            terminal: None,
        };
        let taken = match terminal {
            Some((ours, _)) => process.take_terminal(ours),
            None => process.take_pipes(&mut child),
        };
        if let Err(error) = taken {
            // it is reaped with the others
            let _ = sys::kill_group(pid, sys::SIGKILL);
            return Err(failed(error));
        }
        Ok(process)
    }

    fn take_terminal(&mut self, ours: File) -> io::Result<()> {
        let ours = never_wait(ours)?;
        self.add(Stream::Out, ours.try_clone()?);
        self.stdin = Some(ours.try_clone()?);
        self.terminal = Some(ours);
        Ok(())
    }

    fn take_pipes(&mut self, child: &mut std::process::Child) -> io::Result<()> {
        if let Some(pipe) = child.stdout.take() {
            self.add(Stream::Out, never_wait(OwnedFd::from(pipe))?);
        }
        if let Some(pipe) = child.stderr.take() {
            self.add(Stream::Err, never_wait(OwnedFd::from(pipe))?);
        }
        self.stdin = child.stdin.take().map(|pipe| never_wait(OwnedFd::from(pipe))).transpose()?;
        Ok(())
    }

    fn add(&mut self, stream: Stream, file: File) {
        self.sources.push(Source { stream, file: Some(file), room: WINDOW_BYTES, is_dry: false });
    }

    /// Room for more output.
    pub(crate) fn credit(&mut self, stream: Stream, bytes: usize) {
        for source in self.sources.iter_mut().filter(|source| source.stream == stream) {
            source.room = (source.room + bytes).min(WINDOW_BYTES);
        }
    }

    /// All windows are new.
    pub(crate) fn renew_windows(&mut self) {
        for source in &mut self.sources {
            source.room = WINDOW_BYTES;
        }
        self.uncounted = self.pending.len();
    }

    /// Bytes for its standard input; what exceeds the window is a fault of the host's and is dropped.
    pub(crate) fn push_stdin(&mut self, bytes: &[u8]) {
        let room = (WINDOW_BYTES + self.uncounted).saturating_sub(self.pending.len());
        self.pending.extend(&bytes[..bytes.len().min(room)]);
    }

    pub(crate) fn end_stdin(&mut self) {
        if self.terminal.is_some() && !self.is_stdin_over {
            const END_OF_FILE: u8 = 4;
            self.pending.push_back(END_OF_FILE);
            self.uncounted += 1;
        }
        self.is_stdin_over = true;
    }

    /// Its standard input waits for the process to read.
    pub(crate) fn wants_to_write(&self) -> bool {
        self.stdin.is_some() && !self.pending.is_empty()
    }

    /// Passes standard input on and says how many bytes the host gets back.
    pub(crate) fn write_stdin(&mut self) -> usize {
        let before = self.pending.len();
        while let Some(stdin) = self.stdin.as_mut().filter(|_| !self.pending.is_empty()) {
            match stdin.write(self.pending.as_slices().0) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.stdin = None,
            }
        }
        if self.stdin.is_none() {
            self.pending.clear();
        }
        if self.is_stdin_over && self.pending.is_empty() && self.terminal.is_none() {
            self.stdin = None;
        }
        // what the host does not count lies in front, or is the one byte at the end
        let written = before - self.pending.len();
        let free = written.min(self.uncounted);
        self.uncounted -= free;
        written - free
    }

    pub(crate) fn resize(&self, size: Terminal) {
        if let Some(terminal) = &self.terminal {
            // a terminal that is gone has no size
            let _ = sys::resize(terminal, size.columns, size.rows);
        }
    }

    /// It ended and nothing of its output is left. What its children still write belongs to nobody.
    pub(crate) fn is_over(&self) -> bool {
        self.ended.is_some() && self.sources.iter().all(|source| source.file.is_none() || source.is_dry)
    }
}

impl Source {
    /// The next piece of output, as much as there is room for; `None` when there is none now.
    pub(crate) fn read(&mut self) -> Option<Vec<u8>> {
        let file = self.file.as_mut().filter(|_| self.room > 0)?;
        let mut bytes = vec![0; CHUNK_BYTES_MAX.min(self.room)];
        self.is_dry = false;
        match file.read(&mut bytes) {
            Ok(0) => self.file = None,
            Ok(count) => {
                bytes.truncate(count);
                self.room -= count;
                return Some(bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_dry = true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // a terminal whose processes are gone
            Err(_) => self.file = None,
        }
        None
    }
}

fn open_terminal(size: Terminal, ids: &sys::Ids) -> io::Result<(File, File)> {
    let (ours, theirs) = sys::terminal()?;
    sys::resize(&ours, size.columns, size.rows)?;
    std::os::unix::fs::fchown(&theirs, Some(ids.uid), None)?;
    Ok((ours, theirs))
}

#[expect(unsafe_code, reason = "what runs between fork and exec cannot be checked by the compiler")]
fn before_exec(command: &mut Command, ids: sys::Ids, terminal: Option<i32>) {
    // SAFETY: the agent has one thread, so nothing can be locked or half changed in the child.
    unsafe { command.pre_exec(move || sys::become_process(&ids, terminal)) };
}
