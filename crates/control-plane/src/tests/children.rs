//! What hangs on an environment: certificates, Dapr components, path routing, maintenance, detectors, questions.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use expect_test::expect;
use http::Method;
use serde_json::{Value, json};

use super::harness::{RG, SUB, WEB, World, app_body};
use crate::Issued;

const ENV: &str = "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/env";
/// Made for this test: EC P-256, CN and SAN `shop.example.com`, until 2036; the PFX has the password `pw`.
const PEM: &str = include_str!("data/shop.pem");
const PFX: &[u8] = include_bytes!("data/shop.pfx");
/// The same in the encryption of old Windows: SHA-1 and 3DES.
const OLD_PFX: &[u8] = include_bytes!("data/shop-old.pfx");
const OTHER_KEY: &str = include_str!("data/other.key");

fn certificate(file: impl AsRef<[u8]>, password: &str) -> Value {
    json!({ "location": "eastus", "properties": { "value": BASE64.encode(file), "password": password } })
}

#[tokio::test]
async fn certificates_are_read_from_pem_and_pfx() {
    let world = World::with_environment().await;
    let mut shown = Vec::new();
    for (name, file, password) in [("pem", PEM.as_bytes(), ""), ("pfx", PFX, "pw"), ("old", OLD_PFX, "pw")] {
        let path = format!("{ENV}/certificates/{name}");
        let made = world.put(&path, certificate(file, password)).await;
        assert_eq!(made.status, 200, "{name}: {}", made.text);
        assert!(!made.text.contains("PRIVATE KEY") && !made.text.contains("password"), "{}", made.text);
        let properties = world.get(&path).await.json()["properties"].clone();
        assert_eq!(properties["valid"], true);
        assert_eq!(properties["thumbprint"].as_str().unwrap().len(), 40);
        shown.push(properties);
        let id = cove_model::ResourceId::parse(&path).unwrap();
        let row = world.store.resource(&id).unwrap().unwrap();
        let spec: cove_model::Certificate = serde_json::from_value(row.spec.unwrap()).unwrap();
        assert_eq!(spec.names, ["shop.example.com", "*.shop.example.com"]);
        assert!(world.store.secrets(&id).unwrap()[cove_model::CERTIFICATE_KEY_SECRET].contains("PRIVATE KEY"));
    }
    assert_eq!((&shown[0], &shown[0]), (&shown[1], &shown[2]), "one certificate, three files");
    assert_eq!(shown[0]["subjectName"], "CN=shop.example.com");
    assert_eq!(shown[0]["provisioningState"], "Succeeded");

    // what was shown is sent back, and tags change: the certificate stays
    let path = format!("{ENV}/certificates/pem");
    let mut again = world.get(&path).await.json();
    again["tags"] = json!({ "a": "b" });
    assert_eq!(world.put(&path, again).await.json()["properties"], shown[0]);
    let patched = world.patch(&path, json!({ "Tags": { "c": "d" } })).await.json();
    assert_eq!((&patched["tags"], &patched["properties"]), (&json!({ "a": "b", "c": "d" }), &shown[0]));
    let all = world.get(&format!("{ENV}/certificates")).await.json();
    assert_eq!(all["value"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn what_is_no_certificate_is_refused() {
    let world = World::with_environment().await;
    let path = format!("{ENV}/certificates/c");
    let leaf = PEM.split("-----BEGIN PRIVATE KEY").next().unwrap();
    for (body, words) in [
        (certificate("hello", ""), "neither PEM nor a PFX file"),
        (certificate(PFX, "wrong"), "neither PEM nor a PFX file"),
        (certificate(leaf, ""), "no private key"),
        (certificate(format!("{leaf}{OTHER_KEY}"), ""), "belongs to none"),
        (json!({ "location": "eastus", "properties": { "value": "%%%" } }), "not base64"),
        (json!({ "location": "eastus", "properties": {} }), "is required"),
        (json!({ "properties": { "value": "aaaa" } }), "location property is required"),
    ] {
        let refused = world.put(&path, body).await;
        assert_eq!(refused.status, 400, "{}", refused.text);
        assert!(refused.text.contains(words), "{words}: {}", refused.text);
    }
    let vault = json!({ "location": "eastus", "properties": { "certificateKeyVaultProperties": { "keyVaultUrl": "https://v" } } });
    assert_eq!(world.put(&path, vault).await.status, 501);
    assert_eq!(world.get(&path).await.status, 404);
}

#[tokio::test]
async fn a_certificate_that_is_served_stays() {
    let world = World::with_environment().await;
    let certificate_path = format!("{ENV}/certificates/shop");
    world.put(&certificate_path, certificate(PEM, "")).await;
    world.put(WEB, app_body("nginx", "v1")).await;
    let route = json!({ "properties": {
        "customDomains": [{ "name": "shop.example.com", "bindingType": "SniEnabled", "certificateId": certificate_path }],
        "rules": [{ "routes": [{ "match": { "prefix": "/" } }], "targets": [{ "containerApp": "web" }] }],
    } });
    let route_path = format!("{ENV}/httpRouteConfigs/routes");
    assert_eq!(world.put(&route_path, route).await.status, 201);
    let refused = world.delete(&certificate_path).await;
    assert_eq!((refused.status, refused.code().as_str()), (409, "CertificateInUse"), "{}", refused.text);
    let gone = world.delete(&route_path).await;
    assert_eq!(gone.status, 202);
    assert_eq!(world.follow(gone.header("location")).await.status, 204);
    assert_eq!(world.delete(&certificate_path).await.status, 200);
    assert_eq!(world.delete(&certificate_path).await.status, 204);
}

#[tokio::test]
async fn a_managed_certificate_is_issued_and_says_by_whom() {
    let world = World::with_environment().await;
    let path = format!("{ENV}/managedCertificates/mc");
    let body = json!({ "location": "eastus", "properties": { "subjectName": "shop.example.com", "validationMethod": "cname" } });
    assert_eq!(world.put(&path, body.clone()).await.status, 501, "no authority, no certificate");
    let (chain, key) = PEM.split_at(PEM.find("-----BEGIN PRIVATE KEY").unwrap());
    let issued = Issued { chain_pem: chain.to_owned(), key_pem: key.to_owned() };
    world.plane.set_authority(Arc::new(move |_| Ok(issued.clone())));
    let made = world.put(&path, body.clone()).await.json();
    let properties = &made["properties"];
    assert_eq!(properties["provisioningState"], "Succeeded");
    assert_eq!(properties["domainControlValidation"], "CNAME");
    assert!(properties["coveWarnings"][0].as_str().unwrap().contains("own authority"));
    assert_eq!(world.put(&path, body).await.json()["properties"], *properties, "a second PUT changes nothing");
    let other = json!({ "location": "eastus", "properties": { "subjectName": "else.example.com" } });
    assert_eq!(world.put(&path, other).await.code(), "CertificateSubjectCannotBeChanged");
    for subject in ["*.example.com", "localhost", "a b.c", ""] {
        let bad = json!({ "location": "eastus", "properties": { "subjectName": subject } });
        assert_eq!(world.put(&format!("{ENV}/managedCertificates/x"), bad).await.status, 400, "{subject}");
    }
}

#[tokio::test]
async fn dapr_components_come_in_two_shapes_and_keep_their_secrets() {
    let world = World::with_environment().await;
    let path = format!("{ENV}/daprComponents/statestore");
    let body = json!({ "properties": {
        "componentType": "state.redis", "version": "v1", "ignoreErrors": "false", "initTimeout": "1m30s",
        "secrets": [{ "name": "pw", "value": "hunter2" }],
        "metadata": [{ "name": "redisHost", "value": "redis:6379" }, { "name": "redisPassword", "secretRef": "pw" }],
        "scopes": ["web"], "futureProperty": { "x": 1 },
    } });
    let made = world.put(&path, body).await;
    assert_eq!(made.status, 200, "{}", made.text);
    assert!(!made.text.contains("hunter2"));
    let shown = made.json();
    assert_eq!(shown["properties"]["secrets"], json!([{ "name": "pw" }]));
    assert_eq!(shown["properties"]["futureProperty"], json!({ "x": 1 }), "what is not known survives");
    assert!(shown["properties"]["coveWarnings"][0].as_str().unwrap().contains("no effect"));
    assert_eq!(world.put(&path, shown).await.status, 200, "what was shown can be sent back");
    let secrets = world.post(&format!("{path}/listSecrets")).await.json();
    assert_eq!(secrets, json!({ "value": [{ "name": "pw", "value": "hunter2" }] }));

    let crd = json!({
        "apiVersion": "dapr.io/v1alpha1", "kind": "Component", "metadata": { "name": "pubsub" },
        "spec": { "type": "pubsub.redis", "version": "v1", "metadata": [
            { "name": "redisHost", "value": "r" }, { "name": "pw", "secretKeyRef": { "name": "s", "key": "redis-pw" } } ] },
        "auth": { "secretStore": "vault" }, "scopes": ["web"],
    });
    let made = world.put(&format!("{ENV}/daprComponents/pubsub"), crd).await.json();
    assert_eq!(made["properties"]["componentType"], "pubsub.redis");
    assert_eq!(made["properties"]["metadata"][1], json!({ "name": "pw", "secretRef": "redis-pw" }));

    let policy = format!("{path}/resiliencyPolicies/p");
    let body = json!({ "properties": { "outboundPolicy": { "httpRetryPolicy": { "maxRetries": "5" } } } });
    assert_eq!(world.put(&policy, body).await.status, 200);
    let body = json!({ "properties": { "outboundPolicy": { "timeoutPolicy": { "responseTimeoutInSeconds": 0 } } } });
    assert_eq!(world.put(&policy, body).await.status, 400);
    assert_eq!(world.delete(&path).await.status, 200);
    assert_eq!(world.get(&policy).await.status, 404, "a policy goes with its component");
}

#[tokio::test]
async fn a_wrong_component_is_told_all_at_once() {
    let world = World::with_environment().await;
    let body = json!({ "properties": {
        "componentType": "redis", "version": "1", "initTimeout": "soon", "scopes": ["a", "a"],
        "secrets": [{ "name": "Bad Name", "value": "x" }, { "name": "empty" }],
        "metadata": [{ "name": "p", "secretRef": "nowhere" }, { "name": "P", "value": "1", "secretRef": "empty" }, {}],
    } });
    let text = world.transcript(Method::PUT, &format!("{ENV}/daprComponents/bad"), body).await;
    let targets: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("\"target\": ")).collect();
    expect![[r#"
        [
            "\"properties.componentType\"",
            "\"properties.version\"",
            "\"properties.secrets[0].name\"",
            "\"properties.secrets[1]\"",
            "\"properties.metadata[0].secretRef\"",
            "\"properties.metadata[1].name\"",
            "\"properties.metadata[1]\"",
            "\"properties.metadata[2].name\"",
            "\"properties.scopes[1]\"",
            "\"properties.initTimeout\"",
        ]
    "#]]
    .assert_debug_eq(&targets);
}

#[tokio::test]
async fn path_routing_names_what_exists() {
    let world = World::with_environment().await;
    world.put(WEB, app_body("nginx", "v1")).await;
    let path = format!("{ENV}/httpRouteConfigs/routes");
    let body = json!({ "properties": { "rules": [
        { "description": "api", "routes": [{ "match": { "pathSeparatedPrefix": "/api" }, "action": { "prefixRewrite": "/" } }],
          "targets": [{ "containerApp": "web", "revision": "web--v1" }] },
        { "routes": [{ "match": { "path": "/", "caseSensitive": "false" } }], "targets": [{ "containerApp": "WEB" }] },
    ] } });
    let made = world.put(&path, body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.json()["properties"]["fqdn"], "routes.env.localhost");
    let wrong = json!({ "properties": { "rules": [
        { "routes": [{ "match": { "prefix": "/", "path": "/" } }], "targets": [{ "containerApp": "web" }] },
        { "routes": [{ "match": { "prefix": "x" } }], "targets": [] },
        { "routes": [], "targets": [{ "containerApp": "web", "weight": 50 }, { "containerApp": "other", "weight": 40 }] },
    ] } });
    let refused = world.put(&path, wrong).await;
    assert_eq!(
        (refused.status, refused.json()["error"]["details"].as_array().unwrap().len()),
        (400, 5),
        "{}",
        refused.text
    );
    let nobody = json!({ "properties": { "rules": [
        { "routes": [{ "match": { "prefix": "/" } }], "targets": [{ "containerApp": "nobody" }] },
    ] } });
    assert_eq!(
        world.put(&path, nobody.clone()).await.json()["error"]["target"],
        "properties.rules[0].targets[0].containerApp"
    );
    assert_eq!(world.put(&format!("{ENV}/httpRouteConfigs/web"), nobody).await.status, 400, "the app's host");
    let patched = world.patch(&path, json!({ "properties": { "customDomains": [{ "name": "A.Example.com" }] } })).await;
    assert_eq!(patched.status, 200, "{}", patched.text);
    assert_eq!(patched.json()["properties"]["rules"].as_array().unwrap().len(), 2, "a patch leaves the rest");
}

#[tokio::test]
async fn maintenance_detectors_and_questions() {
    let world = World::with_environment().await;
    let path = format!("{ENV}/maintenanceConfigurations/default");
    let entry = json!({ "weekDay": "sunday", "startHourUtc": "12", "durationHours": 12 });
    let body = |entries: Value| json!({ "properties": { "scheduledEntries": entries } });
    assert_eq!(world.put(&path, body(json!([entry]))).await.status, 201);
    assert_eq!(world.get(&path).await.json()["properties"]["scheduledEntries"][0]["weekDay"], "Sunday");
    for bad in
        [json!([]), json!([entry, entry]), json!([{ "weekDay": "Sunday", "startHourUtc": 24, "durationHours": 7 }])]
    {
        assert_eq!(world.put(&path, body(bad)).await.status, 400);
    }
    assert_eq!(world.get(&format!("{ENV}/detectorProperties/rootApi/")).await.json(), world.get(ENV).await.json());
    world.put(WEB, app_body("nginx", "v1")).await;
    world.finish(WEB, Some(("InvalidImage", "no such image"))).await;
    let found = world.get(&format!("{ENV}/detectors/containerAppProvisioning")).await.json();
    assert_eq!(found["properties"]["dataset"][0]["table"]["rows"], json!([[WEB, "(InvalidImage) no such image"]]));
    assert_eq!(world.get(&format!("{ENV}/detectors")).await.json()["value"].as_array().unwrap().len(), 2);
    let ask = async |name: &str, kind: &str| {
        let body = json!({ "name": name, "type": kind }).to_string();
        world.ask(Method::POST, &format!("{ENV}/checkNameAvailability"), body).await.json()
    };
    let kind = "Microsoft.App/managedEnvironments/certificates";
    assert_eq!(ask("free", kind).await, json!({ "nameAvailable": true }));
    assert_eq!(ask("web", "Microsoft.App/containerApps").await["reason"], "AlreadyExists");
    let migration = format!("{ENV}/checkMigrationEligibility");
    let answer = world.ask(Method::POST, &migration, json!({ "targetMode": "express" }).to_string()).await.json();
    assert_eq!((&answer["isEligible"], &answer["targetMode"]), (&json!(false), &json!("Express")));
}

#[tokio::test]
async fn an_operation_that_is_not_built_says_what_instead() {
    let world = World::with_environment().await;
    let missing = world.get(&format!("{RG}/providers/Microsoft.App/connectedEnvironments/c")).await;
    assert_eq!(missing.status, 501);
    assert!(missing.text.contains("use a managed environment"), "{}", missing.text);
    let coverage = world.get("/cove/v1/coverage").await.json();
    assert_eq!(coverage["operations"], 173);
    let locations = format!("{SUB}/providers/Microsoft.App/locations/eastus");
    for rest in ["availableManagedEnvironmentsModes", "billingMeters", "usages"] {
        assert_eq!(world.get(&format!("{locations}/{rest}")).await.status, 200, "{rest}");
    }
    let id = world.post(&format!("{SUB}/providers/Microsoft.App/getCustomDomainVerificationId")).await;
    assert_eq!(id.json().as_str().unwrap().len(), 64);
}

#[tokio::test]
async fn children_go_with_their_environment() {
    let world = World::with_environment().await;
    world.put(&format!("{ENV}/certificates/shop"), certificate(PEM, "")).await;
    assert_eq!(world.delete(ENV).await.status, 202);
    assert_eq!(world.put(ENV, json!({ "location": "eastus" })).await.status, 201);
    assert_eq!(world.get(&format!("{ENV}/certificates")).await.json()["value"], json!([]));
}

#[tokio::test]
async fn what_is_not_known_survives_on_every_type() {
    let world = World::with_environment().await;
    let (chain, key) = PEM.split_at(PEM.find("-----BEGIN PRIVATE KEY").unwrap());
    let issued = Issued { chain_pem: chain.to_owned(), key_pem: key.to_owned() };
    world.plane.set_authority(Arc::new(move |_| Ok(issued.clone())));
    world.put(WEB, app_body("nginx", "v1")).await;
    let entry = json!({ "weekDay": "Sunday", "startHourUtc": 0, "durationHours": 8 });
    let rule = json!({ "routes": [{ "match": { "prefix": "/" } }], "targets": [{ "containerApp": "web" }] });
    for (path, properties) in [
        ("", json!({})),
        ("/certificates/c", json!({ "value": BASE64.encode(PEM) })),
        ("/managedCertificates/c", json!({ "subjectName": "a.example.com" })),
        ("/daprComponents/c", json!({ "componentType": "state.redis", "version": "v1" })),
        ("/daprComponents/c/resiliencyPolicies/p", json!({ "inboundPolicy": {} })),
        ("/httpRouteConfigs/c", json!({ "rules": [rule] })),
        ("/maintenanceConfigurations/default", json!({ "scheduledEntries": [entry] })),
    ] {
        let path = format!("{ENV}{path}");
        let mut body = json!({ "location": "eastus", "properties": properties });
        body["properties"]["futureProperty"] = json!({ "deep": [1, "x"] });
        body["futureMember"] = json!("y");
        let made = world.put(&path, body).await;
        assert!(matches!(made.status, 200 | 201), "{path}: {}", made.text);
        let shown = world.get(&path).await.json();
        assert_eq!(shown["properties"]["futureProperty"], json!({ "deep": [1, "x"] }), "{path}");
        let again = world.put(&path, shown.clone()).await;
        assert_eq!((again.status, &again.json()["properties"]), (200, &shown["properties"]), "{path}: {}", again.text);
    }
}

#[tokio::test]
async fn versions_that_azure_never_published_are_refused() {
    let world = World::with_environment().await;
    for version in cove_arm::provider::APP_API_VERSIONS {
        assert_eq!(world.get(&format!("{ENV}?api-version={version}")).await.status, 200, "{version}");
    }
    let refused = world.get(&format!("{ENV}?api-version=2025-07-02")).await;
    assert_eq!((refused.status, refused.code().as_str()), (400, "NoRegisteredProviderFound"));
    assert_eq!(world.get(&format!("{SUB}/providers/Microsoft.App?api-version=2024-11-01")).await.status, 200);
}
