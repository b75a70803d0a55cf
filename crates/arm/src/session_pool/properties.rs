//! The properties of a session pool, in Azure's spelling.
//!
//! tidy: table

use serde_json::{Value, json};

use crate::{container_app::properties::CONTAINER, schema::Schema};

use Schema::{Any, Bool, Int, List, Map, Object, Text, TextOrAbsent, Word};

/// The whole resource.
pub(super) static POOL: Schema = Object(&[
    ("location", &Text),
    ("tags", &Map(&Text)),
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

static LIFECYCLES: Schema = Word(&["Timed", "OnContainerExit"]);

static EGRESS_RULES: Schema = List(&Object(&[("action", &Word(&["Allow"])), ("host", &Text), ("ports", &List(&Int))]));

static PROPERTIES: Schema = Object(&[
    ("environmentId", &TextOrAbsent),
    ("poolManagementType", &Word(&["Dynamic", "Manual"])),
    ("containerType", &Word(&["CustomContainer", "PythonLTS", "NodeLTS", "Shell"])),
    ("scaleConfiguration", &Object(&[("maxConcurrentSessions", &Int), ("readySessionInstances", &Int)])),
    ("secrets", &List(&Object(&[("name", &Text), ("value", &Text)]))),
    (
        "dynamicPoolConfiguration",
        &Object(&[
            (
                "lifecycleConfiguration",
                &Object(&[
                    ("lifecycleType", &LIFECYCLES),
                    ("cooldownPeriodInSeconds", &Int),
                    ("maxAlivePeriodInSeconds", &Int),
                ]),
            ),
            // versions before 2024-10-02-preview
            ("executionType", &LIFECYCLES),
            ("cooldownPeriodInSeconds", &Int),
        ]),
    ),
    (
        "customContainerTemplate",
        &Object(&[
            ("containers", &List(&CONTAINER)),
            ("ingress", &Object(&[("targetPort", &Int)])),
            (
                "registryCredentials",
                &Object(&[
                    ("server", &TextOrAbsent),
                    ("username", &TextOrAbsent),
                    ("passwordSecretRef", &TextOrAbsent),
                    ("identity", &TextOrAbsent),
                ]),
            ),
        ]),
    ),
    (
        "sessionNetworkConfiguration",
        &Object(&[("status", &Word(&["EgressEnabled", "EgressDisabled"])), ("coveEgressRules", &EGRESS_RULES)]),
    ),
    (
        "managedIdentitySettings",
        &List(&Object(&[("identity", &Text), ("lifecycle", &Word(&["None", "Main", "Init", "All"]))])),
    ),
    (
        "mcpServerSettings",
        &Object(&[("isMCPServerEnabled", &Bool), ("isMCPServerApiKeyDisabled", &Bool), ("mcpServerEndpoint", &Any)]),
    ),
    ("coveIsolation", &TextOrAbsent),
    ("coveSnapshot", &TextOrAbsent),
    ("coveSuspend", &Object(&[("afterIdleSeconds", &Int), ("keepSeconds", &Int)])),
    ("provisioningState", &Any),
    ("poolManagementEndpoint", &Any),
    ("mcpServerEndpoint", &Any),
    ("nodeCount", &Any),
    ("coveFailure", &Any),
    ("coveProgress", &Any),
    ("coveWarnings", &Any),
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
        &[
            "provisioningState",
            "poolManagementEndpoint",
            "mcpServerEndpoint",
            "nodeCount",
            "coveFailure",
            "coveProgress",
            "coveWarnings",
        ],
    );
    strip("/properties/mcpServerSettings", &["mcpServerEndpoint"]);
    let containers = doc.pointer_mut("/properties/customContainerTemplate/containers").and_then(Value::as_array_mut);
    for container in containers.into_iter().flatten() {
        if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) {
            resources.remove("ephemeralStorage");
        }
    }
    lift_old_lifecycle(doc);
}

/// `executionType` and `cooldownPeriodInSeconds` of the first previews, as later versions write them.
pub(super) fn lift_old_lifecycle(doc: &mut Value) {
    let Some(dynamic) = doc.pointer_mut("/properties/dynamicPoolConfiguration") else { return };
    for (old, new) in [("executionType", "lifecycleType"), ("cooldownPeriodInSeconds", "cooldownPeriodInSeconds")] {
        let Some(value) = dynamic.as_object_mut().and_then(|fields| fields.remove(old)) else { continue };
        if !dynamic["lifecycleConfiguration"].is_object() {
            dynamic["lifecycleConfiguration"] = json!({});
        }
        if dynamic["lifecycleConfiguration"].get(new).is_none() {
            dynamic["lifecycleConfiguration"][new] = value;
        }
    }
}
