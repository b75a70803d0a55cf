//! Threads that serve connections, one per core: a connection stays on its thread from its first byte to its last, and so do
//! the connections to replicas that its requests use. Nothing of a request crosses threads, so nobody is woken for it.
//!
//! Connections are accepted in one place and given to the thread that has the fewest.
//!
//! **Invariant:** a shard's thread ends when it is told to, and what was left on it is dropped with it: nothing of a server
//! that was stopped holds on to its files.

use std::{
    cell::Cell,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::{net::TcpStream, runtime, sync::oneshot};

/// How long the threads may take to end.
const STOP_TIME: Duration = Duration::from_secs(2);

thread_local! {
    /// Which shard this thread is; 0 is every thread that is none.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// The shard of the calling thread, for what is kept per shard: 0 for threads that are none, then 1 and up.
pub(crate) fn current() -> usize {
    CURRENT.get()
}

/// The threads.
#[derive(Debug, Default)]
pub(crate) struct Shards {
    shards: Vec<Shard>,
    threads: Mutex<Vec<Thread>>,
}

#[derive(Debug)]
struct Thread {
    /// Dropped: the thread ends.
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shard {
    handle: runtime::Handle,
    /// Connections it has.
    open: Arc<AtomicUsize>,
}

/// A connection's place on a shard, given back on drop.
#[derive(Debug)]
pub(crate) struct Place(Option<Arc<AtomicUsize>>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(open) = &self.0 {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Shards {
    /// Starts `count` threads; with none everything stays on the caller's runtime.
    ///
    /// # Errors
    /// The system's, when it has no thread or no file for one.
    pub(crate) fn start(count: usize) -> io::Result<Self> {
        let mut started = Self::default();
        for number in 1..=count {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let (stop, stopped) = oneshot::channel::<()>();
            let thread = std::thread::Builder::new().name(format!("ingress-{number}")).spawn(move || {
                CURRENT.set(number);
                runtime.block_on(async {
                    let _dropped = stopped.await;
                });
            })?;
            started.shards.push(Shard { handle, open: Arc::default() });
            started.threads.get_mut().unwrap_or_else(PoisonError::into_inner).push(Thread { stop, thread });
        }
        Ok(started)
    }

    /// Ends the threads, and drops what is left on them.
    pub(crate) async fn stop(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let (stops, threads): (Vec<_>, Vec<_>) =
            threads.into_iter().map(|Thread { stop, thread }| (stop, thread)).unzip();
        drop(stops);
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let _panicked_tasks_were_told = thread.join();
            }
        });
        if tokio::time::timeout(STOP_TIME, joined).await.is_err() {
            tracing::warn!("a thread of the ingress did not end in time");
        }
    }

    /// Gives a connection to a thread: `serve` makes and spawns its task there.
    pub(crate) fn give(&self, stream: TcpStream, serve: impl FnOnce(TcpStream, Place)) -> io::Result<()> {
        let Some(shard) = self.shards.iter().min_by_key(|shard| shard.open.load(Ordering::Relaxed)) else {
            serve(stream, Place(None));
            return Ok(());
        };
        shard.open.fetch_add(1, Ordering::Relaxed);
        let place = Place(Some(Arc::clone(&shard.open)));
        // from here on that thread's own poll watches the socket
        let stream = stream.into_std()?;
        let _there = shard.handle.enter();
        serve(TcpStream::from_std(stream)?, place);
        Ok(())
    }
}
