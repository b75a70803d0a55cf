//! A future that is polled only after it asked for it.
//!
//! A connection's task waits for its bytes and, beside them, for the server's end. It is woken for bytes thousands of times a
//! second, and each look at a token that all connections share would take the token's lock. [`Rare`] gives its future a waker
//! of its own, and looks at nothing until that one was called.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// Polls its future once at first and then only when the future's own waker was called.
#[derive(Debug)]
pub struct Rare<F> {
    future: Pin<Box<F>>,
    latch: Arc<Latch>,
    waker: Waker,
}

#[derive(Debug)]
struct Latch {
    is_called: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Latch {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_called.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<F: Future> Rare<F> {
    /// Wraps a future that is seldom ready.
    pub fn new(future: F) -> Self {
        let latch = Arc::new(Latch { is_called: AtomicBool::new(true), task: AtomicWaker::new() });
        let waker = Waker::from(Arc::clone(&latch));
        Self { future: Box::pin(future), latch, waker }
    }
}

impl<F: Future> Future for Rare<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        // first where to call, then whether it was called: a call in between is seen here or wakes the task
        this.latch.task.register(cx.waker());
        if !this.latch.is_called.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        this.future.as_mut().poll(&mut Context::from_waker(&this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, time::Duration};

    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_when_it_asks_and_not_when_others_wake_the_task() {
        let (token, polls) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let mut cancelled = Box::pin(token.clone().cancelled_owned());
        let counted = Arc::clone(&polls);
        let mut rare = Rare::new(std::future::poll_fn(move |cx| {
            counted.fetch_add(1, Ordering::Relaxed);
            cancelled.as_mut().poll(cx)
        }));
        for _ in 0..100 {
            assert!(futures_util::poll!(&mut rare).is_pending());
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        let waiting = tokio::spawn(rare);
        token.cancel();
        tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }
}
