//! What the built-in kinds of pools answer: code, files, MCP, in both generations of Azure's API.
//!
//! The session's own server speaks a small protocol that only this module knows; a client's path never reaches it. Up to
//! `2024-08-02-preview` Azure had `code/execute` and wrapped everything in `properties`; since `2024-10-02-preview` there are
//! `executions` and plain objects. As in Azure each path works with every version, in its own shape; what both generations
//! have (`GET files`) has the shape of the version.
//!
//! **Invariant:** nothing is allocated for a request that cannot be answered. **Invariant:** what a session says is read with
//! limits of size and time, and only what is expected of it is passed on.

use std::{sync::Arc, time::Instant};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use cove_model::{SessionContainer, SessionIdentifier};
use futures_util::StreamExt as _;
use http::{HeaderValue, Method, Request, header};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::Value;

use self::room::Room;
use crate::{
    answer::Refused,
    forward::mark,
    json,
    ports::{Lease, PoolInfo},
    service::{Door, Service, identifier_of, parameter},
};

mod code;
mod files;
mod guest;
mod keep;
mod mcp;
mod outcome;
mod room;
mod variables;

pub(crate) use keep::Executions;
pub(crate) use mcp::wrong_key;
pub(crate) use outcome::{Bundle, Outcome};
pub(crate) use room::Rooms;
pub(crate) use variables::{run_command, run_with};

/// Longest execution in seconds, and the one that is taken when none is asked for.
const SECONDS_MAX: u32 = 220;
const SECONDS_DEFAULT: u32 = 60;
/// Bytes of a request that holds code.
const REQUEST_MAX: usize = 4 << 20;
/// Bytes beyond that which are read and dropped.
const DRAINED_MAX: usize = 16 << 20;
/// The first version of the newer generation.
const NEWER_FROM: &str = "2024-10-02";

/// A request for a session of a built-in kind.
pub(crate) struct Call {
    pub(crate) pool: PoolInfo,
    pub(crate) identifier: SessionIdentifier,
    /// Its version is of the newer generation.
    pub(crate) is_newer: bool,
    pub(crate) query: String,
    /// Where the pool is, as the client wrote it: `https://host/path`.
    pub(crate) base: String,
    pub(crate) begun: Instant,
}

impl Call {
    /// The session, allocated if need be.
    pub(crate) async fn lease(&self, service: &Service) -> Result<Lease, Refused> {
        Ok(service.ports.pools.allocate(&self.pool.id, &self.identifier).await?)
    }
}

/// Whether a request is for the pool's MCP server, which has a key of its own instead of tokens.
pub(crate) fn is_mcp(pool: &PoolInfo, rest: &str) -> bool {
    pool.container != SessionContainer::Custom && rest.trim_end_matches('/') == "/mcp"
}

impl Service {
    /// Answers the MCP server's path.
    pub(crate) async fn mcp(self: &Arc<Self>, pool: PoolInfo, request: Request<Body>) -> Result<Response, Refused> {
        mcp::answer(self, pool, request).await
    }

    /// Answers a path of a built-in kind.
    pub(crate) async fn interpret(
        self: &Arc<Self>,
        pool: PoolInfo,
        (door, rest): (Door, &str),
        request: Request<Body>,
        begun: Instant,
    ) -> Result<Response, Refused> {
        let segments = segments(rest)?;
        let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
        let query = request.uri().query().unwrap_or_default().to_owned();
        if !matches!(parts.first(), Some(&("code" | "executions" | "files"))) {
            return Err(unknown_path(&pool));
        }
        let is_newer = generation(&query)?;
        let identifier = identifier_of(&query)?;
        let base = base_of(&request, door, &pool);
        let call = Call { pool, identifier, is_newer, query, base, begun };
        match (request.method().clone(), &parts[..]) {
            (Method::POST, ["code", "execute"]) => code::execute_older(self, &call, json_body(request).await?).await,
            (Method::POST, ["executions"]) => code::execute(self, call, json_body(request).await?).await,
            (Method::GET, ["executions", id]) => code::show(self, &call, id),
            (_, ["code", "execute"] | ["executions"] | ["executions", _]) => Err(wrong_method()),
            (method, ["files", path @ ..]) => files::answer(self, &call, method, path, request).await,
            _ => Err(unknown_path(&call.pool)),
        }
    }
}

fn wrong_method() -> Refused {
    Refused::new(405, "MethodNotAllowed", "The path is not for this method.")
}

fn unknown_path(pool: &PoolInfo) -> Refused {
    let words = format!(
        "Pools of kind {} have no such path; they have `code/execute`, `executions`, `files`, `session`, `listSessions`, `metadata` and `mcp`.",
        pool.container.as_arm()
    );
    Refused::new(404, "NotFound", words)
}

/// Parts of a path, decoded.
fn segments(rest: &str) -> Result<Vec<String>, Refused> {
    let decode = |part: &str| percent_decode_str(part).decode_utf8().map(String::from);
    let parts: Result<Vec<String>, _> = rest.split('/').filter(|part| !part.is_empty()).map(decode).collect();
    parts.map_err(|_| Refused::new(400, "BadRequest", "The path is not UTF-8."))
}

/// Whether `api-version` is of the newer generation.
fn generation(query: &str) -> Result<bool, Refused> {
    let words = "The query parameter `api-version` is missing or no version; use `2024-02-02-preview` for `code/execute`, or `2025-10-02-preview` for `executions`.";
    let wrong = || Refused::new(400, "MissingApiVersionParameter", words);
    let version = parameter(query, "api-version")?.ok_or_else(wrong)?;
    let date = version.get(..10).ok_or_else(wrong)?;
    if date.parse::<jiff::civil::Date>().is_err() || !matches!(&version[10..], "" | "-preview") {
        return Err(wrong());
    }
    Ok(date >= NEWER_FROM)
}

/// The pool's address as the client wrote it, without a slash at the end. The ingress says when that was without TLS.
pub(crate) fn base_of(request: &Request<Body>, door: Door, pool: &PoolInfo) -> String {
    let field = request.headers().get(header::HOST).and_then(|value| value.to_str().ok());
    let host = field.or_else(|| request.uri().authority().map(http::uri::Authority::as_str)).unwrap_or("localhost");
    let path = match door {
        Door::Host => String::new(),
        Door::Path => {
            let id = &pool.id;
            format!(
                "/subscriptions/{}/resourceGroups/{}/sessionPools/{}",
                id.subscription(),
                id.group_name(),
                id.name()
            )
        }
    };
    let plain = request.headers().get("x-forwarded-proto").is_some_and(|scheme| scheme == "http");
    let scheme = if door == Door::Host && plain { "http" } else { "https" };
    format!("{scheme}://{host}{path}")
}

/// Reads a small body. One that is too long is read on for a while, since a client that is cut off while it sends may never
/// see why.
pub(crate) async fn whole(body: Body) -> Result<Vec<u8>, Refused> {
    let too_large = || {
        let words = format!("The request is larger than {} MiB; upload large inputs as files.", REQUEST_MAX >> 20);
        Refused::new(413, "RequestEntityTooLarge", words)
    };
    let (mut kept, mut count) = (Vec::new(), 0);
    let mut pieces = body.into_data_stream();
    let read = async {
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|_| Refused::new(400, "BadRequest", "The request was cut off."))?;
            count += piece.len();
            match count {
                0..=REQUEST_MAX => kept.extend_from_slice(&piece),
                count if count > REQUEST_MAX + DRAINED_MAX => return Err(too_large()),
                _ => kept.clear(),
            }
        }
        if count > REQUEST_MAX { Err(too_large()) } else { Ok(kept) }
    };
    let late = |_| Refused::new(408, "RequestTimeout", "The request's body did not come in time.");
    tokio::time::timeout(guest::SHORT, read).await.map_err(late)?
}

/// A small body of JSON.
async fn json_body(request: Request<Body>) -> Result<Value, Refused> {
    let bytes = whole(request.into_body()).await?;
    let value = json::tree(&bytes)?;
    if value.is_object() {
        return Ok(value);
    }
    Err(Refused::new(400, "InvalidRequestContent", "The body must be a JSON object."))
}

/// JSON text of what is shown.
fn written(shown: &impl Serialize) -> Bytes {
    let bytes = serde_json::to_vec(shown).expect("texts, numbers and what was JSON before can be written");
    // without what the vector has to spare, since it may be kept for an hour
    Bytes::from(bytes.into_boxed_slice())
}

/// An answer of JSON with the fields that say which session gave it and how long it took.
fn answered(status: u16, (bytes, room): (Bytes, Room), lease: &Lease, begun: Instant, sent: Instant) -> Response {
    let length = bytes.len();
    let mut response = Response::new(room.into_body(bytes));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    mark(headers, &lease.allocation.session.guid, sent.elapsed(), begun);
    response
}

#[cfg(test)]
mod tests;
