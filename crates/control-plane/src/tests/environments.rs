//! Managed environments.

use expect_test::expect;
use http::Method;
use serde_json::{Value, json};

use super::harness::{RG, SUB, WEB, World, app_body};

const ENV: &str = "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/env";

#[tokio::test]
async fn an_environment_is_ready_when_it_is_answered() {
    let world = World::new().await;
    world.put(RG, json!({"location": "eastus"})).await;
    let body = json!({
        "location": "eastus", "tags": null,
        "properties": {
            "appLogsConfiguration": {"destination": "log-analytics", "logAnalyticsConfiguration": {"customerId": "c", "sharedKey": "secret"}},
            "workloadProfiles": [{"workloadProfileType": "Consumption", "Name": "Consumption"}],
            "InfrastructureResourceGroup": null,
        },
    });
    let text = world.transcript(Method::PUT, ENV, body.clone()).await;
    assert!(!text.contains("secret"));
    expect![[r#"
        PUT /subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/env
        201
        azure-asyncoperation: https://localhost:8443/subscriptions/00000000-0000-0000-0000-0000000000aa/providers/Microsoft.App/locations/local/managedEnvironmentOperationStatuses/<guid>?api-version=2025-07-01&azureAsyncOperation=true
        retry-after: 0
        {
          "id": "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/env",
          "location": "East US",
          "name": "env",
          "properties": {
            "appLogsConfiguration": {
              "destination": "log-analytics",
              "logAnalyticsConfiguration": {
                "customerId": "c"
              }
            },
            "customDomainConfiguration": {
              "customDomainVerificationId": "<hex>"
            },
            "daprConfiguration": {},
            "defaultDomain": "env.localhost",
            "environmentMode": "WorkloadProfiles",
            "eventStreamEndpoint": "https://localhost:8443/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/managedEnvironments/env/eventstream",
            "kedaConfiguration": {},
            "peerAuthentication": {
              "mtls": {
                "enabled": false
              }
            },
            "peerTrafficConfiguration": {
              "encryption": {
                "enabled": false
              }
            },
            "provisioningState": "Succeeded",
            "publicNetworkAccess": "Enabled",
            "staticIp": "127.0.0.1",
            "workloadProfiles": [
              {
                "name": "Consumption",
                "workloadProfileType": "Consumption"
              }
            ],
            "zoneRedundant": false
          },
          "systemData": {
            "createdAt": "2026-01-01T00:00:00Z",
            "createdBy": "anonymous",
            "createdByType": "User",
            "lastModifiedAt": "2026-01-01T00:00:00Z",
            "lastModifiedBy": "anonymous",
            "lastModifiedByType": "User"
          },
          "type": "Microsoft.App/managedEnvironments"
        }
    "#]].assert_eq(&text);
    let link = world.put(ENV, body).await;
    assert_eq!((link.status, link.header("azure-asyncoperation")), (200, ""), "a change is done at once");
}

#[tokio::test]
async fn the_operation_of_a_creation_is_done_at_the_first_poll() {
    let world = World::new().await;
    world.put(RG, json!({"location": "eastus"})).await;
    let made = world.put(ENV, json!({"location": "eastus"})).await;
    assert_eq!(made.status, 201);
    let polled = world.follow(made.header("azure-asyncoperation")).await;
    assert_eq!((polled.status, &polled.json()["status"]), (200, &json!("Succeeded")));
    assert_eq!(polled.header("retry-after"), "0");
}

#[tokio::test]
async fn two_environments_of_one_name_get_two_domains() {
    let world = World::with_environment().await;
    let other = RG.replace("MyRG", "Other");
    world.put(&other, json!({"location": "eastus"})).await;
    let made = world
        .put(&format!("{other}/providers/Microsoft.App/managedEnvironments/Env"), json!({"location": "eastus"}))
        .await;
    let domain = made.json()["properties"]["defaultDomain"].as_str().unwrap().to_owned();
    assert!(domain.starts_with("env-") && domain.ends_with(".localhost"), "{domain}");
    assert_eq!(world.get(ENV).await.json()["properties"]["defaultDomain"], "env.localhost");
    let all = world.get(&format!("{SUB}/providers/Microsoft.App/managedEnvironments")).await.json();
    assert_eq!(all["value"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn an_environment_with_apps_stays() {
    let world = World::with_environment().await;
    world.put(WEB, app_body("nginx", "v1")).await;
    expect![[r#"
        DELETE /subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/env
        409
        {
          "error": {
            "code": "ManagedEnvironmentHasContainerApps",
            "message": "Managed environment 'env' still holds 1 container app(s) (web); delete them first."
          }
        }
    "#]].assert_eq(&world.transcript(Method::DELETE, ENV, Value::Null).await);
    let id = cove_model::ResourceId::parse(WEB).unwrap();
    world.store.remove(id, jiff::Timestamp::UNIX_EPOCH).await.unwrap();
    let deleted = world.delete(ENV).await;
    assert_eq!(deleted.status, 202);
    assert!(deleted.header("location").contains("managedEnvironmentOperationResults"));
    assert_eq!(world.follow(deleted.header("location")).await.status, 204);
    assert_eq!(world.delete(ENV).await.status, 204);
}

#[tokio::test]
async fn profiles_and_usages_are_listed() {
    let world = World::with_environment().await;
    let states = world.get(&format!("{ENV}/workloadProfileStates")).await.json();
    assert_eq!(states["value"][0]["name"], "Consumption");
    let path =
        format!("{SUB}/providers/Microsoft.App/locations/eastus/availableManagedEnvironmentsWorkloadProfileTypes");
    assert_eq!(world.get(&path).await.json()["value"][0]["location"], "East US");
    for path in [format!("{ENV}/usages"), format!("{SUB}/providers/Microsoft.App/locations/eastus/usages")] {
        assert_eq!(world.get(&path).await.json()["value"][0]["unit"], "Count", "{path}");
    }
}

#[tokio::test]
async fn what_is_not_built_is_said_with_everything_else() {
    let world = World::new().await;
    world.put(RG, json!({"location": "eastus"})).await;
    let body = json!({
        "location": "atlantis",
        "properties": {"publicNetworkAccess": "Disabled", "workloadProfiles": [{"name": "g", "workloadProfileType": "D5"}]},
    });
    expect![[r#"
        PUT /subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/env
        400
        {
          "error": {
            "code": "InvalidRequestParameterWithDetails",
            "details": [
              {
                "code": "LocationNotAvailableForResourceType",
                "message": "The location 'atlantis' does not exist; use 'local' or one of Azure's, such as 'eastus'.",
                "target": "location"
              },
              {
                "code": "InvalidWorkloadProfileType",
                "message": "The workload profile type 'D5' does not exist; expected one of Consumption, D4, D8, D16, D32, E4, E8, E16, E32, NC24-A100, NC48-A100, NC96-A100, Consumption-GPU-NC24-A100, Consumption-GPU-NC8as-T4.",
                "target": "properties.workloadProfiles[0].workloadProfileType"
              },
              {
                "code": "NotImplemented",
                "message": "Closing an environment to public networks: not implemented yet; make the ingress of each app internal.",
                "target": "properties.publicNetworkAccess"
              }
            ],
            "message": "3 problems. The location 'atlantis' does not exist; use 'local' or one of Azure's, such as 'eastus'. properties.workloadProfiles[0].workloadProfileType: The workload profile type 'D5' does not exist; expected one of Consumption, D4, D8, D16, D32, E4, E8, E16, E32, NC24-A100, NC48-A100, NC96-A100, Consumption-GPU-NC24-A100, Consumption-GPU-NC8as-T4. properties.publicNetworkAccess: Closing an environment to public networks: not implemented yet; make the ingress of each app internal."
          }
        }
    "#]].assert_eq(&world.transcript(Method::PUT, ENV, body).await);
}
