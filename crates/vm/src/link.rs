//! The host's end of an agent's port, without any IO: bytes in, events out, bytes to be sent.
//!
//! Whoever holds the socket reads what comes into [`Link::receive`], acts on the events, and writes [`Link::outgoing`].
//! The link keeps the windows of all streams and refuses what a good agent never sends.
//!
//! **Invariant:** the guest cannot make the host hold more than a window per stream, nor an answer queue that grows.

use std::collections::BTreeMap;

use crate::wire::{
    Bytes, CHUNK_BYTES_MAX, Decoder, EXECS_MAX, Exec, FromGuest, PROGRAM, Process, Run, Stream, Terminal, ToGuest,
    VERSION, WINDOW_BYTES, WireError, encode,
};

/// Credits are not sent while so much else waits: a guest that does not read gets none.
const CREDIT_BELOW_BYTES: usize = 64 << 10;

/// Longest line or reason of a guest that is passed on, bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// Why a link is over: the machine must be ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// What came is no frame.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The agent is of another version.
    #[error(
        "the guest's agent speaks version {found}, this program {VERSION}; build the guest anew with `cove image build-vm-guest`"
    )]
    Version {
        /// What it said.
        found: u32,
    },
    /// A frame that a good agent does not send.
    #[error("the guest's agent broke its protocol: {0}")]
    Broken(&'static str),
}

/// What happened in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// The agent is up and waits for [`Link::run`].
    Up,
    /// A process runs.
    Started {
        /// Its number.
        id: u32,
    },
    /// A process could not be run; its number is free again.
    Failed {
        /// Its number.
        id: u32,
        /// In words.
        reason: String,
    },
    /// Output; say [`Link::taken`] once it is passed on.
    Output {
        /// Number of the process.
        id: u32,
        /// Which stream.
        stream: Stream,
        /// What.
        bytes: Vec<u8>,
    },
    /// A command's standard input was taken: [`Link::stdin_room`] is larger.
    Writable {
        /// Number of the command.
        id: u32,
    },
    /// The program accepts connections.
    Listening {
        /// The port.
        port: u16,
    },
    /// A process ended; all its output came before.
    Exited {
        /// Its number; it is free again.
        id: u32,
        /// Exit code; 128 + signal when killed.
        code: i32,
    },
    /// Answer to [`Link::ping`].
    Pong {
        /// As it was sent.
        token: u64,
    },
    /// The agent holds still: the machine may be saved.
    Quiet,
    /// A line for the system's log.
    Note {
        /// The line.
        text: String,
    },
}

/// What is under way of one process.
#[derive(Debug, Default)]
struct Windows {
    /// Output that came and was not given back, by stream.
    held: [usize; 2],
    /// Output that was passed on and is to be given back.
    owed: [usize; 2],
    /// Standard input that was sent and not taken.
    sent: usize,
    is_stdin_over: bool,
}

/// The host's end of an agent's port.
#[derive(Debug, Default)]
pub struct Link {
    decoder: Decoder,
    out: Vec<u8>,
    is_up: bool,
    is_copy: bool,
    processes: BTreeMap<u32, Windows>,
    next_id: u32,
}

fn index(stream: Stream) -> usize {
    usize::from(stream == Stream::Err)
}

impl Link {
    /// To a machine that boots.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// To a machine that goes on from a snapshot: its program runs, and [`Link::resume`] must be said first.
    #[must_use]
    pub fn to_restored() -> Self {
        let program = Windows { is_stdin_over: true, ..Windows::default() };
        Self { is_up: true, is_copy: true, processes: BTreeMap::from([(PROGRAM, program)]), ..Self::default() }
    }

    /// The agent said that it is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.is_up
    }

    /// Bytes that came from the port.
    ///
    /// # Errors
    /// [`LinkError`]: the link is over.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Vec<LinkEvent>, LinkError> {
        self.decoder.push(bytes);
        let mut events = Vec::new();
        while let Some(frame) = self.decoder.take::<FromGuest>()? {
            events.push(self.take(frame)?);
        }
        Ok(events)
    }

    fn take(&mut self, frame: FromGuest) -> Result<LinkEvent, LinkError> {
        if let FromGuest::Hello { version } = frame {
            if version != VERSION {
                return Err(LinkError::Version { found: version });
            }
            if std::mem::replace(&mut self.is_up, true) {
                return Err(LinkError::Broken("it said twice that it is up"));
            }
            return Ok(LinkEvent::Up);
        }
        if !self.is_up {
            return Err(LinkError::Broken("it spoke before it said that it is up"));
        }
        Ok(match frame {
            FromGuest::Hello { .. } => unreachable!("it was answered above"),
            FromGuest::Started { id } => {
                self.process(id)?;
                LinkEvent::Started { id }
            }
            FromGuest::Failed { id, reason } => {
                self.end(id)?;
                LinkEvent::Failed { id, reason: shortened(reason) }
            }
            FromGuest::Output { id, stream, bytes: Bytes(bytes) } => {
                let held = &mut self.process(id)?.held[index(stream)];
                *held += bytes.len();
                if bytes.len() > CHUNK_BYTES_MAX || *held > WINDOW_BYTES {
                    return Err(LinkError::Broken("it sent more output than it may"));
                }
                LinkEvent::Output { id, stream, bytes }
            }
            FromGuest::StdinTaken { id, bytes } => {
                // what ended is no longer of interest
                if let Some(windows) = self.processes.get_mut(&id) {
                    let left = windows.sent.checked_sub(bytes as usize);
                    windows.sent = left.ok_or(LinkError::Broken("it took more input than there was"))?;
                }
                LinkEvent::Writable { id }
            }
            FromGuest::Listening { port } => LinkEvent::Listening { port },
            FromGuest::Exited { id, code } => {
                self.end(id)?;
                LinkEvent::Exited { id, code }
            }
            FromGuest::Pong { token } => LinkEvent::Pong { token },
            FromGuest::Quiet {} => LinkEvent::Quiet,
            FromGuest::Note { text } => LinkEvent::Note { text: shortened(text) },
        })
    }

    fn process(&mut self, id: u32) -> Result<&mut Windows, LinkError> {
        self.processes.get_mut(&id).ok_or(LinkError::Broken("it spoke of a process that there is not"))
    }

    fn end(&mut self, id: u32) -> Result<(), LinkError> {
        self.process(id)?;
        self.processes.remove(&id);
        Ok(())
    }

    /// Starts the program; once, after [`LinkEvent::Up`].
    pub fn run(&mut self, run: Run) {
        self.processes.insert(PROGRAM, Windows { is_stdin_over: true, ..Windows::default() });
        self.send(&ToGuest::Run { run: Box::new(run) });
    }

    /// Runs a command and gives its number; `None` while [`EXECS_MAX`] run.
    pub fn exec(&mut self, process: Process, terminal: Option<Terminal>) -> Option<u32> {
        if self.processes.len() > EXECS_MAX {
            return None;
        }
        let id = loop {
            self.next_id = self.next_id.wrapping_add(1);
            if self.next_id != PROGRAM && !self.processes.contains_key(&self.next_id) {
                break self.next_id;
            }
        };
        self.processes.insert(id, Windows::default());
        self.send(&ToGuest::Exec { exec: Box::new(Exec { id, process, terminal }) });
        Some(id)
    }

    /// How many bytes of standard input a command takes now.
    #[must_use]
    pub fn stdin_room(&self, id: u32) -> usize {
        let windows = self.processes.get(&id).filter(|windows| !windows.is_stdin_over);
        windows.map_or(0, |windows| WINDOW_BYTES - windows.sent)
    }

    /// Sends standard input, as much as there is room for; says how much that was.
    pub fn stdin(&mut self, id: u32, bytes: &[u8]) -> usize {
        let taken = &bytes[..bytes.len().min(self.stdin_room(id))];
        for chunk in taken.chunks(CHUNK_BYTES_MAX) {
            self.send(&ToGuest::Stdin { id, bytes: Bytes(chunk.to_vec()) });
        }
        if let Some(windows) = self.processes.get_mut(&id) {
            windows.sent += taken.len();
        }
        taken.len()
    }

    /// Ends standard input.
    pub fn stdin_end(&mut self, id: u32) {
        if let Some(windows) = self.processes.get_mut(&id)
            && !std::mem::replace(&mut windows.is_stdin_over, true)
        {
            self.send(&ToGuest::StdinEnd { id });
        }
    }

    /// Output was passed on, so that as much again may come.
    pub fn taken(&mut self, id: u32, stream: Stream, bytes: usize) {
        if let Some(windows) = self.processes.get_mut(&id) {
            windows.owed[index(stream)] += bytes;
        }
    }

    /// The terminal of a command has another size.
    pub fn resize(&mut self, id: u32, terminal: Terminal) {
        self.send_to(id, &ToGuest::Resize { id, terminal });
    }

    /// Sends a signal to a process and its group.
    pub fn signal(&mut self, id: u32, signal: i32) {
        self.send_to(id, &ToGuest::Signal { id, signal });
    }

    /// Sets the clock and mixes in random bytes, after the machine stood still.
    pub fn refresh(&mut self, clock_unix_ns: u64, entropy: Vec<u8>) {
        self.send(&ToGuest::Refresh { clock_unix_ns, entropy: Bytes(entropy) });
    }

    /// Asks whether the agent is there.
    pub fn ping(&mut self, token: u64) {
        self.send(&ToGuest::Ping { token });
    }

    /// Asks the agent to hold still; [`LinkEvent::Quiet`] says that it does.
    pub fn quiesce(&mut self) {
        self.send(&ToGuest::Quiesce {});
    }

    /// Lets the agent go on after [`LinkEvent::Quiet`], in the same machine or in a copy: all windows are new.
    /// A copy tells again that its program runs and where it listens. `hosts` is the content of `/etc/hosts`, empty to
    /// leave it.
    pub fn resume(&mut self, clock_unix_ns: u64, entropy: Vec<u8>, hostname: String, hosts: String) {
        for windows in self.processes.values_mut() {
            *windows = Windows { is_stdin_over: windows.is_stdin_over, ..Windows::default() };
        }
        let is_copy = std::mem::take(&mut self.is_copy);
        self.send(&ToGuest::Resume { clock_unix_ns, entropy: Bytes(entropy), hostname, hosts, is_copy });
    }

    /// Bytes to be written to the port now; [`Link::sent`] says how many were.
    pub fn outgoing(&mut self) -> &[u8] {
        if self.out.len() < CREDIT_BELOW_BYTES {
            let mut out = std::mem::take(&mut self.out);
            for (&id, windows) in &mut self.processes {
                for stream in [Stream::Out, Stream::Err] {
                    let owed = std::mem::take(&mut windows.owed[index(stream)]);
                    // never more than came: a credit is not a gift
                    let bytes = owed.min(windows.held[index(stream)]);
                    windows.held[index(stream)] -= bytes;
                    if bytes > 0 {
                        let bytes = u32::try_from(bytes).expect("a window is small");
                        encode(&ToGuest::Credit { id, stream, bytes }, &mut out);
                    }
                }
            }
            self.out = out;
        }
        &self.out
    }

    /// So many bytes of [`Link::outgoing`] were written.
    pub fn sent(&mut self, bytes: usize) {
        self.out.drain(..bytes.min(self.out.len()));
    }

    fn send_to(&mut self, id: u32, frame: &ToGuest) {
        if self.processes.contains_key(&id) {
            self.send(frame);
        }
    }

    fn send(&mut self, frame: &ToGuest) {
        encode(frame, &mut self.out);
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text.replace(|character: char| character.is_control(), " ")
}

#[cfg(test)]
mod tests;
