//! `containerApps/resiliencyPolicies` (preview): kept and shown; no call is treated by them yet.

use cove_arm::{Errors, environment::child, resiliency, schema::Schema};
use cove_store::ResourceRow;
use serde_json::Value;

use crate::{
    answer::Refusal,
    app_events, apps,
    call::Call,
    control_plane::ControlPlane,
    crud::{self, Parsed, Resource, Write},
    route::Route,
};

pub(crate) fn routes() -> Vec<Route> {
    crud::routes::<Policy>()
}

struct Policy;

impl Resource for Policy {
    const KIND: &'static str = "Microsoft.App/containerApps/resiliencyPolicies";
    const PATH: &'static str = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.App/containerApps/{app}/resiliencyPolicies/{policy}";
    const HAS_PATCH: bool = true;

    fn parent(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
        apps::require(plane, call)
    }

    fn schema() -> &'static Schema {
        &resiliency::SCHEMA
    }

    fn parse(write: &Write<'_>, doc: Value, errors: Errors) -> Result<Parsed, Refusal> {
        let doc = resiliency::parse(doc, errors)?;
        app_events::warn(write.plane, &apps::model(write.parent)?, &[resiliency::NO_EFFECT.to_owned()]);
        Ok(Parsed::doc(doc))
    }

    fn render(_: &ControlPlane, _: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
        let mut value = crud::envelope(row, Self::KIND);
        child::show_state(&mut value, &[resiliency::NO_EFFECT.to_owned()]);
        Ok(value)
    }
}
