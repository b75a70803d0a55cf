//! What hangs on an app, what it names, and what is kept without an effect.

use cove_model::{EventKind, RevisionProvisioning, RevisionStatus};
use cove_model::{ResourceId, RevisionKey, RevisionName};
use http::Method;
use serde_json::{Value, json};

use super::harness::{RG, WEB, World, app_body};

const OTHER: &str = "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/containerApps/other";

fn warnings(world: &World) -> Vec<String> {
    let events = world.events.lock().unwrap();
    events.iter().filter(|event| event.kind == EventKind::Warning).map(|event| event.message.clone()).collect()
}

fn with(mut body: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    body.pointer_mut(parent).unwrap()[name] = value;
    body
}

#[tokio::test]
async fn what_has_no_effect_is_told_by_the_answer_and_by_an_event() {
    let world = World::with_environment().await;
    let dapr = json!({ "enabled": true, "appId": "web" });
    let body = with(app_body("nginx", "v1"), "/properties/configuration/dapr", dapr);
    assert_eq!(world.put(WEB, body).await.status, 201);
    let shown = world.get(WEB).await.json();
    let words = shown["properties"]["coveWarnings"].as_array().unwrap();
    assert!(words.len() == 1 && words[0].as_str().unwrap().starts_with("dapr has no effect yet"), "{words:?}");
    assert_eq!(warnings(&world), [words[0].as_str().unwrap()]);
    // sent back, it says the same once
    assert_eq!(world.put(WEB, shown).await.status, 201);
    assert_eq!(world.get(WEB).await.json()["properties"]["coveWarnings"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn authentication_is_kept_and_what_cannot_be_had_is_said() {
    let world = World::with_environment().await;
    let body = app_body("nginx", "v1");
    let secrets = json!([{ "name": "google-secret", "value": "hush" }]);
    world.put(WEB, with(body, "/properties/configuration/secrets", secrets)).await;
    let current = format!("{WEB}/authConfigs/current");
    assert_eq!(world.get(&current).await.status, 404);
    let google = |secret: &str| {
        json!({ "properties": { "platform": { "enabled": true }, "identityProviders": { "google": { "registration": {
            "clientId": "x", "clientSecretSettingName": secret } } } } })
    };
    let refused = world.put(&current, google("none")).await;
    assert_eq!((refused.status, refused.code()), (400, "ContainerAppSecretRefNotFound".into()));
    let made = world.put(&current, google("google-secret")).await;
    assert_eq!(made.status, 200, "{}", made.text);
    assert!(!made.text.contains("coveWarnings") && !made.text.contains("hush"), "{}", made.text);
    assert_eq!(made.json()["type"], "Microsoft.App/containerApps/authConfigs");
    assert!(warnings(&world).is_empty());
    let mut twitter = google("google-secret");
    twitter["properties"]["identityProviders"]["twitter"] = json!({ "registration": { "consumerKey": "x" } });
    assert!(world.put(&current, twitter).await.text.contains("twitter is not available"));
    assert!(world.get(WEB).await.text.contains("twitter is not available"));
    assert_eq!(warnings(&world).len(), 1);
    assert_eq!(world.get(&format!("{WEB}/authConfigs")).await.json()["value"].as_array().unwrap().len(), 1);
    assert_eq!(world.put(&format!("{WEB}/authConfigs/mine"), google("google-secret")).await.status, 400);
    assert_eq!(world.delete(&current).await.status, 200);
    assert!(!world.get(WEB).await.text.contains("twitter"));
}

#[tokio::test]
async fn policies_and_questions_are_answered() {
    let world = World::with_environment().await;
    world.put(WEB, app_body("nginx", "v1")).await;
    let policy = format!("{WEB}/resiliencyPolicies/p");
    let body = json!({ "properties": { "tcpConnectionPool": { "maxConnections": 3 } } });
    let refused = world.put(&policy, json!({ "properties": { "tcpConnectionPool": { "maxConnections": 0 } } })).await;
    assert_eq!((refused.status, warnings(&world).len()), (400, 0), "what is not stored is not warned of");
    assert_eq!(world.put(&policy, body.clone()).await.status, 200);
    let told = "tcpConnectionPool has no effect: the app's ingress takes HTTP.";
    assert_eq!(world.get(&policy).await.json()["properties"]["coveWarnings"], json!([told]));
    assert_eq!(warnings(&world), [told]);
    let second = world.put(&format!("{WEB}/resiliencyPolicies/q"), body).await;
    assert_eq!((second.status, second.code()), (409, "ResiliencyPolicyExists".into()));
    let retry = json!({ "properties": { "httpRetryPolicy": { "maxRetries": 2 }, "tcpConnectionPool": null } });
    let patched = world.patch(&policy, retry).await;
    assert_eq!(patched.status, 200, "{}", patched.text);
    assert!(patched.json()["properties"].get("coveWarnings").is_none(), "{}", patched.text);
    for (path, status) in [
        ("detectorProperties/rootApi/", 200),
        ("detectorProperties/revisionsApi/revisions/", 200),
        ("detectorProperties/revisionsApi/revisions/web--v1", 200),
        ("privateEndpointConnections", 200),
        ("privateEndpointConnections/x", 404),
        ("privateLinkResources", 200),
        ("sourcecontrols", 501),
        ("functions", 501),
        ("labelHistories/blue", 404),
    ] {
        assert_eq!(world.get(&format!("{WEB}/{path}")).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn limits_of_requests_are_shown_as_they_are_in_force() {
    let world = World::with_environment().await;
    let environment = format!("{RG}/providers/Microsoft.App/managedEnvironments/env");
    let limits =
        |shown: &Value| shown.pointer("/properties/configuration/ingress/coveEffectiveLimits").unwrap().clone();
    assert_eq!(world.put(WEB, app_body("nginx", "v1")).await.status, 201);
    let servers = json!({ "requestTimeoutSeconds": 240, "idleTimeoutSeconds": 240, "headerCountLimit": 100,
        "terminationGracePeriodSeconds": 30 });
    assert_eq!(limits(&world.get(WEB).await.json()), servers);
    let premium =
        json!({ "properties": { "ingressConfiguration": { "requestIdleTimeout": 10, "headerCountLimit": 50 } } });
    let patched = world.patch(&environment, premium).await;
    assert!(patched.status < 300, "{}", patched.text);
    let environments = json!({ "requestTimeoutSeconds": 600, "idleTimeoutSeconds": 600, "headerCountLimit": 50,
        "terminationGracePeriodSeconds": 30 });
    let shown = world.get(WEB).await.json();
    assert_eq!(limits(&shown), environments);
    // what is shown sets nothing when it is sent back
    world.put(WEB, shown).await;
    world.patch(&environment, json!({ "properties": { "ingressConfiguration": null } })).await;
    assert_eq!(limits(&world.get(WEB).await.json()), servers);
    let own = with(app_body("nginx", "v1"), "/properties/configuration/ingress/coveRequestTimeoutSeconds", json!(5));
    let own = with(own, "/properties/configuration/ingress/coveRequestBodyMaxBytes", json!("1024"));
    world.put(WEB, own).await;
    let apps = limits(&world.get(WEB).await.json());
    assert_eq!((&apps["requestTimeoutSeconds"], &apps["requestBodyMaxBytes"]), (&json!(5), &json!(1024)));
    let wrong = with(app_body("nginx", "v1"), "/properties/configuration/ingress/coveIdleTimeoutSeconds", json!(0));
    assert_eq!(world.put(WEB, wrong).await.status, 400);
}

#[tokio::test]
async fn a_custom_domain_belongs_to_one_app() {
    let world = World::with_environment().await;
    let domain = |name: &str| {
        let domains = json!([{ "name": name, "bindingType": "Disabled" }]);
        with(app_body("nginx", "v1"), "/properties/configuration/ingress/customDomains", domains)
    };
    assert_eq!(world.put(WEB, domain("Shop.Cove.Test")).await.status, 201);
    world.put(OTHER, app_body("nginx", "v1")).await;
    let ask = |app: &str, host: &str| {
        format!("{app}/listCustomHostNameAnalysis?customHostname={host}&api-version=2025-07-01")
    };
    let mine = world.post(&ask(WEB, "shop.cove.test")).await.json();
    assert_eq!(
        (&mine["customDomainVerificationTest"], &mine["hasConflictOnManagedEnvironment"]),
        (&json!("Passed"), &json!(false))
    );
    let theirs = world.post(&ask(OTHER, "SHOP.cove.test")).await.json();
    assert_eq!(theirs["conflictingContainerAppResourceId"], WEB);
    assert_eq!(world.post(&ask(OTHER, "*.cove.test")).await.status, 400);
    let taken = world.put(OTHER, domain("shop.cove.test")).await;
    assert_eq!((taken.status, taken.code()), (409, "CustomDomainInUse".into()));
    assert!(taken.text.contains("'web'"), "{}", taken.text);
    // a name that the platform gives to another app is nobody's own
    let theirs = world.get(WEB).await.json()["properties"]["configuration"]["ingress"]["fqdn"].clone();
    let theirs = theirs.as_str().unwrap();
    for name in [theirs.to_owned(), format!("any.{theirs}"), format!("free.{}", theirs.split_once('.').unwrap().1)] {
        let refused = world.put(OTHER, domain(&name)).await;
        assert_eq!((refused.status, refused.code()), (400, "InvalidCustomHostName".into()), "{name}");
    }
    // put back unchanged it is no new claim; given up, it is free
    assert_eq!(world.put(WEB, world.get(WEB).await.json()).await.status, 201);
    assert_eq!(world.put(WEB, app_body("nginx", "v1")).await.status, 201);
    assert_eq!(world.put(OTHER, domain("shop.cove.test")).await.status, 201);
}

#[tokio::test]
async fn what_an_app_names_must_exist_and_all_is_told_at_once() {
    let world = World::with_environment().await;
    let environment = format!("{RG}/providers/Microsoft.App/managedEnvironments/env");
    let mut body = app_body("nginx", "v1");
    body["properties"]["workloadProfileName"] = json!("big");
    body["properties"]["configuration"]["ingress"]["customDomains"] = json!([
        { "name": "a.cove.test", "bindingType": "SniEnabled", "certificateId": format!("{environment}/certificates/none") },
    ]);
    let refused = world.put(WEB, body).await;
    assert_eq!(refused.status, 400);
    for code in ["InvalidWorkloadProfileName", "CertificateNotFound"] {
        assert!(refused.text.contains(code), "{code}: {}", refused.text);
    }
    assert_eq!(world.get(WEB).await.status, 404, "nothing half-done stays behind");
    let identity = format!("{RG}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/none");
    let mut body = app_body("nginx", "v1");
    body["identity"] = json!({ "type": "UserAssigned", "userAssignedIdentities": { identity: {} } });
    let refused = world.put(WEB, body).await;
    assert_eq!((refused.status, refused.code()), (400, "FailedIdentityOperation".into()));
}

async fn ready(world: &World, revision: &str) {
    let key = RevisionKey { app: ResourceId::parse(WEB).unwrap(), name: RevisionName::new(revision).unwrap() };
    let status = RevisionStatus { provisioning: RevisionProvisioning::Provisioned, ..RevisionStatus::default() };
    world.store.set_revision_statuses(vec![(key, status)]).await.unwrap();
}

fn labels_mode(suffix: &str, target: &str) -> Value {
    let mut body = app_body("nginx", suffix);
    body["properties"]["configuration"]["activeRevisionsMode"] = json!("labels");
    body["properties"]["configuration"]["targetLabel"] = json!(target);
    body
}

#[tokio::test]
async fn labels_follow_new_revisions_and_have_a_history() {
    let world = World::with_environment().await;
    let mut body = labels_mode("v1", "blue");
    body["properties"]["configuration"]["targetLabel"] = Value::Null;
    assert_eq!(world.put(WEB, body).await.code(), "TargetLabelRequired");
    assert_eq!(world.put(WEB, labels_mode("v1", "blue")).await.status, 201);
    let traffic = || async { world.get(WEB).await.json()["properties"]["configuration"]["ingress"]["traffic"].clone() };
    assert_eq!(traffic().await, json!([{ "revisionName": "web--v1", "weight": 100, "label": "blue" }]));
    // another target: a new label with no weight
    assert_eq!(world.put(WEB, labels_mode("v2", "green")).await.status, 201);
    assert_eq!(
        traffic().await,
        json!([
            { "revisionName": "web--v1", "weight": 100, "label": "blue" },
            { "revisionName": "web--v2", "weight": 0, "label": "green" },
        ])
    );
    // what az leaves behind is no weight; a weight without a label is refused
    let weights = |rest: Value| {
        let blue =
            json!({ "revisionName": "web--v1", "weight": 100 - rest["weight"].as_i64().unwrap(), "label": "blue" });
        let green = json!({ "revisionName": "web--v2", "weight": 0, "label": "green" });
        json!({ "properties": { "configuration": { "ingress": { "traffic": [blue, green, rest] } } } })
    };
    assert_eq!(world.patch(WEB, weights(json!({ "latestRevision": true, "weight": 0 }))).await.status, 202);
    assert_eq!(traffic().await.as_array().unwrap().len(), 2);
    let bare = world.patch(WEB, weights(json!({ "latestRevision": true, "weight": 10 }))).await;
    assert_eq!((bare.status, bare.code()), (400, "InvalidTrafficWeight".into()));
    // the same target: the label moves
    let patch =
        json!({ "properties": { "template": { "revisionSuffix": "v3" }, "configuration": { "targetLabel": "blue" } } });
    assert_eq!(world.patch(WEB, patch).await.status, 202);
    assert_eq!(traffic().await[0]["revisionName"], "web--v3");
    ready(&world, "web--v1").await;
    let history = world.get(&format!("{WEB}/labelHistories/Blue")).await.json();
    let records = history["properties"]["records"].as_array().unwrap();
    assert_eq!((&records[0]["revision"], &records[0]["status"]), (&json!("web--v3"), &json!("Starting")));
    assert_eq!((&records[1]["revision"], &records[1]["status"]), (&json!("web--v1"), &json!("Succeeded")));
    assert!(records[0].get("stop").is_none() && records[1].get("stop").is_some());
    assert!(!world.get(WEB).await.text.contains("coveLabelHistory"));
    assert_eq!(world.get(&format!("{WEB}/labelHistories")).await.json()["value"].as_array().unwrap().len(), 2);
    // labels decide what is active
    let refused = world.post(&format!("{WEB}/revisions/web--v3/deactivate")).await;
    assert_eq!((refused.status, refused.code()), (400, "LabelsDecideActivity".into()));
    assert_eq!(world.post(&format!("{WEB}/revisions/web--v1/activate")).await.status, 400);
    assert_eq!(world.delete(&format!("{WEB}/labelHistories/blue")).await.status, 200);
    assert_eq!(world.get(&format!("{WEB}/labelHistories/blue")).await.status, 404);
    assert_eq!(world.ask(Method::DELETE, &format!("{WEB}/labelHistories/blue"), "").await.status, 204);
}
