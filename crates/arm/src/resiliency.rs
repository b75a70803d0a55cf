//! `containerApps/resiliencyPolicies` (preview): timeouts, retries, circuit breaker and pools of calls to an app.
//!
//! Checked and kept; no call is treated by them yet, and [`NO_EFFECT`] says so.

use serde_json::Value;

use crate::{ArmError, Errors, environment::child::strip, node::Node, schema::Schema};

/// What is said of every policy.
pub const NO_EFFECT: &str = "resiliency policies have no effect yet: calls to the app are neither retried nor cut off.";

static RETRY: Schema = Schema::Object(&[
    ("maxRetries", &Schema::Int),
    (
        "retryBackOff",
        &Schema::Object(&[("initialDelayInMilliseconds", &Schema::Int), ("maxIntervalInMilliseconds", &Schema::Int)]),
    ),
    (
        "matches",
        &Schema::Object(&[
            ("headers", &Schema::List(&Schema::Any)),
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

/// Words of `httpRetryPolicy.matches.errors`.
const MATCHES: &[&str] =
    &["5xx", "connect-failure", "reset", "retriable-headers", "retriable-status-codes", "retriable-4xx"];

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
    let matches = properties.get("httpRetryPolicy").get("matches");
    for word in matches.get("errors").items() {
        if word.text().is_some_and(|text| !MATCHES.contains(&text)) {
            errors.invalid(&word.path, format!("expected one of {}.", MATCHES.join(", ")));
        }
    }
    for status in matches.get("httpStatusCodes").items() {
        if status.int().is_some_and(|status| !(100..=599).contains(&status)) {
            errors.invalid(&status.path, "An HTTP status is 100 to 599.");
        }
    }
    errors.into_result()?;
    Ok(doc)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::{Nulls, normalise};

    #[test]
    fn ranges_and_words_are_checked_together() {
        let check = |body: &Value| {
            let mut errors = Errors::new();
            let doc = normalise(body, &SCHEMA, Nulls::Drop, &mut errors);
            parse(doc, errors)
        };
        let good = json!({ "properties": {
            "timeoutPolicy": { "responseTimeoutInSeconds": "30" },
            "httpRetryPolicy": { "maxRetries": 5, "matches": { "errors": ["5xx"], "httpStatusCodes": [502] } },
        } });
        assert_eq!(check(&good).unwrap()["properties"]["timeoutPolicy"]["responseTimeoutInSeconds"], 30);
        let bad = json!({ "properties": {
            "circuitBreakerPolicy": { "maxEjectionPercent": 101 },
            "httpRetryPolicy": { "matches": { "errors": ["6xx"], "httpStatusCodes": [1] } },
        } });
        assert_eq!(check(&bad).unwrap_err().details.len(), 3);
    }
}
