//! Host names of the user's own: who has one already, and what is visible of it.
//!
//! On one's own machine nobody has to prove that a domain is theirs: the analysis passes, and tells conflicts and addresses.

use std::time::Duration;

use cove_arm::ArmError;
use cove_model::{ContainerApp, HttpRouteConfig, ResourceId};
use http::Method;
use serde_json::{Value, json};

use crate::{
    answer::{self, Answer, Refusal},
    apps::{self, APP},
    call::Call,
    control_plane::ControlPlane,
    environments,
    route::Route,
};

/// Longest wait for the addresses of a name.
const LOOKUP_MAX: Duration = Duration::from_secs(2);

pub(crate) fn routes() -> Vec<Route> {
    vec![Route::arm(Method::POST, format!("{APP}/listCustomHostNameAnalysis"), analyse)]
}

/// The resource of an environment, other than `except`, that has a host name already.
pub(crate) fn owner(
    plane: &ControlPlane,
    environment: &ResourceId,
    host: &str,
    except: &ResourceId,
) -> Result<Option<ResourceId>, Refusal> {
    let has = |app: &ContainerApp| {
        app.ingress.as_ref().is_some_and(|ingress| ingress.custom_domains.iter().any(|domain| domain.name == host))
    };
    for row in apps::in_environment(plane, environment)? {
        if row.id != *except && has(&apps::model(&row)?) {
            return Ok(Some(row.id));
        }
    }
    route_owner(plane, environment, host)
}

/// The path routing of an environment that has a host name already.
pub(crate) fn route_owner(
    plane: &ControlPlane,
    environment: &ResourceId,
    host: &str,
) -> Result<Option<ResourceId>, Refusal> {
    let kind = "Microsoft.App/managedEnvironments/httpRouteConfigs";
    let rows = plane.store().resources(kind, Some(environment))?;
    let found = rows.into_iter().find(|row| {
        let config = row.spec.clone().and_then(|spec| serde_json::from_value::<HttpRouteConfig>(spec).ok());
        config.is_some_and(|config| config.custom_domains.iter().any(|domain| domain.name == host))
    });
    Ok(found.map(|row| row.id))
}

/// The environment's own domain that a host name is, or is below; of any environment, as all share one ingress.
pub(crate) fn platform_domain(plane: &ControlPlane, host: &str) -> Result<Option<String>, Refusal> {
    for row in plane.store().resources(environments::KIND, None)? {
        let environment = environments::model(&row)?;
        let domains = [Some(environment.default_domain.to_ascii_lowercase()), environment.suffix.map(|own| own.name)];
        for domain in domains.into_iter().flatten().filter(|domain| !domain.is_empty()) {
            if host.strip_suffix(&domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')) {
                return Ok(Some(domain));
            }
        }
    }
    Ok(None)
}

async fn analyse(plane: ControlPlane, call: Call) -> Answer {
    let row = apps::require(&plane, &call)?;
    let app = apps::model(&row)?;
    let host = call.query("customHostname").unwrap_or("").trim().to_ascii_lowercase();
    if host.is_empty() {
        // Azure gives the app's own name then
        let name = format!("{}.{}", row.id.name(), apps::domain(&plane, &app)?);
        return Ok(answer::json(200, &report(&name, None, false, &lookup(&name).await, true)));
    }
    if !cove_arm::environment::child::is_host_name(&host) {
        let shown: String = host.chars().take(80).collect();
        let message =
            format!("The custom domain '{shown}' is not valid; expected a host name such as 'www.example.com'.");
        return Err(ArmError::new(400, "InvalidCustomHostName", message).at("customHostname").into());
    }
    let conflict = owner(&plane, &app.environment, &host, &row.id)?;
    let suffix = environment_suffix(&plane, &app.environment)?;
    let is_suffix = suffix.is_some_and(|suffix| host == suffix || host.ends_with(&format!(".{suffix}")));
    let mine = app.ingress.iter().flat_map(|ingress| &ingress.custom_domains).any(|domain| domain.name == host);
    Ok(answer::json(200, &report(&host, conflict.as_ref(), is_suffix, &lookup(&host).await, mine)))
}

/// Custom DNS suffix of an environment.
fn environment_suffix(plane: &ControlPlane, id: &ResourceId) -> Result<Option<String>, Refusal> {
    let row = plane.store().resource(id)?;
    let suffix = row.as_ref().and_then(|row| row.doc.pointer("/properties/customDomainConfiguration/dnsSuffix"));
    let is_own = |suffix: &String| {
        row.as_ref().is_none_or(|row| environments::model(row).is_ok_and(|e| e.default_domain != *suffix))
    };
    Ok(suffix.and_then(Value::as_str).map(str::to_ascii_lowercase).filter(|suffix| !suffix.is_empty()).filter(is_own))
}

async fn lookup(host: &str) -> Vec<String> {
    let asked = tokio::time::timeout(LOOKUP_MAX, tokio::net::lookup_host((host, 0))).await;
    let mut found: Vec<String> = match asked {
        Ok(Ok(addresses)) => {
            addresses.filter(|address| address.is_ipv4()).map(|address| address.ip().to_string()).collect()
        }
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    found.sort();
    found.dedup();
    found
}

fn report(
    host: &str,
    conflict: Option<&ResourceId>,
    is_suffix: bool,
    addresses: &[String],
    is_verified: bool,
) -> Value {
    let mut value = json!({
        "hostName": host,
        "isHostnameAlreadyVerified": is_verified,
        "customDomainVerificationTest": "Passed",
        "hasConflictOnManagedEnvironment": conflict.is_some(),
        "conflictWithEnvironmentCustomDomain": is_suffix,
        "aRecords": addresses,
        "cNameRecords": [],
        "txtRecords": [],
        "alternateCNameRecords": [],
        "alternateTxtRecords": [],
    });
    if let Some(conflict) = conflict {
        value["conflictingContainerAppResourceId"] = json!(conflict.as_str());
    }
    value
}
