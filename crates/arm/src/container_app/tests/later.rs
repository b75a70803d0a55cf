//! What is kept without an effect, what says so, and what survives a round trip though nobody knows it.

use std::collections::BTreeSet;

use cove_model::{IdleState, ScaleMode};
use expect_test::expect;
use serde_json::{Value, json};

use super::{az_create, id, put, put_with, show};
use crate::container_app::{PutContext, parse_patch, warnings};

const IDENTITY: &str =
    "/subscriptions/s1/resourceGroups/MyRG/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Me";

/// An app that asks for everything that comes later.
fn body() -> Value {
    let mut body = az_create();
    body["identity"] = json!({ "type": "systemassigned, userassigned", "userAssignedIdentities": { IDENTITY: {} } });
    body["properties"]["patchingConfiguration"] = json!({ "patchingMode": "Automatic" });
    let configuration = &mut body["properties"]["configuration"];
    configuration["dapr"] = json!({ "enabled": true, "appId": "web", "appPort": "8080", "logLevel": "info" });
    configuration["registries"] = json!([{ "server": "x.azurecr.io", "identity": "system" }]);
    configuration["identitySettings"] = json!([{ "identity": IDENTITY.to_lowercase(), "lifecycle": "Main" }]);
    configuration["runtime"] = json!({ "java": { "enableMetrics": true } });
    let template = &mut body["properties"]["template"];
    template["containers"][0]["resources"]["gpu"] = json!("1");
    template["scale"]["allowScalingRuleOverride"] = json!(true);
    template["scale"]["rules"] = json!([
        { "name": "q", "azureQueue": { "accountName": "a", "queueName": "q", "queueLength": 5, "identity": "system" } },
        { "name": "r", "custom": { "type": "redis", "metadata": { "listName": "l", "address": "r:6379", "colour": "red" } } },
    ]);
    body
}

#[test]
fn what_has_no_effect_is_kept_and_said() {
    let parsed = put(&body()).unwrap();
    expect![[r#"
        dapr has no effect yet: the app runs without a sidecar, and nothing listens on ports 3500 and 50001.
        identity: ids are made and can be given roles, but the app gets no tokens yet; IDENTITY_ENDPOINT is not set in its containers.
        registries[].identity has no effect yet: images are pulled without a login; give username and passwordSecretRef where one is needed.
        identitySettings have no effect yet: the app gets no tokens.
        runtime has no effect yet: no Java or .NET metrics and no logger settings.
        patchingConfiguration has no effect: images are never patched here; rebuild and update the app.
        resources.gpu has no effect yet: the container gets no GPU device.
        scale.allowScalingRuleOverride has no effect yet: the rules of the template alone decide.
        identity of a scale rule logs in with tokens of this server, which Azure's own services do not know: use auth with a secret for those.
        template.scale.rules[1].custom: `colour` is not read by `redis`."#]]
    .assert_eq(&warnings(&parsed.doc).join("\n"));
    let shown = show(&parsed.doc);
    assert_eq!(shown["properties"]["coveWarnings"].as_array().unwrap().len(), 10);
    assert_eq!(shown["identity"]["type"], "SystemAssigned,UserAssigned");
    assert_eq!(shown["properties"]["configuration"]["dapr"]["appPort"], 8080);
    assert_eq!(shown["properties"]["template"]["containers"][0]["resources"]["gpu"], 1.0);
    let again = put_with(&shown, &["s"]).unwrap();
    assert_eq!((&again.app, &again.doc.get("coveWarnings")), (&parsed.app, &None));
    assert_eq!(show(&again.doc), shown);
    assert!(show(&put(&az_create()).unwrap().doc)["properties"].get("coveWarnings").is_none());
}

#[test]
fn constants_in_force_are_shown() {
    let body = az_create();
    let plain = show(&put(&body).unwrap().doc);
    expect![[r#"
        {
          "cooldownPeriodSeconds": 300,
          "cpuInitialisationSeconds": 300,
          "cpuReadinessDelaySeconds": 30,
          "headroomPercent": 0,
          "loadSamplingSeconds": 15,
          "mode": "aca",
          "pollingIntervalSeconds": 30,
          "readDeadlineSeconds": 3,
          "resourceSamplingSeconds": 15,
          "rules": [
            {
              "kind": "http",
              "name": "http-scaling",
              "target": 25
            }
          ],
          "scaleDownWindowSeconds": 300,
          "scaleUpWindowSeconds": 0,
          "stepFactor": 2,
          "stepFloor": 4,
          "tolerancePercent": 10
        }"#]]
    .assert_eq(&format!("{:#}", plain["properties"]["template"]["scale"]["coveEffective"]));
}

/// An app with a mode, an idle state and constants of its own.
fn with_constants() -> Value {
    let mut body = az_create();
    let settings = json!({ "scaleDownWindowSeconds": "60", "FallBack": { "failureThreshold": 3, "replicas": 2 } });
    body["properties"]["template"]["scale"] = json!({ "coveMode": "Fast", "COVEIDLE": "frozen", "coveSettings": settings,
        "rules": [{ "name": "q", "custom": { "type": "redis", "metadata": { "listName": "l", "address": "r:1",
            "listLength": "2.5", "activationListLength": "7" } } }] });
    body
}

#[test]
fn own_constants_of_the_autoscaler_are_kept() {
    let parsed = put(&with_constants()).unwrap();
    let scale = &parsed.app.template.scale;
    assert_eq!((scale.mode, scale.idle), (Some(ScaleMode::Fast), IdleState::Frozen));
    let shown = show(&parsed.doc);
    expect![[r#"
        {
          "cooldownPeriod": 300,
          "coveEffective": {
            "cooldownPeriodSeconds": 300,
            "cpuInitialisationSeconds": 300,
            "cpuReadinessDelaySeconds": 30,
            "fallback": {
              "behavior": "static",
              "failureThreshold": 3,
              "replicas": 2
            },
            "headroomPercent": 20,
            "loadSamplingSeconds": 1,
            "mode": "fast",
            "pollingIntervalSeconds": 30,
            "readDeadlineSeconds": 3,
            "resourceSamplingSeconds": 15,
            "rules": [
              {
                "kind": "event",
                "name": "q",
                "target": 2.5
              }
            ],
            "scaleDownWindowSeconds": 60,
            "scaleUpWindowSeconds": 0,
            "stepFactor": 4,
            "stepFloor": 8,
            "tolerancePercent": 0
          },
          "coveIdle": "frozen",
          "coveMode": "fast",
          "coveSettings": {
            "fallback": {
              "behavior": "static",
              "failureThreshold": 3,
              "replicas": 2
            },
            "scaleDownWindowSeconds": 60
          },
          "maxReplicas": 10,
          "minReplicas": 0,
          "pollingInterval": 30,
          "rules": [
            {
              "custom": {
                "metadata": {
                  "activationListLength": "7",
                  "address": "r:1",
                  "listLength": "2.5",
                  "listName": "l"
                },
                "type": "redis"
              },
              "name": "q"
            }
          ]
        }"#]]
    .assert_eq(&format!("{:#}", shown["properties"]["template"]["scale"]));
}

#[test]
fn constants_make_the_round_trip() {
    let parsed = put(&with_constants()).unwrap();
    let shown = show(&parsed.doc);
    let again = put_with(&shown, &["s"]).unwrap();
    assert_eq!((&again.app, show(&again.doc)), (&parsed.app, shown));
    assert!(again.doc.pointer("/properties/template/scale/coveEffective").is_none());
    let patched = parse_patch(
        &parsed.doc,
        &json!({ "properties": { "template": { "scale": { "maxReplicas": 7,
        "coveEffective": { "mode": "aca" } } } } }),
        &PutContext { id: &id(), known_secrets: &BTreeSet::from(["s".to_owned()]) },
    );
    let patched = patched.unwrap();
    assert_eq!(patched.app.template.scale, cove_model::Scale { max_replicas: 7, ..parsed.app.template.scale });
    assert!(patched.doc.pointer("/properties/template/scale/coveEffective").is_none());
}

#[test]
fn why_an_app_is_never_frozen_is_said() {
    let mut body = az_create();
    body["properties"]["template"]["scale"] = json!({ "coveIdle": "frozen" });
    let said = |body: &Value| warnings(&put(body).unwrap().doc).join("\n");
    assert_eq!(said(&body), "");
    let with = |pointer: &str, name: &str, value: Value| {
        let mut body = body.clone();
        body.pointer_mut(pointer).unwrap()[name] = value;
        said(&body)
    };
    let probes = json!([{ "type": "Startup", "tcpSocket": { "port": 80 } }, { "type": "Liveness", "tcpSocket": { "port": 80 } }]);
    let lines = [
        with("/properties/template/scale", "minReplicas", json!(1)),
        with("/properties/template/containers/0", "probes", probes),
        with("/properties/configuration", "ingress", Value::Null),
    ];
    expect![[r#"
        template.scale.coveIdle: frozen has no effect: with minReplicas above 0 a replica always runs.
        template.scale.coveIdle: frozen has no effect: container 'web' has a liveness probe, which a frozen container cannot answer.
        template.scale.rules: it goes to zero and nothing starts it again; add a rule, enable ingress or set minReplicas.
        template.scale.coveIdle: frozen has no effect: without ingress no request would wake the app."#]].assert_eq(&lines.join("\n"));
}

#[test]
fn ports_that_connections_may_have_are_told() {
    let mut body = az_create();
    let said = |body: &Value| warnings(&put(body).unwrap().doc);
    let mapping = |port: u16, external: bool| json!({ "targetPort": 9000, "exposedPort": port, "external": external });
    let ingress = &mut body["properties"]["configuration"]["ingress"];
    ingress["additionalPortMappings"] = json!([mapping(32_767, true), mapping(40_000, false), mapping(61_000, true)]);
    assert_eq!(said(&body), Vec::<String>::new());
    body["properties"]["configuration"]["ingress"]["additionalPortMappings"][1]["external"] = true.into();
    let told = said(&body);
    assert!(
        told.len() == 1 && told[0].starts_with("exposed port 40000: Linux gives the ports 32768 to 60999"),
        "{told:?}"
    );
}

#[test]
fn unknown_properties_survive_at_every_level() {
    let mut body = body();
    for pointer in [
        "",
        "/properties",
        "/properties/configuration",
        "/properties/configuration/ingress",
        "/properties/template",
        "/properties/template/containers/0",
        "/properties/template/containers/0/resources",
        "/properties/template/scale",
        "/properties/template/scale/rules/1",
        "/properties/template/scale/rules/1/custom",
    ] {
        body.pointer_mut(pointer).unwrap()["futureThing"] = json!({ "deep": [1, { "er": true }] });
    }
    let shown = show(&put(&body).unwrap().doc).to_string();
    assert_eq!(shown.matches("futureThing").count(), 10, "{shown}");
}

#[test]
fn an_identity_is_removed_in_any_case() {
    let stored = put(&body()).unwrap().doc;
    let known = BTreeSet::from(["s".to_owned()]);
    let patch = json!({
        "identity": { "type": "SystemAssigned", "userAssignedIdentities": { IDENTITY.to_lowercase(): null } },
        "properties": { "configuration": { "identitySettings": null } },
    });
    let after = parse_patch(&stored, &patch, &PutContext { id: &id(), known_secrets: &known }).unwrap();
    assert_eq!(after.doc["identity"], json!({ "type": "SystemAssigned" }));
}
