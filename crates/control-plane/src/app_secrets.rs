//! Secrets of an app beyond one body: which revisions use them, and that a changed one needs a restart.
//!
//! Secrets are of application scope: they make no revision. Replicas get the values when they are made, so one that runs
//! keeps what it has until it is restarted; a write that changes a value says that in the system log.
//!
//! **Invariant:** no secret goes that an active revision names. **Invariant:** only names are told, never values.

use std::collections::{BTreeMap, BTreeSet};

use cove_arm::{ArmError, Errors, container_app::Parsed};
use cove_model::{
    ActiveRevisionsMode, ContainerApp, EnvValue, EventKind, ResourceId, ScaleRuleKind, Template, VolumeKind,
};

use crate::{answer::Refusal, app_events, control_plane::ControlPlane};

/// Refuses to remove secrets that active revisions use; the write's own template was checked with its body. In single mode
/// the older revisions go when the new one is ready.
///
/// # Errors
/// 400 `ContainerAppSecretInUse` for each, with who uses it.
pub(crate) fn check_removed(
    plane: &ControlPlane,
    id: &ResourceId,
    old: &BTreeMap<String, String>,
    parsed: &Parsed,
) -> Result<(), Refusal> {
    let removed: BTreeSet<&String> = old.keys().filter(|name| !parsed.secrets.contains_key(*name)).collect();
    if removed.is_empty() || parsed.app.active_revisions_mode == ActiveRevisionsMode::Single {
        return Ok(());
    }
    let revisions = plane.store().revisions(id)?;
    let mut errors = Errors::new();
    for name in removed {
        let users: Vec<&str> = revisions
            .iter()
            .filter(|row| row.revision.is_active && used(&row.revision.template).contains(name.as_str()))
            .map(|row| row.revision.name.as_str())
            .collect();
        if !users.is_empty() {
            let message = format!(
                "The secret '{name}' is used by the active revision(s) {}; deactivate them, or keep the secret.",
                users.join(", ")
            );
            errors.push(ArmError::new(400, "ContainerAppSecretInUse", message).at("properties.configuration.secrets"));
        }
    }
    Ok(errors.into_result()?)
}

/// Names of the secrets that a template uses.
fn used(template: &Template) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for container in template.init_containers.iter().chain(&template.containers) {
        names.extend(container.env.iter().filter_map(|variable| match &variable.value {
            EnvValue::SecretRef(name) => Some(name.as_str()),
            EnvValue::Plain(_) => None,
        }));
    }
    for volume in &template.volumes {
        if let VolumeKind::Secret(items) = &volume.kind {
            names.extend(items.iter().map(|(name, _)| name.as_str()));
        }
    }
    for rule in &template.scale.rules {
        if let ScaleRuleKind::Custom { auth, .. } | ScaleRuleKind::AzureQueue { auth, .. } = &rule.kind {
            names.extend(auth.iter().map(|auth| auth.secret_ref.as_str()));
        }
    }
    names
}

/// Names of the secrets whose value a write changes.
pub(crate) fn changed(old: &BTreeMap<String, String>, asked: &BTreeMap<String, Option<String>>) -> Vec<String> {
    let is_changed = |(name, value): &(&String, &Option<String>)| {
        value.as_ref().is_some_and(|value| old.get(*name).is_some_and(|old| old != value))
    };
    asked.iter().filter(is_changed).map(|(name, _)| name.clone()).collect()
}

/// Says that changed values reach running replicas by a restart only.
pub(crate) fn tell_changed(plane: &ControlPlane, app: &ContainerApp, names: &[String]) {
    if names.is_empty() {
        return;
    }
    let message = format!(
        "The value of secret(s) {} was changed. Running replicas keep the old value: restart the revisions that use it with 'az containerapp revision restart'.",
        names.join(", ")
    );
    app_events::tell(plane, app, EventKind::Warning, "SecretChanged", message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_changed_when_it_was_another() {
        let old = BTreeMap::from([("a", "1"), ("b", "2"), ("c", "3")].map(|(k, v)| (k.to_owned(), v.to_owned())));
        let asked = [("a", Some("1")), ("b", Some("x")), ("c", None), ("d", Some("new"))];
        let asked = asked.map(|(name, value)| (name.to_owned(), value.map(str::to_owned))).into();
        assert_eq!(changed(&old, &asked), ["b"]);
    }
}
