//! Jobs: writes, starts, stops, executions and their replicas, streams. Nothing runs: the test writes what a controller would.

use cove_model::{ExecutionReplica, ExecutionStatus, ReplicaName, ResourceId, RevisionKey, RevisionName};
use http::Method;
use serde_json::{Value, json};

use super::harness::{NOW, RG, SUB, World};

const JOB: &str =
    "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/jobs/train";

fn body() -> Value {
    json!({
        "location": "eastus", "tags": null, "identity": { "type": "None", "userAssignedIdentities": null },
        "properties": {
            "environmentId": format!("{RG}/providers/Microsoft.App/managedEnvironments/env"),
            "configuration": {
                "triggerType": "Manual", "replicaTimeout": 7200, "replicaRetryLimit": 3,
                "manualTriggerConfig": { "parallelism": 1, "replicaCompletionCount": null },
                "scheduleTriggerConfig": null, "eventTriggerConfig": null, "registries": null,
                "secrets": [{ "name": "s", "value": "hush" }],
            },
            "template": { "containers": [{ "name": "train", "image": "trainer:1", "args": ["work"],
                "env": [{ "name": "KEY", "secretRef": "s" }], "resources": { "cpu": 0.5, "memory": "1Gi" } }] },
        },
    })
}

async fn world() -> World {
    let world = World::with_environment().await;
    let made = world.put(JOB, body()).await;
    assert_eq!((made.status, &made.json()["properties"]["provisioningState"]), (201, &json!("Succeeded")));
    assert!(!made.text.contains("hush"));
    let link = made.header("azure-asyncoperation").to_owned();
    assert!(link.contains("/containerappsjobOperationStatuses/"), "{link}");
    assert_eq!(world.follow(&link).await.json()["status"], "Succeeded");
    world
}

async fn started(world: &World) -> String {
    let started = world.post(&format!("{JOB}/start")).await;
    assert_eq!(started.status, 200, "{}", started.text);
    let name = started.json()["name"].as_str().unwrap().to_owned();
    assert_eq!(started.json()["id"], format!("{JOB}/executions/{name}"));
    name
}

/// Ends an execution, as the controller does.
async fn end(world: &World, name: &str, status: ExecutionStatus) {
    let key = RevisionKey { app: ResourceId::parse(JOB).unwrap(), name: RevisionName::new(name).unwrap() };
    let mut execution = world.store.execution(&key).unwrap().unwrap();
    execution.status = status;
    execution.started_at = Some(NOW.parse().unwrap());
    execution.ended_at = Some(NOW.parse().unwrap());
    execution.replicas = vec![ExecutionReplica {
        name: ReplicaName::new(format!("{name}-x7k2q")).unwrap(),
        index: 0,
        started_at: Some(NOW.parse().unwrap()),
        ended_at: Some(NOW.parse().unwrap()),
        exit_code: Some(3),
        reason: Some("Error".to_owned()),
    }];
    world.store.save_executions(vec![execution]).await.unwrap();
}

#[tokio::test]
async fn a_job_is_made_changed_listed_and_deleted() {
    let world = world().await;
    let patched = world.patch(JOB, json!({ "properties": { "configuration": { "replicaTimeout": 60 } } })).await;
    assert_eq!((patched.status, &patched.json()["properties"]["configuration"]["replicaTimeout"]), (200, &json!(60)));
    assert_eq!(world.put(JOB, world.get(JOB).await.json()).await.status, 200, "what is shown can be sent back");
    let secrets = world.post(&format!("{JOB}/listSecrets")).await;
    assert_eq!(secrets.json(), json!({ "value": [{ "name": "s", "value": "hush" }] }));
    for list in [format!("{RG}/providers/Microsoft.App/jobs"), format!("{SUB}/providers/Microsoft.App/jobs")] {
        assert_eq!(world.get(&list).await.json()["value"][0]["name"], "train", "{list}");
    }
    let resources = world.get(&format!("{RG}/resources")).await.json();
    assert!(resources.to_string().contains("Microsoft.App/jobs"));
    let env = format!("{RG}/providers/Microsoft.App/managedEnvironments/env");
    let refused = world.delete(&env).await;
    assert_eq!((refused.status, refused.code()), (409, "ManagedEnvironmentHasContainerApps".into()));
    let deleted = world.delete(JOB).await;
    assert_eq!(
        (deleted.status, world.get(JOB).await.json()["properties"]["provisioningState"].clone()),
        (202, json!("Deleting"))
    );
    assert_eq!(world.post(&format!("{JOB}/start")).await.status, 409, "nothing starts while it goes");
    let link = deleted.header("location").to_owned();
    assert_eq!(world.follow(&link).await.status, 202);
    world.store.remove(ResourceId::parse(JOB).unwrap(), NOW.parse().unwrap()).await.unwrap();
    assert_eq!(
        (world.follow(&link).await.status, world.get(JOB).await.status, world.delete(JOB).await.status),
        (204, 404, 204)
    );
}

#[tokio::test]
async fn a_start_may_bring_another_template() {
    let world = world().await;
    let name = started(&world).await;
    assert!(name.starts_with("train-") && name.len() == "train-".len() + 7, "{name}");
    let other =
        json!({ "containers": [{ "name": "train", "image": "trainer:2", "env": [{ "name": "N", "value": "1" }] }] });
    let with = world.ask(Method::POST, &format!("{JOB}/start"), other.to_string()).await;
    let executions = world.get(&format!("{JOB}/executions")).await.json();
    let newest = &executions["value"][0];
    assert_eq!((executions["value"].as_array().unwrap().len(), &newest["name"]), (2, &with.json()["name"]));
    assert_eq!(newest["properties"]["status"], "Processing");
    let container = &newest["properties"]["template"]["containers"][0];
    assert_eq!((&container["image"], &container["args"]), (&json!("trainer:2"), &json!(["work"])));
    assert_eq!(container["env"], json!([{ "name": "N", "value": "1" }]));
    let first = world.get(&format!("{JOB}/executions/{name}")).await.json();
    assert_eq!(first["properties"]["template"]["containers"][0]["image"], "trainer:1");
    for wrong in
        [json!({ "containers": [{ "name": "train", "env": [{ "name": "A", "secretRef": "no" }] }] }), json!([])]
    {
        assert_eq!(world.ask(Method::POST, &format!("{JOB}/start"), wrong.to_string()).await.status, 400, "{wrong}");
    }
    let missing = world.get(&format!("{JOB}/executions/train-0000000")).await;
    assert_eq!((missing.status, missing.code()), (404, "ContainerAppJobExecutionNotFound".into()));
}

#[tokio::test]
async fn a_suspended_job_starts_nothing_until_it_is_resumed() {
    let world = world().await;
    let suspended = world.post(&format!("{JOB}/suspend")).await;
    assert_eq!((suspended.status, &suspended.json()["properties"]["runningState"]), (200, &json!("Suspended")));
    let refused = world.post(&format!("{JOB}/start")).await;
    assert_eq!((refused.status, refused.code()), (409, "JobSuspended".into()));
    world.patch(JOB, json!({ "tags": { "a": "b" } })).await;
    assert_eq!(world.get(JOB).await.json()["properties"]["runningState"], "Suspended", "a change does not resume it");
    assert_eq!(world.post(&format!("{JOB}/resume")).await.json()["properties"]["runningState"], "Ready");
    started(&world).await;
}

#[tokio::test]
async fn a_stop_is_over_when_the_executions_have_ended() {
    let world = world().await;
    let (one, two, three) = (started(&world).await, started(&world).await, started(&world).await);
    end(&world, &three, ExecutionStatus::Succeeded).await;
    let stop = world.post(&format!("{JOB}/stop/{one}")).await;
    assert_eq!((stop.status, &stop.json()["value"][0]["name"]), (202, &json!(one)));
    let link = stop.header("location").to_owned();
    assert_eq!(world.follow(&link).await.status, 202);
    end(&world, &one, ExecutionStatus::Stopped).await;
    assert_eq!(world.follow(&link).await.json()["value"][0]["properties"]["status"], "Stopped");
    // of all, only those that run
    let stop = world.post(&format!("{JOB}/stop")).await;
    assert_eq!((stop.status, stop.json()["value"].as_array().unwrap().len()), (202, 1));
    let link = stop.header("location").to_owned();
    assert_eq!(world.follow(&link).await.status, 202);
    end(&world, &two, ExecutionStatus::Stopped).await;
    assert_eq!(world.follow(&link).await.status, 200);
    // what has ended stays as it is, under the SDKs' path too
    let again = world.post(&format!("{JOB}/executions/{three}/stop")).await;
    assert_eq!((again.status, again.json()), (200, json!({ "value": [] })));
    let none = world.post(&format!("{JOB}/stop")).await;
    assert_eq!((none.status, none.json()), (200, json!({ "value": [] })));
    assert_eq!(world.post(&format!("{JOB}/stop/train-0000000")).await.status, 404);
    let filtered =
        world.get(&format!("{JOB}/executions?api-version=2025-07-01&$filter=Status%20eq%20'Succeeded'")).await;
    assert_eq!(filtered.json()["value"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn replicas_keep_their_logs() {
    let world = world().await;
    let name = started(&world).await;
    assert_eq!(world.get(&format!("{JOB}/executions/{name}/replicas")).await.json()["value"], json!([]));
    end(&world, &name, ExecutionStatus::Failed).await;
    let replicas = world.get(&format!("{JOB}/executions/{name}/replicas")).await.json();
    let container = &replicas["value"][0]["containers"][0];
    assert_eq!(container["runningStateDetails"], "Error with code 3");
    let endpoint = container["logStreamEndpoint"].as_str().unwrap();
    let lines = world.follow(&format!("{endpoint}?follow=true&output=text")).await;
    assert_eq!((lines.status, lines.text.lines().count()), (200, 2));
    let query = world.console.lock().unwrap().last().unwrap().clone();
    assert_eq!((query.revision.as_str(), query.follow), (name.as_str(), false), "there will be no more lines");
    assert_eq!(world.follow(&endpoint.replace("containers/train", "containers/x")).await.code(), "ContainerNotFound");
    let events = format!("{RG}/jobs/train/eventstream");
    assert_eq!(world.get(&events).await.status, 200);
    let token = world.post(&format!("{JOB}/getAuthToken")).await.json();
    assert_eq!((&token["type"], token["properties"]["token"].is_string()), (&json!("Microsoft.App/jobs"), true));
}

#[tokio::test]
async fn what_is_wrong_with_a_job_is_told() {
    let world = world().await;
    let with = |pointer: &str, value: Value| {
        let mut body = body();
        *body.pointer_mut(pointer).unwrap() = value;
        body
    };
    let schedule = json!({ "triggerType": "Schedule", "replicaTimeout": 60,
        "secrets": [{ "name": "s", "value": "hush" }], "scheduleTriggerConfig": { "cronExpression": "0 2 * * *", "coveTimeZone": "Mars/Olympus" } });
    for (body, code) in [
        (
            with("/properties/environmentId", json!(format!("{RG}/providers/Microsoft.App/managedEnvironments/no"))),
            "ManagedEnvironmentNotFound",
        ),
        (with("/properties/configuration/replicaTimeout", json!(0)), "InvalidParameterValue"),
        (with("/properties/configuration", schedule), "InvalidParameterValue"),
        (with("/properties/template/containers/0/resources/cpu", json!(7)), "ContainerAppInvalidResourceTotal"),
    ] {
        let refused = world.put(&format!("{JOB}2"), body).await;
        assert_eq!((refused.status, refused.code()), (400, code.into()), "{}", refused.text);
    }
    let no_patch = world.patch(&format!("{JOB}3"), json!({})).await;
    assert_eq!((no_patch.status, no_patch.code()), (404, "ResourceNotFound".into()));
    assert_eq!(world.get(&format!("{JOB}/detectors")).await.json()["value"], json!([]));
    assert_eq!(world.get(&format!("{JOB}/detectors/x")).await.status, 404);
    assert_eq!(world.get(&format!("{JOB}/detectorProperties/rootApi")).await.json()["name"], "train");
}
