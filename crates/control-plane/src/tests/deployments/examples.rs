//! The templates in `examples/templates` deploy, and deploying them twice changes nothing.

use std::path::Path;

use serde_json::{Value, json};

use super::{DEPLOYMENTS, controller};
use crate::tests::harness::{RG, SUB, World};

fn example(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/templates").join(name);
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

/// Deploys an example; the answer is the deployment.
async fn check(world: &World, path: &str, request: &Value) -> Value {
    let controller = controller(&world.store);
    let ended = world.deploy(path, request).await;
    assert_eq!(ended["status"], "Succeeded", "{ended:#}");
    let preview = world.post_json(&format!("{path}/whatIf"), request).await;
    assert_eq!(preview.status, 200, "{}", preview.text);
    for change in preview.json()["properties"]["changes"].as_array().unwrap() {
        assert!(["NoChange", "Ignore"].contains(&change["changeType"].as_str().unwrap()), "{change:#}");
    }
    let again = world.deploy(path, request).await;
    assert_eq!(again["status"], "Succeeded", "{again:#}");
    controller.abort();
    world.get(path).await.json()
}

#[tokio::test]
async fn the_seeds_templates() {
    let world = World::with_environment().await;
    for name in ["http", "tcp", "custom", "identity"] {
        let mut request = json!({
            "properties": { "mode": "Incremental", "template": example(&format!("seed-{name}-rule.json")), "parameters": {} }
        });
        if name == "custom" {
            request["properties"]["parameters"] = json!({ "connectionString": { "value": "Endpoint=sb://x" } });
        }
        check(&world, &format!("{DEPLOYMENTS}/{name}"), &request).await;
    }
}

#[tokio::test]
async fn a_shop_of_more_than_thirty_resources() {
    let world = World::with_environment().await;
    let request = json!({ "properties": {
        "mode": "Incremental", "template": example("shop.json"), "parameters": { "apiKey": { "value": "k" } }
    }});
    let shown = check(&world, &format!("{DEPLOYMENTS}/shop"), &request).await;
    assert_eq!(shown["properties"]["outputs"]["url"]["value"], "https://shop-gateway.shop-env.localhost");
    assert_eq!(shown["properties"]["outputs"]["hosts"]["value"].as_array().unwrap().len(), 8);
    let written = shown["properties"]["outputResources"].as_array().unwrap().len();
    let list = world.get(DEPLOYMENTS).await.json();
    assert_eq!((written, list["value"].as_array().unwrap().len()), (23, 10), "modules are deployments of their own");
    assert!(
        !world.exists(&format!("{RG}/providers/Microsoft.App/containerApps/shop-canary")),
        "its condition is false"
    );
}

#[tokio::test]
async fn groups_and_what_is_in_them_from_the_subscription() {
    let world = World::with_environment().await;
    let request = json!({ "location": "eastus", "properties": {
        "mode": "Incremental", "template": example("subscription.json"), "parameters": {}
    }});
    let path = format!("{SUB}/providers/Microsoft.Resources/deployments/teams");
    let shown = check(&world, &path, &request).await;
    assert_eq!(
        shown["properties"]["outputs"]["domains"]["value"],
        json!(["env-blue.localhost", "env-green.localhost"])
    );
    let list = world.get(&format!("{SUB}/providers/Microsoft.Resources/deployments")).await.json();
    assert_eq!(list["value"].as_array().unwrap().len(), 1);
}
