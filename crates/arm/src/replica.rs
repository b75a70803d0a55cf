//! `containerApps/revisions/replicas`.

use cove_model::{ContainerObservation, ContainerState, ReplicaObservation, ReplicaPhase, ResourceId};
use serde_json::{Value, json};

/// A replica as Azure shows it.
///
/// `app` is the app's id and `origin` the origin of the request (`https://localhost:8443`), on which log and exec
/// endpoints are given: clients send their token only there.
#[must_use]
pub fn render(app: &ResourceId, replica: &ReplicaObservation, origin: &str) -> Value {
    let base = format!(
        "{origin}/subscriptions/{}/resourceGroups/{}/containerApps/{}/revisions/{}/replicas/{}/containers",
        app.subscription(),
        app.group_name(),
        app.name(),
        replica.revision.name,
        replica.name
    );
    let of = |init: bool| -> Vec<Value> {
        let wanted = replica.containers.iter().filter(|container| container.is_init == init);
        wanted.map(|container| render_container(container, replica, &base)).collect()
    };
    let (state, details) = running_state(replica);
    json!({
        "id": format!("{}/revisions/{}/replicas/{}", app.as_str(), replica.revision.name, replica.name),
        "name": replica.name.as_str(),
        "type": "Microsoft.App/containerApps/revisions/replicas",
        "properties": {
            "createdTime": replica.started_at.unwrap_or(replica.created_at).to_string(),
            "runningState": state,
            "runningStateDetails": details,
            "containers": of(false),
            "initContainers": of(true),
        },
    })
}

fn render_container(container: &ContainerObservation, replica: &ReplicaObservation, base: &str) -> Value {
    let (state, details) = match &container.state {
        ContainerState::Waiting { reason, .. } => ("Waiting", reason.clone()),
        ContainerState::Running { .. } => ("Running", String::new()),
        ContainerState::Terminated => ("Terminated", String::new()),
    };
    let details = match &container.last_exit {
        Some(exit) => {
            let separator = if details.is_empty() { "" } else { "; " };
            let message = exit.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
            format!("{details}{separator}last exit {} with code {}{message}", exit.reason, exit.code)
        }
        None => details,
    };
    json!({
        "name": container.name,
        "containerId": format!("cove://{}/{}", replica.name, container.name),
        "ready": container.is_ready,
        "started": container.is_started,
        "restartCount": container.restarts,
        "runningState": state,
        "runningStateDetails": details,
        "logStreamEndpoint": format!("{base}/{}/logstream", container.name),
        "execEndpoint": format!("{base}/{}/exec", container.name),
        "debugEndpoint": format!("{base}/{}/debug", container.name),
    })
}

fn running_state(replica: &ReplicaObservation) -> (&'static str, String) {
    match replica.phase {
        ReplicaPhase::Running if replica.is_ready => ("Running", String::new()),
        ReplicaPhase::Running => ("NotRunning", "Not ready yet".to_owned()),
        ReplicaPhase::Preparing => ("NotRunning", "Being prepared".to_owned()),
        ReplicaPhase::Prepared => ("NotRunning", "Prepared, not started".to_owned()),
        ReplicaPhase::Frozen => ("NotRunning", "Frozen; the next request thaws it".to_owned()),
        ReplicaPhase::Stopping => ("NotRunning", "Stopping".to_owned()),
        ReplicaPhase::Stopped => ("NotRunning", "Stopped".to_owned()),
        ReplicaPhase::Failed => ("NotRunning", "Failed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use cove_model::{ContainerExit, ReplicaName, RevisionKey, RevisionName};
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_replica_says_where_its_logs_are_and_how_it_ended_last() {
        let app = ResourceId::resource("s1", "MyRG", "Microsoft.App/containerApps", "web").unwrap();
        let at = Timestamp::from_second(0).unwrap();
        let container = ContainerObservation {
            name: "web".to_owned(),
            is_init: false,
            state: ContainerState::Waiting { reason: "CrashLoopBackOff".to_owned(), until: None },
            is_ready: false,
            is_started: true,
            restarts: 3,
            last_exit: Some(ContainerExit { code: 137, reason: "OOMKilled".to_owned(), message: None, at }),
        };
        let replica = ReplicaObservation {
            name: ReplicaName::new("web--1-abc").unwrap(),
            revision: RevisionKey { app: app.clone(), name: RevisionName::new("web--1").unwrap() },
            restart_generation: 0,
            phase: ReplicaPhase::Running,
            is_ready: false,
            address: None,
            containers: vec![container],
            created_at: at,
            started_at: None,
            ready_at: None,
        };
        let shown = render(&app, &replica, "https://h");
        let container = &shown["properties"]["containers"][0];
        assert_eq!(container["runningStateDetails"], "CrashLoopBackOff; last exit OOMKilled with code 137");
        assert_eq!(
            container["logStreamEndpoint"],
            "https://h/subscriptions/s1/resourceGroups/MyRG/containerApps/web/revisions/web--1/replicas/web--1-abc/containers/web/logstream"
        );
        assert_eq!(shown["properties"]["initContainers"], json!([]));
    }
}
