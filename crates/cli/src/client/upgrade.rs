//! Connections that change their protocol: consoles and forwarded ports.
//!
//! **Invariant:** they go over HTTP/1.1, which alone can be upgraded.

use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::{Body, Response, StatusCode, Upgraded};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::client::generate_key, protocol::Role},
};

use super::{ANSWER_LIMIT, Client, body_of, builder, causes, refused};
use crate::failure::Failure;

/// An open WebSocket.
pub(crate) type Socket = WebSocketStream<Upgraded>;

impl Client {
    /// A WebSocket at a path or URL.
    pub(crate) async fn websocket(&self, path: &str) -> Result<Socket, Failure> {
        let key = generate_key();
        let headers = [("upgrade", "websocket"), ("sec-websocket-version", "13"), ("sec-websocket-key", &key)];
        let upgraded = self.upgrade(path, &headers).await?;
        Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await)
    }

    /// A byte stream to a port of a replica.
    pub(crate) async fn port(&self, path: &str) -> Result<Upgraded, Failure> {
        self.upgrade(path, &[("upgrade", "tcp")]).await
    }

    async fn upgrade(&self, path: &str, headers: &[(&str, &str)]) -> Result<Upgraded, Failure> {
        let http = builder(self.certificate.as_ref(), &self.api).http1_only().build();
        let http = http.map_err(|error| Failure::new(causes(&error)))?;
        let mut request = http.get(self.url(path)).bearer_auth(&self.token).header("connection", "Upgrade");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        // not on the request itself: that limit would hold for the whole stream
        let response = tokio::time::timeout(ANSWER_LIMIT, request.send())
            .await
            .map_err(|_| Failure::new(format!("no answer within {} s", ANSWER_LIMIT.as_secs())))?
            .map_err(|error| self.unreachable(&error))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            refused(response).await?;
            return Err(Failure::new("the server did not change the protocol; is something between us and it?"));
        }
        tokio::time::timeout(Duration::from_secs(10), response.upgrade())
            .await
            .map_err(|_| Failure::new("the server did not change the protocol in time"))?
            .map_err(|error| Failure::new(causes(&error)))
    }

    /// `PUT` of a stream of bytes, with no limit of time.
    pub(crate) async fn upload(&self, path: &str, body: Body) -> Result<serde_json::Value, Failure> {
        let request = self.http.put(self.url(path)).bearer_auth(&self.token).body(body);
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        body_of(refused(response).await?).await
    }

    /// `POST` of one file as a form, with no limit of time.
    pub(crate) async fn post_file(&self, path: &str, name: &str, bytes: Vec<u8>) -> Result<serde_json::Value, Failure> {
        // a boundary that is not in the file: random, and as long as it takes
        let boundary = format!("cove-{}", generate_key().replace(['+', '/', '='], "x"));
        let name: String = name.chars().map(|c| if matches!(c, '"' | '\\' | '\r' | '\n') { '_' } else { c }).collect();
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\nContent-Type: application/octet-stream\r\n\r\n"
        );
        let body = [head.into_bytes(), bytes, format!("\r\n--{boundary}--\r\n").into_bytes()].concat();
        let request = self.http.post(self.url(path)).bearer_auth(&self.token);
        let request = request.header("content-type", format!("multipart/form-data; boundary={boundary}")).body(body);
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        body_of(refused(response).await?).await
    }

    /// The first bytes of a stream, then no more of it.
    pub(crate) async fn first_bytes(response: Response, count: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        let mut stream = response.bytes_stream();
        while bytes.len() < count {
            match stream.next().await {
                Some(piece) => bytes.extend_from_slice(&piece.map_err(|error| Failure::new(causes(&error)))?),
                None => break,
            }
        }
        Ok(bytes)
    }
}
