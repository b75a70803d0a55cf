//! Reads of deployments: one, all of a scope, the template that one was made from, the hash of a template.

use cove_arm::ArmError;
use cove_store::ResourceRow;
use serde_json::{Value, json};

use super::{
    KIND,
    place::Place,
    record::{Record, TEMPLATE, state_of},
};
use crate::{
    answer::{self, Answer, Refusal},
    call::Call,
    control_plane::ControlPlane,
    crud,
};

fn render(plane: &ControlPlane, row: &ResourceRow) -> Result<Value, Refusal> {
    Ok(Record::of(row)?.render(&row.id, state_of(row), plane.clock().now()))
}

/// The deployments of a scope, those of the subscription's groups left out.
///
/// # Errors
/// When the store fails.
pub(crate) fn of_scope(plane: &ControlPlane, place: &Place) -> Result<Vec<ResourceRow>, Refusal> {
    let mut rows = plane.store().resources(KIND, Some(&place.scope))?;
    rows.retain(|row| row.id.group_name().is_empty() == place.group.is_none());
    Ok(rows)
}

/// `$filter=provisioningState eq 'Failed'` is known; `$top` limits.
pub(crate) async fn list(plane: ControlPlane, call: Call) -> Answer {
    let place = Place::all(&plane, &call)?;
    let mut rows = of_scope(&plane, &place)?;
    if let Some(filter) = call.query("$filter").map(str::trim).filter(|filter| !filter.is_empty()) {
        let state = state_filter(filter)?;
        rows.retain(|row| state_of(row).eq_ignore_ascii_case(&state));
    }
    if let Some(top) = call.query("$top") {
        let top: usize = top
            .parse()
            .map_err(|_| ArmError::new(400, "InvalidParameterValue", "'$top' must be a whole number.").at("$top"))?;
        rows.truncate(top);
    }
    crud::list(&call, &rows, |row| render(&plane, row))
}

fn state_filter(filter: &str) -> Result<String, ArmError> {
    let mut words = filter.split_whitespace();
    let value = match (words.next(), words.next(), words.next(), words.next()) {
        (Some(field), Some(verb), Some(value), None)
            if field.eq_ignore_ascii_case("provisioningState") && verb.eq_ignore_ascii_case("eq") =>
        {
            value.strip_prefix('\'').and_then(|value| value.strip_suffix('\''))
        }
        _ => None,
    };
    value.map(str::to_owned).ok_or_else(|| {
        let shown: String = filter.chars().take(200).collect();
        let message = format!("The filter '{shown}' is not supported; expected provisioningState eq 'state'.");
        ArmError::new(400, "InvalidFilterInQueryString", message)
    })
}

pub(crate) async fn get(plane: ControlPlane, call: Call) -> Answer {
    let row = Place::of(&plane, &call)?.require(&plane)?;
    crud::shown(200, &row, &render(&plane, &row)?)
}

pub(crate) async fn head(plane: ControlPlane, call: Call) -> Answer {
    let place = Place::of(&plane, &call)?;
    let exists = plane.store().resource(&place.id)?.is_some();
    Ok(answer::empty(if exists { 204 } else { 404 }))
}

/// The template as it came.
pub(crate) async fn export_template(plane: ControlPlane, call: Call) -> Answer {
    let row = Place::of(&plane, &call)?.require(&plane)?;
    let secrets = plane.store().secrets(&row.id)?;
    let text = secrets.get(TEMPLATE).map_or("null", String::as_str);
    let template: Value = serde_json::from_str(text)
        .map_err(|error| Refusal::Broken(format!("the stored template of `{}`: {error}", row.id)))?;
    Ok(answer::json(200, &json!({ "template": template })))
}

/// `calculateTemplateHash`: the body is the template.
pub(crate) async fn template_hash(_: ControlPlane, call: Call) -> Answer {
    let template = cove_template::parse_body(&call.body)
        .map_err(|error| ArmError::invalid_content(format!("The template could not be read: {error}.")))?;
    let body =
        json!({ "minifiedTemplate": template.to_string(), "templateHash": cove_template::Template::hash(&template) });
    Ok(answer::json(200, &body))
}
