//! PUT and PATCH of a container app: desired state, perhaps a revision, and the operation that the client polls.
//!
//! The controller reads what was written, works, and ends the operation; nothing here waits for that.
//!
//! **Invariant:** a write happens on the generation it was computed from, or is computed again.
//! **Invariant:** two apps of one environment never have the same name, since they would share a host name.

use std::collections::BTreeSet;

use cove_arm::{
    ArmError, Errors,
    container_app::{self, Parsed, PutContext, makes_revision},
};
use cove_model::{ActiveRevisionsMode, ContainerApp, Environment, ResourceId, Revision, RevisionName};
use cove_store::{
    Expect, NewOperation, NewRevision, Provisioning, PutResource, ResourceRow, SecretsChange, StoreError,
};
use serde_json::Value;

use crate::{
    answer::{self, Answer, Refusal, with_etag},
    app_events, app_refs, app_secrets,
    apps::{self, KIND},
    call::Call,
    control_plane::{ControlPlane, new_id, random_word},
    environments,
    groups::{self, TRIES_MAX, check_same_location},
    links::{self, Family},
    session_pools,
    workspaces::{child_of, stamped},
};

/// Length of a suffix that the server makes, as Azure's.
const SUFFIX_LENGTH: usize = 7;

/// A created or changed app: 201 with `Azure-AsyncOperation`; `az` would take a 200 for "done".
pub(crate) async fn put(plane: ControlPlane, call: Call) -> Answer {
    let body = call.object()?;
    let write = Write { plane: &plane, call: &call, body: &body, is_patch: false };
    let (row, operation) = write.run().await?;
    let body = apps::render(&plane, &call, &row)?;
    let response = with_etag(answer::json(201, &body), &row.etag);
    Ok(links::with_status(&plane, &call, Family::App, &operation, response))
}

/// A changed app: 202 with `Location` and `Azure-AsyncOperation`.
pub(crate) async fn patch(plane: ControlPlane, call: Call) -> Answer {
    let body = call.object()?;
    let write = Write { plane: &plane, call: &call, body: &body, is_patch: true };
    let (row, operation) = write.run().await?;
    accepted(&plane, &call, &row, &operation)
}

/// 202 with the app as it is and both links to the operation.
pub(crate) fn accepted(plane: &ControlPlane, call: &Call, row: &ResourceRow, operation: &str) -> Answer {
    let body = apps::render(plane, call, row)?;
    let response = with_etag(answer::json(202, &body), &row.etag);
    let response = links::with_location(plane, call, Family::App, operation, response);
    Ok(links::with_status(plane, call, Family::App, operation, response))
}

struct Write<'a> {
    plane: &'a ControlPlane,
    call: &'a Call,
    body: &'a Value,
    is_patch: bool,
}

/// A write that was checked against all that is there.
struct Checked {
    parsed: Parsed,
    revision: Option<NewRevision>,
    /// The server chose the suffix, so that it may choose another one.
    is_suffix_ours: bool,
    /// It takes host names or ports that it did not have.
    claims_more: bool,
    /// Names of the secrets that get another value.
    changed_secrets: Vec<String>,
}

impl Write<'_> {
    async fn run(&self) -> Result<(ResourceRow, String), Refusal> {
        let plane = self.plane;
        let group = groups::require_writable(plane, self.call)?;
        let id = child_of(&group, KIND, self.call.name("app"))?;
        for _ in 0..TRIES_MAX {
            let old = plane.store().resource(&id)?;
            // making an app refers to its group, environment and name, and claims are made against other apps: nobody may
            // change those meanwhile
            let mut structure = None;
            let mut old = old;
            if old.is_none() {
                structure = Some(plane.structure().await);
                groups::require_writable(plane, self.call)?;
                old = plane.store().resource(&id)?;
            }
            let mut checked = self.check(old.as_ref().map_or(&id, |old| &old.id), old.as_ref())?;
            if structure.is_none() && checked.claims_more {
                structure = Some(plane.structure().await);
                old = plane.store().resource(&id)?;
                checked = self.check(old.as_ref().map_or(&id, |old| &old.id), old.as_ref())?;
            }
            let id = old.as_ref().map_or(&id, |old| &old.id);
            let is_suffix_ours = checked.is_suffix_ours;
            let changed_secrets = checked.changed_secrets.clone();
            let app = checked.parsed.app.clone();
            let mut warnings = container_app::warnings(&checked.parsed.doc);
            warnings.extend(apps::gpu_warning(&self.environment(&app.environment)?, &app));
            match self.save(id, old.as_ref(), checked).await {
                Ok(saved) => {
                    drop(structure);
                    app_events::warn(plane, &app, &warnings);
                    app_secrets::tell_changed(plane, &app, &changed_secrets);
                    return Ok(saved);
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(StoreError::RevisionExists { .. }) if is_suffix_ours => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict { id }.into())
    }

    fn check(&self, id: &ResourceId, old: Option<&ResourceRow>) -> Result<Checked, Refusal> {
        let plane = self.plane;
        self.call.precondition().check(id.as_str(), old)?;
        if old.is_some_and(|old| old.provisioning == Provisioning::Deleting) {
            return Err(ArmError::operation_in_progress(id.as_str()).into());
        }
        let old_secrets = plane.store().secrets(id)?;
        let known_secrets: BTreeSet<String> = old_secrets.keys().cloned().collect();
        let context = PutContext { id, known_secrets: &known_secrets };
        let mut parsed = match (self.is_patch, old) {
            (true, Some(old)) => container_app::parse_patch(&old.doc, self.body, &context)?,
            (true, None) => return Err(ArmError::resource_not_found(KIND, id.name(), id.group_name()).into()),
            (false, _) => container_app::parse_put(self.body, &context)?,
        };
        let old_app = old.map(apps::model).transpose()?;
        app_secrets::check_removed(plane, id, &old_secrets, &parsed)?;
        let changed_secrets = app_secrets::changed(&old_secrets, &parsed.secrets);
        if let (Some(old), Some(old_app)) = (old, &old_app) {
            check_same_location(&old.doc, &parsed.doc)?;
            if old_app.environment != parsed.app.environment {
                let message = "A container app cannot move to another environment; delete it and create it there.";
                return Err(ArmError::conflict("ManagedEnvironmentCannotBeChanged", message)
                    .at("properties.environmentId")
                    .into());
            }
            parsed.app.is_stopped = old_app.is_stopped;
        }
        let environment = self.environment(&parsed.app.environment)?;
        app_refs::check(plane, &environment, &mut parsed, old_app.as_ref())?;
        if old.is_none() {
            self.check_name_is_free(&parsed.app)?;
        }
        let old_template = old.zip(old_app.as_ref()).map(|(row, app)| (&row.doc, app));
        let makes = old_template.is_none_or(|(doc, old)| makes_revision(doc, &old.template, &parsed));
        let revision = if makes { Some(self.revision(&parsed)?) } else { None };
        self.settle_labels(id, old.map(|old| &old.doc), old_app.as_ref(), revision.as_ref(), &mut parsed)?;
        self.check_traffic(id, &parsed.app, revision.as_ref())?;
        let is_suffix_ours = makes && parsed.revision_suffix.is_none();
        let claims_more = old_app.as_ref().is_some_and(|old| app_refs::claims_more(&parsed.app, old));
        Ok(Checked { parsed, revision, is_suffix_ours, claims_more, changed_secrets })
    }

    /// The environment that the app names.
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

    fn check_name_is_free(&self, app: &ContainerApp) -> Result<(), Refusal> {
        for other in self.plane.store().ids_named(KIND, app.id.name())? {
            let Some(row) = self.plane.store().resource(&other)? else { continue };
            if apps::model(&row)?.environment == app.environment {
                let message = format!(
                    "The environment has a container app '{}' already, in resource group '{}'; choose another name.",
                    app.id.name(),
                    other.group_name()
                );
                return Err(ArmError::conflict("ContainerAppNameInUse", message).into());
            }
        }
        for row in session_pools::in_environment(self.plane, &app.environment)? {
            if row.id.name().eq_ignore_ascii_case(app.id.name()) {
                let message = format!(
                    "The environment has a session pool '{}', which has the same host name; choose another name.",
                    app.id.name()
                );
                return Err(ArmError::conflict("ContainerAppNameInUse", message).into());
            }
        }
        let routes = app.environment.child("httpRouteConfigs", app.id.name());
        if let Ok(routes) = routes
            && self.plane.store().resource(&routes)?.is_some()
        {
            let message = format!(
                "The environment has a path routing '{}', which has the same host name; choose another name.",
                app.id.name()
            );
            return Err(ArmError::conflict("ContainerAppNameInUse", message).into());
        }
        Ok(())
    }

    fn revision(&self, parsed: &Parsed) -> Result<NewRevision, Refusal> {
        let suffix = match &parsed.revision_suffix {
            Some(suffix) => suffix.clone(),
            None => random_word(SUFFIX_LENGTH)?,
        };
        let name = RevisionName::of(parsed.app.id.name(), &suffix)
            .map_err(|error| ArmError::invalid("properties.template.revisionSuffix", format!("{error}.")))?;
        let now = self.plane.clock().now();
        let revision = Revision {
            name,
            app: parsed.app.id.clone(),
            number: 0,
            template: parsed.app.template.clone(),
            ingress: parsed.app.ingress.clone(),
            is_active: true,
            created_at: now,
            activated_at: now,
            restart_generation: 0,
        };
        let doc = parsed.doc.pointer("/properties/template").cloned().unwrap_or(Value::Null);
        Ok(NewRevision { revision, doc })
    }

    /// In labels mode the labels follow; in every mode their history does.
    fn settle_labels(
        &self,
        id: &ResourceId,
        old_doc: Option<&Value>,
        old: Option<&ContainerApp>,
        new: Option<&NewRevision>,
        parsed: &mut Parsed,
    ) -> Result<(), Refusal> {
        if parsed.app.active_revisions_mode == ActiveRevisionsMode::Labels {
            let newest = match new {
                Some(new) => Some(new.revision.name.clone()),
                None => self.plane.store().revisions(id)?.pop().map(|row| row.revision.name),
            };
            let newest = newest.map_or_else(String::new, |name| name.to_string());
            let traffic = old.and_then(|old| old.ingress.as_ref()).map_or(&[][..], |ingress| &ingress.traffic);
            container_app::settle_labels(parsed, traffic, &newest, new.is_some())?;
        }
        container_app::record_labels(parsed, old_doc, self.plane.clock().now());
        Ok(())
    }

    /// Weights may name only revisions that exist.
    fn check_traffic(&self, id: &ResourceId, app: &ContainerApp, new: Option<&NewRevision>) -> Result<(), Refusal> {
        let weights = app.ingress.as_ref().map_or(&[][..], |ingress| &ingress.traffic);
        let mut errors = Errors::new();
        for (index, weight) in weights.iter().enumerate() {
            let Some(name) = &weight.revision else { continue };
            let is_new = new.is_some_and(|new| new.revision.name.as_str() == name);
            if !is_new && self.plane.store().revision(id, name)?.is_none() {
                let target = format!("properties.configuration.ingress.traffic[{index}].revisionName");
                let message =
                    format!("Revision '{name}' does not exist; name one of the app's revisions or use latestRevision.");
                errors.push(ArmError::new(400, "ContainerAppInvalidTrafficRevision", message).at(target));
            }
        }
        Ok(errors.into_result()?)
    }

    async fn save(
        &self,
        id: &ResourceId,
        old: Option<&ResourceRow>,
        checked: Checked,
    ) -> Result<(ResourceRow, String), StoreError> {
        let operation = NewOperation { id: new_id(), kind: if old.is_some() { "update" } else { "create" }.into() };
        let operation_id = operation.id.clone();
        let put = PutResource {
            id: id.clone(),
            doc: stamped(checked.parsed.doc, old, self.call),
            spec: Some(serde_json::to_value(&checked.parsed.app)?),
            secrets: SecretsChange::Replace(checked.parsed.secrets),
            provisioning: Provisioning::InProgress,
            operation: Some(operation),
            revision: checked.revision,
            expect: old.map_or(Expect::Absent, |old| Expect::Generation(old.generation)),
            now: self.plane.clock().now(),
        };
        let row = self.plane.store().put(put).await?;
        Ok((row, operation_id))
    }
}
