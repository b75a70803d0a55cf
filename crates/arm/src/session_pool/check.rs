//! From a normalised document to the model: kind, lifecycle, counts, container, network, isolation.
//!
//! **Invariant:** whatever is wrong is noted and reading goes on, so that the caller gets all problems at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cove_model::{
    Bytes, Container, MilliCpu, Registry, ResourceId, Resources, SESSION_POOL_NAME_RULE, SESSIONS_MAX, Scale,
    SessionContainer, SessionEgress, SessionIdentity, SessionIsolation, SessionLifecycle, SessionPool, Template,
    check_session_pool_name,
};
use serde_json::{Value, json};

use super::{ParsedPool, PoolContext, snapshots};
use crate::{
    ArmError, Errors,
    container_app::{
        PutContext,
        check::{self as shared, Scope, range},
        later, template,
    },
    node::Node,
    user_identity::{Assigned, read_block},
};

/// Cool-down in seconds.
const COOLDOWN: std::ops::RangeInclusive<u32> = 300..=3600;
const COOLDOWN_DEFAULT: u32 = 300;
/// Longest life of a session whose end is its container's, in seconds.
const MAX_ALIVE: std::ops::RangeInclusive<u32> = 60..=86_400;
const MAX_ALIVE_DEFAULT: u32 = 3600;
/// `az`'s defaults of the counts.
const SESSIONS_DEFAULT: u32 = 10;
const READY_DEFAULT: u32 = 5;
/// Port of Cove's own interpreters.
const INTERPRETER_PORT: u16 = 6000;
/// Longest name of an isolation handler.
const HANDLER_LENGTH_MAX: usize = 63;

/// Reads the whole pool; the document is made canonical on the way.
pub(super) fn pool(mut doc: Value, context: &PoolContext<'_>, errors: &mut Errors) -> ParsedPool {
    let name = context.id.name();
    if check_session_pool_name(name).is_err() {
        let shown: String = name.chars().take(80).collect();
        let message = format!("Session pool name '{shown}' is not valid: {SESSION_POOL_NAME_RULE}.");
        errors.push(ArmError::new(400, "InvalidSessionPoolName", message));
    }
    if !doc.is_object() {
        doc = json!({});
    }
    let identities = read_block(&mut doc, errors);
    let (secrets, pool) = {
        let root = Node::root(&doc);
        shared::location(&root, errors);
        let properties = root.get("properties");
        check_management(&properties, errors);
        let container = container_kind(&properties, errors);
        let secrets = shared::secrets(&properties, context.known_secrets, errors);
        let scope = scope(name, &secrets, context.known_secrets, identities);
        let (sessions_max, sessions_ready) = counts(&properties.get("scaleConfiguration"), errors);
        let custom = custom(&properties, container, &scope, errors);
        let containers = custom.template.init_containers.len() + custom.template.containers.len();
        let network = properties.get("sessionNetworkConfiguration");
        let egress = match network.get("status").text() {
            Some("EgressEnabled") => SessionEgress::Enabled,
            _ => SessionEgress::Disabled,
        };
        let environment = environment(&root, container, context, errors);
        let lifecycle = lifecycle(&properties, container, errors);
        let pool = SessionPool {
            id: context.id.clone(),
            environment,
            workload_profile: None,
            container,
            template: Arc::new(custom.template),
            target_port: custom.target_port,
            lifecycle,
            sessions_max,
            sessions_ready,
            egress,
            egress_rules: super::egress::rules(&network, egress, errors),
            isolation: isolation(&properties.get("coveIsolation"), (context, containers), errors),
            registries: custom.registry.into_iter().collect(),
            managed_identities: managed_identities(&properties, &scope, errors),
            is_mcp_enabled: mcp(&properties, errors),
            snapshot: snapshots::snapshot(&properties.get("coveSnapshot"), context, errors),
            suspend: snapshots::suspend(&properties, lifecycle, errors),
            generation: context.generation.clone(),
        };
        (secrets, pool)
    };
    make_canonical(&mut doc, pool.environment.as_ref());
    ParsedPool { pool, doc, secrets }
}

/// What the parts of a pool need to know of each other.
fn scope<'a>(
    name: &'a str,
    secrets: &BTreeMap<String, Option<String>>,
    known_secrets: &BTreeSet<String>,
    identities: Assigned,
) -> Scope<'a> {
    let secrets: BTreeSet<String> = secrets.keys().cloned().collect();
    Scope {
        app: name,
        removed_secrets: known_secrets.difference(&secrets).cloned().collect(),
        secrets,
        has_ingress: false,
        is_consumption: true,
        identities,
        secrets_path: "properties.secrets",
    }
}

/// One spelling of the environment, names instead of secret values.
fn make_canonical(doc: &mut Value, environment: Option<&ResourceId>) {
    if !doc["properties"].is_object() {
        doc["properties"] = json!({});
    }
    if let Some(environment) = environment {
        doc["properties"]["environmentId"] = json!(environment.as_str());
    }
    let secrets = doc.pointer_mut("/properties/secrets").and_then(Value::as_array_mut);
    for secret in secrets.into_iter().flatten() {
        *secret = json!({ "name": secret["name"] });
    }
}

fn check_management(properties: &Node<'_>, errors: &mut Errors) {
    let node = properties.get("poolManagementType");
    if node.text() == Some("Manual") {
        let instead = "use 'Dynamic', which allocates a session when an identifier is first seen";
        errors.push(ArmError::not_implemented(&node.path, "A session pool that is managed by hand", instead));
    }
}

fn container_kind(properties: &Node<'_>, errors: &mut Errors) -> SessionContainer {
    let node = properties.get("containerType");
    match node.text().and_then(SessionContainer::from_arm) {
        None if !node.exists() => {
            let message = "containerType is required: CustomContainer, PythonLTS, NodeLTS or Shell.";
            errors.invalid(&node.path, message);
            SessionContainer::Custom
        }
        None => SessionContainer::Custom,
        Some(kind) => kind,
    }
}

/// A pool of custom containers needs one; the built-in kinds may have one.
fn environment(
    root: &Node<'_>,
    container: SessionContainer,
    context: &PoolContext<'_>,
    errors: &mut Errors,
) -> Option<ResourceId> {
    let is_given = root.get("properties").get("environmentId").exists();
    if !is_given && container != SessionContainer::Custom {
        return None;
    }
    let context = PutContext { id: context.id, known_secrets: context.known_secrets };
    Some(shared::environment(root, &context, errors))
}

/// Most sessions, and those kept ready.
fn counts(node: &Node<'_>, errors: &mut Errors) -> (u32, u32) {
    let max = range(&node.get("maxConcurrentSessions"), 1..=SESSIONS_MAX, SESSIONS_DEFAULT, errors);
    let ready_node = node.get("readySessionInstances");
    let ready = range(&ready_node, 0..=SESSIONS_MAX, READY_DEFAULT.min(max), errors);
    if ready > max {
        let message = format!(
            "readySessionInstances is {ready} and maxConcurrentSessions is {max}; no more sessions can be ready than may be allocated."
        );
        errors.invalid(&ready_node.path, message);
    }
    (max, ready)
}

fn lifecycle(properties: &Node<'_>, container: SessionContainer, errors: &mut Errors) -> SessionLifecycle {
    let node = properties.get("dynamicPoolConfiguration").get("lifecycleConfiguration");
    let kind = node.get("lifecycleType");
    let (cooldown, max_alive) = (node.get("cooldownPeriodInSeconds"), node.get("maxAlivePeriodInSeconds"));
    let mut foreign = |other: &Node<'_>, kind: &str, instead: &str| {
        if other.exists() {
            let message = format!("'{}' means nothing with lifecycleType '{kind}'; {instead}.", other.path);
            errors.invalid(&other.path, message);
        }
    };
    if kind.text() == Some("OnContainerExit") {
        foreign(&cooldown, "OnContainerExit", "give maxAlivePeriodInSeconds");
        if container != SessionContainer::Custom {
            let message = format!("Sessions of type '{}' never exit by themselves; use 'Timed'.", container.as_arm());
            errors.invalid(&kind.path, message);
        }
        return SessionLifecycle::OnContainerExit {
            max_alive_secs: range(&max_alive, MAX_ALIVE, MAX_ALIVE_DEFAULT, errors),
        };
    }
    foreign(&max_alive, "Timed", "give cooldownPeriodInSeconds, or lifecycleType 'OnContainerExit'");
    SessionLifecycle::Timed { cooldown_secs: range(&cooldown, COOLDOWN, COOLDOWN_DEFAULT, errors) }
}

/// What only a pool of custom containers says.
struct Custom {
    template: Template,
    target_port: u16,
    registry: Option<Registry>,
}

fn custom(properties: &Node<'_>, container: SessionContainer, scope: &Scope<'_>, errors: &mut Errors) -> Custom {
    let node = properties.get("customContainerTemplate");
    if container != SessionContainer::Custom {
        if node.exists() {
            let message = format!(
                "customContainerTemplate belongs to containerType 'CustomContainer', and containerType is '{}'; leave it out.",
                container.as_arm()
            );
            errors.invalid(&node.path, message);
        }
        let template = interpreter(container);
        return Custom { template, target_port: INTERPRETER_PORT, registry: None };
    }
    let template = template::read(&node, scope, errors);
    for (index, container) in node.get("containers").items().iter().enumerate() {
        let mounts = container.get("volumeMounts");
        if !mounts.items().is_empty() {
            let message = format!("A session has no volumes: container {index} mounts one; leave volumeMounts out.");
            errors.invalid(&mounts.path, message);
        }
        let gpu = container.get("resources").get("gpu");
        if gpu.number().is_some_and(|count| count > 0.0) {
            let instead = "leave it out: sessions get no device of this machine";
            errors.push(ArmError::not_implemented(&gpu.path, "A GPU in a session", instead));
        }
    }
    let credentials = node.get("registryCredentials");
    let is_asked =
        ["server", "username", "passwordSecretRef", "identity"].iter().any(|name| credentials.get(name).exists());
    let registry = is_asked.then(|| shared::registry(&credentials, &mut BTreeSet::new(), scope, errors));
    Custom { template, target_port: target_port(&node.get("ingress").get("targetPort"), errors), registry }
}

/// What a session of a built-in kind runs. Azure says nothing of its size; this one loads pandas and leaves room for data.
fn interpreter(kind: SessionContainer) -> Template {
    const GIB: u64 = 1 << 30;
    let container = Container {
        name: "interpreter".into(),
        image: kind.interpreter_image().unwrap_or_default().to_owned(),
        command: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        resources: Resources { cpu: MilliCpu(500), memory: Bytes(GIB), ephemeral_storage: Bytes(2 * GIB) },
        probes: Vec::new(),
        volume_mounts: Vec::new(),
    };
    Template {
        init_containers: Vec::new(),
        containers: vec![container],
        volumes: Vec::new(),
        scale: Scale::default(),
        termination_grace_period_secs: 0,
    }
}

fn target_port(node: &Node<'_>, errors: &mut Errors) -> u16 {
    let Some(port) = node.int() else {
        errors.invalid(&node.path, "targetPort is required: the port that the container serves HTTP on, 1 to 65535.");
        return 1;
    };
    match u16::try_from(port).ok().filter(|port| *port > 0) {
        Some(port) => port,
        None => {
            errors.invalid(&node.path, format!("The value {port} is not valid; expected 1 to 65535."));
            1
        }
    }
}

fn isolation(
    node: &Node<'_>,
    (context, containers): (&PoolContext<'_>, usize),
    errors: &mut Errors,
) -> SessionIsolation {
    let asked = match node.text() {
        None => context.default_isolation.clone(),
        Some("hardened") => SessionIsolation::Hardened,
        Some("vm") => SessionIsolation::Vm,
        Some(name) => SessionIsolation::Handler(name.strip_prefix("handler:").unwrap_or(name).to_owned()),
    };
    if asked == SessionIsolation::Vm && containers > 1 {
        let message = format!(
            "A session with isolation 'vm' has one container and no init container; the template has {containers}. \
             Put what it needs into one image, or use 'hardened'."
        );
        errors.push(ArmError::new(400, "SessionIsolationUnavailable", message).at(&node.path));
    }
    if !context.isolations.contains(&asked) {
        let shown: String = asked.as_str().chars().take(HANDLER_LENGTH_MAX).collect();
        let known: Vec<&str> = context.isolations.iter().map(SessionIsolation::as_str).collect();
        let message = format!(
            "This machine has no isolation '{shown}' for sessions; it has: {}. `cove doctor` says what each needs.",
            known.join(", ")
        );
        errors.push(ArmError::new(400, "SessionIsolationUnavailable", message).at(&node.path));
    }
    asked
}

fn managed_identities(properties: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) -> Vec<SessionIdentity> {
    let items = properties.get("managedIdentitySettings").items();
    let read = |settings: &Node<'_>| {
        let node = settings.get("identity");
        if !node.exists() {
            let message = "An entry of managedIdentitySettings needs an identity: 'system' or the id of one.";
            errors.invalid(&node.path, message);
        }
        later::check_identity_ref(&node, &scope.identities, errors);
        SessionIdentity {
            identity: node.text().unwrap_or("").to_owned(),
            is_for_main: matches!(settings.get("lifecycle").text(), Some("Main" | "All")),
        }
    };
    items.iter().map(read).collect()
}

fn mcp(properties: &Node<'_>, errors: &mut Errors) -> bool {
    let settings = properties.get("mcpServerSettings");
    let keyless = settings.get("isMCPServerApiKeyDisabled");
    if keyless.flag() == Some(true) {
        let instead = "leave it out or false; rotateMCPServerCredentials makes a key that was given away useless";
        errors.push(ArmError::not_implemented(&keyless.path, "An MCP server without a key", instead));
    }
    settings.get("isMCPServerEnabled").flag() == Some(true)
}
