//! Resource groups, workspaces, what both hold.

use expect_test::expect;
use http::Method;
use serde_json::{Value, json};

use super::harness::{RG, SUB, WEB, World, app_body};

#[tokio::test]
async fn a_group_is_made_changed_and_deleted() {
    let world = World::new().await;
    let group = json!({"location": "eastus", "tags": {"a": "b"}});
    expect![[r#"
        PUT /subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG
        201
        {
          "id": "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG",
          "location": "eastus",
          "name": "MyRG",
          "properties": {
            "provisioningState": "Succeeded"
          },
          "tags": {
            "a": "b"
          },
          "type": "Microsoft.Resources/resourceGroups"
        }
    "#]]
    .assert_eq(&world.transcript(Method::PUT, RG, group).await);
    expect![[r#"
        PATCH /subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG
        200
        {
          "id": "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG",
          "location": "eastus",
          "name": "MyRG",
          "properties": {
            "provisioningState": "Succeeded"
          },
          "tags": {
            "a": "b",
            "c": "d"
          },
          "type": "Microsoft.Resources/resourceGroups"
        }
    "#]]
    .assert_eq(&world.transcript(Method::PATCH, RG, json!({"tags": {"c": "d"}})).await);
    assert_eq!(world.ask(Method::HEAD, RG, "").await.status, 204);
    expect![[r#"
        DELETE /subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG
        202
        location: https://localhost:8443/subscriptions/00000000-0000-0000-0000-0000000000aa/operationresults/<guid>?api-version=2025-07-01
        retry-after: 0
    "#]].assert_eq(&world.transcript(Method::DELETE, RG, Value::Null).await);
    assert_eq!(world.ask(Method::HEAD, RG, "").await.status, 404);
    expect![[r#"
        GET /subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG
        404
        {
          "error": {
            "code": "ResourceGroupNotFound",
            "message": "Resource group 'MyRG' could not be found."
          }
        }
    "#]]
    .assert_eq(&world.transcript(Method::GET, RG, Value::Null).await);
}

#[tokio::test]
async fn deleting_a_group_deletes_what_is_inside() {
    let world = World::with_environment().await;
    let running = tokio::spawn(world.plane.clone().run());
    assert_eq!(world.put(WEB, app_body("nginx", "v1")).await.status, 201);
    let answered = world.delete(RG).await;
    assert_eq!(answered.status, 202);
    let link = answered.header("location").to_owned();
    assert_eq!(world.follow(&link).await.status, 202);
    assert_eq!(world.get(WEB).await.json()["properties"]["provisioningState"], "Deleting");
    assert_eq!(world.put(WEB, app_body("nginx", "v2")).await.code(), "ResourceGroupBeingDeleted");
    // the controller's part: the app is taken down and removed
    let id = cove_model::ResourceId::parse(WEB).unwrap();
    let mut changes = world.store.changes();
    world.store.remove(id, jiff::Timestamp::UNIX_EPOCH).await.unwrap();
    let gone = async {
        while world.follow(&link).await.status == 202 {
            changes.next().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), gone).await.unwrap();
    assert_eq!(world.follow(&link).await.status, 204);
    assert_eq!(world.get(RG).await.code(), "ResourceGroupNotFound");
    world.shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_workspace_has_a_customer_id_and_keys() {
    let world = World::new().await;
    world.put(RG, json!({"location": "eastus"})).await;
    let path = format!("{RG}/providers/Microsoft.OperationalInsights/workspaces/logs-1");
    let made = world.put(&path, json!({"location": "eastus", "properties": {"retentionInDays": "30"}})).await;
    assert_eq!(made.status, 201);
    assert_eq!(made.json()["properties"]["customerId"].as_str().unwrap().len(), 36);
    let keys = world.post(&format!("{path}/sharedKeys")).await.json();
    assert_eq!(keys, world.post(&format!("{path}/sharedKeys")).await.json(), "keys stay");
    assert!(keys["primarySharedKey"].as_str().unwrap().len() > 80);
    assert_eq!(world.put(&path, json!({"location": "eastus"})).await.status, 200);
    let list = world.get(&format!("{SUB}/resources?$filter=resourceType%20eq%20'Microsoft.OperationalInsights/workspaces'&api-version=2024-11-01")).await;
    assert_eq!(list.json()["value"][0]["name"], "logs-1");
    assert_eq!(world.delete(&path).await.status, 200);
    assert_eq!(world.delete(&path).await.status, 204);
}
