//! PUT and PATCH of a session pool: desired state and the operation that the client polls. The engine reads what was
//! written, pulls images, makes the first sessions ready, and ends the operation.
//!
//! **Invariant:** a write happens on the generation it was computed from, or is computed again.
//! **Invariant:** a pool's [`cove_model::SessionPool::generation`] changes when and only when new sessions would see another
//! thing than old ones, values of secrets included.

use std::collections::{BTreeMap, BTreeSet};

use cove_arm::{
    ArmError, Errors,
    session_pool::{self, ParsedPool, PoolContext},
};
use cove_model::{
    EventKind, GENERATION_SUFFIX_LENGTH, ResourceId, SessionPool, SystemEvent, check_session_pool_name, generation_name,
};
use cove_store::{Expect, NewOperation, Provisioning, PutResource, ResourceRow, SecretsChange, StoreError};
use serde_json::Value;

use crate::{
    answer::{self, Answer, Refusal, with_etag},
    apps,
    call::Call,
    control_plane::{ControlPlane, new_id, random_word},
    groups::{self, TRIES_MAX, check_same_location},
    identities,
    links::{self, Family},
    session_pool_keys, session_pool_snapshots,
    session_pools::{self, KIND},
    workspaces::{child_of, stamped},
};

/// A created or changed pool: 201 with `Azure-AsyncOperation`; `az` would take a 200 for "done".
pub(crate) async fn put(plane: ControlPlane, call: Call) -> Answer {
    let body = call.object()?;
    let write = Write { plane: &plane, call: &call, body: &body, is_patch: false };
    let (row, operation) = write.run().await?;
    let body = session_pools::render(&plane, &call, &row)?;
    let response = with_etag(answer::json(201, &body), &row.etag);
    Ok(links::with_status(&plane, &call, Family::SessionPool, &operation, response))
}

/// A changed pool: 202 with `Location` and `Azure-AsyncOperation`.
pub(crate) async fn patch(plane: ControlPlane, call: Call) -> Answer {
    let body = call.object()?;
    let write = Write { plane: &plane, call: &call, body: &body, is_patch: true };
    let (row, operation) = write.run().await?;
    let body = session_pools::render(&plane, &call, &row)?;
    let response = with_etag(answer::json(202, &body), &row.etag);
    let response = links::with_location(&plane, &call, Family::SessionPool, &operation, response);
    Ok(links::with_status(&plane, &call, Family::SessionPool, &operation, response))
}

struct Write<'a> {
    plane: &'a ControlPlane,
    call: &'a Call,
    body: &'a Value,
    is_patch: bool,
}

impl Write<'_> {
    async fn run(&self) -> Result<(ResourceRow, String), Refusal> {
        let plane = self.plane;
        let group = groups::require_writable(plane, self.call)?;
        let id = child_of(&group, KIND, self.call.name("pool"))?;
        for _ in 0..TRIES_MAX {
            let mut old = plane.store().resource(&id)?;
            // making a pool refers to its group, environment and host name: nobody may change those meanwhile
            let mut structure = None;
            if old.is_none() {
                structure = Some(plane.structure().await);
                groups::require_writable(plane, self.call)?;
                old = plane.store().resource(&id)?;
            }
            let id = old.as_ref().map_or(&id, |old| &old.id);
            let parsed = self.check(id, old.as_ref())?;
            let saved = self.save(id, old.as_ref(), parsed).await;
            drop(structure);
            match saved {
                Ok((row, operation)) => {
                    tell_warnings(plane, self.call, &row)?;
                    return Ok((row, operation));
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict { id }.into())
    }

    fn check(&self, id: &ResourceId, old: Option<&ResourceRow>) -> Result<ParsedPool, Refusal> {
        let plane = self.plane;
        self.call.precondition().check(id.as_str(), old)?;
        if old.is_some_and(|old| old.provisioning == Provisioning::Deleting) {
            return Err(ArmError::operation_in_progress(id.as_str()).into());
        }
        let mut old_secrets = plane.store().secrets(id)?;
        let key = session_pool_keys::take(&mut old_secrets);
        let known_secrets: BTreeSet<String> = old_secrets.keys().cloned().collect();
        // a name that is not valid is refused by the parser, with all else that is wrong
        let named = if check_session_pool_name(id.name()).is_ok() { id.name() } else { "pool" };
        let generation = generation_name(named, &random_word(GENERATION_SUFFIX_LENGTH)?)
            .map_err(|error| Refusal::Broken(error.to_string()))?;
        let sessions = &plane.config().sessions;
        let snapshots = session_pool_snapshots::usable(plane, id)?;
        let context = PoolContext {
            id,
            known_secrets: &known_secrets,
            default_isolation: &sessions.default_isolation,
            isolations: &sessions.isolations,
            snapshots: &snapshots,
            generation: &generation,
        };
        let mut parsed = match (self.is_patch, old) {
            (true, Some(old)) => session_pool::parse_patch(&old.doc, self.body, &context)?,
            (true, None) => return Err(ArmError::resource_not_found(KIND, id.name(), id.group_name()).into()),
            (false, _) => session_pool::parse_put(self.body, &context)?,
        };
        if let Some(old) = old {
            check_same_location(&old.doc, &parsed.doc)?;
            let old = session_pools::model(old)?;
            check_fixed(&old, &parsed.pool)?;
            if old.is_same_inside(&parsed.pool) && !are_changed(&old_secrets, &parsed.secrets) {
                parsed.pool.generation = old.generation;
            }
        }
        self.check_environment(&parsed.pool)?;
        if old.is_none() {
            self.check_name_is_free(&parsed.pool)?;
        }
        identities::check(plane, &mut parsed.doc)?;
        if let Some((name, value)) = key {
            parsed.secrets.insert(name, Some(value));
        }
        Ok(parsed)
    }

    /// The environment must be there to stay.
    fn check_environment(&self, pool: &SessionPool) -> Result<(), Refusal> {
        let Some(id) = &pool.environment else { return Ok(()) };
        match self.plane.store().resource(id)? {
            None => Err(ArmError::environment_not_found(id.as_str()).into()),
            Some(row) if row.provisioning == Provisioning::Deleting => {
                let message = format!("The managed environment '{id}' is being deleted; choose another one.");
                Err(ArmError::conflict("ManagedEnvironmentBeingDeleted", message).at("properties.environmentId").into())
            }
            Some(_) => Ok(()),
        }
    }

    /// The pool's host name is `<pool>.<environment's domain>`: no other pool and no app of the environment may have it.
    fn check_name_is_free(&self, pool: &SessionPool) -> Result<(), Refusal> {
        let Some(environment) = &pool.environment else { return Ok(()) };
        let store = self.plane.store();
        for other in store.ids_named(apps::KIND, pool.id.name())? {
            let Some(row) = store.resource(&other)? else { continue };
            if apps::model(&row)?.environment == *environment {
                return Err(name_in_use("container app", &other).into());
            }
        }
        for other in store.ids_named(KIND, pool.id.name())? {
            let Some(row) = store.resource(&other)? else { continue };
            if session_pools::model(&row)?.environment.as_ref() == Some(environment) {
                return Err(name_in_use("session pool", &other).into());
            }
        }
        Ok(())
    }

    async fn save(
        &self,
        id: &ResourceId,
        old: Option<&ResourceRow>,
        parsed: ParsedPool,
    ) -> Result<(ResourceRow, String), StoreError> {
        let operation = NewOperation { id: new_id(), kind: if old.is_some() { "update" } else { "create" }.into() };
        let operation_id = operation.id.clone();
        let put = PutResource {
            id: id.clone(),
            doc: stamped(parsed.doc, old, self.call),
            spec: Some(serde_json::to_value(&parsed.pool)?),
            secrets: SecretsChange::Replace(parsed.secrets),
            provisioning: Provisioning::InProgress,
            operation: Some(operation),
            revision: None,
            expect: old.map_or(Expect::Absent, |old| Expect::Generation(old.generation)),
            now: self.plane.clock().now(),
        };
        let row = self.plane.store().put(put).await?;
        Ok((row, operation_id))
    }
}

fn name_in_use(what: &str, other: &ResourceId) -> ArmError {
    let message = format!(
        "The environment has a {what} '{}' already, in resource group '{}', which has the same host name; choose another name.",
        other.name(),
        other.group_name()
    );
    ArmError::conflict("SessionPoolNameInUse", message)
}

/// What a pool keeps for life.
fn check_fixed(old: &SessionPool, new: &SessionPool) -> Result<(), ArmError> {
    let mut errors = Errors::new();
    let mut refuse = |what: &str, target: &str| {
        let message = format!("A session pool cannot change its {what}; delete it and create it anew.");
        errors.push(ArmError::conflict("SessionPoolPropertyCannotBeChanged", message).at(target));
    };
    if old.container != new.container {
        refuse("containerType", "properties.containerType");
    }
    if old.environment != new.environment {
        refuse("environment", "properties.environmentId");
    }
    errors.into_result()
}

/// A secret comes, goes or gets another value.
fn are_changed(old: &BTreeMap<String, String>, new: &BTreeMap<String, Option<String>>) -> bool {
    let is_other = |(name, value): (&String, &Option<String>)| match (old.get(name), value) {
        (Some(old), Some(new)) => old != new,
        (Some(_), None) => false,
        (None, _) => true,
    };
    new.iter().any(is_other) || old.keys().any(|name| !new.contains_key(name))
}

/// Says in the system log what of the pool has no effect.
fn tell_warnings(plane: &ControlPlane, call: &Call, row: &ResourceRow) -> Result<(), Refusal> {
    if plane.is_rehearsal() {
        return Ok(());
    }
    let shown = session_pools::render(plane, call, row)?;
    let environment = session_pools::model(row)?.environment;
    let texts = shown.pointer("/properties/coveWarnings").and_then(Value::as_array);
    for text in texts.into_iter().flatten().filter_map(Value::as_str) {
        plane.streams().tell(SystemEvent {
            at: plane.clock().now(),
            kind: EventKind::Warning,
            reason: "ConfigurationWarning".to_owned(),
            message: text.to_owned(),
            environment: environment.as_ref().map(ToString::to_string),
            app: Some(row.id.to_string()),
            revision: None,
            replica: None,
            container: None,
            source: "SessionPoolController".to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_change_by_value() {
        let old = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let new = |value: Option<&str>| BTreeMap::from([("a".to_owned(), value.map(str::to_owned))]);
        assert!(!are_changed(&old, &new(None)) && !are_changed(&old, &new(Some("1"))));
        assert!(are_changed(&old, &new(Some("2"))) && are_changed(&old, &BTreeMap::new()));
        assert!(are_changed(&BTreeMap::new(), &new(Some("1"))));
    }
}
