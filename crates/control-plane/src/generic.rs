//! Resources of any type in one list: `…/resources`, by subscription or group.
//!
//! **Invariant:** what is listed is what a user keeps: resources with a location, no deployments.

mod filter;

use cove_arm::{ArmError, list, provider};
use cove_model::ResourceId;
use cove_store::ResourceRow;
use http::Method;
use serde_json::{Value, json};

use self::filter::Filter;
use crate::{
    answer::{self, Answer, Refusal},
    call::Call,
    control_plane::ControlPlane,
    deployments, links,
    route::Route,
};

/// Types in Azure's spelling; an id keeps the spelling of whoever made the resource.
const KINDS: &[&str] = &[
    "Microsoft.App/containerApps",
    "Microsoft.App/jobs",
    "Microsoft.App/managedEnvironments",
    "Microsoft.App/managedEnvironments/certificates",
    "Microsoft.App/managedEnvironments/managedCertificates",
    "Microsoft.App/sessionPools",
    "Microsoft.ContainerRegistry/registries",
    "Microsoft.ManagedIdentity/userAssignedIdentities",
    "Microsoft.Network/virtualNetworks",
    "Microsoft.OperationalInsights/workspaces",
];

pub(crate) fn routes() -> Vec<Route> {
    vec![
        Route::arm(Method::GET, "/subscriptions/{subscription}/resources", of_subscription),
        Route::arm(Method::GET, "/subscriptions/{subscription}/resourceGroups/{group}/resources", of_group),
    ]
}

async fn of_subscription(plane: ControlPlane, call: Call) -> Answer {
    let scope = call.subscription_id()?;
    listed(&plane, &call, &scope)
}

async fn of_group(plane: ControlPlane, call: Call) -> Answer {
    let group = crate::groups::require(&plane, &call)?;
    listed(&plane, &call, &group.id)
}

fn listed(plane: &ControlPlane, call: &Call, scope: &ResourceId) -> Answer {
    let filter = call.query("$filter").map(Filter::parse).transpose()?.unwrap_or_default();
    let mut rows = plane.store().resources_below(scope)?;
    rows.retain(|row| is_listed(row) && filter.takes(row));
    if let Some(top) = call.query("$top") {
        let top: usize = top
            .parse()
            .map_err(|_| Refusal::Arm(ArmError::invalid("$top", "'$top' must be a whole number of at least 0.")))?;
        rows.truncate(top);
    }
    let expand = call.query("$expand").unwrap_or("").to_ascii_lowercase();
    let expand: Vec<&str> = expand.split(',').map(str::trim).collect();
    let (page, next) = links::page(call, &rows);
    // the link to the next page asks the same
    let next = next.map(|next| {
        let asked = ["$filter", "$expand"].iter().filter_map(|name| Some((name, call.query(name)?)));
        asked.fold(next, |next, (name, value)| format!("{next}&{name}={}", links::encode(value)))
    });
    let values = page.iter().map(|row| summary(row, &expand)).collect();
    Ok(answer::json(200, &list::render(values, next.as_deref())))
}

fn is_listed(row: &ResourceRow) -> bool {
    row.doc.get("location").is_some_and(Value::is_string)
        && !row.id.kind().is_empty()
        && !row.id.kind().eq_ignore_ascii_case(deployments::KIND)
}

fn summary(row: &ResourceRow, expand: &[&str]) -> Value {
    let kind = KINDS.iter().find(|kind| kind.eq_ignore_ascii_case(&row.kind));
    let location = row.doc.get("location").and_then(Value::as_str).unwrap_or("local");
    let mut value = json!({
        "id": row.id.as_str(),
        "name": row.id.name(),
        "type": kind.map_or_else(|| row.id.kind(), |kind| (*kind).to_owned()),
        "location": provider::location_key(location),
    });
    for name in ["tags", "kind", "sku", "managedBy"] {
        if let Some(found) = row.doc.get(name).filter(|found| !found.is_null()) {
            value[name] = found.clone();
        }
    }
    for (name, found) in [
        ("createdTime", row.created_at.to_string()),
        ("changedTime", row.updated_at.to_string()),
        ("provisioningState", row.provisioning.as_arm().to_owned()),
    ] {
        if expand.contains(&name.to_ascii_lowercase().as_str()) {
            value[name] = json!(found);
        }
    }
    value
}
