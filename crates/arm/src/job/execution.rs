//! Executions and their replicas, as Azure shows them.

use cove_model::{ContainerState, Execution, ExecutionReplica, ReplicaObservation, ReplicaPhase};
use serde_json::{Value, json};

use crate::container_app::render_template;

/// Azure's type of an execution.
const KIND: &str = "Microsoft.App/jobs/executions";

/// An execution as Azure shows it; `observed` are those of its replicas that are there now.
#[must_use]
pub fn render_execution(execution: &Execution, observed: &[ReplicaObservation]) -> Value {
    let shown = render_template(&execution.template);
    let mut template = json!({ "containers": shown["containers"] });
    template["initContainers"] = shown.get("initContainers").cloned().unwrap_or_else(|| json!([]));
    let replicas = execution.replicas.iter().map(|replica| {
        let seen = observed.iter().find(|seen| seen.name == replica.name);
        json!({ "name": replica.name.as_str(), "containers": container_statuses(execution, replica, seen) })
    });
    let mut properties = json!({
        "status": execution.status.as_arm(),
        "startTime": execution.started_at.unwrap_or(execution.created_at).to_string(),
        "template": template,
        "detailedStatus": { "replicas": replicas.collect::<Vec<_>>() },
        "coveCreatedTime": execution.created_at.to_string(),
        "coveSucceeded": execution.succeeded,
        "coveFailed": execution.failed,
    });
    if let Some(ended) = execution.ended_at {
        properties["endTime"] = json!(ended.to_string());
    }
    if let Some(reason) = &execution.reason {
        properties["reason"] = json!(reason);
    }
    if let Some(message) = &execution.message {
        properties["message"] = json!(message);
    }
    json!({
        "id": id(execution),
        "name": execution.name.as_str(),
        "type": KIND,
        "properties": properties,
    })
}

fn id(execution: &Execution) -> String {
    format!("{}/executions/{}", execution.job.as_str(), execution.name)
}

/// What `stop` answers: the executions that it stops.
#[must_use]
pub fn render_stopped(executions: &[Execution]) -> Value {
    let item = |execution: &Execution| json!({ "id": id(execution), "name": execution.name.as_str() });
    json!({ "value": executions.iter().map(item).collect::<Vec<_>>() })
}

/// Containers of a replica: as seen while it is there, else as the execution remembers the replica's end.
fn container_statuses(
    execution: &Execution,
    replica: &ExecutionReplica,
    seen: Option<&ReplicaObservation>,
) -> Vec<Value> {
    if let Some(seen) = seen.filter(|seen| !seen.containers.is_empty() && replica.ended_at.is_none()) {
        return seen
            .containers
            .iter()
            .map(|container| {
                let status = match (&container.state, &container.last_exit) {
                    (ContainerState::Running { .. }, _) => "Running",
                    (_, Some(_)) => "Terminated",
                    _ => "Waiting",
                };
                let exit = container.last_exit.as_ref();
                json!({
                    "name": container.name,
                    "status": status,
                    "code": exit.map(|exit| exit.code),
                    "additionalInformation": exit.map(|exit| exit.reason.clone()).unwrap_or_default(),
                })
            })
            .collect();
    }
    let status = match (replica.started_at, replica.ended_at) {
        (_, Some(_)) => "Terminated",
        (Some(_), None) => "Running",
        (None, None) => "Waiting",
    };
    let of = |container: &cove_model::Container| {
        json!({
            "name": container.name,
            "status": status,
            "code": replica.exit_code,
            "additionalInformation": replica.reason.clone().unwrap_or_default(),
        })
    };
    execution.template.containers.iter().map(of).collect()
}

/// A replica of an execution, with the endpoints of its logs on the origin of the request. A replica that is gone keeps
/// its entry: its lines can still be read.
#[must_use]
pub fn render_replica(
    execution: &Execution,
    replica: &ExecutionReplica,
    seen: Option<&ReplicaObservation>,
    origin: &str,
) -> Value {
    let job = &execution.job;
    let base = format!(
        "{origin}/subscriptions/{}/resourceGroups/{}/jobs/{}/executions/{}/replicas/{}/containers",
        job.subscription(),
        job.group_name(),
        job.name(),
        execution.name,
        replica.name
    );
    let render = |container: &cove_model::Container| {
        let seen = seen.and_then(|seen| seen.containers.iter().find(|seen| seen.name == container.name));
        let (state, details) = container_state(replica, seen);
        json!({
            "name": container.name,
            "containerId": format!("cove://{}/{}", replica.name, container.name),
            "ready": seen.is_some_and(|seen| seen.is_ready),
            "started": seen.map_or_else(|| replica.started_at.is_some(), |seen| seen.is_started),
            "restartCount": seen.map_or(0, |seen| seen.restarts),
            "runningState": state,
            "runningStateDetails": details,
            "logStreamEndpoint": format!("{base}/{}/logstream", container.name),
        })
    };
    let is_running = seen.is_some_and(|seen| seen.phase == ReplicaPhase::Running);
    let created = replica.started_at.or_else(|| seen.map(|seen| seen.created_at)).unwrap_or(execution.created_at);
    let containers: Vec<Value> = execution.template.containers.iter().map(render).collect();
    let inits: Vec<Value> = execution.template.init_containers.iter().map(render).collect();
    json!({
        "id": format!("{}/replicas/{}", id(execution), replica.name),
        "name": replica.name.as_str(),
        "type": "Microsoft.App/jobs/executions/replicas",
        "containers": containers,
        "initContainers": inits,
        "properties": {
            "createdTime": created.to_string(),
            "runningState": if is_running { "Running" } else { "NotRunning" },
            "runningStateDetails": replica.reason.clone().unwrap_or_default(),
            "containers": containers,
            "initContainers": inits,
            "coveIndex": replica.index,
            "coveExitCode": replica.exit_code,
        },
    })
}

fn container_state(
    replica: &ExecutionReplica,
    seen: Option<&cove_model::ContainerObservation>,
) -> (&'static str, String) {
    let exit = seen.and_then(|seen| seen.last_exit.as_ref());
    let details = match (exit, replica.exit_code) {
        (Some(exit), _) => format!("{} with code {}", exit.reason, exit.code),
        (None, Some(code)) => format!("{} with code {code}", replica.reason.as_deref().unwrap_or("ended")),
        (None, None) => replica.reason.clone().unwrap_or_default(),
    };
    match seen.map(|seen| &seen.state) {
        Some(ContainerState::Running { .. }) => ("Running", details),
        Some(ContainerState::Waiting { reason, .. }) if exit.is_none() => ("Waiting", reason.clone()),
        Some(_) => ("Terminated", details),
        None if replica.ended_at.is_some() => ("Terminated", details),
        None if replica.started_at.is_some() => ("Running", details),
        None => ("Waiting", details),
    }
}
