//! Tells of replicas that circuit breakers leave out, as Azure does: system events of the source `Resiliency`.

use std::sync::Arc;

use cove_ingress::{Ejected, IngressHandle};
use cove_model::{EventKind, SystemEvent};
use cove_traffic::RouteTable;
use tokio::sync::{mpsc, watch};

/// Tells until the ingress ends.
pub(crate) async fn tell(
    ingress: IngressHandle,
    routes: watch::Receiver<Arc<RouteTable>>,
    events: mpsc::Sender<SystemEvent>,
) {
    let Some(mut ejections) = ingress.ejections() else { return };
    drop(ingress);
    while let Some(ejected) = ejections.recv().await {
        let event = event(&ejected, &routes.borrow());
        if events.send(event).await.is_err() {
            return;
        }
    }
}

fn event(ejected: &Ejected, routes: &RouteTable) -> SystemEvent {
    let Ejected { at, revision, replica, errors, span } = ejected;
    let seconds = span.as_secs();
    SystemEvent {
        at: *at,
        kind: EventKind::Warning,
        reason: "ReplicaEjected".to_owned(),
        message: format!("Replica {replica} failed {errors} times in a row; it gets no requests for {seconds} s."),
        environment: routes.environments.get(revision.app.key()).map(ToString::to_string),
        app: Some(revision.app.to_string()),
        revision: Some(revision.name.to_string()),
        replica: Some(replica.to_string()),
        container: None,
        source: "Resiliency".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use cove_model::{ReplicaName, ResourceId, RevisionKey, RevisionName};

    use super::*;

    #[test]
    fn an_ejection_is_a_warning_of_its_app_and_environment() {
        let app = ResourceId::resource("s", "g", "Microsoft.App/containerApps", "web").unwrap();
        let environment = ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", "env").unwrap();
        let mut routes = RouteTable::default();
        routes.environments.insert(app.key(), environment.clone());
        let ejected = Ejected {
            at: jiff::Timestamp::UNIX_EPOCH,
            revision: RevisionKey { app: app.clone(), name: RevisionName::of("web", "v1").unwrap() },
            replica: ReplicaName::new("web--v1-a").unwrap(),
            errors: 5,
            span: std::time::Duration::from_secs(10),
        };
        let event = event(&ejected, &routes);
        assert_eq!((event.app, event.environment), (Some(app.to_string()), Some(environment.to_string())));
        assert_eq!(event.message, "Replica web--v1-a failed 5 times in a row; it gets no requests for 10 s.");
    }
}
