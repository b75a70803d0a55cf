//! HTTP/2 by hand: frames as no library would write them.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::world::soon;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame (RFC 9113, 4.1).
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A block of fields: each a literal that enters no table, without Huffman's code (RFC 7541, 6.2.2).
pub(super) fn block(fields: &[(impl AsRef<[u8]>, impl AsRef<[u8]>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            integer(&mut bytes, text.len());
            bytes.extend_from_slice(text);
        }
    }
    bytes
}

/// A length with a prefix of 7 bits (RFC 7541, 5.1).
pub(super) fn integer(bytes: &mut Vec<u8>, mut value: usize) {
    if value < 0x7f {
        bytes.push(u8::try_from(value).unwrap());
        return;
    }
    bytes.push(0x7f);
    value -= 0x7f;
    while value >= 0x80 {
        bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).unwrap());
}

/// What was heard of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// An answer begins.
    Status(u16),
    /// The stream ended with an error.
    Reset(u32),
    /// The connection will end.
    Away(u32),
    /// The connection ended.
    Closed,
}

/// A client's connection.
pub(super) struct Wire {
    stream: TcpStream,
}

impl Wire {
    /// Opens one with a preface and these settings.
    pub(super) async fn open(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let payload: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat()).await.unwrap();
        Self { stream }
    }

    /// Sends what it can; says whether all of it went.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> bool {
        soon("bytes to be taken", self.stream.write_all(bytes)).await.is_ok()
    }

    /// Sends as long as somebody takes it; says how much went.
    pub(super) async fn flood(&mut self, bytes: &[u8], times: usize) -> usize {
        let mut sent = 0;
        for _ in 0..times {
            match tokio::time::timeout(std::time::Duration::from_secs(1), self.stream.write_all(bytes)).await {
                Ok(Ok(())) => sent += bytes.len(),
                Ok(Err(_)) | Err(_) => break,
            }
        }
        sent
    }

    /// The next frame; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap()) & 0x7fff_ffff;
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some((head[3], head[4], stream, payload))
    }

    /// What is said of a stream first, or of the connection.
    pub(super) async fn heard(&mut self, stream: u32) -> Heard {
        soon("something to be heard", async {
            loop {
                let Some((kind, flags, id, payload)) = self.next().await else { return Heard::Closed };
                let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
                match kind {
                    HEADERS if id == stream => return Heard::Status(status(&payload)),
                    RST_STREAM if id == stream => return Heard::Reset(code(0)),
                    GOAWAY => return Heard::Away(code(4)),
                    SETTINGS if flags & ACK == 0 => {
                        let _ended_already = self.stream.write_all(&frame(SETTINGS, ACK, 0, &[])).await;
                    }
                    PING if flags & ACK == 0 => {
                        let _ended_already = self.stream.write_all(&frame(PING, ACK, 0, &payload)).await;
                    }
                    _ => {}
                }
            }
        })
        .await
    }

    /// Reads until the connection ends; gives the reason if one was told.
    pub(super) async fn end(&mut self) -> Option<u32> {
        soon("the end of the connection", async {
            let mut told = None;
            while let Some((kind, _, _, payload)) = self.next().await {
                if kind == GOAWAY {
                    told = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
                }
            }
            told
        })
        .await
    }
}

/// `:status`, which comes first (RFC 9113, 8.3.2).
fn status(block: &[u8]) -> u16 {
    let at = block.iter().position(|byte| byte & 0xe0 != 0x20).unwrap();
    let known = [200, 204, 206, 304, 400, 404, 500];
    match block[at] {
        indexed @ 0x88..=0x8e => known[usize::from(indexed - 0x88)],
        _ if block[at + 1] & 0x80 == 0 => std::str::from_utf8(&block[at + 2..at + 5]).unwrap().parse().unwrap(),
        _ => {
            // three digits in Huffman's code: `0`, `1` and `2` have 5 bits, the others 6 (RFC 7541, appendix B)
            let length = usize::from(block[at + 1] & 0x7f);
            let bits: Vec<u8> = block[at + 2..at + 2 + length]
                .iter()
                .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1))
                .collect();
            let number = |bits: &[u8]| bits.iter().fold(0, |number, bit| number << 1 | u16::from(*bit));
            let (mut from, mut status) = (0, 0);
            for _ in 0..3 {
                let five = number(&bits[from..from + 5]);
                let digit = if five <= 2 { five } else { number(&bits[from..from + 6]) - 0b1_1001 + 3 };
                from += if five <= 2 { 5 } else { 6 };
                status = status * 10 + digit;
            }
            status
        }
    }
}
