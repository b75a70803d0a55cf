//! What a deployment did, resource by resource, and the state that clients poll.

use cove_arm::{ArmError, list as page};
use cove_store::{OperationStatus, Provisioning};
use serde_json::{Value, json};

use super::{
    place::Place,
    record::{Operation, Record},
};
use crate::{
    answer::{self, Answer, Refusal},
    call::Call,
    control_plane::ControlPlane,
    links,
};

struct Found {
    place: Place,
    correlation: String,
    operations: Vec<Operation>,
}

/// Of one that runs from its run, of one that has ended from its record.
fn find(plane: &ControlPlane, call: &Call) -> Result<Found, Refusal> {
    let place = Place::of(plane, call)?;
    let live = plane.runs().of(&place.id).map(|run| run.operations());
    let row = place.require(plane)?;
    let record = Record::of(&row)?;
    let operations = live.filter(|_| row.provisioning == Provisioning::InProgress).unwrap_or(record.operations);
    Ok(Found { place, correlation: record.correlation, operations })
}

pub(crate) async fn list(plane: ControlPlane, call: Call) -> Answer {
    let found = find(&plane, &call)?;
    let now = plane.clock().now();
    let values = found.operations.iter().map(|one| one.render(&found.place.id, &found.correlation, now));
    Ok(answer::json(200, &page::render(values.collect(), None)))
}

pub(crate) async fn get(plane: ControlPlane, call: Call) -> Answer {
    let found = find(&plane, &call)?;
    let wanted = call.name("operation");
    let one = found.operations.iter().find(|one| one.id.eq_ignore_ascii_case(wanted)).ok_or_else(|| {
        let shown: String = wanted.chars().take(64).collect();
        let message = format!("Deployment '{}' has no operation '{shown}'.", found.place.id.name());
        ArmError::new(404, "DeploymentOperationNotFound", message)
    })?;
    Ok(answer::json(200, &one.render(&found.place.id, &found.correlation, plane.clock().now())))
}

/// `Azure-AsyncOperation` of a deployment: its own state, with the whole error.
pub(crate) async fn status(plane: ControlPlane, call: Call) -> Answer {
    let place = Place::of(&plane, &call)?;
    let wanted = call.name("operation").to_ascii_lowercase();
    let unknown = || ArmError::operation_not_found(&wanted.chars().take(64).collect::<String>());
    let row = plane.store().operation(&wanted)?.filter(|row| row.resource == place.id).ok_or_else(unknown)?;
    let deployment = plane.store().resource(&place.id)?;
    let record = deployment.as_ref().map(Record::of).transpose()?.filter(|record| record.operation == row.id);
    let state = match row.status {
        OperationStatus::InProgress => "Running",
        ended @ (OperationStatus::Succeeded | OperationStatus::Failed | OperationStatus::Canceled) => ended.as_arm(),
    };
    let mut body = json!({ "id": call.path.trim_end_matches('/'), "name": row.id, "status": state });
    if matches!(row.status, OperationStatus::Failed | OperationStatus::Canceled) {
        let told = row.failure.map(|failure| json!({ "code": failure.code, "message": failure.message }));
        body["error"] = record.and_then(|record| record.error).or(told).unwrap_or(Value::Null);
    }
    Ok(links::with_retry_after(&plane, answer::json(200, &body)))
}
