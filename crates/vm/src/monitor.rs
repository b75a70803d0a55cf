//! QEMU's monitor (QMP) as far as machines are saved and go on: two files, the device state and the memory.
//!
//! A machine whose memory can be read by others ([`crate::Backing::Shared`], [`crate::Backing::Saved`]) is saved by writing its devices' state, some hundred
//! kilobytes, while it stands still. A machine that goes on maps that file privately ([`crate::Backing::Copied`]), so it
//! begins in the time that its devices take, and all machines from one snapshot share what they did not write.
//!
//! Order: `link.quiesce()` until [`crate::LinkEvent::Quiet`], [`Monitor::save`], copy the memory with [`copy_memory`] (or
//! end the machine and keep its file), [`Monitor::go_on`], `link.resume(...)`. For a copy: start it with
//! [`crate::MachineSpec::is_restored`], [`Monitor::restore`], `Link::to_restored()`, `link.resume(...)`.
//!
//! **Invariant:** every command has a limit; a line of the monitor is at most [`LINE_BYTES_MAX`].

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, IoSlice, Read as _, Seek as _, SeekFrom, Write as _},
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::{fs::FileExt as _, net::UnixStream},
    },
    time::{Duration, Instant},
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

/// Longest line that is read, bytes.
pub(crate) const LINE_BYTES_MAX: u64 = 1 << 20;

/// Why QEMU did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The socket failed, or QEMU was silent for too long.
    #[error("QEMU's monitor: {0}")]
    Io(#[from] io::Error),
    /// It refused.
    #[error("QEMU refused `{command}`: {reason}")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// Why not.
        reason: String,
    },
    /// What it said is not understood.
    #[error("QEMU's monitor said what is not understood: {0}")]
    Unexpected(String),
    /// Saving or going on failed.
    #[error("the machine could not be saved or restored: {0}")]
    Migration(String),
}

/// QEMU's monitor.
#[derive(Debug)]
pub struct Monitor {
    reader: BufReader<UnixStream>,
    limit: Duration,
}

impl Monitor {
    /// Greets QEMU at the other end. No command takes longer than `limit`.
    ///
    /// # Errors
    /// [`MonitorError`].
    pub fn open(socket: UnixStream, limit: Duration) -> Result<Self, MonitorError> {
        let mut monitor = Self { reader: BufReader::new(socket), limit };
        let greeting = monitor.line(Instant::now() + limit)?;
        if greeting.get("QMP").is_none() {
            return Err(MonitorError::Unexpected(greeting.to_string()));
        }
        monitor.ask("qmp_capabilities", json!({}), None)?;
        // the memory is a file already; the end is told, not asked for
        let capabilities = json!([
            { "capability": "x-ignore-shared", "state": true },
            { "capability": "events", "state": true },
        ]);
        monitor.ask("migrate-set-capabilities", json!({ "capabilities": capabilities }), None)?;
        Ok(monitor)
    }

    /// Stops the machine and writes its devices' state. It stands still afterwards.
    ///
    /// # Errors
    /// [`MonitorError`]; the machine may stand still, [`Monitor::go_on`] lets it go on.
    pub fn save(&mut self, state: &File) -> Result<(), MonitorError> {
        self.ask("stop", json!({}), None)?;
        // as fast as it goes, in bytes a second
        self.ask("migrate-set-parameters", json!({ "max-bandwidth": 1u64 << 40 }), None)?;
        self.ask("getfd", json!({ "fdname": "state" }), Some(state.as_raw_fd()))?;
        self.ask("migrate", json!({ "uri": "fd:state" }), None)?;
        self.migrated()
    }

    /// Reads devices' state into a machine that waits for it, and lets it run.
    ///
    /// # Errors
    /// [`MonitorError`]; the machine is of no use.
    pub fn restore(&mut self, state: &File) -> Result<(), MonitorError> {
        self.ask("getfd", json!({ "fdname": "state" }), Some(state.as_raw_fd()))?;
        self.ask("migrate-incoming", json!({ "uri": "fd:state" }), None)?;
        self.migrated()?;
        self.go_on()
    }

    /// Lets a stopped machine run.
    ///
    /// # Errors
    /// [`MonitorError`].
    pub fn go_on(&mut self) -> Result<(), MonitorError> {
        self.ask("cont", json!({}), None).map(drop)
    }

    /// Waits until saving or restoring is over.
    fn migrated(&mut self) -> Result<(), MonitorError> {
        let end = Instant::now() + self.limit;
        loop {
            let line = self.line(end)?;
            match line["data"]["status"].as_str().filter(|_| line["event"] == "MIGRATION") {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    let answer = self.ask("query-migrate", json!({}), None)?;
                    let reason = answer["error-desc"].as_str().unwrap_or("QEMU gives no reason");
                    return Err(MonitorError::Migration(reason.to_owned()));
                }
                _ => {}
            }
        }
    }

    fn ask(&mut self, command: &'static str, arguments: Value, fd: Option<RawFd>) -> Result<Value, MonitorError> {
        let end = Instant::now() + self.limit;
        let bytes = format!("{}\n", json!({ "execute": command, "arguments": arguments })).into_bytes();
        self.reader.get_ref().set_write_timeout(Some(self.limit))?;
        match fd {
            Some(fd) => {
                let rights = [fd];
                let control = [ControlMessage::ScmRights(&rights)];
                let socket = self.reader.get_ref().as_raw_fd();
                let sent = sendmsg::<()>(socket, &[IoSlice::new(&bytes)], &control, MsgFlags::MSG_NOSIGNAL, None)
                    .map_err(io::Error::from)?;
                self.reader.get_mut().write_all(&bytes[sent..])?;
            }
            None => self.reader.get_mut().write_all(&bytes)?,
        }
        loop {
            let mut line = self.line(end)?;
            if let Some(reason) = line["error"]["desc"].as_str() {
                return Err(MonitorError::Refused { command, reason: reason.to_owned() });
            }
            if line.get("return").is_some() {
                return Ok(line["return"].take());
            }
            // an event of something else
        }
    }

    fn line(&mut self, end: Instant) -> Result<Value, MonitorError> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        self.reader.get_ref().set_read_timeout(Some(left))?;
        let mut text = String::new();
        let count =
            (&mut self.reader).take(LINE_BYTES_MAX).read_line(&mut text).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => {
                    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", self.limit.as_secs()))
                }
                _ => error,
            })?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "QEMU has ended").into());
        }
        serde_json::from_str(&text).map_err(|_| MonitorError::Unexpected(text))
    }
}

/// The memory of a machine with [`crate::Backing::Shared`], by QEMU's process; takes the rights to trace it.
///
/// # Errors
/// The file system's; `NotFound`: it has no such memory.
pub fn memory_of(qemu: u32) -> io::Result<File> {
    for entry in std::fs::read_dir(format!("/proc/{qemu}/fd"))? {
        let path = entry?.path();
        // a descriptor that is closed in the meantime is not it
        if std::fs::read_link(&path).is_ok_and(|name| name.to_string_lossy().starts_with("/memfd:memory-backend-memfd"))
        {
            return File::open(path);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the machine's memory cannot be read by others"))
}

/// Copies a machine's memory, the parts that hold something; gives their bytes. The machine must stand still.
///
/// # Errors
/// The file system's; a file that is written by halves stays and is the caller's to remove.
pub fn copy_memory(from: &File, to: &File) -> io::Result<u64> {
    use nix::unistd::{Whence, lseek};
    const STEP: usize = 1 << 20;
    let length = (&*from).seek(SeekFrom::End(0))?;
    to.set_len(length)?;
    let mut buffer = vec![0; STEP];
    let (mut at, mut copied) = (0i64, 0);
    loop {
        // the file system knows where nothing was ever written
        let begin = match lseek(from, at, Whence::SeekData) {
            Ok(begin) => begin,
            Err(nix::errno::Errno::ENXIO) => return Ok(copied),
            Err(error) => return Err(error.into()),
        };
        at = lseek(from, begin, Whence::SeekHole)?;
        let (mut place, end) = (u64::try_from(begin).unwrap_or(0), u64::try_from(at).unwrap_or(0));
        while place < end {
            let step = STEP.min(usize::try_from(end - place).unwrap_or(STEP));
            from.read_exact_at(&mut buffer[..step], place)?;
            to.write_all_at(&buffer[..step], place)?;
            place += step as u64;
        }
        copied += end - u64::try_from(begin).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A monitor whose other end says `lines`.
    fn opened(lines: &str) -> Result<Monitor, MonitorError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let greeting = "{\"QMP\":{}}\n{\"return\":{}}\n{\"return\":{}}\n";
        theirs.write_all(format!("{greeting}{lines}").as_bytes()).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        // what is asked stays in the socket's buffer
        std::mem::forget(theirs);
        Monitor::open(ours, Duration::from_secs(5))
    }

    #[test]
    fn answers_are_understood() {
        let state = tempfile::tempfile().unwrap();
        let told = |status: &str| format!("{{\"event\":\"MIGRATION\",\"data\":{{\"status\":\"{status}\"}}}}\n");
        let ok = "{\"event\":\"STOP\"}\n{\"return\":{}}\n";
        let saved = format!("{ok}{ok}{ok}{ok}{}{}", told("setup"), told("completed"));
        opened(&saved).unwrap().save(&state).unwrap();
        let failed = format!("{ok}{ok}{}{{\"return\":{{\"error-desc\":\"no such thing\"}}}}\n", told("failed"));
        let error = opened(&failed).unwrap().restore(&state).unwrap_err();
        assert_eq!(error.to_string(), "the machine could not be saved or restored: no such thing");
        let error = opened("{\"error\":{\"class\":\"x\",\"desc\":\"not now\"}}\n").unwrap().go_on().unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused `cont`: not now");
        let error = opened("").unwrap().go_on().unwrap_err();
        assert_eq!(error.to_string(), "QEMU's monitor: QEMU has ended");
        assert!(matches!(opened("what\n").unwrap().go_on(), Err(MonitorError::Unexpected(_))));
    }

    #[test]
    fn memory_is_copied_without_its_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"front", 0).unwrap();
        from.write_all_at(b"back", (60 << 20) + 77).unwrap();
        let copied = copy_memory(&from, &to).unwrap();
        assert!(copied < 1 << 20, "{copied}");
        let mut bytes = [0; 4];
        to.read_exact_at(&mut bytes, (60 << 20) + 77).unwrap();
        assert_eq!(&bytes, b"back");
        assert_eq!(to.metadata().unwrap().len(), 64 << 20);
    }
}
