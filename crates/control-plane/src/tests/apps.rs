//! Container apps: writes, revisions, operations, verbs. The wire rules that clients depend on.

use std::collections::BTreeSet;

use cove_model::{
    ContainerObservation, ContainerState, ReplicaName, ReplicaObservation, ReplicaPhase, ResourceId, RevisionName,
    RevisionProvisioning, RevisionStatus,
};
use cove_store::OperationStatus;
use expect_test::expect_file;
use http::{Method, Request};
use serde_json::{Value, json};

use super::harness::{NOW, RG, V, WEB, World, app_body};

async fn revision_names(world: &World) -> Vec<String> {
    let list = world.get(&format!("{WEB}/revisions")).await.json();
    list["value"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn an_app_is_made_and_its_operation_ends_when_the_controller_says_so() {
    let world = World::with_environment().await;
    expect_file!["golden/app_create.txt"].assert_eq(&world.transcript(Method::PUT, WEB, app_body("nginx", "v1")).await);
    let made = world.put(WEB, app_body("nginx", "v1")).await;
    let link = made.header("azure-asyncoperation").to_owned();
    assert!(link.contains("/containerappOperationStatuses/"));
    assert_eq!(world.follow(&link).await.json()["status"], "InProgress");
    world.finish(WEB, None).await;
    assert_eq!(world.follow(&link).await.json()["status"], "Succeeded");
    assert_eq!(world.get(WEB).await.json()["properties"]["provisioningState"], "Succeeded");
}

#[tokio::test]
async fn a_failed_operation_says_why() {
    let world = World::with_environment().await;
    let made = world.put(WEB, app_body("nginx", "v1")).await;
    let patched = world.patch(WEB, json!({"tags": {"a": "b"}})).await;
    assert_eq!((made.status, patched.status), (201, 202));
    world.finish(WEB, Some(("ContainerAppOperationError", "Failed to pull 'nginx'."))).await;
    let status = world.follow(made.header("azure-asyncoperation")).await;
    assert_eq!((status.status, &status.json()["status"]), (200, &json!("Failed")));
    assert_eq!(
        status.json()["error"],
        json!({"code": "ContainerAppOperationError", "message": "Failed to pull 'nginx'."})
    );
    let results = world.follow(patched.header("location")).await;
    assert_eq!((results.status, results.code()), (409, "ContainerAppOperationError".into()));
    let app = world.get(WEB).await.json();
    assert_eq!(app["properties"]["provisioningState"], "Failed");
    assert!(app["properties"]["deploymentErrors"].as_str().unwrap().contains("nginx"));
}

#[tokio::test]
async fn only_a_changed_template_makes_a_revision() {
    let world = World::with_environment().await;
    world.put(WEB, app_body("nginx", "v1")).await;
    // the same template, new configuration
    let mut body = app_body("nginx", "v1");
    body["properties"]["configuration"]["ingress"]["targetPort"] = json!("9090");
    assert_eq!(world.put(WEB, body).await.status, 201);
    assert_eq!(revision_names(&world).await, ["web--v1"]);
    // a new image without a suffix: the server chooses one
    let patch = json!({"properties": {"template": {"revisionSuffix": null, "containers": [{
        "name": "web", "image": "nginx:2", "env": null, "resources": {"cpu": "0.25", "memory": "0.5Gi"}}]}}});
    assert_eq!(world.patch(WEB, patch).await.status, 202);
    let names = revision_names(&world).await;
    assert_eq!(names.len(), 2);
    assert_eq!(names[1].len(), "web--".len() + 7);
    let app = world.get(WEB).await.json();
    assert_eq!(app["properties"]["latestRevisionName"], names[1].as_str());
    assert_eq!(app["properties"]["latestReadyRevisionName"], "", "nothing has been ready yet");
    assert_eq!(app["properties"]["configuration"]["ingress"]["targetPort"], 9090, "a patch keeps the rest");
    // a suffix may be used once
    let taken = world.put(WEB, app_body("nginx:3", "v1")).await;
    assert_eq!((taken.status, taken.code()), (409, "RevisionWithSuffixExists".into()));
}

#[tokio::test]
async fn get_edit_and_put_back_changes_only_what_was_edited() {
    let world = World::with_environment().await;
    let mut body = app_body("nginx", "v1");
    body["properties"]["configuration"]["secrets"] =
        json!([{"name": "a", "value": "hush", "keyVaultUrl": "", "identity": ""}]);
    assert_eq!(world.put(WEB, body).await.status, 201);
    let shown = world.get(WEB).await;
    assert!(!shown.text.contains("hush") && !shown.text.contains("null"), "{}", shown.text);
    let mut whole = shown.json();
    // `az containerapp secret set`: the whole document with a new secret, the known one without its value
    whole["properties"]["configuration"]["secrets"] = json!([{"name": "a"}, {"name": "b", "value": "new"}]);
    assert_eq!(world.put(WEB, whole.clone()).await.status, 201);
    assert_eq!(revision_names(&world).await, ["web--v1"]);
    let secrets = world.post(&format!("{WEB}/listSecrets")).await;
    assert_eq!(secrets.json(), json!({"value": [{"name": "a", "value": "hush"}, {"name": "b", "value": "new"}]}));
    let again = world.get(WEB).await.json();
    assert_eq!(again["properties"]["configuration"]["secrets"], json!([{"name": "a"}, {"name": "b"}]));
    assert_eq!(again["properties"]["template"], shown.json()["properties"]["template"]);
    // a name without any value is refused, and the answer says which
    whole["properties"]["configuration"]["secrets"] = json!([{"name": "c"}]);
    let refused = world.put(WEB, whole).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text.contains("'c'"), "{}", refused.text);
}

#[tokio::test]
async fn names_and_enums_come_in_any_case_and_null_is_absent() {
    let world = World::with_environment().await;
    let body = json!({
        "Location": "EASTUS", "tags": null, "identity": null, "unknownProperty": {"a": null},
        "properties": {
            "managedEnvironmentId": format!("{}/providers/microsoft.app/managedenvironments/ENV", RG.to_lowercase()),
            "Configuration": {"activeRevisionsMode": "single", "secrets": null, "registries": null,
                "Ingress": {"external": "true", "TargetPort": "8080", "transport": "HTTP", "traffic": null, "fqdn": null}},
            "template": {"revisionSuffix": null, "initContainers": null, "volumes": null,
                "containers": [{"Image": "nginx", "name": "web", "command": null, "probes": [{"type": "liveness", "tcpSocket": {"port": 8080}}],
                    "resources": {"cpu": "0.5", "memory": "1Gi"}, "volumeMounts": null}],
                "scale": {"minReplicas": "0", "maxReplicas": "7", "rules": [{"name": "r", "azureQueue": null, "custom": null, "tcp": null,
                    "http": {"metadata": {"concurrentRequests": 10}, "auth": []}}]}},
        },
    });
    let made = world.put(&WEB.to_lowercase().replace("resourcegroups", "resourceGroups"), body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let app = made.json();
    assert_eq!(app["id"], WEB, "the id has the group's own case");
    assert_eq!(app["location"], "East US");
    let properties = &app["properties"];
    assert_eq!(properties["environmentId"], properties["managedEnvironmentId"]);
    assert_eq!(properties["configuration"]["activeRevisionsMode"], "Single");
    assert_eq!(properties["configuration"]["ingress"]["transport"], "Http");
    assert_eq!(properties["template"]["containers"][0]["probes"][0]["type"], "Liveness");
    assert_eq!(properties["template"]["scale"]["maxReplicas"], 7);
    assert_eq!(properties["template"]["scale"]["rules"][0]["http"]["metadata"]["concurrentRequests"], "10");
    assert!(!made.text.contains("null"));
    let path =
        format!("//subscriptions{}/", &WEB["/subscriptions".len()..].replace("resourceGroups", "RESOURCEGROUPS"));
    assert_eq!(world.get(&path).await.status, 200);
}

#[tokio::test]
async fn all_problems_of_a_body_are_told_at_once() {
    let world = World::with_environment().await;
    let mut body = app_body("", "v1");
    body["location"] = json!("atlantis");
    body["properties"]["template"]["scale"] = json!({"minReplicas": 5, "maxReplicas": 2});
    body["properties"]["template"]["containers"][0]["resources"] = json!({"cpu": 0.25, "memory": "8Gi"});
    let refused = world.put(WEB, body).await;
    assert_eq!((refused.status, refused.code()), (400, "InvalidRequestParameterWithDetails".into()));
    let targets: BTreeSet<String> = refused.json()["error"]["details"]
        .as_array()
        .unwrap()
        .iter()
        .map(|detail| detail["target"].as_str().unwrap_or("").to_owned())
        .collect();
    assert!(targets.len() >= 4, "{targets:?}");
    assert_eq!(world.get(WEB).await.code(), "ResourceNotFound", "nothing was written");
}

#[tokio::test]
async fn a_body_that_is_not_an_object_is_refused() {
    let world = World::with_environment().await;
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    let cases = ["", "null", "[]", "7", "{", "{\"location\": }", "{\"properties\": \"x\"}", &deep, "\u{0}"];
    for body in cases {
        let refused = world.ask(Method::PUT, WEB, body.to_owned()).await;
        assert_eq!(refused.status, 400, "{body}: {}", refused.text);
        assert!(!refused.code().is_empty() && !refused.json()["error"]["message"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn what_an_app_names_must_exist() {
    let world = World::with_environment().await;
    let other = WEB.replace("MyRG", "Nope");
    assert_eq!(world.put(&other, app_body("nginx", "v1")).await.code(), "ResourceGroupNotFound");
    let mut body = app_body("nginx", "v1");
    body["properties"]["environmentId"] = json!(format!("{RG}/providers/Microsoft.App/managedEnvironments/nope"));
    assert_eq!(world.put(WEB, body).await.code(), "ManagedEnvironmentNotFound");
    let mut body = app_body("nginx", "v1");
    body["properties"]["workloadProfileName"] = json!("gpu");
    let refused = world.put(WEB, body).await;
    assert_eq!(refused.code(), "InvalidWorkloadProfileName", "{}", refused.text);
    let mut body = app_body("nginx", "v1");
    body["properties"]["configuration"]["activeRevisionsMode"] = json!("multiple");
    body["properties"]["configuration"]["ingress"]["traffic"] = json!([{"revisionName": "web--nope", "weight": 100}]);
    assert_eq!(world.put(WEB, body).await.code(), "ContainerAppInvalidTrafficRevision");
    assert_eq!(world.patch(WEB, json!({})).await.code(), "ResourceNotFound");
}

#[tokio::test]
async fn one_name_per_environment() {
    let world = World::with_environment().await;
    world.put(WEB, app_body("nginx", "v1")).await;
    world.put(&RG.replace("MyRG", "Other"), json!({"location": "eastus"})).await;
    let taken = world.put(&WEB.replace("MyRG", "Other"), app_body("nginx", "v1")).await;
    assert_eq!((taken.status, taken.code()), (409, "ContainerAppNameInUse".into()));
}

#[tokio::test]
async fn etags_guard_against_lost_updates() {
    let world = World::with_environment().await;
    let made = world.put(WEB, app_body("nginx", "v1")).await;
    let etag = made.header("etag").to_owned();
    let send = |name: &'static str, value: String| {
        let body = app_body("nginx", "v1").to_string();
        let request = Request::put(format!("{WEB}{V}")).header("host", "localhost").header(name, value);
        world.send(request.body(body.into()).unwrap())
    };
    assert_eq!(send("if-match", "\"other\"".into()).await.code(), "PreconditionFailed");
    assert_eq!(send("if-none-match", "*".into()).await.status, 412);
    assert_eq!(send("if-match", etag.clone()).await.status, 201);
    assert_eq!(send("if-match", etag).await.status, 412, "the write before changed it");
}

#[tokio::test]
async fn many_writers_lose_nothing() {
    let world = World::with_environment().await;
    world.put(WEB, app_body("nginx", "v1")).await;
    let writes = (0..20).map(|index| {
        let tag = format!("t{index}");
        let world = &world;
        async move { world.patch(WEB, json!({"tags": {tag: "x"}})).await.status }
    });
    let statuses = futures_util::future::join_all(writes).await;
    let accepted = statuses.iter().filter(|status| **status == 202).count();
    assert!(statuses.iter().all(|status| [202, 409].contains(status)), "{statuses:?}");
    let tags = world.get(WEB).await.json()["tags"].as_object().unwrap().len();
    assert_eq!(tags, accepted, "every accepted write is there, no refused one");
}

#[tokio::test]
async fn verbs_of_revisions_answer_json() {
    let world = World::with_environment().await;
    world.put(WEB, app_body("nginx", "v1")).await;
    let verb = |verb: &str| format!("{WEB}/revisions/web--v1/{verb}");
    let answered = world.post(&verb("restart")).await;
    assert_eq!((answered.status, answered.json()), (200, json!("Success")));
    let id = ResourceId::parse(WEB).unwrap();
    assert_eq!(world.store.revision(&id, "web--v1").unwrap().unwrap().revision.restart_generation, 1);
    assert_eq!(world.post(&verb("deactivate")).await.json(), json!("Success"));
    assert_eq!(world.get(&format!("{WEB}/revisions/web--v1")).await.json()["properties"]["active"], false);
    assert_eq!(world.post(&verb("restart")).await.code(), "ContainerAppRevisionNotActive");
    assert_eq!(world.post(&verb("activate")).await.status, 200);
    assert_eq!(world.post(&format!("{WEB}/revisions/web--x/activate")).await.code(), "ContainerAppRevisionNotFound");
    assert_eq!(
        world
            .get(&format!("{WEB}/revisions?$filter=properties/active%20eq%20false&api-version=2025-07-01"))
            .await
            .json()["value"],
        json!([])
    );
}

#[tokio::test]
async fn stop_and_start_are_operations() {
    let world = World::with_environment().await;
    world.put(WEB, app_body("nginx", "v1")).await;
    world.finish(WEB, None).await;
    let stopped = world.post(&format!("{WEB}/stop")).await;
    assert_eq!(stopped.status, 202);
    assert_eq!(world.follow(stopped.header("location")).await.status, 202);
    world.finish(WEB, None).await;
    let done = world.follow(stopped.header("location")).await;
    assert_eq!((done.status, &done.json()["properties"]["runningStatus"]), (200, &json!("Stopped")));
    // a write does not start it by the way
    world.patch(WEB, json!({"tags": {"a": "b"}})).await;
    assert_eq!(world.get(WEB).await.json()["properties"]["runningStatus"], "Stopped");
    assert_eq!(world.post(&format!("{WEB}/start")).await.json()["properties"]["runningStatus"], "Progressing");
}

#[tokio::test]
async fn a_deleted_app_is_gone_when_the_controller_removed_it() {
    let world = World::with_environment().await;
    world.put(WEB, app_body("nginx", "v1")).await;
    let deleted = world.delete(WEB).await;
    assert_eq!((deleted.status, deleted.text.as_str()), (202, ""));
    let link = deleted.header("location").to_owned();
    assert!(link.contains("containerappOperationResults"));
    assert_eq!(world.follow(&link).await.status, 202);
    assert_eq!(world.put(WEB, app_body("nginx", "v2")).await.code(), "ContainerAppOperationInProgress");
    let id = ResourceId::parse(WEB).unwrap();
    assert!(world.store.remove(id, NOW.parse().unwrap()).await.unwrap());
    assert_eq!(world.follow(&link).await.status, 204);
    assert_eq!(world.delete(WEB).await.status, 204);
    let id = link.rsplit('/').next().unwrap().split('?').next().unwrap();
    assert_eq!(world.store.operation(id).unwrap().unwrap().status, OperationStatus::Succeeded);
}

#[tokio::test]
async fn replicas_are_shown_and_slots_are_not() {
    let world = World::with_environment().await;
    world.put(WEB, app_body("nginx", "v1")).await;
    let id = ResourceId::parse(WEB).unwrap();
    let key = world.store.revision(&id, "web--v1").unwrap().unwrap().revision.key();
    let replica = |name: &str, phase| ReplicaObservation {
        name: ReplicaName::new(name).unwrap(),
        revision: key.clone(),
        restart_generation: 0,
        phase,
        is_ready: true,
        address: None,
        containers: vec![ContainerObservation {
            name: "web".into(),
            is_init: false,
            state: ContainerState::Running { since: NOW.parse().unwrap() },
            is_ready: true,
            is_started: true,
            restarts: 0,
            last_exit: None,
        }],
        created_at: NOW.parse().unwrap(),
        started_at: Some(NOW.parse().unwrap()),
        ready_at: None,
    };
    let seen = vec![replica("web--v1-a", ReplicaPhase::Running), replica("web--v1-b", ReplicaPhase::Prepared)];
    world.store.set_replicas(key.clone(), seen).await.unwrap();
    let status = RevisionStatus {
        provisioning: RevisionProvisioning::Provisioned,
        ready_at: Some(NOW.parse().unwrap()),
        replicas: 1,
        ..RevisionStatus::default()
    };
    world.store.set_revision_statuses(vec![(key, status)]).await.unwrap();
    world.finish(WEB, None).await;
    let path = format!("{WEB}/revisions/web--v1/replicas");
    let list = world.get(&path).await.json();
    assert_eq!(list["value"].as_array().unwrap().len(), 1);
    let one = world.get(&format!("{path}/web--v1-a/")).await.json();
    let endpoint = one["properties"]["containers"][0]["logStreamEndpoint"].as_str().unwrap();
    assert!(endpoint.starts_with("https://localhost:8443/subscriptions/"), "{endpoint}");
    assert_eq!(world.get(&format!("{path}/web--v1-b")).await.code(), "ContainerAppReplicaNotFound");
    let app = world.get(WEB).await.json();
    assert_eq!(app["properties"]["latestReadyRevisionName"], "web--v1");
    assert_eq!(app["properties"]["runningStatus"], "Running");
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let world = World::with_environment().await;
    for index in 0..205 {
        let path = WEB.replace("/web", &format!("/app{index:03}"));
        assert_eq!(world.put(&path, app_body("nginx", "v1")).await.status, 201);
    }
    let mut names = Vec::new();
    let mut page = world.get(&format!("{RG}/providers/Microsoft.App/containerApps")).await.json();
    loop {
        names.extend(page["value"].as_array().unwrap().iter().map(|app| app["name"].as_str().unwrap().to_owned()));
        let Value::String(next) = &page["nextLink"] else { break };
        page = world.follow(next).await.json();
    }
    assert_eq!(names.len(), 205);
    assert!(names.is_sorted());
    assert_eq!(RevisionName::of("app000", "v1").unwrap().as_str(), "app000--v1");
}
