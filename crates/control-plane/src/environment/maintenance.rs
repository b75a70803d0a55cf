//! `managedEnvironments/maintenanceConfigurations`: stored and returned; a server of one's own changes nothing by itself.

use cove_arm::{
    Errors,
    environment::{child, maintenance},
    schema::Schema,
};
use cove_store::ResourceRow;
use serde_json::Value;

use super::below;
use crate::{
    answer::Refusal,
    call::Call,
    control_plane::ControlPlane,
    crud::{self, Parsed, Resource, Write},
    environments,
    route::Route,
};

pub(super) fn routes() -> Vec<Route> {
    crud::routes::<Maintenance>()
}

struct Maintenance;

impl Resource for Maintenance {
    const KIND: &'static str = "Microsoft.App/managedEnvironments/maintenanceConfigurations";
    const PATH: &'static str = below!("maintenanceConfigurations/{configuration}");
    const CREATED: u16 = 201;

    fn parent(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
        environments::require(plane, call)
    }

    fn schema() -> &'static Schema {
        &maintenance::SCHEMA
    }

    fn parse(write: &Write<'_>, doc: Value, errors: Errors) -> Result<Parsed, Refusal> {
        Ok(Parsed::doc(maintenance::parse(write.id.name(), doc, errors)?))
    }

    fn render(_: &ControlPlane, _: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
        let mut value = crud::envelope(row, Self::KIND);
        child::show_state(&mut value, &Self::warnings(row));
        Ok(value)
    }

    fn warnings(_: &ResourceRow) -> Vec<String> {
        vec![maintenance::NO_EFFECT.to_owned()]
    }
}
