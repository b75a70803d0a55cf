//! From a normalised document to the model: configuration, secrets, registries, and what belongs to the app as a whole.
//!
//! **Invariant:** whatever is wrong is noted and reading goes on, so that the caller gets all problems at once; the result
//! is only used when nothing was noted.

use std::collections::{BTreeMap, BTreeSet};

use cove_model::{ActiveRevisionsMode, ContainerApp, Registry, ResourceId, RevisionName, check_app_name};
use serde_json::{Value, json};

use super::{Parsed, PutContext, ingress, labels::is_label, later, not_built, template};
use crate::{
    ArmError, Errors,
    node::Node,
    user_identity::{Assigned, read_block},
};

/// Kind of an environment's id.
const ENVIRONMENT_KIND: &str = "Microsoft.App/managedEnvironments";

/// Most secrets of an app.
const SECRETS_MAX: usize = 200;

/// What the parts of an app need to know of each other.
pub(crate) struct Scope<'a> {
    /// The app's name.
    pub(crate) app: &'a str,
    /// Names of its secrets after this request.
    pub(crate) secrets: BTreeSet<String>,
    /// Names of those that this request takes away.
    pub(crate) removed_secrets: BTreeSet<String>,
    /// Whether it has a way in.
    pub(crate) has_ingress: bool,
    /// Whether it runs in the Consumption profile, whose sizes are a table.
    pub(crate) is_consumption: bool,
    /// Its identities.
    pub(crate) identities: Assigned,
    /// Where its secrets stand in the document.
    pub(crate) secrets_path: &'static str,
}

/// Where apps and jobs have their secrets.
pub(crate) const SECRETS_PATH: &str = "properties.configuration.secrets";

impl Scope<'_> {
    /// Notes a reference to a secret that the app does not have.
    pub(super) fn check_secret_ref(&self, node: &Node<'_>, errors: &mut Errors) {
        if let Some(name) = node.text()
            && !self.secrets.contains(name)
        {
            if self.removed_secrets.contains(name) {
                let message =
                    format!("The secret '{name}' is used at {}; stop using it before it is removed.", node.path);
                errors.push(ArmError::new(400, "ContainerAppSecretInUse", message).at(&node.path));
                return;
            }
            let message = format!("The secret '{name}' does not exist; add it to {}.", self.secrets_path);
            errors.push(ArmError::new(400, "ContainerAppSecretRefNotFound", message).at(&node.path));
        }
    }
}

/// Reads the whole app; the document is made canonical on the way.
pub(super) fn app(mut doc: Value, context: &PutContext<'_>, errors: &mut Errors) -> Parsed {
    let name = context.id.name();
    if check_app_name(name).is_err() {
        errors.push(ArmError::invalid_app_name(name));
    }
    if !doc.is_object() {
        doc = json!({});
    }
    let environment = environment(&Node::root(&doc), context, errors);
    let identities = read_block(&mut doc, errors);
    let (secrets, app, revision_suffix) = {
        let root = Node::root(&doc);
        location(&root, errors);
        not_built::check(&root, errors);
        later::check(&root, &identities, errors);
        let configuration = root.get("properties").get("configuration");
        let secrets = secrets(&configuration, context.known_secrets, errors);
        let scope = Scope {
            app: name,
            secrets: secrets.keys().cloned().collect(),
            removed_secrets: context
                .known_secrets
                .iter()
                .filter(|name| !secrets.contains_key(*name))
                .cloned()
                .collect(),
            has_ingress: configuration.get("ingress").exists(),
            is_consumption: profile(&root.get("properties").get("workloadProfileName")).is_none(),
            identities,
            secrets_path: SECRETS_PATH,
        };
        let mode = revisions_mode(&configuration, errors);
        let template_node = root.get("properties").get("template");
        template::refuse_execution_volumes(&template_node, errors);
        let app = ContainerApp {
            id: context.id.clone(),
            environment: environment.clone(),
            active_revisions_mode: mode,
            ingress: ingress::read(&configuration.get("ingress"), mode, &environment, &scope, errors),
            registries: registries(&configuration, &scope, errors),
            max_inactive_revisions: max_inactive(&configuration, errors),
            template: template::read(&template_node, &scope, errors),
            is_stopped: false,
            workload_profile: profile(&root.get("properties").get("workloadProfileName")),
        };
        (secrets, app, revision_suffix(&template_node, &scope, errors))
    };
    make_canonical(&mut doc, &environment, app.active_revisions_mode);
    let workload_profile = doc.pointer("/properties/workloadProfileName").and_then(Value::as_str).map(str::to_owned);
    Parsed { app, doc, secrets, revision_suffix, workload_profile }
}

/// One spelling of the environment, names instead of secret values, no weights where there is one revision.
fn make_canonical(doc: &mut Value, environment: &ResourceId, mode: ActiveRevisionsMode) {
    if !doc["properties"].is_object() {
        doc["properties"] = json!({});
    }
    doc["properties"]["environmentId"] = json!(environment.as_str());
    if let Some(fields) = doc["properties"].as_object_mut() {
        fields.remove("managedEnvironmentId");
    }
    let secrets = doc.pointer_mut("/properties/configuration/secrets").and_then(Value::as_array_mut);
    for secret in secrets.into_iter().flatten() {
        *secret = json!({ "name": secret["name"] });
    }
    let ingress = doc.pointer_mut("/properties/configuration/ingress").and_then(Value::as_object_mut);
    if let Some(ingress) = ingress
        && mode == ActiveRevisionsMode::Single
    {
        ingress.remove("traffic");
    }
    if let Some(traffic) = doc.pointer_mut("/properties/configuration/ingress/traffic") {
        ingress::merge_traffic(traffic);
    }
}

/// The profile that replicas run on; `Consumption` is what no profile means.
pub(crate) fn profile(node: &Node<'_>) -> Option<String> {
    node.text().filter(|name| !name.eq_ignore_ascii_case("Consumption")).map(str::to_owned)
}

pub(crate) fn location(root: &Node<'_>, errors: &mut Errors) {
    match root.get("location").text() {
        None | Some("") => errors.push(
            ArmError::new(400, "LocationRequired", "The location property is required for this definition.")
                .at("location"),
        ),
        Some(location) => crate::provider::check_location(location, errors),
    }
}

pub(crate) fn environment(root: &Node<'_>, context: &PutContext<'_>, errors: &mut Errors) -> ResourceId {
    let properties = root.get("properties");
    let (new, old) = (properties.get("environmentId"), properties.get("managedEnvironmentId"));
    let node = if new.exists() { &new } else { &old };
    let Some(text) = node.text() else {
        let message = "The id of a managed environment is required: /subscriptions/…/managedEnvironments/NAME.";
        errors.push(ArmError::new(400, "ManagedEnvironmentRequired", message).at(&new.path));
        return context.id.clone();
    };
    if let (Some(a), Some(b)) = (new.text(), old.text())
        && ResourceId::parse(a).ok() != ResourceId::parse(b).ok()
    {
        errors.invalid(
            &old.path,
            "environmentId and managedEnvironmentId name different environments; give one of them.",
        );
    }
    match ResourceId::parse(text) {
        Ok(id) if id.kind().eq_ignore_ascii_case(ENVIRONMENT_KIND) => id,
        Ok(id) if id.kind().eq_ignore_ascii_case("Microsoft.App/connectedEnvironments") => {
            let instead = "use a managed environment";
            errors.push(ArmError::not_implemented(&node.path, "An app in a connected environment", instead));
            id
        }
        _ => {
            let shown: String = text.chars().take(200).collect();
            let message = format!(
                "'{shown}' is not the id of a managed environment; expected /subscriptions/ID/resourceGroups/NAME/providers/{ENVIRONMENT_KIND}/NAME."
            );
            errors.push(ArmError::new(400, "InvalidEnvironmentId", message).at(&node.path));
            context.id.clone()
        }
    }
}

fn revisions_mode(configuration: &Node<'_>, errors: &mut Errors) -> ActiveRevisionsMode {
    let node = configuration.get("activeRevisionsMode");
    let target = configuration.get("targetLabel");
    if let Some(label) = target.text()
        && !is_label(label)
    {
        let shown: String = label.chars().take(80).collect();
        let rule = "use 1 to 63 lower case letters, digits and single '-', with a letter or digit at both ends";
        errors.invalid(&target.path, format!("The label '{shown}' is not valid: {rule}."));
    }
    match node.text() {
        Some("Multiple") => ActiveRevisionsMode::Multiple,
        Some("Labels") => ActiveRevisionsMode::Labels,
        _ => ActiveRevisionsMode::Single,
    }
}

fn max_inactive(configuration: &Node<'_>, errors: &mut Errors) -> u32 {
    range(&configuration.get("maxInactiveRevisions"), 0..=100, 100, errors)
}

/// A whole number within a range, or its default.
pub(crate) fn range(node: &Node<'_>, allowed: std::ops::RangeInclusive<u32>, default: u32, errors: &mut Errors) -> u32 {
    let Some(number) = node.int() else { return default };
    match u32::try_from(number).ok().filter(|number| allowed.contains(number)) {
        Some(number) => number,
        None => {
            let (low, high) = (allowed.start(), allowed.end());
            errors.invalid(&node.path, format!("The value {number} is not valid; expected {low} to {high}."));
            default
        }
    }
}

fn revision_suffix(template: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) -> Option<String> {
    let node = template.get("revisionSuffix");
    let suffix = node.text()?;
    let valid = is_dns_label(suffix, 64) && !suffix.contains("--");
    let whole = RevisionName::of(scope.app, suffix);
    if !valid || (whole.is_err() && check_app_name(scope.app).is_ok()) {
        let shown: String = suffix.chars().take(80).collect();
        let message = format!(
            "The revision suffix '{shown}' is not valid: use lower case letters, digits and single '-', with a letter or digit at both ends; '{}--SUFFIX' may have 64 characters.",
            scope.app
        );
        errors.push(ArmError::new(400, "InvalidRevisionSuffix", message).at(&node.path));
    }
    Some(suffix.to_owned())
}

pub(crate) fn secrets(
    configuration: &Node<'_>,
    known: &BTreeSet<String>,
    errors: &mut Errors,
) -> BTreeMap<String, Option<String>> {
    let mut found = BTreeMap::new();
    let items = configuration.get("secrets").items();
    if items.len() > SECRETS_MAX {
        let path = configuration.get("secrets").path;
        errors.invalid(&path, format!("{} secrets are too many; an app may have {SECRETS_MAX}.", items.len()));
    }
    for secret in items.iter().take(SECRETS_MAX) {
        let name_node = secret.get("name");
        let name = name_node.text().unwrap_or("");
        if name.is_empty() || name.len() > 253 || !name.split('.').all(|part| is_dns_label(part, 253)) {
            let shown: String = name.chars().take(80).collect();
            let message = format!(
                "The secret name '{shown}' is not valid: use lower case letters, digits, '-' and '.', with a letter or digit at both ends."
            );
            errors.push(ArmError::new(400, "ContainerAppSecretInvalid", message).at(&name_node.path));
        }
        if secret.get("keyVaultUrl").exists() || secret.get("identity").exists() {
            errors.push(ArmError::not_implemented(&secret.path, "A secret from Key Vault", "give its value"));
        } else if secret.get("value").text().is_none_or(str::is_empty) && !known.contains(name) {
            let message = format!(
                "Container app secret(s) with name(s) '{name}' are invalid: value or keyVaultUrl and identity should be provided."
            );
            errors.push(ArmError::new(400, "ContainerAppSecretInvalid", message).at(&secret.path));
        }
        let value = secret.get("value").text().filter(|value| !value.is_empty()).map(str::to_owned);
        if found.insert(name.to_owned(), value).is_some() {
            let message = format!("The secret '{name}' is given twice; names must be unique.");
            errors.push(ArmError::new(400, "ContainerAppSecretInvalid", message).at(&name_node.path));
        }
    }
    found
}

pub(crate) fn registries(configuration: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) -> Vec<Registry> {
    let mut seen = BTreeSet::new();
    let nodes = configuration.get("registries").items();
    nodes.iter().map(|node| registry(node, &mut seen, scope, errors)).collect()
}

/// One login; `seen` holds the servers of those before, in lower case.
pub(crate) fn registry(
    node: &Node<'_>,
    seen: &mut BTreeSet<String>,
    scope: &Scope<'_>,
    errors: &mut Errors,
) -> Registry {
    let server = node.get("server");
    let text = server.text().unwrap_or("");
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c == '@') {
        errors.invalid(&server.path, "A registry needs a server, such as 'registry.example.com' or 'localhost:5000'.");
    } else if !seen.insert(text.to_ascii_lowercase()) {
        errors.invalid(&server.path, format!("The registry '{text}' is given twice."));
    }
    let (user, password, identity) = (node.get("username"), node.get("passwordSecretRef"), node.get("identity"));
    if identity.exists() {
        later::check_identity_ref(&identity, &scope.identities, errors);
        if user.exists() || password.exists() {
            errors.invalid(&node.path, format!("The registry '{text}' has an identity and a password; give one."));
        }
    } else if user.exists() != password.exists() || !user.exists() {
        errors.invalid(&node.path, format!("The registry '{text}' needs both username and passwordSecretRef."));
    }
    scope.check_secret_ref(&password, errors);
    Registry {
        server: text.to_owned(),
        username: user.text().map(str::to_owned),
        password_secret_ref: password.text().map(str::to_owned),
        identity: identity.text().map(str::to_owned),
    }
}

/// Lower-case letters, digits and dashes, a letter or digit at both ends, 1 to `max` characters.
pub(super) fn is_dns_label(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}
