//! Every spawned task of the server: named, counted, ended together.
//!
//! **Invariant:** a task that ends with an error or a panic is logged once, here; `Shutdown` kinds then end the server.

use std::{fmt::Display, future::Future, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::Rare;

/// What a failed task means for the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// Log it; the rest goes on.
    Log,
    /// Nothing works without it: shut down.
    Shutdown,
}

/// What shutdown does to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCancel {
    /// It watches the token itself and is waited for.
    Wait,
    /// It is dropped at its next await.
    Abort,
}

/// A kind of task.
#[derive(Clone, Copy, Debug)]
pub struct TaskKind {
    /// Name in logs.
    pub name: &'static str,
    /// What its failure means.
    pub on_error: OnError,
    /// What shutdown does to it.
    pub on_cancel: OnCancel,
}

/// Spawns tasks and ends them; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    shutdown: CancellationToken,
}

impl Tasks {
    /// Tasks that end when `shutdown` is cancelled.
    #[must_use]
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), shutdown }
    }

    /// The token that ends them.
    #[must_use]
    pub fn shutdown_token(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Spawns a task that cannot fail.
    pub fn spawn(&self, kind: TaskKind, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_fallible(kind, async move {
            task.await;
            Ok::<(), std::convert::Infallible>(())
        });
    }

    /// Spawns a task; its error is logged and, for [`OnError::Shutdown`], ends the server.
    pub fn spawn_fallible<E: Display + Send + 'static>(
        &self,
        kind: TaskKind,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let shutdown = self.shutdown.clone();
        let work = {
            let shutdown = shutdown.clone();
            async move {
                match kind.on_cancel {
                    OnCancel::Wait => task.await,
                    OnCancel::Abort => {
                        let cancelled = Rare::new(shutdown.cancelled());
                        tokio::select! {
                            biased;
                            () = cancelled => Ok(()),
                            result = task => result,
                        }
                    }
                }
            }
        };
        self.tracker.spawn(async move {
            // what the task shares with others is behind locks that outlive a panic
            let failed = match AssertUnwindSafe(work).catch_unwind().await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_panic) => "panicked".to_owned(),
            };
            tracing::error!(task = kind.name, error = %failed, "task failed");
            if kind.on_error == OnError::Shutdown {
                shutdown.cancel();
            }
        });
    }

    /// Cancels all and waits until every one has ended; `false` when `limit` passed first.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.shutdown.cancel();
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: TaskKind = TaskKind { name: "test", on_error: OnError::Shutdown, on_cancel: OnCancel::Abort };

    #[tokio::test]
    async fn a_failed_task_ends_the_server() {
        let tasks = Tasks::default();
        tasks.spawn(KIND, std::future::pending());
        tasks.spawn_fallible(KIND, async { Err("boom") });
        tokio::time::timeout(Duration::from_secs(5), tasks.shutdown_token().cancelled()).await.unwrap();
        assert!(tasks.drain(Duration::from_secs(5)).await);
    }
}
