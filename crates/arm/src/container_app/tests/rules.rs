//! Every rule of a container app with the answer that its breach gets.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::{az_create, put};
use crate::ArmError;

/// Changes the body of `az create` at a JSON pointer and shows the answer as `status code [target] message` lines.
fn check(changes: &[(&str, Value)], expected: &Expect) {
    let mut body = az_create();
    for (pointer, value) in changes {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[name] = value.clone();
    }
    let text = match put(&body) {
        Ok(_) => "ok\n".to_owned(),
        Err(error) => {
            let line = |error: &ArmError| {
                let message: String = error.message.chars().take(170).collect();
                format!("{} {} [{}] {message}\n", error.status, error.code, error.target.as_deref().unwrap_or(""))
            };
            if error.details.is_empty() {
                line(&error)
            } else {
                format!("{} {}\n{}", error.status, error.code, error.details.iter().map(line).collect::<String>())
            }
        }
    };
    expected.assert_eq(&text);
}

const CONTAINER: &str = "/properties/template/containers/0";

#[test]
fn containers_are_checked() {
    let at = |name: &str| format!("{CONTAINER}/{name}");
    check(
        &[(&at("image"), json!(" "))],
        &expect![[r#"
            400 InvalidParameterValueInContainerTemplate [properties.template.containers[0].image] properties.template.containers[0].image: An image is required, such as 'registry.example.com/name:tag'.
        "#]],
    );
    check(
        &[(&at("image"), json!("https://x/y"))],
        &expect![[r#"
            400 InvalidParameterValueInContainerTemplate [properties.template.containers[0].image] properties.template.containers[0].image: The image 'https://x/y' is a URL; leave the scheme out.
        "#]],
    );
    check(
        &[(&at("name"), json!("Web_1"))],
        &expect![[r#"
            400 InvalidParameterValueInContainerTemplate [properties.template.containers[0].name] properties.template.containers[0].name: The container name 'Web_1' is not valid: use 1 to 63 lower case letters, digits and '-', with a letter or digit at both ends.
        "#]],
    );
    check(
        &[(&at("env"), json!([{ "name": "1=", "value": "x" }]))],
        &expect![[r#"
            400 InvalidParameterValueInContainerTemplate [properties.template.containers[0].env[0].name] properties.template.containers[0].env[0].name: The environment variable name '1=' is not valid: use letters, digits, '_', '-' and '.', and do not start with a digit.
        "#]],
    );
    check(
        &[(&at("env"), json!([{ "name": "A", "value": "x", "secretRef": "s" }]))],
        &expect![[r#"
            400 InvalidParameterValueInContainerTemplate [properties.template.containers[0].env[0]] properties.template.containers[0].env[0]: The variable 'A' has both value and secretRef; give one.
        "#]],
    );
    check(
        &[(&at("env"), json!([{ "name": "A", "secretRef": "nope" }]))],
        &expect![[r#"
            400 ContainerAppSecretRefNotFound [properties.template.containers[0].env[0].secretRef] properties.template.containers[0].env[0].secretRef: The secret 'nope' does not exist; add it to properties.configuration.secrets.
        "#]],
    );
    check(
        &[(&at("env"), json!({}))],
        &expect![[r#"
            400 InvalidParameterValue [properties.template.containers[0].env] properties.template.containers[0].env: the value is an object; expected a list.
        "#]],
    );
    check(
        &[(&at("volumeMounts"), json!([{ "volumeName": "v", "mountPath": "data" }]))],
        &expect![[r#"
        400 InvalidRequestParameterWithDetails
        400 InvalidParameterValueInContainerTemplate [properties.template.containers[0].volumeMounts[0].volumeName] The volume 'v' does not exist; add it to template.volumes.
        400 InvalidParameterValueInContainerTemplate [properties.template.containers[0].volumeMounts[0].mountPath] The mount path 'data' is not valid; expected an absolute path such as '/data'.
    "#]],
    );
}

#[test]
fn resources_are_checked() {
    let at = |name: &str| format!("{CONTAINER}/{name}");
    check(
        &[(&at("resources"), json!({ "cpu": 0.5, "memory": "2Gi" }))],
        &expect![[r#"
            400 ContainerAppInvalidResourceTotal [properties.template.containers] properties.template.containers: The total requested CPU and memory resources for this application (CPU: 0.5, memory: 2Gi) is invalid. Total CPU and memory for all contain
        "#]],
    );
    check(
        &[(&at("resources"), json!({ "cpu": "a lot", "memory": "1Xi" }))],
        &expect![[r#"
            400 InvalidRequestParameterWithDetails
            400 InvalidParameterValue [properties.template.containers[0].resources.cpu] the value is 'a lot'; expected a number.
            400 InvalidParameterValueInContainerTemplate [properties.template.containers[0].resources.memory] '1Xi' is not an amount of memory; expected such as '0.5Gi'.
        "#]],
    );
    check(
        &[(&at("resources"), json!({ "cpu": 8, "memory": "16Gi" }))],
        &expect![[r#"
            400 ContainerAppInvalidResourceTotal [properties.template.containers] properties.template.containers: The total requested CPU and memory resources for this application (CPU: 8, memory: 16Gi) is invalid. Total CPU and memory for all containe
        "#]],
    );
    check(
        &[(&at("resources"), json!({ "cpu": 1, "memory": "2Gi", "gpu": 1 }))],
        &expect![[r#"
            ok
        "#]],
    );
    check(
        &[("/properties/template/containers", json!([]))],
        &expect![[r#"
            400 InvalidParameterValueInContainerTemplate [properties.template.containers] properties.template.containers: At least one container is required.
        "#]],
    );
    check(
        &[("/properties/template/containers", json!([{ "name": "a", "image": "x" }, { "name": "a", "image": "y" }]))],
        &expect![[r#"
            400 InvalidParameterValueInContainerTemplate [properties.template.containers[1].name] properties.template.containers[1].name: The container name 'a' is used twice.
        "#]],
    );
}

#[test]
fn probes_are_checked() {
    let with = |probe: Value| [("/properties/template/containers/0/probes", json!([probe]))];
    check(
        &with(json!({ "tcpSocket": { "port": 80 } })),
        &expect![[r#"
            400 InvalidParameterValueInContainerTemplate [properties.template.containers[0].probes[0].type] properties.template.containers[0].probes[0].type: A probe needs a type: Startup, Readiness or Liveness.
        "#]],
    );
    check(
        &with(json!({ "type": "Liveness" })),
        &expect![[r#"
            400 InvalidParameterValueInContainerTemplate [properties.template.containers[0].probes[0]] properties.template.containers[0].probes[0]: A probe needs exactly one of httpGet and tcpSocket.
        "#]],
    );
    check(
        &with(json!({ "type": "Liveness", "tcpSocket": { "port": 0 } })),
        &expect![[r#"
            400 InvalidParameterValueInContainerTemplate [properties.template.containers[0].probes[0].tcpSocket.port] properties.template.containers[0].probes[0].tcpSocket.port: A probe needs a port from 1 to 65535.
        "#]],
    );
    check(
        &with(
            json!({ "type": "Liveness", "tcpSocket": { "port": 80 }, "periodSeconds": 0, "timeoutSeconds": 241, "successThreshold": 2 }),
        ),
        &expect![[r#"
            400 InvalidRequestParameterWithDetails
            400 InvalidParameterValueInContainerTemplate [properties.template.containers[0].probes[0].successThreshold] successThreshold of a Liveness probe must be 1.
            400 InvalidParameterValue [properties.template.containers[0].probes[0].periodSeconds] The value 0 is not valid; expected 1 to 240.
            400 InvalidParameterValue [properties.template.containers[0].probes[0].timeoutSeconds] The value 241 is not valid; expected 1 to 240.
        "#]],
    );
    check(
        &with(json!({ "type": "Startup", "httpGet": { "port": 80, "path": "x" } })),
        &expect![[r#"
            400 InvalidParameterValueInContainerTemplate [properties.template.containers[0].probes[0].httpGet.path] properties.template.containers[0].probes[0].httpGet.path: The path 'x' is not valid; it must start with '/' and hold no white space.
        "#]],
    );
}

#[test]
fn scale_is_checked() {
    let scale = "/properties/template/scale";
    check(
        &[(scale, json!({ "minReplicas": 11 }))],
        &expect![[r#"
            400 MinGreaterThanMax [properties.template.scale] properties.template.scale: The scale options provided for Container App 'web' are incorrect. minReplicas is 11 and maxReplicas 10 (10 unless given); min must not be above
        "#]],
    );
    check(
        &[(scale, json!({ "minReplicas": -1, "maxReplicas": 0 }))],
        &expect![[r#"
        400 InvalidRequestParameterWithDetails
        400 MinReplicasOutOfRange [properties.template.scale.minReplicas] The scale options provided for Container App 'web' are incorrect. minReplicas is -1; expected 0 to 1000.
        400 MaxReplicasOutOfRange [properties.template.scale.maxReplicas] The scale options provided for Container App 'web' are incorrect. maxReplicas is 0; expected 1 to 1000.
    "#]],
    );
    check(
        &[(scale, json!({ "minReplicas": 1.5, "maxReplicas": "x", "pollingInterval": 0 }))],
        &expect![[r#"
            400 InvalidRequestParameterWithDetails
            400 InvalidParameterValue [properties.template.scale.maxReplicas] the value is 'x'; expected a whole number.
            400 InvalidParameterValue [properties.template.scale.minReplicas] the value is 1.5; expected a whole number.
            400 PollingIntervalInvalid [properties.template.scale.pollingInterval] The scale options provided for Container App 'web' are incorrect. pollingInterval is 0; expected 1 to 604800 seconds.
        "#]],
    );
    check(
        &[(
            scale,
            json!({ "coveMode": "quick", "coveIdle": "asleep", "cooldownPeriod": -1, "coveSettings": {
            "stepFloor": 0, "tolerancePercent": 101, "readDeadlineSeconds": "x", "scaleUpWindowSeconds": 5,
            "fallback": { "behavior": "best", "replicas": 1001 },
        } }),
        )],
        &expect![[r#"
            400 InvalidRequestParameterWithDetails
            400 InvalidParameterValue [properties.template.scale.coveIdle] the value is 'asleep'; expected one of zero, frozen.
            400 InvalidParameterValue [properties.template.scale.coveMode] the value is 'quick'; expected one of aca, fast.
            400 InvalidParameterValue [properties.template.scale.coveSettings.fallback.behavior] the value is 'best'; expected one of static, currentReplicas, currentReplicasIfHigher, currentReplicasIfLower.
            400 InvalidParameterValue [properties.template.scale.coveSettings.readDeadlineSeconds] the value is 'x'; expected a whole number.
            400 CooldownPeriodInvalid [properties.template.scale.cooldownPeriod] The scale options provided for Container App 'web' are incorrect. cooldownPeriod is -1; expected 0 to 604800 seconds.
            400 InvalidParameterValue [properties.template.scale.coveSettings] 'scaleUpWindowSeconds' is not a setting; expected loadSamplingSeconds, resourceSamplingSeconds, scaleDownWindowSeconds, stepFloor, stepFactor, tolerancePercent, cpuInitia
            400 InvalidParameterValue [properties.template.scale.coveSettings.stepFloor] The value 0 is not valid; expected 1 to 1000.
            400 InvalidParameterValue [properties.template.scale.coveSettings.tolerancePercent] The value 101 is not valid; expected 0 to 100.
            400 InvalidParameterValue [properties.template.scale.coveSettings.fallback] A fallback needs failureThreshold.
            400 InvalidParameterValue [properties.template.scale.coveSettings.fallback.replicas] The value 1001 is not valid; expected 0 to 1000.
        "#]],
    );
}

#[test]
fn scale_rules_are_checked() {
    let scale = "/properties/template/scale";
    let rules = |rules: Value| [(scale, json!({ "rules": rules }))];
    check(
        &rules(json!([{ "name": "", "http": {} }])),
        &expect![[r#"
            400 RuleNameMissing [properties.template.scale.rules[0].name] properties.template.scale.rules[0].name: The scale rule '' is invalid. A scale rule needs a name.
        "#]],
    );
    check(
        &rules(json!([{ "name": "a", "http": {} }, { "name": "a", "tcp": {} }])),
        &expect![[r#"
            400 RuleNameDuplicate [properties.template.scale.rules[1].name] properties.template.scale.rules[1].name: The scale rule 'a' is invalid. Names of scale rules must be unique.
        "#]],
    );
    check(
        &rules(json!([{ "name": "a" }, { "name": "b", "http": {}, "tcp": {} }])),
        &expect![[r#"
        400 InvalidRequestParameterWithDetails
        400 RuleTypeMissing [properties.template.scale.rules[0]] The scale rule 'a' is invalid. It must have either Azure Queue or HTTP or TCP or Custom Rule specified.
        400 RuleTypeAmbiguous [properties.template.scale.rules[1]] The scale rule 'b' is invalid. It has http and tcp; give exactly one of them.
    "#]],
    );
    check(
        &rules(json!([{ "name": "a", "http": { "metadata": { "concurrentRequests": "ten" } } }])),
        &expect![[r#"
            400 HttpConcurrencyInvalid [properties.template.scale.rules[0].http.metadata.concurrentRequests] properties.template.scale.rules[0].http.metadata.concurrentRequests: The scale rule 'a' is invalid. metadata.concurrentRequests must be a whole number of at least 1.
        "#]],
    );
    check(
        &rules(json!([{ "name": "a", "tcp": { "metadata": { "concurrentConnections": 0 } } }])),
        &expect![[r#"
            400 TcpConcurrencyInvalid [properties.template.scale.rules[0].tcp.metadata.concurrentConnections] properties.template.scale.rules[0].tcp.metadata.concurrentConnections: The scale rule 'a' is invalid. metadata.concurrentConnections must be a whole number of at least 1.
        "#]],
    );
    check(
        &rules(json!([{ "name": "a", "custom": { "metadata": {} } }, { "name": "b", "custom": { "type": "http" } }])),
        &expect![[r#"
            400 InvalidRequestParameterWithDetails
            400 CustomTypeMissing [properties.template.scale.rules[0].custom.type] The scale rule 'a' is invalid. A custom rule needs a type, such as 'redis'.
            400 CustomTypeReserved [properties.template.scale.rules[1].custom.type] The scale rule 'b' is invalid. 'http' is a rule of its own, not a custom type.
        "#]],
    );
    check(
        &rules(json!([{ "name": "a", "custom": { "type": "redis", "auth": [{ "secretRef": "no" }] } }])),
        &expect![[r#"
            400 InvalidRequestParameterWithDetails
            400 MetadataInvalid [properties.template.scale.rules[0].custom] The scale rule 'a' is invalid. listName is missing.
            400 AuthTriggerParameterMissing [properties.template.scale.rules[0].custom.auth[0].triggerParameter] The scale rule 'a' is invalid. An auth entry needs a triggerParameter.
            400 AuthSecretNotFound [properties.template.scale.rules[0].custom.auth[0].secretRef] The scale rule 'a' is invalid. The secret 'no' of an auth entry does not exist.
        "#]],
    );
    check(
        &rules(json!([{ "name": "a", "azureQueue": { "queueLength": 0 } }])),
        &expect![[r#"
            400 InvalidRequestParameterWithDetails
            400 MetadataInvalid [properties.template.scale.rules[0].azureQueue.queueName] The scale rule 'a' is invalid. azureQueue needs a queueName.
            400 MetadataInvalid [properties.template.scale.rules[0].azureQueue.queueLength] The scale rule 'a' is invalid. queueLength must be a whole number of at least 1.
        "#]],
    );
}

#[test]
fn configuration_is_checked() {
    let at = |name: &str| format!("/properties/configuration/{name}");
    check(
        &[(&at("ingress/targetPort"), json!(65536))],
        &expect![[r#"
            400 InvalidParameterValue [properties.configuration.ingress.targetPort] properties.configuration.ingress.targetPort: The port 65536 is not valid; expected 1 to 65535.
        "#]],
    );
    check(
        &[(&at("ingress/exposedPort"), json!(8080))],
        &expect![[r#"
            400 InvalidParameterValue [properties.configuration.ingress.exposedPort] properties.configuration.ingress.exposedPort: exposedPort needs transport 'tcp'; HTTP apps are reached by host name, leave it out.
        "#]],
    );
    check(
        &[(&at("ingress/transport"), json!("quic"))],
        &expect![[r#"
            400 InvalidParameterValue [properties.configuration.ingress.transport] properties.configuration.ingress.transport: the value is 'quic'; expected one of Auto, Http, Http2, Tcp.
        "#]],
    );
    check(
        &[(&at("ingress/traffic"), json!([{ "latestRevision": true, "weight": 90 }]))],
        &expect![[r#"
            400 InvalidTrafficWeight [properties.configuration.ingress.traffic] properties.configuration.ingress.traffic: The traffic weights add up to 90; they must add up to 100.
        "#]],
    );
    check(
        &[(
            &at("ingress/traffic"),
            json!([{ "weight": 100 }, { "revisionName": "other--1", "weight": -1 }, { "latestRevision": true, "label": "A" }]),
        )],
        &expect![[r#"
            400 InvalidRequestParameterWithDetails
            400 InvalidParameterValue [properties.configuration.ingress.traffic[0]] A traffic weight needs a revisionName or latestRevision: true.
            400 InvalidParameterValue [properties.configuration.ingress.traffic[1].revisionName] 'other--1' is not a revision of 'web'; expected 'web--SUFFIX'.
            400 InvalidParameterValue [properties.configuration.ingress.traffic[1].weight] The weight -1 is not valid; expected 0 to 100.
            400 InvalidParameterValue [properties.configuration.ingress.traffic[2].label] The label 'A' is not valid: use 1 to 63 lower case letters, digits and single '-', with a letter or digit at both ends.
            400 InvalidTrafficWeight [properties.configuration.ingress.traffic] The traffic weights add up to 99; they must add up to 100.
        "#]],
    );
}

#[test]
fn secrets_and_registries_are_checked() {
    let at = |name: &str| format!("/properties/configuration/{name}");
    check(
        &[(&at("secrets"), json!([{ "name": "s" }, { "name": "S!", "value": "x" }]))],
        &expect![[r#"
        400 InvalidRequestParameterWithDetails
        400 ContainerAppSecretInvalid [properties.configuration.secrets[0]] Container app secret(s) with name(s) 's' are invalid: value or keyVaultUrl and identity should be provided.
        400 ContainerAppSecretInvalid [properties.configuration.secrets[1].name] The secret name 'S!' is not valid: use lower case letters, digits, '-' and '.', with a letter or digit at both ends.
    "#]],
    );
    check(
        &[(&at("secrets"), json!([{ "name": "s", "value": "a" }, { "name": "s", "value": "b" }]))],
        &expect![[r#"
            400 ContainerAppSecretInvalid [properties.configuration.secrets[1].name] properties.configuration.secrets[1].name: The secret 's' is given twice; names must be unique.
        "#]],
    );
    check(
        &[(&at("registries"), json!([{ "server": "r.io", "username": "u" }]))],
        &expect![[r#"
            400 InvalidParameterValue [properties.configuration.registries[0]] properties.configuration.registries[0]: The registry 'r.io' needs both username and passwordSecretRef.
        "#]],
    );
    check(
        &[(&at("registries"), json!([{ "server": "r.io", "username": "u", "passwordSecretRef": "no" }]))],
        &expect![[r#"
            400 ContainerAppSecretRefNotFound [properties.configuration.registries[0].passwordSecretRef] properties.configuration.registries[0].passwordSecretRef: The secret 'no' does not exist; add it to properties.configuration.secrets.
        "#]],
    );
    check(
        &[(&at("activeRevisionsMode"), json!("both")), (&at("maxInactiveRevisions"), json!(101))],
        &expect![[r#"
            400 InvalidRequestParameterWithDetails
            400 InvalidParameterValue [properties.configuration.activeRevisionsMode] the value is 'both'; expected one of Single, Multiple, Labels.
            400 InvalidParameterValue [properties.configuration.maxInactiveRevisions] The value 101 is not valid; expected 0 to 100.
        "#]],
    );
}

#[test]
fn the_app_as_a_whole_is_checked() {
    check(
        &[("/properties/environmentId", json!("myenv"))],
        &expect![[r#"
            400 InvalidEnvironmentId [properties.environmentId] properties.environmentId: 'myenv' is not the id of a managed environment; expected /subscriptions/ID/resourceGroups/NAME/providers/Microsoft.App/managedEnvironments/NAME.
        "#]],
    );
    check(
        &[("/properties/environmentId", Value::Null), ("/location", json!("atlantis"))],
        &expect![[r#"
        400 InvalidRequestParameterWithDetails
        400 ManagedEnvironmentRequired [properties.environmentId] The id of a managed environment is required: /subscriptions/…/managedEnvironments/NAME.
        400 LocationNotAvailableForResourceType [location] The location 'atlantis' does not exist; use 'local' or one of Azure's, such as 'eastus'.
    "#]],
    );
    check(
        &[("/properties/template/revisionSuffix", json!("V1--x"))],
        &expect![[r#"
            400 InvalidRevisionSuffix [properties.template.revisionSuffix] properties.template.revisionSuffix: The revision suffix 'V1--x' is not valid: use lower case letters, digits and single '-', with a letter or digit at both ends; 'web--SU
        "#]],
    );
    check(
        &[("/properties/template/terminationGracePeriodSeconds", json!(601))],
        &expect![[r#"
            400 InvalidParameterValue [properties.template.terminationGracePeriodSeconds] properties.template.terminationGracePeriodSeconds: The value 601 is not valid; expected 0 to 600.
        "#]],
    );
    check(
        &[("/properties", json!("text"))],
        &expect![[r#"
            400 InvalidRequestParameterWithDetails
            400 InvalidParameterValue [properties] the value is 'text'; expected an object.
            400 ManagedEnvironmentRequired [properties.environmentId] The id of a managed environment is required: /subscriptions/…/managedEnvironments/NAME.
            400 InvalidParameterValueInContainerTemplate [properties.template.containers] At least one container is required.
        "#]],
    );
}

#[test]
fn what_is_not_built_says_so() {
    let at = |name: &str| format!("/properties/configuration/{name}");
    check(
        &[(&at("dapr"), json!({ "enabled": true, "appId": "a" }))],
        &expect![[r#"
            ok
        "#]],
    );
    check(
        &[(&at("dapr"), json!({ "enabled": false, "appId": "a" }))],
        &expect![[r#"
        ok
    "#]],
    );
    for transport in ["http2", "tcp"] {
        check(
            &[(&at("ingress/transport"), json!(transport))],
            &expect![[r#"
            ok
        "#]],
        );
    }
}

#[test]
fn rules_of_http_are_refused_for_tcp() {
    let at = |name: &str| format!("/properties/configuration/ingress/{name}");
    check(
        &[
            (&at("transport"), json!("tcp")),
            (&at("clientCertificateMode"), json!("require")),
            (&at("stickySessions"), json!({ "affinity": "sticky" })),
            (&at("corsPolicy"), json!({ "allowedOrigins": ["*"] })),
        ],
        &expect![[r#"
            400 InvalidRequestParameterWithDetails
            400 InvalidParameterValue [properties.configuration.ingress.clientCertificateMode] clientCertificateMode needs an HTTP ingress; with transport 'tcp' leave it out.
            400 InvalidParameterValue [properties.configuration.ingress.stickySessions] stickySessions needs an HTTP ingress; with transport 'tcp' leave it out.
            400 InvalidParameterValue [properties.configuration.ingress.corsPolicy] corsPolicy needs an HTTP ingress; with transport 'tcp' leave it out.
        "#]],
    );
    let ports = json!([{ "targetPort": 5432, "external": true }, { "targetPort": 80, "exposedPort": 8080 }]);
    check(
        &[(&at("coveProxyProtocol"), json!("V2"))],
        &expect![[r#"
            400 InvalidParameterValue [properties.configuration.ingress.coveProxyProtocol] properties.configuration.ingress.coveProxyProtocol: coveProxyProtocol is for TCP connections; use transport 'tcp' or additionalPortMappings, or leave it out.
        "#]],
    );
    check(
        &[(&at("additionalPortMappings"), ports), (&at("coveProxyProtocol"), json!("V2"))],
        &expect![[r#"
        ok
    "#]],
    );
}

#[test]
fn the_access_log_has_three_words() {
    let place = "/properties/configuration/ingress/coveAccessLog";
    check(
        &[(place, json!("Errors"))],
        &expect![[r#"
        ok
    "#]],
    );
    check(
        &[(place, json!("some"))],
        &expect![[r#"
        400 InvalidParameterValue [properties.configuration.ingress.coveAccessLog] properties.configuration.ingress.coveAccessLog: the value is 'some'; expected one of all, errors, off.
    "#]],
    );
}

#[test]
fn policies_of_the_way_in_are_checked() {
    let at = |name: &str| format!("/properties/configuration/ingress/{name}");
    let certificate = |environment: &str| {
        format!(
            "/subscriptions/s1/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/{environment}/certificates/c"
        )
    };
    check(
        &[
            (&at("stickySessions"), json!({ "affinity": "Sticky" })),
            (&at("clientCertificateMode"), json!("Require")),
            (&at("ipSecurityRestrictions"), json!([{ "name": "a", "action": "deny", "ipAddressRange": "10.1.2.3/8" }])),
            (&at("corsPolicy"), json!({ "allowedOrigins": ["*"], "maxAge": "60" })),
            (
                &at("customDomains"),
                json!([
                    { "name": "a.example.com", "bindingType": "disabled" },
                    { "name": "b.example.com", "bindingType": "SniEnabled", "certificateId": certificate("MYENV") },
                ]),
            ),
        ],
        &expect![[r#"
            ok
        "#]],
    );
    check(
        &[(
            &at("ipSecurityRestrictions"),
            json!([
                { "name": "a", "action": "Deny", "ipAddressRange": "10.0.0.0/8" },
                { "name": "A", "action": "Allow", "ipAddressRange": "10.0.0.0/8" },
                { "name": "c", "action": "Block", "ipAddressRange": "10.0.0.0/8" },
                { "name": "d", "action": "Deny", "ipAddressRange": "10.0.0.0/64" },
            ]),
        )],
        &expect![[r#"
            400 InvalidRequestParameterWithDetails
            400 InvalidParameterValue [properties.configuration.ingress.ipSecurityRestrictions[2].action] the value is 'Block'; expected one of Allow, Deny.
            400 InvalidParameterValue [properties.configuration.ingress.ipSecurityRestrictions[1].name] The IP restriction 'A' is given twice.
            400 InvalidParameterValue [properties.configuration.ingress.ipSecurityRestrictions[2].action] An IP restriction needs an action: Allow or Deny.
            400 InvalidParameterValue [properties.configuration.ingress.ipSecurityRestrictions[3].ipAddressRange] The IP address range '10.0.0.0/64' is not valid; expected CIDR such as '10.0.0.0/8'.
            400 InvalidParameterValue [properties.configuration.ingress.ipSecurityRestrictions] IP restrictions must be all Allow or all Deny; these are mixed.
        "#]],
    );
}

#[test]
fn origins_and_custom_domains_are_checked() {
    let at = |name: &str| format!("/properties/configuration/ingress/{name}");
    let certificate = |environment: &str| {
        format!(
            "/subscriptions/s1/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/{environment}/certificates/c"
        )
    };
    check(
        &[(
            &at("corsPolicy"),
            json!({ "allowedOrigins": ["example.com"], "allowedMethods": ["GET POST"], "maxAge": -1 }),
        )],
        &expect![[r#"
            400 InvalidRequestParameterWithDetails
            400 InvalidParameterValue [properties.configuration.ingress.corsPolicy.allowedOrigins[0]] The origin 'example.com' is not valid; expected '*' or such as 'https://example.com'.
            400 InvalidParameterValue [properties.configuration.ingress.corsPolicy.allowedMethods[0]] 'GET POST' is not the name of a method.
            400 InvalidParameterValue [properties.configuration.ingress.corsPolicy.maxAge] maxAge is -1; expected seconds, 0 or more.
        "#]],
    );
    check(
        &[(
            &at("customDomains"),
            json!([
                { "name": "*.example.com" },
                { "name": "b.example.com", "bindingType": "SniEnabled" },
                { "name": "B.example.com", "bindingType": "SniEnabled", "certificateId": "c" },
                { "name": "c.example.com", "bindingType": "SniEnabled", "certificateId": certificate("other") },
                { "name": "d.example.com", "bindingType": "Auto" },
            ]),
        )],
        &expect![[r#"
            400 InvalidRequestParameterWithDetails
            400 InvalidCustomHostName [properties.configuration.ingress.customDomains[0].name] The custom domain '*.example.com' is not valid; expected a host name such as 'www.example.com'.
            400 InvalidParameterValue [properties.configuration.ingress.customDomains[1].certificateId] The custom domain 'b.example.com' with bindingType SniEnabled needs a certificateId.
            400 InvalidParameterValue [properties.configuration.ingress.customDomains[2].name] The custom domain 'b.example.com' is given twice.
            400 InvalidCertificateId [properties.configuration.ingress.customDomains[2].certificateId] 'c' is not the id of a certificate; expected /subscriptions/s1/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/myenv/certificates/NAME.
            400 CertificateMustBeInSameEnvironment [properties.configuration.ingress.customDomains[3].certificateId] The certificate '/subscriptions/s1/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/other/certificates/c' belongs to another environment than the app.
            501 NotImplemented [properties.configuration.ingress.customDomains[4].bindingType] Binding a certificate by itself ('Auto'): not implemented yet; make a certificate of the environment, give its certificateId and bindingType 'SniEnabled'.
        "#]],
    );
    check(
        &[(&at("exposedPort"), json!(1))],
        &expect![[r#"
            400 InvalidParameterValue [properties.configuration.ingress.exposedPort] properties.configuration.ingress.exposedPort: exposedPort needs transport 'tcp'; HTTP apps are reached by host name, leave it out.
        "#]],
    );
}

#[test]
fn identities_and_volumes_that_are_not_built_say_so() {
    let at = |name: &str| format!("/properties/configuration/{name}");
    check(
        &[(&at("secrets"), json!([{ "name": "s", "keyVaultUrl": "https://v/s", "identity": "system" }]))],
        &expect![[r#"
            501 NotImplemented [properties.configuration.secrets[0]] properties.configuration.secrets[0]: A secret from Key Vault: not implemented yet; give its value.
        "#]],
    );
    check(
        &[("/identity", json!({ "type": "SystemAssigned" }))],
        &expect![[r#"
            ok
        "#]],
    );
    check(
        &[("/properties/template/volumes", json!([{ "name": "v", "storageType": "AzureFile", "storageName": "x" }]))],
        &expect![[r#"
            ok
        "#]],
    );
    check(
        &[
            ("/kind", json!("functionapp")),
            (&at("registries"), json!([{ "server": "x.azurecr.io", "identity": "system" }])),
        ],
        &expect![[r#"
            400 InvalidRequestParameterWithDetails
            501 NotImplemented [kind] Apps of this kind: not implemented yet; leave `kind` out.
            400 ManagedIdentityNotAssigned [properties.configuration.registries[0].identity] The identity 'system' is not assigned to the app; expected 'system' with a system-assigned identity, or the id of one of its user-assigned identities.
        "#]],
    );
}

#[test]
fn errors_of_one_request_come_together_and_in_azures_envelope() {
    let mut body = az_create();
    body["properties"]["template"]["containers"][0]["image"] = json!("");
    body["properties"]["template"]["scale"] = json!({ "minReplicas": 5, "maxReplicas": 2 });
    let error = put(&body).unwrap_err().to_json();
    assert_eq!(error["error"]["code"], "InvalidRequestParameterWithDetails");
    assert_eq!(error["error"]["details"].as_array().unwrap().len(), 2);
    assert_eq!(error["error"]["details"][0]["target"], "properties.template.containers[0].image");
}

#[test]
fn what_a_replica_may_ask_depends_on_its_profile() {
    let mut body = az_create();
    body["properties"]["workloadProfileName"] = json!("big");
    body["properties"]["template"]["containers"][0]["resources"] = json!({ "cpu": 8, "memory": "20Gi" });
    let template = put(&body).unwrap().app.template;
    let told = |kind: &str| {
        let kind = cove_model::WorkloadProfileKind::find(kind).unwrap();
        crate::container_app::check_resources(&template, "big", kind).err().map(|error| error.message)
    };
    assert_eq!(told("D8"), None);
    expect![[r#"properties.template.containers: The total requested CPU and memory resources for this application (CPU: 8, memory: 20Gi) is invalid. A replica in the workload profile 'big' of type D4 may have at most 4 cores and 16 GiB."#]]
        .assert_eq(&told("D4").unwrap());
    assert!(told("Consumption").unwrap().contains("[cpu: 0.25, memory: 0.5Gi]"));
}
