//! One poll: asks all due event rules of a revision at once, then decides with what they said.
//!
//! **Invariant:** a poll ends within the read deadline, and however it ends the revision can be polled again.

use std::sync::Arc;

use cove_model::RevisionKey;
use futures_util::future::join_all;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::entry::Due;
use crate::ports::{ExistingSource, LoadSource};
use crate::reader::Readers;
use crate::service::Shared;

/// What a poll needs.
pub(crate) struct Poll {
    /// From before it is spawned: no moment looks quiet.
    pub(crate) _busy: cove_base::Busy,
    pub(crate) shared: Arc<Shared>,
    pub(crate) readers: Arc<Readers>,
    pub(crate) load: LoadSource,
    pub(crate) existing: ExistingSource,
    pub(crate) key: RevisionKey,
}

/// Lets the revision be polled again when the poll did not end by itself.
struct Ended<'a>(&'a Poll, bool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.shared.table().end_polling(&self.0.key);
        }
    }
}

impl Poll {
    pub(crate) async fn run(self, due: Due, stopped: CancellationToken) {
        let mut ended = Ended(&self, false);
        let (readers, deadline) = (&self.readers, due.deadline);
        let reads = due
            .readers
            .iter()
            .map(|(index, reader)| async move { (*index, Arc::clone(reader), reader.read(readers, deadline).await) });
        let answers = tokio::select! {
            () = stopped.cancelled() => return,
            answers = join_all(reads) => answers,
        };
        let (load, existing) = ((self.load)(&self.key), (self.existing)(&self.key));
        let to_zero = self.shared.table().answer(&self.key, &due, answers, &load, existing);
        ended.1 = true;
        if to_zero {
            look_again(&self.shared, &self.load, &self.key, self.shared.clock.now());
        }
        self.shared.rearm();
    }
}

/// A request that came while a revision went to zero counted itself as open before it asked for activation.
pub(crate) fn look_again(shared: &Shared, load: &LoadSource, key: &RevisionKey, now: Timestamp) {
    let load = load(key);
    if load.open > 0 {
        shared.table().activate(key, now, load.open);
    }
}
