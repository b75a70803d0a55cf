//! Bodies as `az` and the SDKs send them, all mistakes at once, and what a patch changes.

use expect_test::{expect, expect_file};
use serde_json::json;

use cove_model::{SessionLifecycle, SuspendRule};

use super::*;

fn id() -> ResourceId {
    ResourceId::resource("s", "rg", cove_model::SESSION_POOL_KIND, "my-session-pool").unwrap()
}

static NO_SNAPSHOTS: BTreeMap<String, SnapshotId> = BTreeMap::new();

fn context<'a>(id: &'a ResourceId, known: &'a BTreeSet<String>, generation: &'a RevisionName) -> PoolContext<'a> {
    PoolContext {
        id,
        known_secrets: known,
        default_isolation: &SessionIsolation::Hardened,
        isolations: &[SessionIsolation::Hardened],
        snapshots: &NO_SNAPSHOTS,
        generation,
    }
}

fn generation() -> RevisionName {
    cove_model::generation_name("my-session-pool", "abc1234").unwrap()
}

fn put(body: &Value) -> Result<ParsedPool, ArmError> {
    parse_put(body, &context(&id(), &BTreeSet::new(), &generation()))
}

/// What `az containerapp sessionpool create` of the seed sends, nulls included.
fn from_az() -> Value {
    json!({
        "location": "eastus",
        "tags": null,
        "identity": null,
        "properties": {
            "environmentId": "/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/managedEnvironments/env",
            "poolManagementType": "Dynamic",
            "containerType": "CustomContainer",
            "customContainerTemplate": {
                "containers": [{
                    "name": "my-session-pool", "image": "myregistry.azurecr.io/my-container-image:1.0",
                    "command": null, "args": null, "probes": null, "volumeMounts": null,
                    "env": [{ "name": "key1", "value": "value1" }, { "name": "key2", "secretRef": "s1" }],
                    "resources": { "cpu": 0.25, "memory": "0.5Gi" },
                }],
                "ingress": { "targetPort": 80 },
                "registryCredentials": {
                    "server": "myregistry.azurecr.io", "username": "me", "passwordSecretRef": "myregistryazurecrio-me",
                },
            },
            "secrets": [{ "name": "myregistryazurecrio-me", "value": "pw" }, { "name": "s1", "value": "v1" }],
            "dynamicPoolConfiguration": { "lifecycleConfiguration": {
                "lifecycleType": "Timed", "maxAlivePeriodInSeconds": null, "cooldownPeriodInSeconds": 300,
            } },
            "sessionNetworkConfiguration": { "status": "EgressDisabled" },
            "scaleConfiguration": { "maxConcurrentSessions": 10, "readySessionInstances": 5 },
            "managedIdentitySettings": null,
        },
    })
}

fn with(pointer: &str, value: Value) -> Value {
    let mut body = from_az();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    body.pointer_mut(parent).unwrap()[name] = value;
    body
}

/// All problems, one a line: code, target, message.
fn problems(result: Result<ParsedPool, ArmError>) -> String {
    let Err(error) = result else { return "none\n".into() };
    let all: Vec<&ArmError> = if error.details.is_empty() { vec![&error] } else { error.details.iter().collect() };
    all.iter().map(|one| format!("{} {} {}\n", one.code, one.target.as_deref().unwrap_or("-"), one.message)).collect()
}

#[test]
fn rules_of_egress_are_read_and_checked() {
    let network = |network: Value| {
        let mut body = from_az();
        body["properties"]["sessionNetworkConfiguration"] = network;
        put(&body)
    };
    let parsed = network(json!({ "status": "EgressEnabled", "coveEgressRules": [
        { "action": "Allow", "host": "PyPI.org", "ports": [443] }, { "host": "*.example.org" }, { "host": "10.1.0.0/16" },
    ] }))
    .unwrap();
    let shown: Vec<_> = parsed.pool.egress_rules.iter().map(|rule| format!("{} {:?}", rule.host, rule.ports)).collect();
    assert_eq!(shown, ["pypi.org [443]", "*.example.org []", "10.1.0.0/16 []"]);
    let known = parsed.secrets.keys().cloned().collect();
    let again = parse_put(&parsed.doc, &context(&id(), &known, &generation())).unwrap();
    assert_eq!((&again.pool, &again.doc), (&parsed.pool, &parsed.doc));
    let without = network(json!({ "status": "EgressEnabled" })).unwrap();
    assert!(!without.pool.is_same_inside(&parsed.pool), "other rules make another generation");
    for (given, said) in [
        (json!({ "coveEgressRules": [{ "host": "a.org" }] }), "EgressEnabled"),
        (json!({ "status": "EgressEnabled", "coveEgressRules": [{ "ports": [1] }] }), "needs a host"),
        (json!({ "status": "EgressEnabled", "coveEgressRules": [{ "host": "http://a.org" }] }), "'http://a.org'"),
        (json!({ "status": "EgressEnabled", "coveEgressRules": [{ "host": "10.0.0.1/8" }] }), "10.0.0.1/8"),
        (json!({ "status": "EgressEnabled", "coveEgressRules": [{ "host": "a.org", "ports": [0] }] }), "1 to 65535"),
        (json!({ "status": "EgressEnabled", "coveEgressRules": [{ "host": "a.org", "action": "Deny" }] }), "Allow"),
        (json!({ "status": "EgressEnabled", "coveEgressRules": vec![json!({ "host": "a.org" }); 65] }), "64"),
    ] {
        let refused = network(given.clone()).unwrap_err();
        assert!(format!("{refused:?}").contains(said), "{given}: {refused:?}");
    }
}

#[test]
fn the_seeds_command_is_read_and_shown() {
    let parsed = put(&from_az()).unwrap();
    let pool = &parsed.pool;
    assert_eq!((pool.sessions_max, pool.sessions_ready, pool.target_port), (10, 5, 80));
    assert_eq!(pool.lifecycle, cove_model::SessionLifecycle::Timed { cooldown_secs: 300 });
    assert_eq!(pool.registries[0].password_secret_ref.as_deref(), Some("myregistryazurecrio-me"));
    assert_eq!(parsed.secrets["s1"].as_deref(), Some("v1"));
    assert!(!parsed.doc.to_string().contains("v1\"") && !parsed.doc.to_string().contains("\"pw\""));
}

#[test]
fn the_seeds_pool_is_shown() {
    let parsed = put(&from_az()).unwrap();
    let pool = &parsed.pool;
    let view = View {
        id: &id(),
        provisioning_state: "Succeeded",
        endpoint: "https://my-session-pool.env.localhost:8443",
        node_count: 1,
        system_data: None,
    };
    expect_file!["shown.json"].assert_eq(&serde_json::to_string_pretty(&render(&parsed.doc, pool, &view)).unwrap());
}

#[test]
fn what_was_shown_can_be_put_again() {
    let first = put(&from_az()).unwrap();
    let view =
        View { id: &id(), provisioning_state: "Succeeded", endpoint: "https://x", node_count: 1, system_data: None };
    let shown = render(&first.doc, &first.pool, &view);
    let known = first.secrets.keys().cloned().collect();
    let again = parse_put(&shown, &context(&id(), &known, &generation())).unwrap();
    assert_eq!(again.pool, first.pool);
    assert_eq!(again.secrets["s1"], None);
}

#[test]
fn defaults_are_azs() {
    let mut body = from_az();
    for name in ["dynamicPoolConfiguration", "sessionNetworkConfiguration", "scaleConfiguration"] {
        body["properties"].as_object_mut().unwrap().remove(name);
    }
    let with_all = put(&from_az()).unwrap();
    assert_eq!(put(&body).unwrap().pool, with_all.pool);
    body["properties"]["scaleConfiguration"] = json!({ "maxConcurrentSessions": "3" });
    assert_eq!(put(&body).unwrap().pool.sessions_ready, 3);
}

#[test]
fn the_first_previews_wrote_the_lifecycle_otherwise() {
    let old = json!({ "executionType": "Timed", "cooldownPeriodInSeconds": 600 });
    let parsed = put(&with("/properties/dynamicPoolConfiguration", old)).unwrap();
    assert_eq!(parsed.pool.lifecycle, cove_model::SessionLifecycle::Timed { cooldown_secs: 600 });
}

#[test]
fn all_problems_are_told_at_once() {
    let body = json!({
        "properties": {
            "containerType": "CustomContainer",
            "customContainerTemplate": {
                "containers": [{ "name": "Bad_Name", "image": "", "resources": { "cpu": 0.3, "memory": "9Gi" },
                                 "env": [{ "name": "A", "secretRef": "none" }] }],
                "ingress": { "targetPort": 70000 },
                "registryCredentials": { "server": "r.example.com", "username": "u" },
            },
            "dynamicPoolConfiguration": { "lifecycleConfiguration": { "cooldownPeriodInSeconds": 10 } },
            "scaleConfiguration": { "maxConcurrentSessions": 2, "readySessionInstances": 3 },
            "coveIsolation": "vm",
        },
    });
    let bad = ResourceId::resource("s", "rg", cove_model::SESSION_POOL_KIND, "Bad--Pool").unwrap();
    let found = problems(parse_put(&body, &context(&bad, &BTreeSet::new(), &generation())));
    expect![[r#"
        InvalidSessionPoolName - Session pool name 'Bad--Pool' is not valid: use 3 to 63 lower case letters, digits and `-`, start with a letter, end with a letter or digit, and do not use `--`.
        LocationRequired location The location property is required for this definition.
        InvalidParameterValue properties.scaleConfiguration.readySessionInstances readySessionInstances is 3 and maxConcurrentSessions is 2; no more sessions can be ready than may be allocated.
        InvalidParameterValueInContainerTemplate properties.customContainerTemplate.containers[0].name The container name 'Bad_Name' is not valid: use 1 to 63 lower case letters, digits and '-', with a letter or digit at both ends.
        InvalidParameterValueInContainerTemplate properties.customContainerTemplate.containers[0].image An image is required, such as 'registry.example.com/name:tag'.
        ContainerAppSecretRefNotFound properties.customContainerTemplate.containers[0].env[0].secretRef The secret 'none' does not exist; add it to properties.secrets.
        ContainerAppInvalidResourceTotal properties.customContainerTemplate.containers The total requested CPU and memory resources for this application (CPU: 0.3, memory: 9Gi) is invalid. Total CPU and memory for all containers defined in a Container App must add up to one of the following CPU - Memory combinations: [cpu: 0.25, memory: 0.5Gi]; [cpu: 0.5, memory: 1Gi]; [cpu: 0.75, memory: 1.5Gi]; [cpu: 1, memory: 2Gi]; [cpu: 1.25, memory: 2.5Gi]; [cpu: 1.5, memory: 3Gi]; [cpu: 1.75, memory: 3.5Gi]; [cpu: 2, memory: 4Gi]; [cpu: 2.25, memory: 4.5Gi]; [cpu: 2.5, memory: 5Gi]; [cpu: 2.75, memory: 5.5Gi]; [cpu: 3, memory: 6Gi]; [cpu: 3.25, memory: 6.5Gi]; [cpu: 3.5, memory: 7Gi]; [cpu: 3.75, memory: 7.5Gi]; [cpu: 4, memory: 8Gi].
        InvalidParameterValue properties.customContainerTemplate.registryCredentials The registry 'r.example.com' needs both username and passwordSecretRef.
        InvalidParameterValue properties.customContainerTemplate.ingress.targetPort The value 70000 is not valid; expected 1 to 65535.
        ManagedEnvironmentRequired properties.environmentId The id of a managed environment is required: /subscriptions/…/managedEnvironments/NAME.
        InvalidParameterValue properties.dynamicPoolConfiguration.lifecycleConfiguration.cooldownPeriodInSeconds The value 10 is not valid; expected 300 to 3600.
        SessionIsolationUnavailable properties.coveIsolation This machine has no isolation 'vm' for sessions; it has: hardened. `cove doctor` says what each needs.
    "#]].assert_eq(&found);
}

#[test]
fn ranges_and_kinds_are_checked() {
    let lifecycle = "/properties/dynamicPoolConfiguration/lifecycleConfiguration";
    let cases = [
        ("cool-down 299", with(&format!("{lifecycle}/cooldownPeriodInSeconds"), json!(299))),
        ("cool-down 3601", with(&format!("{lifecycle}/cooldownPeriodInSeconds"), json!(3601))),
        ("max alive with Timed", with(&format!("{lifecycle}/maxAlivePeriodInSeconds"), json!(3600))),
        ("cool-down with exit", with(&format!("{lifecycle}/lifecycleType"), json!("OnContainerExit"))),
        ("lifecycle word", with(&format!("{lifecycle}/lifecycleType"), json!("Never"))),
        ("no sessions", with("/properties/scaleConfiguration/maxConcurrentSessions", json!(0))),
        ("601 sessions", with("/properties/scaleConfiguration/maxConcurrentSessions", json!(601))),
        ("no port", with("/properties/customContainerTemplate/ingress", json!({}))),
        ("no containers", with("/properties/customContainerTemplate/containers", json!([]))),
        ("no environment", with("/properties/environmentId", json!(null))),
        ("network word", with("/properties/sessionNetworkConfiguration/status", json!("Open"))),
        ("by hand", with("/properties/poolManagementType", json!("Manual"))),
        ("kind", with("/properties/containerType", json!(null))),
        ("interpreter", with("/properties/containerType", json!("PythonLTS"))),
        ("mcp", with("/properties/mcpServerSettings", json!({ "isMCPServerEnabled": true }))),
        ("mcp without a key", with("/properties/mcpServerSettings", json!({ "isMcpServerApiKeyDisabled": true }))),
        ("identity", with("/properties/managedIdentitySettings", json!([{ "identity": "system" }]))),
        ("handler", with("/properties/coveIsolation", json!("runsc"))),
        ("isolation", with("/properties/coveIsolation", json!("hardened"))),
    ];
    let found: String = cases.iter().map(|(name, body)| format!("{name}: {}", problems(put(body)))).collect();
    expect![[r#"
        cool-down 299: InvalidParameterValue properties.dynamicPoolConfiguration.lifecycleConfiguration.cooldownPeriodInSeconds properties.dynamicPoolConfiguration.lifecycleConfiguration.cooldownPeriodInSeconds: The value 299 is not valid; expected 300 to 3600.
        cool-down 3601: InvalidParameterValue properties.dynamicPoolConfiguration.lifecycleConfiguration.cooldownPeriodInSeconds properties.dynamicPoolConfiguration.lifecycleConfiguration.cooldownPeriodInSeconds: The value 3601 is not valid; expected 300 to 3600.
        max alive with Timed: InvalidParameterValue properties.dynamicPoolConfiguration.lifecycleConfiguration.maxAlivePeriodInSeconds 'properties.dynamicPoolConfiguration.lifecycleConfiguration.maxAlivePeriodInSeconds' means nothing with lifecycleType 'Timed'; give cooldownPeriodInSeconds, or lifecycleType 'OnContainerExit'.
        cool-down with exit: InvalidParameterValue properties.dynamicPoolConfiguration.lifecycleConfiguration.cooldownPeriodInSeconds 'properties.dynamicPoolConfiguration.lifecycleConfiguration.cooldownPeriodInSeconds' means nothing with lifecycleType 'OnContainerExit'; give maxAlivePeriodInSeconds.
        lifecycle word: InvalidParameterValue properties.dynamicPoolConfiguration.lifecycleConfiguration.lifecycleType properties.dynamicPoolConfiguration.lifecycleConfiguration.lifecycleType: the value is 'Never'; expected one of Timed, OnContainerExit.
        no sessions: InvalidParameterValue properties.scaleConfiguration.maxConcurrentSessions properties.scaleConfiguration.maxConcurrentSessions: The value 0 is not valid; expected 1 to 600.
        601 sessions: InvalidParameterValue properties.scaleConfiguration.maxConcurrentSessions properties.scaleConfiguration.maxConcurrentSessions: The value 601 is not valid; expected 1 to 600.
        no port: InvalidParameterValue properties.customContainerTemplate.ingress.targetPort properties.customContainerTemplate.ingress.targetPort: targetPort is required: the port that the container serves HTTP on, 1 to 65535.
        no containers: InvalidParameterValueInContainerTemplate properties.customContainerTemplate.containers properties.customContainerTemplate.containers: At least one container is required.
        no environment: ManagedEnvironmentRequired properties.environmentId properties.environmentId: The id of a managed environment is required: /subscriptions/…/managedEnvironments/NAME.
        network word: InvalidParameterValue properties.sessionNetworkConfiguration.status properties.sessionNetworkConfiguration.status: the value is 'Open'; expected one of EgressEnabled, EgressDisabled.
        by hand: NotImplemented properties.poolManagementType properties.poolManagementType: A session pool that is managed by hand: not implemented yet; use 'Dynamic', which allocates a session when an identifier is first seen.
        kind: InvalidParameterValue properties.containerType properties.containerType: containerType is required: CustomContainer, PythonLTS, NodeLTS or Shell.
        interpreter: InvalidParameterValue properties.customContainerTemplate properties.customContainerTemplate: customContainerTemplate belongs to containerType 'CustomContainer', and containerType is 'PythonLTS'; leave it out.
        mcp: none
        mcp without a key: NotImplemented properties.mcpServerSettings.isMCPServerApiKeyDisabled properties.mcpServerSettings.isMCPServerApiKeyDisabled: An MCP server without a key: not implemented yet; leave it out or false; rotateMCPServerCredentials makes a key that was given away useless.
        identity: ManagedIdentityNotAssigned properties.managedIdentitySettings[0].identity properties.managedIdentitySettings[0].identity: The identity 'system' is not assigned to the app; expected 'system' with a system-assigned identity, or the id of one of its user-assigned identities.
        handler: SessionIsolationUnavailable properties.coveIsolation properties.coveIsolation: This machine has no isolation 'runsc' for sessions; it has: hardened. `cove doctor` says what each needs.
        isolation: none
    "#]].assert_eq(&found);
}

#[test]
fn a_patch_changes_what_it_names() {
    let old = put(&from_az()).unwrap();
    let known: BTreeSet<String> = old.secrets.keys().cloned().collect();
    let (id, generation) = (id(), generation());
    let patch = |patch: Value| parse_patch(&old.doc, &patch, &context(&id, &known, &generation)).unwrap().pool;
    let scaled = patch(json!({ "properties": { "scaleConfiguration": { "readySessionInstances": 0 } } }));
    assert_eq!((scaled.sessions_max, scaled.sessions_ready), (10, 0));
    assert!(scaled.is_same_inside(&old.pool));
    let kind = json!({ "lifecycleConfiguration": { "lifecycleType": "OnContainerExit" } });
    let ends = patch(json!({ "properties": { "dynamicPoolConfiguration": kind } }));
    assert_eq!(ends.lifecycle, cove_model::SessionLifecycle::OnContainerExit { max_alive_secs: 3600 });
    let open = patch(json!({ "properties": { "sessionNetworkConfiguration": { "status": "egressenabled" } } }));
    assert_eq!(open.egress, cove_model::SessionEgress::Enabled);
    assert!(!open.is_same_inside(&old.pool));
}

#[test]
fn sessions_may_begin_with_a_snapshot_and_be_suspended() {
    let (id, known, generation) = (id(), BTreeSet::new(), generation());
    let snapshot = SnapshotId::new(&"a".repeat(32)).unwrap();
    let snapshots =
        BTreeMap::from([("base".to_owned(), snapshot.clone()), ("other/base".to_owned(), snapshot.clone())]);
    let context = PoolContext { snapshots: &snapshots, ..context(&id, &known, &generation) };
    let mut body = from_az();
    body["properties"]["coveSnapshot"] = json!("other/base");
    body["properties"]["coveSuspend"] = json!({});
    let parsed = parse_put(&body, &context).unwrap();
    assert_eq!(parsed.pool.snapshot.as_ref().unwrap().id, snapshot);
    let SessionLifecycle::Timed { cooldown_secs } = parsed.pool.lifecycle else { panic!("the seed's pools are timed") };
    let rule = SuspendRule { after_idle_secs: cooldown_secs, keep_secs: 86_400 };
    assert_eq!(parsed.pool.suspend, Some(rule));
    let known = parsed.secrets.keys().cloned().collect();
    let again = PoolContext { known_secrets: &known, ..context };
    assert_eq!(parse_put(&parsed.doc, &again).unwrap().pool, parsed.pool);

    body["properties"]["coveSnapshot"] = json!("gone");
    body["properties"]["coveSuspend"] = json!({ "afterIdleSeconds": 5, "keepSeconds": 1 });
    let text = parse_put(&body, &context).unwrap_err().to_json().to_string();
    for part in ["There is no snapshot 'gone'", "afterIdleSeconds", "keepSeconds"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}
