//! QEMU's monitor for whoever waits for other things too: nothing here waits.
//!
//! The same commands as [`crate::monitor`], for a machine whose memory is its own: then the state that QEMU writes has the
//! memory in it, and a machine that goes on from it shares nothing with another.
//!
//! **Invariant:** a talk is over at its deadline; a line of the monitor is at most [`LINE_BYTES_MAX`].

use std::{
    collections::VecDeque,
    io::{self, IoSlice, Read as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use crate::monitor::{LINE_BYTES_MAX, MonitorError};

/// Bytes of one read.
const READ_BYTES: usize = 16 << 10;

/// What is to come next.
#[derive(Debug)]
enum Step {
    /// QEMU's first line.
    Greeting,
    /// A command, with a descriptor that goes along; `is_sent` once it was.
    Ask { command: &'static str, arguments: Value, fd: Option<OwnedFd>, is_sent: bool },
    /// The end of saving or restoring.
    Migrated,
    /// Why that failed was asked for.
    Reason,
}

/// A talk with QEMU: commands that are said one after the other.
#[derive(Debug)]
pub struct Talk {
    socket: UnixStream,
    came: Vec<u8>,
    steps: VecDeque<Step>,
    deadline: Option<Instant>,
}

impl Talk {
    /// Greets QEMU at the other end, once [`Talk::turn`] is called.
    ///
    /// # Errors
    /// The socket's.
    pub fn open(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let capabilities = json!([
            { "capability": "x-ignore-shared", "state": true },
            { "capability": "events", "state": true },
        ]);
        let mut talk = Self { socket, came: Vec::new(), steps: VecDeque::from([Step::Greeting]), deadline: None };
        talk.ask("qmp_capabilities", json!({}), None);
        talk.ask("migrate-set-capabilities", json!({ "capabilities": capabilities }), None);
        Ok(talk)
    }

    /// Stops the machine and writes it to a pipe or file; it stands still afterwards.
    pub fn save(&mut self, to: OwnedFd, limit: Duration) {
        self.ask("stop", json!({}), None);
        // as fast as it goes, in bytes a second
        self.ask("migrate-set-parameters", json!({ "max-bandwidth": 1u64 << 40 }), None);
        self.ask("getfd", json!({ "fdname": "state" }), Some(to));
        self.ask("migrate", json!({ "uri": "fd:state" }), None);
        self.steps.push_back(Step::Migrated);
        self.deadline = Some(Instant::now() + limit);
    }

    /// Reads a saved machine into one that waits for it ([`crate::MachineSpec::is_restored`]), and lets it run.
    pub fn restore(&mut self, from: OwnedFd, limit: Duration) {
        self.ask("getfd", json!({ "fdname": "state" }), Some(from));
        self.ask("migrate-incoming", json!({ "uri": "fd:state" }), None);
        self.steps.push_back(Step::Migrated);
        self.go_on(limit);
    }

    /// Lets a stopped machine run.
    pub fn go_on(&mut self, limit: Duration) {
        self.ask("cont", json!({}), None);
        self.deadline = Some(Instant::now() + limit);
    }

    /// Until when it is to be over.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.steps.is_empty())
    }

    /// It has something to say that waits for nothing but [`Talk::turn`].
    #[must_use]
    pub fn has_to_say(&self) -> bool {
        matches!(self.steps.front(), Some(Step::Ask { is_sent: false, .. }))
    }

    /// Says and hears what it can; `true` when all was done.
    ///
    /// # Errors
    /// [`MonitorError`]; what was still to be said is dropped, and other things may be asked for.
    pub fn turn(&mut self) -> Result<bool, MonitorError> {
        let turned = self.turn_or_fail();
        if turned.is_err() {
            self.steps.clear();
        }
        turned
    }

    fn turn_or_fail(&mut self) -> Result<bool, MonitorError> {
        loop {
            self.say()?;
            if self.steps.is_empty() {
                return Ok(true);
            }
            let Some(line) = self.line()? else {
                return match self.deadline {
                    Some(deadline) if Instant::now() >= deadline => {
                        Err(io::Error::new(io::ErrorKind::TimedOut, "it did not do in time as it was told").into())
                    }
                    _ => Ok(false),
                };
            };
            self.hear(line)?;
        }
    }

    fn ask(&mut self, command: &'static str, arguments: Value, fd: Option<OwnedFd>) {
        self.steps.push_back(Step::Ask { command, arguments, fd, is_sent: false });
    }

    /// Says the next command, if it is time for it.
    fn say(&mut self) -> Result<(), MonitorError> {
        let Some(Step::Ask { command, arguments, fd, is_sent: is_sent @ false }) = self.steps.front_mut() else {
            return Ok(());
        };
        let bytes = format!("{}\n", json!({ "execute": command, "arguments": arguments })).into_bytes();
        // ours is closed with that
        let fd = fd.take();
        let rights: Vec<_> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
        let control = [ControlMessage::ScmRights(&rights)];
        let control = if rights.is_empty() { &control[..0] } else { &control[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None);
        if sent.map_err(io::Error::from)? < bytes.len() {
            // a line is short, and one is on its way at a time
            return Err(io::Error::new(io::ErrorKind::WriteZero, "it does not read").into());
        }
        *is_sent = true;
        Ok(())
    }

    fn line(&mut self) -> Result<Option<Value>, MonitorError> {
        loop {
            if let Some(at) = self.came.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.came.drain(..=at).collect();
                let text = String::from_utf8_lossy(&line);
                return serde_json::from_str(&text).map(Some).map_err(|_| MonitorError::Unexpected(text.into_owned()));
            }
            if self.came.len() as u64 > LINE_BYTES_MAX {
                return Err(MonitorError::Unexpected("a line without an end".to_owned()));
            }
            let mut buffer = [0; READ_BYTES];
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "QEMU has ended").into()),
                Ok(count) => self.came.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn hear(&mut self, line: Value) -> Result<(), MonitorError> {
        let is_done = match self.steps.front() {
            None => false,
            Some(Step::Greeting) if line.get("QMP").is_none() => {
                return Err(MonitorError::Unexpected(line.to_string()));
            }
            Some(Step::Greeting) => true,
            Some(Step::Ask { command, .. }) => {
                if let Some(reason) = line["error"]["desc"].as_str() {
                    return Err(MonitorError::Refused { command, reason: reason.to_owned() });
                }
                // else an event of something else
                line.get("return").is_some()
            }
            Some(Step::Migrated) => match line["data"]["status"].as_str().filter(|_| line["event"] == "MIGRATION") {
                Some("failed" | "cancelled") => {
                    self.steps.clear();
                    self.ask("query-migrate", json!({}), None);
                    self.say()?;
                    self.steps = VecDeque::from([Step::Reason]);
                    false
                }
                status => status == Some("completed"),
            },
            Some(Step::Reason) if line.get("return").is_none() && line.get("error").is_none() => false,
            Some(Step::Reason) => {
                let reason = line["return"]["error-desc"].as_str().unwrap_or("QEMU gives no reason");
                return Err(MonitorError::Migration(reason.to_owned()));
            }
        };
        if is_done {
            self.steps.pop_front();
        }
        Ok(())
    }
}

impl AsFd for Talk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const GREETED: &str = "{\"QMP\":{}}\n{\"return\":{}}\n{\"return\":{}}\n";

    /// A talk whose other end has said `lines` already.
    fn opened(lines: &str) -> (Talk, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(format!("{GREETED}{lines}").as_bytes()).unwrap();
        (Talk::open(ours).unwrap(), theirs)
    }

    fn told(status: &str) -> String {
        format!("{{\"event\":\"MIGRATION\",\"data\":{{\"status\":\"{status}\"}}}}\n")
    }

    fn file() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn commands_are_said_one_after_the_other() {
        let ok = "{\"event\":\"STOP\"}\n{\"return\":{}}\n";
        let (mut talk, mut theirs) = opened(&format!("{ok}{ok}{ok}"));
        talk.save(file(), LIMIT);
        assert!(!talk.turn().unwrap(), "QEMU has not answered to the last one");
        assert!(talk.deadline().is_some());
        theirs.write_all(format!("{ok}{}{}", told("setup"), told("completed")).as_bytes()).unwrap();
        assert!(talk.turn().unwrap());
        assert_eq!(talk.deadline(), None);
        talk.go_on(LIMIT);
        assert!(talk.has_to_say());
        assert!(!talk.turn().unwrap() && !talk.has_to_say());
        theirs.write_all(b"{\"return\":{}}\n").unwrap();
        assert!(talk.turn().unwrap());
        theirs.set_nonblocking(true).unwrap();
        let mut said = Vec::new();
        // a descriptor that came along ends a read
        assert_eq!(theirs.read_to_end(&mut said).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let said = String::from_utf8_lossy(&said);
        let commands: Vec<_> = { said.lines() }
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["execute"].as_str().unwrap().to_owned())
            .collect();
        let expected = "qmp_capabilities migrate-set-capabilities stop migrate-set-parameters getfd migrate cont";
        assert_eq!(commands.join(" "), expected);
    }

    #[test]
    fn what_goes_wrong_is_said() {
        let ok = "{\"return\":{}}\n";
        let (mut talk, theirs) =
            opened(&format!("{ok}{ok}{}{{\"return\":{{\"error-desc\":\"no such thing\"}}}}\n", told("failed")));
        talk.restore(file(), LIMIT);
        assert_eq!(talk.turn().unwrap_err().to_string(), "the machine could not be saved or restored: no such thing");
        talk.go_on(LIMIT);
        assert!(!talk.turn().unwrap(), "it can be told something else");
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(talk.turn().unwrap_err().to_string(), "QEMU's monitor: QEMU has ended");
        let (mut talk, _theirs) = opened("{\"error\":{\"class\":\"x\",\"desc\":\"not now\"}}\n");
        talk.go_on(LIMIT);
        assert_eq!(talk.turn().unwrap_err().to_string(), "QEMU refused `cont`: not now");
        let (mut talk, _theirs) = opened("");
        talk.go_on(Duration::ZERO);
        let silent = talk.turn().unwrap_err().to_string();
        assert_eq!(silent, "QEMU's monitor: it did not do in time as it was told");
        let (mut talk, mut theirs) = opened("what\n");
        talk.go_on(LIMIT);
        assert!(matches!(talk.turn(), Err(MonitorError::Unexpected(_))));
        theirs.write_all(b"x").unwrap();
    }
}
