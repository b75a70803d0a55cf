//! What Azure has and Cove has not: an honest 501 that says what was meant, or a 404 for what exists nowhere.

use cove_arm::ArmError;
use http::Method;

/// Namespaces that Cove means to serve and does not yet.
const PLANNED_NAMESPACES: &[&str] = &[
    "Microsoft.Authorization",
    "Microsoft.ContainerRegistry",
    "Microsoft.Insights",
    "Microsoft.Network",
];

/// Types of `Microsoft.App` at the top level; all else below that namespace exists nowhere.
const APP_TYPES: &[&str] = &[
    "agents",
    "builders",
    "connectedEnvironments",
    "containerApps",
    "functions",
    "getCustomDomainVerificationId",
    "jobs",
    "locations",
    "logicApps",
    "managedEnvironments",
    "operations",
    "sandboxGroups",
    "sessionPools",
];

/// The error for a path that no route knows.
pub(crate) fn path(method: &Method, path: &str, segments: &[String]) -> ArmError {
    let is = |index: usize, word: &str| segments.get(index).is_some_and(|segment| segment.eq_ignore_ascii_case(word));
    if !is(0, "subscriptions") {
        return ArmError::unknown_path(path);
    }
    let provider = match segments.iter().rposition(|segment| segment.eq_ignore_ascii_case("providers")) {
        Some(at) => at + 1,
        None => return no_provider(method, path, segments),
    };
    // `az containerapp up` asks for a nonsense path of two ids in one; it wants to hear that nothing is there
    if segments[1..].iter().any(|segment| segment.eq_ignore_ascii_case("subscriptions")) {
        return ArmError::new(
            404,
            "ResourceNotFound",
            "The resource id in the path holds another resource id; nothing is there.",
        );
    }
    let Some(namespace) = segments.get(provider) else { return ArmError::unknown_path(path) };
    let kind = kind_of(&segments[provider..]);
    let served = cove_arm::provider::canonical_namespace(namespace);
    let planned = PLANNED_NAMESPACES.iter().find(|known| known.eq_ignore_ascii_case(namespace));
    if served.is_none() && planned.is_none() {
        let message = format!("The resource namespace '{namespace}' is invalid.");
        return ArmError::new(404, "InvalidResourceNamespace", message);
    }
    let top = segments.get(provider + 1).map_or("", String::as_str);
    let is_app = served == Some("Microsoft.App");
    if is_app && !APP_TYPES.iter().any(|known| known.eq_ignore_ascii_case(top)) {
        return ArmError::unknown_type(&kind);
    }
    not_implemented(method, &kind)
}

/// The error for a path that exists under other methods.
pub(crate) fn method(method: &Method, path: &str, _segments: &[String]) -> ArmError {
    ArmError::method_not_allowed(method.as_str(), path)
}

fn no_provider(method: &Method, path: &str, segments: &[String]) -> ArmError {
    let known = ["deployments", "tagNames", "providers", "moveResources", "validateMoveResources", "exportTemplate"];
    match segments.iter().find(|segment| known.iter().any(|known| known.eq_ignore_ascii_case(segment))) {
        Some(kind) => not_implemented(method, &format!("Microsoft.Resources/{kind}")),
        None => ArmError::unknown_path(path),
    }
}

fn not_implemented(method: &Method, kind: &str) -> ArmError {
    let instead = "this server has resource groups, Log Analytics workspaces, managed environments and container apps";
    ArmError::not_implemented(kind, &format!("{method} of '{kind}'"), instead)
}

/// `Microsoft.App/jobs/start` of `[Microsoft.App, jobs, j, start]`: the names left out.
fn kind_of(segments: &[String]) -> String {
    let mut kind: String = segments.first().cloned().unwrap_or_default();
    for part in segments[1..].iter().step_by(2).take(6) {
        kind.push('/');
        kind.push_str(part);
    }
    kind.chars().take(200).collect()
}
