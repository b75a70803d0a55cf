//! What Azure has and Cove has not yet: refused with 501, never accepted and forgotten.
//!
//! Values that ask for nothing (`false`, empty lists, `None`) pass: clients send them with every body.

use crate::{ArmError, Errors, environment::asks_for_something, node::Node};

/// Properties that are refused when they ask for something: pointer-like path, what it is, what to do instead.
const REFUSED: &[(&[&str], &str, &str)] = &[
    (&["extendedLocation"], "An extended location", "leave it out"),
    (&["properties", "networking"], "A subnet of the app's own", "give the environment a subnet"),
    (&["properties", "configuration", "service"], "A development service (add-on)", "run it as an app of its own"),
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
    let refused_words: [(&[&str], &[&str], &str, &str); 2] = [
        (&["kind"], &["containerapp"], "Apps of this kind", "leave `kind` out"),
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
}
