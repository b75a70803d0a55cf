//! Templates as the Bicep compiler and people write them, expanded.

use expect_test::{Expect, expect};

use super::*;

const HEAD: &str = r#""$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#", "contentVersion": "1.0.0.0""#;

fn check(template: &str, parameters: &Value, expected: &Expect) -> Plan {
    let plan =
        plan(&template.replace("HEAD", HEAD), parameters).unwrap_or_else(|errors| panic!("{}", complaints(&errors)));
    expected.assert_eq(&show(&plan));
    plan
}

/// Answers for what the templates here refer to.
fn answer(need: &Need) -> Result<Value, LookupError> {
    match need {
        Need::Reference { id, .. } if id.ends_with("/deployments/env-module") => {
            Ok(json!({"properties": {"outputs": {"envId": {"value": "/the/env"}}}}))
        }
        Need::Reference { id, .. } if id.contains("managedEnvironments") => Ok(
            json!({"id": id, "location": "eastus", "properties": {"defaultDomain": "x.example", "staticIp": "10.0.0.1"}}),
        ),
        Need::Reference { id, .. } if id.contains("registries") => {
            Ok(json!({"properties": {"loginServer": "images.example"}}))
        }
        Need::Reference { id, .. } if id.contains("workspaces") => Ok(json!({"properties": {"customerId": "c"}})),
        Need::Reference { id, .. } if id.contains("containerApps") => {
            let name = id.rsplit('/').next().unwrap_or_default();
            Ok(
                json!({"id": id, "identity": {"principalId": "p"}, "properties": {"configuration": {"ingress": {"fqdn": format!("{name}.x.example")}}}}),
            )
        }
        Need::List { function, .. } if function == "listKeys" => {
            Ok(json!({"primarySharedKey": "key", "keys": [{"value": "k0"}]}))
        }
        other => Err(LookupError { code: "ResourceNotFound".into(), message: format!("{} was not found", other.id()) }),
    }
}

fn body(plan: &Plan, index: usize) -> String {
    match settle(|known| plan.evaluate_body(index, known), answer) {
        Ok(body) => short(&body.to_string()),
        Err(errors) => complaints(&errors),
    }
}

/// What `bicep build` made of an environment with logs, apps in a loop, and an existing registry.
const BICEP: &str = r##"{
  HEAD,
  "languageVersion": "2.0",
  "metadata": {"_generator": {"name": "bicep", "version": "0.38.33.27573", "templateHash": "1"}},
  "definitions": {
    "appType": {
      "type": "object",
      "properties": {
        "name": {"type": "string", "minLength": 2},
        "image": {"type": "string"},
        "replicas": {"type": "int", "nullable": true, "minValue": 1},
        "kind": {"$ref": "#/definitions/kindType"}
      },
      "additionalProperties": false
    },
    "kindType": {"type": "string", "allowedValues": ["web", "worker"], "nullable": true}
  },
  "functions": [
    {"namespace": "__bicep", "members": {
      "shout": {"parameters": [{"type": "string", "name": "text"}], "output": {"type": "string", "value": "[toUpper(__bicep.mark(parameters('text')))]"}},
      "mark": {"parameters": [{"type": "string", "name": "text"}], "output": {"type": "string", "value": "[format('{0}!', parameters('text'))]"}}
    }}
  ],
  "parameters": {
    "location": {"type": "string", "defaultValue": "[resourceGroup().location]"},
    "apps": {"type": "array", "items": {"$ref": "#/definitions/appType"}},
    "password": {"type": "securestring"},
    "withJob": {"type": "bool", "defaultValue": false}
  },
  "variables": {
    "copy": [{"name": "names", "count": "[length(parameters('apps'))]", "input": "[parameters('apps')[copyIndex('names')].name]"}],
    "suffix": "[uniqueString(resourceGroup().id)]",
    "envName": "[format('env-{0}', variables('suffix'))]"
  },
  "resources": {
    "logs": {
      "type": "Microsoft.OperationalInsights/workspaces", "apiVersion": "2023-09-01", "name": "logs", "location": "[parameters('location')]",
      "properties": {"retentionInDays": 30}
    },
    "env": {
      "type": "Microsoft.App/managedEnvironments", "apiVersion": "2025-02-02-preview", "name": "[variables('envName')]", "location": "[parameters('location')]",
      "properties": {"appLogsConfiguration": {"destination": "log-analytics", "logAnalyticsConfiguration": {
        "customerId": "[reference('logs').customerId]", "sharedKey": "[listKeys('logs', '2023-09-01').primarySharedKey]"}}},
      "dependsOn": ["logs"]
    },
    "storage": {
      "type": "Microsoft.App/managedEnvironments/storages", "apiVersion": "2025-02-02-preview", "name": "[format('{0}/{1}', variables('envName'), 'files')]",
      "properties": {"azureFile": {"accountKey": "[parameters('password')]"}},
      "dependsOn": ["env"]
    },
    "registry": {
      "existing": true, "type": "Microsoft.ContainerRegistry/registries", "apiVersion": "2023-07-01", "resourceGroup": "shared", "subscriptionId": "[subscription().subscriptionId]", "name": "images"
    },
    "app": {
      "copy": {"name": "app", "count": "[length(range(0, length(parameters('apps'))))]", "mode": "serial", "batchSize": 2},
      "type": "Microsoft.App/containerApps", "apiVersion": "2025-02-02-preview", "name": "[variables('names')[copyIndex()]]", "location": "[parameters('location')]",
      "tags": {"[format('tag{0}', copyIndex())]": "[__bicep.shout('x')]", "literal": "[[not an expression]"},
      "properties": {
        "environmentId": "[resourceId('Microsoft.App/managedEnvironments', variables('envName'))]",
        "configuration": {"registries": [{"server": "[reference('registry').loginServer]"}]},
        "template": {
          "containers": [{"name": "main", "image": "[parameters('apps')[copyIndex()].image]",
            "copy": [{"name": "env", "count": 2, "input": {"name": "[format('N{0}-{1}', copyIndex(), copyIndex('env', 1))]"}}]}],
          "scale": {"minReplicas": "[coalesce(tryGet(parameters('apps')[copyIndex()], 'replicas'), 0)]"}
        }
      },
      "dependsOn": ["env", "registry"]
    },
    "job": {
      "condition": "[parameters('withJob')]", "type": "Microsoft.App/jobs", "apiVersion": "2025-01-01", "name": "job", "location": "[parameters('location')]",
      "properties": {}, "dependsOn": ["app"]
    },
    "lock": {
      "type": "Microsoft.Authorization/locks", "apiVersion": "2020-05-01", "name": "keep",
      "scope": "[resourceId('Microsoft.App/managedEnvironments', variables('envName'))]",
      "properties": {"level": "CanNotDelete"}, "dependsOn": ["[format('app[{0}]', 0)]"]
    }
  },
  "outputs": {
    "urls": {"type": "array", "copy": {"count": "[length(parameters('apps'))]", "input": "[reference(format('app[{0}]', copyIndex())).configuration.ingress.fqdn]"}},
    "principals": {"type": "array", "value": "[map(references('app', 'full'), lambda('a', lambdaVariables('a').identity.principalId))]"},
    "secret": {"type": "securestring", "value": "[parameters('password')]"},
    "job": {"condition": "[parameters('withJob')]", "type": "string", "value": "[resourceId('Microsoft.App/jobs', 'job')]"},
    "registryId": {"type": "string", "value": "[resourceInfo('registry').id]"}
  }
}"##;

fn bicep_parameters() -> Value {
    json!({
        "apps": {"value": [
            {"name": "web", "image": "nginx", "replicas": 2, "kind": "web"},
            {"name": "api", "image": "api:1"},
            {"name": "worker", "image": "w"},
        ]},
        "PASSWORD": {"value": "s3cret"},
    })
}

#[test]
fn what_bicep_emits() {
    let plan = check(
        BICEP,
        &bicep_parameters(),
        &expect![[r#"
        0 app[0] ~/Microsoft.App/containerApps/web@2025-02-02-preview in eastus after [3, 7] app[0 of 3]
            needs /sub/resourceGroups/shared/providers/Microsoft.ContainerRegistry/registries/images@2023-07-01
        1 app[1] ~/Microsoft.App/containerApps/api@2025-02-02-preview in eastus after [3, 7] app[1 of 3]
            needs /sub/resourceGroups/shared/providers/Microsoft.ContainerRegistry/registries/images@2023-07-01
        2 app[2] ~/Microsoft.App/containerApps/worker@2025-02-02-preview in eastus after [0, 1, 3, 7] app[2 of 3]
            needs /sub/resourceGroups/shared/providers/Microsoft.ContainerRegistry/registries/images@2023-07-01
        3 env ~/Microsoft.App/managedEnvironments/env-c54hzkwwlnkpg@2025-02-02-preview in eastus after [6]
            needs ~/Microsoft.OperationalInsights/workspaces/logs@2023-09-01
            needs listKeys ~/Microsoft.OperationalInsights/workspaces/logs@2023-09-01 None
        4 job ~/Microsoft.App/jobs/job@2025-01-01 in - after [0, 1, 2] skipped
        5 lock ~/Microsoft.App/managedEnvironments/env-c54hzkwwlnkpg/providers/Microsoft.Authorization/locks/keep@2020-05-01 in - after [0, 3]
            {"properties":{"level":"CanNotDelete"}}
        6 logs ~/Microsoft.OperationalInsights/workspaces/logs@2023-09-01 in eastus after []
            {"location":"eastus","properties":{"retentionInDays":30}}
        7 registry /sub/resourceGroups/shared/providers/Microsoft.ContainerRegistry/registries/images@2023-07-01 in - after [] existing
        8 storage ~/Microsoft.App/managedEnvironments/env-c54hzkwwlnkpg/storages/files@2025-02-02-preview in - after [3]
            {"properties":{"azureFile":{"accountKey":"s3cret"}}}
    "#]],
    );
    expect![[r#"
        {"location":"eastus","properties":{"configuration":{"registries":[{"server":"images.example"}]},"environmentId":"~/Microsoft.App/managedEnvironments/env-c54hzkwwlnkpg","template":{"containers":[{"env":[{"name":"N1-1"},{"name":"N1-2"}],"image":"api:1","name":"main"}],"scale":{"minReplicas":0}}},"tags":{"literal":"[not an expression]","tag1":"X!"}}
        {"location":"eastus","properties":{"appLogsConfiguration":{"destination":"log-analytics","logAnalyticsConfiguration":{"customerId":"c","sharedKey":"key"}}}}
    "#]].assert_eq(&format!("{}\n{}\n", body(&plan, 1), body(&plan, 3)));
    let outputs = settle(|known| plan.evaluate_outputs(known), answer).unwrap();
    expect![[r#"{"principals":{"type":"Array","value":["p","p","p"]},"registryId":{"type":"String","value":"/sub/resourceGroups/shared/providers/Microsoft.ContainerRegistry/registries/images"},"secret":{"type":"SecureString"},"urls":{"type":"Array","value":["web.x.example","api.x.example","worker.x.example"]}}"#]].assert_eq(&short(&outputs.to_string()));
}

#[test]
fn parameters_are_echoed_without_secrets() {
    let template = crate::parse_body(BICEP.replace("HEAD", HEAD).as_bytes()).unwrap();
    let parsed = Template::parse(&template, &bicep_parameters(), scope()).unwrap();
    expect![[r#"{"apps":{"type":"Array","value":[{"image":"nginx","kind":"web","name":"web","replicas":2},{"image":"api:1","name":"api"},{"image":"w","name":"worker"}]},"location":{"type":"String","value":"eastus"},"password":{"type":"SecureString"},"withJob":{"type":"Bool","value":false}}"#]].assert_eq(&parsed.echoed_parameters().to_string());
    assert_eq!(Template::hash(&template), Template::hash(&template.clone()));
}

#[test]
fn modules_are_deployments() {
    let plan = check(
        r#"{ HEAD, "parameters": {"name": {"type": "string", "defaultValue": "a"}},
        "resources": [
          { "type": "Microsoft.Resources/deployments", "apiVersion": "2025-04-01", "name": "env-module", "resourceGroup": "other",
            "properties": {
              "expressionEvaluationOptions": {"scope": "inner"}, "mode": "Incremental",
              "parameters": {"name": {"value": "[parameters('name')]"}},
              "template": { HEAD, "parameters": {"name": {"type": "string"}},
                "resources": [], "outputs": {"envId": {"type": "string", "value": "[parameters('name')]"}} } } },
          { "type": "Microsoft.App/containerApps", "apiVersion": "2024-03-01", "name": "[parameters('name')]", "location": "eastus",
            "properties": {"environmentId": "[reference(resourceId('other', 'Microsoft.Resources/deployments', 'env-module'), '2025-04-01').outputs.envId.value]"} }
        ] }"#,
        &Value::Null,
        &expect![[r#"
            0 - /sub/resourceGroups/other/providers/Microsoft.Resources/deployments/env-module@2025-04-01 in - after []
                {"properties":{"expressionEvaluationOptions":{"scope":"inner"},"mode":"Incremental","parameters":{"name":{"value":"a"}},"template":{"$schema":"https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#","contentVersion":"1.0.0.0","outputs":{"envId":{"type":"string","value":"[parameters('name')]"}},"parameters":{"name":{"type":"string"}},"resources":[]}}}
            1 - ~/Microsoft.App/containerApps/a@2024-03-01 in eastus after [0]
                needs /sub/resourceGroups/other/providers/Microsoft.Resources/deployments/env-module@2025-04-01
        "#]],
    );
    expect![[r#"{"location":"eastus","properties":{"environmentId":"/the/env"}}"#]].assert_eq(&body(&plan, 1));
}

#[test]
fn outer_scope_means_the_names_around_it() {
    check(
        r#"{ HEAD, "parameters": {"who": {"type": "string", "defaultValue": "outer's"}}, "variables": {"v": {"a": ["[[x]"]}},
        "functions": [{"namespace": "my", "members": {"f": {"parameters": [], "output": {"type": "string", "value": "made"}}}}],
        "resources": [
          { "type": "Microsoft.Resources/deployments", "apiVersion": "2025-04-01", "name": "nested",
            "properties": { "mode": "Incremental",
              "template": { HEAD, "variables": {"who": "inner"},
                "resources": [
                  {"type": "Microsoft.App/containerApps", "apiVersion": "2024-03-01", "name": "[concat('app', copyIndex())]", "location": "[resourceGroup().location]",
                   "copy": {"name": "loop", "count": "[length(variables('v').a)]"},
                   "properties": {"a": "[parameters('who')]", "b": "[reference(resourceId('Microsoft.App/jobs', parameters('who')), '1').x[variables('v').a[0]]]",
                     "c": "[variables('v')]", "d": "[my.f()]", "e": "[[kept]", "f": "[listKeys('x', '1', variables('v')).keys[add(0, 0)]]"}}
                ],
                "outputs": {"o": {"type": "string", "value": "[reference(parameters('who')).x]"}} } } }
        ] }"#,
        &Value::Null,
        &expect![[r#"
            0 - ~/Microsoft.Resources/deployments/nested@2025-04-01 in - after []
                {"properties":{"mode":"Incremental","template":{"$schema":"https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#","contentVersion":"1.0.0.0","outputs":{"o":{"type":"string","value":"[reference('outer''s')['x']]"}},"resources":[{"apiVersion":"2024-03-01","copy":{"count":1,"name":"loop"},"location":"eastus","name":"[concat('app', copyIndex())]","properties":{"a":"outer's","b":"[reference('~/Microsoft.App/jobs/outer''s', '1')['x']['[x]']]","c":{"a":["[[x]"]},"d":"made","e":"[[kept]","f":"[listKeys('x', '1', json('{\"a\":[\"[x]\"]}'))['keys'][0]]"},"type":"Microsoft.App/containerApps"}]}}}
        "#]],
    );
}

#[test]
fn names_loops_and_children_of_plain_templates() {
    let plan = check(
        r#"{ HEAD, "resources": [
          { "type": "Microsoft.App/managedEnvironments", "apiVersion": "2024-03-01", "name": "env", "location": "eastus", "properties": {},
            "resources": [
              { "type": "storages", "apiVersion": "2024-03-01", "name": "files", "properties": {} },
              { "type": "Microsoft.App/managedEnvironments/certificates", "apiVersion": "2024-03-01", "name": "env/cert", "properties": {}, "dependsOn": ["files"] } ] },
          { "type": "Microsoft.App/containerApps", "apiVersion": "2024-03-01", "name": "[concat('app-', copyIndex(1))]", "location": "[reference('env', '2024-03-01', 'full').location]",
            "copy": {"name": "apps", "count": 2}, "comments": "a loop",
            "properties": {"domain": "[reference('env').defaultDomain]", "environmentId": "[resourceId('Microsoft.App/managedEnvironments', 'env')]"} },
          { "type": "Microsoft.App/jobs", "apiVersion": "2024-03-01", "name": "job", "location": "eastus", "properties": {},
            "dependsOn": ["apps", "[resourceId('Microsoft.App/managedEnvironments', 'env')]", "none", "Microsoft.App/managedEnvironments/env"] },
          { "type": "Microsoft.App/jobs", "apiVersion": "2024-03-01", "name": "[concat('x', copyIndex())]", "copy": {"name": "none", "count": 0}, "properties": {} }
        ] }"#,
        &Value::Null,
        &expect![[r#"
            0 - ~/Microsoft.App/managedEnvironments/env@2024-03-01 in eastus after []
                {"location":"eastus","properties":{}}
            1 - ~/Microsoft.App/managedEnvironments/env/storages/files@2024-03-01 in - after [0]
                {"properties":{}}
            2 - ~/Microsoft.App/managedEnvironments/env/certificates/cert@2024-03-01 in - after [0, 1]
                {"properties":{}}
            3 - ~/Microsoft.App/containerApps/app-1@2024-03-01 in - after [0] apps[0 of 2]
                needs ~/Microsoft.App/managedEnvironments/env@2024-03-01
            4 - ~/Microsoft.App/containerApps/app-2@2024-03-01 in - after [0] apps[1 of 2]
                needs ~/Microsoft.App/managedEnvironments/env@2024-03-01
            5 - ~/Microsoft.App/jobs/job@2024-03-01 in eastus after [0, 3, 4]
                {"location":"eastus","properties":{}}
        "#]],
    );
    expect![[r#"{"location":"eastus","properties":{"domain":"x.example","environmentId":"~/Microsoft.App/managedEnvironments/env"}}"#]].assert_eq(&body(&plan, 3));
    let preview = plan.preview_body(3, &Known::new()).unwrap();
    expect![[r#"{"location":"[reference('env', '2024-03-01', 'full').location]","properties":{"domain":"[reference('env').defaultDomain]","environmentId":"~/Microsoft.App/managedEnvironments/env"}}"#]].assert_eq(&short(&preview.to_string()));
}

#[test]
fn groups_of_a_subscription() {
    let template = json!({
        "$schema": "https://schema.management.azure.com/schemas/2018-05-01/subscriptionDeploymentTemplate.json#",
        "contentVersion": "1.0.0.0", "languageVersion": "2.0",
        "resources": {
            "rg": {"type": "Microsoft.Resources/resourceGroups", "apiVersion": "2024-03-01", "name": "made", "location": "[deployment().location]"},
            "module": {"type": "Microsoft.Resources/deployments", "apiVersion": "2025-04-01", "name": "app", "resourceGroup": "made",
                       "properties": {"mode": "Incremental", "template": {}}, "dependsOn": ["rg"]},
        },
        "outputs": {"group": {"type": "string", "value": "[reference('rg', '2024-03-01', 'full').location]"}},
    });
    let scope = Scope { group: None, location: Some("westus".into()), ..scope() };
    let plan = Template::parse(&template, &Value::Null, scope).unwrap().expand().unwrap();
    expect![[r#"
        0 module /sub/resourceGroups/made/providers/Microsoft.Resources/deployments/app@2025-04-01 in - after [1]
            {"properties":{"mode":"Incremental","template":{}}}
        1 rg /sub/resourceGroups/made@2024-03-01 in westus after []
            {"location":"westus"}
    "#]]
    .assert_eq(&show(&plan));
}

#[test]
fn what_the_platform_refuses_is_told_with_its_code() {
    let plan = plan(
        &r#"{ HEAD, "resources": [{ "type": "Microsoft.App/jobs", "apiVersion": "1", "name": "j",
            "properties": {"x": "[reference(resourceId('Microsoft.X/y', 'z'), '1').a]", "y": "[add(1, 'x')]"} }],
            "outputs": {"o": {"type": "int", "value": "[reference(resourceId('Microsoft.X/y', 'z'), '1').a]"}} }"#
            .replace("HEAD", HEAD),
        &Value::Null,
    );
    expect![[r#"
        InvalidTemplate at resources[0].properties.y: unable to evaluate template language function 'add': the argument 'b' must be an integer; a string is given
    "#]].assert_eq(&complaints(&plan.unwrap_err()));
    let plan = super::plan(
        &r#"{ HEAD, "resources": [{ "type": "Microsoft.App/jobs", "apiVersion": "1", "name": "j",
            "properties": {"x": "[reference(resourceId('Microsoft.X/y', 'z'), '1').a]", "y": ["[listKeys('Microsoft.X/y/q', '1').nothing]"]} }],
            "outputs": {"o": {"type": "int", "value": "[string(listKeys('/k', '1').primarySharedKey)]"}} }"#
            .replace("HEAD", HEAD),
        &Value::Null,
    )
    .unwrap();
    expect![[r#"
        ResourceNotFound at resources[0].properties.x: /subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.X/y/z was not found
        InvalidTemplate at resources[0].properties.y[0]: the language expression property 'nothing' doesn't exist, available properties are 'keys, primarySharedKey'
    "#]].assert_eq(&body(&plan, 0));
    let outputs = settle(|known| plan.evaluate_outputs(known), answer).unwrap_err();
    expect![[r#"
        DeploymentOutputEvaluationFailed at outputs.o: the value of the output 'o' must be an integer; a string is given
    "#]]
    .assert_eq(&complaints(&outputs));
}
