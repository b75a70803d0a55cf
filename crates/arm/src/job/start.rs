//! `start` with another template: what one execution runs instead of what the job says.
//!
//! Containers are matched by name; what one leaves out (image, command, environment, …) it takes from the job's, and what it
//! gives replaces the whole property, lists included. The list of containers that is given is the whole list.

use std::collections::BTreeSet;

use cove_model::{Job, Template};
use serde_json::{Value, json};

use super::{check, properties};
use crate::{
    ArmError, Errors,
    container_app::template,
    node::Node,
    schema::{Nulls, normalise},
    user_identity::read_block,
};

/// The template of one execution; `None` when the body asks for nothing else than the job's. `doc` is the job's stored
/// document, `secrets` the names of its secrets.
///
/// # Errors
/// Every problem at once.
pub fn parse_start(
    job: &Job,
    doc: &Value,
    secrets: &BTreeSet<String>,
    body: &Value,
) -> Result<Option<Template>, ArmError> {
    let mut errors = Errors::new();
    let mut body = normalise(body, &properties::START, Nulls::Drop, &mut errors);
    // the portal and some tools wrap it as the job does
    if let Some(inner) = body.get("template").cloned() {
        body = inner;
    }
    let mut whole = doc.pointer("/properties/template").cloned().unwrap_or_else(|| json!({}));
    let mut is_other = false;
    for list in ["containers", "initContainers"] {
        let Some(given) = body.get(list).and_then(Value::as_array).filter(|given| !given.is_empty()) else { continue };
        let known = whole.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
        let mut merged: Vec<Value> = given.iter().map(|item| completed(item, &known, given.len())).collect();
        properties::strip_sizes(Some(&mut merged));
        whole[list] = Value::Array(merged);
        is_other = true;
    }
    if !is_other {
        errors.into_result()?;
        return Ok(None);
    }
    let identities = read_block(&mut doc.clone(), &mut Errors::new());
    let scope = check::scope(job.id.name(), secrets.clone(), secrets, job.workload_profile.is_none(), identities);
    let template = template::read(&Node::root(&whole), &scope, &mut errors);
    errors.into_result()?;
    Ok(Some(template))
}

/// A given container with what it leaves out. One that stands alone, for a job with one container, is meant whatever its name.
fn completed(given: &Value, known: &[Value], given_count: usize) -> Value {
    let name = given.get("name").and_then(Value::as_str);
    let same = known.iter().find(|known| known.get("name").and_then(Value::as_str) == name);
    let only = if given_count == 1 && known.len() == 1 { known.first() } else { None };
    let mut whole = same.or(only).cloned().unwrap_or_else(|| json!({}));
    let (Some(fields), Some(given)) = (whole.as_object_mut(), given.as_object()) else { return given.clone() };
    for (name, value) in given {
        fields.insert(name.clone(), value.clone());
    }
    whole
}
