//! Replicas that belong to no revision in the store: they are ended and removed.
//!
//! **Invariant:** judged only after the first full load, so a slow start never ends what runs rightly; nothing of an app
//! that is there and cannot be read is an orphan.

use std::time::Duration;

use cove_model::{ReplicaPhase, RevisionKey};

use crate::service::Brain;

/// Between SIGTERM and SIGKILL; the template that would say is gone.
const ORPHAN_GRACE: Duration = Duration::from_secs(30);

impl Brain {
    /// Ends what runs of a revision that nobody knows; called again at each change until nothing is left.
    pub(crate) fn end_orphans(&self, key: &RevisionKey) {
        if self.unreadable.contains(&key.app) {
            return;
        }
        let runtime = &self.deps.runtime;
        let Some(replicas) = runtime.observations().get(key) else { return };
        for replica in replicas.iter() {
            match replica.phase {
                ReplicaPhase::Stopped | ReplicaPhase::Failed => runtime.remove(&replica.name),
                ReplicaPhase::Stopping => {}
                ReplicaPhase::Preparing | ReplicaPhase::Prepared | ReplicaPhase::Running | ReplicaPhase::Frozen => {
                    tracing::info!(revision = %key, replica = %replica.name, "ending a replica of no known revision");
                    runtime.stop(&replica.name, ORPHAN_GRACE);
                }
            }
        }
    }
}
