//! What an app names that is not its own: profile, certificates, storages, identities, host names and ports that only one
//! app of an environment can have.
//!
//! **Invariant:** all problems are told at once, and before anything changes.
//! **Invariant:** claims on host names and ports are checked while nobody else can claim.

use std::collections::BTreeSet;

use cove_arm::{
    ArmError, Errors,
    container_app::{self, Parsed},
    job::ParsedJob,
};
use cove_model::{
    ContainerApp, Environment, Ingress, Job, ResourceId, Template, Transport, VolumeKind, WorkloadProfileKind,
};

use crate::{answer::Refusal, apps, control_plane::ControlPlane, custom_hosts, environments, identities, jobs};

/// Checks every reference of a job. The document's identities get one spelling.
///
/// # Errors
/// 400 with all problems.
pub(crate) fn check_job(
    plane: &ControlPlane,
    environment: &Environment,
    parsed: &mut ParsedJob,
) -> Result<(), Refusal> {
    let mut errors = Errors::new();
    check_profile(environment, parsed.workload_profile.as_deref(), &parsed.job.template, &mut errors);
    storages(plane, &jobs::as_app(&parsed.job), &mut errors)?;
    errors.into_result()?;
    identities::check(plane, &mut parsed.doc)
}

/// Checks the sizes of a template that one execution brings.
///
/// # Errors
/// 400 `ContainerAppInvalidResourceTotal`.
pub(crate) fn check_started(plane: &ControlPlane, job: &Job, template: &Template) -> Result<(), Refusal> {
    let environment = plane.store().snapshot::<Environment>(&job.environment)?.and_then(|found| found.spec);
    let mut errors = Errors::new();
    if let Some(environment) = environment {
        check_profile(&environment, job.workload_profile.as_deref(), template, &mut errors);
    }
    Ok(errors.into_result()?)
}

/// Whether `new` claims a host name or port that `old` did not have.
pub(crate) fn claims_more(new: &ContainerApp, old: &ContainerApp) -> bool {
    let (new, old) = (claims(new), claims(old));
    !new.is_subset(&old)
}

/// What only one app can have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// A host name.
    Name(String),
    /// A port, in its environment.
    Port(u16),
    /// A port, at the address of the server.
    ExternalPort(u16),
}

/// Host names and ports that an app takes.
fn claims(app: &ContainerApp) -> BTreeSet<Claim> {
    let Some(ingress) = &app.ingress else { return BTreeSet::new() };
    let names = ingress.custom_domains.iter().map(|domain| Claim::Name(domain.name.clone()));
    let ports = ports(ingress);
    let external = ports.iter().filter(|(_, external)| *external).map(|(port, _)| Claim::ExternalPort(*port));
    let all = ports.iter().map(|(port, _)| Claim::Port(*port));
    names.chain(external).chain(all).collect()
}

/// Exposed ports, and whether they can be reached from outside.
fn ports(ingress: &Ingress) -> Vec<(u16, bool)> {
    let own = (ingress.transport == Transport::Tcp).then(|| ingress.exposed_port.or(ingress.target_port)).flatten();
    let more = ingress.additional_ports.iter().map(|mapping| (mapping.exposed_port, mapping.external));
    own.map(|port| (port, ingress.external)).into_iter().chain(more).collect()
}

/// Checks every reference of an app; `old` is the app before this write. The document's identities get one spelling.
///
/// # Errors
/// 400 or 409 with all problems.
pub(crate) fn check(
    plane: &ControlPlane,
    environment: &Environment,
    parsed: &mut Parsed,
    old: Option<&ContainerApp>,
) -> Result<(), Refusal> {
    let mut errors = Errors::new();
    check_profile(environment, parsed.workload_profile.as_deref(), &parsed.app.template, &mut errors);
    certificates(plane, &parsed.app, &mut errors)?;
    storages(plane, &parsed.app, &mut errors)?;
    if old.is_none_or(|old| claims_more(&parsed.app, old)) {
        conflicts(plane, &parsed.app, &mut errors)?;
        platform_hosts(plane, &parsed.app, &mut errors)?;
    }
    errors.into_result()?;
    identities::check(plane, &mut parsed.doc)
}

fn check_profile(environment: &Environment, profile: Option<&str>, template: &Template, errors: &mut Errors) {
    let Some(profile) = profile.filter(|profile| !profile.is_empty()) else { return };
    let known: Vec<&str> = environment.workload_profiles.iter().map(|known| known.name.as_str()).collect();
    let found = environment.workload_profiles.iter().find(|known| known.name.eq_ignore_ascii_case(profile));
    if let Some(found) = found {
        let kind = WorkloadProfileKind::find(&found.kind);
        if let Some(Err(error)) = kind.map(|kind| container_app::check_resources(template, &found.name, kind)) {
            errors.push(error);
        }
    } else {
        let message = format!("The environment has no workload profile '{profile}'; it has: {}.", known.join(", "));
        errors.push(ArmError::new(400, "InvalidWorkloadProfileName", message).at("properties.workloadProfileName"));
    }
}

fn certificates(plane: &ControlPlane, app: &ContainerApp, errors: &mut Errors) -> Result<(), Refusal> {
    let domains = app.ingress.as_ref().map_or(&[][..], |ingress| &ingress.custom_domains);
    for (index, domain) in domains.iter().enumerate() {
        let Some(id) = &domain.certificate else { continue };
        let target = format!("properties.configuration.ingress.customDomains[{index}].certificateId");
        let Some(row) = plane.store().resource(id)? else {
            let message = format!("The certificate '{id}' does not exist in the environment.");
            errors.push(ArmError::new(400, "CertificateNotFound", message).at(target));
            continue;
        };
        let spec = row.spec.and_then(|spec| serde_json::from_value::<cove_model::Certificate>(spec).ok());
        let names = spec.map_or_else(Vec::new, |certificate| certificate.names);
        if !names.is_empty() && !names.iter().any(|name| covers(name, &domain.name)) {
            let message = format!(
                "The certificate '{}' is for {} and not for the custom domain '{}'.",
                id.name(),
                names.join(", "),
                domain.name
            );
            errors.push(ArmError::new(400, "CertificateSubjectMismatch", message).at(target));
        }
    }
    Ok(())
}

/// Whether a certificate's name, perhaps a wildcard for one label, is a host's.
fn covers(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(rest) => host.split_once('.').is_some_and(|(_, domain)| domain.eq_ignore_ascii_case(rest)),
        None => name.eq_ignore_ascii_case(host),
    }
}

fn storages(plane: &ControlPlane, app: &ContainerApp, errors: &mut Errors) -> Result<(), Refusal> {
    for (index, volume) in app.template.volumes.iter().enumerate() {
        let VolumeKind::Storage(volume) = &volume.kind else { continue };
        let id = app.environment.child("storages", &volume.storage);
        let found = match id {
            Ok(id) => plane.store().resource(&id)?,
            Err(_) => None,
        };
        if let Some(found) = found {
            let is_nfs = found.doc.pointer("/properties/nfsAzureFile").is_some();
            if is_nfs != volume.is_nfs {
                let (is, other) = if is_nfs { ("NfsAzureFile", "AzureFile") } else { ("AzureFile", "NfsAzureFile") };
                let message = format!(
                    "The storage '{}' is of type {is}, not {other}; set storageType to '{is}'.",
                    volume.storage
                );
                let target = format!("properties.template.volumes[{index}].storageType");
                errors.push(ArmError::new(400, "InvalidParameterValueInContainerTemplate", message).at(target));
            }
        } else {
            let shown: String = volume.storage.chars().take(80).collect();
            let message =
                format!("The environment has no storage '{shown}'; make it with 'az containerapp env storage set'.");
            let target = format!("properties.template.volumes[{index}].storageName");
            errors.push(ArmError::new(400, "ManagedEnvironmentStorageNotFound", message).at(target));
        }
    }
    Ok(())
}

/// Names below the domain of an environment are given by the platform: one that is asked for could be another app's.
fn platform_hosts(plane: &ControlPlane, app: &ContainerApp, errors: &mut Errors) -> Result<(), Refusal> {
    let domains = app.ingress.as_ref().map_or(&[][..], |ingress| &ingress.custom_domains);
    for (index, domain) in domains.iter().enumerate() {
        if let Some(suffix) = custom_hosts::platform_domain(plane, &domain.name)? {
            let message = format!(
                "The custom domain '{}' is below '{suffix}', whose names the platform gives to apps; choose a domain of your own.",
                domain.name
            );
            let target = format!("properties.configuration.ingress.customDomains[{index}].name");
            errors.push(ArmError::new(400, "InvalidCustomHostName", message).at(target));
        }
    }
    Ok(())
}

/// Host names and ports that another app has already. Inside, ports belong to an environment; host names and external ports
/// are found by clients of one machine, whatever the environment.
fn conflicts(plane: &ControlPlane, app: &ContainerApp, errors: &mut Errors) -> Result<(), Refusal> {
    let mine = claims(app);
    if mine.is_empty() {
        return Ok(());
    }
    let place = |environment: &ResourceId| {
        if *environment == app.environment {
            "of the same environment".to_owned()
        } else {
            format!("of the environment '{}'", environment.name())
        }
    };
    for domain in app.ingress.iter().flat_map(|ingress| &ingress.custom_domains) {
        for environment in plane.store().resources(environments::KIND, None)? {
            let Some(owner) = custom_hosts::route_owner(plane, &environment.id, &domain.name)? else { continue };
            let message = format!(
                "The custom domain '{}' belongs to the path routing '{}' {}; choose another one.",
                domain.name,
                owner.name(),
                place(&environment.id)
            );
            let target = "properties.configuration.ingress.customDomains";
            errors.push(ArmError::conflict("CustomDomainInUse", message).at(target));
        }
    }
    for row in plane.store().resources(apps::KIND, None)? {
        if row.id == app.id {
            continue;
        }
        // one that cannot be read serves nothing
        let Ok(other) = apps::model(&row) else { continue };
        let is_near = other.environment == app.environment;
        let (owner, place) = (row.id.name(), place(&other.environment));
        for claim in claims(&other).intersection(&mine) {
            let error = match claim {
                Claim::Port(port) if is_near => {
                    let message = format!(
                        "The port {port} is exposed by the container app '{owner}' {place} already; choose another one."
                    );
                    ArmError::conflict("ExposedPortInUse", message).at("properties.configuration.ingress.exposedPort")
                }
                Claim::ExternalPort(port) if !is_near => {
                    let message = format!(
                        "The port {port} is exposed to the outside by the container app '{owner}' {place} already, and all environments of this server share its address; choose another one."
                    );
                    ArmError::conflict("ExposedPortInUse", message).at("properties.configuration.ingress.exposedPort")
                }
                Claim::Port(_) | Claim::ExternalPort(_) => continue,
                Claim::Name(name) => {
                    let message = format!(
                        "The custom domain '{name}' belongs to the container app '{owner}' {place}; choose another one."
                    );
                    let target = "properties.configuration.ingress.customDomains";
                    ArmError::conflict("CustomDomainInUse", message).at(target)
                }
            };
            errors.push(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_wildcard_covers_one_label() {
        assert!(covers("*.example.com", "www.example.com") && covers("A.b", "a.b"));
        assert!(!covers("*.example.com", "a.b.example.com") && !covers("*.example.com", "example.com"));
    }
}
