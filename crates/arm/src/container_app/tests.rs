//! Bodies as clients send them, every rule with its message, and properties of arbitrary input.

use std::collections::BTreeSet;

use cove_model::{EnvValue, ProbeAction, ScaleRuleKind};
use expect_test::expect_file;
use proptest::prelude::*;
use serde_json::json;

use super::*;

mod later;
mod rules;

fn id() -> ResourceId {
    ResourceId::resource("s1", "MyRG", "Microsoft.App/containerApps", "web").unwrap()
}

fn put_with(body: &Value, known: &[&str]) -> Result<Parsed, ArmError> {
    let known: BTreeSet<String> = known.iter().map(|name| (*name).to_owned()).collect();
    parse_put(body, &PutContext { id: &id(), known_secrets: &known })
}

fn put(body: &Value) -> Result<Parsed, ArmError> {
    put_with(body, &[])
}

fn show(doc: &Value) -> Value {
    let view = View {
        id: &id(),
        provisioning_state: "Succeeded",
        running_status: "Running",
        default_domain: "myenv.localhost",
        latest_revision: Some("web--abc"),
        latest_ready_revision: Some("web--abc"),
        origin: "https://localhost:8443",
        outbound_ips: &["10.0.0.1".to_owned()],
        custom_domain_verification_id: "C0FE",
        system_data: None,
        scale_defaults: &cove_scaling::ScaleDefaults::default(),
    };
    render(doc, &view)
}

const ENVIRONMENT: &str = "/subscriptions/s1/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/myenv";

/// The body of `az containerapp create`, nulls and all.
fn az_create() -> Value {
    json!({
        "location": "eastus", "tags": null, "identity": { "type": "None", "userAssignedIdentities": null },
        "properties": {
            "environmentId": ENVIRONMENT, "workloadProfileName": null,
            "configuration": {
                "secrets": [{ "name": "s", "value": "hush", "keyVaultUrl": "", "identity": "" }],
                "activeRevisionsMode": "single", "registries": null,
                "ingress": {
                    "fqdn": null, "external": true, "targetPort": "8080", "transport": "auto", "exposedPort": null,
                    "allowInsecure": false, "traffic": null, "customDomains": null, "ipSecurityRestrictions": null,
                    "stickySessions": null,
                },
                "dapr": null,
            },
            "template": {
                "revisionSuffix": null, "initContainers": null, "volumes": null, "serviceBinds": null,
                "containers": [{
                    "image": "cove.local/sample:latest", "name": "web", "command": null, "args": null,
                    "env": [{ "name": "A", "secretRef": "s" }, { "name": "B", "value": 1 }],
                    "resources": { "cpu": 0.5, "memory": "1Gi" }, "volumeMounts": null,
                }],
                "scale": { "minReplicas": 0, "maxReplicas": "20", "rules": [{
                    "name": "http-scaling", "azureQueue": null, "custom": null, "tcp": null,
                    "http": { "metadata": { "concurrentRequests": 25 }, "auth": [] },
                }] },
            },
        },
    })
}

#[test]
fn the_body_of_az_create_is_understood() {
    let parsed = put(&az_create()).unwrap();
    let app = &parsed.app;
    assert_eq!(app.environment.as_str(), ENVIRONMENT);
    assert_eq!(app.ingress.as_ref().unwrap().target_port, Some(8080));
    assert_eq!(app.template.scale.max_replicas, 20);
    assert_eq!(app.template.scale.rules[0].kind, ScaleRuleKind::Http { concurrent_requests: 25 });
    let env: Vec<_> = app.template.containers[0].env.iter().map(|variable| variable.value.clone()).collect();
    assert_eq!(env, [EnvValue::SecretRef("s".to_owned()), EnvValue::Plain("1".to_owned())]);
    assert_eq!(parsed.secrets, BTreeMap::from([("s".to_owned(), Some("hush".to_owned()))]));
    assert!(!parsed.doc.to_string().contains("hush"));
    assert_eq!(parsed.revision_suffix, None);
}

#[test]
fn an_answer_has_all_defaults_and_no_nulls() {
    let shown = show(&put(&az_create()).unwrap().doc);
    assert!(!shown.to_string().contains("null"));
    expect_file!["tests/answer.json"].assert_eq(&serde_json::to_string_pretty(&shown).unwrap());
}

#[test]
fn what_was_shown_can_be_sent_back() {
    let first = put(&az_create()).unwrap();
    let shown = show(&first.doc);
    let second = put_with(&shown, &["s"]).unwrap();
    assert_eq!(second.app, first.app);
    assert_eq!(second.secrets, BTreeMap::from([("s".to_owned(), None)]));
    assert_eq!(show(&second.doc), shown);
    assert!(!makes_revision(&first.doc, &first.app.template, &second));
}

#[test]
fn a_patch_of_the_template_makes_a_revision_and_keeps_the_rest() {
    let mut body = az_create();
    body["properties"]["template"]["revisionSuffix"] = json!("v1");
    let first = put(&body).unwrap();
    let mut containers = first.doc["properties"]["template"]["containers"].clone();
    containers[0]["env"] = json!([{ "name": "A", "value": "2" }]);
    let patch = json!({ "properties": { "Template": { "containers": containers, "scale": { "rules": null } } } });
    let known = BTreeSet::from(["s".to_owned()]);
    let second = parse_patch(&first.doc, &patch, &PutContext { id: &id(), known_secrets: &known }).unwrap();
    assert_eq!(second.revision_suffix, None, "the old suffix is taken");
    assert!(second.app.template.scale.rules.is_empty());
    assert_eq!(second.app.template.scale.max_replicas, 20);
    assert_eq!(second.app.ingress, first.app.ingress);
    assert_eq!(second.secrets, BTreeMap::from([("s".to_owned(), None)]));
    assert!(makes_revision(&first.doc, &first.app.template, &second));
}

#[test]
fn configuration_alone_makes_no_revision_but_a_new_suffix_does() {
    let first = put(&az_create()).unwrap();
    let patch =
        json!({ "tags": { "A": "b" }, "properties": { "configuration": { "ingress": { "external": false } } } });
    let known = BTreeSet::from(["s".to_owned()]);
    let context = PutContext { id: &id(), known_secrets: &known };
    let second = parse_patch(&first.doc, &patch, &context).unwrap();
    assert!(!second.app.ingress.as_ref().unwrap().external);
    assert!(!makes_revision(&first.doc, &first.app.template, &second));
    assert_eq!(show(&second.doc)["properties"]["configuration"]["ingress"]["fqdn"], "web.internal.myenv.localhost");
    let patch = json!({ "properties": { "template": { "revisionSuffix": "v2" } } });
    let third = parse_patch(&second.doc, &patch, &context).unwrap();
    assert!(makes_revision(&second.doc, &second.app.template, &third));
}

#[test]
fn property_names_and_words_have_any_case() {
    let text = az_create().to_string();
    let odd = text
        .replace("\"environmentId\"", "\"ManagedEnvironmentID\"")
        .replace("\"containers\"", "\"Containers\"")
        .replace("\"targetPort\"", "\"TARGETPORT\"")
        .replace("\"auto\"", "\"AUTO\"");
    let parsed = put(&serde_json::from_str(&odd).unwrap()).unwrap();
    assert_eq!(parsed, put(&az_create()).unwrap());
}

#[test]
fn multiple_mode_keeps_weights_and_single_mode_resets_them() {
    let mut body = az_create();
    body["properties"]["configuration"]["ingress"]["traffic"] = json!([
        { "revisionName": "web--v1", "weight": 80, "label": "blue", "latestRevision": null },
        { "latestRevision": true, "weight": "20" },
    ]);
    let single = put(&body).unwrap();
    assert!(single.app.ingress.unwrap().traffic.is_empty());
    body["properties"]["configuration"]["activeRevisionsMode"] = json!("Multiple");
    let multiple = put(&body).unwrap();
    let traffic = multiple.app.ingress.unwrap().traffic;
    assert_eq!(traffic.iter().map(|weight| weight.weight).collect::<Vec<_>>(), [80, 20]);
    let shown = show(&multiple.doc)["properties"]["configuration"]["ingress"]["traffic"].clone();
    assert_eq!(shown[0], json!({ "revisionName": "web--v1", "weight": 80, "label": "blue" }));
    assert_eq!(shown[1], json!({ "latestRevision": true, "weight": 20 }));
}

#[test]
fn a_patch_for_labels_in_single_mode_is_refused() {
    let stored = put(&az_create()).unwrap().doc;
    let known = BTreeSet::from(["s".to_owned()]);
    let patch = |configuration: Value| {
        let patch = json!({ "properties": { "configuration": configuration } });
        parse_patch(&stored, &patch, &PutContext { id: &id(), known_secrets: &known })
    };
    let traffic = json!({ "traffic": [{ "revisionName": "web--v1", "weight": 100, "label": "blue" }] });
    assert!(patch(json!({ "ingress": traffic })).unwrap_err().message.contains("'Multiple'"));
    assert!(patch(json!({ "ingress": traffic, "activeRevisionsMode": "multiple" })).is_ok());
    assert!(patch(json!({ "ingress": { "traffic": [{ "latestRevision": true, "weight": 100 }] } })).is_ok());
}

#[test]
fn probes_and_volumes_are_read() {
    let mut body = az_create();
    let template = &mut body["properties"]["template"];
    template["volumes"] = json!([
        { "name": "tmp", "storageType": "emptydir" },
        { "name": "sec", "storageType": "Secret", "secrets": [{ "secretRef": "s", "path": "a/b" }] },
    ]);
    template["containers"][0]["volumeMounts"] = json!([{ "volumeName": "tmp", "mountPath": "/data", "subPath": "x" }]);
    template["containers"][0]["probes"] = json!([
        { "type": "liveness", "httpGet": { "path": "/health", "port": "8080", "httpHeaders": [{ "name": "X", "value": "y" }] } },
        { "type": "Readiness", "tcpSocket": { "port": 8080 }, "initialDelaySeconds": 3, "successThreshold": 2 },
    ]);
    let parsed = put(&body).unwrap();
    let probes = &parsed.app.template.containers[0].probes;
    assert!(matches!(&probes[0].action, ProbeAction::HttpGet { port: 8080, path, .. } if path == "/health"));
    assert_eq!((probes[1].initial_delay_secs, probes[1].success_threshold, probes[1].period_secs), (3, 2, 10));
    assert_eq!(put_with(&show(&parsed.doc), &["s"]).unwrap().app, parsed.app);
}

/// Any JSON, with property names that mean something often enough.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-zA-Z0-9/._ -]{0,12}".prop_map(Value::from),
        Just(json!(ENVIRONMENT)),
        Just(json!("system")),
    ];
    let name = prop_oneof![
        prop::sample::select(vec![
            "properties",
            "template",
            "containers",
            "configuration",
            "ingress",
            "scale",
            "rules",
            "secrets",
            "name",
            "env",
            "resources",
            "cpu",
            "memory",
            "probes",
            "httpGet",
            "port",
            "traffic",
            "Weight",
            "volumes",
            "environmentId",
            "location",
            "http",
            "metadata",
            "auth",
            "custom",
            "identity",
            "workloadProfiles",
            "vnetConfiguration",
            "customDomains",
            "ipSecurityRestrictions",
            "corsPolicy",
            "dapr",
            "userAssignedIdentities",
        ])
        .prop_map(str::to_owned),
        "[a-z]{1,6}",
    ];
    leaf.prop_recursive(7, 96, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.clone(), inner, 0..6).prop_map(|fields| json!(fields)),
        ]
    })
}

/// Bodies that are right, with most parts varied.
fn valid_body() -> impl Strategy<Value = Value> {
    let container = (0_usize..4, prop::option::of("[a-z0-9 é]{0,9}"), prop::option::of(1_u16..=65535));
    let parts =
        (prop::collection::vec(container, 1..4), 0_u32..12, 12_u32..1001, any::<bool>(), any::<bool>(), 1_u32..5000);
    parts.prop_map(|(containers, min, max, external, multiple, concurrency)| {
        let count = containers.len();
        let list = containers.into_iter().enumerate().map(|(index, (mounts, env, port))| {
            // Every total of 0.25, 0.5 and 0.75 cores is on the table.
            let mut container = json!({ "name": format!("c{index}"), "image": "a/b:c", "resources": { "cpu": 0.25, "memory": "0.5Gi" } });
            if let Some(text) = env {
                container["env"] = json!([{ "name": "A", "value": text }, { "name": "S", "secretRef": "s" }]);
            }
            if let Some(port) = port {
                container["probes"] = json!([{ "type": "readiness", "httpGet": { "port": port } }]);
            }
            let mount = |n: usize| json!({ "volumeName": "v", "mountPath": format!("/m{n}") });
            container["volumeMounts"] = (0..mounts).map(mount).collect();
            container
        });
        let mut body = az_create();
        body["properties"]["template"] = json!({
            "containers": list.collect::<Vec<_>>(),
            "volumes": [{ "name": "v", "storageType": "EmptyDir" }],
            "scale": { "minReplicas": min, "maxReplicas": max, "rules": [
                { "name": "h", "http": { "metadata": { "concurrentRequests": concurrency.to_string() } } },
                { "name": "c", "custom": { "type": "redis", "metadata": { "listName": "l", "listLength": count }, "auth": [{ "secretRef": "s", "triggerParameter": "p" }] } },
            ] },
        });
        body["properties"]["configuration"]["ingress"]["external"] = json!(external);
        let configuration = &mut body["properties"]["configuration"];
        if multiple {
            configuration["activeRevisionsMode"] = json!("multiple");
            configuration["dapr"] = json!({ "enabled": external, "appId": "web", "appPort": "80" });
            configuration["ingress"]["traffic"] = json!([
                { "revisionName": "web--v1", "weight": min, "label": "blue" }, { "latestRevision": true, "weight": 100 - min },
            ]);
        }
        if external {
            let restriction = json!({ "name": "r", "action": "Deny", "ipAddressRange": format!("10.{min}.0.1/{}", 8 + min) });
            configuration["ingress"]["ipSecurityRestrictions"] = json!([restriction]);
            configuration["ingress"]["corsPolicy"] = json!({ "allowedOrigins": ["*"], "maxAge": max, "allowedMethods": null });
            configuration["ingress"]["stickySessions"] = json!({ "affinity": "Sticky" });
            configuration["ingress"]["customDomains"] = json!([{ "name": format!("A{min}.example.com"), "bindingType": "disabled" }]);
            body["identity"] = json!({ "type": "systemassigned" });
        }
        body["properties"]["future"] = json!({ "n": max });
        body
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_never_panics(body in any_json(), patch in any_json()) {
        let _ = put(&body);
        let stored = put(&az_create()).unwrap().doc;
        let known = BTreeSet::new();
        let _ = parse_patch(&stored, &patch, &PutContext { id: &id(), known_secrets: &known });
        let _ = show(&body.as_object().map_or_else(|| json!({}), |_| stored.clone()));
    }

    #[test]
    fn garbage_inside_a_good_body_never_panics(garbage in any_json(), place in 0_usize..6) {
        let mut body = az_create();
        let pointer = [
            "/properties/template", "/properties/template/containers/0", "/properties/configuration",
            "/properties/configuration/ingress", "/properties/template/scale", "/properties/configuration/secrets",
        ][place];
        *body.pointer_mut(pointer).unwrap() = garbage;
        if let Ok(parsed) = put(&body) {
            prop_assert!(show(&parsed.doc).is_object());
        }
    }

    #[test]
    fn showing_and_sending_back_changes_nothing(body in valid_body()) {
        let first = put(&body).unwrap();
        let shown = show(&first.doc);
        let second = put_with(&shown, &["s"]).unwrap();
        prop_assert_eq!(&second.app, &first.app);
        prop_assert_eq!(show(&second.doc), shown);
        prop_assert_eq!(put_with(&first.doc, &["s"]).unwrap().app, first.app);
    }
}
