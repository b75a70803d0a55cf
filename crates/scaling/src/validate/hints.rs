//! What a rule lacks so that its source can be found and spoken to, where no single key is required.
//!
//! Azure accepts such a rule and its scaler fails at each poll; so it does here, and this says why beforehand.
//!
//! **Invariant:** a hint never rejects a request: the missing part may be one that only the source's server knows.

use super::Findings;

/// One row: scalers, the ways to give what they need, and what to say when none is complete.
struct Row {
    scalers: &'static [&'static str],
    ways: &'static [&'static [&'static str]],
    message: &'static str,
}

const REDIS: &[&str] = &["redis", "redis-streams"];
const REDIS_MANY: &[&str] = &["redis-cluster", "redis-cluster-streams", "redis-sentinel", "redis-sentinel-streams"];

const ROWS: [Row; 12] = [
    row(REDIS, &[&["address"], &["host", "port"]], "give address, or host and port"),
    row(REDIS_MANY, &[&["addresses"], &["hosts", "ports"]], "give addresses, or hosts and ports"),
    row(&["redis-sentinel", "redis-sentinel-streams"], &[&["sentinelMaster"]], "give sentinelMaster"),
    row(
        &["azure-queue", "azure-blob"],
        &[&["connection"], &["accountName", "identity"]],
        "give connection by auth, or accountName and an identity",
    ),
    row(
        &["azure-servicebus"],
        &[&["connection"], &["namespace", "identity"]],
        "give connection by auth, or namespace and an identity",
    ),
    row(
        &["azure-eventhub"],
        &[&["connection"], &["eventHubNamespace", "eventHubName", "identity"]],
        "give connection by auth, or eventHubNamespace, eventHubName and an identity",
    ),
    row(
        &["azure-eventhub"],
        &[&["storageConnection"], &["storageAccountName", "identity"]],
        "give storageConnection by auth, or storageAccountName and an identity, for the checkpoints",
    ),
    row(
        &["postgresql"],
        &[&["connection"], &["host", "port", "userName", "dbName"]],
        "give connection by auth, or host, port, userName and dbName",
    ),
    row(
        &["mysql"],
        &[&["connectionString"], &["host", "port", "username", "dbName"]],
        "give connectionString by auth, or host, port, username and dbName",
    ),
    row(&["azure-pipelines"], &[&["poolName"], &["poolID"]], "give poolName or poolID"),
    row(
        &["azure-pipelines"],
        &[&["personalAccessToken"], &["identity"]],
        "give personalAccessToken by auth, or an identity",
    ),
    row(
        &["mongodb", "mssql", "clickhouse", "couchdb"],
        &[&["connectionString"], &["host"]],
        "give connectionString by auth, or host",
    ),
];

const fn row(scalers: &'static [&'static str], ways: &'static [&'static [&'static str]], message: &'static str) -> Row {
    Row { scalers, ways, message }
}

/// Looks at one rule; `given` says whether a key has a value from anywhere.
pub(super) fn check(scaler: &str, given: &dyn Fn(&str) -> bool, place: &str, findings: &mut Findings) {
    for row in ROWS.iter().filter(|row| row.scalers.contains(&scaler)) {
        if !row.ways.iter().any(|way| way.iter().all(|key| given(key))) {
            findings.hints.insert((place.to_owned(), format!("every reading will fail: {}", row.message)));
        }
    }
}
