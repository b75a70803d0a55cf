//! What-if is exact: twice the same is no change, and a change is that change.

use serde_json::{Value, json};

use super::{DEPLOYMENTS, app, body, check, controller, template};
use crate::tests::harness::World;
use expect_test::expect;

async fn preview(world: &World, template: &Value) -> Value {
    let answered = world.post_json(&format!("{DEPLOYMENTS}/d/whatIf"), &body(template)).await;
    assert_eq!(answered.status, 200, "{}", answered.text);
    answered.json()["properties"]["changes"].clone()
}

fn kinds(changes: &Value) -> Vec<String> {
    let shown = |change: &Value| {
        let id = change["resourceId"].as_str().unwrap();
        format!("{} {}", change["changeType"].as_str().unwrap(), id.rsplit('/').next().unwrap())
    };
    changes.as_array().unwrap().iter().map(shown).collect()
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "expected texts are long")]
async fn a_template_deployed_twice_changes_nothing_and_a_change_is_told_exactly() {
    let world = World::with_environment().await;
    let controller = controller(&world.store);
    let mut web = app("web");
    web["properties"]["configuration"]["secrets"] = json!([{ "name": "key", "value": "one" }]);
    let first = template(json!([web, app("worker")]));
    assert_eq!(kinds(&preview(&world, &first).await), ["Create web", "Create worker", "Ignore env"]);
    assert_eq!(world.deploy(&format!("{DEPLOYMENTS}/d"), &body(&first)).await["status"], "Succeeded");
    assert_eq!(kinds(&preview(&world, &first).await), ["NoChange web", "NoChange worker", "Ignore env"]);
    let mut second = first.clone();
    second["resources"][0]["properties"]["template"]["containers"][0]["image"] = json!("nginx:2");
    second["resources"][0]["properties"]["template"]["revisionSuffix"] = json!("v2");
    second["resources"][0]["properties"]["template"]["containers"][0]["env"] = json!([{ "name": "A", "value": "1" }]);
    second["resources"][0]["properties"]["configuration"]["secrets"][0]["value"] = json!("two");
    let changes = preview(&world, &second).await;
    assert_eq!(kinds(&changes), ["Modify web", "NoChange worker", "Ignore env"]);
    check(
        &changes[0]["delta"],
        &expect![[r#"
            [
              {
                "children": [
                  {
                    "after": {
                      "env": [
                        {
                          "name": "A",
                          "value": "1"
                        }
                      ],
                      "image": "nginx:2",
                      "imageType": "ContainerImage",
                      "name": "web",
                      "resources": {
                        "cpu": 0.25,
                        "ephemeralStorage": "1Gi",
                        "memory": "0.5Gi"
                      }
                    },
                    "before": {
                      "image": "nginx:1",
                      "imageType": "ContainerImage",
                      "name": "web",
                      "resources": {
                        "cpu": 0.25,
                        "ephemeralStorage": "1Gi",
                        "memory": "0.5Gi"
                      }
                    },
                    "children": [
                      {
                        "after": "nginx:2",
                        "before": "nginx:1",
                        "path": "image",
                        "propertyChangeType": "Modify"
                      },
                      {
                        "after": [
                          {
                            "name": "A",
                            "value": "1"
                          }
                        ],
                        "before": null,
                        "path": "env",
                        "propertyChangeType": "Create"
                      }
                    ],
                    "path": "0",
                    "propertyChangeType": "Modify"
                  }
                ],
                "path": "properties.template.containers",
                "propertyChangeType": "Array"
              },
              {
                "after": "v2",
                "before": "v1",
                "path": "properties.template.revisionSuffix",
                "propertyChangeType": "Modify"
              },
              {
                "after": "(another secret)",
                "before": "(a secret)",
                "path": "secrets.key.value",
                "propertyChangeType": "Modify"
              }
            ]
        "#]],
    );
    controller.abort();
}
