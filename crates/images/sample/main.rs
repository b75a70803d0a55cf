//! The sample web application that Cove carries inside itself, so that a machine without a registry can run one.
//!
//! One file on `std` alone, linked statically, because it is the only file of its image. It listens before it does
//! anything else: the time from `exec` to the first answer is what the wake benchmark measures. One thread with a small
//! stack serves one connection; a sample must be easy to read before it is fast.
//!
//! **Invariant:** after SIGTERM no request that was begun is cut; the process then exits with 0.
//!
//! HTTP/1.1, WebSockets, and over HTTP/2 a few pages and gRPC (`h2.rs`).
//!
//! Environment: `PORT` (default 80), and the faults a test can ask for: `SAMPLE_START_DELAY_MS`, `SAMPLE_NEVER_LISTEN=1`,
//! `SAMPLE_EXIT=<code>`, `SAMPLE_IGNORE_TERM=1`, `SAMPLE_HEALTH=<status>`; `SAMPLE_LOG=1` logs a line per request.

mod h2;
mod hpack;

use std::env;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Longest request head in bytes; a longer one is answered 431.
const HEAD_MAX: u64 = 64 * 1024;
/// Longest WebSocket message in bytes; a longer one is closed with 1009.
const WS_MESSAGE_MAX: u64 = 16 * 1024 * 1024;
/// How much of an unread body is read away so that the connection can be used again, in bytes.
const DRAIN_MAX: u64 = 1024 * 1024;
/// Longest an idle keep-alive connection is kept.
const IDLE_MAX: Duration = Duration::from_secs(600);
const STACK_BYTES: usize = 64 * 1024;
const SIGTERM: i32 = 15;
const SIG_BLOCK: i32 = 0;

static DRAINING: AtomicBool = AtomicBool::new(false);
static SERVED: AtomicU64 = AtomicU64::new(0);
/// What `/alloc?keep=1` took; the container's memory limit is its bound.
static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
static OPEN: Mutex<usize> = Mutex::new(0);
static ALL_DONE: Condvar = Condvar::new();

/// The C library's `sigset_t`: 128 bytes on Linux with glibc, for every architecture.
#[repr(C, align(8))]
struct SignalSet([u8; 128]);

unsafe extern "C" {
    fn listen(fd: i32, backlog: i32) -> i32;
    fn mallopt(parameter: i32, value: i32) -> i32;
    fn sigemptyset(set: *mut SignalSet) -> i32;
    fn sigaddset(set: *mut SignalSet, signal: i32) -> i32;
    fn pthread_sigmask(how: i32, set: *const SignalSet, old: *mut SignalSet) -> i32;
    fn sigwait(set: *const SignalSet, signal: *mut i32) -> i32;
}

fn main() {
    // First of all: a SIGTERM that comes between listening and this would be dropped.
    let term = block_term();
    if let Some(code) = number("SAMPLE_EXIT") {
        eprintln!("sample: exits at once with {code}, as SAMPLE_EXIT asks");
        process::exit(i32::try_from(code).unwrap_or(1));
    }
    if let Some(delay_ms) = number("SAMPLE_START_DELAY_MS") {
        thread::sleep(Duration::from_millis(delay_ms));
    }
    let port = number("PORT").and_then(|port| u16::try_from(port).ok()).unwrap_or(80);
    let listener = (!flag("SAMPLE_NEVER_LISTEN")).then(|| {
        TcpListener::bind(("0.0.0.0", port)).unwrap_or_else(|error| {
            eprintln!("sample: failed to listen on port {port}: {error}");
            process::exit(1);
        })
    });
    let Some(listener) = listener else {
        watch_term(term, None);
        println!("sample: started, never listens, as SAMPLE_NEVER_LISTEN asks");
        loop {
            thread::park();
        }
    };
    // SAFETY: the descriptor is open and listening; a second `listen` only sets the backlog. `mallopt` takes two numbers:
    // M_ARENA_MAX (-8) keeps one thousand threads from making memory arenas of their own.
    unsafe {
        listen(listener.as_raw_fd(), 4096);
        mallopt(-8, 2);
    }
    // `PORT=0` takes any free one.
    let port = listener.local_addr().map_or(port, |address| address.port());
    watch_term(term, Some(port));
    println!("sample: {} listens on port {port}", who());
    serve(&listener);
    drop(listener);
    let mut open = OPEN.lock().expect("no thread panics while it counts");
    while *open > 0 {
        open = ALL_DONE.wait(open).expect("no thread panics while it counts");
    }
    println!("sample: stopped after {} requests", SERVED.load(Ordering::Relaxed));
}

/// Accepts until SIGTERM, then takes what already waits in the backlog.
fn serve(listener: &TcpListener) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => spawn_connection(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            // Out of descriptors or memory: others must finish first.
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
        if DRAINING.load(Ordering::SeqCst) && listener.set_nonblocking(true).is_err() {
            return;
        }
    }
}

fn spawn_connection(stream: TcpStream) {
    // Shared, not cloned: a connection costs one descriptor.
    let stream = Arc::new(stream);
    let in_thread = Arc::clone(&stream);
    let spawned = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        let _ = connection(&in_thread);
    });
    if spawned.is_err() {
        let _ = (&*stream).write_all(
            b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 14\r\n\r\nno thread left",
        );
    }
}

/// Blocks SIGTERM in this and all later threads.
///
/// Blocked rather than handled: the process is PID 1 of its container, where the kernel drops a signal without handler
/// unless it is blocked, and nothing then has to be safe inside a handler.
fn block_term() -> SignalSet {
    let mut set = SignalSet([0; 128]);
    // SAFETY: `set` is a valid signal set for the whole call, and no old mask is asked for.
    unsafe {
        sigemptyset(&mut set);
        sigaddset(&mut set, SIGTERM);
        pthread_sigmask(SIG_BLOCK, &set, std::ptr::null_mut());
    }
    set
}

/// Waits for the blocked SIGTERM in a thread of its own.
fn watch_term(set: SignalSet, port: Option<u16>) {
    let ignore = flag("SAMPLE_IGNORE_TERM");
    let watcher = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        let mut signal = 0;
        loop {
            // SAFETY: both pointers live through the call.
            unsafe { sigwait(&set, &mut signal) };
            if ignore {
                println!("sample: SIGTERM ignored, as SAMPLE_IGNORE_TERM asks");
                continue;
            }
            let Some(port) = port else { process::exit(0) };
            DRAINING.store(true, Ordering::SeqCst);
            // Wakes `accept`; the connection itself says nothing.
            drop(TcpStream::connect(("127.0.0.1", port)));
        }
    });
    if watcher.is_err() {
        eprintln!("sample: failed to start the thread that waits for SIGTERM");
        process::exit(1);
    }
}

/// Counts one request as open for as long as it lives.
struct Open;

impl Open {
    fn begin() -> Self {
        *OPEN.lock().expect("no thread panics while it counts") += 1;
        SERVED.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        *OPEN.lock().expect("no thread panics while it counts") -= 1;
        ALL_DONE.notify_all();
    }
}

struct Request {
    method: String,
    path: String,
    query: String,
    version_1_1: bool,
    headers: Vec<(String, String)>,
    body: Body,
}

#[derive(Clone, Copy)]
enum Body {
    Length(u64),
    Chunked { left: u64, done: bool },
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn argument(&self, name: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| percent_decoded(value))
        })
    }

    fn amount(&self, name: &str, default: u64) -> u64 {
        self.argument(name).and_then(|text| text.parse().ok()).unwrap_or(default)
    }

    fn keeps_alive(&self) -> bool {
        let asked = self.header("connection").unwrap_or("").to_ascii_lowercase();
        if self.version_1_1 { !asked.contains("close") } else { asked.contains("keep-alive") }
    }
}

/// What has come; waits for something. A process that is frozen while it waits with a limit is told `EINTR` when it goes on.
fn filled<'a, R: BufRead>(reader: &'a mut R) -> io::Result<&'a [u8]> {
    loop {
        match reader.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    // what is there is given again
    reader.fill_buf()
}

fn connection(stream: &Arc<TcpStream>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE_MAX))?;
    let mut writer: &TcpStream = stream;
    let mut reader = BufReader::with_capacity(4096, writer);
    if filled(&mut reader)?.starts_with(b"PRI ") {
        let mut preface = [0; h2::PREFACE.len()];
        reader.read_exact(&mut preface)?;
        return if preface == *h2::PREFACE { h2::serve(stream, &mut reader) } else { Ok(()) };
    }
    loop {
        // An idle connection is no open request: it may be closed at any time.
        if filled(&mut reader)?.is_empty() {
            return Ok(());
        }
        let open = Open::begin();
        let mut request = match read_head(&mut reader) {
            Ok(request) => request,
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                let text = format!("{error}\n");
                return respond(&mut writer, "GET", 400, "text/plain", text.as_bytes(), false);
            }
            Err(error) => return Err(error),
        };
        let is_logged = flag("SAMPLE_LOG");
        if is_logged {
            println!("{} {}{}", request.method, request.path, if request.query.is_empty() { "" } else { "?…" });
        }
        let keep = route(&mut request, &mut reader, &mut writer)?;
        let drained = drain(&mut request, &mut reader)?;
        drop(open);
        if !keep || !drained || DRAINING.load(Ordering::SeqCst) {
            return Ok(());
        }
    }
}

fn bad(text: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text.to_owned())
}

fn read_head(reader: &mut impl BufRead) -> io::Result<Request> {
    let mut limited = reader.take(HEAD_MAX);
    let mut line = String::new();
    limited.read_line(&mut line)?;
    let mut words = line.trim_end().split(' ');
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else {
        return Err(bad("the request line must be `METHOD /path HTTP/1.1`"));
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        version_1_1: version != "HTTP/1.0",
        headers: Vec::new(),
        body: Body::Length(0),
    };
    loop {
        line.clear();
        if limited.read_line(&mut line)? == 0 {
            return Err(bad("the request head ended early or is longer than 64 KiB"));
        }
        let text = line.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(':').ok_or_else(|| bad("a header must be `name: value`"))?;
        request.headers.push((name.to_owned(), value.trim().to_owned()));
    }
    if request.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        request.body = Body::Chunked { left: 0, done: false };
    } else if let Some(length) = request.header("content-length") {
        request.body = Body::Length(length.parse().map_err(|_| bad("content-length must be a number"))?);
    }
    Ok(request)
}

/// Reads the next piece of the body into `buffer`; 0 at its end.
fn read_body(request: &mut Request, reader: &mut impl BufRead, buffer: &mut [u8]) -> io::Result<usize> {
    match &mut request.body {
        Body::Length(left) => {
            let count = reader.take(*left).read(buffer)?;
            if count == 0 && *left > 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            *left -= count as u64;
            Ok(count)
        }
        Body::Chunked { done: true, .. } => Ok(0),
        Body::Chunked { left, done } => {
            let mut line = String::new();
            if *left == 0 {
                reader.take(1024).read_line(&mut line)?;
                let digits = line.split(';').next().unwrap_or("").trim();
                *left = u64::from_str_radix(digits, 16).map_err(|_| bad("a chunk must begin with its size"))?;
                if *left == 0 {
                    *done = true;
                    // Trailers, up to the empty line.
                    loop {
                        line.clear();
                        if reader.take(HEAD_MAX).read_line(&mut line)? == 0 || line.trim_end().is_empty() {
                            break;
                        }
                    }
                    return Ok(0);
                }
            }
            let count = reader.take(*left).read(buffer)?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            *left -= count as u64;
            if *left == 0 {
                line.clear();
                reader.take(2).read_line(&mut line)?;
            }
            Ok(count)
        }
    }
}

/// Reads what a handler left of the body; false when that is too much and the connection must be closed.
fn drain(request: &mut Request, reader: &mut impl BufRead) -> io::Result<bool> {
    let mut buffer = vec![0; 8192];
    let mut seen = 0;
    loop {
        match read_body(request, reader, &mut buffer)? {
            0 => return Ok(true),
            count => seen += count as u64,
        }
        if seen > DRAIN_MAX {
            return Ok(false);
        }
    }
}

/// Answers one request; true when the connection can take another.
fn route(request: &mut Request, reader: &mut BufReader<&TcpStream>, out: &mut &TcpStream) -> io::Result<bool> {
    let keep = request.keeps_alive();
    let method = request.method.clone();
    let text = |out: &mut &TcpStream, status: u16, body: &str| {
        respond(out, &method, status, "text/plain", body.as_bytes(), keep)
    };
    match request.path.as_str() {
        "/" => respond(out, &method, 200, "text/html; charset=utf-8", page().as_bytes(), keep)?,
        "/healthz" => text(out, number("SAMPLE_HEALTH").and_then(|s| u16::try_from(s).ok()).unwrap_or(200), "ok\n")?,
        "/env" => {
            let mut pairs: Vec<_> = env::vars_os().map(|(k, v)| format!("{}={}\n", k.display(), v.display())).collect();
            pairs.sort();
            text(out, 200, &pairs.concat())?;
        }
        "/headers" => {
            let lines: Vec<_> = request.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
            text(out, 200, &lines.concat())?;
        }
        "/echo" => echo(request, reader, out, keep)?,
        "/slow" => {
            thread::sleep(Duration::from_millis(request.amount("ms", 1000)));
            text(out, 200, "done\n")?;
        }
        "/stream" => stream(request, out, keep)?,
        "/bytes" => {
            let count = request.amount("n", 1024);
            head(out, 200, "application/octet-stream", Some(count), keep)?;
            if method != "HEAD" {
                let block = [b'x'; 16 * 1024];
                let mut left = count;
                while left > 0 {
                    let now = left.min(block.len() as u64);
                    out.write_all(&block[..usize::try_from(now).unwrap_or(0)])?;
                    left -= now;
                }
            }
        }
        "/status" => match u16::try_from(request.amount("code", 200)) {
            Ok(code @ 200..=599) => text(out, code, if code == 204 || code == 304 { "" } else { "as asked\n" })?,
            _ => text(out, 400, "`code` must be from 200 to 599\n")?,
        },
        "/exit" => {
            let code = i32::try_from(request.amount("code", 0)).unwrap_or(1);
            println!("sample: exits with {code}, as asked");
            text(out, 200, "bye\n")?;
            process::exit(code);
        }
        "/crash" => {
            eprintln!("sample: aborts, as asked");
            process::abort();
        }
        "/log" => {
            let (count, line) = (request.amount("n", 1), request.argument("text").unwrap_or_else(|| "log line".into()));
            let stdout = io::stdout();
            let mut lines = io::BufWriter::new(stdout.lock());
            for number in 1..=count {
                writeln!(lines, "{number} {line}")?;
            }
            lines.flush()?;
            drop(lines);
            text(out, 200, "logged\n")?;
        }
        "/alloc" => {
            let size_mib = request.amount("mb", 1);
            // One byte per page is written, so the kernel must give every page.
            let mut block = vec![0_u8; usize::try_from(size_mib << 20).unwrap_or(usize::MAX)];
            for page in block.chunks_mut(4096) {
                page[0] = 1;
            }
            let touched: usize = block.chunks(4096).map(|page| usize::from(std::hint::black_box(page[0]))).sum();
            if request.amount("keep", 0) > 0 {
                KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(block);
            }
            text(out, 200, &format!("touched {touched} pages\n"))?;
        }
        "/ws" => return websocket(request, reader, out).map(|()| false),
        _ => text(
            out,
            404,
            "not found; try / /healthz /env /headers /echo /slow /stream /bytes /status /log /alloc /ws\n",
        )?,
    }
    Ok(keep)
}

fn reason(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        404 => "Not Found",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

/// Writes the head of an answer; without a length the body is chunked.
fn head(out: &mut impl Write, status: u16, kind: &str, length: Option<u64>, keep: bool) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} {}\r\ncontent-type: {kind}\r\n", reason(status));
    let _ = match length {
        Some(length) => write!(text, "content-length: {length}\r\n"),
        None => write!(text, "transfer-encoding: chunked\r\n"),
    };
    if !keep || DRAINING.load(Ordering::SeqCst) {
        text.push_str("connection: close\r\n");
    }
    text.push_str("\r\n");
    out.write_all(text.as_bytes())
}

fn respond(out: &mut &TcpStream, method: &str, status: u16, kind: &str, body: &[u8], keep: bool) -> io::Result<()> {
    let mut whole = Vec::with_capacity(body.len() + 160);
    head(&mut whole, status, kind, Some(body.len() as u64), keep)?;
    if method != "HEAD" {
        whole.extend_from_slice(body);
    }
    out.write_all(&whole)
}

fn chunk(out: &mut &TcpStream, data: &[u8]) -> io::Result<()> {
    let mut whole = format!("{:x}\r\n", data.len()).into_bytes();
    whole.extend_from_slice(data);
    whole.extend_from_slice(b"\r\n");
    out.write_all(&whole)
}

/// Sends the body back while it still arrives.
fn echo(request: &mut Request, reader: &mut impl BufRead, out: &mut &TcpStream, keep: bool) -> io::Result<()> {
    if request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
        out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let kind = request.header("content-type").unwrap_or("application/octet-stream").to_owned();
    let length = match request.body {
        Body::Length(length) => Some(length),
        Body::Chunked { .. } => None,
    };
    head(out, 200, &kind, length, keep)?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match (read_body(request, reader, &mut buffer)?, length) {
            (0, None) => return out.write_all(b"0\r\n\r\n"),
            (0, Some(_)) => return Ok(()),
            (count, None) => chunk(out, &buffer[..count])?,
            (count, Some(_)) => out.write_all(&buffer[..count])?,
        }
    }
}

/// Sends `n` numbered pieces, `ms` apart; as server-sent events when the client accepts those.
fn stream(request: &Request, out: &mut &TcpStream, keep: bool) -> io::Result<()> {
    let (count, pause_ms) = (request.amount("n", 5), request.amount("ms", 200));
    let is_events = request.header("accept").is_some_and(|value| value.contains("text/event-stream"));
    head(out, 200, if is_events { "text/event-stream" } else { "text/plain" }, None, keep)?;
    for number in 1..=count {
        if number > 1 {
            thread::sleep(Duration::from_millis(pause_ms));
        }
        let piece = if is_events { format!("id: {number}\ndata: {number}\n\n") } else { format!("{number}\n") };
        chunk(out, piece.as_bytes())?;
    }
    out.write_all(b"0\r\n\r\n")
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

fn flag(name: &str) -> bool {
    env::var(name).is_ok_and(|value| value == "1" || value == "true")
}

/// The replica as the platform names it, or the host name.
fn who() -> String {
    ["CONTAINER_APP_REPLICA_NAME", "CONTAINER_APP_REVISION", "HOSTNAME"]
        .iter()
        .find_map(|name| env::var(name).ok())
        .unwrap_or_else(|| "sample".into())
}

fn page() -> String {
    let value = |name: &str| escaped(&env::var(name).unwrap_or_else(|_| "–".into()));
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>Hello from Cove</title><style>body{{font:17px/1.6 system-ui,sans-serif;max-width:38em;margin:12vh auto;\
         padding:0 1.5em;color:#123;background:#f4fafa}}dt{{color:#577}}dd{{margin:0 0 .6em;font-family:monospace}}</style>\
         <h1>Your container app is running</h1><p>This is Cove's sample application.</p><dl>\
         <dt>App<dd>{}<dt>Revision<dd>{}<dt>Replica<dd>{}<dt>Host<dd>{}<dt>Requests served<dd>{}</dl>\n",
        value("CONTAINER_APP_NAME"),
        value("CONTAINER_APP_REVISION"),
        value("CONTAINER_APP_REPLICA_NAME"),
        value("HOSTNAME"),
        SERVED.load(Ordering::Relaxed),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let decoded = hex.filter(|_| first == b'%').and_then(|two| u8::from_str_radix(two, 16).ok());
        bytes.push(decoded.unwrap_or(if first == b'+' { b' ' } else { first }));
        rest = if decoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// RFC 6455: echoes text and binary messages, answers pings and close frames.
fn websocket(request: &Request, reader: &mut BufReader<&TcpStream>, out: &mut &TcpStream) -> io::Result<()> {
    let is_upgrade = request.header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
    let (Some(key), true) = (request.header("sec-websocket-key"), is_upgrade) else {
        return respond(out, "GET", 400, "text/plain", b"/ws wants a WebSocket handshake\n", false);
    };
    let accept = base64(&sha1(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes()));
    write!(
        out,
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n"
    )?;
    reader.get_ref().set_read_timeout(None)?;
    let mut message_opcode = 0;
    let mut message = Vec::new();
    loop {
        let mut start = [0; 2];
        reader.read_exact(&mut start)?;
        let (is_final, opcode) = (start[0] & 0x80 != 0, start[0] & 0x0f);
        let length = match start[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes(read_array(reader)?)),
            127 => u64::from_be_bytes(read_array(reader)?),
            short => u64::from(short),
        };
        if start[1] & 0x80 == 0 {
            return frame(out, 8, &1002_u16.to_be_bytes());
        }
        if length + message.len() as u64 > WS_MESSAGE_MAX {
            return frame(out, 8, &1009_u16.to_be_bytes());
        }
        let mask: [u8; 4] = read_array(reader)?;
        let mut payload = Vec::new();
        reader.take(length).read_to_end(&mut payload)?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        match opcode {
            0..=2 => {
                message_opcode = if opcode == 0 { message_opcode } else { opcode };
                message.append(&mut payload);
                if is_final {
                    frame(out, message_opcode, &message)?;
                    message.clear();
                }
            }
            8 => return frame(out, 8, payload.get(..2).unwrap_or(&[])),
            9 => frame(out, 10, &payload)?,
            10 => {}
            _ => return frame(out, 8, &1002_u16.to_be_bytes()),
        }
    }
}

fn read_array<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn frame(out: &mut &TcpStream, opcode: u8, payload: &[u8]) -> io::Result<()> {
    let mut bytes = vec![0x80 | opcode];
    match payload.len() {
        short @ 0..=125 => bytes.push(short as u8),
        medium @ 126..=0xffff => {
            bytes.push(126);
            bytes.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            bytes.push(127);
            bytes.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    out.write_all(&bytes)
}

fn sha1(data: &[u8]) -> [u8; 20] {
    let mut state: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    let mut padded = data.to_vec();
    padded.push(0x80);
    padded.resize((data.len() + 9).next_multiple_of(64) - 8, 0);
    padded.extend_from_slice(&(data.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks(64) {
        let mut words = [0_u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks(4)) {
            *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        for i in 16..80 {
            words[i] = (words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (i, word) in words.iter().enumerate() {
            let (f, k) = match i {
                0..=19 => ((b & c) | (!b & d), 0x5a82_7999),
                20..=39 => (b ^ c ^ d, 0x6ed9_eba1),
                40..=59 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, value) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(value);
        }
    }
    let mut digest = [0; 20];
    for (out, word) in digest.chunks_mut(4).zip(state) {
        out.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

fn base64(data: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in data.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place)) & 63;
            text.push(if place <= three.len() { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    text
}
