//! Cross-origin rules (`corsPolicy`): preflights answered here, headers for allowed origins added to answers.
//!
//! As Envoy does, which is what stands in Azure's ingress: a preflight from an origin that the policy does not name goes to
//! the app like any other request, and gets no header from here.
//!
//! **Invariant:** an answer names an origin only when the policy allows it.

use bytes::Bytes;
use cove_model::CorsPolicy;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header};
use http_body_util::Full;

/// The rules of one app.
#[derive(Debug)]
pub(crate) struct Cors {
    origins: Vec<String>,
    methods: List,
    headers: List,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    has_credentials: bool,
}

/// What a preflight may ask for.
#[derive(Debug)]
enum List {
    /// `*`: what is asked for.
    Any,
    /// This.
    These(HeaderValue),
    /// Nothing is said.
    Nothing,
}

impl List {
    fn new(items: &[String]) -> Self {
        if items.iter().any(|item| item == "*") {
            return Self::Any;
        }
        joined(items).map_or(Self::Nothing, Self::These)
    }

    fn answer(&self, asked: Option<&HeaderValue>) -> Option<HeaderValue> {
        match self {
            Self::Any => asked.cloned(),
            Self::These(these) => Some(these.clone()),
            Self::Nothing => None,
        }
    }
}

fn joined(items: &[String]) -> Option<HeaderValue> {
    if items.is_empty() { None } else { HeaderValue::try_from(items.join(",")).ok() }
}

impl Cors {
    pub(crate) fn new(policy: &CorsPolicy) -> Self {
        Self {
            origins: policy
                .allowed_origins
                .iter()
                .map(|origin| origin.trim_end_matches('/').to_ascii_lowercase())
                .collect(),
            methods: List::new(&policy.allowed_methods),
            headers: List::new(&policy.allowed_headers),
            expose: joined(&policy.expose_headers),
            max_age: policy.max_age_secs.map(HeaderValue::from),
            has_credentials: policy.allow_credentials,
        }
    }

    /// The origin of a request, if the policy allows it.
    pub(crate) fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?.to_ascii_lowercase();
        let is_allowed = self.origins.iter().any(|allowed| match allowed.split_once('*') {
            Some((start, end)) => {
                text.len() >= start.len() + end.len() && text.starts_with(start) && text.ends_with(end)
            }
            None => *allowed == text,
        });
        is_allowed.then(|| origin.clone())
    }

    /// The answer to a preflight of an allowed origin; `None` for every other request.
    pub(crate) fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<Response<Full<Bytes>>> {
        let asked_method = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD).filter(|_| method == Method::OPTIONS)?;
        let origin = self.allowed_origin(headers)?;
        let mut response = Response::new(Full::default());
        let fields = response.headers_mut();
        fields.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let mut set = |name: HeaderName, value: Option<HeaderValue>| {
            if let Some(value) = value {
                fields.insert(name, value);
            }
        };
        set(header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.answer(Some(asked_method)));
        let asked_headers = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
        set(header::ACCESS_CONTROL_ALLOW_HEADERS, self.headers.answer(asked_headers));
        set(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        set(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, self.credentials());
        let vary = "origin, access-control-request-method, access-control-request-headers";
        set(header::VARY, Some(HeaderValue::from_static(vary)));
        set(header::CONTENT_LENGTH, Some(HeaderValue::from_static("0")));
        Some(response)
    }

    /// Adds what an allowed origin's script needs to read the answer; what the app said about it is replaced.
    pub(crate) fn decorate(&self, origin: &HeaderValue, headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if let Some(credentials) = self.credentials() {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, credentials);
        }
        if let Some(expose) = &self.expose {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
        // a cache must not give this origin's answer to another
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }

    fn credentials(&self) -> Option<HeaderValue> {
        self.has_credentials.then(|| HeaderValue::from_static("true"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn origins_are_compared_whole_or_with_one_star() {
        let allowed = ["https://Shop.example", "https://*.example.org", "http://localhost:3000/"];
        let policy = CorsPolicy { allowed_origins: allowed.map(str::to_owned).to_vec(), ..CorsPolicy::default() };
        let cors = Cors::new(&policy);
        for (origin, expected) in [
            ("https://shop.example", true),
            ("https://shop.example.evil", false),
            ("http://shop.example", false),
            ("https://a.b.example.org", true),
            ("https://example.org", false),
            ("https://evil-example.org", false),
            ("http://localhost:3000", true),
            ("http://localhost:3001", false),
            ("null", false),
        ] {
            assert_eq!(cors.allowed_origin(&map(&[(header::ORIGIN, origin)])).is_some(), expected, "{origin}");
        }
        let all = Cors::new(&CorsPolicy { allowed_origins: vec!["*".into()], ..CorsPolicy::default() });
        assert!(all.allowed_origin(&map(&[(header::ORIGIN, "https://any")])).is_some());
        assert!(all.allowed_origin(&map(&[])).is_none());
    }

    #[test]
    fn a_preflight_is_told_what_is_allowed() {
        let text = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
        let cors = Cors::new(&CorsPolicy {
            allowed_origins: text(&["https://shop.example"]),
            allowed_methods: text(&["GET", "PUT"]),
            allowed_headers: text(&["*"]),
            expose_headers: text(&["x-total"]),
            max_age_secs: Some(600),
            allow_credentials: true,
        });
        let mut asked = map(&[
            (header::ORIGIN, "https://shop.example"),
            (header::ACCESS_CONTROL_REQUEST_METHOD, "PUT"),
            (header::ACCESS_CONTROL_REQUEST_HEADERS, "x-a, x-b"),
        ]);
        let answer = cors.preflight(&Method::OPTIONS, &asked).unwrap();
        let field = |name: HeaderName| answer.headers()[name].to_str().unwrap();
        assert_eq!(field(header::ACCESS_CONTROL_ALLOW_ORIGIN), "https://shop.example");
        assert_eq!(field(header::ACCESS_CONTROL_ALLOW_METHODS), "GET,PUT");
        assert_eq!(field(header::ACCESS_CONTROL_ALLOW_HEADERS), "x-a, x-b");
        assert_eq!(field(header::ACCESS_CONTROL_MAX_AGE), "600");
        assert_eq!(field(header::ACCESS_CONTROL_ALLOW_CREDENTIALS), "true");
        assert!(cors.preflight(&Method::GET, &asked).is_none());
        asked.insert(header::ORIGIN, HeaderValue::from_static("https://other.example"));
        assert!(cors.preflight(&Method::OPTIONS, &asked).is_none());
    }
}
