//! Managed certificates that are ordered outside, and DNS suffixes of environments.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use cove_model::{CERTIFICATE_KEY_SECRET, DomainValidation, Environment, OrderState, ResourceId};
use serde_json::{Value, json};

use super::harness::{RG, World};
use crate::Issued;

const ENV: &str = "/subscriptions/00000000-0000-0000-0000-0000000000aa/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/env";
/// For `shop.example.com` and `*.shop.example.com`.
const PEM: &str = include_str!("data/shop.pem");

fn issued() -> Issued {
    let (chain, key) = PEM.split_at(PEM.find("-----BEGIN PRIVATE KEY").unwrap());
    Issued { chain_pem: chain.to_owned(), key_pem: key.to_owned() }
}

fn body(method: &str) -> Value {
    json!({ "location": "eastus", "properties": { "subjectName": "Shop.example.com", "validationMethod": method } })
}

async fn properties(world: &World, path: &str) -> Value {
    world.get(path).await.json()["properties"].clone()
}

#[tokio::test]
async fn an_order_is_pending_until_it_is_signed() {
    let world = World::with_environment().await;
    world.plane.order_certificates_outside();
    let path = format!("{ENV}/managedCertificates/mc");
    let id = ResourceId::parse(&path).unwrap();
    let made = world.put(&path, body("txt")).await;
    assert_eq!((made.status, &made.json()["properties"]["provisioningState"]), (201, &json!("Pending")));
    let orders = world.plane.ordered_certificates().unwrap();
    assert_eq!((orders.len(), orders[0].subject.as_str()), (1, "shop.example.com"));
    assert_eq!((orders[0].state, orders[0].validation), (OrderState::Pending, DomainValidation::Txt));
    assert_eq!(orders[0].validity, None);

    world.plane.certificate_token(&id, "the token").await.unwrap();
    world.plane.certificate_not_issued(&id, "the authority cannot be reached", false).await.unwrap();
    let shown = properties(&world, &path).await;
    assert_eq!((&shown["provisioningState"], &shown["validationToken"]), (&json!("Pending"), &json!("the token")));
    assert_eq!(shown["error"], "the authority cannot be reached");
    world.plane.certificate_not_issued(&id, "the authority cannot be reached", false).await.unwrap();
    let told = world.events.lock().unwrap().iter().filter(|event| event.message.contains("cannot be reached")).count();
    assert_eq!(told, 1, "the same trouble is told once");

    world.plane.certificate_issued(&id, &issued()).await.unwrap();
    let shown = properties(&world, &path).await;
    assert_eq!(shown["provisioningState"], "Succeeded");
    assert_eq!((shown.get("validationToken"), shown.get("error")), (None, None));
    assert_eq!(shown["thumbprint"].as_str().unwrap().len(), 40);
    assert!(world.store.secrets(&id).unwrap()[CERTIFICATE_KEY_SECRET].contains("PRIVATE KEY"));
    let orders = world.plane.ordered_certificates().unwrap();
    assert!(orders[0].validity.is_some_and(|(from, to)| from < to));
    let again = world.put(&path, body("txt")).await;
    assert_eq!((again.status, &again.json()["properties"]), (200, &shown), "a second PUT orders nothing");

    // a renewal that fails takes nothing away
    world.plane.certificate_not_issued(&id, "no", true).await.unwrap();
    let after = properties(&world, &path).await;
    assert_eq!((&after["provisioningState"], &after["error"]), (&json!("Succeeded"), &json!("no")));
    assert_eq!(after["thumbprint"], shown["thumbprint"]);
    // what is gone is not written down
    assert_eq!(world.delete(&path).await.status, 200);
    world.plane.certificate_issued(&id, &issued()).await.unwrap();
    assert_eq!(world.get(&path).await.status, 404);
}

#[tokio::test]
async fn a_refused_order_is_begun_again_by_a_put() {
    let world = World::with_environment().await;
    world.plane.order_certificates_outside();
    let path = format!("{ENV}/managedCertificates/mc");
    let id = ResourceId::parse(&path).unwrap();
    assert_eq!(world.put(&path, body("CNAME")).await.status, 201);
    world.plane.certificate_not_issued(&id, "the domain is somebody else's", true).await.unwrap();
    let shown = properties(&world, &path).await;
    assert_eq!(
        (&shown["provisioningState"], &shown["error"]),
        (&json!("Failed"), &json!("the domain is somebody else's"))
    );
    assert_eq!(world.plane.ordered_certificates().unwrap()[0].state, OrderState::Failed);
    let again = world.put(&path, body("CNAME")).await;
    assert_eq!((again.status, &again.json()["properties"]["provisioningState"]), (200, &json!("Pending")));
    assert_eq!(again.json()["properties"].get("error"), None);

    let bad = Issued { key_pem: "no key".into(), ..issued() };
    assert!(world.plane.certificate_issued(&id, &bad).await.is_err(), "what cannot be served is not stored");
    assert_eq!(properties(&world, &path).await["provisioningState"], "Pending");
}

#[tokio::test]
async fn a_suffix_needs_a_certificate_for_its_names() {
    let world = World::with_environment().await;
    let environment =
        |suffix: Value| json!({ "location": "eastus", "properties": { "customDomainConfiguration": suffix } });
    let file = BASE64.encode(PEM);
    let asked = json!({ "dnsSuffix": "Shop.Example.com", "certificateValue": file, "certificatePassword": "" });
    let made = world.put(ENV, environment(asked.clone())).await;
    assert_eq!(made.status, 200, "{}", made.text);
    assert!(!made.text.contains(&file) && !made.text.contains("certificatePassword"), "{}", made.text);
    let own = made.json()["properties"]["customDomainConfiguration"].clone();
    assert_eq!((&own["dnsSuffix"], &own["subjectName"]), (&json!("shop.example.com"), &json!("CN=shop.example.com")));
    let id = ResourceId::parse(ENV).unwrap();
    let suffix = || {
        let row = world.store.resource(&id).unwrap().unwrap();
        serde_json::from_value::<Environment>(row.spec.unwrap()).unwrap().suffix
    };
    assert_eq!(suffix().unwrap().name, "shop.example.com");
    assert!(world.store.secrets(&id).unwrap().contains_key(CERTIFICATE_KEY_SECRET));

    // what was shown is sent back, and tags change: file and key stay
    assert_eq!(world.put(ENV, world.get(ENV).await.json()).await.status, 200);
    let patched = world.patch(ENV, json!({ "tags": { "a": "b" } })).await.json();
    assert_eq!(patched["properties"]["customDomainConfiguration"], own);
    assert!(suffix().unwrap().chain_pem.contains("BEGIN CERTIFICATE"));
    assert!(world.store.secrets(&id).unwrap().contains_key(CERTIFICATE_KEY_SECRET));

    let other = format!("{RG}/providers/Microsoft.App/managedEnvironments/other");
    for (path, suffix, status, code) in [
        (ENV, json!({ "dnsSuffix": "other.example.com" }), 400, "CertificateSubjectMismatch"),
        (ENV, json!({ "dnsSuffix": "no domain", "certificateValue": file }), 400, "InvalidParameterValue"),
        (ENV, json!({ "certificateValue": file }), 400, "InvalidParameterValue"),
        (ENV, json!({ "dnsSuffix": "a.example.com", "certificateValue": "%" }), 400, "CertificateInvalid"),
        (&other, json!({ "dnsSuffix": "a.example.com" }), 400, "InvalidParameterValue"),
        (&other, json!({ "dnsSuffix": "eu.shop.example.com", "certificateValue": file }), 409, "DnsSuffixInUse"),
        (&other, json!({ "dnsSuffix": "example.com", "certificateValue": file }), 409, "DnsSuffixInUse"),
        (&other, json!({ "dnsSuffix": "apps.localhost", "certificateValue": file }), 409, "DnsSuffixInUse"),
    ] {
        let refused = world.put(path, environment(suffix.clone())).await;
        assert_eq!((refused.status, refused.code().as_str()), (status, code), "{suffix}: {}", refused.text);
    }
    assert_eq!(world.put(ENV, environment(json!({}))).await.status, 200);
    assert_eq!(suffix(), None);
    assert!(!world.store.secrets(&id).unwrap().contains_key(CERTIFICATE_KEY_SECRET), "the key goes with it");
}

#[tokio::test]
async fn encryption_between_apps_is_accepted_and_explained() {
    let world = World::with_environment().await;
    let asked = json!({ "peerAuthentication": { "mtls": { "enabled": true } } });
    let made = world.put(ENV, json!({ "location": "eastus", "properties": asked })).await.json();
    assert_eq!(made["properties"]["peerAuthentication"]["mtls"]["enabled"], true);
    let words = made["properties"]["coveWarnings"].to_string();
    assert!(words.contains("vouches for") && words.contains("not encrypted besides"), "{words}");
}
