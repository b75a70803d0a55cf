//! Registries, virtual networks and workspaces: documents that other resources name.

use http::Method;
use serde_json::{Value, json};

use super::harness::{RG, SUB, World};
use crate::{Auth, Config};

fn registry(name: &str) -> String {
    format!("{RG}/providers/Microsoft.ContainerRegistry/registries/{name}")
}

#[tokio::test]
async fn a_registry_is_a_name_of_the_embedded_one() {
    let world = World::with_environment().await;
    let mine = registry("myregistry");
    let made = world.put(&mine, json!({ "location": "eastus", "sku": { "name": "basic" } })).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.json()["properties"]["loginServer"], "myregistry.azurecr.io");
    let message = made.json()["properties"]["status"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("push to localhost:8443"), "{message}");
    let refused = world.post(&format!("{mine}/listCredentials")).await;
    assert_eq!((refused.status, refused.code().as_str()), (400, "UnAuthorizedForCredentialOperations"));
    let patched = world.patch(&mine, json!({ "properties": { "adminUserEnabled": true } })).await;
    assert_eq!(patched.json()["sku"]["name"], "Basic");
    let login = world.post(&format!("{mine}/listCredentials")).await.json();
    assert_eq!(
        (login["username"].as_str(), login["passwords"][1]["name"].as_str()),
        (Some("myregistry"), Some("password2"))
    );
    assert_eq!(world.post(&format!("{mine}/listCredentials")).await.json(), login);
    let free = async |name: &str| {
        let path = format!("{SUB}/providers/Microsoft.ContainerRegistry/checkNameAvailability");
        let body = json!({ "name": name, "type": "Microsoft.ContainerRegistry/registries" });
        world.ask(Method::POST, &path, body.to_string()).await.json()["nameAvailable"].clone()
    };
    assert_eq!(
        (free("MyRegistry").await, free("another").await, free("x").await),
        (json!(false), json!(true), json!(false))
    );
    let list = world.get(&format!("{SUB}/resources?api-version=2024-11-01&$filter=resourceType%20eq%20'Microsoft.ContainerRegistry/registries'")).await;
    assert_eq!(list.json()["value"][0]["name"], "myregistry");
    assert_eq!(world.delete(&mine).await.status, 200);
}

#[tokio::test]
async fn a_login_server_has_one_registry() {
    let world = World::with_environment().await;
    assert_eq!(world.put(&format!("{SUB}/resourceGroups/Other"), json!({ "location": "eastus" })).await.status, 201);
    let body = json!({ "location": "eastus" });
    assert_eq!(world.put(&registry("myregistry"), body.clone()).await.status, 201);
    let other = format!("{SUB}/resourceGroups/Other/providers/Microsoft.ContainerRegistry/registries/MYREGISTRY");
    let other = world.put(&other, body).await;
    assert_eq!((other.status, other.code().as_str()), (409, "AlreadyInUse"));
}

#[tokio::test]
async fn with_configured_clients_there_are_no_other_logins() {
    let clients = Auth::Clients(Vec::new());
    let world = World::with(Config { auth: clients, ..Config::default() }).await;
    assert_eq!(world.post(&format!("{}/listCredentials", registry("myregistry"))).await.status, 401);
}

#[tokio::test]
async fn a_network_keeps_its_subnets() {
    let world = World::with_environment().await;
    let network = format!("{RG}/providers/Microsoft.Network/virtualNetworks/net");
    let body =
        json!({ "location": "eastus", "properties": { "addressSpace": { "addressPrefixes": ["10.0.0.0/16"] } } });
    assert_eq!(world.put(&network, body).await.status, 201);
    let subnet = format!("{network}/subnets/apps");
    let made = world.put(&subnet, json!({ "properties": { "addressPrefix": "10.0.0.0/23" } })).await;
    assert_eq!((made.status, made.json()["id"].as_str()), (201, Some(subnet.as_str())));
    assert!(made.header("x-cove-note").contains("no effect"));
    let shown: Value = world.get(&network).await.json();
    assert_eq!(shown["properties"]["subnets"][0]["properties"]["addressPrefix"], "10.0.0.0/23");
    assert_eq!(world.get(&format!("{network}/subnets")).await.json()["value"][0]["name"], "apps");
    assert_eq!(world.delete(&subnet).await.status, 200);
    assert_eq!(world.get(&subnet).await.status, 404);
    assert_eq!(world.delete(&subnet).await.status, 204);
}

#[tokio::test]
async fn a_workspace_is_patched_and_keeps_its_keys() {
    let world = World::with_environment().await;
    let workspace = format!("{RG}/providers/Microsoft.OperationalInsights/workspaces/logs-one");
    let body = json!({ "location": "eastus", "tags": { "a": "b" }, "properties": { "retentionInDays": 31 } });
    assert_eq!(world.put(&workspace, body).await.status, 201);
    let keys = world.post(&format!("{workspace}/sharedKeys")).await.json();
    let patched = world
        .patch(&workspace, json!({ "tags": { "a": null, "c": "d" }, "properties": { "retentionInDays": 60 } }))
        .await;
    assert_eq!(patched.status, 200, "{}", patched.text);
    assert_eq!(
        (&patched.json()["tags"], &patched.json()["properties"]["retentionInDays"]),
        (&json!({ "c": "d" }), &json!(60))
    );
    assert_eq!(world.post(&format!("{workspace}/listKeys")).await.json(), keys);
    let bad = world.patch(&workspace, json!({ "properties": { "retentionInDays": 9999 } })).await;
    assert_eq!(bad.status, 400);
    let gone = format!("{RG}/providers/Microsoft.OperationalInsights/workspaces/none");
    assert_eq!(world.patch(&gone, json!({})).await.status, 404);
}
