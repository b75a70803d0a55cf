//! Labels mode: every active revision has a label, and a new revision takes over the target label.
//!
//! A label is an entry of `ingress.traffic`; clients change single entries, the rest follows here. That the old revision of
//! a label serves until the new one is ready is the planner's business.
//!
//! **Invariant:** after [`settle_labels`] every entry names a revision and has a label, and weights add up to 100.

use cove_model::{ActiveRevisionsMode, TrafficWeight};
use serde_json::{Value, json};

use super::{Parsed, check::is_dns_label, render::render_weight};
use crate::ArmError;

const TARGET: &str = "properties.configuration.targetLabel";

/// Completes the labels of an app in labels mode; does nothing in the other modes.
///
/// `old` is the traffic before this write, `newest` the newest revision after it, `is_new` whether this write makes it.
///
/// # Errors
/// 400 when the app has no ingress, no target label, or a weight without a label.
pub fn settle_labels(parsed: &mut Parsed, old: &[TrafficWeight], newest: &str, is_new: bool) -> Result<(), ArmError> {
    if parsed.app.active_revisions_mode != ActiveRevisionsMode::Labels {
        return Ok(());
    }
    let target = parsed.doc.pointer("/properties/configuration/targetLabel").and_then(Value::as_str);
    let Some(target) = target.map(str::to_owned) else {
        let message = "activeRevisionsMode 'Labels' needs a targetLabel: the label that new revisions get.";
        return Err(ArmError::new(400, "TargetLabelRequired", message).at(TARGET));
    };
    let Some(ingress) = &mut parsed.app.ingress else {
        let message = "activeRevisionsMode 'Labels' needs ingress, since labels are entries of ingress.traffic.";
        return Err(ArmError::invalid("properties.configuration.ingress", message));
    };
    let mut traffic = std::mem::take(&mut ingress.traffic);
    if traffic.is_empty() {
        traffic = old.iter().filter(|entry| entry.label.is_some()).cloned().collect();
    }
    // az leaves `latestRevision` behind with nothing
    traffic.retain(|entry| entry.label.is_some() || entry.weight > 0);
    for entry in &mut traffic {
        entry.revision.get_or_insert_with(|| newest.to_owned());
    }
    if is_new || traffic.is_empty() {
        point(&mut traffic, &target, newest);
    }
    if let Some(bare) = traffic.iter().find(|entry| entry.label.is_none()) {
        let revision = bare.revision.as_deref().unwrap_or_default();
        let message = format!("In labels mode every weight needs a label; the one of revision '{revision}' has none.");
        return Err(ArmError::new(400, "InvalidTrafficWeight", message).at("properties.configuration.ingress.traffic"));
    }
    let shown: Value = traffic.iter().map(render_weight).collect();
    ingress.traffic = traffic;
    if let Some(doc) = parsed.doc.pointer_mut("/properties/configuration/ingress") {
        doc["traffic"] = shown;
    }
    Ok(())
}

/// Makes `label` point to `revision`; a label that is new gets what is left of 100.
fn point(traffic: &mut Vec<TrafficWeight>, label: &str, revision: &str) {
    if let Some(entry) = traffic.iter_mut().find(|entry| entry.label.as_deref() == Some(label)) {
        entry.revision = Some(revision.to_owned());
        return;
    }
    let given: u32 = traffic.iter().map(|entry| entry.weight).sum();
    traffic.push(TrafficWeight {
        revision: Some(revision.to_owned()),
        weight: 100_u32.saturating_sub(given),
        label: Some(label.to_owned()),
    });
}

/// Whether a text may be a label: it becomes part of a host name.
pub(super) fn is_label(text: &str) -> bool {
    is_dns_label(text, 63) && !text.contains("--")
}

/// Most records that are kept per label.
const RECORDS_MAX: usize = 100;

/// Where the history of labels stands in a stored document; clients neither see nor write it there.
pub(super) const HISTORY: &str = "coveLabelHistory";

/// Carries the history of labels over to the document of this write: what a label points to now begins, what it pointed to
/// before ends.
pub fn record_labels(parsed: &mut Parsed, old: Option<&Value>, now: jiff::Timestamp) {
    let mut history = old.and_then(|old| old.get(HISTORY)).cloned().unwrap_or_else(|| json!({}));
    let Some(labels) = history.as_object_mut() else { return };
    let traffic = parsed.app.ingress.as_ref().map_or(&[][..], |ingress| &ingress.traffic);
    let pointed = |label: &str| {
        let entry = traffic.iter().find(|entry| entry.label.as_deref() == Some(label))?;
        entry.revision.as_deref()
    };
    for (label, records) in labels.iter_mut() {
        let Some(last) = records.as_array_mut().and_then(|records| records.last_mut()) else { continue };
        if last.get("stop").is_none() && last["revision"].as_str() != pointed(label) {
            last["stop"] = json!(now.to_string());
        }
    }
    for entry in traffic {
        let (Some(label), Some(revision)) = (&entry.label, &entry.revision) else { continue };
        let slot = labels.entry(label.clone()).or_insert_with(|| json!([]));
        let Some(records) = slot.as_array_mut() else { continue };
        if records.last().is_none_or(|last| last.get("stop").is_some()) {
            records.push(json!({ "revision": revision, "start": now.to_string() }));
        }
        let surplus = records.len().saturating_sub(RECORDS_MAX);
        records.drain(..surplus);
    }
    if !labels.is_empty()
        && let Some(doc) = parsed.doc.as_object_mut()
    {
        doc.insert(HISTORY.to_owned(), history);
    }
}

/// The history of a label in a stored document: `revision`, `start` and, when it is over, `stop` per record, oldest first.
#[must_use]
pub fn label_history(doc: &Value) -> Vec<(String, Vec<Value>)> {
    let labels = doc.get(HISTORY).and_then(Value::as_object);
    let records =
        |(label, records): (&String, &Value)| (label.clone(), records.as_array().cloned().unwrap_or_default());
    labels.into_iter().flatten().map(records).collect()
}

/// The stored document without a label's history; `None` when there is none of that name.
#[must_use]
pub fn forget_label(doc: &Value, label: &str) -> Option<Value> {
    let mut doc = doc.clone();
    doc.get_mut(HISTORY)?.as_object_mut()?.remove(label)?;
    Some(doc)
}
