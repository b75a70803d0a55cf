//! What servers before this one still serve: counted with what this one serves, until they are gone.
//!
//! **Invariant:** counters never go back: what a server had counted stays counted when it ends.
//! **Invariant:** a replica that drains counts as drained only once every server that may have requests at it said how many.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use cove_base::Board;
use cove_model::{ReplicaName, RevisionKey};
use cove_traffic::RevisionLoad;
use tokio::sync::Notify;

/// All of them; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Predecessors {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// There is or was one: otherwise nothing is looked up.
    any: AtomicBool,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    live: BTreeMap<u64, Told>,
    /// Counters of those that are gone.
    gone: HashMap<RevisionKey, RevisionLoad>,
}

#[derive(Debug, Default)]
struct Told {
    loads: HashMap<RevisionKey, RevisionLoad>,
    drained: HashMap<ReplicaName, u64>,
}

/// One that lives; forgotten when dropped.
#[derive(Debug)]
pub(crate) struct Predecessor {
    all: Predecessors,
    number: u64,
}

/// Two readings of different servers as one.
fn sum(a: RevisionLoad, b: &RevisionLoad) -> RevisionLoad {
    RevisionLoad {
        open: a.open + b.open,
        held: a.held + b.held,
        arrivals_total: a.arrivals_total + b.arrivals_total,
        open_us_total: a.open_us_total + b.open_us_total,
        last_arrival: a.last_arrival.max(b.last_arrival),
    }
}

impl Predecessors {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more.
    pub(crate) fn join(&self) -> Predecessor {
        self.inner.any.store(true, Ordering::Relaxed);
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.live.insert(number, Told::default());
        Predecessor { all: self.clone(), number }
    }

    /// This server's reading with theirs.
    pub(crate) fn with(&self, revision: &RevisionKey, own: RevisionLoad) -> RevisionLoad {
        if !self.inner.any.load(Ordering::Relaxed) {
            return own;
        }
        let state = self.lock();
        let theirs = state.live.values().filter_map(|told| told.loads.get(revision));
        theirs.chain(state.gone.get(revision)).fold(own, sum)
    }

    /// Open requests at a draining replica over all of them; `None` while one has not said.
    fn open_at(&self, replica: &ReplicaName) -> Option<u64> {
        self.lock().live.values().map(|told| told.drained.get(replica).copied()).sum()
    }

    /// Writes to `all` what `own` says, with theirs; ends only when dropped.
    pub(crate) async fn follow_drained(self, own: Board<ReplicaName, u64>, all: Board<ReplicaName, u64>) {
        let mut changes = own.subscribe();
        loop {
            let names = tokio::select! {
                names = changes.next() => names,
                () = self.inner.changed.notified() => own.snapshot().into_iter().map(|(name, _)| name).collect(),
            };
            for name in names {
                match own.get(&name).map(|open| (open, self.open_at(&name))) {
                    Some((open, Some(theirs))) => drop(all.set(name, open + theirs)),
                    // until they said so, it may have requests
                    Some((_, None)) => {}
                    None => drop(all.remove(&name)),
                }
            }
        }
    }
}

impl Predecessor {
    fn update(&self, change: impl FnOnce(&mut Told)) {
        if let Some(told) = self.all.lock().live.get_mut(&self.number) {
            change(told);
        }
    }

    /// Its readings.
    pub(crate) fn loads(&self, loads: Vec<(RevisionKey, RevisionLoad)>) {
        self.update(|told| told.loads.extend(loads));
    }

    /// Its open requests at replicas that drain.
    pub(crate) fn drained(&self, replicas: Vec<(ReplicaName, Option<u64>)>) {
        self.update(|told| {
            for (name, open) in replicas {
                match open {
                    Some(open) => told.drained.insert(name, open),
                    None => told.drained.remove(&name),
                };
            }
        });
        self.all.inner.changed.notify_one();
    }
}

impl Drop for Predecessor {
    fn drop(&mut self) {
        {
            let mut state = self.all.lock();
            let Some(told) = state.live.remove(&self.number) else { return };
            for (revision, load) in told.loads {
                let before = state.gone.get(&revision).copied().unwrap_or_default();
                let after = RevisionLoad { open: 0, held: 0, ..sum(before, &load) };
                state.gone.insert(revision, after);
            }
        }
        self.all.inner.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cove_model::{ResourceId, RevisionName};

    use super::*;

    fn revision() -> RevisionKey {
        let app = ResourceId::resource("s", "g", "Microsoft.App/containerApps", "web").unwrap();
        RevisionKey { app, name: RevisionName::of("web", "v1").unwrap() }
    }

    #[test]
    fn what_was_counted_stays_counted() {
        let (all, key) = (Predecessors::default(), revision());
        let own = RevisionLoad { open: 1, arrivals_total: 10, ..RevisionLoad::default() };
        assert_eq!(all.with(&key, own), own);
        let first = all.join();
        let load = RevisionLoad { open: 2, held: 1, arrivals_total: 5, open_us_total: 7, last_arrival: None };
        first.loads(vec![(key.clone(), load)]);
        let both = all.with(&key, own);
        assert_eq!((both.open, both.held, both.arrivals_total, both.open_us_total), (3, 1, 15, 7));
        drop(first);
        let after = all.with(&key, own);
        assert_eq!((after.open, after.held, after.arrivals_total, after.open_us_total), (1, 0, 15, 7));
    }

    #[tokio::test]
    async fn a_replica_is_drained_when_all_said_so() {
        let (all, own, out) = (Predecessors::default(), Board::default(), Board::default());
        let first = all.join();
        let task = tokio::spawn(all.clone().follow_drained(own.clone(), out.clone()));
        let [name, other] = ["web--v1-a", "web--v1-b"].map(|name| ReplicaName::new(name).unwrap());
        let mut changes = out.subscribe();
        let mut changed = async || {
            let next = tokio::time::timeout(Duration::from_secs(10), changes.next()).await;
            next.expect("a change comes").into_iter().collect::<Vec<_>>()
        };
        own.set(name.clone(), 0);
        first.drained(vec![(name.clone(), Some(2))]);
        assert_eq!((changed().await, out.get(&name)), (vec![name.clone()], Some(2)));
        first.drained(vec![(name.clone(), Some(0))]);
        assert_eq!((changed().await, out.get(&name)), (vec![name.clone()], Some(0)));
        // the other one drains too, and the first server ends without a word about it
        own.set(other.clone(), 1);
        own.remove(&name);
        assert_eq!((changed().await, out.get(&name)), (vec![name.clone()], None));
        assert_eq!(out.get(&other), None);
        drop(first);
        assert_eq!((changed().await, out.get(&other)), (vec![other.clone()], Some(1)));
        task.abort();
    }
}
