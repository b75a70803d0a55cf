//! Revisions of an app: list, get, activate, deactivate, restart. They are made by writes of the app only.

use cove_arm::{ArmError, list, revision};
use cove_model::{ActiveRevisionsMode, ContainerApp, Revision};
use cove_store::{ResourceRow, RevisionRow};
use http::Method;
use serde_json::{Value, json};

use crate::{
    answer::{self, Answer, Refusal},
    apps::{self, APP},
    call::Call,
    control_plane::ControlPlane,
    route::Route,
};

pub(crate) fn routes() -> Vec<Route> {
    let one = format!("{APP}/revisions/{{revision}}");
    vec![
        Route::arm(Method::GET, format!("{APP}/revisions"), list_all),
        Route::arm(Method::GET, one.as_str(), get),
        Route::arm(Method::POST, format!("{one}/activate"), activate),
        Route::arm(Method::POST, format!("{one}/deactivate"), deactivate),
        Route::arm(Method::POST, format!("{one}/restart"), restart),
    ]
}

/// The revision of the path, of an app that is there.
pub(crate) fn require(plane: &ControlPlane, call: &Call, app: &ResourceRow) -> Result<RevisionRow, Refusal> {
    let name = call.name("revision");
    let found = plane.store().revision(&app.id, name)?;
    found.ok_or_else(|| ArmError::revision_not_found(app.id.name(), &name.chars().take(100).collect::<String>()).into())
}

/// Labels that point to a revision by its name.
fn labels_of(app: &ContainerApp, revision: &str) -> Vec<String> {
    let weights = app.ingress.as_ref().map_or(&[][..], |ingress| &ingress.traffic);
    let mine = weights.iter().filter(|weight| weight.revision.as_deref() == Some(revision));
    mine.filter_map(|weight| weight.label.clone()).collect()
}

/// In labels mode labels decide which revisions are active.
fn check_mode(plane: &ControlPlane, call: &Call, activates: bool) -> Result<(), Refusal> {
    let row = apps::require_writable(plane, call)?;
    let app = apps::model(&row)?;
    if app.active_revisions_mode != ActiveRevisionsMode::Labels {
        return Ok(());
    }
    let revision = require(plane, call, &row)?.revision.name;
    let labels = labels_of(&app, revision.as_str());
    let message = match (activates, labels.is_empty()) {
        (true, false) | (false, true) => return Ok(()),
        (true, true) => format!("In labels mode revision '{revision}' is active when it has a label; give it one."),
        (false, false) => {
            format!(
                "In labels mode revision '{revision}' is active while it has a label; remove {} first.",
                labels.join(", ")
            )
        }
    };
    Err(ArmError::new(400, "LabelsDecideActivity", message).into())
}

fn render(plane: &ControlPlane, app: &ContainerApp, domain: &str, row: &RevisionRow) -> Value {
    let labels = labels_of(app, row.revision.name.as_str());
    let view = revision::RevisionView {
        revision: &row.revision,
        template: &row.doc,
        status: &row.status,
        default_domain: domain,
        labels: &labels,
        last_active_at: None,
        scale_defaults: &plane.config().scale_defaults,
    };
    revision::render(&view)
}

pub(crate) async fn list_all(plane: ControlPlane, call: Call) -> Answer {
    let row = apps::require(&plane, &call)?;
    let app = apps::model(&row)?;
    let domain = apps::domain(&plane, &app)?;
    let wants = call.query("$filter").map(only_active).transpose()?.flatten();
    let rows = plane.store().revisions(&row.id)?;
    let shown = rows.iter().filter(|row| wants.is_none_or(|active| row.revision.is_active == active));
    Ok(answer::json(200, &list::render(shown.map(|row| render(&plane, &app, &domain, row)).collect(), None)))
}

/// `properties/active eq true`, the one filter that clients send; none when the text is empty.
fn only_active(filter: &str) -> Result<Option<bool>, ArmError> {
    match filter.trim().to_ascii_lowercase().as_str() {
        "" => Ok(None),
        "properties/active eq true" | "active eq true" => Ok(Some(true)),
        "properties/active eq false" | "active eq false" => Ok(Some(false)),
        other => {
            let shown: String = other.chars().take(200).collect();
            let message = format!("The filter '{shown}' is not supported; expected 'properties/active eq true'.");
            Err(ArmError::new(400, "InvalidFilterInQueryString", message))
        }
    }
}

pub(crate) async fn get(plane: ControlPlane, call: Call) -> Answer {
    let row = apps::require(&plane, &call)?;
    let revision = require(&plane, &call, &row)?;
    let app = apps::model(&row)?;
    let domain = apps::domain(&plane, &app)?;
    Ok(answer::json(200, &render(&plane, &app, &domain, &revision)))
}

async fn activate(plane: ControlPlane, call: Call) -> Answer {
    check_mode(&plane, &call, true)?;
    let now = plane.clock().now();
    change(&plane, &call, move |revision| {
        if !revision.is_active {
            revision.is_active = true;
            revision.activated_at = now;
        }
    })
    .await
}

async fn deactivate(plane: ControlPlane, call: Call) -> Answer {
    check_mode(&plane, &call, false)?;
    change(&plane, &call, |revision| revision.is_active = false).await
}

async fn restart(plane: ControlPlane, call: Call) -> Answer {
    let row = apps::require_writable(&plane, &call)?;
    if !require(&plane, &call, &row)?.revision.is_active {
        let message = "An inactive revision runs nothing that could be restarted; activate it instead.";
        return Err(ArmError::new(400, "ContainerAppRevisionNotActive", message).into());
    }
    change(&plane, &call, |revision| revision.restart_generation += 1).await
}

/// Clients want a JSON body, and Azure gives this one.
async fn change(plane: &ControlPlane, call: &Call, change: impl FnOnce(&mut Revision) + Send + 'static) -> Answer {
    let row = apps::require_writable(plane, call)?;
    let key = require(plane, call, &row)?.revision.key();
    plane.store().change_revision(key, change).await?;
    Ok(answer::json(200, &json!("Success")))
}
