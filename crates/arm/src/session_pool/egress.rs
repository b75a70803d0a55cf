//! `sessionNetworkConfiguration.coveEgressRules`: what of the internet the sessions of a pool may reach.

use cove_model::{EGRESS_PORTS_MAX, EGRESS_RULES_MAX, EgressHost, EgressRule, SessionEgress};

use crate::{Errors, node::Node};

/// Reads the rules; none where there is nothing or nothing is right.
pub(super) fn rules(network: &Node<'_>, egress: SessionEgress, errors: &mut Errors) -> Vec<EgressRule> {
    let node = network.get("coveEgressRules");
    let items = node.items();
    if items.len() > EGRESS_RULES_MAX {
        errors.invalid(
            &node.path,
            format!("coveEgressRules has {} rules; {EGRESS_RULES_MAX} are the most.", items.len()),
        );
        return Vec::new();
    }
    if !items.is_empty() && egress == SessionEgress::Disabled {
        let message =
            "coveEgressRules name what is allowed of the internet; set status to 'EgressEnabled', or leave them out.";
        errors.invalid(&node.path, message);
    }
    items.iter().filter_map(|item| rule(item, errors)).collect()
}

fn rule(item: &Node<'_>, errors: &mut Errors) -> Option<EgressRule> {
    let host = item.get("host");
    let read = match host.text() {
        Some(text) => EgressHost::new(text).map_err(|error| errors.invalid(&host.path, format!("{error}."))).ok(),
        None => {
            errors.invalid(&host.path, format!("A rule needs a host: {}.", cove_model::EGRESS_HOST_RULE));
            None
        }
    };
    let ports = item.get("ports");
    let given = ports.items();
    if given.len() > EGRESS_PORTS_MAX {
        errors
            .invalid(&ports.path, format!("A rule has at most {EGRESS_PORTS_MAX} ports; leave them out to allow all."));
        return None;
    }
    let mut numbers = Vec::with_capacity(given.len());
    for port in &given {
        match port.int().and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0) {
            Some(number) => numbers.push(number),
            None => errors.invalid(&port.path, "A port is a number of 1 to 65535."),
        }
    }
    Some(EgressRule { host: read?, ports: numbers })
}
