//! Divides the memory for created-not-started replicas between the revisions that would wake faster with one.
//!
//! **Invariant:** done behind the wakes that ask for it, never in front of one.

use cove_model::{ActiveRevisionsMode, RevisionProvisioning};
use cove_reconcile::{Plan, SlotCandidate, divide_slot_budget};
use jiff::{SignedDuration, Timestamp};

use crate::{entry::Entry, service::Brain};

/// How long after a change slots are divided again.
const DIVIDE_AFTER: SignedDuration = SignedDuration::from_millis(50);

/// Notes who could use a slot now; says whether that changed.
pub(crate) fn note_candidates(entry: &mut Entry, plan: &Plan, now: Timestamp) -> bool {
    let has_ingress = entry.data.app.ingress.is_some();
    let is_single = entry.data.app.active_revisions_mode == ActiveRevisionsMode::Single;
    let mut changed = false;
    for known in &mut entry.revisions {
        let name = &known.revision.name;
        let is_in_charge = plan.in_charge.as_ref() == Some(name);
        let serves = plan.kept.contains(name) && (is_in_charge || !is_single);
        let may_sleep = has_ingress && known.revision.template.scale.min_replicas == 0;
        let is_ready = known.status.provisioning == RevisionProvisioning::Provisioned;
        let candidate =
            (serves && may_sleep && is_ready).then_some(known.status.replicas == 0 && known.status.frozen == 0);
        if known.status.replicas > 0 {
            known.used_at = now;
        }
        changed |= known.slot_candidate != candidate;
        known.slot_candidate = candidate;
    }
    changed
}

impl Brain {
    /// Asks for a division soon.
    pub(crate) fn divide_slots_soon(&mut self, now: Timestamp) {
        let at = now.checked_add(DIVIDE_AFTER).unwrap_or(Timestamp::MAX);
        self.slots_at.get_or_insert(at);
    }

    /// Gives slots anew; apps whose share changed are planned.
    pub(crate) fn divide_slots(&mut self, now: Timestamp) {
        self.slots_at = None;
        let capabilities = self.deps.runtime.capabilities();
        let candidates = self.entries.values().flat_map(|entry| &entry.revisions).filter_map(|known| {
            let is_at_zero = known.slot_candidate?;
            let used_at = if is_at_zero { known.used_at } else { now };
            Some(SlotCandidate { revision: known.key.clone(), is_at_zero, used_at })
        });
        let budget = if capabilities.slots { self.config.slot_budget_bytes } else { 0 };
        let given = divide_slot_budget(candidates.collect(), budget, capabilities.slot_bytes);
        for entry in self.entries.values_mut() {
            for known in &mut entry.revisions {
                let slots = given.get(&known.key).copied().unwrap_or(0);
                if std::mem::replace(&mut known.slots_wanted, slots) != slots {
                    self.dirty.insert(known.key.app.clone());
                }
            }
        }
    }
}
