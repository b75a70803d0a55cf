//! Requests over HTTP/1.1, one at a time per connection.
//!
//! A client of its own: it must tell a connection that was closed before any byte of an answer from one that was cut in the
//! middle, and it costs little, since the load and the server often share a machine.
//!
//! **Invariant:** a body is full only when its framing says so (length, last chunk, or the end of a connection that was
//! announced); bytes behind it are an error.

use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use futures_util::FutureExt as _;
use http::{Method, header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    loss::{Answer, Failure, LossKind, Repeat},
    plan::{Plan, Protocol},
    run::Run,
    wire::Wire,
};

/// Longest head of an answer in bytes.
const HEAD_MAX: usize = 64 << 10;
/// Most fields of one.
const FIELDS_MAX: usize = 128;
/// Longest line between chunks in bytes.
const LINE_MAX: usize = 8 << 10;
/// Bytes read at once.
const READ_BYTES: usize = 16 << 10;

/// The bytes of every request, head and body.
pub(crate) fn request(plan: &Plan) -> Vec<u8> {
    let mut text = format!("{} {} HTTP/1.1\r\n", plan.method, plan.target.path).into_bytes();
    let mut field = |name: &str, value: &[u8]| {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value);
        text.extend_from_slice(b"\r\n");
    };
    if !plan.headers.contains_key(header::HOST) {
        field("host", plan.target.authority.as_bytes());
    }
    if plan.protocol == Protocol::Events && !plan.headers.contains_key(header::ACCEPT) {
        field("accept", b"text/event-stream");
    }
    for (name, value) in &plan.headers {
        field(name.as_str(), value.as_bytes());
    }
    let has_body = !plan.body.is_empty() || matches!(plan.method, Method::POST | Method::PUT | Method::PATCH);
    if has_body {
        field("content-length", plan.body.len().to_string().as_bytes());
    }
    text.extend_from_slice(b"\r\n");
    text.extend_from_slice(&plan.body);
    text
}

/// A client with at most one connection.
#[derive(Debug, Default)]
pub(crate) struct Http1 {
    open: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    wire: Wire,
    buffer: BytesMut,
    /// Longest silence within an answer, where that is not bounded as a whole.
    silence: Option<Duration>,
}

/// How long an answer's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClosed,
}

#[derive(Debug)]
struct Head {
    status: u16,
    framing: Framing,
    keeps_alive: bool,
}

impl Http1 {
    /// Sends the run's request; `see` gets the body's bytes as they come.
    ///
    /// A caller that gives up in the middle has a client without a connection.
    pub(crate) async fn exchange(
        &mut self,
        run: &Run,
        see: &mut (dyn FnMut(&[u8]) -> Result<(), Failure> + Send),
    ) -> Result<Answer, Failure> {
        let (mut connection, is_reused) = match self.idle()? {
            Some(connection) => (connection, true),
            None => {
                let wire = run.connect().await?;
                let silence = (run.plan.protocol == Protocol::Events).then_some(run.plan.timeout);
                (Connection { wire, buffer: BytesMut::with_capacity(READ_BYTES), silence }, false)
            }
        };
        let head = match connection.send_and_read_head(&run.request, &run.plan.method).await {
            Ok(head) => head,
            Err(failure) => {
                let may_repeat = is_reused && run.plan.method.is_idempotent() && connection.buffer.is_empty();
                return Err(match failure.kind {
                    LossKind::Closed if may_repeat => failure.repeat(Repeat::IdleClosed),
                    _ => failure,
                });
            }
        };
        let mut bytes = 0;
        connection.read_body(head.framing, &mut bytes, see).await?;
        if !connection.buffer.is_empty() {
            return Err(Failure::new(LossKind::Malformed, "there are bytes behind the answer"));
        }
        if head.keeps_alive && head.framing != Framing::UntilClosed {
            self.open = Some(connection);
        }
        Ok(Answer { status: head.status, bytes, ..Answer::default() })
    }

    /// The connection of the last request, unless it was closed meanwhile: then nothing was lost with it.
    fn idle(&mut self) -> Result<Option<Connection>, Failure> {
        let Some(mut connection) = self.open.take() else { return Ok(None) };
        let mut one = [0; 1];
        match connection.wire.read(&mut one).now_or_never() {
            None => Ok(Some(connection)),
            Some(Ok(0) | Err(_)) => Ok(None),
            Some(Ok(_)) => Err(Failure::new(LossKind::Malformed, "the server spoke before it was asked")),
        }
    }

    /// Ends the connection.
    pub(crate) fn close(&mut self) {
        self.open = None;
    }
}

impl Connection {
    async fn send_and_read_head(&mut self, request: &[u8], method: &Method) -> Result<Head, Failure> {
        // a server that answers early may close its end: what it said is read all the same
        let written = self.wire.write_all(request).await;
        let flushed = match written {
            Ok(()) => self.wire.flush().await,
            Err(error) => Err(error),
        };
        loop {
            if let Some((head, length)) = head_of(&self.buffer, method)? {
                self.buffer.advance(length);
                if head.status >= 200 {
                    return Ok(head);
                }
                if head.status == 101 {
                    return Err(Failure::new(LossKind::Malformed, "the server switched protocols unasked"));
                }
                continue;
            }
            if self.buffer.len() > HEAD_MAX {
                return Err(Failure::new(LossKind::Malformed, "the head of the answer is longer than 64 KiB"));
            }
            if let Err(failure) = self.fill().await {
                let kind = if self.buffer.is_empty() { LossKind::Closed } else { LossKind::Truncated };
                let text = match &flushed {
                    Err(error) => error.to_string(),
                    Ok(()) => failure.text,
                };
                return Err(Failure::new(if failure.kind == LossKind::Timeout { failure.kind } else { kind }, text));
            }
        }
    }

    /// Reads what is there; the end of the connection is a failure.
    async fn fill(&mut self) -> Result<(), Failure> {
        self.buffer.reserve(READ_BYTES);
        let reading = self.wire.read_buf(&mut self.buffer);
        let read = match self.silence {
            Some(limit) => tokio::time::timeout(limit, reading)
                .await
                .map_err(|_| Failure::new(LossKind::Timeout, format!("nothing came for {} s", limit.as_secs_f64())))?,
            None => reading.await,
        };
        match read {
            Ok(0) => Err(Failure::new(LossKind::Truncated, "the server closed the connection")),
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::new(LossKind::Truncated, error.to_string())),
        }
    }

    async fn read_body(
        &mut self,
        framing: Framing,
        bytes: &mut u64,
        see: &mut (dyn FnMut(&[u8]) -> Result<(), Failure> + Send),
    ) -> Result<(), Failure> {
        match framing {
            Framing::Length(length) => self.take(length, bytes, see).await,
            Framing::Chunked => loop {
                let line = self.line().await?;
                let digits = line[..].split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
                let size = std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
                match size {
                    None => return Err(Failure::new(LossKind::Malformed, "a chunk has no size")),
                    Some(0) => {
                        while !self.line().await?.is_empty() {}
                        return Ok(());
                    }
                    Some(size) => self.take(size, bytes, see).await?,
                }
                if !self.line().await?.is_empty() {
                    return Err(Failure::new(LossKind::Malformed, "a chunk is longer than its size"));
                }
            },
            Framing::UntilClosed => loop {
                *bytes += self.buffer.len() as u64;
                see(&self.buffer[..])?;
                self.buffer.clear();
                match self.wire.read_buf(&mut self.buffer).await {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(error) => return Err(Failure::new(LossKind::Truncated, error.to_string())),
                }
            },
        }
    }

    /// Passes on exactly so many bytes.
    async fn take(
        &mut self,
        mut left: u64,
        bytes: &mut u64,
        see: &mut (dyn FnMut(&[u8]) -> Result<(), Failure> + Send),
    ) -> Result<(), Failure> {
        while left > 0 {
            if self.buffer.is_empty() {
                self.fill().await.map_err(|failure| Failure {
                    text: format!("{}; {left} bytes were still to come", failure.text),
                    ..failure
                })?;
            }
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            see(&self.buffer[..now])?;
            self.buffer.advance(now);
            left -= now as u64;
            *bytes += now as u64;
        }
        Ok(())
    }

    /// The next line without its end.
    async fn line(&mut self) -> Result<BytesMut, Failure> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut line = self.buffer.split_to(end + 1);
                line.truncate(end);
                if line.last() == Some(&b'\r') {
                    line.truncate(end - 1);
                }
                return Ok(line);
            }
            if self.buffer.len() > LINE_MAX {
                return Err(Failure::new(LossKind::Malformed, "a line between chunks is longer than 8 KiB"));
            }
            self.fill().await?;
        }
    }
}

/// The head at the beginning of `buffer` and its length; none while it is not whole.
fn head_of(buffer: &[u8], method: &Method) -> Result<Option<(Head, usize)>, Failure> {
    if buffer.is_empty() {
        return Ok(None);
    }
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let malformed = |text: String| Failure::new(LossKind::Malformed, text);
    let length = match response.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(malformed(error.to_string())),
    };
    let status = response.code.unwrap_or_default();
    let mut framing = None;
    let mut keeps_alive = response.version == Some(1);
    for field in response.headers.iter() {
        let value = field.value.trim_ascii();
        if field.name.eq_ignore_ascii_case("content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
            let length = length.ok_or_else(|| malformed("content-length is no number".to_owned()))?;
            if framing.is_some_and(|known| known != Framing::Length(length)) {
                return Err(malformed("the answer says two lengths".to_owned()));
            }
            framing = Some(Framing::Length(length));
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if framing.is_some() || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(malformed("a transfer encoding that is not `chunked` alone".to_owned()));
            }
            framing = Some(Framing::Chunked);
        } else if field.name.eq_ignore_ascii_case("connection") {
            let value = String::from_utf8_lossy(value).to_ascii_lowercase();
            keeps_alive = (keeps_alive && !value.contains("close")) || value.contains("keep-alive");
        }
    }
    let has_no_body = *method == Method::HEAD || status < 200 || matches!(status, 204 | 304);
    let framing = if has_no_body { Framing::Length(0) } else { framing.unwrap_or(Framing::UntilClosed) };
    Ok(Some((Head { status, framing, keeps_alive }, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> String {
        match head_of(text.as_bytes(), &Method::GET) {
            Ok(Some((Head { status, framing, keeps_alive }, length))) => {
                format!("{status} {framing:?} {keeps_alive} {}", length == text.len())
            }
            Ok(None) => "partial".to_owned(),
            Err(failure) => failure.to_string(),
        }
    }

    #[test]
    fn heads_say_where_the_answer_ends() {
        assert_eq!(head("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"), "200 Length(3) true true");
        assert_eq!(
            head("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"),
            "200 Chunked false true"
        );
        assert_eq!(head("HTTP/1.0 200 OK\r\n\r\n"), "200 UntilClosed false true");
        assert_eq!(head("HTTP/1.1 204 No Content\r\n\r\n"), "204 Length(0) true true");
        assert_eq!(head("HTTP/1.1 200 OK\r\ncontent-le"), "partial");
        for wrong in [
            "SMTP ready\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -3\r\n\r\n",
        ] {
            assert!(head(wrong).starts_with("not an answer of this protocol"), "{wrong}: {}", head(wrong));
        }
    }
}
