//! `Microsoft.Network/virtualNetworks` and their subnets: documents that environments can name. They have no effect on
//! how replicas reach each other; answers to writes say so.

use cove_arm::{ArmError, Errors, list, network, schema::Schema};
use cove_store::{Expect, Provisioning, PutResource, ResourceRow, SecretsChange, StoreError};
use http::Method;
use serde_json::Value;

use crate::{
    answer::{self, Answer, Refusal, with_header},
    authorization::NOTE,
    call::Call,
    control_plane::ControlPlane,
    crud::{self, Parsed, Resource, Write},
    groups::{self, TRIES_MAX},
    route::Route,
    workspaces::stamped,
};

const NO_EFFECT: &str = "stored; virtual networks have no effect on this server";

struct Network;

impl Resource for Network {
    const KIND: &'static str = network::KIND;
    const PATH: &'static str =
        "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/virtualNetworks/{network}";
    const CREATED: u16 = 201;
    const HAS_PATCH: bool = true;

    fn parent(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
        groups::require(plane, call)
    }

    fn schema() -> &'static Schema {
        &network::SCHEMA
    }

    fn parse(write: &Write<'_>, doc: Value, errors: Errors) -> Result<Parsed, Refusal> {
        Ok(Parsed::doc(network::parse(write.id.name(), &doc, errors)?))
    }

    fn render(_: &ControlPlane, _: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
        Ok(network::render(&row.id, &row.doc))
    }
}

pub(crate) fn routes() -> Vec<Route> {
    let mut routes = crud::routes::<Network>();
    let subnets = format!("{}/subnets", Network::PATH);
    routes.extend([
        Route::arm(Method::GET, "/subscriptions/{subscription}/providers/Microsoft.Network/virtualNetworks", list_all),
        Route::arm(Method::GET, subnets.as_str(), list_subnets),
        Route::arm(Method::GET, format!("{subnets}/{{subnet}}"), get_subnet),
        Route::arm(Method::PUT, format!("{subnets}/{{subnet}}"), put_subnet),
        Route::arm(Method::DELETE, format!("{subnets}/{{subnet}}"), delete_subnet),
    ]);
    routes
}

async fn list_all(plane: ControlPlane, call: Call) -> Answer {
    let rows = plane.store().resources(network::KIND, Some(&call.subscription_id()?))?;
    crud::list(&call, &rows, |row| Network::render(&plane, &call, row))
}

async fn list_subnets(plane: ControlPlane, call: Call) -> Answer {
    let row = crud::require::<Network>(&plane, &call)?;
    Ok(answer::json(200, &list::render(network::subnets(&row.id, &row.doc), None)))
}

async fn get_subnet(plane: ControlPlane, call: Call) -> Answer {
    let row = crud::require::<Network>(&plane, &call)?;
    let name = call.name("subnet");
    match network::subnet(&row.id, &row.doc, name) {
        Some(subnet) => Ok(answer::json(200, &subnet)),
        None => Err(ArmError::resource_not_found(
            "Microsoft.Network/virtualNetworks/subnets",
            &format!("{}/{name}", row.id.name()),
            row.id.group_name(),
        )
        .into()),
    }
}

async fn put_subnet(plane: ControlPlane, call: Call) -> Answer {
    let body = call.object()?;
    let name = call.name("subnet").to_owned();
    let (row, old) =
        change(&plane, &call, |row| Ok(network::with_subnet(&row.doc, row.id.name(), &name, &body)?)).await?;
    let is_new = network::subnet(&old.id, &old.doc, &name).is_none();
    let subnet = network::subnet(&row.id, &row.doc, &name).unwrap_or(Value::Null);
    let status = if is_new { 201 } else { 200 };
    Ok(with_header(answer::json(status, &subnet), NOTE, NO_EFFECT))
}

async fn delete_subnet(plane: ControlPlane, call: Call) -> Answer {
    let name = call.name("subnet").to_owned();
    let row = crud::require::<Network>(&plane, &call)?;
    if network::subnet(&row.id, &row.doc, &name).is_none() {
        return Ok(answer::empty(204));
    }
    change(&plane, &call, |row| Ok(network::without_subnet(&row.doc, &name))).await?;
    Ok(answer::empty(200))
}

/// Changes the document of the network in the path; gives it as it is now and as it was.
async fn change(
    plane: &ControlPlane,
    call: &Call,
    document: impl Fn(&ResourceRow) -> Result<Value, Refusal>,
) -> Result<(ResourceRow, ResourceRow), Refusal> {
    let _structure = plane.structure().await;
    groups::require_writable(plane, call)?;
    for _ in 0..TRIES_MAX {
        let old = crud::require::<Network>(plane, call)?;
        let put = PutResource {
            id: old.id.clone(),
            doc: stamped(document(&old)?, Some(&old), call),
            spec: None,
            secrets: SecretsChange::Keep,
            provisioning: Provisioning::Succeeded,
            operation: None,
            revision: None,
            expect: Expect::Generation(old.generation),
            now: plane.clock().now(),
        };
        match plane.store().put(put).await {
            Ok(row) => return Ok((row, old)),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Conflict { id: call.id(network::KIND, "network")? }.into())
}
