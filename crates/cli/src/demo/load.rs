//! Requests at a steady rate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// Requests open at once; more are not sent.
const OPEN_MAX: usize = 256;
/// Longest a request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// What became of the requests.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) answered: AtomicU64,
    pub(super) failed: AtomicU64,
}

/// A running load.
#[derive(Debug)]
pub(super) struct Load {
    counts: Arc<Counts>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Load {
    /// Sends `rate` requests per second to `url` until stopped.
    pub(super) fn start(http: reqwest::Client, url: String, rate: u32) -> Self {
        let counts = Arc::new(Counts::default());
        let stop = CancellationToken::new();
        let task = tokio::spawn(send(http, url, rate, Arc::clone(&counts), stop.clone()));
        Self { counts, stop, task }
    }

    /// Sends no more, waits for the open ones; answered and failed.
    pub(super) async fn stop(self) -> (u64, u64) {
        self.stop.cancel();
        let _ended = self.task.await;
        (self.counts.answered.load(Ordering::Relaxed), self.counts.failed.load(Ordering::Relaxed))
    }
}

async fn send(http: reqwest::Client, url: String, rate: u32, counts: Arc<Counts>, stop: CancellationToken) {
    let open = Arc::new(Semaphore::new(OPEN_MAX));
    let mut every = interval(Duration::from_secs(1) / rate.max(1));
    every.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = every.tick() => {}
        }
        let Ok(permit) = Arc::clone(&open).try_acquire_owned() else { continue };
        let (http, url, counts) = (http.clone(), url.clone(), Arc::clone(&counts));
        tokio::spawn(async move {
            let answer = http.get(&url).timeout(REQUEST_LIMIT).send().await;
            let is_ok = match answer {
                Ok(answer) if answer.status().is_success() => answer.bytes().await.is_ok(),
                _ => false,
            };
            let counter = if is_ok { &counts.answered } else { &counts.failed };
            counter.fetch_add(1, Ordering::Relaxed);
            drop(permit);
        });
    }
    // all permits back: nothing is open any more; each request has a limit of its own
    let _all = open.acquire_many(u32::try_from(OPEN_MAX).unwrap_or(u32::MAX)).await;
}
