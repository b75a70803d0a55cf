//! The sample over HTTP/2 without TLS (h2c, prior knowledge), which is how an app with `transport: http2` is asked: a few of
//! its pages, and gRPC.
//!
//! gRPC: `/sample.Sample/Echo` sends every message back as it arrives (unary and streams); `/sample.Sample/Count` takes
//! `{1: n, 2: ms}` and answers with the messages `{1: 1}` to `{1: n}`, `ms` milliseconds apart;
//! `/grpc.health.v1.Health/Check` says SERVING.
//!
//! One thread reads a connection and answers what it can at once; a stream that counts has a thread of its own. What a
//! peer's windows do not let out waits, and a peer gets no more window before it was sent: so what waits is bounded.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::hpack::{self, Decoder};
use crate::{Open, STACK_BYTES, bad, page};

/// What a client of prior knowledge begins with.
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// Largest frame either side sends; the protocol's default.
const FRAME_MAX: usize = 16 * 1024;
/// Streams of one connection at once; more are refused.
const STREAMS_MAX: usize = 256;
/// Longest header block in bytes.
const BLOCK_MAX: usize = 64 * 1024;
/// A counting stream waits while so much of it is not sent, in bytes.
const PENDING_MAX: usize = 64 * 1024;
/// Longest a counting stream waits for its client to read on.
const STALL_MAX: Duration = Duration::from_secs(60);
const WINDOW_DEFAULT: i64 = 65_535;

/// What is written: shared by the reader and the threads that count.
struct Output {
    stream: Arc<TcpStream>,
    window: i64,
    /// Window of new streams.
    window_initial: i64,
    streams: BTreeMap<u32, Outgoing>,
}

/// The answer of one stream.
struct Outgoing {
    window: i64,
    pending: Vec<u8>,
    /// Header block behind the last byte, once there is no more to come; empty: the last byte ends the stream.
    end: Option<Vec<u8>>,
    /// Bytes that the client is given back when they are sent.
    owed: bool,
    _open: Open,
}

struct Shared {
    output: Mutex<Output>,
    /// Something was sent or a stream ended.
    moved: Condvar,
}

/// What a stream's request is, until it has ended.
struct Incoming {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    kind: Kind,
    body: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Bytes go back as they come.
    Echo,
    /// Answered when the request has ended.
    Whole,
}

/// Serves a connection whose preface was read.
pub(crate) fn serve(stream: &Arc<TcpStream>, reader: &mut impl BufRead) -> io::Result<()> {
    let output = Output {
        stream: Arc::clone(stream),
        window: WINDOW_DEFAULT,
        window_initial: WINDOW_DEFAULT,
        streams: BTreeMap::new(),
    };
    let shared = Arc::new(Shared { output: Mutex::new(output), moved: Condvar::new() });
    let mut settings = Vec::new();
    settings.extend_from_slice(&3_u16.to_be_bytes());
    settings.extend_from_slice(&(STREAMS_MAX as u32).to_be_bytes());
    shared.lock().frame(SETTINGS, 0, 0, &settings)?;
    let mut connection =
        Connection { shared: Arc::clone(&shared), decoder: Decoder::new(), incoming: BTreeMap::new(), block: None };
    let mut payload = Vec::new();
    let done = loop {
        let mut head = [0; 9];
        if reader.fill_buf()?.is_empty() {
            break Ok(());
        }
        reader.read_exact(&mut head)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if length > FRAME_MAX {
            break connection.end(6);
        }
        payload.resize(length, 0);
        reader.read_exact(&mut payload)?;
        let id = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        match connection.frame(head[3], head[4], id, &payload) {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => break connection.end(1),
            Err(error) => break Err(error),
        }
    };
    shared.lock().streams.clear();
    shared.moved.notify_all();
    done
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Connection {
    shared: Arc<Shared>,
    decoder: Decoder,
    incoming: BTreeMap<u32, Incoming>,
    /// A header block that goes on: its stream, its flags, its bytes.
    block: Option<(u32, u8, Vec<u8>)>,
}

impl Connection {
    /// Says why the connection ends here.
    fn end(&self, code: u32) -> io::Result<()> {
        let mut payload = vec![0x7f, 0xff, 0xff, 0xff];
        payload.extend_from_slice(&code.to_be_bytes());
        self.shared.lock().frame(GOAWAY, 0, 0, &payload)
    }

    /// Takes a frame; false when the client says goodbye.
    fn frame(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) -> io::Result<bool> {
        if self.block.is_some() && kind != CONTINUATION {
            return Err(bad("a header block was interrupted"));
        }
        match kind {
            HEADERS => {
                let mut rest = unpadded(flags, payload)?;
                if flags & PRIORITY != 0 {
                    rest = rest.get(5..).ok_or_else(|| bad("a priority is five bytes long"))?;
                }
                self.block = Some((id, flags, rest.to_vec()));
                self.headers_end(flags)?;
            }
            CONTINUATION => {
                let Some((of, _, block)) = &mut self.block else { return Err(bad("nothing to continue")) };
                block.extend_from_slice(payload);
                if *of != id || block.len() > BLOCK_MAX {
                    return Err(bad("a header block is too long or of another stream"));
                }
                self.headers_end(flags)?;
            }
            DATA => self.data(flags, id, payload)?,
            RST_STREAM => {
                self.incoming.remove(&id);
                self.shared.lock().streams.remove(&id);
                self.shared.moved.notify_all();
            }
            SETTINGS if flags & ACK == 0 => self.settings(payload)?,
            PING if flags & ACK == 0 => self.shared.lock().frame(PING, ACK, 0, payload)?,
            WINDOW_UPDATE => {
                let four: [u8; 4] = payload.try_into().map_err(|_| bad("a window update is four bytes long"))?;
                let more = i64::from(u32::from_be_bytes(four) & 0x7fff_ffff);
                let mut output = self.shared.lock();
                if id == 0 {
                    output.window += more;
                    let ids: Vec<u32> = output.streams.keys().copied().collect();
                    ids.into_iter().try_for_each(|id| output.flush(id))?;
                } else if let Some(stream) = output.streams.get_mut(&id) {
                    stream.window += more;
                    output.flush(id)?;
                }
                drop(output);
                self.shared.moved.notify_all();
            }
            GOAWAY => return Ok(!self.shared.lock().streams.is_empty()),
            _ => {}
        }
        Ok(true)
    }

    fn settings(&mut self, payload: &[u8]) -> io::Result<()> {
        let mut output = self.shared.lock();
        for setting in payload.chunks_exact(6) {
            let value = i64::from(u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]));
            if setting[..2] == [0, 4] {
                let more = value - output.window_initial;
                output.window_initial = value;
                output.streams.values_mut().for_each(|stream| stream.window += more);
            }
        }
        output.frame(SETTINGS, ACK, 0, &[])
    }

    fn headers_end(&mut self, flags: u8) -> io::Result<()> {
        if flags & END_HEADERS == 0 {
            return Ok(());
        }
        let Some((id, flags, block)) = self.block.take() else { return Ok(()) };
        let headers = self.decoder.decode(&block).ok_or_else(|| bad("a header block does not decode"))?;
        if self.incoming.contains_key(&id) {
            // trailers
            return self.request_end(id);
        }
        let of = |name: &str| {
            headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let (method, path) = (of(":method"), of(":path"));
        let kind = match path.split('?').next().unwrap_or("") {
            "/sample.Sample/Echo" | "/echo" => Kind::Echo,
            _ => Kind::Whole,
        };
        let mut output = self.shared.lock();
        if output.streams.len() >= STREAMS_MAX {
            return output.frame(RST_STREAM, 0, id, &7_u32.to_be_bytes());
        }
        let window = output.window_initial;
        let outgoing =
            Outgoing { window, pending: Vec::new(), end: None, owed: kind == Kind::Echo, _open: Open::begin() };
        output.streams.insert(id, outgoing);
        if kind == Kind::Echo {
            let content = if path == "/echo" { of("content-type") } else { "application/grpc".to_owned() };
            let block = hpack::encode(&[(":status", "200"), ("content-type", &content)]);
            output.frame(HEADERS, END_HEADERS, id, &block)?;
        }
        drop(output);
        self.incoming.insert(id, Incoming { method, path, headers, kind, body: Vec::new() });
        if flags & END_STREAM != 0 { self.request_end(id) } else { Ok(()) }
    }

    fn data(&mut self, flags: u8, id: u32, payload: &[u8]) -> io::Result<()> {
        let bytes = unpadded(flags, payload)?;
        let mut output = self.shared.lock();
        output.grant(0, payload.len())?;
        let Some(incoming) = self.incoming.get_mut(&id) else { return Ok(()) };
        match incoming.kind {
            Kind::Echo => {
                output.grant(id, payload.len() - bytes.len())?;
                output.push(id, bytes)?;
            }
            Kind::Whole => {
                // requests that are answered as a whole are small: the rest is read away
                if incoming.body.len() + bytes.len() <= PENDING_MAX {
                    incoming.body.extend_from_slice(bytes);
                }
                output.grant(id, payload.len())?;
            }
        }
        drop(output);
        if flags & END_STREAM != 0 { self.request_end(id) } else { Ok(()) }
    }

    fn request_end(&mut self, id: u32) -> io::Result<()> {
        let Some(request) = self.incoming.remove(&id) else { return Ok(()) };
        let is_grpc =
            request.headers.iter().any(|(name, value)| name == "content-type" && value.starts_with("application/grpc"));
        let mut output = self.shared.lock();
        if request.kind == Kind::Echo {
            return output.finish(id, if is_grpc { hpack::encode(&[("grpc-status", "0")]) } else { Vec::new() });
        }
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let argument = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse::<usize>().ok())
        };
        match path {
            "/sample.Sample/Count" => {
                let block = hpack::encode(&[(":status", "200"), ("content-type", "application/grpc")]);
                output.frame(HEADERS, END_HEADERS, id, &block)?;
                drop(output);
                let (count, pause_ms) = amounts(request.body.get(5..).unwrap_or(&[]));
                let shared = Arc::clone(&self.shared);
                let counter = move || {
                    let _gone = count_up(&shared, id, count, pause_ms);
                };
                thread::Builder::new().stack_size(STACK_BYTES).spawn(counter).map(drop)
            }
            "/grpc.health.v1.Health/Check" => {
                output.answer(id, "200", "application/grpc", &[0, 0, 0, 0, 2, 8, 1], Some("0"))
            }
            _ if is_grpc => output.answer(id, "200", "application/grpc", &[], Some("12")),
            "/" => output.answer(id, "200", "text/html; charset=utf-8", page().as_bytes(), None),
            "/healthz" => output.answer(id, "200", "text/plain", b"ok\n", None),
            "/bytes" if request.method != "HEAD" => {
                let body = vec![b'x'; argument("n").unwrap_or(1024).min(64 << 20)];
                output.answer(id, "200", "application/octet-stream", &body, None)
            }
            "/headers" => {
                let lines: String = request.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
                output.answer(id, "200", "text/plain", lines.as_bytes(), None)
            }
            "/status" => {
                let code = argument("code").filter(|code| (200..600).contains(code)).unwrap_or(400);
                output.answer(id, &code.to_string(), "text/plain", b"as asked\n", None)
            }
            _ => output.answer(
                id,
                "404",
                "text/plain",
                b"not found; over HTTP/2 try / /healthz /echo /bytes /headers /status and gRPC\n",
                None,
            ),
        }
    }
}

impl Output {
    fn frame(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(payload.len() + 9);
        bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&id.to_be_bytes());
        bytes.extend_from_slice(payload);
        (&*self.stream).write_all(&bytes)
    }

    /// Lets the client send so many bytes more.
    fn grant(&mut self, id: u32, bytes: usize) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.frame(WINDOW_UPDATE, 0, id, &(bytes as u32).to_be_bytes())
    }

    /// A whole answer; of gRPC with its status.
    fn answer(&mut self, id: u32, status: &str, kind: &str, body: &[u8], grpc_status: Option<&str>) -> io::Result<()> {
        let block = hpack::encode(&[(":status", status), ("content-type", kind)]);
        self.frame(HEADERS, END_HEADERS, id, &block)?;
        self.push(id, body)?;
        self.finish(id, grpc_status.map(|status| hpack::encode(&[("grpc-status", status)])).unwrap_or_default())
    }

    fn push(&mut self, id: u32, bytes: &[u8]) -> io::Result<()> {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.pending.extend_from_slice(bytes);
        }
        self.flush(id)
    }

    fn finish(&mut self, id: u32, trailers: Vec<u8>) -> io::Result<()> {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.end = Some(trailers);
        }
        self.flush(id)
    }

    /// Sends what the windows let out, and the end when nothing is left.
    fn flush(&mut self, id: u32) -> io::Result<()> {
        loop {
            let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
            let room = usize::try_from(stream.window.min(self.window)).unwrap_or(0).min(FRAME_MAX);
            let now = stream.pending.len().min(room);
            let is_last = now == stream.pending.len();
            if now == 0 && !(is_last && stream.end.is_some()) {
                return Ok(());
            }
            let piece: Vec<u8> = stream.pending.drain(..now).collect();
            stream.window -= now as i64;
            self.window -= now as i64;
            let owed = if stream.owed && stream.end.is_none() { now } else { 0 };
            let end = if is_last { stream.end.take() } else { None };
            let ends_here = end.as_ref().is_some_and(Vec::is_empty);
            if now > 0 || ends_here {
                self.frame(DATA, if ends_here { END_STREAM } else { 0 }, id, &piece)?;
            }
            self.grant(id, owed)?;
            if let Some(trailers) = end {
                if !ends_here {
                    self.frame(HEADERS, END_HEADERS | END_STREAM, id, &trailers)?;
                }
                self.streams.remove(&id);
                return Ok(());
            }
        }
    }
}

/// Sends the messages 1 to `count`.
fn count_up(shared: &Shared, id: u32, count: u64, pause_ms: u64) -> io::Result<()> {
    for number in 1..=count {
        if number > 1 && pause_ms > 0 {
            thread::sleep(Duration::from_millis(pause_ms));
        }
        let mut message = vec![8];
        let mut rest = number;
        while rest >= 128 {
            message.push((rest % 128 + 128) as u8);
            rest /= 128;
        }
        message.push(rest as u8);
        let mut framed = vec![0];
        framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
        framed.append(&mut message);
        let mut output = shared.lock();
        output.push(id, &framed)?;
        let is_full =
            |output: &mut Output| output.streams.get(&id).is_some_and(|stream| stream.pending.len() > PENDING_MAX);
        let waited = shared.moved.wait_timeout_while(output, STALL_MAX, is_full);
        let (mut output, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            output.streams.remove(&id);
        }
        if !output.streams.contains_key(&id) {
            return Ok(());
        }
    }
    shared.lock().finish(id, hpack::encode(&[("grpc-status", "0")]))
}

/// The fields 1 and 2 of a message of varints; 5 and 0 without them.
fn amounts(message: &[u8]) -> (u64, u64) {
    let (mut count, mut pause_ms) = (5, 0);
    let mut bytes = message.iter();
    while let Some(tag) = bytes.next() {
        let (mut value, mut shift) = (0_u64, 0);
        for byte in bytes.by_ref() {
            value |= u64::from(byte & 0x7f) << (shift % 64);
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        match tag {
            8 => count = value,
            16 => pause_ms = value,
            _ => return (count, pause_ms),
        }
    }
    (count, pause_ms)
}

fn unpadded(flags: u8, payload: &[u8]) -> io::Result<&[u8]> {
    if flags & PADDED == 0 {
        return Ok(payload);
    }
    let split = payload.split_first().and_then(|(pad, rest)| rest.get(..rest.len().checked_sub(usize::from(*pad))?));
    split.ok_or_else(|| bad("padding is longer than its frame"))
}
