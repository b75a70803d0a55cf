//! Parsers of a request's head: target, host, cookies, lists, addresses, and what is written instead of them.

use std::net::IpAddr;

use cove_model::{CorsPolicy, HttpRoute, HttpRouteRule, HttpRouteTarget, PathMatcher, ResourceId};
use cove_traffic::{PathRoutes, host_name};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header};

use crate::{
    access,
    answer::Refusal,
    challenge::Challenges,
    config::IngressConfig,
    cors::Cors,
    headers::{self, Via, X_FORWARDED_CLIENT_CERT, X_FORWARDED_FOR, X_REQUEST_ID},
    sticky::Affinity,
    target,
};

const PEER: &str = "10.0.0.9";
const HOP_BY_HOP: [&str; 6] =
    ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings"];

/// A byte of switches, the target, lines of `name:value`.
///
/// # Panics
/// Something that must hold does not.
pub fn request_head(input: &[u8]) {
    let Some((switches, text)) = input.split_first() else { return };
    let mut lines = text.split(|&byte| byte == b'\n');
    let Ok(uri) = Uri::try_from(lines.next().unwrap_or_default()) else { return };
    let mut fields = HeaderMap::new();
    for line in lines.take(100) {
        let Some(at) = line.iter().position(|&byte| byte == b':') else { continue };
        let value = HeaderValue::from_bytes(line[at + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..at]), value) {
            fields.append(name, value);
        }
    }
    let is_trusted = switches & 1 != 0;
    let config = IngressConfig {
        trusted_proxies: if is_trusted { vec!["10.0.0.0/8".parse().expect("a network")] } else { Vec::new() },
        ..IngressConfig::default()
    };
    let version = if switches & 2 == 0 { Version::HTTP_11 } else { Version::HTTP_2 };
    readers(&uri, &fields, version);
    answers(&uri, &fields);
    if headers::check_framing(&Method::GET, &uri, &fields).is_err() {
        return;
    }
    if let Ok(host) = headers::requested_host(&uri, &fields) {
        host_of(host, &uri);
        head_for_the_app(host, &fields, &config, switches & 4 != 0);
    }
    paths(&uri, u32::from(*switches) << 24);
}

/// What is only read of a head.
fn readers(uri: &Uri, fields: &HeaderMap, version: Version) {
    if let Some(protocol) = headers::upgrade(version, fields) {
        assert_eq!(version, Version::HTTP_11);
        let text = protocol.to_str().unwrap_or_default().to_ascii_lowercase();
        assert!(!text.contains("h2c"), "an upgrade to HTTP/2 would hide requests");
    }
    if let Some(time) = headers::keep_alive(fields) {
        assert!(time.checked_add(std::time::Duration::from_secs(1)).is_some());
    }
    if let Some(affinity) = Affinity::read(fields) {
        let cookie = affinity.set_cookie();
        let pair = cookie.to_str().expect("a cookie of ours is ASCII").split(';').next().unwrap_or_default();
        let again: HeaderMap =
            [(header::COOKIE, HeaderValue::try_from(pair).expect("a pair is a value"))].into_iter().collect();
        assert_eq!(Affinity::read(&again), Some(affinity));
    }
    for max in [0, 1, 7, 255] {
        let cut = access::cut(uri.path().as_bytes(), max);
        // one replaced byte may have become three
        assert!(cut.len() <= 3 * max && uri.path().starts_with(cut.trim_end_matches(char::REPLACEMENT_CHARACTER)));
    }
}

/// What is answered without the app.
fn answers(uri: &Uri, fields: &HeaderMap) {
    let refusal = Refusal::RevisionFailed { reason: uri.to_string() };
    let answer = refusal.response(&Method::GET, fields);
    assert!(answer.headers().contains_key("x-cove-reason"));
    let policy = CorsPolicy {
        allowed_origins: vec!["https://shop.example".into(), "https://*.example.org".into()],
        allowed_methods: vec!["*".into()],
        allowed_headers: vec!["*".into()],
        allow_credentials: true,
        ..CorsPolicy::default()
    };
    let cors = Cors::new(&policy);
    if let Some(origin) = cors.allowed_origin(fields) {
        let text = origin.to_str().expect("it was compared as text").to_ascii_lowercase();
        assert!(text == "https://shop.example" || text.starts_with("https://") && text.ends_with(".example.org"));
    }
    let _ = cors.preflight(&Method::OPTIONS, fields);
    let challenges = Challenges::default();
    let expected = challenges.expect("shop.example", "token", "answer");
    if challenges.answer(&Method::GET, "shop.example", uri.path()).is_some() {
        assert_eq!(uri.path(), "/.well-known/acme-challenge/token");
    }
    drop(expected);
}

/// A host that is taken can be written wherever it must be, and means the same there.
fn host_of(host: &str, uri: &Uri) {
    assert!(!host.is_empty() && HeaderValue::try_from(host).is_ok(), "{host:?}");
    let name = host_name(host);
    assert!(!name.bytes().any(|byte| byte.is_ascii_uppercase()), "{name}");
    let origin = headers::origin_form(uri);
    assert!(origin.authority().is_none() && origin.scheme().is_none(), "{origin}");
    let again: Uri = origin.to_string().parse().expect("a target that was taken can be written");
    assert_eq!((again.path(), again.query()), (uri.path(), uri.query()));
    assert!(!origin.to_string().bytes().any(|byte| byte <= b' ' || byte == 0x7f), "{origin:?}");
    if let Ok(absolute) = headers::absolute_form(host, uri) {
        assert_eq!(absolute.authority().map(|it| it.as_str().to_owned()), Some(host.to_owned()));
        assert_eq!((absolute.path(), absolute.query()), (again.path(), again.query()));
    }
}

/// What reaches the app: nothing of one hop, forwarding fields as they should be, ids, one `Cookie`.
fn head_for_the_app(host: &str, before: &HeaderMap, config: &IngressConfig, is_tls: bool) {
    let peer: IpAddr = PEER.parse().expect("an address");
    let client = headers::client_address(before, peer, config);
    let mut fields = before.clone();
    headers::remove_hop_by_hop(&mut fields);
    for name in HOP_BY_HOP {
        assert!(!fields.contains_key(name), "{name} went through");
    }
    assert!(fields.get_all(header::TE).iter().all(|value| value == "trailers"));
    let is_kept = |name| fields.get_all(&name).iter().eq(before.get_all(&name).iter());
    assert!(is_kept(header::HOST), "the host was changed");
    if before.contains_key(header::TRANSFER_ENCODING) {
        assert!(!fields.contains_key(header::CONTENT_LENGTH), "a length beside chunks");
    } else {
        assert!(is_kept(header::CONTENT_LENGTH), "the length was changed");
    }
    for name in fields.keys().filter(|name| *name != header::TE) {
        assert!(fields.get_all(name).iter().eq(before.get_all(name).iter()), "{name} was changed");
    }
    let mut again = fields.clone();
    headers::remove_hop_by_hop(&mut again);
    assert_eq!(again, fields, "removed in two steps");
    let via = Via { certificate: None, peer, is_tls, host };
    headers::forward(&mut fields, via, config);
    let chain: Vec<&[u8]> = fields.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
    assert_eq!(chain.len(), 1);
    if config.trusted_proxies.is_empty() {
        assert_eq!((chain[0], client), (PEER.as_bytes(), peer));
        assert!(!fields.contains_key(X_FORWARDED_CLIENT_CERT) && !fields.contains_key(header::FORWARDED));
        assert_eq!(fields["x-forwarded-proto"], if is_tls { "https" } else { "http" });
        assert_eq!(fields["x-forwarded-host"], host);
        assert!(!fields.contains_key("x-forwarded-port"));
    } else {
        assert!(chain[0].ends_with(PEER.as_bytes()));
    }
    headers::identify(&mut fields);
    assert_eq!(fields.get_all(X_REQUEST_ID).iter().count(), 1);
    assert_eq!(fields.get_all("traceparent").iter().count(), 1);
    let identified = fields.clone();
    headers::identify(&mut fields);
    assert_eq!(fields, identified, "ids are given once");
    headers::join_cookies(&mut fields);
    let joined: Vec<&[u8]> = identified.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    match fields.get(header::COOKIE) {
        Some(value) => assert_eq!(value.as_bytes(), joined.join(&b"; "[..])),
        None => assert!(joined.is_empty()),
    }
    assert!(fields.get_all(header::COOKIE).iter().count() <= 1);
}

/// A rewritten path is a path, and the query stays.
fn paths(uri: &Uri, random: u32) {
    let route = |matcher, rewrite: Option<&str>, is_case_sensitive| HttpRoute {
        matcher,
        is_case_sensitive,
        prefix_rewrite: rewrite.map(str::to_owned),
    };
    let target = |app: &str, weight| HttpRouteTarget { app: app.to_owned(), revision: None, label: None, weight };
    let one =
        |route| HttpRouteRule { routes: vec![route], targets: vec![target("a", Some(30)), target("b", Some(70))] };
    let id = |kind| ResourceId::resource("s", "g", kind, "x").expect("a good id");
    let routes = PathRoutes {
        config: id("Microsoft.App/managedEnvironments"),
        environment: id("Microsoft.App/managedEnvironments"),
        rules: vec![
            one(route(PathMatcher::Path("/exact".into()), Some("/other/"), false)),
            one(route(PathMatcher::PathSeparatedPrefix("/sep/".into()), Some("/"), false)),
            one(route(PathMatcher::PathSeparatedPrefix("/api".into()), Some("/v2"), true)),
            one(route(PathMatcher::Prefix("/pre".into()), Some(""), false)),
            one(route(PathMatcher::Prefix("/".into()), None, true)),
        ],
    };
    let Some(found) = routes.find(uri.path(), random) else { return };
    assert!(["a", "b"].contains(&found.target.app.as_str()));
    let Some(path) = found.path else { return };
    let (mut head, ()) = Request::new(()).into_parts();
    head.uri = headers::origin_form(uri);
    assert!(target::rewrite(&mut head, &path).is_ok(), "{path:?} is no target");
    assert_eq!((head.uri.path(), head.uri.query()), (path.as_str(), uri.query()));
    assert!(path.starts_with('/') && head.uri.authority().is_none());
}
