//! Executions of the newer generation, kept for a while so that they can be asked for again.
//!
//! **Invariant:** at most [`KEPT_MAX`] with [`BYTES_MAX`] bytes are kept, the oldest finished ones go first; one that runs
//! stays. They are in memory: after a restart of the server they are not known any more.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use cove_model::{ResourceId, SessionIdentifier};
use indexmap::IndexMap;

const KEPT_MAX: usize = 1000;
const BYTES_MAX: usize = 64 << 20;
const KEPT_FOR: Duration = Duration::from_secs(3600);

/// What is known of executions, by id.
#[derive(Debug, Default)]
pub(crate) struct Executions(Mutex<IndexMap<String, Kept>>);

#[derive(Debug)]
struct Kept {
    pool: ResourceId,
    identifier: SessionIdentifier,
    since: Instant,
    shown: Bytes,
    bytes: usize,
    is_running: bool,
}

impl Executions {
    /// Notes one that begins; false when too many run.
    pub(super) fn begin(&self, id: &str, pool: &ResourceId, identifier: &SessionIdentifier, shown: Bytes) -> bool {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        make_room(&mut kept, KEPT_MAX - 1, BYTES_MAX);
        if kept.len() >= KEPT_MAX {
            return false;
        }
        let one = Kept {
            pool: pool.clone(),
            identifier: identifier.clone(),
            since: Instant::now(),
            shown,
            bytes: 0,
            is_running: true,
        };
        kept.insert(id.to_owned(), one);
        true
    }

    /// Notes how one ended.
    pub(super) fn end(&self, id: &str, shown: Bytes) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = shown.len();
        if let Some(one) = kept.get_mut(id) {
            (one.shown, one.bytes, one.is_running, one.since) = (shown, bytes, false, Instant::now());
        }
        make_room(&mut kept, KEPT_MAX, BYTES_MAX);
    }

    /// One of this session.
    pub(super) fn find(&self, id: &str, pool: &ResourceId, identifier: &SessionIdentifier) -> Option<Bytes> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        make_room(&mut kept, KEPT_MAX, BYTES_MAX);
        let one = kept.get(id).filter(|one| one.pool == *pool && one.identifier == *identifier)?;
        Some(one.shown.clone())
    }
}

fn make_room(kept: &mut IndexMap<String, Kept>, count_max: usize, bytes_max: usize) {
    kept.retain(|_, one| one.is_running || one.since.elapsed() < KEPT_FOR);
    let (mut count, mut bytes) = (kept.len(), kept.values().map(|one| one.bytes).sum::<usize>());
    kept.retain(|_, one| {
        let goes = !one.is_running && (count > count_max || bytes > bytes_max);
        if goes {
            count -= 1;
            bytes -= one.bytes;
        }
        !goes
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_finished_go_first_and_running_ones_stay() {
        let executions = Executions::default();
        let pool = ResourceId::resource("s", "g", cove_model::SESSION_POOL_KIND, "pool").unwrap();
        let (mine, other) = (SessionIdentifier::new("mine").unwrap(), SessionIdentifier::new("other").unwrap());
        for number in 0..KEPT_MAX {
            assert!(executions.begin(&number.to_string(), &pool, &mine, Bytes::new()));
        }
        assert!(!executions.begin("more", &pool, &mine, Bytes::new()));
        executions.end("5", Bytes::from_static(b"five"));
        assert_eq!(executions.find("5", &pool, &other), None);
        assert_eq!(executions.find("5", &pool, &mine), Some(Bytes::from_static(b"five")));
        assert!(executions.begin("more", &pool, &mine, Bytes::new()));
        assert_eq!(executions.find("5", &pool, &mine), None);
        executions.end("6", Bytes::from(vec![0; BYTES_MAX]));
        executions.end("7", Bytes::from_static(b"7"));
        assert_eq!(
            (executions.find("6", &pool, &mine), executions.find("7", &pool, &mine)),
            (None, Some(Bytes::from_static(b"7")))
        );
    }
}
