//! `Microsoft.App/containerApps`: checks a body into the model, and shows an app.
//!
//! The canonical document is what the user asked for, in Azure's spelling and without defaults; the model is the same with
//! all defaults taken. Both are stored; answers are rendered from the document and completed from the model.
//!
//! **Invariant:** a document from [`parse_put`] holds no secret value and no read-only property, and parsing it again gives
//! the same app.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use cove_model::{ContainerApp, ResourceId, Template};
use serde_json::Value;

use crate::{
    ArmError, Errors,
    schema::{Nulls, normalise},
};

pub(crate) mod check;
mod ingress;
mod labels;
pub(crate) mod later;
mod not_built;
mod policies;
mod probes;
pub(crate) mod properties;
mod render;
mod scale;
mod scale_settings;
pub(crate) mod template;
#[cfg(test)]
mod tests;

pub use labels::{forget_label, label_history, record_labels, settle_labels};
pub use later::warnings;
pub use render::{View, host, label_host, render, render_stored_template, render_template};
pub(crate) use render::{complete, show_effective};
pub use template::check_resources;

/// What an app's PUT needs to know.
#[derive(Clone, Copy, Debug)]
pub struct PutContext<'a> {
    /// The id in the URL.
    pub id: &'a ResourceId,
    /// Names of the secrets that are stored already: those may come without a value.
    pub known_secrets: &'a BTreeSet<String>,
}

/// A checked PUT or PATCH; its `Debug` text has the names of secrets only.
#[derive(Clone, PartialEq)]
pub struct Parsed {
    /// What is asked, with all defaults. `is_stopped` is false: start and stop are not part of a body.
    pub app: ContainerApp,
    /// The document to store.
    pub doc: Value,
    /// All secrets the app has after this request; `None` keeps the stored value. [`crate::secrets::apply`] does it.
    pub secrets: BTreeMap<String, Option<String>>,
    /// `template.revisionSuffix`, if one was asked for; that it is unused is for the caller to check.
    pub revision_suffix: Option<String>,
    /// `workloadProfileName`, if given; that the environment has it is for the caller to check.
    pub workload_profile: Option<String>,
}

impl fmt::Debug for Parsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets = self.secrets.keys();
        f.debug_struct("Parsed").field("doc", &self.doc).field("secrets", &secrets).finish_non_exhaustive()
    }
}

/// Checks a PUT.
///
/// # Errors
/// Every problem at once: 400, or 501 when all that is asked for exists in Azure but not here yet.
pub fn parse_put(body: &Value, context: &PutContext<'_>) -> Result<Parsed, ArmError> {
    let mut errors = Errors::new();
    let mut doc = normalise(body, &properties::APP, Nulls::Drop, &mut errors);
    properties::strip_read_only(&mut doc);
    let parsed = check::app(doc, context, &mut errors);
    errors.into_result()?;
    Ok(parsed)
}

/// Merges a PATCH into the stored document and checks the outcome.
///
/// A patch that changes the template without naming a suffix does not inherit the old one: it would be taken.
///
/// # Errors
/// As [`parse_put`].
pub fn parse_patch(stored: &Value, patch: &Value, context: &PutContext<'_>) -> Result<Parsed, ArmError> {
    let mut errors = Errors::new();
    let mut patch = normalise(patch, &properties::APP, Nulls::Keep, &mut errors);
    errors.into_result()?;
    let mut doc = stored.clone();
    align_identities(&doc, &mut patch);
    let names_suffix = patch.pointer("/properties/template/revisionSuffix").is_some();
    if patch.pointer("/properties/template").is_some()
        && !names_suffix
        && let Some(fields) = doc.pointer_mut("/properties/template").and_then(Value::as_object_mut)
    {
        fields.remove("revisionSuffix");
    }
    crate::patch::merge(&mut doc, &patch);
    refuse_ignored_traffic(&doc, &patch)?;
    parse_put(&doc, context)
}

/// Gives the ids of identities in a patch the spelling that is stored: `az` writes them in lower case, and a merge
/// compares names to the letter.
pub(crate) fn align_identities(doc: &Value, patch: &mut Value) {
    const LIST: &str = "/identity/userAssignedIdentities";
    let Some(stored) = doc.pointer(LIST).and_then(Value::as_object) else { return };
    let Some(asked) = patch.pointer_mut(LIST).and_then(Value::as_object_mut) else { return };
    let old = std::mem::take(asked);
    for (name, value) in old {
        let same = stored.keys().find(|known| known.eq_ignore_ascii_case(&name));
        asked.insert(same.cloned().unwrap_or(name), value);
    }
}

/// In single mode all requests go to the newest revision, so weights and labels would be accepted and do nothing.
///
/// Only a patch that asks for them is refused: whole bodies carry old weights along when the mode is set to single.
fn refuse_ignored_traffic(doc: &Value, patch: &Value) -> Result<(), ArmError> {
    const TRAFFIC: &str = "/properties/configuration/ingress/traffic";
    const MODE: &str = "/properties/configuration/activeRevisionsMode";
    let is_single = doc.pointer(MODE).is_none_or(|mode| mode == "Single") && patch.pointer(MODE).is_none();
    let asked = patch.pointer(TRAFFIC).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let named = |item: &Value| item.get("revisionName").is_some() || item.get("label").is_some();
    if is_single && asked.iter().any(named) {
        let message =
            "Traffic weights and labels of revisions need activeRevisionsMode 'Multiple'; set the mode first.";
        return Err(ArmError::invalid("properties.configuration.ingress.traffic", message));
    }
    Ok(())
}

/// Whether a write makes a revision: any change below `properties.template`, or a suffix of its own.
///
/// Defaults that are spelled out are no change; properties that nobody knows are. Everything else (ingress, secrets,
/// registries, tags, mode) is of application scope and reaches running revisions.
#[must_use]
pub fn makes_revision(old_doc: &Value, old: &Template, new: &Parsed) -> bool {
    const SUFFIX: &str = "/properties/template/revisionSuffix";
    let old_suffix = old_doc.pointer(SUFFIX).and_then(Value::as_str);
    if new.revision_suffix.is_some() && new.revision_suffix.as_deref() != old_suffix {
        return true;
    }
    let whole = |doc: &Value, template: &Template| {
        let mut whole = render_stored_template(doc.pointer("/properties/template").unwrap_or(&Value::Null), template);
        whole.as_object_mut().map(|fields| fields.remove("revisionSuffix"));
        crate::patch::without_nulls(&whole)
    };
    *old != new.app.template || whole(old_doc, old) != whole(&new.doc, &new.app.template)
}
