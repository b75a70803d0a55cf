//! Who gets in.

use std::time::Duration;

use http::Request;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::harness::{RG, SUB, V, WEB, World, app_body};
use crate::{
    Auth, Client, Config,
    token::{Claims, Use, Who},
};

async fn with_token(world: &World, path: &str, authorization: Option<&str>) -> (u16, String, String) {
    let mut request = Request::get(format!("{path}{V}")).header("host", "localhost");
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    let answered = world.send(request.body("".into()).unwrap()).await;
    let code = if answered.status < 400 { String::new() } else { answered.code() };
    (answered.status, code, answered.header("www-authenticate").to_owned())
}

fn token(world: &World, what: Use, age: SignedDuration) -> String {
    let now = Timestamp::now() - age;
    let claims = Claims::new("t", &Who::client("app"), what, "aud", now, Duration::from_secs(3600));
    format!("Bearer {}", world.plane.token_key().sign(&claims))
}

#[tokio::test]
async fn an_expired_or_foreign_token_is_refused_even_where_none_is_needed() {
    let world = World::new().await;
    let other = World::new().await;
    let new = SignedDuration::ZERO;
    assert_eq!(with_token(&world, SUB, None).await.0, 200);
    assert_eq!(with_token(&world, SUB, Some("Bearer fake")).await.0, 200, "no JWT: as if there were none");
    assert_eq!(with_token(&world, SUB, Some(&token(&world, Use::Access, new))).await.0, 200);
    let old = token(&world, Use::Access, SignedDuration::from_hours(2));
    let (status, code, challenge) = with_token(&world, SUB, Some(&old)).await;
    assert_eq!((status, code.as_str()), (401, "ExpiredAuthenticationToken"));
    assert!(challenge.starts_with("Bearer "), "{challenge}");
    let foreign = token(&other, Use::Access, new);
    assert_eq!(with_token(&world, SUB, Some(&foreign)).await.1, "InvalidAuthenticationToken");
    for what in [Use::Refresh, Use::Id, Use::Device, Use::Data] {
        assert_eq!(with_token(&world, SUB, Some(&token(&world, what, new))).await.0, 401, "{what:?}");
    }
}

#[tokio::test]
async fn configured_clients_only() {
    let client = Client { client_id: "ci".into(), secret: "s3cret".into() };
    let world = World::with(Config { auth: Auth::Clients(vec![client]), ..Config::default() }).await;
    for path in [SUB, "/nowhere", &format!("{SUB}/providers/Microsoft.App/jobs"), "/cove/v1/health"] {
        assert_eq!(with_token(&world, path, None).await.1, "AuthenticationFailed", "{path}");
    }
    assert_eq!(with_token(&world, SUB, Some("Bearer fake")).await.1, "InvalidAuthenticationToken");
    assert_eq!(with_token(&world, "/metadata/endpoints", None).await.0, 200, "the way to a login stays open");
    let ask = |form: &str| {
        let request =
            Request::post(format!("/{}/oauth2/v2.0/token", world.plane.config().tenant)).body(form.to_owned().into());
        world.send(request.unwrap())
    };
    let good = ask("grant_type=client_credentials&client_id=ci&client_secret=s3cret&scope=https://x/.default").await;
    let bearer = format!("Bearer {}", good.json()["access_token"].as_str().unwrap());
    assert_eq!(with_token(&world, SUB, Some(&bearer)).await.0, 200);
    assert_eq!(with_token(&world, "/cove/v1/health", Some(&bearer)).await.0, 200);
    for (form, status, error) in [
        ("grant_type=client_credentials&client_id=ci&client_secret=wrong", 401, "invalid_client"),
        ("grant_type=client_credentials&client_id=ci", 401, "invalid_client"),
        ("grant_type=client_credentials&client_id=other&client_secret=s3cret", 401, "invalid_client"),
        ("grant_type=password&client_id=ci&username=a&password=b", 400, "unauthorized_client"),
        (
            "grant_type=urn:ietf:params:oauth:grant-type:device_code&client_id=ci&device_code=x",
            400,
            "unauthorized_client",
        ),
    ] {
        let refused = ask(form).await;
        assert_eq!((refused.status, &refused.json()["error"]), (status, &json!(error)), "{form}");
    }
    assert!(!format!("{:?}", world.plane).contains("s3cret"));
}

#[tokio::test]
async fn a_stream_token_opens_one_app_and_not_the_api() {
    let world = World::with_environment().await;
    world.put(WEB, app_body("nginx", "v1")).await;
    let other = WEB.replace("/web", "/other");
    world.put(&other, app_body("nginx", "v1")).await;
    let answered = world.post(&format!("{WEB}/getAuthtoken")).await.json();
    let bearer = format!("Bearer {}", answered["properties"]["token"].as_str().unwrap());
    assert!(answered["properties"]["expires"].as_str().unwrap().parse::<Timestamp>().is_ok());
    let stream = |app: &str| format!("{RG}/containerApps/{app}/eventstream");
    assert_eq!(with_token(&world, &stream("web"), Some(&bearer)).await.0, 200);
    assert_eq!(with_token(&world, &stream("other"), Some(&bearer)).await.1, "AuthorizationFailed");
    assert_eq!(with_token(&world, WEB, Some(&bearer)).await.0, 401);
}

#[tokio::test]
async fn pages_of_other_origins_and_rebound_names_stay_out() {
    let world = World::new().await;
    let ask = |host: &str, origin: &str| {
        let mut request = Request::get(format!("{SUB}{V}")).header("host", host);
        if !origin.is_empty() {
            request = request.header("origin", origin);
        }
        world.send(request.body("".into()).unwrap())
    };
    for host in ["localhost", "localhost:8443", "127.0.0.1:1", "[::1]:8443", "api.localhost.", "LOCALHOST"] {
        assert_eq!(ask(host, "").await.status, 200, "{host}");
    }
    for host in ["evil.example", "evil.example:8443", "localhost.evil.example", "10.0.0.1"] {
        assert_eq!(ask(host, "").await.code(), "HostNotAllowed", "{host}");
    }
    assert_eq!(ask("localhost", "https://localhost:8443").await.status, 200);
    for origin in ["https://evil.example", "null"] {
        assert_eq!(ask("localhost", origin).await.code(), "OriginNotAllowed", "{origin}");
    }
}
