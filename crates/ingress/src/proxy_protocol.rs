//! The PROXY protocol, versions 1 and 2: what a load balancer says before the first byte of a connection, so that the client's
//! address is not lost. Read from peers that the configuration trusts, sent to apps that ask for it (`coveProxyProtocol`).
//!
//! Azure has neither; the protocol is that of <https://www.haproxy.org/download/3.1/doc/proxy-protocol.txt>.
//!
//! **Invariant:** exactly the header is taken from the stream: what follows it is still unread.
//! **Invariant:** a trusted peer that sends no header, or a wrong one, is not served: it may be anybody behind it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use cove_model::ProxyProtocol;
use ipnet::IpNet;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::TcpStream,
};

/// First bytes of a header of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Shortest header: `PROXY UNKNOWN` and its line end.
const SHORTEST: usize = 15;
/// Longest header of version 1, its line end included.
const LINE_MAX: usize = 107;
/// Fixed part of a header of version 2.
const FIXED: usize = 16;
/// Longest rest of a header of version 2 that is read: addresses and whatever else the peer wants to tell.
const REST_MAX: usize = 4096;

/// Both ends of a connection as the peer knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The client.
    pub source: SocketAddr,
    /// What the client had connected to.
    pub destination: SocketAddr,
}

/// What the bytes so far say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The header has at least so many bytes.
    Need(usize),
    /// The header is complete.
    Done {
        /// Its bytes.
        len: usize,
        /// `None`: the peer speaks for itself, such as for a health check.
        ends: Option<Ends>,
    },
}

/// Why a header was not taken.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Something else was sent.
    #[error("the connection of a trusted peer does not begin with a PROXY protocol header")]
    Missing,
    /// It breaks the protocol.
    #[error("the PROXY protocol header is not valid: {0}")]
    Malformed(&'static str),
    /// The stream ended or failed.
    #[error("the PROXY protocol header was not received")]
    Stream(#[source] io::Error),
    /// The peer took too long.
    #[error("the PROXY protocol header did not come in time")]
    Late,
}

/// Reads the header at the begin of a stream.
///
/// # Errors
/// [`HeaderError::Missing`] and [`HeaderError::Malformed`].
pub fn parse(bytes: &[u8]) -> Result<Step, HeaderError> {
    if bytes.is_empty() {
        return Ok(Step::Need(SHORTEST));
    }
    let signed = bytes.len().min(SIGNATURE.len());
    if bytes[..signed] == SIGNATURE[..signed] {
        return parse_binary(bytes);
    }
    let named = bytes.len().min(6);
    if bytes[..named] != b"PROXY "[..named] {
        return Err(HeaderError::Missing);
    }
    match bytes.iter().take(LINE_MAX).position(|&byte| byte == b'\n') {
        Some(end) => {
            let line = bytes[..end].strip_suffix(b"\r").ok_or(HeaderError::Malformed("its line ends without CR"))?;
            let line = std::str::from_utf8(line).map_err(|_| HeaderError::Malformed("it is not ASCII"))?;
            Ok(Step::Done { len: end + 1, ends: parse_line(line)? })
        }
        None if bytes.len() >= LINE_MAX => Err(HeaderError::Malformed("its line is longer than 107 bytes")),
        None => Ok(Step::Need((bytes.len() + 1).max(SHORTEST))),
    }
}

fn parse_line(line: &str) -> Result<Option<Ends>, HeaderError> {
    let mut words = line.split(' ');
    let _proxy = words.next();
    let family = words.next().unwrap_or("");
    if family == "UNKNOWN" {
        return Ok(None);
    }
    let words: Vec<&str> = words.collect();
    let [source, destination, source_port, destination_port] = words[..] else {
        return Err(HeaderError::Malformed("expected two addresses and two ports"));
    };
    let address = |text: &str| -> Result<IpAddr, HeaderError> {
        let address = match family {
            "TCP4" => text.parse().map(IpAddr::V4).ok(),
            "TCP6" => text.parse().map(IpAddr::V6).ok(),
            _ => None,
        };
        address.ok_or(HeaderError::Malformed("an address is not one of its family, TCP4 or TCP6"))
    };
    let port = |text: &str| -> Result<u16, HeaderError> {
        let is_plain =
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        let port = is_plain.then(|| text.parse().ok()).flatten();
        port.ok_or(HeaderError::Malformed("a port is not a number from 0 to 65535"))
    };
    Ok(Some(Ends {
        source: SocketAddr::new(address(source)?, port(source_port)?),
        destination: SocketAddr::new(address(destination)?, port(destination_port)?),
    }))
}

fn parse_binary(bytes: &[u8]) -> Result<Step, HeaderError> {
    if bytes.len() < FIXED {
        return Ok(Step::Need(FIXED));
    }
    let (version, family) = (bytes[12], bytes[13]);
    if version >> 4 != 2 {
        return Err(HeaderError::Malformed("its version is not 2"));
    }
    let is_local = match version & 0x0f {
        0 => true,
        1 => false,
        _ => return Err(HeaderError::Malformed("its command is neither LOCAL nor PROXY")),
    };
    let rest = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if rest > REST_MAX {
        return Err(HeaderError::Malformed("it is longer than 4 KiB"));
    }
    let len = FIXED + rest;
    let Some(rest) = bytes.get(FIXED..len) else { return Ok(Step::Need(len)) };
    let ends = match family {
        _ if is_local => None,
        0x11 => Some(ends_of::<4>(rest)?),
        0x21 => Some(ends_of::<16>(rest)?),
        // a family that no TCP client has: the peer speaks for itself
        _ => None,
    };
    Ok(Step::Done { len, ends })
}

/// Two addresses of `N` bytes and two ports.
fn ends_of<const N: usize>(rest: &[u8]) -> Result<Ends, HeaderError> {
    let short = HeaderError::Malformed("it is too short for the addresses of its family");
    let Some(fields) = rest.get(..2 * N + 4) else { return Err(short) };
    let address = |at: usize| -> IpAddr {
        let bytes = &fields[at..at + N];
        match <[u8; 4]>::try_from(bytes) {
            Ok(four) => Ipv4Addr::from(four).into(),
            Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap_or_default()).into(),
        }
    };
    let port = |at: usize| u16::from_be_bytes([fields[at], fields[at + 1]]);
    Ok(Ends {
        source: SocketAddr::new(address(0), port(2 * N)),
        destination: SocketAddr::new(address(N), port(2 * N + 2)),
    })
}

/// The header that tells an app who its client is.
pub(crate) fn encode(version: ProxyProtocol, ends: Ends) -> Vec<u8> {
    let (source, destination) = (ends.source.ip().to_canonical(), ends.destination.ip().to_canonical());
    let (source_port, destination_port) = (ends.source.port(), ends.destination.port());
    let (source, destination) = match (source, destination) {
        (IpAddr::V6(_), IpAddr::V4(v4)) => (source, v4.to_ipv6_mapped().into()),
        (IpAddr::V4(v4), IpAddr::V6(_)) => (v4.to_ipv6_mapped().into(), destination),
        same => same,
    };
    if version == ProxyProtocol::V1 {
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        return format!("PROXY {family} {source} {destination} {source_port} {destination_port}\r\n").into_bytes();
    }
    let mut addresses = Vec::with_capacity(36);
    for address in [source, destination] {
        match address {
            IpAddr::V4(v4) => addresses.extend(v4.octets()),
            IpAddr::V6(v6) => addresses.extend(v6.octets()),
        }
    }
    addresses.extend(source_port.to_be_bytes());
    addresses.extend(destination_port.to_be_bytes());
    let mut header = SIGNATURE.to_vec();
    header.extend([0x21, if source.is_ipv4() { 0x11 } else { 0x21 }]);
    header.extend(u16::try_from(addresses.len()).unwrap_or_default().to_be_bytes());
    header.extend(addresses);
    header
}

/// Takes the header from the begin of a stream.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Ends>, HeaderError> {
    let (mut bytes, mut need) = (Vec::with_capacity(LINE_MAX), SHORTEST);
    loop {
        let had = bytes.len();
        bytes.resize(need, 0);
        stream.read_exact(&mut bytes[had..]).await.map_err(HeaderError::Stream)?;
        match parse(&bytes)? {
            Step::Need(more) => need = more,
            Step::Done { len, ends } if len == bytes.len() => return Ok(ends),
            Step::Done { .. } => return Err(HeaderError::Malformed("it is shorter than any header")),
        }
    }
}

/// The client of a connection that was just accepted: its peer, or whom a trusted peer speaks for.
///
/// # Errors
/// A [`HeaderError`] when a trusted peer sent no valid header within `limit`.
pub(crate) async fn client_of(
    stream: &mut TcpStream,
    peer: SocketAddr,
    trusted: &[IpNet],
    limit: Duration,
) -> Result<SocketAddr, HeaderError> {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    if !trusted.iter().any(|net| net.contains(&peer.ip())) {
        return Ok(peer);
    }
    let ends = tokio::time::timeout(limit, read(stream)).await.map_err(|_late| HeaderError::Late)??;
    Ok(ends.map_or(peer, |ends| SocketAddr::new(ends.source.ip().to_canonical(), ends.source.port())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(source: &str, destination: &str) -> Ends {
        Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn what_is_sent_is_read_again_and_nothing_more() {
        for ends in [ends("203.0.113.7:4711", "198.51.100.1:5432"), ends("[2001:db8::7]:4711", "[2001:db8::1]:65535")] {
            for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
                let mut bytes = encode(version, ends);
                let len = bytes.len();
                bytes.extend(b"SELECT 1");
                assert_eq!(parse(&bytes).unwrap(), Step::Done { len, ends: Some(ends) });
                for cut in 0..len {
                    assert!(matches!(parse(&bytes[..cut]), Ok(Step::Need(more)) if more > cut && more <= len), "{cut}");
                }
            }
        }
        let mixed = encode(ProxyProtocol::V1, ends("203.0.113.7:1", "[2001:db8::1]:2"));
        assert_eq!(String::from_utf8(mixed).unwrap(), "PROXY TCP6 ::ffff:203.0.113.7 2001:db8::1 1 2\r\n");
    }

    #[test]
    fn a_peer_may_speak_for_itself() {
        assert_eq!(parse(b"PROXY UNKNOWN\r\n").unwrap(), Step::Done { len: 15, ends: None });
        assert_eq!(parse(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\nx").unwrap(), Step::Done { len: 35, ends: None });
        let local = [&SIGNATURE[..], &[0x20, 0, 0, 3, 1, 2, 3]].concat();
        assert_eq!(parse(&local).unwrap(), Step::Done { len: 19, ends: None });
        let unix = [&SIGNATURE[..], &[0x21, 0x31, 0, 0]].concat();
        assert_eq!(parse(&unix).unwrap(), Step::Done { len: 16, ends: None });
    }

    #[test]
    fn what_breaks_the_protocol_is_refused() {
        let long = format!("PROXY TCP4 {}\r\n", "1".repeat(120));
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
            b"PROXY TCP4 ::1 ::2 1 2\r\n",
            b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
            b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
            b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n",
            b"PROXY TCP4 \xff.2.3.4 5.6.7.8 1 2\r\n",
            long.as_bytes(),
            &[&SIGNATURE[..], &[0x11, 0x11, 0, 12]].concat(),
            &[&SIGNATURE[..], &[0x22, 0x11, 0, 12]].concat(),
            &[&SIGNATURE[..], &[0x21, 0x11, 0x10, 1]].concat(),
            &[&SIGNATURE[..], &[0x21, 0x11, 0, 4, 1, 2, 3, 4]].concat(),
        ] {
            assert!(parse(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn any_bytes_are_a_header_or_the_begin_of_one_or_refused() {
        let ends = ends("203.0.113.7:4711", "198.51.100.1:5432");
        let seeds = [encode(ProxyProtocol::V1, ends), encode(ProxyProtocol::V2, ends), b"PROXY UNKNOWN\r\n".to_vec()];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        for round in 0..20_000 {
            let mut bytes = seeds[round % seeds.len()].clone();
            for _ in 0..random(4) {
                let (at, byte) = (random(bytes.len()), u8::try_from(random(256)).unwrap());
                match random(3) {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            match parse(&bytes) {
                Ok(Step::Need(more)) => assert!(more > bytes.len() && more <= FIXED + REST_MAX, "{bytes:?}"),
                Ok(Step::Done { len, ends }) => {
                    assert!(len <= bytes.len(), "{bytes:?}");
                    assert_eq!(parse(&bytes[..len]).unwrap(), Step::Done { len, ends }, "{bytes:?}");
                    let begins = (0..len)
                        .all(|cut| matches!(parse(&bytes[..cut]), Ok(Step::Need(more)) if more > cut && more <= len));
                    assert!(begins, "{bytes:?}");
                }
                Err(_) => {}
            }
        }
    }

    #[tokio::test]
    async fn the_stream_goes_on_right_behind_the_header() {
        let ends = ends("203.0.113.7:4711", "198.51.100.1:5432");
        for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
            let mut bytes = encode(version, ends);
            bytes.extend(b"rest");
            let mut stream = &bytes[..];
            assert_eq!(read(&mut stream).await.unwrap(), Some(ends));
            assert_eq!(stream, b"rest");
        }
        assert!(matches!(read(&mut &b"PROXY TCP4 1.2"[..]).await, Err(HeaderError::Stream(_))));
        assert!(matches!(read(&mut &b"PROXY A\r\nGET / HTTP/1.1\r\n\r\n"[..]).await, Err(HeaderError::Malformed(_))));
    }
}
