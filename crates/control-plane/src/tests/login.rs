//! Ways in.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use http::{Method, Request};
use serde_json::{Value, json};

use super::harness::{Answered, SUB, World};

const TENANT: &str = "00000000-0000-0000-0000-0000000000bb";

async fn form(world: &World, path: &str, form: &str) -> Answered {
    let request = Request::post(path)
        .header("host", "localhost:8443")
        .header("content-type", "application/x-www-form-urlencoded");
    world.send(request.body(form.to_owned().into()).unwrap()).await
}

fn claims(token: &Value) -> Value {
    let payload = token.as_str().unwrap().split('.').nth(1).unwrap();
    serde_json::from_slice(&BASE64.decode(payload).unwrap()).unwrap()
}

#[tokio::test]
async fn metadata_has_two_forms_and_names_the_origin() {
    let world = World::new().await;
    let list = world.get("/metadata/endpoints?api-version=2019-05-01").await.json();
    let object = world.get("//metadata/endpoints?api-version=2022-09-01").await.json();
    assert_eq!(list[0], object);
    assert_eq!(object["resourceManager"], "https://localhost:8443/");
    assert_eq!(object["authentication"]["loginEndpoint"], "https://localhost:8443/");
    let adfs = world.get("/adfs/metadata/endpoints?api-version=2022-09-01").await.json();
    assert_eq!(adfs["authentication"]["loginEndpoint"], "https://localhost:8443/adfs");
}

#[tokio::test]
async fn openid_configuration_leads_to_endpoints_that_answer() {
    let world = World::new().await;
    for path in [
        format!("/{TENANT}/v2.0/.well-known/openid-configuration"),
        "/organizations/v2.0/.well-known/openid-configuration".to_owned(),
        "/adfs/.well-known/openid-configuration".to_owned(),
    ] {
        let document = world.get(&path).await.json();
        let endpoint = document["token_endpoint"].as_str().unwrap().strip_prefix("https://localhost:8443").unwrap();
        let token = form(&world, endpoint, "grant_type=client_credentials&client_id=a&client_secret=b").await;
        assert_eq!(token.status, 200, "{path}");
        let keys = document["jwks_uri"].as_str().unwrap().strip_prefix("https://localhost:8443").unwrap();
        assert_eq!(world.get(keys).await.json(), json!({"keys": []}));
    }
}

#[tokio::test]
async fn a_service_principal_logs_in() {
    let world = World::new().await;
    let path = format!("/{TENANT}/oauth2/v2.0/token");
    let body = "client_id=app&client_secret=x&grant_type=client_credentials&client_info=1&scope=https%3A%2F%2Flocalhost%3A8443%2F%2F.default&claims=%7B%7D";
    let answered = form(&world, &path, body).await;
    assert_eq!((answered.status, answered.header("cache-control")), (200, "no-store"));
    let token = answered.json();
    assert_eq!(token["token_type"], "Bearer");
    assert_eq!(token["expires_in"], 3600);
    assert!(token.get("refresh_token").is_none());
    let claims = claims(&token["access_token"]);
    assert_eq!((&claims["tid"], &claims["appid"]), (&json!(TENANT), &json!("app")));
    assert_eq!(claims["aud"], "https://localhost:8443/");
    let request = Request::get(format!("{SUB}?api-version=2022-12-01"))
        .header("host", "localhost")
        .header("authorization", format!("Bearer {}", token["access_token"].as_str().unwrap()));
    assert_eq!(world.send(request.body("".into()).unwrap()).await.status, 200);
}

#[tokio::test]
async fn a_device_login_approves_itself_and_can_be_refreshed() {
    let world = World::new().await;
    let code =
        form(&world, "/organizations/oauth2/v2.0/devicecode", "client_id=cli&scope=x%2F.default+openid").await.json();
    assert_eq!(code["user_code"].as_str().unwrap().len(), 8);
    let body = format!(
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code&client_id=cli&device_code={}&scope=openid+x%2F.default",
        code["device_code"].as_str().unwrap()
    );
    let token = form(&world, "/organizations/oauth2/v2.0/token", &body).await.json();
    for name in ["access_token", "refresh_token", "id_token", "client_info"] {
        assert!(token[name].is_string(), "{name}: {token}");
    }
    assert_eq!(claims(&token["id_token"])["aud"], "cli");
    assert_eq!(claims(&token["access_token"])["aud"], "x");
    let body =
        format!("grant_type=refresh_token&client_id=cli&refresh_token={}", token["refresh_token"].as_str().unwrap());
    let again = form(&world, &format!("/{TENANT}/oauth2/v2.0/token"), &body).await.json();
    assert_eq!(claims(&again["access_token"])["upn"], claims(&token["access_token"])["upn"]);
    let wrong =
        format!("grant_type=refresh_token&client_id=cli&refresh_token={}", token["access_token"].as_str().unwrap());
    assert_eq!(form(&world, "/common/oauth2/token", &wrong).await.json()["error"], "invalid_grant");
}

#[tokio::test]
async fn a_user_logs_in_by_password_in_the_shape_of_adfs() {
    let world = World::new().await;
    let body = "grant_type=password&client_id=cli&username=me%40local&password=x&scope=openid";
    let token = form(&world, "/adfs/oauth2/token", body).await.json();
    assert_eq!(claims(&token["id_token"])["upn"], "me@local");
}

#[tokio::test]
async fn what_the_token_endpoint_refuses_it_says_in_oauths_words() {
    let world = World::new().await;
    for (body, error) in [
        ("", "invalid_request"),
        ("client_id=a", "invalid_request"),
        ("grant_type=authorization_code&client_id=a&code=x", "unsupported_grant_type"),
        ("grant_type=magic&client_id=a", "unsupported_grant_type"),
        ("grant_type=refresh_token&client_id=a&refresh_token=garbage", "invalid_grant"),
        ("grant_type=password&client_id=a", "invalid_request"),
        ("grant_type=device_code&client_id=a&device_code=x.y.z", "invalid_grant"),
    ] {
        let refused = form(&world, "/common/oauth2/v2.0/token", body).await;
        assert_eq!((refused.status, &refused.json()["error"]), (400, &json!(error)), "{body}");
        assert!(refused.json()["error_description"].as_str().is_some_and(|text| text.len() > 10));
    }
}

#[tokio::test]
async fn a_workload_gets_a_token_by_managed_identity() {
    let world = World::new().await;
    let ask = |path: &'static str, header: &'static str| {
        let mut request = Request::get(path).header("host", "localhost:8180");
        if !header.is_empty() {
            request = request.header("X-IDENTITY-HEADER", header);
        }
        world.send_to(&world.identity, request.body("".into()).unwrap())
    };
    let path = "/msi/token?api-version=2019-08-01&resource=https%3A%2F%2Flocalhost%3A8443%2F";
    let token = ask(path, "x").await.json();
    assert!(token["expires_on"].is_string());
    assert_eq!(claims(&token["access_token"])["tid"], TENANT);
    assert_eq!(ask(path, "").await.status, 400);
    assert_eq!(ask("/msi/token?api-version=2019-08-01", "x").await.status, 400);
    assert_eq!(ask("/subscriptions?api-version=2022-12-01", "x").await.status, 404, "nothing else over plain HTTP");
}

#[tokio::test]
async fn tenants_subscriptions_and_providers_are_found() {
    let world = World::new().await;
    assert_eq!(world.get("/tenants").await.json()["value"][0]["tenantId"], TENANT);
    let subscription = &world.get("/subscriptions").await.json()["value"][0];
    assert_eq!(subscription["tenantId"], TENANT);
    assert!(world.get(&format!("{SUB}/locations")).await.json()["value"].as_array().unwrap().len() > 10);
    for namespace in ["Microsoft.App", "microsoft.operationalinsights"] {
        let document = world.get(&format!("{SUB}/providers/{namespace}")).await.json();
        assert_eq!(document["registrationState"], "Registered");
        let registered = world.ask(Method::POST, &format!("{SUB}/providers/{namespace}/register"), "").await;
        assert_eq!(registered.status, 200);
    }
    let other = SUB.replace("aa", "cc");
    assert_eq!(world.get(&other).await.code(), "SubscriptionNotFound");
    let id = world.post(&format!("{SUB}/providers/Microsoft.App/getCustomDomainVerificationId")).await.json();
    assert_eq!(id.as_str().unwrap().len(), 64);
}
