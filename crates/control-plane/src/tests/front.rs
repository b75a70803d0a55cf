//! Limits, ids, and what lies off the known paths.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use expect_test::expect_file;
use http::{Method, Request};
use serde_json::{Value, json};

use super::harness::{RG, SUB, V, WEB, World};
use crate::Config;

#[tokio::test]
async fn paths_that_are_nothing_say_so() {
    let world = World::new().await;
    world.put(RG, json!({"location": "eastus"})).await;
    let app = format!("{RG}/providers/Microsoft.App");
    let mut lines = String::new();
    let nested = format!("{app}/managedEnvironments{RG}/providers/Microsoft.App/managedEnvironments/env");
    for (method, path) in [
        (Method::GET, "/".to_owned()),
        (Method::GET, "/favicon.ico".into()),
        (Method::GET, format!("{SUB}/nothing")),
        (Method::GET, format!("{RG}/providers/Microsoft.Nope/things/a")),
        (Method::GET, format!("{SUB}/providers/Microsoft.Nope")),
        (Method::GET, format!("{app}/nopes/a")),
        (Method::PUT, format!("{app}/jobs/a")),
        (Method::GET, format!("{app}/containerApps/web/authConfigs/current")),
        (Method::POST, format!("{app}/containerApps/web/listCustomHostNameAnalysis")),
        (Method::PUT, format!("{app}/managedEnvironments/env/daprComponents/d")),
        (Method::POST, format!("{RG}/providers/Microsoft.Resources/deployments/d/validate")),
        (Method::PUT, format!("{RG}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i")),
        (Method::GET, nested),
        (Method::DELETE, SUB.to_owned()),
        (Method::PATCH, format!("{app}/containerApps")),
        (Method::GET, format!("{app}/containerApps/web")),
        (Method::GET, format!("{RG}x/providers/Microsoft.App/containerApps/web")),
        (Method::GET, format!("{SUB}/providers/Microsoft.App/locations/local/containerappOperationStatuses/x")),
        (Method::GET, format!("{app}/containerApps/a%2Fb")),
    ] {
        let answered = world.ask(method.clone(), &path, "").await;
        let error = &answered.json()["error"];
        let (code, message) = (error["code"].as_str().unwrap(), error["message"].as_str().unwrap());
        let short = path.replace(RG, "RG").replace(SUB, "SUB");
        lines.push_str(&format!("{method} {short}\n  {} {code}: {message}\n", answered.status));
    }
    expect_file!["golden/unknown_paths.txt"].assert_eq(&lines);
}

#[tokio::test]
async fn the_api_version_is_a_date() {
    let world = World::new().await;
    for (query, code) in [
        ("?x=1", "MissingApiVersionParameter"),
        ("?api-version=", "MissingApiVersionParameter"),
        ("?api-version=latest", "InvalidApiVersionParameter"),
        ("?api-version=2025-13-01", "InvalidApiVersionParameter"),
    ] {
        let refused = world.get(&format!("{SUB}{query}")).await;
        assert_eq!((refused.status, refused.code()), (400, code.into()), "{query}");
    }
    for query in ["?API-Version=2022-12-01", "?api-version=2019-01-01-preview"] {
        assert_eq!(world.get(&format!("{SUB}{query}")).await.status, 200, "{query}");
    }
}

#[tokio::test]
async fn a_huge_body_is_refused() {
    let world = World::new().await;
    let refused = world.ask(Method::PUT, RG, vec![b' '; crate::front::BODY_MAX + 1]).await;
    assert_eq!((refused.status, refused.code()), (413, "RequestEntityTooLarge".into()));
    let body = format!("{}{}", " ".repeat(crate::front::BODY_MAX - 24), json!({"location": "eastus"}));
    assert_eq!(world.ask(Method::PUT, RG, body).await.status, 201);
}

#[tokio::test]
async fn a_body_that_never_ends_is_given_up() {
    let world = World::with(Config { request_timeout: Duration::from_millis(50), ..Config::default() }).await;
    let endless = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
    let refused = world.ask(Method::PUT, RG, Body::from_stream(endless)).await;
    assert_eq!((refused.status, refused.code()), (408, "RequestTimeout".into()));
}

#[tokio::test]
async fn a_client_that_leaves_does_not_stop_its_write() {
    let world = World::new().await;
    let request = Request::put(format!("{RG}{V}")).header("host", "localhost");
    let request = request.body(Body::from(json!({"location": "eastus"}).to_string())).unwrap();
    let mut changes = world.store.changes();
    let router = world.router.clone();
    // the request is dropped at its first wait
    let mut answer = Box::pin(tower::ServiceExt::oneshot(router, request));
    assert!(futures_util::poll!(&mut answer).is_pending());
    drop(answer);
    tokio::time::timeout(Duration::from_secs(60), changes.next()).await.unwrap();
    assert_eq!(world.get(RG).await.status, 200);
}

#[tokio::test]
async fn one_request_too_many_is_told_to_wait() {
    let world = World::new().await;
    let all = u32::try_from(world.plane.requests().available_permits()).unwrap();
    let taken = world.plane.requests().acquire_many(all).await.unwrap();
    let refused = world.get(SUB).await;
    assert_eq!((refused.status, refused.code(), refused.header("retry-after")), (429, "TooManyRequests".into(), "1"));
    drop(taken);
    assert_eq!(world.get(SUB).await.status, 200);
}

#[tokio::test]
async fn every_answer_has_ids() {
    let world = World::new().await;
    for path in [SUB, "/nowhere", "/metadata/endpoints", "/cove/v1/health", WEB] {
        let answered = world.get(path).await;
        assert_eq!(answered.header("x-ms-request-id").len(), 36, "{path}");
        assert_eq!(answered.header("x-ms-correlation-request-id").len(), 36, "{path}");
    }
    let request = Request::get(format!("{SUB}{V}"))
        .header("host", "localhost")
        .header("x-ms-correlation-request-id", "c")
        .header("x-ms-client-request-id", "mine")
        .header("x-ms-return-client-request-id", "true");
    let answered = world.send(request.body("".into()).unwrap()).await;
    assert_eq!(
        (answered.header("x-ms-correlation-request-id"), answered.header("x-ms-client-request-id")),
        ("c", "mine")
    );
}

#[tokio::test]
async fn extensions_are_reached_and_a_panic_ends_one_request() {
    let world = World::with(Config { retry_after_secs: 5, ..Config::default() }).await;
    assert_eq!(world.get("/cove/v1/health").await.text, "fine");
    let panicked = world.get("/cove/v1/panic").await;
    assert_eq!((panicked.status, panicked.code()), (500, "InternalServerError".into()));
    assert!(panicked.text.contains(panicked.header("x-ms-request-id")), "the caller can name the log's lines");
    assert_eq!(world.get("/cove/v1/nothing").await.status, 404);
    let refused = world.ask(Method::POST, "/cove/v1/health", "").await;
    assert_eq!((refused.status, refused.code()), (405, "MethodNotAllowed".into()));
    assert_eq!(world.get("/cove/v1/health").await.status, 200);
}

#[tokio::test]
async fn links_lead_to_the_origin_that_was_asked() {
    let world = World::new().await;
    world.put(RG, json!({"location": "eastus"})).await;
    for (host, origin) in [("127.0.0.1:9", "https://127.0.0.1:9"), ("[::1]:8443", "https://[::1]:8443")] {
        let path = format!("{RG}/providers/Microsoft.App/managedEnvironments/e{}{V}", host.len());
        let request =
            Request::put(path).header("host", host).body(Body::from(json!({"location": "eastus"}).to_string()));
        let made = world.send(request.unwrap()).await;
        assert!(made.header("azure-asyncoperation").starts_with(origin), "{}", made.header("azure-asyncoperation"));
        let endpoint: Value = made.json()["properties"]["eventStreamEndpoint"].clone();
        assert!(endpoint.as_str().unwrap().starts_with(origin));
    }
}
