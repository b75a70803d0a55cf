//! Has snapshots taken and kept, one after the other, beside the planning task.
//!
//! **Invariant:** a row of a snapshot is written when its files are whole and on disk, and its files go when the row has gone.
//! **Invariant:** all snapshots together hold no more bytes than is allowed: only here are any taken.

use std::sync::Arc;

use cove_base::{Backoff, Busy, Clock};
use cove_model::{Session, SessionSnapshot, SnapshotError, SnapshotId, SnapshotKeep};
use cove_runtime::{Runtime, SnapshotFacts, SnapshotFailure, SnapshotOrder};
use cove_store::{Kept, Store};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Order, snapshots::Purpose, table::SnapshotHold};

/// Work for the keeper.
#[derive(Debug)]
pub(crate) enum Job {
    /// Take a snapshot.
    Take(Box<Take>),
    /// Forget the rows of these.
    Drop(Vec<SnapshotId>, Busy),
    /// Remove the files of these: nobody needs them.
    Remove(Vec<SnapshotId>, Busy),
}

/// A snapshot to be taken.
#[derive(Debug)]
pub(crate) struct Take {
    pub(super) session: Session,
    pub(super) hold: SnapshotHold,
    /// What it is kept for by itself, if it is.
    pub(super) keep: Option<SnapshotKeep>,
    pub(super) purpose: Purpose,
    pub(super) busy: Busy,
}

/// A snapshot that was taken, or not.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(super) take: Take,
    pub(super) outcome: Result<Option<SessionSnapshot>, SnapshotError>,
}

/// What the keeper needs.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) store: Store,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) clock: Clock,
    pub(crate) bytes_max: u64,
    /// Outcomes, for the planning task.
    pub(crate) orders: mpsc::Sender<Order>,
}

impl Keeper {
    /// Works until shutdown.
    pub(crate) async fn run(self, mut jobs: mpsc::Receiver<Job>, shutdown: CancellationToken) {
        loop {
            let job = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                job = jobs.recv() => job,
            };
            let told = match job {
                None => return,
                Some(Job::Take(take)) => {
                    let outcome = self.take(&take).await;
                    Order::Taken(Box::new(Taken { take: *take, outcome }))
                }
                Some(Job::Drop(ids, busy)) => {
                    if !self.drop_rows(&ids, &shutdown).await {
                        return;
                    }
                    Order::SnapshotsDropped(ids, busy)
                }
                Some(Job::Remove(ids, busy)) => {
                    for id in ids {
                        if let Err(error) = self.runtime.remove_snapshot(&id).await {
                            tracing::warn!(snapshot = %id, %error, "a snapshot that nobody needs could not be removed");
                        }
                    }
                    drop(busy);
                    continue;
                }
            };
            if self.orders.send(told).await.is_err() {
                return;
            }
        }
    }

    async fn take(&self, take: &Take) -> Result<Option<SessionSnapshot>, SnapshotError> {
        let held: u64 = self.runtime.snapshots().values().map(|facts| facts.bytes).sum();
        let order = SnapshotOrder {
            into: take.hold.id().clone(),
            bytes_max: self.bytes_max.saturating_sub(held),
            is_for_good: take.keep.is_some(),
            memory: matches!(&take.purpose, Purpose::Fork(forks, ..) if forks.memory),
        };
        let facts = self.runtime.snapshot(&take.session.replica, order).await.map_err(snapshot_error)?;
        let Some(keep) = take.keep.clone() else { return Ok(None) };
        let row = self.row(take, keep, facts);
        match self.store.keep_session_snapshot(row.clone()).await {
            Ok(Kept::Kept) => Ok(Some(row)),
            Ok(Kept::Taken) => Err(SnapshotError::Taken("the pool has a snapshot of this name already".to_owned())),
            Ok(Kept::NoPool) => Err(SnapshotError::UnknownPool),
            Err(error) if error.is_disk_full() => {
                Err(SnapshotError::NoRoom("the disk of the data directory is full: free some space".to_owned()))
            }
            Err(error) => Err(SnapshotError::Failed(format!("the snapshot could not be written down: {error}"))),
        }
    }

    fn row(&self, take: &Take, keep: SnapshotKeep, facts: SnapshotFacts) -> SessionSnapshot {
        SessionSnapshot {
            id: take.hold.id().clone(),
            pool: take.session.pool.clone(),
            keep,
            session_guid: take.session.guid.clone(),
            bytes: facts.bytes,
            files: facts.files,
            created_at: self.clock.now(),
        }
    }

    /// Until that works; `false` at shutdown.
    async fn drop_rows(&self, ids: &[SnapshotId], shutdown: &CancellationToken) -> bool {
        let mut backoff = Backoff::new(std::time::Duration::from_millis(50), std::time::Duration::from_secs(5));
        while let Err(error) = self.store.drop_session_snapshots(ids.to_vec()).await {
            tracing::error!(%error, "failed to forget snapshots; their files stay until that works");
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = tokio::time::sleep(backoff.next_wait()) => {}
            }
        }
        true
    }
}

fn snapshot_error(failure: SnapshotFailure) -> SnapshotError {
    match failure {
        SnapshotFailure::NotRunning => SnapshotError::UnknownSession,
        SnapshotFailure::NoRoom(text) => SnapshotError::NoRoom(text),
        SnapshotFailure::Unsupported(text) => SnapshotError::Unsupported(text),
        SnapshotFailure::Failed(text) => SnapshotError::Failed(text),
    }
}
