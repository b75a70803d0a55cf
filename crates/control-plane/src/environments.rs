//! `Microsoft.App/managedEnvironments`. Nothing runs for an environment itself, so its writes finish inside the request.
//!
//! **Invariant:** no two environments of this server have the same default domain.

use std::{collections::BTreeMap, time::Duration};

use cove_arm::{ArmError, SystemData, environment, list};
use cove_model::{Environment, ResourceId, WorkloadProfile, WorkloadProfileKind};
use cove_store::{Expect, NewOperation, Provisioning, PutResource, ResourceRow, SecretsChange, StoreError};
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    answer::{self, Answer, Refusal, with_etag},
    apps,
    call::Call,
    control_plane::{ControlPlane, new_id},
    crud,
    environment::suffix,
    groups::{self, TRIES_MAX, check_same_location},
    jobs,
    links::{self, Family},
    route::Route,
    session_pools,
    token::{Claims, Use, Who},
    workspaces::{child_of, stamped},
};

pub(crate) const KIND: &str = "Microsoft.App/managedEnvironments";
/// Life of a stream token.
pub(crate) const STREAM_TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

pub(crate) fn routes() -> Vec<Route> {
    const PROVIDER: &str = "/subscriptions/{subscription}/providers/Microsoft.App";
    const IN_GROUP: &str =
        "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.App/managedEnvironments";
    let one = format!("{IN_GROUP}/{{environment}}");
    vec![
        Route::arm(Method::GET, format!("{PROVIDER}/managedEnvironments"), list_all),
        Route::arm(Method::GET, IN_GROUP, list_group),
        Route::arm(Method::PUT, one.as_str(), put),
        Route::arm(Method::PATCH, one.as_str(), patch),
        Route::arm(Method::GET, one.as_str(), get),
        Route::arm(Method::DELETE, one.as_str(), delete),
        Route::arm(Method::GET, format!("{one}/workloadProfileStates"), profile_states),
        Route::arm(Method::GET, format!("{one}/usages"), usages),
        Route::arm(Method::POST, format!("{one}/getAuthToken"), auth_token),
    ]
}

/// The environment of the path.
pub(crate) fn require(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
    let id = call.id(KIND, "environment")?;
    if let Some(row) = plane.store().resource(&id)? {
        return Ok(row);
    }
    let group = groups::require(plane, call)?;
    Err(ArmError::resource_not_found(KIND, id.name(), group.id.name()).into())
}

/// The model value of a stored environment.
pub(crate) fn model(row: &ResourceRow) -> Result<Environment, Refusal> {
    let spec = row.spec.clone().unwrap_or(Value::Null);
    serde_json::from_value(spec).map_err(|error| Refusal::Broken(format!("stored environment `{}`: {error}", row.id)))
}

/// Who made and wrote a stored resource.
pub(crate) fn system_data(row: &ResourceRow) -> SystemData {
    let who = |name: &str| row.doc.pointer(name).and_then(Value::as_str).unwrap_or("anonymous").to_owned();
    SystemData {
        created_by: who("/systemData/createdBy"),
        created_at: row.created_at,
        last_modified_by: who("/systemData/lastModifiedBy"),
        last_modified_at: row.updated_at,
    }
}

fn render(plane: &ControlPlane, call: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
    let model = model(row)?;
    let state = match row.provisioning {
        Provisioning::InProgress => "InitializationInProgress",
        Provisioning::Deleting => "ScheduledForDelete",
        state @ (Provisioning::Succeeded | Provisioning::Failed | Provisioning::Canceled) => state.as_arm(),
    };
    let view = environment::View {
        id: &row.id,
        provisioning_state: state,
        default_domain: &model.default_domain,
        static_ip: &plane.config().static_ip,
        origin: &call.origin,
        custom_domain_verification_id: plane.verification_id(),
        system_data: Some(&system_data(row)),
    };
    Ok(environment::render(&row.doc, &view))
}

async fn list_all(plane: ControlPlane, call: Call) -> Answer {
    let rows = plane.store().resources(KIND, Some(&call.subscription_id()?))?;
    crud::list(&call, &rows, |row| render(&plane, &call, row))
}

async fn list_group(plane: ControlPlane, call: Call) -> Answer {
    let group = groups::require(&plane, &call)?;
    let rows = plane.store().resources(KIND, Some(&group.id))?;
    crud::list(&call, &rows, |row| render(&plane, &call, row))
}

async fn get(plane: ControlPlane, call: Call) -> Answer {
    show(&plane, &call)
}

/// The environment of the path, as it is.
pub(crate) fn show(plane: &ControlPlane, call: &Call) -> Answer {
    let row = require(plane, call)?;
    crud::shown(200, &row, &render(plane, call, &row)?)
}

async fn put(plane: ControlPlane, call: Call) -> Answer {
    let body = call.object()?;
    write(&plane, &call, |_, context| environment::parse_put(&body, context)).await
}

async fn patch(plane: ControlPlane, call: Call) -> Answer {
    let body = call.object()?;
    write(&plane, &call, |old, context| {
        let group = call.name("group");
        let old = old.ok_or_else(|| ArmError::resource_not_found(KIND, context.id.name(), group))?;
        environment::parse_patch(&old.doc, &body, context)
    })
    .await
}

async fn write(
    plane: &ControlPlane,
    call: &Call,
    parse: impl Fn(Option<&ResourceRow>, &environment::PutContext<'_>) -> Result<environment::Parsed, ArmError>,
) -> Answer {
    let _structure = plane.structure().await;
    let group = groups::require_writable(plane, call)?;
    let id = child_of(&group, KIND, call.name("environment"))?;
    for _ in 0..TRIES_MAX {
        let old = plane.store().resource(&id)?;
        call.precondition().check(id.as_str(), old.as_ref())?;
        let domain = match &old {
            Some(old) => model(old)?.default_domain,
            None => free_domain(plane, &id)?,
        };
        let context = environment::PutContext { id: old.as_ref().map_or(&id, |old| &old.id), default_domain: &domain };
        let mut parsed = parse(old.as_ref(), &context)?;
        suffix::complete(plane, context.id, old.as_ref(), &mut parsed)?;
        if let Some(old) = &old {
            if old.provisioning == Provisioning::Deleting {
                return Err(ArmError::operation_in_progress(id.as_str()).into());
            }
            check_same_location(&old.doc, &parsed.doc)?;
            check_profiles_in_use(plane, &id, &parsed.environment)?;
        }
        match save(plane, call, &id, old.as_ref(), parsed).await {
            Ok((row, operation)) => {
                crud::warn(plane, &row.id, environment::warnings(&row.doc));
                return answered(plane, call, old.is_none(), &row, &operation);
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Conflict { id }.into())
}

async fn save(
    plane: &ControlPlane,
    call: &Call,
    id: &ResourceId,
    old: Option<&ResourceRow>,
    parsed: environment::Parsed,
) -> Result<(ResourceRow, String), StoreError> {
    let operation = NewOperation { id: new_id(), kind: if old.is_some() { "update" } else { "create" }.into() };
    let operation_id = operation.id.clone();
    let secrets = SecretsChange::Replace(parsed.secrets);
    let put = PutResource {
        id: id.clone(),
        doc: stamped(parsed.doc, old, call),
        spec: Some(serde_json::to_value(&parsed.environment)?),
        secrets,
        provisioning: Provisioning::Succeeded,
        operation: Some(operation),
        revision: None,
        expect: old.map_or(Expect::Absent, |old| Expect::Generation(old.generation)),
        now: plane.clock().now(),
    };
    let row = plane.store().put(put).await?;
    plane.store().finish(row.id.clone(), row.generation, None, plane.clock().now()).await?;
    Ok((row, operation_id))
}

/// A new one is 201 with the operation that clients want to poll, done already; a changed one is 200.
fn answered(plane: &ControlPlane, call: &Call, is_new: bool, row: &ResourceRow, operation: &str) -> Answer {
    let body = render(plane, call, row)?;
    if !is_new {
        return Ok(with_etag(answer::json(200, &body), &row.etag));
    }
    let response = with_etag(answer::json(201, &body), &row.etag);
    Ok(links::with_status(plane, call, Family::Environment, operation, response))
}

/// `<name>.<domain>`, or with a part of the id's hash when another environment of that name has it.
fn free_domain(plane: &ControlPlane, id: &ResourceId) -> Result<String, Refusal> {
    let others = plane.store().resources(KIND, None)?;
    let taken: Result<Vec<String>, Refusal> =
        others.iter().map(|row| Ok(model(row)?.default_domain.to_ascii_lowercase())).collect();
    let taken = taken?;
    let name = id.name().to_ascii_lowercase();
    let hash: String = Sha256::digest(id.key().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let names =
        std::iter::once(name.clone()).chain((6..=hash.len()).map(|length| format!("{name}-{}", &hash[..length])));
    names
        .map(|name| format!("{name}.{}", plane.config().domain))
        .find(|domain| !taken.contains(domain))
        .ok_or_else(|| Refusal::Broken(format!("no free domain for `{id}`")))
}

/// A profile that an app uses cannot be taken away.
fn check_profiles_in_use(plane: &ControlPlane, id: &ResourceId, new: &Environment) -> Result<(), Refusal> {
    let jobs = jobs::in_environment(plane, id)?;
    for app in apps::in_environment(plane, id)?.iter().chain(&jobs) {
        let profile = app.doc.pointer("/properties/workloadProfileName").and_then(Value::as_str);
        let Some(profile) = profile else { continue };
        if !new.workload_profiles.iter().any(|known| known.name.eq_ignore_ascii_case(profile)) {
            let message = format!(
                "Workload profile '{profile}' is used by container app or job '{}'; move it to another profile first.",
                app.id.name()
            );
            return Err(ArmError::conflict("WorkloadProfileInUse", message).at("properties.workloadProfiles").into());
        }
    }
    Ok(())
}

/// Refused while apps live in it, also such that are being deleted: their deletion has to end first.
async fn delete(plane: ControlPlane, call: Call) -> Answer {
    let _structure = plane.structure().await;
    let id = call.id(KIND, "environment")?;
    let Some(row) = plane.store().resource(&id)? else { return Ok(answer::empty(204)) };
    call.precondition().check(id.as_str(), Some(&row))?;
    let apps = apps::in_environment(&plane, &id)?;
    if !apps.is_empty() {
        let names: Vec<String> = apps.iter().map(|app| app.id.name().to_owned()).collect();
        return Err(ArmError::environment_in_use(id.name(), &names).into());
    }
    let jobs = jobs::in_environment(&plane, &id)?;
    if !jobs.is_empty() {
        let names: Vec<String> = jobs.iter().map(|job| job.id.name().to_owned()).collect();
        return Err(ArmError::environment_has_jobs(id.name(), &names).into());
    }
    let pools = session_pools::in_environment(&plane, &id)?;
    if !pools.is_empty() {
        let names: Vec<String> = pools.iter().map(|pool| pool.id.name().to_owned()).collect();
        return Err(ArmError::environment_has_session_pools(id.name(), &names).into());
    }
    let operation = NewOperation { id: new_id(), kind: "delete".into() };
    let link = operation.id.clone();
    plane.store().begin_delete(row.id.clone(), operation, plane.clock().now()).await?;
    plane.store().remove(row.id, plane.clock().now()).await?;
    Ok(links::with_location(&plane, &call, Family::Environment, &link, answer::empty(202)))
}

async fn profile_states(plane: ControlPlane, call: Call) -> Answer {
    let row = require(&plane, &call)?;
    let used = cores_by_profile(&plane, &row.id)?;
    let states = model(&row)?.workload_profiles.into_iter().map(|profile| {
        let WorkloadProfile { name, kind, min_nodes, max_nodes } = profile;
        let cores = used.get(&name.to_ascii_lowercase()).copied().unwrap_or(0.0);
        let nodes = nodes_in_use(&kind, cores).clamp(min_nodes, max_nodes.max(min_nodes));
        json!({
            "id": format!("{}/workloadProfileStates/{name}", row.id),
            "name": name,
            "type": "Microsoft.App/managedEnvironments/workloadProfileStates",
            "properties": { "minimumCount": min_nodes, "maximumCount": max_nodes, "currentCount": nodes },
        })
    });
    Ok(answer::json(200, &list::render(states.collect(), None)))
}

/// Cores that running replicas ask for, by workload profile in lower case.
fn cores_by_profile(plane: &ControlPlane, environment: &ResourceId) -> Result<BTreeMap<String, f64>, Refusal> {
    let mut cores: BTreeMap<String, f64> = BTreeMap::new();
    for app in apps::in_environment(plane, environment)? {
        let profile = apps::model(&app)?.workload_profile.filter(|name| !name.is_empty());
        let profile = profile.unwrap_or_else(|| "Consumption".to_owned()).to_ascii_lowercase();
        for revision in plane.store().revisions(&app.id)? {
            let containers = &revision.revision.template.containers;
            let per_replica: f64 = containers.iter().map(|container| container.resources.cpu.cores()).sum();
            *cores.entry(profile.clone()).or_default() += per_replica * f64::from(revision.status.replicas);
        }
    }
    for job in jobs::in_environment(plane, environment)? {
        for execution in plane.store().open_executions(&job.id)? {
            let profile = execution.workload_profile.as_deref().filter(|name| !name.is_empty());
            let profile = profile.unwrap_or("Consumption").to_ascii_lowercase();
            let containers = &execution.template.containers;
            let per_replica: f64 = containers.iter().map(|container| container.resources.cpu.cores()).sum();
            let running = execution.replicas.iter().filter(|one| one.started_at.is_some() && one.ended_at.is_none());
            *cores.entry(profile).or_default() += running.map(|_| per_replica).sum::<f64>();
        }
    }
    for row in session_pools::in_environment(plane, environment)? {
        let pool = session_pools::model(&row)?;
        let profile = pool.workload_profile.as_deref().unwrap_or("Consumption").to_ascii_lowercase();
        let per_session: f64 = pool.template.containers.iter().map(|container| container.resources.cpu.cores()).sum();
        // those that wait are frozen and use none
        let allocated = plane.store().sessions(&row.id)?.into_iter().filter(cove_model::Session::is_allocated);
        *cores.entry(profile).or_default() += allocated.map(|_| per_session).sum::<f64>();
    }
    Ok(cores)
}

/// How many nodes of a dedicated type so many cores fill; types without nodes have none.
fn nodes_in_use(kind: &str, cores: f64) -> u32 {
    let Some(kind) = WorkloadProfileKind::find(kind).filter(|kind| kind.is_dedicated) else { return 0 };
    let nodes = (cores / f64::from(kind.cores)).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small whole number")]
    let nodes = nodes.clamp(0.0, 1e6) as u32;
    nodes
}

/// The cores that running replicas of an environment may use. Cove sets no quota: the limit is what the machine has.
async fn usages(plane: ControlPlane, call: Call) -> Answer {
    let row = require(&plane, &call)?;
    let cores: f64 = cores_by_profile(&plane, &row.id)?.values().sum();
    let machine = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let name = "ManagedEnvironmentConsumptionCores";
    let usage = usage(name, "Managed Environment Consumption Cores", cores, machine);
    Ok(answer::json(200, &list::render(vec![usage], None)))
}

pub(crate) fn usage(name: &str, shown: &str, value: f64, limit: usize) -> Value {
    json!({ "unit": "Count", "currentValue": value, "limit": limit, "name": { "value": name, "localizedValue": shown } })
}

async fn auth_token(plane: ControlPlane, call: Call) -> Answer {
    let row = require(&plane, &call)?;
    Ok(answer::json(200, &stream_token(&plane, &call, &row)))
}

/// `getAuthToken`: a token for the streams of one app or environment.
pub(crate) fn stream_token(plane: &ControlPlane, call: &Call, row: &ResourceRow) -> Value {
    let who = match &call.caller {
        crate::auth::Caller::Token(claims) => claims.who(),
        crate::auth::Caller::Anonymous => Who::client("anonymous"),
    };
    let now = Timestamp::now();
    let mut claims = Claims::new(&plane.config().tenant, &who, Use::Data, &call.origin, now, STREAM_TOKEN_LIFETIME);
    claims.cove_scope = Some(row.id.key().to_owned());
    let expires = Timestamp::from_second(claims.exp).unwrap_or(now);
    let kinds = [KIND, jobs::KIND];
    let kind = kinds.into_iter().find(|kind| row.kind.eq_ignore_ascii_case(kind)).unwrap_or(apps::KIND);
    json!({
        "id": row.id.as_str(),
        "name": row.id.name(),
        "type": kind,
        "location": row.doc.get("location").and_then(Value::as_str).unwrap_or("local"),
        "properties": { "token": plane.token_key().sign(&claims), "expires": expires.to_string() },
    })
}
