//! `containerApps/labelHistories`: which revisions a label pointed to, and when.
//!
//! The records are part of the app's document, written with every write of its labels; what became of a revision is read from
//! its status.

use cove_arm::{ArmError, container_app, list};
use cove_model::RevisionProvisioning;
use cove_store::{Expect, PutResource, ResourceRow, RevisionRow, SecretsChange, StoreError};
use http::Method;
use serde_json::{Value, json};

use crate::{
    answer::{self, Answer, Refusal},
    apps::{self, APP},
    call::Call,
    control_plane::ControlPlane,
    groups::TRIES_MAX,
    route::Route,
};

const KIND: &str = "Microsoft.App/containerApps/labelHistories";

pub(crate) fn routes() -> Vec<Route> {
    let all = format!("{APP}/labelHistories");
    let one = format!("{all}/{{label}}");
    vec![
        Route::arm(Method::GET, all, list_all),
        Route::arm(Method::GET, one.as_str(), get),
        Route::arm(Method::DELETE, one.as_str(), delete),
    ]
}

fn render(app: &ResourceRow, label: &str, records: &[Value], revisions: &[RevisionRow]) -> Value {
    let status = |name: &str| {
        let found = revisions.iter().find(|row| row.revision.name.as_str() == name);
        match found.map(|row| row.status.provisioning) {
            Some(RevisionProvisioning::Provisioning) => "Starting",
            Some(RevisionProvisioning::Failed) => "Failed",
            // a revision that is gone was replaced by one that was ready
            Some(_) | None => "Succeeded",
        }
    };
    let records = records.iter().rev().map(|record| {
        let mut record = record.clone();
        record["status"] = json!(status(record["revision"].as_str().unwrap_or("")));
        record
    });
    json!({
        "id": format!("{}/labelHistories/{label}", app.id),
        "name": label,
        "type": KIND,
        "properties": { "records": records.collect::<Vec<_>>() },
    })
}

async fn list_all(plane: ControlPlane, call: Call) -> Answer {
    let app = apps::require(&plane, &call)?;
    let revisions = plane.store().revisions(&app.id)?;
    let history = container_app::label_history(&app.doc);
    let values = history.iter().map(|(label, records)| render(&app, label, records, &revisions));
    Ok(answer::json(200, &list::render(values.collect(), None)))
}

async fn get(plane: ControlPlane, call: Call) -> Answer {
    let app = apps::require(&plane, &call)?;
    let history = container_app::label_history(&app.doc);
    let Some((label, records)) = history.iter().find(|(label, _)| label.eq_ignore_ascii_case(call.name("label")))
    else {
        return Err(unknown(&app, &call));
    };
    let revisions = plane.store().revisions(&app.id)?;
    Ok(answer::json(200, &render(&app, label, records, &revisions)))
}

fn unknown(app: &ResourceRow, call: &Call) -> Refusal {
    let shown: String = call.name("label").chars().take(80).collect();
    ArmError::resource_not_found(KIND, &shown, app.id.group_name()).into()
}

/// Forgets what a label pointed to; what it points to now begins a new history with the next write of the app.
async fn delete(plane: ControlPlane, call: Call) -> Answer {
    let label = call.name("label").to_ascii_lowercase();
    for _ in 0..TRIES_MAX {
        let row = apps::require_writable(&plane, &call)?;
        let Some(doc) = container_app::forget_label(&row.doc, &label) else { return Ok(answer::empty(204)) };
        let put = PutResource {
            id: row.id.clone(),
            doc,
            spec: row.spec.clone(),
            secrets: SecretsChange::Keep,
            provisioning: row.provisioning,
            operation: None,
            revision: None,
            expect: Expect::Generation(row.generation),
            now: plane.clock().now(),
        };
        match plane.store().put(put).await {
            Ok(_) => return Ok(answer::empty(200)),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Conflict { id: call.id(apps::KIND, "app")? }.into())
}
