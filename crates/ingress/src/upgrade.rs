//! Connections that stop being HTTP: WebSocket and every other `Upgrade` over HTTP/1.1.
//!
//! Bytes are copied both ways and the request stays open until both ends are done. When the replica's or the server's time to
//! drain is over, a WebSocket client gets `1001 going away` between two frames, then the end of the stream.
//!
//! **Invariant:** nothing is put inside a frame of the app's.

use std::{sync::Arc, time::Duration};

use cove_base::{OnCancel, OnError, TaskKind};
use http::{HeaderValue, Response, header};
use hyper::upgrade::{OnUpgrade, Upgraded, on};
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

/// Answers 101 and copies from then on; the tunnel holds ticket and lease.
///
/// # Errors
/// [`Refusal::UpstreamInvalid`] when the answer names no protocol.
pub(crate) fn switch(
    proxy: &Arc<Proxy>,
    client: &Client,
    ticket: Ticket,
    answered: Answered,
    client_side: OnUpgrade,
) -> Result<Response<ResponseBody>, Refusal> {
    let Answered { mut response, lease, .. } = answered;
    let protocol = headers::upgrade(response.version(), response.headers()).ok_or(Refusal::UpstreamInvalid)?;
    let is_websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
    let app = on(&mut response);
    let (mut head, _no_body) = response.into_parts();
    headers::remove_hop_by_hop(&mut head.headers);
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    head.headers.insert(header::UPGRADE, protocol);
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
    let evicted = async {
        tokio::select! {
            () = proxy.evict.cancelled() => {}
            () = lease.replica().evicted() => {}
        }
    };
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
