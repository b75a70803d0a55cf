//! A board: the last value per key, and a notice *that* a key changed, never what it was.
//!
//! Services meet at boards (desired counts, endpoints, drained replicas). A reader that was away learns every key that
//! changed meanwhile once, and reads the newest value: level-triggered, so nothing can be lost or pile up.
//!
//! **Invariant:** no lock is held while a reader's code runs; a reader that never reads costs one set of keys.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

/// The last value per key; cheap to clone, shared by all clones.
#[derive(Debug)]
pub struct Board<K, V> {
    inner: Arc<Mutex<Inner<K, V>>>,
}

#[derive(Debug)]
struct Inner<K, V> {
    values: HashMap<K, V>,
    readers: Vec<Weak<Reader<K>>>,
}

#[derive(Debug)]
struct Reader<K> {
    dirty: Mutex<BTreeSet<K>>,
    /// [`Changes::next`] gave keys and was not called again since; changed under the lock of `dirty`.
    is_reading: AtomicBool,
    notify: Notify,
}

/// A reader's notices of a [`Board`].
#[derive(Debug)]
pub struct Changes<K> {
    reader: Arc<Reader<K>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, V> Clone for Board<K, V> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<K, V> Default for Board<K, V> {
    fn default() -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { values: HashMap::new(), readers: Vec::new() })) }
    }
}

impl<K: Clone + Ord + Hash, V: Clone + PartialEq> Board<K, V> {
    /// The last value of a key.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<V> {
        lock(&self.inner).values.get(key).cloned()
    }

    /// Every key and value, in no order.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(K, V)> {
        lock(&self.inner).values.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Sets a value; readers are told only if it differs from the last one. Says whether it did.
    pub fn set(&self, key: K, value: V) -> bool {
        let mut inner = lock(&self.inner);
        if inner.values.get(&key) == Some(&value) {
            return false;
        }
        inner.values.insert(key.clone(), value);
        inner.tell(&key);
        true
    }

    /// Removes a key; readers are told if it was there.
    pub fn remove(&self, key: &K) -> Option<V> {
        let mut inner = lock(&self.inner);
        let old = inner.values.remove(key);
        if old.is_some() {
            inner.tell(key);
        }
        old
    }

    /// Tells readers to look at a key again though its value is the same: something beside the board changed.
    pub fn touch(&self, key: &K) {
        lock(&self.inner).tell(key);
    }

    /// Whether every reader has taken its notices and waits for more with [`Changes::next`]: whoever moves a virtual clock
    /// asks this. Notices taken with [`Changes::take`] count as read.
    #[must_use]
    pub fn is_read(&self) -> bool {
        let readers: Vec<_> = lock(&self.inner).readers.iter().filter_map(Weak::upgrade).collect();
        readers.iter().all(|reader| {
            let dirty = lock(&reader.dirty);
            dirty.is_empty() && !reader.is_reading.load(Ordering::Relaxed)
        })
    }

    /// Notices from now on; every key that is on the board already counts as changed.
    #[must_use]
    pub fn subscribe(&self) -> Changes<K> {
        let mut inner = lock(&self.inner);
        let dirty = inner.values.keys().cloned().collect();
        let reader =
            Arc::new(Reader { dirty: Mutex::new(dirty), is_reading: AtomicBool::new(false), notify: Notify::new() });
        reader.notify.notify_one();
        inner.readers.push(Arc::downgrade(&reader));
        Changes { reader }
    }
}

impl<K: Clone + Ord, V> Inner<K, V> {
    fn tell(&mut self, key: &K) {
        self.readers.retain(|reader| {
            let Some(reader) = reader.upgrade() else { return false };
            lock(&reader.dirty).insert(key.clone());
            reader.notify.notify_one();
            true
        });
    }
}

impl<K: Clone + Ord> Changes<K> {
    /// Waits until at least one key changed; gives every key that did since the last call. Cancel-safe.
    pub async fn next(&mut self) -> BTreeSet<K> {
        loop {
            {
                let mut dirty = lock(&self.reader.dirty);
                self.reader.is_reading.store(!dirty.is_empty(), Ordering::Relaxed);
                if !dirty.is_empty() {
                    return std::mem::take(&mut *dirty);
                }
            }
            self.reader.notify.notified().await;
        }
    }

    /// The keys that changed since the last call, without waiting.
    pub fn take(&mut self) -> BTreeSet<K> {
        std::mem::take(&mut *lock(&self.reader.dirty))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_learns_each_changed_key_once() {
        let board = Board::default();
        board.set("a", 1);
        let mut changes = board.subscribe();
        assert_eq!(changes.next().await, BTreeSet::from(["a"]));
        assert!(!board.set("a", 1), "same value, no notice");
        board.set("b", 1);
        board.set("b", 2);
        board.remove(&"a");
        assert_eq!(changes.next().await, BTreeSet::from(["a", "b"]));
        assert_eq!((board.get(&"a"), board.get(&"b")), (None, Some(2)));
        assert!(changes.take().is_empty());
    }

    #[tokio::test]
    async fn it_is_known_whether_all_have_read() {
        let board = Board::default();
        assert!(board.is_read(), "nobody reads");
        let mut changes = board.subscribe();
        assert!(board.is_read());
        board.set("a", 1);
        assert!(!board.is_read());
        assert_eq!(changes.next().await, BTreeSet::from(["a"]));
        assert!(!board.is_read(), "it is still at it");
        {
            let waiting = std::pin::pin!(changes.next());
            assert!(poll_once(waiting).is_pending());
        }
        assert!(board.is_read());
        drop(changes);
        board.set("a", 2);
        assert!(board.is_read(), "who is gone does not count");
    }

    fn poll_once<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> std::task::Poll<T> {
        future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }

    #[tokio::test]
    async fn a_waiting_reader_wakes() {
        let board: Board<u32, u32> = Board::default();
        let mut changes = board.subscribe();
        let writer = board.clone();
        let (seen, ()) = tokio::join!(changes.next(), async move {
            writer.set(7, 1);
        });
        assert_eq!(seen, BTreeSet::from([7]));
    }
}
