//! Encodings, identifiers made from text, URIs, JSON.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::args::Args;
use crate::meter::{Fault, VALUE_DEPTH_MAX};

/// The namespace of ARM's `guid()`.
const GUID_NAMESPACE: Uuid = Uuid::from_u128(0x11fb_06fb_712d_4ddd_98c7_e71b_bd58_8830);

/// A string, number or boolean as text, `True` as .NET writes it; `None` for anything else.
pub(super) fn scalar_text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        Value::Bool(true) => Some(Cow::Borrowed("True")),
        Value::Bool(false) => Some(Cow::Borrowed("False")),
        _ => None,
    }
}

/// All arguments as one text, joined as ARM joins them before hashing.
fn joined(args: &Args<'_, '_>) -> Result<String, Fault> {
    let texts: Result<Vec<_>, _> = args
        .iter()
        .enumerate()
        .map(|(index, value)| scalar_text(value).ok_or_else(|| args.wrong(index, "a string")))
        .collect();
    Ok(texts?.join("-"))
}

pub(super) fn unique_string(args: Args<'_, '_>) -> Result<Value, Fault> {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = Sha256::digest(joined(&args)?.as_bytes());
    let mut bits = u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"));
    let mut text = String::with_capacity(13);
    for _ in 0..13 {
        text.push(char::from(LETTERS[usize::try_from(bits >> 59).expect("five bits")]));
        bits <<= 5;
    }
    Ok(text.into())
}

pub(super) fn guid(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(Uuid::new_v5(&GUID_NAMESPACE, joined(&args)?.as_bytes()).to_string().into())
}

pub(super) fn new_guid(args: Args<'_, '_>) -> Result<Value, Fault> {
    let mut hash = Sha256::new();
    hash.update(args.env.names.scope.seed);
    hash.update(args.env.names.next_guid().to_be_bytes());
    let bytes: [u8; 16] = hash.finalize()[..16].try_into().expect("a digest has 32 bytes");
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string().into())
}

pub(super) fn base64(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(STANDARD.encode(args.text(0)?).into())
}

fn decoded(args: &Args<'_, '_>, encoded: &str) -> Result<String, Fault> {
    STANDARD
        .decode(encoded)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| args.wrong(0, "base64 of UTF-8 text"))
}

pub(super) fn base64_to_string(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(decoded(&args, args.text(0)?)?.into())
}

pub(super) fn base64_to_json(args: Args<'_, '_>) -> Result<Value, Fault> {
    parse_json(&args, &decoded(&args, args.text(0)?)?)
}

pub(super) fn json(args: Args<'_, '_>) -> Result<Value, Fault> {
    parse_json(&args, args.text(0)?)
}

fn parse_json(args: &Args<'_, '_>, text: &str) -> Result<Value, Fault> {
    // one byte of text may become a node
    args.env.meter.step(text.len())?;
    args.env.meter.bytes(text.len().saturating_mul(8))?;
    crate::jsonc::parse_body(text.as_bytes()).map_err(|error| {
        // the text itself may be a secret: the kind of mistake and the place are enough
        let place = error.position;
        args.fault(format!(
            "the argument is not JSON of at most {VALUE_DEPTH_MAX} levels; line {}, column {}",
            place.line, place.column
        ))
    })
}

pub(super) fn data_uri(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(format!("data:text/plain;charset=utf8;base64,{}", STANDARD.encode(args.text(0)?)).into())
}

pub(super) fn data_uri_to_string(args: Args<'_, '_>) -> Result<Value, Fault> {
    let wrong = || args.wrong(0, "a data URI");
    let (head, data) = args.text(0)?.strip_prefix("data:").and_then(|rest| rest.split_once(',')).ok_or_else(wrong)?;
    if head.to_ascii_lowercase().ends_with(";base64") {
        return Ok(decoded(&args, data)?.into());
    }
    Ok(percent_decode(data).ok_or_else(wrong)?.into())
}

pub(super) fn uri_component(args: Args<'_, '_>) -> Result<Value, Fault> {
    args.env.meter.bytes(args.text(0)?.len() * 3)?;
    Ok(percent_encode(args.text(0)?).into())
}

pub(super) fn uri_component_to_string(args: Args<'_, '_>) -> Result<Value, Fault> {
    percent_decode(args.text(0)?).map(Value::from).ok_or_else(|| args.wrong(0, "a percent-encoded text"))
}

fn percent_encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = match (first, tail) {
            (b'%', [high, low, ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low)
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).ok()
}

/// `uri(base, relative)` as RFC 3986 joins them, for what templates use: a file beside or below another.
pub(super) fn uri(args: Args<'_, '_>) -> Result<Value, Fault> {
    let (base, relative) = (args.text(0)?, args.text(1)?);
    if relative.contains("://") {
        return Ok(relative.into());
    }
    let (scheme, rest) = base.split_once("://").ok_or_else(|| args.wrong(0, "an absolute URI, https://…"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let folder = path.rfind('/').map_or("", |slash| &path[..slash]);
    let mut parts: Vec<&str> = if relative.starts_with('/') { Vec::new() } else { folder.split('/').collect() };
    let (relative, tail) = relative.find(['?', '#']).map_or((relative, ""), |at| relative.split_at(at));
    args.env.meter.step(relative.len() / 16)?;
    for part in relative.trim_start_matches('/').split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    Ok(format!("{scheme}://{host}/{}{tail}", joined.trim_start_matches('/')).into())
}

pub(super) fn build_uri(args: Args<'_, '_>) -> Result<Value, Fault> {
    let parts = args.object(0)?;
    let text = |name: &str| super::get(parts, name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let missing = |name: &str| args.fault(format!("the argument 'components' must have a string '{name}'"));
    let mut uri = format!(
        "{}://{}",
        text("scheme").ok_or_else(|| missing("scheme"))?,
        text("host").ok_or_else(|| missing("host"))?
    );
    if let Some(port) = super::get(parts, "port").and_then(Value::as_u64) {
        uri.push_str(&format!(":{port}"));
    }
    if let Some(path) = text("path") {
        uri.push('/');
        uri.push_str(path.trim_start_matches('/'));
    }
    if let Some(query) = text("query") {
        uri.push('?');
        uri.push_str(query.trim_start_matches('?'));
    }
    Ok(uri.into())
}

pub(super) fn parse_uri(args: Args<'_, '_>) -> Result<Value, Fault> {
    let wrong = || args.wrong(0, "an absolute URI, https://…");
    let (scheme, rest) = args.text(0)?.split_once("://").ok_or_else(wrong)?;
    let (authority, tail) = rest.find(['/', '?', '#']).map_or((rest, ""), |at| rest.split_at(at));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse::<u16>().map_err(|_| wrong())?)),
        None => (authority, None),
    };
    let tail = tail.split('#').next().unwrap_or_default();
    let (path, query) = tail.split_once('?').map_or((tail, ""), |(path, query)| (path, query));
    let mut parsed = json!({"scheme": scheme, "host": host, "path": path});
    if let Some(port) = port {
        parsed["port"] = port.into();
    }
    if !query.is_empty() {
        parsed["query"] = format!("?{query}").into();
    }
    Ok(parsed)
}
