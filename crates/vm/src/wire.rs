//! What the host and the agent in the guest say to each other over one virtio-serial port: frames and their bytes.
//!
//! A frame is its length (4 bytes), its kind (1 byte) and its fields in order, all numbers little-endian. The file uses
//! nothing but the standard library, since the agent is compiled from it as well, alone and static ([`crate::AGENT`]).
//!
//! Flow: each stream of bytes has a window. Whoever sends bytes may have [`WINDOW_BYTES`] under way; the receiver gives
//! them back with [`ToGuest::Credit`] or [`FromGuest::StdinTaken`] once it has passed them on. So a program that floods
//! its output waits in its own time, and orders pass by it.
//!
//! **Invariant:** a frame is at most [`FRAME_BYTES_MAX`], of bytes of a stream at most [`CHUNK_BYTES_MAX`]; what says
//! otherwise, or has bytes left over, is an error and never a guess. The guest is not trusted.

/// Version of this protocol; the agent says its own in [`FromGuest::Hello`].
pub const VERSION: u32 = 1;

/// Longest frame, bytes, without its length.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// Most bytes of a stream in one frame.
pub const CHUNK_BYTES_MAX: usize = 16 << 10;

/// Bytes of one stream that may be under way.
pub const WINDOW_BYTES: usize = 64 << 10;

/// Number of the program that [`ToGuest::Run`] starts; commands have others.
pub const PROGRAM: u32 = 0;

/// Most commands at a time.
pub const EXECS_MAX: usize = 64;

/// Name of the virtio-serial port.
pub const PORT_NAME: &str = "cove.agent";

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WireError {
    /// The length is above [`FRAME_BYTES_MAX`].
    TooLong(usize),
    /// No frame has this kind.
    Kind(u8),
    /// It ends too early, goes on after its end, or a value in it is none.
    Malformed(&'static str),
}

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong(bytes) => write!(f, "a frame of {bytes} bytes is longer than {FRAME_BYTES_MAX}"),
            Self::Kind(kind) => write!(f, "no frame has the kind {kind}"),
            Self::Malformed(what) => write!(f, "a frame is malformed: {what}"),
        }
    }
}

impl std::error::Error for WireError {}

/// A value in a frame.
trait Field: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(input: &mut &[u8]) -> Result<Self, WireError>;
}

fn split<'a>(input: &mut &'a [u8], length: usize) -> Result<&'a [u8], WireError> {
    let (head, rest) = input.split_at_checked(length).ok_or(WireError::Malformed("it ends within a value"))?;
    *input = rest;
    Ok(head)
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Field for $number {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(input: &mut &[u8]) -> Result<Self, WireError> {
                let bytes = split(input, size_of::<Self>())?;
                Ok(Self::from_le_bytes(bytes.try_into().expect("it was split at this length")))
            }
        }
    )*};
}
numbers!(u8, u16, u32, u64, i32);

impl Field for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(input: &mut &[u8]) -> Result<Self, WireError> {
        match u8::take(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Malformed("a yes or no that is neither")),
        }
    }
}

/// Bytes as they are; apart from `Vec<u8>` so that lists need no exception.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Field for Bytes {
    fn put(&self, out: &mut Vec<u8>) {
        count(self.0.len(), out);
        out.extend_from_slice(&self.0);
    }
    fn take(input: &mut &[u8]) -> Result<Self, WireError> {
        let length = u32::take(input)? as usize;
        Ok(Self(split(input, length)?.to_vec()))
    }
}

fn count(length: usize, out: &mut Vec<u8>) {
    u32::try_from(length).unwrap_or(u32::MAX).put(out);
}

impl Field for String {
    fn put(&self, out: &mut Vec<u8>) {
        count(self.len(), out);
        out.extend_from_slice(self.as_bytes());
    }
    fn take(input: &mut &[u8]) -> Result<Self, WireError> {
        let bytes = Bytes::take(input)?.0;
        Self::from_utf8(bytes).map_err(|_| WireError::Malformed("a text that is not UTF-8"))
    }
}

impl<T: Field> Field for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        count(self.len(), out);
        for item in self {
            item.put(out);
        }
    }
    fn take(input: &mut &[u8]) -> Result<Self, WireError> {
        let length = u32::take(input)? as usize;
        // every item has at least one byte, so a false length cannot reserve memory
        if length > input.len() {
            return Err(WireError::Malformed("a list that is longer than its frame"));
        }
        (0..length).map(|_| T::take(input)).collect()
    }
}

impl<T: Field> Field for Box<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (**self).put(out);
    }
    fn take(input: &mut &[u8]) -> Result<Self, WireError> {
        T::take(input).map(Self::new)
    }
}

impl<T: Field> Field for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(input: &mut &[u8]) -> Result<Self, WireError> {
        if bool::take(input)? { T::take(input).map(Some) } else { Ok(None) }
    }
}

macro_rules! record {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $kind,)* }

        impl Field for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }
            fn take(input: &mut &[u8]) -> Result<Self, WireError> {
                Ok(Self { $($field: Field::take(input)?,)* })
            }
        }
    };
}

record! {
    /// A program, as whom and where it runs.
    Process {
        /// Program and arguments, not empty; looked for in `PATH` of `env`.
        args: Vec<String>,
        /// `NAME=value`; all that the program gets.
        env: Vec<String>,
        /// Absolute working directory; empty for `/`. Made when it is missing.
        cwd: String,
        /// `user[:group]` as the image names it, looked up in the image's files; empty for root.
        user: String,
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // arguments and environment hold secrets
        f.debug_struct("Process").field("cwd", &self.cwd).field("user", &self.user).finish_non_exhaustive()
    }
}

record! {
    /// A file to be written before the program starts, mode 0444 unless said otherwise; missing folders are made.
    File {
        /// Absolute path.
        path: String,
        /// Its permissions.
        mode: u32,
        /// Its content.
        content: Bytes,
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("path", &self.path).finish_non_exhaustive()
    }
}

record! {
    /// The one program of a machine and all around it.
    Run {
        /// What runs.
        process: Process,
        /// Name of the machine.
        hostname: String,
        /// Content of `/etc/hosts`.
        hosts: String,
        /// Content of `/etc/resolv.conf`.
        resolv_conf: String,
        /// Further files: secrets, certificates. All frames of them count to [`FRAME_BYTES_MAX`].
        files: Vec<File>,
        /// Folders that are emptied memory of their own (mode 0777), each with `disk_bytes` at most.
        empty_dirs: Vec<String>,
        /// Bytes that may be written to the root file system; they lie in the machine's memory.
        disk_bytes: u64,
        /// Time, nanoseconds since 1970.
        clock_unix_ns: u64,
        /// Seeds the kernel's random numbers; 32 bytes or more.
        entropy: Bytes,
        /// Ports whose listening is told by [`FromGuest::Listening`].
        ports: Vec<u16>,
        /// Processes and threads at most; 0 for the kernel's own limit.
        tasks_max: u32,
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("process", &self.process).field("ports", &self.ports).finish_non_exhaustive()
    }
}

record! {
    /// A command beside the program.
    #[derive(Debug)]
    Exec {
        /// Its number, not [`PROGRAM`] and not in use.
        id: u32,
        /// What runs; an empty `env`, `cwd` or `user` is the program's.
        process: Process,
        /// Columns and rows of its terminal; without, it has pipes.
        terminal: Option<Terminal>,
    }
}

record! {
    /// Size of a terminal.
    #[derive(Debug, Copy)]
    Terminal {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    }
}

/// Which stream of a process. A terminal has only [`Stream::Out`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Field for Stream {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self == Self::Err));
    }
    fn take(input: &mut &[u8]) -> Result<Self, WireError> {
        Ok(if bool::take(input)? { Self::Err } else { Self::Out })
    }
}

macro_rules! frames {
    ($(#[$meta:meta])* $name:ident {
        $($(#[$kind_meta:meta])* $number:literal $kind:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* },)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$kind_meta])* $kind { $($(#[$field_meta])* $field: $type,)* },)* }

        impl Frame for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self { $(Self::$kind { $($field,)* } => {
                    out.push($number);
                    $($field.put(out);)*
                })* }
            }
            fn take(input: &mut &[u8]) -> Result<Self, WireError> {
                match u8::take(input)? {
                    $($number => Ok(Self::$kind { $($field: Field::take(input)?,)* }),)*
                    other => Err(WireError::Kind(other)),
                }
            }
        }
    };
}

/// Something that is sent as a whole.
pub trait Frame: Sized {
    /// Appends kind and fields.
    fn put(&self, out: &mut Vec<u8>);

    /// Takes kind and fields off the front.
    ///
    /// # Errors
    /// [`WireError`], when they are none.
    fn take(input: &mut &[u8]) -> Result<Self, WireError>;
}

frames! {
    /// From the host to the guest.
    ToGuest {
        /// Start the program; once, after [`FromGuest::Hello`].
        1 Run {
            /// All that it needs.
            run: Box<Run>,
        },
        /// Run a command beside it.
        2 Exec {
            /// What.
            exec: Box<Exec>,
        },
        /// Bytes for the standard input of a command.
        3 Stdin {
            /// Number of the command.
            id: u32,
            /// At most [`CHUNK_BYTES_MAX`], and within the window.
            bytes: Bytes,
        },
        /// The end of its standard input. On a terminal it is told as its user would, by the end-of-file character.
        4 StdinEnd {
            /// Number of the command.
            id: u32,
        },
        /// Output was passed on: as much again may come.
        5 Credit {
            /// Number of the process.
            id: u32,
            /// Which stream.
            stream: Stream,
            /// How much.
            bytes: u32,
        },
        /// The terminal of a command has another size.
        6 Resize {
            /// Number of the command.
            id: u32,
            /// The size.
            terminal: Terminal,
        },
        /// A signal for a process and its group.
        7 Signal {
            /// Number of the process.
            id: u32,
            /// Number of the signal.
            signal: i32,
        },
        /// Set the clock and mix in random bytes: after the machine stood still.
        8 Refresh {
            /// Time, nanoseconds since 1970.
            clock_unix_ns: u64,
            /// Random bytes; may be empty.
            entropy: Bytes,
        },
        /// Say that you are there.
        9 Ping {
            /// Comes back.
            token: u64,
        },
        /// Send nothing more after [`FromGuest::Quiet`], until [`ToGuest::Resume`]: the machine is about to be saved.
        10 Quiesce {},
        /// Go on, in a machine that was saved or is a copy of one: all windows are new, clock and random numbers are set.
        11 Resume {
            /// Time, nanoseconds since 1970.
            clock_unix_ns: u64,
            /// Random bytes, 32 or more: copies must not draw the same numbers.
            entropy: Bytes,
            /// Name of the machine.
            hostname: String,
            /// Content of `/etc/hosts`; empty to leave it.
            hosts: String,
            /// It is a copy: commands that ran beside the program are ended without a word; that the program runs and
            /// where it listens is told once more.
            is_copy: bool,
        },
    }
}

frames! {
    /// From the guest to the host. Not trusted: a program that is root in its guest can send what it likes.
    FromGuest {
        /// The agent is up: once, first.
        1 Hello {
            /// Its [`VERSION`].
            version: u32,
        },
        /// A process runs.
        2 Started {
            /// Number of the process.
            id: u32,
        },
        /// A process could not be run; that is the last of it.
        3 Failed {
            /// Number of the process.
            id: u32,
            /// In words.
            reason: String,
        },
        /// Bytes of a stream.
        4 Output {
            /// Number of the process.
            id: u32,
            /// Which stream.
            stream: Stream,
            /// At most [`CHUNK_BYTES_MAX`].
            bytes: Bytes,
        },
        /// Standard input was passed on: as much again may come.
        5 StdinTaken {
            /// Number of the command.
            id: u32,
            /// How much.
            bytes: u32,
        },
        /// Something accepts connections at a port of [`Run::ports`] that did not before.
        6 Listening {
            /// The port.
            port: u16,
        },
        /// A process ended and all its output was sent; that is the last of it.
        7 Exited {
            /// Number of the process.
            id: u32,
            /// Exit code; 128 + signal when killed.
            code: i32,
        },
        /// Answer to [`ToGuest::Ping`].
        8 Pong {
            /// As it came.
            token: u64,
        },
        /// Answer to [`ToGuest::Quiesce`].
        9 Quiet {},
        /// Something in the guest that is worth a line of the system's log, as the kernel's end of a process for memory.
        10 Note {
            /// One line.
            text: String,
        },
    }
}

/// Appends a frame with its length.
pub fn encode(frame: &impl Frame, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    frame.put(out);
    let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

/// Takes frames off a stream of bytes that come in any pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    read: usize,
}

impl Decoder {
    /// More bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.read > 0 {
            self.bytes.drain(..self.read);
            self.read = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame, `None` until all of it is there. Call it until then after every [`Decoder::push`].
    ///
    /// # Errors
    /// [`WireError`]; the stream cannot be read any further.
    pub fn take<T: Frame>(&mut self) -> Result<Option<T>, WireError> {
        let waiting = &self.bytes[self.read..];
        let Some((head, rest)) = waiting.split_at_checked(4) else { return Ok(None) };
        let length = u32::from_le_bytes(head.try_into().expect("it was split at four")) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(WireError::TooLong(length));
        }
        let Some(mut body) = rest.get(..length) else { return Ok(None) };
        let frame = T::take(&mut body)?;
        if !body.is_empty() {
            return Err(WireError::Malformed("it goes on after its end"));
        }
        self.read += 4 + length;
        Ok(Some(frame))
    }
}
