//! `containerapp env dapr-component`: components in Azure's form, or in Kubernetes' form as Dapr's own pages write it.

use std::path::PathBuf;

use reqwest::Method;
use serde_json::{Map, Value, json};

use super::EnvironmentRef;
use crate::{
    client::{Wait, encode},
    failure::Failure,
    file,
    output::View,
    session::Session,
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum DaprComponentCommand {
    /// List components.
    List(EnvironmentRef),
    /// Show a component.
    Show(ComponentRef),
    /// Create a component or replace it.
    Set {
        #[command(flatten)]
        component: ComponentRef,
        /// The component as YAML: Azure's form, or `apiVersion: dapr.io/v1alpha1`.
        #[arg(long, value_name = "FILE")]
        yaml: PathBuf,
    },
    /// Remove a component.
    Remove(ComponentRef),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ComponentRef {
    #[command(flatten)]
    environment: EnvironmentRef,
    /// Name of the component.
    #[arg(long)]
    dapr_component_name: String,
}

impl ComponentRef {
    fn path(&self, session: &Session) -> String {
        format!("{}/daprComponents/{}", self.environment.path(session), encode(&self.dapr_component_name))
    }
}

/// Properties of a component.
const KNOWN: [&str; 9] = [
    "componentType",
    "version",
    "ignoreErrors",
    "initTimeout",
    "secrets",
    "secretStoreComponent",
    "metadata",
    "scopes",
    "serviceComponentBind",
];

pub(super) async fn run(session: &Session, command: DaprComponentCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        DaprComponentCommand::List(environment) => {
            let path = format!("{}/daprComponents", environment.path(session));
            session.print(client.list(&path).await?, View::Components)
        }
        DaprComponentCommand::Show(component) => {
            session.print(client.get(&component.path(session)).await?, View::Components)
        }
        DaprComponentCommand::Set { component, yaml } => {
            let properties = properties(file::yaml(&yaml)?)
                .map_err(|failure| Failure::new(format!("`{}`: {}", yaml.display(), failure.text)))?;
            let body = json!({ "properties": properties });
            let written = client.write(Method::PUT, &component.path(session), Some(&body), Wait::Done).await?;
            session.print(written, View::Components)
        }
        DaprComponentCommand::Remove(component) => {
            let path = component.path(session);
            client.get(&path).await?;
            client.delete(&path, Wait::Done).await
        }
    }
}

/// The properties that a file describes, whichever form it has.
fn properties(mut file: Value) -> Result<Value, Failure> {
    let kind = file["kind"].as_str();
    if kind.is_some_and(|kind| kind != "Component") {
        return Err(Failure::new(format!("its kind is `{}`, not `Component`", kind.unwrap_or_default())));
    }
    let mut component = if kind.is_some() || file["spec"].is_object() {
        kubernetes(&mut file)
    } else if file["properties"].is_object() {
        file["properties"].take()
    } else {
        file
    };
    if component["componentType"].is_null() {
        component["componentType"] = component["type"].take();
    }
    let Some(fields) = component.as_object() else { return Err(Failure::new("it is not an object")) };
    let mut kept: Map<String, Value> =
        fields.iter().filter(|(name, value)| KNOWN.contains(&name.as_str()) && !value.is_null()).map(copied).collect();
    if !kept.contains_key("componentType") {
        return Err(Failure::new("it has no `componentType`, such as state.redis"));
    }
    kept.entry("ignoreErrors").or_insert(false.into());
    Ok(Value::Object(kept))
}

fn copied((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}

/// Kubernetes' form: `spec`, `scopes` and `auth` beside it, secrets by reference.
fn kubernetes(file: &mut Value) -> Value {
    let mut spec = file["spec"].take();
    let mut component = json!({
        "componentType": spec["type"].take(),
        "version": spec["version"].take(),
        "ignoreErrors": spec["ignoreErrors"].take(),
        "initTimeout": spec["initTimeout"].take(),
        "scopes": file["scopes"].take(),
        "secretStoreComponent": file["auth"]["secretStore"].take(),
    });
    let entries = spec["metadata"].as_array().cloned().unwrap_or_default();
    let metadata: Vec<Value> = entries.iter().map(entry).collect();
    component["metadata"] = Value::Array(metadata);
    component
}

/// `secretKeyRef: {name, key}` is `secretRef: name`; values are texts.
fn entry(entry: &Value) -> Value {
    let mut kept = json!({ "name": entry["name"] });
    let reference = entry["secretRef"].as_str().or_else(|| entry["secretKeyRef"]["name"].as_str());
    if let Some(reference) = reference {
        kept["secretRef"] = reference.into();
    }
    match &entry["value"] {
        Value::Null => {}
        Value::String(text) => kept["value"] = text.as_str().into(),
        other => kept["value"] = other.to_string().into(),
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(yaml: &str) -> Result<Value, String> {
        properties(serde_saphyr::from_str(yaml).unwrap()).map_err(|failure| failure.text)
    }

    #[test]
    fn both_forms_are_read() {
        let kubernetes = check(
            "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: pubsub\nspec:\n  type: pubsub.azure.servicebus.topics\n  version: v1\n  metadata:\n    - name: connectionString\n      secretRef: servicebus-connection\n    - name: consumerID\n      value: \"myapp\"\n",
        );
        let azure = check(
            "componentType: pubsub.azure.servicebus.topics\nversion: v1\nmetadata:\n- name: connectionString\n  secretRef: servicebus-connection\n- name: consumerID\n  value: myapp\nid: /x\n",
        );
        assert_eq!(kubernetes, azure);
        assert_eq!(
            azure.unwrap(),
            json!({"componentType": "pubsub.azure.servicebus.topics", "version": "v1", "ignoreErrors": false, "metadata": [
                {"name": "connectionString", "secretRef": "servicebus-connection"}, {"name": "consumerID", "value": "myapp"}]})
        );
        assert_eq!(check("kind: Configuration"), Err("its kind is `Configuration`, not `Component`".to_owned()));
        assert!(check("version: v1").unwrap_err().contains("componentType"));
    }
}
