//! Session pools: writes, their operations, what keeps an environment, the MCP key. Nothing runs: the test writes what the
//! engine would.

use cove_model::{ReplicaName, ResourceId, Session, SessionIdentifier, SessionPool};
use cove_store::{Failure, Provisioning, SessionChange};
use serde_json::{Value, json};

use super::harness::{NOW, RG, SUB, World};
use crate::{Config, Sessions};

const POOL: &str = "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/sessionPools/my-session-pool";

fn body() -> Value {
    json!({
        "location": "eastus",
        "properties": {
            "environmentId": format!("{RG}/providers/Microsoft.App/managedEnvironments/env"),
            "containerType": "CustomContainer",
            "customContainerTemplate": {
                "containers": [{ "name": "c", "image": "registry/image:1", "resources": { "cpu": 0.25, "memory": "0.5Gi" } }],
                "ingress": { "targetPort": 80 },
            },
            "secrets": [{ "name": "s", "value": "hush" }],
        },
    })
}

fn id() -> ResourceId {
    ResourceId::parse(POOL).unwrap()
}

fn stored(world: &World) -> (SessionPool, u64, Provisioning) {
    let row = world.store.resource(&id()).unwrap().unwrap();
    (serde_json::from_value(row.spec.unwrap()).unwrap(), row.generation, row.provisioning)
}

/// Ends the write, as the engine does.
async fn finish(world: &World, failure: Option<Failure>) {
    let (_, generation, _) = stored(world);
    world.store.finish(id(), generation, failure, NOW.parse().unwrap()).await.unwrap();
}

async fn world() -> World {
    let world = World::with_environment().await;
    let made = world.put(POOL, body()).await;
    assert_eq!(
        (made.status, &made.json()["properties"]["provisioningState"]),
        (201, &json!("InProgress")),
        "{}",
        made.text
    );
    assert!(!made.text.contains("hush"));
    let link = made.header("azure-asyncoperation").to_owned();
    assert!(link.contains("/sessionPoolOperationStatuses/"), "{link}");
    assert_eq!(world.follow(&link).await.json()["status"], "InProgress");
    finish(&world, None).await;
    assert_eq!(world.follow(&link).await.json()["status"], "Succeeded");
    world
}

#[tokio::test]
async fn a_pool_is_made_listed_and_deleted() {
    let world = world().await;
    let shown = world.get(POOL).await.json();
    assert_eq!(shown["properties"]["provisioningState"], "Succeeded");
    let endpoint = "https://localhost:8443/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/sessionPools/my-session-pool";
    assert_eq!(shown["properties"]["poolManagementEndpoint"], endpoint);
    assert_eq!(
        shown["properties"]["scaleConfiguration"],
        json!({ "maxConcurrentSessions": 10, "readySessionInstances": 5 })
    );
    for scope in [RG, SUB] {
        let list = format!("{scope}/providers/Microsoft.App/sessionPools");
        assert_eq!(world.get(&list).await.json()["value"][0]["name"], "my-session-pool", "{list}");
    }
    assert!(world.get(&format!("{RG}/resources")).await.text.contains("Microsoft.App/sessionPools"));
    let env = format!("{RG}/providers/Microsoft.App/managedEnvironments/env");
    let refused = world.delete(&env).await;
    assert_eq!((refused.status, refused.code()), (409, "ManagedEnvironmentHasContainerApps".into()));
    let deleted = world.delete(POOL).await;
    assert_eq!((deleted.status, stored(&world).2), (202, Provisioning::Deleting));
    assert_eq!(world.patch(POOL, json!({})).await.status, 409, "nothing changes while it goes");
    let link = deleted.header("location").to_owned();
    assert_eq!(world.follow(&link).await.status, 202);
    world.store.remove(id(), NOW.parse().unwrap()).await.unwrap();
    let after = (world.follow(&link).await.status, world.get(POOL).await.status, world.delete(POOL).await.status);
    assert_eq!(after, (204, 404, 204));
}

#[tokio::test]
async fn the_generation_changes_with_what_sessions_see() {
    let world = world().await;
    let first = stored(&world).0.generation;
    let scaled = json!({ "properties": { "scaleConfiguration": { "readySessionInstances": 0 },
        "dynamicPoolConfiguration": { "lifecycleConfiguration": { "cooldownPeriodInSeconds": 600 } } } });
    let patched = world.patch(POOL, scaled).await;
    assert_eq!((patched.status, stored(&world).2), (202, Provisioning::InProgress));
    assert!(patched.header("location").contains("/sessionPoolOperationResults/"));
    assert_eq!(stored(&world).0.generation, first, "counts and cool-down are not seen");
    assert_eq!(world.put(POOL, world.get(POOL).await.json()).await.status, 201, "what is shown can be sent back");
    assert_eq!(stored(&world).0.generation, first);
    let mut with_secret = body();
    with_secret["properties"]["secrets"][0]["value"] = json!("other");
    world.put(POOL, with_secret).await;
    let second = stored(&world).0.generation;
    assert_ne!(second, first, "a secret's value is seen");
    let open = json!({ "properties": { "sessionNetworkConfiguration": { "status": "EgressEnabled" } } });
    world.patch(POOL, open).await;
    assert_ne!(stored(&world).0.generation, second);
}

#[tokio::test]
async fn allocated_sessions_use_cores_of_the_environment() {
    let world = world().await;
    let session = |replica: &str, identifier: Option<&str>| Session {
        pool: id(),
        generation: stored(&world).0.generation,
        target_port: 80,
        replica: ReplicaName::new(replica).unwrap(),
        guid: replica.to_owned(),
        snapshot: None,
        identifier: identifier.map(|text| SessionIdentifier::new(text).unwrap()),
        created_at: NOW.parse().unwrap(),
        allocated_at: None,
        last_accessed_at: None,
        ended: None,
    };
    let sessions = [session("waits", None), session("first", Some("user-1")), session("second", Some("user-2"))];
    world.store.save_sessions(sessions.map(|one| SessionChange::Save(Box::new(one))).to_vec()).await.unwrap();
    let usages = format!("{RG}/providers/Microsoft.App/managedEnvironments/env/usages");
    assert_eq!(world.get(&usages).await.json()["value"][0]["currentValue"], json!(0.5));
}

#[tokio::test]
async fn a_failure_is_told() {
    let world = World::with_environment().await;
    let made = world.put(POOL, body()).await;
    let failure = Failure { code: "ImagePullFailure".into(), message: "no such image".into() };
    finish(&world, Some(failure)).await;
    let status = world.follow(made.header("azure-asyncoperation")).await.json();
    assert_eq!((&status["status"], &status["error"]["code"]), (&json!("Failed"), &json!("ImagePullFailure")));
    let shown = world.get(POOL).await.json();
    assert_eq!(shown["properties"]["provisioningState"], "Failed");
    assert_eq!(shown["properties"]["coveFailure"]["message"], "no such image");
    assert_eq!(world.put(POOL, shown).await.status, 201, "what is shown can be sent back");
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let world = world().await;
    let mut elsewhere = body();
    elsewhere["properties"]["environmentId"] = json!(format!("{RG}/providers/Microsoft.App/managedEnvironments/none"));
    let other = POOL.replace("my-session-pool", "other");
    let refused = world.put(&other, elsewhere.clone()).await;
    assert_eq!((refused.status, refused.code()), (400, "ManagedEnvironmentNotFound".into()));
    let moved = world.put(POOL, elsewhere).await;
    assert_eq!((moved.status, moved.code()), (409, "SessionPoolPropertyCannotBeChanged".into()));
    let both =
        json!({ "properties": { "containerType": "Shell", "environmentId": null, "customContainerTemplate": null } });
    let both = world.patch(POOL, both).await;
    assert_eq!(
        (both.status, both.json()["error"]["details"].as_array().map(Vec::len)),
        (409, Some(2)),
        "{}",
        both.json()
    );
    let app = json!({ "location": "eastus", "properties": {
        "environmentId": body()["properties"]["environmentId"],
        "template": { "containers": [{ "name": "c", "image": "i" }] } } });
    let same = POOL.replace("/sessionPools/", "/containerApps/");
    let refused = world.put(&same, app.clone()).await;
    assert_eq!((refused.status, refused.code()), (409, "ContainerAppNameInUse".into()));
    assert_eq!(world.put(&same.replace("my-session-pool", "web"), app).await.status, 201);
    let refused = world.put(&POOL.replace("my-session-pool", "web"), body()).await;
    assert_eq!((refused.status, refused.code()), (409, "SessionPoolNameInUse".into()));
    assert_eq!(world.patch(&other, json!({})).await.status, 404);
    let bad = world.put(&POOL.replace("my-session-pool", "My_Pool"), body()).await;
    assert_eq!((bad.status, bad.code()), (400, "InvalidSessionPoolName".into()));
}

#[tokio::test]
async fn the_endpoint_is_a_host_where_the_ingress_has_one() {
    let sessions = Sessions { https_port: Some(8443), ..Sessions::default() };
    let world = World::with_environment_and(Config { retry_after_secs: 0, sessions, ..Config::default() }).await;
    let made = world.put(POOL, body()).await.json();
    assert_eq!(made["properties"]["poolManagementEndpoint"], "https://my-session-pool.env.localhost:8443");
}

#[tokio::test]
async fn the_mcp_key_is_made_once_and_rotated() {
    let world = world().await;
    let fetch = format!("{POOL}/fetchMCPServerCredentials");
    let refused = world.post(&fetch).await;
    assert_eq!((refused.status, refused.code()), (409, "MCPServerNotEnabled".into()));
    let generation = stored(&world).0.generation;
    world.patch(POOL, json!({ "properties": { "mcpServerSettings": { "isMCPServerEnabled": true } } })).await;
    let key = world.post(&fetch).await.json()["apiKey"].as_str().unwrap().to_owned();
    assert!(key.len() >= 43, "{key}");
    assert_eq!(world.post(&fetch).await.json()["apiKey"], json!(key));
    let rotated = world.post(&format!("{POOL}/rotateMCPServerCredentials")).await.json()["apiKey"].clone();
    assert_ne!(rotated, json!(key));
    assert_eq!(stored(&world).0.generation, generation, "sessions do not see the key");
    let shown = world.get(POOL).await.json()["properties"].clone();
    assert_eq!(
        shown["mcpServerSettings"],
        json!({ "isMCPServerEnabled": true }),
        "custom containers have no MCP server"
    );
    assert!(shown["coveWarnings"][0].as_str().unwrap().contains("E2B"), "{shown}");
    world.patch(POOL, json!({ "properties": { "secrets": [] } })).await;
    let kept = world.store.secrets(&id()).unwrap();
    assert_eq!(kept.keys().collect::<Vec<_>>(), ["MCP_API_KEY"], "users' secrets go, the key stays");
}

#[tokio::test]
async fn a_groups_deletion_ends_its_pools() {
    let world = world().await;
    assert_eq!(world.delete(RG).await.status, 202);
    assert_eq!(stored(&world).2, Provisioning::Deleting);
    assert!(world.store.resource(&ResourceId::parse(RG).unwrap()).unwrap().is_some(), "the group waits for the pool");
}
