//! What a browser keeps for us: the session's cookie, the binding of a login to its browser, a login's state.
//!
//! A login's state travels in the address that the provider sends the browser back to, sealed; it counts only in the browser
//! that holds the binding cookie which it was made with. So logins of several tabs go side by side, and a link that somebody
//! else made logs nobody in.
//!
//! **Invariant:** a session's cookie fits into 4 KiB whatever the provider told.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use ring::digest;
use serde::{Deserialize, Serialize};

use super::{
    claims::Principal,
    place::Site,
    seal::{Sealer, random_text},
};

/// Azure's name for the session's cookie.
pub(crate) const SESSION_COOKIE: &str = "AppServiceAuthSession";
/// Binds logins to the browser that began them.
pub(crate) const BINDING_COOKIE: &str = "AppServiceAuthNonce";
/// A session for clients without cookies, as Azure names it.
pub(crate) const SESSION_HEADER: HeaderName = HeaderName::from_static("x-zumo-auth");
/// Longest sealed session; browsers keep cookies of 4096 bytes, their attributes included.
const SESSION_BYTES_MAX: usize = 3800;
/// Cookies of one name that are looked at.
const COOKIES_MAX: usize = 8;

/// A login that holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    /// Who; without claims where the token store has them.
    #[serde(rename = "u")]
    pub(crate) principal: Principal,
    /// End, in seconds since 1970.
    #[serde(rename = "e")]
    pub(crate) expires_secs: i64,
    /// Its name in the token store.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// Of the provider's settings at the login: one that was replaced logs its users out.
    #[serde(rename = "f")]
    pub(crate) fingerprint: u64,
}

/// A login under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LoginState {
    #[serde(rename = "p")]
    pub(crate) provider: String,
    #[serde(rename = "n")]
    pub(crate) nonce: String,
    /// Of PKCE (RFC 7636).
    #[serde(rename = "v")]
    pub(crate) verifier: String,
    /// Where it leads to.
    #[serde(rename = "r")]
    pub(crate) target: String,
    /// End, in seconds since 1970.
    #[serde(rename = "e")]
    pub(crate) expires_secs: i64,
    /// Hash of the browser's binding.
    #[serde(rename = "b")]
    pub(crate) binding: String,
}

/// A logout under way at the provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogoutState {
    /// Where it leads to.
    #[serde(rename = "l")]
    pub(crate) target: String,
}

impl Session {
    /// As a cookie or header holds it. What does not fit is left out, the longest claims first.
    pub(crate) fn seal(&self, sealer: &Sealer) -> String {
        let mut session = self.clone();
        loop {
            let text = sealer.seal(&session);
            let longest =
                session.principal.claims.iter().enumerate().max_by_key(|(_, (kind, value))| kind.len() + value.len());
            let Some(longest) = longest.map(|(index, _)| index).filter(|_| text.len() > SESSION_BYTES_MAX) else {
                return text;
            };
            let (kind, _) = session.principal.claims.remove(longest);
            tracing::warn!(
                claim = kind,
                "a claim does not fit into the session's cookie; turn the token store on to keep all"
            );
        }
    }

    /// The first that opens of a request's cookies and header, whatever its end.
    pub(crate) fn read(headers: &HeaderMap, sealer: &Sealer) -> Option<Self> {
        let header = headers.get(SESSION_HEADER).and_then(|value| value.to_str().ok());
        // a neighbour's host may have set one of the same name
        header.into_iter().chain(cookies(headers, SESSION_COOKIE)).find_map(|text| sealer.open(text))
    }
}

/// The values of a request's cookies of a name.
pub(crate) fn cookies<'h>(headers: &'h HeaderMap, name: &'static str) -> impl Iterator<Item = &'h str> {
    let pairs = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let all = pairs.flat_map(|pairs| pairs.split(';')).filter_map(move |pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim() == name).then(|| value.trim().trim_matches('"'))
    });
    all.take(COOKIES_MAX)
}

/// A cookie that scripts cannot read and other sites' forms do not send; `secs` is its life, `None` that of the browser.
pub(crate) fn set_cookie(name: &str, value: &str, site: &Site, secs: Option<u64>) -> HeaderValue {
    let path = if site.base.is_empty() { "/" } else { &site.base };
    let life = secs.map(|secs| format!("; Max-Age={secs}")).unwrap_or_default();
    let secure = if site.is_https { "; Secure" } else { "" };
    let text = format!("{name}={value}; Path={path}{life}; HttpOnly; SameSite=Lax{secure}");
    // a base with characters that no header holds: the cookie is of the whole host then
    let whole = || format!("{name}={value}; Path=/{life}; HttpOnly; SameSite=Lax{secure}");
    let is_plain = !path.contains([';', ',', '"', '\\']);
    let below = if is_plain { HeaderValue::try_from(text).ok() } else { None };
    below.unwrap_or_else(|| HeaderValue::try_from(whole()).expect("base64url and fixed text are a header value"))
}

/// The binding of a request's browser, or a new one.
pub(crate) fn binding(headers: &HeaderMap) -> String {
    let is_ours =
        |text: &&str| text.len() == 43 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    cookies(headers, BINDING_COOKIE).find(is_ours).map_or_else(random_text::<32>, str::to_owned)
}

/// SHA-256 in base64url: of a PKCE verifier its challenge.
pub(crate) fn hash(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, text.as_bytes()))
}

impl LoginState {
    /// Whether it belongs to this browser, this provider and this moment.
    pub(crate) fn holds(&self, headers: &HeaderMap, provider: &str, now_secs: i64) -> bool {
        self.expires_secs > now_secs
            && self.provider == provider
            && cookies(headers, BINDING_COOKIE).any(|binding| hash(binding) == self.binding)
    }
}

#[cfg(test)]
mod tests {
    use cove_model::ResourceId;

    use super::*;
    use crate::auth::seal::AuthKey;

    fn sealer() -> Sealer {
        let app = ResourceId::resource("s", "g", "Microsoft.App/containerApps", "web").unwrap();
        Sealer::new(&AuthKey::random(), "session", &app, &[])
    }

    fn session(claims: Vec<(String, String)>) -> Session {
        let principal = Principal {
            provider: "own".into(),
            id: "alice".into(),
            name: "Alice".into(),
            name_type: "name".into(),
            claims,
        };
        Session { principal, expires_secs: 7, id: None, fingerprint: 1 }
    }

    fn with_cookie(text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, HeaderValue::try_from(text).unwrap());
        headers
    }

    #[test]
    fn the_first_cookie_that_opens_counts() {
        let sealer = sealer();
        let text = session(Vec::new()).seal(&sealer);
        let read = |cookie: &str| Session::read(&with_cookie(cookie), &sealer);
        assert_eq!(read(&format!("a=b; {SESSION_COOKIE}={text}; c")), Some(session(Vec::new())));
        assert_eq!(read(&format!("{SESSION_COOKIE}=forged; {SESSION_COOKIE}=\"{text}\"")), Some(session(Vec::new())));
        assert_eq!(read(&format!("{SESSION_COOKIE}x={text}")), None);
        assert_eq!(read(&format!("{SESSION_COOKIE}={text}A")), None);
        let forged = format!("{SESSION_COOKIE}=x; ").repeat(COOKIES_MAX) + &format!("{SESSION_COOKIE}={text}");
        assert_eq!(read(&forged), None, "only so many are tried");
        let mut headers = HeaderMap::new();
        headers.insert(SESSION_HEADER, HeaderValue::try_from(&text).unwrap());
        assert!(Session::read(&headers, &sealer).is_some());
    }

    #[test]
    fn a_cookie_fits_whatever_was_told() {
        let sealer = sealer();
        let claims = (0..200).map(|n| (format!("claim{n}"), "x".repeat(n))).collect();
        let text = session(claims).seal(&sealer);
        assert!(text.len() <= SESSION_BYTES_MAX, "{}", text.len());
        let read: Session = sealer.open(&text).unwrap();
        assert!(read.principal.claims.len() > 20 && read.principal.claims.contains(&("claim1".into(), "x".into())));
    }

    #[test]
    fn a_login_counts_in_its_own_browser_only() {
        let mine = random_text::<32>();
        let state = LoginState {
            provider: "own".into(),
            nonce: "n".into(),
            verifier: "v".into(),
            target: "/".into(),
            expires_secs: 100,
            binding: hash(&mine),
        };
        let browser = with_cookie(&format!("{BINDING_COOKIE}={mine}"));
        assert!(state.holds(&browser, "own", 99));
        assert!(!state.holds(&browser, "own", 100), "too late");
        assert!(!state.holds(&browser, "other", 99), "another provider's answer");
        assert!(!state.holds(&HeaderMap::new(), "own", 99), "another browser");
        assert!(!state.holds(&with_cookie(&format!("{BINDING_COOKIE}={}", random_text::<32>())), "own", 99));
        assert_eq!(binding(&browser), mine);
        assert_ne!(binding(&with_cookie(&format!("{BINDING_COOKIE}=chosen"))), "chosen");
        // RFC 7636, appendix B
        assert_eq!(hash("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn cookies_are_for_the_browser_alone() {
        let site = |is_https, base: &str| Site { is_https, host: "web".into(), base: base.into() };
        let text = |site: &Site| set_cookie("n", "v", site, Some(5)).to_str().unwrap().to_owned();
        assert_eq!(text(&site(true, "")), "n=v; Path=/; Max-Age=5; HttpOnly; SameSite=Lax; Secure");
        assert_eq!(text(&site(false, "/api")), "n=v; Path=/api; Max-Age=5; HttpOnly; SameSite=Lax");
        for strange in ["/a;b", "/a\u{7f}b", "/a\nb"] {
            assert_eq!(text(&site(false, strange)), "n=v; Path=/; Max-Age=5; HttpOnly; SameSite=Lax");
        }
    }
}
