//! An app that reads requests as strictly as it can, and remembers all that it was sent.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::world::Backend;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// Method and target.
    pub(super) line: String,
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// The values of a field, in lower case letters.
    pub(super) fn values(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// Answers every request with its target, and closes on the first that is not as RFC 9112 wants it.
pub(super) struct StrictApp {
    backend: Backend,
    notes: Arc<Notes>,
}

#[derive(Default)]
struct Notes {
    seen: Mutex<Vec<Request>>,
    wrong: Mutex<Vec<String>>,
}

impl StrictApp {
    pub(super) async fn start() -> Self {
        let notes: Arc<Notes> = Arc::default();
        let backend = Backend::tcp({
            let notes = Arc::clone(&notes);
            move |stream| {
                let notes = Arc::clone(&notes);
                async move {
                    let mut stream = BufReader::new(stream);
                    loop {
                        let request = match read(&mut stream).await {
                            Ok(Some(request)) => request,
                            Ok(None) => return,
                            Err(error) => {
                                notes.wrong.lock().unwrap().push(error);
                                return;
                            }
                        };
                        let target = request.line.split(' ').nth(1).unwrap().to_owned();
                        let is_head = request.line.starts_with("HEAD ");
                        notes.seen.lock().unwrap().push(request);
                        let body = if is_head { "" } else { &target };
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", target.len());
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            }
        })
        .await;
        Self { backend, notes }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.backend.address
    }

    /// What was sent with this text in its target.
    pub(super) fn seen(&self, part: &str) -> Vec<Request> {
        self.notes.seen.lock().unwrap().iter().filter(|request| request.line.contains(part)).cloned().collect()
    }

    /// What was wrong with what it was sent.
    pub(super) fn wrong(&self) -> Vec<String> {
        self.notes.wrong.lock().unwrap().clone()
    }
}

/// One request; `None` at the end of the connection, also in the middle of a body that its client broke off.
async fn read(stream: &mut BufReader<TcpStream>) -> Result<Option<Request>, String> {
    let Some(line) = line(stream).await? else { return Ok(None) };
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else { return Err(format!("request line {line:?}")) };
    let is_token = |text: &str| !text.is_empty() && text.bytes().all(is_token_byte);
    let is_target = target == "*" || target.starts_with('/');
    if !is_token(method) || !is_target || target.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(format!("request line {line:?}"));
    }
    let mut request = Request { line: format!("{method} {target}"), fields: Vec::new(), body: Vec::new() };
    loop {
        let Some(line) = self::line(stream).await? else { return Ok(None) };
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| format!("field {line:?}"))?;
        if !is_token(name) {
            return Err(format!("field {line:?}"));
        }
        request.fields.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
    }
    for name in ["host", "x-forwarded-for", "x-forwarded-proto", "x-request-id", "traceparent"] {
        if request.values(name).len() != 1 {
            return Err(format!("{name} is not there once: {request:?}"));
        }
    }
    let (lengths, codings) = (request.values("content-length"), request.values("transfer-encoding"));
    match (&lengths[..], &codings[..]) {
        ([], []) => {}
        ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            let mut body = vec![0; length.parse().map_err(|_| format!("length {length}"))?];
            if stream.read_exact(&mut body).await.is_err() {
                return Ok(None);
            }
            request.body = body;
        }
        ([], ["chunked"]) => match chunks(stream).await? {
            Some(body) => request.body = body,
            None => return Ok(None),
        },
        _ => return Err(format!("framing {lengths:?} {codings:?}")),
    }
    Ok(Some(request))
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A line that ends with CR LF and holds neither of them, nor other control characters; `None` at the end.
async fn line(stream: &mut BufReader<TcpStream>) -> Result<Option<String>, String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(_) => return Ok(None),
        }
        if line.len() > 200_000 {
            return Err("a line without end".to_owned());
        }
    }
    line.truncate(line.len() - 2);
    let text = String::from_utf8_lossy(&line).into_owned();
    if line.iter().any(|&byte| byte < b' ' && byte != b'\t' || byte == 0x7f) {
        return Err(format!("control characters in {text:?}"));
    }
    Ok(Some(text))
}

async fn chunks(stream: &mut BufReader<TcpStream>) -> Result<Option<Vec<u8>>, String> {
    let mut body = Vec::new();
    loop {
        let Some(size) = line(stream).await? else { return Ok(None) };
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("size of a chunk {size:?}"));
        }
        let size = usize::from_str_radix(&size, 16).map_err(|_| format!("size of a chunk {size:?}"))?;
        if size == 0 {
            break;
        }
        let mut chunk = vec![0; size + 2];
        if stream.read_exact(&mut chunk).await.is_err() {
            return Ok(None);
        }
        if !chunk.ends_with(b"\r\n") {
            return Err("a chunk without its end".to_owned());
        }
        body.extend_from_slice(&chunk[..size]);
    }
    loop {
        let Some(trailer) = line(stream).await? else { return Ok(None) };
        if trailer.is_empty() {
            return Ok(Some(body));
        }
        let name = trailer.split(':').next().unwrap_or_default().to_ascii_lowercase();
        if ["content-length", "transfer-encoding", "host", "authorization", "x-forwarded-for"].contains(&name.as_str())
        {
            return Err(format!("trailer {trailer:?}"));
        }
    }
}
