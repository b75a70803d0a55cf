//! Redis' protocol, version 2: commands out, replies in.
//!
//! **Invariant:** what the peer claims of lengths reserves no memory, and nesting is bounded.

use std::io;

use bytes::{Buf as _, BytesMut};
use tokio_util::codec::Decoder;

/// Replies inside replies.
const DEPTH_MAX: u32 = 8;
/// Entries of one array.
const ENTRIES_MAX: usize = 100_000;

/// One reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// `+OK`, or the bytes of a string.
    Text(String),
    /// `-ERR …`, without the dash.
    Error(String),
    /// A number.
    Number(i64),
    /// Nothing.
    Null,
    /// Several.
    Array(Vec<Reply>),
}

/// A command as Redis wants it: an array of strings.
pub(super) fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Finds replies in a stream of bytes.
#[derive(Debug, Default)]
pub(super) struct Replies;

impl Decoder for Replies {
    type Item = Reply;
    type Error = io::Error;

    fn decode(&mut self, input: &mut BytesMut) -> io::Result<Option<Reply>> {
        let mut rest = &input[..];
        let Some(reply) = parse(&mut rest, DEPTH_MAX)? else { return Ok(None) };
        let used = input.len() - rest.len();
        input.advance(used);
        Ok(Some(reply))
    }
}

/// The reply at the start of `rest`, which then begins behind it; `None` when more bytes are needed.
fn parse(rest: &mut &[u8], depth: u32) -> io::Result<Option<Reply>> {
    let wrong = || io::Error::other("the peer does not speak Redis");
    let Some(line) = line(rest) else { return Ok(None) };
    let Some((kind, text)) = line.split_first() else { return Err(wrong()) };
    let text = String::from_utf8_lossy(text);
    let number = || text.parse::<i64>().map_err(|_| wrong());
    Ok(Some(match kind {
        b'+' => Reply::Text(text.into_owned()),
        b'-' => Reply::Error(text.into_owned()),
        b':' => Reply::Number(number()?),
        b'$' | b'*' if number()? < 0 => Reply::Null,
        b'$' => {
            let length = usize::try_from(number()?).map_err(|_| wrong())?;
            let whole = length.checked_add(2).ok_or_else(wrong)?;
            if rest.len() < whole {
                return Ok(None);
            }
            let text = String::from_utf8_lossy(&rest[..length]).into_owned();
            *rest = &rest[whole..];
            Reply::Text(text)
        }
        b'*' => {
            let length = usize::try_from(number()?).map_err(|_| wrong())?;
            if depth == 0 || length > ENTRIES_MAX {
                return Err(wrong());
            }
            let mut entries = Vec::new();
            for _ in 0..length {
                let Some(entry) = parse(rest, depth - 1)? else { return Ok(None) };
                entries.push(entry);
            }
            Reply::Array(entries)
        }
        _ => return Err(wrong()),
    }))
}

/// The bytes up to the end of the line.
fn line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let line = &rest[..end];
    *rest = &rest[end + 2..];
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_come_whole_however_the_bytes_are_cut() {
        let bytes = b"+OK\r\n-ERR no\r\n:42\r\n$5\r\na\r\nbc\r\n$-1\r\n*2\r\n:1\r\n*1\r\n$0\r\n\r\n";
        let all = [
            Reply::Text("OK".into()),
            Reply::Error("ERR no".into()),
            Reply::Number(42),
            Reply::Text("a\r\nbc".into()),
            Reply::Null,
            Reply::Array(vec![Reply::Number(1), Reply::Array(vec![Reply::Text(String::new())])]),
        ];
        for cut in 0..bytes.len() {
            let (mut input, mut found) = (BytesMut::new(), Vec::new());
            for part in [&bytes[..cut], &bytes[cut..]] {
                input.extend_from_slice(part);
                while let Some(reply) = Replies.decode(&mut input).unwrap() {
                    found.push(reply);
                }
            }
            assert_eq!(found, all, "cut at {cut}");
        }
    }

    #[test]
    fn nonsense_is_an_error_and_takes_no_memory() {
        for wrong in ["HTTP/1.1 400\r\n", "\r\n", ":x\r\n", "*9999999999\r\n", "$9223372036854775807\r\n"] {
            let outcome = Replies.decode(&mut BytesMut::from(wrong));
            assert!(matches!(outcome, Err(_) | Ok(None)), "{wrong}: {outcome:?}");
        }
        let deep = "*1\r\n".repeat(100_000);
        assert!(Replies.decode(&mut BytesMut::from(deep.as_str())).is_err());
    }
}
