//! Asks the resolvers of this machine on behalf of a replica.
//!
//! Each query has a socket of its own, thus a random port, and is passed on byte for byte. Resolvers are tried in
//! the order of the file, each with its share of the time; one that refuses the connection costs nothing.
//!
//! **Invariant:** an answer of some kind comes within [`FORWARD_TIMEOUT`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message::{Query, framed};

/// Longest time until a forwarded query is answered.
pub const FORWARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Resolvers used at most, as in the C library.
const RESOLVERS_MAX: usize = 3;

/// How often the file of resolvers is looked at.
const RECHECK_AFTER: Duration = Duration::from_secs(2);

/// RCODE of an answer that says "I failed"; another resolver may know.
const SERVFAIL: u8 = 2;

/// The resolvers of this machine.
#[derive(Debug)]
pub(super) struct Upstreams {
    file: PathBuf,
    /// Our own address, which must not be asked.
    own: SocketAddr,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    servers: Arc<[SocketAddr]>,
    modified: Option<SystemTime>,
    checked: Option<Instant>,
}

impl Upstreams {
    pub(super) fn new(file: PathBuf, own: SocketAddr) -> Self {
        Self { file, own, known: Mutex::new(Known { servers: Arc::new([]), modified: None, checked: None }) }
    }

    fn servers(&self) -> Arc<[SocketAddr]> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.checked.is_none_or(|at| at.elapsed() >= RECHECK_AFTER) {
            known.checked = Some(Instant::now());
            let modified = std::fs::metadata(&self.file).and_then(|meta| meta.modified()).ok();
            if modified != known.modified || known.servers.is_empty() {
                let text = std::fs::read_to_string(&self.file).unwrap_or_default();
                let servers = parse(&text).into_iter().filter(|server| *server != self.own);
                known.servers = servers.take(RESOLVERS_MAX).collect();
                known.modified = modified;
            }
        }
        Arc::clone(&known.servers)
    }

    /// Asks by UDP; the answer is never empty.
    pub(super) async fn ask_udp(&self, query: &Query) -> Vec<u8> {
        self.ask(query, |server| ask_one_udp(query, server)).await
    }

    /// Asks by TCP; the answer is never empty.
    pub(super) async fn ask_tcp(&self, query: &Query) -> Vec<u8> {
        self.ask(query, |server| ask_one_tcp(query, server)).await
    }

    async fn ask<F: Future<Output = io::Result<Vec<u8>>>>(
        &self,
        query: &Query,
        ask_one: impl Fn(SocketAddr) -> F,
    ) -> Vec<u8> {
        let servers = self.servers();
        if servers.is_empty() {
            return query.error(ResponseCode::Refused);
        }
        let deadline = Instant::now() + FORWARD_TIMEOUT;
        let mut last = None;
        for (asked, server) in servers.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(servers.len() - asked).unwrap_or(1);
            match timeout(share, ask_one(*server)).await {
                Ok(Ok(answer)) if answer[3] & 0x0f != SERVFAIL => return answer,
                Ok(Ok(answer)) => last = Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "failed to ask a resolver"),
                Err(_late) => tracing::debug!(%server, "a resolver did not answer"),
            }
        }
        last.unwrap_or_else(|| query.error(ResponseCode::ServFail))
    }
}

async fn ask_one_udp(query: &Query, server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&query.raw).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if query.is_answered_by(&buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_one_tcp(query: &Query, server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&framed(&query.raw)).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if query.is_answered_by(&answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Name servers of a `resolv.conf`, in order; `address:port` is understood too.
fn parse(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next())??;
        let with_port = address.parse::<SocketAddr>().ok();
        with_port.or_else(|| Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, 53)))
    });
    servers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_the_c_library_does() {
        let text = "# made by hand\nsearch corp\nnameserver 127.0.0.53\n nameserver\t10.0.0.2 \nnameserver ::1\n\
                    nameserver fe80::1%eth0\nnameserver\nnameserver 10.0.0.3:5353\n";
        let expected: Vec<SocketAddr> =
            ["127.0.0.53:53", "10.0.0.2:53", "[::1]:53", "10.0.0.3:5353"].map(|s| s.parse().unwrap()).into();
        assert_eq!(parse(text), expected);
    }
}
