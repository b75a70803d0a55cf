//! `containerApps/revisions`.

use cove_model::{Revision, RevisionStatus};
use serde_json::{Value, json};

/// A revision with what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct RevisionView<'a> {
    /// The revision.
    pub revision: &'a Revision,
    /// What the controller wrote last.
    pub status: &'a RevisionStatus,
    /// The environment's domain, for the revision's own host name.
    pub default_domain: &'a str,
    /// Labels that point to it.
    pub labels: &'a [String],
    /// When a request reached it last, if known.
    pub last_active_at: Option<jiff::Timestamp>,
}

/// A revision as Azure shows it.
#[must_use]
pub fn render(view: &RevisionView<'_>) -> Value {
    let RevisionView { revision, status, .. } = view;
    let mut properties = json!({
        "active": revision.is_active,
        "createdTime": revision.created_at.to_string(),
        "trafficWeight": status.traffic_weight,
        "healthState": status.health.as_arm(),
        "provisioningState": status.provisioning.as_arm(),
        "runningState": status.running.as_arm(),
        "replicas": status.replicas,
        "template": crate::container_app::render_template(&revision.template),
    });
    if let Some(last_active_at) = view.last_active_at {
        properties["lastActiveTime"] = json!(last_active_at.to_string());
    }
    if let Some(message) = &status.message {
        properties["runningStateDetails"] = json!(message);
        if status.provisioning == cove_model::RevisionProvisioning::Failed {
            properties["provisioningError"] = json!(message);
        }
    }
    if let Some(ingress) = &revision.ingress {
        let host = crate::container_app::host(revision.name.as_str(), ingress.external, view.default_domain);
        properties["fqdn"] = json!(host);
    }
    if !view.labels.is_empty() {
        properties["labels"] = json!(view.labels);
    }
    json!({
        "id": format!("{}/revisions/{}", revision.app.as_str(), revision.name),
        "name": revision.name.as_str(),
        "type": "Microsoft.App/containerApps/revisions",
        "properties": properties,
    })
}
