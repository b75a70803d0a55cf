//! What the autoscaler keeps in the store.

use cove_autoscaler::{BoxError, CountStore, SavedCount, ScaleState};
use cove_model::RevisionKey;
use cove_store::{CountRow, Store};
use tokio::runtime::Handle;

/// The store, as the autoscaler sees it. Called on blocking threads only.
pub(crate) struct StoredCounts {
    pub(crate) store: Store,
    pub(crate) runtime: Handle,
}

impl CountStore for StoredCounts {
    fn load(&self) -> Result<Vec<(RevisionKey, ScaleState)>, BoxError> {
        let rows = self.store.counts()?;
        rows.into_iter().map(|row| Ok((row.revision, serde_json::from_value(row.state)?))).collect()
    }

    fn save(&self, batch: &[SavedCount]) -> Result<(), BoxError> {
        let (mut kept, mut forgotten) = (Vec::new(), Vec::new());
        for (revision, state) in batch {
            match state {
                Some(state) => {
                    kept.push(CountRow { revision: revision.clone(), state: serde_json::to_value(state)? });
                }
                None => forgotten.push(revision.clone()),
            }
        }
        Ok(self.runtime.block_on(self.store.save_counts(kept, forgotten))?)
    }
}
