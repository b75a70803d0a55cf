//! The list of revisions whose counts the autoscaler decides.
//!
//! A revision that is not kept any more is listed as inactive while something of it is left, then not at all.

use cove_reconcile::Plan;
use cove_scaling::ScaledRevision;
use jiff::Timestamp;

use crate::{entry::Entry, service::Brain};

impl Brain {
    /// Brings the list up to date for one app.
    pub(crate) fn list_scaled(&mut self, entry: &mut Entry, plan: &Plan, now: Timestamp) {
        let has_ingress = entry.data.app.ingress.is_some();
        for known in &mut entry.revisions {
            let name = &known.revision.name;
            let is_kept = plan.kept.contains(name);
            let was_kept = std::mem::replace(&mut known.is_kept, is_kept);
            if !is_kept {
                let is_left = known.status.replicas > 0 || known.status.slots > 0;
                match self.scaled.get_mut(&known.key) {
                    Some(listed) if is_left => {
                        self.scaled_changed |= std::mem::replace(&mut listed.is_active, false);
                    }
                    Some(_) => {
                        self.scaled.remove(&known.key);
                        self.scaled_changed = true;
                    }
                    None => {}
                }
                continue;
            }
            if let Some(listed) = self.scaled.get_mut(&known.key).filter(|listed| listed.is_active || was_kept) {
                self.scaled_changed |= std::mem::replace(&mut listed.has_ingress, has_ingress) != has_ingress;
                continue;
            }
            let again = self.scaled.contains_key(&known.key);
            let replaced = plan.replaces.as_ref().filter(|(newest, _)| newest == name).map(|(_, old)| old.clone());
            let app = entry.data.app.id.clone();
            let replaces = replaced.map(|name| cove_model::RevisionKey { app, name });
            let listed = ScaledRevision {
                revision: known.key.clone(),
                environment: entry.data.app.environment.clone(),
                scale: known.revision.template.scale.clone(),
                has_ingress,
                replaces,
                activated_at: if again { now } else { known.revision.activated_at },
                is_active: true,
            };
            self.scaled.insert(known.key.clone(), listed);
            self.scaled_changed = true;
        }
    }
}
