//! Bad input: everything wrong is told at once, with its place, and nothing is changed.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::{DEPLOYMENTS, app, body, controller, template};
use crate::tests::harness::{RG, World};

/// The answers of `validate` and PUT to one body: they agree.
async fn check(world: &World, request: &Value, expected: &Expect) {
    let path = format!("{DEPLOYMENTS}/bad");
    let (put, valid) =
        (world.put(&path, request.clone()).await, world.post_json(&format!("{path}/validate"), request).await);
    let shown = |answered: &crate::tests::harness::Answered| {
        let text = serde_json::to_string_pretty(&answered.json()).unwrap();
        let tracking = text.find("tracking id is '").map(|at| at + "tracking id is '".len());
        let text = tracking.map_or_else(|| text.clone(), |at| format!("{}…{}", &text[..at], &text[at + 36..]));
        format!("{}\n{text}\n", answered.status)
    };
    assert_eq!(shown(&put), shown(&valid));
    expected.assert_eq(&shown(&put));
    assert_eq!(world.get(&path).await.code(), "DeploymentNotFound");
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "expected texts are long")]
async fn envelopes_parameters_and_templates() {
    let world = World::with_environment().await;
    check(&world, &json!({ "properties": { "template": {}, "templateLink": { "uri": "https://x" } } }), &expect![[r#"
        400
        {
          "error": {
            "code": "InvalidRequestParameterWithDetails",
            "details": [
              {
                "code": "NotImplemented",
                "message": "Templates by link: not implemented yet; put the template itself into 'properties.template'.",
                "target": "properties.templateLink"
              },
              {
                "code": "InvalidParameterValue",
                "message": "The deployment mode is required; expected Incremental or Complete.",
                "target": "properties.mode"
              }
            ],
            "message": "2 problems. properties.templateLink: Templates by link: not implemented yet; put the template itself into 'properties.template'. properties.mode: The deployment mode is required; expected Incremental or Complete."
          }
        }
    "#]]).await;
    check(
        &world,
        &json!({}),
        &expect![[r#"
        400
        {
          "error": {
            "code": "InvalidRequestContent",
            "message": "The deployment has no 'properties'; a JSON object with 'mode' and 'template' is expected."
          }
        }
    "#]],
    )
    .await;
    let mut cyclic = template(json!([app("aa"), app("bb")]));
    cyclic["resources"][0]["dependsOn"] = json!(["bb"]);
    cyclic["resources"][1]["dependsOn"] = json!(["aa"]);
    check(
        &world,
        &body(&cyclic),
        &expect![[r#"
            400
            {
              "error": {
                "code": "CircularDependency",
                "message": "At 'resources[0]' (line 1, column 197): circular dependency detected on resource '/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/containerApps/aa': aa -> bb -> aa",
                "target": "resources[0]"
              }
            }
        "#]],
    )
    .await;
    let mut missing = template(json!([]));
    missing["parameters"] = json!({ "a": { "type": "string" }, "b": { "type": "int" } });
    let mut request = body(&missing);
    request["properties"]["parameters"] = json!({ "b": { "value": "x" }, "c": { "value": 1 } });
    check(
        &world,
        &request,
        &expect![[r#"
            400
            {
              "error": {
                "code": "InvalidTemplate",
                "details": [
                  {
                    "code": "InvalidTemplate",
                    "message": "At 'parameters.c' (line 1, column 230): the template parameter 'c' is not valid; it is not present in the template. The only supported parameters for this template are 'a, b'",
                    "target": "parameters.c"
                  },
                  {
                    "code": "InvalidTemplate",
                    "message": "At 'parameters.a' (line 1, column 235): the value for the template parameter 'a' is not provided, and it has no default",
                    "target": "parameters.a"
                  },
                  {
                    "code": "InvalidTemplate",
                    "message": "At 'parameters.b' (line 1, column 257): the provided value for the template parameter 'b' must be an integer; a string is given",
                    "target": "parameters.b"
                  }
                ],
                "message": "The template has 3 mistakes. At 'parameters.c' (line 1, column 230): the template parameter 'c' is not valid; it is not present in the template. The only supported parameters for this template are 'a, b'. At 'parameters.a' (line 1, column 235): the value for the template parameter 'a' is not provided, and it has no default. At 'parameters.b' (line 1, column 257): the provided value for the template parameter 'b' must be an integer; a string is given."
              }
            }
        "#]],
    )
    .await;
}

#[tokio::test]
async fn every_resource_is_checked_before_anything_is_written() {
    let world = World::with_environment().await;
    let mut resources = json!([app("good"), app("aa"), app("bb"), { "type": "Microsoft.Nothing/things", "apiVersion": "2020-01-01", "name": "x" }]);
    resources[1]["properties"]["template"]["containers"][0]["resources"] = json!({ "cpu": 9, "memory": "1Gi" });
    resources[2]["properties"]["environmentId"] = json!("[resourceId('Microsoft.App/managedEnvironments', 'none')]");
    check(&world, &body(&template(resources)), &expect![[r#"
        400
        {
          "error": {
            "code": "InvalidTemplateDeployment",
            "details": [
              {
                "code": "ContainerAppInvalidResourceTotal",
                "message": "At 'resources[1].properties.template.containers': The total requested CPU and memory resources for this application (CPU: 9, memory: 1Gi) is invalid. Total CPU and memory for all containers defined in a Container App must add up to one of the following CPU - Memory combinations: [cpu: 0.25, memory: 0.5Gi]; [cpu: 0.5, memory: 1Gi]; [cpu: 0.75, memory: 1.5Gi]; [cpu: 1, memory: 2Gi]; [cpu: 1.25, memory: 2.5Gi]; [cpu: 1.5, memory: 3Gi]; [cpu: 1.75, memory: 3.5Gi]; [cpu: 2, memory: 4Gi]; [cpu: 2.25, memory: 4.5Gi]; [cpu: 2.5, memory: 5Gi]; [cpu: 2.75, memory: 5.5Gi]; [cpu: 3, memory: 6Gi]; [cpu: 3.25, memory: 6.5Gi]; [cpu: 3.5, memory: 7Gi]; [cpu: 3.75, memory: 7.5Gi]; [cpu: 4, memory: 8Gi].",
                "target": "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/containerApps/aa"
              },
              {
                "code": "ManagedEnvironmentNotFound",
                "message": "At 'resources[2].properties.environmentId': The managed environment '/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/none' does not exist; create it first or correct `environmentId`.",
                "target": "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/containerApps/bb"
              },
              {
                "code": "InvalidResourceNamespace",
                "message": "At 'resources[3]': The resource namespace 'Microsoft.Nothing' is invalid.",
                "target": "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.Nothing/things/x"
              }
            ],
            "message": "The template deployment 'bad' is not valid according to the validation procedure. The tracking id is '…'. Nothing was changed. At 'resources[1].properties.template.containers': The total requested CPU and memory resources for this application (CPU: 9, memory: 1Gi) is invalid. Total CPU and memory for all containers defined in a Container App must add up to one of the following CPU - Memory combinations: [cpu: 0.25, memory: 0.5Gi]; [cpu: 0.5, memory: 1Gi]; [cpu: 0.75, memory: 1.5Gi]; [cpu: 1, memory: 2Gi]; [cpu: 1.25, memory: 2.5Gi]; [cpu: 1.5, memory: 3Gi]; [cpu: 1.75, memory: 3.5Gi]; [cpu: 2, memory: 4Gi]; [cpu: 2.25, memory: 4.5Gi]; [cpu: 2.5, memory: 5Gi]; [cpu: 2.75, memory: 5.5Gi]; [cpu: 3, memory: 6Gi]; [cpu: 3.25, memory: 6.5Gi]; [cpu: 3.5, memory: 7Gi]; [cpu: 3.75, memory: 7.5Gi]; [cpu: 4, memory: 8Gi]. At 'resources[2].properties.environmentId': The managed environment '/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/none' does not exist; create it first or correct `environmentId`. At 'resources[3]': The resource namespace 'Microsoft.Nothing' is invalid."
          }
        }
    "#]]).await;
    let list = world.get(&format!("{RG}/providers/Microsoft.App/containerApps")).await.json();
    assert_eq!(list["value"], json!([]), "nothing half done");
}

#[tokio::test]
async fn names_and_sizes() {
    let world = World::with_environment().await;
    let path = format!("{DEPLOYMENTS}/{}", "x".repeat(65));
    assert_eq!(world.put(&path, body(&template(json!([])))).await.code(), "DeploymentNameLengthLimitExceeded");
    assert_eq!(
        world.put(&format!("{DEPLOYMENTS}/a%20b"), body(&template(json!([])))).await.code(),
        "InvalidDeploymentName"
    );
    let long =
        format!("{{\"properties\":{{\"mode\":\"Incremental\",template:{{/*{}*/}}}}}}", "x".repeat(4 * 1024 * 1024));
    assert_eq!(world.ask(http::Method::PUT, &format!("{DEPLOYMENTS}/d"), long).await.status, 413);
    let mut many = template(json!([app("[concat('app', copyIndex())]")]));
    many["resources"][0]["copy"] = json!({ "name": "all", "count": 801 });
    let refused = world.put(&format!("{DEPLOYMENTS}/d"), body(&many)).await;
    assert_eq!(refused.status, 400, "{}", refused.text);
    let gone = format!("{RG}x/providers/Microsoft.Resources/deployments/d");
    assert_eq!(world.put(&gone, body(&template(json!([])))).await.code(), "ResourceGroupNotFound");
}

#[tokio::test]
async fn eight_hundred_resources() {
    let world = World::with_environment().await;
    let controller = controller(&world.store);
    let mut many = template(json!([app("[concat('app', copyIndex())]")]));
    many["resources"][0]["copy"] = json!({ "name": "all", "count": 799 });
    many["resources"].as_array_mut().unwrap().push({
        let mut last = app("last");
        last["dependsOn"] = json!(["all"]);
        last
    });
    let ended = world.deploy(&format!("{DEPLOYMENTS}/many"), &body(&many)).await;
    assert_eq!(ended["status"], "Succeeded", "{ended}");
    let shown = world.get(&format!("{DEPLOYMENTS}/many")).await.json();
    assert_eq!(shown["properties"]["outputResources"].as_array().unwrap().len(), 800);
    controller.abort();
}
