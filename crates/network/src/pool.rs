//! The pool of ready network namespaces: who has which, which are being made, which are to go.
//!
//! Two threads work behind it: one makes namespaces (callers that wait come first, then the pool is refilled), one
//! removes used ones, so that tear-down never delays a start. Taking from a filled pool is a lock and a pop.
//!
//! **Invariant:** a host number belongs to at most one namespace, from before it is made until after it is gone.
//! **Invariant:** a namespace is leased at most once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use crate::error::NetworkError;
use crate::kernel::Kernel;
use crate::layout::{Layout, NetnsClass, NetnsId, NetnsLease};
use crate::limits;
use crate::netns::{self, Fault, Uplink};

/// Namespaces at most: a Linux bridge has 1023 ports.
pub const REPLICAS_MAX: usize = 1000;

/// Callers that may wait for a namespace at a time; more get [`NetworkError::Busy`].
const WAITERS_MAX: usize = 1024;

/// Pause before the pool is refilled again after a failure; doubled each time up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Tries to remove a namespace before it is left for the next open.
const REMOVE_TRIES: u32 = 5;

/// Namespaces removed together.
const REMOVE_BATCH_MAX: usize = 64;

type Answer = Result<NetnsLease, NetworkError>;

/// How full the pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// Namespaces ready to be taken.
    pub ready: usize,
    /// Namespaces given out.
    pub leased: usize,
    /// Namespaces not gone yet after their release.
    pub leaving: usize,
    /// Callers waiting.
    pub waiting: usize,
}

/// What callers and the two threads share.
#[derive(Debug)]
pub(crate) struct Pool {
    state: Mutex<State>,
    /// Rung when there may be something to make.
    to_make: Condvar,
    /// Rung when there may be something to remove.
    to_remove: Condvar,
    /// Rung after every change, for those who wait for a state.
    changed: Notify,
    size: usize,
}

#[derive(Debug)]
struct State {
    ready: VecDeque<NetnsLease>,
    waiters: VecDeque<(NetnsClass, oneshot::Sender<Answer>)>,
    leased: BTreeSet<NetnsId>,
    /// Found at open and not claimed yet; the value says whether its interface is there.
    found: BTreeMap<NetnsId, bool>,
    /// To be removed, each with the tries so far.
    leaving: VecDeque<(NetnsId, u32)>,
    /// Taken from `leaving` and being removed now.
    removing: usize,
    /// Of apps' replicas, of confined ones, of limited ones.
    hosts: [Hosts; 3],
    /// Last failure to refill: not before then again.
    refill_after: Option<Instant>,
    retry_after: Duration,
    phase: Phase,
    /// The making thread hands out nothing more.
    maker_ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing new is made; what leaves is still removed.
    Closing,
    /// The threads end now.
    Stopped,
}

/// Host numbers in use; the search goes round, so that an address rests before it is used again.
#[derive(Debug)]
struct Hosts {
    used: BTreeSet<u16>,
    first: u16,
    next: u16,
    last: u16,
}

impl Hosts {
    /// `found` are the numbers in use, of whatever class.
    fn new((first, last): (u16, u16), found: &BTreeSet<u16>) -> Self {
        let used: BTreeSet<u16> = found.range(first..=last).copied().collect();
        let next = used.last().filter(|highest| **highest < last).map_or(first, |highest| highest + 1);
        Self { used, first, next, last }
    }

    fn take(&mut self, others: usize) -> Option<u16> {
        let first = self.first;
        if self.used.len() > usize::from(self.last - first) || self.used.len() + others >= REPLICAS_MAX {
            return None;
        }
        let mut host = self.next;
        while self.used.contains(&host) {
            host = if host >= self.last { first } else { host + 1 };
        }
        self.used.insert(host);
        self.next = if host >= self.last { first } else { host + 1 };
        Some(host)
    }
}

/// Which host numbers are of a class.
fn place(class: NetnsClass) -> usize {
    match class {
        NetnsClass::App => 0,
        NetnsClass::Confined => 1,
        NetnsClass::Limited => 2,
    }
}

/// What the making thread does next.
enum Job {
    Serve(oneshot::Sender<Answer>),
    Refill,
}

impl State {
    /// A free host number, if there is one and the bridge has a port for it.
    fn take_host(&mut self, class: NetnsClass) -> Option<u16> {
        let all: usize = self.hosts.iter().map(|hosts| hosts.used.len()).sum();
        let own = &mut self.hosts[place(class)];
        own.take(all - own.used.len())
    }

    fn give_host(&mut self, host: u16) {
        for hosts in &mut self.hosts {
            hosts.used.remove(&host);
        }
    }

    fn class_of(&self, id: NetnsId) -> NetnsClass {
        let is_in = |class: &NetnsClass| id.host >= self.hosts[place(*class)].first;
        [NetnsClass::Limited, NetnsClass::Confined].into_iter().find(is_in).unwrap_or(NetnsClass::App)
    }
}

impl Pool {
    /// `found` are namespaces of an earlier run, each with whether it is whole.
    pub(crate) fn new(size: usize, layout: &Layout, found: BTreeMap<NetnsId, bool>) -> Self {
        let used: BTreeSet<u16> = found.keys().map(|id| id.host).collect();
        let classes = [NetnsClass::App, NetnsClass::Confined, NetnsClass::Limited];
        let hosts = classes.map(|class| Hosts::new(layout.hosts(class), &used));
        let state = State {
            ready: VecDeque::new(),
            waiters: VecDeque::new(),
            leased: BTreeSet::new(),
            found,
            leaving: VecDeque::new(),
            removing: 0,
            hosts,
            refill_after: None,
            retry_after: RETRY_MIN,
            phase: Phase::Open,
            maker_ended: false,
        };
        Self {
            state: Mutex::new(state),
            to_make: Condvar::new(),
            to_remove: Condvar::new(),
            changed: Notify::new(),
            size,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of a holder leaves whole values: each change below is one insert or one pop.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn acquire(&self, class: NetnsClass) -> Answer {
        let receiver = {
            let mut state = self.lock();
            if state.phase != Phase::Open {
                return Err(NetworkError::Closed);
            }
            if class == NetnsClass::App
                && let Some(lease) = state.ready.pop_front()
            {
                state.leased.insert(lease.id);
                self.to_make.notify_one();
                return Ok(lease);
            }
            if state.waiters.len() >= WAITERS_MAX {
                return Err(NetworkError::Busy { waiting: state.waiters.len() });
            }
            let (sender, receiver) = oneshot::channel();
            state.waiters.push_back((class, sender));
            self.to_make.notify_one();
            receiver
        };
        Waiting { pool: self, receiver }.answer().await
    }

    /// Hands `id` over for removal; an id that is not out is left alone.
    pub(crate) fn release(&self, id: NetnsId) {
        let mut state = self.lock();
        if state.leased.remove(&id) || state.found.remove(&id).is_some() {
            state.leaving.push_back((id, 0));
            self.to_remove.notify_one();
            self.changed.notify_waiters();
        } else {
            tracing::debug!(%id, "released a network namespace that is not out");
        }
    }

    /// Sorts what was found at open: the ones in `in_use` stay, all others go. Returns (kept, missing, removed).
    pub(crate) fn adopt(&self, in_use: &BTreeSet<NetnsId>) -> (Vec<NetnsId>, Vec<NetnsId>, usize) {
        let mut state = self.lock();
        let found = std::mem::take(&mut state.found);
        let mut removed = 0;
        for (id, whole) in found {
            if whole && in_use.contains(&id) {
                state.leased.insert(id);
            } else {
                state.leaving.push_back((id, 0));
                removed += 1;
            }
        }
        self.to_remove.notify_one();
        let (kept, missing) = in_use.iter().partition(|id| state.leased.contains(id));
        (kept, missing, removed)
    }

    pub(crate) fn status(&self) -> PoolStatus {
        let state = self.lock();
        PoolStatus {
            ready: state.ready.len(),
            leased: state.leased.len(),
            leaving: state.leaving.len() + state.removing,
            waiting: state.waiters.len(),
        }
    }

    /// Waits until the pool is as `wanted`; the caller sets the limit.
    pub(crate) async fn wait_for(&self, wanted: impl Fn(PoolStatus) -> bool) {
        loop {
            let changed = self.changed.notified();
            if wanted(self.status()) {
                return;
            }
            changed.await;
        }
    }

    /// Nothing is given out from now on; with `drain` the unused namespaces are removed before the threads end.
    pub(crate) fn close(&self, drain: bool) {
        let mut state = self.lock();
        if state.phase != Phase::Stopped {
            state.phase = if drain { Phase::Closing } else { Phase::Stopped };
        }
        state.waiters.clear();
        if drain {
            let unused: Vec<_> = state.ready.drain(..).map(|lease| (lease.id, 0)).collect();
            state.leaving.extend(unused);
        }
        self.to_make.notify_all();
        self.to_remove.notify_all();
    }

    /// Waits for something to make; none when the thread shall end.
    fn next_job(&self) -> Option<(Job, Option<u16>)> {
        let mut state = self.lock();
        loop {
            if state.phase != Phase::Open {
                return None;
            }
            while let Some((class, waiter)) = state.waiters.pop_front() {
                if !waiter.is_closed() {
                    let host = state.take_host(class);
                    return Some((Job::Serve(waiter), host));
                }
            }
            let pause = state.refill_after.and_then(|at| at.checked_duration_since(Instant::now()));
            if state.ready.len() < self.size && pause.is_none() {
                if let Some(host) = state.take_host(NetnsClass::App) {
                    return Some((Job::Refill, Some(host)));
                }
                state.refill_after = Some(Instant::now() + RETRY_MAX);
                continue;
            }
            state = match pause {
                Some(pause) if state.ready.len() < self.size => {
                    self.to_make.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0
                }
                _ => self.to_make.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// The making thread: ends when the pool closes, or when it cannot get back from a namespace.
    pub(crate) fn make_loop(self: &Arc<Self>, kernel: &Kernel, layout: &Layout, uplink: Uplink) {
        let _ended = MakerEnded(self);
        while let Some((job, host)) = self.next_job() {
            let Some(host) = host else {
                if let Job::Serve(waiter) = job {
                    let _ = waiter.send(Err(NetworkError::Full { limit: REPLICAS_MAX }));
                }
                continue;
            };
            let id = NetnsId { host, nonce: rand::random() };
            let started = Instant::now();
            let made = netns::create(kernel, layout, uplink, id);
            tracing::trace!(%id, elapsed = ?started.elapsed(), ok = made.is_ok(), "made a network namespace");
            match made {
                Ok(lease) => self.hand_out(job, lease),
                Err(Fault::Failed(error)) => self.failed(job, host, error),
                Err(Fault::Lost(error)) => {
                    tracing::error!(%error, "no more network namespaces can be made; restart the server");
                    self.close(false);
                    return;
                }
            }
        }
    }

    fn hand_out(&self, job: Job, lease: NetnsLease) {
        let mut state = self.lock();
        self.changed.notify_waiters();
        state.refill_after = None;
        state.retry_after = RETRY_MIN;
        let Job::Serve(waiter) = job else {
            // Someone may have come while this one was made.
            let suits = |(class, waiter): &(NetnsClass, oneshot::Sender<Answer>)| {
                *class == NetnsClass::App && !waiter.is_closed()
            };
            if let Some(at) = state.waiters.iter().position(suits)
                && let Some((_, waiter)) = state.waiters.remove(at)
            {
                return self.answer(&mut state, waiter, lease);
            }
            return self.keep(&mut state, lease);
        };
        self.answer(&mut state, waiter, lease);
    }

    fn answer(&self, state: &mut State, waiter: oneshot::Sender<Answer>, lease: NetnsLease) {
        state.leased.insert(lease.id);
        if let Err(Ok(lease)) = waiter.send(Ok(lease)) {
            state.leased.remove(&lease.id);
            self.keep(state, lease);
        }
    }

    fn keep(&self, state: &mut State, lease: NetnsLease) {
        if state.phase == Phase::Open && state.class_of(lease.id) == NetnsClass::App {
            state.ready.push_back(lease);
        } else {
            state.leaving.push_back((lease.id, 0));
            self.to_remove.notify_one();
        }
    }

    fn failed(&self, job: Job, host: u16, error: NetworkError) {
        let mut state = self.lock();
        state.give_host(host);
        match job {
            Job::Serve(waiter) => {
                let _ = waiter.send(Err(error));
            }
            Job::Refill => {
                tracing::warn!(%error, cause = ?std::error::Error::source(&error), retry = ?state.retry_after,
                    "failed to prepare a network namespace");
                state.refill_after = Some(Instant::now() + state.retry_after);
                state.retry_after = (state.retry_after * 2).min(RETRY_MAX);
            }
        }
    }

    /// The removing thread: ends when the pool is closed and, if it drains, empty.
    ///
    /// A batch is unpinned as a whole before interfaces are removed one by one: the kernel tears down namespaces
    /// in batches of its own, so most interfaces are gone by the time it is their turn.
    pub(crate) fn remove_loop(self: &Arc<Self>, kernel: &Kernel, layout: &Layout, uplink: Uplink) {
        while let Some(batch) = self.next_leaving() {
            for (id, _) in &batch {
                if let Err(error) = netns::unpin(&layout.path(*id)) {
                    tracing::debug!(%id, %error, "failed to unmount a network namespace");
                }
            }
            for (id, tries) in batch {
                let result = netns::destroy(kernel, layout, uplink, id);
                if result.is_ok() && layout.limited().contains(&layout.address(id.host)) {
                    limits::remove(kernel, layout, id);
                }
                self.removed(id, tries, result);
            }
        }
    }

    fn removed(&self, id: NetnsId, tries: u32, result: Result<(), NetworkError>) {
        let mut state = self.lock();
        self.changed.notify_waiters();
        state.removing -= 1;
        match result {
            Ok(()) => {
                state.give_host(id.host);
                // A full network has room again; a back-off after failures stays.
                state.refill_after = state.refill_after.filter(|_| state.retry_after > RETRY_MIN);
                self.to_make.notify_one();
            }
            Err(error) if tries + 1 < REMOVE_TRIES => {
                tracing::debug!(%id, %error, tries, "failed to remove a network namespace, trying again");
                state.leaving.push_back((id, tries + 1));
            }
            Err(error) => {
                tracing::warn!(%id, %error, "failed to remove a network namespace; it is left for the next start");
            }
        }
    }

    fn next_leaving(&self) -> Option<Vec<(NetnsId, u32)>> {
        let mut state = self.lock();
        loop {
            if state.phase == Phase::Stopped {
                return None;
            }
            if !state.leaving.is_empty() {
                let count = state.leaving.len().min(REMOVE_BATCH_MAX);
                state.removing = count;
                return Some(state.leaving.drain(..count).collect());
            }
            if state.phase == Phase::Closing && state.maker_ended {
                return None;
            }
            state = self.to_remove.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Tells the removing thread, also after a panic, that nothing more will come.
struct MakerEnded<'a>(&'a Pool);

impl Drop for MakerEnded<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.maker_ended = true;
        if state.phase == Phase::Open {
            state.phase = Phase::Stopped;
        }
        state.waiters.clear();
        drop(state);
        self.0.to_remove.notify_all();
    }
}

/// A caller's place in the queue; a lease that arrives after the caller went away is given back.
struct Waiting<'a> {
    pool: &'a Pool,
    receiver: oneshot::Receiver<Answer>,
}

impl Waiting<'_> {
    async fn answer(mut self) -> Answer {
        (&mut self.receiver).await.unwrap_or(Err(NetworkError::Closed))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.receiver.close();
        if let Ok(Ok(lease)) = self.receiver.try_recv() {
            self.pool.release(lease.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(last: u16) -> Hosts {
        Hosts::new((2, last), &BTreeSet::new())
    }

    #[test]
    fn an_address_rests_before_it_is_used_again() {
        let mut hosts = hosts(5);
        assert_eq!(hosts.take(0), Some(2));
        hosts.used.remove(&2);
        assert_eq!([(); 4].map(|()| hosts.take(0)), [Some(3), Some(4), Some(5), Some(2)]);
        assert_eq!(hosts.take(0), None);
        hosts.used.remove(&4);
        assert_eq!(hosts.take(0), Some(4));
    }

    #[test]
    fn a_bridge_has_a_limit() {
        let mut hosts = hosts(4094);
        assert_eq!(std::iter::from_fn(|| hosts.take(0)).count(), REPLICAS_MAX);
        hosts.used.clear();
        assert_eq!(std::iter::from_fn(|| hosts.take(400)).count(), REPLICAS_MAX - 400);
    }

    #[test]
    fn adopting_keeps_the_whole_ones_in_use_and_names_the_missing() {
        let id = |host| NetnsId { host, nonce: 7 };
        let layout = Layout::new("t", "10.70.16.0/24".parse().unwrap(), std::path::Path::new("/run/cove"));
        let pool = Pool::new(0, &layout, [(id(2), true), (id(3), true), (id(4), false)].into());
        let in_use = [id(2), id(4), id(9)].into();
        assert_eq!(pool.adopt(&in_use), (vec![id(2)], vec![id(4), id(9)], 2));
        assert_eq!(pool.status(), PoolStatus { ready: 0, leased: 1, leaving: 2, waiting: 0 });
        pool.release(id(2));
        pool.release(id(2));
        assert_eq!(pool.status().leaving, 3);
    }
}
