//! `managedEnvironments/daprComponents`, their secrets and their `resiliencyPolicies`.

use std::collections::BTreeSet;

use cove_arm::{
    Errors,
    environment::{child, dapr},
    schema::Schema,
    secrets,
};
use cove_store::{ResourceRow, SecretsChange};
use http::Method;
use serde_json::Value;

use super::below;
use crate::{
    answer::{self, Answer, Refusal},
    call::Call,
    control_plane::ControlPlane,
    crud::{self, Parsed, Resource, Write},
    environments,
    route::Route,
};

pub(super) fn routes() -> Vec<Route> {
    let mut routes = crud::routes::<Component>();
    routes.push(Route::arm(Method::POST, format!("{}/listSecrets", Component::PATH), list_secrets));
    routes.extend(crud::routes::<Policy>());
    routes
}

struct Component;

impl Resource for Component {
    const KIND: &'static str = "Microsoft.App/managedEnvironments/daprComponents";
    const PATH: &'static str = below!("daprComponents/{component}");

    fn parent(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
        environments::require(plane, call)
    }

    fn schema() -> &'static Schema {
        &dapr::SCHEMA
    }

    fn prepare(body: Value) -> Value {
        dapr::from_any_shape(&body)
    }

    fn parse(write: &Write<'_>, doc: Value, errors: Errors) -> Result<Parsed, Refusal> {
        let known: BTreeSet<String> = write.plane.store().secrets(write.id)?.into_keys().collect();
        let component = dapr::parse(doc, errors, &known)?;
        Ok(Parsed { doc: component.doc, spec: None, secrets: SecretsChange::Replace(component.secrets) })
    }

    fn render(_: &ControlPlane, _: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
        let mut value = crud::envelope(row, Self::KIND);
        child::show_state(&mut value, &Self::warnings(row));
        Ok(value)
    }

    fn warnings(_: &ResourceRow) -> Vec<String> {
        vec![dapr::NO_EFFECT.to_owned()]
    }
}

async fn list_secrets(plane: ControlPlane, call: Call) -> Answer {
    let row = crud::require::<Component>(&plane, &call)?;
    let body = secrets::render_list(&plane.store().secrets(&row.id)?);
    Ok(answer::with_header(answer::json(200, &body), "cache-control", "no-store"))
}

struct Policy;

impl Resource for Policy {
    const KIND: &'static str = "Microsoft.App/managedEnvironments/daprComponents/resiliencyPolicies";
    const PATH: &'static str = below!("daprComponents/{component}/resiliencyPolicies/{policy}");

    fn parent(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
        crud::require::<Component>(plane, call)
    }

    fn schema() -> &'static Schema {
        &dapr::POLICY_SCHEMA
    }

    fn parse(_: &Write<'_>, doc: Value, errors: Errors) -> Result<Parsed, Refusal> {
        Ok(Parsed::doc(dapr::parse_policy(doc, errors)?))
    }

    fn render(_: &ControlPlane, _: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
        let mut value = crud::envelope(row, Self::KIND);
        child::show_state(&mut value, &Self::warnings(row));
        Ok(value)
    }

    fn warnings(_: &ResourceRow) -> Vec<String> {
        vec![dapr::NO_EFFECT.to_owned()]
    }
}
