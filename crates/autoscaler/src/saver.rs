//! Writes changed counts down, in batches, off the wake path.
//!
//! **Invariant:** a batch that failed is written again with what is newest; at shutdown the last one is written.

use std::sync::Arc;
use std::time::Duration;

use cove_base::Backoff;
use tokio_util::sync::CancellationToken;

use crate::ports::CountStore;
use crate::service::Shared;

/// Longest wait between two tries.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Tries at shutdown before the last one, and the first wait between them: together under two seconds.
const LAST_TRIES: u32 = 4;
const LAST_WAIT: Duration = Duration::from_millis(100);

/// Writes until `stopped`, then once more.
pub(crate) async fn run(shared: Arc<Shared>, store: Arc<dyn CountStore>, after: Duration, stopped: CancellationToken) {
    let mut backoff = Backoff::new(after.max(Duration::from_millis(10)), RETRY_MAX);
    let mut wait = after;
    while !stopped.is_cancelled() {
        tokio::select! {
            () = stopped.cancelled() => {}
            () = shared.changed.notified() => {
                // Real time, also beside a virtual clock: this spares the disk, it decides nothing.
                tokio::select! { () = stopped.cancelled() => {}, () = tokio::time::sleep(wait) => {} }
            }
        }
        if stopped.is_cancelled() {
            break;
        }
        if save(&shared, &store).await {
            backoff.reset();
            wait = after;
        } else {
            wait = backoff.next_wait();
            shared.changed.notify_one();
        }
    }
    shared.table().save_all();
    let mut backoff = Backoff::new(LAST_WAIT, LAST_WAIT * 8);
    for _ in 0..LAST_TRIES {
        if save(&shared, &store).await {
            return;
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
    if !save(&shared, &store).await {
        tracing::error!("the last counts could not be saved; after the next start they are decided again");
    }
}

/// Writes what changed; `false` when it must be tried again.
async fn save(shared: &Arc<Shared>, store: &Arc<dyn CountStore>) -> bool {
    let batch = shared.table().take_unsaved();
    if batch.is_empty() {
        return true;
    }
    let store = Arc::clone(store);
    let written = tokio::task::spawn_blocking(move || {
        let result = store.save(&batch);
        (batch, result)
    });
    match written.await {
        Ok((_, Ok(()))) => true,
        Ok((batch, Err(error))) => {
            tracing::warn!(%error, counts = batch.len(), "failed to save counts; trying again");
            shared.table().put_back(batch);
            false
        }
        Err(error) => {
            tracing::error!(%error, "saving counts panicked; these counts are saved with their next change");
            true
        }
    }
}
