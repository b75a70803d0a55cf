//! `Microsoft.App/managedEnvironments`: checks a body, and shows an environment.
//!
//! **Invariant:** the stored document never holds the shared key of a workspace.

pub mod certificate;
pub mod child;
pub mod dapr;
pub mod http_route;
pub mod maintenance;
mod profiles;
pub mod suffix;

use std::{collections::BTreeMap, fmt};

use cove_model::{Environment, RequestLimits, ResourceId};
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
    (
        "vnetConfiguration",
        &Schema::Object(&[
            ("internal", &Schema::Bool),
            ("infrastructureSubnetId", &Schema::TextOrAbsent),
            ("dockerBridgeCidr", &Schema::TextOrAbsent),
            ("platformReservedCidr", &Schema::TextOrAbsent),
            ("platformReservedDnsIP", &Schema::TextOrAbsent),
        ]),
    ),
    ("infrastructureResourceGroup", &Schema::TextOrAbsent),
    ("daprAIInstrumentationKey", &Schema::TextOrAbsent),
    ("daprAIConnectionString", &Schema::TextOrAbsent),
    ("daprConfiguration", &Schema::Any),
    ("kedaConfiguration", &Schema::Any),
    ("customDomainConfiguration", &suffix::SCHEMA),
    ("appInsightsConfiguration", &Schema::Any),
    ("openTelemetryConfiguration", &Schema::Any),
    (
        "ingressConfiguration",
        &Schema::Object(&[
            ("workloadProfileName", &Schema::TextOrAbsent),
            ("terminationGracePeriodSeconds", &Schema::Int),
            ("requestIdleTimeout", &Schema::Int),
            ("headerCountLimit", &Schema::Int),
        ]),
    ),
    ("environmentMode", &Schema::Word(&["ConsumptionOnly", "WorkloadProfiles", "Express", "Archived"])),
    ("publicNetworkAccess", &Schema::Word(&["Enabled", "Disabled"])),
    ("diskEncryptionConfiguration", &Schema::Any),
    ("internalLoadBalancerEnabled", &Schema::Bool),
    (child::WARNINGS, &Schema::Any),
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

/// A checked PUT or PATCH; its `Debug` text has the names of secrets only.
#[derive(Clone, PartialEq, Eq)]
pub struct Parsed {
    /// What is asked.
    pub environment: Environment,
    /// The document to store.
    pub doc: Value,
    /// The DNS suffix that is asked for; the caller reads its certificate and puts it into `environment`.
    pub suffix: Option<suffix::Asked>,
    /// Values that are never shown, by the name of their secret; those that did not come keep the value they have.
    pub secrets: BTreeMap<String, Option<String>>,
}

impl fmt::Debug for Parsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets = self.secrets.keys();
        f.debug_struct("Parsed").field("doc", &self.doc).field("secrets", &secrets).finish_non_exhaustive()
    }
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
    profiles::make_canonical(&mut doc);
    let secrets = take_secrets(&mut doc);
    let suffix = suffix::take(&mut doc);
    let root = Node::root(&doc);
    let logs = root.get("properties").get("appLogsConfiguration");
    let customer = logs.get("logAnalyticsConfiguration").get("customerId").text().map(str::to_owned);
    let workload_profiles = profiles::read(&root.get("properties"));
    let environment = Environment {
        id: context.id.clone(),
        default_domain: context.default_domain.to_owned(),
        log_workspace: customer,
        workload_profiles,
        suffix: None,
        limits: limits(&root.get("properties").get("ingressConfiguration")),
        names_callers: is_mtls(&root.get("properties")),
    };
    Ok(Parsed { environment, doc, suffix, secrets })
}

/// Properties that are secrets, and the names they are kept under.
const SECRETS: [(&str, &str); 3] = [
    ("/properties/appLogsConfiguration/logAnalyticsConfiguration/sharedKey", "log-analytics-shared-key"),
    ("/properties/daprAIInstrumentationKey", "dapr-ai-instrumentation-key"),
    ("/properties/daprAIConnectionString", "dapr-ai-connection-string"),
];

fn take_secrets(doc: &mut Value) -> BTreeMap<String, Option<String>> {
    let mut secrets = BTreeMap::new();
    for (path, name) in SECRETS {
        let (parent, member) = path.rsplit_once('/').unwrap_or(("", path));
        let fields = doc.pointer_mut(parent).and_then(Value::as_object_mut);
        let value = fields.and_then(|fields| fields.remove(member));
        secrets.insert(name.to_owned(), value.and_then(|value| value.as_str().map(str::to_owned)));
    }
    secrets
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
            child::WARNINGS,
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
    profiles::check(&properties, errors);
    check_ingress(&properties, errors);
    suffix::check(&properties, errors);
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

fn check_not_built(root: &Node<'_>, errors: &mut Errors) {
    let properties = root.get("properties");
    let mut refuse = |node: &Node<'_>, what: &str, instead: &str| {
        errors.push(ArmError::not_implemented(&node.path, what, instead));
    };
    let identity = root.get("identity").get("type");
    if identity.text().is_some_and(|text| !text.is_empty() && !text.eq_ignore_ascii_case("None")) {
        refuse(&identity, "Managed identity of an environment", "leave `identity` out or set its type to 'None'");
    }
    let vnet = properties.get("vnetConfiguration").get("internal");
    let balancer = properties.get("internalLoadBalancerEnabled");
    for internal in [vnet, balancer].into_iter().filter(|flag| flag.flag() == Some(true)) {
        refuse(&internal, "An environment that is closed to the outside", "make the ingress of each app internal");
    }
    let access = properties.get("publicNetworkAccess");
    if access.text() == Some("Disabled") {
        refuse(&access, "Closing an environment to public networks", "make the ingress of each app internal");
    }
    let mode = properties.get("environmentMode");
    if mode.text().is_some_and(|mode| mode != "WorkloadProfiles") {
        refuse(&mode, "This mode of an environment", "leave environmentMode out: environments have workload profiles");
    }
    for (name, what, instead) in [
        (
            "diskEncryptionConfiguration",
            "Disk encryption with a key of one's own",
            "encrypt the disk of the data directory",
        ),
        ("appInsightsConfiguration", "Application Insights", "give apps its connection string as a secret"),
        ("openTelemetryConfiguration", "The OpenTelemetry agent", "send telemetry from the apps themselves"),
    ] {
        let node = properties.get(name);
        if node.value().is_some_and(asks_for_something) {
            refuse(&node, what, instead);
        }
    }
}

/// Azure's ranges; the profile must be one of the environment's.
fn check_ingress(properties: &Node<'_>, errors: &mut Errors) {
    let ingress = properties.get("ingressConfiguration");
    for (name, range) in
        [("terminationGracePeriodSeconds", 0..=3600), ("requestIdleTimeout", 4..=30), ("headerCountLimit", 1..=10_000)]
    {
        let node = ingress.get(name);
        if let Some(number) = node.int().filter(|number| !range.contains(number)) {
            let (low, high) = (range.start(), range.end());
            errors.invalid(&node.path, format!("{number} is out of range; expected {low} to {high}."));
        }
    }
    let profile = ingress.get("workloadProfileName");
    if let Some(name) = profile.text()
        && !name.eq_ignore_ascii_case("Consumption")
    {
        let profiles = properties.get("workloadProfiles").items();
        let mut names = profiles.iter().filter_map(|profile| profile.get("name").text());
        if !names.any(|known| known.eq_ignore_ascii_case(name)) {
            let message = format!("The environment has no workload profile '{name}'; add it first.");
            errors.push(ArmError::new(400, "InvalidWorkloadProfileName", message).at(profile.path.clone()));
        }
    }
}

/// Limits of requests to the environment's apps. Azure's idle timeout is the only one that it has: it ends a request that is not
/// answered as well as an answer that stops.
fn limits(ingress: &Node<'_>) -> RequestLimits {
    let number = |name: &str| ingress.get(name).int().and_then(|number| u32::try_from(number).ok());
    let idle = number("requestIdleTimeout").map(|minutes| minutes.saturating_mul(60));
    RequestLimits {
        request_timeout_secs: idle,
        idle_timeout_secs: idle,
        header_fields_max: number("headerCountLimit"),
        drain_grace_secs: number("terminationGracePeriodSeconds"),
        ..RequestLimits::default()
    }
}

fn is_mtls(properties: &Node<'_>) -> bool {
    properties.get("peerAuthentication").get("mtls").get("enabled").flag() == Some(true)
}

/// What is stored and returned and has no effect, in words.
#[must_use]
pub fn warnings(doc: &Value) -> Vec<String> {
    let root = Node::root(doc);
    let properties = root.get("properties");
    let mut warnings = Vec::new();
    let mut warn = |is_asked: bool, words: &str| {
        if is_asked {
            warnings.push(words.to_owned());
        }
    };
    warn(properties.get("zoneRedundant").flag() == Some(true), "zoneRedundant has no effect: one machine is one zone.");
    warn(
        properties.get("vnetConfiguration").value().is_some_and(asks_for_something),
        "vnetConfiguration has no effect: an environment has a network of its own on this machine.",
    );
    warn(
        properties.get("ingressConfiguration").get("workloadProfileName").exists(),
        "ingressConfiguration.workloadProfileName has no effect: the ingress is a part of this server, not nodes of a profile.",
    );
    warn(
        properties.get("infrastructureResourceGroup").exists(),
        "infrastructureResourceGroup has no effect: there are no infrastructure resources.",
    );
    let is_mtls = is_mtls(&properties);
    warn(
        is_mtls,
        "peerAuthentication.mtls: apps are told apart by addresses that the kernel of this machine vouches for, not by \
         certificates, and X-Forwarded-Client-Cert tells the called app who calls; who may call whom is not restricted, as in \
         Azure.",
    );
    let encryption = properties.get("peerTrafficConfiguration").get("encryption").get("enabled").flag();
    warn(
        is_mtls || encryption == Some(true),
        "peerTrafficConfiguration.encryption: what apps send to each other stays in this machine's memory, where no other \
         app can read it; it is not encrypted besides. Apps that want TLS call https://<app> and trust COVE_CA_FILE.",
    );
    warnings
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
        ("environmentMode", json!("WorkloadProfiles")),
    ];
    for (name, value) in defaults {
        if properties.get(name).is_none() {
            properties[name] = value;
        }
    }
    let warnings = warnings(doc);
    if !warnings.is_empty() {
        properties[child::WARNINGS] = json!(warnings);
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
mod tests;
