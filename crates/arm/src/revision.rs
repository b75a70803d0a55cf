//! `containerApps/revisions`.

use cove_model::{Revision, RevisionStatus};
use cove_scaling::ScaleDefaults;
use serde_json::{Value, json};

/// A revision with what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct RevisionView<'a> {
    /// The revision.
    pub revision: &'a Revision,
    /// Its template as the user wrote it.
    pub template: &'a Value,
    /// What the controller wrote last.
    pub status: &'a RevisionStatus,
    /// The environment's domain, for the revision's own host name.
    pub default_domain: &'a str,
    /// Labels that point to it.
    pub labels: &'a [String],
    /// When a request reached it last, if known.
    pub last_active_at: Option<jiff::Timestamp>,
    /// What the server gives to apps that set no mode and no constants of the autoscaler.
    pub scale_defaults: &'a ScaleDefaults,
}

/// A revision as Azure shows it.
#[must_use]
pub fn render(view: &RevisionView<'_>) -> Value {
    let RevisionView { revision, status, .. } = view;
    let mut template = crate::container_app::render_stored_template(view.template, &revision.template);
    let has_ingress = revision.ingress.is_some();
    crate::container_app::show_effective(&mut template, &revision.template.scale, has_ingress, view.scale_defaults);
    let mut properties = json!({
        "active": revision.is_active,
        "createdTime": revision.created_at.to_string(),
        "trafficWeight": status.traffic_weight,
        "healthState": status.health.as_arm(),
        "provisioningState": status.provisioning.as_arm(),
        "runningState": status.running.as_arm(),
        "replicas": status.replicas,
        "template": template,
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
    if status.frozen > 0 {
        properties["coveFrozenReplicas"] = json!(status.frozen);
        if status.message.is_none() {
            properties["runningStateDetails"] = json!("Its last replica is frozen; the next request thaws it.");
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cove_model::{ResourceId, RevisionName, RevisionProvisioning, RevisionRunning};
    use jiff::Timestamp;

    use super::*;
    use crate::container_app::{PutContext, parse_put};

    #[test]
    fn a_revision_says_what_it_runs_and_why_it_failed() {
        let id = ResourceId::resource("s1", "MyRG", "Microsoft.App/containerApps", "web").unwrap();
        let environment = "/subscriptions/s1/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/e";
        let body = json!({ "location": "local", "properties": {
            "environmentId": environment,
            "configuration": { "ingress": { "external": false } },
            "template": { "containers": [{ "name": "web", "image": "nginx" }] },
        } });
        let app = parse_put(&body, &PutContext { id: &id, known_secrets: &BTreeSet::new() }).unwrap().app;
        let at = Timestamp::from_second(0).unwrap();
        let revision = Revision {
            name: RevisionName::new("web--v1").unwrap(),
            app: id,
            number: 1,
            template: app.template,
            ingress: app.ingress,
            is_active: true,
            created_at: at,
            activated_at: at,
            restart_generation: 0,
        };
        let status = RevisionStatus {
            provisioning: RevisionProvisioning::Failed,
            running: RevisionRunning::Failed,
            message: Some("the image was not found".to_owned()),
            ..RevisionStatus::default()
        };
        let labels = ["blue".to_owned()];
        let view = RevisionView {
            revision: &revision,
            template: &Value::Null,
            status: &status,
            default_domain: "e.localhost",
            labels: &labels,
            last_active_at: None,
            scale_defaults: &ScaleDefaults::default(),
        };
        let shown = render(&view);
        let properties = &shown["properties"];
        assert_eq!(shown["id"].as_str().unwrap().rsplit('/').next(), Some("web--v1"));
        assert_eq!(properties["fqdn"], "web--v1.internal.e.localhost");
        assert_eq!(properties["provisioningError"], "the image was not found");
        assert_eq!(properties["template"]["containers"][0]["resources"]["cpu"], 0.5);
        assert_eq!(properties["labels"], json!(["blue"]));
        assert!(!shown.to_string().contains("null"));
    }
}
