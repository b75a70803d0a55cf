//! Runs a server until it is told to end, or until another one has taken over.
//!
//! **Invariant:** when a new server ends before it serves, this process starts one anew: apps are not left without.

use anyhow::{Context, bail};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use crate::serve::{Endpoints, Options, Server};

/// What ended a server.
enum End {
    Signal,
    Failed,
    /// Another server serves, and what was open here is finished.
    Replaced,
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs a server until SIGTERM or SIGINT, then drains; a second signal ends at once. When another server takes over, it
/// returns once all that was open here is finished.
///
/// # Errors
/// When it cannot start, or an essential part failed while it ran.
pub async fn run_until_signal(mut options: Options, ready: impl FnOnce(&Endpoints)) -> anyhow::Result<()> {
    let mut signals =
        Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    let mut server = Server::start(options.clone()).await?;
    ready(server.endpoints());
    options.take_over = true;
    loop {
        let ended = server.ended();
        let visitor = tokio::select! {
            () = ended.cancelled() => return stop(server, &mut signals, End::Failed).await,
            () = signals.next() => return stop(server, &mut signals, End::Signal).await,
            visitor = server.visitor() => visitor,
        };
        let (abandoned, mut was_abandoned) = mpsc::channel(1);
        let abandoned = move || {
            let _told_already = abandoned.try_send(());
        };
        let leaving = tokio::spawn(server.hand_over(visitor, abandoned));
        tokio::pin!(leaving);
        let mut signals_seen = 0;
        let end = loop {
            tokio::select! {
                left = &mut leaving => { left.context("the hand-over failed")?; break End::Replaced }
                Some(()) = was_abandoned.recv() => break End::Failed,
                () = signals.next() => {
                    signals_seen += 1;
                    if signals_seen > 1 {
                        tracing::warn!("ended at once by a second signal");
                        return Ok(());
                    }
                    tracing::info!("another server takes over; open connections are finished, a second signal ends at once");
                }
            }
        };
        if matches!(end, End::Replaced) {
            return Ok(());
        }
        tracing::warn!("starting anew in this process");
        // what is open in the part that leaves goes on beside it
        server =
            Server::start(options.clone()).await.context("the new server failed, and so did starting this one anew")?;
    }
}

async fn stop(server: Server, signals: &mut Signals, why: End) -> anyhow::Result<()> {
    tracing::info!("draining; a second signal ends at once");
    tokio::select! {
        () = server.shutdown() => {}
        () = signals.next() => tracing::warn!("ended at once by a second signal"),
    }
    if matches!(why, End::Failed) {
        bail!("an essential part of the server failed; its log says which");
    }
    Ok(())
}
