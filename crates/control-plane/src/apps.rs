//! `Microsoft.App/containerApps`: how an app is found and shown. Its writes are in [`crate::app_write`], its verbs in
//! [`crate::app_actions`].

use cove_arm::{ArmError, container_app};
use cove_model::{ContainerApp, Environment, ResourceId, Revision, RevisionStatus, WorkloadProfileKind};
use cove_store::{Provisioning, ResourceRow};
use http::Method;
use serde::Deserialize as _;
use serde_json::Value;

use crate::{
    answer::{Answer, Refusal},
    auth_configs,
    call::Call,
    control_plane::ControlPlane,
    crud, environments, groups, identities, links, resiliency,
    route::Route,
};

pub(crate) const KIND: &str = "Microsoft.App/containerApps";
/// Path of an app.
pub(crate) const APP: &str =
    "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.App/containerApps/{app}";

pub(crate) fn routes() -> Vec<Route> {
    const ALL: &str = "/subscriptions/{subscription}/providers/Microsoft.App/containerApps";
    const IN_GROUP: &str = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.App/containerApps";
    vec![
        Route::arm(Method::GET, ALL, list_all),
        Route::arm(Method::GET, IN_GROUP, list_group),
        Route::arm(Method::GET, APP, get),
        Route::arm(Method::PUT, APP, crate::app_write::put),
        Route::arm(Method::PATCH, APP, crate::app_write::patch),
    ]
}

/// The app of the path.
///
/// # Errors
/// 404 for it or for its group.
pub(crate) fn require(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
    let id = call.id(KIND, "app")?;
    if let Some(row) = plane.store().resource(&id)? {
        return Ok(row);
    }
    let group = groups::require(plane, call)?;
    Err(ArmError::resource_not_found(KIND, id.name(), group.id.name()).into())
}

/// The app of the path, to change something.
///
/// # Errors
/// As [`require`], 412, and 409 while it is being deleted.
pub(crate) fn require_writable(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
    let row = require(plane, call)?;
    call.precondition().check(row.id.as_str(), Some(&row))?;
    if row.provisioning == Provisioning::Deleting {
        return Err(ArmError::operation_in_progress(row.id.as_str()).into());
    }
    Ok(row)
}

/// The model value of a stored app.
pub(crate) fn model(row: &ResourceRow) -> Result<ContainerApp, Refusal> {
    let spec = row.spec.as_ref().unwrap_or(&Value::Null);
    ContainerApp::deserialize(spec).map_err(|error| Refusal::Broken(format!("stored app `{}`: {error}", row.id)))
}

/// The apps that live in an environment.
pub(crate) fn in_environment(plane: &ControlPlane, environment: &ResourceId) -> Result<Vec<ResourceRow>, Refusal> {
    Ok(plane.store().resources_in(KIND, environment)?)
}

/// The domain of an app's environment.
pub(crate) fn domain(plane: &ControlPlane, app: &ContainerApp) -> Result<String, Refusal> {
    Ok(environment(plane, app)?.default_domain)
}

fn environment(plane: &ControlPlane, app: &ContainerApp) -> Result<Environment, Refusal> {
    match plane.store().snapshot::<Environment>(&app.environment)?.and_then(|found| found.spec) {
        Some(environment) => Ok(environment),
        None => Err(Refusal::Broken(format!("the environment `{}` of `{}` is gone", app.environment, app.id))),
    }
}

/// What an app on a GPU profile must know.
pub(crate) fn gpu_warning(environment: &Environment, app: &ContainerApp) -> Option<String> {
    let name = app.workload_profile.as_deref()?;
    let profile = environment.workload_profiles.iter().find(|profile| profile.name.eq_ignore_ascii_case(name))?;
    let kind = WorkloadProfileKind::find(&profile.kind).filter(|kind| kind.gpus > 0)?;
    Some(format!(
        "workloadProfileName: '{name}' is of the type {}, but GPUs are not given to containers yet: the app runs without one.",
        kind.name
    ))
}

/// The app as Azure shows it.
pub(crate) fn render(plane: &ControlPlane, call: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
    let app = model(row)?;
    let environment = environment(plane, &app)?;
    let revisions = plane.store().revision_snapshots(&row.id)?;
    let latest = revisions.last().map(|(revision, _)| revision.name.as_str());
    let ready = revisions.iter().rev().find(|(_, status)| status.ready_at.is_some());
    let view = container_app::View {
        id: &row.id,
        provisioning_state: row.provisioning.as_arm(),
        running_status: running_status(row, &app, &revisions),
        default_domain: &environment.default_domain,
        latest_revision: latest,
        latest_ready_revision: ready.map(|(revision, _)| revision.name.as_str()),
        origin: &call.origin,
        outbound_ips: std::slice::from_ref(&plane.config().static_ip),
        custom_domain_verification_id: plane.verification_id(),
        system_data: Some(&environments::system_data(row)),
        scale_defaults: &plane.config().scale_defaults,
    };
    let mut value = container_app::render(&row.doc, &view);
    resiliency::show_limits(plane, &mut value, (&app, &environment));
    identities::complete(plane, &mut value, row)?;
    if let Some(text) = gpu_warning(&environment, &app) {
        add_warning(&mut value, &text);
    }
    for text in auth_configs::warnings(plane, &row.id)? {
        add_warning(&mut value, &text);
    }
    if let Some(failure) = &row.failure {
        value["properties"]["deploymentErrors"] = Value::String(format!("({}) {}", failure.code, failure.message));
    }
    Ok(value)
}

/// Adds to what the app says of itself.
pub(crate) fn add_warning(value: &mut Value, text: &str) {
    let slot = &mut value["properties"]["coveWarnings"];
    match slot.as_array_mut() {
        Some(all) => all.push(Value::from(text)),
        None => *slot = Value::from(vec![text]),
    }
}

fn running_status(row: &ResourceRow, app: &ContainerApp, revisions: &[(Revision, RevisionStatus)]) -> &'static str {
    if app.is_stopped {
        return "Stopped";
    }
    let can_serve = revisions.iter().any(|(revision, status)| revision.is_active && status.ready_at.is_some());
    match row.provisioning {
        Provisioning::InProgress | Provisioning::Deleting => "Progressing",
        Provisioning::Succeeded | Provisioning::Failed | Provisioning::Canceled if can_serve => "Running",
        Provisioning::Succeeded | Provisioning::Failed | Provisioning::Canceled => "Stopped",
    }
}

async fn list_all(plane: ControlPlane, call: Call) -> Answer {
    let page = links::read_page(&plane, &call, KIND, Some(&call.subscription_id()?))?;
    crud::list_page(page, |row| render(&plane, &call, row))
}

async fn list_group(plane: ControlPlane, call: Call) -> Answer {
    let group = groups::require(&plane, &call)?;
    let page = links::read_page(&plane, &call, KIND, Some(&group.id))?;
    crud::list_page(page, |row| render(&plane, &call, row))
}

pub(crate) async fn get(plane: ControlPlane, call: Call) -> Answer {
    let row = require(&plane, &call)?;
    crud::shown(200, &row, &render(&plane, &call, &row)?)
}
