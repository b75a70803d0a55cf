//! Connections shared by all rules of one address and one set of credentials.
//!
//! **Invariant:** one connection attempt per key at a time; those who come meanwhile wait for its outcome.
//! **Invariant:** after a failed attempt the key rests, longer each time (1 s to 30 s): whoever asks gets the error at once,
//! so a thousand rules on one dead host are one attempt per rest.
//! **Invariant:** a rest is a span of the platform's time: beside a virtual clock a source that came back is seen to be
//! back at the same poll, however fast the clock is moved.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cove_base::Clock;
use jiff::Timestamp;
use tokio::sync::Mutex as AsyncMutex;

use crate::source::ReadError;

/// First rest after a failure.
const REST_FIRST: Duration = Duration::from_secs(1);
/// Longest rest.
const REST_MAX: Duration = Duration::from_secs(30);
/// A connection that nobody asked for during this time is closed.
const IDLE_MAX: Duration = Duration::from_secs(600);

tokio::task_local! {
    /// The virtual clock of the read that asks for a connection; none where time is real.
    static CLOCK: Clock;
}

/// Reads beside a virtual clock: whatever a pool is asked meanwhile rests by that clock.
pub(crate) async fn paced<T>(clock: Clock, read: impl Future<Output = T>) -> T {
    CLOCK.scope(clock, read).await
}

/// The time that rests are measured by, since some fixed instant.
fn moment() -> Duration {
    static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let of_clock = |clock: &Clock| clock.now().duration_since(Timestamp::MIN).unsigned_abs();
    CLOCK.try_with(of_clock).unwrap_or_else(|_no_clock| BEGUN.elapsed())
}

/// One connection per key.
pub struct Pool<K, V> {
    slots: Mutex<HashMap<K, Arc<Slot<V>>>>,
}

struct Slot<V> {
    state: AsyncMutex<State<V>>,
    used_at: Mutex<Instant>,
}

struct State<V> {
    value: Option<V>,
    /// And until when that holds, as [`moment`] counts.
    failure: Option<(ReadError, Duration)>,
    rest: Duration,
}

impl<K, V> Default for Pool<K, V> {
    fn default() -> Self {
        Self { slots: Mutex::new(HashMap::new()) }
    }
}

impl<K, V> fmt::Debug for Pool<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Pool<K, V> {
    /// The connection of `key`, made by `connect` where there is none.
    ///
    /// # Errors
    /// What `connect` said, now or a moment ago.
    pub async fn get<F>(&self, key: &K, connect: impl FnOnce() -> F) -> Result<V, ReadError>
    where
        F: Future<Output = Result<V, ReadError>>,
    {
        let slot = self.slot(key);
        let mut state = slot.state.lock().await;
        if let Some(value) = &state.value {
            return Ok(value.clone());
        }
        if let Some((error, until)) = &state.failure
            && moment() < *until
        {
            return Err(error.clone());
        }
        // If the caller gives up in the middle, the next one rests: an attempt that hangs is a failure too.
        let rest = state.rest;
        state.rest = (rest * 2).min(REST_MAX);
        state.failure = Some((ReadError::new("the source did not answer in time"), moment() + rest));
        match connect().await {
            Ok(value) => {
                *state = State { value: Some(value.clone()), failure: None, rest: REST_FIRST };
                Ok(value)
            }
            Err(error) => {
                state.failure = Some((error.clone(), moment() + rest));
                Err(error)
            }
        }
    }

    /// Closes the connection of `key`: a read on it failed. The next [`Pool::get`] connects anew.
    pub async fn forget(&self, key: &K) {
        let slot = self.slot(key);
        slot.state.lock().await.value = None;
    }

    /// Closes the connection of `key` if it still is the one that `is_it` means: another reader may have made a new one.
    pub async fn forget_if(&self, key: &K, is_it: impl FnOnce(&V) -> bool) {
        let slot = self.slot(key);
        let mut state = slot.state.lock().await;
        if state.value.as_ref().is_some_and(is_it) {
            state.value = None;
        }
    }

    fn slot(&self, key: &K) -> Arc<Slot<V>> {
        let now = Instant::now();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if !slots.contains_key(key) {
            slots.retain(|_, slot| {
                now.duration_since(*slot.used_at.lock().unwrap_or_else(PoisonError::into_inner)) < IDLE_MAX
            });
        }
        let slot = slots.entry(key.clone()).or_insert_with(|| {
            let state = State { value: None, failure: None, rest: REST_FIRST };
            Arc::new(Slot { state: AsyncMutex::new(state), used_at: Mutex::new(now) })
        });
        *slot.used_at.lock().unwrap_or_else(PoisonError::into_inner) = now;
        Arc::clone(slot)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_thousand_rules_on_a_dead_host_are_one_attempt() {
        let pool = Arc::new(Pool::<&str, u32>::default());
        let attempts = Arc::new(AtomicU32::new(0));
        let asked: Vec<_> = (0..1000)
            .map(|_| {
                let (pool, attempts) = (Arc::clone(&pool), Arc::clone(&attempts));
                tokio::spawn(async move {
                    let connect = || async {
                        attempts.fetch_add(1, Ordering::Relaxed);
                        Err(ReadError::new("connection refused"))
                    };
                    pool.get(&"dead:1", connect).await
                })
            })
            .collect();
        for answer in asked {
            assert_eq!(answer.await.unwrap(), Err(ReadError::new("connection refused")));
        }
        assert_eq!(attempts.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_rest_is_over_when_a_virtual_clock_says_so() {
        let clock = Clock::virtual_at(Timestamp::UNIX_EPOCH);
        let pool = Pool::<&str, u32>::default();
        let refused = || async { Err(ReadError::new("connection refused")) };
        assert!(paced(clock.clone(), pool.get(&"db:1", refused)).await.is_err());
        assert!(paced(clock.clone(), pool.get(&"db:1", || async { Ok(1) })).await.is_err(), "it rests");
        clock.advance(jiff::SignedDuration::from_secs(1));
        assert_eq!(paced(clock, pool.get(&"db:1", || async { Ok(1) })).await, Ok(1));
    }

    #[tokio::test]
    async fn a_connection_is_shared_until_it_is_forgotten() {
        let pool = Pool::<&str, u32>::default();
        let made = AtomicU32::new(0);
        let connect = || async { Ok(made.fetch_add(1, Ordering::Relaxed)) };
        assert_eq!(pool.get(&"a:1", connect).await, Ok(0));
        assert_eq!(pool.get(&"a:1", connect).await, Ok(0));
        pool.forget(&"a:1").await;
        assert_eq!(pool.get(&"a:1", connect).await, Ok(1));
    }
}
