//! PUT and PATCH of a job. Nothing runs for a job itself, so its writes finish inside the request; executions that run keep
//! what they began with.
//!
//! **Invariant:** a write happens on the generation it was computed from, or is computed again.

use std::collections::BTreeSet;

use cove_arm::{
    ArmError,
    container_app::PutContext,
    job::{self, ParsedJob},
};
use cove_model::{Environment, Job, JobTrigger, ResourceId};
use cove_store::{Expect, NewOperation, Provisioning, PutResource, ResourceRow, SecretsChange, StoreError};
use serde_json::Value;

use crate::{
    answer::{self, Answer, Refusal, with_etag},
    app_events, app_refs,
    call::Call,
    control_plane::{ControlPlane, new_id},
    environments,
    groups::{self, TRIES_MAX, check_same_location},
    jobs::{self, KIND},
    links::{self, Family},
    workspaces::{child_of, stamped},
};

/// A new job is 201 with the operation that clients want to poll, done already; a changed one is 200.
pub(crate) async fn put(plane: ControlPlane, call: Call) -> Answer {
    let body = call.object()?;
    let write = Write { plane: &plane, call: &call, body: &body, is_patch: false };
    let (row, operation, is_new) = write.run().await?;
    let body = jobs::render(&plane, &call, &row)?;
    if !is_new {
        return Ok(with_etag(answer::json(200, &body), &row.etag));
    }
    let response = with_etag(answer::json(201, &body), &row.etag);
    Ok(links::with_status(&plane, &call, Family::Job, &operation, response))
}

/// 200 with the changed job.
pub(crate) async fn patch(plane: ControlPlane, call: Call) -> Answer {
    let body = call.object()?;
    let write = Write { plane: &plane, call: &call, body: &body, is_patch: true };
    let (row, ..) = write.run().await?;
    Ok(with_etag(answer::json(200, &jobs::render(&plane, &call, &row)?), &row.etag))
}

struct Write<'a> {
    plane: &'a ControlPlane,
    call: &'a Call,
    body: &'a Value,
    is_patch: bool,
}

impl Write<'_> {
    async fn run(&self) -> Result<(ResourceRow, String, bool), Refusal> {
        let plane = self.plane;
        let group = groups::require_writable(plane, self.call)?;
        let id = child_of(&group, KIND, self.call.name("job"))?;
        for _ in 0..TRIES_MAX {
            let mut old = plane.store().resource(&id)?;
            // making a job refers to its group and environment: nobody may take those away meanwhile
            let mut structure = None;
            if old.is_none() {
                structure = Some(plane.structure().await);
                groups::require_writable(plane, self.call)?;
                old = plane.store().resource(&id)?;
            }
            let parsed = self.check(old.as_ref().map_or(&id, |old| &old.id), old.as_ref())?;
            let saved = self.save(old.as_ref().map_or(&id, |old| &old.id), old.as_ref(), parsed).await;
            drop(structure);
            match saved {
                Ok((row, operation)) => {
                    tell_warnings(plane, self.call, &row)?;
                    return Ok((row, operation, old.is_none()));
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict { id }.into())
    }

    fn check(&self, id: &ResourceId, old: Option<&ResourceRow>) -> Result<ParsedJob, Refusal> {
        let plane = self.plane;
        self.call.precondition().check(id.as_str(), old)?;
        if old.is_some_and(|old| old.provisioning == Provisioning::Deleting) {
            return Err(ArmError::operation_in_progress(id.as_str()).into());
        }
        let known_secrets: BTreeSet<String> = plane.store().secrets(id)?.into_keys().collect();
        let context = PutContext { id, known_secrets: &known_secrets };
        let mut parsed = match (self.is_patch, old) {
            (true, Some(old)) => job::parse_patch(&old.doc, self.body, &context)?,
            (true, None) => return Err(ArmError::resource_not_found(KIND, id.name(), id.group_name()).into()),
            (false, _) => job::parse_put(self.body, &context)?,
        };
        if let Some(old) = old {
            check_same_location(&old.doc, &parsed.doc)?;
            let old = jobs::model(old)?;
            if old.environment != parsed.job.environment {
                let message = "A job cannot move to another environment; delete it and create it there.";
                return Err(ArmError::conflict("ManagedEnvironmentCannotBeChanged", message)
                    .at("properties.environmentId")
                    .into());
            }
            parsed.job.is_suspended = old.is_suspended;
        }
        let environment = self.environment(&parsed.job.environment)?;
        check_zone(&parsed.job)?;
        app_refs::check_job(plane, &environment, &mut parsed)?;
        Ok(parsed)
    }

    /// The environment that the job names.
    fn environment(&self, id: &ResourceId) -> Result<Environment, Refusal> {
        match self.plane.store().resource(id)? {
            None => Err(ArmError::environment_not_found(id.as_str()).into()),
            Some(row) if row.provisioning == Provisioning::Deleting => {
                let message = format!("The managed environment '{id}' is being deleted; choose another one.");
                Err(ArmError::conflict("ManagedEnvironmentBeingDeleted", message).at("properties.environmentId").into())
            }
            Some(row) => environments::model(&row),
        }
    }

    async fn save(
        &self,
        id: &ResourceId,
        old: Option<&ResourceRow>,
        parsed: ParsedJob,
    ) -> Result<(ResourceRow, String), StoreError> {
        let operation = NewOperation { id: new_id(), kind: if old.is_some() { "update" } else { "create" }.into() };
        let operation_id = operation.id.clone();
        let put = PutResource {
            id: id.clone(),
            doc: stamped(parsed.doc, old, self.call),
            spec: Some(serde_json::to_value(&parsed.job)?),
            secrets: SecretsChange::Replace(parsed.secrets),
            provisioning: Provisioning::Succeeded,
            operation: Some(operation),
            revision: None,
            expect: old.map_or(Expect::Absent, |old| Expect::Generation(old.generation)),
            now: self.plane.clock().now(),
        };
        let row = self.plane.store().put(put).await?;
        self.plane.store().finish(row.id.clone(), row.generation, None, self.plane.clock().now()).await?;
        Ok((row, operation_id))
    }
}

/// The time zone must be one that this machine knows.
fn check_zone(job: &Job) -> Result<(), ArmError> {
    let JobTrigger::Schedule(schedule) = &job.trigger else { return Ok(()) };
    let Some(zone) = &schedule.time_zone else { return Ok(()) };
    if jiff::tz::TimeZone::get(zone).is_ok() {
        return Ok(());
    }
    let shown: String = zone.chars().take(80).collect();
    let message = format!("The time zone '{shown}' is not known; expected an IANA name such as 'Europe/Berlin'.");
    Err(ArmError::invalid("properties.configuration.scheduleTriggerConfig.coveTimeZone", message))
}

/// Says in the system log what of the job has no effect.
fn tell_warnings(plane: &ControlPlane, call: &Call, row: &ResourceRow) -> Result<(), Refusal> {
    let shown = jobs::render(plane, call, row)?;
    let texts = shown.pointer("/properties/coveWarnings").and_then(Value::as_array);
    let texts: Vec<String> = texts.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    app_events::warn(plane, &jobs::as_app(&jobs::model(row)?), &texts);
    Ok(())
}
