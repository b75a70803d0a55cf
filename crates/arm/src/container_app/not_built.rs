//! What Azure has and Cove has not yet: refused with 501, never accepted and forgotten.
//!
//! Values that ask for nothing (`false`, empty lists, `None`) pass: clients send them with every body.

use crate::{ArmError, Errors, environment::asks_for_something, node::Node};

/// Properties that are refused when they ask for something: pointer-like path, what it is, what to do instead.
const REFUSED: &[(&[&str], &str, &str)] = &[
    (&["extendedLocation"], "An extended location", "leave it out"),
    (&["properties", "configuration", "targetLabel"], "A target label", "give labels in ingress.traffic"),
    (&["properties", "configuration", "runtime"], "Java and .NET runtime features", "leave `runtime` out"),
    (&["properties", "configuration", "service"], "A development service (add-on)", "run it as an app of its own"),
    (&["properties", "configuration", "identitySettings"], "Managed identity", "leave identitySettings out"),
    (&["properties", "patchingConfiguration"], "Automatic patching", "leave patchingConfiguration out"),
    (&["properties", "template", "serviceBinds"], "Service binding", "pass addresses in environment variables"),
];

/// Notes everything that is asked for and not built, but for what other parts of the reading refuse themselves.
pub(super) fn check(root: &Node<'_>, errors: &mut Errors) {
    for (path, what, instead) in REFUSED {
        let node = path.iter().fold(root.clone(), |node, name| node.get(name));
        if node.value().is_some_and(asks_for_something) {
            errors.push(ArmError::not_implemented(&node.path, what, instead));
        }
    }
    let refused_words: [(&[&str], &[&str], &str, &str); 3] = [
        (&["kind"], &["containerapp"], "Apps of this kind", "leave `kind` out"),
        (&["identity", "type"], &["None"], "Managed identity", "leave `identity` out or set its type to 'None'"),
        (
            &["properties", "configuration", "ingress", "targetPortHttpScheme"],
            &["http"],
            "TLS from the ingress to the app",
            "serve plain HTTP at targetPort",
        ),
    ];
    for (path, passes, what, instead) in refused_words {
        let node = path.iter().fold(root.clone(), |node, name| node.get(name));
        if node
            .text()
            .is_some_and(|text| !text.is_empty() && !passes.iter().any(|word| word.eq_ignore_ascii_case(text)))
        {
            errors.push(ArmError::not_implemented(&node.path, what, instead));
        }
    }
    let dapr = root.get("properties").get("configuration").get("dapr").get("enabled");
    if dapr.flag() == Some(true) {
        errors.push(ArmError::not_implemented(&dapr.path, "Dapr", "set dapr.enabled to false"));
    }
}
