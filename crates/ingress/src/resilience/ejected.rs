//! Ejections on their way to whoever tells users of them.
//!
//! **Invariant:** telling never waits: what nobody takes in time is dropped.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use cove_model::{ReplicaName, RevisionKey};
use jiff::Timestamp;
use tokio::sync::mpsc;

/// Ejections that may wait for their reader.
const WAITING_MAX: usize = 256;

/// A replica that a circuit breaker left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejected {
    /// Since when.
    pub at: Timestamp,
    /// Its revision.
    pub revision: RevisionKey,
    /// Which one.
    pub replica: ReplicaName,
    /// Errors in a row.
    pub errors: u32,
    /// For how long.
    pub span: Duration,
}

/// Both ends of their way.
#[derive(Debug)]
pub(crate) struct Ejections {
    sender: mpsc::Sender<Ejected>,
    receiver: Mutex<Option<mpsc::Receiver<Ejected>>>,
}

impl Default for Ejections {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        Self { sender, receiver: Mutex::new(Some(receiver)) }
    }
}

impl Ejections {
    /// Tells one.
    pub(crate) fn tell(&self, ejected: Ejected) {
        if self.sender.try_send(ejected).is_err() {
            tracing::debug!("an ejection was not told: its reader is behind or gone");
        }
    }

    /// The reader's end, once.
    pub(crate) fn take(&self) -> Option<mpsc::Receiver<Ejected>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
