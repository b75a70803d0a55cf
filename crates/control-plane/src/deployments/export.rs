//! `exportTemplate` of a group: its resources as a template that makes them again.
//!
//! Names become parameters, ids of exported resources become `resourceId(…)` with a `dependsOn`, values of secrets become
//! secure parameters without a default, since they are never shown.

use std::collections::{BTreeMap, BTreeSet};

use cove_arm::ArmError;
use cove_model::ResourceId;
use http::Method;
use serde_json::{Map, Value, json};

use super::{KIND, agent::Agent, delta};
use crate::{
    answer::{self, Answer},
    call::Call,
    control_plane::ControlPlane,
    groups,
};

/// Api-versions that exported resources name.
const API_VERSIONS: &[(&str, &str)] = &[
    ("microsoft.app/", "2025-07-01"),
    ("microsoft.operationalinsights/", "2023-09-01"),
    ("microsoft.managedidentity/", "2024-11-30"),
];

#[derive(Clone, Copy, Debug, Default)]
struct Options {
    keeps_defaults: bool,
    keeps_names: bool,
}

/// Answered at once with 200.
pub(crate) async fn group(plane: ControlPlane, call: Call) -> Answer {
    let group = groups::require(&plane, &call)?;
    let body = if call.body.is_empty() { json!({}) } else { call.object()? };
    if let Some(format) = body.get("outputFormat").and_then(Value::as_str)
        && !format.eq_ignore_ascii_case("Json")
    {
        return Err(ArmError::not_implemented("outputFormat", "Export as Bicep", "ask for outputFormat Json").into());
    }
    let given = body.get("options").and_then(Value::as_str).unwrap_or("").to_ascii_lowercase();
    let has = |option: &str| given.split(',').any(|given| given.trim() == option);
    let options = Options {
        keeps_defaults: has("includeparameterdefaultvalue"),
        keeps_names: has("skipresourcenameparameterization") || has("skipallparameterization"),
    };
    let rows = plane.store().resources_below(&group.id)?;
    let mut ids: Vec<ResourceId> =
        rows.into_iter().map(|row| row.id).filter(|id| !id.kind().eq_ignore_ascii_case(KIND)).collect();
    if let Some(wanted) = wanted(&body) {
        ids.retain(|id| wanted.contains(id.key()));
        if let Some(unknown) = wanted.iter().find(|wanted| !ids.iter().any(|id| id.key() == wanted.as_str())) {
            let message = format!("The resource '{unknown}' is not in the resource group '{}'.", group.id.name());
            return Err(ArmError::new(404, "ResourceNotFound", message).at("resources").into());
        }
    }
    let (extensions, ids): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| id.scope().as_ref() != Some(&group.id));
    let agent = Agent::of(&plane, &call);
    let mut export = Export::of(&ids, options);
    for id in &ids {
        let reply = agent.send(Method::GET, id.as_str(), "", None).await?;
        export.add(id, &reply.body);
    }
    let mut answer = json!({ "template": export.finish() });
    if !extensions.is_empty() {
        let message = "Some resources extend others and are not in the template.";
        let mut error = ArmError::new(400, "ExportTemplateCompletedWithErrors", message);
        let told = |id: &ResourceId| {
            ArmError::new(400, "ExportTemplateProviderError", format!("'{id}' was not exported.")).at(id.as_str())
        };
        error.details = extensions.iter().map(told).collect();
        answer["error"] = error.inner_json();
    }
    Ok(answer::json(200, &answer))
}

/// Keys of the ids that are asked for; `None` for all.
fn wanted(body: &Value) -> Option<BTreeSet<String>> {
    let list = body.get("resources").and_then(Value::as_array)?;
    let ids: BTreeSet<String> = list.iter().filter_map(Value::as_str).map(str::to_ascii_lowercase).collect();
    if ids.is_empty() || ids.contains("*") { None } else { Some(ids) }
}

struct Export {
    /// Parameter of each name, by id.
    names: BTreeMap<String, String>,
    ids: Vec<ResourceId>,
    parameters: Map<String, Value>,
    resources: Vec<Value>,
}

fn word(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A text that is no expression.
fn literal(text: &str) -> Value {
    json!(if text.starts_with('[') { format!("[{text}") } else { text.to_owned() })
}

impl Export {
    fn of(ids: &[ResourceId], options: Options) -> Self {
        let mut names = BTreeMap::new();
        let mut parameters = Map::new();
        for id in ids.iter().filter(|id| id.parent().is_none() && !options.keeps_names) {
            let kind = id.kind();
            let kind = kind.rsplit('/').next().unwrap_or("resource").to_owned();
            let name = format!("{}_{}_name", word(&kind), word(id.name()));
            let mut parameter = json!({ "type": "String" });
            if options.keeps_defaults {
                parameter["defaultValue"] = json!(id.name());
            }
            parameters.insert(name.clone(), parameter);
            names.insert(id.key().to_owned(), name);
        }
        Self { names, ids: ids.to_vec(), parameters, resources: Vec::new() }
    }

    /// The names of a resource and its parents, as parts of an expression.
    fn name_parts(&self, id: &ResourceId) -> Vec<String> {
        let mut chain = vec![id.clone()];
        while let Some(parent) = chain.last().and_then(ResourceId::parent) {
            chain.push(parent);
        }
        let part = |id: &ResourceId| match self.names.get(id.key()) {
            Some(parameter) => format!("parameters('{parameter}')"),
            None => quoted(id.name()),
        };
        chain.iter().rev().map(part).collect()
    }

    fn resource_id(&self, id: &ResourceId) -> String {
        format!("[resourceId({}, {})]", quoted(&id.kind()), self.name_parts(id).join(", "))
    }

    fn name(&self, id: &ResourceId) -> Value {
        let parts = self.name_parts(id);
        match parts.as_slice() {
            [one] if one.starts_with("parameters(") => json!(format!("[{one}]")),
            [_] => literal(id.name()),
            many => json!(format!("[concat({})]", many.join(", '/', "))),
        }
    }

    fn add(&mut self, id: &ResourceId, shown: &Value) {
        let mut value = delta::written(shown);
        let mut needed = BTreeSet::new();
        if let Some(parent) = id.parent().filter(|parent| self.ids.contains(parent)) {
            needed.insert(self.resource_id(&parent));
        }
        if let Some(fields) = value.as_object_mut() {
            for name in ["id", "name", "type", "apiVersion"] {
                fields.remove(name);
            }
            if fields.get("identity").is_some_and(|identity| identity["type"] == json!("None")) {
                fields.remove("identity");
            }
        }
        self.hide_secrets(id, &mut value);
        let body = self.rewrite(id, value, &mut needed);
        let kind = id.kind();
        let version = API_VERSIONS.iter().find(|(prefix, _)| kind.to_ascii_lowercase().starts_with(prefix));
        let mut resource = json!({
            "type": shown.get("type").and_then(Value::as_str).unwrap_or(&kind),
            "apiVersion": version.map_or("2025-07-01", |(_, version)| version),
            "name": self.name(id),
        });
        if !needed.is_empty() {
            resource["dependsOn"] = needed.into_iter().map(Value::String).collect();
        }
        if let (Some(resource), Value::Object(body)) = (resource.as_object_mut(), body) {
            resource.extend(body);
        }
        self.resources.push(resource);
    }

    /// Texts: ids of exported resources become expressions; others stay what they are.
    fn rewrite(&self, own: &ResourceId, value: Value, needed: &mut BTreeSet<String>) -> Value {
        match value {
            Value::String(text) => {
                let id = ResourceId::parse(&text).ok().filter(|id| self.ids.contains(id) && id != own);
                match id {
                    Some(id) => {
                        let expression = self.resource_id(&id);
                        needed.insert(expression.clone());
                        Value::String(expression)
                    }
                    None if text.starts_with("[parameters('") => Value::String(text),
                    None => literal(&text),
                }
            }
            Value::Array(items) => items.into_iter().map(|item| self.rewrite(own, item, needed)).collect(),
            Value::Object(fields) => {
                let member = |(name, value): (String, Value)| {
                    let id = ResourceId::parse(&name).ok().filter(|id| self.ids.contains(id));
                    let name = id.map_or(name, |id| {
                        let expression = self.resource_id(&id);
                        needed.insert(expression.clone());
                        expression
                    });
                    (name, self.rewrite(own, value, needed))
                };
                Value::Object(fields.into_iter().map(member).collect())
            }
            other => other,
        }
    }

    /// Values that are never shown become parameters that must be given.
    fn hide_secrets(&mut self, id: &ResourceId, value: &mut Value) {
        let base = format!("{}_{}", word(id.kind().rsplit('/').next().unwrap_or("resource")), word(id.name()));
        let mut parameter = |name: String| {
            self.parameters.insert(name.clone(), json!({ "type": "SecureString" }));
            json!(format!("[parameters('{name}')]"))
        };
        let secrets = value.pointer_mut("/properties/configuration/secrets").and_then(Value::as_array_mut);
        for secret in secrets.into_iter().flatten() {
            let has_source = ["value", "keyVaultUrl"].iter().any(|name| secret.get(name).is_some());
            if let (false, Some(name)) = (has_source, secret.get("name").and_then(Value::as_str).map(word)) {
                secret["value"] = parameter(format!("{base}_secret_{name}"));
            }
        }
        let logs = value.pointer_mut("/properties/appLogsConfiguration/logAnalyticsConfiguration");
        if let Some(logs) = logs.filter(|logs| logs.get("customerId").is_some()) {
            logs["sharedKey"] = parameter(format!("{base}_sharedKey"));
        }
    }

    fn finish(self) -> Value {
        json!({
            "$schema": "https://schema.management.azure.com/schemas/2015-01-01/deploymentTemplate.json#",
            "contentVersion": "1.0.0.0",
            "parameters": self.parameters,
            "variables": {},
            "resources": self.resources,
        })
    }
}
