//! What resources have in common: how they are listed, shown, written and deleted.
//!
//! A resource type says what is special about it in an `impl Resource`: the pattern of its path, its parent, its schema and
//! checks, how it is shown. Paging, etags, preconditions, merge patch, who wrote it and two writers at once are here.
//! It is for types for which nothing runs: their writes are done when the answer goes out. Types with work behind them
//! (apps, environments) use [`list`] and [`shown`] only.
//!
//! **Invariant:** a write happens on the generation it was checked against, or is checked again.
//! **Invariant:** nothing is written below a parent that is being deleted.

use cove_arm::{
    ArmError, Errors,
    schema::{Nulls, Schema, normalise},
};
use cove_model::{EventKind, ResourceId, SystemEvent};
use cove_store::{Expect, NewOperation, Provisioning, PutResource, ResourceRow, SecretsChange, StoreError};
use http::Method;
use serde_json::{Value, json};

use crate::{
    answer::{self, Answer, Refusal, with_etag},
    call::Call,
    control_plane::{ControlPlane, new_id},
    environments::{self, system_data},
    groups::{self, TRIES_MAX, check_same_location},
    links::{self, Family},
    route::Route,
    workspaces::stamped,
};

/// A type of resource for which nothing runs.
pub(crate) trait Resource: 'static {
    /// ARM's type: `Microsoft.App/managedEnvironments/certificates`.
    const KIND: &'static str;
    /// Pattern of one: `…/certificates/{certificate}`; the last segment is its name, what stands before is its list.
    const PATH: &'static str;
    /// Status of a PUT that made one. Default 200: clients accept it for every type, 201 for some.
    const CREATED: u16 = 200;
    /// Whether there is a PATCH. Default no.
    const HAS_PATCH: bool = false;
    /// Whether clients poll a DELETE as an operation (202 with `Location`). Default no: 200.
    const POLLS_DELETE: bool = false;

    /// Status of the PUT that made this one. Default: [`Self::CREATED`].
    fn created(_row: &ResourceRow) -> u16 {
        Self::CREATED
    }

    /// The parent that the path names: an app, an environment, a group.
    ///
    /// # Errors
    /// 404 for it.
    fn parent(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal>;

    /// Names and kinds of the body's properties.
    fn schema() -> &'static Schema;

    /// The body before its names are brought to Azure's, for types that come in other shapes too. Default: as it is.
    fn prepare(body: Value) -> Value {
        body
    }

    /// Checks a document: canonical, without nulls and read-only members at its top, merged already for a PATCH.
    /// `errors` holds what the schema found; an implementation adds its own and calls [`Errors::into_result`].
    ///
    /// # Errors
    /// Every problem at once.
    fn parse(write: &Write<'_>, doc: Value, errors: Errors) -> Result<Parsed, Refusal>;

    /// As Azure shows it. Default: [`envelope`].
    ///
    /// # Errors
    /// When what is stored cannot be read.
    fn render(_plane: &ControlPlane, _call: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
        Ok(envelope(row, Self::KIND))
    }

    /// What of it is stored and has no effect, in words; a write tells each as a Warning. Default: nothing.
    fn warnings(_row: &ResourceRow) -> Vec<String> {
        Vec::new()
    }

    /// Tells what a write left without effect, once it is stored. Default: each of [`Resource::warnings`] as a Warning of the
    /// environment.
    fn tell(plane: &ControlPlane, _parent: &ResourceRow, row: &ResourceRow) {
        warn(plane, &row.id, Self::warnings(row));
    }

    /// Whether it may go. Default: yes.
    ///
    /// # Errors
    /// 409 while something needs it.
    fn check_delete(_plane: &ControlPlane, _row: &ResourceRow) -> Result<(), Refusal> {
        Ok(())
    }
}

/// A write, as a check sees it.
#[derive(Clone, Copy)]
pub(crate) struct Write<'a> {
    /// The API.
    pub(crate) plane: &'a ControlPlane,
    /// The request.
    pub(crate) call: &'a Call,
    /// Id of what is written, in the case it has.
    pub(crate) id: &'a ResourceId,
    /// What it hangs on.
    pub(crate) parent: &'a ResourceRow,
    /// What is there already.
    pub(crate) old: Option<&'a ResourceRow>,
}

/// What a check gives to be stored.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// The document: no secret, no read-only property.
    pub(crate) doc: Value,
    /// The model value, for types that another service acts on.
    pub(crate) spec: Option<Value>,
    /// Values of secrets.
    pub(crate) secrets: SecretsChange,
}

impl Parsed {
    /// Only a document.
    pub(crate) fn doc(doc: Value) -> Self {
        Self { doc, spec: None, secrets: SecretsChange::Keep }
    }
}

/// List, get, put, delete, and patch where there is one.
pub(crate) fn routes<R: Resource>() -> Vec<Route> {
    let collection = R::PATH.rsplit_once('/').map_or(R::PATH, |(collection, _)| collection);
    let mut routes = vec![
        Route::arm(Method::GET, collection, list_all::<R>),
        Route::arm(Method::GET, R::PATH, get::<R>),
        Route::arm(Method::PUT, R::PATH, put::<R>),
        Route::arm(Method::DELETE, R::PATH, delete::<R>),
    ];
    if R::HAS_PATCH {
        routes.push(Route::arm(Method::PATCH, R::PATH, patch::<R>));
    }
    routes
}

/// One page of `rows` (by id, as the store gives them).
pub(crate) fn list(
    call: &Call,
    rows: &[ResourceRow],
    render: impl Fn(&ResourceRow) -> Result<Value, Refusal>,
) -> Answer {
    let (page, next) = links::page(call, rows);
    let values: Result<Vec<Value>, Refusal> = page.iter().map(render).collect();
    Ok(answer::json(200, &cove_arm::list::render(values?, next.as_deref())))
}

/// A page as [`links::read_page`] gives it.
pub(crate) fn list_page(
    (rows, next): (Vec<ResourceRow>, Option<String>),
    render: impl Fn(&ResourceRow) -> Result<Value, Refusal>,
) -> Answer {
    let values: Result<Vec<Value>, Refusal> = rows.iter().map(render).collect();
    Ok(answer::json(200, &cove_arm::list::render(values?, next.as_deref())))
}

/// One resource, with its etag.
pub(crate) fn shown(status: u16, row: &ResourceRow, value: &Value) -> Answer {
    Ok(with_etag(answer::json(status, value), &row.etag))
}

/// Id, name, type and system data around the stored document.
pub(crate) fn envelope(row: &ResourceRow, kind: &str) -> Value {
    let mut value = row.doc.clone();
    if !value.is_object() {
        value = json!({});
    }
    if value.get("properties").is_none() {
        value["properties"] = json!({});
    }
    if let Some(display) = value.get("location").and_then(Value::as_str).and_then(cove_arm::provider::display_location)
    {
        value["location"] = json!(display);
    }
    value["id"] = json!(row.id.as_str());
    value["name"] = json!(row.id.name());
    value["type"] = json!(kind);
    value["systemData"] = system_data(row).render();
    value
}

/// The resource of the path.
///
/// # Errors
/// 404 for it or for its parent.
pub(crate) fn require<R: Resource>(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
    let parent = R::parent(plane, call)?;
    let id = id_below(&parent.id, R::KIND, last_name::<R>(call))?;
    let found = plane.store().resource(&id)?;
    found.ok_or_else(|| ArmError::resource_not_found(R::KIND, id.name(), id.group_name()).into())
}

/// All of a type below a parent.
pub(crate) fn below<R: Resource>(plane: &ControlPlane, parent: &ResourceId) -> Result<Vec<ResourceRow>, Refusal> {
    Ok(plane.store().resources(R::KIND, Some(parent))?)
}

/// The id of `kind`'s resource `name` below a group or another resource.
pub(crate) fn id_below(parent: &ResourceId, kind: &str, name: &str) -> Result<ResourceId, ArmError> {
    let id = if parent.kind().is_empty() {
        ResourceId::resource(parent.subscription(), parent.name(), kind, name)
    } else {
        parent.child(kind.rsplit('/').next().unwrap_or(kind), name)
    };
    id.map_err(|error| ArmError::new(400, "InvalidResourceId", error.to_string()))
}

fn last_name<R: Resource>(call: &Call) -> &str {
    let segment = R::PATH.rsplit('/').next().unwrap_or("");
    call.name(segment.trim_start_matches('{').trim_end_matches('}'))
}

async fn list_all<R: Resource>(plane: ControlPlane, call: Call) -> Answer {
    let parent = R::parent(&plane, &call)?;
    let rows = below::<R>(&plane, &parent.id)?;
    list(&call, &rows, |row| R::render(&plane, &call, row))
}

async fn get<R: Resource>(plane: ControlPlane, call: Call) -> Answer {
    let row = require::<R>(&plane, &call)?;
    shown(200, &row, &R::render(&plane, &call, &row)?)
}

async fn put<R: Resource>(plane: ControlPlane, call: Call) -> Answer {
    write::<R>(&plane, &call, false).await
}

async fn patch<R: Resource>(plane: ControlPlane, call: Call) -> Answer {
    write::<R>(&plane, &call, true).await
}

async fn write<R: Resource>(plane: &ControlPlane, call: &Call, is_patch: bool) -> Answer {
    let body = R::prepare(call.object()?);
    let _structure = plane.structure().await;
    let parent = R::parent(plane, call)?;
    groups::require_writable(plane, call)?;
    if parent.provisioning == Provisioning::Deleting {
        return Err(ArmError::operation_in_progress(parent.id.as_str()).into());
    }
    let id = id_below(&parent.id, R::KIND, last_name::<R>(call))?;
    for _ in 0..TRIES_MAX {
        let old = plane.store().resource(&id)?;
        call.precondition().check(id.as_str(), old.as_ref())?;
        if is_patch && old.is_none() {
            return Err(ArmError::resource_not_found(R::KIND, id.name(), id.group_name()).into());
        }
        let id = old.as_ref().map_or(&id, |old| &old.id);
        let write = Write { plane, call, id, parent: &parent, old: old.as_ref() };
        match save(&write, checked::<R>(&write, &body, is_patch)?).await {
            Ok(row) => {
                R::tell(plane, &parent, &row);
                let status = if old.is_some() { 200 } else { R::created(&row) };
                return shown(status, &row, &R::render(plane, call, &row)?);
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Conflict { id }.into())
}

fn checked<R: Resource>(write: &Write<'_>, body: &Value, is_patch: bool) -> Result<Parsed, Refusal> {
    let mut errors = Errors::new();
    check_name(R::KIND, write.id.name(), &mut errors);
    let mut doc = match write.old {
        Some(old) if is_patch => {
            let patch = normalise(body, R::schema(), Nulls::Keep, &mut errors);
            let mut doc = old.doc.clone();
            cove_arm::patch::merge(&mut doc, &patch);
            doc
        }
        Some(_) | None => normalise(body, R::schema(), Nulls::Drop, &mut errors),
    };
    if let Some(fields) = doc.as_object_mut() {
        for name in ["id", "name", "type", "systemData", "etag"] {
            fields.remove(name);
        }
    }
    let parsed = R::parse(write, doc, errors)?;
    if let Some(old) = write.old {
        check_same_location(&old.doc, &parsed.doc)?;
    }
    Ok(parsed)
}

/// 1 to 128 letters, digits, `-`, `_` and `.`, with a letter or digit first; types with a narrower rule check it themselves.
fn check_name(kind: &str, name: &str, errors: &mut Errors) {
    let is_name = (1..=128).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !is_name {
        let shown: String = name.chars().take(128).collect();
        let kind = kind.rsplit('/').next().unwrap_or(kind);
        let message = format!(
            "The name '{shown}' is not valid for one of '{kind}': use 1 to 128 letters, digits, '-', '_' and '.', and begin with a letter or digit."
        );
        errors.push(ArmError::new(400, "InvalidResourceName", message));
    }
}

/// Tells a Warning per text, about the environment that the resource is or hangs on.
pub(crate) fn warn(plane: &ControlPlane, id: &ResourceId, texts: Vec<String>) {
    let mut environment = Some(id.clone());
    while let Some(id) = environment.as_ref().filter(|id| !id.kind().eq_ignore_ascii_case(environments::KIND)) {
        environment = id.parent();
    }
    if plane.is_rehearsal() {
        return;
    }
    for text in texts {
        plane.streams().tell(SystemEvent {
            at: plane.clock().now(),
            kind: EventKind::Warning,
            reason: "ConfigurationWarning".to_owned(),
            message: format!("{}: {text}", id.name()),
            environment: environment.as_ref().map(ToString::to_string),
            app: None,
            revision: None,
            replica: None,
            container: None,
            source: "ManagedEnvironmentController".to_owned(),
        });
    }
}

async fn save(write: &Write<'_>, parsed: Parsed) -> Result<ResourceRow, StoreError> {
    let put = PutResource {
        id: write.id.clone(),
        doc: stamped(parsed.doc, write.old, write.call),
        spec: parsed.spec,
        secrets: parsed.secrets,
        provisioning: Provisioning::Succeeded,
        operation: None,
        revision: None,
        expect: write.old.map_or(Expect::Absent, |old| Expect::Generation(old.generation)),
        now: write.plane.clock().now(),
    };
    write.plane.store().put(put).await
}

async fn delete<R: Resource>(plane: ControlPlane, call: Call) -> Answer {
    let _structure = plane.structure().await;
    let parent = R::parent(&plane, &call)?;
    let id = id_below(&parent.id, R::KIND, last_name::<R>(&call))?;
    let Some(row) = plane.store().resource(&id)? else { return Ok(answer::empty(204)) };
    call.precondition().check(id.as_str(), Some(&row))?;
    R::check_delete(&plane, &row)?;
    let now = plane.clock().now();
    if !R::POLLS_DELETE {
        plane.store().remove(row.id, now).await?;
        return Ok(answer::empty(200));
    }
    let operation = NewOperation { id: new_id(), kind: "delete".into() };
    let link = operation.id.clone();
    plane.store().begin_delete(row.id.clone(), operation, now).await?;
    plane.store().remove(row.id, now).await?;
    Ok(links::with_location(&plane, &call, Family::Environment, &link, answer::empty(202)))
}
