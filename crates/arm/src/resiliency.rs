//! `containerApps/resiliencyPolicies` (preview): timeouts, retries, circuit breaker and pools of calls to an app.
//!
//! What a part leaves out is what Azure recommends.
//!
//! **Invariant:** [`read`] gives to every document that [`parse`] let through what its user meant by it.

use cove_model::{BreakerPolicy, HeaderMatch, Resiliency, RetryOn, RetryPolicy, TextMatch, TryTimeouts};
use serde_json::Value;

use crate::{ArmError, Errors, environment::child::strip, node::Node, schema::Schema};

/// Most headers and statuses of a retry policy.
const MATCHES_MAX: usize = 50;
/// Longest text of a header's test.
const TEXT_MAX: usize = 1000;
/// Memory of one compiled pattern.
const PATTERN_BYTES_MAX: usize = 1 << 20;

static HEADER: Schema = Schema::Object(&[
    ("header", &Schema::Text),
    (
        "match",
        &Schema::Object(&[
            ("exactMatch", &Schema::Text),
            ("prefixMatch", &Schema::Text),
            ("suffixMatch", &Schema::Text),
            ("regexMatch", &Schema::Text),
        ]),
    ),
]);

static RETRY: Schema = Schema::Object(&[
    ("maxRetries", &Schema::Int),
    (
        "retryBackOff",
        &Schema::Object(&[("initialDelayInMilliseconds", &Schema::Int), ("maxIntervalInMilliseconds", &Schema::Int)]),
    ),
    (
        "matches",
        &Schema::Object(&[
            ("headers", &Schema::List(&HEADER)),
            ("httpStatusCodes", &Schema::List(&Schema::Int)),
            ("errors", &Schema::List(&Schema::Text)),
        ]),
    ),
]);

/// Body of a policy.
pub static SCHEMA: Schema = Schema::Object(&[(
    "properties",
    &Schema::Object(&[
        (
            "timeoutPolicy",
            &Schema::Object(&[
                ("responseTimeoutInSeconds", &Schema::Int),
                ("connectionTimeoutInSeconds", &Schema::Int),
            ]),
        ),
        ("httpRetryPolicy", &RETRY),
        ("tcpRetryPolicy", &Schema::Object(&[("maxConnectAttempts", &Schema::Int)])),
        (
            "circuitBreakerPolicy",
            &Schema::Object(&[
                ("consecutiveErrors", &Schema::Int),
                ("intervalInSeconds", &Schema::Int),
                ("maxEjectionPercent", &Schema::Int),
            ]),
        ),
        (
            "httpConnectionPool",
            &Schema::Object(&[("http1MaxPendingRequests", &Schema::Int), ("http2MaxRequests", &Schema::Int)]),
        ),
        ("tcpConnectionPool", &Schema::Object(&[("maxConnections", &Schema::Int)])),
    ]),
)]);

/// Ranges: policy, property, least, most.
const RANGES: &[(&[&str], i64, i64)] = &[
    (&["timeoutPolicy", "responseTimeoutInSeconds"], 1, 3600),
    (&["timeoutPolicy", "connectionTimeoutInSeconds"], 1, 3600),
    (&["httpRetryPolicy", "maxRetries"], 1, 10),
    (&["httpRetryPolicy", "retryBackOff", "initialDelayInMilliseconds"], 1, 600_000),
    (&["httpRetryPolicy", "retryBackOff", "maxIntervalInMilliseconds"], 1, 600_000),
    (&["tcpRetryPolicy", "maxConnectAttempts"], 1, 10),
    (&["circuitBreakerPolicy", "consecutiveErrors"], 1, 1_000_000),
    (&["circuitBreakerPolicy", "intervalInSeconds"], 1, 86_400),
    (&["circuitBreakerPolicy", "maxEjectionPercent"], 1, 100),
    (&["httpConnectionPool", "http1MaxPendingRequests"], 1, 1_000_000),
    (&["httpConnectionPool", "http2MaxRequests"], 1, 1_000_000),
    (&["tcpConnectionPool", "maxConnections"], 1, 1_000_000),
];

/// Checks a document that has the kinds of [`SCHEMA`].
///
/// # Errors
/// Every problem at once, those in `errors` included.
pub fn parse(mut doc: Value, mut errors: Errors) -> Result<Value, ArmError> {
    strip(&mut doc, &["coveWarnings"]);
    let properties = Node::root(&doc).get("properties");
    for (path, least, most) in RANGES {
        let node = path.iter().fold(properties.clone(), |node, name| node.get(name));
        if node.int().is_some_and(|number| number < *least || number > *most) {
            let number = node.int().unwrap_or(0);
            errors.invalid(&node.path, format!("The value {number} is not valid; expected {least} to {most}."));
        }
    }
    check_matches(&properties.get("httpRetryPolicy").get("matches"), &mut errors);
    errors.into_result()?;
    Ok(doc)
}

fn check_matches(matches: &Node<'_>, errors: &mut Errors) {
    for word in matches.get("errors").items() {
        if word.text().is_some_and(|text| condition(text).is_none()) {
            let words = RetryOn::ALL.map(RetryOn::as_str).join(", ");
            errors.invalid(&word.path, format!("expected one of {words}."));
        }
    }
    for name in ["headers", "httpStatusCodes"] {
        let list = matches.get(name);
        let count = list.items().len();
        if count > MATCHES_MAX {
            errors.invalid(&list.path, format!("{count} are too many; expected at most {MATCHES_MAX}."));
        }
    }
    for status in matches.get("httpStatusCodes").items() {
        if status.int().is_some_and(|status| !(100..=599).contains(&status)) {
            errors.invalid(&status.path, "An HTTP status is 100 to 599.");
        }
    }
    for header in matches.get("headers").items().iter().take(MATCHES_MAX) {
        if let Err((path, message)) = header_match(header) {
            errors.invalid(&path, message);
        }
    }
}

fn condition(word: &str) -> Option<RetryOn> {
    RetryOn::ALL.into_iter().find(|condition| condition.as_str() == word)
}

/// A header's test; an error is a path and what is wrong there.
fn header_match(node: &Node<'_>) -> Result<HeaderMatch, (String, String)> {
    let name = node.get("header");
    let text = name.text().unwrap_or("").trim().to_ascii_lowercase();
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if text.is_empty() || text.len() > TEXT_MAX || !text.bytes().all(is_token) {
        return Err((name.path, "expected the name of a header, such as 'x-retriable'.".to_owned()));
    }
    let test = node.get("match");
    let kinds = ["exactMatch", "prefixMatch", "suffixMatch", "regexMatch"];
    let given: Vec<(usize, Node<'_>)> =
        kinds.iter().enumerate().map(|(index, kind)| (index, test.get(kind))).filter(|(_, it)| it.exists()).collect();
    let value = match &given[..] {
        [] => TextMatch::Any,
        [(kind, node)] => {
            let text = node.text().unwrap_or("").to_owned();
            if text.len() > TEXT_MAX {
                return Err((node.path.clone(), format!("expected at most {TEXT_MAX} characters.")));
            }
            match kind {
                0 => TextMatch::Exact(text),
                1 => TextMatch::Prefix(text),
                2 => TextMatch::Suffix(text),
                _ => {
                    check_pattern(&text).map_err(|error| (node.path.clone(), error))?;
                    TextMatch::Regex(text)
                }
            }
        }
        _ => return Err((test.path, format!("expected one of {}.", kinds.join(", ")))),
    };
    Ok(HeaderMatch { name: text, value })
}

fn check_pattern(pattern: &str) -> Result<(), String> {
    let built = regex::bytes::RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(PATTERN_BYTES_MAX).build();
    built.map(|_| ()).map_err(|error| format!("this is no usable regular expression: {error}."))
}

/// What a checked document asks for; what a part leaves out is what Azure recommends.
#[must_use]
pub fn read(doc: &Value) -> Resiliency {
    let properties = Node::root(doc).get("properties");
    let number = |part: &Node<'_>, name: &str| part.get(name).int().and_then(|number| u32::try_from(number).ok());
    let part = |name: &str| Some(properties.get(name)).filter(Node::exists);
    let pool = properties.get("httpConnectionPool");
    Resiliency {
        timeouts: part("timeoutPolicy").map(|part| {
            let recommended = TryTimeouts::default();
            TryTimeouts {
                response_secs: number(&part, "responseTimeoutInSeconds").unwrap_or(recommended.response_secs),
                connect_secs: number(&part, "connectionTimeoutInSeconds").unwrap_or(recommended.connect_secs),
            }
        }),
        retry: part("httpRetryPolicy").map(|part| read_retry(&part)),
        connect_attempts: part("tcpRetryPolicy").map(|part| number(&part, "maxConnectAttempts").unwrap_or(3)),
        breaker: part("circuitBreakerPolicy").map(|part| {
            let recommended = BreakerPolicy::default();
            BreakerPolicy {
                consecutive_errors: number(&part, "consecutiveErrors").unwrap_or(recommended.consecutive_errors),
                interval_secs: number(&part, "intervalInSeconds").unwrap_or(recommended.interval_secs),
                ejection_percent_max: number(&part, "maxEjectionPercent").unwrap_or(recommended.ejection_percent_max),
            }
        }),
        http1_requests_max: pool.exists().then(|| number(&pool, "http1MaxPendingRequests").unwrap_or(1024)),
        http2_requests_max: pool.exists().then(|| number(&pool, "http2MaxRequests").unwrap_or(1024)),
        connections_max: part("tcpConnectionPool").map(|part| number(&part, "maxConnections").unwrap_or(100)),
    }
}

fn read_retry(part: &Node<'_>) -> RetryPolicy {
    let recommended = RetryPolicy::default();
    let number = |node: Node<'_>| node.int().and_then(|number| u32::try_from(number).ok());
    let (back_off, matches) = (part.get("retryBackOff"), part.get("matches"));
    let statuses = matches.get("httpStatusCodes").items();
    let initial_delay_ms = number(back_off.get("initialDelayInMilliseconds")).unwrap_or(recommended.initial_delay_ms);
    RetryPolicy {
        retries_max: number(part.get("maxRetries")).unwrap_or(recommended.retries_max),
        initial_delay_ms,
        delay_max_ms: number(back_off.get("maxIntervalInMilliseconds"))
            .unwrap_or(recommended.delay_max_ms)
            .max(initial_delay_ms),
        on: if matches.get("errors").exists() {
            matches.get("errors").items().iter().filter_map(|word| condition(word.text()?)).collect()
        } else {
            recommended.on
        },
        statuses: statuses.iter().filter_map(|status| u16::try_from(status.int()?).ok()).collect(),
        headers: matches.get("headers").items().iter().filter_map(|header| header_match(header).ok()).collect(),
    }
}

/// What of a checked policy will not do what it seems to say; `transport` is that of the app.
#[must_use]
pub fn warnings(doc: &Value, transport: Option<cove_model::Transport>) -> Vec<String> {
    let policy = read(doc);
    let properties = Node::root(doc).get("properties");
    let mut all = Vec::new();
    if let Some(retry) = &policy.retry {
        for (what, word, is_listed, is_given) in [
            ("httpStatusCodes", RetryOn::Statuses, retry.on.contains(&RetryOn::Statuses), !retry.statuses.is_empty()),
            ("headers", RetryOn::Headers, retry.on.contains(&RetryOn::Headers), !retry.headers.is_empty()),
        ] {
            let word = word.as_str();
            if is_given && !is_listed {
                all.push(format!("httpRetryPolicy.matches.{what} have no effect without '{word}' in errors."));
            } else if is_listed && !is_given {
                all.push(format!("httpRetryPolicy: '{word}' has no effect without matches.{what}."));
            }
        }
    }
    let is_tcp = transport == Some(cove_model::Transport::Tcp);
    for (name, is_idle) in [
        ("httpRetryPolicy", is_tcp),
        ("httpConnectionPool", is_tcp),
        ("tcpRetryPolicy", !is_tcp),
        ("tcpConnectionPool", !is_tcp),
    ] {
        // Azure's command line sends the TCP retries with every recommended policy
        let is_usual = name == "tcpRetryPolicy" && policy.connect_attempts == Some(3);
        if transport.is_some() && is_idle && !is_usual && properties.get(name).exists() {
            let kind = if is_tcp { "TCP" } else { "HTTP" };
            all.push(format!("{name} has no effect: the app's ingress takes {kind}."));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use cove_model::Transport;
    use serde_json::json;

    use super::*;
    use crate::schema::{Nulls, normalise};

    fn check(body: &Value) -> Result<Value, ArmError> {
        let mut errors = Errors::new();
        let doc = normalise(body, &SCHEMA, Nulls::Drop, &mut errors);
        parse(doc, errors)
    }

    #[test]
    fn ranges_and_words_are_checked_together() {
        let good = json!({ "properties": {
            "timeoutPolicy": { "responseTimeoutInSeconds": "30" },
            "httpRetryPolicy": { "maxRetries": 5, "matches": { "errors": ["5xx"], "httpStatusCodes": [502] } },
        } });
        assert_eq!(check(&good).unwrap()["properties"]["timeoutPolicy"]["responseTimeoutInSeconds"], 30);
        let bad = json!({ "properties": {
            "circuitBreakerPolicy": { "maxEjectionPercent": 101 },
            "httpRetryPolicy": { "matches": { "errors": ["6xx"], "httpStatusCodes": [1], "headers": [
                { "header": "x y" },
                { "header": "x", "match": { "exactMatch": "a", "prefixMatch": "b" } },
                { "header": "x", "match": { "regexMatch": "(" } },
            ] } },
        } });
        let error = check(&bad).unwrap_err();
        assert_eq!(error.details.len(), 6, "{error:?}");
    }

    #[test]
    fn what_is_left_out_is_what_azure_recommends() {
        assert_eq!(read(&json!({})), Resiliency::default());
        let parts = json!({ "properties": { "timeoutPolicy": {}, "httpRetryPolicy": {}, "tcpRetryPolicy": {},
            "circuitBreakerPolicy": {}, "httpConnectionPool": {}, "tcpConnectionPool": {} } });
        let recommended = Resiliency {
            timeouts: Some(TryTimeouts { response_secs: 60, connect_secs: 5 }),
            retry: Some(RetryPolicy::default()),
            connect_attempts: Some(3),
            breaker: Some(BreakerPolicy { consecutive_errors: 5, interval_secs: 10, ejection_percent_max: 100 }),
            http1_requests_max: Some(1024),
            http2_requests_max: Some(1024),
            connections_max: Some(100),
        };
        assert_eq!(read(&parts), recommended);
    }

    #[test]
    fn everything_of_a_retry_policy_is_read() {
        let doc = json!({ "properties": { "httpRetryPolicy": {
            "maxRetries": 2,
            "retryBackOff": { "initialDelayInMilliseconds": 20, "maxIntervalInMilliseconds": 10 },
            "matches": { "errors": ["retriable-headers", "reset"], "httpStatusCodes": [418], "headers": [
                { "header": "X-A", "match": { "exactMatch": "a" } }, { "header": "x-b", "match": { "prefixMatch": "b" } },
                { "header": "x-c", "match": { "suffixMatch": "c" } }, { "header": "x-d", "match": { "regexMatch": "d+" } },
                { "header": "x-e" },
            ] },
        } } });
        let retry = read(&check(&doc).unwrap()).retry.unwrap();
        let header = |name: &str, value| HeaderMatch { name: name.into(), value };
        let expected = RetryPolicy {
            retries_max: 2,
            initial_delay_ms: 20,
            delay_max_ms: 20,
            on: vec![RetryOn::Headers, RetryOn::Reset],
            statuses: vec![418],
            headers: vec![
                header("x-a", TextMatch::Exact("a".into())),
                header("x-b", TextMatch::Prefix("b".into())),
                header("x-c", TextMatch::Suffix("c".into())),
                header("x-d", TextMatch::Regex("d+".into())),
                header("x-e", TextMatch::Any),
            ],
        };
        assert_eq!(retry, expected);
    }

    #[test]
    fn what_does_nothing_is_said() {
        let doc = json!({ "properties": {
            "httpRetryPolicy": { "matches": { "errors": ["retriable-headers"], "httpStatusCodes": [418] } },
            "tcpRetryPolicy": { "maxConnectAttempts": 3 },
            "tcpConnectionPool": { "maxConnections": 9 },
        } });
        let all = [
            "httpRetryPolicy.matches.httpStatusCodes have no effect without 'retriable-status-codes' in errors.",
            "httpRetryPolicy: 'retriable-headers' has no effect without matches.headers.",
            "tcpConnectionPool has no effect: the app's ingress takes HTTP.",
        ];
        assert_eq!(warnings(&doc, Some(Transport::Auto)), all);
        assert_eq!(warnings(&doc, None), all[..2]);
        assert_eq!(
            warnings(&doc, Some(Transport::Tcp))[2..],
            ["httpRetryPolicy has no effect: the app's ingress takes TCP."]
        );
        let recommended = json!({ "properties": { "httpRetryPolicy": {}, "tcpRetryPolicy": {} } });
        assert!(warnings(&recommended, Some(Transport::Http)).is_empty());
    }
}
