//! `systemData`: who made a resource and who changed it last.

use jiff::Timestamp;
use serde_json::{Value, json};

/// ARM's `systemData`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemData {
    /// Who made it: a user name or an application id.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// Who changed it last.
    pub last_modified_by: String,
    /// When.
    pub last_modified_at: Timestamp,
}

impl SystemData {
    /// Its JSON.
    #[must_use]
    pub fn render(&self) -> Value {
        json!({
            "createdBy": self.created_by,
            "createdByType": "User",
            "createdAt": self.created_at.to_string(),
            "lastModifiedBy": self.last_modified_by,
            "lastModifiedByType": "User",
            "lastModifiedAt": self.last_modified_at.to_string(),
        })
    }
}
