//! Connections that stop being HTTP: WebSocket and every other `Upgrade` over HTTP/1.1, WebSocket in a stream of HTTP/2.
//!
//! Over HTTP/2 a client asks by an extended CONNECT (RFC 8441); the app is asked over HTTP/1.1 all the same, with a key that is
//! made here.
//!
//! Bytes are copied both ways and the request stays open until both ends are done. When the replica's or the server's time to
//! drain is over, a WebSocket client gets `1001 going away` between two frames, then the end of the stream.
//!
//! **Invariant:** nothing is put inside a frame of the app's.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cove_base::{OnCancel, OnError, Rare, TaskKind};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::{
    ext::Protocol,
    upgrade::{OnUpgrade, Upgraded, on},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    sync::watch,
};

use crate::{
    answer::Refusal,
    body::ResponseBody,
    gate::{Lease, Ticket},
    headers,
    observe::Seen,
    proxy::{Client, Proxy},
    unread::ClientBody,
    upstream::Answered,
    websocket::{Frames, GOING_AWAY},
};

const TUNNEL: TaskKind = TaskKind { name: "ingress-tunnel", on_error: OnError::Log, on_cancel: OnCancel::Abort };

/// Bytes copied at once, per direction.
const COPY_BYTES: usize = 16 << 10;
/// How long an evicted app may take to finish the frame it is in, and then the client to answer the close frame.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

type Reader = ReadHalf<TokioIo<Upgraded>>;
type Writer = WriteHalf<TokioIo<Upgraded>>;

/// Appended to a key before it is hashed (RFC 6455, 1.3).
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What an extended CONNECT asks for, and the only thing that it may.
const WEBSOCKET: &[u8] = b"websocket";

/// A client's wish to go on with another protocol.
pub(crate) struct Wish {
    protocol: HeaderValue,
    client_side: OnUpgrade,
    /// Sent to the app for a client that sends none: over HTTP/2.
    key: Option<HeaderValue>,
}

/// An extended CONNECT for a WebSocket (RFC 8441, 4).
pub(crate) fn is_websocket_stream<B>(request: &Request<B>) -> bool {
    let protocol = request.extensions().get::<Protocol>();
    request.method() == Method::CONNECT
        && request.version() == Version::HTTP_2
        && protocol.is_some_and(|protocol| protocol.as_ref() == WEBSOCKET)
}

impl Wish {
    /// What a request asks for, if anything. One in a stream of HTTP/2 has become a `GET` already, which is what it means.
    pub(crate) fn of(request: &mut Request<ClientBody>) -> Option<Self> {
        if request.extensions().get::<Protocol>().is_some() {
            let key = BASE64.encode(rand::random::<[u8; 16]>());
            let key = HeaderValue::try_from(key).expect("Base64 is a header value");
            let protocol = HeaderValue::from_static("websocket");
            return Some(Self { protocol, client_side: on(request), key: Some(key) });
        }
        let protocol = headers::upgrade(request.version(), request.headers())?;
        Some(Self { protocol, client_side: on(request), key: None })
    }

    /// Of a stream of HTTP/2.
    pub(crate) fn is_stream(&self) -> bool {
        self.key.is_some()
    }

    /// Asks the app for it.
    pub(crate) fn ask(&self, fields: &mut HeaderMap) {
        fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        fields.insert(header::UPGRADE, self.protocol.clone());
        if let Some(key) = &self.key {
            fields.insert(header::SEC_WEBSOCKET_KEY, key.clone());
        }
    }

    /// An answer that does not switch; over HTTP/2 a success would mean that it did.
    ///
    /// # Errors
    /// [`Refusal::UpstreamInvalid`]
    pub(crate) fn check_refusal(&self, status: StatusCode) -> Result<(), Refusal> {
        if self.key.is_some() && status.is_success() { Err(Refusal::UpstreamInvalid) } else { Ok(()) }
    }

    /// Whether the app read our key, if we sent one.
    fn is_accepted(&self, fields: &HeaderMap) -> bool {
        let Some(key) = &self.key else { return true };
        let text = [key.as_bytes(), KEY_SUFFIX.as_bytes()].concat();
        let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
        fields.get(header::SEC_WEBSOCKET_ACCEPT).is_some_and(|accept| accept == BASE64.encode(digest).as_str())
    }

    /// The head of the answer that switches.
    fn answer(&self, head: &mut http::response::Parts, protocol: HeaderValue) {
        headers::remove_hop_by_hop(&mut head.headers);
        if self.key.is_some() {
            // RFC 8441, 5: the stream is the tunnel, there is no other status and no key
            head.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
            (head.status, head.version) = (StatusCode::OK, Version::HTTP_2);
        } else {
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(header::UPGRADE, protocol);
        }
    }
}

/// Answers that it switches and copies from then on; the tunnel holds ticket and lease.
///
/// # Errors
/// [`Refusal::UpstreamInvalid`] when the answer names no protocol, or was made for another key.
pub(crate) fn switch(
    proxy: &Arc<Proxy>,
    client: &Client,
    ticket: Ticket,
    answered: Answered,
    wish: Wish,
) -> Result<Response<ResponseBody>, Refusal> {
    let Answered { mut response, lease, connection, .. } = answered;
    let protocol = headers::upgrade(response.version(), response.headers()).ok_or(Refusal::UpstreamInvalid)?;
    let is_websocket = protocol.as_bytes().eq_ignore_ascii_case(WEBSOCKET);
    if !wish.is_accepted(response.headers()) {
        return Err(Refusal::UpstreamInvalid);
    }
    if let Some(seen) = ticket.seen() {
        seen.upgraded();
    }
    let app = on(&mut response);
    connection.release(&proxy.shared.tasks);
    let (mut head, _no_body) = response.into_parts();
    wish.answer(&mut head, protocol);
    let client_side = wish.client_side;
    let proxy_of_task = Arc::clone(proxy);
    let (tracked, permit) = (proxy.tunnels.token(), Arc::clone(&client.permit));
    proxy.shared.tasks.spawn(TUNNEL, async move {
        let ends = tokio::time::timeout(proxy_of_task.shared.config.connect_timeout, async {
            tokio::try_join!(client_side, app)
        });
        match ends.await {
            Ok(Ok(ends)) => tunnel(&proxy_of_task, (&ticket, &lease), ends, is_websocket).await,
            Ok(Err(error)) => tracing::debug!(%error, "an upgrade was not completed"),
            Err(_late) => tracing::debug!("an upgrade was not completed in time"),
        }
        drop((ticket, lease, tracked, permit));
    });
    Ok(Response::from_parts(head, ResponseBody::empty()))
}

async fn tunnel(
    proxy: &Proxy,
    (ticket, lease): (&Ticket, &Lease),
    (client, app): (Upgraded, Upgraded),
    is_websocket: bool,
) {
    let seen = ticket.seen().map(Arc::as_ref);
    let (client_reader, client_writer) = split(TokioIo::new(client));
    let (app_reader, app_writer) = split(TokioIo::new(app));
    let (client_closed, client_close) = watch::channel(false);
    let evicted = Rare::new(async {
        tokio::select! {
            () = proxy.evict.cancelled() => {}
            () = lease.replica().evicted() => {}
        }
    });
    let up = to_app(client_reader, app_writer, seen, is_websocket, client_closed);
    let leaving = || lease.replica().is_draining() || proxy.evict.is_cancelled();
    let down = to_client((app_reader, client_writer, seen), is_websocket, evicted, leaving, client_close);
    tokio::pin!(up, down);
    tokio::select! {
        // the client is told all that the app said; what the client still says then has no listener
        () = &mut down => {}
        gone = &mut up => if !gone { down.await },
    }
}

/// Copies from the client to the app; says whether the client is gone for good.
async fn to_app(
    mut reader: Reader,
    mut writer: Writer,
    seen: Option<&Seen>,
    is_websocket: bool,
    closed: watch::Sender<bool>,
) -> bool {
    let mut buffer = vec![0; COPY_BYTES];
    let mut frames = Frames::default();
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) => {
                let _app_is_gone_too = writer.shutdown().await;
                closed.send_replace(true);
                return false;
            }
            Ok(count) => {
                if let Some(seen) = seen {
                    seen.received(count as u64);
                }
                if is_websocket {
                    frames.advance(&buffer[..count]);
                    if frames.saw_close() {
                        closed.send_replace(true);
                    }
                }
                if writer.write_all(&buffer[..count]).await.is_err() {
                    // the app is gone: what it still said is in the other direction
                    return false;
                }
            }
            Err(_reset) => return true,
        }
    }
}

/// Copies from the app to the client until either ends or the tunnel is evicted.
async fn to_client(
    (mut reader, mut writer, seen): (Reader, Writer, Option<&Seen>),
    is_websocket: bool,
    evicted: impl Future<Output = ()>,
    is_leaving: impl Fn() -> bool,
    mut client_close: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; COPY_BYTES];
    let mut frames = Frames::default();
    let mut is_evicted = false;
    let mut is_cut = false;
    tokio::pin!(evicted);
    let last_frame = tokio::time::sleep(CLOSE_WAIT);
    tokio::pin!(last_frame);
    loop {
        if is_evicted && (!is_websocket || frames.is_at_boundary()) {
            break;
        }
        tokio::select! {
            () = &mut evicted, if !is_evicted => {
                is_evicted = true;
                last_frame.as_mut().reset(tokio::time::Instant::now() + CLOSE_WAIT);
            }
            () = &mut last_frame, if is_evicted => break,
            read = reader.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    let mut bytes = &buffer[..count];
                    if is_websocket {
                        let boundary = frames.advance(bytes);
                        if is_evicted && let Some(boundary) = boundary && !frames.saw_close() {
                            bytes = &bytes[..boundary];
                        }
                    }
                    if writer.write_all(bytes).await.is_err() {
                        return;
                    }
                    if let Some(seen) = seen {
                        seen.sent(bytes.len() as u64);
                    }
                    if is_evicted && bytes.len() < count {
                        is_cut = true;
                        break;
                    }
                }
            },
        }
    }
    let can_close = is_cut || frames.is_at_boundary() && !frames.saw_close();
    if is_websocket && can_close && (is_evicted || is_leaving()) {
        let close = async {
            writer.write_all(&GOING_AWAY).await?;
            writer.flush().await
        };
        if close.await.is_ok() {
            let _answer_or_late = tokio::time::timeout(CLOSE_WAIT, client_close.wait_for(|closed| *closed)).await;
        }
    }
    let _client_is_gone = writer.shutdown().await;
}
