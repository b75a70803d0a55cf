//! Long-running operations as clients poll them: the body at `Azure-AsyncOperation`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::ArmError;

/// ARM's `status` of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationStatus {
    /// Not finished: the client asks again after `Retry-After`.
    InProgress,
    /// Done.
    Succeeded,
    /// Ended without success; the answer has `error`.
    Failed,
    /// Given up on request.
    Canceled,
}

impl OperationStatus {
    /// ARM's spelling.
    #[must_use]
    pub fn as_arm(self) -> &'static str {
        match self {
            Self::InProgress => "InProgress",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Canceled => "Canceled",
        }
    }
}

/// An operation as it is to be shown.
#[derive(Clone, Debug)]
pub struct OperationView<'a> {
    /// Path of the operation itself, without the query.
    pub id: &'a str,
    /// Its last segment.
    pub name: &'a str,
    /// Where it stands.
    pub status: OperationStatus,
    /// When it was accepted.
    pub started_at: Timestamp,
    /// When it ended, if it did.
    pub ended_at: Option<Timestamp>,
    /// Why it failed.
    pub error: Option<&'a ArmError>,
}

/// The body that `az` polls until `status` is final.
#[must_use]
pub fn render(view: &OperationView<'_>) -> Value {
    let mut value = json!({
        "id": view.id,
        "name": view.name,
        "status": view.status.as_arm(),
        "startTime": view.started_at.to_string(),
    });
    if let Some(ended_at) = view.ended_at {
        value["endTime"] = json!(ended_at.to_string());
    }
    if let Some(error) = view.error {
        value["error"] = error.inner_json();
    }
    value
}
