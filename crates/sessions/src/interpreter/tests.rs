//! What is asked and answered, without a session: versions, paths, requests, shapes of results.

use axum::body::Body;
use cove_model::SessionContainer;
use http::Request;
use serde_json::json;

use super::{base_of, code, generation, outcome::Outcome, segments};
use crate::{Door, PoolInfo};

#[test]
fn the_version_says_the_generation() {
    for (query, is_newer) in [
        ("api-version=2024-02-02-preview", false),
        ("api-version=2024-08-02-preview", false),
        ("api-version=2024-10-02-preview", true),
        ("x=1&api-version=2025-02-02-preview", true),
        ("api-version=2026-07-01", true),
    ] {
        assert_eq!(generation(query).unwrap(), is_newer, "{query}");
    }
    for bad in ["", "api-version=", "api-version=latest", "api-version=2025-02-30", "api-version=2025-02-02-x"] {
        assert_eq!(generation(bad).unwrap_err().error.code, "MissingApiVersionParameter", "{bad}");
    }
}

#[test]
fn paths_are_decoded_part_by_part() {
    assert_eq!(segments("/files/a%20b%2Fc/content").unwrap(), ["files", "a b/c", "content"]);
    assert!(segments("/files/%ff").is_err());
}

#[test]
fn requests_are_read_or_refused() {
    let cases = [
        (SessionContainer::PythonLts, json!({ "code": "1" }), true),
        (SessionContainer::PythonLts, json!({ "pythonCode": "1", "timeoutInSeconds": 220 }), true),
        (
            SessionContainer::NodeLts,
            json!({ "code": "1", "executionType": "Asynchronous", "codeInputType": "Inline" }),
            true,
        ),
        (SessionContainer::Shell, json!({ "shellCommand": "ls" }), true),
        (SessionContainer::Shell, json!({ "execCommandAndArgs": ["ls", "-l"] }), true),
        (SessionContainer::Shell, json!({ "shellCommand": "ls", "timeoutInSeconds": 600 }), true),
        (SessionContainer::Shell, json!({ "command": ["ls", "-l"] }), true),
        (SessionContainer::Shell, json!({ "command": "ls" }), false),
        (SessionContainer::PythonLts, json!({}), false),
        (SessionContainer::PythonLts, json!({ "code": 1 }), false),
        (SessionContainer::PythonLts, json!({ "code": "1", "timeoutInSeconds": 0 }), false),
        (SessionContainer::PythonLts, json!({ "code": "1", "timeoutInSeconds": 221 }), false),
        (SessionContainer::PythonLts, json!({ "code": "1", "timeoutInSeconds": 1.5 }), false),
        (SessionContainer::PythonLts, json!({ "code": "1", "codeInputType": "file" }), false),
        (SessionContainer::Shell, json!({ "shellCommand": "ls", "execCommandAndArgs": ["ls"] }), false),
        (SessionContainer::Shell, json!({ "execCommandAndArgs": [] }), false),
        (SessionContainer::Shell, json!({ "execCommandAndArgs": [1] }), false),
    ];
    for (kind, body, is_good) in cases {
        assert_eq!(code::is_readable(kind, &body), is_good, "{body}");
    }
}

#[test]
fn a_result_is_an_image_a_value_or_a_text() {
    let outcome = |text: serde_json::Value| serde_json::from_value::<Outcome>(text).unwrap();
    let result = |outcome: &Outcome| serde_json::to_value(outcome.worth()).unwrap();
    let plain = json!({ "status": "Succeeded", "stdout": "", "stderr": "" });
    assert_eq!(result(&outcome(plain.clone())), json!(null));
    let with = |more: serde_json::Value| {
        let mut all = plain.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        result(&outcome(all))
    };
    assert_eq!(with(json!({ "result": { "text/plain": "42", "application/json": 42 } })), json!(42));
    assert_eq!(with(json!({ "result": { "text/plain": "<a>" } })), json!("<a>"));
    // whatever a session says, it is no more than a value
    assert_eq!(with(json!({ "result": [1, 2], "outputs": [null, 5, { "image/png": 7 }] })), json!(null));
    assert_eq!(
        with(json!({ "result": { "text/plain": "[<Line2D>]" }, "outputs": [{ "image/png": "aGk=\n" }] })),
        json!({ "type": "image", "format": "png", "base64_data": "aGk=" })
    );
    for bad in [
        json!({}),
        json!({ "status": "Ok", "stdout": "", "stderr": "" }),
        json!({ "status": "Failed", "stdout": 1, "stderr": "" }),
    ] {
        assert!(serde_json::from_value::<Outcome>(bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn links_lead_back_the_way_that_the_client_came() {
    let id = cove_model::ResourceId::resource("s", "g", cove_model::SESSION_POOL_KIND, "pool").unwrap();
    let pool = PoolInfo { id, container: SessionContainer::Custom, sessions_max: 1 };
    let base = |door, host: &str, proto: &str| {
        let request = Request::builder().uri("/").header("host", host).header("x-forwarded-proto", proto);
        base_of(&request.body(Body::empty()).unwrap(), door, &pool)
    };
    assert_eq!(base(Door::Host, "pool.env.localhost:8080", "http"), "http://pool.env.localhost:8080");
    assert_eq!(base(Door::Host, "pool.env.localhost", "https"), "https://pool.env.localhost");
    // nobody but the ingress says it, and the API has TLS only
    let path = "https://localhost:8443/subscriptions/s/resourceGroups/g/sessionPools/pool";
    assert_eq!(base(Door::Path, "localhost:8443", "http"), path);
}
