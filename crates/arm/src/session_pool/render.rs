//! A session pool as Azure shows it: the stored document, completed with defaults and with what is known at the time.
//!
//! **Invariant:** no collection is ever null: `az` iterates them without looking.

use cove_model::{ResourceId, SessionContainer, SessionLifecycle, SessionPool};
use serde_json::{Value, json};

use crate::{
    SystemData,
    container_app::{complete, render_template},
    node::Node,
};

/// What is known of a pool when it is shown.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its id, in the case of its creation.
    pub id: &'a ResourceId,
    /// `InProgress`, `Succeeded`, `Failed`, `Canceled`, `Deleting`.
    pub provisioning_state: &'a str,
    /// Where requests for its sessions go, without a slash at the end.
    pub endpoint: &'a str,
    /// Machines that its sessions run on: 1 while it has any.
    pub node_count: u32,
    /// Who made and changed it.
    pub system_data: Option<&'a SystemData>,
}

/// The pool as Azure shows it; `doc` and `pool` are what [`super::parse_put`] gave.
#[must_use]
pub fn render(doc: &Value, pool: &SessionPool, view: &View<'_>) -> Value {
    let mut properties = doc.get("properties").cloned().unwrap_or_else(|| json!({}));
    complete(&mut properties, &render_defaults(pool));
    let mut facts = json!({
        "provisioningState": view.provisioning_state,
        "poolManagementEndpoint": view.endpoint,
        "nodeCount": view.node_count,
        "coveIsolation": pool.isolation.as_str(),
    });
    if pool.is_mcp_enabled && pool.container != SessionContainer::Custom {
        // Azure shows it within the settings
        let endpoint = format!("{}/mcp", view.endpoint);
        facts["mcpServerSettings"] = json!({ "mcpServerEndpoint": endpoint });
        facts["mcpServerEndpoint"] = json!(endpoint);
    }
    crate::patch::merge(&mut properties, &facts);
    let warnings = warnings(doc);
    if !warnings.is_empty() {
        properties["coveWarnings"] = json!(warnings);
    }
    let location = doc.get("location").and_then(Value::as_str).unwrap_or("local");
    let mut value = json!({
        "id": view.id.as_str(),
        "name": view.id.name(),
        "type": cove_model::SESSION_POOL_KIND,
        "location": crate::provider::display_location(location).unwrap_or(location),
        "identity": { "type": "None" },
        "properties": properties,
    });
    for (name, given) in doc.as_object().into_iter().flatten() {
        if !["location", "properties", "systemData"].contains(&name.as_str()) {
            value[name] = given.clone();
        }
    }
    if let Some(data) = view.system_data {
        value["systemData"] = data.render();
    }
    value
}

/// What the model knows, in the document's shape.
fn render_defaults(pool: &SessionPool) -> Value {
    let lifecycle = match pool.lifecycle {
        SessionLifecycle::Timed { cooldown_secs } => json!({ "cooldownPeriodInSeconds": cooldown_secs }),
        SessionLifecycle::OnContainerExit { max_alive_secs } => json!({ "maxAlivePeriodInSeconds": max_alive_secs }),
    };
    let mut value = json!({
        "poolManagementType": "Dynamic",
        "containerType": pool.container.as_arm(),
        "scaleConfiguration": {
            "maxConcurrentSessions": pool.sessions_max,
            "readySessionInstances": pool.sessions_ready,
        },
        "dynamicPoolConfiguration": { "lifecycleConfiguration": lifecycle },
        "sessionNetworkConfiguration": { "status": pool.egress.as_arm() },
    });
    value["dynamicPoolConfiguration"]["lifecycleConfiguration"]["lifecycleType"] = json!(pool.lifecycle.as_arm());
    if let Some(environment) = &pool.environment {
        value["environmentId"] = json!(environment.as_str());
    }
    if pool.container == SessionContainer::Custom {
        let template = render_template(&pool.template);
        value["customContainerTemplate"] = json!({
            "containers": template["containers"],
            "ingress": { "targetPort": pool.target_port },
        });
    }
    value
}

/// `fetchMCPServerCredentials`.
#[must_use]
pub fn render_credentials(key: &str) -> Value {
    json!({ "apiKey": key })
}

/// What of a stored document has no effect, in words.
fn warnings(doc: &Value) -> Vec<String> {
    let root = Node::root(doc);
    let properties = root.get("properties");
    let mut all = Vec::new();
    let mut say = |text: &str| all.push(text.to_owned());
    if root.get("identity").get("type").text().is_some_and(|kind| !kind.eq_ignore_ascii_case("None")) {
        say(
            "identity: ids are made and can be given roles, but sessions get no tokens yet; IDENTITY_ENDPOINT is not set in their containers.",
        );
    }
    if properties.get("customContainerTemplate").get("registryCredentials").get("identity").exists() {
        say(
            "registryCredentials.identity has no effect yet: images are pulled without a login; give username and passwordSecretRef where one is needed.",
        );
    }
    if !properties.get("managedIdentitySettings").items().is_empty() {
        say("managedIdentitySettings have no effect yet: sessions get no tokens.");
    }
    let is_custom =
        properties.get("containerType").text().is_some_and(|kind| kind.eq_ignore_ascii_case("CustomContainer"));
    if is_custom && properties.get("mcpServerSettings").get("isMCPServerEnabled").flag() == Some(true) {
        say(
            "mcpServerSettings: a pool of custom containers has no MCP server, as in Azure; the key of fetchMCPServerCredentials opens the API for programs of E2B.",
        );
    }
    all
}
