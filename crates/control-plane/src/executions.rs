//! `jobs/executions` and their replicas, and the streams of their logs.
//!
//! An execution has its replicas as long as it is kept, also those that ended: their lines can still be read.

use std::time::Duration;

use cove_arm::{ArmError, job, list};
use cove_model::{Execution, ExecutionReplica, ProgressLine, ReplicaObservation, RevisionKey, RevisionName};
use cove_store::ResourceRow;
use futures_util::StreamExt;
use http::Method;
use serde_json::{Value, json};

use crate::{
    answer::{self, Answer, Refusal},
    call::Call,
    control_plane::ControlPlane,
    jobs::{self, JOB},
    route::Route,
    streams::{self, Asked, ConsoleQuery},
};

/// Lines from the end among which progress is looked for.
const PROGRESS_LINES: u32 = 50;
/// Longest wait for them; the answer does without them then.
const PROGRESS_LIMIT: Duration = Duration::from_secs(1);

pub(crate) fn routes() -> Vec<Route> {
    let one = format!("{JOB}/executions/{{execution}}");
    // the data plane has no `/providers/Microsoft.App` in its paths
    let data = "/subscriptions/{subscription}/resourceGroups/{group}/jobs/{job}";
    let container = "executions/{execution}/replicas/{replica}/containers/{container}";
    vec![
        Route::arm(Method::GET, format!("{JOB}/executions"), list_all),
        Route::arm(Method::GET, one.as_str(), get),
        Route::arm(Method::GET, format!("{one}/replicas"), replicas),
        Route::arm(Method::GET, format!("{one}/replicas/{{replica}}"), replica),
        Route::data(Method::GET, format!("{data}/{container}/logstream"), console),
        Route::data(Method::GET, format!("{data}/eventstream"), events),
    ]
}

/// The execution of the path.
///
/// # Errors
/// 404 for it.
pub(crate) fn require(plane: &ControlPlane, call: &Call, job: &ResourceRow) -> Result<Execution, Refusal> {
    let name = call.name("execution").to_ascii_lowercase();
    let not_found = || {
        let shown: String = name.chars().take(100).collect();
        let message = format!(
            "Execution '{shown}' of job '{}' was not found; the last {} that succeeded and as many others are kept.",
            job.id.name(),
            cove_model::EXECUTION_HISTORY_MAX
        );
        ArmError::new(404, "ContainerAppJobExecutionNotFound", message)
    };
    let key = RevisionKey { app: job.id.clone(), name: RevisionName::new(&name).map_err(|_| not_found())? };
    Ok(plane.store().execution(&key)?.ok_or_else(not_found)?)
}

fn render(plane: &ControlPlane, execution: &Execution) -> Result<Value, Refusal> {
    let observed = if execution.status.is_final() { Vec::new() } else { plane.store().replicas(&execution.key())? };
    let Some(place) = plane.place_in_line(&execution.key()) else {
        return Ok(job::render_execution(execution, &observed));
    };
    let mut waiting = execution.clone();
    let why = waiting.message.as_deref().unwrap_or("it waits for room");
    waiting.message = Some(format!("place {place} in the line: {why}"));
    Ok(job::render_execution(&waiting, &observed))
}

/// Executions, the newest first; `$filter` takes `Status eq 'Running'`.
async fn list_all(plane: ControlPlane, call: Call) -> Answer {
    let row = jobs::require(&plane, &call)?;
    let mut found = plane.store().executions(&row.id)?;
    if let Some(filter) = call.query("$filter").filter(|filter| !filter.trim().is_empty()) {
        let status = status_of(filter)?;
        found.retain(|execution| execution.status.as_arm().eq_ignore_ascii_case(&status));
    }
    let values: Result<Vec<Value>, Refusal> = found.iter().map(|execution| render(&plane, execution)).collect();
    Ok(answer::json(200, &list::render(values?, None)))
}

/// The status that a filter asks for.
fn status_of(filter: &str) -> Result<String, ArmError> {
    let words: Vec<&str> = filter.split_whitespace().collect();
    if let [name, operator, value] = words[..]
        && ["status", "properties/status"].iter().any(|known| known.eq_ignore_ascii_case(name))
        && operator.eq_ignore_ascii_case("eq")
    {
        return Ok(value.trim_matches(['\'', '"']).to_owned());
    }
    let shown: String = filter.chars().take(80).collect();
    let message = format!("The filter '{shown}' is not valid; expected such as \"Status eq 'Running'\".");
    Err(ArmError::new(400, "InvalidFilterInQueryString", message).at("$filter"))
}

async fn get(plane: ControlPlane, call: Call) -> Answer {
    let row = jobs::require(&plane, &call)?;
    let execution = require(&plane, &call, &row)?;
    let mut value = render(&plane, &execution)?;
    if let Some(progress) = progress(&plane, &execution).await {
        let percent = f64::from(progress.permille) / 10.0;
        value["properties"]["coveProgress"] = json!({ "percent": percent, "text": progress.text });
    }
    Ok(answer::json(200, &value))
}

/// What the first container of the newest replica told last of its progress, if that is among its last lines.
async fn progress(plane: &ControlPlane, execution: &Execution) -> Option<ProgressLine> {
    let replica = execution.replicas.iter().rfind(|replica| replica.started_at.is_some())?;
    let query = ConsoleQuery {
        app: execution.job.clone(),
        revision: execution.name.clone(),
        replica: replica.name.clone(),
        container: execution.template.containers.first()?.name.clone(),
        tail: PROGRESS_LINES,
        follow: false,
        as_copied: true,
    };
    let lines = plane.streams().console(query);
    let last = lines
        .filter_map(|line| async move { ProgressLine::parse(&line.text) })
        .fold(None, |_, line| async move { Some(line) });
    tokio::time::timeout(PROGRESS_LIMIT, last).await.ok().flatten()
}

fn seen_of<'a>(replica: &ExecutionReplica, all: &'a [ReplicaObservation]) -> Option<&'a ReplicaObservation> {
    all.iter().find(|seen| seen.name == replica.name)
}

async fn replicas(plane: ControlPlane, call: Call) -> Answer {
    let row = jobs::require(&plane, &call)?;
    let execution = require(&plane, &call, &row)?;
    let seen = plane.store().replicas(&execution.key())?;
    let newest_first = execution.replicas.iter().rev().filter(|replica| replica.started_at.is_some());
    let values =
        newest_first.map(|replica| job::render_replica(&execution, replica, seen_of(replica, &seen), &call.origin));
    Ok(answer::json(200, &list::render(values.collect(), None)))
}

/// The replica of the path.
fn require_replica<'a>(call: &Call, execution: &'a Execution) -> Result<&'a ExecutionReplica, Refusal> {
    let name = call.name("replica");
    let found = execution.replicas.iter().find(|replica| replica.name.as_str().eq_ignore_ascii_case(name));
    Ok(found.ok_or_else(|| {
        let shown: String = name.chars().take(100).collect();
        let message = format!("Replica '{shown}' of execution '{}' was not found.", execution.name);
        ArmError::new(404, "ContainerAppReplicaNotFound", message)
    })?)
}

async fn replica(plane: ControlPlane, call: Call) -> Answer {
    let row = jobs::require(&plane, &call)?;
    let execution = require(&plane, &call, &row)?;
    let replica = require_replica(&call, &execution)?;
    let seen = plane.store().replicas(&execution.key())?;
    Ok(answer::json(200, &job::render_replica(&execution, replica, seen_of(replica, &seen), &call.origin)))
}

/// Lines of a container; a followed one's stream ends soon after its replica.
async fn console(plane: ControlPlane, call: Call) -> Answer {
    let row = jobs::require(&plane, &call)?;
    streams::check_scope(&call, &row.id)?;
    let asked = Asked::of(&call)?;
    let execution = require(&plane, &call, &row)?;
    let replica = require_replica(&call, &execution)?.clone();
    let container = call.name("container").to_owned();
    let template = &execution.template;
    if !template.containers.iter().chain(&template.init_containers).any(|known| known.name == container) {
        let shown: String = container.chars().take(100).collect();
        let message = format!("Execution '{}' has no container '{shown}'.", execution.name);
        return Err(ArmError::new(404, "ContainerNotFound", message).into());
    }
    let (key, store, ours) = (execution.key(), plane.store().clone(), replica.name.clone());
    let runs = move || {
        let found = store.execution(&key).ok().flatten();
        let replica = found.and_then(|found| found.replicas.into_iter().find(|replica| replica.name == ours));
        replica.is_some_and(|replica| replica.ended_at.is_none())
    };
    let query = ConsoleQuery {
        app: row.id,
        revision: execution.name.clone(),
        replica: replica.name,
        container,
        tail: asked.tail,
        follow: asked.follow && replica.ended_at.is_none(),
        as_copied: false,
    };
    let as_text = asked.as_text;
    let lines = plane.streams().console(query).map(move |line| streams::console_line(&line, as_text));
    streams::respond(&plane, lines.boxed(), as_text, Box::new(runs))
}

async fn events(plane: ControlPlane, call: Call) -> Answer {
    let row = jobs::require(&plane, &call)?;
    streams::events(&plane, &call, row.id)
}
