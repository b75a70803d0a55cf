//! Which operations of Azure's this server does: the table of Azure's operations, looked up in the router.
//!
//! `docs/api-coverage.md` and `GET /cove/v1/coverage` are made from it, so that they cannot say what is not so.

mod table;

use std::collections::BTreeMap;

use http::Method;
use serde_json::{Value, json};

use crate::{
    answer::{self, Answer},
    call::Call,
    control_plane::ControlPlane,
    route::{Route, State, Table},
};

/// The version whose operations are listed.
const VERSION: &str = "2026-07-01";
const GROUP_SCOPE: &str = "/subscriptions/{subscriptionId}/resourceGroups/{resourceGroupName}/providers/Microsoft.App";
const SUBSCRIPTION_SCOPE: &str = "/subscriptions/{subscriptionId}/providers/Microsoft.App";

/// One of Azure's operations.
#[derive(Debug)]
pub(crate) struct Operation {
    /// Group in Azure's SDK: `ManagedEnvironments`.
    pub(crate) group: &'static str,
    /// Name in Azure's SDK: `create_or_update`.
    pub(crate) name: &'static str,
    /// Its method.
    pub(crate) method: Method,
    /// Pattern of its path.
    pub(crate) path: String,
}

pub(crate) fn routes() -> Vec<Route> {
    vec![Route::data(Method::GET, "/cove/v1/coverage", answer_coverage)]
}

/// Every operation of Azure's, sorted by group.
pub(crate) fn operations() -> impl Iterator<Item = Operation> {
    table::OPERATIONS.iter().map(|(group, name, method, short_path)| {
        let method = match *method {
            "PUT" => Method::PUT,
            "PATCH" => Method::PATCH,
            "POST" => Method::POST,
            "DELETE" => Method::DELETE,
            _ => Method::GET,
        };
        let path = short_path.replace("{rg}", GROUP_SCOPE).replace("{sub}", SUBSCRIPTION_SCOPE);
        Operation { group, name, method, path }
    })
}

/// What this server does, as role definitions name it: `containerApps/read`, each with its resource type.
pub(crate) fn actions(table: &Table) -> BTreeMap<String, String> {
    let mut actions = BTreeMap::new();
    for operation in operations() {
        if table.state(&operation.method, &operation.path) != State::Works {
            continue;
        }
        let below = operation.path.rsplit_once("/Microsoft.App/").map_or("", |(_, below)| below);
        let parts: Vec<&str> = below.split('/').filter(|part| !part.starts_with('{')).collect();
        let (resource, verb) = match (operation.method.as_str(), parts.split_last()) {
            ("POST", Some((verb, parents))) => (parents.join("/"), format!("{verb}/action")),
            ("PUT" | "PATCH", _) => (parts.join("/"), "write".to_owned()),
            ("DELETE", _) => (parts.join("/"), "delete".to_owned()),
            _ => (parts.join("/"), "read".to_owned()),
        };
        let name = if resource.is_empty() { verb } else { format!("{resource}/{verb}") };
        actions.insert(name, resource);
    }
    actions
}

/// Which of Azure's operations a server of this build does, as `GET /cove/v1/coverage` answers.
#[must_use]
pub fn coverage() -> Value {
    render(&Table::new(crate::front::routes()))
}

async fn answer_coverage(plane: ControlPlane, _: Call) -> Answer {
    Ok(answer::json(200, &render(plane.table())))
}

fn render(table: &Table) -> Value {
    let values: Vec<Value> = operations()
        .map(|operation| {
            let mut value = json!({
                "operation": format!("{}.{}", operation.group, operation.name),
                "method": operation.method.as_str(),
                "path": operation.path,
                "state": "works",
            });
            match table.state(&operation.method, &operation.path) {
                State::Works => {}
                State::Missing(missing) => {
                    value["state"] = json!("notImplemented");
                    value["missing"] = json!(missing.what);
                    value["instead"] = json!(missing.instead);
                }
                State::Unknown => value["state"] = json!("unknown"),
            }
            value
        })
        .collect();
    let working = values.iter().filter(|value| value["state"] == "works").count();
    json!({ "apiVersion": VERSION, "operations": values.len(), "working": working, "value": values })
}

/// A path with scopes as `{rg}` and `{sub}`.
#[cfg(test)]
fn short(path: &str) -> String {
    path.replace(GROUP_SCOPE, "{rg}").replace(SUBSCRIPTION_SCOPE, "{sub}")
}

/// The page `docs/api-coverage.md`.
#[cfg(test)]
fn page(table: &Table) -> String {
    let shown: Vec<(Operation, State)> = operations()
        .map(|operation| {
            let state = table.state(&operation.method, &operation.path);
            (operation, state)
        })
        .collect();
    let working = shown.iter().filter(|(_, state)| *state == State::Works).count();
    let mut text = format!(
        "# API coverage\n\n\
         Azure's `Microsoft.App`, api-version {VERSION}, has {} operations: {working} work here, {} answer 501\n\
         `NotImplemented` and say what to do instead. What works may still refuse single properties with a 501 of its own.\n\n\
         This page is made from the router: `UPDATE_EXPECT=1 cargo test -p cove-control-plane coverage`. A running server\n\
         gives the same as JSON at `/cove/v1/coverage`. `tests/acceptance/coverage_test.py` calls each operation.\n\n\
         `{{rg}}` is `{GROUP_SCOPE}`,\n`{{sub}}` is `{SUBSCRIPTION_SCOPE}`.\n\n\
         | operation | request | state |\n|---|---|---|\n",
        shown.len(),
        shown.len() - working,
    );
    for (operation, state) in shown {
        let state = match state {
            State::Works => "works".to_owned(),
            State::Missing(missing) => format!("501: {}: {}", missing.what, missing.instead),
            State::Unknown => "unknown".to_owned(),
        };
        let (group, name, method, path) = (operation.group, operation.name, operation.method, short(&operation.path));
        text.push_str(&format!("| {group}.{name} | {method} `{path}` | {state} |\n"));
    }
    text
}

#[cfg(test)]
mod tests;
