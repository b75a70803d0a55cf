//! `cove export`: an app as a template that makes it again, or as YAML that `containerapp create --yaml` reads.

use serde_json::{Map, Value, json};

use crate::{
    failure::Failure,
    output::View,
    session::{Globals, GroupArg, Session, block_on},
    text,
};

#[derive(Debug, clap::Args)]
pub(crate) struct ExportArgs {
    /// Name of the app.
    #[arg(short, long, alias = "app")]
    name: String,
    #[command(flatten)]
    group: GroupArg,
    /// arm: a template for `deployment group create`; yaml: a file for `containerapp create --yaml`.
    #[arg(long = "as", value_enum, default_value_t = Form::Arm)]
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    Arm,
    Yaml,
}

/// What only the server knows or decides.
const READ_ONLY: [&str; 11] = [
    "provisioningState",
    "runningStatus",
    "latestRevisionName",
    "latestReadyRevisionName",
    "latestRevisionFqdn",
    "customDomainVerificationId",
    "outboundIpAddresses",
    "eventStreamEndpoint",
    "managedEnvironmentId",
    "deploymentErrors",
    "delegatedIdentities",
];

pub(crate) fn run(args: &ExportArgs, globals: &Globals) -> Result<(), Failure> {
    block_on(async {
        let session = Session::open(globals).await?;
        let app = session.client.get(&session.client.app(&args.group.group, &args.name)).await?;
        let secrets = secrets_of(&app);
        if !secrets.is_empty() {
            text::note(&format!("Values of secrets are not exported: {}", secrets.join(", ")));
        }
        match args.form {
            Form::Arm => session.print(template(&app), View::Plain),
            Form::Yaml => {
                let yaml = serde_saphyr::to_string(&bare(&app))
                    .map_err(|error| Failure::new(format!("the app cannot be written as YAML: {error}")))?;
                text::out(&yaml);
                Ok(())
            }
        }
    })
}

fn secrets_of(app: &Value) -> Vec<String> {
    let secrets = app.pointer("/properties/configuration/secrets").and_then(Value::as_array);
    secrets
        .map(|list| list.iter().filter_map(|secret| secret["name"].as_str().map(str::to_owned)).collect())
        .unwrap_or_default()
}

/// The app without what the server adds.
fn bare(app: &Value) -> Value {
    let mut properties: Map<String, Value> = app["properties"].as_object().cloned().unwrap_or_default();
    properties.retain(|name, value| !READ_ONLY.contains(&name.as_str()) && !value.is_null());
    if let Some(ingress) = properties.get_mut("configuration").and_then(|part| part["ingress"].as_object_mut()) {
        ingress.remove("fqdn");
    }
    if let Some(template) = properties.get_mut("template").and_then(Value::as_object_mut) {
        // a revision's name is used once
        template.remove("revisionSuffix");
        let containers = template.get_mut("containers").and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if let Some(resources) = container["resources"].as_object_mut() {
                resources.remove("ephemeralStorage");
            }
        }
    }
    let mut bare = json!({ "location": app["location"], "name": app["name"], "type": "Microsoft.App/containerApps" });
    if app["tags"].as_object().is_some_and(|tags| !tags.is_empty()) {
        bare["tags"] = app["tags"].clone();
    }
    if app["identity"]["type"].as_str().is_some_and(|kind| kind != "None") {
        let users = app["identity"]["userAssignedIdentities"].as_object();
        bare["identity"] = json!({ "type": app["identity"]["type"] });
        if let Some(users) = users {
            let users: Map<String, Value> = users.keys().map(|id| (id.clone(), json!({}))).collect();
            bare["identity"]["userAssignedIdentities"] = Value::Object(users);
        }
    }
    bare["properties"] = Value::Object(properties);
    bare
}

/// A template; secrets are parameters without a default, the environment and the name are parameters with one.
fn template(app: &Value) -> Value {
    let mut resource = bare(app);
    let mut parameters = json!({
        "name": { "type": "string", "defaultValue": app["name"] },
        "location": { "type": "string", "defaultValue": app["location"] },
        "environmentId": { "type": "string", "defaultValue": app["properties"]["environmentId"] },
    });
    resource["name"] = "[parameters('name')]".into();
    resource["location"] = "[parameters('location')]".into();
    escape(&mut resource["properties"]);
    resource["properties"]["environmentId"] = "[parameters('environmentId')]".into();
    let secrets = resource.pointer_mut("/properties/configuration/secrets").and_then(Value::as_array_mut);
    for secret in secrets.into_iter().flatten() {
        if secret["keyVaultUrl"].as_str().is_some_and(|url| !url.is_empty()) {
            continue;
        }
        let parameter = format!("secret-{}", secret["name"].as_str().unwrap_or_default());
        secret["value"] = format!("[parameters('{parameter}')]").into();
        parameters[&parameter] = json!({ "type": "secureString" });
    }
    resource["apiVersion"] = "2025-07-01".into();
    json!({
        "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        "parameters": parameters,
        "resources": [resource],
        "outputs": { "id": { "type": "string",
            "value": "[resourceId('Microsoft.App/containerApps', parameters('name'))]" } },
    })
}

/// A text that begins with a bracket is an expression unless the bracket is doubled.
fn escape(value: &mut Value) {
    match value {
        Value::String(text) if text.starts_with('[') && text.ends_with(']') => text.insert(0, '['),
        Value::Array(items) => items.iter_mut().for_each(escape),
        Value::Object(fields) => fields.values_mut().for_each(escape),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_adds_is_left_out_and_secrets_are_parameters() {
        let app = json!({"id": "/x", "name": "web", "location": "local", "type": "t", "systemData": {},
            "identity": {"type": "None"},
            "properties": {"environmentId": "/e", "managedEnvironmentId": "/e", "provisioningState": "Succeeded",
                "latestRevisionName": "web--a",
                "configuration": {"secrets": [{"name": "pw"}], "ingress": {"external": true, "fqdn": "f"}},
                "template": {"revisionSuffix": "a", "containers": [{"image": "i", "args": ["[x]"],
                    "resources": {"cpu": 0.5, "ephemeralStorage": "2Gi"}}]}}});
        assert_eq!(
            bare(&app),
            json!({"name": "web", "location": "local", "type": "Microsoft.App/containerApps",
                "properties": {"environmentId": "/e", "configuration": {"secrets": [{"name": "pw"}], "ingress": {"external": true}},
                    "template": {"containers": [{"image": "i", "args": ["[x]"], "resources": {"cpu": 0.5}}]}}})
        );
        let template = template(&app);
        assert_eq!(template["parameters"]["secret-pw"], json!({"type": "secureString"}));
        let resource = &template["resources"][0];
        assert_eq!(resource["properties"]["configuration"]["secrets"][0]["value"], "[parameters('secret-pw')]");
        assert_eq!(resource["properties"]["template"]["containers"][0]["args"][0], "[[x]");
    }
}
