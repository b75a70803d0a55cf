//! `whatIf`: what a deployment would create, change, delete or leave, found by looking before and after a rehearsal.
//!
//! Both looks are the API's own GET, so a default that the server adds is on both sides and is no change.

use std::collections::{BTreeMap, BTreeSet};

use cove_arm::ArmError;
use cove_model::ResourceId;
use http::Method;
use serde_json::{Value, json};

use super::{KIND, agent::Agent, delta, place::Place, rehearse, request::Request, runs::Touched};
use crate::{
    answer::{self, Answer, Refusal},
    call::Call,
    control_plane::ControlPlane,
};

/// Answered at once: 200 with the changes.
pub(crate) async fn what_if(plane: ControlPlane, call: Call) -> Answer {
    let place = Place::to_deploy(&plane, &call)?;
    let request = Request::read(&plane, &call, &place).await?;
    let is_short = wants_ids_only(&call)?;
    let agent = Agent::of(&plane, &call);
    let rehearsed = rehearse::check(&agent, &place, &request).await?;
    let rehearsal = agent.on(&rehearsed.plane);
    let mut changes = Vec::new();
    let mut seen = BTreeSet::new();
    for touched in newest(rehearsed.plane.runs().journal()) {
        seen.insert(touched.id.to_ascii_lowercase());
        changes.push(change(&agent, &rehearsal, &touched).await?);
    }
    changes.extend(untouched(&agent, &place, &seen).await?);
    if is_short {
        for change in &mut changes {
            if let Some(fields) = change.as_object_mut() {
                fields.retain(|name, _| !matches!(name.as_str(), "before" | "after" | "delta"));
            }
        }
    }
    let body = json!({
        "status": "Succeeded",
        "properties": { "correlationId": agent.correlation, "changes": changes, "potentialChanges": [], "diagnostics": [] },
    });
    Ok(answer::json(200, &body))
}

fn wants_ids_only(call: &Call) -> Result<bool, ArmError> {
    let body = cove_template::parse_body(&call.body).unwrap_or_default();
    match body.pointer("/properties/whatIfSettings/resultFormat").and_then(Value::as_str) {
        None => Ok(false),
        Some(format) if format.eq_ignore_ascii_case("FullResourcePayloads") => Ok(false),
        Some(format) if format.eq_ignore_ascii_case("ResourceIdOnly") => Ok(true),
        Some(format) => {
            let message =
                format!("'{format}' is not a result format; expected FullResourcePayloads or ResourceIdOnly.");
            Err(ArmError::invalid("properties.whatIfSettings.resultFormat", message))
        }
    }
}

/// One entry per resource, in the order of the last writes.
fn newest(journal: Vec<Touched>) -> Vec<Touched> {
    // by id: resources are written side by side, so the journal's order is chance
    let last: BTreeMap<String, Touched> =
        journal.into_iter().map(|touched| (touched.id.to_ascii_lowercase(), touched)).collect();
    last.into_values().collect()
}

/// The resource as a GET shows it, without what nobody writes; `None` when there is none.
async fn look(agent: &Agent, id: &str, api_version: &str) -> Result<Option<Value>, ArmError> {
    match agent.send(Method::GET, id, api_version, None).await {
        Ok(reply) => {
            let mut value = delta::written(&reply.body);
            if !api_version.is_empty() {
                value["apiVersion"] = json!(api_version);
            }
            Ok(Some(value))
        }
        Err(error) if error.status == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

async fn change(agent: &Agent, rehearsal: &Agent, touched: &Touched) -> Result<Value, Refusal> {
    let before = look(agent, &touched.id, &touched.api_version).await?;
    let after = look(rehearsal, &touched.id, &touched.api_version).await?;
    let mut change = json!({ "resourceId": touched.id, "deploymentId": touched.deployment });
    if let Some(symbolic) = &touched.symbolic {
        change["symbolicName"] = json!(symbolic);
    }
    change["changeType"] = json!(match (&before, &after) {
        (None, Some(_)) => "Create",
        (Some(_), None) => "Delete",
        (None, None) => "NoChange",
        (Some(before), Some(after)) => {
            let mut found = delta::between(before, after);
            found.extend(secrets(agent, rehearsal, &touched.id)?);
            let is_same = found.is_empty();
            change["delta"] = Value::Array(found);
            if is_same { "NoChange" } else { "Modify" }
        }
    });
    for (name, value) in [("before", before), ("after", after)] {
        if let Some(value) = value {
            change[name] = value;
        }
    }
    Ok(change)
}

/// Secrets whose value changes: a GET never shows them, so they are looked at beside it and named only.
fn secrets(agent: &Agent, rehearsal: &Agent, id: &str) -> Result<Vec<Value>, Refusal> {
    let Ok(id) = ResourceId::parse(id) else { return Ok(Vec::new()) };
    let (before, after) = (agent.plane.store().secrets(&id)?, rehearsal.plane.store().secrets(&id)?);
    let changed = after.iter().filter(|(name, value)| before.get(*name).is_some_and(|old| old != *value));
    Ok(changed
        .map(|(name, _)| {
            json!({
                "path": format!("secrets.{name}.value"),
                "propertyChangeType": "Modify",
                "before": "(a secret)",
                "after": "(another secret)",
            })
        })
        .collect())
}

/// Resources of the group that the template does not speak of: they are ignored.
async fn untouched(agent: &Agent, place: &Place, seen: &BTreeSet<String>) -> Result<Vec<Value>, Refusal> {
    if place.group.is_none() {
        return Ok(Vec::new());
    }
    let mut ignored = Vec::new();
    for row in agent.plane.store().resources_below(&place.scope)? {
        let is_own = row.id.parent().is_none() && row.id.scope().as_ref() == Some(&place.scope);
        if !is_own || row.id.kind().eq_ignore_ascii_case(KIND) || seen.contains(row.id.key()) {
            continue;
        }
        if let Some(value) = look(agent, row.id.as_str(), "").await? {
            ignored.push(json!({
                "resourceId": row.id.as_str(), "changeType": "Ignore", "before": value, "after": value,
            }));
        }
    }
    Ok(ignored)
}
