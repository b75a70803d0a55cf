//! Rules to try, from a file or an app: ACA's `scale` section, read by the code that reads it on the server.
//!
//! **Invariant:** what the server would refuse is refused here with the same words.

use std::{collections::BTreeSet, path::Path};

use cove_arm::container_app::{PutContext, parse_put};
use cove_model::{ResourceId, Scale, ScaleRule, ScaleRuleKind};
use serde_json::{Value, json};

use crate::{failure::Failure, file};

const ID: &str =
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/try/providers/Microsoft.App/containerApps/try";
const ENVIRONMENT: &str = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/try/providers/Microsoft.App/managedEnvironments/try";

/// Keys of metadata that say how a reading is taken, not what is read.
const TARGET_KEYS: [&str; 16] = [
    "value",
    "listLength",
    "queueLength",
    "messageCount",
    "lagThreshold",
    "lagCount",
    "pendingEntriesCount",
    "streamLength",
    "threshold",
    "targetValue",
    "targetQueryValue",
    "queryValue",
    "blobCount",
    "unprocessedEventThreshold",
    "targetWorkflowQueueLength",
    "targetPipelinesQueueLength",
];

/// Rules that are tried.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// What they are called in the output.
    pub(super) name: String,
    pub(super) scale: Scale,
    pub(super) has_ingress: bool,
}

/// Reads a file: a `scale` section, or an app that has one. `app` lends everything else.
pub(super) fn read(path: &Path, app: Option<&Value>) -> Result<Rules, Failure> {
    let given = file::yaml(path)?;
    let section = ["/properties/template/scale", "/template/scale", "/scale"].iter().find_map(|at| given.pointer(at));
    let name = path.file_stem().map_or_else(|| "new".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let (scale, has_ingress) = parse(section.unwrap_or(&given), app)
        .map_err(|failure| Failure::new(format!("`{}`: {}", path.display(), failure.text)))?;
    Ok(Rules { name, scale, has_ingress })
}

/// The rules that an app has.
pub(super) fn of_app(app: &Value) -> Result<Rules, Failure> {
    let section = app.pointer("/properties/template/scale").cloned().unwrap_or_else(|| json!({}));
    let (scale, has_ingress) = parse(&section, Some(app))?;
    Ok(Rules { name: "today".to_owned(), scale, has_ingress })
}

/// Azure's default: the http rule with 10, 0 to 10 replicas.
pub(super) fn default_rules() -> Rules {
    Rules { name: "default".to_owned(), scale: Scale::default(), has_ingress: true }
}

fn parse(section: &Value, app: Option<&Value>) -> Result<(Scale, bool), Failure> {
    let ingress = match app {
        Some(app) => app.pointer("/properties/configuration/ingress").filter(|ingress| !ingress.is_null()).cloned(),
        None => Some(json!({"external": true, "targetPort": 80})),
    };
    let mut known = BTreeSet::new();
    secret_names(section, &mut known);
    let secrets: Vec<Value> = known.iter().map(|name| json!({"name": name, "value": "-"})).collect();
    let has_ingress = ingress.is_some();
    let is_tcp = has_ingress && section.to_string().contains("\"tcp\"");
    let ingress =
        ingress.map(|_| json!({"external": true, "targetPort": 80, "transport": if is_tcp { "tcp" } else { "auto" }}));
    let body = json!({
        "location": "local",
        "identity": app.and_then(|app| app.get("identity")).cloned(),
        "properties": {
            "environmentId": ENVIRONMENT,
            "configuration": {"ingress": ingress, "secrets": secrets},
            "template": {"containers": [{"name": "try", "image": "try"}], "scale": section},
        },
    });
    let id = ResourceId::parse(ID).map_err(|error| Failure::new(error.to_string()))?;
    let context = PutContext { id: &id, known_secrets: &known };
    let parsed = parse_put(&body, &context).map_err(|error| Failure::new(error.to_string()))?;
    Ok((parsed.app.template.scale, has_ingress))
}

fn secret_names(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(name) = fields.get("secretRef").and_then(Value::as_str) {
                names.insert(name.to_owned());
            }
            fields.values().for_each(|field| secret_names(field, names));
        }
        Value::Array(items) => items.iter().for_each(|item| secret_names(item, names)),
        _ => {}
    }
}

/// What of `new` cannot be replayed exactly on readings that were recorded under `today`.
pub(super) fn caveats(today: &Rules, new: &Rules) -> Vec<String> {
    let mut found = Vec::new();
    for rule in &new.scale.rules {
        match today.scale.rules.iter().find(|known| known.name == rule.name) {
            None => found.push(format!(
                "rule `{}` was never read: it counts as failing, so the count does not fall below today's proposals",
                rule.name
            )),
            Some(known) if source(known) != source(rule) => found.push(format!(
                "rule `{}` reads another source than today's rule of that name; the readings are those of today's",
                rule.name
            )),
            Some(known) => found.extend(other_reading(known, rule)),
        }
    }
    if today.scale.rules.is_empty() != new.scale.rules.is_empty() && today.has_ingress {
        found.push(
            "the default rule and a rule of another name are not the same to a replay: name it `default-http`"
                .to_owned(),
        );
    }
    if today.scale.mode != new.scale.mode {
        found.push("the modes aca and fast read different things (arrivals, open requests): only the estimate below compares them".to_owned());
    }
    if today.scale.settings.load_sampling_secs != new.scale.settings.load_sampling_secs
        || today.scale.polling_interval_secs != new.scale.polling_interval_secs
    {
        found.push("decisions are taken at the recorded instants, whatever interval is asked for".to_owned());
    }
    found
}

fn other_reading(known: &ScaleRule, rule: &ScaleRule) -> Option<String> {
    let (ScaleRuleKind::Custom { scaler, metadata: before, .. }, ScaleRuleKind::Custom { metadata, .. }) =
        (&known.kind, &rule.kind)
    else {
        return None;
    };
    if matches!(scaler.as_str(), "cpu" | "memory") && before.get("value") != metadata.get("value") {
        return Some(format!(
            "rule `{}` was recorded as a number of replicas for its old value, which is kept",
            rule.name
        ));
    }
    let activation = |metadata: &indexmap::IndexMap<String, String>| {
        metadata
            .iter()
            .filter(|(key, _)| key.starts_with("activation"))
            .map(|(_, value)| value.clone())
            .collect::<Vec<_>>()
    };
    (activation(before) != activation(metadata)).then(|| {
        format!("rule `{}` keeps the activity it was recorded with, under its old activation value", rule.name)
    })
}

/// What a rule reads, without its target.
fn source(rule: &ScaleRule) -> String {
    match &rule.kind {
        ScaleRuleKind::Http { .. } => "http".to_owned(),
        ScaleRuleKind::Tcp { .. } => "tcp".to_owned(),
        ScaleRuleKind::AzureQueue { account_name, queue_name, .. } => {
            format!("azure-queue {account_name:?} {queue_name}")
        }
        ScaleRuleKind::Custom { scaler, metadata, .. } => {
            let keys = metadata
                .iter()
                .filter(|(key, _)| !TARGET_KEYS.contains(&key.as_str()) && !key.starts_with("activation"));
            let mut keys: Vec<String> = keys.map(|(key, value)| format!("{key}={value}")).collect();
            keys.sort();
            format!("{scaler} {}", keys.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_read_as_the_server_reads_it() {
        let section = json!({"minReplicas": 1, "maxReplicas": 20, "coveMode": "fast", "rules": [
            {"name": "h", "http": {"metadata": {"concurrentRequests": "25"}}},
            {"name": "q", "custom": {"type": "redis", "metadata": {"listName": "l", "listLength": "5", "address": "r:6379"},
                "auth": [{"secretRef": "pw", "triggerParameter": "password"}]}},
        ]});
        let (scale, has_ingress) = parse(&section, None).unwrap_or_else(|failure| panic!("{}", failure.text));
        assert_eq!((scale.min_replicas, scale.max_replicas, scale.rules.len(), has_ingress), (1, 20, 2, true));
        let wrong = parse(&json!({"minReplicas": 5, "maxReplicas": 2}), None).err().map(|failure| failure.text);
        assert!(wrong.is_some_and(|text| text.contains("maxReplicas")));
    }

    #[test]
    fn what_cannot_be_replayed_is_said() {
        let rules = |section: Value| {
            let (scale, has_ingress) = parse(&section, None).unwrap_or_else(|failure| panic!("{}", failure.text));
            Rules { name: "x".into(), scale, has_ingress }
        };
        let redis = |list: &str, length: &str| {
            json!({"rules": [{"name": "q", "custom": {"type": "redis",
            "metadata": {"listName": list, "listLength": length, "address": "r:6379"}}}]})
        };
        assert!(caveats(&rules(redis("a", "5")), &rules(redis("a", "50"))).is_empty(), "another target is exact");
        assert_eq!(caveats(&rules(redis("a", "5")), &rules(redis("b", "5"))).len(), 1);
        let other =
            json!({"coveMode": "fast", "rules": [{"name": "z", "http": {"metadata": {"concurrentRequests": "5"}}}]});
        assert_eq!(caveats(&rules(redis("a", "5")), &rules(other)).len(), 2);
    }
}
