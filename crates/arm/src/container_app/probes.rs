//! Health probes of a container, with the ranges of "Health probes in Azure Container Apps".

use std::collections::BTreeSet;

use cove_model::{Probe, ProbeAction, ProbeKind};
use indexmap::IndexMap;

use super::{check::range, template::invalid};
use crate::{ArmError, Errors, node::Node};

/// Reads `probes` of a container; those that cannot be read are noted and left out.
pub(super) fn read(node: &Node<'_>, errors: &mut Errors) -> Vec<Probe> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for item in node.items() {
        let Some(kind) = kind(&item, errors) else { continue };
        if !seen.insert(kind) {
            invalid(&item, &format!("There are two {kind:?} probes; a container may have one of each type."), errors);
        }
        let Some(action) = action(&item, errors) else { continue };
        let success = item.get("successThreshold");
        let success_threshold = range(&success, 1..=10, 1, errors);
        if kind != ProbeKind::Readiness && success_threshold != 1 {
            invalid(&success, &format!("successThreshold of a {kind:?} probe must be 1."), errors);
        }
        let grace = item.get("terminationGracePeriodSeconds");
        if grace.exists() {
            let instead = "use template.terminationGracePeriodSeconds";
            errors.push(ArmError::not_implemented(&grace.path, "A grace period of a probe's own", instead));
        }
        all.push(Probe {
            kind,
            action,
            initial_delay_secs: range(&item.get("initialDelaySeconds"), 0..=60, 0, errors),
            period_secs: range(&item.get("periodSeconds"), 1..=240, 10, errors),
            timeout_secs: range(&item.get("timeoutSeconds"), 1..=240, 1, errors),
            success_threshold,
            failure_threshold: range(&item.get("failureThreshold"), 1..=240, 3, errors),
        });
    }
    all
}

fn kind(item: &Node<'_>, errors: &mut Errors) -> Option<ProbeKind> {
    match item.get("type").text() {
        Some("Startup") => Some(ProbeKind::Startup),
        Some("Readiness") => Some(ProbeKind::Readiness),
        Some("Liveness") => Some(ProbeKind::Liveness),
        _ => {
            invalid(&item.get("type"), "A probe needs a type: Startup, Readiness or Liveness.", errors);
            None
        }
    }
}

fn action(item: &Node<'_>, errors: &mut Errors) -> Option<ProbeAction> {
    let (http, tcp) = (item.get("httpGet"), item.get("tcpSocket"));
    if http.exists() == tcp.exists() {
        invalid(item, "A probe needs exactly one of httpGet and tcpSocket.", errors);
        return None;
    }
    if tcp.exists() {
        if tcp.get("host").exists() {
            let instead = "leave host out: the replica itself is asked";
            errors.push(ArmError::not_implemented(&tcp.get("host").path, "A TCP probe of another host", instead));
        }
        return Some(ProbeAction::Tcp { port: port(&tcp.get("port"), errors)? });
    }
    let path = http.get("path").text().unwrap_or("/");
    if !path.starts_with('/') || path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        invalid(
            &http.get("path"),
            &format!("The path '{path}' is not valid; it must start with '/' and hold no white space."),
            errors,
        );
    }
    let mut headers = IndexMap::new();
    for header in http.get("httpHeaders").items() {
        let (name, value) = (header.get("name").text().unwrap_or(""), header.get("value").text().unwrap_or(""));
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(is_token) || value.contains(['\r', '\n', '\0']) {
            invalid(&header, &format!("The header '{}' is not valid.", name.escape_debug()), errors);
        }
        headers.insert(name.to_owned(), value.to_owned());
    }
    Some(ProbeAction::HttpGet {
        port: port(&http.get("port"), errors)?,
        path: path.to_owned(),
        https: http.get("scheme").text() == Some("HTTPS"),
        host: http.get("host").text().map(str::to_owned),
        headers,
    })
}

fn port(node: &Node<'_>, errors: &mut Errors) -> Option<u16> {
    let port = node.int().and_then(|number| u16::try_from(number).ok()).filter(|port| *port != 0);
    if port.is_none() {
        invalid(node, "A probe needs a port from 1 to 65535.", errors);
    }
    port
}
