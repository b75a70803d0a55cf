//! What is kept of a deployment, and how ARM shows it.
//!
//! **Invariant:** no secure value is in a record; the template's text is not in it either, it is kept with the secrets.

use std::collections::{BTreeMap, BTreeSet};

use cove_arm::ArmError;
use cove_model::ResourceId;
use cove_store::{Provisioning, ResourceRow};
use cove_template::{Plan, PlannedResource};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    KIND,
    request::{Mode, Request},
};
use crate::answer::Refusal;

/// Name of the secret that keeps the template's text.
pub(crate) const TEMPLATE: &str = "template";

/// The document of a stored deployment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) location: Option<String>,
    pub(crate) tags: Option<Value>,
    pub(crate) mode: Mode,
    pub(crate) hash: String,
    pub(crate) parameters: Value,
    pub(crate) correlation: String,
    /// The operation that clients poll.
    pub(crate) operation: String,
    pub(crate) started_at: Timestamp,
    /// Set when it has ended.
    pub(crate) ended_at: Option<Timestamp>,
    /// What it means to write, known from the start.
    pub(crate) planned: Vec<Planned>,
    /// `properties.dependencies`.
    pub(crate) dependencies: Value,
    pub(crate) outputs: Value,
    /// Ids of what it wrote, modules' resources included.
    pub(crate) output_resources: Vec<String>,
    /// What stands inside `error`.
    pub(crate) error: Option<Value>,
    pub(crate) operations: Vec<Operation>,
}

/// A resource that a deployment means to write.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Planned {
    pub(crate) path: String,
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    /// Where it is known before anything runs.
    #[serde(default)]
    pub(crate) location: Option<String>,
}

impl Planned {
    /// For sentences.
    pub(crate) fn shown(&self) -> String {
        format!("'{}' ({})", self.name, self.kind)
    }
}

/// One entry of `…/operations`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Operation {
    pub(crate) id: String,
    /// `Create`, `Delete`, `EvaluateDeploymentOutput`.
    pub(crate) what: String,
    /// ARM's `provisioningState`.
    pub(crate) state: String,
    /// Id, type and name of the resource; none for the evaluation of outputs.
    pub(crate) target: Option<Planned>,
    pub(crate) started_at: Timestamp,
    pub(crate) ended_at: Option<Timestamp>,
    /// HTTP status of the request.
    pub(crate) status: u16,
    /// What stands inside `error`.
    pub(crate) error: Option<Value>,
}

impl Record {
    /// A deployment that begins.
    pub(crate) fn begin(request: &Request, correlation: &str, operation: &str, now: Timestamp) -> Self {
        let written = request.plan.resources.iter().filter(|planned| planned.condition && !planned.existing);
        Self {
            location: request.location.clone(),
            tags: request.tags.clone(),
            mode: request.mode,
            hash: request.hash.clone(),
            parameters: request.parameters.clone(),
            correlation: correlation.to_owned(),
            operation: operation.to_owned(),
            started_at: now,
            ended_at: None,
            planned: written.map(Planned::of).collect(),
            dependencies: dependencies(&request.plan),
            outputs: json!({}),
            output_resources: Vec::new(),
            error: None,
            operations: Vec::new(),
        }
    }

    /// The record of a row.
    ///
    /// # Errors
    /// When it is damaged.
    pub(crate) fn of(row: &ResourceRow) -> Result<Self, Refusal> {
        serde_json::from_value(row.doc.clone())
            .map_err(|error| Refusal::Broken(format!("stored deployment `{}`: {error}", row.id)))
    }

    /// The document to store.
    pub(crate) fn doc(&self) -> Result<Value, Refusal> {
        serde_json::to_value(self).map_err(|error| Refusal::Broken(format!("a deployment cannot be stored: {error}")))
    }

    /// The deployment as ARM shows it; `state` is its `provisioningState`.
    pub(crate) fn render(&self, id: &ResourceId, state: &str, now: Timestamp) -> Value {
        let ended_at = self.ended_at.unwrap_or(now);
        let mut properties = json!({
            "templateHash": self.hash,
            "parameters": self.parameters,
            "mode": format!("{:?}", self.mode),
            "provisioningState": state,
            "timestamp": ended_at.to_string(),
            "duration": duration(self.started_at, ended_at),
            "correlationId": self.correlation,
            "providers": self.providers(),
            "dependencies": self.dependencies,
        });
        if self.ended_at.is_some() && self.error.is_none() {
            properties["outputs"] = self.outputs.clone();
            properties["outputResources"] = self.output_resources.iter().map(|id| json!({ "id": id })).collect();
        }
        if let Some(error) = &self.error {
            properties["error"] = error.clone();
        }
        self.envelope(id, properties)
    }

    /// The answer of `validate`.
    pub(crate) fn render_valid(&self, id: &ResourceId) -> Value {
        let validated: Value = self.planned.iter().map(|planned| json!({ "id": planned.id })).collect();
        self.envelope(
            id,
            json!({
                "templateHash": self.hash,
                "parameters": self.parameters,
                "mode": format!("{:?}", self.mode),
                "provisioningState": "Succeeded",
                "timestamp": self.started_at.to_string(),
                "duration": "PT0S",
                "correlationId": self.correlation,
                "providers": self.providers(),
                "dependencies": self.dependencies,
                "validatedResources": validated,
            }),
        )
    }

    fn envelope(&self, id: &ResourceId, properties: Value) -> Value {
        let mut value = json!({ "id": id.as_str(), "name": id.name(), "type": KIND, "properties": properties });
        if let Some(location) = &self.location {
            value["location"] = json!(cove_arm::provider::location_key(location));
        }
        if let Some(tags) = &self.tags {
            value["tags"] = tags.clone();
        }
        value
    }

    /// `properties.providers`: namespaces and types of the template.
    fn providers(&self) -> Value {
        let mut kinds: BTreeMap<&str, BTreeMap<&str, BTreeSet<Option<String>>>> = BTreeMap::new();
        for planned in &self.planned {
            let (namespace, kind) = planned.kind.split_once('/').unwrap_or((&planned.kind, ""));
            let location = planned.location.as_deref().map(cove_arm::provider::location_key);
            kinds.entry(namespace).or_default().entry(kind).or_default().insert(location);
        }
        let provider = |(namespace, kinds): (&str, BTreeMap<&str, BTreeSet<Option<String>>>)| {
            let kinds: Value =
                kinds.iter().map(|(kind, locations)| json!({ "resourceType": kind, "locations": locations })).collect();
            json!({ "namespace": namespace, "resourceTypes": kinds })
        };
        kinds.into_iter().map(provider).collect()
    }
}

impl Planned {
    /// What is kept of a resource of a plan.
    pub(crate) fn of(planned: &PlannedResource) -> Self {
        Self {
            path: planned.path.clone(),
            id: planned.id.clone(),
            kind: planned.kind.clone(),
            name: planned.name.clone(),
            location: planned.location.clone(),
        }
    }
}

/// `properties.dependencies`: who waits for whom.
fn dependencies(plan: &Plan) -> Value {
    let named = |planned: &PlannedResource| json!({ "id": planned.id, "resourceType": planned.kind, "resourceName": planned.name });
    let waiting = plan.resources.iter().filter(|planned| planned.condition && !planned.depends_on.is_empty());
    waiting
        .map(|planned| {
            let mut entry = named(planned);
            let others = planned.depends_on.iter().filter_map(|index| plan.resources.get(*index));
            entry["dependsOn"] = others.map(named).collect();
            entry
        })
        .collect()
}

impl Operation {
    /// One that begins.
    pub(crate) fn begin(what: &str, target: Option<Planned>, now: Timestamp) -> Self {
        Self {
            id: crate::control_plane::new_id(),
            what: what.to_owned(),
            state: "Running".into(),
            target,
            started_at: now,
            ended_at: None,
            status: 202,
            error: None,
        }
    }

    /// The same, ended.
    pub(crate) fn ended(mut self, status: u16, error: Option<&ArmError>, now: Timestamp) -> Self {
        self.state = if error.is_some() { "Failed" } else { "Succeeded" }.into();
        self.status = status;
        self.error = error.map(ArmError::inner_json);
        self.ended_at = Some(now);
        self
    }

    /// As ARM shows it below a deployment.
    pub(crate) fn render(&self, deployment: &ResourceId, correlation: &str, now: Timestamp) -> Value {
        let ended_at = self.ended_at.unwrap_or(now);
        let reason = http::StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        let mut properties = json!({
            "provisioningOperation": self.what,
            "provisioningState": self.state,
            "timestamp": ended_at.to_string(),
            "duration": duration(self.started_at, ended_at),
            "trackingId": correlation,
            "serviceRequestId": self.id,
            "statusCode": reason.unwrap_or("OK").replace(' ', ""),
        });
        if let Some(target) = &self.target {
            properties["targetResource"] =
                json!({ "id": target.id, "resourceType": target.kind, "resourceName": target.name });
        }
        if let Some(error) = &self.error {
            properties["statusMessage"] = json!({ "status": "Failed", "error": error });
        }
        json!({
            "id": format!("{deployment}/operations/{}", self.id),
            "operationId": self.id,
            "properties": properties,
        })
    }
}

/// ARM's spelling of a deployment's state.
pub(crate) fn state_of(row: &ResourceRow) -> &'static str {
    match row.provisioning {
        Provisioning::InProgress => "Running",
        state @ (Provisioning::Succeeded | Provisioning::Failed | Provisioning::Canceled | Provisioning::Deleting) => {
            state.as_arm()
        }
    }
}

/// `PT1M2.5S`.
fn duration(from: Timestamp, to: Timestamp) -> String {
    SignedDuration::max(to.duration_since(from), SignedDuration::ZERO).to_string()
}
