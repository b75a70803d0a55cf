//! `Microsoft.App/jobs`: how a job is found and shown. Its writes are in [`crate::job_write`], its verbs in
//! [`crate::job_actions`], its executions in [`crate::executions`].

use cove_arm::{ArmError, job};
use cove_model::{ActiveRevisionsMode, ContainerApp, Environment, Job, ResourceId};
use cove_store::{Provisioning, ResourceRow};
use http::Method;
use serde::Deserialize as _;
use serde_json::Value;

use crate::{
    answer::{self, Answer, Refusal},
    apps,
    call::Call,
    control_plane::ControlPlane,
    crud, environments, groups, identities, links,
    route::Route,
};

pub(crate) const KIND: &str = cove_model::JOB_KIND;
/// Path of a job.
pub(crate) const JOB: &str = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.App/jobs/{job}";

pub(crate) fn routes() -> Vec<Route> {
    const ALL: &str = "/subscriptions/{subscription}/providers/Microsoft.App/jobs";
    const IN_GROUP: &str = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.App/jobs";
    vec![
        Route::arm(Method::GET, ALL, list_all),
        Route::arm(Method::GET, IN_GROUP, list_group),
        Route::arm(Method::GET, JOB, get),
        Route::arm(Method::PUT, JOB, crate::job_write::put),
        Route::arm(Method::PATCH, JOB, crate::job_write::patch),
        Route::arm(Method::GET, format!("{JOB}/detectorProperties/rootApi"), get),
        Route::arm(Method::GET, format!("{JOB}/detectorProperties/{{api}}"), no_api),
        Route::arm(Method::GET, format!("{JOB}/detectors"), no_detectors),
        Route::arm(Method::GET, format!("{JOB}/detectors/{{detector}}"), no_detector),
    ]
}

/// The job of the path.
///
/// # Errors
/// 404 for it or for its group.
pub(crate) fn require(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
    let id = call.id(KIND, "job")?;
    if let Some(row) = plane.store().resource(&id)? {
        return Ok(row);
    }
    let group = groups::require(plane, call)?;
    Err(ArmError::resource_not_found(KIND, id.name(), group.id.name()).into())
}

/// The job of the path, to change something or to start it.
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

/// The model value of a stored job.
pub(crate) fn model(row: &ResourceRow) -> Result<Job, Refusal> {
    let spec = row.spec.as_ref().unwrap_or(&Value::Null);
    Job::deserialize(spec).map_err(|error| Refusal::Broken(format!("stored job `{}`: {error}", row.id)))
}

/// The jobs that live in an environment.
pub(crate) fn in_environment(plane: &ControlPlane, environment: &ResourceId) -> Result<Vec<ResourceRow>, Refusal> {
    Ok(plane.store().resources_in(KIND, environment)?)
}

/// What a job has in common with an app, for the checks and events of apps.
pub(crate) fn as_app(job: &Job) -> ContainerApp {
    ContainerApp {
        id: job.id.clone(),
        environment: job.environment.clone(),
        active_revisions_mode: ActiveRevisionsMode::Single,
        ingress: None,
        registries: job.registries.clone(),
        max_inactive_revisions: 0,
        template: job.template.clone(),
        is_stopped: false,
        workload_profile: job.workload_profile.clone(),
    }
}

/// The job as Azure shows it.
pub(crate) fn render(plane: &ControlPlane, call: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
    let model = model(row)?;
    let view = job::View {
        id: &row.id,
        provisioning_state: row.provisioning.as_arm(),
        origin: &call.origin,
        outbound_ips: std::slice::from_ref(&plane.config().static_ip),
        system_data: Some(&environments::system_data(row)),
    };
    let mut value = job::render(&row.doc, &model, &view);
    identities::complete(plane, &mut value, row)?;
    let environment = plane.store().snapshot::<Environment>(&model.environment)?.and_then(|found| found.spec);
    if let Some(text) = environment.and_then(|environment| apps::gpu_warning(&environment, &as_app(&model))) {
        apps::add_warning(&mut value, &text);
    }
    Ok(value)
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

async fn get(plane: ControlPlane, call: Call) -> Answer {
    let row = require(&plane, &call)?;
    crud::shown(200, &row, &render(&plane, &call, &row)?)
}

/// Azure's support has detectors; this server has none.
async fn no_detectors(plane: ControlPlane, call: Call) -> Answer {
    require(&plane, &call)?;
    Ok(answer::json(200, &cove_arm::list::render(Vec::new(), None)))
}

async fn no_detector(plane: ControlPlane, call: Call) -> Answer {
    not_found(&plane, &call, "detectors", "detector")
}

async fn no_api(plane: ControlPlane, call: Call) -> Answer {
    not_found(&plane, &call, "detectorProperties", "api")
}

fn not_found(plane: &ControlPlane, call: &Call, kind: &str, segment: &str) -> Answer {
    let job = require(plane, call)?;
    let name: String = call.name(segment).chars().take(100).collect();
    Err(ArmError::resource_not_found(&format!("{KIND}/{kind}"), &name, job.id.group_name()).into())
}
