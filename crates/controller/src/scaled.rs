//! The list of revisions whose counts the autoscaler decides.
//!
//! A revision that is not kept any more is listed as inactive while something of it is left, then not at all.

use std::sync::Arc;

use cove_reconcile::Plan;
use cove_scaling::ScaledRevision;
use jiff::Timestamp;

use crate::{entry::Entry, service::Brain};

impl Brain {
    /// Brings the list up to date for one app.
    pub(crate) fn list_scaled(&self, entry: &mut Entry, plan: &Plan, now: Timestamp) {
        let has_ingress = entry.data.app.ingress.is_some();
        for known in &mut entry.revisions {
            let name = &known.revision.name;
            let is_kept = plan.kept.contains(name);
            let was_kept = std::mem::replace(&mut known.is_kept, is_kept);
            if !is_kept {
                let is_left = known.status.replicas > 0 || known.status.slots > 0;
                match self.deps.scaled.get(&known.key) {
                    Some(listed) if is_left => self.list(ScaledRevision { is_active: false, ..(*listed).clone() }),
                    Some(_) => {
                        self.deps.scaled.remove(&known.key);
                    }
                    None => {}
                }
                continue;
            }
            let listed = self.deps.scaled.get(&known.key);
            if let Some(listed) = listed.as_ref().filter(|listed| listed.is_active || was_kept) {
                if listed.has_ingress != has_ingress {
                    self.list(ScaledRevision { has_ingress, ..(**listed).clone() });
                }
                continue;
            }
            let again = listed.is_some();
            let replaced = plan.replaces.as_ref().filter(|(newest, _)| newest == name).map(|(_, old)| old.clone());
            let app = entry.data.app.id.clone();
            let replaces = replaced.map(|name| cove_model::RevisionKey { app, name });
            self.list(ScaledRevision {
                revision: known.key.clone(),
                environment: entry.data.app.environment.clone(),
                scale: known.revision.template.scale.clone(),
                has_ingress,
                replaces,
                activated_at: if again { now } else { known.revision.activated_at },
                is_active: true,
            });
        }
    }

    fn list(&self, revision: ScaledRevision) {
        self.deps.scaled.set(revision.revision.clone(), Arc::new(revision));
    }
}
