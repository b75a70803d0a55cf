//! `containerApps/resiliencyPolicies` (preview), and the limits of requests that apps show.
//!
//! The policy is stored beside its app; the controller reads it into the app's route, where the ingress acts on it.
//!
//! **Invariant:** an app has at most one policy.

use cove_arm::{ArmError, Errors, environment::child, resiliency, schema::Schema};
use cove_model::{ContainerApp, Environment, Transport};
use cove_store::{ResourceRow, SecretsChange};
use serde_json::{Value, json};

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
        let others = crud::below::<Self>(write.plane, &write.parent.id)?;
        if let Some(other) = others.iter().find(|other| other.id != *write.id) {
            let (app, other) = (write.parent.id.name(), other.id.name());
            let message = format!(
                "The app '{app}' has the resiliency policy '{other}' already, and may have one; change or delete that one."
            );
            return Err(ArmError::conflict("ResiliencyPolicyExists", message).into());
        }
        let spec = serde_json::to_value(resiliency::read(&doc));
        let spec = spec.map_err(|error| Refusal::Broken(format!("a resiliency policy cannot be stored: {error}")))?;
        Ok(Parsed { doc, spec: Some(spec), secrets: SecretsChange::Keep })
    }

    fn render(plane: &ControlPlane, call: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
        let transport = transport(&apps::model(&apps::require(plane, call)?)?);
        let mut value = crud::envelope(row, Self::KIND);
        child::show_state(&mut value, &resiliency::warnings(&row.doc, transport));
        Ok(value)
    }

    fn tell(plane: &ControlPlane, parent: &ResourceRow, row: &ResourceRow) {
        if let Ok(app) = apps::model(parent) {
            app_events::warn(plane, &app, &resiliency::warnings(&row.doc, transport(&app)));
        }
    }
}

fn transport(app: &ContainerApp) -> Option<Transport> {
    app.ingress.as_ref().map(|ingress| ingress.transport)
}

/// Adds `ingress.coveEffectiveLimits` to a shown app: what its requests are held to, whoever said it.
pub(crate) fn show_limits(plane: &ControlPlane, value: &mut Value, (app, environment): (&ContainerApp, &Environment)) {
    let Some(ingress) = &app.ingress else { return };
    let Some(shown) = value.pointer_mut("/properties/configuration/ingress").and_then(Value::as_object_mut) else {
        return;
    };
    let limits = ingress.policies.limits.or(environment.limits).or(plane.config().limit_defaults);
    let mut effective = json!({
        "requestTimeoutSeconds": limits.request_timeout_secs,
        "idleTimeoutSeconds": limits.idle_timeout_secs,
        "requestBodyMaxBytes": limits.body_bytes_max,
        "headerCountLimit": limits.header_fields_max,
        "terminationGracePeriodSeconds": limits.drain_grace_secs,
    });
    if let Some(fields) = effective.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    shown.insert("coveEffectiveLimits".to_owned(), effective);
}
