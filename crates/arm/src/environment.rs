//! `Microsoft.App/managedEnvironments`: checks a body, and shows an environment.
//!
//! **Invariant:** the stored document never holds the shared key of a workspace.

pub mod certificate;
pub mod child;
pub mod dapr;
pub mod http_route;
pub mod maintenance;

use std::collections::BTreeSet;

use cove_model::{Environment, ResourceId, WorkloadProfile};
use serde_json::{Value, json};

use crate::{
    ArmError, Errors, SystemData,
    node::Node,
    schema::{Nulls, Schema, normalise},
};

static SCHEMA: Schema = Schema::Object(&[
    ("location", &Schema::Text),
    ("kind", &Schema::TextOrAbsent),
    ("tags", &Schema::Map(&Schema::Text)),
    ("identity", &Schema::Object(&[("type", &Schema::Text), ("userAssignedIdentities", &Schema::Any)])),
    ("properties", &PROPERTIES),
]);

static PROPERTIES: Schema = Schema::Object(&[
    (
        "appLogsConfiguration",
        &Schema::Object(&[
            ("destination", &Schema::TextOrAbsent),
            (
                "logAnalyticsConfiguration",
                &Schema::Object(&[
                    ("customerId", &Schema::TextOrAbsent),
                    ("sharedKey", &Schema::TextOrAbsent),
                    ("dynamicJsonColumns", &Schema::Bool),
                ]),
            ),
        ]),
    ),
    (
        "workloadProfiles",
        &Schema::List(&Schema::Object(&[
            ("name", &Schema::Text),
            ("workloadProfileType", &Schema::Text),
            ("minimumCount", &Schema::Int),
            ("maximumCount", &Schema::Int),
            ("enableFips", &Schema::Bool),
        ])),
    ),
    ("zoneRedundant", &Schema::Bool),
    ("vnetConfiguration", &Schema::Any),
    ("infrastructureResourceGroup", &Schema::TextOrAbsent),
    ("daprAIInstrumentationKey", &Schema::TextOrAbsent),
    ("daprAIConnectionString", &Schema::TextOrAbsent),
    ("daprConfiguration", &Schema::Any),
    ("kedaConfiguration", &Schema::Any),
    ("customDomainConfiguration", &Schema::Any),
    ("appInsightsConfiguration", &Schema::Any),
    ("openTelemetryConfiguration", &Schema::Any),
    ("ingressConfiguration", &Schema::Any),
    ("environmentMode", &Schema::TextOrAbsent),
    ("publicNetworkAccess", &Schema::TextOrAbsent),
    ("peerAuthentication", &Schema::Object(&[("mtls", &Schema::Object(&[("enabled", &Schema::Bool)]))])),
    ("peerTrafficConfiguration", &Schema::Object(&[("encryption", &Schema::Object(&[("enabled", &Schema::Bool)]))])),
    ("defaultDomain", &Schema::Text),
    ("staticIp", &Schema::Text),
    ("provisioningState", &Schema::Text),
    ("eventStreamEndpoint", &Schema::Text),
    ("deploymentErrors", &Schema::Text),
    ("privateEndpointConnections", &Schema::Any),
]);

/// What an environment's PUT needs to know.
#[derive(Clone, Copy, Debug)]
pub struct PutContext<'a> {
    /// The id in the URL.
    pub id: &'a ResourceId,
    /// Domain of the environment on this server, such as `myenv.localhost`; the caller keeps it unique.
    pub default_domain: &'a str,
}

/// A checked PUT or PATCH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What is asked.
    pub environment: Environment,
    /// The document to store.
    pub doc: Value,
    /// The workspace's shared key, when it came: to be kept as a secret or forgotten.
    pub shared_key: Option<String>,
}

/// Checks a PUT.
///
/// # Errors
/// Every problem at once: 400, or 501 when all that is asked for exists in Azure but not here yet.
pub fn parse_put(body: &Value, context: &PutContext<'_>) -> Result<Parsed, ArmError> {
    let mut errors = Errors::new();
    let mut doc = normalise(body, &SCHEMA, Nulls::Drop, &mut errors);
    strip_read_only(&mut doc);
    check(&doc, context, &mut errors);
    errors.into_result()?;
    let secret =
        doc.pointer_mut("/properties/appLogsConfiguration/logAnalyticsConfiguration").and_then(Value::as_object_mut);
    let shared_key = secret.and_then(|fields| fields.remove("sharedKey"));
    let root = Node::root(&doc);
    let logs = root.get("properties").get("appLogsConfiguration");
    let customer = logs.get("logAnalyticsConfiguration").get("customerId").text().map(str::to_owned);
    let profiles = root.get("properties").get("workloadProfiles").items();
    let count = |node: &Node<'_>, name: &str| node.get(name).int().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let profile = |node: &Node<'_>| {
        Some(WorkloadProfile {
            name: node.get("name").text()?.to_owned(),
            kind: node.get("workloadProfileType").text().unwrap_or("Consumption").to_owned(),
            min_nodes: count(node, "minimumCount"),
            max_nodes: count(node, "maximumCount"),
        })
    };
    let mut workload_profiles: Vec<WorkloadProfile> = profiles.iter().filter_map(profile).collect();
    if !workload_profiles.iter().any(|profile| profile.name.eq_ignore_ascii_case("Consumption")) {
        let (name, kind) = ("Consumption".to_owned(), "Consumption".to_owned());
        workload_profiles.push(WorkloadProfile { name, kind, min_nodes: 0, max_nodes: 0 });
    }
    let environment = Environment {
        id: context.id.clone(),
        default_domain: context.default_domain.to_owned(),
        log_workspace: customer,
        workload_profiles,
    };
    Ok(Parsed { environment, doc, shared_key: shared_key.and_then(|key| key.as_str().map(str::to_owned)) })
}

/// Merges a PATCH into the stored document and checks the outcome.
///
/// # Errors
/// As [`parse_put`].
pub fn parse_patch(stored: &Value, patch: &Value, context: &PutContext<'_>) -> Result<Parsed, ArmError> {
    let mut errors = Errors::new();
    let patch = normalise(patch, &SCHEMA, Nulls::Keep, &mut errors);
    errors.into_result()?;
    let mut doc = stored.clone();
    crate::patch::merge(&mut doc, &patch);
    parse_put(&doc, context)
}

fn strip_read_only(doc: &mut Value) {
    if let Some(fields) = doc.as_object_mut() {
        for name in ["id", "name", "type", "systemData", "etag"] {
            fields.remove(name);
        }
    }
    if let Some(fields) = doc.get_mut("properties").and_then(Value::as_object_mut) {
        for name in [
            "defaultDomain",
            "staticIp",
            "provisioningState",
            "eventStreamEndpoint",
            "deploymentErrors",
            "privateEndpointConnections",
            "daprConfiguration",
            "kedaConfiguration",
        ] {
            fields.remove(name);
        }
        if let Some(domain) = fields.get_mut("customDomainConfiguration").and_then(Value::as_object_mut) {
            for name in ["customDomainVerificationId", "expirationDate", "subjectName", "thumbprint"] {
                domain.remove(name);
            }
        }
    }
}

fn check(doc: &Value, context: &PutContext<'_>, errors: &mut Errors) {
    if let Err(rule) = check_name(context.id.name()) {
        let message = format!("Managed environment name '{}' is not valid: {rule}.", context.id.name());
        errors.push(ArmError::new(400, "ManagedEnvironmentInvalidName", message));
    }
    let root = Node::root(doc);
    match root.get("location").text() {
        None | Some("") => {
            errors.push(ArmError::new(400, "LocationRequired", "The location property is required.").at("location"));
        }
        Some(location) => crate::provider::check_location(location, errors),
    }
    let properties = root.get("properties");
    check_logs(&properties, errors);
    check_profiles(&properties, errors);
    check_not_built(&root, errors);
}

/// Azure's rule: 2 to 60 letters, digits and dashes, first a letter, last no dash.
fn check_name(name: &str) -> Result<(), &'static str> {
    let shape = name.starts_with(|c: char| c.is_ascii_alphabetic()) && !name.ends_with('-');
    if shape && (2..=60).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Ok(());
    }
    Err("use 2 to 60 letters, digits and '-', start with a letter and end with a letter or digit")
}

fn check_logs(properties: &Node<'_>, errors: &mut Errors) {
    let logs = properties.get("appLogsConfiguration");
    let destination = logs.get("destination");
    let workspace = logs.get("logAnalyticsConfiguration");
    match destination.text().map(str::to_ascii_lowercase).as_deref() {
        None | Some("none" | "azure-monitor") => {}
        Some("log-analytics") if workspace.get("customerId").exists() => {}
        Some("log-analytics") => errors.invalid(
            &workspace.path,
            "The destination 'log-analytics' needs a customerId and a sharedKey; or use the destination 'none'.",
        ),
        Some(other) => errors.invalid(
            &destination.path,
            format!("The logs destination '{other}' is not valid; expected log-analytics, azure-monitor or none."),
        ),
    }
}

fn check_profiles(properties: &Node<'_>, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for profile in properties.get("workloadProfiles").items() {
        let (name, kind) = (profile.get("name"), profile.get("workloadProfileType"));
        match name.text() {
            None | Some("") => errors.invalid(&name.path, "A workload profile needs a name."),
            Some(text) if !seen.insert(text.to_ascii_lowercase()) => {
                errors.invalid(&name.path, format!("The workload profile name '{text}' is used twice."));
            }
            Some(_) => {}
        }
        match kind.text() {
            None | Some("") => errors.invalid(&kind.path, "A workload profile needs a workloadProfileType."),
            Some(text) if text.eq_ignore_ascii_case("Consumption") => {}
            Some(text) => errors.push(ArmError::not_implemented(
                &kind.path,
                &format!("Workload profile type '{text}'"),
                "use 'Consumption', which gives each replica what it asks for from this machine",
            )),
        }
    }
}

fn check_not_built(root: &Node<'_>, errors: &mut Errors) {
    let properties = root.get("properties");
    let mut refuse = |node: &Node<'_>, what: &str, instead: &str| {
        errors.push(ArmError::not_implemented(&node.path, what, instead));
    };
    let identity = root.get("identity").get("type");
    if identity.text().is_some_and(|text| !text.is_empty() && !text.eq_ignore_ascii_case("None")) {
        refuse(&identity, "Managed identity of an environment", "leave `identity` out or set its type to 'None'");
    }
    let zone = properties.get("zoneRedundant");
    if zone.flag() == Some(true) {
        refuse(&zone, "Zone redundancy", "leave zoneRedundant out: there is one machine");
    }
    for (name, what) in [
        ("vnetConfiguration", "A virtual network of one's own"),
        ("customDomainConfiguration", "A custom domain suffix"),
        ("appInsightsConfiguration", "Application Insights"),
        ("openTelemetryConfiguration", "The OpenTelemetry agent"),
        ("ingressConfiguration", "Premium ingress"),
    ] {
        let node = properties.get(name);
        if node.value().is_some_and(asks_for_something) {
            refuse(&node, what, &format!("leave {name} out"));
        }
    }
    for name in ["peerAuthentication", "peerTrafficConfiguration"] {
        let inner = if name == "peerAuthentication" { "mtls" } else { "encryption" };
        let flag = properties.get(name).get(inner).get("enabled");
        if flag.flag() == Some(true) {
            refuse(&flag, "Encryption between apps", "set enabled to false");
        }
    }
}

/// Whether a value means anything: `null`, `false`, `""` and containers of only such values do not.
#[must_use]
pub(crate) fn asks_for_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::String(text) => !text.is_empty(),
        Value::Number(_) => true,
        Value::Array(items) => items.iter().any(asks_for_something),
        Value::Object(fields) => fields.values().any(asks_for_something),
    }
}

/// What is known of an environment when it is shown.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its id.
    pub id: &'a ResourceId,
    /// `Succeeded`, `InitializationInProgress`, `Failed`, `ScheduledForDelete`, …
    pub provisioning_state: &'a str,
    /// Suffix of its apps' host names.
    pub default_domain: &'a str,
    /// Address of the ingress.
    pub static_ip: &'a str,
    /// Origin of the request, such as `https://localhost:8443`.
    pub origin: &'a str,
    /// What a domain's owner would publish to prove it.
    pub custom_domain_verification_id: &'a str,
    /// Who made and changed it.
    pub system_data: Option<&'a SystemData>,
}

/// The environment as Azure shows it.
#[must_use]
pub fn render(doc: &Value, view: &View<'_>) -> Value {
    let mut properties = doc.get("properties").cloned().unwrap_or_else(|| json!({}));
    let id = view.id;
    let read_only = json!({
        "provisioningState": view.provisioning_state,
        "defaultDomain": view.default_domain,
        "staticIp": view.static_ip,
        "eventStreamEndpoint": format!(
            "{}/subscriptions/{}/resourceGroups/{}/managedEnvironments/{}/eventstream",
            view.origin, id.subscription(), id.group_name(), id.name()
        ),
        "customDomainConfiguration": { "customDomainVerificationId": view.custom_domain_verification_id },
        "kedaConfiguration": {},
        "daprConfiguration": {},
    });
    crate::patch::merge(&mut properties, &read_only);
    let defaults = [
        ("zoneRedundant", json!(false)),
        ("workloadProfiles", json!([{ "name": "Consumption", "workloadProfileType": "Consumption" }])),
        ("appLogsConfiguration", json!({})),
        ("peerAuthentication", json!({ "mtls": { "enabled": false } })),
        ("peerTrafficConfiguration", json!({ "encryption": { "enabled": false } })),
        ("publicNetworkAccess", json!("Enabled")),
    ];
    for (name, value) in defaults {
        if properties.get(name).is_none() {
            properties[name] = value;
        }
    }
    let location = doc.get("location").and_then(Value::as_str).unwrap_or("local");
    let mut value = json!({
        "id": id.as_str(),
        "name": id.name(),
        "type": "Microsoft.App/managedEnvironments",
        "location": crate::provider::display_location(location).unwrap_or(location),
        "properties": properties,
    });
    if let Some(tags) = doc.get("tags") {
        value["tags"] = tags.clone();
    }
    if let Some(data) = view.system_data {
        value["systemData"] = data.render();
    }
    value
}

#[cfg(test)]
mod tests {
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
        assert_eq!(parsed.shared_key.as_deref(), Some("hush"));
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
        assert_eq!(code(json!({ "zoneRedundant": "true" })), (501, at("zoneRedundant")));
        assert_eq!(
            code(json!({ "vnetConfiguration": { "infrastructureSubnetId": "x" } })),
            (501, at("vnetConfiguration"))
        );
        assert_eq!(
            code(json!({ "workloadProfiles": [{ "name": "a", "workloadProfileType": "D4" }] })),
            (501, at("workloadProfiles[0].workloadProfileType"))
        );
        assert_eq!(
            code(json!({ "appLogsConfiguration": { "destination": "disk" } })),
            (400, at("appLogsConfiguration.destination"))
        );
        assert_eq!(
            code(json!({ "appLogsConfiguration": { "destination": "log-analytics" } })),
            (400, at("appLogsConfiguration.logAnalyticsConfiguration"))
        );
        assert_eq!(
            code(json!({ "workloadProfiles": [{}, 1] })),
            (400, "InvalidRequestParameterWithDetails".to_owned())
        );
    }
}
