//! Secrets of apps: what the API shows, what it refuses, and what is on disk.

use http::Method;
use serde_json::{Value, json};

use super::harness::{WEB, World, app_body};

const VALUE: &str = "correct horse battery staple";

fn body(suffix: &str, secrets: Value, uses: Option<&str>) -> Value {
    let mut body = app_body("cove.local/sample:latest", suffix);
    body["properties"]["configuration"]["secrets"] = secrets;
    body["properties"]["configuration"]["activeRevisionsMode"] = json!("Multiple");
    if let Some(name) = uses {
        body["properties"]["template"]["containers"][0]["env"] = json!([{ "name": "PASS", "secretRef": name }]);
    }
    body
}

#[tokio::test]
async fn values_are_in_list_secrets_and_nowhere_else() {
    let world = World::with_environment().await;
    let secrets = json!([{ "name": "pass", "value": VALUE }]);
    let made = world.put(WEB, body("v1", secrets, Some("pass"))).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert!(!made.text.contains(VALUE));
    let revisions = world.get(&format!("{WEB}/revisions")).await;
    assert!(!revisions.text.contains(VALUE) && !world.get(WEB).await.text.contains(VALUE));
    let listed = world.post(&format!("{WEB}/listSecrets")).await;
    assert_eq!(listed.json(), json!({ "value": [{ "name": "pass", "value": VALUE }] }));
    assert_eq!(listed.header("cache-control"), "no-store");
    // a name without a value keeps the old one
    let kept = world.put(WEB, body("v1", json!([{ "name": "pass" }]), Some("pass"))).await;
    assert_eq!(kept.status, 201, "{}", kept.text);
    assert_eq!(world.post(&format!("{WEB}/listSecrets")).await.json()["value"][0]["value"], VALUE);
}

#[tokio::test]
async fn a_secret_in_use_cannot_go() {
    let world = World::with_environment().await;
    let both = json!([{ "name": "pass", "value": VALUE }, { "name": "other", "value": "x" }]);
    assert_eq!(world.put(WEB, body("v1", both, Some("pass"))).await.status, 201);
    let only_other = json!([{ "name": "other" }]);
    let here = world.put(WEB, body("v2", only_other.clone(), Some("pass"))).await;
    assert_eq!((here.status, here.code().as_str()), (400, "ContainerAppSecretInUse"), "{}", here.text);
    assert_eq!(here.json()["error"]["target"], "properties.template.containers[0].env[0].secretRef");
    // another active revision still has it
    let there = world.put(WEB, body("v2", only_other.clone(), Some("other"))).await;
    assert_eq!((there.status, there.code().as_str()), (400, "ContainerAppSecretInUse"), "{}", there.text);
    assert!(there.text.contains("web--v1"), "{}", there.text);
    assert_eq!(
        world.put(WEB, body("v2", json!([{ "name": "pass" }, { "name": "other" }]), Some("other"))).await.status,
        201
    );
    assert_eq!(world.ask(Method::POST, &format!("{WEB}/revisions/web--v1/deactivate"), "").await.status, 200);
    assert_eq!(world.put(WEB, body("v2", only_other, Some("other"))).await.status, 201);
    let unknown = world.put(WEB, body("v2", json!([{ "name": "other" }]), Some("none"))).await;
    assert_eq!(unknown.code(), "ContainerAppSecretRefNotFound");
}

#[tokio::test]
async fn a_changed_value_makes_no_revision_and_says_restart() {
    let world = World::with_environment().await;
    let secrets = |value: &str| json!([{ "name": "pass", "value": value }]);
    assert_eq!(world.put(WEB, body("v1", secrets(VALUE), Some("pass"))).await.status, 201);
    world.events.lock().unwrap().clear();
    assert_eq!(world.put(WEB, body("v1", secrets("new value"), Some("pass"))).await.status, 201);
    let list = world.get(&format!("{WEB}/revisions")).await.json();
    assert_eq!(list["value"].as_array().unwrap().len(), 1);
    let told = world.events.lock().unwrap().clone();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].reason, "SecretChanged");
    assert!(told[0].message.contains("pass") && told[0].message.contains("revision restart"));
    assert!(!told[0].message.contains("new value"));
}
