//! Saves what a plan changed, one batch at a time, and says when it is on disk.
//!
//! **Invariant:** a batch is told as saved only after its commit; one that cannot be saved is tried until it can.

use std::time::Duration;

use cove_base::Backoff;
use cove_store::StoreError;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Saves until shutdown: of each batch the changes, with `save`, and then tells the rest. `what` names them in the log.
pub(crate) async fn run<C, T, S>(
    what: &'static str,
    (mut batches, saved): (mpsc::Receiver<(Vec<C>, T)>, mpsc::Sender<T>),
    save: impl Fn(Vec<C>) -> S,
    shutdown: CancellationToken,
) where
    C: Clone,
    S: Future<Output = Result<(), StoreError>>,
{
    loop {
        let batch = tokio::select! {
            biased;
            batch = batches.recv() => batch,
            () = shutdown.cancelled() => None,
        };
        let Some((changes, told)) = batch else { return };
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        while let Err(error) = save(changes.clone()).await {
            tracing::error!(%error, "failed to save {what}; nothing of them goes on until that works");
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(backoff.next_wait()) => {}
            }
        }
        if saved.send(told).await.is_err() {
            return;
        }
    }
}
