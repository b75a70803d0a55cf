//! Resource providers and locations: what `az` asks before almost every command.
//!
//! `az` stops when the `-l` of a command is not among a type's locations, so Azure's usual regions are listed beside
//! `local`; all of them mean this server.

use serde_json::{Value, json};

use crate::Errors;

/// Regions, as display names. `local` is Cove's own.
pub const LOCATIONS: &[&str] = &[
    "local",
    "Australia Central",
    "Australia East",
    "Australia Southeast",
    "Austria East",
    "Belgium Central",
    "Brazil South",
    "Canada Central",
    "Canada East",
    "Central India",
    "Central US",
    "Central US EUAP",
    "Chile Central",
    "East Asia",
    "East US",
    "East US 2",
    "East US 2 EUAP",
    "France Central",
    "France South",
    "Germany North",
    "Germany West Central",
    "Indonesia Central",
    "Israel Central",
    "Italy North",
    "Japan East",
    "Japan West",
    "Jio India West",
    "Korea Central",
    "Korea South",
    "Malaysia West",
    "Mexico Central",
    "New Zealand North",
    "North Central US",
    "North Central US (Stage)",
    "North Europe",
    "Norway East",
    "Norway West",
    "Poland Central",
    "Qatar Central",
    "South Africa North",
    "South Africa West",
    "South Central US",
    "South India",
    "Southeast Asia",
    "Spain Central",
    "Sweden Central",
    "Sweden South",
    "Switzerland North",
    "Switzerland West",
    "UAE Central",
    "UAE North",
    "UK South",
    "UK West",
    "West Central US",
    "West Europe",
    "West India",
    "West US",
    "West US 2",
    "West US 3",
];

/// Every version of `Microsoft.App` that Azure has published, newest first; each is served alike.
pub const APP_API_VERSIONS: [&str; 21] = [
    "2026-07-01",
    "2026-03-02-preview",
    "2026-01-01",
    "2025-10-02-preview",
    "2025-07-01",
    "2025-02-02-preview",
    "2025-01-01",
    "2024-10-02-preview",
    "2024-08-02-preview",
    "2024-03-01",
    "2024-02-02-preview",
    "2023-11-02-preview",
    "2023-08-01-preview",
    "2023-05-02-preview",
    "2023-05-01",
    "2023-04-01-preview",
    "2022-11-01-preview",
    "2022-10-01",
    "2022-06-01-preview",
    "2022-03-01",
    "2022-01-01-preview",
];
/// The version that answers without one name in links, and that clients take by default.
const DEFAULT_API_VERSION: &str = "2025-07-01";

/// Namespaces and their types: `az` stops at a type that is not here, with a complaint about the location.
const PROVIDERS: &[(&str, &[&str])] = &[
    (
        "Microsoft.App",
        &[
            "managedEnvironments",
            "managedEnvironments/certificates",
            "managedEnvironments/managedCertificates",
            "managedEnvironments/daprComponents",
            "managedEnvironments/httpRouteConfigs",
            "managedEnvironments/maintenanceConfigurations",
            "managedEnvironments/storages",
            "containerApps",
            "containerApps/authConfigs",
            "containerApps/revisions",
            "jobs",
            "sessionPools",
            "operations",
            "locations",
            "locations/operationStatuses",
        ],
    ),
    ("Microsoft.OperationalInsights", &["workspaces"]),
    ("Microsoft.ManagedIdentity", &["userAssignedIdentities"]),
    ("Microsoft.Authorization", &["roleAssignments", "roleDefinitions"]),
    ("Microsoft.ContainerRegistry", &["registries"]),
    ("Microsoft.Network", &["virtualNetworks", "virtualNetworks/subnets"]),
    ("Microsoft.Resources", &["deployments", "resourceGroups", "subscriptions", "tenants", "providers"]),
];

/// The namespace in Azure's spelling, if it is served.
#[must_use]
pub fn canonical_namespace(namespace: &str) -> Option<&'static str> {
    PROVIDERS.iter().map(|(name, _)| *name).find(|name| name.eq_ignore_ascii_case(namespace))
}

/// The document of a namespace: `Registered`, its types and their locations; `None` when it is not served.
#[must_use]
pub fn registered(subscription: &str, namespace: &str) -> Option<Value> {
    let (name, types) = PROVIDERS.iter().find(|(name, _)| name.eq_ignore_ascii_case(namespace))?;
    let types: Vec<Value> = types
        .iter()
        .map(|kind| {
            json!({
                "resourceType": kind,
                "locations": LOCATIONS,
                "apiVersions": APP_API_VERSIONS,
                "defaultApiVersion": DEFAULT_API_VERSION,
                "capabilities": "SupportsTags, SupportsLocation",
            })
        })
        .collect();
    Some(json!({
        "id": format!("/subscriptions/{subscription}/providers/{name}"),
        "namespace": name,
        "registrationPolicy": "RegistrationRequired",
        "registrationState": "Registered",
        "resourceTypes": types,
    }))
}

/// The documents of all served namespaces.
#[must_use]
pub fn all(subscription: &str) -> Vec<Value> {
    PROVIDERS.iter().filter_map(|(name, _)| registered(subscription, name)).collect()
}

/// Items of `/subscriptions/{id}/locations`.
#[must_use]
pub fn locations(subscription: &str) -> Vec<Value> {
    LOCATIONS
        .iter()
        .map(|display| {
            let name = location_key(display);
            json!({
                "id": format!("/subscriptions/{subscription}/locations/{name}"),
                "name": name,
                "type": "Region",
                "displayName": display,
                "regionalDisplayName": display,
                "metadata": { "regionType": "Physical", "regionCategory": "Recommended" },
            })
        })
        .collect()
}

/// `East US` and `eastus` are one place: lower case without spaces.
#[must_use]
pub fn location_key(location: &str) -> String {
    location.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect()
}

/// The display name of a location however it is spelled: `eastus` → `East US`.
#[must_use]
pub fn display_location(location: &str) -> Option<&'static str> {
    let key = location_key(location);
    LOCATIONS.iter().copied().find(|display| location_key(display) == key)
}

/// Reports a document without a location, or with one that does not exist.
pub fn check_required_location(doc: &Value, errors: &mut Errors) {
    match doc.get("location").and_then(Value::as_str) {
        None | Some("") => {
            let message = "The location property is required.";
            errors.push(crate::ArmError::new(400, "LocationRequired", message).at("location"));
        }
        Some(location) => check_location(location, errors),
    }
}

/// Reports a location that does not exist.
pub fn check_location(location: &str, errors: &mut Errors) {
    if display_location(location).is_none() {
        let shown: String = location.chars().take(64).collect();
        errors.push(
            crate::ArmError::new(
                400,
                "LocationNotAvailableForResourceType",
                format!("The location '{shown}' does not exist; use 'local' or one of Azure's, such as 'eastus'."),
            )
            .at("location"),
        );
    }
}

/// Whether a text looks like an api-version: a date, perhaps with `-preview` and the like. Real ones come and go, so the
/// shape is checked, not a list.
#[must_use]
pub fn is_api_version(text: &str) -> bool {
    let Some((date, rest)) = text.split_at_checked(10) else { return false };
    let is_date = date.parse::<jiff::civil::Date>().is_ok() && date.starts_with("20");
    is_date && (rest.is_empty() || rest.starts_with('-') && rest.len() <= 24 && rest.len() > 1)
}

/// Checks the version of a request to `Microsoft.App`; one that Azure never published is answered as Azure does.
///
/// # Errors
/// 400 `NoRegisteredProviderFound`.
pub fn check_app_api_version(version: &str, kind: &str) -> Result<(), crate::ArmError> {
    if APP_API_VERSIONS.iter().any(|known| known.eq_ignore_ascii_case(version)) {
        return Ok(());
    }
    let message = format!(
        "No registered resource provider found for API version '{version}' for type '{kind}'. The supported api-versions are '{}'.",
        APP_API_VERSIONS.join(", ")
    );
    Err(crate::ArmError::new(400, "NoRegisteredProviderFound", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_one_however_spelled() {
        assert_eq!(display_location("eastus"), Some("East US"));
        assert_eq!(display_location("EAST us 2"), Some("East US 2"));
        assert_eq!(display_location("Local"), Some("local"));
        assert_eq!(display_location("atlantis"), None);
    }

    #[test]
    fn api_versions_are_dates() {
        assert!(is_api_version("2025-07-01") && is_api_version("2025-02-02-preview"));
        for bad in ["", "latest", "2025-13-01", "2025-07-01x", "2025-07-01-", "2025-07-0é"] {
            assert!(!is_api_version(bad), "{bad}");
        }
    }

    #[test]
    fn app_versions_are_those_of_azure() {
        for version in APP_API_VERSIONS {
            assert!(is_api_version(version) && check_app_api_version(version, "jobs").is_ok());
        }
        let refused = check_app_api_version("2025-07-02", "jobs").unwrap_err();
        assert_eq!((refused.status, refused.code.as_str()), (400, "NoRegisteredProviderFound"));
    }

    #[test]
    fn az_finds_the_types_it_looks_for() {
        let doc = registered("s", "microsoft.app").unwrap();
        assert_eq!(doc["registrationState"], "Registered");
        let kinds: Vec<_> =
            doc["resourceTypes"].as_array().unwrap().iter().map(|t| t["resourceType"].clone()).collect();
        assert!(kinds.contains(&json!("managedEnvironments")) && kinds.contains(&json!("containerApps")));
        assert!(registered("s", "Microsoft.Nope").is_none());
    }
}
