//! Answers to the question by which a certificate authority finds out whose a domain is: HTTP-01 of ACME (RFC 8555, 8.3).
//!
//! The question comes over plain HTTP to the domain itself. What is expected is answered here, before the app is looked for,
//! so that a domain is proven also while its app is at zero, internal or not there yet. Any other question of this kind goes
//! to the app, which may prove its domains itself.
//!
//! **Invariant:** a question is answered only under the host that it was expected for, and it wakes nothing.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use cove_traffic::host_name;
use http::{HeaderValue, Method, Response, header};
use http_body_util::Full;

/// Where RFC 8555 puts the answers.
const PATH: &str = "/.well-known/acme-challenge/";
/// Questions that may be expected at once.
const EXPECTED_MAX: usize = 1000;

/// Answers by host and token; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Challenges {
    answers: Arc<RwLock<HashMap<(String, String), Bytes>>>,
}

/// An expected question; when this is dropped it is expected no more.
#[derive(Debug)]
#[must_use = "the question is expected only as long as this lives"]
pub struct Expected {
    challenges: Challenges,
    key: (String, String),
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.challenges.answers.write().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Challenges {
    /// Expects the question with `token` at `host`, to be answered with `answer`.
    ///
    /// # Errors
    /// 1,000 questions are expected already.
    pub fn expect(&self, host: &str, token: &str, answer: &str) -> Result<Expected, TooManyChallenges> {
        let key = (host_name(host).into_owned(), token.to_owned());
        let mut answers = self.answers.write().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= EXPECTED_MAX && !answers.contains_key(&key) {
            return Err(TooManyChallenges);
        }
        answers.insert(key.clone(), Bytes::copy_from_slice(answer.as_bytes()));
        Ok(Expected { challenges: self.clone(), key })
    }

    /// The answer to a request, if it is an expected question.
    pub(crate) fn answer(&self, method: &Method, host: &str, path: &str) -> Option<Response<Full<Bytes>>> {
        let token = path.strip_prefix(PATH)?;
        if method != Method::GET && method != Method::HEAD {
            return None;
        }
        let key = (host_name(host).into_owned(), token.to_owned());
        let answer = self.answers.read().unwrap_or_else(PoisonError::into_inner).get(&key)?.clone();
        let length = HeaderValue::from(answer.len());
        let mut response = Response::new(Full::new(if method == Method::HEAD { Bytes::new() } else { answer }));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(header::CONTENT_LENGTH, length);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Some(response)
    }
}

/// No further question can be expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{EXPECTED_MAX} domains are being proven at once already; try again when some are done")]
pub struct TooManyChallenges;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_expected_is_answered_and_only_as_long_as_it_is() {
        let challenges = Challenges::default();
        let expected = challenges.expect("Shop.Example", "token", "token.thumb").unwrap();
        let ask = |method: Method, host: &str, path: &str| challenges.answer(&method, host, path).is_some();
        let path = "/.well-known/acme-challenge/token";
        assert!(ask(Method::GET, "shop.example:80", path));
        assert!(ask(Method::HEAD, "shop.example.", path));
        for (method, host, path) in [
            (Method::POST, "shop.example", path),
            (Method::GET, "other.example", path),
            (Method::GET, "shop.example", "/.well-known/acme-challenge/other"),
            (Method::GET, "shop.example", "/token"),
        ] {
            assert!(!ask(method.clone(), host, path), "{method} {host} {path}");
        }
        drop(expected);
        assert!(!ask(Method::GET, "shop.example", path));
    }

    #[test]
    fn the_number_of_expected_questions_is_bounded() {
        let challenges = Challenges::default();
        let expect = |number: usize| challenges.expect("shop.example", &number.to_string(), "answer");
        let mut all: Vec<Expected> = (0..EXPECTED_MAX).map(|number| expect(number).unwrap()).collect();
        assert_eq!(expect(EXPECTED_MAX).unwrap_err(), TooManyChallenges);
        all.pop();
        drop(expect(EXPECTED_MAX).unwrap());
    }
}
