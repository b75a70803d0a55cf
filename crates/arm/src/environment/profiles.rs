//! Workload profiles of an environment: read, checked against the catalogue, written in its spelling.
//!
//! On one machine a profile is an admission class: how much one replica may ask for, and how much all of them together.

use std::collections::BTreeSet;

use cove_model::{WORKLOAD_PROFILE_KINDS, WorkloadProfile, WorkloadProfileKind};
use serde_json::{Value, json};

use crate::{ArmError, Errors, node::Node};

/// Nodes that a dedicated profile may have. Source: learn.microsoft.com/azure/container-apps/quotas (cores per
/// environment, the largest node).
const NODES_MAX: i64 = 1000;
/// Nodes of a dedicated profile that does not say.
const NODES_DEFAULT: u32 = 1;

/// The profile that every environment has.
fn consumption() -> WorkloadProfile {
    let (name, kind) = ("Consumption".to_owned(), "Consumption".to_owned());
    WorkloadProfile { name, kind, min_nodes: 0, max_nodes: 0 }
}

/// The profiles of a checked document; `Consumption` is always there.
pub(super) fn read(properties: &Node<'_>) -> Vec<WorkloadProfile> {
    let items = properties.get("workloadProfiles").items();
    let mut profiles: Vec<WorkloadProfile> = items.iter().filter_map(profile).collect();
    if !profiles.iter().any(|profile| profile.name.eq_ignore_ascii_case("Consumption")) {
        profiles.push(consumption());
    }
    profiles
}

fn profile(node: &Node<'_>) -> Option<WorkloadProfile> {
    let kind = WorkloadProfileKind::find(node.get("workloadProfileType").text()?)?;
    let count = |name: &str| node.get(name).int().and_then(|count| u32::try_from(count).ok());
    let (min_nodes, max_nodes) = if kind.is_dedicated {
        let least = count("minimumCount").unwrap_or(0);
        (least, count("maximumCount").unwrap_or_else(|| least.max(NODES_DEFAULT)))
    } else {
        (0, 0)
    };
    Some(WorkloadProfile {
        name: node.get("name").text()?.to_owned(),
        kind: kind.name.to_owned(),
        min_nodes,
        max_nodes,
    })
}

/// Types in the catalogue's spelling: clients send them in capitals.
pub(super) fn make_canonical(doc: &mut Value) {
    let profiles = doc.pointer_mut("/properties/workloadProfiles").and_then(Value::as_array_mut);
    for profile in profiles.into_iter().flatten() {
        let kind = profile["workloadProfileType"].as_str().and_then(WorkloadProfileKind::find);
        if let Some(kind) = kind {
            profile["workloadProfileType"] = json!(kind.name);
        }
    }
}

/// Notes everything that is wrong with `properties.workloadProfiles`.
pub(super) fn check(properties: &Node<'_>, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for profile in properties.get("workloadProfiles").items() {
        let (name, kind) = (profile.get("name"), profile.get("workloadProfileType"));
        match name.text() {
            None | Some("") => errors.invalid(&name.path, "A workload profile needs a name."),
            Some(text) if !is_name(text) => {
                let rule = "use 1 to 60 letters, digits, '-' and '_', first a letter";
                let shown: String = text.chars().take(80).collect();
                errors.invalid(&name.path, format!("The workload profile name '{shown}' is not valid: {rule}."));
            }
            Some(text) if !seen.insert(text.to_ascii_lowercase()) => {
                errors.invalid(&name.path, format!("The workload profile name '{text}' is used twice."));
            }
            Some(_) => {}
        }
        match kind.text() {
            None | Some("") => errors.invalid(&kind.path, "A workload profile needs a workloadProfileType."),
            Some(text) if WorkloadProfileKind::find(text).is_none() => {
                let known: Vec<&str> = WORKLOAD_PROFILE_KINDS.iter().map(|kind| kind.name).collect();
                let shown: String = text.chars().take(80).collect();
                let message = format!(
                    "The workload profile type '{shown}' does not exist; expected one of {}.",
                    known.join(", ")
                );
                errors.push(ArmError::new(400, "InvalidWorkloadProfileType", message).at(&kind.path));
            }
            Some(_) => {}
        }
        check_nodes(&profile, errors);
    }
}

fn check_nodes(profile: &Node<'_>, errors: &mut Errors) {
    let (least, most) = (profile.get("minimumCount"), profile.get("maximumCount"));
    for node in [&least, &most] {
        if node.int().is_some_and(|count| !(0..=NODES_MAX).contains(&count)) {
            errors.invalid(&node.path, format!("a number of nodes must be 0 to {NODES_MAX}."));
        }
    }
    if let (Some(from), Some(to)) = (least.int(), most.int())
        && from > to
    {
        errors.invalid(&least.path, format!("minimumCount is {from}, more than maximumCount, which is {to}."));
    }
}

fn is_name(name: &str) -> bool {
    let is_part = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=60).contains(&name.len()) && name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors_of(profiles: &Value) -> Vec<String> {
        let doc = json!({ "workloadProfiles": profiles });
        let mut errors = Errors::new();
        check(&Node::root(&doc), &mut errors);
        match errors.into_result() {
            Ok(()) => Vec::new(),
            Err(error) => vec![error.message],
        }
    }

    #[test]
    fn profiles_are_read_in_the_spelling_of_the_catalogue() {
        let mut doc = json!({ "properties": { "workloadProfiles": [
            { "name": "gpu", "workloadProfileType": "CONSUMPTION-GPU-NC24-A100" },
            { "name": "big", "workloadProfileType": "d8", "minimumCount": 1, "maximumCount": 3 },
            { "name": "seed", "workloadProfileType": "GPU-A100", "minimumCount": 0 },
        ] } });
        make_canonical(&mut doc);
        let found = read(&Node::root(&doc).get("properties"));
        let found: Vec<_> =
            found.iter().map(|p| (p.name.as_str(), p.kind.as_str(), p.min_nodes, p.max_nodes)).collect();
        assert_eq!(
            found,
            [
                ("gpu", "Consumption-GPU-NC24-A100", 0, 0),
                ("big", "D8", 1, 3),
                ("seed", "NC24-A100", 0, 1),
                ("Consumption", "Consumption", 0, 0)
            ]
        );
        assert_eq!(doc["properties"]["workloadProfiles"][2]["workloadProfileType"], "NC24-A100");
    }

    #[test]
    fn mistakes_are_told() {
        for (profile, words) in [
            (json!({ "name": "a" }), "needs a workloadProfileType"),
            (json!({ "workloadProfileType": "D4" }), "needs a name"),
            (json!({ "name": "1", "workloadProfileType": "D4" }), "is not valid"),
            (json!({ "name": "a", "workloadProfileType": "D5" }), "expected one of Consumption, D4"),
            (json!({ "name": "a", "workloadProfileType": "D4", "minimumCount": 2, "maximumCount": 1 }), "more than"),
            (json!({ "name": "a", "workloadProfileType": "D4", "maximumCount": -1 }), "0 to 1000"),
        ] {
            let errors = errors_of(&json!([profile]));
            assert!(errors.iter().any(|error| error.contains(words)), "{profile}: {errors:?}");
        }
        let twice = json!([{ "name": "a", "workloadProfileType": "D4" }, { "name": "A", "workloadProfileType": "D8" }]);
        assert!(errors_of(&twice)[0].contains("twice"));
        assert!(errors_of(&json!([{ "name": "ok", "workloadProfileType": "E16", "maximumCount": 2 }])).is_empty());
    }
}
