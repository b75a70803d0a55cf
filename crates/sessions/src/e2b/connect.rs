//! The Connect protocol with JSON, as far as the SDKs use it: plain calls, and answers that are streams of messages.
//!
//! A message of a stream is a byte of flags, four of length and that many of JSON; the last one has a flag of its own and says
//! how it ended. Source: connectrpc.com, "Protocol reference".

use axum::{body::Body, response::Response};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::answer::Refused;

/// Flag of the last message.
const END: u8 = 2;
/// Flag of a compressed one.
const COMPRESSED: u8 = 1;

/// Statuses with their codes in Connect's words.
const CODES: [(u16, &str); 9] = [
    (400, "invalid_argument"),
    (401, "unauthenticated"),
    (403, "permission_denied"),
    (404, "not_found"),
    (409, "already_exists"),
    (429, "resource_exhausted"),
    (501, "unimplemented"),
    (502, "unavailable"),
    (504, "deadline_exceeded"),
];

fn error_of(refused: &Refused) -> Value {
    let code = match refused.error.status {
        413 | 507 => "resource_exhausted",
        503 => "unavailable",
        status => CODES.into_iter().find(|(known, _)| *known == status).map_or("internal", |(_, code)| code),
    };
    json!({ "code": code, "message": refused.error.message })
}

/// The answer to a plain call.
pub(super) fn unary(answered: Result<Value, Refused>) -> Response {
    let (status, value) = match answered {
        Ok(value) => (StatusCode::OK, value),
        Err(refused) => {
            let status = StatusCode::from_u16(refused.error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (status, error_of(&refused))
        }
    };
    with_type(Body::from(value.to_string()), status, "application/json")
}

/// An answer that is a stream of messages.
pub(super) fn streamed(body: Body) -> Response {
    with_type(body, StatusCode::OK, "application/connect+json")
}

fn with_type(body: Body, status: StatusCode, kind: &'static str) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// One message of a stream.
pub(super) fn message(value: &Value) -> Bytes {
    framed(0, value)
}

/// The last message of a stream.
pub(super) fn end(refused: Option<&Refused>) -> Bytes {
    let value = refused.map_or_else(|| json!({}), |refused| json!({ "error": error_of(refused) }));
    framed(END, &value)
}

fn framed(flags: u8, value: &Value) -> Bytes {
    let text = value.to_string();
    let mut bytes = BytesMut::with_capacity(text.len() + 5);
    bytes.put_u8(flags);
    bytes.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    bytes.put_slice(text.as_bytes());
    bytes.freeze()
}

/// The only message of a request whose answer is a stream.
pub(super) fn only_message(bytes: &[u8]) -> Result<Map<String, Value>, Refused> {
    let wrong = |words: &str| Refused::new(400, "InvalidRequestContent", format!("The request {words}."));
    let (head, rest) = bytes.split_at_checked(5).ok_or_else(|| wrong("has no message"))?;
    if head[0] & COMPRESSED != 0 {
        return Err(Refused::new(501, "NotImplemented", "Compressed messages are not built; send them as they are."));
    }
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let text = rest.get(..length).ok_or_else(|| wrong("was cut off"))?;
    match crate::json::tree(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        _ => Err(wrong("is no JSON object")),
    }
}

/// How long the caller waits, in milliseconds.
pub(super) fn timeout_ms(headers: &HeaderMap) -> Option<u64> {
    headers.get("connect-timeout-ms")?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_framed() {
        let value = json!({ "a": 1 });
        let bytes = message(&value);
        assert_eq!(&bytes[..5], [0, 0, 0, 0, 7]);
        assert_eq!(Value::Object(only_message(&bytes).unwrap()), value);
        assert_eq!(&end(None)[..], b"\x02\0\0\0\x02{}");
        for bad in [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x09{}", b"\0\0\0\0\x01x", b"\0\0\0\0\x02[]", b"\x01\0\0\0\x02{}"]
        {
            assert!(only_message(bad).is_err(), "{bad:?}");
        }
    }
}
