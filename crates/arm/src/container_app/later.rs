//! What Azure does and Cove only keeps: checked, stored, returned, and said plainly to have no effect yet.
//!
//! The app runs all the same. The words of [`warnings`] stand in `properties.coveWarnings` of every answer, and in a
//! Warning event of every write. What guards an app is not in here: that is refused, not kept ([`super::not_built`]).
//!
//! **Invariant:** [`warnings`] reads the stored document alone, so that an old app says the same as a new one.

use std::{collections::BTreeSet, ops::RangeInclusive};

use cove_model::ResourceId;
use cove_scaling::validate::{self as scaling, Surroundings};
use serde_json::Value;

use super::{check::Scope, ingress::port};
use crate::{ArmError, Errors, environment::asks_for_something, node::Node, user_identity::Assigned};

/// Checks everything that is only kept.
pub(super) fn check(root: &Node<'_>, assigned: &Assigned, errors: &mut Errors) {
    let configuration = root.get("properties").get("configuration");
    dapr(&configuration.get("dapr"), errors);
    let threshold = configuration.get("revisionTransitionThreshold");
    if threshold.exists() {
        super::check::range(&threshold, 1..=100, 100, errors);
    }
    for settings in configuration.get("identitySettings").items() {
        let node = settings.get("identity");
        if !node.exists() {
            errors.invalid(&node.path, "An entry of identitySettings needs an identity: 'system' or the id of one.");
        }
        check_identity_ref(&node, assigned, errors);
    }
}

fn dapr(node: &Node<'_>, errors: &mut Errors) {
    if node.get("enabled").flag() != Some(true) {
        return;
    }
    let app_id = node.get("appId");
    let is_id = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if let Some(text) = app_id.text()
        && (text.len() > 253 || !text.chars().all(is_id) || text.starts_with('-') || text.ends_with('-'))
    {
        let shown: String = text.chars().take(80).collect();
        let rule = "use letters, digits and '-', with a letter or digit at both ends";
        errors.push(
            ArmError::new(400, "DaprInvalidAppId", format!("The Dapr app id '{shown}' is not valid: {rule}."))
                .at(&app_id.path),
        );
    }
    port(&node.get("appPort"), errors);
    for (name, words) in [
        ("appProtocol", &["http", "https", "grpc", "grpcs", "h2c"][..]),
        ("logLevel", &["debug", "info", "warn", "error"]),
    ] {
        let node = node.get(name);
        if let Some(text) = node.text()
            && !words.iter().any(|word| word.eq_ignore_ascii_case(text))
        {
            let shown: String = text.chars().take(40).collect();
            errors.invalid(&node.path, format!("the value is '{shown}'; expected one of {}.", words.join(", ")));
        }
    }
    for name in ["httpReadBufferSize", "httpMaxRequestSize"] {
        let node = node.get(name);
        if node.int().is_some_and(|size| size < 1) {
            errors.invalid(&node.path, format!("{name} must be at least 1."));
        }
    }
}

/// Notes a reference to an identity that the app does not have.
pub(crate) fn check_identity_ref(node: &Node<'_>, assigned: &Assigned, errors: &mut Errors) {
    let Some(text) = node.text() else { return };
    let is_known = match text {
        _ if text.eq_ignore_ascii_case("system") => assigned.is_system,
        _ if text.eq_ignore_ascii_case("system-environment") => true,
        _ => ResourceId::parse(text).is_ok_and(|id| assigned.user.contains(&id)),
    };
    if !is_known {
        let shown: String = text.chars().take(200).collect();
        let message = format!(
            "The identity '{shown}' is not assigned to the app; expected 'system' with a system-assigned identity, or the id of one of its user-assigned identities."
        );
        errors.push(ArmError::new(400, "ManagedIdentityNotAssigned", message).at(&node.path));
    }
}

/// What of a stored document has no effect, or an effect that may surprise, in words.
#[must_use]
pub fn warnings(doc: &Value) -> Vec<String> {
    let mut all = Vec::new();
    let root = Node::root(doc);
    let properties = root.get("properties");
    let configuration = properties.get("configuration");
    let mut say = |text: &str| all.push(text.to_owned());
    if configuration.get("dapr").get("enabled").flag() == Some(true) {
        say("dapr has no effect yet: the app runs without a sidecar, and nothing listens on ports 3500 and 50001.");
    }
    if root.get("identity").get("type").text().is_some_and(|kind| !kind.eq_ignore_ascii_case("None")) {
        say(
            "identity: ids are made and can be given roles, but the app gets no tokens yet; IDENTITY_ENDPOINT is not set in its containers.",
        );
    }
    if configuration.get("registries").items().iter().any(|registry| registry.get("identity").exists()) {
        say(
            "registries[].identity has no effect yet: images are pulled without a login; give username and passwordSecretRef where one is needed.",
        );
    }
    if !configuration.get("identitySettings").items().is_empty() {
        say("identitySettings have no effect yet: the app gets no tokens.");
    }
    for (name, what) in [
        ("runtime", "runtime has no effect yet: no Java or .NET metrics and no logger settings."),
        ("service", "service has no effect."),
    ] {
        if configuration.get(name).value().is_some_and(asks_for_something) {
            say(what);
        }
    }
    if configuration.get("revisionTransitionThreshold").int().is_some_and(|percent| percent != 100) {
        say(
            "revisionTransitionThreshold has no effect yet: a new revision takes over when all its first replicas are ready.",
        );
    }
    let is_labels = configuration.get("activeRevisionsMode").text() == Some("Labels");
    if configuration.get("targetLabel").exists() && !is_labels {
        say("targetLabel has no effect: activeRevisionsMode is not 'Labels'.");
    }
    let patching = properties.get("patchingConfiguration").get("patchingMode");
    if patching.text().is_some_and(|mode| !mode.eq_ignore_ascii_case("Manual")) {
        say("patchingConfiguration has no effect: images are never patched here; rebuild and update the app.");
    }
    if !configuration.get("ingress").exists() {
        for rule in properties.get("template").get("scale").get("rules").items() {
            if rule.get("http").exists() || rule.get("tcp").exists() {
                let name = rule.get("name").text().unwrap_or_default().to_owned();
                say(&format!(
                    "scale rule '{name}' has no effect: it counts what arrives at the ingress, and the app has none."
                ));
            }
        }
    }
    template(&properties.get("template"), &mut say);
    all.extend(exposed_ports(&configuration.get("ingress")));
    all.extend(scale(&root));
    all
}

/// Where Linux takes the ports of outgoing connections from, unless `net.ipv4.ip_local_port_range` says otherwise.
const CONNECTION_PORTS: RangeInclusive<i64> = 32_768..=60_999;

/// External ports that a connection of this machine may have at the moment they are to be opened.
fn exposed_ports(ingress: &Node<'_>) -> Vec<String> {
    let is_tcp = ingress.get("transport").text().is_some_and(|transport| transport.eq_ignore_ascii_case("tcp"));
    let own = ingress.get("exposedPort").int().or_else(|| ingress.get("targetPort").int());
    let own = own.filter(|_| is_tcp && ingress.get("external").flag() == Some(true));
    let mappings = ingress.get("additionalPortMappings").items();
    let external = mappings.iter().filter(|mapping| mapping.get("external").flag() == Some(true));
    let ports =
        external.filter_map(|mapping| mapping.get("exposedPort").int().or_else(|| mapping.get("targetPort").int()));
    let words = |port: i64| {
        format!(
            "exposed port {port}: Linux gives the ports {} to {} to outgoing connections, so it may be taken when it is to be \
             opened, and is then tried again until it is free; a lower one is opened at once.",
            CONNECTION_PORTS.start(),
            CONNECTION_PORTS.end(),
        )
    };
    own.into_iter().chain(ports).filter(|port| CONNECTION_PORTS.contains(port)).map(words).collect()
}

fn template(template: &Node<'_>, say: &mut dyn FnMut(&str)) {
    let has_gpu = |list: &str| {
        let items = template.get(list).items();
        items.iter().any(|item| item.get("resources").get("gpu").number().is_some_and(|count| count != 0.0))
    };
    if has_gpu("containers") || has_gpu("initContainers") {
        say("resources.gpu has no effect yet: the container gets no GPU device.");
    }
    let scale = template.get("scale");
    if scale.get("allowScalingRuleOverride").flag() == Some(true) {
        say("scale.allowScalingRuleOverride has no effect yet: the rules of the template alone decide.");
    }
    let has_identity = |rule: &Node<'_>| {
        ["http", "tcp", "custom", "azureQueue"].iter().any(|kind| rule.get(kind).get("identity").exists())
    };
    if scale.get("rules").items().iter().any(has_identity) {
        say(
            "identity of a scale rule logs in with tokens of this server, which Azure's own services do not know: use auth with a secret for those.",
        );
    }
}

/// Surprises in scale rules; that the default rule applies is none.
fn scale(root: &Node<'_>) -> Vec<String> {
    let configuration = root.get("properties").get("configuration");
    let around = Surroundings {
        is_job: false,
        has_ingress: configuration.get("ingress").exists(),
        multiple_revisions: configuration.get("activeRevisionsMode").text().is_some_and(|mode| mode != "Single"),
        dapr_actors: false,
        secrets: BTreeSet::new(),
    };
    let scale = root.get("properties").get("template").get("scale");
    let found = scaling::validate(scale.value().unwrap_or(&Value::Null), &around);
    let surprising = found.warnings.iter().filter(|finding| finding.code != scaling::WarningCode::DefaultRuleApplied);
    let mut all: Vec<(&str, &str)> =
        surprising.map(|finding| (finding.place.as_str(), finding.message.as_str())).collect();
    all.extend(found.hints.iter().map(|(place, message)| (place.as_str(), message.as_str())));
    let settings = scale.get("coveSettings");
    if settings.get("headroomPercent").exists() && scale.get("coveMode").text() == Some("aca") {
        all.push(("coveSettings", "headroomPercent has no effect in the mode aca, which counts arrivals"));
    }
    let mut said: Vec<String> =
        all.into_iter().map(|(place, message)| format!("template.scale.{place}: {message}.")).collect();
    if scale.get("coveIdle").text() == Some("frozen") {
        said.extend(never_frozen(root).map(|why| format!("template.scale.coveIdle: frozen has no effect: {why}.")));
    }
    said
}

/// What keeps the app's last replica from being frozen, if anything.
fn never_frozen(root: &Node<'_>) -> Option<String> {
    let (configuration, template) =
        (root.get("properties").get("configuration"), root.get("properties").get("template"));
    if template.get("scale").get("minReplicas").int().is_some_and(|min| min > 0) {
        return Some("with minReplicas above 0 a replica always runs".to_owned());
    }
    if !configuration.get("ingress").exists() {
        return Some("without ingress no request would wake the app".to_owned());
    }
    if configuration.get("dapr").get("enabled").flag() == Some(true) {
        return Some("Dapr needs the app alive".to_owned());
    }
    template.get("containers").items().iter().find_map(|container| {
        let probes = container.get("probes").items();
        let probe = probes.iter().find_map(|probe| match probe.get("type").text() {
            Some(kind @ ("Liveness" | "Readiness")) => Some(kind.to_lowercase()),
            _ => None,
        })?;
        let name: String = container.get("name").text().unwrap_or_default().chars().take(80).collect();
        Some(format!("container '{name}' has a {probe} probe, which a frozen container cannot answer"))
    })
}

/// Notes what the catalogue of scalers knows to be wrong with custom rules; the rest of the rules is read elsewhere.
pub(super) fn check_custom_rules(scale: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) {
    use scaling::ErrorCode::{CustomTypeUnknown, MetadataInvalid};
    let Some(value) = scale.value() else { return };
    let around =
        Surroundings { secrets: scope.secrets.clone(), has_ingress: scope.has_ingress, ..Surroundings::default() };
    for finding in scaling::validate(value, &around).errors {
        let is_custom = finding.place.contains(".custom");
        if !is_custom || !matches!(finding.code, CustomTypeUnknown | MetadataInvalid) {
            continue;
        }
        let index = finding.place.trim_start_matches("rules[").split(']').next().and_then(|text| text.parse().ok());
        let rule = index.and_then(|index: usize| scale.get("rules").items().into_iter().nth(index));
        let name: String = rule
            .as_ref()
            .and_then(|rule| rule.get("name").text().map(|name| name.chars().take(80).collect()))
            .unwrap_or_default();
        let message = format!("The scale rule '{name}' is invalid. {}.", finding.message);
        let code = match finding.code {
            CustomTypeUnknown => "CustomTypeUnknown",
            _ => "MetadataInvalid",
        };
        errors.push(ArmError::new(400, code, message).at(format!("{}.{}", scale.path, finding.place)));
    }
}
