//! Identities, roles, their assignments, and the directory that `az` asks about them.

use http::Method;
use serde_json::{Value, json};

use super::harness::{RG, SUB, World};

const IDENTITY: &str = "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.ManagedIdentity/userAssignedIdentities/one";
const ACR_PULL: &str = "7f951dda-4ed3-4680-a7ca-43fe172d538d";
const NAME: &str = "11111111-2222-3333-4444-555555555555";

async fn world() -> World {
    let world = World::with_environment().await;
    let made = world.put(IDENTITY, json!({ "location": "eastus", "tags": { "a": "b" } })).await;
    assert_eq!(made.status, 201, "{}", made.text);
    world
}

fn role_id(guid: &str) -> String {
    format!("{SUB}/providers/Microsoft.Authorization/roleDefinitions/{guid}")
}

fn assignment(scope: &str, name: &str) -> String {
    format!("{scope}/providers/Microsoft.Authorization/roleAssignments/{name}")
}

fn body(principal: &str, role: &str) -> Value {
    json!({ "properties": { "roleDefinitionId": role_id(role), "principalId": principal, "principalType": "ServicePrincipal" } })
}

async fn ids(world: &World) -> (String, String) {
    let shown = world.get(IDENTITY).await.json();
    let id = |name: &str| shown["properties"][name].as_str().unwrap().to_owned();
    (id("principalId"), id("clientId"))
}

#[tokio::test]
async fn an_identity_keeps_its_ids_until_it_is_deleted() {
    let world = world().await;
    let before = ids(&world).await;
    assert_ne!(before.0, before.1);
    assert_eq!(world.patch(IDENTITY, json!({ "tags": { "c": "d" } })).await.status, 200);
    assert_eq!(ids(&world).await, before);
    let shown = world.get(IDENTITY).await.json();
    assert_eq!(shown["tags"], json!({ "a": "b", "c": "d" }));
    assert_eq!(shown["properties"]["tenantId"], "00000000-0000-0000-0000-0000000000bb");
    for list in [RG, SUB] {
        let list = world.get(&format!("{list}/providers/Microsoft.ManagedIdentity/userAssignedIdentities")).await;
        assert_eq!(list.json()["value"][0]["name"], "one");
    }
    let federated = world.get(&format!("{IDENTITY}/federatedIdentityCredentials/x")).await;
    assert_eq!((federated.status, federated.code().as_str()), (501, "NotImplemented"));
    assert_eq!(world.delete(IDENTITY).await.status, 200);
    assert_eq!(world.delete(IDENTITY).await.status, 204);
}

#[tokio::test]
async fn a_role_is_assigned_listed_and_deleted_at_any_scope() {
    let world = world().await;
    let (principal, _) = ids(&world).await;
    let env = format!("{RG}/providers/Microsoft.App/managedEnvironments/env");
    for (index, scope) in [SUB, RG, &env].into_iter().enumerate() {
        let name = format!("9111111{index}-2222-3333-4444-555555555555");
        let made = world.put(&assignment(scope, &name), body(&principal, ACR_PULL)).await;
        assert_eq!(made.status, 201, "{}", made.text);
        assert!(made.header("x-cove-note").contains("not enforced"));
        assert_eq!(made.json()["properties"]["scope"], scope);
        let again = world.put(&assignment(scope, NAME), body(&principal, ACR_PULL)).await;
        assert_eq!((again.status, again.code().as_str()), (409, "RoleAssignmentExists"));
    }
    let count = async |scope: &str, filter: &str| {
        let path = format!("{scope}/providers/Microsoft.Authorization/roleAssignments?api-version=2022-04-01{filter}");
        world.get(&path).await.json()["value"].as_array().unwrap().len()
    };
    assert_eq!((count(SUB, "").await, count(RG, "").await, count(&env, "").await), (3, 3, 3));
    let at = "&$filter=atScope()";
    assert_eq!((count(SUB, at).await, count(RG, at).await, count(&env, at).await), (1, 2, 3));
    assert_eq!(count(SUB, &format!("&$filter=principalId%20eq%20'{principal}'")).await, 3);
    assert_eq!(count(SUB, "&$filter=principalId%20eq%20'x'").await, 0);
    let gone = world.delete(&assignment(RG, "91111111-2222-3333-4444-555555555555")).await;
    assert_eq!((gone.status, gone.json()["properties"]["principalId"].as_str()), (200, Some(principal.as_str())));
    // what is about a resource goes with it
    assert_eq!(world.delete(&env).await.status, 202);
    assert_eq!(count(SUB, "").await, 1);
}

#[tokio::test]
async fn an_assignment_of_nothing_is_refused() {
    let world = world().await;
    let (principal, _) = ids(&world).await;
    let unknown = world.put(&assignment(RG, NAME), body(&principal, NAME)).await;
    assert_eq!((unknown.status, unknown.code().as_str()), (400, "RoleDefinitionDoesNotExist"));
    let nowhere = format!("{RG}/providers/Microsoft.App/containerApps/none");
    let nowhere = world.put(&assignment(&nowhere, NAME), body(&principal, ACR_PULL)).await;
    assert_eq!((nowhere.status, nowhere.code().as_str()), (404, "ResourceNotFound"));
    let bad = world.put(&assignment(RG, "x"), json!({})).await;
    assert_eq!(bad.json()["error"]["details"].as_array().unwrap().len(), 3);
    // another provider's resource may be a scope: it is real elsewhere
    let vault = format!("{RG}/providers/Microsoft.KeyVault/vaults/v");
    assert_eq!(world.put(&assignment(&vault, NAME), body(&principal, ACR_PULL)).await.status, 201);
    let changed = world.put(&assignment(&vault, NAME), body(NAME, ACR_PULL)).await;
    assert_eq!(changed.code(), "RoleAssignmentUpdateNotPermitted");
}

#[tokio::test]
async fn roles_are_azures_and_the_users_own() {
    let world = world().await;
    let list = async |filter: &str| {
        let path =
            format!("{RG}/providers/Microsoft.Authorization/roleDefinitions?api-version=2022-04-01&$filter={filter}");
        world.get(&path).await.json()["value"].clone()
    };
    let found = list("roleName%20eq%20'acrpull'").await;
    assert_eq!((found[0]["name"].as_str(), found[1].as_str()), (Some(ACR_PULL), None));
    let role = role_id(NAME);
    let watcher = json!({ "properties": { "roleName": "Watcher", "permissions": [{ "actions": ["*/read"] }] } });
    assert_eq!(world.put(&role, watcher.clone()).await.status, 201);
    assert_eq!(list("roleName%20eq%20'Watcher'").await[0]["properties"]["type"], "CustomRole");
    assert_eq!(list("type%20eq%20'CustomRole'").await.as_array().unwrap().len(), 1);
    let twin = world.put(&role_id("11111111-2222-3333-4444-555555555556"), watcher).await;
    assert_eq!(twin.code(), "RoleDefinitionWithSameNameExists");
    let (principal, _) = ids(&world).await;
    assert_eq!(world.put(&assignment(RG, NAME), body(&principal, NAME)).await.status, 201);
    assert_eq!(world.delete(&role).await.code(), "RoleDefinitionHasAssignments");
    assert_eq!(world.delete(&assignment(RG, NAME)).await.status, 200);
    assert_eq!(world.delete(&role).await.status, 200);
    assert_eq!(world.get(&role).await.code(), "RoleDefinitionDoesNotExist");
    assert_eq!(world.delete(&role_id(ACR_PULL)).await.code(), "RoleDefinitionIsBuiltIn");
}

#[tokio::test]
async fn the_directory_knows_identities_and_who_can_log_in() {
    let world = world().await;
    let (principal, client) = ids(&world).await;
    let named = async |name: &str| {
        let path = format!("/v1.0/servicePrincipals?$filter=servicePrincipalNames/any(c:c%20eq%20'{name}')");
        world.get(&path).await.json()["value"].clone()
    };
    assert_eq!(named(&client).await[0]["id"], principal.as_str());
    assert_eq!(named(&client).await[0]["servicePrincipalType"], "ManagedIdentity");
    // an object id is nobody's client id
    assert_eq!(named(&principal).await, json!([]));
    assert_eq!(named("my-robot").await[0]["appId"], "my-robot");
    let body = json!({ "ids": [principal], "types": ["servicePrincipal"] });
    let found = world.ask(Method::POST, "/v1.0/directoryObjects/getByIds", body.to_string()).await.json();
    assert_eq!(found["value"][0]["@odata.type"], "#microsoft.graph.servicePrincipal");
    assert_eq!(found["value"][0]["displayName"], "one");
    let user = world.get("/v1.0/users?$filter=userPrincipalName%20eq%20'me@local'").await.json();
    assert_eq!(user["value"][0]["userPrincipalName"], "me@local");
    assert_eq!(world.get("/v1.0/me").await.status, 400);
    assert_eq!(world.get("/v1.0/servicePrincipals?$filter=x").await.code(), "Request_UnsupportedQuery");
    assert_eq!(world.ask(Method::POST, "/v1.0/applications", "{}").await.status, 501);
}
