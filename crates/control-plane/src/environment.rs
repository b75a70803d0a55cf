//! What hangs on an environment besides apps: certificates, Dapr components, path routing, and the questions Azure's
//! clients ask of an environment.
//!
//! Each type says in an `impl Resource` what is special about it; the rest is in [`crate::crud`].

mod certificates;
mod dapr;
mod diagnostics;
mod http_routes;
mod maintenance;
mod orders;
mod questions;
pub(crate) mod suffix;
mod x509;

use cove_arm::ArmError;
use cove_model::ResourceId;
use cove_store::ResourceRow;
use serde_json::Value;

use crate::{answer::Refusal, apps, control_plane::ControlPlane, route::Route};

pub use certificates::{Issue, Issued};
pub use orders::{OrderError, Ordered};

/// Path of an environment.
macro_rules! below {
    ($rest:literal) => {
        concat!(
            "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.App/managedEnvironments/{environment}/",
            $rest
        )
    };
}
use below;

/// Types whose deletion is an operation: one may be half done after a `kill -9`.
pub(crate) const POLLED: [&str; 1] = [http_routes::KIND];

pub(crate) fn routes() -> Vec<Route> {
    let mut routes = certificates::routes();
    routes.extend(dapr::routes());
    routes.extend(diagnostics::routes());
    routes.extend(http_routes::routes());
    routes.extend(maintenance::routes());
    routes.extend(questions::routes());
    routes
}

/// Refuses to take a certificate away that a host name is served with.
fn check_certificate_is_free(
    plane: &ControlPlane,
    environment: &ResourceId,
    certificate: &ResourceId,
) -> Result<(), Refusal> {
    let mut users = Vec::new();
    for app in apps::in_environment(plane, environment)? {
        let domains = apps::model(&app)?.ingress.map(|ingress| ingress.custom_domains).unwrap_or_default();
        if domains.iter().any(|domain| domain.certificate.as_ref() == Some(certificate)) {
            users.push(format!("container app '{}'", app.id.name()));
        }
    }
    for route in plane.store().resources(http_routes::KIND, Some(environment))? {
        let config = http_routes::model(&route)?;
        if config.custom_domains.iter().any(|domain| domain.certificate.as_ref() == Some(certificate)) {
            users.push(format!("http route config '{}'", route.id.name()));
        }
    }
    if users.is_empty() {
        return Ok(());
    }
    let shown = users.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
    let message =
        format!("The certificate '{}' is used by {shown}; remove the custom domain there first.", certificate.name());
    Err(ArmError::conflict("CertificateInUse", message).into())
}

/// The environment that a resource hangs on.
fn environment_of(row: &ResourceRow) -> Result<ResourceId, Refusal> {
    row.id.parent().ok_or_else(|| Refusal::Broken(format!("`{}` has no environment", row.id)))
}

/// A model value as it is stored.
fn spec_of(value: &impl serde::Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(value).map_err(|error| Refusal::Broken(error.to_string()))
}
