//! From a rule of the template to a trigger whose values are all in place.
//!
//! Metadata is taken as written, but for keys that the catalogue reads from variables and secrets alone; a `…FromEnv`
//! key reads a variable of the revision's first container, as KEDA does; an `auth` entry reads a secret of the app.
//!
//! **Invariant:** pure, and no error or note holds a secret's value.
//! **Invariant:** authentication parameters win over metadata, and metadata over `…FromEnv`.

use std::collections::BTreeMap;

use cove_model::{EnvValue, EnvVar, RevisionKey, ScaleRuleAuth, ScaleRuleKind};
use cove_scalers::Trigger;
use cove_scaling::validate;

/// What a key's name ends with when its value is the name of a variable.
const FROM_ENV: &str = "FromEnv";

/// What a rule's values are taken from. Secrets change; the rest lives as long as the revision.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Variables of the first container of the template.
    pub env: Vec<EnvVar>,
    /// Values of the app's secrets by name.
    pub secrets: BTreeMap<String, String>,
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings").field("secrets", &self.secrets.keys()).finish_non_exhaustive()
    }
}

/// A rule with its values.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) trigger: Trigger,
    /// What could not be found, for the error of a scaler that misses it; KEDA goes on without, too.
    pub(crate) missing: Vec<String>,
}

/// The trigger of a custom or azure-queue rule; `None` for rules that no event source answers.
pub(crate) fn resolve(revision: &RevisionKey, kind: &ScaleRuleKind, around: &Surroundings) -> Option<Resolved> {
    let mut missing = Vec::new();
    let mut told = BTreeMap::new();
    let (scaler, mut parameters, auth, identity) = match kind {
        ScaleRuleKind::Http { .. } | ScaleRuleKind::Tcp { .. } => return None,
        ScaleRuleKind::Custom { scaler, metadata, auth, identity } => {
            let named = |key: &str| key.strip_suffix(FROM_ENV).filter(|name| !name.is_empty()).map(str::to_owned);
            let mut parameters = BTreeMap::new();
            let is_read = |key: &str| named(key).is_none() && validate::reads_in_metadata(scaler, key);
            for (key, value) in metadata.iter().filter(|(key, value)| is_read(key) && !value.trim().is_empty()) {
                parameters.insert(key.clone(), value.clone());
            }
            told = parameters.clone();
            for (key, value) in metadata {
                if let Some(name) = named(key)
                    && let Some(found) = variable(value.trim(), key, around, &mut missing)
                {
                    told.insert(key.clone(), found.clone());
                    parameters.entry(name).or_insert(found);
                }
            }
            (scaler.clone(), parameters, auth, identity)
        }
        ScaleRuleKind::AzureQueue { account_name, queue_name, queue_length, auth, identity } => {
            let mut parameters = BTreeMap::from([
                ("queueName".to_owned(), queue_name.clone()),
                ("queueLength".to_owned(), queue_length.to_string()),
            ]);
            parameters.extend(account_name.clone().map(|name| ("accountName".to_owned(), name)));
            ("azure-queue".to_owned(), parameters, auth, identity)
        }
    };
    for ScaleRuleAuth { secret_ref, trigger_parameter } in auth {
        match around.secrets.get(secret_ref) {
            Some(value) => {
                parameters.insert(trigger_parameter.clone(), value.clone());
            }
            None => missing.push(format!("the app has no secret `{secret_ref}`, which is `{trigger_parameter}`")),
        }
    }
    let trigger = Trigger {
        scaler,
        parameters,
        metadata: told,
        identity: identity.clone(),
        namespace: revision.app.group_name().to_owned(),
        name: revision.name.to_string(),
    };
    Some(Resolved { trigger, missing })
}

/// The value of a variable of the first container; a note where there is none.
fn variable(name: &str, key: &str, around: &Surroundings, missing: &mut Vec<String>) -> Option<String> {
    // The last one of a name is what the container sees.
    let Some(variable) = around.env.iter().rev().find(|variable| variable.name == name) else {
        missing.push(format!("the first container has no variable `{name}`, which `{key}` names"));
        return None;
    };
    match &variable.value {
        EnvValue::Plain(value) => Some(value.clone()),
        EnvValue::SecretRef(secret) => {
            let value = around.secrets.get(secret).cloned();
            if value.is_none() {
                missing.push(format!("the app has no secret `{secret}`, which variable `{name}` reads"));
            }
            value
        }
    }
}

#[cfg(test)]
mod tests {
    use cove_model::{ResourceId, RevisionName};

    use super::*;

    fn revision() -> RevisionKey {
        RevisionKey {
            app: ResourceId::resource("s", "rg", "Microsoft.App/containerApps", "worker").unwrap(),
            name: RevisionName::new("worker--v1").unwrap(),
        }
    }

    fn around() -> Surroundings {
        let variable = |name: &str, value| EnvVar { name: name.into(), value };
        Surroundings {
            env: vec![
                variable("HOST", EnvValue::Plain("old:1".into())),
                variable("HOST", EnvValue::Plain("redis:6379".into())),
                variable("PASSWORD", EnvValue::SecretRef("redis-password".into())),
                variable("LOST", EnvValue::SecretRef("no-such".into())),
            ],
            secrets: BTreeMap::from([("redis-password".into(), "hunter2".into()), ("sb".into(), "Endpoint=…".into())]),
        }
    }

    fn custom(metadata: &[(&str, &str)], auth: &[(&str, &str)]) -> ScaleRuleKind {
        ScaleRuleKind::Custom {
            scaler: "redis".into(),
            metadata: metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            auth: auth
                .iter()
                .map(|(secret, parameter)| ScaleRuleAuth {
                    secret_ref: (*secret).into(),
                    trigger_parameter: (*parameter).into(),
                })
                .collect(),
            identity: Some("system".into()),
        }
    }

    #[test]
    fn values_come_from_metadata_environment_and_secrets() {
        let metadata =
            [("listName", "jobs"), ("addressFromEnv", " HOST "), ("passwordFromEnv", "PASSWORD"), ("host", "x")];
        let kind = custom(&metadata, &[("sb", "connection"), ("sb", "host")]);
        let resolved = resolve(&revision(), &kind, &around()).unwrap();
        let parameters: Vec<_> =
            resolved.trigger.parameters.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(
            parameters,
            [
                ("address", "redis:6379"),
                ("connection", "Endpoint=…"),
                ("host", "Endpoint=…"),
                ("listName", "jobs"),
                ("password", "hunter2"),
            ]
        );
        let told: Vec<_> =
            resolved.trigger.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let named =
            [("addressFromEnv", "redis:6379"), ("host", "x"), ("listName", "jobs"), ("passwordFromEnv", "hunter2")];
        assert_eq!(told, named, "no authentication parameter");
        assert_eq!((resolved.trigger.namespace.as_str(), resolved.trigger.name.as_str()), ("rg", "worker--v1"));
        assert_eq!(resolved.trigger.identity.as_deref(), Some("system"));
        assert!(resolved.missing.is_empty());
        let shown = format!("{resolved:?} {:?}", around());
        assert!(!shown.contains("hunter2") && !shown.contains("Endpoint"), "{shown}");
    }

    #[test]
    fn metadata_wins_over_the_environment() {
        let kind = custom(&[("address", "given:1"), ("addressFromEnv", "HOST")], &[]);
        let resolved = resolve(&revision(), &kind, &around()).unwrap();
        assert_eq!(resolved.trigger.get("address"), Some("given:1"));
        let empty = custom(&[("address", " "), ("addressFromEnv", "HOST")], &[]);
        let resolved = resolve(&revision(), &empty, &around()).unwrap();
        assert_eq!(resolved.trigger.get("address"), Some("redis:6379"));
    }

    #[test]
    fn what_is_missing_is_said_by_name() {
        let kind = custom(&[("aFromEnv", "NONE"), ("bFromEnv", "LOST")], &[("gone", "connection")]);
        assert_eq!(
            resolve(&revision(), &kind, &around()).unwrap().missing,
            [
                "the first container has no variable `NONE`, which `aFromEnv` names",
                "the app has no secret `no-such`, which variable `LOST` reads",
                "the app has no secret `gone`, which is `connection`",
            ]
        );
    }

    #[test]
    fn an_azure_queue_rule_is_that_scaler() {
        let kind = ScaleRuleKind::AzureQueue {
            account_name: Some("store".into()),
            queue_name: "jobs".into(),
            queue_length: 7,
            auth: vec![ScaleRuleAuth { secret_ref: "sb".into(), trigger_parameter: "connection".into() }],
            identity: None,
        };
        let trigger = resolve(&revision(), &kind, &around()).unwrap().trigger;
        assert_eq!((trigger.scaler.as_str(), trigger.get("queueLength")), ("azure-queue", Some("7")));
        assert_eq!((trigger.get("accountName"), trigger.get("connection")), (Some("store"), Some("Endpoint=…")));
        assert_eq!(resolve(&revision(), &ScaleRuleKind::Http { concurrent_requests: 1 }, &around()), None);
    }
}
