//! The server's side of a WebSocket: the handshake's answer, then the stream of messages.
//!
//! **Invariant:** a message is at most [`MESSAGE_BYTES_MAX`], so a client cannot make the server hold more.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cove_arm::ArmError;
use http::{HeaderMap, HeaderValue, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use crate::{
    answer::{empty, with_header},
    call::Call,
};

/// Longest message that is taken, bytes.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// An open WebSocket.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A handshake that was asked for rightly.
#[derive(Debug)]
pub(crate) struct Handshake {
    accept: String,
    upgrade: OnUpgrade,
}

impl Handshake {
    /// What a request asks.
    ///
    /// # Errors
    /// 426 when it is no WebSocket handshake of version 13 over HTTP/1.1.
    pub(crate) fn of(call: &Call) -> Result<Self, ArmError> {
        Self::of_parts(call.upgrade.clone(), &call.headers)
    }

    /// What a connection and headers ask.
    ///
    /// # Errors
    /// As [`Handshake::of`].
    pub(crate) fn of_parts(upgrade: Option<OnUpgrade>, headers: &HeaderMap) -> Result<Self, ArmError> {
        let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let has = |name: header::HeaderName, word: &str| {
            text(name).is_some_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
        };
        let key = text(header::SEC_WEBSOCKET_KEY).unwrap_or("");
        let is_key = BASE64.decode(key).is_ok_and(|bytes| bytes.len() == 16);
        let is_asked = has(header::UPGRADE, "websocket")
            && has(header::CONNECTION, "upgrade")
            && has(header::SEC_WEBSOCKET_VERSION, "13")
            && is_key;
        match upgrade {
            Some(upgrade) if is_asked => Ok(Self { accept: derive_accept_key(key.as_bytes()), upgrade }),
            _ => Err(ArmError::new(
                426,
                "UpgradeRequired",
                "This address is a WebSocket: connect with 'wss://', version 13, over HTTP/1.1.",
            )),
        }
    }

    /// 101, to be sent before [`Handshake::open`] can end.
    pub(crate) fn answer(&self) -> axum::response::Response {
        let mut response = empty(101);
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        with_header(response, "sec-websocket-accept", &self.accept)
    }

    /// The connection, once the client has the answer.
    ///
    /// # Errors
    /// When the client went away.
    pub(crate) async fn open(self) -> Result<Socket, hyper::Error> {
        let upgraded = TokioIo::new(self.upgrade.await?);
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        Ok(WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config)).await)
    }
}
