//! A command in a guest: its bytes go between the ends that the driver made and the link, within the link's windows.
//!
//! **Invariant:** at most a window per stream is held; a command is over when its output was passed on or nobody reads it.

#![expect(unsafe_code, reason = "the window size ioctl has no safe wrapper")]

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use cove_vm::{
    Link,
    wire::{Stream, Terminal},
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    poll::PollFlags,
    sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
};

/// The size of a terminal is looked at so often: nobody tells of it here.
const SIZE_PERIOD: Duration = Duration::from_millis(250);

/// Longest wait for a reader once the command has ended.
const FLUSH_LIMIT: Duration = Duration::from_secs(10);

/// An output of a command.
#[derive(Debug)]
struct Output {
    file: Option<File>,
    pending: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct GuestExec {
    /// Its number for the driver.
    pub(super) id: u64,
    /// Its number on the link.
    pub(super) link: u32,
    stdin: Option<File>,
    outputs: [Output; 2],
    tty: bool,
    size: Terminal,
    looked_at: Option<Instant>,
    exit: Option<(i32, Option<Instant>)>,
}

impl GuestExec {
    pub(super) fn new(id: u64, tty: bool, stdio: Vec<OwnedFd>) -> io::Result<Self> {
        let missing = || io::Error::new(io::ErrorKind::InvalidInput, "a command came without its descriptors");
        let [stdin, stdout, stderr]: [OwnedFd; 3] = stdio.try_into().map_err(|_| missing())?;
        if tty {
            // the guest's own terminal does what a terminal does
            let mut mode = tcgetattr(&stdin)?;
            cfmakeraw(&mut mode);
            tcsetattr(&stdin, SetArg::TCSANOW, &mode)?;
        }
        for end in [&stdin, &stdout, &stderr] {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let output = |end: OwnedFd| Output { file: Some(File::from(end)), pending: Vec::new() };
        let size = size_of(&stdin);
        Ok(Self {
            id,
            link: 0,
            stdin: Some(File::from(stdin)),
            outputs: [output(stdout), output(stderr)],
            tty,
            size,
            looked_at: None,
            exit: None,
        })
    }

    /// Size of its terminal, if it has one.
    pub(super) fn terminal(&self) -> Option<Terminal> {
        self.tty.then_some(self.size)
    }

    pub(super) fn waits_for(&self, has_room: bool) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let stdin = self.stdin.iter().filter(|_| has_room && self.exit.is_none());
        let mut all: Vec<_> = stdin.map(|file| (file.as_fd(), PollFlags::POLLIN)).collect();
        for output in self.outputs.iter().filter(|output| !output.pending.is_empty()) {
            all.extend(output.file.iter().map(|file| (file.as_fd(), PollFlags::POLLOUT)));
        }
        all
    }

    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let size = self.tty.then(|| self.looked_at.map_or(now, |at| at + SIZE_PERIOD));
        [size, self.exit.and_then(|(_, until)| until)].into_iter().flatten().min()
    }

    pub(super) fn output(&mut self, stream: Stream, bytes: &[u8]) {
        self.outputs[usize::from(stream == Stream::Err)].pending.extend_from_slice(bytes);
    }

    pub(super) fn exited(&mut self, code: i32) {
        self.exit = Some((code, None));
    }

    /// Moves what can be moved; its code when it is over.
    pub(super) fn turn(&mut self, link: &mut Link, now: Instant) -> Option<i32> {
        for (stream, output) in [Stream::Out, Stream::Err].into_iter().zip(&mut self.outputs) {
            let passed_on = output.write();
            link.taken(self.link, stream, passed_on);
        }
        if let Some((code, until)) = self.exit {
            let until = until.unwrap_or(now + FLUSH_LIMIT);
            self.exit = Some((code, Some(until)));
            let is_over = self.outputs.iter().all(|output| output.pending.is_empty()) || now >= until;
            return is_over.then_some(code);
        }
        self.read(link);
        if self.tty && self.looked_at.is_none_or(|at| now >= at + SIZE_PERIOD) {
            self.looked_at = Some(now);
            self.resize(link);
        }
        None
    }

    fn resize(&mut self, link: &mut Link) {
        let size = self.stdin.as_ref().map_or(self.size, size_of);
        if size != self.size {
            self.size = size;
            link.resize(self.link, size);
        }
    }

    fn read(&mut self, link: &mut Link) {
        while let Some(stdin) = &mut self.stdin {
            let room = link.stdin_room(self.link).min(16 << 10);
            if room == 0 {
                return;
            }
            let mut buffer = vec![0; room];
            match stdin.read(&mut buffer) {
                // a terminal whose user is gone answers EIO
                Ok(0) => break,
                Ok(length) => {
                    if self.tty {
                        // what was typed after a change of size must find it
                        self.resize(link);
                    }
                    let _all = link.stdin(self.link, &buffer[..length]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => break,
            }
        }
        self.stdin = None;
        link.stdin_end(self.link);
    }
}

impl Output {
    /// Says how much was passed on, or is of interest to nobody.
    fn write(&mut self) -> usize {
        let mut written = 0;
        while written < self.pending.len() {
            let Some(file) = &mut self.file else {
                written = self.pending.len();
                break;
            };
            match file.write(&self.pending[written..]) {
                Ok(length) => written += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.file = None,
            }
        }
        self.pending.drain(..written);
        written
    }
}

fn size_of(terminal: &impl AsFd) -> Terminal {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: fills in one structure of the kind that this ioctl is defined for; for no terminal it does nothing.
    unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    Terminal { columns: size.ws_col, rows: size.ws_row }
}
