//! The properties of a job, in Azure's spelling.
//!
//! tidy: table

use serde_json::Value;

use crate::{
    container_app::properties::{AUTH, CONTAINER},
    schema::Schema,
};

use Schema::{Any, Int, List, Map, Object, Text, TextOrAbsent, Word};

/// The whole resource.
pub(super) static JOB: Schema = Object(&[
    ("location", &Text),
    ("tags", &Map(&Text)),
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

/// What `start` may bring.
pub(super) static START: Schema =
    Object(&[("containers", &List(&CONTAINER)), ("initContainers", &List(&CONTAINER)), ("template", &TEMPLATE)]);

static PROPERTIES: Schema = Object(&[
    ("environmentId", &TextOrAbsent),
    ("managedEnvironmentId", &TextOrAbsent),
    ("workloadProfileName", &TextOrAbsent),
    ("configuration", &CONFIGURATION),
    ("template", &TEMPLATE),
    ("provisioningState", &Any),
    ("runningState", &Any),
    ("outboundIpAddresses", &Any),
    ("eventStreamEndpoint", &Any),
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
    ("triggerType", &Word(&["Manual", "Schedule", "Event"])),
    ("replicaTimeout", &Int),
    ("replicaRetryLimit", &Int),
    ("manualTriggerConfig", &Object(&[("parallelism", &Int), ("replicaCompletionCount", &Int)])),
    (
        "scheduleTriggerConfig",
        &Object(&[
            ("parallelism", &Int),
            ("replicaCompletionCount", &Int),
            ("cronExpression", &TextOrAbsent),
            ("coveTimeZone", &TextOrAbsent),
            ("coveOverlap", &Word(&["allow", "forbid", "replace"])),
            ("coveMissedRuns", &Word(&["last", "skip", "all"])),
            ("coveStartingDeadlineSeconds", &Int),
        ]),
    ),
    ("eventTriggerConfig", &Object(&[("parallelism", &Int), ("replicaCompletionCount", &Int), ("scale", &SCALE)])),
    (
        "registries",
        &List(&Object(&[
            ("server", &Text),
            ("username", &TextOrAbsent),
            ("passwordSecretRef", &TextOrAbsent),
            ("identity", &TextOrAbsent),
        ])),
    ),
    ("identitySettings", &List(&Any)),
    ("covePriority", &Int),
]);

static SCALE: Schema = Object(&[
    ("pollingInterval", &Int),
    ("minExecutions", &Int),
    ("maxExecutions", &Int),
    ("coveStrategy", &Word(&["default", "accurate", "eager"])),
    (
        "rules",
        &List(&Object(&[
            ("name", &Text),
            ("type", &Text),
            ("metadata", &Map(&Text)),
            ("auth", &AUTH),
            ("identity", &TextOrAbsent),
        ])),
    ),
]);

static TEMPLATE: Schema = Object(&[
    ("initContainers", &List(&CONTAINER)),
    ("containers", &List(&CONTAINER)),
    (
        "volumes",
        &List(&Object(&[
            ("name", &Text),
            (
                "storageType",
                &Word(&["EmptyDir", "Secret", "AzureFile", "NfsAzureFile", "Smb", "CoveExecutionDir", "CoveArtifacts"]),
            ),
            ("coveKeepExecutions", &Int),
            ("coveMaxSize", &TextOrAbsent),
            ("storageName", &TextOrAbsent),
            ("mountOptions", &TextOrAbsent),
            ("secrets", &List(&Object(&[("secretRef", &Text), ("path", &TextOrAbsent)]))),
        ])),
    ),
    ("terminationGracePeriodSeconds", &Int),
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
    strip("", &["id", "name", "type", "etag", "systemData"]);
    strip("/identity", &["principalId", "tenantId", "clientId"]);
    strip(
        "/properties",
        &["provisioningState", "runningState", "outboundIpAddresses", "eventStreamEndpoint", "coveWarnings"],
    );
    for list in ["containers", "initContainers"] {
        let containers = doc.pointer_mut(&format!("/properties/template/{list}")).and_then(Value::as_array_mut);
        strip_sizes(containers);
    }
}

/// Drops `ephemeralStorage`, which follows from the cores.
pub(super) fn strip_sizes(containers: Option<&mut Vec<Value>>) {
    for container in containers.into_iter().flatten() {
        if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) {
            resources.remove("ephemeralStorage");
        }
    }
}
