//! Environments: what az sends, what comes back, what is refused.

use super::*;

fn id() -> ResourceId {
    ResourceId::resource("s1", "MyRG", "Microsoft.App/managedEnvironments", "myenv").unwrap()
}

fn put(body: &Value) -> Result<Parsed, ArmError> {
    parse_put(body, &PutContext { id: &id(), default_domain: "myenv.localhost" })
}

fn show(doc: &Value) -> Value {
    render(
        doc,
        &View {
            id: &id(),
            provisioning_state: "Succeeded",
            default_domain: "myenv.localhost",
            static_ip: "127.0.0.1",
            origin: "https://localhost:8443",
            custom_domain_verification_id: "C0FE",
            system_data: None,
        },
    )
}

/// As `az containerapp env create` sends it.
fn az_create() -> Value {
    json!({
        "location": "eastus", "tags": null, "sku": { "name": "Consumption" },
        "properties": {
            "daprAIInstrumentationKey": null, "vnetConfiguration": null, "internalLoadBalancerEnabled": null,
            "appLogsConfiguration": {
                "destination": "log-analytics",
                "logAnalyticsConfiguration": { "customerId": "c-1", "sharedKey": "hush" },
            },
            "customDomainConfiguration": null, "InfrastructureResourceGroup": null, "zoneRedundant": false,
            "workloadProfiles": [{ "workloadProfileType": "CONSUMPTION", "Name": "Consumption", "minimumCount": "0" }],
            "peerAuthentication": { "mtls": { "enabled": false } },
        },
    })
}

#[test]
fn the_body_of_az_create_is_understood_and_its_key_kept_apart() {
    let parsed = put(&az_create()).unwrap();
    assert_eq!(parsed.environment.log_workspace.as_deref(), Some("c-1"));
    assert_eq!(parsed.secrets["log-analytics-shared-key"].as_deref(), Some("hush"));
    assert!(!parsed.doc.to_string().contains("hush"));
    let shown = show(&parsed.doc);
    assert!(!shown.to_string().contains("null"));
    let properties = &shown["properties"];
    assert_eq!(properties["workloadProfiles"][0]["name"], "Consumption");
    assert_eq!(properties["defaultDomain"], "myenv.localhost");
    assert_eq!(shown["location"], "East US");
}

#[test]
fn what_was_shown_can_be_sent_back_and_patched() {
    let parsed = put(&az_create()).unwrap();
    let again = put(&show(&parsed.doc)).unwrap();
    assert_eq!(again.environment, parsed.environment);
    assert_eq!(show(&again.doc), show(&parsed.doc));
    let patch = json!({ "tags": { "a": "b" }, "properties": { "appLogsConfiguration": { "destination": "none", "logAnalyticsConfiguration": null } } });
    let context = PutContext { id: &id(), default_domain: "myenv.localhost" };
    let patched = parse_patch(&parsed.doc, &patch, &context).unwrap();
    assert_eq!(patched.environment.log_workspace, None);
    assert_eq!(patched.doc["tags"]["a"], "b");
}

#[test]
fn rules_are_told_with_their_place() {
    let code = |properties: Value| {
        let error = put(&json!({ "location": "eastus", "properties": properties })).unwrap_err();
        (error.status, error.target.unwrap_or(error.code))
    };
    let at = |path: &str| format!("properties.{path}");
    assert_eq!(code(json!({ "publicNetworkAccess": "disabled" })), (501, at("publicNetworkAccess")));
    assert_eq!(
        code(json!({ "ingressConfiguration": { "requestIdleTimeout": "3" } })),
        (400, at("ingressConfiguration.requestIdleTimeout"))
    );
    assert_eq!(code(json!({ "vnetConfiguration": { "internal": true } })), (501, at("vnetConfiguration.internal")));
    assert_eq!(
        code(json!({ "workloadProfiles": [{ "name": "a", "workloadProfileType": "D5" }] })),
        (400, at("workloadProfiles[0].workloadProfileType"))
    );
    assert_eq!(
        code(json!({ "appLogsConfiguration": { "destination": "disk" } })),
        (400, at("appLogsConfiguration.destination"))
    );
    assert_eq!(
        code(json!({ "appLogsConfiguration": { "destination": "log-analytics" } })),
        (400, at("appLogsConfiguration.logAnalyticsConfiguration"))
    );
    assert_eq!(code(json!({ "workloadProfiles": [{}, 1] })), (400, "InvalidRequestParameterWithDetails".to_owned()));
}
