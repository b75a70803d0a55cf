//! Whether a request is tried again after an answer or a failure, and when. The conditions are Envoy's, whose words Azure uses.
//!
//! **Invariant:** no try begins at or after the request's deadline.

use std::time::Duration;

use cove_model::{HeaderMatch, RetryOn, RetryPolicy, TextMatch};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use regex::bytes::{Regex, RegexBuilder};
use tokio::time::Instant;

/// Memory of one compiled pattern.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Why a try gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection came about.
    Connect,
    /// The app said that it did not act on it.
    Refused,
    /// The connection ended, or what came was no answer.
    Reset,
    /// Nothing came in the policy's time.
    Timeout,
}

/// How a try ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tried<'a> {
    /// With the head of an answer.
    Answer(StatusCode, &'a HeaderMap),
    /// Without one.
    Failed(Failure),
}

/// A retry policy, ready to be asked.
#[derive(Debug)]
pub(crate) struct Retry {
    retries_max: u32,
    initial_delay: Duration,
    delay_max: Duration,
    on_server_error: bool,
    on_gateway_error: bool,
    on_connect_failure: bool,
    on_reset: bool,
    on_refused: bool,
    on_conflict: bool,
    statuses: Vec<u16>,
    headers: Vec<(HeaderName, Value)>,
}

/// A test of a header's value.
#[derive(Debug)]
enum Value {
    Any,
    Exact(String),
    Prefix(String),
    Suffix(String),
    Regex(Box<Regex>),
}

impl Retry {
    pub(crate) fn new(policy: &RetryPolicy) -> Self {
        let on = |condition: RetryOn| policy.on.contains(&condition);
        let (by_status, by_header) = (on(RetryOn::Statuses), on(RetryOn::Headers));
        Self {
            retries_max: policy.retries_max,
            initial_delay: Duration::from_millis(policy.initial_delay_ms.into()),
            delay_max: Duration::from_millis(policy.delay_max_ms.into()),
            on_server_error: on(RetryOn::ServerError),
            on_gateway_error: on(RetryOn::GatewayError),
            on_connect_failure: on(RetryOn::ConnectFailure),
            on_reset: on(RetryOn::Reset),
            on_refused: on(RetryOn::RefusedStream),
            on_conflict: on(RetryOn::Conflict),
            statuses: if by_status { policy.statuses.clone() } else { Vec::new() },
            headers: if by_header { policy.headers.iter().filter_map(header).collect() } else { Vec::new() },
        }
    }

    /// The wait before the next try; `None` when how it ended is what the client gets: it is not worth a try, all tries are
    /// used up, or the next one would begin after `deadline`. `random` spreads the tries of requests that failed together.
    pub(crate) fn next(
        &self,
        retries: u32,
        tried: Tried<'_>,
        (now, deadline): (Instant, Instant),
        random: u32,
    ) -> Option<Duration> {
        if retries >= self.retries_max || !self.is_worth(tried) {
            return None;
        }
        let wait = self.wait(retries, random);
        (now + wait < deadline).then_some(wait)
    }

    /// Whether a try is left after so many.
    pub(crate) fn has_more(&self, retries: u32) -> bool {
        retries < self.retries_max
    }

    /// Whether an answer or a failure is what the policy names.
    pub(crate) fn is_worth(&self, tried: Tried<'_>) -> bool {
        match tried {
            Tried::Answer(status, headers) => {
                let is_gateway_error = matches!(status.as_u16(), 502..=504);
                self.on_server_error && status.is_server_error()
                    || self.on_gateway_error && is_gateway_error
                    || self.on_conflict && status == StatusCode::CONFLICT
                    || self.statuses.contains(&status.as_u16())
                    || self.headers.iter().any(|(name, value)| headers.get_all(name).iter().any(|it| value.fits(it)))
            }
            Tried::Failed(failure) => {
                let by_kind = match failure {
                    Failure::Connect => self.on_connect_failure,
                    Failure::Refused => self.on_refused,
                    Failure::Reset | Failure::Timeout => false,
                };
                by_kind || self.on_server_error || self.on_gateway_error || self.on_reset
            }
        }
    }

    /// Between half and all of the delay, which doubles with every retry up to its limit.
    fn wait(&self, retries: u32, random: u32) -> Duration {
        let delay = self.initial_delay.saturating_mul(1 << retries.min(20)).min(self.delay_max);
        let half = delay / 2;
        half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

fn header(rule: &HeaderMatch) -> Option<(HeaderName, Value)> {
    let name = HeaderName::try_from(rule.name.as_str()).ok();
    let value = match &rule.value {
        TextMatch::Any => Some(Value::Any),
        TextMatch::Exact(text) => Some(Value::Exact(text.clone())),
        TextMatch::Prefix(text) => Some(Value::Prefix(text.clone())),
        TextMatch::Suffix(text) => Some(Value::Suffix(text.clone())),
        TextMatch::Regex(pattern) => {
            let built = RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(PATTERN_BYTES_MAX).build();
            built.ok().map(|regex| Value::Regex(Box::new(regex)))
        }
    };
    let found = name.zip(value);
    if found.is_none() {
        tracing::error!(header = rule.name, "a header of a retry policy cannot be read; no answer is retried for it");
    }
    found
}

impl Value {
    fn fits(&self, value: &HeaderValue) -> bool {
        let value = value.as_bytes();
        match self {
            Self::Any => true,
            Self::Exact(text) => value == text.as_bytes(),
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Suffix(text) => value.ends_with(text.as_bytes()),
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(on: &[RetryOn]) -> Retry {
        let header = |name: &str, value| HeaderMatch { name: name.into(), value };
        Retry::new(&RetryPolicy {
            on: on.to_vec(),
            statuses: vec![404, 502],
            headers: vec![
                header("x-exact", TextMatch::Exact("again".into())),
                header("x-prefix", TextMatch::Prefix("re".into())),
                header("x-suffix", TextMatch::Suffix("ry".into())),
                header("x-regex", TextMatch::Regex("[0-9]+|late".into())),
                header("x-any", TextMatch::Any),
            ],
            ..RetryPolicy::default()
        })
    }

    fn is_worth(on: RetryOn, tried: Tried<'_>) -> bool {
        let now = Instant::now();
        retry(&[on]).next(0, tried, (now, now + Duration::from_secs(240)), 0).is_some()
    }

    #[tokio::test]
    async fn each_condition_means_what_envoy_means() {
        use RetryOn as On;
        let statuses = [200, 400, 404, 409, 429, 500, 501, 502, 503, 504, 505, 599];
        let failures = [Failure::Connect, Failure::Refused, Failure::Reset, Failure::Timeout];
        let none = HeaderMap::new();
        for (on, expected_statuses, expected_failures) in [
            (On::ServerError, &[500, 501, 502, 503, 504, 505, 599][..], &failures[..]),
            (On::GatewayError, &[502, 503, 504], &failures),
            (On::ConnectFailure, &[], &[Failure::Connect]),
            (On::Reset, &[], &failures),
            (On::RefusedStream, &[], &[Failure::Refused]),
            (On::Conflict, &[409], &[]),
            (On::Statuses, &[404, 502], &[]),
            (On::Headers, &[], &[]),
        ] {
            let answer = |status: u16| Tried::Answer(StatusCode::from_u16(status).unwrap(), &none);
            let of_statuses: Vec<u16> = statuses.into_iter().filter(|status| is_worth(on, answer(*status))).collect();
            let of_failures: Vec<Failure> =
                failures.into_iter().filter(|failure| is_worth(on, Tried::Failed(*failure))).collect();
            assert_eq!((&of_statuses[..], &of_failures[..]), (expected_statuses, expected_failures), "{on:?}");
        }
    }

    #[tokio::test]
    async fn headers_are_told_apart() {
        for (name, value, expected) in [
            ("x-exact", "again", true),
            ("x-exact", "again!", false),
            ("x-prefix", "retry", true),
            ("x-prefix", "no retry", false),
            ("x-suffix", "retry", true),
            ("x-suffix", "retry!", false),
            ("x-regex", "17", true),
            ("x-regex", "late", true),
            ("x-regex", "late 17", false),
            ("x-any", "", true),
            ("x-other", "again", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            let tried = Tried::Answer(StatusCode::OK, &headers);
            assert_eq!(is_worth(RetryOn::Headers, tried), expected, "{name}: {value}");
            assert!(!is_worth(RetryOn::ServerError, tried), "the word retriable-headers is missing");
        }
    }

    #[tokio::test]
    async fn waits_double_up_to_their_limit_and_stop_at_the_deadline() {
        let retry = Retry::new(&RetryPolicy { retries_max: 6, ..RetryPolicy::default() });
        let now = Instant::now();
        let next = |retries, random, left| {
            let tried = Tried::Failed(Failure::Reset);
            retry.next(retries, tried, (now, now + Duration::from_secs(left)), random).map(|wait| wait.as_millis())
        };
        let longest: Vec<_> = (0..7).map(|retries| next(retries, u32::MAX, 240)).collect();
        assert_eq!(longest, [Some(1000), Some(2000), Some(4000), Some(8000), Some(10_000), Some(10_000), None]);
        let shortest: Vec<_> = (0..6).map(|retries| next(retries, 0, 240)).collect();
        assert_eq!(shortest, [Some(500), Some(1000), Some(2000), Some(4000), Some(5000), Some(5000)]);
        assert_eq!((next(2, u32::MAX, 4), next(2, u32::MAX, 5)), (None, Some(4000)), "the deadline stands");
    }
}
