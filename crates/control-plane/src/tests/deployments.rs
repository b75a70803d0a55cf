//! Deployments against the real store and handlers; a task ends the apps' operations as the controller does.

use std::time::Duration;

use cove_model::ResourceId;
use cove_store::{Failure, Provisioning, Store};
use expect_test::{Expect, expect};
use http::Method;
use serde_json::{Value, json};

use super::harness::{Answered, RG, SUB, World, app_body};

mod bad;
mod examples;
mod what_if;

pub(super) const DEPLOYMENTS: &str =
    "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.Resources/deployments";
const SCHEMA: &str = "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#";

/// Ends what apps begin, as the controller does; apps named `bad…` fail.
pub(super) fn controller(store: &Store) -> tokio::task::JoinHandle<()> {
    let store = store.clone();
    tokio::spawn(async move {
        let mut changes = store.changes();
        loop {
            for id in changes.next().await {
                let Some(row) = store.resource(&id).unwrap().filter(|row| row.kind == "microsoft.app/containerapps")
                else {
                    continue;
                };
                let now = row.updated_at;
                match row.provisioning {
                    Provisioning::InProgress if id.name().starts_with("never") => {}
                    Provisioning::InProgress => {
                        let failure = id.name().starts_with("bad").then(|| Failure {
                            code: "ContainerAppOperationError".into(),
                            message: "Failed to pull the image.".into(),
                        });
                        store.finish(id, row.generation, failure, now).await.unwrap();
                    }
                    Provisioning::Deleting => drop(store.remove(id, now).await.unwrap()),
                    Provisioning::Succeeded | Provisioning::Failed | Provisioning::Canceled => {}
                }
            }
        }
    })
}

pub(super) fn app(name: &str) -> Value {
    let mut body = app_body("nginx:1", "v1");
    body["type"] = json!("Microsoft.App/containerApps");
    body["apiVersion"] = json!("2025-07-01");
    body["name"] = json!(name);
    body
}

pub(super) fn template(resources: Value) -> Value {
    json!({ "$schema": SCHEMA, "contentVersion": "1.0.0.0", "resources": resources })
}

pub(super) fn body(template: &Value) -> Value {
    json!({ "properties": { "mode": "Incremental", "template": template, "parameters": {} } })
}

impl World {
    /// Begins a deployment and follows its operation to the end; the answer is the ended operation.
    pub(super) async fn deploy(&self, path: &str, body: &Value) -> Value {
        let begun = self.put(path, body.clone()).await;
        assert!([200, 201].contains(&begun.status), "{}", begun.text);
        self.ended(begun.header("azure-asyncoperation")).await
    }

    pub(super) async fn ended(&self, link: &str) -> Value {
        let mut changes = self.store.changes();
        let wait = async {
            loop {
                let answered = self.follow(link).await.json();
                if answered["status"] != "Running" {
                    return answered;
                }
                changes.next().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(240), wait).await.expect("the deployment ends")
    }

    pub(super) async fn post_json(&self, path: &str, body: &Value) -> Answered {
        self.ask(Method::POST, path, body.to_string()).await
    }

    /// Waits until a resource is there, or is not.
    async fn until(&self, path: &str, exists: bool) {
        let mut changes = self.store.changes();
        let wait = async {
            while self.exists(path) != exists {
                changes.next().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("{path}: not {exists}"));
    }

    fn exists(&self, path: &str) -> bool {
        self.store.resource(&ResourceId::parse(path).unwrap()).unwrap().is_some()
    }
}

fn check(value: &Value, expected: &Expect) {
    expected.assert_eq(&format!("{}\n", serde_json::to_string_pretty(value).unwrap()));
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "expected texts are long")]
async fn a_template_makes_its_resources_and_shows_outputs() {
    let world = World::with_environment().await;
    let controller = controller(&world.store);
    let mut two = template(json!([app("web"), app("api")]));
    two["parameters"] =
        json!({ "word": { "type": "string", "defaultValue": "hello" }, "key": { "type": "securestring" } });
    two["resources"][1]["dependsOn"] = json!(["[resourceId('Microsoft.App/containerApps', 'web')]"]);
    two["outputs"] = json!({
        "host": { "type": "string", "value": "[reference('web').configuration.ingress.fqdn]" },
        "said": { "type": "string", "value": "[concat(parameters('word'), '!')]" },
    });
    two["resources"][0]["properties"]["configuration"]["secrets"] =
        json!([{ "name": "key", "value": "[parameters('key')]" }]);
    let mut request = body(&two);
    request["properties"]["parameters"] = json!({ "key": { "value": "very-secret" } });
    let path = format!("{DEPLOYMENTS}/first");
    let valid = world.post_json(&format!("{path}/validate"), &request).await;
    assert_eq!(valid.status, 200, "{}", valid.text);
    assert!(!world.exists(&format!("{RG}/providers/Microsoft.App/containerApps/web")), "validate changes nothing");
    let ended = world.deploy(&path, &request).await;
    assert_eq!(ended["status"], "Succeeded", "{ended}");
    let shown = world.get(&path).await;
    assert!(!shown.text.contains("very-secret"));
    let properties = &shown.json()["properties"];
    check(
        &json!([
            properties["provisioningState"],
            properties["parameters"],
            properties["outputs"],
            properties["outputResources"]
        ]),
        &expect![[r#"
            [
              "Succeeded",
              {
                "key": {
                  "type": "SecureString"
                },
                "word": {
                  "type": "String",
                  "value": "hello"
                }
              },
              {
                "host": {
                  "type": "String",
                  "value": "web.env.localhost"
                },
                "said": {
                  "type": "String",
                  "value": "hello!"
                }
              },
              [
                {
                  "id": "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/containerApps/web"
                },
                {
                  "id": "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/containerApps/api"
                }
              ]
            ]
        "#]],
    );
    let file = std::fs::read(world.directory().join("cove.db")).unwrap();
    let wal = std::fs::read(world.directory().join("cove.db-wal")).unwrap_or_default();
    let needle = b"very-secret";
    assert!(
        ![file, wal].iter().any(|bytes| bytes.windows(needle.len()).any(|part| part == needle)),
        "nothing in clear"
    );
    let operations = world.get(&format!("{RG}/deployments/first/operations")).await.json();
    let states: Vec<String> = operations["value"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let properties = &one["properties"];
            format!(
                "{} {} {} {}",
                properties["provisioningOperation"].as_str().unwrap(),
                properties["targetResource"]["resourceName"].as_str().unwrap_or("-"),
                properties["provisioningState"].as_str().unwrap(),
                properties["statusCode"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        states,
        ["Create web Succeeded Created", "Create api Succeeded Created", "EvaluateDeploymentOutput - Succeeded OK"]
    );
    let exported = world.post(&format!("{path}/exportTemplate")).await.json();
    assert_eq!(exported["template"], two);
    assert_eq!(world.ask(Method::HEAD, &path, "").await.status, 204);
    assert_eq!(world.delete(&path).await.status, 204);
    assert_eq!(world.get(&path).await.code(), "DeploymentNotFound");
    assert!(
        world.exists(&format!("{RG}/providers/Microsoft.App/containerApps/web")),
        "the record goes, resources stay"
    );
    controller.abort();
}

#[tokio::test]
async fn a_failure_names_the_place_and_what_exists() {
    let world = World::with_environment().await;
    let controller = controller(&world.store);
    let mut resources = json!([app("good"), app("bad"), app("after"), app("beside")]);
    resources[2]["dependsOn"] = json!(["bad"]);
    let ended = world.deploy(&format!("{DEPLOYMENTS}/d"), &body(&template(resources))).await;
    check(
        &ended["error"],
        &expect![[r#"
            {
              "code": "DeploymentFailed",
              "details": [
                {
                  "code": "ContainerAppOperationError",
                  "message": "At 'resources[1]': Failed to pull the image.",
                  "target": "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/containerApps/bad"
                }
              ],
              "message": "At least one resource deployment operation failed. Please list deployment operations for details. Deployed: 'good' (Microsoft.App/containerApps), 'beside' (Microsoft.App/containerApps). Not deployed: 'bad' (Microsoft.App/containerApps), 'after' (Microsoft.App/containerApps).",
              "target": "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.Resources/deployments/d"
            }
        "#]],
    );
    let shown = world.get(&format!("{DEPLOYMENTS}/d")).await.json();
    assert_eq!(
        (shown["properties"]["provisioningState"].as_str(), &shown["properties"]["error"]),
        (Some("Failed"), &ended["error"])
    );
    controller.abort();
}

#[tokio::test]
async fn complete_mode_deletes_what_the_template_lacks() {
    let world = World::with_environment().await;
    let controller = controller(&world.store);
    let apps = format!("{RG}/providers/Microsoft.App/containerApps");
    assert_eq!(
        world.deploy(&format!("{DEPLOYMENTS}/one"), &body(&template(json!([app("aa"), app("bb")])))).await["status"],
        "Succeeded"
    );
    let environment = json!({
        "type": "Microsoft.App/managedEnvironments", "apiVersion": "2025-07-01", "name": "env", "location": "eastus", "properties": {},
    });
    let mut request = body(&template(json!([app("bb"), environment])));
    request["properties"]["mode"] = json!("Complete");
    let preview = world.post_json(&format!("{DEPLOYMENTS}/two/whatIf"), &request).await.json();
    let kinds: Vec<&str> = preview["properties"]["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["changeType"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["Delete", "NoChange", "NoChange"], "{preview:#}");
    assert_eq!(world.deploy(&format!("{DEPLOYMENTS}/two"), &request).await["status"], "Succeeded");
    assert_eq!((world.exists(&format!("{apps}/aa")), world.exists(&format!("{apps}/bb"))), (false, true));
    // the environment is in use, and it is what the template lacks
    let mut request = body(&template(json!([])));
    request["properties"]["mode"] = json!("Complete");
    assert_eq!(world.deploy(&format!("{DEPLOYMENTS}/three"), &request).await["status"], "Succeeded");
    assert!(!world.exists(&format!("{RG}/providers/Microsoft.App/managedEnvironments/env")), "apps go first");
    controller.abort();
}

#[tokio::test]
async fn one_deployment_of_a_name_runs_at_a_time_and_can_be_canceled() {
    let world = World::with_environment().await;
    let controller = controller(&world.store);
    let path = format!("{DEPLOYMENTS}/d");
    let mut resources = json!([app("never"), app("after")]);
    resources[1]["dependsOn"] = json!(["never"]);
    let begun = world.put(&path, body(&template(resources.clone()))).await;
    assert_eq!(begun.status, 201, "{}", begun.text);
    assert_eq!(world.get(&path).await.json()["properties"]["provisioningState"], "Running");
    assert_eq!(world.put(&path, body(&template(resources))).await.code(), "DeploymentActive");
    assert_eq!(world.delete(&path).await.code(), "DeploymentActive");
    // another one at the same time
    let beside = world.deploy(&format!("{DEPLOYMENTS}/beside"), &body(&template(json!([app("other")])))).await;
    assert_eq!(beside["status"], "Succeeded");
    assert_eq!(world.post(&format!("{path}/cancel")).await.status, 204);
    let ended = world.ended(begun.header("azure-asyncoperation")).await;
    assert_eq!(
        (ended["status"].as_str(), ended["error"]["code"].as_str()),
        (Some("Canceled"), Some("DeploymentCanceled"))
    );
    assert_eq!(world.post(&format!("{path}/cancel")).await.code(), "DeploymentCannotBeCancelled");
    assert!(!world.exists(&format!("{RG}/providers/Microsoft.App/containerApps/after")));
    controller.abort();
}

#[tokio::test]
async fn a_resource_or_the_group_may_go_while_a_deployment_makes_it() {
    let world = World::with_environment().await;
    let controller = controller(&world.store);
    let path = format!("{DEPLOYMENTS}/d");
    let begun = world.put(&path, body(&template(json!([app("never")])))).await;
    let never = format!("{RG}/providers/Microsoft.App/containerApps/never");
    world.until(&never, true).await;
    assert_eq!(world.delete(&never).await.status, 202);
    let ended = world.ended(begun.header("azure-asyncoperation")).await;
    assert_eq!(ended["error"]["details"][0]["code"], "ResourceDeletedDuringDeployment", "{ended}");
    let _begun = world.put(&path, body(&template(json!([app("never")])))).await;
    world.until(&never, true).await;
    let run = tokio::spawn(world.plane.clone().run());
    assert_eq!(world.delete(RG).await.status, 202);
    world.until(RG, false).await;
    assert!(!world.exists(&path), "the end of a deployment does not bring its group back");
    world.shutdown.cancel();
    run.await.unwrap().unwrap();
    controller.abort();
}

#[tokio::test]
async fn a_stop_of_the_server_ends_a_deployment_as_failed_and_says_what_exists() {
    let world = World::with_environment().await;
    let controller = controller(&world.store);
    let path = format!("{DEPLOYMENTS}/d");
    let mut resources = json!([app("web"), app("never"), app("after")]);
    resources[1]["dependsOn"] = json!(["web"]);
    resources[2]["dependsOn"] = json!(["never"]);
    let begun = world.put(&path, body(&template(resources))).await;
    world.until(&format!("{RG}/providers/Microsoft.App/containerApps/never"), true).await;
    // the next server: the same store, no run
    let next = world.restarted().await;
    crate::deployments::recover(&next.plane).await.unwrap();
    let ended = next.follow(begun.header("azure-asyncoperation")).await.json();
    assert_eq!(ended["status"], "Failed");
    check(
        &ended["error"],
        &expect![[r#"
            {
              "code": "DeploymentInterrupted",
              "message": "The server stopped while the deployment ran. Of its resources exist: 'web' (Microsoft.App/containerApps), 'never' (Microsoft.App/containerApps). Not there yet: 'after' (Microsoft.App/containerApps). It is safe to run the deployment again: resources that are as the template says stay untouched."
            }
        "#]],
    );
    controller.abort();
}

#[tokio::test]
async fn a_group_is_exported_as_a_template_that_changes_nothing() {
    let world = World::with_environment().await;
    let controller = controller(&world.store);
    let ended = world.deploy(&format!("{DEPLOYMENTS}/d"), &body(&template(json!([app("web")])))).await;
    assert_eq!(ended["status"], "Succeeded");
    let options = json!({ "resources": ["*"], "options": "IncludeParameterDefaultValue" });
    let exported = world.post_json(&format!("{RG}/exportTemplate"), &options).await;
    assert_eq!(exported.status, 200, "{}", exported.text);
    let exported = exported.json();
    assert_eq!(
        exported["template"]["resources"][0]["dependsOn"][0],
        "[resourceId('Microsoft.App/managedEnvironments', parameters('managedEnvironments_env_name'))]"
    );
    let preview = world.post_json(&format!("{DEPLOYMENTS}/again/whatIf"), &body(&exported["template"])).await;
    assert_eq!(preview.status, 200, "{}", preview.text);
    let preview = preview.json();
    for change in preview["properties"]["changes"].as_array().unwrap() {
        assert_eq!(change["changeType"], "NoChange", "{change:#}");
    }
    controller.abort();
}

#[tokio::test]
async fn resources_are_listed_by_type_and_group() {
    let world = World::with_environment().await;
    let list = world.get(&format!("{SUB}/resources?$filter=resourceType%20eq%20'Microsoft.App/managedEnvironments'&$expand=provisioningState&api-version=2024-11-01")).await.json();
    assert_eq!(
        (list["value"][0]["name"].as_str(), list["value"][0]["provisioningState"].as_str()),
        (Some("env"), Some("Succeeded"))
    );
    let list = world.get(&format!("{RG}/resources?$filter=name%20eq%20'other'&api-version=2024-11-01")).await.json();
    assert_eq!(list["value"], json!([]));
}
