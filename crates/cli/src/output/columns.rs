//! The columns of each noun's table: az's, and what one looks for first: states, counts, ages.

use jiff::Timestamp;
use serde_json::Value;

use super::{group_of, table, table::Table};

/// Which table a result is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    Groups,
    Environments,
    Apps,
    Revisions,
    Replicas,
    Secrets,
    Traffic,
    Images,
    Accounts,
    Assignments,
    Artifacts,
    Certificates,
    Components,
    Deployments,
    Executions,
    Identities,
    Jobs,
    Operations,
    ProfileStates,
    ProfileTypes,
    Resources,
    Roles,
    Routes,
    SessionPools,
    Storages,
    Usages,
    /// Columns from the objects themselves.
    Plain,
}

type Column = (&'static str, fn(&Value, Timestamp) -> String);

const GROUPS: &[Column] = &[
    ("Name", |group, _| text(group, "/name")),
    ("Location", |group, _| text(group, "/location")),
    ("Status", |group, _| text(group, "/properties/provisioningState")),
];

const ENVIRONMENTS: &[Column] = &[
    ("Name", |environment, _| text(environment, "/name")),
    ("Location", |environment, _| text(environment, "/location")),
    ("ResourceGroup", |environment, _| group(environment)),
    ("State", |environment, _| text(environment, "/properties/provisioningState")),
    ("Domain", |environment, _| text(environment, "/properties/defaultDomain")),
];

const APPS: &[Column] = &[
    ("Name", |app, _| text(app, "/name")),
    ("ResourceGroup", |app, _| group(app)),
    ("State", |app, _| text(app, "/properties/provisioningState")),
    ("Status", |app, _| text(app, "/properties/runningStatus")),
    ("Replicas", |app, _| limits(&app["properties"]["template"]["scale"])),
    ("LatestRevision", |app, _| text(app, "/properties/latestRevisionName")),
    ("Fqdn", |app, _| text(app, "/properties/configuration/ingress/fqdn")),
];

const REVISIONS: &[Column] = &[
    ("Name", |revision, _| text(revision, "/name")),
    ("Active", |revision, _| text(revision, "/properties/active")),
    ("Age", |revision, now| age(revision, "/properties/createdTime", now)),
    ("Traffic", |revision, _| percent(revision, "/properties/trafficWeight")),
    ("Health", |revision, _| text(revision, "/properties/healthState")),
    ("State", |revision, _| text(revision, "/properties/provisioningState")),
    ("Running", |revision, _| text(revision, "/properties/runningState")),
    ("Replicas", |revision, _| text(revision, "/properties/replicas")),
];

const REPLICAS: &[Column] = &[
    ("Name", |replica, _| text(replica, "/name")),
    ("State", |replica, _| text(replica, "/properties/runningState")),
    ("Age", |replica, now| age(replica, "/properties/createdTime", now)),
    ("Ready", |replica, _| ready(replica)),
    ("Restarts", |replica, _| restarts(replica)),
    ("Containers", |replica, _| names(&replica["properties"]["containers"])),
];

const SECRETS: &[Column] =
    &[("Name", |secret, _| text(secret, "/name")), ("Value", |secret, _| text(secret, "/value"))];

const TRAFFIC: &[Column] = &[
    ("Revision", |weight, _| match weight["latestRevision"].as_bool() {
        Some(true) => "latest".to_owned(),
        _ => text(weight, "/revisionName"),
    }),
    ("Weight", |weight, _| percent(weight, "/weight")),
    ("Label", |weight, _| text(weight, "/label")),
];

const IMAGES: &[Column] = &[
    ("Name", |image, _| text(image, "/name")),
    ("Digest", |image, _| text(image, "/digest").chars().take(19).collect()),
    ("Size", |image, _| size(image["sizeBytes"].as_u64().unwrap_or(0))),
    ("Age", |image, now| age(image, "/updatedAt", now)),
];

const ACCOUNTS: &[Column] = &[
    ("Name", |account, _| text(account, "/name")),
    ("SubscriptionId", |account, _| text(account, "/id")),
    ("TenantId", |account, _| text(account, "/tenantId")),
    ("State", |account, _| text(account, "/state")),
    ("IsDefault", |account, _| text(account, "/isDefault")),
];

const ASSIGNMENTS: &[Column] = &[
    ("Principal", |assignment, _| text(assignment, "/principalId")),
    ("Role", |assignment, _| either(assignment, "/roleDefinitionName", "/roleDefinitionId")),
    ("Scope", |assignment, _| text(assignment, "/scope")),
];

const RESOURCES: &[Column] = &[
    ("Name", |resource, _| text(resource, "/name")),
    ("ResourceGroup", |resource, _| group(resource)),
    ("Location", |resource, _| text(resource, "/location")),
    ("Type", |resource, _| text(resource, "/type")),
];

const ROLES: &[Column] = &[
    ("Name", |role, _| text(role, "/roleName")),
    ("Type", |role, _| either(role, "/roleType", "/type")),
    ("Description", |role, _| text(role, "/description").chars().take(60).collect()),
];

const CERTIFICATES: &[Column] = &[
    ("Name", |certificate, _| text(certificate, "/name")),
    ("Kind", |certificate, _| {
        if text(certificate, "/type").ends_with("managedCertificates") { "managed" } else { "own" }.to_owned()
    }),
    ("Subject", |certificate, _| text(certificate, "/properties/subjectName")),
    ("Thumbprint", |certificate, _| text(certificate, "/properties/thumbprint").chars().take(16).collect()),
    ("Expires", |certificate, _| text(certificate, "/properties/expirationDate").chars().take(10).collect()),
    ("State", |certificate, _| text(certificate, "/properties/provisioningState")),
];

const COMPONENTS: &[Column] = &[
    ("Name", |component, _| text(component, "/name")),
    ("Type", |component, _| text(component, "/properties/componentType")),
    ("Version", |component, _| text(component, "/properties/version")),
    ("Scopes", |component, _| texts(&component["properties"]["scopes"])),
];

const DEPLOYMENTS: &[Column] = &[
    ("Name", |deployment, _| text(deployment, "/name")),
    ("State", |deployment, _| text(deployment, "/properties/provisioningState")),
    ("Mode", |deployment, _| text(deployment, "/properties/mode")),
    ("Age", |deployment, now| age(deployment, "/properties/timestamp", now)),
    ("Error", |deployment, _| text(deployment, "/properties/error/message").chars().take(60).collect()),
];

const ARTIFACTS: &[Column] = &[
    ("Path", |artifact, _| text(artifact, "/name")),
    ("Bytes", |artifact, _| text(artifact, "/properties/sizeBytes")),
    ("Written", |artifact, _| text(artifact, "/properties/lastModified")),
];

const EXECUTIONS: &[Column] = &[
    ("Name", |execution, _| text(execution, "/name")),
    ("Started", |execution, _| text(execution, "/properties/startTime")),
    ("Status", |execution, _| text(execution, "/properties/status")),
];

const OPERATIONS: &[Column] = &[
    ("Resource", |operation, _| text(operation, "/properties/targetResource/resourceName")),
    ("Type", |operation, _| text(operation, "/properties/targetResource/resourceType")),
    ("Action", |operation, _| text(operation, "/properties/provisioningOperation")),
    ("State", |operation, _| text(operation, "/properties/provisioningState")),
    ("Error", |operation, _| text(operation, "/properties/statusMessage/error/message").chars().take(60).collect()),
];

const IDENTITIES: &[Column] = &[
    ("Name", |identity, _| text(identity, "/name")),
    ("ResourceGroup", |identity, _| group(identity)),
    ("PrincipalId", |identity, _| text(identity, "/properties/principalId")),
    ("ClientId", |identity, _| text(identity, "/properties/clientId")),
];

const JOBS: &[Column] = &[
    ("Name", |job, _| text(job, "/name")),
    ("ResourceGroup", |job, _| group(job)),
    ("State", |job, _| text(job, "/properties/provisioningState")),
    ("Trigger", |job, _| text(job, "/properties/configuration/triggerType")),
];

const SESSION_POOLS: &[Column] = &[
    ("Name", |pool, _| text(pool, "/name")),
    ("ResourceGroup", |pool, _| group(pool)),
    ("State", |pool, _| text(pool, "/properties/provisioningState")),
    ("Type", |pool, _| text(pool, "/properties/containerType")),
    ("Ready", |pool, _| text(pool, "/properties/scaleConfiguration/readySessionInstances")),
    ("Most", |pool, _| text(pool, "/properties/scaleConfiguration/maxConcurrentSessions")),
    ("Endpoint", |pool, _| text(pool, "/properties/poolManagementEndpoint")),
];

const PROFILE_STATES: &[Column] = &[
    ("Name", |profile, _| text(profile, "/name")),
    ("Fewest", |profile, _| text(profile, "/properties/minimumCount")),
    ("Most", |profile, _| text(profile, "/properties/maximumCount")),
    ("Now", |profile, _| text(profile, "/properties/currentCount")),
];

const PROFILE_TYPES: &[Column] = &[
    ("Name", |profile, _| text(profile, "/name")),
    ("Category", |profile, _| text(profile, "/properties/category")),
    ("Cores", |profile, _| text(profile, "/properties/cores")),
    ("MemoryGiB", |profile, _| text(profile, "/properties/memoryGiB")),
    ("Gpus", |profile, _| text(profile, "/properties/gpus")),
];

const ROUTES: &[Column] = &[
    ("Name", |route, _| text(route, "/name")),
    ("Rules", |route, _| route["properties"]["rules"].as_array().map_or(0, Vec::len).to_string()),
    ("Fqdn", |route, _| text(route, "/properties/fqdn")),
    ("State", |route, _| text(route, "/properties/provisioningState")),
];

const STORAGES: &[Column] = &[
    ("Name", |storage, _| text(storage, "/name")),
    ("Kind", |storage, _| {
        if storage["properties"]["nfsAzureFile"].is_object() { "NfsAzureFile" } else { "AzureFile" }.to_owned()
    }),
    ("Share", |storage, _| either(storage, "/properties/azureFile/shareName", "/properties/nfsAzureFile/shareName")),
    ("Access", |storage, _| either(storage, "/properties/azureFile/accessMode", "/properties/nfsAzureFile/accessMode")),
];

const USAGES: &[Column] = &[
    ("Name", |usage, _| either(usage, "/name/localizedValue", "/name/value")),
    ("Current", |usage, _| text(usage, "/currentValue")),
    ("Limit", |usage, _| text(usage, "/limit")),
    ("Unit", |usage, _| text(usage, "/unit")),
];

impl View {
    /// The table of one object or a list of them.
    pub(super) fn table(self, value: &Value, now: Timestamp) -> Table {
        let columns = match self {
            Self::Groups => GROUPS,
            Self::Environments => ENVIRONMENTS,
            Self::Apps => APPS,
            Self::Revisions => REVISIONS,
            Self::Replicas => REPLICAS,
            Self::Secrets => SECRETS,
            Self::Traffic => TRAFFIC,
            Self::Images => IMAGES,
            Self::Accounts => ACCOUNTS,
            Self::Assignments => ASSIGNMENTS,
            Self::Artifacts => ARTIFACTS,
            Self::Certificates => CERTIFICATES,
            Self::Components => COMPONENTS,
            Self::Deployments => DEPLOYMENTS,
            Self::Executions => EXECUTIONS,
            Self::Identities => IDENTITIES,
            Self::Jobs => JOBS,
            Self::Operations => OPERATIONS,
            Self::ProfileStates => PROFILE_STATES,
            Self::ProfileTypes => PROFILE_TYPES,
            Self::Resources => RESOURCES,
            Self::Roles => ROLES,
            Self::Routes => ROUTES,
            Self::SessionPools => SESSION_POOLS,
            Self::Storages => STORAGES,
            Self::Usages => USAGES,
            Self::Plain => return table::automatic(value, None),
        };
        let items = match value {
            Value::Array(items) => items.iter().collect(),
            other => vec![other],
        };
        let filled = |column: &&Column| items.iter().any(|item| !column.1(item, now).is_empty());
        let columns: Vec<&Column> = columns.iter().filter(filled).collect();
        let mut table = Table::new(columns.iter().map(|(title, _)| *title));
        for item in items {
            table.row(columns.iter().map(|(_, cell)| cell(item, now)));
        }
        table
    }
}

fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(is_true)) => if *is_true { "True" } else { "False" }.to_owned(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// The first of two that is there.
fn either(value: &Value, first: &str, second: &str) -> String {
    let found = text(value, first);
    if found.is_empty() { text(value, second) } else { found }
}

/// Texts of a list, with commas.
fn texts(list: &Value) -> String {
    let texts = list.as_array().map_or(&[][..], Vec::as_slice).iter().filter_map(Value::as_str);
    texts.collect::<Vec<_>>().join(",")
}

fn group(value: &Value) -> String {
    value["id"].as_str().and_then(group_of).unwrap_or_default().to_owned()
}

fn percent(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_u64).map(|weight| format!("{weight}%")).unwrap_or_default()
}

/// Azure's defaults where the template says nothing.
fn limits(scale: &Value) -> String {
    format!("{}..{}", scale["minReplicas"].as_u64().unwrap_or(0), scale["maxReplicas"].as_u64().unwrap_or(10))
}

fn containers(replica: &Value) -> &[Value] {
    replica["properties"]["containers"].as_array().map_or(&[], Vec::as_slice)
}

fn ready(replica: &Value) -> String {
    let containers = containers(replica);
    let ready = containers.iter().filter(|container| container["ready"].as_bool() == Some(true)).count();
    format!("{ready}/{}", containers.len())
}

fn restarts(replica: &Value) -> String {
    containers(replica).iter().filter_map(|container| container["restartCount"].as_u64()).sum::<u64>().to_string()
}

fn names(containers: &Value) -> String {
    let names = containers.as_array().map_or(&[][..], Vec::as_slice);
    names.iter().filter_map(|container| container["name"].as_str()).collect::<Vec<_>>().join(",")
}

fn age(value: &Value, pointer: &str, now: Timestamp) -> String {
    let at = value.pointer(pointer).and_then(Value::as_str).and_then(|text| text.parse::<Timestamp>().ok());
    at.map(|at| span(now.duration_since(at).as_secs())).unwrap_or_default()
}

/// The largest one or two units: `42s`, `5m`, `3h`, `12d`.
pub(crate) fn span(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Bytes in the unit that leaves one to three digits before the point.
pub(crate) fn size(bytes: u64) -> String {
    let mut unit_bytes = 1;
    for unit in ["B", "KiB", "MiB"] {
        if bytes < unit_bytes * 1024 {
            let tenths = bytes * 10 / unit_bytes;
            return if unit_bytes == 1 {
                format!("{bytes} B")
            } else {
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            };
        }
        unit_bytes *= 1024;
    }
    let tenths = bytes / (unit_bytes / 10).max(1);
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}
