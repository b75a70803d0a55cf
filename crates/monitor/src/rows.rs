//! Rows as readers get them; names follow Azure's tables `ContainerAppConsoleLogs_CL` and `ContainerAppSystemLogs_CL`.

use cove_model::{SystemEvent, WakeRecord};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One line a container wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleRow {
    /// When it was read from the pipe.
    pub at: Timestamp,
    /// Environment's resource id.
    pub environment: String,
    /// App's resource id.
    pub app: String,
    /// Revision name.
    pub revision: String,
    /// Replica name.
    pub replica: String,
    /// Container name.
    pub container: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The line.
    pub log: String,
    /// Where the line begins in its source, `<file number>:<byte offset>`: its key together with replica and container.
    #[serde(skip)]
    pub place: Place,
}

/// Place of a line in its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// 1 for the first file of a container, higher after each rotation.
    pub file: u64,
    /// Byte offset in it.
    pub offset: u64,
}

/// One system event.
pub type SystemRow = SystemEvent;

/// One wake from zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeRow {
    /// App's resource id, lower case.
    pub app: String,
    /// Its phases.
    pub wake: WakeRecord,
}
