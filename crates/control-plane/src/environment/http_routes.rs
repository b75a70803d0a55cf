//! `managedEnvironments/httpRouteConfigs`: one host whose paths lead to several apps. The ingress serves what is stored.
//!
//! **Invariant:** a stored configuration named apps and certificates that existed when it was written.

use cove_arm::{
    ArmError, Errors,
    environment::{child, http_route},
    schema::Schema,
};
use cove_model::{HttpRouteConfig, ResourceId};
use cove_store::{ResourceRow, SecretsChange};
use serde_json::{Value, json};

use super::{below, environment_of, spec_of};
use crate::{
    answer::Refusal,
    apps,
    call::Call,
    control_plane::ControlPlane,
    crud::{self, Parsed, Resource, Write},
    custom_hosts, environments,
    route::Route,
};

pub(super) const KIND: &str = "Microsoft.App/managedEnvironments/httpRouteConfigs";

pub(super) fn routes() -> Vec<Route> {
    crud::routes::<HttpRoutes>()
}

/// The model value of a stored configuration.
pub(super) fn model(row: &ResourceRow) -> Result<HttpRouteConfig, Refusal> {
    let spec = row.spec.clone().unwrap_or(Value::Null);
    serde_json::from_value(spec).map_err(|error| Refusal::Broken(format!("stored routes `{}`: {error}", row.id)))
}

struct HttpRoutes;

impl Resource for HttpRoutes {
    const KIND: &'static str = KIND;
    const PATH: &'static str = below!("httpRouteConfigs/{route}");
    const CREATED: u16 = 201;
    const HAS_PATCH: bool = true;
    const POLLS_DELETE: bool = true;

    fn parent(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
        environments::require(plane, call)
    }

    fn schema() -> &'static Schema {
        &http_route::SCHEMA
    }

    fn parse(write: &Write<'_>, doc: Value, errors: Errors) -> Result<Parsed, Refusal> {
        let (doc, config) = http_route::parse(write.id, doc, errors)?;
        let mut errors = Errors::new();
        check_targets(write, &config, &mut errors)?;
        check_domains(write, &config, &mut errors)?;
        errors.into_result()?;
        Ok(Parsed { doc, spec: Some(spec_of(&config)?), secrets: SecretsChange::Keep })
    }

    fn render(plane: &ControlPlane, _: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
        let mut value = crud::envelope(row, KIND);
        if let Some(environment) = plane.store().resource(&environment_of(row)?)? {
            let domain = environments::model(&environment)?.default_domain;
            value["properties"]["fqdn"] = json!(format!("{}.{domain}", row.id.name().to_ascii_lowercase()));
        }
        value["properties"]["provisioningErrors"] = json!([]);
        child::show_state(&mut value, &[]);
        Ok(value)
    }
}

/// Apps must be in the environment, revisions and labels in their app; no app has the host already.
fn check_targets(write: &Write<'_>, config: &HttpRouteConfig, errors: &mut Errors) -> Result<(), Refusal> {
    let apps = apps::in_environment(write.plane, &write.parent.id)?;
    let of_name = |name: &str| apps.iter().find(|app| app.id.name().eq_ignore_ascii_case(name));
    if of_name(write.id.name()).is_some() {
        let message = format!(
            "The environment has a container app '{}', which has the same host name; choose another name.",
            write.id.name()
        );
        errors.push(ArmError::conflict("ContainerAppNameInUse", message));
    }
    for (path, target) in http_route::targets(config) {
        let Some(row) = of_name(&target.app) else {
            let message = format!("The environment has no container app '{}'; create it first.", target.app);
            errors.invalid(&format!("{path}.containerApp"), message);
            continue;
        };
        if let Some(revision) = &target.revision
            && write.plane.store().revision(&row.id, revision)?.is_none()
        {
            let message = format!("The container app '{}' has no revision '{revision}'.", target.app);
            errors.invalid(&format!("{path}.revision"), message);
        }
        if let Some(label) = &target.label {
            let ingress = apps::model(row)?.ingress;
            let weights = ingress.as_ref().map_or(&[][..], |ingress| &ingress.traffic);
            if !weights.iter().any(|weight| weight.label.as_deref() == Some(label)) {
                let message = format!("The container app '{}' has no label '{label}'.", target.app);
                errors.invalid(&format!("{path}.label"), message);
            }
        }
    }
    Ok(())
}

/// Certificates must be the environment's and exist; a host belongs to one configuration or app.
fn check_domains(write: &Write<'_>, config: &HttpRouteConfig, errors: &mut Errors) -> Result<(), Refusal> {
    for (index, domain) in config.custom_domains.iter().enumerate() {
        let path = format!("properties.customDomains[{index}]");
        if let Some(certificate) = &domain.certificate {
            check_certificate(write, certificate, &format!("{path}.certificateId"), errors)?;
        }
        if let Some(suffix) = custom_hosts::platform_domain(write.plane, &domain.name)? {
            let message =
                format!("The domain '{}' is below '{suffix}', whose names the platform gives to apps.", domain.name);
            errors.invalid(&format!("{path}.name"), message);
        }
        let mut owner = None;
        for other in write.plane.store().resources(KIND, None)? {
            let is_taken = model(&other)?.custom_domains.iter().any(|taken| taken.name == domain.name);
            if other.id != *write.id && is_taken {
                owner = Some(format!("http route config '{}'", other.id.name()));
            }
        }
        // clients find all environments of a server at one address
        for app in write.plane.store().resources(apps::KIND, None)? {
            // one that cannot be read serves nothing
            let Ok(model) = apps::model(&app) else { continue };
            let domains = model.ingress.map(|ingress| ingress.custom_domains).unwrap_or_default();
            if domains.iter().any(|taken| taken.name == domain.name) {
                owner = Some(format!("container app '{}'", app.id.name()));
            }
        }
        if let Some(owner) = owner {
            errors.invalid(&format!("{path}.name"), format!("The domain '{}' is used by {owner}.", domain.name));
        }
    }
    Ok(())
}

fn check_certificate(
    write: &Write<'_>,
    certificate: &ResourceId,
    path: &str,
    errors: &mut Errors,
) -> Result<(), Refusal> {
    if certificate.parent().as_ref() != Some(&write.parent.id) {
        errors.invalid(path, "The certificate must be one of the same environment.");
    } else if write.plane.store().resource(certificate)?.is_none() {
        errors.invalid(path, format!("The environment has no certificate '{}'.", certificate.name()));
    }
    Ok(())
}
