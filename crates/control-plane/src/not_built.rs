//! What Azure has and Cove has not: an honest 501 that says what was meant, or a 404 for what exists nowhere.
//!
//! Every operation of `Microsoft.App` is a route: what no file of this crate serves gets one from here, with the words of its
//! group. So the router itself knows what works, see [`crate::coverage`].

use cove_arm::ArmError;
use http::Method;

use crate::{
    coverage,
    route::{Missing, Route},
};

/// The words of each group of operations that has any that are not built.
const WORDS: &[(&str, &str, &str)] = &[
    (
        "ConnectedEnvironments",
        "A connected environment, which puts container apps on a Kubernetes cluster",
        "use a managed environment: this machine is what it runs on",
    ),
    (
        "ContainerAppPrivateEndpoint",
        "A private endpoint of an app",
        "there is no virtual network; restrict who may call with ipSecurityRestrictions",
    ),
    (
        "ContainerAppPrivateLink",
        "A private link of an app",
        "there is no virtual network; restrict who may call with ipSecurityRestrictions",
    ),
    (
        "ManagedEnvironmentPrivateEndpoint",
        "A private endpoint of an environment",
        "there is no virtual network; restrict who may call with ipSecurityRestrictions of the apps",
    ),
    ("ContainerApps.", "This operation of an app", "read the app itself: `az containerapp show`"),
    ("ContainerAppsAuthConfigs", "Authentication in front of apps", "let the app itself check who calls"),
    (
        "ContainerAppsDiagnostics",
        "This detector of an app",
        "read its revisions, replicas and system logs: `az containerapp logs show --type system`",
    ),
    (
        "ContainerAppsFunctions",
        "Azure Functions in an app",
        "run the function's image as an ordinary app with scale rules",
    ),
    (
        "ContainerAppsRevisionFunctions",
        "Azure Functions in a revision",
        "run the function's image as an ordinary app with scale rules",
    ),
    ("FunctionsExtension", "Calling an Azure Function through the API", "call the app's own address"),
    ("ContainerAppsLabelHistory", "The history of a label", "read the labels in the app's traffic"),
    (
        "ContainerAppsSourceControls",
        "Deployment from a repository by GitHub Actions",
        "build the image yourself and set it with `az containerapp update --image`",
    ),
    ("DotNetComponents", "A .NET component", "run its image, such as the Aspire dashboard, as an ordinary app"),
    ("JavaComponents", "A Java component", "run its image, such as Eureka or the config server, as an ordinary app"),
    ("LogicApps", "A Logic App in an app", "run the workflow outside of this server and call the app"),
    ("ManagedEnvironmentsStorages", "A storage of an environment", "use an EmptyDir volume"),
    ("SandboxGroups", "A sandbox group", "run the sandbox's image as an app"),
    (
        "VnetConnections",
        "A sandbox group's connection to a virtual network",
        "there is no virtual network; leave it out",
    ),
];

/// A route for every operation of Azure's; those that are served elsewhere take the place of theirs.
pub(crate) fn routes() -> Vec<Route> {
    coverage::operations()
        .filter_map(|operation| {
            let group = format!("{}.{}", operation.group, operation.name);
            let words = WORDS.iter().find(|(begin, ..)| group.starts_with(begin));
            let (_, what, instead) = words?;
            let kind = kind_of_pattern(&operation.path);
            Some(Route::missing(operation.method, operation.path, kind, Missing { what, instead }))
        })
        .collect()
}

/// `Microsoft.App/jobs/executions` of `…/providers/Microsoft.App/jobs/{jobName}/executions`.
fn kind_of_pattern(pattern: &str) -> String {
    let below = pattern.rsplit_once("/providers/").map_or(pattern, |(_, below)| below);
    let parts: Vec<&str> = below.split('/').filter(|part| !part.is_empty() && !part.starts_with('{')).collect();
    parts.join("/")
}

/// Namespaces that Cove means to serve and does not yet.
const PLANNED_NAMESPACES: &[&str] = &["Microsoft.Insights"];

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
    let instead =
        "this server has resource groups, Log Analytics workspaces, managed environments, container apps and jobs";
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
