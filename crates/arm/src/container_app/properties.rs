//! The properties of a container app, in Azure's spelling.
//!
//! tidy: table

use serde_json::Value;

use crate::schema::Schema;

use Schema::{Any, Bool, Int, List, Map, Number, Object, Text, TextOrAbsent, Word};

/// The whole resource.
pub(super) static APP: Schema = Object(&[
    ("location", &Text),
    ("tags", &Map(&Text)),
    ("kind", &TextOrAbsent),
    ("managedBy", &TextOrAbsent),
    ("extendedLocation", &Any),
    (
        "identity",
        &Object(&[("type", &Text), ("userAssignedIdentities", &Any), ("principalId", &Text), ("tenantId", &Text)]),
    ),
    ("id", &Any),
    ("name", &Any),
    ("type", &Any),
    ("etag", &Any),
    ("systemData", &Any),
    ("properties", &PROPERTIES),
]);

static PROPERTIES: Schema = Object(&[
    ("environmentId", &TextOrAbsent),
    ("managedEnvironmentId", &TextOrAbsent),
    ("workloadProfileName", &TextOrAbsent),
    ("configuration", &CONFIGURATION),
    ("template", &TEMPLATE),
    ("patchingConfiguration", &Any),
    ("networking", &Any),
    ("provisioningState", &Any),
    ("runningStatus", &Any),
    ("deploymentErrors", &Any),
    ("latestRevisionName", &Any),
    ("latestReadyRevisionName", &Any),
    ("latestRevisionFqdn", &Any),
    ("customDomainVerificationId", &Any),
    ("outboundIpAddresses", &Any),
    ("eventStreamEndpoint", &Any),
    ("delegatedIdentities", &Any),
    ("coveWarnings", &Any),
]);

static CONFIGURATION: Schema = Object(&[
    (
        "secrets",
        &List(&Object(&[
            ("name", &Text),
            ("value", &Text),
            ("keyVaultUrl", &TextOrAbsent),
            ("identity", &TextOrAbsent),
        ])),
    ),
    ("activeRevisionsMode", &Word(&["Single", "Multiple", "Labels"])),
    ("targetLabel", &TextOrAbsent),
    ("revisionTransitionThreshold", &Int),
    ("ingress", &INGRESS),
    (
        "registries",
        &List(&Object(&[
            ("server", &Text),
            ("username", &TextOrAbsent),
            ("passwordSecretRef", &TextOrAbsent),
            ("identity", &TextOrAbsent),
        ])),
    ),
    (
        "dapr",
        &Object(&[
            ("enabled", &Bool),
            ("appId", &TextOrAbsent),
            ("appProtocol", &TextOrAbsent),
            ("appPort", &Int),
            ("httpReadBufferSize", &Int),
            ("httpMaxRequestSize", &Int),
            ("logLevel", &TextOrAbsent),
            ("enableApiLogging", &Bool),
        ]),
    ),
    ("runtime", &Any),
    ("maxInactiveRevisions", &Int),
    ("service", &Any),
    ("identitySettings", &List(&Any)),
]);

static INGRESS: Schema = Object(&[
    ("fqdn", &Any),
    ("external", &Bool),
    ("targetPort", &Int),
    ("exposedPort", &Int),
    ("transport", &Word(&["Auto", "Http", "Http2", "Tcp"])),
    ("allowInsecure", &Bool),
    (
        "traffic",
        &List(&Object(&[
            ("revisionName", &TextOrAbsent),
            ("weight", &Int),
            ("latestRevision", &Bool),
            ("label", &TextOrAbsent),
        ])),
    ),
    (
        "customDomains",
        &List(&Object(&[
            ("name", &Text),
            ("bindingType", &Word(&["Disabled", "SniEnabled", "Auto"])),
            ("certificateId", &TextOrAbsent),
        ])),
    ),
    (
        "ipSecurityRestrictions",
        &List(&Object(&[
            ("name", &Text),
            ("description", &Text),
            ("ipAddressRange", &Text),
            ("action", &Word(&["Allow", "Deny"])),
        ])),
    ),
    ("stickySessions", &Object(&[("affinity", &Word(&["none", "sticky"]))])),
    ("clientCertificateMode", &Word(&["ignore", "accept", "require"])),
    (
        "corsPolicy",
        &Object(&[
            ("allowedOrigins", &List(&Text)),
            ("allowedMethods", &List(&Text)),
            ("allowedHeaders", &List(&Text)),
            ("exposeHeaders", &List(&Text)),
            ("maxAge", &Int),
            ("allowCredentials", &Bool),
        ]),
    ),
    ("additionalPortMappings", &List(&Object(&[("external", &Bool), ("targetPort", &Int), ("exposedPort", &Int)]))),
    ("targetPortHttpScheme", &TextOrAbsent),
    ("coveProxyProtocol", &Word(&["none", "v1", "v2"])),
    ("coveRequestTimeoutSeconds", &Int),
    ("coveIdleTimeoutSeconds", &Int),
    ("coveRequestBodyMaxBytes", &Int),
    ("coveEffectiveLimits", &Any),
    ("coveAccessLog", &Word(&["all", "errors", "off"])),
]);

static TEMPLATE: Schema = Object(&[
    ("revisionSuffix", &TextOrAbsent),
    ("terminationGracePeriodSeconds", &Int),
    ("initContainers", &List(&CONTAINER)),
    ("containers", &List(&CONTAINER)),
    ("scale", &SCALE),
    (
        "volumes",
        &List(&Object(&[
            ("name", &Text),
            (
                "storageType",
                &Word(&["EmptyDir", "Secret", "AzureFile", "NfsAzureFile", "Smb", "CoveExecutionDir", "CoveArtifacts"]),
            ),
            ("storageName", &TextOrAbsent),
            ("mountOptions", &TextOrAbsent),
            ("secrets", &List(&Object(&[("secretRef", &Text), ("path", &TextOrAbsent)]))),
        ])),
    ),
    ("serviceBinds", &List(&Any)),
]);

pub(crate) static CONTAINER: Schema = Object(&[
    ("image", &Text),
    ("imageType", &TextOrAbsent),
    ("name", &Text),
    ("command", &List(&Text)),
    ("args", &List(&Text)),
    ("env", &List(&Object(&[("name", &Text), ("value", &Text), ("secretRef", &TextOrAbsent)]))),
    ("resources", &Object(&[("cpu", &Number), ("memory", &Text), ("ephemeralStorage", &Any), ("gpu", &Number)])),
    ("volumeMounts", &List(&Object(&[("volumeName", &Text), ("mountPath", &Text), ("subPath", &TextOrAbsent)]))),
    (
        "probes",
        &List(&Object(&[
            ("type", &Word(&["Startup", "Readiness", "Liveness"])),
            (
                "httpGet",
                &Object(&[
                    ("host", &TextOrAbsent),
                    ("httpHeaders", &List(&Object(&[("name", &Text), ("value", &Text)]))),
                    ("path", &TextOrAbsent),
                    ("port", &Int),
                    ("scheme", &Word(&["HTTP", "HTTPS"])),
                ]),
            ),
            ("tcpSocket", &Object(&[("host", &TextOrAbsent), ("port", &Int)])),
            ("initialDelaySeconds", &Int),
            ("periodSeconds", &Int),
            ("timeoutSeconds", &Int),
            ("successThreshold", &Int),
            ("failureThreshold", &Int),
            ("terminationGracePeriodSeconds", &Int),
        ])),
    ),
    ("sourceBuild", &Any),
]);

pub(crate) static AUTH: Schema = List(&Object(&[("secretRef", &Text), ("triggerParameter", &Text)]));

static SCALE: Schema = Object(&[
    ("minReplicas", &Int),
    ("maxReplicas", &Int),
    ("cooldownPeriod", &Int),
    ("pollingInterval", &Int),
    ("allowScalingRuleOverride", &Bool),
    ("coveMode", &Word(&["aca", "fast"])),
    ("coveIdle", &Word(&["zero", "frozen"])),
    ("coveSettings", &super::scale_settings::SETTINGS),
    ("coveEffective", &Any),
    (
        "rules",
        &List(&Object(&[
            ("name", &Text),
            ("http", &Object(&[("metadata", &Map(&Text)), ("auth", &AUTH), ("identity", &TextOrAbsent)])),
            ("tcp", &Object(&[("metadata", &Map(&Text)), ("auth", &AUTH), ("identity", &TextOrAbsent)])),
            (
                "custom",
                &Object(&[("type", &Text), ("metadata", &Map(&Text)), ("auth", &AUTH), ("identity", &TextOrAbsent)]),
            ),
            (
                "azureQueue",
                &Object(&[
                    ("accountName", &TextOrAbsent),
                    ("queueName", &Text),
                    ("queueLength", &Int),
                    ("auth", &AUTH),
                    ("identity", &TextOrAbsent),
                ]),
            ),
        ])),
    ),
]);

/// Drops what only the server may say; clients send it back with every edit.
pub(super) fn strip_read_only(doc: &mut Value) {
    let mut strip = |pointer: &str, names: &[&str]| {
        if let Some(fields) = doc.pointer_mut(pointer).and_then(Value::as_object_mut) {
            for name in names {
                fields.remove(*name);
            }
        }
    };
    strip("", &["id", "name", "type", "etag", "systemData", super::labels::HISTORY]);
    strip("/identity", &["principalId", "tenantId", "clientId"]);
    strip(
        "/properties",
        &[
            "provisioningState",
            "runningStatus",
            "deploymentErrors",
            "latestRevisionName",
            "latestReadyRevisionName",
            "latestRevisionFqdn",
            "customDomainVerificationId",
            "outboundIpAddresses",
            "eventStreamEndpoint",
            "delegatedIdentities",
            "coveWarnings",
        ],
    );
    strip("/properties/configuration/ingress", &["fqdn", "coveEffectiveLimits"]);
    strip("/properties/template/scale", &["coveEffective"]);
    for list in ["containers", "initContainers"] {
        let containers = doc.pointer_mut(&format!("/properties/template/{list}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) {
                resources.remove("ephemeralStorage");
            }
        }
    }
}
