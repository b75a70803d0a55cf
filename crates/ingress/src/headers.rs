//! Header fields on their way through: hop-by-hop fields end here, forwarding fields are ours, ids are kept or made.
//!
//! **Invariant:** what a client writes into `X-Forwarded-*` or `Forwarded` reaches an app only from a trusted proxy.

use std::{net::IpAddr, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Version,
    header::{self, Entry},
    uri::{Authority, PathAndQuery, Uri},
};
use uuid::Uuid;

use crate::{answer::Refusal, auth::claims::is_ours, config::IngressConfig};

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// The client's certificate.
pub(crate) const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// Names one request through all that it passes.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// W3C trace context: the trace and the span that this request is part of.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Forwarding fields that only a trusted proxy may set.
const FORWARDING: [HeaderName; 6] = [
    X_FORWARDED_FOR,
    X_FORWARDED_PROTO,
    X_FORWARDED_HOST,
    HeaderName::from_static("x-forwarded-port"),
    X_FORWARDED_CLIENT_CERT,
    header::FORWARDED,
];

/// What `Connection` cannot name.
const KEPT: [HeaderName; 4] = [header::CONTENT_LENGTH, header::HOST, X_REQUEST_ID, TRACEPARENT];

/// Longest `x-request-id` that is kept.
const REQUEST_ID_MAX_BYTES: usize = 128;

/// The host that a request names, from its target or its `Host` field.
///
/// # Errors
/// None on HTTP/1.1, or more than one (RFC 9112, 3.2).
pub(crate) fn requested_host<'r>(uri: &'r Uri, headers: &'r HeaderMap) -> Result<&'r str, Refusal> {
    let mut fields = headers.get_all(header::HOST).iter();
    let field = fields.next().map(|value| value.to_str().map_err(|_| Refusal::HostConflict)).transpose()?;
    if fields.next().is_some() {
        return Err(Refusal::HostConflict);
    }
    match (uri.authority().map(Authority::as_str), field) {
        (Some(target), Some(field)) if !target.eq_ignore_ascii_case(field) => Err(Refusal::HostConflict),
        (Some(target), _) if target.contains('@') => Err(Refusal::HostConflict),
        (Some(host), _) | (None, Some(host)) if !host.is_empty() => Ok(host),
        _ => Err(Refusal::HostMissing),
    }
}

/// Whether every reader finds the same target and the same end of the body in a request.
///
/// # Errors
/// [`Refusal::RequestInvalid`]: a coding that nobody here undoes (RFC 9112, 6.1), `*` for another method than `OPTIONS`, or a
/// host alone for another than `CONNECT` (3.2.3 and 3.2.4).
pub(crate) fn check_framing(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_chunked = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if !is_chunked || codings.next().is_some() {
        return Err(Refusal::RequestInvalid("its transfer coding is not `chunked` alone"));
    }
    if uri.path() == "*" && method != Method::OPTIONS {
        return Err(Refusal::RequestInvalid("its target `*` is for OPTIONS only"));
    }
    if uri.scheme().is_none() && uri.authority().is_some() && method != Method::CONNECT {
        return Err(Refusal::RequestInvalid("its target is no path; let it begin with `/`"));
    }
    Ok(())
}

/// Whether the values of HTTP/2 have no space around them, which HTTP/1.1 would take off (RFC 9113, 8.2.1).
///
/// # Errors
/// [`Refusal::RequestInvalid`]
pub(crate) fn check_values(version: Version, headers: &HeaderMap) -> Result<(), Refusal> {
    let is_space = |byte: Option<&u8>| byte.is_some_and(|byte| matches!(byte, b' ' | b'\t'));
    let is_padded = |value: &HeaderValue| is_space(value.as_bytes().first()) || is_space(value.as_bytes().last());
    if version == Version::HTTP_2 && headers.values().any(is_padded) {
        return Err(Refusal::RequestInvalid("a field's value begins or ends with a space"));
    }
    Ok(())
}

/// The upgrade that a request or response asks for: `Connection: upgrade` and an `Upgrade` field, HTTP/1.1 only.
pub(crate) fn upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    if version != Version::HTTP_11 || !lists(headers, header::CONNECTION, "upgrade") {
        return None;
    }
    let protocol = headers.get(header::UPGRADE)?;
    // HTTP/2 is for us to speak: behind an upgrade to it requests would pass unseen
    let is_http2 = protocol.to_str().is_ok_and(|list| list.to_ascii_lowercase().contains("h2c"));
    (!is_http2).then(|| protocol.clone())
}

fn lists(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        value.to_str().is_ok_and(|list| list.split(',').any(|item| item.trim().eq_ignore_ascii_case(token)))
    })
}

/// Removes what is meant for one hop only, and what `Connection` names.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|list| list.split(','))
            .filter_map(|item| item.trim().parse().ok())
            // the body's framing, its target and its ids are not the client's to take away, nor who it is
            .filter(|name| !KEPT.contains(name) && !is_ours(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    if headers.remove(header::TRANSFER_ENCODING).is_some() {
        // chunks say where the body ends: another length means nothing beside them (RFC 9112, 6.3)
        headers.remove(header::CONTENT_LENGTH);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, HTTP2_SETTINGS, header::UPGRADE] {
        headers.remove(name);
    }
    if let Entry::Occupied(te) = headers.entry(header::TE) {
        // the only token that means something behind this hop
        let trailers = te.iter().any(|value| {
            value.to_str().is_ok_and(|list| list.split(',').any(|item| item.trim().eq_ignore_ascii_case("trailers")))
        });
        te.remove_entry_mult();
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// Who sent a request, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Via<'a> {
    /// `X-Forwarded-Client-Cert`: the certificate that the client gave, or the app that calls.
    pub(crate) certificate: Option<&'a HeaderValue>,
    pub(crate) peer: IpAddr,
    pub(crate) is_tls: bool,
    pub(crate) host: &'a str,
}

/// A proxy in front of us whose word counts.
pub(crate) fn is_trusted(peer: IpAddr, config: &IngressConfig) -> bool {
    config.trusted_proxies.iter().any(|net| net.contains(&peer))
}

/// Who calls: the peer, or whom the last of the trusted proxies in a row names.
pub(crate) fn client_address(headers: &HeaderMap, peer: IpAddr, config: &IngressConfig) -> IpAddr {
    if !is_trusted(peer, config) {
        return peer;
    }
    let fields: Vec<&str> = headers.get_all(X_FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
    let mut client = peer;
    for name in fields.iter().rev().flat_map(|field| field.rsplit(',')) {
        let Ok(address) = name.trim().parse::<IpAddr>() else { return client };
        client = address.to_canonical();
        if !is_trusted(client, config) {
            return client;
        }
    }
    client
}

/// Writes the fields that tell the app about the client.
pub(crate) fn forward(headers: &mut HeaderMap, via: Via<'_>, config: &IngressConfig) {
    if !is_trusted(via.peer, config) {
        for name in FORWARDING {
            headers.remove(name);
        }
    }
    if let Some(certificate) = via.certificate {
        headers.insert(X_FORWARDED_CLIENT_CERT, certificate.clone());
    }
    let before: Vec<&str> = headers.get_all(X_FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
    let chain = if before.is_empty() { via.peer.to_string() } else { format!("{}, {}", before.join(", "), via.peer) };
    if let Ok(chain) = HeaderValue::try_from(chain) {
        headers.insert(X_FORWARDED_FOR, chain);
    }
    if let Entry::Vacant(proto) = headers.entry(X_FORWARDED_PROTO) {
        proto.insert(HeaderValue::from_static(if via.is_tls { "https" } else { "http" }));
    }
    if let Entry::Vacant(host) = headers.entry(X_FORWARDED_HOST)
        && let Ok(value) = HeaderValue::try_from(via.host)
    {
        host.insert(value);
    }
}

/// Keeps the client's ids if they are well-formed, else makes new ones. The span stays the caller's: no span of ours is
/// recorded that the app's could hang below. A `tracestate` without its `traceparent` means nothing and is dropped, as
/// W3C's Trace Context wants it (3.3 and 4.3).
pub(crate) fn identify(headers: &mut HeaderMap) {
    let is_good = |value: &HeaderValue| {
        !value.is_empty() && value.len() <= REQUEST_ID_MAX_BYTES && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    if !only(headers, &X_REQUEST_ID).is_some_and(is_good) {
        let id = Uuid::from_u128(rand::random());
        headers.insert(X_REQUEST_ID, header_value(id.hyphenated().to_string()));
    }
    if !only(headers, &TRACEPARENT).is_some_and(|value| is_traceparent(value.as_bytes())) {
        headers.remove(TRACESTATE);
        // W3C trace context: an all-zero id is invalid, so a bit is always set
        let (trace, span) = (rand::random::<u128>() | 1, rand::random::<u64>() | 1);
        headers.insert(TRACEPARENT, header_value(format!("00-{trace:032x}-{span:016x}-01")));
    }
}

/// A field that was sent once.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

fn header_value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("hex digits and dashes are a header value")
}

fn is_traceparent(value: &[u8]) -> bool {
    let is_hex = |part: &[u8]| part.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    let mut parts = value.split(|&b| b == b'-');
    let mut next = || parts.next().unwrap_or_default();
    let (version, trace, span, flags) = (next(), next(), next(), next());
    // later versions may say more behind these four
    let is_whole = version != b"00" || parts.next().is_none();
    (version.len(), trace.len(), span.len(), flags.len()) == (2, 32, 16, 2)
        && [version, trace, span, flags].into_iter().all(is_hex)
        && is_whole
        && version != b"ff"
        && trace.iter().any(|&b| b != b'0')
        && span.iter().any(|&b| b != b'0')
}

/// The target in origin form: path and query only.
pub(crate) fn origin_form(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned().map(Uri::from);
    // of `http://host#fragment` an empty path is left, which would be no target at all
    path.filter(|path| !path.path().is_empty()).unwrap_or_else(|| Uri::from(PathAndQuery::from_static("/")))
}

/// The target in absolute form, as HTTP/2 needs it to name the host.
///
/// # Errors
/// [`Refusal::HostConflict`] when the host cannot be written into a target.
pub(crate) fn absolute_form(host: &str, uri: &Uri) -> Result<Uri, Refusal> {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::builder().scheme("http").authority(host).path_and_query(path).build().map_err(|_| Refusal::HostConflict)
}

/// How long a replica's idle connection may be used again, if it says so (`Keep-Alive: timeout=5`): a second less, so that
/// it is not used just when the replica closes it.
pub(crate) fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(KEEP_ALIVE)?.to_str().ok()?;
    let secs: u64 = value.split(',').find_map(|item| item.trim().strip_prefix("timeout=")?.parse().ok())?;
    Some(Duration::from_secs(secs.saturating_sub(1)))
}

/// HTTP/2 clients may split `Cookie` into several fields; HTTP/1.1 allows one (RFC 9113, 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::try_from(*value).unwrap()))
            .fold(HeaderMap::new(), |mut map, (name, value)| {
                map.append(name, value);
                map
            })
    }

    fn text(map: &HeaderMap) -> String {
        let mut lines: Vec<String> =
            map.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines.join("\n")
    }

    #[test]
    fn hop_by_hop_fields_end_here() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Private, content-length, Host"),
            ("connection", "upgrade"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("content-length", "3"),
            ("host", "web"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-connection", "close"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(text(&headers), "accept: */*\nhost: web\nte: trailers");
        let mut headers = map(&[("connection", "content-length"), ("content-length", "3")]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(text(&headers), "content-length: 3", "a body keeps its length");
    }

    #[test]
    fn only_trusted_proxies_speak_for_others() {
        let spoofed = [("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https"), ("forwarded", "for=1.2.3.4")];
        let peer = "10.0.0.9".parse().unwrap();
        let via = Via { certificate: None, peer, is_tls: false, host: "web.localhost" };
        let mut headers = map(&spoofed);
        forward(&mut headers, via, &IngressConfig::default());
        assert_eq!(
            text(&headers),
            "x-forwarded-for: 10.0.0.9\nx-forwarded-host: web.localhost\nx-forwarded-proto: http"
        );
        let trusting =
            IngressConfig { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()], ..IngressConfig::default() };
        let mut headers = map(&spoofed);
        forward(&mut headers, via, &trusting);
        assert_eq!(
            text(&headers),
            "forwarded: for=1.2.3.4\nx-forwarded-for: 1.2.3.4, 10.0.0.9\nx-forwarded-host: web.localhost\nx-forwarded-proto: https"
        );
    }

    #[test]
    fn the_client_is_whom_the_last_trusted_proxy_names() {
        let config = IngressConfig { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()], ..IngressConfig::default() };
        for (peer, fields, expected) in [
            ("9.9.9.9", &[("x-forwarded-for", "1.2.3.4")][..], "9.9.9.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[("x-forwarded-for", "6.6.6.6, 1.2.3.4")], "1.2.3.4"),
            ("10.0.0.1", &[("x-forwarded-for", "1.2.3.4, 10.0.0.2")], "1.2.3.4"),
            ("10.0.0.1", &[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "10.0.0.2")], "1.2.3.4"),
            ("10.0.0.1", &[("x-forwarded-for", "1.2.3.4, nonsense")], "10.0.0.1"),
        ] {
            let client = client_address(&map(fields), peer.parse().unwrap(), &config);
            assert_eq!(client.to_string(), expected, "{peer} {fields:?}");
        }
    }

    #[test]
    fn ids_are_kept_or_made() {
        let good =
            [("x-request-id", "abc-1"), ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")];
        let mut headers = map(&good);
        identify(&mut headers);
        assert_eq!(headers, map(&good));
        let later = [
            ("x-request-id", "abc-1"),
            ("traceparent", "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more"),
            ("tracestate", "vendor=1"),
        ];
        let mut headers = map(&later);
        identify(&mut headers);
        assert_eq!(headers, map(&later));
        for bad in [
            "",
            "x",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            let mut headers = map(&[("x-request-id", "a b"), ("traceparent", bad), ("tracestate", "vendor=1")]);
            identify(&mut headers);
            assert!(!headers.contains_key("tracestate"), "{bad}");
            assert!(is_traceparent(headers["traceparent"].as_bytes()), "{bad}");
            assert_eq!(headers["x-request-id"].len(), 36);
        }
        // two of one kind: nobody knows which is meant
        let mut headers = map(&[("x-request-id", "a"), ("x-request-id", "b"), good[1], good[1]]);
        identify(&mut headers);
        assert_eq!(headers["x-request-id"].len(), 36);
        assert_ne!(headers["traceparent"], good[1].1);
        assert_eq!(headers.len(), 2);
    }

    #[test]
    fn a_request_names_one_host() {
        let host =
            |uri: &str, fields: &[(&str, &str)]| requested_host(&uri.parse().unwrap(), &map(fields)).map(str::to_owned);
        assert_eq!(host("/", &[("host", "web:8080")]), Ok("web:8080".to_owned()));
        assert_eq!(host("http://web/x", &[]), Ok("web".to_owned()));
        assert_eq!(host("http://web/x", &[("host", "WEB")]), Ok("web".to_owned()));
        assert_eq!(host("http://web/x", &[("host", "other")]), Err(Refusal::HostConflict));
        assert_eq!(host("http://u@web/x", &[]), Err(Refusal::HostConflict));
        assert_eq!(host("/", &[("host", "a"), ("host", "a")]), Err(Refusal::HostConflict));
        assert_eq!(host("/", &[]), Err(Refusal::HostMissing));
        assert_eq!(host("/", &[("host", "")]), Err(Refusal::HostMissing));
    }
}
