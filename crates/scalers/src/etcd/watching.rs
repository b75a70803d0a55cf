//! Watches an etcd key: each change makes the rule be read at once.
//!
//! **Invariant:** a watch that breaks begins anew at the next endpoint, after a wait that doubles from 2 s to 1 minute.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::Link;
use crate::dial::{Address, Peer};
use crate::source::ReadError;
use crate::tls::TlsOptions;

/// First wait after a watch broke, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Bytes of one message of the watch.
const MESSAGE_MAX: usize = 4 << 20;

/// Follows the key for as long as it is polled.
pub(super) async fn watch(link: Arc<Link>, pushes: watch::Sender<u64>) {
    let mut wait = RETRY.0;
    loop {
        let mut has_heard = false;
        if let Err(error) = follow(&link, &pushes, &mut has_heard).await {
            tracing::debug!(%error, "a watch of etcd broke");
        }
        if has_heard {
            wait = RETRY.0;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
}

/// One watch, until it breaks or gives no sign of life.
async fn follow(link: &Link, pushes: &watch::Sender<u64>, has_heard: &mut bool) -> Result<(), ReadError> {
    let index = link.first.load(Ordering::Relaxed) % link.endpoints.len();
    let endpoint = &link.endpoints[index];
    let broken = |error: &dyn std::fmt::Display| ReadError::new(format!("watch: {error}"));
    let token = link.token().clone();
    let host = endpoint.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let address = Address { host, port: endpoint.port_or_known_default().unwrap_or(80) };
    let authority = address.to_string();
    let tls = match (&link.tls, endpoint.scheme()) {
        (None, "https") => Some(TlsOptions::default()),
        (tls, _) => tls.clone(),
    };
    let wire = Peer::new(address, &link.context).connect(tls.as_ref(), &link.roots).await?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(wire)).await;
    let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let body = json!({ "create_request": { "key": BASE64_STANDARD.encode(&link.key), "progress_notify": true } });
    let mut request = http::Request::post("/v3/watch").header(HOST, authority).header(CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, token);
    }
    let request = request.body(Full::new(Bytes::from(body.to_string()))).map_err(|error| broken(&error))?;
    let mut answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
    if !answer.status().is_success() {
        return Err(broken(&answer.status()));
    }
    let mut text = Vec::new();
    loop {
        let frame = tokio::time::timeout(link.progress * 2, answer.frame()).await;
        let frame = frame.map_err(|_| broken(&"no sign of life"))?;
        let Some(frame) = frame.transpose().map_err(|error| broken(&error))? else {
            return Err(broken(&"it ended"));
        };
        text.extend_from_slice(frame.data_ref().map(|data| &data[..]).unwrap_or_default());
        while let Some(end) = text.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            *has_heard = true;
            let message: serde_json::Value = serde_json::from_slice(&line).map_err(|error| broken(&error))?;
            if message["result"]["canceled"].as_bool() == Some(true) || !message["error"].is_null() {
                return Err(broken(&"the server ended it"));
            }
            if message["result"]["events"].as_array().is_some_and(|events| !events.is_empty()) {
                pushes.send_modify(|count| *count += 1);
            }
        }
        if text.len() > MESSAGE_MAX {
            return Err(broken(&"a message of more than 4 MiB"));
        }
    }
}
