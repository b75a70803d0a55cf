//! Replicas of a revision, as the controller last wrote them down. Prepared slots are no replicas yet.

use cove_arm::{ArmError, list, replica};
use cove_model::{ReplicaObservation, ReplicaPhase};
use http::Method;

use crate::{
    answer::{self, Answer, Refusal},
    apps::{self, APP},
    call::Call,
    control_plane::ControlPlane,
    revisions,
    route::Route,
};

pub(crate) fn routes() -> Vec<Route> {
    let all = format!("{APP}/revisions/{{revision}}/replicas");
    vec![Route::arm(Method::GET, all.as_str(), list_all), Route::arm(Method::GET, format!("{all}/{{replica}}"), get)]
}

/// Whether users see it: it was started and is not gone.
fn is_shown(replica: &ReplicaObservation) -> bool {
    match replica.phase {
        ReplicaPhase::Preparing => replica.started_at.is_some(),
        ReplicaPhase::Running | ReplicaPhase::Frozen | ReplicaPhase::Stopping => true,
        ReplicaPhase::Prepared | ReplicaPhase::Stopped | ReplicaPhase::Failed => false,
    }
}

/// The replicas of the revision in the path, newest first.
pub(crate) fn of_path(plane: &ControlPlane, call: &Call) -> Result<Vec<ReplicaObservation>, Refusal> {
    let app = apps::require(plane, call)?;
    let revision = revisions::require(plane, call, &app)?;
    let mut replicas = plane.store().replicas(&revision.revision.key())?;
    replicas.retain(is_shown);
    replicas.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.name.cmp(&b.name)));
    Ok(replicas)
}

async fn list_all(plane: ControlPlane, call: Call) -> Answer {
    let app = apps::require(&plane, &call)?;
    let replicas = of_path(&plane, &call)?;
    let values = replicas.iter().map(|found| replica::render(&app.id, found, &call.origin));
    Ok(answer::json(200, &list::render(values.collect(), None)))
}

async fn get(plane: ControlPlane, call: Call) -> Answer {
    let app = apps::require(&plane, &call)?;
    let name = call.name("replica");
    let replicas = of_path(&plane, &call)?;
    let found = replicas.iter().find(|found| found.name.as_str().eq_ignore_ascii_case(name)).ok_or_else(|| {
        let shown: String = name.chars().take(100).collect();
        ArmError::replica_not_found(call.name("revision"), &shown)
    })?;
    Ok(answer::json(200, &replica::render(&app.id, found, &call.origin)))
}
