//! Addresses: where the browser is, where a login may lead back to, which paths need no login.
//!
//! **Invariant:** a login or logout never leads to another site unless its address is listed, however it is written.
//! **Invariant:** a path that an app could read as another one is never taken as excluded.

use cove_model::{AuthOrigin, AuthPolicy};
use http::{HeaderMap, HeaderName, Uri, uri::Authority};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};

/// Longest address that a login leads back to.
const TARGET_BYTES_MAX: usize = 2048;

/// What a value in a query or form may hold as it is (RFC 3986, 2.3).
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a target of a request may hold and a `Location` had better not.
const ODD: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'`').add(b'\\');

/// The address of an app as the browser knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    pub(crate) is_https: bool,
    /// With the port.
    pub(crate) host: String,
    /// What stands before the app's own paths where a path routing cuts it off.
    pub(crate) base: String,
}

/// What of a request says where the browser is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) is_https: bool,
    pub(crate) host: &'a str,
    /// As the client asked for it.
    pub(crate) path: &'a str,
    /// As the app gets it.
    pub(crate) app_path: &'a str,
    pub(crate) headers: &'a HeaderMap,
}

impl Site {
    /// The site of a request, by the app's convention.
    pub(crate) fn of(origin: &AuthOrigin, seen: Seen<'_>) -> Self {
        let field = |name: &str| {
            let name: HeaderName = name.parse().ok()?;
            let text = seen.headers.get(name)?.to_str().ok()?;
            // the first was written by the proxy that the browser spoke to
            text.split(',').next().map(str::trim).filter(|text| !text.is_empty())
        };
        let (host, scheme) = match origin {
            AuthOrigin::Request => (None, None),
            AuthOrigin::Forwarded => (field("x-forwarded-host"), field("x-forwarded-proto")),
            AuthOrigin::Headers { host, scheme } => {
                (host.as_deref().and_then(field), scheme.as_deref().and_then(field))
            }
        };
        let host = host.filter(|host| is_authority(host)).unwrap_or(seen.host);
        let is_https = match scheme {
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => true,
            Some(scheme) if scheme.eq_ignore_ascii_case("http") => false,
            Some(_) | None => seen.is_https,
        };
        // the prefix itself may be asked for without a slash
        let cut = if seen.app_path == "/" { Some(seen.path) } else { seen.path.strip_suffix(seen.app_path) };
        let base = cut.unwrap_or("");
        let base = if base.starts_with('/') { base.trim_end_matches('/') } else { "" };
        Self { is_https, host: host.to_owned(), base: base.to_owned() }
    }

    /// Scheme and host.
    pub(crate) fn origin(&self) -> String {
        format!("{}://{}", if self.is_https { "https" } else { "http" }, self.host)
    }

    /// The whole address of one of the app's paths.
    pub(crate) fn address(&self, path: &str) -> String {
        format!("{}{}{path}", self.origin(), self.base)
    }

    /// The address that a login or logout leads to, as it is put into `Location`; `None` when it may not lead there.
    pub(crate) fn target(&self, wanted: &str, policy: &AuthPolicy) -> Option<String> {
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'<' | b'>' | b'"' | b'`');
        if wanted.is_empty() || wanted.len() > TARGET_BYTES_MAX || !wanted.bytes().all(is_plain) {
            return None;
        }
        if wanted.starts_with('/') {
            // `//host` is another site to a browser
            return (!wanted.starts_with("//")).then(|| wanted.to_owned());
        }
        let uri: Uri = wanted.split('#').next()?.parse().ok()?;
        let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
        if authority.as_str().contains('@') || !matches!(scheme, "http" | "https") {
            return None;
        }
        let is_own = scheme == if self.is_https { "https" } else { "http" }
            && authority.as_str().eq_ignore_ascii_case(&self.host);
        let is_listed = || policy.external_redirects.iter().any(|listed| is_same_page(listed, &uri));
        (is_own || is_listed()).then(|| wanted.to_owned())
    }
}

/// Whether a listed address is that of `uri`, queries aside.
fn is_same_page(listed: &str, uri: &Uri) -> bool {
    let Ok(listed) = listed.split('#').next().unwrap_or_default().parse::<Uri>() else { return false };
    let same_text = |one: Option<&str>, other: Option<&str>| {
        one.zip(other).is_some_and(|(one, other)| one.eq_ignore_ascii_case(other))
    };
    same_text(listed.scheme_str(), uri.scheme_str())
        && same_text(listed.authority().map(Authority::as_str), uri.authority().map(Authority::as_str))
        && listed.path().trim_end_matches('/') == uri.path().trim_end_matches('/')
}

fn is_authority(host: &str) -> bool {
    host.parse::<Authority>().is_ok() && !host.contains('@')
}

/// Whether a path needs no login.
pub(crate) fn is_excluded(path: &str, excluded: &[String]) -> bool {
    if excluded.is_empty() || !is_canonical(path) {
        return false;
    }
    excluded.iter().any(|rule| match rule.strip_suffix('*') {
        Some(begin) => path.starts_with(begin) || begin.strip_suffix('/') == Some(path),
        None => path == rule || path.strip_suffix('/') == Some(rule),
    })
}

/// Whether every app reads the path as it is written: no `..`, nothing that decodes to a separator or a dot.
fn is_canonical(path: &str) -> bool {
    let Some(inner) = path.strip_prefix('/') else { return false };
    let lower = path.to_ascii_lowercase();
    let hides = ["%2e", "%2f", "%5c", "%25", "%00", "\\", ";", "?", "#"].iter().any(|text| lower.contains(text))
        // browsers leave line ends and tabs out, wherever they stand
        || path.bytes().any(|byte| byte <= b' ' || byte == 0x7f);
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    let has_odd_segment = !inner.is_empty() && inner.split('/').any(|segment| matches!(segment, "" | "." | ".."));
    !hides && !has_odd_segment
}

/// `name=value&…`, encoded.
pub(crate) fn query(pairs: &[(&str, &str)]) -> String {
    let one = |(name, value): &(&str, &str)| format!("{}={}", encoded(name), encoded(value));
    pairs.iter().map(one).collect::<Vec<_>>().join("&")
}

/// A text as it stands in a query or form.
pub(crate) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, VALUE).to_string()
}

/// The path and query that a login leads back to, as [`Site::target`] lets them through.
pub(crate) fn return_path(base: &str, path_and_query: &str) -> String {
    let path = path_and_query.trim_start_matches('/');
    let text = utf8_percent_encode(path, ODD).to_string();
    format!("{base}/{text}")
}

/// An address with more in its query.
pub(crate) fn with_query(address: &str, pairs: &[(&str, &str)]) -> String {
    let (address, fragment) = address.split_once('#').map_or((address, None), |(it, rest)| (it, Some(rest)));
    let separator = if address.contains('?') { '&' } else { '?' };
    let mut whole = format!("{address}{separator}{}", query(pairs));
    if let Some(fragment) = fragment {
        whole.push('#');
        whole.push_str(fragment);
    }
    whole
}

/// The first value of a name in a query or form; `None` also when it is given twice, which two readers may read differently.
pub(crate) fn parameter(pairs: &str, name: &str) -> Option<String> {
    let mut all = pairs.split('&').filter_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    });
    let value = all.next()?;
    if all.next().is_some() {
        return None;
    }
    let value = value.replace('+', " ");
    percent_encoding::percent_decode_str(&value).decode_utf8().ok().map(|it| it.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::fuzzing::policy;

    #[test]
    fn a_login_leads_only_where_it_may() {
        let site = Site { is_https: true, host: "web.example:8444".into(), base: String::new() };
        let policy = policy(&["https://portal.example/home?x=1"]);
        for (wanted, expected) in [
            ("/", true),
            ("/a/b?c=d&e=%2F%2Fevil#f", true),
            ("https://web.example:8444/a", true),
            ("https://WEB.example:8444", true),
            ("https://portal.example/home?y=2", true),
            ("https://portal.example/home/#x", true),
            ("", false),
            ("a", false),
            ("//evil.example", false),
            ("///evil.example", false),
            ("/\\evil.example", false),
            ("\\\\evil.example", false),
            ("/\t/evil.example", false),
            ("/a\r\nset-cookie: x=y", false),
            (" https://web.example:8444/", false),
            ("http://web.example:8444/", false),
            ("https://web.example/", false),
            ("https://web.example:8444.evil.example/", false),
            ("https://web.example:8444@evil.example/", false),
            ("https://evil.example/?https://web.example:8444/", false),
            ("https://evil.example#https://web.example:8444/", false),
            ("https:evil.example", false),
            ("https:/evil.example", false),
            ("javascript:alert(1)", false),
            ("data:text/html,x", false),
            ("https://portal.example/home2", false),
            ("https://portal.example/homé", false),
            ("http://portal.example/home", false),
            ("ftp://web.example:8444/", false),
        ] {
            assert_eq!(site.target(wanted, &policy).is_some(), expected, "{wanted:?}");
        }
        assert!(site.target(&format!("/{}", "a".repeat(3000)), &policy).is_none());
    }

    #[test]
    fn excluded_paths_cannot_be_reached_around() {
        let excluded = ["/health".to_owned(), "/public/*".to_owned()];
        for (path, expected) in [
            ("/health", true),
            ("/health/", true),
            ("/public", true),
            ("/public/", true),
            ("/public/a.css", true),
            ("/public/a%20b", true),
            ("/Health", false),
            ("/healthy", false),
            ("/health/x", false),
            ("/publicity", false),
            ("/public/../admin", false),
            ("/public/..", false),
            ("/public/./a", false),
            ("/public//a", false),
            ("//public/a", false),
            ("/public/%2e%2e/admin", false),
            ("/public/..%2Fadmin", false),
            ("/public/%252e%252e/admin", false),
            ("/public/..;/admin", false),
            ("/public\\..\\admin", false),
            ("/public/.\n./admin", false),
            ("/public/%5c..%5cadmin", false),
            ("/public/..?/x", false),
            ("/public/..#/x", false),
            ("/", false),
            ("*", false),
        ] {
            assert_eq!(is_excluded(path, &excluded), expected, "{path}");
        }
        assert!(is_excluded("/", &["/".to_owned()]) && is_excluded("/any", &["/*".to_owned()]));
    }

    #[test]
    fn the_site_is_where_the_browser_is() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-host", "shop.example, inner".parse().unwrap());
        headers.insert("x-forwarded-proto", "HTTPS".parse().unwrap());
        headers.insert("x-host", "a/b".parse().unwrap());
        let seen =
            Seen { is_https: false, host: "web.localhost:8080", path: "/api/x", app_path: "/x", headers: &headers };
        let site = |origin: &AuthOrigin| Site::of(origin, seen).address("/.auth");
        assert_eq!(site(&AuthOrigin::Request), "http://web.localhost:8080/api/.auth");
        assert_eq!(site(&AuthOrigin::Forwarded), "https://shop.example/api/.auth");
        let custom = AuthOrigin::Headers { host: Some("x-host".into()), scheme: Some("x-forwarded-proto".into()) };
        assert_eq!(site(&custom), "https://web.localhost:8080/api/.auth");
        let base = |path, app_path| Site::of(&AuthOrigin::Request, Seen { path, app_path, ..seen }).base;
        for (path, app_path, expected) in
            [("/shop", "/", "/shop"), ("/shop/", "/", "/shop"), ("/", "/", ""), ("/a", "/a", ""), ("/a", "/b", "")]
        {
            assert_eq!(base(path, app_path), expected, "{path} {app_path}");
        }
    }

    #[test]
    fn queries_are_written_and_read() {
        let text = with_query("https://op/a?x=1#f", &[("redirect uri", "http://h/?a=b&c"), ("n", "é+")]);
        assert_eq!(text, "https://op/a?x=1&redirect%20uri=http%3A%2F%2Fh%2F%3Fa%3Db%26c&n=%C3%A9%2B#f");
        assert_eq!(parameter("a=1&n=%C3%A9%2B+x", "n").as_deref(), Some("é+ x"));
        assert_eq!(parameter("n=1&n=2", "n"), None);
        assert_eq!(parameter("n=%ff", "n"), None);
        assert_eq!(return_path("", "//evil.example/?q=\"é\\\""), "/evil.example/?q=%22%C3%A9%5C%22");
        assert_eq!(return_path("/api", "/a?b=%20"), "/api/a?b=%20");
        assert_eq!(parameter("m=1", "n"), None);
        assert_eq!(parameter("n", "n").as_deref(), Some(""));
    }
}
