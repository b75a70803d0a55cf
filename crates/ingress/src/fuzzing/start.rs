//! Parsers of bytes before and behind HTTP: PROXY headers, HTTP versions, WebSocket frames, certificates that are passed on.

use base64::{Engine, engine::general_purpose::STANDARD};
use cove_model::ProxyProtocol;
use futures_util::FutureExt;
use rustls::pki_types::CertificateDer;
use tokio::io::AsyncReadExt;

use crate::{
    client_certificate,
    io::{Guarded, Protocol, sniff},
    proxy_protocol::{self, Ends, Step},
    websocket::{Frames, GOING_AWAY},
};

/// Longest header of the PROXY protocol that is read.
const PROXY_HEADER_MAX: usize = 16 + 4096;

/// `P`, `W`, `S` or `C`, the size of pieces, the bytes.
///
/// # Panics
/// Something that must hold does not.
pub fn connection_start(input: &[u8]) {
    let [kind, piece, bytes @ ..] = input else { return };
    match kind {
        b'P' => proxy_header(bytes),
        b'W' => frames(bytes, usize::from(*piece).max(1)),
        b'S' => version(bytes, usize::from(*piece)),
        b'C' => certificate(bytes),
        _ => {}
    }
}

/// A header ends at one place, which every begin of it leads to; what it says can be written and read again.
fn proxy_header(bytes: &[u8]) {
    match proxy_protocol::parse(bytes) {
        Ok(Step::Need(more)) => assert!(more > bytes.len() && more <= PROXY_HEADER_MAX, "waits for {more}"),
        Ok(Step::Done { len, ends }) => {
            assert!(len <= bytes.len(), "ends behind its bytes");
            for cut in 0..len {
                let begin = proxy_protocol::parse(&bytes[..cut]);
                assert!(matches!(begin, Ok(Step::Need(more)) if more > cut && more <= len), "{cut}: {begin:?}");
            }
            for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
                let Some(ends) = ends else { continue };
                let written = proxy_protocol::encode(version, ends);
                let read = proxy_protocol::parse(&written);
                let Ok(Step::Done { len, ends: Some(again) }) = read else {
                    panic!("{written:?} is not read: {read:?}")
                };
                assert_eq!((len, plain(again)), (written.len(), plain(ends)));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Without the difference between an address and the same one mapped into IPv6.
fn plain(ends: Ends) -> [(std::net::IpAddr, u16); 2] {
    [ends.source, ends.destination].map(|end| (end.ip().to_canonical(), end.port()))
}

/// Frames end where a reader of the whole finds it, however the bytes come.
fn frames(bytes: &[u8], piece: usize) {
    let (mut frames, mut last) = (Frames::default(), None);
    for (index, part) in bytes.chunks(piece).enumerate() {
        let end = frames.advance(part);
        assert!(end.is_none_or(|at| (1..=part.len()).contains(&at)), "{end:?} of {}", part.len());
        last = end.map(|at| index * piece + at).or(last);
    }
    let (expected, saw_close, is_whole) = whole_frames(bytes);
    assert_eq!((last, frames.saw_close(), frames.is_at_boundary()), (expected, saw_close, is_whole));
    if is_whole {
        assert_eq!(frames.advance(&GOING_AWAY), Some(GOING_AWAY.len()));
        assert!(frames.saw_close());
    }
}

/// The end of the last whole frame, whether a close frame began, whether nothing follows (RFC 6455, 5.2).
fn whole_frames(bytes: &[u8]) -> (Option<usize>, bool, bool) {
    let (mut at, mut last, mut saw_close) = (0, None, false);
    while at < bytes.len() {
        let Some(&[first, second]) = bytes.get(at..at + 2) else { return (last, saw_close, false) };
        let more = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let head = 2 + more + if second & 0x80 == 0 { 0 } else { 4 };
        let Some(rest) = bytes.get(at + 2..at + head) else { return (last, saw_close, false) };
        let length = match more {
            0 => u64::from(second & 0x7f),
            _ => rest[..more].iter().fold(0, |length, &byte| length << 8 | u64::from(byte)),
        };
        saw_close |= first & 0x0f == 8;
        match usize::try_from(length).ok().and_then(|length| (at + head).checked_add(length)) {
            Some(end) if end <= bytes.len() => (at, last) = (end, Some(end)),
            _ => return (last, saw_close, false),
        }
    }
    (last, saw_close, true)
}

/// The version is told by the first bytes, and none of them is lost.
fn version(bytes: &[u8], cut: usize) {
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    let mut stream = Guarded::new(first.chain(second), std::time::Duration::MAX);
    let protocol = sniff(&mut stream).now_or_never().expect("memory never waits").expect("memory never fails");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // the end of the first part reads as the end of the stream only when nothing follows
    let expected = match bytes {
        [] => None,
        _ if bytes.starts_with(preface) => Some(Protocol::Http2),
        _ => Some(Protocol::Http1),
    };
    assert_eq!(protocol, expected);
    let mut read = Vec::new();
    stream.read_to_end(&mut read).now_or_never().expect("memory never waits").expect("memory never fails");
    assert!(read == bytes, "bytes were lost, added or turned around");
}

/// A certificate comes out as it went in, in one header field.
fn certificate(bytes: &[u8]) {
    let parts: Vec<CertificateDer<'_>> = bytes.split(|&byte| byte == b'\n').map(CertificateDer::from).collect();
    let value = client_certificate::forwarded(&parts).expect("every chain can be written");
    let text = value.to_str().expect("percent-encoded text is ASCII");
    let leaf = text.split("Cert=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("the leaf is in quotes");
    let pem = percent_encoding::percent_decode_str(leaf).decode_utf8().expect("PEM is ASCII");
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    assert_eq!(STANDARD.decode(body).expect("PEM holds base64"), parts[0].as_ref());
    assert_eq!(text.matches(['"', ';']).count(), 6, "nothing of it leaves its quotes");
}
