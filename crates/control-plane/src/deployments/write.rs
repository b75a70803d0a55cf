//! Writes of deployments: begin one, end it, cancel it, delete its record.
//!
//! **Invariant:** one deployment of a name runs at a time.
//! **Invariant:** the end of a deployment is written on the generation of its begin, or not at all: a group that was
//! deleted meanwhile is not brought back.

use std::collections::BTreeMap;

use super::{
    HISTORY_MAX, KIND,
    agent::Agent,
    execute::{Outcome, Work},
    place::Place,
    record::{Record, TEMPLATE, state_of},
    rehearse,
    request::Request,
};
use crate::{
    answer::{self, Answer, Refusal},
    call::Call,
    control_plane::{ControlPlane, new_id},
    links,
};
use cove_arm::ArmError;
use cove_store::{Expect, Failure, NewOperation, Provisioning, PutResource, ResourceRow, SecretsChange, StoreError};

/// Begins a deployment: 201, or 200 for a name that was used before; clients poll `Azure-AsyncOperation`.
pub(crate) async fn put(plane: ControlPlane, call: Call) -> Answer {
    let place = Place::to_deploy(&plane, &call)?;
    refuse_active(&plane, &place)?;
    let request = Request::read(&plane, &call, &place).await?;
    let agent = Agent::of(&plane, &call);
    // a module was checked together with the template that holds it
    if request.is_checked_by_providers && !call.is_own {
        rehearse::check(&agent, &place, &request).await?;
    }
    let structure = plane.structure().await;
    let old = refuse_active(&plane, &place)?;
    if let Some(old) = &old {
        check_location(old, &request)?;
    } else {
        trim_history(&plane, &place).await?;
    }
    let operation = NewOperation { id: new_id(), kind: "deploy".into() };
    let link = operation.id.clone();
    let record = Record::begin(&request, &agent.correlation, &operation.id, plane.clock().now());
    let put = PutResource {
        id: place.id.clone(),
        doc: record.doc()?,
        spec: None,
        secrets: SecretsChange::Replace(BTreeMap::from([(TEMPLATE.to_owned(), Some(request.text.to_string()))])),
        provisioning: Provisioning::InProgress,
        operation: Some(operation),
        revision: None,
        expect: old.as_ref().map_or(Expect::Absent, |old| Expect::Generation(old.generation)),
        now: plane.clock().now(),
    };
    let row = plane.store().put(put).await?;
    let run = plane.runs().start(&row.id);
    drop(structure);
    let body = record.render(&row.id, "Accepted", plane.clock().now());
    let id = row.id.clone();
    tokio::spawn(carry_out(Work { agent, place, request, run }, row, record));
    let response = answer::json(if old.is_some() { 200 } else { 201 }, &body);
    let version = links::encode(call.api_version());
    let url = format!("{}{id}/operationStatuses/{link}?api-version={version}", call.origin);
    Ok(links::with_retry_after(&plane, answer::with_header(response, "azure-asyncoperation", &url)))
}

/// Runs a deployment to its end and writes that; a panic on the way is an end too.
async fn carry_out(work: Work, row: ResourceRow, mut record: Record) {
    let (plane, run) = (work.agent.plane.clone(), std::sync::Arc::clone(&work.run));
    let correlation = record.correlation.clone();
    let outcome = match tokio::spawn(async move { work.run().await }).await {
        Ok(outcome) => outcome,
        Err(join) => {
            tracing::error!(deployment = %row.id, is_panic = join.is_panic(), "a deployment ended early");
            Outcome::failed(ArmError::internal(&correlation))
        }
    };
    if outcome.is_cut_off {
        // the next start ends it and says which resources exist
        return;
    }
    record.operations = run.operations();
    record.outputs = outcome.outputs;
    record.output_resources = outcome.output_resources;
    record.error = outcome.error.as_ref().map(ArmError::inner_json);
    let failure = outcome.error.map(|error| (error.code, error.message));
    let state = match (&failure, outcome.is_canceled) {
        (_, true) => Provisioning::Canceled,
        (Some(_), false) => Provisioning::Failed,
        (None, false) => Provisioning::Succeeded,
    };
    if let Err(error) = end(&plane, &row, record, state, failure).await {
        tracing::error!(deployment = %row.id, %error, "the end of a deployment could not be written");
    }
    plane.runs().end(&row.id, &run);
}

/// Writes the end of a deployment and ends the operation that clients poll.
///
/// # Errors
/// When the store fails. A record that is gone or newer is no error.
pub(crate) async fn end(
    plane: &ControlPlane,
    row: &ResourceRow,
    mut record: Record,
    state: Provisioning,
    failure: Option<(String, String)>,
) -> Result<(), StoreError> {
    let now = plane.clock().now();
    record.ended_at = Some(now);
    let put = PutResource {
        id: row.id.clone(),
        doc: serde_json::to_value(&record)?,
        spec: None,
        secrets: SecretsChange::Keep,
        provisioning: state,
        operation: None,
        revision: None,
        expect: Expect::Generation(row.generation),
        now,
    };
    let row = match plane.store().put(put).await {
        Ok(row) => row,
        Err(StoreError::Conflict { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    if state == Provisioning::Canceled {
        return plane.store().cancel(row.id, row.generation, now).await;
    }
    let failure = failure.map(|(code, message)| Failure { code, message });
    plane.store().finish(row.id.clone(), row.generation, failure, now).await?;
    // the state was right already, so nobody was told that the operation has ended
    plane.store().touch(&row.id);
    Ok(())
}

fn refuse_active(plane: &ControlPlane, place: &Place) -> Result<Option<ResourceRow>, Refusal> {
    let old = plane.store().resource(&place.id)?;
    match &old {
        Some(old) if old.provisioning == Provisioning::InProgress => {
            let message = format!(
                "Unable to edit or replace deployment '{}': the previous deployment from '{}' is still active. Wait for its \
                 end, cancel it, or use another name.",
                old.id.name(),
                old.updated_at
            );
            Err(ArmError::conflict("DeploymentActive", message).into())
        }
        Some(_) | None => Ok(old),
    }
}

fn check_location(old: &ResourceRow, request: &Request) -> Result<(), Refusal> {
    let (old, new) = (Record::of(old)?.location, &request.location);
    let key = |location: &Option<String>| location.as_deref().map(cove_arm::provider::location_key);
    if key(&old) == key(new) || old.is_none() {
        return Ok(());
    }
    let message = format!(
        "Invalid deployment location '{}'. The deployment already exists in location '{}'; use that or another name.",
        new.as_deref().unwrap_or(""),
        old.as_deref().unwrap_or("")
    );
    Err(ArmError::conflict("InvalidDeploymentLocation", message).at("location").into())
}

/// Makes room for one more: the oldest that has ended goes, as ARM does it.
async fn trim_history(plane: &ControlPlane, place: &Place) -> Result<(), Refusal> {
    let mut rows = super::read::of_scope(plane, place)?;
    if rows.len() < HISTORY_MAX {
        return Ok(());
    }
    rows.sort_by_key(|row| row.updated_at);
    match rows.iter().find(|row| row.provisioning != Provisioning::InProgress) {
        Some(oldest) => {
            plane.store().remove(oldest.id.clone(), plane.clock().now()).await?;
            Ok(())
        }
        None => {
            let message = format!("'{}' has {HISTORY_MAX} deployments, all of them active.", place.scope);
            Err(ArmError::conflict("DeploymentQuotaExceeded", message).into())
        }
    }
}

/// Deletes the record; what it deployed stays.
pub(crate) async fn delete(plane: ControlPlane, call: Call) -> Answer {
    let place = Place::of(&plane, &call)?;
    let _structure = plane.structure().await;
    let Some(row) = refuse_active(&plane, &place)? else { return Ok(answer::empty(204)) };
    plane.store().remove(row.id, plane.clock().now()).await?;
    Ok(answer::empty(204))
}

/// No new resource is begun; those that were begun end as they end.
pub(crate) async fn cancel(plane: ControlPlane, call: Call) -> Answer {
    let place = Place::of(&plane, &call)?;
    let row = place.require(&plane)?;
    let Some(run) = plane.runs().of(&row.id).filter(|_| row.provisioning == Provisioning::InProgress) else {
        let message = format!(
            "The deployment '{}' cannot be cancelled because it has ended already; its state is '{}'.",
            row.id.name(),
            state_of(&row)
        );
        return Err(ArmError::conflict("DeploymentCannotBeCancelled", message).into());
    };
    run.cancel.cancel();
    for planned in Record::of(&row)?.planned.iter().filter(|planned| planned.kind.eq_ignore_ascii_case(KIND)) {
        if let Some(module) = cove_model::ResourceId::parse(&planned.id).ok().and_then(|id| plane.runs().of(&id)) {
            module.cancel.cancel();
        }
    }
    Ok(answer::empty(204))
}
