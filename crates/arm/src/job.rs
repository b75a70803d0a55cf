//! `Microsoft.App/jobs`: checks a body into the model, and shows jobs and their executions.
//!
//! As for apps, the canonical document (Azure's spelling, no defaults) and the model (all defaults) are both stored.
//!
//! **Invariant:** a document from [`parse_put`] holds no secret value and no read-only property, and parsing it again gives
//! the same job.

use std::{collections::BTreeMap, fmt};

use cove_model::Job;
use serde_json::Value;

use crate::{
    ArmError, Errors,
    container_app::{PutContext, align_identities},
    schema::{Nulls, normalise},
};

mod check;
mod execution;
mod properties;
mod render;
mod start;
#[cfg(test)]
mod tests;

pub use execution::{render_execution, render_replica, render_stopped};
pub use render::{View, render};
pub use start::parse_start;

/// A checked PUT or PATCH of a job; its `Debug` text has the names of secrets only.
#[derive(Clone, PartialEq)]
pub struct ParsedJob {
    /// What is asked, with all defaults. `is_suspended` is false: suspend and resume are not part of a body.
    pub job: Job,
    /// The document to store.
    pub doc: Value,
    /// All secrets the job has after this request; `None` keeps the stored value.
    pub secrets: BTreeMap<String, Option<String>>,
    /// `workloadProfileName`, if given; that the environment has it is for the caller to check.
    pub workload_profile: Option<String>,
}

impl fmt::Debug for ParsedJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets = self.secrets.keys();
        f.debug_struct("ParsedJob").field("doc", &self.doc).field("secrets", &secrets).finish_non_exhaustive()
    }
}

/// The trigger configurations with their types.
const TRIGGERS: [(&str, &str); 3] =
    [("Manual", "manualTriggerConfig"), ("Schedule", "scheduleTriggerConfig"), ("Event", "eventTriggerConfig")];

/// Checks a PUT. That the time zone and the workload profile exist is for the caller to check.
///
/// # Errors
/// Every problem at once: 400, or 501 when all that is asked for exists in Azure but not here yet.
pub fn parse_put(body: &Value, context: &PutContext<'_>) -> Result<ParsedJob, ArmError> {
    let mut errors = Errors::new();
    let mut doc = normalise(body, &properties::JOB, Nulls::Drop, &mut errors);
    properties::strip_read_only(&mut doc);
    let parsed = check::job(doc, context, &mut errors);
    errors.into_result()?;
    Ok(parsed)
}

/// Merges a PATCH into the stored document and checks the outcome. Another `triggerType` leaves the configuration of the
/// old one behind.
///
/// # Errors
/// As [`parse_put`].
pub fn parse_patch(stored: &Value, patch: &Value, context: &PutContext<'_>) -> Result<ParsedJob, ArmError> {
    let mut errors = Errors::new();
    let mut patch = normalise(patch, &properties::JOB, Nulls::Keep, &mut errors);
    errors.into_result()?;
    let mut doc = stored.clone();
    align_identities(&doc, &mut patch);
    if let Some(kind) = patch.pointer("/properties/configuration/triggerType").and_then(Value::as_str)
        && let Some(fields) = doc.pointer_mut("/properties/configuration").and_then(Value::as_object_mut)
    {
        for (_, config) in TRIGGERS.iter().filter(|(other, _)| *other != kind) {
            fields.remove(*config);
        }
    }
    crate::patch::merge(&mut doc, &patch);
    parse_put(&doc, context)
}
