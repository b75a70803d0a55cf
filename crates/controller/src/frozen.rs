//! When the last replica of an idle revision may not be frozen, whatever its template asks, and saying so once.

use cove_model::{IdleState, RevisionName};
use cove_reconcile::needs_life;

use crate::{entry::Entry, events::About, service::Brain};

impl Brain {
    /// Why no replica of an app can be frozen now.
    pub(crate) fn cannot_freeze(&self, entry: &Entry) -> Option<&'static str> {
        let asks = |idle: IdleState| idle == IdleState::Frozen;
        if !entry.revisions.iter().any(|known| asks(known.revision.template.scale.idle)) {
            return None;
        }
        if !self.deps.runtime.capabilities().freezes {
            return Some("this host cannot freeze processes");
        }
        self.ledger.is_memory_short().then_some("other apps wait for memory")
    }
}

/// A revision that asks for frozen replicas became ready, and cannot have them: one warning.
pub(crate) fn tell_impossible(brain: &Brain, entry: &Entry, name: &RevisionName) {
    let Some(known) = entry.known(name) else { return };
    let template = &known.revision.template;
    if template.scale.idle != IdleState::Frozen || template.scale.min_replicas > 0 {
        return;
    }
    let why = match needs_life(&entry.data.app, template) {
        Some(why) => why.to_string(),
        None if !brain.deps.runtime.capabilities().freezes => {
            "this host cannot freeze processes; `cove doctor` says what it lacks".to_owned()
        }
        None => return,
    };
    let about = About { revision: Some(name), replica: None };
    let message = format!("`coveIdle: frozen` has no effect on revision '{name}': {why}. It scales to zero instead");
    brain.teller.warning(&entry.data.app, about, "ReplicaFreezeNotPossible", message);
}
