//! What is kept without an effect, what says so, and what survives a round trip though nobody knows it.

use std::collections::BTreeSet;

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
        identity of a scale rule has no effect yet: the rule cannot log in with it; use auth with a secret.
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
