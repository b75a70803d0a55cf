//! Lines of sessions of pools as rows of Azure's table `AppEnvSessionConsoleLogs_CL`.
//!
//! | column | what |
//! |---|---|
//! | `TimeGenerated` | when the line was read from the pipe |
//! | `Type` | the table's name |
//! | `Level` | `Information` for stdout, `Error` for stderr |
//! | `Location`, `NodeName` | `local`: this machine |
//! | `OperationName` | `ConsoleLog` |
//! | `EnvironmentName` | of the pool's environment; empty when it has none |
//! | `SessionPoolName`, `PodName`, `ContainerName` | the pool, the session's replica, its container |
//! | `Stream`, `Log` | `stdout` or `stderr`, and the line |
//! | `CoveSessionId` | the session's GUID (`x-ms-session-guid`); null when it is not known any more |
//! | `_ResourceId` | the pool's id |
//!
//! **Invariant:** a session's identifier is a secret and in no row.

use serde_json::{Value, json};

use crate::ConsoleRow;

/// Name of the table.
pub const SESSION_TABLE: &str = "AppEnvSessionConsoleLogs_CL";

/// A line of a session with the columns of the table; `guid` is the session's.
#[must_use]
pub fn session_columns(row: &ConsoleRow, guid: Option<&str>) -> Value {
    let name = |id: &str| id.rsplit('/').next().unwrap_or_default().to_owned();
    // a pool without an environment is its own
    let environment =
        if row.environment.eq_ignore_ascii_case(&row.app) { String::new() } else { name(&row.environment) };
    json!({
        "TimeGenerated": row.at.to_string(),
        "Type": SESSION_TABLE,
        "Level": if row.stream == "stderr" { "Error" } else { "Information" },
        "Location": "local",
        "NodeName": "local",
        "OperationName": "ConsoleLog",
        "EnvironmentName": environment,
        "SessionPoolName": name(&row.app),
        "PodName": row.replica,
        "ContainerName": row.container,
        "Stream": row.stream,
        "Log": row.log,
        "CoveSessionId": guid,
        "_ResourceId": row.app,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Place;

    #[test]
    fn a_line_of_a_session_has_the_columns_of_the_table() {
        let pool = "/subscriptions/s/resourcegroups/g/providers/microsoft.app/sessionpools/code";
        let row = ConsoleRow {
            at: "2026-01-02T03:04:05Z".parse().unwrap(),
            environment: "/subscriptions/s/resourcegroups/g/providers/microsoft.app/managedenvironments/env".to_owned(),
            app: pool.to_owned(),
            revision: "code--abc1234".to_owned(),
            replica: "code--abc1234-one".to_owned(),
            container: "main".to_owned(),
            stream: "stderr".to_owned(),
            log: "boom".to_owned(),
            place: Place::default(),
        };
        let shown = session_columns(&row, Some("guid"));
        let text = |name: &str| shown[name].as_str().unwrap().to_owned();
        assert_eq!((text("SessionPoolName"), text("EnvironmentName")), ("code".to_owned(), "env".to_owned()));
        assert_eq!((text("Level"), text("Log"), text("CoveSessionId")), ("Error".into(), "boom".into(), "guid".into()));
        let alone = ConsoleRow { environment: pool.to_owned(), ..row };
        assert_eq!(session_columns(&alone, None)["EnvironmentName"], "");
        assert!(session_columns(&alone, None)["CoveSessionId"].is_null());
    }
}
