//! As much of AMQP 0-9-1 as a passive declaration needs: log in, open a channel, ask how many messages are ready.
//!
//! All rules of one broker, user and virtual host share a connection and ask in turn; a question is one round trip.
//!
//! **Invariant:** a connection is put back only after its answer was read; whoever gives up in between closes it.
//! **Invariant:** frames longer than [`FRAME_MAX`] are refused, whatever the peer says.

use std::fmt;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Mutex;

use crate::dial::Peer;
use crate::keys;
use crate::net::Wire;
use crate::pool::Pool;
use crate::source::ReadError;
use crate::tls::{Roots, TlsOptions};

/// Bytes of a frame.
const FRAME_MAX: u32 = 128 << 10;
/// Ends every frame.
const FRAME_END: u8 = 0xCE;
/// The kinds of frames that a server sends.
const METHOD: u8 = 1;
const HEARTBEAT: u8 = 8;

/// Class and method.
type Method = (u16, u16);
const START: Method = (10, 10);
const START_OK: Method = (10, 11);
const TUNE: Method = (10, 30);
const TUNE_OK: Method = (10, 31);
const OPEN: Method = (10, 40);
const OPEN_OK: Method = (10, 41);
const CLOSE: Method = (10, 50);
const CHANNEL_OPEN: Method = (20, 10);
const CHANNEL_OPEN_OK: Method = (20, 11);
const CHANNEL_CLOSE: Method = (20, 40);
const CHANNEL_CLOSE_OK: Method = (20, 41);
const DECLARE: Method = (50, 10);
const DECLARE_OK: Method = (50, 11);
/// The only channel.
const CHANNEL: u16 = 1;

/// The connections to all brokers.
#[derive(Debug, Default)]
pub(crate) struct Brokers {
    pool: Pool<(Peer, Login), Arc<Desk>>,
    roots: Roots,
}

/// A shared connection; `None` = somebody gave up in the middle of an answer.
type Desk = Mutex<Option<Connection>>;

/// How to enter a broker.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Login {
    pub(super) username: String,
    pub(super) password: String,
    pub(super) vhost: String,
    pub(super) tls: Option<TlsOptions>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("vhost", &self.vhost).field("tls", &self.tls).finish_non_exhaustive()
    }
}

/// Why there is no count.
enum Failure {
    /// The broker understood and refused; the connection is fine.
    Refused(String),
    /// The connection is of no use any more.
    Broken(String),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

impl Failure {
    fn reason(&self) -> &str {
        match self {
            Self::Refused(reason) | Self::Broken(reason) => reason,
        }
    }
}

impl Brokers {
    pub(crate) fn new(roots: Roots) -> Self {
        Self { roots, ..Self::default() }
    }

    /// Messages of `queue` that are ready.
    ///
    /// # Errors
    /// The broker cannot be reached or entered, or has no such queue.
    pub(super) async fn messages(&self, peer: Peer, login: &Login, queue: &str) -> Result<u32, ReadError> {
        let address = peer.address.to_string();
        let key = (peer, login.clone());
        let connect = || async {
            let connection = Connection::open(&key.0, login, &self.roots).await?;
            Ok(Arc::new(Mutex::new(Some(connection))))
        };
        let mut failed = String::new();
        // A connection that was idle may be dead; then one more is made.
        for _ in 0..2 {
            let desk = self.pool.get(&key, connect).await?;
            let mut place = desk.lock().await;
            if let Some(mut connection) = place.take() {
                match connection.messages(queue).await {
                    Ok(count) => {
                        *place = Some(connection);
                        return Ok(count);
                    }
                    Err(Failure::Refused(reason)) => {
                        *place = Some(connection);
                        return Err(ReadError::new(format!("{address}: {reason}")));
                    }
                    Err(Failure::Broken(reason)) => failed = reason,
                }
            }
            drop(place);
            self.pool.forget_if(&key, |other| Arc::ptr_eq(other, &desk)).await;
        }
        Err(ReadError::new(format!("{address}: {failed}")))
    }
}

/// One connection with its channel.
struct Connection {
    wire: Box<dyn Wire>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    async fn open(peer: &Peer, login: &Login, roots: &Roots) -> Result<Self, ReadError> {
        let wire = peer.connect(login.tls.as_ref(), roots).await?;
        let mut connection = Self { wire };
        let opened = connection.log_in(login).await;
        opened.map_err(|failure| ReadError::new(format!("{}: {}", peer.address, failure.reason())))?;
        Ok(connection)
    }

    async fn log_in(&mut self, login: &Login) -> Result<(), Failure> {
        self.wire.write_all(b"AMQP\0\0\x09\x01").await?;
        self.wire.flush().await?;
        self.expect(START).await?;
        let mut ok = BytesMut::new();
        // A wrong password is then said and not only shown by hanging up.
        let mut can = BytesMut::new();
        put_short(&mut can, "authentication_failure_close");
        can.put_slice(b"t\x01");
        let mut client = BytesMut::new();
        put_short(&mut client, "capabilities");
        client.put_u8(b'F');
        put_long(&mut client, &can);
        put_long(&mut ok, &client);
        put_short(&mut ok, "PLAIN");
        put_long(&mut ok, format!("\0{}\0{}", login.username, login.password).as_bytes());
        put_short(&mut ok, "en_US");
        self.send(0, START_OK, &ok).await?;
        let mut tune = self.expect(TUNE).await?;
        if tune.len() < 8 {
            return Err(strange());
        }
        let (channels, frame) = (tune.get_u16(), tune.get_u32());
        let mut ok = BytesMut::new();
        ok.put_u16(channels);
        ok.put_u32(if frame == 0 { FRAME_MAX } else { frame.min(FRAME_MAX) });
        // No heartbeats: a dead connection shows at the next question.
        ok.put_u16(0);
        self.send(0, TUNE_OK, &ok).await?;
        let mut open = BytesMut::new();
        put_short(&mut open, &login.vhost);
        open.put_slice(b"\0\0");
        self.send(0, OPEN, &open).await?;
        self.expect(OPEN_OK).await?;
        self.open_channel().await
    }

    async fn open_channel(&mut self) -> Result<(), Failure> {
        self.send(CHANNEL, CHANNEL_OPEN, b"\0").await?;
        self.expect(CHANNEL_OPEN_OK).await.map(drop)
    }

    async fn messages(&mut self, queue: &str) -> Result<u32, Failure> {
        let mut declare = BytesMut::new();
        declare.put_u16(0);
        put_short(&mut declare, queue);
        // Passive, and no arguments.
        declare.put_slice(b"\x01\0\0\0\0");
        self.send(CHANNEL, DECLARE, &declare).await?;
        match self.expect(DECLARE_OK).await {
            Ok(mut ok) => {
                let name = usize::from(*ok.first().ok_or_else(strange)?) + 1;
                if ok.len() < name + 8 {
                    return Err(strange());
                }
                ok.advance(name);
                Ok(ok.get_u32())
            }
            Err(Failure::Refused(reason)) => {
                // The broker closed the channel for it.
                self.send(CHANNEL, CHANNEL_CLOSE_OK, b"").await?;
                self.open_channel().await.map_err(|failure| Failure::Broken(failure.reason().to_owned()))?;
                Err(Failure::Refused(reason))
            }
            Err(broken) => Err(broken),
        }
    }

    async fn send(&mut self, channel: u16, method: Method, arguments: &[u8]) -> Result<(), Failure> {
        let mut frame = BytesMut::new();
        frame.put_u8(METHOD);
        frame.put_u16(channel);
        frame.put_u32(u32::try_from(arguments.len() + 4).map_err(|_| strange())?);
        frame.put_u16(method.0);
        frame.put_u16(method.1);
        frame.put_slice(arguments);
        frame.put_u8(FRAME_END);
        self.wire.write_all(&frame).await?;
        Ok(self.wire.flush().await?)
    }

    /// The arguments of `method`, which must be what comes next.
    async fn expect(&mut self, method: Method) -> Result<BytesMut, Failure> {
        loop {
            let mut head = [0; 7];
            self.wire.read_exact(&mut head).await?;
            if head.starts_with(b"AMQP") {
                return Err(Failure::Broken("the broker speaks another version of AMQP".into()));
            }
            let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
            if length > FRAME_MAX {
                return Err(strange());
            }
            let mut body = vec![0; usize::try_from(length).map_err(|_| strange())? + 1];
            self.wire.read_exact(&mut body).await?;
            if body.pop() != Some(FRAME_END) {
                return Err(strange());
            }
            match head[0] {
                HEARTBEAT => {}
                METHOD if body.len() >= 4 => {
                    let mut arguments = BytesMut::from(&body[..]);
                    let came = (arguments.get_u16(), arguments.get_u16());
                    return match came {
                        came if came == method => Ok(arguments),
                        CHANNEL_CLOSE => Err(Failure::Refused(said(&arguments))),
                        CLOSE => Err(Failure::Broken(said(&arguments))),
                        _ => Err(strange()),
                    };
                }
                _ => return Err(strange()),
            }
        }
    }
}

fn strange() -> Failure {
    Failure::Broken("the peer does not speak AMQP 0-9-1".into())
}

/// The text of a close: `404 NOT_FOUND - no queue …`.
fn said(arguments: &[u8]) -> String {
    let text = match arguments {
        [_, _, length, rest @ ..] => rest.get(..usize::from(*length)).unwrap_or_default(),
        _ => &[],
    };
    format!("the broker says: {}", keys::short(&String::from_utf8_lossy(text)))
}

/// A text of at most 255 bytes; what is longer was refused when the rule was opened, or is cut.
fn put_short(out: &mut BytesMut, text: &str) {
    let bytes = &text.as_bytes()[..text.len().min(255)];
    out.put_u8(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    out.put_slice(bytes);
}

fn put_long(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}
