//! The state of a virtual clock: its time, who sleeps until when, and who is at work.
//!
//! **Invariant:** wakers are called and dropped without the lock held: what they wake may sleep here too.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use jiff::Timestamp;
use tokio::sync::Notify;

/// Moves that are remembered for stamps of the machine's clock; of the older half every other one is forgotten then.
const MOVES_MAX: usize = 8192;

#[derive(Debug)]
pub(super) struct Virtual {
    state: Mutex<State>,
    rested: Notify,
}

#[derive(Debug)]
struct State {
    now: Timestamp,
    sleepers: BTreeMap<(Timestamp, u64), Waker>,
    next_sleeper: u64,
    /// How many of each name are at work.
    at_work: BTreeMap<&'static str, usize>,
    /// The machine's time of a move, and the time after it.
    moves: Vec<(Timestamp, Timestamp)>,
}

impl Virtual {
    pub(super) fn new(start: Timestamp) -> Self {
        let state = State {
            now: start,
            sleepers: BTreeMap::new(),
            next_sleeper: 0,
            at_work: BTreeMap::new(),
            moves: vec![(Timestamp::now(), start)],
        };
        Self { state: Mutex::new(state), rested: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.state().now
    }

    pub(super) fn at_machine_time(&self, machine: Timestamp) -> Timestamp {
        let state = self.state();
        let after = state.moves.partition_point(|(at, _)| *at <= machine);
        // there is always one: the start
        state.moves.get(after.saturating_sub(1)).map_or(state.now, |(_, time)| *time)
    }

    pub(super) fn advance_to(&self, to: Timestamp) -> Timestamp {
        let (now, due) = {
            let mut state = self.state();
            if to > state.now {
                state.now = to;
                if state.moves.len() >= MOVES_MAX {
                    let mut at = 0;
                    state.moves.retain(|_| {
                        at += 1;
                        at > MOVES_MAX / 2 || at % 2 == 1
                    });
                }
                state.moves.push((Timestamp::now(), to));
            }
            let now = state.now;
            let due: Vec<Waker> = state.sleepers.range(..=(now, u64::MAX)).map(|(_, waker)| waker.clone()).collect();
            (now, due)
        };
        due.into_iter().for_each(Waker::wake);
        now
    }

    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let state = self.state();
        let first = state.sleepers.range((state.now, u64::MAX)..).next();
        first.map(|((at, _), _)| *at)
    }

    pub(super) fn unrest(&self) -> Vec<&'static str> {
        let state = self.state();
        let mut names: Vec<_> = state.at_work.keys().copied().collect();
        if state.sleepers.first_key_value().is_some_and(|((at, _), _)| *at <= state.now) {
            names.push("a sleeper that is to wake");
        }
        names
    }

    pub(super) async fn rested(&self) {
        self.rested.notified().await;
    }

    pub(super) fn begin(&self, name: &'static str) {
        *self.state().at_work.entry(name).or_default() += 1;
    }

    pub(super) fn end(&self, name: &'static str) {
        let mut state = self.state();
        if let Some(count) = state.at_work.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                state.at_work.remove(name);
            }
        }
        let is_last = state.at_work.is_empty();
        drop(state);
        if is_last {
            self.rested.notify_one();
        }
    }

    /// Notes or renews a sleeper; gives `None` when its time has come, and then forgets it.
    fn sleep(&self, at: Timestamp, id: Option<u64>, waker: &Waker) -> Option<u64> {
        let mut state = self.state();
        if at <= state.now {
            if let Some(id) = id {
                let _woken = state.sleepers.remove(&(at, id));
                drop(state);
                self.rested.notify_one();
            }
            return None;
        }
        let id = id.unwrap_or_else(|| {
            state.next_sleeper += 1;
            state.next_sleeper
        });
        let _older = state.sleepers.insert((at, id), waker.clone());
        drop(state);
        Some(id)
    }

    fn forget(&self, at: Timestamp, id: u64) {
        let mut state = self.state();
        let was_due = at <= state.now;
        let _waker = state.sleepers.remove(&(at, id));
        drop(state);
        if was_due {
            self.rested.notify_one();
        }
    }
}

/// A sleep on a virtual clock.
#[derive(Debug)]
pub(super) struct Sleep {
    clock: Arc<Virtual>,
    at: Timestamp,
    /// Under which it is known as a sleeper; `None` before the first look and when it is over.
    id: Option<u64>,
}

impl Sleep {
    pub(super) fn new(clock: Arc<Virtual>, at: Timestamp) -> Self {
        Self { clock, at, id: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.id = self.clock.sleep(self.at, self.id, context.waker());
        if self.id.is_some() { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.clock.forget(self.at, id);
        }
    }
}
