//! A machine as a child of this process, for showing that machines boot here, and for tests.
//!
//! Nothing stands around it but what QEMU does to itself, so no code of users runs in one.
//!
//! **Invariant:** the machine ends with its value; every wait has a limit.

use std::{
    collections::VecDeque,
    io::{self, Read as _, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{Link, LinkError, LinkEvent, MachineSpec};

/// A machine that runs as our child.
#[derive(Debug)]
pub struct Local {
    child: Child,
    socket: UnixStream,
    /// Our end of the agent's port: say something with it, then [`Local::next`] sends it.
    pub link: Link,
    events: VecDeque<LinkEvent>,
    monitor: Option<UnixStream>,
    started: Instant,
}

/// Why a machine is over.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// QEMU could not be started, or its port failed.
    #[error("QEMU: {0}")]
    Io(#[from] io::Error),
    /// The agent broke the protocol.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// QEMU ended.
    #[error("QEMU ended ({status}): {said}")]
    Ended {
        /// How.
        status: String,
        /// Its last words.
        said: String,
    },
    /// Nothing happened in time.
    #[error("the machine did not answer within {} ms", limit.as_millis())]
    Silent {
        /// The limit.
        limit: Duration,
    },
}

impl Local {
    /// Starts it; numbers of descriptors in `spec` are set here.
    ///
    /// # Errors
    /// [`LocalError::Io`].
    pub fn start(spec: &MachineSpec) -> Result<Self, LocalError> {
        Self::start_with(spec, |word| word)
    }

    /// Starts it with a command line that is changed word by word.
    ///
    /// # Errors
    /// [`LocalError::Io`].
    pub fn start_with(spec: &MachineSpec, change: impl Fn(String) -> String) -> Result<Self, LocalError> {
        let (ours, theirs) = UnixStream::pair()?;
        let (monitor, their_monitor) = UnixStream::pair()?;
        // standard input and output are sockets here: the numbers that a child has without further ado
        let spec = MachineSpec { agent_fd: 0, monitor_fd: Some(1), is_verbose: false, ..spec.clone() };
        let argv: Vec<_> = spec.argv().into_iter().map(change).collect();
        let child = Command::new(&argv[0])
            .args(&argv[1..])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(their_monitor)))
            .stderr(Stdio::piped())
            .spawn()?;
        let link = if spec.is_restored { Link::to_restored() } else { Link::new() };
        let started = Instant::now();
        Ok(Self { child, socket: ours, link, events: VecDeque::new(), monitor: Some(monitor), started })
    }

    /// Starts it and waits until its agent is up; a boot that takes longer than `limit` is ended and tried again, `tries`
    /// times in all.
    ///
    /// # Errors
    /// [`LocalError`], of the last try.
    pub fn boot(spec: &MachineSpec, limit: Duration, tries: u32) -> Result<Self, LocalError> {
        let mut left = tries.max(1);
        loop {
            left -= 1;
            let booted = Self::start(spec).and_then(|mut machine| {
                machine.until(limit, |event| *event == LinkEvent::Up)?;
                Ok(machine)
            });
            match booted {
                Err(LocalError::Silent { .. } | LocalError::Ended { .. }) if left > 0 => {}
                other => return other,
            }
        }
    }

    /// Time since it was started.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// QEMU's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The monitor's socket; once.
    pub fn take_monitor(&mut self) -> Option<UnixStream> {
        self.monitor.take()
    }

    /// What happens next; sends first what the link has to say.
    ///
    /// # Errors
    /// [`LocalError`].
    pub fn next(&mut self, limit: Duration) -> Result<LinkEvent, LocalError> {
        let end = Instant::now() + limit;
        let mut bytes = vec![0; 64 << 10];
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            self.flush(end, limit)?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LocalError::Silent { limit });
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.read(&mut bytes) {
                Ok(0) => return Err(self.last_words()),
                Ok(count) => self.events.extend(self.link.receive(&bytes[..count])?),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(self.last_words()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes events until one fits, which is given; output is taken and dropped.
    ///
    /// # Errors
    /// [`LocalError`].
    pub fn until(&mut self, limit: Duration, is_it: impl Fn(&LinkEvent) -> bool) -> Result<LinkEvent, LocalError> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let event = self.next(left).map_err(|error| match error {
                LocalError::Silent { .. } => LocalError::Silent { limit },
                other => other,
            })?;
            if is_it(&event) {
                return Ok(event);
            }
            if let LinkEvent::Output { id, stream, bytes } = &event {
                self.link.taken(*id, *stream, bytes.len());
            }
        }
    }

    fn flush(&mut self, end: Instant, limit: Duration) -> Result<(), LocalError> {
        loop {
            let out = self.link.outgoing();
            if out.is_empty() {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LocalError::Silent { limit });
            }
            self.socket.set_write_timeout(Some(left))?;
            match self.socket.write(out) {
                Ok(count) => self.link.sent(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(LocalError::Silent { limit }),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(self.last_words()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn last_words(&mut self) -> LocalError {
        let _ = self.child.kill();
        let mut said = String::new();
        if let Some(stderr) = self.child.stderr.take() {
            let _ = stderr.take(4096).read_to_string(&mut said);
        }
        let status = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        LocalError::Ended { status, said: said.trim().to_owned() }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
