//! Somebody who works with a session all the while.

use std::time::Duration;

use tokio::sync::watch;

use super::pool::Pool;
use crate::cove::Address;

/// Between two requests.
const PACE: Duration = Duration::from_millis(10);

/// One client that sends requests to a session, one after the other.
pub(super) struct Live {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<anyhow::Result<Vec<Duration>>>,
}

impl Live {
    pub(super) fn begin(pool: &Pool, address: &Address, identifier: &'static str) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let (pool, address) = (pool.again(), address.clone());
        let task = tokio::spawn(async move {
            let mut took = Vec::new();
            loop {
                took.push(pool.get(&address, identifier).await?.0);
                if tokio::time::timeout(PACE, stopped.wait_for(|stop| *stop)).await.is_ok() {
                    return Ok(took);
                }
            }
        });
        Self { stop, task }
    }

    /// How long each request took.
    pub(super) async fn end(self) -> anyhow::Result<Vec<Duration>> {
        self.stop.send_replace(true);
        self.task.await?
    }
}
