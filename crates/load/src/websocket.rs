//! WebSocket messages that must come back: one at a time per connection.

use bytes::Bytes;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use http::{Request, header};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        self, Message,
        handshake::client::generate_key,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use crate::{
    loss::{Answer, Failure, LossKind, Repeat},
    run::Run,
    wire::Wire,
};

/// A client with at most one connection.
#[derive(Debug, Default)]
pub(crate) struct WebSocket {
    open: Option<WebSocketStream<Wire>>,
    /// Number of the next message.
    number: u64,
    /// Messages on this connection.
    since_open: u64,
}

impl WebSocket {
    /// Sends a message and waits until it is back.
    ///
    /// A caller that gives up in the middle has a client without a connection.
    pub(crate) async fn exchange(&mut self, run: &Run) -> Result<Answer, Failure> {
        let mut socket = match self.idle().await? {
            Some(socket) => socket,
            None => {
                self.since_open = 0;
                connect(run).await?
            }
        };
        self.number += 1;
        let text = format!("{} {}", self.number, run.text);
        let sent = socket.send(Message::text(text.clone())).await;
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(back))) if back.as_str() == text => break,
                Some(Ok(Message::Text(_) | Message::Binary(_))) => {
                    return Err(Failure::new(
                        LossKind::Content,
                        format!("message {} came back as another", self.number),
                    ));
                }
                Some(Ok(Message::Close(frame))) => {
                    let failure =
                        Failure::new(LossKind::Closed, format!("a close frame came instead ({})", code_of(&frame)));
                    finish(socket).await;
                    return Err(if is_fair(&frame) { failure.repeat(Repeat::CrossedClose) } else { failure });
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Err(Failure::new(LossKind::Closed, cut(&error, sent.as_ref().err()))),
                None => return Err(Failure::new(LossKind::Closed, "the connection ended without a close frame")),
            }
        }
        self.since_open += 1;
        self.open = Some(socket);
        if run.plan.messages.is_some_and(|messages| self.since_open >= messages) {
            self.close().await;
        }
        Ok(Answer { status: 101, bytes: text.len() as u64, messages: 1, at: None })
    }

    /// The connection of the last message, unless the server closed it meanwhile with a close frame.
    async fn idle(&mut self) -> Result<Option<WebSocketStream<Wire>>, Failure> {
        let Some(mut socket) = self.open.take() else { return Ok(None) };
        loop {
            match socket.next().now_or_never() {
                None => return Ok(Some(socket)),
                Some(Some(Ok(Message::Close(frame)))) if is_fair(&frame) => {
                    finish(socket).await;
                    return Ok(None);
                }
                Some(Some(Ok(Message::Close(frame)))) => {
                    let text = format!("the server closed an idle connection with {}", code_of(&frame));
                    return Err(Failure::new(LossKind::Closed, text));
                }
                Some(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => {}
                Some(Some(Ok(Message::Text(_) | Message::Binary(_)))) => {
                    return Err(Failure::new(LossKind::Content, "a message came that nobody asked for"));
                }
                Some(Some(Err(error))) => return Err(Failure::new(LossKind::Closed, cut(&error, None))),
                Some(None) => return Err(Failure::new(LossKind::Closed, "the connection ended without a close frame")),
            }
        }
    }

    /// Says goodbye and waits for the answer to it.
    pub(crate) async fn close(&mut self) {
        if let Some(mut socket) = self.open.take() {
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            // a server that is gone already needs no goodbye
            if socket.close(Some(frame)).await.is_ok() {
                finish(socket).await;
            }
        }
    }
}

/// Lets the closing handshake end; what still comes has no reader.
async fn finish(mut socket: WebSocketStream<Wire>) {
    const CLOSE_WAIT: std::time::Duration = std::time::Duration::from_secs(2);
    let ended = async { while let Some(Ok(_)) = socket.next().await {} };
    let _ended_or_late = tokio::time::timeout(CLOSE_WAIT, ended).await;
}

async fn connect(run: &Run) -> Result<WebSocketStream<Wire>, Failure> {
    let wire = run.connect().await?;
    let request = run.websocket_request().map_err(|error| Failure::new(LossKind::Malformed, error.to_string()))?;
    match client_async(request, wire).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => {
            let status = response.status().as_u16();
            Err(Failure::status(status, format!("the handshake was answered {status}")))
        }
        Err(error) => Err(Failure::new(LossKind::Closed, format!("the handshake: {error}"))),
    }
}

/// The handshake's request.
pub(crate) fn request(plan: &crate::Plan) -> Result<Request<()>, http::Error> {
    let target = &plan.target;
    let scheme = if target.is_tls { "wss" } else { "ws" };
    let mut request = Request::builder()
        .uri(format!("{scheme}://{}{}", target.authority, target.path))
        .header(header::HOST, &target.authority)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, generate_key())
        .body(())?;
    for (name, value) in &plan.headers {
        request.headers_mut().insert(name.clone(), value.clone());
    }
    Ok(request)
}

fn cut(error: &tungstenite::Error, sending: Option<&tungstenite::Error>) -> String {
    match sending {
        Some(sending) => format!("failed to send: {sending}"),
        None => error.to_string(),
    }
}

fn code_of(frame: &Option<CloseFrame>) -> u16 {
    frame.as_ref().map_or(1005, |frame| frame.code.into())
}

/// Done, going away, restarting: the server says goodbye and nothing is wrong.
fn is_fair(frame: &Option<CloseFrame>) -> bool {
    matches!(code_of(frame), 1000 | 1001 | 1012)
}

/// The end of every message.
pub(crate) fn text(body: &Bytes) -> String {
    String::from_utf8_lossy(body).into_owned()
}
