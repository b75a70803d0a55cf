//! An app as Azure shows it: the stored document, completed with defaults and with what is known at the time.
//!
//! **Invariant:** no collection is ever null: `az` iterates them without looking.

use std::collections::BTreeSet;

use cove_model::{
    ActiveRevisionsMode, Bytes, Container, ContainerApp, EnvValue, IdleState, Ingress, Probe, ProbeAction, ResourceId,
    Scale, ScaleMode, ScaleRule, ScaleRuleAuth, ScaleRuleKind, Template, TrafficWeight, Transport, VolumeKind,
};
use cove_scaling::ScaleDefaults;
use serde_json::{Map, Value, json};

use super::{PutContext, check, scale_settings};
use crate::{Errors, SystemData};

/// What is known of an app when it is shown.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its id, in the case of its creation.
    pub id: &'a ResourceId,
    /// `InProgress`, `Succeeded`, `Failed`, `Canceled`, `Deleting`.
    pub provisioning_state: &'a str,
    /// `Progressing`, `Running`, `Stopped`, `Suspended`, `Ready`.
    pub running_status: &'a str,
    /// The environment's domain, such as `myenv.localhost`.
    pub default_domain: &'a str,
    /// Name of the newest revision.
    pub latest_revision: Option<&'a str>,
    /// Name of the newest revision that could serve.
    pub latest_ready_revision: Option<&'a str>,
    /// Origin of the request, such as `https://localhost:8443`: streams are given on it.
    pub origin: &'a str,
    /// Addresses that the app's own connections come from.
    pub outbound_ips: &'a [String],
    /// What a domain's owner would publish to prove it.
    pub custom_domain_verification_id: &'a str,
    /// Who made and changed it.
    pub system_data: Option<&'a SystemData>,
    /// What the server gives to apps that set no mode and no constants of the autoscaler.
    pub scale_defaults: &'a ScaleDefaults,
}

/// Host name of an app or revision: `NAME.DOMAIN`, or `NAME.internal.DOMAIN` when it is not external.
#[must_use]
pub fn host(name: &str, external: bool, default_domain: &str) -> String {
    if external { format!("{name}.{default_domain}") } else { format!("{name}.internal.{default_domain}") }
}

/// Host name of a label: `APP---LABEL.DOMAIN`.
#[must_use]
pub fn label_host(app: &str, label: &str, external: bool, default_domain: &str) -> String {
    host(&format!("{app}---{label}"), external, default_domain)
}

/// The app as Azure shows it; `doc` is what [`super::parse_put`] gave.
#[must_use]
pub fn render(doc: &Value, view: &View<'_>) -> Value {
    let app = model_of(doc, view.id);
    let given = |name: &str| doc.pointer(&format!("/properties/{name}")).cloned().unwrap_or_else(|| json!({}));
    let mut properties = doc.get("properties").cloned().unwrap_or_else(|| json!({}));
    let mut configuration = given("configuration");
    complete_configuration(&mut configuration, &app, view);
    let mut template = given("template");
    complete(&mut template, &render_template(&app.template));
    if template.get("revisionSuffix").is_none() {
        template["revisionSuffix"] = json!("");
    }
    show_effective(&mut template, &app.template.scale, app.ingress.is_some(), view.scale_defaults);
    let environment = app.environment.as_str();
    let facts = json!({
        "provisioningState": view.provisioning_state,
        "runningStatus": view.running_status,
        "environmentId": environment,
        "managedEnvironmentId": environment,
        "workloadProfileName": given("workloadProfileName").as_str().unwrap_or("Consumption"),
        "latestRevisionName": view.latest_revision.unwrap_or(""),
        "latestReadyRevisionName": view.latest_ready_revision.unwrap_or(""),
        "latestRevisionFqdn": latest_fqdn(&app, view),
        "customDomainVerificationId": view.custom_domain_verification_id,
        "outboundIpAddresses": view.outbound_ips,
        "eventStreamEndpoint": format!(
            "{}/subscriptions/{}/resourceGroups/{}/containerApps/{}/eventstream",
            view.origin, view.id.subscription(), view.id.group_name(), view.id.name()
        ),
    });
    crate::patch::merge(&mut properties, &facts);
    let warnings = super::warnings(doc);
    if !warnings.is_empty() {
        properties["coveWarnings"] = json!(warnings);
    }
    properties["configuration"] = configuration;
    properties["template"] = template;
    envelope(doc, view, properties)
}

fn envelope(doc: &Value, view: &View<'_>, properties: Value) -> Value {
    let location = doc.get("location").and_then(Value::as_str).unwrap_or("local");
    let mut value = json!({
        "id": view.id.as_str(),
        "name": view.id.name(),
        "type": "Microsoft.App/containerApps",
        "location": crate::provider::display_location(location).unwrap_or(location),
        "identity": { "type": "None" },
        "properties": properties,
    });
    for (name, given) in doc.as_object().into_iter().flatten() {
        if !["location", "properties", "systemData", super::labels::HISTORY].contains(&name.as_str()) {
            value[name] = given.clone();
        }
    }
    if let Some(data) = view.system_data {
        value["systemData"] = data.render();
    }
    value
}

/// The model of a stored document; it was checked when it was stored.
fn model_of(doc: &Value, id: &ResourceId) -> ContainerApp {
    let secrets = doc.pointer("/properties/configuration/secrets").and_then(Value::as_array);
    let names = secrets.into_iter().flatten().filter_map(|secret| secret["name"].as_str().map(str::to_owned));
    let known: BTreeSet<String> = names.collect();
    let context = PutContext { id, known_secrets: &known };
    check::app(doc.clone(), &context, &mut Errors::new()).app
}

fn latest_fqdn(app: &ContainerApp, view: &View<'_>) -> String {
    match (&app.ingress, view.latest_revision) {
        (Some(ingress), Some(revision)) => host(revision, ingress.external, view.default_domain),
        _ => String::new(),
    }
}

fn complete_configuration(configuration: &mut Value, app: &ContainerApp, view: &View<'_>) {
    let mode = match app.active_revisions_mode {
        ActiveRevisionsMode::Single => "Single",
        ActiveRevisionsMode::Multiple => "Multiple",
        ActiveRevisionsMode::Labels => "Labels",
    };
    configuration["activeRevisionsMode"] = json!(mode);
    configuration["maxInactiveRevisions"] = json!(app.max_inactive_revisions);
    if let Some(ingress) = &app.ingress {
        if !configuration["ingress"].is_object() {
            configuration["ingress"] = json!({});
        }
        complete(&mut configuration["ingress"], &render_ingress(ingress, app.id.name(), view));
    }
}

fn render_ingress(ingress: &Ingress, app: &str, view: &View<'_>) -> Value {
    let transport = match ingress.transport {
        Transport::Auto => "Auto",
        Transport::Http => "Http",
        Transport::Http2 => "Http2",
        Transport::Tcp => "Tcp",
    };
    let mut traffic: Vec<Value> = ingress.traffic.iter().map(render_weight).collect();
    if traffic.is_empty() {
        traffic.push(json!({ "latestRevision": true, "weight": 100 }));
    }
    json!({
        "fqdn": host(app, ingress.external, view.default_domain),
        "external": ingress.external,
        "targetPort": ingress.target_port.unwrap_or(0),
        "exposedPort": ingress.exposed_port.unwrap_or(0),
        "transport": transport,
        "allowInsecure": ingress.allow_insecure,
        "traffic": traffic,
    })
}

pub(super) fn render_weight(weight: &TrafficWeight) -> Value {
    let mut value = json!({ "weight": weight.weight });
    match &weight.revision {
        Some(revision) => value["revisionName"] = json!(revision),
        None => value["latestRevision"] = json!(true),
    }
    if let Some(label) = &weight.label {
        value["label"] = json!(label);
    }
    value
}

/// Writes what the model knows over what the user wrote: objects member by member, lists item by item. Members that the
/// model does not know stay as they were.
pub(crate) fn complete(asked: &mut Value, known: &Value) {
    match (asked, known) {
        (Value::Object(asked), Value::Object(known)) => {
            for (name, value) in known {
                match asked.get_mut(name) {
                    Some(found) => complete(found, value),
                    None => drop(asked.insert(name.clone(), value.clone())),
                }
            }
        }
        (Value::Array(asked), Value::Array(known))
            if asked.len() == known.len() && known.iter().all(Value::is_object) =>
        {
            asked.iter_mut().zip(known).for_each(|(asked, known)| complete(asked, known));
        }
        (asked, known) => *asked = known.clone(),
    }
}

/// What a stored template shows of its revision: the document, completed with the model's defaults.
#[must_use]
pub fn render_stored_template(doc: &Value, template: &Template) -> Value {
    let mut value = if doc.is_object() { doc.clone() } else { json!({}) };
    complete(&mut value, &render_template(template));
    value
}

/// Adds `scale.coveEffective` to a shown template: the mode and the constants in force.
pub(crate) fn show_effective(template: &mut Value, scale: &Scale, has_ingress: bool, defaults: &ScaleDefaults) {
    template["scale"]["coveEffective"] = scale_settings::render_effective(scale, has_ingress, defaults);
}

/// A template as Azure shows it, with all defaults; without a suffix.
#[must_use]
pub fn render_template(template: &Template) -> Value {
    let mut value = json!({
        "containers": template.containers.iter().map(render_container).collect::<Vec<_>>(),
        "scale": render_scale(&template.scale),
        "terminationGracePeriodSeconds": template.termination_grace_period_secs,
    });
    if !template.init_containers.is_empty() {
        value["initContainers"] = template.init_containers.iter().map(render_container).collect();
    }
    if !template.volumes.is_empty() {
        let volume = |volume: &cove_model::Volume| match &volume.kind {
            VolumeKind::EmptyDir => json!({ "name": volume.name, "storageType": "EmptyDir" }),
            VolumeKind::ExecutionDir => json!({ "name": volume.name, "storageType": "CoveExecutionDir" }),
            VolumeKind::Artifacts(artifacts) => json!({
                "name": volume.name,
                "storageType": "CoveArtifacts",
                "coveKeepExecutions": artifacts.keep_executions,
                "coveMaxSize": artifacts.max_bytes.to_quantity(),
            }),
            VolumeKind::Secret(files) => {
                let file = |(name, path): &(String, String)| json!({ "secretRef": name, "path": path });
                let mut value = json!({ "name": volume.name, "storageType": "Secret" });
                if !files.is_empty() {
                    value["secrets"] = files.iter().map(file).collect();
                }
                value
            }
            VolumeKind::Storage(volume_of) => {
                let kind = if volume_of.is_nfs { "NfsAzureFile" } else { "AzureFile" };
                let mut value = json!({ "name": volume.name, "storageType": kind, "storageName": volume_of.storage });
                if !volume_of.options.is_empty() {
                    value["mountOptions"] = json!(volume_of.options);
                }
                value
            }
        };
        value["volumes"] = template.volumes.iter().map(volume).collect();
    }
    value
}

fn render_container(container: &Container) -> Value {
    let mut value = json!({
        "name": container.name,
        "image": container.image,
        "imageType": "ContainerImage",
        "resources": {
            "cpu": container.resources.cpu.cores(),
            "memory": memory_text(container.resources.memory),
            "ephemeralStorage": container.resources.ephemeral_storage.to_quantity(),
        },
    });
    for (name, list) in [("command", &container.command), ("args", &container.args)] {
        if !list.is_empty() {
            value[name] = json!(list);
        }
    }
    if !container.env.is_empty() {
        let variable = |variable: &cove_model::EnvVar| match &variable.value {
            EnvValue::Plain(text) => json!({ "name": variable.name, "value": text }),
            EnvValue::SecretRef(secret) => json!({ "name": variable.name, "secretRef": secret }),
        };
        value["env"] = container.env.iter().map(variable).collect();
    }
    if !container.probes.is_empty() {
        value["probes"] = container.probes.iter().map(render_probe).collect();
    }
    if !container.volume_mounts.is_empty() {
        let mount = |mount: &cove_model::VolumeMount| {
            let mut value = json!({ "volumeName": mount.volume, "mountPath": mount.path });
            if let Some(sub_path) = &mount.sub_path {
                value["subPath"] = json!(sub_path);
            }
            value
        };
        value["volumeMounts"] = container.volume_mounts.iter().map(mount).collect();
    }
    value
}

/// `0.2Gi` when that says it to the byte, else the shortest exact quantity.
fn memory_text(memory: Bytes) -> String {
    #[expect(clippy::cast_precision_loss, reason = "the text is only used when it reads back to the same number")]
    let gib = memory.0 as f64 / Bytes::GIB as f64;
    let text = format!("{}Gi", (gib * 1000.0).round() / 1000.0);
    if Bytes::parse_quantity(&text) == Some(memory) { text } else { memory.to_quantity() }
}

fn render_probe(probe: &Probe) -> Value {
    let mut value = json!({
        "type": format!("{:?}", probe.kind),
        "initialDelaySeconds": probe.initial_delay_secs,
        "periodSeconds": probe.period_secs,
        "timeoutSeconds": probe.timeout_secs,
        "successThreshold": probe.success_threshold,
        "failureThreshold": probe.failure_threshold,
    });
    match &probe.action {
        ProbeAction::Tcp { port } => value["tcpSocket"] = json!({ "port": port }),
        ProbeAction::HttpGet { port, path, https, host, headers } => {
            let mut http = json!({ "port": port, "path": path, "scheme": if *https { "HTTPS" } else { "HTTP" } });
            if let Some(host) = host {
                http["host"] = json!(host);
            }
            if !headers.is_empty() {
                let header = |(name, value): (&String, &String)| json!({ "name": name, "value": value });
                http["httpHeaders"] = headers.iter().map(header).collect();
            }
            value["httpGet"] = http;
        }
    }
    value
}

fn render_scale(scale: &Scale) -> Value {
    let mut value = json!({
        "minReplicas": scale.min_replicas,
        "maxReplicas": scale.max_replicas,
        "cooldownPeriod": scale.cooldown_period_secs,
        "pollingInterval": scale.polling_interval_secs,
    });
    match scale.mode {
        Some(ScaleMode::Fast) => value["coveMode"] = json!("fast"),
        Some(ScaleMode::Aca) => value["coveMode"] = json!("aca"),
        None => {}
    }
    if scale.idle == IdleState::Frozen {
        value["coveIdle"] = json!("frozen");
    }
    if let Some(settings) = scale_settings::render(&scale.settings) {
        value["coveSettings"] = settings;
    }
    if !scale.rules.is_empty() {
        value["rules"] = scale.rules.iter().map(render_rule).collect();
    }
    value
}

fn render_rule(rule: &ScaleRule) -> Value {
    let mut value = Map::new();
    value.insert("name".to_owned(), json!(rule.name));
    let (name, kind) = match &rule.kind {
        ScaleRuleKind::Http { concurrent_requests: count } => {
            ("http", json!({ "metadata": { "concurrentRequests": count.to_string() } }))
        }
        ScaleRuleKind::Tcp { concurrent_connections: count } => {
            ("tcp", json!({ "metadata": { "concurrentConnections": count.to_string() } }))
        }
        ScaleRuleKind::Custom { scaler, metadata, auth, identity } => {
            let kind = json!({ "type": scaler, "metadata": metadata });
            ("custom", with_auth(kind, auth, identity.as_ref()))
        }
        ScaleRuleKind::AzureQueue { account_name, queue_name, queue_length, auth, identity } => {
            let mut kind = json!({ "queueName": queue_name, "queueLength": queue_length });
            if let Some(account) = account_name {
                kind["accountName"] = json!(account);
            }
            ("azureQueue", with_auth(kind, auth, identity.as_ref()))
        }
    };
    value.insert(name.to_owned(), kind);
    Value::Object(value)
}

fn with_auth(mut kind: Value, auth: &[ScaleRuleAuth], identity: Option<&String>) -> Value {
    if !auth.is_empty() {
        let entry =
            |auth: &ScaleRuleAuth| json!({ "secretRef": auth.secret_ref, "triggerParameter": auth.trigger_parameter });
        kind["auth"] = auth.iter().map(entry).collect();
    }
    if let Some(identity) = identity {
        kind["identity"] = json!(identity);
    }
    kind
}
