//! The way in: port, transport, traffic weights.

use std::collections::BTreeSet;

use cove_model::{
    ActiveRevisionsMode, ClientCertificateMode, Ingress, ResourceId, RevisionName, TrafficWeight, Transport,
};

use super::{check::Scope, labels::is_label, policies};
use serde_json::Value;

use crate::{ArmError, Errors, node::Node};

/// Reads `configuration.ingress`.
pub(super) fn read(
    node: &Node<'_>,
    mode: ActiveRevisionsMode,
    environment: &ResourceId,
    scope: &Scope<'_>,
    errors: &mut Errors,
) -> Option<Ingress> {
    if !node.exists() {
        return None;
    }
    let traffic = traffic(&node.get("traffic"), scope, errors);
    let transport = transport(node);
    let target_port = port(&node.get("targetPort"), errors);
    let exposed_port = exposed_port(node, transport, target_port, errors);
    let additional = node.get("additionalPortMappings");
    let domains = node.get("customDomains");
    if transport == Transport::Tcp && !domains.items().is_empty() {
        errors.invalid(&domains.path, "Custom domains need an HTTP ingress; with transport 'tcp' leave them out.");
    }
    let policies = policies::read(node, errors);
    if policies.proxy_protocol.is_some() && transport != Transport::Tcp && additional.items().is_empty() {
        errors.invalid(
            &node.get("coveProxyProtocol").path,
            "coveProxyProtocol is for TCP connections; use transport 'tcp' or additionalPortMappings, or leave it out.",
        );
    }
    if transport == Transport::Tcp {
        for (name, is_set) in [
            ("clientCertificateMode", policies.client_certificate != ClientCertificateMode::Ignore),
            ("stickySessions", policies.is_sticky),
            ("corsPolicy", policies.cors.is_some()),
        ] {
            if is_set {
                let message = format!("{name} needs an HTTP ingress; with transport 'tcp' leave it out.");
                errors.invalid(&node.get(name).path, message);
            }
        }
    }
    Some(Ingress {
        external: node.get("external").flag().unwrap_or(false),
        target_port,
        transport,
        allow_insecure: node.get("allowInsecure").flag().unwrap_or(false),
        traffic: if mode == ActiveRevisionsMode::Single { Vec::new() } else { traffic },
        exposed_port,
        additional_ports: policies::additional_ports(&additional, errors),
        custom_domains: policies::custom_domains(&domains, environment, errors),
        policies,
    })
}

/// A port; 0 and absent mean none.
pub(super) fn port(node: &Node<'_>, errors: &mut Errors) -> Option<u16> {
    let number = node.int().filter(|number| *number != 0)?;
    let port = u16::try_from(number).ok();
    if port.is_none() {
        errors.invalid(&node.path, format!("The port {number} is not valid; expected 1 to 65535."));
    }
    port
}

fn transport(ingress: &Node<'_>) -> Transport {
    match ingress.get("transport").text() {
        Some("Http") => Transport::Http,
        Some("Http2") => Transport::Http2,
        Some("Tcp") => Transport::Tcp,
        _ => Transport::Auto,
    }
}

/// `exposedPort`: the port of a TCP app that clients use.
fn exposed_port(
    ingress: &Node<'_>,
    transport: Transport,
    target_port: Option<u16>,
    errors: &mut Errors,
) -> Option<u16> {
    let node = ingress.get("exposedPort");
    let given = port(&node, errors);
    if transport == Transport::Tcp {
        match given.or(target_port) {
            Some(port) => policies::check_exposed(port, &node, errors),
            None => errors.invalid(&node.path, "Transport 'tcp' needs a targetPort or an exposedPort."),
        }
        return given;
    }
    if given.is_some() {
        errors.invalid(
            &node.path,
            "exposedPort needs transport 'tcp'; HTTP apps are reached by host name, leave it out.",
        );
    }
    None
}

fn traffic(node: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) -> Vec<TrafficWeight> {
    let mut all: Vec<TrafficWeight> = Vec::new();
    let mut labels = BTreeSet::new();
    let mut total = 0_i64;
    for item in node.items() {
        let revision = item.get("revisionName");
        let is_latest = item.get("latestRevision").flag() == Some(true);
        match revision.text() {
            Some(_) if is_latest => errors.invalid(&item.path, "Give either revisionName or latestRevision, not both."),
            None if !is_latest => {
                errors.invalid(&item.path, "A traffic weight needs a revisionName or latestRevision: true.")
            }
            Some(name) if !belongs_to(name, scope.app) => {
                let message = format!("'{name}' is not a revision of '{0}'; expected '{0}--SUFFIX'.", scope.app);
                errors.invalid(&revision.path, message);
            }
            _ => {}
        }
        let label = item.get("label");
        if let Some(text) = label.text() {
            if !is_label(text) {
                let rule = "use 1 to 63 lower case letters, digits and single '-', with a letter or digit at both ends";
                errors.invalid(&label.path, format!("The label '{text}' is not valid: {rule}."));
            } else if !labels.insert(text) {
                errors.invalid(&label.path, format!("The label '{text}' is given twice."));
            }
        }
        let weight = item.get("weight").int().unwrap_or(0);
        if !(0..=100).contains(&weight) {
            errors.invalid(&item.get("weight").path, format!("The weight {weight} is not valid; expected 0 to 100."));
        }
        total = total.saturating_add(weight);
        let weight = u32::try_from(weight).unwrap_or(0);
        let same = |known: &&mut TrafficWeight| {
            known.revision.as_deref() == revision.text() && known.label.as_deref() == label.text()
        };
        match all.iter_mut().find(same) {
            Some(known) => known.weight = known.weight.saturating_add(weight),
            None => all.push(TrafficWeight {
                revision: revision.text().map(str::to_owned),
                weight,
                label: label.text().map(str::to_owned),
            }),
        }
    }
    if !all.is_empty() && total != 100 {
        let message = format!("The traffic weights add up to {total}; they must add up to 100.");
        errors.push(ArmError::new(400, "InvalidTrafficWeight", message).at(&node.path));
    }
    // Everything to the latest is what no weights mean: one model for both.
    let is_default = matches!(&all[..], [TrafficWeight { revision: None, weight: 100, label: None }]);
    if is_default { Vec::new() } else { all }
}

/// One entry per revision and label: az leaves a second one behind when it takes a label away.
pub(super) fn merge_traffic(traffic: &mut Value) {
    let Some(items) = traffic.as_array_mut() else { return };
    let mut merged: Vec<Value> = Vec::with_capacity(items.len());
    for item in items.drain(..) {
        let is_same = |known: &&mut Value| {
            ["revisionName", "label", "latestRevision"].iter().all(|name| known.get(name) == item.get(name))
        };
        match merged.iter_mut().find(is_same) {
            Some(known) => {
                let weight = |value: &Value| value["weight"].as_i64().unwrap_or(0);
                known["weight"] = (weight(known) + weight(&item)).into();
            }
            None => merged.push(item),
        }
    }
    *items = merged;
}

fn belongs_to(revision: &str, app: &str) -> bool {
    RevisionName::new(revision).is_ok_and(|name| name.app() == app && !name.suffix().is_empty())
}
